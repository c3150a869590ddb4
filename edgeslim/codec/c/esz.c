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
#define FEATURES (ESZ_FEATURE_CODEBOOK | ESZ_FEATURE_PLANES)
#else
#define FEATURES (ESZ_FEATURE_CODEBOOK | ESZ_FEATURE_PLANES | ESZ_FEATURE_ROWS)
#endif

static const uint8_t esz_magic[8] = {0x89, 'E', 'S', 'Z', '\r', '\n', 0x1A, '\n'};

static unsigned load16(const uint8_t *p) { return p[0] | (unsigned)p[1] << 8; }

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
    if (load16(data + 8) != ESZ_VERSION) return ESZ_E_VERSION;
    if (esz_load32(data + 60) != esz_hash_of(data, 60)) return ESZ_E_HEADER_HASH;
    h->required_features = esz_load32(data + 12);
    h->optional_features = esz_load32(data + 16);
    h->segment_count = esz_load32(data + 20);
    h->index_bytes = esz_load64(data + 24);
    h->decoded_bytes = esz_load64(data + 32);
    h->file_bytes = esz_load64(data + 40);
    h->image_hash = esz_load32(data + 48);
    h->index_hash = esz_load32(data + 56);
    if ((h->required_features & ~FEATURES) != 0) return ESZ_E_FEATURE;
    if (load16(data + 10) != ESZ_HEADER_BYTES || esz_load32(data + 52) != 0 || h->segment_count > ESZ_MAX_SEGMENTS ||
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

/* The rules of an entry that concern its alphabet, flags and sizes. */
static esz_status check_entry(esz_segment *s) {
    const unsigned compact = s->flags & ESZ_COMPACT, planes = s->alphabet == ESZ_PLANES, joint = s->alphabet == ESZ_JOINT;
    const unsigned sparse = s->alphabet == ESZ_GAP || s->alphabet == ESZ_MASK8 || joint;
    if (s->alphabet > ESZ_JOINT) return ESZ_E_ALPHABET;
    if (s->decoded_bytes > ESZ_MAX_SEGMENT_BYTES || (s->flags & ~(ESZ_COMPACT | ESZ_NIBBLE)) != 0) return ESZ_E_INDEX;
    if ((s->flags & ESZ_NIBBLE) && (!sparse || s->fill > 15)) return ESZ_E_INDEX;
    if (!sparse && s->fill > planes) return ESZ_E_INDEX;
    if (s->alphabet == ESZ_GAP ? s->cap_log2 < 5 || s->cap_log2 > 8
        : joint                ? s->cap_log2 < 1 || s->cap_log2 > 4
                               : s->cap_log2 != 0)
        return ESZ_E_INDEX;
    if (s->book_log2 != 0 && (s->book_log2 > 3 || s->alphabet == ESZ_RAW || s->alphabet == ESZ_PAIR ||
                              (s->flags & ESZ_NIBBLE) || s->decoded_bytes % (1u << s->book_log2) != 0))
        return ESZ_E_INDEX;
    if (planes && s->book_log2 == 0) return ESZ_E_INDEX;
    if (s->row_items != 0 && (compact || (!sparse && s->alphabet != ESZ_PLAIN))) return ESZ_E_INDEX;
    if (compact) {
        if (s->decoded_bytes > ESZ_MAX_COMPACT_BYTES || s->directory_bytes != 0 || s->block_bytes != 0)
            return ESZ_E_INDEX;
        if (s->decoded_bytes == 0 && s->alphabet != ESZ_RAW) return ESZ_E_INDEX;
        if (s->alphabet == ESZ_RAW ? s->coded_bytes != s->decoded_bytes : s->coded_bytes > s->decoded_bytes + 2)
            return ESZ_E_INDEX;
        s->block_bytes = s->decoded_bytes;
        s->block_count = s->decoded_bytes != 0;
        s->data_offset = 0;
        return ESZ_OK;
    }
    if (s->block_bytes < ESZ_MIN_BLOCK_LOG2 || s->block_bytes > ESZ_MAX_BLOCK_LOG2 || s->decoded_bytes == 0)
        return ESZ_E_INDEX;
    s->block_bytes = 1u << s->block_bytes;
    s->block_count = (s->decoded_bytes - 1) / s->block_bytes + 1;
    if (s->directory_bytes < 8 * (uint64_t)s->block_count || s->directory_bytes > s->coded_bytes) return ESZ_E_INDEX;
    s->data_offset = s->directory_bytes;
    if (s->alphabet == ESZ_RAW) {
        uint64_t data = align64(s->coded_offset + s->directory_bytes) - s->coded_offset;
        if (s->directory_bytes != 8 * s->block_count || data + s->decoded_bytes != s->coded_bytes) return ESZ_E_INDEX;
        s->data_offset = (uint32_t)data;
    }
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
    s->decoded_offset = esz_load64(e);
    s->coded_offset = esz_load64(e + 8);
    s->decoded_bytes = esz_load32(e + 16);
    s->coded_bytes = esz_load32(e + 20);
    s->directory_bytes = esz_load32(e + 24);
    s->hash = esz_load32(e + 28);
    s->name_bytes = (uint16_t)load16(e + 32);
    s->alphabet = e[34];
    s->dtype = e[35];
    s->rank = e[36];
    s->block_bytes = e[37]; /* its logarithm until check_entry */
    s->flags = e[38];
    s->cap_log2 = e[39];
    s->fill = e[40];
    s->book_log2 = e[41];
    s->number = c->number;
    s->row_items = load16(e + 42) * ESZ_ROW_UNIT;
    if (s->name_bytes > ESZ_MAX_NAME_BYTES || s->rank > ESZ_MAX_RANK)
        return ESZ_E_INDEX;
    if (left < ESZ_ENTRY_BYTES + 4u * s->rank + s->name_bytes) return ESZ_E_INDEX;
    for (i = 0; i < s->rank; i++) {
        s->shape[i] = esz_load32(e + ESZ_ENTRY_BYTES + 4 * i);
        if (s->shape[i] > 0x7FFFFFFFu) return ESZ_E_INDEX;
    }
    s->name = e + ESZ_ENTRY_BYTES + 4 * s->rank;
    for (i = 0; i < s->name_bytes; i++)
        if (s->name[i] < 0x20) return ESZ_E_INDEX;
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
    c->at += ESZ_ENTRY_BYTES + 4u * s->rank + s->name_bytes;
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
            uint32_t k;
            esz_set set[ESZ_SETS_AT_ONCE];
            if (esz_has_book(s)) {
                size_t bytes = esz_read_book(d, directory + at, s->directory_bytes - at);
                if (bytes == 0) return ESZ_E_DIRECTORY;
                at += bytes;
            }
            if (at == s->directory_bytes || directory[at] > ESZ_MAX_SETS) return ESZ_E_DIRECTORY;
            d->set_count = directory[at++];
            d->sets_at = (uint32_t)at;
            for (k = 0; k < d->set_count; k++) {
                size_t bytes = esz_read_set(d, directory + at, s->directory_bytes - at, &set[k % ESZ_SETS_AT_ONCE]);
                if (bytes == 0) return ESZ_E_TABLE;
                at += bytes;
            }
            if (d->set_count == (s->row_items != 0 ? ESZ_ROW_CLASSES : 1u)) { /* as good as every segment */
                esz_build_sets(d, set, d->set_count);
                d->loaded_set = 0;
            }
        }
        if (at != s->directory_bytes) return ESZ_E_DIRECTORY;
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
    unsigned mode, table;
    esz_status status;
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
    if (coded_bytes < 2 || coded_bytes > decoded_bytes + 2) return ESZ_E_BLOCK;
    mode = coded[0];
    table = coded[1];
    coded += 2;
    coded_bytes -= 2;
    if (mode == ESZ_STORED) {
        if (table != 0 || coded_bytes != decoded_bytes) return ESZ_E_BLOCK;
        memcpy(decoded, coded, coded_bytes);
        return ESZ_OK;
    }
    if (s->alphabet == ESZ_PLANES) {
        if (mode != 1 || table != 0) return ESZ_E_BLOCK;
        return esz_decode_planes(d, block, coded, coded_bytes, decoded, decoded_bytes);
    }
    status = esz_decode_coded(d, block, mode, table, coded, coded_bytes, decoded, decoded_bytes >> s->book_log2, 1);
    if (status == ESZ_OK && s->book_log2 != 0) esz_map_book(d, decoded, decoded_bytes >> s->book_log2);
    return status;
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
    esz_cursor c;
    esz_segment s;
    esz_hash_state hash;
    esz_where unused;
    esz_status status;
    size_t end;
    if (where == NULL) where = &unused;
    where->segment = where->block = NOWHERE;
    where->offset = 0;
    if ((status = esz_parse_header(data, size, &h)) != ESZ_OK) return status;
    if (h.file_bytes != size) return ESZ_E_FILE_SIZE;
    if (image_bytes < h.decoded_bytes) return ESZ_E_ARGUMENT;
    where->offset = ESZ_HEADER_BYTES;
    status = esz_index_begin(&c, &h, data + ESZ_HEADER_BYTES, size - ESZ_HEADER_BYTES);
    while (status == ESZ_OK) { /* the whole index, before anything is written */
        where->segment = c.number < c.count ? c.number : NOWHERE;
        where->offset = ESZ_HEADER_BYTES + c.at;
        status = esz_index_next(&c, &s);
    }
    if (status != ESZ_END) return status;
    esz_index_begin(&c, &h, data + ESZ_HEADER_BYTES, size - ESZ_HEADER_BYTES);
    esz_hash_start(&hash);
    end = ESZ_HEADER_BYTES + (size_t)h.index_bytes;
    while ((status = esz_index_next(&c, &s)) == ESZ_OK) {
        size_t start = (size_t)s.coded_offset;
        uint8_t *to = image + (size_t)s.decoded_offset;
        where->segment = s.number;
        where->block = NOWHERE;
        where->offset = end;
        if (!all_zero(data + end, start - end)) return ESZ_E_PADDING;
        status = decode_segment(d, &s, data + start, to, options & ESZ_NO_IMAGE_HASH ? NULL : &hash, where);
        if (status != ESZ_OK) return status;
        end = start + s.coded_bytes;
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
