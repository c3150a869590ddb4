/* See edgeslim_decoder.h. SPDX-License-Identifier: Apache-2.0 */
#include "edgeslim_decoder.h"

#include <stdlib.h>
#include <string.h>

#include "edgeslim_elements.h"
#include "edgeslim_model.h"
#include "edgeslim_sample.h"

enum { PROMPT_PIECE = 64, MOST_WIDTH = 1 << 16, MOST_ROOM = 1 << 20, MOST_PART = 1 << 28 };

static const char PAST[] = "past_key_values", PRESENT[] = "present", LOGITS[] = "logits", IDS[] = "input_ids";
static const char USED[] = "past_length"; /* how many tokens are in a cache of a fixed length */

struct edgeslim_decoder {
    edgeslim_model *model;
    const char **inputs, **outputs; /* names: tokens and logits in front, then the cache, then USED */
    OrtValue **cache, **made;       /* `made` has the logits in front */
    size_t parts;                   /* of the cache */
    size_t length, room;            /* tokens; room: 0 where the cache grows */
    int is_counted;                 /* whether the model takes USED */
    float *logits;
    size_t vocabulary;
};

/* An output's name for an input of the cache, by the model's own copy; null if there is none. */
static const char *present_name(const edgeslim_model *m, const char *past) {
    size_t k;
    for (k = 0; k < m->output_count; k++)
        if (strncmp(m->outputs[k], PRESENT, sizeof PRESENT - 1) == 0 &&
            strcmp(m->outputs[k] + sizeof PRESENT - 1, past + sizeof PAST - 1) == 0)
            return m->outputs[k];
    return NULL;
}

static edgeslim_status find_cache(edgeslim_decoder *d, edgeslim_error *error) {
    const edgeslim_model *m = d->model;
    size_t k;
    d->inputs = calloc(m->input_count + 2, sizeof *d->inputs);
    d->outputs = calloc(m->input_count + 1, sizeof *d->outputs);
    d->cache = calloc(m->input_count + 1, sizeof *d->cache);
    d->made = calloc(m->input_count + 1, sizeof *d->made);
    if (d->inputs == NULL || d->outputs == NULL || d->cache == NULL || d->made == NULL)
        return failed(error, EDGESLIM_MEMORY, "no memory for the cache");
    d->inputs[0] = IDS;
    d->outputs[0] = LOGITS;
    for (k = 0; k < m->input_count; k++) {
        const char *name = m->inputs[k];
        if (strcmp(name, IDS) == 0) continue;
        if (strcmp(name, USED) == 0) {
            d->is_counted = 1;
            continue;
        }
        if (strncmp(name, PAST, sizeof PAST - 1) != 0 || present_name(m, name) == NULL || d->parts + 1 == m->input_count)
            return failed(error, EDGESLIM_INPUT, "the model takes %s: expected input_ids and a KV cache", name);
        d->inputs[++d->parts] = name;
        d->outputs[d->parts] = present_name(m, name);
    }
    d->inputs[d->parts + 1] = USED;
    return d->parts > 0 ? EDGESLIM_OK : failed(error, EDGESLIM_INPUT, "the model has no KV cache");
}

