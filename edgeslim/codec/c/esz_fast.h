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

#include "esz_code.h"

#if !defined(ESZ_32_BIT) && UINTPTR_MAX > 0xFFFFFFFFu && defined(__GNUC__)
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

ESZ_INLINE uint32_t esz_lane_joint(esz_lane *l, const uint32_t *table, unsigned mask) {
    uint32_t e = table[l->b & mask];
    l->b >>= e & 63;
    return e;
}

ESZ_INLINE int esz_lane_end(const esz_lane *l, esz_reader *r) {
    return esz_reader_take(r, l->p, (unsigned)__builtin_clzll(l->b));
}

/* How many steps of at most `step` bytes fit between `p` and `last`. */
ESZ_INLINE size_t esz_steps(const uint8_t *p, const uint8_t *last, size_t step) {
    return p > last ? 0 : (size_t)(last - p) / step;
}

ESZ_INLINE size_t esz_least(size_t a, size_t b) { return a < b ? a : b; }

/* The tables of a lane's row, and the item where the row ends. */
typedef struct {
    const uint16_t *t;
    size_t end;
    esz_row row;
} esz_lane_row;

ESZ_INLINE void esz_lane_seek(esz_lane_row *l, const esz_code *c, size_t at) {
    esz_row_seek(&l->row, c, at);
    l->end = l->row.end;
    l->t = c->first[l->row.number].entry;
}

ESZ_INLINE void esz_lane_row_begin(esz_lane_row *l, const esz_code *c, size_t at) {
    esz_row_begin(&l->row, c);
    esz_lane_seek(l, c, at);
}

#define ESZ_EIGHT(act) act(0) act(1) act(2) act(3) act(4) act(5) act(6) act(7)
#define esz_lane_put8(s) dst[(at + s) * stride] = (uint8_t)esz_lane_next(&l##s, table, mask);
#define esz_lane_refill8(s) esz_lane_refill(&l##s);

/* PLAIN and PAIR, 8 interleaved streams: `round` symbols a lane between refills; bytes go `stride` apart. Returns the
 * items done (a multiple of 8), or n + 1 if a stream ran past its end. */
ESZ_INLINE size_t esz_plain8_core(const esz_code *c, esz_reader *r, uint8_t *dst, size_t n, const unsigned round,
                                  const unsigned rows, const size_t stride) {
    const uint8_t *last = r[7].end - 8;
    const unsigned mask = (1u << c->first[0].bits) - 1;
    const uint16_t *table = c->first[0].entry;
    size_t at = 0, stop = n;
    esz_lane_row row;
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
    if (rows) {
        esz_lane_row_begin(&row, c, 0);
        table = row.t;
        stop = esz_least(row.end, n);
    }
    for (;;) {
        size_t k = (stop - at) / (8 * round), room = esz_steps(l0.p, last, 8);
        unsigned i;
        room = esz_least(room, esz_steps(l1.p, last, 8));
        room = esz_least(room, esz_steps(l2.p, last, 8));
        room = esz_least(room, esz_steps(l3.p, last, 8));
        room = esz_least(room, esz_steps(l4.p, last, 8));
        room = esz_least(room, esz_steps(l5.p, last, 8));
        room = esz_least(room, esz_steps(l6.p, last, 8));
        room = esz_least(room, esz_steps(l7.p, last, 8));
        if (room == 0) break;
        if (rows && k == 0) { /* the row's last items, then the next row */
            for (i = (unsigned)(stop - at) / 8; i > 0; i--, at += 8) {
                ESZ_EIGHT(esz_lane_put8)
            }
            ESZ_EIGHT(esz_lane_refill8)
            if (at < stop || at >= n) break;
            esz_lane_seek(&row, c, at);
            table = row.t;
            stop = esz_least(row.end, n);
            continue;
        }
        if (k == 0) break;
        for (k = esz_least(k, room); k > 0; k--) {
            for (i = 0; i < round; i++, at += 8) {
                ESZ_EIGHT(esz_lane_put8)
            }
            ESZ_EIGHT(esz_lane_refill8)
        }
    }
    if (esz_lane_end(&l0, &r[0]) && esz_lane_end(&l1, &r[1]) && esz_lane_end(&l2, &r[2]) && esz_lane_end(&l3, &r[3]) &&
        esz_lane_end(&l4, &r[4]) && esz_lane_end(&l5, &r[5]) && esz_lane_end(&l6, &r[6]) && esz_lane_end(&l7, &r[7]))
        return at;
    return n + 1;
}

