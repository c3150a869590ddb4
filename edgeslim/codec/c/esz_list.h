/* Encoder, private: a segment's elements as the tokens of GAP, MASK8 or JOINT, 256 table + symbol each. They are listed
 * once; all counting, pricing and writing goes over the list, so that counted and written symbols cannot differ.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_LIST_H
#define ESZ_LIST_H

#include <stdlib.h>

#include "esz_walk.h"

/* The tokens of a segment, or of a stretch of it. Chunks follow each other, so a row's tokens lie side by side; a token
 * belongs to the row of the element at which it starts. */
typedef struct {
    uint16_t *token;
    size_t count, room;
    size_t *begin;                /* of each row's tokens, or null: no rows */
    size_t row, row_items, row_end; /* the row that the list is in, and its end within the segment */
    size_t base, items;           /* the block's first item within the segment; the segment's items */
} esz_tokens;

/* Goes on to the row of item `at` of the block, whose tokens begin at `to`; returns where the row ends. */
static size_t esz_turn(esz_tokens *l, size_t at, const uint16_t *to) {
    for (; l->base + at >= l->row_end; l->row_end += l->row_items) l->begin[++l->row] = (size_t)(to - l->token);
    return l->row_end - l->base;
}

/* Masks of 64 elements at a time: where a loop over one ends cannot be predicted, and costs. */
ESZ_ALWAYS uint16_t *esz_list_gaps(const uint8_t *d, size_t from, size_t to, const esz_kind *k, const unsigned nibble,
                                   uint16_t *list, size_t row_end, esz_tokens *l) {
    const size_t cap = k->cap;
    size_t i, next = from, gap; /* `next`: the element behind the last value */
    uint8_t held[64];
    for (i = from; i < to; i += 64) {
        uint64_t mask = esz_mask64(d, i, to, k->fill, nibble, nibble ? held : NULL);
        const uint8_t *elements = nibble ? held : d + i;
        for (; mask != 0; mask &= mask - 1) {
            const unsigned bit = esz_lowest_bit(mask);
            const size_t other = i + bit;
            for (gap = other - next; gap >= cap; gap -= cap, next += cap) {
                if (next >= row_end) row_end = esz_turn(l, next, list);
                *list++ = (uint16_t)cap;
            }
            if (next >= row_end) row_end = esz_turn(l, next, list);
            list[0] = (uint16_t)gap;
            list[1] = (uint16_t)(256 + elements[bit]);
            list += 2;
            next = other + 1;
        }
    }
    for (; next < to; next += gap) {
        gap = to - next < cap ? to - next : cap;
        if (next >= row_end) row_end = esz_turn(l, next, list);
        *list++ = (uint16_t)gap;
    }
    return list;
}

ESZ_ALWAYS uint16_t *esz_list_joint(const uint8_t *d, size_t from, size_t to, const esz_kind *k, const unsigned nibble,
                                    uint16_t *list, size_t row_end, esz_tokens *l) {
    const unsigned top = k->top, pairs = k->cap * top, log2 = esz_lowest_bit(k->cap);
    const size_t cap = k->cap, most = (size_t)ESZ_JOINT_RUNS << log2;
    uint16_t symbol[256], first[16];
    size_t i, next = from, gap, run;
    uint8_t held[64];
    for (i = 0; i < 256; i++) symbol[i] = (uint16_t)(i - (i > k->fill));
    for (i = 0; i < cap; i++) first[i] = (uint16_t)(i * top);
    for (i = from; i < to; i += 64) {
        uint64_t mask = esz_mask64(d, i, to, k->fill, nibble, nibble ? held : NULL);
        const uint8_t *elements = nibble ? held : d + i;
        for (; mask != 0; mask &= mask - 1) {
            const unsigned bit = esz_lowest_bit(mask);
            const size_t other = i + bit;
            gap = other - next;
            if (next >= row_end) row_end = esz_turn(l, next, list);
            while (gap >= cap) {
                run = gap < most ? gap >> log2 : ESZ_JOINT_RUNS;
                *list++ = (uint16_t)(pairs + run - 1);
                next += run << log2;
                gap -= run << log2;
                if (next >= row_end) row_end = esz_turn(l, next, list);
            }
            *list++ = (uint16_t)(first[gap] + symbol[elements[bit]]);
            next = other + 1;
        }
    }
    for (; next < to; next += run << log2) { /* the last run may reach past the end */
        run = (to - next + cap - 1) >> log2;
        if (run > ESZ_JOINT_RUNS) run = ESZ_JOINT_RUNS;
        if (next >= row_end) row_end = esz_turn(l, next, list);
        *list++ = (uint16_t)(pairs + run - 1);
    }
    return list;
}

/* The values of a group: those of its elements that are in `mask`. Every element is written, and kept if it is a value:
 * how many are cannot be predicted. */
