/* See esz_token.h. The file is described in edgeslim/packaging/tokenizer_file.py. SPDX-License-Identifier: Apache-2.0 */
#include "esz_token.h"

#include "esz_token_bpe.h"
#include "esz_token_tables.h"
#include "esz_token_wordpiece.h"

/* A walk through the file's sections. `left` is what no section has taken. */
typedef struct {
    const uint8_t *at;
    uint64_t left;
    int bad;
} cursor;

static const uint8_t *take(cursor *c, uint64_t count, uint32_t size) {
    const uint64_t bytes = (count * size + 3u) & ~(uint64_t)3u;
    const uint8_t *at = c->at;
    if (c->bad || bytes > c->left) {
        c->bad = 1;
        return at;
    }
    c->at += bytes;
    c->left -= bytes;
    return at;
}

static void take_map(cursor *c, const uint8_t *counts, esz_token_map *map) {
    map->run_count = get32(counts);
    map->pair_count = get32(counts + 4);
    map->pool_count = get32(counts + 8);
    map->short_count = get32(counts + 12);
    map->runs = take(c, map->run_count, 12);
    map->pairs = take(c, map->pair_count, 8);
    map->pool = take(c, map->pool_count, 4);
    map->shorts = take(c, map->short_count, 4);
}

static void take_strings(cursor *c, const uint8_t *counts, int wide, esz_token_strings *s) {
    s->count = get32(counts);
    s->pool_bytes = get32(counts + 4);
    s->wide = wide;
    s->lengths = take(c, s->count, 1);
    s->places = take(c, ((uint64_t)s->count + BLOCK - 1) / BLOCK, 4);
    s->ids = take(c, s->count, wide ? 4 : 2);
    s->pool = take(c, s->pool_bytes, 1);
}

static int map_is_sound(const esz_token_map *map) {
    uint32_t i, before = 0;
    for (i = 0; i < map->run_count; i++) {
        const uint8_t *run = map->runs + 12u * i;
        const uint32_t start = get32(run), step = get16(run + 6), difference = get32(run + 8);
        const int64_t moved = (int64_t)start + (difference < 0x80000000u ? (int64_t)difference : (int64_t)difference - 0x100000000);
        const int64_t last = moved + (int64_t)step * get16(run + 4);
        if (start > MAX_CODE || (i > 0 && start <= before) || step == 0 || moved < 0 || last > MAX_CODE) return 0;
        before = start;
    }
    for (i = 0; i < map->pair_count; i++) {
        const uint32_t key = get32(map->pairs + 8u * i), value = get32(map->pairs + 8u * i + 4);
        if (i > 0 && key <= before) return 0;
        if ((value & POOLED) == 0 ? value > MAX_CODE : (value >> 8 & 0x7FFFFFu) + (value & 255u) > map->pool_count) return 0;
        before = key;
    }
    for (i = 0; i < map->pool_count; i++) {
        if (get32(map->pool + 4u * i) > MAX_CODE) return 0;
    }
    for (i = 1; i < map->short_count; i++) {
        if (get16(map->shorts + 4u * i) <= get16(map->shorts + 4u * i - 4)) return 0;
    }
    return 1;
}

static int strings_are_sound(const esz_token_strings *s, uint32_t vocabulary_size, uint32_t longest, uint32_t mask) {
    uint64_t place = 0;
    uint32_t i;
    for (i = 0; i < s->count; i++) {
        if (i % BLOCK == 0 && get32(s->places + 4u * (i / BLOCK)) != place) return 0;
        if (s->lengths[i] == 0 || s->lengths[i] > longest || place + s->lengths[i] > s->pool_bytes) return 0;
        if ((string_id(s, i) & mask) >= vocabulary_size) return 0;
        if (i > 0 && compare(s->pool + place - s->lengths[i - 1], s->lengths[i - 1], s->pool + place, s->lengths[i]) >= 0) return 0;
        place += s->lengths[i];
    }
    return place == s->pool_bytes;
}

static int merges_are_sound(const esz_tokenizer *t) {
    const int wide = (t->flags & WIDE) != 0;
    uint64_t before = 0;
    uint32_t i;
    for (i = 0; i < t->merge_count; i++) {
        const uint64_t key = wide ? get64(t->merge_keys + 8u * i) : get32(t->merge_keys + 4u * i);
        if ((i > 0 && key <= before) || get_id(t->merge_ranks, i, wide) >= t->merge_count) return 0;
        if (get_id(t->merge_ids, i, wide) >= t->vocabulary_size) return 0;
        before = key;
    }
    for (i = 0; i < t->by_id_count; i++) {
        const uint32_t index = get_id(t->by_id, i, wide);
        if (index != (wide ? NONE : 0xFFFFu) && index >= t->words.count) return 0;
    }
    return 1;
}

