/* The container's hash (FORMAT.md, section 1), one-shot and streaming, and little-endian loads.
 *
 * Eight lanes of 32-bit words, each with a sum and a rotating sum of sums: only additions and rotations, which every
 * vector unit has and which a device without one does in four instructions a word. XXH32, which stood here before, took
 * longer than the decoding. Only the end multiplies, to spread the lanes over the 32 bits.
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

#if defined(_WIN32) || (defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#define ESZ_LITTLE_ENDIAN 1
#else
#define ESZ_LITTLE_ENDIAN 0
#endif

typedef struct {
    uint32_t lane[16]; /* 8 sums, then 8 sums of sums */
    uint64_t total;
    uint8_t held[32]; /* the last total % 32 bytes */
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

/* Takes in whole stripes of 32 bytes. */
static void esz_hash_stripes(uint32_t *lane, const uint8_t *p, size_t stripes) {
    uint32_t sum[8], sums[8], word[8];
    unsigned k;
    memcpy(sum, lane, sizeof sum);
    memcpy(sums, lane + 8, sizeof sums);
    for (; stripes > 0; stripes--, p += 32) {
        for (k = 0; k < 8; k++) word[k] = esz_load32(p + 4 * k);
        for (k = 0; k < 8; k++) {
            sum[k] += word[k];
            sums[k] = esz_rotl32(sums[k], 9) + sum[k];
        }
    }
    memcpy(lane, sum, sizeof sum);
    memcpy(lane + 8, sums, sizeof sums);
}

static void esz_hash_start(esz_hash_state *s) {
    uint32_t k;
    for (k = 0; k < 16; k++) s->lane[k] = (k + 1) * ESZ_HASH_P1;
    s->total = 0;
}

static void esz_hash_take(esz_hash_state *s, const uint8_t *p, size_t n) {
    size_t held = (size_t)s->total & 31u, take;
    s->total += n;
    if (held != 0) {
        take = n < 32 - held ? n : 32 - held;
        memcpy(s->held + held, p, take);
        if (held + take < 32) return;
        esz_hash_stripes(s->lane, s->held, 1);
        p += take;
        n -= take;
    }
    esz_hash_stripes(s->lane, p, n / 32);
    if ((n & 31) != 0) memcpy(s->held, p + (n & ~(size_t)31), n & 31);
}

static uint32_t esz_hash_value(const esz_hash_state *s) {
    uint32_t lane[16], h = (uint32_t)s->total * ESZ_HASH_P3, held = (uint32_t)s->total & 31u;
    uint8_t last[32];
    unsigned k;
    memcpy(lane, s->lane, sizeof lane);
    if (held != 0) {
        memset(last, 0, sizeof last);
        memcpy(last, s->held, held);
        esz_hash_stripes(lane, last, 1);
    }
    for (k = 0; k < 16; k++) h = esz_rotl32(h ^ lane[k], 13) * ESZ_HASH_P1;
    h = (h ^ h >> 15) * ESZ_HASH_P2;
    h = (h ^ h >> 13) * ESZ_HASH_P3;
    return h ^ h >> 16;
}

static uint32_t esz_hash_of(const uint8_t *p, size_t n) {
    esz_hash_state s;
    esz_hash_start(&s);
    esz_hash_take(&s, p, n);
    return esz_hash_value(&s);
}

#endif
