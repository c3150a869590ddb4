/* Decoder, private: what the fast loops of 64-bit builds read streams with.
 *
 * A lane is one stream. Its 64-bit word holds the next bits at the bottom and a marker bit at the top, which each shift
 * moves down: the number of leading zeros is the number of bits used, so there is no counter to keep (the idea is
 * Fabian Giesen's, "Reading bits in far too many ways", 2018). After a refill 56 bits are ready. Lanes are stepped in
 * turn so that their look-ups overlap.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_LANE_H
#define ESZ_LANE_H

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
#define ESZ_BMI2 __attribute__((target("bmi2,lzcnt,popcnt")))
#define ESZ_HAS_BMI2 __builtin_cpu_supports("bmi2")
/* Zen 1 and 2 have PDEP, but take dozens of cycles for it. */
#define ESZ_HAS_PDEP (ESZ_HAS_BMI2 && !__builtin_cpu_is("znver1") && !__builtin_cpu_is("znver2"))
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

/* The same for each lane of a loop: l0, l1, ... are variables of their own, so that they stay in registers. `r` are the
 * streams' readers, t0, t1, ... the lanes' tables. */
#define ESZ_FOUR(act) act(0) act(1) act(2) act(3)
#define ESZ_EIGHT(act) ESZ_FOUR(act) act(4) act(5) act(6) act(7)
#define ESZ_LANE_BEGIN(s) esz_lane_begin(&l##s, r[s].p);
#define ESZ_LANE_REFILL(s) esz_lane_refill(&l##s);
#define ESZ_LANE_TABLE(s) t##s = row[s].t;
#define ESZ_LANE_ENDS(s) && esz_lane_end(&l##s, &r[s])

#endif
#endif
