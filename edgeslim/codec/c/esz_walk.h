/* Encoder, private: what a segment is made of, as an alphabet sees it, and the writing of codes.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_WALK_H
#define ESZ_WALK_H

#include "esz_hash.h"
#include "esz_huffman.h"

/* x86-64 has SSE2 always; bits are gathered and spread in one step since BMI2 (2013), so ask the CPU. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define ESZ_BMI2 __attribute__((target("bmi,bmi2,popcnt")))
#endif

typedef struct {
    unsigned alphabet, nibble, cap, fill;
    unsigned values; /* symbols of a byte: 256, or the size of the codebook */
    unsigned top;    /* JOINT: the largest value; `cap` is the number of gaps that have symbols */
    unsigned planes; /* PLANES: bytes of a value; `fill` says whether its bits are rotated */
} esz_kind;

/* The rows of a segment and their classes; `items` 0: no rows. */
typedef struct {
    size_t items, count;
    uint8_t *number; /* the class of each row */
} esz_rows;

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

/* Bits from bit 0 of the first byte up; the buffer has 8 bytes of slack. */
typedef struct {
    uint8_t *p;
    uint64_t bits;
    unsigned held;
} esz_writer;

/* Writes all whole bytes, so that at least 57 bits are free: room for 5 codes. */
static inline void esz_push(esz_writer *w) {
    esz_store32(w->p, (uint32_t)w->bits);
    esz_store32(w->p + 4, (uint32_t)(w->bits >> 32));
    w->p += w->held >> 3;
    w->bits >>= w->held & 56;
    w->held &= 7;
}

/* Puts a code, as esz_codes.entry has it. */
static inline void esz_emit(esz_writer *w, uint32_t entry) {
    w->bits |= (uint64_t)(entry & 0xFFFFu) << w->held;
    w->held += entry >> 16;
}

/* The sentinel bit and zero bits to the end of its byte. */
static void esz_finish(esz_writer *w) {
    esz_push(w);
    *w->p++ = (uint8_t)(w->bits | 1u << w->held);
    w->bits = 0;
    w->held = 0;
}

static inline unsigned esz_element(const uint8_t *d, size_t i, unsigned nibble) {
    return nibble ? (unsigned)d[i >> 1] >> (4 * (i & 1)) & 15u : d[i];
}

static inline unsigned esz_lowest_bit(uint64_t x) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(x);
#else
    unsigned n = 0;
    while (!(x >> n & 1)) n++;
    return n;
#endif
}

/* Which of the m <= 8 elements from `i` on (chunks start at a multiple of 8) are not the fill value. */
static inline unsigned esz_group_mask(const uint8_t *d, size_t i, size_t m, unsigned fill, unsigned nibble) {
    unsigned mask = 0;
    size_t j;
    if (m == 8 && nibble) {
        uint32_t x = esz_load32(d + i / 2) ^ fill * 0x11111111u;
        x |= x >> 2;
        x = (x | x >> 1) & 0x11111111u;
        x = (x | x >> 3) & 0x03030303u;
        x = (x | x >> 6) & 0x000F000Fu;
        return (x | x >> 12) & 0xFFu;
    }
    if (m == 8) {
        const uint64_t low = 0x7F7F7F7F7F7F7F7Fu;
        uint64_t x = esz_load64(d + i) ^ fill * 0x0101010101010101u;
        x = (((x & low) + low) | x) & ~low; /* the top bit of each byte that differs */
        return (unsigned)((x >> 7) * 0x0102040810204080u >> 56);
    }
    for (j = 0; j < m; j++) mask |= (unsigned)(esz_element(d, i + j, nibble) != fill) << j;
    return mask;
}

/* Functions that are compiled once for each kind of element. */
#if defined(__GNUC__)
#define ESZ_ALWAYS static inline __attribute__((always_inline))
#else
#define ESZ_ALWAYS static inline
#endif

/* Which of the 64 elements from `i` on, or of those below `to`, are not the fill value. `bytes`, if it is not null,
 * gets the elements as bytes. */
ESZ_ALWAYS uint64_t esz_mask64(const uint8_t *d, size_t i, size_t to, unsigned fill, const unsigned nibble,
                               uint8_t *bytes) {
    uint64_t mask = 0;
    size_t j;
#if defined(ESZ_BMI2)
    if (to - i >= 64) {
        const __m128i want = _mm_set1_epi8((char)fill), low = _mm_set1_epi8(15);
        for (j = 0; j < 64; j += 16 << nibble) {
            const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(d + ((i + j) >> nibble)));
            if (nibble) {
                const __m128i even = _mm_and_si128(x, low), odd = _mm_and_si128(_mm_srli_epi16(x, 4), low);
                const __m128i first = _mm_unpacklo_epi8(even, odd), second = _mm_unpackhi_epi8(even, odd);
                mask |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(first, want)) << j;
                mask |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(second, want)) << (j + 16);
                if (bytes != NULL) {
                    _mm_storeu_si128((__m128i *)(void *)(bytes + j), first);
                    _mm_storeu_si128((__m128i *)(void *)(bytes + j + 16), second);
                }
            } else {
                mask |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(x, want)) << j;
            }
        }
        return ~mask;
    }
