/* What the files of the loader know of an open model; not for programs, which include edgeslim.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_MODEL_H
#define EDGESLIM_MODEL_H

#include "edgeslim.h"
#include "esz_token.h"
#include "onnxruntime_c_api.h"

typedef enum { POOL_NONE, POOL_MEAN, POOL_CLS } pooling;

struct edgeslim_model {
    char *folder, *manifest, *names; /* `names`: the package's, then each label's, in one allocation */
    const char *name;
    const char *labels[EDGESLIM_MAX_LABELS];
    size_t label_count, max_tokens;
    int pad, normalize;
    pooling pooling;
    size_t manifest_bytes;
    uint64_t weights_bytes, model_bytes;
    esz_tokenizer tokenizer;
    uint8_t *tokenizer_file; /* null: a package without one that C has */
    uint64_t tokenizer_bytes;
    void *weights; /* where they are decoded in memory */
    OrtEnv *environment;
    OrtSession *session;
    OrtAllocator *allocator;
    OrtMemoryInfo *memory;
    char **inputs, **outputs; /* names, in one allocation */
    size_t input_count, output_count;
};

extern const OrtApi *edgeslim_ort; /* set by edgeslim_open */

/* Short here, long for the linker. */
#define ort edgeslim_ort
#define failed edgeslim_failed
#define told edgeslim_told
#define look edgeslim_look

/* `status`, once the sentence is written to `error`, which may be null. */
edgeslim_status failed(edgeslim_error *error, edgeslim_status status, const char *form, ...);

/* What the runtime says, if it says anything; releases it. */
edgeslim_status told(OrtStatus *said, edgeslim_error *error, const char *what);

#define TRY(call, what) \
    if ((status = told(ort->call, error, what)) != EDGESLIM_OK) return status

/* Type and shape of a result, and where its bytes lie. */
edgeslim_status look(OrtValue *value, const char *name, edgeslim_tensor *one, void **data, edgeslim_error *error);

#endif