/* Type and shape [1, heads, room or 0, width] of the part `k` of a cache. */
static edgeslim_status part_form(const edgeslim_decoder *d, size_t k, int64_t shape[4], ONNXTensorElementDataType *type,
                                 edgeslim_error *error) {
    const OrtTensorTypeAndShapeInfo *info = NULL;
    OrtTypeInfo *about = NULL;
    size_t rank = 0, place = 0;
    edgeslim_status status;
    while (d->model->inputs[place] != d->inputs[k + 1]) place++;
    status = told(ort->SessionGetInputTypeInfo(d->model->session, place, &about), error, "cache");
    if (status == EDGESLIM_OK) status = told(ort->CastTypeInfoToTensorInfo(about, &info), error, "cache");
    if (status == EDGESLIM_OK) status = told(ort->GetTensorElementType(info, type), error, "cache");
    if (status == EDGESLIM_OK) status = told(ort->GetDimensionsCount(info, &rank), error, "cache");
    if (status == EDGESLIM_OK && rank == 4) status = told(ort->GetDimensions(info, shape, 4), error, "cache");
    if (about != NULL) ort->ReleaseTypeInfo(about);
    if (status != EDGESLIM_OK) return status;
    if (rank != 4 || shape[1] < 1 || shape[1] > MOST_WIDTH || shape[3] < 1 || shape[3] > MOST_WIDTH ||
        shape[2] > MOST_ROOM || (shape[2] > 0) != d->is_counted ||
        (shape[2] > 0 && shape[1] * shape[3] > MOST_PART / shape[2]))
        return failed(error, EDGESLIM_INPUT, "%s: expected [1, heads, any, width]", d->inputs[k + 1]);
    shape[0] = 1;
    if (shape[2] < 0) shape[2] = 0;
    return EDGESLIM_OK;
}

/* The part `k` of a cache that holds nothing. */
static edgeslim_status empty_part(edgeslim_decoder *d, size_t k, edgeslim_error *error) {
    static char nothing[8];
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    OrtAllocator *heap = NULL;
    int64_t shape[4] = {0};
    void *data = NULL;
    edgeslim_status status = part_form(d, k, shape, &type, error);
    if (status != EDGESLIM_OK) return status;
    if (shape[2] == 0)
        return told(ort->CreateTensorWithDataAsOrtValue(d->model->memory, nothing, 0, shape, 4, type, &d->cache[k]),
                    error, "cache");
    status = told(ort->GetAllocatorWithDefaultOptions(&heap), error, "cache");
    if (status == EDGESLIM_OK)
        status = told(ort->CreateTensorAsOrtValue(heap, shape, 4, type, &d->cache[k]), error, "cache");
    if (status == EDGESLIM_OK) status = told(ort->GetTensorMutableData(d->cache[k], &data), error, "cache");
    if (status == EDGESLIM_OK)
        memset(data, 0, (size_t)(shape[1] * shape[2] * shape[3]) * element_bytes((int32_t)type));
    return status;
}

static void release(OrtValue **values, size_t count) {
    size_t k;
    for (k = 0; values != NULL && k < count; k++) {
        if (values[k] != NULL) ort->ReleaseValue(values[k]);
        values[k] = NULL;
    }
}

