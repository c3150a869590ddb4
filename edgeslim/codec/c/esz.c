/* ESZ decoder: header, index, directory, blocks. See esz.h for how to use it, FORMAT.md for the format.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "esz.h"

#include <string.h>

#include "esz_block.h"
#include "esz_hash.h"
#include "esz_sets.h"

#define NOWHERE 0xFFFFFFFFu

#if defined(ESZ_SMALL) /* four sets of tables would take 2 KiB */
#define ROWS 0u
#else
#define ROWS ESZ_FEATURE_ROWS
#endif
#define FEATURES (ROWS | (ESZ_HAS(7) ? ESZ_FEATURE_CODEBOOK : 0u) | (ESZ_HAS(ESZ_PLANES) ? ESZ_FEATURE_PLANES : 0u))

static const uint8_t esz_magic[8] = {0x89, 'E', 'S', 'Z', '\r', '\n', 0x1A, '\n'};

#if !ESZ_LITTLE_ENDIAN
static uint16_t load16(const uint8_t *p) { return (uint16_t)(p[0] | (unsigned)p[1] << 8); }
#endif

static uint64_t align64(uint64_t x) { return (x + 63) & ~(uint64_t)63; }

static int all_zero(const uint8_t *p, size_t n) {
    unsigned any = 0;
    while (n-- > 0) any |= *p++;
    return any == 0;
}

uint32_t esz_hash32(const uint8_t *data, size_t size) { return esz_hash_of(data, size); }

size_t esz_hash_begin(void *state) {
    if (state != NULL) esz_hash_start((esz_hash_state *)state);
    return sizeof(esz_hash_state);
}

void esz_hash_add(void *state, const uint8_t *data, size_t size) {
    esz_hash_take((esz_hash_state *)state, data, size);
}

uint32_t esz_hash_end(const void *state) { return esz_hash_value((const esz_hash_state *)state); }

size_t esz_decoder_bytes(void) { return sizeof(esz_decoder); }

esz_status esz_parse_header(const uint8_t *data, size_t size, esz_header *h) {
    if (size < ESZ_HEADER_BYTES) return ESZ_E_TRUNCATED;
    if (memcmp(data, esz_magic, sizeof esz_magic) != 0) return ESZ_E_MAGIC;
#if ESZ_LITTLE_ENDIAN
    memcpy(h, data + 8, ESZ_HEADER_BYTES - 8);
#else
    h->version = load16(data + 8);
    h->header_bytes = load16(data + 10);
    h->required_features = esz_load32(data + 12);
    h->optional_features = esz_load32(data + 16);
    h->segment_count = esz_load32(data + 20);
    h->index_bytes = esz_load64(data + 24);
    h->decoded_bytes = esz_load64(data + 32);
    h->file_bytes = esz_load64(data + 40);
    h->image_hash = esz_load32(data + 48);
    h->reserved = esz_load32(data + 52);
    h->index_hash = esz_load32(data + 56);
    h->header_hash = esz_load32(data + 60);
#endif
    if (h->version != ESZ_VERSION) return ESZ_E_VERSION;
    if (h->header_hash != esz_hash_of(data, 60)) return ESZ_E_HEADER_HASH;
    if ((h->required_features & ~FEATURES) != 0) return ESZ_E_FEATURE;
    if (h->header_bytes != ESZ_HEADER_BYTES || h->reserved != 0 || h->segment_count > ESZ_MAX_SEGMENTS ||
        h->index_bytes > ESZ_MAX_INDEX_BYTES || h->decoded_bytes > ESZ_MAX_IMAGE_BYTES ||
        h->file_bytes > ESZ_MAX_FILE_BYTES || h->file_bytes < ESZ_HEADER_BYTES + h->index_bytes)
        return ESZ_E_HEADER;
    return ESZ_OK;
}

