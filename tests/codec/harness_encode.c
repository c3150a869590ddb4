/* Encodes payloads of many sizes and densities from buffers of exactly their size, for a build with sanitizers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "esz_encode.h"

int main(void) {
    static const size_t sizes[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 255, 4095, 4096, 4097, 20001, 70000};
    static const unsigned densities[] = {0, 1, 10, 50, 100};
    static const uint32_t streams[] = {0, 1, 4, 8};
    uint32_t state = 7;
    unsigned long coded = 0;
    size_t s, d, a, t, i;
    for (s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (d = 0; d < sizeof densities / sizeof *densities; d++)
            for (a = 0; a < 8; a++)
                for (t = 0; t < 8; t++) {
                    size_t n = sizes[s];
                    uint8_t *data = malloc(n ? n : 1);
                    esz_encode_options options = {12, 0, 0, 0, 0, 0};
                    esz_encoded out;
                    if (data == NULL) return 3;
                    for (i = 0; i < n; i++) {
                        state = state * 1664525u + 1013904223u;
                        data[i] = state >> 16 & 0xFF;
                        if ((state >> 8 & 0xFF) % 100 >= densities[d]) data[i] = 0;
                        if (t & 1) data[i] &= 0x83;
                    }
                    options.alphabets = a >= 6 ? ~0u : 1u << a | ESZ_ALLOW_ROWS;
                    options.item_bytes = a == 7 ? 4 : a == 5 ? 0 : 1;
                    options.row_nibbles = 100 * t;
                    options.small = (uint32_t)t & 1;
                    options.streams = streams[t >> 1];
                    if (esz_encode_segment(data, n, &options, &out) != 0) return 1;
                    if (out.payload_bytes > 0 && out.payload == NULL) return 2;
                    coded += out.coded_bytes;
                    esz_encoded_free(&out);
                    free(data);
                }
    printf("coded %lu bytes\n", coded);
    return 0;
}
