/* BERT's normalization and WordPiece, one code point after the other. Part of esz_token.c.
 *
 * A word has at most most_characters characters (100), or it is the unknown token whatever it holds: so one buffer of
 * that many suffices, for words and for putting marks into canonical order.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_TOKEN_WORDPIECE_H
#define ESZ_TOKEN_WORDPIECE_H

#include "esz_token_tables.h"

/* Where ids go. `cut` once one found no room. */
typedef struct {
    int64_t *ids;
    size_t room, count;
    int cut;
} sink;

static void put_id(sink *to, uint32_t id) {
    if (to->count == to->room) to->cut = 1;
    else to->ids[to->count++] = (int64_t)id;
}

typedef struct {
    uint32_t codes[MAX_WORD];
    uint8_t classes[MAX_WORD];
    uint32_t count;   /* may pass most_characters; no more than those are held */
    uint32_t ordered; /* marks from here on may change places */
} word;

static void end_word(const esz_tokenizer *t, word *w, sink *to) {
    uint8_t text[4 * MAX_WORD];
    uint32_t pieces[4 * MAX_WORD], bytes = 0, at = 0, count = 0, i;
    const uint32_t characters = w->count;
    w->count = w->ordered = 0;
    if (characters == 0) return;
    if (characters > t->most_characters) {
        put_id(to, t->unknown);
        return;
    }
    for (i = 0; i < characters; i++) bytes += put_code(w->codes[i], text + bytes);
    while (at < bytes) {
        const esz_token_strings *strings = at == 0 ? &t->words : &t->parts;
        uint32_t length = 0;
        const uint32_t found = find_prefix(strings, text + at, bytes - at, t->longest, &length);
        if (found == NONE) {
            put_id(to, t->unknown);
            return;
        }
        pieces[count++] = string_id(strings, found);
        at += length;
    }
    for (i = 0; i < count; i++) put_id(to, pieces[i]);
}

/* A character behind the word, or before the marks of higher class at its end. */
static void add_code(const esz_tokenizer *t, word *w, uint32_t code, uint32_t class) {
    uint32_t at = w->count < t->most_characters ? w->count : t->most_characters;
    if (at < t->most_characters) {
        for (; class > 0 && at > w->ordered && w->classes[at - 1] > class; at--) {
            w->codes[at] = w->codes[at - 1];
            w->classes[at] = w->classes[at - 1];
        }
        w->codes[at] = code;
        w->classes[at] = (uint8_t)class;
    }
    if (w->count <= t->most_characters) w->count++;
    if (class == 0) w->ordered = w->count;
}

/* A character of the normalized text: it ends words, is one, or belongs to one. */
static void add_normalized(const esz_tokenizer *t, word *w, sink *to, uint32_t code, uint32_t class) {
    const uint32_t flags = code == ' ' ? SPACE : flags_of(t, code);
    if (flags & (SPACE | PUNCTUATION)) end_word(t, w, to);
    if (flags & SPACE) return;
    add_code(t, w, code, class);
    if (flags & PUNCTUATION) end_word(t, w, to);
}

static void add_stripped(const esz_tokenizer *t, word *w, sink *to, uint32_t code, uint32_t class) {
    const uint8_t *pooled = NULL;
    uint32_t one, count, i;
    if ((t->flags & LOWER) == 0) {
        add_normalized(t, w, to, code, class);
        return;
    }
    count = map_code(&t->lower_case, code, &one, &pooled);
    if (pooled == NULL) add_normalized(t, w, to, one, class);
    else for (i = 0; i < count; i++) add_normalized(t, w, to, get32(pooled + 4u * i), class);
}

static void add_decomposed(const esz_tokenizer *t, word *w, sink *to, uint32_t code) {
    const uint32_t class = (t->flags & STRIP_ACCENTS) && (flags_of(t, code) & NONSTARTER) ? class_of(t, code) : 0;
    add_stripped(t, w, to, code, class);
}

static void strip_code(const esz_tokenizer *t, word *w, sink *to, uint32_t code) {
    const uint8_t *pooled = NULL;
    uint32_t one, count, i;
    if (code >= 0xAC00 && code < 0xD7A4) { /* a Hangul syllable: 19 * 21 * 28 of them */
        const uint32_t syllable = code - 0xAC00;
        add_decomposed(t, w, to, 0x1100 + syllable / 588);
        add_decomposed(t, w, to, 0x1161 + syllable % 588 / 28);
        if (syllable % 28 != 0) add_decomposed(t, w, to, 0x11A7 + syllable % 28);
        return;
    }
    count = map_code(&t->decompositions, code, &one, &pooled);
    if (pooled == NULL) add_decomposed(t, w, to, one);
    else for (i = 0; i < count; i++) add_decomposed(t, w, to, get32(pooled + 4u * i));
}

static void encode_words(const esz_tokenizer *t, const uint8_t *at, const uint8_t *end, sink *to) {
    word w;
    w.count = w.ordered = 0;
    while (at < end && !to->cut) {
        uint32_t code = next_code(&at, end), flags;
        if (code < 0x80 && code > ' ' && code != 0x7F) {
            add_stripped(t, &w, to, code, 0);
            continue;
        }
        flags = flags_of(t, code);
        if (t->flags & CLEAN) {
            if (flags & DROPPED) continue;
            if (flags & SPACE) code = ' ';
        }
        if ((t->flags & SPACE_CHINESE) == 0) flags &= ~(uint32_t)CHINESE;
        if (flags & CHINESE) end_word(t, &w, to);
        if ((t->flags & STRIP_ACCENTS) == 0) add_stripped(t, &w, to, code, 0);
        else if ((flags & MARK) == 0) strip_code(t, &w, to, code);
        else if ((flags & NONSTARTER) == 0) w.ordered = w.count; /* gone, but nothing changes places across it */
        if (flags & CHINESE) end_word(t, &w, to);
    }
    if (!to->cut) end_word(t, &w, to);
}

#endif
