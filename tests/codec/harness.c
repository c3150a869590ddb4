/* Decodes damaged containers in buffers of exactly their size, for a build with sanitizers.
 *
 *     harness MUTATIONS FILE.esz...
 *
 * For each file: whole (must decode), truncated and with flipped bits (must be refused), and MUTATIONS times with
 * changed bytes and all hashes made right again (must do no harm). The last line sums up what happened, so that builds
 * of the decoder can be compared: they must accept the same containers and decode the same images. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "esz.h"

static uint32_t random_state = 12345;

static uint32_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static void put32(uint8_t *p, uint32_t x) {
    unsigned k;
    for (k = 0; k < 4; k++) p[k] = (uint8_t)(x >> (8 * k));
}

static uint32_t get32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Decodes `n` bytes from a fresh buffer of exactly that size into one of exactly the image's size. */
static esz_status decode(const uint8_t *bytes, size_t n, uint32_t *image_hash) {
    uint8_t *data = malloc(n ? n : 1), *image = NULL;
    esz_decoder *decoder = malloc(sizeof *decoder);
    esz_header header;
    esz_status status;
    size_t size = 0;
    if (data == NULL || decoder == NULL) exit(3);
    if (n) memcpy(data, bytes, n);
    memset(decoder, 0xA5, sizeof *decoder);
    status = esz_parse_header(data, n, &header);
    if (status == ESZ_OK && header.decoded_bytes < 1u << 22) size = (size_t)header.decoded_bytes;
    image = malloc(size ? size : 1);
    if (image == NULL) exit(3);
    status = esz_decode_image(decoder, data, n, image, size, 0, NULL);
    *image_hash = status == ESZ_OK ? esz_hash32(image, size) : 0;
    free(data);
    free(image);
    free(decoder);
    return status;
}

/* Makes the hashes of header, index, directories and blocks right, as far as offsets can be followed. */
static void reseal(uint8_t *data, size_t n, uint32_t image_hash) {
    esz_header header;
    esz_cursor cursor;
    esz_segment s;
    size_t at = 64, index_bytes = get32(data + 24);
    unsigned pass;
    if (index_bytes > n - 64) return;
    for (pass = 0; pass < 2; pass++) { /* the second time with the segments' hashes right */
        put32(data + 48, image_hash);
        put32(data + 56, esz_hash32(data + 64, index_bytes));
        put32(data + 60, esz_hash32(data, 60));
        if (pass == 1 || esz_parse_header(data, n, &header) != ESZ_OK) return;
        if (esz_index_begin(&cursor, &header, data + 64, n - 64) != ESZ_OK) return;
        while (esz_index_next(&cursor, &s) == ESZ_OK) {
            uint8_t *payload = data + (size_t)s.coded_offset;
            if (s.coded_offset + s.coded_bytes > n) break;
            if (s.flags & ESZ_COMPACT) {
                put32(data + at + 28, esz_hash32(payload, s.coded_bytes));
            } else {
                uint32_t block, start = 0;
                for (block = 0; block < s.block_count; block++) {
                    uint32_t end = get32(payload + 8 * block);
                    if (end < start || end > s.coded_bytes - s.data_offset) break;
                    put32(payload + 8 * block + 4, esz_hash32(payload + s.data_offset + start, end - start));
                    start = end;
                }
                put32(data + at + 28, esz_hash32(payload, s.directory_bytes));
            }
            at = 64 + (size_t)cursor.at;
        }
    }
}

int main(int argc, char **argv) {
    unsigned long mutations = argc > 2 ? strtoul(argv[1], NULL, 10) : 0, k, accepted = 0, tried = 0;
    uint32_t hash, images = 0;
    int file;
    for (file = 2; file < argc; file++) {
        FILE *f = fopen(argv[file], "rb");
        size_t n, i, step;
        static uint8_t bytes[1 << 20], changed[1 << 20];
        if (f == NULL) return 2;
        n = fread(bytes, 1, sizeof bytes, f);
        fclose(f);
        if (decode(bytes, n, &hash) != ESZ_OK) {
            printf("%s: refused\n", argv[file]);
            return 1;
        }
        images = images * 31 + hash;
        step = n / 100 + 1;
        for (i = 0; i < n; i += step, tried++)
            if (decode(bytes, i, &hash) == ESZ_OK) {
                printf("%s: accepted, cut at %lu\n", argv[file], (unsigned long)i);
                return 1;
            }
        for (i = 0; i < 8 * n; i += step * 4 + 1, tried++) {
            bytes[i >> 3] ^= (uint8_t)(1 << (i & 7));
            if (decode(bytes, n, &hash) == ESZ_OK) {
                printf("%s: accepted, bit %lu\n", argv[file], (unsigned long)i);
                return 1;
            }
            bytes[i >> 3] ^= (uint8_t)(1 << (i & 7));
        }
        for (k = 0; k < mutations && n > 64; k++, tried++) {
            unsigned many = 1 + next_random() % 4;
            memcpy(changed, bytes, n);
            while (many-- > 0) changed[12 + next_random() % (n - 12)] = (uint8_t)next_random();
            reseal(changed, n, get32(bytes + 48));
            if (decode(changed, n, &hash) == ESZ_OK) accepted++;
            images = images * 31 + hash;
        }
    }
    printf("tried %lu, accepted %lu, images %08lx\n", tried, accepted, (unsigned long)images);
    return 0;
}
