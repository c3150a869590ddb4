/* Decoder, private: the streams of one block, an alphabet at a time.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_STREAMS_H
#define ESZ_STREAMS_H

#include "esz_code.h"
#include "esz_fast.h"
#include "esz_fast32.h"

/* Puts an element that is not the fill value; the output holds fill values everywhere. */
static void esz_put(uint8_t *dst, size_t at, unsigned value, const esz_code *c) {
    if (c->nibble)
        dst[at >> 1] ^= (uint8_t)((value ^ c->fill) << (4 * (at & 1)));
    else
        dst[at] = (uint8_t)value;
}

/* PLAIN and PAIR: items i, i + step, ... below n; an item's byte goes to `stride` times its number. */
static int esz_plain_chunk(esz_reader *r, const esz_code *c, uint8_t *dst, size_t i, size_t n, size_t step,
                           size_t stride) {
    esz_row row;
    esz_row_begin(&row, c);
    for (; i < n; i += step) {
        int symbol;
        esz_row_seek(&row, c, i);
        symbol = esz_next(r, &c->first[row.number]); /* of PAIR, two nibbles */
        if (symbol < 0) return 0;
        dst[i * stride] = (uint8_t)symbol;
    }
    return esz_at_end(r);
}

/* GAP from element `p` to the end `n` of its chunk. */
static int esz_gap_chunk(esz_reader *r, const esz_code *c, uint8_t *dst, size_t p, size_t n) {
    esz_row row;
    esz_row_begin(&row, c);
    while (p < n) {
        int gap, value;
        esz_row_seek(&row, c, p);
        gap = esz_next(r, &c->first[row.number]);
        if (gap < 0 || (size_t)gap > n - p) return 0;
        p += (size_t)gap;
        if ((unsigned)gap == c->cap) continue;
        if (p == n) break;
        value = esz_next(r, &c->second[row.number]);
        if (value < 0) return 0;
        esz_put(dst, p++, (unsigned)value, c);
    }
    return esz_at_end(r);
}

/* JOINT; a run may reach past the chunk's end, where it stops. */
static int esz_joint_chunk(esz_reader *r, const esz_code *c, uint8_t *dst, size_t p, size_t n) {
    esz_row row;
    esz_row_begin(&row, c);
    while (p < n) {
        unsigned value, elements;
        esz_row_seek(&row, c, p);
        elements = esz_next_joint(r, &c->first[row.number], &c->joint, &value);
        if (elements == 0) return 0;
        p += elements;
        if (value == c->fill) continue;
        if (p > n) return 0;
        esz_put(dst, p - 1, value, c);
    }
    return esz_at_end(r);
}

static int esz_mask8_chunk(esz_reader *r, const esz_code *c, uint8_t *dst, size_t p, size_t n) {
    esz_row row;
    esz_row_begin(&row, c);
    for (; p < n; p += 8) {
        size_t at = p;
        int mask;
        esz_row_seek(&row, c, p);
        mask = esz_next(r, &c->first[row.number]);
        if (mask < 0 || (n - p < 8 && mask >> (n - p) != 0)) return 0;
        for (; mask != 0; mask >>= 1, at++) {
            int value;
            if ((mask & 1) == 0) continue;
            value = esz_next(r, &c->second[row.number]);
            if (value < 0) return 0;
            esz_put(dst, at, (unsigned)value, c);
        }
    }
    return esz_at_end(r);
}

/* Decodes the `streams` streams that fill `src` to its end (their sizes stand at its start) into `items` bytes, which
 * go `stride` apart. */
static esz_status esz_streams_decode(const esz_code *c, unsigned streams, const uint8_t *src, size_t src_bytes,
                                     uint8_t *dst, size_t items, size_t stride) {
    esz_reader r[8];
    size_t start[8], end[8], at = 3u * (streams - 1), n = c->nibble ? 2 * items : items, chunk, s, step = 1;
    if (src_bytes < at) return ESZ_E_BLOCK;
    chunk = ((n + streams - 1) / streams + 7) & ~(size_t)7;
    for (s = 0; s < streams; s++) {
        const uint8_t *z = src + 3 * s;
        size_t size = src_bytes - at;
        if (s + 1 < streams) {
            size_t given = esz_load24(z);
            if (given > size) return ESZ_E_BLOCK;
            size = given;
        }
        if (size == 0) return ESZ_E_BLOCK;
        r[s].p = src + at;
        r[s].end = src + at + size;
        r[s].bits = 0;
        r[s].held = 0;
        at += size;
        start[s] = s * chunk < n ? s * chunk : n;
        end[s] = n - start[s] > chunk ? start[s] + chunk : n;
    }
    if (c->alphabet == ESZ_GAP || c->alphabet == ESZ_MASK8 || c->alphabet == ESZ_JOINT)
        memset(dst, (int)(c->nibble ? c->fill * 17u : c->fill), items);
    if (streams == 8) {
        size_t done = 0;
#if ESZ_FAST
        done = ESZ_CALL(plain8, c, r, dst, n, stride);
        if (done > n) return ESZ_E_STREAM;
#elif ESZ_FAST32
        done = esz_plain8_32(c, r, dst, n, stride);
        if (done > n) return ESZ_E_STREAM;
#endif
        step = 8;
        for (s = 0; s < 8; s++) {
            start[s] = done + s;
            end[s] = n;
        }
    }
#if ESZ_FAST
    if (streams == 4 && c->alphabet == ESZ_GAP && !ESZ_CALL(gap4, c, r, dst, start, end)) return ESZ_E_STREAM;
    if (streams == 4 && c->alphabet == ESZ_JOINT && !ESZ_CALL(joint4, c, r, dst, start, end)) return ESZ_E_STREAM;
    if (streams == 4 && c->alphabet == ESZ_MASK8 && !ESZ_CALL_MASK4(c, r, dst, start, end)) return ESZ_E_STREAM;
#endif
    for (s = 0; s < streams; s++) {
        int ok;
        if (c->alphabet == ESZ_GAP)
            ok = esz_gap_chunk(&r[s], c, dst, start[s], end[s]);
        else if (c->alphabet == ESZ_JOINT)
            ok = esz_joint_chunk(&r[s], c, dst, start[s], end[s]);
        else if (c->alphabet == ESZ_MASK8)
            ok = esz_mask8_chunk(&r[s], c, dst, start[s], end[s]);
        else
            ok = esz_plain_chunk(&r[s], c, dst, start[s], end[s], step, stride);
        if (!ok) return ESZ_E_STREAM;
    }
    return ESZ_OK;
}

#endif
