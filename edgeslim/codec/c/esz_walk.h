/* Encoder, private: walks a block's elements the way an alphabet sees them. The same walk counts symbols (writer is
 * null) and writes codes, so that counted and written symbols cannot differ.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_WALK_H
#define ESZ_WALK_H

#include "esz_huffman.h"
#include "esz_xxh32.h"

typedef struct {
    unsigned alphabet, nibble, cap, fill;
} esz_kind;

/* Bits from bit 0 of the first byte up; the buffer has 8 bytes of slack. */
typedef struct {
    uint8_t *p;
    uint64_t bits;
    unsigned held;
    const esz_codebook *first, *second;
} esz_writer;

static inline void esz_store32(uint8_t *p, uint32_t x) {
#if ESZ_LITTLE_ENDIAN
    memcpy(p, &x, sizeof x);
#else
    p[0] = (uint8_t)x;
    p[1] = (uint8_t)(x >> 8);
    p[2] = (uint8_t)(x >> 16);
    p[3] = (uint8_t)(x >> 24);
#endif
}

static void esz_flush(esz_writer *w) {
    for (; w->held >= 8; w->held -= 8, w->bits >>= 8) *w->p++ = (uint8_t)w->bits;
}

static inline void esz_emit(esz_writer *w, const esz_codebook *b, unsigned symbol) {
    w->bits |= (uint64_t)b->code[symbol] << w->held;
    w->held += b->bits[symbol];
    if (w->held >= 32) {
        uint32_t low = (uint32_t)w->bits;
        esz_store32(w->p, low);
        w->p += 4;
        w->bits >>= 32;
        w->held -= 32;
    }
}

/* The sentinel bit and zero bits to the end of its byte. */
static void esz_finish(esz_writer *w) {
    esz_flush(w);
    *w->p++ = (uint8_t)(w->bits | 1u << w->held);
    w->bits = 0;
    w->held = 0;
}

static inline unsigned esz_element(const uint8_t *d, size_t i, unsigned nibble) {
    return nibble ? (unsigned)d[i >> 1] >> (4 * (i & 1)) & 15u : d[i];
}

static unsigned esz_lowest_bit(uint64_t x) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(x);
#else
    unsigned n = 0;
    for (; (x & 255) == 0; x >>= 8) n += 8;
    for (; (x & 1) == 0; x >>= 1) n++;
    return n;
#endif
}

/* The first element from `i` on that is not the fill value, or n. */
static inline size_t esz_next_other(const uint8_t *d, size_t i, size_t n, const esz_kind *k) {
    const unsigned shift = k->nibble ? 2 : 3; /* an element is 1 << shift bits */
    const uint64_t fill = (k->nibble ? k->fill * 17u : k->fill) * 0x0101010101010101u;
    const size_t per_word = k->nibble ? 16 : 8;
    while (i < n && (k->nibble ? i & 1 : 0)) {
        if (esz_element(d, i, k->nibble) != k->fill) return i;
        i++;
    }
    while (i + per_word <= n) {
        const uint8_t *p = d + (k->nibble ? i / 2 : i);
        uint64_t word = esz_load64(p);
        word ^= fill;
        if (word != 0) return i + (esz_lowest_bit(word) >> shift);
        i += per_word;
    }
    while (i < n && esz_element(d, i, k->nibble) == k->fill) i++;
    return i;
}

static inline void esz_token(unsigned symbol, uint32_t *counts, esz_writer *w, const esz_codebook *b) {
    if (w != NULL)
        esz_emit(w, b, symbol);
    else
        counts[symbol]++;
}

/* Items `from` to `to` of a block (interleaved streams: every 8th). counts: 2 × 256. */
static inline void esz_walk(const uint8_t *d, size_t from, size_t to, size_t step, const esz_kind *k, uint32_t *counts,
                            esz_writer *w) {
    uint32_t *counts2 = counts + 256;
    const esz_codebook *first = w ? w->first : NULL, *second = w ? w->second : NULL;
    size_t i;
    if (k->alphabet == ESZ_PLAIN) {
        for (i = from; i < to; i += step) esz_token(d[i], counts, w, first);
    } else if (k->alphabet == ESZ_PAIR) {
        for (i = from; i < to; i += step) {
            esz_token(d[i] & 15u, counts, w, first);
            esz_token(d[i] >> 4, counts, w, first);
        }
    } else if (k->alphabet == ESZ_GAP) {
        for (i = from; i < to; i++) {
            size_t other = esz_next_other(d, i, to, k), gap = other - i;
            for (; gap >= k->cap; gap -= k->cap) esz_token(k->cap, counts, w, first);
            if (other == to && gap == 0) break;
            esz_token((unsigned)gap, counts, w, first);
            if (other == to) break;
            esz_token(esz_element(d, other, k->nibble), counts2, w, second);
            i = other;
        }
    } else {
        for (i = from; i < to; i += 8) {
            size_t j, m = to - i < 8 ? to - i : 8;
            unsigned mask = 0;
            for (j = 0; j < m; j++) mask |= (unsigned)(esz_element(d, i + j, k->nibble) != k->fill) << j;
            esz_token(mask, counts, w, first);
            for (j = 0; j < m; j++)
                if (mask >> j & 1) esz_token(esz_element(d, i + j, k->nibble), counts2, w, second);
        }
    }
}

static size_t esz_items(size_t bytes, const esz_kind *k) { return k->nibble ? 2 * bytes : bytes; }

/* Where stream `s` of `streams` chunked ones ends. */
static size_t esz_chunk_end(size_t n, unsigned streams, unsigned s) {
    size_t q = ((n + streams - 1) / streams + 7) & ~(size_t)7;
    return q * (s + 1) < n ? q * (s + 1) : n;
}

#endif
