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
#include "esz_list.h"

/* Row classes have to save this share of the bits: they cost decoding time, most with gaps, whose streams come to the
 * end of a row at different times. */
#define ESZ_ROWS_SHARE 0.005
#define ESZ_SPARSE_ROWS_SHARE 0.01

/* How classes are sought: the rows looked at, and Lloyd's steps. The fewer tokens a segment has, the less a step takes and
 * the more its classes weigh. */
typedef struct {
    unsigned rows, steps;
} esz_effort;

static esz_effort esz_effort_for(const esz_kind *k) {
    static const esz_effort dense = {128, 2}, sparse = {1024, 4}, nibbles = {1024, 3}, clusters = {16384, 16};
    if (k->alphabet == ESZ_PLAIN || k->alphabet == ESZ_MASK8) return dense;
    return k->nibble ? nibbles : k->alphabet == ESZ_JOINT ? clusters : sparse;
}

#define ESZ_LEAST_ROW 64u

/* A row's bits under each class are summed up in 16 bits: 2,500 items of two codes, of 13 bits at most, fit. */
#define ESZ_MOST_ROW 2500u

/* Code lengths of all classes, 16 bits each, ready to be added up. */
static void esz_row_prices(uint64_t *price, const esz_codes *codes, unsigned classes) {
    unsigned c, t, i;
    memset(price, 0, 512 * sizeof *price);
    for (c = 0; c < classes; c++)
        for (t = 0; t < 2; t++)
            for (i = 0; i < codes[c].table[t].symbols; i++) {
                const esz_codebook *table = &codes[c].table[t];
                unsigned bits = table->used == 1 ? 0 : table->length[i];
                /* A symbol without a code would need other codes to grow. */
                if (table->length[i] == 0) bits = ESZ_MAX_CODE_BITS + 2;
                price[256 * t + i] |= (uint64_t)bits << (16 * c);
            }
}

/* The same for classes of which `sums` are the symbols, in `unit`ths of a bit, by what each symbol's share is worth. */
static void esz_share_prices(uint64_t *price, const uint32_t *sums, unsigned classes, unsigned unit) {
    unsigned c, t, i;
    memset(price, 0, 512 * sizeof *price);
    for (c = 0; c < classes; c++)
        for (t = 0; t < 2; t++) {
            const uint32_t *n = sums + 512 * c + 256 * t;
            uint64_t total = 0;
            double all;
            for (i = 0; i < 256; i++) total += n[i];
            all = total ? esz_log2((double)total) : 0;
            for (i = 0; i < 256; i++) {
                double bits = n[i] ? all - esz_log2(n[i]) : ESZ_MAX_CODE_BITS + 2;
                if (n[i] && bits > ESZ_MAX_CODE_BITS) bits = ESZ_MAX_CODE_BITS;
                price[256 * t + i] |= (uint64_t)(bits * unit + 0.5) << (16 * c);
            }
        }
}

static unsigned esz_cheapest_class(uint64_t paid) {
    unsigned c, best = 0;
    for (c = 1; c < ESZ_ROW_CLASSES; c++)
        if ((paid >> (16 * c) & 0xFFFF) < (paid >> (16 * best) & 0xFFFF)) best = c;
    return best;
}

/* The tokens of every `step`th row: those of the i-th of them from token[begin[each * i]] to token[begin[each * i + 1]]. */
typedef struct {
    const uint16_t *token;
    const size_t *begin;
    size_t step, each, count;
    void *own; /* to be freed */
} esz_row_list;

/* Of PLAIN the tokens are the items; else all rows are in `l` already. Returns 0 if out of memory. */
static int esz_list_rows(esz_row_list *list, const uint8_t *d, size_t items, const esz_kind *k, const esz_rows *rows,
                         const esz_tokens *l) {
    uint16_t *to;
    size_t *begin, i, j;
    list->step = rows->count / esz_effort_for(k).rows + 1;
    list->count = (rows->count - 1) / list->step + 1;
    list->token = l->token;
    list->begin = l->begin;
    list->each = list->step;
    list->own = NULL;
    if (k->alphabet != ESZ_PLAIN) return 1;
    begin = (size_t *)malloc((list->count + 1) * sizeof *begin + list->count * rows->items * sizeof *to);
    if (begin == NULL) return 0;
    to = (uint16_t *)(begin + list->count + 1);
    for (i = 0, begin[0] = 0; i < list->count; i++) {
        const size_t from = i * list->step * rows->items, n = items - from < rows->items ? items - from : rows->items;
        for (j = 0; j < n; j++) to[begin[i] + j] = d[from + j];
        begin[i + 1] = begin[i] + n;
    }
    list->own = begin;
    list->begin = begin;
    list->token = to;
    list->each = 1;
    return 1;
}

/* What the tokens from `t` to `end` cost; four sums, so that they do not wait for each other. */
#define ESZ_PAID(name, type)                                                          \
    static uint64_t name(const type *t, const type *end, const uint64_t *price) {     \
        uint64_t paid[4] = {0, 0, 0, 0};                                              \
        for (; end - t >= 4; t += 4) {                                                \
            paid[0] += price[t[0]];                                                   \
            paid[1] += price[t[1]];                                                   \
            paid[2] += price[t[2]];                                                   \
            paid[3] += price[t[3]];                                                   \
        }                                                                             \
        for (; t < end; t++) paid[0] += price[*t];                                    \
        return paid[0] + paid[1] + paid[2] + paid[3];                                 \
    }
