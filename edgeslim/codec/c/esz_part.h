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
#include "esz_rows.h"

/* Fewer items than this in a block take one stream: more would cost more bytes than they save time. */
#define MANY_ITEMS 2048u

/* A segment as it is coded: `items` are its bytes, or one index byte for each value of 2^book.log2 bytes. */
typedef struct {
    const uint8_t *bytes, *items;
    size_t size;
    esz_kind kind;
    esz_book book;
    esz_rows rows;
    unsigned classes;  /* 1, or ESZ_ROW_CLASSES with rows */
    esz_tokens tokens; /* of GAP, MASK8 and JOINT */
    size_t *ends;      /* where the tokens of each stream end, 4 streams a block */
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
    const esz_tokens *tokens; /* or null: the items are the tokens */
    size_t first, ends[4];    /* the block's first token; where those of its streams end */
    const uint32_t *counts;   /* 2 x 256 for each class */
    const esz_codes *shared;  /* the directory's codes of each class, or null */
    unsigned set;             /* the first one's index in the directory */
    int small;
} part;

/* The item behind the row of item `at` of the block, `items` at most. */
static size_t row_end(const part *b, size_t at, size_t items) {
    const size_t end = ((b->start + at) / b->rows->items + 1) * b->rows->items - b->start;
    return end < items ? end : items;
}

/* Counts the symbols of a block, 2 x 256 for each class. */
static void count_part(uint32_t *counts, const part *b) {
    const size_t items = esz_items(b->count, b->kind);
    size_t at, next, row;
    if (b->tokens == NULL && b->rows == NULL) {
        esz_count_bytes(b->items, b->count, counts);
        if (b->kind->alphabet == ESZ_PAIR) {
            uint32_t bytes[256];
            memcpy(bytes, counts, sizeof bytes);
            esz_count_halves(bytes, counts);
        }
    } else if (b->tokens == NULL) {
        uint32_t part[ESZ_ROW_CLASSES][4][256];
        unsigned c, i;
        memset(part, 0, sizeof part);
        for (at = 0; at < items; at = next) {
            next = row_end(b, at, items);
            esz_count_four(b->items + at, next - at, part[b->rows->number[(b->start + at) / b->rows->items]]);
        }
        for (c = 0; c < ESZ_ROW_CLASSES; c++)
            for (i = 0; i < 256; i++) counts[512 * c + i] = part[c][0][i] + part[c][1][i] + part[c][2][i] + part[c][3][i];
    } else {
        const size_t end = b->ends[b->streams - 1];
        uint32_t odd[ESZ_ROW_CLASSES][512];
        unsigned i;
        memset(odd, 0, b->classes * sizeof *odd);
        for (at = b->first, row = b->rows != NULL ? b->start / b->rows->items : 0; at < end; at = next, row++) {
            const unsigned number = b->rows != NULL ? b->rows->number[row] : 0;
            next = b->rows == NULL || b->tokens->begin[row + 1] > end ? end : b->tokens->begin[row + 1];
            if (next < at) next = at;
            esz_count_tokens(b->tokens->token + at, b->tokens->token + next, counts + 512 * number, odd[number]);
        }
        for (i = 0; i < 512 * b->classes; i++) counts[i] += odd[i / 512][i % 512];
    }
}

