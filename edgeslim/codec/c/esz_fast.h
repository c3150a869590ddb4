/* Decoder, private: the fast loops of 64-bit builds.
 *
 * A lane is one stream. Its 64-bit word holds the next bits at the bottom and a marker bit at the top, which each shift
 * moves down: the number of leading zeros is the number of bits used, so there is no counter to keep (the idea is
 * Fabian Giesen's, "Reading bits in far too many ways", 2018). After a refill 56 bits are ready. Lanes are stepped in
 * turn so that their look-ups overlap. All loops run while no lane can come near the end of input or output; what is
 * left goes to the careful reader, which also checks the stream's end. A damaged lane may read bytes of the streams
 * behind its own, but never past the block.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_FAST_H
#define ESZ_FAST_H

#include "esz_table.h"

#if !defined(ESZ_SMALL) && !defined(ESZ_32_BIT) && UINTPTR_MAX > 0xFFFFFFFFu && defined(__GNUC__)
#define ESZ_FAST 1
#else
#define ESZ_FAST 0
#endif

#if ESZ_FAST

#define ESZ_INLINE static inline __attribute__((always_inline))
#define ESZ_MARK ((uint64_t)1 << 63)

/* x86-64 has one-step shifts by a register only since BMI2 (2013): compile both, and ask the CPU. */
#if defined(__x86_64__)
#define ESZ_BMI2 __attribute__((target("bmi2,lzcnt")))
#define ESZ_HAS_BMI2 __builtin_cpu_supports("bmi2")
#endif

typedef struct {
    const uint8_t *p;
    uint64_t b;
} esz_lane;

ESZ_INLINE void esz_lane_begin(esz_lane *l, const uint8_t *p) {
    l->p = p;
    l->b = esz_load64(p) | ESZ_MARK;
}

ESZ_INLINE void esz_lane_refill(esz_lane *l) {
    unsigned used = (unsigned)__builtin_clzll(l->b);
    l->p += used >> 3;
    l->b = (esz_load64(l->p) | ESZ_MARK) >> (used & 7);
}

ESZ_INLINE unsigned esz_lane_next(esz_lane *l, const uint16_t *table, unsigned mask) {
    unsigned e = table[l->b & mask];
    l->b >>= e & 63;
    return e >> 8;
}

/* Gives the lane's position to the careful reader; 0 if it lies behind the stream's end. */
ESZ_INLINE int esz_lane_end(const esz_lane *l, esz_reader *r) {
    unsigned used = (unsigned)__builtin_clzll(l->b);
    const uint8_t *p = l->p + (used >> 3);
    used &= 7;
    if (p > r->end || (p == r->end && used != 0)) return 0;
    r->p = p;
    r->bits = 0;
    r->held = 0;
    if (used != 0) {
        r->bits = (esz_word)(*r->p++ >> used);
        r->held = 8 - used;
    }
    return 1;
}

/* How many steps of at most `step` bytes fit between `p` and `last`. */
ESZ_INLINE size_t esz_steps(const uint8_t *p, const uint8_t *last, size_t step) {
    return p > last ? 0 : (size_t)(last - p) / step;
}

/* PLAIN and PAIR, 8 interleaved streams: `round` symbols a lane between refills. Returns the items done (a multiple of
 * 8), or n + 1 if a stream ran past its end. */
