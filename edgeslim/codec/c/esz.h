/* ESZ decoder: turns an ESZ container (FORMAT.md) back into the image that it holds.
 *
 * C99, needs stdint, stddef and string.h only; no heap, no stdio, no global state. The caller owns all memory, and
 * a size travels with every pointer. An esz_decoder is the only work space: about 33 KiB, or under 1 KiB when built
 * with ESZ_SMALL (canonical decoding without look-up tables, for small devices; it refuses row classes). It may lie in
 * static memory; one per thread decodes blocks in parallel.
 *
 * ESZ_ALPHABETS, a number, leaves out what a device does not need: bit a stands for alphabet a of esz_format.h, bit 7 for
 * codebooks. What is left out is refused with ESZ_E_ALPHABET or ESZ_E_FEATURE.
 *
 * ESZ_LEAN, for 64-bit builds, has one fast loop where the default has one for each kind of block: less than half of the
 * code, and a few more instructions.
 *
 * Whole container in memory:     esz_parse_header, allocate header.decoded_bytes, esz_decode_image.
 * One segment (or one block):    esz_parse_header, esz_index_begin, esz_index_next, esz_segment_begin,
 *                                esz_block_at, esz_block_decode.
 * Front to back from a stream:   the same calls; each needs only the bytes it names.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_H
#define ESZ_H

#include "esz_format.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    ESZ_OK = 0,
    ESZ_END = 1,          /* esz_index_next: no further segment, and the index is whole and consistent */
    ESZ_E_ARGUMENT = 2,   /* a buffer given by the caller is too small, or a call came out of order */
    ESZ_E_TRUNCATED = 3,  /* fewer bytes than the header */
    ESZ_E_MAGIC = 4,
    ESZ_E_VERSION = 5,
    ESZ_E_HEADER_HASH = 6,
    ESZ_E_FEATURE = 7,    /* a required feature that this decoder does not implement */
    ESZ_E_HEADER = 8,     /* a header field outside its limits */
    ESZ_E_FILE_SIZE = 9,  /* the container's size is not the one that its header gives */
    ESZ_E_INDEX_HASH = 10,
    ESZ_E_INDEX = 11,     /* an index entry breaks a rule */
    ESZ_E_ALPHABET = 12,  /* unknown alphabet */
    ESZ_E_PADDING = 13,   /* padding is not zero */
    ESZ_E_DIRECTORY_HASH = 14,
    ESZ_E_DIRECTORY = 15,
    ESZ_E_TABLE = 16,     /* a code table is malformed, over-subscribed, incomplete or empty */
    ESZ_E_BLOCK_HASH = 17,
    ESZ_E_BLOCK = 18,     /* a block's header breaks a rule */
    ESZ_E_STREAM = 19,    /* a stream does not end where its items end */
    ESZ_E_IMAGE_HASH = 20
} esz_status;

/* The header's fields behind the magic. */
typedef struct {
    uint16_t version, header_bytes;
    uint32_t required_features, optional_features, segment_count;
    uint64_t index_bytes, decoded_bytes, file_bytes;
    uint32_t image_hash, reserved, index_hash, header_hash;
} esz_header;

typedef struct {
    /* As the index entry has them. */
    uint64_t decoded_offset, coded_offset;
    uint32_t decoded_bytes, coded_bytes, directory_bytes, hash;
    uint16_t name_bytes;
    uint8_t alphabet, dtype, rank, block_log2, flags, cap_log2, fill;
    uint8_t book_log2;  /* 0, or the values of codebook or PLANES take 2^book_log2 bytes */
    uint16_t row_units; /* 0, or an ESZ_ROW_UNITth of a row's items */
    /* What follows from them. */
    uint32_t data_offset; /* where the blocks start, from the payload's start */
    uint32_t block_bytes, block_count; /* decoded size of every block but the last; number of blocks */
    uint32_t number;      /* 0 for the first segment */
    uint32_t row_items;   /* 0, or the items of a row, each of which has a class */
    uint32_t shape[ESZ_MAX_RANK];
    const uint8_t *name;  /* points into the index; not terminated by zero */
} esz_segment;

typedef struct {
    const uint8_t *index;
    uint64_t index_bytes, at, decoded_sum, coded_end, decoded_bytes, file_bytes;
    uint32_t number, count, features;
} esz_cursor;

