/* Decoder, private: a segment's table sets and codebook.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_SETS_H
#define ESZ_SETS_H

#include "esz_table.h"

#define ESZ_NO_SET 0xFFFFFFFFu

static int esz_is_chunked(const esz_segment *s) {
    return ESZ_IS(s, ESZ_GAP) || ESZ_IS(s, ESZ_MASK8) || ESZ_IS(s, ESZ_JOINT);
}

/* Only chunked alphabets have nibbles. */
static int esz_is_nibble(const esz_segment *s) {
    return (ESZ_HAS(ESZ_GAP) || ESZ_HAS(ESZ_MASK8) || ESZ_HAS(ESZ_JOINT)) && (s->flags & ESZ_NIBBLE) != 0;
}

#if !defined(ESZ_SMALL)
/* Where a class's first or second table starts; they lie close together, so that they share the cache. */
static size_t esz_table_at(const esz_decoder *d, unsigned number, unsigned table) {
    const unsigned two = d->segment.alphabet == ESZ_GAP || d->segment.alphabet == ESZ_MASK8;
    const size_t first = (size_t)1 << d->bits[0], second = two ? (size_t)1 << d->bits[1] : 0;
    return number * (first + second) + table * first;
}
#endif

/* A table set as it is read. */
typedef struct {
    esz_lengths table[2]; /* the second one of GAP and MASK8 only */
    unsigned values;      /* of JOINT */
} esz_set;

/* Reads the table set at `p`. Returns its size, or 0 if it is invalid. */
static size_t esz_read_set(const esz_decoder *d, const uint8_t *p, size_t avail, esz_set *set) {
    const esz_segment *s = &d->segment;
    const unsigned sparse = ESZ_IS(s, ESZ_GAP) || ESZ_IS(s, ESZ_MASK8), pair = ESZ_IS(s, ESZ_PAIR);
    const unsigned joint = ESZ_IS(s, ESZ_JOINT), bytes = esz_is_nibble(s) ? 16 : d->book_count;
    const unsigned limit = pair ? ESZ_MAX_PAIR_BITS : ESZ_MAX_CODE_BITS;
    unsigned table, symbols;
    size_t at = 0;
    set->values = 1;
    if (joint) { /* the largest value, which is also the number of those that are not the fill value */
        if (avail < 1 || p[0] == 0 || p[0] >= bytes || p[0] < s->fill) return 0;
        set->values = p[at++];
        if ((set->values << s->cap_log2) + ESZ_JOINT_RUNS > 256) return 0;
    }
    for (table = 0; table <= sparse; table++) {
        size_t size;
        symbols = pair ? 16 : joint ? (set->values << s->cap_log2) + ESZ_JOINT_RUNS : bytes;
        if (table < sparse) symbols = ESZ_IS(s, ESZ_GAP) ? 1u << s->cap_log2 : 256;
        size = esz_lengths_read(&set->table[table], p + at, avail - at, symbols, set->values, limit);
        if (size == 0 || (table != 0 && set->table[1].length[s->fill] != 0)) return 0;
        at += size;
    }
    return at;
}

#if defined(ESZ_SMALL)

/* Reads `skip` sets at `p`, and makes the one behind them the loaded one. Returns the size of them all, or 0 if one is
 * invalid. */
static size_t esz_load_set(esz_decoder *d, const uint8_t *p, size_t avail, uint32_t skip) {
    size_t at = 0, size;
    esz_set set;
    memset(&set.table[1], 0, sizeof set.table[1]);
    do {
        size = esz_read_set(d, p + at, avail - at, &set);
        if (size == 0) return 0;
        at += size;
    } while (skip-- > 0);
    d->values = set.values;
    esz_table_build(d->table, set.table);
    esz_table_build(d->table + 1, set.table + 1);
    return at;
}

#else

