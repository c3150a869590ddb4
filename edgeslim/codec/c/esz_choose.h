/* Encoder, private: the cheapest alphabet for a segment, by the size that optimal codes would give it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_CHOOSE_H
#define ESZ_CHOOSE_H

#include "esz_encode.h"
#include "esz_walk.h"

/* Below this share of fill values GAP and MASK8 cannot win and are not tried. */
#define ESZ_SPARSE_SHARE 0.25

/* What a table set is made of. */
static void esz_set_shape(const esz_kind *k, int small, unsigned symbols[2], unsigned limit[2]) {
    unsigned sparse = k->alphabet == ESZ_GAP || k->alphabet == ESZ_MASK8;
    symbols[0] = k->alphabet == ESZ_PAIR ? 16 : k->alphabet == ESZ_GAP ? k->cap + 1 : 256;
    symbols[1] = sparse ? (k->nibble ? 16 : 256) : 0;
    limit[0] = k->alphabet == ESZ_PAIR ? ESZ_MAX_PAIR_BITS : sparse && small ? 8 : ESZ_MAX_CODE_BITS;
    limit[1] = small ? 8 : ESZ_MAX_CODE_BITS;
}

/* The codes for counts (2 × 256). A value table that would be empty gets one symbol that no stream uses. */
static void esz_set_codes(esz_codebook b[2], const uint32_t *counts, const esz_kind *k, int small) {
    unsigned symbols[2], limit[2];
    esz_set_shape(k, small, symbols, limit);
    esz_code_lengths(&b[0], counts, symbols[0], limit[0]);
    b[1].symbols = 0;
    if (symbols[1] == 0) return;
    esz_code_lengths(&b[1], counts + 256, symbols[1], limit[1]);
    if (b[1].used == 0) {
        b[1].used = 1;
        b[1].length[k->fill == 0] = 1;
    }
}

static uint64_t esz_set_bits(const esz_codebook b[2], const uint32_t *counts) {
    return esz_total_bits(&b[0], counts) + (b[1].symbols ? esz_total_bits(&b[1], counts + 256) : 0);
}

static size_t esz_set_write(uint8_t *p, const esz_codebook b[2]) {
    size_t one = esz_table_write(p, &b[0]);
    return b[1].symbols ? one + esz_table_write(p ? p + one : NULL, &b[1]) : one;
}

static uint64_t esz_cost(const uint32_t *counts, const esz_kind *k, int small) {
    esz_codebook b[2];
    esz_set_codes(b, counts, k, small);
    return esz_set_bits(b, counts) + 8 * esz_set_write(NULL, b);
}

/* Turns gap counts for cap 255 into counts for a smaller cap (long runs to within one symbol a run). */
static void esz_recap(uint32_t *to, const uint32_t *counts, unsigned cap) {
    unsigned g;
    memset(to, 0, 256 * sizeof *to);
    for (g = 0; g <= 255; g++) {
        to[cap] += counts[g] * (g / cap);
        if (g < 255) to[g % cap] += counts[g];
    }
}

/* Sets *best to the cheapest allowed kind. Every allowed alphabet is weighed against storing the bytes. */
static void esz_choose(esz_kind *best, const uint8_t *d, size_t n, const esz_encode_options *o) {
    static const unsigned caps[4] = {255, 127, 63, 31};
    uint32_t bytes[512] = {0}, nibbles[512] = {0}, counts[512], recapped[512];
    uint64_t best_cost = 8 * (uint64_t)n, cost;
    unsigned i, nibble, small = o->small != 0;
    esz_kind k;
    best->alphabet = ESZ_RAW;
    best->nibble = best->cap = best->fill = k.cap = k.fill = k.nibble = 0;
    k.alphabet = ESZ_PLAIN;
    esz_walk(d, 0, n, 1, &k, bytes, NULL);
    for (i = 0; i < 256; i++) {
        nibbles[i & 15] += bytes[i];
        nibbles[i >> 4] += bytes[i];
    }
    for (k.alphabet = ESZ_PLAIN; k.alphabet <= ESZ_PAIR; k.alphabet++) {
        if (!(o->alphabets >> k.alphabet & 1)) continue;
        cost = esz_cost(k.alphabet == ESZ_PLAIN ? bytes : nibbles, &k, (int)small);
        if (cost < best_cost) {
            best_cost = cost;
            *best = k;
        }
    }
    for (nibble = 0; nibble < 2; nibble++) {
        const uint32_t *seen = nibble ? nibbles : bytes;
        k.nibble = nibble;
        for (k.fill = 0, i = 1; i < (nibble ? 16u : 256u); i++)
            if (seen[i] > seen[k.fill]) k.fill = i;
        if ((double)seen[k.fill] < ESZ_SPARSE_SHARE * (double)esz_items(n, &k)) continue;
        if (o->alphabets >> ESZ_GAP & 1) {
            k.alphabet = ESZ_GAP;
            k.cap = 255;
            memset(counts, 0, sizeof counts);
            esz_walk(d, 0, esz_items(n, &k), 1, &k, counts, NULL);
            memcpy(recapped + 256, counts + 256, 256 * sizeof *counts);
            for (i = small ? 3 : 0; i < 4; i++) {
                k.cap = caps[i];
                esz_recap(recapped, counts, k.cap);
                cost = esz_cost(recapped, &k, (int)small);
                if (cost < best_cost) {
                    best_cost = cost;
                    *best = k;
                }
            }
        }
        if (o->alphabets >> ESZ_MASK8 & 1) {
            k.alphabet = ESZ_MASK8;
            k.cap = 0;
            memset(counts, 0, sizeof counts);
            esz_walk(d, 0, esz_items(n, &k), 1, &k, counts, NULL);
            cost = esz_cost(counts, &k, (int)small);
            if (cost < best_cost) {
                best_cost = cost;
                *best = k;
            }
        }
    }
}

#endif