esz_status esz_index_begin(esz_cursor *c, const esz_header *h, const uint8_t *index, size_t size) {
    if (size < h->index_bytes) return ESZ_E_ARGUMENT;
    if (esz_hash_of(index, (size_t)h->index_bytes) != h->index_hash) return ESZ_E_INDEX_HASH;
    memset(c, 0, sizeof *c);
    c->index = index;
    c->index_bytes = h->index_bytes;
    c->coded_end = ESZ_HEADER_BYTES + h->index_bytes;
    c->decoded_bytes = h->decoded_bytes;
    c->file_bytes = h->file_bytes;
    c->count = h->segment_count;
    c->features = h->required_features;
    return ESZ_OK;
}

/* Sets of alphabets, bit a for alphabet a. */
#define SPARSE (ESZ_ALPHABETS & (1u << ESZ_GAP | 1u << ESZ_MASK8 | 1u << ESZ_JOINT))
#define WITH_ROWS (SPARSE | 1u << ESZ_PLAIN)
#define WITH_BOOK (WITH_ROWS | 1u << ESZ_PLANES)

/* The rules of an entry that concern its alphabet, flags and sizes. */
static esz_status check_entry(esz_segment *s) {
    const unsigned compact = s->flags & ESZ_COMPACT, nibble = s->flags & ESZ_NIBBLE, bit = 1u << (s->alphabet & 31u);
    const unsigned raw = s->alphabet == ESZ_RAW, planes = s->alphabet == ESZ_PLANES;
    const unsigned most_fill = nibble ? 15 : bit & SPARSE ? 255 : planes, most_log2 = bit & WITH_BOOK && !nibble ? 3 : 0;
    const unsigned least_cap = s->alphabet == ESZ_GAP ? 5 : s->alphabet == ESZ_JOINT;
    const uint32_t n = s->decoded_bytes;
    uint32_t data = s->directory_bytes;
    if (s->alphabet > ESZ_JOINT || !(ESZ_ALPHABETS & bit)) return ESZ_E_ALPHABET;
    if (n > ESZ_MAX_SEGMENT_BYTES || s->flags > (ESZ_COMPACT | ESZ_NIBBLE) || (nibble && !(bit & SPARSE)) ||
        s->fill > most_fill || s->cap_log2 < least_cap || s->cap_log2 > least_cap + (least_cap ? 3u : 0u) ||
        s->book_log2 > most_log2 || (planes && s->book_log2 == 0) || (n & ((1u << s->book_log2) - 1)) != 0 ||
        (s->row_items != 0 && (compact || !(bit & WITH_ROWS))))
        return ESZ_E_INDEX;
    if (compact) {
        if (n > ESZ_MAX_COMPACT_BYTES || data != 0 || s->block_log2 != 0 || (n == 0 && !raw) ||
            (raw ? s->coded_bytes != n : s->coded_bytes > n + 2))
            return ESZ_E_INDEX;
        s->block_bytes = n;
        s->block_count = n != 0;
        return ESZ_OK;
    }
    if (s->block_log2 < ESZ_MIN_BLOCK_LOG2 || s->block_log2 > ESZ_MAX_BLOCK_LOG2 || n == 0) return ESZ_E_INDEX;
    s->block_count = ((n - 1) >> s->block_log2) + 1;
    s->block_bytes = 1u << s->block_log2;
    if (data < 8 * s->block_count || data > s->coded_bytes) return ESZ_E_INDEX;
    if (raw) {
        if (data != 8 * s->block_count) return ESZ_E_INDEX;
        data = (uint32_t)(align64(s->coded_offset + data) - s->coded_offset);
        if (data + n != s->coded_bytes) return ESZ_E_INDEX;
    }
    s->data_offset = data;
    return ESZ_OK;
}

