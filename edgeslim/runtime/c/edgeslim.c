/* Running a model. See edgeslim.h. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "edgeslim_elements.h"
#include "edgeslim_model.h"

/* --- Runs --- */

static edgeslim_status give(edgeslim_model *m, const edgeslim_tensor *inputs, size_t count, const char **names,
                            OrtValue **values, edgeslim_error *error) {
    size_t k;
    edgeslim_status status;
    for (k = 0; k < count; k++) {
        const edgeslim_tensor *one = &inputs[k];
        names[k] = one->name != NULL ? one->name : m->inputs[k];
        if (one->rank > EDGESLIM_MAX_RANK || element_bytes(one->type) == 0)
            return failed(error, EDGESLIM_INPUT, "%s: too many dimensions, or an element type that isn't plain", names[k]);
        TRY(CreateTensorWithDataAsOrtValue(m->memory, one->data, one->bytes, one->shape, one->rank,
                                           (ONNXTensorElementDataType)one->type, &values[k]),
            names[k]);
    }
    return EDGESLIM_OK;
}

edgeslim_status look(OrtValue *value, const char *name, edgeslim_tensor *one, void **data, edgeslim_error *error) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t rank = 0, elements = 0;
    edgeslim_status status = told(ort->GetTensorTypeAndShape(value, &info), error, name);
    if (status == EDGESLIM_OK) status = told(ort->GetTensorElementType(info, &type), error, name);
    if (status == EDGESLIM_OK) status = told(ort->GetDimensionsCount(info, &rank), error, name);
    if (status == EDGESLIM_OK && rank > EDGESLIM_MAX_RANK)
        status = failed(error, EDGESLIM_INPUT, "%s: more than %d dimensions", name, EDGESLIM_MAX_RANK);
    if (status == EDGESLIM_OK) status = told(ort->GetDimensions(info, one->shape, rank), error, name);
    if (status == EDGESLIM_OK) status = told(ort->GetTensorShapeElementCount(info, &elements), error, name);
    if (info != NULL) ort->ReleaseTensorTypeAndShapeInfo(info);
    if (status != EDGESLIM_OK) return status;
    one->type = (int32_t)type;
    one->rank = (uint32_t)rank;
    one->bytes = elements * element_bytes(one->type);
    if (element_bytes(one->type) == 0) return failed(error, EDGESLIM_INPUT, "%s: an element type that isn't plain", name);
    return told(ort->GetTensorMutableData(value, data), error, name);
}

static edgeslim_status run(edgeslim_model *m, const edgeslim_tensor *inputs, size_t input_count, const char *const *names,
                           OrtValue **results, size_t output_count, edgeslim_error *error) {
    OrtValue *values[EDGESLIM_MAX_TENSORS] = {NULL};
    const char *given[EDGESLIM_MAX_TENSORS];
    size_t k;
    edgeslim_status status = give(m, inputs, input_count, given, values, error);
    if (status == EDGESLIM_OK)
        status = told(ort->Run(m->session, NULL, given, (const OrtValue *const *)values, input_count, names, output_count,
                               results),
                      error, "run");
    for (k = 0; k < input_count; k++)
        if (values[k] != NULL) ort->ReleaseValue(values[k]);
    return status;
}

edgeslim_status edgeslim_run(edgeslim_model *m, const edgeslim_tensor *inputs, size_t input_count,
                             edgeslim_tensor *outputs, size_t output_count, edgeslim_error *error) {
    OrtValue *results[EDGESLIM_MAX_TENSORS] = {NULL};
    const char *names[EDGESLIM_MAX_TENSORS];
    size_t k;
    edgeslim_status status;
    if (input_count != m->input_count || output_count == 0 || output_count > m->output_count ||
        input_count > EDGESLIM_MAX_TENSORS || output_count > EDGESLIM_MAX_TENSORS)
        return failed(error, EDGESLIM_INPUT, "%zu inputs and %zu outputs; the model has %zu and %zu; %d at most", input_count,
                      output_count, m->input_count, m->output_count, EDGESLIM_MAX_TENSORS);
    for (k = 0; k < output_count; k++) names[k] = outputs[k].name != NULL ? outputs[k].name : m->outputs[k];
    status = run(m, inputs, input_count, names, results, output_count, error);
    for (k = 0; status == EDGESLIM_OK && k < output_count; k++) {
        const size_t room = outputs[k].bytes;
        void *data;
        status = look(results[k], names[k], &outputs[k], &data, error);
        if (status == EDGESLIM_OK && outputs[k].bytes > room)
            status = failed(error, EDGESLIM_INPUT, "%s takes %zu bytes, room for %zu", names[k], outputs[k].bytes, room);
        if (status == EDGESLIM_OK && outputs[k].bytes > 0) memcpy(outputs[k].data, data, outputs[k].bytes);
    }
    for (k = 0; k < output_count; k++)
        if (results[k] != NULL) ort->ReleaseValue(results[k]);
    return status;
}

/* --- Texts --- */

/* Which of the usual three an input is; -1 for another. */
static int text_input(const char *name) {
    static const char *const usual[] = {"input_ids", "attention_mask", "token_type_ids"};
    int k;
    for (k = 0; k < 3; k++)
        if (strcmp(name, usual[k]) == 0) return k;
    return -1;
}

static void scale_to_one(float *vector, size_t size) {
    double sum = 0;
    size_t k;
    for (k = 0; k < size; k++) sum += (double)vector[k] * (double)vector[k];
    if (sum > 0)
        for (k = 0; k < size; k++) vector[k] = (float)((double)vector[k] / sqrt(sum));
}