static int tables_are_sound(const esz_tokenizer *t) {
    uint32_t i;
    for (i = 0; i < t->front + t->behind; i++) {
        if (get32(t->frame + 4u * i) >= t->vocabulary_size) return 0;
    }
    for (i = 0; i < t->segment_count; i++) {
        const uint32_t code = get32(t->segments + 4u * i) & CODE_MASK;
        if (i == 0 ? code != 0 : code <= (get32(t->segments + 4u * i - 4) & CODE_MASK)) return 0;
    }
    for (i = 1; i < t->class_count; i++) {
        if (get32(t->classes + 4u * i) <= get32(t->classes + 4u * i - 4)) return 0;
    }
    return t->segment_count > 0 && map_is_sound(&t->decompositions) && map_is_sound(&t->lower_case) &&
           strings_are_sound(&t->added, t->vocabulary_size, 255, ~SPECIAL) &&
           strings_are_sound(&t->words, t->vocabulary_size, t->longest, NONE) &&
           strings_are_sound(&t->parts, t->vocabulary_size, t->longest, NONE) && merges_are_sound(t);
}

/* What is looked up too often to be searched. */
static void prepare(esz_tokenizer *t) {
    uint32_t i, found;
    memset(t->added_first, 0, sizeof t->added_first);
    t->longest_added = 0;
    for (i = 0; i < t->added.count; i++) {
        const uint8_t first = string_at(&t->added, i)[0];
        t->added_first[first / 8] |= (uint8_t)(1u << first % 8);
        if (t->added.lengths[i] > t->longest_added) t->longest_added = t->added.lengths[i];
    }
    for (i = 0; t->kind == BPE && i < 256; i++) {
        const uint8_t byte = (uint8_t)i;
        found = find_string(&t->words, &byte, 1);
        t->byte_ids[i] = found == NONE ? NONE : string_id(&t->words, found);
    }
}

esz_token_status esz_token_open(esz_tokenizer *t, const void *data, size_t bytes) {
    const uint8_t *head = data;
    cursor c;
    uint32_t i;
    int wide;
    if (bytes < HEADER_BYTES || get32(head) != MAGIC || get32(head + 4u * 28) != bytes) return ESZ_TOKEN_FORMAT;
    for (i = 8; i < 28; i++) {
        if (get32(head + 4u * i) > 255u * MAX_COUNT) return ESZ_TOKEN_FORMAT;
    }
    for (i = 29; i < 32; i++) {
        if (get32(head + 4u * i) != 0) return ESZ_TOKEN_FORMAT;
    }
    t->kind = get32(head + 4);
    t->flags = get32(head + 8);
    t->vocabulary_size = get32(head + 12);
    t->unknown = get32(head + 16);
    t->most_characters = get32(head + 20);
    t->pad = get32(head + 24);
    t->longest = get32(head + 28);
    t->front = get32(head + 32);
    t->behind = get32(head + 36);
    t->segment_count = get32(head + 40);
    t->class_count = get32(head + 44);
    t->merge_count = get32(head + 104);
    t->by_id_count = get32(head + 108);
    wide = (t->flags & WIDE) != 0;
    if ((t->kind != WORDPIECE && t->kind != BPE) || t->flags >= 2u * WIDE || t->vocabulary_size > MAX_COUNT) return ESZ_TOKEN_FORMAT;
    if (t->front > MAX_FRAME || t->behind > MAX_FRAME || t->longest > 255) return ESZ_TOKEN_FORMAT;
    if (t->pad != NONE && t->pad >= t->vocabulary_size) return ESZ_TOKEN_FORMAT;
    if (t->kind == BPE && t->unknown != NONE && t->unknown >= t->vocabulary_size) return ESZ_TOKEN_FORMAT;
    if (t->kind == BPE && t->by_id_count != t->vocabulary_size) return ESZ_TOKEN_FORMAT;
    if (t->kind == WORDPIECE && (t->unknown >= t->vocabulary_size || t->most_characters == 0 || t->most_characters > MAX_WORD)) {
        return ESZ_TOKEN_FORMAT;
    }
    c.at = head + HEADER_BYTES;
    c.left = bytes - HEADER_BYTES;
    c.bad = 0;
    t->frame = take(&c, (uint64_t)t->front + t->behind, 4);
    t->segments = take(&c, t->segment_count, 4);
    t->classes = take(&c, t->class_count, 4);
    take_map(&c, head + 48, &t->decompositions);
    take_map(&c, head + 64, &t->lower_case);
    take_strings(&c, head + 80, 1, &t->added);
    take_strings(&c, head + 88, wide, &t->words);
    take_strings(&c, head + 96, wide, &t->parts);
    t->merge_keys = take(&c, t->merge_count, wide ? 8 : 4);
    t->merge_ranks = take(&c, t->merge_count, wide ? 4 : 2);
    t->merge_ids = take(&c, t->merge_count, wide ? 4 : 2);
    t->by_id = take(&c, t->by_id_count, wide ? 4 : 2);
    if (c.bad || c.left != 0 || !tables_are_sound(t)) return ESZ_TOKEN_FORMAT;
    prepare(t);
    return ESZ_TOKEN_OK;
}

