/* See edgeslim_chat.h. SPDX-License-Identifier: Apache-2.0 */
#include "edgeslim_chat.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeslim_decoder.h"
#include "edgeslim_json.h"
#include "edgeslim_model.h"
#include "edgeslim_utf8.h"

enum { MOST_ENDS = 64, MOST_TOKENS = 1 << 24, MOST_TOKEN_BYTES = 255 };

/* A text between turns. Special tokens in it count as such; what lies between them and the user's words is plain. */
typedef struct {
    const char *text;
    size_t bytes, first, last; /* where the first added token begins, and the last one ends; `bytes` and 0: none */
} piece;

struct edgeslim_chat {
    edgeslim_model *model;
    char *texts; /* of the pieces */
    piece start, reply, next;
    int has_turns;
    int64_t ends[MOST_ENDS];
    size_t end_count, context;
    edgeslim_decoder *decoder;
    int64_t *tokens; /* of all turns; the decoder has read the first of them */
    size_t count, room;
    const float *logits;
    uint64_t *keys;
    size_t vocabulary;
};

/* --- The manifest --- */

static int is_added(const edgeslim_chat *c, const char *at, size_t bytes) {
    return esz_token_id(&c->model->tokenizer, at, bytes) != ESZ_TOKEN_NONE;
}

static void find_added(const edgeslim_chat *c, piece *p) {
    size_t at = 0, length;
    p->first = p->bytes;
    p->last = 0;
    while (at < p->bytes) {
        length = p->bytes - at < MOST_TOKEN_BYTES ? p->bytes - at : MOST_TOKEN_BYTES;
        while (length > 0 && !is_added(c, p->text + at, length)) length--;
        if (length > 0 && p->last == 0) p->first = at;
        if (length > 0) p->last = at + length;
        at += length > 0 ? length : 1;
    }
}

static char *read_piece(const edgeslim_chat *c, json_value chat, const char *name, piece *p, char *to) {
    if (to == NULL || !json_text(json_member(chat, name), to)) return NULL;
    p->text = to;
    p->bytes = strlen(to);
    find_added(c, p);
    return to + p->bytes + 1;
}

static edgeslim_status read_task(edgeslim_chat *c, edgeslim_error *error) {
    const edgeslim_model *m = c->model;
    const json_value task = json_member(json_whole(m->manifest, m->manifest_bytes), "task");
    const json_value chat = json_member(task, "chat"), ends = json_member(task, "end_tokens");
    const int64_t context = json_count(json_member(task, "context_tokens"));
    json_value one = {NULL, NULL};
    char *to;
    if (!json_is(json_member(task, "task"), "\"causal-lm\"") || m->tokenizer_file == NULL)
        return failed(error, EDGESLIM_INPUT, "%s isn't a language model with a tokenizer for devices", m->name);
    while ((one = json_next(ends, one)).at != NULL) {
        const int64_t id = json_count(one);
        if (id < 0 || c->end_count == MOST_ENDS)
            return failed(error, EDGESLIM_PACKAGE, "manifest.json: end_tokens: no token, or too many");
        c->ends[c->end_count++] = id;
    }
    c->context = context > 0 && context < MOST_TOKENS ? (size_t)context : 0;
    if (chat.at == NULL || json_is(chat, "null")) return EDGESLIM_OK;
    if ((to = c->texts = malloc((size_t)(chat.end - chat.at) + 3)) == NULL)
        return failed(error, EDGESLIM_MEMORY, "no memory for the chat template");
    to = read_piece(c, chat, "start", &c->start, to);
    to = read_piece(c, chat, "reply", &c->reply, to);
    if (read_piece(c, chat, "next", &c->next, to) == NULL)
        return failed(error, EDGESLIM_PACKAGE, "manifest.json: chat: no texts start, reply and next");
    c->has_turns = 1;
    return EDGESLIM_OK;
}

/* --- Tokens --- */

