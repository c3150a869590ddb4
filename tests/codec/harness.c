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
#include "esz_reseal.h"

static uint32_t random_state = 12345;

static uint32_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
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
