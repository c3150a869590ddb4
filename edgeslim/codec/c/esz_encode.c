/* ESZ encoder: choose an alphabet, count every block, then code each block with the segment's table set, with one of
 * its own, or stored, whichever is smallest.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "esz_encode.h"

#include <stdlib.h>
#include <string.h>

#include "esz_book.h"
#include "esz_choose.h"
#include "esz_huffman.h"
#include "esz_walk.h"
#include "esz_xxh32.h"

/* Segments up to this size are COMPACT even if RAW: aligning them would cost more than it could save. */
#define RAW_COMPACT_BYTES 4096u

/* Fewer items than this in a block take one stream: more would cost more bytes than they save time. */
#define MANY_ITEMS 2048u

void esz_encoded_free(esz_encoded *encoded) {
    free(encoded->payload);
    encoded->payload = NULL;
}

/* A segment as it is coded: `items` are its bytes, or one index byte for each value of 2^book.log2 bytes. */
typedef struct {
    const uint8_t *bytes, *items;
    size_t size;
    esz_kind kind;
    esz_book book;
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

static void count_block(uint32_t *counts, const uint8_t *d, size_t n, const esz_kind *k, unsigned streams) {
    size_t items = esz_items(n, k), from, to, step;
    unsigned s;
    if (k->alphabet <= ESZ_PAIR) {
        esz_count(d, 0, items, k, counts);
        return;
    }
    for (s = 0; s < streams; s++) {
        stream_part(items, streams, s, &from, &to, &step);
        esz_count(d, from, to, k, counts);
    }
}

static size_t store_block(uint8_t *p, const uint8_t *d, size_t n) {
    p[0] = ESZ_STORED;
    p[1] = 0;
    memcpy(p + 2, d, n);
    return n + 2;
}

/* Codes the block of `n` bytes from `start_byte` of the segment at `p`, which has room for n + 2 bytes and slack; returns
 * its size. `shared` may be null. */
static size_t code_block(uint8_t *p, const source *src, size_t start_byte, size_t n, unsigned streams,
                         const uint32_t *counts, const esz_codebook *shared, int small, int *used_shared) {
    const esz_kind *k = &src->kind;
    const uint8_t *d = src->items + (start_byte >> src->book.log2);
    esz_codebook own[2];
    const esz_codebook *b = own;
    uint64_t own_bits, shared_bits = ~(uint64_t)0, bits;
    size_t own_bytes, at, items = esz_items(n >> src->book.log2, k), from, to, step;
    esz_writer w;
    unsigned s;
    esz_set_codes(own, counts, k, small);
    own_bytes = esz_set_write(NULL, own);
    own_bits = esz_set_bits(own, counts) + 8 * own_bytes;
    if (shared != NULL) shared_bits = esz_set_bits(shared, counts);
    bits = own_bits < shared_bits ? own_bits : shared_bits;
    /* At most: header, stream sizes, and a started byte with the sentinel for each stream. */
    if (2 + 3 * (streams - 1) + bits / 8 + 1 + streams > n + 2) return store_block(p, src->bytes + start_byte, n);
    p[0] = (uint8_t)streams;
    at = 2;
    if (own_bits < shared_bits) {
        p[1] = ESZ_OWN_TABLE;
        at += esz_set_write(p + at, own);
        esz_assign_codes(&own[0]);
        if (own[1].symbols) esz_assign_codes(&own[1]);
    } else {
        p[1] = 0;
        b = shared;
        *used_shared = 1;
    }
    w.p = p + at + 3 * (streams - 1);
    w.bits = 0;
    w.held = 0;
    w.first = &b[0];
    w.second = &b[1];
    for (s = 0; s < streams; s++) {
        uint8_t *start = w.p;
        size_t size;
        stream_part(items, streams, s, &from, &to, &step);
        esz_put(d, from, to, step, k, &w);
        esz_finish(&w);
        size = (size_t)(w.p - start);
        if (s + 1 == streams) break;
        p[at + 3 * s] = (uint8_t)size;
        p[at + 3 * s + 1] = (uint8_t)(size >> 8);
        p[at + 3 * s + 2] = (uint8_t)(size >> 16);
    }
    return (size_t)(w.p - p);
}

/* A RAW payload without its data: directory, then zeros up to a multiple of 64. */
static int encode_raw(const uint8_t *d, size_t n, const esz_encode_options *o, esz_encoded *out) {
    size_t block = (size_t)1 << o->block_log2, blocks = n == 0 ? 0 : (n - 1) / block + 1, i, head;
    out->alphabet = ESZ_RAW;
    if (n <= RAW_COMPACT_BYTES) {
        out->flags = ESZ_COMPACT;
        out->coded_bytes = (uint32_t)n;
        out->hash = esz_xxh32_of(d, n);
        return 0;
    }
    head = (8 * blocks + 63) & ~(size_t)63;
    out->payload = (uint8_t *)calloc(head, 1);
    if (out->payload == NULL) return 2;
    for (i = 0; i < blocks; i++) {
        size_t size = n - i * block < block ? n - i * block : block;
        esz_store32(out->payload + 8 * i, (uint32_t)(i * block + size));
        esz_store32(out->payload + 8 * i + 4, esz_xxh32_of(d + i * block, size));
    }
    out->block_log2 = (uint8_t)o->block_log2;
    out->directory_bytes = (uint32_t)(8 * blocks);
    out->hash = esz_xxh32_of(out->payload, out->directory_bytes);
    out->payload_bytes = (uint32_t)head;
    out->coded_bytes = (uint32_t)(head + n);
    return 0;
}

/* One block without a directory. */
static int encode_compact(const source *src, const esz_encode_options *o, esz_encoded *out) {
    uint32_t counts[512] = {0};
    size_t n = src->size, items = n >> src->book.log2, book = esz_book_write(NULL, &src->book);
    unsigned streams = choose_streams(esz_items(items, &src->kind), &src->kind, o);
    int unused = 0;
    out->payload = (uint8_t *)malloc(book + n + 32);
    if (out->payload == NULL) return 2;
    count_block(counts, src->items, items, &src->kind, streams);
    out->flags |= ESZ_COMPACT;
    esz_book_write(out->payload, &src->book);
    out->coded_bytes =
        (uint32_t)(book + code_block(out->payload + book, src, 0, n, streams, counts, NULL, o->small != 0, &unused));
    out->payload_bytes = out->coded_bytes;
    out->hash = esz_xxh32_of(out->payload, out->payload_bytes);
    return 0;
}

static int encode_blocks(const source *src, const esz_encode_options *o, esz_encoded *out) {
    const esz_kind *k = &src->kind;
    const unsigned log2 = src->book.log2;
    size_t n = src->size, block = (size_t)1 << o->block_log2, blocks = (n - 1) / block + 1, i, at, size, head_bytes;
    uint32_t *counts = (uint32_t *)calloc(blocks + 1, 512 * sizeof *counts), *sum;
    uint8_t *data = (uint8_t *)malloc(n + 2 * blocks + 32), *head = NULL;
    esz_codebook *shared = (esz_codebook *)malloc(2 * sizeof *shared);
    int used = 0, status = 2;
    if (counts == NULL || data == NULL || shared == NULL) goto done;
    sum = counts + 512 * blocks;
    for (i = 0; i < blocks; i++) {
        unsigned j;
        size = (n - i * block < block ? n - i * block : block) >> log2;
        count_block(counts + 512 * i, src->items + (i * block >> log2), size, k,
                    choose_streams(esz_items(size, k), k, o));
        for (j = 0; j < 512; j++) sum[j] += counts[512 * i + j];
    }
    esz_set_codes(shared, sum, k, o->small != 0);
    esz_assign_codes(&shared[0]);
    if (shared[1].symbols) esz_assign_codes(&shared[1]);
    head = (uint8_t *)malloc(8 * blocks + esz_book_write(NULL, &src->book) + 1 + esz_set_write(NULL, shared));
    if (head == NULL) goto done;
    for (i = at = 0; i < blocks; i++) {
        size_t start = at;
        size = n - i * block < block ? n - i * block : block;
        at += code_block(data + at, src, i * block, size, choose_streams(esz_items(size >> log2, k), k, o),
                         counts + 512 * i, shared, o->small != 0, &used);
        esz_store32(head + 8 * i, (uint32_t)at);
        esz_store32(head + 8 * i + 4, esz_xxh32_of(data + start, at - start));
    }
    head_bytes = 8 * blocks;
    head_bytes += esz_book_write(head + head_bytes, &src->book);
    head[head_bytes++] = (uint8_t)used;
    if (used) head_bytes += esz_set_write(head + head_bytes, shared);
    out->directory_bytes = (uint32_t)head_bytes;
    out->hash = esz_xxh32_of(head, head_bytes);
    out->payload_bytes = out->coded_bytes = (uint32_t)(head_bytes + at);
    out->payload = (uint8_t *)malloc(out->payload_bytes);
    if (out->payload == NULL) goto done;
    memcpy(out->payload, head, head_bytes);
    memcpy(out->payload + head_bytes, data, at);
    out->block_log2 = (uint8_t)o->block_log2;
    status = 0;
done:
    free(counts);
    free(data);
    free(shared);
    free(head);
    return status;
}

/* Chooses how to code the segment: alphabet, and with a codebook or without. Returns 2 if out of memory. */
static int prepare(source *src, const uint8_t *d, size_t n, const esz_encode_options *o) {
    double bits;
    unsigned log2;
    src->bytes = src->items = d;
    src->size = n;
    src->book.index = NULL;
    src->book.count = src->book.log2 = 0;
    bits = esz_choose(&src->kind, d, n, o, 0);
    for (log2 = 1; log2 <= 3 && (o->alphabets & ESZ_ALLOW_CODEBOOK); log2++) {
        esz_book book;
        esz_kind kind;
        double book_bits;
        int found = esz_book_try(&book, d, n, log2);
        if (found == 2) return 2;
        if (found == 0) continue;
        book_bits = esz_choose(&kind, book.index, n >> log2, o, 1) + 8.0 * (double)esz_book_write(NULL, &book);
        /* One value: a value table of one symbol would have no room for the symbol that no stream uses. */
        if (kind.alphabet == ESZ_RAW || book_bits >= bits || (book.count == 1 && kind.alphabet != ESZ_PLAIN)) {
            free(book.index);
            continue;
        }
        bits = book_bits;
        kind.values = book.count;
        free(src->book.index);
        src->book = book;
        src->kind = kind;
        src->items = book.index;
    }
    return 0;
}

int esz_encode_segment(const uint8_t *d, size_t n, const esz_encode_options *o, esz_encoded *out) {
    source src;
    size_t compact = ESZ_MAX_COMPACT_BYTES;
    int status;
    memset(out, 0, sizeof *out);
    if (n > ESZ_MAX_SEGMENT_BYTES || o->block_log2 < ESZ_MIN_BLOCK_LOG2 || o->block_log2 > ESZ_MAX_BLOCK_LOG2 ||
        (o->streams != 0 && o->streams != 1 && o->streams != 4 && o->streams != 8))
        return 1;
    if (n == 0) return encode_raw(d, n, o, out);
    status = prepare(&src, d, n, o);
    if (status == 0 && src.kind.alphabet != ESZ_RAW) {
        out->alphabet = (uint8_t)src.kind.alphabet;
        out->flags = (uint8_t)(src.kind.nibble ? ESZ_NIBBLE : 0);
        out->fill = (uint8_t)src.kind.fill;
        out->book_log2 = (uint8_t)src.book.log2;
        while (src.kind.cap >> out->cap_log2 != 0) out->cap_log2++;
        if (compact > (size_t)1 << o->block_log2) compact = (size_t)1 << o->block_log2;
        status = n <= compact ? encode_compact(&src, o, out) : encode_blocks(&src, o, out);
    }
    free(src.book.index);
    if (status == 0 && out->payload != NULL && out->coded_bytes < n) return 0;
    esz_encoded_free(out);
    memset(out, 0, sizeof *out);
    return status != 0 ? status : encode_raw(d, n, o, out);
}