#endif
    for (j = 0; j < 64 && j < to - i; j += 8)
        mask |= (uint64_t)esz_group_mask(d, i + j, to - i - j < 8 ? to - i - j : 8, fill, nibble) << j;
    for (j = 0; bytes != NULL && j < 64 && j < to - i; j++) bytes[j] = (uint8_t)esz_element(d, i + j, nibble);
    return mask;
}

static size_t esz_items(size_t bytes, const esz_kind *k) { return k->nibble ? 2 * bytes : bytes; }

static int esz_is_sparse(const esz_kind *k) {
    return k->alphabet == ESZ_GAP || k->alphabet == ESZ_MASK8 || k->alphabet == ESZ_JOINT;
}

/* Where stream `s` of `streams` chunked ones ends. */
static size_t esz_chunk_end(size_t n, unsigned streams, unsigned s) {
    size_t q = ((n + streams - 1) / streams + 7) & ~(size_t)7;
    return q * (s + 1) < n ? q * (s + 1) : n;
}

/* Adds bytes up in four tables, so that equal neighbours do not wait for each other. */
static void esz_count_four(const uint8_t *d, size_t n, uint32_t (*part)[256]) {
    size_t i;
    for (i = 0; i + 4 <= n; i += 4) {
        part[0][d[i]]++;
        part[1][d[i + 1]]++;
        part[2][d[i + 2]]++;
        part[3][d[i + 3]]++;
    }
    for (; i < n; i++) part[0][d[i]]++;
}

static void esz_count_bytes(const uint8_t *d, size_t n, uint32_t *counts) {
    uint32_t part[4][256];
    size_t i;
    if (n < 1024) {
        for (i = 0; i < n; i++) counts[d[i]]++;
        return;
    }
    memset(part, 0, sizeof part);
    esz_count_four(d, n, part);
    for (i = 0; i < 256; i++) counts[i] += part[0][i] + part[1][i] + part[2][i] + part[3][i];
}

/* Counts of nibbles from counts of bytes. */
static void esz_count_halves(const uint32_t *bytes, uint32_t *nibbles) {
    unsigned i;
    memset(nibbles, 0, 256 * sizeof *nibbles);
    for (i = 0; i < 256; i++) {
        nibbles[i & 15] += bytes[i];
        nibbles[i >> 4] += bytes[i];
    }
}

/* Puts five codes, which are put together beside the writer first: they need not wait for each other. */
static inline void esz_emit5(esz_writer *w, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e) {
    const uint64_t ab = (a & 0xFFFFu) | (uint64_t)(b & 0xFFFFu) << (a >> 16);
    const uint64_t cd = (c & 0xFFFFu) | (uint64_t)(d & 0xFFFFu) << (c >> 16);
    const unsigned ab_bits = (a >> 16) + (b >> 16), cd_bits = (c >> 16) + (d >> 16);
    const uint64_t all = ab | (cd | (uint64_t)(e & 0xFFFFu) << cd_bits) << ab_bits;
    w->bits |= all << w->held;
    w->held += ab_bits + cd_bits + (e >> 16);
    esz_push(w);
}

/* Codes of the bytes from, from + step, ... below `to`. */
static inline void esz_put_bytes(const uint8_t *d, size_t from, size_t to, size_t step, const uint32_t *entry,
                                 esz_writer *writer) {
    esz_writer w = *writer;
    size_t i = from;
    for (; i + 4 * step < to; i += 5 * step)
        esz_emit5(&w, entry[d[i]], entry[d[i + step]], entry[d[i + 2 * step]], entry[d[i + 3 * step]],
                  entry[d[i + 4 * step]]);
    for (; i < to; i += step) {
        esz_emit(&w, entry[d[i]]);
        esz_push(&w);
    }
    *writer = w;
}

static void esz_put_pairs(const uint8_t *d, size_t from, size_t to, size_t step, const uint32_t *entry, esz_writer *w) {
    size_t i;
    for (i = from; i < to; i += step) {
        esz_emit(w, entry[d[i] & 15u]);
        esz_emit(w, entry[d[i] >> 4]);
        esz_push(w);
    }
}

static inline void esz_put_tokens(const uint16_t *t, const uint16_t *end, const uint32_t *entry, esz_writer *writer) {
    esz_writer w = *writer;
    for (; end - t >= 5; t += 5) esz_emit5(&w, entry[t[0]], entry[t[1]], entry[t[2]], entry[t[3]], entry[t[4]]);
    for (; t < end; t++) {
        esz_emit(&w, entry[*t]);
        esz_push(&w);
    }
    *writer = w;
}

#endif