esz_status esz_index_next(esz_cursor *c, esz_segment *s) {
    const uint8_t *e = c->index + (size_t)c->at;
    uint64_t left = c->index_bytes - c->at, start;
    esz_status status;
    uint32_t needed = 0;
    unsigned i;
    if (c->number == c->count) {
        if (left != 0 || c->decoded_sum != c->decoded_bytes || c->coded_end != c->file_bytes) return ESZ_E_INDEX;
        return ESZ_END;
    }
    if (left < ESZ_ENTRY_BYTES) return ESZ_E_INDEX;
    memset(s, 0, sizeof *s);
#if ESZ_LITTLE_ENDIAN
    memcpy(s, e, ESZ_ENTRY_BYTES); /* the first fields are in the entry's order */
#else
    s->decoded_offset = esz_load64(e);
    s->coded_offset = esz_load64(e + 8);
    s->decoded_bytes = esz_load32(e + 16);
    s->coded_bytes = esz_load32(e + 20);
    s->directory_bytes = esz_load32(e + 24);
    s->hash = esz_load32(e + 28);
    s->name_bytes = load16(e + 32);
    s->alphabet = e[34];
    s->dtype = e[35];
    s->rank = e[36];
    s->block_log2 = e[37];
    s->flags = e[38];
    s->cap_log2 = e[39];
    s->fill = e[40];
    s->book_log2 = e[41];
    s->row_units = load16(e + 42);
#endif
    s->number = c->number;
    s->row_items = s->row_units * ESZ_ROW_UNIT;
    if (s->name_bytes > ESZ_MAX_NAME_BYTES || s->rank > ESZ_MAX_RANK)
        return ESZ_E_INDEX;
    if (left < ESZ_ENTRY_BYTES + 4u * s->rank + s->name_bytes) return ESZ_E_INDEX;
    e += ESZ_ENTRY_BYTES;
    for (i = 0; i < s->rank; i++, e += 4) {
        s->shape[i] = esz_load32(e);
        if (s->shape[i] >> 31 != 0) return ESZ_E_INDEX;
    }
    s->name = e;
    for (i = 0; i < s->name_bytes; i++)
        if (e[i] < 0x20) return ESZ_E_INDEX;
    e += s->name_bytes;
    start = s->flags & ESZ_COMPACT ? c->coded_end : align64(c->coded_end);
    if (s->decoded_offset != c->decoded_sum || s->coded_offset != start) return ESZ_E_INDEX;
    if (s->alphabet == ESZ_PLANES)
        needed = ESZ_FEATURE_PLANES;
    else if (s->book_log2 != 0)
        needed = ESZ_FEATURE_CODEBOOK;
    if (s->row_items != 0) needed |= ESZ_FEATURE_ROWS;
    if ((needed & ~c->features) != 0) return ESZ_E_INDEX;
    if ((status = check_entry(s)) != ESZ_OK) return status;
    c->decoded_sum += s->decoded_bytes;
    c->coded_end = start + s->coded_bytes;
    if (c->decoded_sum > c->decoded_bytes || c->coded_end > c->file_bytes) return ESZ_E_INDEX;
    c->at = (uint64_t)(e - c->index);
    c->number++;
    return ESZ_OK;
}

esz_status esz_segment_begin(esz_decoder *d, const esz_segment *s, const uint8_t *directory, size_t size) {
    uint32_t block, before = 0;
    size_t at;
    d->begun = 0;
    d->segment = *s;
    d->directory = directory;
    d->set_count = 0;
    d->book = NULL;
    d->book_count = 256;
    d->loaded_set = ESZ_NO_SET;
    if (!(s->flags & ESZ_COMPACT)) {
        if (size < s->directory_bytes) return ESZ_E_ARGUMENT;
        if (esz_hash_of(directory, s->directory_bytes) != s->hash) return ESZ_E_DIRECTORY_HASH;
        for (block = 0; block < s->block_count; block++) {
            uint32_t end = esz_load32(directory + 8 * (size_t)block), decoded = s->block_bytes;
            if (block + 1 == s->block_count) decoded = s->decoded_bytes - block * s->block_bytes;
            if (end < before) return ESZ_E_DIRECTORY;
            if (s->alphabet == ESZ_RAW ? end - before != decoded : end - before > decoded + 2) return ESZ_E_DIRECTORY;
            before = end;
        }
        if (before != s->coded_bytes - s->data_offset) return ESZ_E_DIRECTORY;
        at = 8 * (size_t)s->block_count;
        if (s->alphabet != ESZ_RAW) {
            int sets;
            if (esz_has_book(s)) {
                size_t bytes = esz_read_book(d, directory + at, s->directory_bytes - at);
                if (bytes == 0) return ESZ_E_DIRECTORY;
                at += bytes;
            }
            if (at == s->directory_bytes || directory[at] > ESZ_MAX_SETS) return ESZ_E_DIRECTORY;
            d->set_count = directory[at++];
            d->sets_at = (uint32_t)at;
            sets = esz_check_sets(d);
            if (sets < 2) return sets == 0 ? ESZ_E_TABLE : ESZ_E_DIRECTORY;
        } else if (at != s->directory_bytes) {
            return ESZ_E_DIRECTORY;
        }
    }
    if (s->decoded_bytes == 0 && s->hash != esz_hash_of(NULL, 0)) return ESZ_E_BLOCK_HASH; /* it has no block */
    d->begun = 1;
    return ESZ_OK;
}

