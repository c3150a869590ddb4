/* Decoder, private: a segment's table sets and codebook.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_SETS_H
#define ESZ_SETS_H

#include "esz_table.h"

#define ESZ_NO_SET 0xFFFFFFFFu

/* Reads the table set at `p` and, if `build`, makes it the loaded one. Returns its size, or 0 if it is invalid. */
static size_t esz_read_set(esz_decoder *d, const uint8_t *p, size_t avail, int build) {
    const esz_segment *s = &d->segment;
    unsigned bytes = s->book_log2 ? d->book_count : 256;
    unsigned symbols = s->alphabet == ESZ_PAIR    ? 16
                       : s->alphabet == ESZ_GAP   ? 1u << s->cap_log2
                       : s->alphabet == ESZ_MASK8 ? 256
                                                  : bytes;
    unsigned limit = s->alphabet == ESZ_PAIR ? ESZ_MAX_PAIR_BITS : ESZ_MAX_CODE_BITS;
    esz_lengths l;
    size_t one = esz_lengths_read(&l, p, avail, symbols, limit), two;
    if (one == 0) return 0;
#if !defined(ESZ_SMALL)
    if (build && s->alphabet == ESZ_PAIR)
        esz_table_build_pairs(&d->first, &l);
    else
#endif
        if (build)
        esz_table_build(&d->first, &l);
    if (s->alphabet == ESZ_PLAIN || s->alphabet == ESZ_PAIR) return one;
    two = esz_lengths_read(&l, p + one, avail - one, s->flags & ESZ_NIBBLE ? 16 : bytes, ESZ_MAX_CODE_BITS);
    if (two == 0 || l.length[s->fill] != 0) return 0;
    if (build) esz_table_build(&d->second, &l);
    return one + two;
}

/* Makes table set `set` of the directory the loaded one; it was checked by esz_segment_begin. */
static void esz_load_set(esz_decoder *d, unsigned set) {
    const esz_segment *s = &d->segment;
    size_t at = d->sets_at;
    unsigned k;
    if (d->loaded_set == set) return;
    for (k = 0; k < set; k++) at += esz_read_set(d, d->directory + at, s->directory_bytes - at, 0);
    esz_read_set(d, d->directory + at, s->directory_bytes - at, 1);
    d->loaded_set = set;
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
