/* Decoder, private: a segment's table sets and codebook.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_SETS_H
#define ESZ_SETS_H

#include "esz_table.h"

#define ESZ_NO_SET 0xFFFFFFFFu

/* Reads the table set at `p`. Returns its size, or 0 if it is invalid. With `build`, makes its look-up tables those of
 * row class `number`, indexed by d->bits; without, raises d->bits to what its codes need. */
static size_t esz_read_set(esz_decoder *d, const uint8_t *p, size_t avail, unsigned number, int build) {
    const esz_segment *s = &d->segment;
    const unsigned sparse = s->alphabet == ESZ_GAP || s->alphabet == ESZ_MASK8, pair = s->alphabet == ESZ_PAIR;
    unsigned bytes = d->book_count, table, symbols, limit = pair ? ESZ_MAX_PAIR_BITS : ESZ_MAX_CODE_BITS;
    size_t at = 0;
    for (table = 0; table <= sparse; table++) {
        esz_lengths l;
        size_t size;
        symbols = pair ? 16 : s->flags & ESZ_NIBBLE ? 16 : bytes;
        if (table < sparse) symbols = s->alphabet == ESZ_GAP ? 1u << s->cap_log2 : 256;
        size = esz_lengths_read(&l, p + at, avail - at, symbols, limit);
        if (size == 0 || (table != 0 && l.length[s->fill] != 0)) return 0;
        at += size;
#if defined(ESZ_SMALL)
        (void)number;
        if (build) esz_table_build(&d->table[table], &l);
#else
        if (!build) {
            unsigned bits = esz_longest(&l) << pair;
            if (bits > d->bits[table]) d->bits[table] = bits;
        } else {
            uint16_t *entry = d->entry + ((size_t)(ESZ_ROW_CLASSES * table + number) << ESZ_MAX_CODE_BITS);
            if (pair)
                esz_table_build_pairs(entry, d->bits[table], &l);
            else
                esz_table_build(entry, d->bits[table], &l);
        }
#endif
    }
    return at;
}

static void esz_forget_bits(esz_decoder *d) {
#if defined(ESZ_SMALL)
    (void)d;
#else
    d->bits[0] = d->bits[1] = 0;
#endif
}

/* Makes `count` table sets of the directory from `set` on the loaded ones; they were checked by esz_segment_begin. */
static void esz_load_sets(esz_decoder *d, unsigned set, unsigned count) {
    const esz_segment *s = &d->segment;
    size_t at, start = d->sets_at;
    unsigned k;
    int build;
    if (d->loaded_set == set) return;
    for (k = 0; k < set; k++) start += esz_read_set(d, d->directory + start, s->directory_bytes - start, 0, 0);
    esz_forget_bits(d);
    for (build = 0; build <= 1; build++) /* first how many bits their indices need, then the tables */
        for (k = 0, at = start; k < count; k++)
            at += esz_read_set(d, d->directory + at, s->directory_bytes - at, k, build);
    d->loaded_set = set;
}

/* Loads the table set at `p`. Returns its size, or 0 if it is invalid. */
static size_t esz_load_own_set(esz_decoder *d, const uint8_t *p, size_t avail) {
    size_t size;
    esz_forget_bits(d);
    d->loaded_set = ESZ_NO_SET;
    size = esz_read_set(d, p, avail, 0, 0);
    return size == 0 ? 0 : esz_read_set(d, p, avail, 0, 1);
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
    if (d->segment.book_log2 == 1)
        while (n-- > 0) memcpy(out + 2 * n, book + 2 * (size_t)out[n], 2);
    else if (d->segment.book_log2 == 2)
        while (n-- > 0) memcpy(out + 4 * n, book + 4 * (size_t)out[n], 4);
    else
        while (n-- > 0) memcpy(out + 8 * n, book + 8 * (size_t)out[n], 8);
}

#endif
