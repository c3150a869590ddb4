/* Constants of the ESZ container, version 1, and the order of a code's bits. The encoder and the decoder share this file and nothing else.
 * The byte-level description is FORMAT.md, one folder up.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_FORMAT_H
#define ESZ_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#if !defined(ESZ_API)
#if defined(ESZ_SHARED) && defined(_WIN32)
#define ESZ_API __declspec(dllexport)
#elif defined(ESZ_SHARED) && defined(__GNUC__)
#define ESZ_API __attribute__((visibility("default")))
#else
#define ESZ_API
#endif
#endif

#define ESZ_VERSION 1u
#define ESZ_HEADER_BYTES 64u
#define ESZ_ENTRY_BYTES 44u /* of an index entry, before its shape and name */

/* Required features. */
#define ESZ_FEATURE_CODEBOOK 2u
#define ESZ_FEATURE_PLANES 4u
#define ESZ_FEATURE_ROWS 8u

/* Alphabets. */
#define ESZ_RAW 0u
#define ESZ_PLAIN 1u
#define ESZ_PAIR 2u
#define ESZ_GAP 3u
#define ESZ_MASK8 4u
#define ESZ_PLANES 5u
#define ESZ_JOINT 6u

/* Segment flags. */
#define ESZ_COMPACT 1u
#define ESZ_NIBBLE 2u

/* Block modes (1, 4 and 8 are numbers of streams) and the table index that says "a table set follows". */
#define ESZ_STORED 0u
#define ESZ_OWN_TABLE 255u

/* Limits. */
#define ESZ_MAX_SEGMENTS 65536u
#define ESZ_MAX_INDEX_BYTES 67108864u
#define ESZ_MAX_IMAGE_BYTES ((uint64_t)1 << 40)
#define ESZ_MAX_FILE_BYTES ((uint64_t)1 << 41)
#define ESZ_MAX_SEGMENT_BYTES 0x7FFFFFFFu
#define ESZ_MAX_COMPACT_BYTES 65536u
#define ESZ_MAX_NAME_BYTES 1024u
#define ESZ_MAX_RANK 8u
#define ESZ_MIN_BLOCK_LOG2 12u
#define ESZ_MAX_BLOCK_LOG2 20u
#define ESZ_MAX_SETS 64u
#define ESZ_ROW_UNIT 8u    /* a row is a multiple of this many items */
#define ESZ_ROW_CLASSES 4u /* table sets that the rows of a block choose from */
#define ESZ_MAX_CODE_BITS 11u
#define ESZ_JOINT_RUNS 8u  /* symbols of JOINT that stand for a run of fill values */
#define ESZ_MAX_PAIR_BITS 6u /* code length limit of PAIR's table */

/* The low `length` bits (1 to 16) in reverse order: the form in which a stream holds a code. */
static inline uint32_t esz_reversed_bits(uint32_t code, unsigned length) {
    code = (code >> 1 & 0x5555u) | (code & 0x5555u) << 1;
    code = (code >> 2 & 0x3333u) | (code & 0x3333u) << 2;
    code = (code >> 4 & 0x0F0Fu) | (code & 0x0F0Fu) << 4;
    code = (code >> 8 | code << 8) & 0xFFFFu;
    return code >> (16 - length);
}

#endif
