/* A libFuzzer target for the encoder: any bytes, of any type and shape, by any choice of alphabets, must come back.
 *
 * The first 16 bytes of an input choose the options, the rest is the segment. What the encoder makes of it becomes a
 * container of one segment as FORMAT.md, sections 2 and 3, has it, and goes through the whole decoder.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -I edgeslim/codec/c tests/codec/fuzz_encode.c \
 *         edgeslim/codec/c/esz.c edgeslim/codec/c/esz_encode.c
 */
#include <stdlib.h>
#include <string.h>

#include "esz.h"
#include "esz_encode.h"

#define CHOICES 16u
#define ENTRY_BYTES 44u
#define RANK 2u
#define MOST_BYTES (1u << 18)

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t n);

static void check(int holds) {
    if (!holds) abort();
}

static void put(uint8_t *at, uint64_t value, unsigned bytes) {
    while (bytes--) {
        *at++ = (uint8_t)value;
        value >>= 8;
    }
}

/* One segment's container; its size goes to `size`. */
static uint8_t *assemble(const esz_encoded *coded, const uint8_t *data, size_t n, const uint8_t *choices, size_t *size) {
    const size_t index_bytes = ENTRY_BYTES + 4 * RANK + 1;
    const size_t end = ESZ_HEADER_BYTES + index_bytes;
    const size_t start = coded->flags & 1 ? end : (end + 63) / 64 * 64;
    uint8_t *file = calloc(1, start + coded->coded_bytes), *entry = file + ESZ_HEADER_BYTES;
    uint32_t features = coded->alphabet == 5 ? 4u : (coded->book_log2 ? 2u : 0u) | (coded->row_units ? 8u : 0u);
    if (file == NULL) exit(3);
    if (coded->payload_bytes) memcpy(file + start, coded->payload, coded->payload_bytes);
    if (coded->payload_bytes < coded->coded_bytes) {
        check(coded->payload_bytes + n == coded->coded_bytes);
        memcpy(file + start + coded->payload_bytes, data, n);
    }
    put(entry + 8, start, 8);
    put(entry + 16, n, 4);
    put(entry + 20, coded->coded_bytes, 4);
    put(entry + 24, coded->directory_bytes, 4);
    put(entry + 28, coded->hash, 4);
    put(entry + 32, 1, 2);
    entry[34] = coded->alphabet;
    entry[35] = choices[6];
    entry[36] = RANK;
    entry[37] = coded->block_log2;
    entry[38] = coded->flags;
    entry[39] = coded->cap_log2;
    entry[40] = coded->fill;
    entry[41] = coded->book_log2;
    put(entry + 42, coded->row_units, 2);
    put(entry + 44, choices[7], 4);
    put(entry + 48, choices[8], 4);
    entry[52] = 'w';
    memcpy(file, "\x89" "ESZ\r\n\x1a\n", 8);
    put(file + 8, 1, 2);
    put(file + 10, ESZ_HEADER_BYTES, 2);
    put(file + 12, features, 4);
    put(file + 20, 1, 4);
    put(file + 24, index_bytes, 8);
    put(file + 32, n, 8);
    put(file + 40, start + coded->coded_bytes, 8);
    put(file + 48, esz_hash32(data, n), 4);
    put(file + 56, esz_hash32(entry, index_bytes), 4);
    put(file + 60, esz_hash32(file, 60), 4);
    *size = start + coded->coded_bytes;
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t n) {
    static esz_decoder decoder;
    static const uint32_t streams[] = {0, 1, 4, 8}, items[] = {0, 1, 2, 4, 8};
    esz_encode_options options = {0, 0, 0, 0, 0, 0};
    esz_encoded coded;
    uint8_t choices[CHOICES] = {0}, *data, *file, *image;
    size_t size;
    if (n < CHOICES || n - CHOICES > MOST_BYTES) return 0;
    memcpy(choices, input, CHOICES);
    n -= CHOICES;
    data = malloc(n ? n : 1); /* of exactly its size */
    image = malloc(n ? n : 1);
    if (data == NULL || image == NULL) exit(3);
    if (n) memcpy(data, input + CHOICES, n);
    options.block_log2 = 12 + choices[0] % 9;
    options.small = choices[1] & 1;
    options.alphabets = choices[2] & 1 ? ~0u : choices[3];
    if (choices[9] & 1) options.alphabets |= ESZ_ALLOW_CODEBOOK;
    if (choices[9] & 2) options.alphabets |= ESZ_ALLOW_ROWS;
    options.streams = streams[choices[1] >> 1 & 3];
    options.item_bytes = items[choices[4] % 5];
    options.row_nibbles = (uint32_t)choices[5] << (choices[4] >> 5);
    check(esz_encode_segment(data, n, &options, &coded) == 0);
    file = assemble(&coded, data, n, choices, &size);
    check(esz_decode_image(&decoder, file, size, image, n, 0, NULL) == ESZ_OK);
    check(n == 0 || memcmp(image, data, n) == 0);
    esz_encoded_free(&coded);
    free(file);
    free(image);
    free(data);
    return 0;
}
