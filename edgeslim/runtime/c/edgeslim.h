/* A package of edgeslim on a device with files: decoded, opened in ONNX Runtime, run. C99 and POSIX.
 *
 *   edgeslim_model *model;
 *   edgeslim_error error;
 *   if (edgeslim_open("/opt/models/minilm", NULL, &model, &error) != EDGESLIM_OK) puts(error.text);
 *   edgeslim_embed(model, "a text", vector, room, &size, &error);
 *   edgeslim_close(model);
 *
 * A package is the folder that its archive unpacks to. manifest.json says what the model takes and what becomes of its
 * output (pooling, normalization, labels). Weights are decoded once to weights.bin beside model.onnx, which the runtime
 * maps; where the folder can't be written or has no room, they are decoded into memory at each start.
 *
 * The package's sizes are compared with its manifest, the weights with their hashes, before the runtime sees a byte.
 * That finds accidents, not forgery: whoever needs more verifies the archive's signature before unpacking it.
 *
 * A model may be run by one thread at a time. Compile with edgeslim.c, edgeslim_open.c, esz_load.c, esz_token.c and esz.c,
 * against the header of ONNX Runtime 1.18 or newer, and link that library.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_H
#define EDGESLIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    EDGESLIM_OK = 0,
    EDGESLIM_PACKAGE = 1, /* a file is missing, malformed or damaged */
    EDGESLIM_MEMORY = 2,
    EDGESLIM_FULL = 3,    /* no room for the decoded weights, on the disk nor in memory */
    EDGESLIM_RUNTIME = 4, /* ONNX Runtime is too old, or refuses the model or a run */
    EDGESLIM_INPUT = 5    /* what was given doesn't fit the model, or the model isn't one for this call */
} edgeslim_status;

typedef struct {
    char text[256]; /* a sentence in English, never empty after a failure */
} edgeslim_error;

typedef enum { EDGESLIM_LOWEST = 0, EDGESLIM_FILE = 1, EDGESLIM_IN_MEMORY = 2 } edgeslim_loading;

/* Null in place of it means zeros. */
typedef struct {
    int threads;              /* 0: as the manifest says */
    edgeslim_loading loading; /* where weights are decoded to; lowest: to the file, or into memory if that fails */
} edgeslim_options;

/* A tensor of any of ONNX's plain element types, by their numbers (1 float, 2 uint8, 3 int8, 6 int32, 7 int64, …). */
typedef struct {
    const char *name; /* null: the model's input or output of the same place in order */
    int32_t type;
    uint32_t rank; /* at most EDGESLIM_MAX_RANK */
    int64_t shape[8];
    void *data;
    size_t bytes; /* of an output: the room at `data` before the call, what was written after it */
} edgeslim_tensor;

enum { EDGESLIM_MAX_RANK = 8, EDGESLIM_MAX_TENSORS = 16, EDGESLIM_MAX_LABELS = 4096 };

typedef struct edgeslim_model edgeslim_model;

edgeslim_status edgeslim_open(const char *folder, const edgeslim_options *options, edgeslim_model **model,
                              edgeslim_error *error);
void edgeslim_close(edgeslim_model *model); /* may be null */

/* Any model: all its inputs, and the outputs that are asked for. */
edgeslim_status edgeslim_run(edgeslim_model *model, const edgeslim_tensor *inputs, size_t input_count,
                             edgeslim_tensor *outputs, size_t output_count, edgeslim_error *error);

/* The vector of a text in UTF-8, or a classifier's logits: edgeslim_embed_ids of its tokens. A text that is too long is
 * cut. EDGESLIM_INPUT where the package's tokenizer is one that only Python has. */
edgeslim_status edgeslim_embed(edgeslim_model *model, const char *text, float *vector, size_t room, size_t *size,
                               edgeslim_error *error);

/* The tokens of a text of `bytes` bytes, at most edgeslim_max_tokens of them. */
edgeslim_status edgeslim_encode(const edgeslim_model *model, const char *text, size_t bytes, int64_t *ids, size_t room,
                                size_t *count, edgeslim_error *error);

/* A model of texts on token ids, special tokens included: the vector of an encoder, pooled and normalized as the
 * manifest says, or the logits of a classifier. `*size` is how many floats it has, also where `room` is too little. */
edgeslim_status edgeslim_embed_ids(edgeslim_model *model, const int64_t *ids, size_t count, float *vector, size_t room,
                                   size_t *size, edgeslim_error *error);

/* The greatest number of tokens that the model takes; 0 for a model that has no tokenizer. */
size_t edgeslim_max_tokens(const edgeslim_model *model);

/* How many classes have a name, and the name of one; null if there is no such class. */
size_t edgeslim_label_count(const edgeslim_model *model);
const char *edgeslim_label(const edgeslim_model *model, size_t index);

/* The index of the largest of `count` scores; of two, the first. */
size_t edgeslim_best(const float *scores, size_t count);

/* What the model is called, by its manifest, and the version of the runtime that runs it. */
const char *edgeslim_name(const edgeslim_model *model);
const char *edgeslim_runtime_version(void);

#ifdef __cplusplus
}
#endif
#endif
