/* ESZ encoder: choose an alphabet, count every block, then code each block with the segment's table set, with one of
 * its own, or stored, whichever is smallest.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "esz_encode.h"

#include <stdlib.h>
#include <string.h>

#include "esz_book.h"
#include "esz_choose.h"
#include "esz_hash.h"
#include "esz_huffman.h"
#include "esz_part.h"
#include "esz_rows.h"

/* Segments up to this size are COMPACT even if RAW: aligning them would cost more than it could save. */
#define RAW_COMPACT_BYTES 4096u

void esz_encoded_free(esz_encoded *encoded) {
    free(encoded->payload);
    encoded->payload = NULL;
}

/* A RAW payload without its data: directory, then zeros up to a multiple of 64. */
static int encode_raw(const uint8_t *d, size_t n, const esz_encode_options *o, esz_encoded *out) {
    size_t block = (size_t)1 << o->block_log2, blocks = n == 0 ? 0 : (n - 1) / block + 1, i, head;
    out->alphabet = ESZ_RAW;
    if (n <= RAW_COMPACT_BYTES) {
        out->flags = ESZ_COMPACT;
        out->coded_bytes = (uint32_t)n;
        out->hash = esz_hash_of(d, n);
        return 0;
    }
    head = (8 * blocks + 63) & ~(size_t)63;
    out->payload = (uint8_t *)calloc(head, 1);
    if (out->payload == NULL) return 2;
    for (i = 0; i < blocks; i++) {
        size_t size = n - i * block < block ? n - i * block : block;
        esz_store32(out->payload + 8 * i, (uint32_t)(i * block + size));
        esz_store32(out->payload + 8 * i + 4, esz_hash_of(d + i * block, size));
    }
    out->block_log2 = (uint8_t)o->block_log2;
    out->directory_bytes = (uint32_t)(8 * blocks);
    out->hash = esz_hash_of(out->payload, out->directory_bytes);
    out->payload_bytes = (uint32_t)head;
    out->coded_bytes = (uint32_t)(head + n);
    return 0;
}

/* One block without a directory. */
static int encode_compact(const source *src, const esz_encode_options *o, esz_encoded *out) {
    uint32_t counts[512] = {0};
    size_t n = src->size, book = esz_book_write(NULL, &src->book);
    int unused = 0;
    part b = block_of(src, 0, n, o);
    out->payload = (uint8_t *)malloc(book + n + 64);
    if (out->payload == NULL) return 2;
    esz_book_write(out->payload, &src->book);
    out->flags |= ESZ_COMPACT;
    if (src->kind.alphabet == ESZ_PLANES) {
        out->coded_bytes = (uint32_t)code_planes(out->payload, src, 0, n, o, NULL, &unused);
        if (out->coded_bytes == 0) return 2;
    } else {
        count_part(counts, &b);
        b.counts = counts;
        out->coded_bytes = (uint32_t)(book + code_part(out->payload + book, &b, &unused));
    }
    out->payload_bytes = out->coded_bytes;
    out->hash = esz_hash_of(out->payload, out->payload_bytes);
    return 0;
}

/* Counts all blocks into `counts` (classes x 2 x 256 each; of PLANES, the planes are the classes), and sets the shared
 * codes of each class. */
static void share_codes(const source *src, const esz_encode_options *o, uint32_t *counts, size_t blocks, size_t block,
                        esz_codes *shared) {
    const size_t each = (size_t)512 * src->classes;
    uint32_t *sum = counts + each * blocks;
    size_t i, j;
    unsigned c;
    for (i = 0; i < blocks; i++) {
        const part b = block_of(src, i * block, src->size - i * block < block ? src->size - i * block : block, o);
        if (src->kind.alphabet == ESZ_PLANES)
            count_planes(counts + each * i, &b);
        else
            count_part(counts + each * i, &b);
        for (j = 0; j < each; j++) sum[j] += counts[each * i + j];
    }
    for (c = 0; c < src->classes; c++) {
        esz_set_codes(shared[c].table, sum + 512 * c, &src->kind, o->small != 0);
        esz_assign_set(&shared[c]);
    }
}

