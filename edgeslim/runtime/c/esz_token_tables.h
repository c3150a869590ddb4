/* The tables of a tokenizer file, and lookups in them. Part of esz_token.c. SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_TOKEN_TABLES_H
#define ESZ_TOKEN_TABLES_H

#include <string.h>

#include "esz_token.h"

enum { WORDPIECE = 1, BPE = 2 };
enum { CLEAN = 1, SPACE_CHINESE = 2, STRIP_ACCENTS = 4, LOWER = 8, PREFIX_SPACE = 16, FUSE_UNKNOWN = 32, SINGLE_DIGITS = 64, WHOLE_WORDS = 128, WIDE = 256 };
/* Flags of code points. */
enum { DROPPED = 1, SPACE = 2, CHINESE = 4, PUNCTUATION = 8, MARK = 16, NONSTARTER = 32, LETTER = 64, NUMBER = 128, REGEX_SPACE = 256, NUMERIC = 512 };

#define HEADER_BYTES 128u
#define MAGIC 0x014B5445u
#define NONE 0xFFFFFFFFu
#define MAX_CODE 0x10FFFFu
#define CODE_MASK 0x1FFFFFu
#define MAX_COUNT (1u << 20)
#define MAX_FRAME 16u
#define MAX_WORD 256u
#define SPECIAL 0x80000000u
#define POOLED 0x80000000u
#define BLOCK 16u

static uint32_t get16(const uint8_t *at) { return (uint32_t)at[0] | (uint32_t)at[1] << 8; }
static uint32_t get32(const uint8_t *at) { return get16(at) | get16(at + 2) << 16; }
static uint64_t get64(const uint8_t *at) { return get32(at) | (uint64_t)get32(at + 4) << 32; }

static uint32_t get_id(const uint8_t *at, uint32_t index, int wide) { return wide ? get32(at + 4u * index) : get16(at + 2u * index); }

/* The last of `count` records of `size` bytes whose first u32 (its bits in `mask`) is not above `key`; `count` if none is. */
static uint32_t find_last(const uint8_t *at, uint32_t count, uint32_t size, uint32_t mask, uint32_t key) {
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if ((get32(at + size * middle) & mask) <= key) low = middle + 1;
        else high = middle;
    }
    return low == 0 ? count : low - 1;
}

static uint32_t flags_of(const esz_tokenizer *t, uint32_t code) {
    return get32(t->segments + 4u * find_last(t->segments, t->segment_count, 4, CODE_MASK, code)) >> 21;
}

static uint32_t class_of(const esz_tokenizer *t, uint32_t code) {
    uint32_t low = 0, high = t->class_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2, entry = get32(t->classes + 4u * middle);
        if (entry >> 8 == code) return entry & 255u;
        if (entry >> 8 < code) low = middle + 1;
        else high = middle;
    }
    return 0;
}

/* What becomes of a code point: up to 255 of them; the count is returned, *pooled points at u32s if it isn't 1. */
static uint32_t map_code(const esz_token_map *map, uint32_t code, uint32_t *one, const uint8_t **pooled) {
    uint32_t found = find_last(map->runs, map->run_count, 12, NONE, code), low = 0, high = map->short_count;
    *one = code;
    if (found < map->run_count) {
        const uint8_t *run = map->runs + 12u * found;
        const uint32_t away = code - get32(run), step = get16(run + 6);
        if (away % step == 0 && away / step < get16(run + 4)) {
            *one = code + get32(run + 8);
            return 1;
        }
    }
    found = find_last(map->pairs, map->pair_count, 8, NONE, code);
    if (found < map->pair_count && get32(map->pairs + 8u * found) == code) {
        const uint32_t value = get32(map->pairs + 8u * found + 4);
        if ((value & POOLED) == 0) {
            *one = value;
            return 1;
        }
        *pooled = map->pool + 4u * (value >> 8 & 0x7FFFFFu);
        return value & 255u;
    }
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2, key = get16(map->shorts + 4u * middle);
        if (key == code) {
            *one = get16(map->shorts + 4u * middle + 2);
            return 1;
        }
        if (key < code) low = middle + 1;
        else high = middle;
    }
    return 1;
}

static int compare(const uint8_t *a, uint32_t a_bytes, const uint8_t *b, uint32_t b_bytes) {
    const int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);
    return order != 0 ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

/* The index of a string, or NONE: a search among every 16th, then one after the other. */
static uint32_t find_string(const esz_token_strings *s, const uint8_t *text, uint32_t bytes) {
    uint32_t low = 0, high = (s->count + BLOCK - 1) / BLOCK, i, end, place;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (compare(s->pool + get32(s->places + 4u * middle), s->lengths[BLOCK * middle], text, bytes) <= 0) low = middle + 1;
        else high = middle;
    }
    if (low == 0) return NONE;
    i = BLOCK * (low - 1);
    end = s->count - i < BLOCK ? s->count : i + BLOCK;
    place = get32(s->places + 4u * (low - 1));
    for (; i < end; place += s->lengths[i++]) {
        if (s->lengths[i] == bytes && memcmp(s->pool + place, text, bytes) == 0) return i;
    }
    return NONE;
}

static uint32_t string_id(const esz_token_strings *s, uint32_t index) { return get_id(s->ids, index, s->wide); }

static const uint8_t *string_at(const esz_token_strings *s, uint32_t index) {
    uint32_t place = get32(s->places + 4u * (index / BLOCK)), i;
    for (i = index / BLOCK * BLOCK; i < index; i++) place += s->lengths[i];
    return s->pool + place;
}

/* The longest string that `text` begins with: its index, or NONE. */
static uint32_t find_prefix(const esz_token_strings *s, const uint8_t *text, size_t bytes, uint32_t longest, uint32_t *length) {
    uint32_t size = bytes < longest ? (uint32_t)bytes : longest;
    for (; size > 0; size--) {
        const uint32_t found = find_string(s, text, size);
        if (found != NONE) {
            *length = size;
            return found;
        }
    }
    return NONE;
}

/* The next code point, at most `end - *at` bytes long; malformed bytes give U+FFFD, as many as Unicode recommends:
 * one for each longest beginning of a character. */
static uint32_t next_code(const uint8_t **at, const uint8_t *end) {
    const uint8_t *p = *at;
    const uint32_t first = *p++;
    uint32_t code, more, least = 0x80, most = 0xBF;
    *at = p;
    if (first < 0x80) return first;
    if (first < 0xC2 || first > 0xF4) return 0xFFFD;
    more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    code = first & (0x3Fu >> more);
    if (first == 0xE0) least = 0xA0;
    if (first == 0xED) most = 0x9F;
    if (first == 0xF0) least = 0x90;
    if (first == 0xF4) most = 0x8F;
    for (; more > 0; more--) {
        if (p == end || *p < least || *p > most) {
            *at = p;
            return 0xFFFD;
        }
        code = code << 6 | (*p++ & 0x3F);
        least = 0x80;
        most = 0xBF;
    }
    *at = p;
    return code;
}

static uint32_t put_code(uint32_t code, uint8_t *to) {
    if (code < 0x80) {
        to[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        to[0] = (uint8_t)(0xC0 | code >> 6);
        to[1] = (uint8_t)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (uint8_t)(0xE0 | code >> 12);
        to[1] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        to[2] = (uint8_t)(0x80 | (code & 0x3F));
        return 3;
    }
    to[0] = (uint8_t)(0xF0 | code >> 18);
    to[1] = (uint8_t)(0x80 | (code >> 12 & 0x3F));
    to[2] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
    to[3] = (uint8_t)(0x80 | (code & 0x3F));
    return 4;
}

#endif
