/* Decoder, private: the streams of one block in a small build (ESZ_SMALL): one loop for all alphabets, since its size is
 * what counts. Where a stream has no code, the reader is emptied and symbol 0 comes back; every symbol moves on, so the
 * loop ends, and then the missing sentinel shows.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_SMALL_H
#define ESZ_SMALL_H

#include "esz_table.h"

static unsigned esz_next(esz_reader *r, const esz_table *t) {
    unsigned code = 0, first = 0, at = 0, length;
    if (t->count[0]) return t->symbol[0];
    esz_refill(r);
    for (length = 1; length <= ESZ_MAX_CODE_BITS && length <= r->held; length++) {
        unsigned count = t->count[length];
        code |= (unsigned)(r->bits >> (length - 1)) & 1u;
        if (code - first < count) {
            r->bits >>= length;
            r->held -= length;
            return t->symbol[at + code - first];
        }
        at += count;
        first = (first + count) << 1;
        code <<= 1;
    }
    r->held = 0;
    r->p = r->end;
    return 0;
}

/* Items p, p + step, ... below n; the byte of an item goes to `stride` times its number. */
static int esz_chunk(const esz_decoder *d, esz_reader *r, uint8_t *dst, size_t p, size_t n, size_t step, size_t stride) {
    const esz_segment *s = &d->segment;
    const unsigned nibble = esz_is_nibble(s);
    while (p < n) {
        unsigned symbol = esz_next(r, d->table), mask = 1, value = 0;
        size_t at = p;
        if (ESZ_IS(s, ESZ_GAP)) {
            if (symbol > n - p) return 0;
            at = p + symbol;
            p = at + 1;
            if (symbol == (1u << s->cap_log2) - 1 || at == n) {
                p = at;
                continue;
            }
        } else if (ESZ_IS(s, ESZ_JOINT)) {
            const esz_joint joint = {d->values, s->cap_log2, s->fill, nibble};
            p += esz_joint_token(&joint, symbol, &value);
            if (value == s->fill) continue;
            if (p > n) return 0;
            at = p - 1;
        } else if (ESZ_IS(s, ESZ_MASK8)) {
            mask = symbol;
            if (n - p < 8 && mask >> (n - p) != 0) return 0;
            p += 8;
        } else {
            value = symbol;
            if (ESZ_IS(s, ESZ_PAIR)) value |= esz_next(r, d->table) << 4;
            dst[at * stride] = (uint8_t)value;
            p += step;
            continue;
        }
        for (; mask != 0; mask >>= 1, at++) { /* the output holds fill values everywhere */
            if ((mask & 1) == 0) continue;
            if (!ESZ_IS(s, ESZ_JOINT)) value = esz_next(r, &d->table[1]);
            if (nibble)
                dst[at >> 1] ^= (uint8_t)((value ^ s->fill) << (4 * (at & 1)));
            else
                dst[at] = (uint8_t)value;
        }
    }
    return esz_at_end(r);
}

/* Decodes the `streams` streams that fill `src` to its end (their sizes stand at its start) into `items` bytes, which
 * go `stride` apart. */
static esz_status esz_streams_decode(const esz_decoder *d, unsigned streams, const uint8_t *src, size_t src_bytes,
                                     uint8_t *dst, size_t items, size_t stride) {
    const esz_segment *s = &d->segment;
    const unsigned nibble = esz_is_nibble(s);
    const size_t n = nibble ? 2 * items : items, chunk = ((n + streams - 1) / streams + 7) & ~(size_t)7;
    const uint8_t *sizes = src, *end = src + src_bytes;
    unsigned k;
    if (src_bytes < 3u * (streams - 1)) return ESZ_E_BLOCK;
    src += 3u * (streams - 1);
    if (esz_is_chunked(s)) memset(dst, (int)(nibble ? s->fill * 17u : s->fill), items);
    for (k = 0; k < streams; k++, sizes += 3) {
        size_t size = (size_t)(end - src), from = k * chunk, to = from + chunk;
        esz_reader r;
        if (k + 1 < streams) {
            const size_t given = esz_load24(sizes);
            if (given > size) return ESZ_E_BLOCK;
            size = given;
        }
        if (size == 0) return ESZ_E_BLOCK;
        r.p = src;
        r.end = src += size;
        r.bits = 0;
        r.held = 0;
        if (streams == 8) from = k;
        if (streams == 8 || to > n) to = n;
        if (!esz_chunk(d, &r, dst, from, to, streams == 8 ? 8 : 1, stride)) return ESZ_E_STREAM;
    }
    return ESZ_OK;
}

#endif