ESZ_INLINE size_t esz_plain8_core(const esz_table *t, esz_reader *r, uint8_t *dst, size_t n, const unsigned round) {
    const uint8_t *last = r[7].end - 8;
    const uint16_t *table = t->entry;
    const unsigned mask = (1u << t->bits) - 1;
    uint8_t *out = dst;
    esz_lane l0, l1, l2, l3, l4, l5, l6, l7;
    if (r[7].end - r[0].p < 8 || r[7].p > last) return 0;
    esz_lane_begin(&l0, r[0].p);
    esz_lane_begin(&l1, r[1].p);
    esz_lane_begin(&l2, r[2].p);
    esz_lane_begin(&l3, r[3].p);
    esz_lane_begin(&l4, r[4].p);
    esz_lane_begin(&l5, r[5].p);
    esz_lane_begin(&l6, r[6].p);
    esz_lane_begin(&l7, r[7].p);
    for (;;) {
        size_t k = (n - (size_t)(out - dst)) / (8 * round), m;
        unsigned i;
#define ESZ_BOUND(l) \
    m = esz_steps(l.p, last, 8); \
    if (m < k) k = m
        ESZ_BOUND(l0);
        ESZ_BOUND(l1);
        ESZ_BOUND(l2);
        ESZ_BOUND(l3);
        ESZ_BOUND(l4);
        ESZ_BOUND(l5);
        ESZ_BOUND(l6);
        ESZ_BOUND(l7);
#undef ESZ_BOUND
        if (k == 0) break;
        for (; k > 0; k--) {
            for (i = 0; i < round; i++, out += 8) {
                out[0] = (uint8_t)esz_lane_next(&l0, table, mask);
                out[1] = (uint8_t)esz_lane_next(&l1, table, mask);
                out[2] = (uint8_t)esz_lane_next(&l2, table, mask);
                out[3] = (uint8_t)esz_lane_next(&l3, table, mask);
                out[4] = (uint8_t)esz_lane_next(&l4, table, mask);
                out[5] = (uint8_t)esz_lane_next(&l5, table, mask);
                out[6] = (uint8_t)esz_lane_next(&l6, table, mask);
                out[7] = (uint8_t)esz_lane_next(&l7, table, mask);
            }
            esz_lane_refill(&l0);
            esz_lane_refill(&l1);
            esz_lane_refill(&l2);
            esz_lane_refill(&l3);
            esz_lane_refill(&l4);
            esz_lane_refill(&l5);
            esz_lane_refill(&l6);
            esz_lane_refill(&l7);
        }
    }
    if (esz_lane_end(&l0, &r[0]) && esz_lane_end(&l1, &r[1]) && esz_lane_end(&l2, &r[2]) && esz_lane_end(&l3, &r[3]) &&
        esz_lane_end(&l4, &r[4]) && esz_lane_end(&l5, &r[5]) && esz_lane_end(&l6, &r[6]) && esz_lane_end(&l7, &r[7]))
        return (size_t)(out - dst);
    return n + 1;
}

/* One gap and its value; `at` counts elements. No bound is checked. */
ESZ_INLINE size_t esz_gap_step(esz_lane *l, const uint16_t *gaps, unsigned gap_mask, const uint16_t *values,
                               unsigned value_mask, unsigned cap, unsigned fill, const unsigned nibble, uint8_t *dst,
                               size_t at) {
    unsigned gap = esz_lane_next(l, gaps, gap_mask), value;
    if (__builtin_expect(gap == cap, 0)) return at + gap;
    at += gap;
    value = esz_lane_next(l, values, value_mask);
    if (nibble)
        dst[at >> 1] ^= (uint8_t)((value ^ fill) << (4 * (at & 1)));
    else
        dst[at] = (uint8_t)value;
    return at + 1;
}

/* GAP, 4 chunks: `dst`, `at` and `size` of each in elements. Leaves `at` and the readers where the careful loop goes
 * on; returns 0 if a stream ran past its end. */