static esz_token_status encode_between(const esz_tokenizer *t, const uint8_t *at, const uint8_t *end, sink *to) {
    if (t->kind == BPE) return encode_bytes(t, at, end, to);
    encode_words(t, at, end, to);
    return ESZ_TOKEN_OK;
}

/* The text between added tokens, and those. */
static esz_token_status encode_text(const esz_tokenizer *t, const uint8_t *text, size_t bytes, unsigned options, sink *to) {
    const uint8_t *at = text, *start = text, *end = text + bytes;
    esz_token_status status = ESZ_TOKEN_OK;
    while (at < end && !to->cut && status == ESZ_TOKEN_OK) {
        uint32_t length = 0, found = NONE;
        if (t->added_first[*at / 8] >> *at % 8 & 1) {
            found = find_prefix(&t->added, at, (size_t)(end - at), t->longest_added, &length);
        }
        if (found == NONE) {
            at++;
            continue;
        }
        if ((options & ESZ_TOKEN_LITERAL) && (string_id(&t->added, found) & SPECIAL)) {
            at += length;
            continue;
        }
        status = encode_between(t, start, at, to);
        if (!to->cut) put_id(to, string_id(&t->added, found) & ~SPECIAL);
        start = at += length;
    }
    return status != ESZ_TOKEN_OK || to->cut ? status : encode_between(t, start, end, to);
}

esz_token_status esz_token_encode(const esz_tokenizer *t, const char *text, size_t text_bytes, unsigned options,
                                  int64_t *ids, size_t room, size_t *count, int *was_cut) {
    const uint32_t front = options & ESZ_TOKEN_PLAIN ? 0 : t->front, behind = options & ESZ_TOKEN_PLAIN ? 0 : t->behind;
    esz_token_status status;
    sink to;
    uint32_t i;
    *count = 0;
    if (was_cut != NULL) *was_cut = 0;
    if (room < (size_t)front + behind) return ESZ_TOKEN_ROOM;
    to.ids = ids + front;
    to.room = room - front - behind;
    to.count = 0;
    to.cut = 0;
    status = encode_text(t, (const uint8_t *)text, text_bytes, options, &to);
    if (status != ESZ_TOKEN_OK) return status;
    for (i = 0; i < front; i++) ids[i] = (int64_t)get32(t->frame + 4u * i);
    for (i = 0; i < behind; i++) to.ids[to.count + i] = (int64_t)get32(t->frame + 4u * (t->front + i));
    *count = to.count + front + behind;
    if (was_cut != NULL) *was_cut = to.cut;
    return ESZ_TOKEN_OK;
}

int64_t esz_token_pad(const esz_tokenizer *t) { return t->pad == NONE ? ESZ_TOKEN_NONE : (int64_t)t->pad; }

int64_t esz_token_id(const esz_tokenizer *t, const char *name, size_t name_bytes) {
    const uint32_t found = name_bytes > 255 ? NONE : find_string(&t->added, (const uint8_t *)name, (uint32_t)name_bytes);
    return found == NONE ? ESZ_TOKEN_NONE : (int64_t)(string_id(&t->added, found) & ~SPECIAL);
}

esz_token_status esz_token_text(const esz_tokenizer *t, int64_t id, const char **text, size_t *text_bytes, int *special) {
    uint32_t i, index;
    if (t->kind != BPE || id < 0 || id >= (int64_t)t->vocabulary_size) return ESZ_TOKEN_ID;
    for (i = 0; i < t->added.count; i++) {
        if ((string_id(&t->added, i) & ~SPECIAL) != (uint32_t)id) continue;
        *text = (const char *)string_at(&t->added, i);
        *text_bytes = t->added.lengths[i];
        if (special != NULL) *special = (string_id(&t->added, i) & SPECIAL) != 0;
        return ESZ_TOKEN_OK;
    }
    index = get_id(t->by_id, (uint32_t)id, t->words.wide);
    if (index >= t->words.count) return ESZ_TOKEN_ID;
    *text = (const char *)string_at(&t->words, index);
    *text_bytes = t->words.lengths[index];
    if (special != NULL) *special = 0;
    return ESZ_TOKEN_OK;
}

esz_token_status esz_token_decode(const esz_tokenizer *t, const int64_t *ids, size_t count, int skip_special, char *text,
                                  size_t room, size_t *text_bytes) {
    size_t i, at = 0;
    *text_bytes = 0;
    for (i = 0; i < count; i++) {
        const char *piece;
        size_t bytes;
        int special;
        const esz_token_status status = esz_token_text(t, ids[i], &piece, &bytes, &special);
        if (status != ESZ_TOKEN_OK) return status;
        if (special && skip_special) continue;
        if (at + bytes <= room) memcpy(text + at, piece, bytes);
        at += bytes;
    }
    *text_bytes = at;
    return at <= room ? ESZ_TOKEN_OK : ESZ_TOKEN_ROOM;
}