esz_status esz_block_at(const esz_decoder *d, uint32_t block, uint32_t *offset, uint32_t *coded_bytes,
                        uint32_t *decoded_bytes) {
    const esz_segment *s = &d->segment;
    if (!d->begun || block >= s->block_count) return ESZ_E_ARGUMENT;
    *offset = 0;
    *coded_bytes = s->coded_bytes;
    *decoded_bytes = block + 1 < s->block_count ? s->block_bytes : s->decoded_bytes - block * s->block_bytes;
    if (s->flags & ESZ_COMPACT) return ESZ_OK;
    if (block > 0) *offset = esz_load32(d->directory + 8 * ((size_t)block - 1));
    *coded_bytes = esz_load32(d->directory + 8 * (size_t)block) - *offset;
    return ESZ_OK;
}

esz_status esz_block_decode(esz_decoder *d, uint32_t block, const uint8_t *coded, size_t coded_bytes, uint8_t *decoded,
                            size_t decoded_bytes) {
    const esz_segment *s = &d->segment;
    uint32_t offset, want_coded, want_decoded, hash = s->hash;
    if (esz_block_at(d, block, &offset, &want_coded, &want_decoded) != ESZ_OK || coded_bytes != want_coded ||
        decoded_bytes != want_decoded)
        return ESZ_E_ARGUMENT;
    if (!(s->flags & ESZ_COMPACT)) hash = esz_load32(d->directory + 8 * (size_t)block + 4);
    if (esz_hash_of(coded, coded_bytes) != hash) return ESZ_E_BLOCK_HASH;
    if (s->alphabet == ESZ_RAW) {
        memcpy(decoded, coded, coded_bytes);
        return ESZ_OK;
    }
    if ((s->flags & ESZ_COMPACT) && esz_has_book(s)) {
        size_t bytes = esz_read_book(d, coded, coded_bytes);
        if (bytes == 0) return ESZ_E_BLOCK;
        coded += bytes;
        coded_bytes -= bytes;
    }
    if (ESZ_IS(s, ESZ_PLANES) && coded_bytes > 0 && coded[0] != ESZ_STORED)
        return esz_decode_planes(d, block, coded, coded_bytes, decoded, decoded_bytes);
    return esz_decode_part(d, block, coded, coded_bytes, decoded, decoded_bytes, 1);
}

/* `hash` (may be null) takes in every block while it is still in the cache. */
static esz_status decode_segment(esz_decoder *d, const esz_segment *s, const uint8_t *payload, uint8_t *decoded,
                                 esz_hash_state *hash, esz_where *where) {
    uint32_t block, offset, coded, size;
    esz_status status;
    where->segment = s->number;
    where->block = NOWHERE;
    where->offset = s->coded_offset;
    if ((status = esz_segment_begin(d, s, payload, s->coded_bytes)) != ESZ_OK) return status;
    if (!all_zero(payload + s->directory_bytes, s->data_offset - s->directory_bytes)) return ESZ_E_PADDING;
    for (block = 0; block < s->block_count; block++) {
        uint8_t *to = decoded + (size_t)block * s->block_bytes;
        if ((status = esz_block_at(d, block, &offset, &coded, &size)) != ESZ_OK) return status;
        where->block = block;
        where->offset = s->coded_offset + s->data_offset + offset;
        status = esz_block_decode(d, block, payload + s->data_offset + offset, coded, to, size);
        if (status != ESZ_OK) return status;
        if (hash != NULL) esz_hash_take(hash, to, size);
    }
    return ESZ_OK;
}

