/* Text in, text out, with the language model of an open package: a conversation that keeps its KV cache. C99.
 *
 *   edgeslim_chat *chat;
 *   edgeslim_sampling sampling = {0.7, 0.9, 1};
 *   if (edgeslim_chat_open(model, &chat, &error) != EDGESLIM_OK) puts(error.text);
 *   edgeslim_chat_answer(chat, "What is the sea?", &sampling, 256, print, stdout, NULL, &error);
 *   edgeslim_chat_close(chat); // before the model
 *
 * What stands between the turns comes from the package: no template engine is needed. edgeslim_decoder.h and
 * edgeslim_sample.h have the parts, for loops of one's own. One thread may use a model and its chats at a time. Compile
 * edgeslim_chat.c, edgeslim_decoder.c and edgeslim_sample.c with what edgeslim.h names.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_CHAT_H
#define EDGESLIM_CHAT_H

#include "edgeslim.h"
#include "edgeslim_sample.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct edgeslim_chat edgeslim_chat;

/* Called with each piece of an answer as soon as it is known: whole characters of UTF-8, without a zero behind them.
 * Anything but 0 ends the answer. */
typedef int (*edgeslim_text_sink)(void *context, const char *text, size_t bytes);

/* EDGESLIM_INPUT where the model isn't a language model of edgeslim's, or has no tokenizer for devices. */
edgeslim_status edgeslim_chat_open(edgeslim_model *model, edgeslim_chat **chat, edgeslim_error *error);
void edgeslim_chat_close(edgeslim_chat *chat); /* may be null */

/* Forgets all turns. */
void edgeslim_chat_restart(edgeslim_chat *chat);

/* The model's answer to the user's next words, of at most `max_tokens` tokens; special tokens' names in them are plain
 * text. It ends where the model ends it, where `sink` says so, or where the context is full. Null in place of `sampling`
 * takes the likeliest tokens; `*tokens`, which may be null, becomes their number. EDGESLIM_INPUT where the words don't
 * fit the context any more, or `sampling` is out of its range: the conversation is as it was. After any other failure it
 * may end within a turn: restart it. */
edgeslim_status edgeslim_chat_answer(edgeslim_chat *chat, const char *text, const edgeslim_sampling *sampling,
                                     size_t max_tokens, edgeslim_text_sink sink, void *context, size_t *tokens,
                                     edgeslim_error *error);

/* How many tokens the conversation has, and how many the model can read; 0: the package doesn't say. */
size_t edgeslim_chat_length(const edgeslim_chat *chat);
size_t edgeslim_chat_context(const edgeslim_chat *chat);

#ifdef __cplusplus
}
#endif
#endif
