/* Encoder, private: walks a block's elements the way an alphabet sees them. The same walk counts symbols, prices them
 * and writes codes, so that counted and written symbols cannot differ.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_WALK_H
#define ESZ_WALK_H

#include "esz_hash.h"
#include "esz_huffman.h"

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
    const esz_codebook *first, *second;
} esz_writer;

/* Writes all whole bytes, so that at least 57 bits are free: room for 5 codes. */
static inline void esz_push(esz_writer *w) {
    esz_store32(w->p, (uint32_t)w->bits);
    esz_store32(w->p + 4, (uint32_t)(w->bits >> 32));
    w->p += w->held >> 3;
    w->bits >>= w->held & 56;
    w->held &= 7;
}

static inline void esz_emit(esz_writer *w, const esz_codebook *b, unsigned symbol) {
    w->bits |= (uint64_t)b->code[symbol] << w->held;
    w->held += b->bits[symbol];
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

/* The walks are compiled once for each use, with the sink in registers. */
#if defined(__GNUC__)
#define ESZ_ALWAYS static inline __attribute__((always_inline))
#else
#define ESZ_ALWAYS static inline
#endif

/* Where tokens go: they are counted (`counts`, 2 x 256 for each class), priced (`price`, 2 x 256), listed (`list`, as
 * 256 table + symbol), or written. */
typedef struct {
    uint32_t *counts;
    const uint64_t *price;
    uint64_t paid;
    uint16_t *list;
    esz_writer *writer;
    const esz_codebook (*books)[2]; /* of each class; writing */
    const esz_rows *rows;           /* or null */
    size_t start;                   /* the block's first item within the segment */
    size_t row_end;                 /* counted within the block, as the walk counts */
    uint32_t *now;                  /* the counts of the row's class */
} esz_sink;

enum { ESZ_COUNT, ESZ_PRICE, ESZ_LIST, ESZ_WRITE };

/* Turns to the class of item `at` of the block. */
ESZ_ALWAYS void esz_turn(esz_sink *k, size_t at) {
    size_t row = k->rows != NULL ? (k->start + at) / k->rows->items : 0;
    unsigned number = k->rows != NULL ? k->rows->number[row] : 0;
    k->row_end = k->rows != NULL ? (row + 1) * k->rows->items - k->start : ~(size_t)0;
    if (k->counts != NULL) k->now = k->counts + 512 * (size_t)number;
    if (k->writer == NULL) return;
    k->writer->first = &k->books[number][0];
    k->writer->second = &k->books[number][1];
}

ESZ_ALWAYS void esz_token(esz_sink *k, const int mode, unsigned table, unsigned symbol) {
    if (mode == ESZ_WRITE)
        esz_emit(k->writer, table ? k->writer->second : k->writer->first, symbol);
    else if (mode == ESZ_PRICE)
        k->paid += k->price[256 * table + symbol];
    else if (mode == ESZ_LIST)
        *k->list++ = (uint16_t)(256 * table + symbol);
    else
        k->now[256 * table + symbol]++;
}

static void esz_count_bytes(const uint8_t *d, size_t n, uint32_t *counts) {
    uint32_t part[3][256]; /* with the caller's four tables, so that equal neighbours do not wait for each other */
    size_t i;
    if (n < 2048) {
        for (i = 0; i < n; i++) counts[d[i]]++;
        return;
    }
    memset(part, 0, sizeof part);
    for (i = 0; i + 4 <= n; i += 4) {
        counts[d[i]]++;
        part[0][d[i + 1]]++;
        part[1][d[i + 2]]++;
        part[2][d[i + 3]]++;
    }
    for (; i < n; i++) counts[d[i]]++;
    for (i = 0; i < 256; i++) counts[i] += part[0][i] + part[1][i] + part[2][i];
}

static void esz_put_bytes(const uint8_t *d, size_t from, size_t to, size_t step, esz_writer *to_writer) {
    esz_writer w = *to_writer;
    size_t i = from;
    for (; i + 4 * step < to; i += 5 * step) {
        esz_emit(&w, w.first, d[i]);
        esz_emit(&w, w.first, d[i + step]);
        esz_emit(&w, w.first, d[i + 2 * step]);
        esz_emit(&w, w.first, d[i + 3 * step]);
        esz_emit(&w, w.first, d[i + 4 * step]);
        esz_push(&w);
    }
    for (; i < to; i += step) {
        esz_emit(&w, w.first, d[i]);
        esz_push(&w);
    }
    *to_writer = w;
}

ESZ_ALWAYS void esz_walk_bytes(const uint8_t *d, size_t from, size_t to, size_t step, esz_sink *k, const int mode) {
    size_t i, end, next;
    for (i = from; i < to; i = next) {
        esz_turn(k, i);
        end = k->row_end < to ? k->row_end : to;
        next = i + (end - i + step - 1) / step * step; /* rows end at multiples of 8, so it is in the next one */
        if (mode == ESZ_WRITE)
            esz_put_bytes(d, i, end, step, k->writer);
        else if (mode == ESZ_COUNT)
            esz_count_bytes(d + i, end - i, k->now);
        else
            for (; i < end; i++) esz_token(k, mode, 0, d[i]);
    }
}

ESZ_ALWAYS void esz_walk_pairs(const uint8_t *d, size_t from, size_t to, size_t step, esz_sink *k, const int mode) {
    size_t i;
    for (i = from; i < to; i += step) {
        esz_token(k, mode, 0, d[i] & 15u);
        esz_token(k, mode, 0, d[i] >> 4);
        if (mode == ESZ_WRITE) esz_push(k->writer);
    }
}

ESZ_ALWAYS void esz_walk_gaps(const uint8_t *d, size_t from, size_t to, size_t cap, unsigned fill,
                                 const unsigned nibble, esz_sink *k, const int mode) {
    size_t i, j, next = from, gap; /* `next`: the element behind the last value */
    for (i = from; i < to; i += 64) {
        uint64_t mask = 0; /* of 64 elements at a time: where it ends cannot be predicted, and costs */
        for (j = 0; j < 64 && j < to - i; j += 8)
            mask |= (uint64_t)esz_group_mask(d, i + j, to - i - j < 8 ? to - i - j : 8, fill, nibble) << j;
        for (; mask != 0; mask &= mask - 1) {
            size_t other = i + esz_lowest_bit(mask);
            for (gap = other - next; gap >= cap; gap -= cap, next += cap) {
                if (next >= k->row_end) esz_turn(k, next);
                esz_token(k, mode, 0, (unsigned)cap);
                if (mode == ESZ_WRITE) esz_push(k->writer);
            }
            if (next >= k->row_end) esz_turn(k, next);
            esz_token(k, mode, 0, (unsigned)gap);
            esz_token(k, mode, 1, esz_element(d, other, nibble));
            if (mode == ESZ_WRITE) esz_push(k->writer);
            next = other + 1;
        }
    }
    for (; next < to; next += gap) {
        gap = to - next < cap ? to - next : cap;
        if (next >= k->row_end) esz_turn(k, next);
        esz_token(k, mode, 0, (unsigned)gap);
        if (mode == ESZ_WRITE) esz_push(k->writer);
    }
}

ESZ_ALWAYS void esz_walk_joint(const uint8_t *d, size_t from, size_t to, const esz_kind *kind, const unsigned nibble,
                               esz_sink *k, const int mode) {
    const unsigned pairs = kind->cap * kind->top, fill = kind->fill;
    const size_t cap = kind->cap;
    size_t i, j, next = from, gap, run;
    for (i = from; i < to; i += 64) {
        uint64_t mask = 0;
        for (j = 0; j < 64 && j < to - i; j += 8)
            mask |= (uint64_t)esz_group_mask(d, i + j, to - i - j < 8 ? to - i - j : 8, fill, nibble) << j;
        for (; mask != 0; mask &= mask - 1) {
            size_t other = i + esz_lowest_bit(mask);
            unsigned value = esz_element(d, other, nibble);
            for (gap = other - next; gap >= cap; gap -= run * cap, next += run * cap) {
                run = gap / cap < ESZ_JOINT_RUNS ? gap / cap : ESZ_JOINT_RUNS;
                if (next >= k->row_end) esz_turn(k, next);
                esz_token(k, mode, 0, pairs + (unsigned)run - 1);
                if (mode == ESZ_WRITE) esz_push(k->writer);
            }
            if (next >= k->row_end) esz_turn(k, next);
            esz_token(k, mode, 0, (unsigned)gap * kind->top + value - (value > fill));
            if (mode == ESZ_WRITE) esz_push(k->writer);
            next = other + 1;
        }
    }
    for (; next < to; next += run * cap) { /* the last run may reach past the end */
        run = (to - next + cap - 1) / cap < ESZ_JOINT_RUNS ? (to - next + cap - 1) / cap : ESZ_JOINT_RUNS;
        if (next >= k->row_end) esz_turn(k, next);
        esz_token(k, mode, 0, pairs + (unsigned)run - 1);
        if (mode == ESZ_WRITE) esz_push(k->writer);
    }
}

ESZ_ALWAYS void esz_walk_masks(const uint8_t *d, size_t from, size_t to, unsigned fill, const unsigned nibble,
                                  esz_sink *k, const int mode) {
    size_t i;
    for (i = from; i < to; i += 8) {
        unsigned mask = esz_group_mask(d, i, to - i < 8 ? to - i : 8, fill, nibble), n = 0;
        if (i >= k->row_end) esz_turn(k, i);
        esz_token(k, mode, 0, mask);
        for (; mask != 0; mask &= mask - 1) {
            esz_token(k, mode, 1, esz_element(d, i + esz_lowest_bit(mask), nibble));
            if (mode == ESZ_WRITE && ++n == 4) esz_push(k->writer);
        }
        if (mode == ESZ_WRITE) esz_push(k->writer);
    }
}

ESZ_ALWAYS void esz_walk(const uint8_t *d, size_t from, size_t to, size_t step, const esz_kind *k, esz_sink *sink,
                            const int mode) {
    esz_turn(sink, from);
    if (k->alphabet == ESZ_PLAIN)
        esz_walk_bytes(d, from, to, step, sink, mode);
    else if (k->alphabet == ESZ_PAIR)
        esz_walk_pairs(d, from, to, step, sink, mode);
    else if (k->alphabet == ESZ_GAP && k->nibble)
        esz_walk_gaps(d, from, to, k->cap, k->fill, 1, sink, mode);
    else if (k->alphabet == ESZ_GAP)
        esz_walk_gaps(d, from, to, k->cap, k->fill, 0, sink, mode);
    else if (k->alphabet == ESZ_JOINT && k->nibble)
        esz_walk_joint(d, from, to, k, 1, sink, mode);
    else if (k->alphabet == ESZ_JOINT)
        esz_walk_joint(d, from, to, k, 0, sink, mode);
    else if (k->nibble)
        esz_walk_masks(d, from, to, k->fill, 1, sink, mode);
    else
        esz_walk_masks(d, from, to, k->fill, 0, sink, mode);
}

/* Counts the symbols of items `from` to `to` of a block that starts at item `start` of the segment into counts, 2 x 256
 * for each class of `rows` (or once, without rows). */
static void esz_count(const uint8_t *d, size_t from, size_t to, const esz_kind *k, const esz_rows *rows, size_t start,
                      uint32_t *counts) {
    esz_sink sink = {NULL, NULL, 0, NULL, NULL, NULL, NULL, 0, 0, NULL};
    sink.counts = counts;
    sink.rows = rows;
    sink.start = start;
    esz_walk(d, from, to, 1, k, &sink, ESZ_COUNT);
}

/* What the symbols of items `from` to `to` cost, by the prices of each symbol. */
static uint64_t esz_price(const uint8_t *d, size_t from, size_t to, const esz_kind *k, const uint64_t *price) {
    esz_sink sink = {NULL, NULL, 0, NULL, NULL, NULL, NULL, 0, 0, NULL};
    sink.price = price;
    esz_walk(d, from, to, 1, k, &sink, ESZ_PRICE);
    return sink.paid;
}

/* Lists the tokens of items `from` to `to` at `list`, which has room for 2 (to - from) + 2; returns where they end. */
static uint16_t *esz_list(const uint8_t *d, size_t from, size_t to, const esz_kind *k, uint16_t *list) {
    esz_sink sink = {NULL, NULL, 0, NULL, NULL, NULL, NULL, 0, 0, NULL};
    sink.list = list;
    esz_walk(d, from, to, 1, k, &sink, ESZ_LIST);
    return sink.list;
}

/* Writes the codes of items `from` to `to` of a block (interleaved streams: every 8th). */
static void esz_put(const uint8_t *d, size_t from, size_t to, size_t step, const esz_kind *k, const esz_rows *rows,
                    size_t start, const esz_codebook (*books)[2], esz_writer *writer) {
    esz_sink sink = {NULL, NULL, 0, NULL, NULL, NULL, NULL, 0, 0, NULL};
    esz_writer w = *writer;
    sink.writer = &w;
    sink.books = books;
    sink.rows = rows;
    sink.start = start;
    esz_walk(d, from, to, step, k, &sink, ESZ_WRITE);
    *writer = w;
}

static size_t esz_items(size_t bytes, const esz_kind *k) { return k->nibble ? 2 * bytes : bytes; }

/* Where stream `s` of `streams` chunked ones ends. */
static size_t esz_chunk_end(size_t n, unsigned streams, unsigned s) {
    size_t q = ((n + streams - 1) / streams + 7) & ~(size_t)7;
    return q * (s + 1) < n ? q * (s + 1) : n;
}

#endif
