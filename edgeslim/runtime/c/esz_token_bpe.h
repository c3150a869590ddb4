/* Byte-level BPE: GPT-2's splitting, then merges by rank. Part of esz_token.c.
 *
 * Of a piece the two neighbours of lowest rank are merged, the leftmost first, until none is in the table. A heap holds
 * rank and place; what a merge made stale is seen by its rank. n bytes take O(n log n).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_TOKEN_BPE_H
#define ESZ_TOKEN_BPE_H

#include <stdlib.h>

#include "esz_token_wordpiece.h"

#define STACK_BYTES 256u /* of a piece, whose work space lies on the stack */
#define NOBODY 0xFFFFFFFFu

typedef struct {
    uint32_t id, before, behind, rank; /* rank: of the merge with the one behind; NOBODY if there is none */
} symbol;

typedef struct {
    uint64_t *entries; /* rank << 32 | place */
    uint32_t count;
} heap;

static void heap_push(heap *h, uint64_t entry) {
    uint32_t at = h->count++;
    while (at > 0 && h->entries[(at - 1) / 2] > entry) {
        h->entries[at] = h->entries[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    h->entries[at] = entry;
}

static uint64_t heap_pop(heap *h) {
    const uint64_t first = h->entries[0], last = h->entries[--h->count];
    uint32_t at = 0, child;
    while ((child = 2 * at + 1) < h->count) {
        if (child + 1 < h->count && h->entries[child + 1] < h->entries[child]) child++;
        if (h->entries[child] >= last) break;
        h->entries[at] = h->entries[child];
        at = child;
    }
    h->entries[at] = last;
    return first;
}

/* The index of a merge, or NONE. */
static uint32_t find_merge(const esz_tokenizer *t, uint32_t left, uint32_t right) {
    const int wide = (t->flags & WIDE) != 0;
    const uint64_t key = wide ? (uint64_t)left << 32 | right : (uint64_t)(left << 16 | right);
    uint32_t low = 0, high = t->merge_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const uint64_t found = wide ? get64(t->merge_keys + 8u * middle) : get32(t->merge_keys + 4u * middle);
        if (found == key) return middle;
        if (found < key) low = middle + 1;
        else high = middle;
    }
    return NONE;
}

static void rank_pair(const esz_tokenizer *t, symbol *s, heap *h, uint32_t at) {
    uint32_t merge;
    s[at].rank = NOBODY;
    if (s[at].behind == NOBODY) return;
    merge = find_merge(t, s[at].id, s[s[at].behind].id);
    if (merge == NONE) return;
    s[at].rank = get_id(t->merge_ranks, merge, t->words.wide);
    heap_push(h, (uint64_t)s[at].rank << 32 | at);
}

static void merge_symbols(const esz_tokenizer *t, symbol *s, uint32_t count, heap *h) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        s[i].before = i == 0 ? NOBODY : i - 1;
        s[i].behind = i + 1 == count ? NOBODY : i + 1;
    }
    for (i = 0; i < count; i++) rank_pair(t, s, h, i);
    while (h->count > 0) {
        const uint64_t entry = heap_pop(h);
        const uint32_t at = (uint32_t)entry, gone = s[at].behind;
        if (s[at].rank != (uint32_t)(entry >> 32)) continue;
        s[at].id = get_id(t->merge_ids, find_merge(t, s[at].id, s[gone].id), t->words.wide);
        s[at].behind = s[gone].behind;
        s[gone].rank = NOBODY;
        if (s[at].behind != NOBODY) s[s[at].behind].before = at;
        rank_pair(t, s, h, at);
        if (s[at].before != NOBODY) rank_pair(t, s, h, s[at].before);
    }
}

/* A byte's token; where it has none the unknown token, one for several in a row on demand, or nothing. */
static void add_byte(const esz_tokenizer *t, symbol *s, uint32_t *count, uint8_t byte, int *unknown) {
    const uint32_t id = t->byte_ids[byte];
    if (id == NONE && (t->unknown == NONE || (*unknown && (t->flags & FUSE_UNKNOWN)))) return;
    s[(*count)++].id = id == NONE ? t->unknown : id;
    *unknown = id == NONE;
}

