/* A libFuzzer target for the decoder. An input's hashes are made right first, so that the fuzzer gets to the rules behind
 * them. What decodes must decode to the same image in blocks, one after the other, as in one call.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -I edgeslim/codec/c tests/codec/fuzz_esz.c edgeslim/codec/c/esz.c
 *     ./a.out corpus tests/golden        (a folder of its own for what it finds, and the seeds)
 */
#include <stdlib.h>
#include <string.h>

#include "esz.h"
#include "esz_reseal.h"

#define MOST_IMAGE (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t n);

static void check(int holds) {
    if (!holds) abort();
}

/* Decodes every segment by itself, and compares it with its part of the image. */
static void decode_segments(esz_decoder *decoder, const uint8_t *data, const esz_header *header, const uint8_t *image) {
    esz_cursor cursor;
    esz_segment s;
    check(esz_index_begin(&cursor, header, data + ESZ_HEADER_BYTES, (size_t)header->index_bytes) == ESZ_OK);
    while (esz_index_next(&cursor, &s) == ESZ_OK) {
        uint8_t *part = malloc(s.decoded_bytes + 1u);
        if (part == NULL) exit(3);
        check(esz_segment_decode(decoder, &s, data + (size_t)s.coded_offset, s.coded_bytes, part, s.decoded_bytes, NULL) ==
              ESZ_OK);
        check(memcmp(part, image + (size_t)s.decoded_offset, s.decoded_bytes) == 0);
        free(part);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t n) {
    static esz_decoder decoder;
    esz_header header;
    uint8_t *data = malloc(n ? n : 1), *image = NULL;
    if (data == NULL) exit(3);
    if (n) memcpy(data, input, n);
    if (n > ESZ_HEADER_BYTES) reseal(data, n, get32(data + 48));
    if (esz_parse_header(data, n, &header) == ESZ_OK && header.decoded_bytes <= MOST_IMAGE) {
        size_t size = (size_t)header.decoded_bytes;
        image = malloc(size ? size : 1);
        if (image == NULL) exit(3);
        if (esz_decode_image(&decoder, data, n, image, size, ESZ_NO_IMAGE_HASH, NULL) == ESZ_OK)
            decode_segments(&decoder, data, &header, image);
    }
    free(image);
    free(data);
    return 0;
}