/* Writes the codes of stream `s`, of tokens `from` to `to` if there are tokens. */
static void put_stream(const part *b, unsigned s, size_t from, size_t to, const esz_rows *rows, const esz_codes *codes,
                       esz_writer *w) {
    const size_t items = esz_items(b->count, b->kind);
    size_t start, end, step, row, next;
    stream_part(items, b->streams, s, &start, &end, &step);
    if (b->kind->alphabet == ESZ_PAIR) {
        esz_put_pairs(b->items, start, end, step, codes->entry, w);
    } else if (b->tokens == NULL && rows == NULL) {
        esz_put_bytes(b->items, start, end, step, codes->entry, w);
    } else if (b->tokens == NULL) {
        row = (b->start + start) / rows->items;
        for (next = (row + 1) * rows->items - b->start; start < end; row++, next += rows->items) {
            if (next > end) next = end;
            esz_put_bytes(b->items, start, next, step, codes[rows->number[row]].entry, w);
            start = next + (s - next) % step; /* rows end at multiples of 8 */
        }
    } else if (rows == NULL) {
        esz_put_tokens(b->tokens->token + from, b->tokens->token + to, codes->entry, w);
    } else {
        for (row = (b->start + start) / rows->items; from < to; row++, from = next) {
            next = b->tokens->begin[row + 1] < to ? b->tokens->begin[row + 1] : to;
            if (next < from) next = from;
            esz_put_tokens(b->tokens->token + from, b->tokens->token + next, codes[rows->number[row]].entry, w);
        }
    }
}

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
    esz_codes own;
    const esz_codes *codes = &own;
    uint64_t own_bits, shared_bits = ~(uint64_t)0, bits;
    uint32_t sum[512];
    const esz_rows *rows = NULL;
    size_t at = 2, items = esz_items(b->count, b->kind);
    esz_writer w;
    unsigned s, i, c;
    memcpy(sum, b->counts, sizeof sum);
    for (c = 1; c < b->classes; c++)
        for (i = 0; i < 512; i++) sum[i] += b->counts[512 * c + i];
    if (b->shared != NULL) {
        shared_bits = b->rows != NULL ? 8 * map_bytes(b, items) : 0;
        for (c = 0; c < b->classes; c++) shared_bits += esz_set_bits(b->shared[c].table, b->counts + 512 * c);
    }
    own_bits = ~(uint64_t)0;
    if (b->shared == NULL || esz_entropy(sum, 256) + esz_entropy(sum + 256, 256) < (double)shared_bits) {
        esz_set_codes(own.table, sum, b->kind, b->small);
        own_bits = esz_set_bits(own.table, sum) + 8 * esz_set_write(NULL, own.table);
    }
    bits = own_bits < shared_bits ? own_bits : shared_bits;
    /* At most: header, stream sizes, and a started byte with the sentinel for each stream. */
    if (2 + 3 * (b->streams - 1) + bits / 8 + 1 + b->streams > b->size + 2) return store_block(p, b->bytes, b->size);
    p[0] = (uint8_t)b->streams;
    p[1] = ESZ_OWN_TABLE;
    if (own_bits < shared_bits) {
        at += esz_set_write(p + at, own.table);
        esz_assign_set(&own);
    } else {
        p[1] = (uint8_t)b->set;
        codes = b->shared;
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
    for (s = 0; s < b->streams; s++) {
        uint8_t *start = w.p;
        size_t size;
        put_stream(b, s, s > 0 ? b->ends[(s - 1) & 3] : b->first, b->ends[s & 3], rows, codes, &w);
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
    if (src->ends != NULL) {
        const size_t *ends = src->ends + 4 * (start >> o->block_log2);
        b.tokens = &src->tokens;
        b.first = start > 0 ? ends[-1] : 0;
        memcpy(b.ends, ends, sizeof b.ends);
    }
    return b;
}

/* Lists the tokens of a segment of `items` items, `block` bytes a block. Returns 0 if out of memory. */
static int list_tokens(source *src, const esz_encode_options *o, size_t block) {
    const size_t blocks = (src->size - 1) / block + 1, row_count = src->rows.count;
    esz_tokens *l = &src->tokens;
    size_t i, from, to, step;
    unsigned s;
    size_t *ends = (size_t *)malloc(4 * blocks * sizeof *ends);
    if (ends == NULL) return 0;
    l->items = esz_items(src->size >> src->book.log2, &src->kind);
    if (src->rows.items != 0) {
        l->begin = (size_t *)malloc((row_count + 1) * sizeof *l->begin);
        l->row_items = l->row_end = src->rows.items;
        if (l->begin != NULL) l->begin[0] = 0;
    }
    for (i = 0; i < blocks; i++) {
        const size_t start = i * block, size = src->size - start < block ? src->size - start : block;
        const part b = block_of(src, start, size, o);
        const size_t items = esz_items(b.count, b.kind);
        l->base = b.start;
        for (s = 0; s < 4; s++) {
            if (s < b.streams) {
                stream_part(items, b.streams, s, &from, &to, &step);
                if ((src->rows.items != 0 && l->begin == NULL) || !esz_list(l, b.items, from, to, b.kind)) {
                    free(ends);
                    return 0;
                }
            }
            ends[4 * i + s] = l->count;
        }
    }
    for (i = l->row + 1; l->begin != NULL && i <= row_count; i++) l->begin[i] = l->count;
    src->ends = ends;
    return 1;
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
