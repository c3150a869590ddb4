/* Encoder, private: finds out whether a segment is made of few different values, and writes it as indices.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_BOOK_H
#define ESZ_BOOK_H

#include <stdlib.h>
#include <string.h>

#include "esz_format.h"

#define ESZ_BOOK_SLOTS 1024u

typedef struct {
    unsigned log2, count; /* count 0: no codebook */
    uint64_t value[256];
    uint8_t *index; /* malloc'ed, one byte a value */
} esz_book;

static uint64_t esz_value(const uint8_t *p, unsigned log2) {
    uint64_t x = 0;
    unsigned k;
    for (k = 1u << log2; k-- > 0;) x = x << 8 | p[k];
    return x;
}

static size_t esz_book_write(uint8_t *p, const esz_book *b) {
    unsigned i, k;
    if (b->count == 0) return 0;
    if (p != NULL) {
        *p++ = (uint8_t)(b->count - 1);
        for (i = 0; i < b->count; i++)
            for (k = 0; k < 1u << b->log2; k++) *p++ = (uint8_t)(b->value[i] >> (8 * k));
    }
    return 1 + ((size_t)b->count << b->log2);
}

/* Tries values of 2^log2 bytes. Returns 0 if there are more than 256 of them, 2 if out of memory, else 1. */
static int esz_book_try(esz_book *b, const uint8_t *d, size_t n, unsigned log2) {
    uint64_t key[ESZ_BOOK_SLOTS];
    uint16_t slot[ESZ_BOOK_SLOTS]; /* index + 1, or 0 */
    size_t i, values = n >> log2;
    if (values << log2 != n || values < 2) return 0;
    memset(slot, 0, sizeof slot);
    b->log2 = log2;
    b->count = 0;
    b->index = (uint8_t *)malloc(values);
    if (b->index == NULL) return 2;
    for (i = 0; i < values; i++) {
        uint64_t x = esz_value(d + (i << log2), log2);
        unsigned at = (unsigned)((x * 0x9E3779B97F4A7C15u) >> 54);
        while (slot[at] != 0 && key[at] != x) at = (at + 1) % ESZ_BOOK_SLOTS;
        if (slot[at] == 0) {
            if (b->count == 256) {
                free(b->index);
                b->index = NULL;
                b->count = 0;
                return 0;
            }
            key[at] = x;
            b->value[b->count++] = x;
            slot[at] = (uint16_t)b->count;
        }
        b->index[i] = (uint8_t)(slot[at] - 1);
    }
    return 1;
}

#endif