esz_status esz_segment_decode(esz_decoder *d, const esz_segment *s, const uint8_t *payload, size_t payload_bytes,
                              uint8_t *decoded, size_t decoded_bytes, esz_where *where) {
    esz_where unused;
    if (payload_bytes < s->coded_bytes || decoded_bytes < s->decoded_bytes) return ESZ_E_ARGUMENT;
    return decode_segment(d, s, payload, decoded, NULL, where != NULL ? where : &unused);
}

esz_status esz_decode_image(esz_decoder *d, const uint8_t *data, size_t size, uint8_t *image, size_t image_bytes,
                            uint32_t options, esz_where *where) {
    esz_header h;
    esz_cursor c, begun;
    esz_segment s;
    esz_hash_state hash;
    esz_where unused;
    esz_status status;
    unsigned pass;
    if (where == NULL) where = &unused;
    where->segment = where->block = NOWHERE;
    where->offset = 0;
    if ((status = esz_parse_header(data, size, &h)) != ESZ_OK) return status;
    if (h.file_bytes != size) return ESZ_E_FILE_SIZE;
    if (image_bytes < h.decoded_bytes) return ESZ_E_ARGUMENT;
    where->offset = ESZ_HEADER_BYTES;
    status = esz_index_begin(&c, &h, data + ESZ_HEADER_BYTES, size - ESZ_HEADER_BYTES);
    if (status != ESZ_OK) return status;
    begun = c;
    esz_hash_start(&hash);
    for (pass = 0; pass < 2; pass++, c = begun) { /* the whole index first, before anything is written */
        for (;;) {
            const size_t end = (size_t)c.coded_end;
            where->segment = c.number < c.count ? c.number : NOWHERE;
            where->block = NOWHERE;
            where->offset = pass ? end : ESZ_HEADER_BYTES + c.at;
            if ((status = esz_index_next(&c, &s)) != ESZ_OK) break;
            if (!pass) continue;
            if (!all_zero(data + end, (size_t)s.coded_offset - end)) return ESZ_E_PADDING;
            status = decode_segment(d, &s, data + (size_t)s.coded_offset, image + (size_t)s.decoded_offset,
                                    options & ESZ_NO_IMAGE_HASH ? NULL : &hash, where);
            if (status != ESZ_OK) return status;
        }
        if (status != ESZ_END) return status;
    }
    where->segment = where->block = NOWHERE;
    where->offset = 48;
    if (!(options & ESZ_NO_IMAGE_HASH) && esz_hash_value(&hash) != h.image_hash) return ESZ_E_IMAGE_HASH;
    return ESZ_OK;
}

const char *esz_status_text(esz_status status) {
    static const char *const text[] = {
        "fine",
        "end of the index",
        "a buffer is too small or a call came out of order",
        "shorter than a header",
        "not an ESZ container",
        "unknown version",
        "header hash does not match",
        "needs a feature that this decoder does not implement",
        "a header field is outside its limits",
        "size differs from the one in the header",
        "index hash does not match",
        "an index entry breaks a rule",
        "unknown alphabet",
        "padding is not zero",
        "directory hash does not match",
        "a directory breaks a rule",
        "a code table is malformed",
        "block hash does not match",
        "a block header breaks a rule",
        "a stream does not end where its items end",
        "image hash does not match",
    };
    return (unsigned)status < sizeof text / sizeof *text ? text[status] : "unknown status";
}