/* Feeds what the model hasn't read yet. */
static edgeslim_status read_on(edgeslim_chat *c, edgeslim_error *error) {
    const size_t length = edgeslim_decoder_length(c->decoder);
    edgeslim_status status;
    status = edgeslim_decoder_feed(c->decoder, c->tokens + length, c->count - length, &c->logits, &c->vocabulary, error);
    if (status == EDGESLIM_OK && c->keys == NULL && (c->keys = malloc(c->vocabulary * sizeof *c->keys)) == NULL)
        status = failed(error, EDGESLIM_MEMORY, "no memory for sampling");
    return status;
}

/* Room for `more` tokens behind those there are. */
static edgeslim_status make_room(edgeslim_chat *c, size_t more, edgeslim_error *error) {
    size_t room = c->room;
    int64_t *grown;
    if (more > MOST_TOKENS - c->count) return failed(error, EDGESLIM_INPUT, "more than %d tokens", (int)MOST_TOKENS);
    if (c->count + more <= room) return EDGESLIM_OK;
    room = 2 * room > c->count + more ? 2 * room : c->count + more;
    if ((grown = realloc(c->tokens, room * sizeof *grown)) == NULL)
        return failed(error, EDGESLIM_MEMORY, "no memory for tokens");
    c->tokens = grown;
    c->room = room;
    return EDGESLIM_OK;
}

static edgeslim_status check_context(const edgeslim_chat *c, edgeslim_error *error) {
    if (c->context == 0 || c->count <= c->context) return EDGESLIM_OK;
    return failed(error, EDGESLIM_INPUT, "%zu tokens, the model's context has %zu: start anew", c->count, c->context);
}

/* --- Turns --- */

static edgeslim_status encode(edgeslim_chat *c, const char *text, size_t bytes, unsigned options, edgeslim_error *error) {
    size_t added = 0;
    esz_token_status encoded;
    edgeslim_status status = make_room(c, bytes + 1, error); /* a token has a byte at least, or a space goes in front */
    if (status != EDGESLIM_OK) return status;
    encoded = esz_token_encode(&c->model->tokenizer, text, bytes, options | ESZ_TOKEN_PLAIN, c->tokens + c->count,
                               c->room - c->count, &added, NULL);
    if (encoded != ESZ_TOKEN_OK) return failed(error, EDGESLIM_MEMORY, "no memory for a very long word");
    c->count += added;
    return EDGESLIM_OK;
}

/* The tokens of a turn: `before`, what the user wrote, `behind`. */
static edgeslim_status encode_turn(edgeslim_chat *c, const piece *before, const char *text, const piece *behind,
                                   edgeslim_error *error) {
    const size_t bytes = strlen(text), front = before->bytes - before->last;
    char *plain;
    edgeslim_status status;
    if (bytes > MOST_TOKENS) return failed(error, EDGESLIM_INPUT, "a text of more than %d bytes", (int)MOST_TOKENS);
    if ((plain = malloc(front + bytes + behind->first + 1)) == NULL)
        return failed(error, EDGESLIM_MEMORY, "no memory for the text");
    if (front > 0) memcpy(plain, before->text + before->last, front);
    memcpy(plain + front, text, bytes);
    if (behind->first > 0) memcpy(plain + front + bytes, behind->text, behind->first);
    status = before->last > 0 ? encode(c, before->text, before->last, 0, error) : EDGESLIM_OK;
    if (status == EDGESLIM_OK) status = encode(c, plain, front + bytes + behind->first, ESZ_TOKEN_LITERAL, error);
    if (status == EDGESLIM_OK && behind->first < behind->bytes)
        status = encode(c, behind->text + behind->first, behind->bytes - behind->first, 0, error);
    free(plain);
    return status;
}

static int ends(const edgeslim_chat *c, int64_t token) {
    size_t k;
    for (k = 0; k < c->end_count; k++)
        if (c->ends[k] == token) return 1;
    return 0;
}

/* Hands on what a token adds to the text; whether the answer goes on. */
static int tell(const edgeslim_chat *c, int64_t token, utf8_part *part, edgeslim_text_sink sink, void *context) {
    char out[3 * MOST_TOKEN_BYTES + 6];
    const char *text;
    size_t bytes, made = 0, k;
    int special = 0;
    if (esz_token_text(&c->model->tokenizer, token, &text, &bytes, &special) != ESZ_TOKEN_OK || special) return 1;
    for (k = 0; k < bytes; k++) made += utf8_push(part, (uint8_t)text[k], out + made);
    return made == 0 || sink == NULL || sink(context, out, made) == 0;
}

