/* Decoder, private: the fast loops of MASK8 (esz_fast.h).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_FAST_MASK8_H
#define ESZ_FAST_MASK8_H

#include "esz_lane.h"

#if ESZ_FAST

ESZ_INLINE void esz_store(uint8_t *p, uint64_t x, const unsigned bytes) {
#if ESZ_LITTLE_ENDIAN
    memcpy(p, &x, bytes);
#else
    unsigned k;
    for (k = 0; k < bytes; k++) p[k] = (uint8_t)(x >> (8 * k));
#endif
}

/* One whole group of 8 elements, put together in a register. */
ESZ_INLINE void esz_mask8_step(esz_lane *l, const uint16_t *t, unsigned mask_mask, unsigned value_mask, unsigned fill,
                               const unsigned nibble, uint8_t *dst, size_t at) {
    const unsigned bits = nibble ? 4 : 8;
    uint64_t group = nibble ? fill * (uint64_t)0x11111111u : fill * (uint64_t)0x0101010101010101u;
    unsigned mask = esz_lane_next(l, t, mask_mask), n;
    for (n = 0; n < 4 && mask != 0; n++, mask &= mask - 1) { /* mask and 4 values: at most 55 bits */
        unsigned value = esz_lane_next(l, t + mask_mask + 1, value_mask);
        group ^= (uint64_t)(value ^ fill) << (bits * (unsigned)__builtin_ctz(mask));
    }
    if (mask != 0) {
        esz_lane_refill(l);
        for (; mask != 0; mask &= mask - 1) {
            unsigned value = esz_lane_next(l, t + mask_mask + 1, value_mask);
            group ^= (uint64_t)(value ^ fill) << (bits * (unsigned)__builtin_ctz(mask));
        }
    }
    esz_lane_refill(l);
    if (nibble)
        esz_store(dst + at / 2, group, 4);
    else
        esz_store(dst + at, group, 8);
}

#if defined(ESZ_BMI2)
/* Puts the low bits of `x` where `where` has ones. */
ESZ_INLINE uint64_t esz_deposit(uint64_t x, uint64_t where) {
    uint64_t y;
    __asm__("pdep %2, %1, %0" : "=r"(y) : "r"(x), "r"(where));
    return y;
}

/* How the bits that a group's values take come out of what was looked up, by the number of values; and where
 * the values go. How many there are can't be foreseen, so nothing branches on it, but where there are more than four:
 * what is not there is looked up too, takes no bits and has no place. */
typedef struct {
    uint8_t ones[4]; /* of bytes: for each of four values */
    uint8_t down[2], pairs[2]; /* of nibbles: for each of two pairs */
    uint64_t where;
} esz_mask_info;

/* What the steps look up beside the streams' own tables. Nibbles whose codes take at most 5 bits come two in a step: an
 * entry of `pair` is the bits of both | those of the first << 4 | the first << 8 | the second << 12. */
typedef struct {
    esz_mask_info info[256];
    uint16_t pair[1 << 10];
    unsigned pair_mask;
} esz_mask_tables;

ESZ_BMI2 static void esz_mask_tables_begin(esz_mask_tables *t, const esz_code *c) {
    const uint16_t *values = c->second[0].entry;
    const unsigned value_mask = (1u << c->second[0].bits) - 1;
    unsigned i, k;
    for (i = 0; i < 256; i++) {
        esz_mask_info *info = &t->info[i];
        const unsigned n = (unsigned)__builtin_popcount(i);
        for (k = 0; k < 4; k++) info->ones[k] = n > k ? 63 : 0;
        for (k = 0; k < 2; k++) {
            info->down[k] = n == 2 * k + 1 ? 4 : 0;
            info->pairs[k] = n <= 2 * k ? 0 : n == 2 * k + 1 ? 7 : 15;
        }
        info->where = c->nibble ? esz_deposit(i, 0x11111111u) * 15 : esz_deposit(i, 0x0101010101010101u) * 255;
    }
    t->pair_mask = (1u << 2 * c->second[0].bits) - 1;
    for (i = 0; c->nibble && i <= t->pair_mask; i++) {
        const unsigned e = values[i & value_mask], f = values[i >> (e & 63) & value_mask];
        t->pair[i] = (uint16_t)(((e & 63) + (f & 63)) | (e & 63) << 4 | (e & 0xff00u) | (f >> 8) << 12);
    }
}

/* As esz_mask8_step, of nibbles. */
ESZ_INLINE void esz_mask8_pairs_step(esz_lane *l, const uint16_t *t, unsigned mask_mask, unsigned value_mask,
                                     unsigned fill, const esz_mask_tables *m, uint8_t *dst, size_t at) {
    const unsigned mask = esz_lane_next(l, t, mask_mask), n = (unsigned)__builtin_popcount(mask);
    const esz_mask_info *info = &m->info[mask];
    uint32_t values;
    if (__builtin_expect(n > 4, 0)) { /* mask and values: at most 51 bits */
        unsigned k;
        for (values = 0, k = 0; k < n; k++) values |= esz_lane_next(l, t + mask_mask + 1, value_mask) << 4 * k;
    } else {
        unsigned e = m->pair[l->b & m->pair_mask];
        l->b >>= e >> info->down[0] & info->pairs[0];
        values = e >> 8;
        e = m->pair[l->b & m->pair_mask];
        l->b >>= e >> info->down[1] & info->pairs[1];
        values |= e & 0xff00u;
    }
    esz_lane_refill(l);
    esz_store(dst + at / 2, (fill * 0x11111111u & ~info->where) | esz_deposit(values, info->where), 4);
}