static inline uint16_t *esz_list_group(const uint8_t *d, size_t i, unsigned mask, const unsigned nibble, uint16_t *list) {
    unsigned j;
    for (j = 0; j < 8; j++) {
        *list = (uint16_t)(256 + esz_element(d, i + j, nibble));
        list += mask >> j & 1u;
    }
    return list;
}

#if defined(ESZ_BMI2)
ESZ_BMI2 static inline uint16_t *esz_list_group_bmi2(const uint8_t *d, size_t i, unsigned mask, const unsigned nibble,
                                                     uint16_t *list) {
    const uint64_t low = 0x0F0F0F0F0F0F0F0Fu, ones = 0x0101010101010101u;
    const uint64_t packed = nibble ? _pdep_u64(_pext_u32(esz_load32(d + i / 2), _pdep_u32(mask, 0x11111111u) * 15u), low)
                                   : _pext_u64(esz_load64(d + i), _pdep_u64(mask, ones) * 255u);
    const __m128i bytes = _mm_cvtsi64_si128((long long)packed);
    _mm_storeu_si128((__m128i *)(void *)list, _mm_unpacklo_epi8(bytes, _mm_set1_epi8(1)));
    return list + __builtin_popcount(mask);
}
#else
#define esz_list_group_bmi2 esz_list_group
#endif

ESZ_ALWAYS uint16_t *esz_list_masks(const uint8_t *d, size_t from, size_t to, const esz_kind *k, const unsigned nibble,
                                    const int bmi2, uint16_t *list, size_t row_end, esz_tokens *l) {
    size_t i, j;
    for (i = from; i < to; i += 64) {
        uint64_t masks = esz_mask64(d, i, to, k->fill, nibble, NULL);
        for (j = i; j < i + 64 && j < to; j += 8, masks >>= 8) {
            unsigned mask = (unsigned)masks & 255u;
            if (j >= row_end) row_end = esz_turn(l, j, list);
            *list++ = (uint16_t)mask;
            if (to - j >= 8)
                list = bmi2 ? esz_list_group_bmi2(d, j, mask, nibble, list) : esz_list_group(d, j, mask, nibble, list);
            else
                for (; mask != 0; mask &= mask - 1)
                    *list++ = (uint16_t)(256 + esz_element(d, j + esz_lowest_bit(mask), nibble));
        }
    }
    return list;
}

#define ESZ_LISTS(name, bmi2, attribute) \
    attribute static uint16_t *name(const uint8_t *d, size_t from, size_t to, const esz_kind *k, uint16_t *list, \
                                    size_t row_end, esz_tokens *l) { \
        return k->alphabet == ESZ_GAP     ? k->nibble ? esz_list_gaps(d, from, to, k, 1, list, row_end, l) \
                                                      : esz_list_gaps(d, from, to, k, 0, list, row_end, l) \
               : k->alphabet == ESZ_JOINT ? k->nibble ? esz_list_joint(d, from, to, k, 1, list, row_end, l) \
                                                      : esz_list_joint(d, from, to, k, 0, list, row_end, l) \
               : k->nibble                ? esz_list_masks(d, from, to, k, 1, bmi2, list, row_end, l) \
                                          : esz_list_masks(d, from, to, k, 0, bmi2, list, row_end, l); \
    }

ESZ_LISTS(esz_list_any, 0, )
#if defined(ESZ_BMI2)
ESZ_LISTS(esz_list_bmi2, 1, ESZ_BMI2)
#endif

/* Appends the tokens of items `from` to `to`, one chunk, of the block at `d`. Returns 0 if out of memory. */
static int esz_list(esz_tokens *l, const uint8_t *d, size_t from, size_t to, const esz_kind *k) {
    const size_t needed = l->count + 2 * (to - from) + 8; /* a group of MASK8 may write 8 more */
    size_t row_end = ~(size_t)0;
    uint16_t *list;
    if (needed > l->room) { /* what is still to come, if it is like what was listed, and a little more */
        const size_t done = l->base + from, left = l->items > done ? l->items - done : 0;
        const size_t room = needed + (l->count > 0 ? (size_t)(1.1 * (double)l->count / (double)done * (double)left) : 0);
        uint16_t *more = (uint16_t *)realloc(l->token, room * sizeof *more);
        if (more == NULL) return 0;
        l->token = more;
        l->room = room;
    }
    list = l->token + l->count;
    if (l->begin != NULL && from < to) row_end = esz_turn(l, from, list);
#if defined(ESZ_BMI2)
    list = __builtin_cpu_supports("bmi2") ? esz_list_bmi2(d, from, to, k, list, row_end, l)
                                          : esz_list_any(d, from, to, k, list, row_end, l);
#else
    list = esz_list_any(d, from, to, k, list, row_end, l);
#endif
    l->count = (size_t)(list - l->token);
    return 1;
}

#endif
