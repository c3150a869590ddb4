/* Encoder, private: codes a block, or one plane of it: with a table set of its own, with those of the directory, or
 * stored, whichever is smallest.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_PART_H
#define ESZ_PART_H

#include <stdlib.h>
#include <string.h>

#include "esz_book.h"
#include "esz_choose.h"
#include "esz_walk.h"

/* Fewer items than this in a block take one stream: more would cost more bytes than they save time. */
#define MANY_ITEMS 2048u

/* A segment as it is coded: `items` are its bytes, or one index byte for each value of 2^book.log2 bytes. */
typedef struct {
    const uint8_t *bytes, *items;
    size_t size;
    esz_kind kind;
    esz_book book;
    esz_rows rows;
    unsigned classes; /* 1, or ESZ_ROW_CLASSES with rows */
} source;

static unsigned choose_streams(size_t items, const esz_kind *k, const esz_encode_options *o) {
    unsigned most = k->alphabet <= ESZ_PAIR ? 8 : 4;
    if (o->streams != 0) return o->streams < most ? o->streams : most;
    return o->small || items < MANY_ITEMS ? 1 : most;
}

/* The part of the block that stream `s` codes. */
static void stream_part(size_t items, unsigned streams, unsigned s, size_t *from, size_t *to, size_t *step) {
    *step = streams == 8 ? 8 : 1;
    *from = streams == 8 ? s : s > 0 ? esz_chunk_end(items, streams, s - 1) : 0;
    *to = streams == 8 ? items : esz_chunk_end(items, streams, s);
}

/* Counts a block of n bytes from item `start` of the segment on. */
static void count_block(uint32_t *counts, const uint8_t *d, size_t n, const esz_kind *k, const esz_rows *rows,
                        size_t start, unsigned streams) {
    size_t items = esz_items(n, k), from, to, step;
    unsigned s;
    if (k->alphabet <= ESZ_PAIR) {
        esz_count(d, 0, items, k, rows, start, counts);
        return;
    }
    for (s = 0; s < streams; s++) {
        stream_part(items, streams, s, &from, &to, &step);
        esz_count(d, from, to, k, rows, start, counts);
    }
}

static size_t store_block(uint8_t *p, const uint8_t *d, size_t n) {
    p[0] = ESZ_STORED;
    p[1] = 0;
    memcpy(p + 2, d, n);
    return n + 2;
}

/* A block, or a plane of one, and what is known about it. */
typedef struct {
    const uint8_t *bytes, *items; /* as they are, and as they are coded */
    size_t size, count;           /* bytes, and coded bytes */
    size_t start;                 /* the first item within the segment */
    const esz_kind *kind;
    const esz_rows *rows; /* or null */
    unsigned classes, streams;
    const uint32_t *counts;           /* 2 x 256 for each class */
    const esz_codebook (*shared)[2];  /* the directory's codes of each class, or null */
    unsigned set;                     /* the first one's index in the directory */
    int small;
} part;

static size_t map_bytes(const part *b, size_t items) {
    size_t first = b->start / b->rows->items, last = (b->start + items - 1) / b->rows->items;
    return (last - first + 4) / 4;
}

static void write_map(uint8_t *p, const part *b, size_t items) {
    size_t first = b->start / b->rows->items, last = (b->start + items - 1) / b->rows->items, row;
    memset(p, 0, map_bytes(b, items));
    for (row = first; row <= last; row++) p[(row - first) / 4] |= (uint8_t)(b->rows->number[row] << (row - first) % 4 * 2);
}