/* As esz_mask8_step, of bytes. */
ESZ_INLINE void esz_mask8_bytes_step(esz_lane *l, const uint16_t *t, unsigned mask_mask, unsigned value_mask,
                                     unsigned fill, const esz_mask_tables *m, uint8_t *dst, size_t at) {
    const uint16_t *table = t + mask_mask + 1;
    const unsigned mask = esz_lane_next(l, t, mask_mask), n = (unsigned)__builtin_popcount(mask);
    const esz_mask_info *info = &m->info[mask];
    uint64_t values;
    unsigned e = table[l->b & value_mask]; /* mask and 4 values: at most 55 bits */
    l->b >>= e & info->ones[0];
    values = e >> 8;
    e = table[l->b & value_mask];
    l->b >>= e & info->ones[1];
    values |= e & 0xff00u;
    e = table[l->b & value_mask];
    l->b >>= e & info->ones[2];
    values |= (uint64_t)(e & 0xff00u) << 8;
    e = table[l->b & value_mask];
    l->b >>= e & info->ones[3];
    values |= (uint64_t)(e & 0xff00u) << 16;
    if (__builtin_expect(n > 4, 0)) {
        unsigned k;
        esz_lane_refill(l);
        for (k = 4; k < n; k++) values |= (uint64_t)esz_lane_next(l, table, value_mask) << 8 * k;
    }
    esz_lane_refill(l);
    esz_store(dst + at, (fill * (uint64_t)0x0101010101010101u & ~info->where) | esz_deposit(values, info->where), 8);
}
#endif

/* 4 chunks; as esz_gap4_core. `deposit`: the steps that need PDEP. */
ESZ_INLINE int esz_mask4_loops(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, const size_t *end,
                               const unsigned nibble, const unsigned rows, const unsigned deposit) {
    const uint8_t *last = r[3].end - 8;
    const unsigned gm = (1u << c->first[0].bits) - 1, vm = (1u << c->second[0].bits) - 1, fill = c->fill;
    const size_t a0 = at[0], a1 = at[1], a2 = at[2], a3 = at[3], size = end[3] - a3;
    const uint16_t *t0 = c->first[0].entry, *t1 = t0, *t2 = t0, *t3 = t0;
    esz_lane l0, l1, l2, l3;
    esz_lane_row row[4];
    size_t a = 0, s;
#if defined(ESZ_BMI2)
    esz_mask_tables tables;
    if (deposit) esz_mask_tables_begin(&tables, c);
#define ESZ_GROUP(lane, t, place) \
    deposit && nibble ? esz_mask8_pairs_step(lane, t, gm, vm, fill, &tables, dst, place) \
    : deposit         ? esz_mask8_bytes_step(lane, t, gm, vm, fill, &tables, dst, place) \
                      : esz_mask8_step(lane, t, gm, vm, fill, nibble, dst, place)
#else
#define ESZ_GROUP(lane, t, place) esz_mask8_step(lane, t, gm, vm, fill, nibble, dst, place)
    (void)deposit;
#endif
    if (r[3].end - r[0].p < 8 || r[3].p > last) return 1;
    ESZ_FOUR(ESZ_LANE_BEGIN)
    if (rows) {
        for (s = 0; s < 4; s++) esz_lane_row_begin(&row[s], c, at[s]);
        ESZ_FOUR(ESZ_LANE_TABLE)
    }
    for (;;) { /* chunks 0 to 2 are not shorter than chunk 3; a group takes at most 99 bits */
        size_t k = esz_least((size - a) / 8, esz_steps(l0.p, last, 16));
        k = esz_least(k, esz_steps(l1.p, last, 16));
        k = esz_least(k, esz_steps(l2.p, last, 16));
        k = esz_least(k, esz_steps(l3.p, last, 16));
        if (k == 0) break;
        for (; k > 0; k--, a += 8) {
#define ESZ_STEP(s) \
    if (rows && __builtin_expect(a##s + a >= row[s].end, 0)) { \
        esz_lane_seek(&row[s], c, a##s + a); \
        t##s = row[s].t; \
    } \
    ESZ_GROUP(&l##s, t##s, a##s + a);
            ESZ_FOUR(ESZ_STEP)
#undef ESZ_STEP
#undef ESZ_GROUP
        }
    }
    for (s = 0; s < 4; s++) at[s] += a;
    return 1 ESZ_FOUR(ESZ_LANE_ENDS);
}

ESZ_INLINE int esz_mask4_core(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, const size_t *end,
                              const unsigned nibble, const unsigned rows) {
    return esz_mask4_loops(c, r, dst, at, end, nibble, rows, 0);
}

#endif
#endif
