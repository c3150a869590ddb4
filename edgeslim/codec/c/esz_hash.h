/* The container's hash (FORMAT.md, section 1), one-shot and streaming, and little-endian loads.
 *
 * XXH32 (Yann Collet, 2012) over four strands of the data, each of every fourth piece of 16 bytes, and once more over
 * their four hashes. One strand is a chain of multiplications and takes longer than the decoding; four fill the lanes
 * of a vector unit.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_HASH_H
#define ESZ_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ESZ_HASH_P1 0x9E3779B1u
#define ESZ_HASH_P2 0x85EBCA77u
#define ESZ_HASH_P3 0xC2B2AE3Du
#define ESZ_HASH_P4 0x27D4EB2Fu
#define ESZ_HASH_P5 0x165667B1u

#if defined(_WIN32) || (defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#define ESZ_LITTLE_ENDIAN 1
#else
#define ESZ_LITTLE_ENDIAN 0
#endif

#define ESZ_HASH_STRIPE 64u /* a piece of 16 bytes for each strand */

typedef struct {
    uint32_t lane[16]; /* four for each strand */
    uint64_t total;
    uint8_t held[ESZ_HASH_STRIPE]; /* the last total % 64 bytes */
} esz_hash_state;

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

static inline uint32_t esz_hash_round(uint32_t lane, uint32_t word) {
    return esz_rotl32(lane + word * ESZ_HASH_P2, 13) * ESZ_HASH_P1;
}

#if defined(__GNUC__) && ESZ_LITTLE_ENDIAN && !defined(ESZ_SMALL)
/* Takes in whole stripes. Vectors are written out, one variable each: compilers find them in a loop at times only. */
#define ESZ_HASH_STEP(v, at) \
    memcpy(&w, p + (at), sizeof w); \
    v += w * ESZ_HASH_P2; \
    v = (v << 13 | v >> 19) * ESZ_HASH_P1;

static void esz_hash_stripes_any(uint32_t *lane, const uint8_t *p, size_t stripes) {
    typedef uint32_t four __attribute__((vector_size(16)));
    four a, b, c, d, w;
    memcpy(&a, lane, sizeof a);
    memcpy(&b, lane + 4, sizeof b);
    memcpy(&c, lane + 8, sizeof c);
    memcpy(&d, lane + 12, sizeof d);
    for (; stripes > 0; stripes--, p += ESZ_HASH_STRIPE) {
        ESZ_HASH_STEP(a, 0)
        ESZ_HASH_STEP(b, 16)
        ESZ_HASH_STEP(c, 32)
        ESZ_HASH_STEP(d, 48)
    }
    memcpy(lane, &a, sizeof a);
    memcpy(lane + 4, &b, sizeof b);
    memcpy(lane + 8, &c, sizeof c);
    memcpy(lane + 12, &d, sizeof d);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void esz_hash_stripes_avx2(uint32_t *lane, const uint8_t *p, size_t stripes) {
    typedef uint32_t eight __attribute__((vector_size(32)));
    eight a, b, w;
    memcpy(&a, lane, sizeof a);
    memcpy(&b, lane + 8, sizeof b);
    for (; stripes > 0; stripes--, p += ESZ_HASH_STRIPE) {
        ESZ_HASH_STEP(a, 0)
        ESZ_HASH_STEP(b, 32)
    }
    memcpy(lane, &a, sizeof a);
    memcpy(lane + 8, &b, sizeof b);
}
#endif

static void esz_hash_stripes(uint32_t *lane, const uint8_t *p, size_t stripes) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        esz_hash_stripes_avx2(lane, p, stripes);
        return;
    }
#endif
    esz_hash_stripes_any(lane, p, stripes);
}
#else
/* Takes in whole stripes. */
static void esz_hash_stripes(uint32_t *lane, const uint8_t *p, size_t stripes) {
    size_t i;
    for (i = 0; i < 16 * stripes; i++, p += 4) lane[i & 15] = esz_hash_round(lane[i & 15], esz_load32(p));
}
#endif

static void esz_hash_seed(uint32_t *lane) {
    lane[0] = ESZ_HASH_P1 + ESZ_HASH_P2;
    lane[1] = ESZ_HASH_P2;
    lane[2] = 0;
    lane[3] = 0u - ESZ_HASH_P1;
}

static void esz_hash_start(esz_hash_state *s) {
    unsigned k;
    for (k = 0; k < 16; k += 4) esz_hash_seed(s->lane + k);
    s->total = 0;
}

static void esz_hash_take(esz_hash_state *s, const uint8_t *p, size_t n) {
    while (n > 0) {
        const size_t held = (size_t)s->total % ESZ_HASH_STRIPE;
        size_t take = n / ESZ_HASH_STRIPE * ESZ_HASH_STRIPE;
        if (held == 0 && take != 0) {
            esz_hash_stripes(s->lane, p, n / ESZ_HASH_STRIPE);
        } else {
            take = n < ESZ_HASH_STRIPE - held ? n : ESZ_HASH_STRIPE - held;
            memcpy(s->held + held, p, take);
            if (held + take == ESZ_HASH_STRIPE) esz_hash_stripes(s->lane, s->held, 1);
        }
        s->total += take;
        p += take;
        n -= take;
    }
}

/* XXH32 of `n` bytes (modulo 2^32; `some` if there were 16), of which the last n % 16 are at `p`, the others in `lane`. */
static uint32_t esz_hash_strand(const uint32_t *lane, uint32_t n, int some, const uint8_t *p) {
    uint32_t h = ESZ_HASH_P5, left = n & 15u;
    if (some)
        h = esz_rotl32(lane[0], 1) + esz_rotl32(lane[1], 7) + esz_rotl32(lane[2], 12) + esz_rotl32(lane[3], 18);
    h += n;
    for (; left >= 4; left -= 4, p += 4) h = esz_rotl32(h + esz_load32(p) * ESZ_HASH_P3, 17) * ESZ_HASH_P4;
    for (; left > 0; left--, p++) h = esz_rotl32(h + *p * ESZ_HASH_P5, 11) * ESZ_HASH_P1;
    h = (h ^ h >> 15) * ESZ_HASH_P2;
    h = (h ^ h >> 13) * ESZ_HASH_P3;
    return h ^ h >> 16;
}

static uint32_t esz_hash_value(const esz_hash_state *s) {
    uint32_t last[4];
    unsigned j, k, held = (unsigned)(s->total % ESZ_HASH_STRIPE);
    esz_hash_seed(last);
    for (j = 0; j < 4; j++) {
        const uint8_t *piece = s->held + 16 * j;
        uint32_t lane[4], n = held < 16 * j ? 0 : held - 16 * j < 16 ? held - 16 * j : 16;
        memcpy(lane, s->lane + 4 * j, sizeof lane);
        for (k = 0; n == 16 && k < 4; k++) lane[k] = esz_hash_round(lane[k], esz_load32(piece + 4 * k));
        k = n == 16 || s->total >= ESZ_HASH_STRIPE;
        n += (uint32_t)(s->total / ESZ_HASH_STRIPE) * 16u;
        last[j] = esz_hash_round(last[j], esz_hash_strand(lane, n, (int)k, piece));
    }
    return esz_hash_strand(last, 16, 1, NULL);
}

static uint32_t esz_hash_of(const uint8_t *p, size_t n) {
    esz_hash_state s;
    esz_hash_start(&s);
    esz_hash_take(&s, p, n);
    return esz_hash_value(&s);
}

#endif