/* Work space of a decoder. Its fields are private. */
#if defined(ESZ_SMALL)
typedef struct {
    uint16_t count[ESZ_MAX_CODE_BITS + 1]; /* codes of each length; count[0] is 1 if the only code takes no bits */
    uint8_t symbol[256];                   /* in canonical order */
} esz_table;
#endif

typedef struct {
    esz_segment segment;
    const uint8_t *directory; /* the caller's; must stay until the segment is done */
    const uint8_t *book;      /* the codebook's values, in the directory or the block */
    uint32_t sets_at, set_count, loaded_set, begun, book_count;
#if defined(ESZ_SMALL)
    esz_table table[2];
    uint32_t values;
#else
    uint32_t bits[2]; /* of an index into a first and into a second table */
    union {           /* of each class the first table, then the second */
        uint16_t code[2 * ESZ_ROW_CLASSES << ESZ_MAX_CODE_BITS];
        uint32_t joint[ESZ_ROW_CLASSES << ESZ_MAX_CODE_BITS];
    } entry;
#endif
} esz_decoder;

/* Where a failure lies: a byte offset in the container, and the segment and block (or 0xFFFFFFFF for none). */
typedef struct {
    uint64_t offset;
    uint32_t segment, block;
} esz_where;

#define ESZ_NO_IMAGE_HASH 1u /* esz_decode_image: leave the image's hash unchecked (block hashes are checked) */

/* Reads the first 64 bytes of a container. Nothing may be allocated from a header that was not accepted here. */
ESZ_API esz_status esz_parse_header(const uint8_t *data, size_t size, esz_header *header);

/* Starts a walk over the index: `index` holds header->index_bytes bytes and must outlive cursor and segments. */
ESZ_API esz_status esz_index_begin(esz_cursor *cursor, const esz_header *header, const uint8_t *index, size_t size);

/* The next segment, or ESZ_END. Offsets and sizes are consistent with all segments before. */
ESZ_API esz_status esz_index_next(esz_cursor *cursor, esz_segment *segment);

/* Makes `decoder` ready for a segment: checks its directory (segment->directory_bytes bytes at the payload's start;
 * none if COMPACT) and all its table sets. The directory must stay in memory while blocks are decoded. */
ESZ_API esz_status esz_segment_begin(esz_decoder *decoder, const esz_segment *segment, const uint8_t *directory,
                                     size_t size);

/* Where block `block` lies: offset from the start of the segment's data (payload + segment.data_offset), coded and
 * decoded size. */
ESZ_API esz_status esz_block_at(const esz_decoder *decoder, uint32_t block, uint32_t *offset, uint32_t *coded_bytes,
                                uint32_t *decoded_bytes);

/* Checks and decodes one block: `coded` and `coded_bytes` as esz_block_at gives them, `decoded_bytes` the block's
 * exact decoded size. On failure the content of `decoded` is undefined, but nothing outside it is written. */
ESZ_API esz_status esz_block_decode(esz_decoder *decoder, uint32_t block, const uint8_t *coded, size_t coded_bytes,
                                    uint8_t *decoded, size_t decoded_bytes);

/* Decodes a whole segment from its payload (segment->coded_bytes) into segment->decoded_bytes bytes. */
ESZ_API esz_status esz_segment_decode(esz_decoder *decoder, const esz_segment *segment, const uint8_t *payload,
                                      size_t payload_bytes, uint8_t *decoded, size_t decoded_bytes, esz_where *where);

/* Decodes a container that is whole in memory. `where` may be null. */
ESZ_API esz_status esz_decode_image(esz_decoder *decoder, const uint8_t *data, size_t size, uint8_t *image,
                                    size_t image_bytes, uint32_t options, esz_where *where);

/* The container's hash (FORMAT.md, section 1). */
ESZ_API uint32_t esz_hash32(const uint8_t *data, size_t size);

/* The same in pieces, for the image's hash when blocks are decoded one by one. esz_hash_begin returns the size of a
 * state, and begins one if `state` (aligned for 64 bits) is not null. */
ESZ_API size_t esz_hash_begin(void *state);
ESZ_API void esz_hash_add(void *state, const uint8_t *data, size_t size);
ESZ_API uint32_t esz_hash_end(const void *state);

/* Size of an esz_decoder, for callers that allocate without this header. */
ESZ_API size_t esz_decoder_bytes(void);

/* A short English sentence for a status; never null. */
ESZ_API const char *esz_status_text(esz_status status);

#ifdef __cplusplus
}
#endif
#endif