/* One piece's bytes (`lead`: a space in front of them) to ids. */
static esz_token_status encode_piece(const esz_tokenizer *t, const uint8_t *at, const uint8_t *end, int lead, sink *to) {
    uint64_t stack[4u * STACK_BYTES], *work = stack; /* symbols, then the heap's entries, each 16 bytes a byte */
    const size_t most = 3u * (size_t)(end - at) + 1; /* a malformed byte becomes three */
    uint32_t count = 0, i;
    int unknown = 0;
    symbol *s;
    heap h;
    if (most > STACK_BYTES) {
        size_t bytes = (size_t)lead;
        const uint8_t *p = at;
        uint8_t scratch[4];
        while (p < end) bytes += put_code(next_code(&p, end), scratch);
        if (bytes > STACK_BYTES) {
            if (bytes > UINT32_MAX / 2) return ESZ_TOKEN_MEMORY;
            work = malloc(32u * bytes);
            if (work == NULL) return ESZ_TOKEN_MEMORY;
            h.entries = work + 2u * bytes;
        }
    }
    if (work == stack) h.entries = work + 2u * STACK_BYTES;
    h.count = 0;
    s = (symbol *)(void *)work;
    if (lead) add_byte(t, s, &count, ' ', &unknown);
    while (at < end) {
        uint8_t bytes[4];
        const uint32_t size = put_code(next_code(&at, end), bytes);
        for (i = 0; i < size; i++) add_byte(t, s, &count, bytes[i], &unknown);
    }
    merge_symbols(t, s, count, &h);
    for (i = count > 0 ? 0 : NOBODY; i != NOBODY && !to->cut; i = s[i].behind) put_id(to, s[i].id);
    if (work != stack) free(work);
    return ESZ_TOKEN_OK;
}

/* A piece as a whole where the vocabulary asks for that, or merged. */
static esz_token_status encode_split(const esz_tokenizer *t, const uint8_t *at, const uint8_t *end, int lead, sink *to) {
    if (t->flags & WHOLE_WORDS) {
        uint8_t text[260];
        const uint8_t *p = at;
        uint32_t bytes = 0, found = NONE;
        if (lead) text[bytes++] = ' ';
        while (p < end && bytes <= t->longest) bytes += put_code(next_code(&p, end), text + bytes);
        if (bytes <= t->longest) found = find_string(&t->words, text, bytes);
        if (found != NONE) {
            put_id(to, string_id(&t->words, found));
            return ESZ_TOKEN_OK;
        }
    }
    return encode_piece(t, at, end, lead, to);
}

enum { OTHER_CLASS, LETTER_CLASS, NUMBER_CLASS, SPACE_CLASS };

static int class_at(const esz_tokenizer *t, const uint8_t *at, const uint8_t *end, const uint8_t **behind) {
    const uint32_t flags = flags_of(t, next_code(&at, end));
    *behind = at;
    return flags & LETTER ? LETTER_CLASS : flags & NUMBER ? NUMBER_CLASS : flags & REGEX_SPACE ? SPACE_CLASS : OTHER_CLASS;
}

/* How long an English ending is: 's 't 'm 'd 're 've 'll. */
static size_t ending(const uint8_t *at, const uint8_t *end) {
    static const char pairs[] = "revell";
    size_t i;
    if (end - at < 2 || *at != '\'') return 0;
    if (at[1] == 's' || at[1] == 't' || at[1] == 'm' || at[1] == 'd') return 2;
    for (i = 0; i < 6 && end - at > 2; i += 2) {
        if (at[1] == (uint8_t)pairs[i] && at[2] == (uint8_t)pairs[i + 1]) return 3;
    }
    return 0;
}

/* GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ ; where the match ends.
 * `lead`: a space stands in front of `at`. */
static const uint8_t *split_end(const esz_tokenizer *t, const uint8_t *at, const uint8_t *end, int lead) {
    const uint8_t *p = at, *next, *last;
    int class;
    if (!lead && ending(at, end) > 0) return at + ending(at, end);
    if (!lead && *at == ' ' && at + 1 < end) p++;
    class = class_at(t, p, end, &next);
    if (class != SPACE_CLASS) {
        for (p = next; p < end && class_at(t, p, end, &next) == class; p = next) {}
        return p;
    }
    /* White space: up to the last one, which goes with what follows, unless nothing does or it is alone. */
    for (p = last = at; p < end && class_at(t, p, end, &next) == SPACE_CLASS; p = next) last = p;
    if (p == end) return p;
    if (lead) return last; /* the space in front counts: at least that one comes before the last */
    return last > at ? last : p;
}

static esz_token_status encode_bytes(const esz_tokenizer *t, const uint8_t *at, const uint8_t *end, sink *to) {
    int lead = (t->flags & PREFIX_SPACE) && at < end && *at != ' ';
    while (at < end && !to->cut) {
        const uint8_t *stop = at, *next = at;
        esz_token_status status;
        if (t->flags & SINGLE_DIGITS) { /* a digit is a piece, and ends the one before it */
            while (stop < end) {
                if (flags_of(t, next_code(&next, end)) & NUMERIC) break;
                stop = next;
            }
        } else {
            stop = end;
        }
        if (stop == at) {
            status = encode_split(t, at, next, lead, to);
            at = next;
            lead = 0;
            if (status != ESZ_TOKEN_OK) return status;
            continue;
        }
        while (at < stop && !to->cut) {
            next = split_end(t, at, stop, lead);
            status = encode_split(t, at, next, lead, to);
            at = next;
            lead = 0;
            if (status != ESZ_TOKEN_OK) return status;
        }
    }
    return ESZ_TOKEN_OK;
}

#endif