/* One gap and its value; `at` counts elements. No bound is checked. */
ESZ_INLINE size_t esz_gap_step(esz_lane *l, const uint16_t *t, unsigned gap_mask, unsigned value_mask, unsigned cap,
                               unsigned fill, const unsigned nibble, uint8_t *dst, size_t at) {
    unsigned gap = esz_lane_next(l, t, gap_mask), value;
    if (__builtin_expect(gap == cap, 0)) return at + gap;
    at += gap;
    value = esz_lane_next(l, t + gap_mask + 1, value_mask);
    if (nibble)
        dst[at >> 1] ^= (uint8_t)((value ^ fill) << (4 * (at & 1)));
    else
        dst[at] = (uint8_t)value;
    return at + 1;
}

/* GAP, 4 chunks: from at[s] to end[s]. Leaves `at` and the readers where the careful loop goes on; returns 0 if a
 * stream ran past its end. */
ESZ_INLINE int esz_gap4_core(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, const size_t *end,
                             const unsigned nibble, const unsigned rows) {
    const uint8_t *last = r[3].end - 8;
    const unsigned gm = (1u << c->first[0].bits) - 1, vm = (1u << c->second[0].bits) - 1, cap = c->cap, fill = c->fill;
    const size_t step = 2 * (size_t)cap, e0 = end[0], e1 = end[1], e2 = end[2], e3 = end[3];
    size_t a0 = at[0], a1 = at[1], a2 = at[2], a3 = at[3], k, s;
    int more;
    const uint16_t *t0 = c->first[0].entry, *t1 = t0, *t2 = t0, *t3 = t0;
    esz_lane l0, l1, l2, l3;
    esz_lane_row row[4];
    if (r[3].end - r[0].p < 8 || r[3].p > last) return 1;
    esz_lane_begin(&l0, r[0].p);
    esz_lane_begin(&l1, r[1].p);
    esz_lane_begin(&l2, r[2].p);
    esz_lane_begin(&l3, r[3].p);
    if (rows) {
        for (s = 0; s < 4; s++) esz_lane_row_begin(&row[s], c, at[s]);
        t0 = row[0].t;
        t1 = row[1].t;
        t2 = row[2].t;
        t3 = row[3].t;
    }
    for (;;) {
        k = esz_least(esz_steps(l0.p, last, 8), (e0 - a0) / step);
        k = esz_least(esz_least(k, esz_steps(l1.p, last, 8)), (e1 - a1) / step);
        k = esz_least(esz_least(k, esz_steps(l2.p, last, 8)), (e2 - a2) / step);
        k = esz_least(esz_least(k, esz_steps(l3.p, last, 8)), (e3 - a3) / step);
        if (k == 0) break;
        for (; k > 0; k--) {
#define ESZ_STEP(s) \
    a##s = esz_gap_step(&l##s, t##s, gm, vm, cap, fill, nibble, dst, a##s); \
    if (rows && __builtin_expect(a##s >= row[s].end, 0)) { \
        esz_lane_seek(&row[s], c, a##s); \
        t##s = row[s].t; \
    }
            ESZ_STEP(0)
            ESZ_STEP(1)
            ESZ_STEP(2)
            ESZ_STEP(3)
            ESZ_STEP(0)
            ESZ_STEP(1)
            ESZ_STEP(2)
            ESZ_STEP(3)
            esz_lane_refill(&l0);
            esz_lane_refill(&l1);
            esz_lane_refill(&l2);
            esz_lane_refill(&l3);
        }
    }
    do { /* lanes that are not done go on, as long as a gap ends before the chunk */
        more = 0;
#define ESZ_LAST(s) \
    if (esz_steps(l##s.p, last, 8) > 0 && (t##s[l##s.b & gm] >> 8) < e##s - a##s) { \
        ESZ_STEP(s) \
        esz_lane_refill(&l##s); \
        more = 1; \
    }
        ESZ_LAST(0)
        ESZ_LAST(1)
        ESZ_LAST(2)
        ESZ_LAST(3)
#undef ESZ_LAST
#undef ESZ_STEP
    } while (more);
    at[0] = a0;
    at[1] = a1;
    at[2] = a2;
    at[3] = a3;
    return esz_lane_end(&l0, &r[0]) && esz_lane_end(&l1, &r[1]) && esz_lane_end(&l2, &r[2]) && esz_lane_end(&l3, &r[3]);
}

/* One token of JOINT; its last element is where its value goes, and a run's value is the fill value. `at` is the last
 * element done, times 4 for nibbles. */
ESZ_INLINE size_t esz_joint_step(esz_lane *l, const uint32_t *t, unsigned mask, const unsigned nibble, uint8_t *dst,
                                 size_t at) {
    const uint32_t e = esz_lane_joint(l, t, mask);
    at += e >> 16;
    if (nibble)
        dst[at >> 3] ^= (uint8_t)((e >> 8 & 255u) << (at & 4));
    else
        dst[at] = (uint8_t)(e >> 8);
    return at;
}

/* JOINT, 4 chunks; as esz_gap4_core. */
ESZ_INLINE int esz_joint4_core(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, const size_t *end,
                               const unsigned nibble, const unsigned rows) {
    const uint8_t *last = r[3].end - 8;
    const unsigned mask = (1u << c->first[0].bits) - 1;
    const size_t unit = nibble ? 4 : 1, step = 5 * unit * ((size_t)ESZ_JOINT_RUNS << c->joint.gaps_log2);
    const size_t e0 = unit * (end[0] - 1), e1 = unit * (end[1] - 1), e2 = unit * (end[2] - 1), e3 = unit * (end[3] - 1);
    size_t a0 = unit * (at[0] - 1), a1 = unit * (at[1] - 1), a2 = unit * (at[2] - 1), a3 = unit * (at[3] - 1), k, s;
    int more;
    const uint32_t *t0 = c->first[0].joint, *t1 = t0, *t2 = t0, *t3 = t0;
    esz_lane l0, l1, l2, l3;
    esz_row row[4];
    size_t next[4]; /* where the rows end, as `a` counts */
    if (r[3].end - r[0].p < 8 || r[3].p > last) return 1;
    esz_lane_begin(&l0, r[0].p);
    esz_lane_begin(&l1, r[1].p);
    esz_lane_begin(&l2, r[2].p);
    esz_lane_begin(&l3, r[3].p);
    if (rows) {
        for (s = 0; s < 4; s++) {
            esz_row_begin(&row[s], c);
            esz_row_seek(&row[s], c, at[s]);
            next[s] = unit * (row[s].end - 1);
        }
        t0 = c->first[row[0].number].joint;
        t1 = c->first[row[1].number].joint;
        t2 = c->first[row[2].number].joint;
        t3 = c->first[row[3].number].joint;
    }
    for (;;) {
        k = esz_least(esz_steps(l0.p, last, 8), (e0 - a0) / step);
        k = esz_least(esz_least(k, esz_steps(l1.p, last, 8)), (e1 - a1) / step);
        k = esz_least(esz_least(k, esz_steps(l2.p, last, 8)), (e2 - a2) / step);
        k = esz_least(esz_least(k, esz_steps(l3.p, last, 8)), (e3 - a3) / step);
        if (k == 0) break;
        for (; k > 0; k--) {
            unsigned i;
            for (i = 0; i < 5; i++) {
#define ESZ_STEP(s) \
    a##s = esz_joint_step(&l##s, t##s, mask, nibble, dst, a##s); \
    if (rows && __builtin_expect(a##s >= next[s], 0)) { \
        esz_row_seek(&row[s], c, a##s / unit + 1); \
        next[s] = unit * (row[s].end - 1); \
        t##s = c->first[row[s].number].joint; \
    }
                ESZ_STEP(0)
                ESZ_STEP(1)
                ESZ_STEP(2)
                ESZ_STEP(3)
            }
            esz_lane_refill(&l0);
            esz_lane_refill(&l1);
            esz_lane_refill(&l2);
            esz_lane_refill(&l3);
        }
    }
    do { /* lanes that are not done go on, as long as a token ends within the chunk */
        more = 0;
#define ESZ_LAST(s) \
    if (esz_steps(l##s.p, last, 8) > 0 && (t##s[l##s.b & mask] >> 16) <= e##s - a##s && a##s != e##s) { \
        ESZ_STEP(s) \
        esz_lane_refill(&l##s); \
        more = 1; \
    }
        ESZ_LAST(0)
        ESZ_LAST(1)
        ESZ_LAST(2)
        ESZ_LAST(3)
#undef ESZ_LAST
#undef ESZ_STEP
    } while (more);
    at[0] = (a0 + unit) / unit;
    at[1] = (a1 + unit) / unit;
    at[2] = (a2 + unit) / unit;
    at[3] = (a3 + unit) / unit;
    return esz_lane_end(&l0, &r[0]) && esz_lane_end(&l1, &r[1]) && esz_lane_end(&l2, &r[2]) && esz_lane_end(&l3, &r[3]);
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

/* MASK8, 4 chunks; as esz_gap4_core. */
ESZ_INLINE int esz_mask4_core(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, const size_t *end,
                              const unsigned nibble, const unsigned rows) {
    const uint8_t *last = r[3].end - 8;
    const unsigned gm = (1u << c->first[0].bits) - 1, vm = (1u << c->second[0].bits) - 1, fill = c->fill;
    const size_t a0 = at[0], a1 = at[1], a2 = at[2], a3 = at[3], size = end[3] - a3;
    const uint16_t *t0 = c->first[0].entry, *t1 = t0, *t2 = t0, *t3 = t0;
    esz_lane l0, l1, l2, l3;
    esz_lane_row row[4];
    size_t a = 0, s;
    if (r[3].end - r[0].p < 8 || r[3].p > last) return 1;
    esz_lane_begin(&l0, r[0].p);
    esz_lane_begin(&l1, r[1].p);
    esz_lane_begin(&l2, r[2].p);
    esz_lane_begin(&l3, r[3].p);
    if (rows) {
        for (s = 0; s < 4; s++) esz_lane_row_begin(&row[s], c, at[s]);
        t0 = row[0].t;
        t1 = row[1].t;
        t2 = row[2].t;
        t3 = row[3].t;
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
    esz_mask8_step(&l##s, t##s, gm, vm, fill, nibble, dst, a##s + a);
            ESZ_STEP(0)
            ESZ_STEP(1)
            ESZ_STEP(2)
            ESZ_STEP(3)
#undef ESZ_STEP
        }
    }
    for (s = 0; s < 4; s++) at[s] += a;
    return esz_lane_end(&l0, &r[0]) && esz_lane_end(&l1, &r[1]) && esz_lane_end(&l2, &r[2]) && esz_lane_end(&l3, &r[3]);
}

/* How many symbols of plain streams a lane's 56 bits hold. */
#define ESZ_ROUND(c) ((c)->first[0].bits > ESZ_MAX_CODE_BITS ? 4u : 5u)

/* A block without rows is one row without an end, so the loops that know rows serve every block. Those that don't know
 * them, and those for nibbles alone, are there for speed; ESZ_LEAN does without. */
#if defined(ESZ_LEAN)
#define ESZ_PLAIN8(c, r, dst, n) esz_plain8_core(c, r, dst, n, ESZ_ROUND(c), 1, 1)
#define ESZ_CHUNKS(core, c, r, dst, at, end) core(c, r, dst, at, end, (c)->nibble, 1)
#else
#define ESZ_PLAIN8(c, r, dst, n) \
    ((c)->row_items != 0   ? esz_plain8_core(c, r, dst, n, 5, 1, 1) \
     : ESZ_ROUND(c) == 4u ? esz_plain8_core(c, r, dst, n, 4, 0, 1) \
                           : esz_plain8_core(c, r, dst, n, 5, 0, 1))
#define ESZ_CHUNKS(core, c, r, dst, at, end) \
    ((c)->row_items != 0 ? (c)->nibble ? core(c, r, dst, at, end, 1, 1) : core(c, r, dst, at, end, 0, 1) \
     : (c)->nibble       ? core(c, r, dst, at, end, 1, 0) \
                         : core(c, r, dst, at, end, 0, 0))
#endif

#define ESZ_LOOPS(name, attribute) \
    attribute static size_t esz_plain8_##name(const esz_code *c, esz_reader *r, uint8_t *dst, size_t n, \
                                              size_t stride) { \
        return stride > 1 ? esz_plain8_core(c, r, dst, n, 5, 0, stride) : ESZ_PLAIN8(c, r, dst, n); \
    } \
    attribute static int esz_gap4_##name(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, \
                                         const size_t *end) { \
        return ESZ_CHUNKS(esz_gap4_core, c, r, dst, at, end); \
    } \
    attribute static int esz_joint4_##name(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, \
                                           const size_t *end) { \
        return ESZ_CHUNKS(esz_joint4_core, c, r, dst, at, end); \
    } \
    attribute static int esz_mask4_##name(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, \
                                          const size_t *end) { \
        return ESZ_CHUNKS(esz_mask4_core, c, r, dst, at, end); \
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
