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
    unsigned top; /* JOINT: the largest value, which stands before the table; else 0 */
} esz_codebook;

/* Huffman's own lengths for n >= 2 sorted weights (count << 8 | symbol), by two queues: leaves, and nodes as they come.
 * Returns 0 if one is above `limit`. */
static int esz_free_lengths(uint8_t *length, const uint64_t *sorted, unsigned n, unsigned limit) {
    uint64_t weight[256];
    uint16_t parent[512];
    uint8_t depth[256];
    unsigned leaf = 0, node = 0, made, i, k;
    if (n < 2 || n > 256) return 0;
    for (made = 0; made + 1 < n; made++) {
        weight[made] = 0;
        for (k = 0; k < 2; k++) {
            if (node == made || (leaf < n && sorted[leaf] >> 8 <= weight[node])) {
                weight[made] += sorted[leaf] >> 8;
                parent[leaf++] = (uint16_t)made;
            } else {
                weight[made] += weight[node];
                parent[256 + node++] = (uint16_t)made;
            }
        }
    }
    depth[n - 2] = 0;
    for (i = n - 2; i-- > 0;) depth[i] = (uint8_t)(depth[parent[256 + i]] + 1);
    if (depth[parent[0]] + 1u > limit) return 0; /* the rarest symbol has the longest code */
    for (i = 0; i < n; i++) length[sorted[i] & 255u] = (uint8_t)(depth[parent[i]] + 1);
    return 1;
}

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
    if (esz_free_lengths(b->length, sorted, n, limit)) return;
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

/* Form 3 (FORMAT.md, section 7) of the lengths of symbols `first` to `last`: writes it, unless `p` is null, and returns
 * its size. `row` symbols are a row. */
static size_t esz_put_differences(uint8_t *p, const esz_codebook *b, unsigned first, unsigned last, unsigned row) {
    unsigned i, before = 0, bits, code;
    size_t at = 24;
    uint64_t held = 0;
    if (p != NULL) {
        p[0] = 3;
        p[1] = (uint8_t)first;
        p[2] = (uint8_t)last;
    }
    for (i = first; i <= last; i++) {
        const unsigned now = b->length[i];
        if (i >= first + row) before = b->length[i - row];
        if (now == before)
            bits = 1, code = 0;
        else if (now == before + 1)
            bits = 2, code = 1;
        else if (now + 1 == before)
            bits = 3, code = 3;
        else
            bits = 7, code = 7 | now << 3;
        held |= (uint64_t)code << (at & 7);
        if (p != NULL) p[at >> 3] = (uint8_t)held;
        if ((at & 7) + bits >= 8) {
            held >>= 8;
            if (p != NULL && (at & 7) + bits > 8) p[(at >> 3) + 1] = (uint8_t)held;
        }
        at += bits;
        before = now;
    }
    return (at + 7) / 8;
}

/* Writes the table in its shortest form (at most ESZ_MAX_TABLE_BYTES) and returns its size; `p` may be null. */
static size_t esz_table_write(uint8_t *p, const esz_codebook *b) {
    const unsigned row = b->top != 0 ? b->top : 1;
    unsigned first = 0, last = b->symbols - 1, i, n = 0;
    size_t dense = 1 + (b->symbols + 1) / 2, range, sparse, differences, least;
    while (first < last && b->length[first] == 0) first++;
    while (last > first && b->length[last] == 0) last--;
    range = 3 + (last - first + 2) / 2;
    sparse = 2 + b->used + (b->used + 1) / 2;
    differences = esz_put_differences(NULL, b, first, last, row);
    least = dense < range ? dense : range;
    if (sparse < least) least = sparse;
    if (differences < least) return esz_put_differences(p, b, first, last, row);
    if (p == NULL) return least;
    if (least == dense) {
        p[0] = 0;
        esz_put_lengths(p + 1, b->length, b->symbols);
    } else if (least == range) {
        p[0] = 1;
        p[1] = (uint8_t)first;
        p[2] = (uint8_t)last;
        esz_put_lengths(p + 3, b->length + first, last - first + 1);
    } else {
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
    return least;
}

#endif
