/* ESZ encoder: codes one segment at a time. Runs on the build machine and uses malloc; it shares only the constants
 * of esz_format.h with the decoder. The caller writes header and index (FORMAT.md, sections 2 and 3).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_ENCODE_H
#define ESZ_ENCODE_H

#include "esz_format.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ESZ_ALLOW_CODEBOOK 128u /* in esz_encode_options.alphabets */
#define ESZ_ALLOW_ROWS 256u

typedef struct {
    uint32_t block_log2; /* 12 to 20 */
    uint32_t small;      /* not 0: gaps up to 31, codes up to 8 bits for gaps, masks and their values, 1 stream */
    uint32_t alphabets;  /* bit a set: alphabet a may be used; RAW always may. ESZ_ALLOW_...: so may these. ~0u: all */
    uint32_t streams;    /* 0: the encoder chooses; else 1, 4 or 8 where the alphabet allows it */
    uint32_t item_bytes; /* 1, 2, 4 or 8: the size of a value, where that is known; 0: it may be any */
    uint32_t row_nibbles; /* half bytes of a row of the tensor, where that is known; else 0 */
} esz_encode_options;

typedef struct {
    uint8_t alphabet, flags, cap_log2, fill, block_log2, book_log2;
    uint16_t row_units; /* items of a row / ESZ_ROW_UNIT, or 0 */
    uint32_t coded_bytes, directory_bytes, hash;
    uint8_t *payload;       /* to be freed with esz_encoded_free */
    uint32_t payload_bytes; /* RAW: the directory and padding only, the segment's own bytes follow; else coded_bytes */
} esz_encoded;

/* Codes `size` bytes with the cheapest alphabet. Returns 0, or 1 for an option or size out of range, 2 when out of
 * memory. */
ESZ_API int esz_encode_segment(const uint8_t *data, size_t size, const esz_encode_options *options, esz_encoded *out);

ESZ_API void esz_encoded_free(esz_encoded *encoded);

#ifdef __cplusplus
}
#endif
#endif
