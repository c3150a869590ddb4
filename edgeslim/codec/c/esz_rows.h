/* Encoder, private: sorts the rows of a segment into classes with a table set each.
 *
 * Rows of a weight matrix differ in their share of zeros and in their spread, so one code for all fits none of them.
 * The classes are found as in k-means, with the bits that a row costs under a class's code as its distance (Lloyd's
 * steps on a sample of the rows, starting from the quarters of the rows by cost under the common code).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_ROWS_H
#define ESZ_ROWS_H

#include "esz_choose.h"
#include "esz_walk.h"

/* Row classes have to save this share of the bits: they cost decoding time, most with gaps, whose streams come to the
 * end of a row at different times. */
#define ESZ_ROWS_SHARE 0.005
#define ESZ_SPARSE_ROWS_SHARE 0.01

/* Rows looked at while classes are sought, and Lloyd's steps. Small codes need the better classes. */
#define ESZ_ROWS_SAMPLE 256u
#define ESZ_ROWS_STEPS 3u
#define ESZ_SPARSE_ROWS_SAMPLE 1024u
#define ESZ_SPARSE_ROWS_STEPS 6u

static size_t esz_rows_step(const esz_rows *rows, const esz_kind *k) {
    return rows->count / (k->alphabet == ESZ_PLAIN ? ESZ_ROWS_SAMPLE : ESZ_SPARSE_ROWS_SAMPLE) + 1;
}
#define ESZ_LEAST_ROW 64u

/* A row's bits under each class are summed up in 16 bits: 2,500 items of two codes, of 13 bits at most, fit. */
#define ESZ_MOST_ROW 2500u

/* Code lengths of all classes, 16 bits each, ready to be added up. */
static void esz_row_prices(uint64_t *price, const esz_codebook (*books)[2], unsigned classes) {
    unsigned c, t, i;
    memset(price, 0, 512 * sizeof *price);
    for (c = 0; c < classes; c++)
        for (t = 0; t < 2; t++)
            for (i = 0; i < books[c][t].symbols; i++) {
                unsigned bits = books[c][t].used == 1 ? 0 : books[c][t].length[i];
                /* A symbol without a code would need other codes to grow. */
                if (books[c][t].length[i] == 0) bits = ESZ_MAX_CODE_BITS + 2;
                price[256 * t + i] |= (uint64_t)bits << (16 * c);
            }
}

static unsigned esz_cheapest_class(uint64_t paid) {
    unsigned c, best = 0;
    for (c = 1; c < ESZ_ROW_CLASSES; c++)
        if ((paid >> (16 * c) & 0xFFFF) < (paid >> (16 * best) & 0xFFFF)) best = c;
    return best;
}

static uint64_t esz_row_paid(const uint8_t *d, size_t items, const esz_kind *k, const esz_rows *rows, size_t row,
                             const uint64_t *price) {
    size_t from = row * rows->items, to = from + rows->items < items ? from + rows->items : items;
    return esz_price(d, from, to, k, price);
}

static void esz_count_row(const uint8_t *d, size_t items, const esz_kind *k, const esz_rows *rows, size_t row,
                          uint32_t *counts) {
    size_t from = row * rows->items, to = from + rows->items < items ? from + rows->items : items;
    esz_count(d, from, to, k, NULL, 0, counts);
}

static void esz_class_codes(esz_codebook (*books)[2], const uint32_t *counts, const esz_kind *k) {
    unsigned c;
    for (c = 0; c < ESZ_ROW_CLASSES; c++) esz_set_codes(books[c], counts + 512 * c, k, 0);
}