/* One vector of the output `hidden`: [1, tokens, size] pooled over the first `count` tokens, or all of [1, size]. */
static edgeslim_status pool(const edgeslim_model *m, const edgeslim_tensor *one, const float *hidden, size_t count,
                            float *vector, size_t room, size_t *size, edgeslim_error *error) {
    const int by_token = one->rank == 3 && m->pooling != POOL_NONE;
    size_t k, t;
    *size = by_token ? (size_t)one->shape[2] : one->bytes / sizeof(float);
    if (by_token && (one->shape[0] != 1 || (size_t)one->shape[1] < count))
        return failed(error, EDGESLIM_INPUT, "the model's output has fewer tokens than were given");
    if (*size > room) return failed(error, EDGESLIM_INPUT, "the vector takes %zu floats, room for %zu", *size, room);
    if (!by_token || m->pooling == POOL_CLS) {
        memcpy(vector, hidden, *size * sizeof(float));
    } else {
        for (k = 0; k < *size; k++) {
            double sum = 0;
            for (t = 0; t < count; t++) sum += (double)hidden[t * *size + k];
            vector[k] = (float)(sum / (double)count);
        }
    }
    if (m->normalize) scale_to_one(vector, *size);
    return EDGESLIM_OK;
}

edgeslim_status edgeslim_embed_ids(edgeslim_model *m, const int64_t *ids, size_t count, float *vector, size_t room,
                                   size_t *size, edgeslim_error *error) {
    const size_t length = m->pad && count < m->max_tokens ? m->max_tokens : count;
    edgeslim_tensor inputs[3], output = {0};
    OrtValue *result = NULL;
    void *hidden = NULL;
    int64_t *tokens, pad;
    size_t k, t;
    edgeslim_status status = EDGESLIM_OK;
    *size = 0;
    if (m->max_tokens == 0 || m->input_count > 3) return failed(error, EDGESLIM_INPUT, "the model isn't one of texts");
    if (count == 0 || count > m->max_tokens)
        return failed(error, EDGESLIM_INPUT, "%zu tokens, expected 1 to %zu", count, m->max_tokens);
    if ((tokens = calloc(3 * length, sizeof *tokens)) == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for tokens");
    memcpy(tokens, ids, count * sizeof *ids);
    pad = m->tokenizer_file == NULL ? ESZ_TOKEN_NONE : esz_token_pad(&m->tokenizer);
    for (t = count; t < length && pad > 0; t++) tokens[t] = pad;
    for (t = 0; t < count; t++) tokens[length + t] = 1;
    for (k = 0; k < m->input_count && status == EDGESLIM_OK; k++) {
        const int which = text_input(m->inputs[k]);
        edgeslim_tensor one = {m->inputs[k], 7, 2, {1, (int64_t)length}, NULL, length * sizeof *tokens};
        if (which < 0) status = failed(error, EDGESLIM_INPUT, "the model isn't one of texts: it takes %s", m->inputs[k]);
        one.data = tokens + (size_t)(which < 0 ? 0 : which) * length;
        inputs[k] = one;
    }
    if (status == EDGESLIM_OK)
        status = run(m, inputs, m->input_count, (const char *const *)m->outputs, &result, 1, error);
    if (status == EDGESLIM_OK) status = look(result, m->outputs[0], &output, &hidden, error);
    if (status == EDGESLIM_OK && output.type != 1)
        status = failed(error, EDGESLIM_INPUT, "the model's output isn't float32");
    if (status == EDGESLIM_OK) status = pool(m, &output, hidden, count, vector, room, size, error);
    if (result != NULL) ort->ReleaseValue(result);
    free(tokens);
    return status;
}

edgeslim_status edgeslim_encode(const edgeslim_model *m, const char *text, size_t bytes, int64_t *ids, size_t room,
                                size_t *count, edgeslim_error *error) {
    esz_token_status encoded;
    *count = 0;
    if (m->tokenizer_file == NULL)
        return failed(error, EDGESLIM_INPUT, "the package has no tokenizer for devices: give token ids");
    if (room > m->max_tokens) room = m->max_tokens;
    encoded = esz_token_encode(&m->tokenizer, text, bytes, 0, ids, room, count, NULL);
    if (encoded == ESZ_TOKEN_OK) return EDGESLIM_OK;
    return encoded == ESZ_TOKEN_MEMORY ? failed(error, EDGESLIM_MEMORY, "no memory for a very long word")
                                       : failed(error, EDGESLIM_INPUT, "no room for the text's tokens");
}

edgeslim_status edgeslim_embed(edgeslim_model *m, const char *text, float *vector, size_t room, size_t *size,
                               edgeslim_error *error) {
    int64_t *ids = malloc((m->max_tokens + 1) * sizeof *ids);
    size_t count;
    edgeslim_status status;
    *size = 0;
    if (ids == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for tokens");
    status = edgeslim_encode(m, text, strlen(text), ids, m->max_tokens, &count, error);
    if (status == EDGESLIM_OK) status = edgeslim_embed_ids(m, ids, count, vector, room, size, error);
    free(ids);
    return status;
}

/* --- What a package says of itself --- */

size_t edgeslim_max_tokens(const edgeslim_model *m) { return m->max_tokens; }

size_t edgeslim_label_count(const edgeslim_model *m) { return m->label_count; }

const char *edgeslim_label(const edgeslim_model *m, size_t index) {
    return index < m->label_count ? m->labels[index] : NULL;
}

size_t edgeslim_best(const float *scores, size_t count) {
    size_t best = 0, k;
    for (k = 1; k < count; k++)
        if (scores[k] > scores[best]) best = k;
    return best;
}

const char *edgeslim_name(const edgeslim_model *m) { return m->name; }

const char *edgeslim_runtime_version(void) { return OrtGetApiBase()->GetVersionString(); }