/* Codes `b` at `p`, which has room for size + 2 bytes and slack; returns what it took. */
static size_t code_part(uint8_t *p, const part *b, int *used_shared) {
    esz_codebook own[1][2];
    const esz_codebook(*books)[2] = (const esz_codebook(*)[2])own;
    uint64_t own_bits, shared_bits = ~(uint64_t)0, bits;
    uint32_t sum[512];
    const esz_rows *rows = NULL;
    size_t at = 2, items = esz_items(b->count, b->kind), from, to, step;
    esz_writer w;
    unsigned s, i, c;
    memcpy(sum, b->counts, sizeof sum);
    for (c = 1; c < b->classes; c++)
        for (i = 0; i < 512; i++) sum[i] += b->counts[512 * c + i];
    esz_set_codes(own[0], sum, b->kind, b->small);
    own_bits = esz_set_bits(own[0], sum) + 8 * esz_set_write(NULL, own[0]);
    if (b->shared != NULL) {
        shared_bits = b->rows != NULL ? 8 * map_bytes(b, items) : 0;
        for (c = 0; c < b->classes; c++) shared_bits += esz_set_bits(b->shared[c], b->counts + 512 * c);
    }
    bits = own_bits < shared_bits ? own_bits : shared_bits;
    /* At most: header, stream sizes, and a started byte with the sentinel for each stream. */
    if (2 + 3 * (b->streams - 1) + bits / 8 + 1 + b->streams > b->size + 2) return store_block(p, b->bytes, b->size);
    p[0] = (uint8_t)b->streams;
    p[1] = ESZ_OWN_TABLE;
    if (own_bits < shared_bits) {
        at += esz_set_write(p + at, own[0]);
        esz_assign_codes(&own[0][0]);
        if (own[0][1].symbols) esz_assign_codes(&own[0][1]);
    } else {
        p[1] = (uint8_t)b->set;
        books = b->shared;
        rows = b->rows;
        *used_shared = 1;
        if (rows != NULL) {
            write_map(p + at, b, items);
            at += map_bytes(b, items);
        }
    }
    w.p = p + at + 3 * (b->streams - 1);
    w.bits = 0;
    w.held = 0;
    w.first = &books[0][0];
    w.second = &books[0][1];
    for (s = 0; s < b->streams; s++) {
        uint8_t *start = w.p;
        size_t size;
        stream_part(items, b->streams, s, &from, &to, &step);
        esz_put(b->items, from, to, step, b->kind, rows, b->start, books, &w);
        esz_finish(&w);
        size = (size_t)(w.p - start);
        if (s + 1 == b->streams) break;
        p[at + 3 * s] = (uint8_t)size;
        p[at + 3 * s + 1] = (uint8_t)(size >> 8);
        p[at + 3 * s + 2] = (uint8_t)(size >> 16);
    }
    return (size_t)(w.p - p);
}

/* The block of `n` bytes from byte `start` of the segment on. */
static part block_of(const source *src, size_t start, size_t n, const esz_encode_options *o) {
    part b;
    memset(&b, 0, sizeof b);
    b.bytes = src->bytes + start;
    b.items = src->items + (start >> src->book.log2);
    b.size = n;
    b.count = n >> src->book.log2;
    b.start = esz_items(start >> src->book.log2, &src->kind);
    b.kind = &src->kind;
    b.rows = src->rows.items != 0 ? &src->rows : NULL;
    b.classes = src->classes;
    b.streams = choose_streams(esz_items(b.count, b.kind), b.kind, o);
    b.small = o->small != 0;
    return b;
}

/* Plane `plane` of the block's values. */
static void take_plane(uint8_t *to, const part *b, size_t plane) {
    const size_t width = b->kind->planes;
    size_t i;
    for (i = 0; i * width < b->size; i++)
        to[i] = (uint8_t)esz_plane_byte(b->bytes + i * width, width, plane, b->kind->fill);
}

static void count_planes(uint32_t *counts, const part *b) {
    const size_t width = b->kind->planes;
    size_t i, plane;
    for (plane = 0; plane < width; plane++)
        for (i = 0; i < b->size; i += width)
            counts[512 * plane + esz_plane_byte(b->bytes + i, width, plane, b->kind->fill)]++;
}

/* Codes a block of PLANES: a part for each byte of a value, least significant first. `from` has the counts and codes of
 * all planes, or is null. Returns its size, or 0 if out of memory. */
static size_t code_planes(uint8_t *p, const source *src, size_t start, size_t n, const esz_encode_options *o,
                          const part *from, int *used_shared) {
    static const esz_kind plain = {ESZ_PLAIN, 0, 0, 0, 256, 0, 0};
    const part whole = block_of(src, start, n, o);
    const size_t width = src->kind.planes, items = n / width;
    uint8_t *coded = (uint8_t *)malloc(n + 32 * width + 64), *bytes = (uint8_t *)malloc(items + 1);
    size_t plane, at = 2 + 3 * (width - 1);
    if (coded == NULL || bytes == NULL) at = 0;
    for (plane = 0; plane < width && at != 0; plane++) {
        uint32_t counts[512] = {0};
        size_t size;
        part b;
        memset(&b, 0, sizeof b);
        take_plane(bytes, &whole, plane);
        esz_count_bytes(bytes, items, counts);
        b.bytes = b.items = bytes;
        b.size = b.count = items;
        b.kind = &plain;
        b.classes = 1;
        b.streams = choose_streams(items, &plain, o);
        b.counts = counts;
        b.shared = from != NULL ? from->shared + plane : NULL;
        b.set = (unsigned)plane;
        b.small = o->small != 0;
        size = code_part(coded + at, &b, used_shared);
        if (plane + 1 < width) {
            coded[2 + 3 * plane] = (uint8_t)size;
            coded[3 + 3 * plane] = (uint8_t)(size >> 8);
            coded[4 + 3 * plane] = (uint8_t)(size >> 16);
        }
        at += size;
    }
    if (at > n + 2) {
        at = store_block(p, src->bytes + start, n);
    } else if (at != 0) {
        coded[0] = 1;
        coded[1] = 0;
        memcpy(p, coded, at);
    }
    free(coded);
    free(bytes);
    return at;
}

#endif
