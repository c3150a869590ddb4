/* Encoder, private: optimal length-limited code lengths (package-merge, Larmore and Hirschberg 1990), canonical codes
 * and serialized tables.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_HUFFMAN_H
#define ESZ_HUFFMAN_H

#include <stdlib.h>
#include <string.h>

#include "esz_format.h"

#define ESZ_MAX_TABLE_BYTES (3u + 256u + 128u)

typedef struct {
    uint8_t length[256]; /* as serialized; a lone symbol has 1 here and costs no bits */
    uint8_t bits[256];   /* as put into a stream */
    uint16_t code[256];  /* reversed, ready to be put from bit 0 up */
    unsigned symbols, used;
} esz_codebook;

/* Code lengths for counts[0..symbols), none longer than `limit` (the used symbols must fit: used <= 2^limit). */
static void esz_code_lengths(esz_codebook *b, const uint32_t *counts, unsigned symbols, unsigned limit) {
    uint8_t leaf[ESZ_MAX_CODE_BITS][512];
    uint64_t list[2][512], sorted[256];
    unsigned n = 0, i, level, size = 0, take;
    memset(b, 0, sizeof *b);
    b->symbols = symbols;
    for (i = 0; i < symbols; i++)
        if (counts[i] != 0) sorted[n++] = (uint64_t)counts[i] << 8 | i;
    b->used = n;
    if (n == 1) b->length[sorted[0] & 255u] = 1;
    if (n < 2) return;
    for (level = 0; level < 5; level++) { /* Shell's sort */
        static const unsigned gaps[5] = {57, 23, 10, 4, 1};
        for (i = gaps[level]; i < n; i++) {
            uint64_t v = sorted[i];
            unsigned k = i, g = gaps[level];
            for (; k >= g && sorted[k - g] > v; k -= g) sorted[k] = sorted[k - g];
            sorted[k] = v;
        }
    }
    for (level = 0; level < limit; level++) {
        const uint64_t *before = list[(level + 1) & 1];
        uint64_t *now = list[level & 1];
        unsigned pairs = size / 2, p = 0, l = 0;
        size = n + pairs;
        for (i = 0; i < size; i++) {
            uint64_t pair = p < pairs ? before[2 * p] + before[2 * p + 1] : 0;
            if (p == pairs || (l < n && sorted[l] >> 8 <= pair)) {
                now[i] = sorted[l++] >> 8;
                leaf[level][i] = 1;
            } else {
                now[i] = pair;
                leaf[level][i] = 0;
                p++;
            }
        }
    }
    take = 2 * n - 2;
    for (level = limit; level-- > 0;) {
        unsigned leaves = 0;
        for (i = 0; i < take; i++) leaves += leaf[level][i];
        for (i = 0; i < leaves; i++) b->length[sorted[i] & 255u]++;
        take = 2 * (take - leaves);
    }
}

/* Fills in the codes for b->length. */
static void esz_assign_codes(esz_codebook *b) {
    unsigned length, symbol, code = 0, i;
    for (length = 1; length <= ESZ_MAX_CODE_BITS; length++, code <<= 1)
        for (symbol = 0; symbol < b->symbols; symbol++) {
            unsigned r = 0;
            if (b->length[symbol] != length) continue;
            for (i = 0; i < length; i++) r |= (code >> i & 1u) << (length - 1 - i);
            b->code[symbol] = (uint16_t)r;
            b->bits[symbol] = (uint8_t)(b->used == 1 ? 0 : length);
            code++;
        }
}

/* Bits for all of `counts`. */
static uint64_t esz_total_bits(const esz_codebook *b, const uint32_t *counts) {
    uint64_t bits = 0;
    unsigned i;
    if (b->used == 1) return 0;
    for (i = 0; i < b->symbols; i++) bits += (uint64_t)counts[i] * b->length[i];
    return bits;
}

static void esz_put_lengths(uint8_t *p, const uint8_t *lengths, unsigned n) {
    unsigned i;
    memset(p, 0, (n + 1) / 2);
    for (i = 0; i < n; i++) p[i >> 1] |= (uint8_t)(lengths[i] << (4 * (i & 1)));
}

/* Writes the table in its shortest form (at most ESZ_MAX_TABLE_BYTES) and returns its size; `p` may be null. */
static size_t esz_table_write(uint8_t *p, const esz_codebook *b) {
    unsigned first = 0, last = b->symbols - 1, i, n = 0;
    size_t dense = 1 + (b->symbols + 1) / 2, range, sparse;
    while (first < last && b->length[first] == 0) first++;
    while (last > first && b->length[last] == 0) last--;
    range = 3 + (last - first + 2) / 2;
    sparse = 2 + b->used + (b->used + 1) / 2;
    if (dense <= range && dense <= sparse) {
        if (p == NULL) return dense;
        p[0] = 0;
        esz_put_lengths(p + 1, b->length, b->symbols);
        return dense;
    }
    if (range <= sparse) {
        if (p == NULL) return range;
        p[0] = 1;
        p[1] = (uint8_t)first;
        p[2] = (uint8_t)last;
        esz_put_lengths(p + 3, b->length + first, last - first + 1);
        return range;
    }
    if (p != NULL) {
        uint8_t lengths[256];
        p[0] = 2;
        p[1] = (uint8_t)(b->used - 1);
        for (i = 0; i < b->symbols; i++)
            if (b->length[i] != 0) {
                p[2 + n] = (uint8_t)i;
                lengths[n++] = b->length[i];
            }
        esz_put_lengths(p + 2 + n, lengths, n);
    }
    return sparse;
}

#endif