ESZ_INLINE int esz_gap4_core(const esz_table *g, const esz_table *v, unsigned cap, unsigned fill, esz_reader *r,
                             uint8_t *const *dst, size_t *at, const size_t *size, const unsigned nibble) {
    const uint8_t *last = r[3].end - 8;
    const unsigned gm = (1u << g->bits) - 1, vm = (1u << v->bits) - 1;
    const size_t step = 2 * (size_t)cap;
    esz_lane l[4];
    size_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, k, s;
    if (r[3].end - r[0].p < 8 || r[3].p > last) return 1;
    for (s = 0; s < 4; s++) esz_lane_begin(&l[s], r[s].p);
    {
        esz_lane l0 = l[0], l1 = l[1], l2 = l[2], l3 = l[3];
        for (;;) {
            size_t m;
            k = ~(size_t)0;
#define ESZ_BOUND(s) \
    m = esz_steps(l##s.p, last, 8); \
    if (m < k) k = m; \
    m = (size[s] - a##s) / step; \
    if (m < k) k = m
            ESZ_BOUND(0);
            ESZ_BOUND(1);
            ESZ_BOUND(2);
            ESZ_BOUND(3);
#undef ESZ_BOUND
            if (k == 0) break;
            for (; k > 0; k--) {
                a0 = esz_gap_step(&l0, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[0], a0);
                a1 = esz_gap_step(&l1, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[1], a1);
                a2 = esz_gap_step(&l2, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[2], a2);
                a3 = esz_gap_step(&l3, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[3], a3);
                a0 = esz_gap_step(&l0, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[0], a0);
                a1 = esz_gap_step(&l1, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[1], a1);
                a2 = esz_gap_step(&l2, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[2], a2);
                a3 = esz_gap_step(&l3, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[3], a3);
                esz_lane_refill(&l0);
                esz_lane_refill(&l1);
                esz_lane_refill(&l2);
                esz_lane_refill(&l3);
            }
        }
        l[0] = l0;
        l[1] = l1;
        l[2] = l2;
        l[3] = l3;
        at[0] = a0;
        at[1] = a1;
        at[2] = a2;
        at[3] = a3;
    }
    for (s = 0; s < 4; s++) { /* each lane by itself, as far as it can */
        esz_lane lane = l[s];
        for (;;) {
            size_t m = esz_steps(lane.p, last, 8);
            k = (size[s] - at[s]) / step;
            if (m < k) k = m;
            if (k == 0) break;
            for (; k > 0; k--) {
                at[s] = esz_gap_step(&lane, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[s], at[s]);
                at[s] = esz_gap_step(&lane, g->entry, gm, v->entry, vm, cap, fill, nibble, dst[s], at[s]);
                esz_lane_refill(&lane);
            }
        }
        if (!esz_lane_end(&lane, &r[s])) return 0;
    }
    return 1;
}

ESZ_INLINE void esz_store(uint8_t *p, uint64_t x, const unsigned bytes) {
#if ESZ_LITTLE_ENDIAN
    memcpy(p, &x, bytes);
#else
    unsigned k;
    for (k = 0; k < bytes; k++) p[k] = (uint8_t)(x >> (8 * k));
#endif
}

/* MASK8: one whole group of 8 elements, put together in a register. */
ESZ_INLINE size_t esz_mask8_step(esz_lane *l, const uint16_t *masks, unsigned mask_mask, const uint16_t *values,
                                 unsigned value_mask, unsigned fill, const unsigned nibble, uint8_t *dst, size_t at) {
    const unsigned bits = nibble ? 4 : 8;
    uint64_t group = nibble ? fill * (uint64_t)0x11111111u : fill * (uint64_t)0x0101010101010101u;
    unsigned mask = esz_lane_next(l, masks, mask_mask), n;
    for (n = 0; n < 4 && mask != 0; n++, mask &= mask - 1) { /* mask and 4 values: at most 55 bits */
        unsigned value = esz_lane_next(l, values, value_mask);
        group ^= (uint64_t)(value ^ fill) << (bits * (unsigned)__builtin_ctz(mask));
    }
    if (mask != 0) {
        esz_lane_refill(l);
        for (; mask != 0; mask &= mask - 1) {
            unsigned value = esz_lane_next(l, values, value_mask);
            group ^= (uint64_t)(value ^ fill) << (bits * (unsigned)__builtin_ctz(mask));
        }
    }
    esz_lane_refill(l);
    esz_store(nibble ? dst + at / 2 : dst + at, group, bits);
    return at + 8;
}

/* MASK8, 4 chunks; as esz_gap4_core. */
ESZ_INLINE int esz_mask4_core(const esz_table *g, const esz_table *v, unsigned fill, esz_reader *r, uint8_t *const *dst,
                              size_t *at, const size_t *size, const unsigned nibble) {
    const uint8_t *last = r[3].end - 8;
    const unsigned gm = (1u << g->bits) - 1, vm = (1u << v->bits) - 1;
    esz_lane l0, l1, l2, l3;
    size_t a = 0;
    if (r[3].end - r[0].p < 8 || r[3].p > last) return 1;
    esz_lane_begin(&l0, r[0].p);
    esz_lane_begin(&l1, r[1].p);
    esz_lane_begin(&l2, r[2].p);
    esz_lane_begin(&l3, r[3].p);
    for (;;) { /* chunks 0 to 2 are not shorter than chunk 3; a group takes at most 99 bits */
        size_t k = (size[3] - a) / 8, m;
#define ESZ_BOUND(l) \
    m = esz_steps(l.p, last, 16); \
    if (m < k) k = m
        ESZ_BOUND(l0);
        ESZ_BOUND(l1);
        ESZ_BOUND(l2);
        ESZ_BOUND(l3);
#undef ESZ_BOUND
        if (k == 0) break;
        for (; k > 0; k--) {
            esz_mask8_step(&l0, g->entry, gm, v->entry, vm, fill, nibble, dst[0], a);
            esz_mask8_step(&l1, g->entry, gm, v->entry, vm, fill, nibble, dst[1], a);
            esz_mask8_step(&l2, g->entry, gm, v->entry, vm, fill, nibble, dst[2], a);
            a = esz_mask8_step(&l3, g->entry, gm, v->entry, vm, fill, nibble, dst[3], a);
        }
    }
    at[0] = at[1] = at[2] = at[3] = a;
    return esz_lane_end(&l0, &r[0]) && esz_lane_end(&l1, &r[1]) && esz_lane_end(&l2, &r[2]) && esz_lane_end(&l3, &r[3]);
}

#define ESZ_LOOPS(name, attribute) \
    attribute static size_t esz_plain8_##name(const esz_table *t, esz_reader *r, uint8_t *dst, size_t n) { \
        return t->bits > ESZ_MAX_CODE_BITS ? esz_plain8_core(t, r, dst, n, 4) : esz_plain8_core(t, r, dst, n, 5); \
    } \
    attribute static int esz_gap4_##name(const esz_table *g, const esz_table *v, unsigned cap, unsigned fill, \
                                         unsigned nibble, esz_reader *r, uint8_t *const *dst, size_t *at, \
                                         const size_t *size) { \
        return nibble ? esz_gap4_core(g, v, cap, fill, r, dst, at, size, 1) \
                      : esz_gap4_core(g, v, cap, fill, r, dst, at, size, 0); \
    } \
    attribute static int esz_mask4_##name(const esz_table *g, const esz_table *v, unsigned fill, unsigned nibble, \
                                          esz_reader *r, uint8_t *const *dst, size_t *at, const size_t *size) { \
        return nibble ? esz_mask4_core(g, v, fill, r, dst, at, size, 1) \
                      : esz_mask4_core(g, v, fill, r, dst, at, size, 0); \
    }

ESZ_LOOPS(any, )
#if defined(ESZ_BMI2)
ESZ_LOOPS(bmi2, ESZ_BMI2)
#define ESZ_CALL(loop, ...) (ESZ_HAS_BMI2 ? esz_##loop##_bmi2(__VA_ARGS__) : esz_##loop##_any(__VA_ARGS__))
#else
#define ESZ_CALL(loop, ...) esz_##loop##_any(__VA_ARGS__)
#endif

#endif
#endif