/* Sorts all rows into the classes of which `sums` are the symbols. */
static void esz_sort_rows(esz_rows *rows, const uint8_t *d, size_t items, const esz_kind *k, const uint32_t *sums) {
    esz_codebook books[ESZ_ROW_CLASSES][2];
    uint64_t price[512];
    size_t row;
    esz_class_codes(books, sums, k);
    esz_row_prices(price, (const esz_codebook(*)[2])books, ESZ_ROW_CLASSES);
    for (row = 0; row < rows->count; row++)
        rows->number[row] = (uint8_t)esz_cheapest_class(esz_row_paid(d, items, k, rows, row, price));
}

/* Fills rows->number, for rows of a sample, of the `items` items at `d`, of which `counts` (2 x 256) are the symbols. Returns 0 if out of
 * memory. */
static int esz_find_rows(esz_rows *rows, const uint8_t *d, size_t items, const esz_kind *k, const uint32_t *counts) {
    const size_t size = sizeof(uint32_t) * 512 * ESZ_ROW_CLASSES;
    const unsigned steps = k->alphabet == ESZ_PLAIN ? ESZ_ROWS_STEPS : ESZ_SPARSE_ROWS_STEPS;
    size_t step = esz_rows_step(rows, k), row, seen;
    uint32_t *sums = (uint32_t *)malloc(size), *tally = (uint32_t *)calloc(65536, sizeof *tally);
    uint16_t *cost = (uint16_t *)malloc((rows->count + 1) * sizeof *cost);
    esz_codebook(*books)[2] = (esz_codebook(*)[2])malloc(ESZ_ROW_CLASSES * sizeof *books);
    uint64_t price[512];
    unsigned c, turn;
    rows->number = (uint8_t *)calloc(rows->count, 1);
    if (sums != NULL && tally != NULL && cost != NULL && books != NULL && rows->number != NULL) {
        unsigned border[ESZ_ROW_CLASSES];
        esz_set_codes(books[0], counts, k, 0);
        esz_row_prices(price, (const esz_codebook(*)[2])books, 1);
        for (row = seen = 0; row < rows->count; row += step, seen++) {
            cost[row] = (uint16_t)esz_row_paid(d, items, k, rows, row, price);
            tally[cost[row]]++;
        }
        for (c = turn = 0, row = 0; c < 65536; c++) { /* the costs at which the quarters end */
            row += tally[c];
            while (turn < ESZ_ROW_CLASSES && row * ESZ_ROW_CLASSES >= seen * (turn + 1)) border[turn++] = c;
        }
        for (row = 0; row < rows->count; row += step)
            while (rows->number[row] + 1u < ESZ_ROW_CLASSES && cost[row] > border[rows->number[row]])
                rows->number[row]++;
        for (turn = 0; turn < steps; turn++) {
            memset(sums, 0, size);
            for (row = 0; row < rows->count; row += step)
                esz_count_row(d, items, k, rows, row, sums + 512 * rows->number[row]);
            esz_class_codes(books, sums, k);
            esz_row_prices(price, (const esz_codebook(*)[2])books, ESZ_ROW_CLASSES);
            for (row = 0; row < rows->count; row += step)
                rows->number[row] = (uint8_t)esz_cheapest_class(esz_row_paid(d, items, k, rows, row, price));
        }
    } else {
        free(rows->number);
        rows->number = NULL;
    }
    free(sums);
    free(tally);
    free(cost);
    free(books);
    return rows->number != NULL;
}

/* The items of a row as they are coded, or 0: `row_nibbles` is the size of the tensor's rows. */
static size_t esz_row_items(const esz_kind *k, size_t row_nibbles, size_t items, unsigned book_log2) {
    size_t row = k->nibble ? row_nibbles : row_nibbles / 2 >> book_log2, times = 1;
    if (row == 0) row = 512;
    while (row * times < ESZ_LEAST_ROW || row * times % ESZ_ROW_UNIT != 0) times++;
    row *= times;
    if (row > ESZ_MOST_ROW) row = row % 1024 == 0 ? 1024 : row % 768 == 0 ? 768 : 512;
    return items / row < 4 * ESZ_ROW_CLASSES ? 0 : row;
}

#endif