static edgeslim_status generate(edgeslim_chat *c, const edgeslim_sampling *sampling, size_t max_tokens,
                                edgeslim_text_sink sink, void *context, size_t *made, edgeslim_error *error) {
    utf8_part part = {{0}, 0, 0};
    char rest[4];
    uint64_t state = sampling->seed;
    size_t left;
    edgeslim_status status = EDGESLIM_OK;
    while (*made < max_tokens && (c->context == 0 || c->count <= c->context)) {
        int64_t token;
        if ((status = read_on(c, error)) != EDGESLIM_OK) return status;
        token = edgeslim_choose(c->logits, c->vocabulary, sampling, &state, c->keys);
        if (token < 0) return failed(error, EDGESLIM_RUNTIME, "logits that are NaN or infinite");
        if (ends(c, token)) break;
        if ((status = make_room(c, 1, error)) != EDGESLIM_OK) return status;
        c->tokens[c->count++] = token;
        ++*made;
        if (!tell(c, token, &part, sink, context)) return EDGESLIM_OK;
    }
    left = utf8_finish(&part, rest);
    if (left > 0 && sink != NULL) sink(context, rest, left);
    return status;
}

edgeslim_status edgeslim_chat_answer(edgeslim_chat *c, const char *text, const edgeslim_sampling *sampling,
                                     size_t max_tokens, edgeslim_text_sink sink, void *context, size_t *tokens,
                                     edgeslim_error *error) {
    static const edgeslim_sampling greedy = {0, 1, 0};
    static const piece none = {"", 0, 0, 0};
    const piece *before = !c->has_turns ? &none : c->count > 0 ? &c->next : &c->start;
    const size_t turn = c->count;
    size_t made = 0;
    edgeslim_status status;
    if (tokens != NULL) *tokens = 0;
    if (sampling == NULL) sampling = &greedy;
    if (!(sampling->temperature >= 0 && sampling->temperature <= 100 && sampling->top_p > 0 && sampling->top_p <= 1))
        return failed(error, EDGESLIM_INPUT, "temperature or top_p out of its range");
    status = encode_turn(c, before, text, c->has_turns ? &c->reply : &none, error);
    if (status == EDGESLIM_OK && c->count == edgeslim_decoder_length(c->decoder))
        status = failed(error, EDGESLIM_INPUT, "the text has no tokens");
    if (status == EDGESLIM_OK) status = check_context(c, error);
    if (status != EDGESLIM_OK) {
        c->count = turn;
        return status;
    }
    status = generate(c, sampling, max_tokens, sink, context, &made, error);
    if (tokens != NULL) *tokens = made;
    return status;
}

/* --- Opening and closing --- */

edgeslim_status edgeslim_chat_open(edgeslim_model *model, edgeslim_chat **chat, edgeslim_error *error) {
    edgeslim_chat *c = calloc(1, sizeof *c);
    edgeslim_status status;
    *chat = NULL;
    if (c == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for a conversation");
    c->model = model;
    status = read_task(c, error);
    if (status == EDGESLIM_OK) status = edgeslim_decoder_open(model, &c->decoder, error);
    if (status == EDGESLIM_OK && edgeslim_decoder_room(c->decoder) > 0 &&
        (c->context == 0 || c->context > edgeslim_decoder_room(c->decoder)))
        c->context = edgeslim_decoder_room(c->decoder);
    if (status == EDGESLIM_OK) *chat = c;
    else edgeslim_chat_close(c);
    return status;
}

void edgeslim_chat_restart(edgeslim_chat *c) {
    edgeslim_decoder_restart(c->decoder);
    c->count = 0;
}

void edgeslim_chat_close(edgeslim_chat *c) {
    if (c == NULL) return;
    edgeslim_decoder_close(c->decoder);
    free(c->texts);
    free(c->tokens);
    free(c->keys);
    free(c);
}

size_t edgeslim_chat_length(const edgeslim_chat *c) { return c->count; }

size_t edgeslim_chat_context(const edgeslim_chat *c) { return c->context; }
