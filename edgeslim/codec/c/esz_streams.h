/* Decoder, private: the streams of one block, an alphabet at a time.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_STREAMS_H
#define ESZ_STREAMS_H

#include "esz_fast.h"
#include "esz_table.h"

/* What the alphabets need to know about the block. */
typedef struct {
    const esz_table *first, *second;
    unsigned alphabet, nibble, cap, fill;
} esz_code;

static int esz_next_byte(esz_reader *r, const esz_code *c) {
#if defined(ESZ_SMALL)
    if (c->alphabet == ESZ_PAIR) {
        int low = esz_next(r, c->first), high = esz_next(r, c->first);
        return low < 0 || high < 0 ? -1 : low | high << 4;
    }
#endif
    return esz_next(r, c->first);
}

/* Puts an element that is not the fill value; the output holds fill values everywhere. */
static void esz_put(uint8_t *dst, size_t at, unsigned value, const esz_code *c) {
    if (c->nibble)
        dst[at >> 1] ^= (uint8_t)((value ^ c->fill) << (4 * (at & 1)));
    else
        dst[at] = (uint8_t)value;
}

static int esz_plain_chunk(esz_reader *r, const esz_code *c, uint8_t *dst, size_t i, size_t n, size_t step) {
    for (; i < n; i += step) {
        int symbol = esz_next_byte(r, c);
        if (symbol < 0) return 0;
        dst[i] = (uint8_t)symbol;
    }
    return esz_at_end(r);
}

/* GAP from element `p` to the end of a chunk of `n` elements. */
static int esz_gap_chunk(esz_reader *r, const esz_code *c, uint8_t *dst, size_t p, size_t n) {
    while (p < n) {
        int gap = esz_next(r, c->first), value;
        if (gap < 0 || (size_t)gap > n - p) return 0;
        p += (size_t)gap;
        if ((unsigned)gap == c->cap) continue;
        if (p == n) break;
        value = esz_next(r, c->second);
        if (value < 0) return 0;
        esz_put(dst, p++, (unsigned)value, c);
    }
    return esz_at_end(r);
}

static int esz_mask8_chunk(esz_reader *r, const esz_code *c, uint8_t *dst, size_t p, size_t n) {
    for (; p < n; p += 8) {
        int mask = esz_next(r, c->first);
        size_t at = p;
        if (mask < 0 || (n - p < 8 && mask >> (n - p) != 0)) return 0;
        for (; mask != 0; mask >>= 1, at++) {
            int value;
            if ((mask & 1) == 0) continue;
            value = esz_next(r, c->second);
            if (value < 0) return 0;
            esz_put(dst, at, (unsigned)value, c);
        }
    }
    return esz_at_end(r);
}

/* Decodes the `streams` streams that fill `src` to its end (`at` is where their sizes start). */
static esz_status esz_streams_decode(const esz_code *c, unsigned streams, const uint8_t *src, size_t src_bytes,
                                     uint8_t *dst, size_t dst_bytes) {
    esz_reader r[8];
    uint8_t *out[4];
    size_t start[4], length[4], at = 3u * (streams - 1), n = c->nibble ? 2 * dst_bytes : dst_bytes, chunk, s;
    int sparse = c->alphabet == ESZ_GAP || c->alphabet == ESZ_MASK8;
    if (src_bytes < at) return ESZ_E_BLOCK;
    for (s = 0; s < streams; s++) {
        const uint8_t *z = src + 3 * s;
        size_t size = src_bytes - at;
        if (s + 1 < streams) {
            size_t given = (size_t)z[0] | (size_t)z[1] << 8 | (size_t)z[2] << 16;
            if (given > size) return ESZ_E_BLOCK;
            size = given;
        }
        if (size == 0) return ESZ_E_BLOCK;
        r[s].p = src + at;
        r[s].end = src + at + size;
        r[s].bits = 0;
        r[s].held = 0;
        at += size;
    }
    if (sparse) memset(dst, (int)(c->nibble ? c->fill * 17u : c->fill), dst_bytes);
    if (streams == 8) {
        size_t done = 0;
#if ESZ_FAST
        done = ESZ_CALL(plain8, c->first, r, dst, n);
        if (done > n) return ESZ_E_STREAM;
#endif
        for (s = 0; s < 8; s++)
            if (!esz_plain_chunk(&r[s], c, dst, done + s, n, 8)) return ESZ_E_STREAM;
        return ESZ_OK;
    }
    chunk = ((n + streams - 1) / streams + 7) & ~(size_t)7;
    for (s = 0; s < streams; s++) {
        size_t from = s * chunk < n ? s * chunk : n;
        length[s] = n - from > chunk ? chunk : n - from;
        out[s] = dst + (c->nibble ? from / 2 : from);
        start[s] = 0;
    }
#if ESZ_FAST
    if (streams == 4 && c->alphabet == ESZ_GAP &&
        !ESZ_CALL(gap4, c->first, c->second, c->cap, c->fill, c->nibble, r, out, start, length))
        return ESZ_E_STREAM;
    if (streams == 4 && c->alphabet == ESZ_MASK8 &&
        !ESZ_CALL(mask4, c->first, c->second, c->fill, c->nibble, r, out, start, length))
        return ESZ_E_STREAM;
#endif
    for (s = 0; s < streams; s++) {
        int ok;
        if (c->alphabet == ESZ_GAP)
            ok = esz_gap_chunk(&r[s], c, out[s], start[s], length[s]);
        else if (c->alphabet == ESZ_MASK8)
            ok = esz_mask8_chunk(&r[s], c, out[s], start[s], length[s]);
        else
            ok = esz_plain_chunk(&r[s], c, out[s], start[s], length[s], 1);
        if (!ok) return ESZ_E_STREAM;
    }
    return ESZ_OK;
}

#endif