static int encode_blocks(const source *src, const esz_encode_options *o, esz_encoded *out) {
    const size_t each = (size_t)512 * src->classes;
    size_t n = src->size, block = (size_t)1 << o->block_log2, blocks = (n - 1) / block + 1, i, at, head_bytes, room;
    uint32_t *counts = (uint32_t *)calloc(blocks + 1, each * sizeof *counts);
    uint8_t *data, *head;
    esz_codes *shared = (esz_codes *)malloc(src->classes * sizeof *shared);
    int used = 0, status = 2;
    unsigned c;
    if (counts == NULL || shared == NULL) goto done;
    share_codes(src, o, counts, blocks, block, shared);
    room = 8 * blocks + esz_book_write(NULL, &src->book) + 1;
    for (c = 0; c < src->classes; c++) room += esz_set_write(NULL, shared[c].table);
    head = out->payload = (uint8_t *)malloc(room + n + 2 * blocks + 64);
    if (head == NULL) goto done;
    data = head + room;
    for (i = at = 0; i < blocks; i++) {
        size_t start = at, size = n - i * block < block ? n - i * block : block, took;
        part b = block_of(src, i * block, size, o);
        b.counts = counts + each * i;
        b.shared = shared;
        if (src->kind.alphabet == ESZ_PLANES)
            took = code_planes(data + at, src, i * block, size, o, &b, &used);
        else
            took = code_part(data + at, &b, &used);
        if (took == 0) goto done;
        at += took;
        esz_store32(head + 8 * i, (uint32_t)at);
        esz_store32(head + 8 * i + 4, esz_hash_of(data + start, at - start));
    }
    head_bytes = 8 * blocks;
    head_bytes += esz_book_write(head + head_bytes, &src->book);
    head[head_bytes++] = (uint8_t)(used ? src->classes : 0);
    for (c = 0; used && c < src->classes; c++) head_bytes += esz_set_write(head + head_bytes, shared[c].table);
    if (head_bytes < room) memmove(head + head_bytes, data, at); /* no block uses the directory's table sets */
    out->directory_bytes = (uint32_t)head_bytes;
    out->hash = esz_hash_of(head, head_bytes);
    out->payload_bytes = out->coded_bytes = (uint32_t)(head_bytes + at);
    out->block_log2 = (uint8_t)o->block_log2;
    head = (uint8_t *)realloc(out->payload, out->payload_bytes);
    if (head != NULL) out->payload = head;
    status = 0;
done:
    free(counts);
    free(shared);
    return status;
}

/* Whether row classes save enough, as far as a sample of the rows tells; then src->rows holds them. Returns 0 if out of
 * memory. */
static int prepare_rows(source *src) {
    const size_t items = esz_items(src->size >> src->book.log2, &src->kind);
    const unsigned alphabet = src->kind.alphabet;
    uint32_t counts[512] = {0}, *sums;
    esz_row_list list = {NULL, NULL, 0, 0, 0, NULL};
    esz_codes *codes;
    double bits, with_rows, scale;
    int status = 0;
    unsigned c;
    src->rows.number = (uint8_t *)calloc(src->rows.count, 1);
    sums = (uint32_t *)malloc(2 * ESZ_ROW_CLASSES * sizeof counts);
    codes = (esz_codes *)malloc(ESZ_ROW_CLASSES * sizeof *codes);
    if (sums == NULL || codes == NULL || src->rows.number == NULL) goto done;
    if (!esz_list_rows(&list, src->items, items, &src->kind, &src->rows, &src->tokens)) goto done;
    esz_count_listed(&list, &src->rows, sums); /* as one class */
    memcpy(counts, sums, sizeof counts);
    if (!esz_find_rows(&src->rows, &list, &src->kind, counts, sums)) goto done;
    scale = (double)src->rows.count / (double)list.count;
    esz_set_codes(codes[0].table, counts, &src->kind, 0);
    bits = scale * (double)esz_set_bits(codes[0].table, counts) + 8.0 * (double)esz_set_write(NULL, codes[0].table);
    with_rows = 2.0 * (double)src->rows.count;
    for (c = 0; c < ESZ_ROW_CLASSES; c++) {
        esz_set_codes(codes[c].table, sums + 512 * c, &src->kind, 0);
        with_rows += scale * (double)esz_set_bits(codes[c].table, sums + 512 * c);
        with_rows += 8.0 * (double)esz_set_write(NULL, codes[c].table);
    }
    if (with_rows > (1 - (alphabet == ESZ_PLAIN ? ESZ_ROWS_SHARE : ESZ_SPARSE_ROWS_SHARE)) * bits) {
        src->rows.items = 0;
    } else {
        esz_sort_rows(&src->rows, &list, src->items, items, &src->kind, &src->tokens, codes);
        src->classes = ESZ_ROW_CLASSES;
    }
    status = 1;
done:
    free(list.own);
    free(codes);
    free(sums);
    return status;
}

