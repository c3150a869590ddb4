/* Decoder, private: the fast loops of 64-bit builds, and which of them a machine runs.
 *
 * All loops run while no lane can come near the end of input or output; what is left goes to the careful reader, which
 * also checks the stream's end. A damaged lane may read bytes of the streams behind its own, but never past the block.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_FAST_H
#define ESZ_FAST_H

#include "esz_fast_mask8.h"
#include "esz_fast_sparse.h"

#if ESZ_FAST

#define ESZ_PUT(s) dst[(at + s) * stride] = (uint8_t)esz_lane_next(&l##s, table, mask);

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
    ESZ_EIGHT(ESZ_LANE_BEGIN)
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
                ESZ_EIGHT(ESZ_PUT)
            }
            ESZ_EIGHT(ESZ_LANE_REFILL)
            if (at < stop || at >= n) break;
            esz_lane_seek(&row, c, at);
            table = row.t;
            stop = esz_least(row.end, n);
            continue;
        }
        if (k == 0) break;
        for (k = esz_least(k, room); k > 0; k--) {
            for (i = 0; i < round; i++, at += 8) {
                ESZ_EIGHT(ESZ_PUT)
            }
            ESZ_EIGHT(ESZ_LANE_REFILL)
        }
    }
    return 1 ESZ_EIGHT(ESZ_LANE_ENDS) ? at : n + 1;
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

/* MASK8 where PDEP is fast. */
ESZ_BMI2 static int esz_mask4_deposit(const esz_code *c, esz_reader *r, uint8_t *dst, size_t *at, const size_t *end) {
    if (c->nibble && (c->row_items != 0 || c->second[0].bits > 5)) return esz_mask4_bmi2(c, r, dst, at, end);
#if defined(ESZ_LEAN)
    return c->nibble ? esz_mask4_loops(c, r, dst, at, end, 1, 0, 1) : esz_mask4_loops(c, r, dst, at, end, 0, 1, 1);
#else
    return c->nibble           ? esz_mask4_loops(c, r, dst, at, end, 1, 0, 1)
           : c->row_items != 0 ? esz_mask4_loops(c, r, dst, at, end, 0, 1, 1)
                               : esz_mask4_loops(c, r, dst, at, end, 0, 0, 1);
#endif
}

#define ESZ_CALL_MASK4(...) (ESZ_HAS_PDEP ? esz_mask4_deposit(__VA_ARGS__) : ESZ_CALL(mask4, __VA_ARGS__))
#define ESZ_CALL(loop, ...) (ESZ_HAS_BMI2 ? esz_##loop##_bmi2(__VA_ARGS__) : esz_##loop##_any(__VA_ARGS__))
#else
#define ESZ_CALL(loop, ...) esz_##loop##_any(__VA_ARGS__)
#define ESZ_CALL_MASK4(...) esz_mask4_any(__VA_ARGS__)
#endif

#endif
#endif
