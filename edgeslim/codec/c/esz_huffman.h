/* Encoder, private: length-limited code lengths, canonical codes and serialized tables.
 *
 * Lengths are Huffman's; where they are too long, those above the limit are cut, and others grow for it where that costs
 * the fewest bits for the room it gives back. Against the optimum (package-merge) that is 0.03 % at most on the
 * benchmark's payloads, in a third of the time.
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
    unsigned symbols, used;
    unsigned top; /* JOINT: the largest value, which stands before the table; else 0 */
} esz_codebook;

/* Huffman's own lengths for n >= 2 sorted weights (count << 8 | symbol), in their order, by two queues: leaves, and nodes
 * as they come. */
static void esz_free_lengths(uint8_t *length, const uint32_t *sorted, unsigned n) {
    uint32_t weight[256];
    uint16_t parent[512];
    uint8_t depth[256];
    unsigned leaf = 0, node = 0, made, i, k;
    if (n < 2 || n > 256) return;
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
    for (i = 0; i < n; i++) length[i] = (uint8_t)(depth[parent[i]] + 1);
}

/* Makes the lengths of n <= 2^limit sorted weights, which fall, a complete code of at most `limit` bits. */
static void esz_limit_lengths(uint8_t *length, const uint32_t *sorted, unsigned n, unsigned limit) {
    unsigned from[ESZ_MAX_CODE_BITS + 2], i, l;
    int over = -(1 << limit); /* the codes' share of all code space, less what there is, in codes of `limit` bits */
    for (i = 0; i < n; i++) {
        if (length[i] > limit) length[i] = (uint8_t)limit;
        over += 1 << (limit - length[i]);
    }
    for (l = limit + 2, i = 0; l-- > 0;) { /* from[l]: the rarest symbol of at most l bits */
        if (l > limit) {
            from[l] = 0;
            continue;
        }
        while (i < n && length[i] > l) i++;
        from[l] = i;
    }
    while (over > 0) { /* one bit more for a symbol of l bits gives back 2^(limit - l - 1) */
        unsigned best = 0;
        double least = 0;
        for (l = limit - 1; l > 0; l--) {
            const int gain = 1 << (limit - l - 1);
            double cost;
            if (from[l] >= n || length[from[l]] != l) continue;
            cost = (double)(sorted[from[l]] >> 8) / (gain < over ? gain : over);
            if (best == 0 || cost < least) {
                best = l;
                least = cost;
            }
        }
        length[from[best]++]++;
        over -= 1 << (limit - best - 1);
    }
    while (over < 0) /* what was given back in excess goes to the most frequent for which it suffices */
        for (i = n; i-- > 0;)
            for (; length[i] > 1 && over + (1 << (limit - length[i])) <= 0; length[i]--) over += 1 << (limit - length[i]);
}

/* Sorts n symbols by their counts into weights, count << 8 | symbol. Counts above 65,535 are scaled down, all of them alike,
 * so that two passes over a byte each suffice. */
static unsigned esz_sort_counts(uint32_t *sorted, const uint32_t *counts, unsigned symbols) {
    uint16_t start[2][257];
    uint32_t pass[2][256], most = 0;
    unsigned i, k, n = 0, shift = 0;
    for (i = 0; i < symbols; i++) most = counts[i] > most ? counts[i] : most;
    while (most >> shift > 65535) shift++;
    memset(start, 0, sizeof start);
    for (i = 0; i < symbols; i++) {
        const uint32_t count = counts[i] >> shift;
        if (counts[i] == 0) continue;
        pass[0][n] = (count != 0 ? count : 1) << 8 | i;
        start[0][(pass[0][n] >> 8 & 255) + 1]++;
        start[1][(pass[0][n++] >> 16) + 1]++;
    }
    for (i = 0; i < 256; i++) {
        start[0][i + 1] = (uint16_t)(start[0][i + 1] + start[0][i]);
        start[1][i + 1] = (uint16_t)(start[1][i + 1] + start[1][i]);
    }
    for (i = 0; i < n; i++) pass[1][start[0][pass[0][i] >> 8 & 255]++] = pass[0][i];
    for (i = 0; i < n; i++) {
        k = pass[1][i] >> 16;
        sorted[start[1][k]++] = pass[1][i];
    }
    return n;
}

/* Code lengths for counts[0..symbols), none longer than `limit` (the used symbols must fit: used <= 2^limit). */
static void esz_code_lengths(esz_codebook *b, const uint32_t *counts, unsigned symbols, unsigned limit) {
    uint32_t sorted[256];
    uint8_t length[256];
    unsigned i, n = esz_sort_counts(sorted, counts, symbols);
    memset(b, 0, sizeof *b);
    b->symbols = symbols;
    b->used = n;
    if (n == 1) b->length[sorted[0] & 255u] = 1;
    if (n < 2) return;
    esz_free_lengths(length, sorted, n);
    if (length[0] > limit) esz_limit_lengths(length, sorted, n, limit);
    for (i = 0; i < n; i++) b->length[sorted[i] & 255u] = length[i];
}

/* The codes for b->length: reversed, so that they can be put from bit 0 up, and the bits that they take << 16. */
static void esz_assign_codes(const esz_codebook *b, uint32_t *entry) {
    unsigned next[ESZ_MAX_CODE_BITS + 2] = {0}, length, symbol, code = 0;
    for (symbol = 0; symbol < b->symbols; symbol++) next[b->length[symbol] + 1u]++;
    for (length = 1; length <= ESZ_MAX_CODE_BITS; length++) { /* next[n + 1] is the number of codes of n bits */
        const unsigned codes = next[length + 1];
        next[length] = code;
        code = (code + codes) << 1;
    }
    memset(entry, 0, 256 * sizeof *entry);
    for (symbol = 0; symbol < b->symbols && b->used > 1; symbol++) {
        length = b->length[symbol];
        if (length != 0) entry[symbol] = esz_reversed_bits(next[length]++, length) | length << 16;
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