/* Makes the `count` sets at `set` the loaded ones. */
static void esz_build_sets(esz_decoder *d, const esz_set *set, unsigned count) {
    const unsigned two = d->segment.alphabet == ESZ_GAP || d->segment.alphabet == ESZ_MASK8;
    const unsigned pair = d->segment.alphabet == ESZ_PAIR, joint = d->segment.alphabet == ESZ_JOINT;
    unsigned table, k;
    d->bits[0] = d->bits[1] = 0;
    for (k = 0; k < count; k++)
        for (table = 0; table <= two; table++) {
            const unsigned bits = esz_longest(&set[k].table[table]) << pair;
            if (bits > d->bits[table]) d->bits[table] = bits;
        }
    for (k = 0; k < count; k++)
        for (table = 0; table <= two; table++) {
            const esz_lengths *l = &set[k].table[table];
            uint16_t *entry = d->entry.code + esz_table_at(d, k, table);
            if (joint) {
                const esz_joint j = {set[k].values, d->segment.cap_log2, d->segment.fill, d->segment.flags & ESZ_NIBBLE};
                esz_table_build_joint(d->entry.joint + esz_table_at(d, k, 0), d->bits[0], l, &j);
            } else if (pair) {
                esz_table_build_pairs(entry, d->bits[table], l);
            } else {
                esz_table_build(entry, d->bits[table], l);
            }
        }
}

/* Makes `count` table sets of the directory from `first` on the loaded ones; they were checked by esz_segment_begin. */
static void esz_load_sets(esz_decoder *d, unsigned first, unsigned count) {
    esz_set set[ESZ_ROW_CLASSES];
    size_t at = d->sets_at;
    unsigned k;
    if (d->loaded_set == first) return;
    for (k = 0; k < first + count; k++)
        at += esz_read_set(d, d->directory + at, d->segment.directory_bytes - at, &set[k < first ? 0 : k - first]);
    esz_build_sets(d, set, count);
    d->loaded_set = first;
}

/* Loads the table set at `p`. Returns its size, or 0 if it is invalid. */
static size_t esz_load_own_set(esz_decoder *d, const uint8_t *p, size_t avail) {
    esz_set set;
    const size_t size = esz_read_set(d, p, avail, &set);
    d->loaded_set = ESZ_NO_SET;
    if (size != 0) esz_build_sets(d, &set, 1);
    return size;
}

#endif

/* Checks the table sets of the directory, which end with it, and perhaps loads them. Returns 0 if one is invalid, 1 if
 * they do not end there, else 2. */
static int esz_check_sets(esz_decoder *d) {
    const uint8_t *directory = d->directory;
    size_t at = d->sets_at, left = d->segment.directory_bytes;
#if defined(ESZ_SMALL)
    if (d->set_count != 0) {
        const size_t size = esz_load_set(d, directory + at, left - at, d->set_count - 1);
        if (size == 0) return 0;
        at += size;
        d->loaded_set = d->set_count - 1;
    }
#else
    esz_set set[ESZ_ROW_CLASSES];
    uint32_t k;
    for (k = 0; k < d->set_count; k++) {
        const size_t size = esz_read_set(d, directory + at, left - at, &set[k % ESZ_ROW_CLASSES]);
        if (size == 0) return 0;
        at += size;
    }
    if (d->set_count == (d->segment.row_items != 0 ? ESZ_ROW_CLASSES : 1u)) { /* as good as every segment */
        esz_build_sets(d, set, d->set_count);
        d->loaded_set = 0;
    }
#endif
    return at == left ? 2 : 1;
}

/* Reads the codebook at `p`. Returns its size, or 0 if it is invalid. */
static size_t esz_read_book(esz_decoder *d, const uint8_t *p, size_t avail) {
    size_t bytes;
    if (avail < 1) return 0;
    bytes = 1 + ((p[0] + (size_t)1) << d->segment.book_log2);
    if (bytes > avail || d->segment.fill > p[0]) return 0;
    d->book = p + 1;
    d->book_count = p[0] + 1u;
    return bytes;
}

/* Replaces the indices at the start of `out` by their values, from the last one back so that none is overwritten. */
static void esz_map_book(const esz_decoder *d, uint8_t *out, size_t n) {
    const uint8_t *book = d->book;
#if defined(ESZ_SMALL)
    const size_t width = (size_t)1 << d->segment.book_log2;
    while (n-- > 0) memcpy(out + width * n, book + width * out[n], width);
#else
    if (d->segment.book_log2 == 1)
        while (n-- > 0) memcpy(out + 2 * n, book + 2 * (size_t)out[n], 2);
    else if (d->segment.book_log2 == 2)
        while (n-- > 0) memcpy(out + 4 * n, book + 4 * (size_t)out[n], 4);
    else
        while (n-- > 0) memcpy(out + 8 * n, book + 8 * (size_t)out[n], 8);
#endif
}

#endif