ESZ_PAID(esz_paid, uint16_t)
ESZ_PAID(esz_bytes_paid, uint8_t)

static const uint16_t *esz_row_token(const esz_row_list *l, size_t i, size_t end) {
    return l->token + l->begin[l->each * i + end];
}

/* Counts tokens in two tables, so that equal neighbours do not wait for each other. */
static void esz_count_tokens(const uint16_t *t, const uint16_t *end, uint32_t *even, uint32_t *odd) {
    for (; end - t >= 2; t += 2) {
        even[t[0]]++;
        odd[t[1]]++;
    }
    if (t < end) even[*t]++;
}

/* Counts the tokens of each class's listed rows into sums, 2 x 256 a class, which has as much room again behind it. */
static void esz_count_listed(const esz_row_list *l, const esz_rows *rows, uint32_t *sums) {
    const size_t each = 512 * ESZ_ROW_CLASSES;
    size_t i;
    memset(sums, 0, 2 * each * sizeof *sums);
    for (i = 0; i < l->count; i++) {
        uint32_t *even = sums + 512 * (size_t)rows->number[i * l->step];
        esz_count_tokens(esz_row_token(l, i, 0), esz_row_token(l, i, 1), even, even + each);
    }
    for (i = 0; i < each; i++) sums[i] += sums[each + i];
}

/* Sorts all rows into the classes that have these codes, unless `list` has them all. */
static void esz_sort_rows(esz_rows *rows, const esz_row_list *list, const uint8_t *d, size_t items, const esz_kind *k,
                          const esz_tokens *l, const esz_codes *classes) {
    uint64_t price[512];
    size_t row;
    if (list->step == 1) return;
    esz_row_prices(price, classes, ESZ_ROW_CLASSES);
    for (row = 0; row < rows->count; row++) {
        const size_t from = row * rows->items, to = from + rows->items < items ? from + rows->items : items;
        rows->number[row] = (uint8_t)esz_cheapest_class(
            k->alphabet == ESZ_PLAIN ? esz_bytes_paid(d + from, d + to, price)
                                     : esz_paid(l->token + l->begin[row], l->token + l->begin[row + 1], price));
    }
}

/* Fills rows->number for the listed rows, and `sums` (2 x 256 a class, and as much again) with the symbols of each
 * class; `counts` (2 x 256) are the symbols of all. Returns 0 if out of memory. */
static int esz_find_rows(esz_rows *rows, const esz_row_list *l, const esz_kind *k, const uint32_t *counts,
                         uint32_t *sums) {
    const unsigned steps = esz_effort_for(k).steps;
    uint32_t *tally = (uint32_t *)calloc(65536, sizeof *tally);
    uint16_t *cost = (uint16_t *)malloc(l->count * sizeof *cost);
    unsigned border[ESZ_ROW_CLASSES], c, turn, moved = 1, unit;
    uint64_t price[512];
    size_t i, seen, most = 1;
    if (tally == NULL || cost == NULL) {
        free(tally);
        free(cost);
        return 0;
    }
    for (i = 0; i < l->count; i++)
        if ((size_t)(esz_row_token(l, i, 1) - esz_row_token(l, i, 0)) > most)
            most = (size_t)(esz_row_token(l, i, 1) - esz_row_token(l, i, 0));
    unit = (unsigned)(65535 / ((ESZ_MAX_CODE_BITS + 2) * most));
    if (unit == 0) unit = 1;
    if (unit > 64) unit = 64;
    esz_share_prices(price, counts, 1, unit);
    for (i = 0; i < l->count; i++) {
        cost[i] = (uint16_t)esz_paid(esz_row_token(l, i, 0), esz_row_token(l, i, 1), price);
        tally[cost[i]]++;
    }
    for (c = turn = 0, seen = 0; c < 65536 && turn < ESZ_ROW_CLASSES; c++) { /* the costs at which the quarters end */
        seen += tally[c];
        while (turn < ESZ_ROW_CLASSES && seen * ESZ_ROW_CLASSES >= l->count * (turn + 1)) border[turn++] = c;
    }
    for (i = 0; i < l->count; i++) {
        uint8_t *number = &rows->number[i * l->step];
        while (*number + 1u < ESZ_ROW_CLASSES && cost[i] > border[*number]) ++*number;
    }
    esz_count_listed(l, rows, sums);
    for (turn = 0; turn < steps && moved; turn++) {
        esz_share_prices(price, sums, ESZ_ROW_CLASSES, unit);
        for (i = moved = 0; i < l->count; i++) {
            const uint16_t *t = esz_row_token(l, i, 0), *end = esz_row_token(l, i, 1);
            const uint8_t now = (uint8_t)esz_cheapest_class(esz_paid(t, end, price)), old = rows->number[i * l->step];
            if (now == old) continue;
            moved = 1;
            rows->number[i * l->step] = now;
            for (; t < end; t++) {
                sums[512 * (size_t)old + *t]--;
                sums[512 * (size_t)now + *t]++;
            }
        }
    }
    free(tally);
    free(cost);
    return 1;
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
