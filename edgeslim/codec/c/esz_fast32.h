/* Decoder, private: the fast loop of 32-bit builds, for PLAIN and PAIR, which dense weights are coded in.
 *
 * As in esz_fast.h, with words of 32 bits: 24 bits are ready after a refill, which two codes of PLAIN take at most.
 * There are too few registers for eight lanes, so two at a time are taken into them for eight items each.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_FAST32_H
#define ESZ_FAST32_H

#include "esz_fast.h"

#if !defined(ESZ_SMALL) && !ESZ_FAST && defined(__GNUC__)
#define ESZ_FAST32 1
#else
#define ESZ_FAST32 0
#endif

#if ESZ_FAST32

#define ESZ_INLINE32 static inline __attribute__((always_inline))
#define ESZ_MARK32 ((uint32_t)1 << 31)
#define ESZ_TURN32 8u        /* items of a lane while it is in registers */
#define ESZ_TURN32_BYTES 32u /* more than they take, with a refill after each */

typedef struct {
    const uint8_t *p;
    uint32_t b;
} esz_lane32;

ESZ_INLINE32 void esz_lane32_refill(esz_lane32 *l) {
    const unsigned used = (unsigned)__builtin_clz(l->b);
    l->p += used >> 3;
    l->b = (esz_load32(l->p) | ESZ_MARK32) >> (used & 7);
}

ESZ_INLINE32 uint8_t esz_lane32_next(esz_lane32 *l, const uint16_t *table, unsigned mask) {
    const unsigned e = table[l->b & mask];
    l->b >>= e & 31;
    return (uint8_t)(e >> 8);
}

ESZ_INLINE32 int esz_lane32_end(const esz_lane32 *l, esz_reader *r) {
    return esz_reader_take(r, l->p, (unsigned)__builtin_clz(l->b));
}

/* Eight items of two lanes; `pairs`: two between refills. */
ESZ_INLINE32 void esz_lane32_turn(esz_lane32 *l, const uint16_t *table, const unsigned mask, uint8_t *to,
                                  const size_t stride, const unsigned pairs) {
    esz_lane32 a = l[0], b = l[1];
    unsigned i;
    for (i = 0; i < ESZ_TURN32 / 2; i++, to += 16 * stride) {
        to[0] = esz_lane32_next(&a, table, mask);
        to[stride] = esz_lane32_next(&b, table, mask);
        if (!pairs) {
            esz_lane32_refill(&a);
            esz_lane32_refill(&b);
        }
        to[8 * stride] = esz_lane32_next(&a, table, mask);
        to[9 * stride] = esz_lane32_next(&b, table, mask);
        esz_lane32_refill(&a);
        esz_lane32_refill(&b);
    }
    l[0] = a;
    l[1] = b;
}

/* PLAIN and PAIR, 8 interleaved streams; as esz_plain8_core. */
ESZ_INLINE32 size_t esz_plain8_core32(const esz_code *c, esz_reader *r, uint8_t *dst, size_t n, const unsigned pairs,
                                      const unsigned rows, const size_t stride) {
    const uint8_t *last = r[7].end - 4;
    const unsigned mask = (1u << c->first[0].bits) - 1;
    const uint16_t *table = c->first[0].entry;
    size_t at = 0, stop = n;
    unsigned s;
    esz_row row;
    esz_lane32 l[8];
    if (r[7].end - r[0].p < 4 || r[7].p > last) return 0;
    for (s = 0; s < 8; s++) {
        l[s].p = r[s].p;
        l[s].b = esz_load32(r[s].p) | ESZ_MARK32;
    }
    esz_row_begin(&row, c);
    if (rows) {
        esz_row_seek(&row, c, 0);
        table = c->first[row.number].entry;
        stop = row.end < n ? row.end : n;
    }
    for (;;) {
        size_t k = (stop - at) / (8 * ESZ_TURN32), room = ~(size_t)0;
        for (s = 0; s < 8; s++) {
            const size_t steps = l[s].p > last ? 0 : (size_t)(last - l[s].p) / ESZ_TURN32_BYTES;
            if (steps < room) room = steps;
        }
        if (room == 0) break;
        if (rows && k == 0) { /* the row's last items, then the next row */
            for (k = (stop - at) / 8; k > 0; k--, at += 8) {
                for (s = 0; s < 8; s++) {
                    dst[(at + s) * stride] = esz_lane32_next(&l[s], table, mask);
                    esz_lane32_refill(&l[s]);
                }
            }
            if (at < stop || at >= n) break;
            esz_row_seek(&row, c, at);
            table = c->first[row.number].entry;
            stop = row.end < n ? row.end : n;
            continue;
        }
        if (k == 0) break;
        for (k = k < room ? k : room; k > 0; k--, at += 8 * ESZ_TURN32)
            for (s = 0; s < 8; s += 2) esz_lane32_turn(l + s, table, mask, dst + (at + s) * stride, stride, pairs);
    }
    for (s = 0; s < 8; s++)
        if (!esz_lane32_end(&l[s], &r[s])) return n + 1;
    return at;
}

static size_t esz_plain8_32(const esz_code *c, esz_reader *r, uint8_t *dst, size_t n, size_t stride) {
    const unsigned pairs = c->first[0].bits <= 12;
    return stride > 1           ? esz_plain8_core32(c, r, dst, n, 0, 0, stride)
           : c->row_items != 0  ? esz_plain8_core32(c, r, dst, n, 1, 1, 1)
           : pairs              ? esz_plain8_core32(c, r, dst, n, 1, 0, 1)
                                : esz_plain8_core32(c, r, dst, n, 0, 0, 1);
}

#endif
#endif
