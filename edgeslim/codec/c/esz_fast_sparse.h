/* Decoder, private: the fast loops of GAP and JOINT (esz_fast.h).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_FAST_SPARSE_H
#define ESZ_FAST_SPARSE_H

#include "esz_lane.h"

#if ESZ_FAST

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
    ESZ_FOUR(ESZ_LANE_BEGIN)
    if (rows) {
        for (s = 0; s < 4; s++) esz_lane_row_begin(&row[s], c, at[s]);
        ESZ_FOUR(ESZ_LANE_TABLE)
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
            ESZ_FOUR(ESZ_STEP)
            ESZ_FOUR(ESZ_STEP)
            ESZ_FOUR(ESZ_LANE_REFILL)
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
        ESZ_FOUR(ESZ_LAST)
#undef ESZ_LAST
#undef ESZ_STEP
    } while (more);
    at[0] = a0;
    at[1] = a1;
    at[2] = a2;
    at[3] = a3;
    return 1 ESZ_FOUR(ESZ_LANE_ENDS);
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
    ESZ_FOUR(ESZ_LANE_BEGIN)
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
                ESZ_FOUR(ESZ_STEP)
            }
            ESZ_FOUR(ESZ_LANE_REFILL)
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
        ESZ_FOUR(ESZ_LAST)
#undef ESZ_LAST
#undef ESZ_STEP
    } while (more);
    at[0] = (a0 + unit) / unit;
    at[1] = (a1 + unit) / unit;
    at[2] = (a2 + unit) / unit;
    at[3] = (a3 + unit) / unit;
    return 1 ESZ_FOUR(ESZ_LANE_ENDS);
}

#endif
#endif
