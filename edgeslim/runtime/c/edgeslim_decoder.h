/* A language model of an open package with its KV cache: tokens go in, the logits of what follows them come out. C99.
 *
 * Inputs named past_key_values.* hold the cache, float32 or of fewer bits; what a run gives as present.* goes into the
 * next one as it is, nothing is copied. It takes memory for each token that was fed, and twice that during a run. Where
 * the model has a cache of a fixed length, with an input past_length, that is what it takes from the first token on.
 * edgeslim_chat.h is the conversation on top of it. One thread at a time.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_DECODER_H
#define EDGESLIM_DECODER_H

#include "edgeslim.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct edgeslim_decoder edgeslim_decoder;

/* EDGESLIM_INPUT where the model has no KV cache. */
edgeslim_status edgeslim_decoder_open(edgeslim_model *model, edgeslim_decoder **decoder, edgeslim_error *error);
void edgeslim_decoder_close(edgeslim_decoder *decoder); /* before the model; may be null */

/* Empties the cache. */
void edgeslim_decoder_restart(edgeslim_decoder *decoder);

/* The logits of the token behind these, which follow those that were fed before, 64 of them a run. `*logits` has
 * `*vocabulary` numbers and stays until the next call. After a failure some of the tokens may be in the cache: length
 * says how many there are. */
edgeslim_status edgeslim_decoder_feed(edgeslim_decoder *decoder, const int64_t *ids, size_t count, const float **logits,
                                      size_t *vocabulary, edgeslim_error *error);

/* How many tokens are in the cache. */
size_t edgeslim_decoder_length(const edgeslim_decoder *decoder);

/* How many it has room for; 0 where it grows. */
size_t edgeslim_decoder_room(const edgeslim_decoder *decoder);

#ifdef __cplusplus
}
#endif
#endif
