/* ESZ encoder: choose an alphabet, count every block, then code each block with the segment's table set, with one of
 * its own, or stored, whichever is smallest.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "esz_encode.h"

#include <stdlib.h>
#include <string.h>

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

/* Codes one block at `p`, which has room for n + 2 bytes and slack; returns its size. `shared` may be null. */
static size_t code_block(uint8_t *p, const uint8_t *d, size_t n, const esz_kind *k, unsigned streams,
                         const uint32_t *counts, const esz_codebook *shared, int small, int *used_shared) {
    esz_codebook own[2];
    const esz_codebook *b = own;
    uint64_t own_bits, shared_bits = ~(uint64_t)0, bits;
    size_t own_bytes, at, items = esz_items(n, k), from, to, step;
    esz_writer w;
    unsigned s;
    esz_set_codes(own, counts, k, small);
    own_bytes = esz_set_write(NULL, own);
    own_bits = esz_set_bits(own, counts) + 8 * own_bytes;
    if (shared != NULL) shared_bits = esz_set_bits(shared, counts);
    bits = own_bits < shared_bits ? own_bits : shared_bits;
    /* At most: header, stream sizes, and a started byte with the sentinel for each stream. */
    if (2 + 3 * (streams - 1) + bits / 8 + 1 + streams > n + 2) return store_block(p, d, n);
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
static int encode_compact(const uint8_t *d, size_t n, const esz_kind *k, const esz_encode_options *o,
                          esz_encoded *out) {
    uint32_t counts[512] = {0};
    unsigned streams = choose_streams(esz_items(n, k), k, o);
    int unused = 0;
    out->payload = (uint8_t *)malloc(n + 32);
    if (out->payload == NULL) return 2;
    count_block(counts, d, n, k, streams);
    out->flags |= ESZ_COMPACT;
    out->coded_bytes = (uint32_t)code_block(out->payload, d, n, k, streams, counts, NULL, o->small != 0, &unused);
    out->payload_bytes = out->coded_bytes;
    out->hash = esz_xxh32_of(out->payload, out->payload_bytes);
    return 0;
}

static int encode_blocks(const uint8_t *d, size_t n, const esz_kind *k, const esz_encode_options *o,
                         esz_encoded *out) {
    size_t block = (size_t)1 << o->block_log2, blocks = (n - 1) / block + 1, i, at, set_bytes, size;
    uint32_t *counts = (uint32_t *)calloc(blocks + 1, 512 * sizeof *counts), *sum;
    uint8_t *data = (uint8_t *)malloc(n + 2 * blocks + 32), *head = NULL;
    esz_codebook *shared = (esz_codebook *)malloc(2 * sizeof *shared);
    int used = 0, status = 2;
    if (counts == NULL || data == NULL || shared == NULL) goto done;
    sum = counts + 512 * blocks;
    for (i = 0; i < blocks; i++) {
        unsigned j;
        size = n - i * block < block ? n - i * block : block;
        count_block(counts + 512 * i, d + i * block, size, k, choose_streams(esz_items(size, k), k, o));
        for (j = 0; j < 512; j++) sum[j] += counts[512 * i + j];
    }
    esz_set_codes(shared, sum, k, o->small != 0);
    set_bytes = esz_set_write(NULL, shared);
    esz_assign_codes(&shared[0]);
    if (shared[1].symbols) esz_assign_codes(&shared[1]);
    head = (uint8_t *)malloc(8 * blocks + 1 + set_bytes);
    if (head == NULL) goto done;
    for (i = at = 0; i < blocks; i++) {
        size_t start = at;
        size = n - i * block < block ? n - i * block : block;
        at += code_block(data + at, d + i * block, size, k, choose_streams(esz_items(size, k), k, o),
                         counts + 512 * i, shared, o->small != 0, &used);
        esz_store32(head + 8 * i, (uint32_t)at);
        esz_store32(head + 8 * i + 4, esz_xxh32_of(data + start, at - start));
    }
    head[8 * blocks] = (uint8_t)used;
    if (used) esz_set_write(head + 8 * blocks + 1, shared);
    out->directory_bytes = (uint32_t)(8 * blocks + 1 + (used ? set_bytes : 0));
    out->hash = esz_xxh32_of(head, out->directory_bytes);
    out->payload_bytes = out->coded_bytes = (uint32_t)(out->directory_bytes + at);
    out->payload = (uint8_t *)malloc(out->payload_bytes);
    if (out->payload == NULL) goto done;
    memcpy(out->payload, head, out->directory_bytes);
    memcpy(out->payload + out->directory_bytes, data, at);
    out->block_log2 = (uint8_t)o->block_log2;
    status = 0;
done:
    free(counts);
    free(data);
    free(shared);
    free(head);
    return status;
}

int esz_encode_segment(const uint8_t *d, size_t n, const esz_encode_options *o, esz_encoded *out) {
    esz_kind k;
    size_t compact;
    int status;
    memset(out, 0, sizeof *out);
    if (n > ESZ_MAX_SEGMENT_BYTES || o->block_log2 < ESZ_MIN_BLOCK_LOG2 || o->block_log2 > ESZ_MAX_BLOCK_LOG2 ||
        (o->streams != 0 && o->streams != 1 && o->streams != 4 && o->streams != 8))
        return 1;
    if (n == 0) return encode_raw(d, n, o, out);
    esz_choose(&k, d, n, o);
    if (k.alphabet == ESZ_RAW) return encode_raw(d, n, o, out);
    out->alphabet = (uint8_t)k.alphabet;
    out->flags = (uint8_t)(k.nibble ? ESZ_NIBBLE : 0);
    out->fill = (uint8_t)k.fill;
    for (out->cap_log2 = 0; k.cap >> out->cap_log2 != 0;) out->cap_log2++;
    compact = (size_t)1 << o->block_log2;
    if (compact > ESZ_MAX_COMPACT_BYTES) compact = ESZ_MAX_COMPACT_BYTES;
    status = n <= compact ? encode_compact(d, n, &k, o, out) : encode_blocks(d, n, &k, o, out);
    if (status == 0 && out->coded_bytes < n) return 0;
    esz_encoded_free(out);
    memset(out, 0, sizeof *out);
    return status != 0 ? status : encode_raw(d, n, o, out);
}