static edgeslim_status keep_logits(edgeslim_decoder *d, size_t tokens, edgeslim_error *error) {
    edgeslim_tensor one = {0};
    void *data = NULL;
    edgeslim_status status = look(d->made[0], LOGITS, &one, &data, error);
    if (status != EDGESLIM_OK) return status;
    if (one.type != 1 || one.rank != 3 || one.shape[0] != 1 || one.shape[1] != (int64_t)tokens || one.shape[2] < 1 ||
        one.shape[2] > EDGESLIM_MAX_VOCABULARY || (d->logits != NULL && one.shape[2] != (int64_t)d->vocabulary))
        return failed(error, EDGESLIM_RUNTIME, "logits: expected float32 [1, %zu, vocabulary]", tokens);
    d->vocabulary = (size_t)one.shape[2];
    if (d->logits == NULL) d->logits = malloc(d->vocabulary * sizeof *d->logits);
    if (d->logits == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for logits");
    memcpy(d->logits, (const float *)data + (tokens - 1) * d->vocabulary, d->vocabulary * sizeof *d->logits);
    return EDGESLIM_OK;
}

/* One run: the cache that comes out takes the place of the one that went in, unless something failed. */
static edgeslim_status feed_piece(edgeslim_decoder *d, const int64_t *ids, size_t count, edgeslim_error *error) {
    const int64_t shape[2] = {1, (int64_t)count}, one = 1;
    const OrtValue **given;
    OrtValue *tokens = NULL, *used = NULL;
    int64_t length = (int64_t)d->length;
    size_t k;
    edgeslim_status status = EDGESLIM_OK;
    for (k = 0; k < d->parts && status == EDGESLIM_OK; k++)
        if (d->cache[k] == NULL) status = empty_part(d, k, error);
    if (status != EDGESLIM_OK) return status;
    if (d->room > 0 && d->length + count > d->room)
        return failed(error, EDGESLIM_INPUT, "%zu tokens, the KV cache has room for %zu", d->length + count, d->room);
    if ((given = calloc(d->parts + 2, sizeof *given)) == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for a run");
    status = told(ort->CreateTensorWithDataAsOrtValue(d->model->memory, (void *)(uintptr_t)ids, count * sizeof *ids, shape,
                                                      2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &tokens),
                  error, IDS);
    if (status == EDGESLIM_OK)
        status = told(ort->CreateTensorWithDataAsOrtValue(d->model->memory, &length, sizeof length, &one, 1,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &used),
                      error, USED);
    given[0] = tokens;
    for (k = 0; k < d->parts; k++) given[k + 1] = d->cache[k];
    given[d->parts + 1] = used;
    if (status == EDGESLIM_OK)
        status = told(ort->Run(d->model->session, NULL, d->inputs, given, d->parts + (d->is_counted ? 2 : 1), d->outputs,
                               d->parts + 1, d->made),
                      error, "run");
    if (status == EDGESLIM_OK) status = keep_logits(d, count, error);
    if (status == EDGESLIM_OK) {
        release(d->cache, d->parts);
        memcpy(d->cache, d->made + 1, d->parts * sizeof *d->cache);
        memset(d->made + 1, 0, d->parts * sizeof *d->made);
        d->length += count;
    }
    release(d->made, d->parts + 1);
    if (tokens != NULL) ort->ReleaseValue(tokens);
    if (used != NULL) ort->ReleaseValue(used);
    free(given);
    return status;
}

edgeslim_status edgeslim_decoder_feed(edgeslim_decoder *d, const int64_t *ids, size_t count, const float **logits,
                                      size_t *vocabulary, edgeslim_error *error) {
    size_t at = 0;
    edgeslim_status status = count > 0 ? EDGESLIM_OK : failed(error, EDGESLIM_INPUT, "no tokens");
    while (at < count && status == EDGESLIM_OK) { /* by pieces: that bounds the memory of the logits */
        const size_t piece = count - at < PROMPT_PIECE ? count - at : PROMPT_PIECE;
        status = feed_piece(d, ids + at, piece, error);
        at += piece;
    }
    *logits = d->logits;
    *vocabulary = d->vocabulary;
    return status;
}

edgeslim_status edgeslim_decoder_open(edgeslim_model *model, edgeslim_decoder **decoder, edgeslim_error *error) {
    edgeslim_decoder *d = calloc(1, sizeof *d);
    ONNXTensorElementDataType type;
    int64_t shape[4] = {0};
    edgeslim_status status;
    *decoder = NULL;
    if (d == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for a decoder");
    d->model = model;
    status = find_cache(d, error);
    if (status == EDGESLIM_OK) status = part_form(d, 0, shape, &type, error);
    d->room = (size_t)shape[2];
    if (status == EDGESLIM_OK) *decoder = d;
    else edgeslim_decoder_close(d);
    return status;
}

void edgeslim_decoder_restart(edgeslim_decoder *d) {
    release(d->cache, d->parts);
    d->length = 0;
}

void edgeslim_decoder_close(edgeslim_decoder *d) {
    if (d == NULL) return;
    release(d->cache, d->parts);
    free(d->inputs);
    free(d->outputs);
    free(d->cache);
    free(d->made);
    free(d->logits);
    free(d);
}

size_t edgeslim_decoder_length(const edgeslim_decoder *d) { return d->length; }

size_t edgeslim_decoder_room(const edgeslim_decoder *d) { return d->room; }
