/* Decoder, private: what the loops over streams know about their block, and the rows that choose its tables.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_CODE_H
#define ESZ_CODE_H

#include "esz_table.h"

typedef struct {
    esz_table first[ESZ_ROW_CLASSES], second[ESZ_ROW_CLASSES];
    unsigned alphabet, nibble, cap, fill;
    esz_joint joint; /* without its `values`, which are in the tables */
    const uint8_t *map;  /* the classes of the block's rows, 2 bits each */
    size_t row_items;    /* 0: no rows */
    size_t first_row;    /* items of the block's first row, which may have started in the block before */
} esz_code;

/* The row that a stream is in; all rows are counted within the block. */
typedef struct {
    size_t end, index;
    unsigned number; /* its class */
} esz_row;

static void esz_row_begin(esz_row *row, const esz_code *c) {
    row->index = 0;
    row->number = c->row_items != 0 ? c->map[0] & 3u : 0;
    row->end = c->row_items != 0 ? c->first_row : ~(size_t)0;
}

/* Makes `row` the one of item `at`. At the very end of a block it may look at the byte behind the map. */
static void esz_row_seek(esz_row *row, const esz_code *c, size_t at) {
    if (at < row->end) return;
    do {
        row->end += c->row_items;
        row->index++;
    } while (at >= row->end);
    row->number = (unsigned)c->map[row->index >> 2] >> (2 * (row->index & 3)) & 3u;
}

#endif