/* Lists the segment's tokens, and its rows if they have classes. Returns 0 if out of memory. */
static int prepare_tokens(source *src, const esz_encode_options *o, int compact) {
    const size_t items = esz_items(src->size >> src->book.log2, &src->kind);
    const int sparse = esz_is_sparse(&src->kind);
    const int may = !compact && (o->alphabets & ESZ_ALLOW_ROWS) && !o->small && (sparse || src->kind.alphabet == ESZ_PLAIN);
    if (may) src->rows.items = esz_row_items(&src->kind, o->row_nibbles, items, src->book.log2);
    if (src->rows.items != 0) src->rows.count = (items - 1) / src->rows.items + 1;
    if (sparse && !list_tokens(src, o, compact ? src->size : (size_t)1 << o->block_log2)) return 0;
    return src->rows.items == 0 || prepare_rows(src);
}

/* Chooses how to code the segment: alphabet, and with a codebook or without. Returns 2 if out of memory. */
static int prepare(source *src, const uint8_t *d, size_t n, const esz_encode_options *o) {
    double bits;
    unsigned log2;
    memset(src, 0, sizeof *src);
    src->bytes = src->items = d;
    src->size = n;
    src->classes = 1;
    bits = esz_choose(&src->kind, d, n, o, 0);
    if (bits < 0) return 2;
    for (log2 = 1; log2 <= 3; log2++) {
        esz_book book;
        esz_kind kind;
        double book_bits;
        int found;
        if (n >> log2 << log2 != n || (o->item_bytes != 0 && o->item_bytes != 1u << log2)) continue;
        if (o->alphabets >> ESZ_PLANES & 1) {
            unsigned rotate;
            book_bits = esz_weigh_planes(d, n, log2, &rotate);
            if (book_bits < ESZ_PLANES_GAIN * bits) {
                const esz_kind planes = {ESZ_PLANES, 0, 0, rotate, 256, 0, 1u << log2};
                bits = book_bits;
                src->kind = planes;
                src->classes = 1u << log2;
                free(src->book.index);
                memset(&src->book, 0, sizeof src->book);
                src->items = d;
            }
        }
        if (!(o->alphabets & ESZ_ALLOW_CODEBOOK)) continue;
        found = esz_book_try(&book, d, n, log2);
        if (found == 2) return 2;
        if (found == 0) continue;
        book_bits = esz_choose(&kind, book.index, n >> log2, o, 1);
        if (book_bits < 0) {
            free(book.index);
            return 2;
        }
        book_bits += 8.0 * (double)esz_book_write(NULL, &book);
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
        src->classes = 1;
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
    if (compact > (size_t)1 << o->block_log2) compact = (size_t)1 << o->block_log2;
    status = prepare(&src, d, n, o);
    if (status == 0 && src.kind.alphabet != ESZ_RAW) {
        if (!prepare_tokens(&src, o, n <= compact)) status = 2;
        out->alphabet = (uint8_t)src.kind.alphabet;
        out->flags = (uint8_t)(src.kind.nibble ? ESZ_NIBBLE : 0);
        out->fill = (uint8_t)src.kind.fill;
        out->book_log2 = (uint8_t)src.book.log2;
        while (src.kind.planes >> out->book_log2 > 1) out->book_log2++;
        while (src.kind.cap >> out->cap_log2 > (src.kind.alphabet == ESZ_JOINT)) out->cap_log2++;
        out->row_units = (uint16_t)(src.rows.items / ESZ_ROW_UNIT);
        if (status == 0) status = n <= compact ? encode_compact(&src, o, out) : encode_blocks(&src, o, out);
    }
    free(src.book.index);
    free(src.rows.number);
    free(src.tokens.token);
    free(src.tokens.begin);
    free(src.ends);
    if (status == 0 && out->payload != NULL && out->coded_bytes < n) return 0;
    esz_encoded_free(out);
    memset(out, 0, sizeof *out);
    return status != 0 ? status : encode_raw(d, n, o, out);
}
