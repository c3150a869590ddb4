/* XXH32 (Yann Collet's 32-bit xxHash, seed 0), one-shot and streaming, written from its public specification.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_XXH32_H
#define ESZ_XXH32_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ESZ_XXH_P1 0x9E3779B1u
#define ESZ_XXH_P2 0x85EBCA77u
#define ESZ_XXH_P3 0xC2B2AE3Du
#define ESZ_XXH_P4 0x27D4EB2Fu
#define ESZ_XXH_P5 0x165667B1u

typedef struct {
    uint32_t lane[4];
    uint64_t total;
    uint8_t held[16];
    uint32_t held_bytes;
} esz_xxh32_state;

#if defined(_WIN32) || (defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#define ESZ_LITTLE_ENDIAN 1
#else
#define ESZ_LITTLE_ENDIAN 0
#endif

static inline uint32_t esz_load32(const uint8_t *p) {
#if ESZ_LITTLE_ENDIAN
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
#else
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
#endif
}

static inline uint64_t esz_load64(const uint8_t *p) {
#if ESZ_LITTLE_ENDIAN
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
#else
    return esz_load32(p) | (uint64_t)esz_load32(p + 4) << 32;
#endif
}

static inline uint32_t esz_rotl32(uint32_t x, unsigned r) { return x << r | x >> (32 - r); }

static inline uint32_t esz_xxh32_round(uint32_t lane, uint32_t word) {
    return esz_rotl32(lane + word * ESZ_XXH_P2, 13) * ESZ_XXH_P1;
}

static inline void esz_xxh32_begin(esz_xxh32_state *s) {
    s->lane[0] = ESZ_XXH_P1 + ESZ_XXH_P2;
    s->lane[1] = ESZ_XXH_P2;
    s->lane[2] = 0;
    s->lane[3] = 0u - ESZ_XXH_P1;
    s->total = 0;
    s->held_bytes = 0;
}

static inline void esz_xxh32_add(esz_xxh32_state *s, const uint8_t *p, size_t n) {
    uint32_t a, b, c, d;
    s->total += n;
    if (s->held_bytes != 0) {
        size_t take = 16u - s->held_bytes;
        if (take > n) take = n;
        memcpy(s->held + s->held_bytes, p, take);
        s->held_bytes += (uint32_t)take;
        p += take;
        n -= take;
        if (s->held_bytes < 16) return;
        for (unsigned k = 0; k < 4; k++) s->lane[k] = esz_xxh32_round(s->lane[k], esz_load32(s->held + 4 * k));
        s->held_bytes = 0;
    }
    a = s->lane[0];
    b = s->lane[1];
    c = s->lane[2];
    d = s->lane[3];
    for (; n >= 16; n -= 16, p += 16) {
        a = esz_xxh32_round(a, esz_load32(p));
        b = esz_xxh32_round(b, esz_load32(p + 4));
        c = esz_xxh32_round(c, esz_load32(p + 8));
        d = esz_xxh32_round(d, esz_load32(p + 12));
    }
    s->lane[0] = a;
    s->lane[1] = b;
    s->lane[2] = c;
    s->lane[3] = d;
    if (n != 0) memcpy(s->held, p, n);
    s->held_bytes = (uint32_t)n;
}

static inline uint32_t esz_xxh32_end(const esz_xxh32_state *s) {
    const uint8_t *p = s->held;
    uint32_t h = ESZ_XXH_P5, n = s->held_bytes & 15u;
    if (s->total >= 16)
        h = esz_rotl32(s->lane[0], 1) + esz_rotl32(s->lane[1], 7) + esz_rotl32(s->lane[2], 12) +
            esz_rotl32(s->lane[3], 18);
    h += (uint32_t)s->total;
    for (n /= 4; n > 0; n--, p += 4) h = esz_rotl32(h + esz_load32(p) * ESZ_XXH_P3, 17) * ESZ_XXH_P4;
    for (n = s->held_bytes & 3u; n > 0; n--, p++) h = esz_rotl32(h + *p * ESZ_XXH_P5, 11) * ESZ_XXH_P1;
    h = (h ^ h >> 15) * ESZ_XXH_P2;
    h = (h ^ h >> 13) * ESZ_XXH_P3;
    return h ^ h >> 16;
}

static inline uint32_t esz_xxh32_of(const uint8_t *p, size_t n) {
    esz_xxh32_state s;
    esz_xxh32_begin(&s);
    esz_xxh32_add(&s, p, n);
    return esz_xxh32_end(&s);
}

#endif
