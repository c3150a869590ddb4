/* See edgeslim.h. SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "edgeslim.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "edgeslim_json.h"
#include "esz_load.h"
#include "esz_token.h"
#include "onnxruntime_c_api.h"

enum { ORT_API = 18, SCHEMA = 1, MOST_MANIFEST_BYTES = 1 << 20, MOST_TOKENIZER_BYTES = 64 << 20, PATH_ROOM = 4096 };

typedef enum { POOL_NONE, POOL_MEAN, POOL_CLS } pooling;

struct edgeslim_model {
    char *folder, *manifest, *names; /* `names`: the package's, then each label's, in one allocation */
    const char *name;
    const char *labels[EDGESLIM_MAX_LABELS];
    size_t label_count, max_tokens;
    int pad, normalize;
    pooling pooling;
    uint64_t weights_bytes, model_bytes;
    esz_tokenizer tokenizer;
    uint8_t *tokenizer_file; /* null: a package without one that C has */
    uint64_t tokenizer_bytes;
    void *weights; /* where they are decoded in memory */
    OrtEnv *environment;
    OrtSession *session;
    OrtAllocator *allocator;
    OrtMemoryInfo *memory;
    char *inputs[EDGESLIM_MAX_TENSORS], *outputs[EDGESLIM_MAX_TENSORS];
    size_t input_count, output_count;
};

static const OrtApi *ort;
static const char TOKENIZER[] = "tokenizer/tokenizer.etk";

static edgeslim_status failed(edgeslim_error *error, edgeslim_status status, const char *form, ...) {
    va_list rest;
    if (error != NULL) {
        va_start(rest, form);
        vsnprintf(error->text, sizeof error->text, form, rest);
        va_end(rest);
    }
    return status;
}

/* What the runtime says, if it says anything. */
static edgeslim_status told(OrtStatus *said, edgeslim_error *error, const char *what) {
    edgeslim_status status;
    if (said == NULL) return EDGESLIM_OK;
    status = failed(error, EDGESLIM_RUNTIME, "%s: %s", what, ort->GetErrorMessage(said));
    ort->ReleaseStatus(said);
    return status;
}

#define TRY(call, what) \
    if ((status = told(ort->call, error, what)) != EDGESLIM_OK) return status

static const char *join(char *path, const char *folder, const char *name) {
    const int length = snprintf(path, PATH_ROOM, "%s/%s", folder, name);
    return length > 0 && length < PATH_ROOM ? path : NULL;
}

static size_t element_bytes(int32_t type) {
    switch (type) {
        case 2: case 3: case 9: return 1;       /* uint8, int8, bool */
        case 4: case 5: case 10: case 16: return 2; /* uint16, int16, float16, bfloat16 */
        case 1: case 6: case 12: return 4;      /* float, int32, uint32 */
        case 7: case 11: case 13: return 8;     /* int64, double, uint64 */
        default: return 0;
    }
}

/* --- The manifest --- */

static edgeslim_status read_manifest_text(edgeslim_model *m, size_t *size, edgeslim_error *error) {
    char path[PATH_ROOM];
    FILE *file = join(path, m->folder, "manifest.json") ? fopen(path, "rb") : NULL;
    if (file == NULL) return failed(error, EDGESLIM_PACKAGE, "%s: no manifest.json there", m->folder);
    m->manifest = malloc(MOST_MANIFEST_BYTES + 1);
    *size = m->manifest == NULL ? 0 : fread(m->manifest, 1, MOST_MANIFEST_BYTES + 1, file);
    fclose(file);
    if (m->manifest == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for the manifest");
    if (*size > MOST_MANIFEST_BYTES) return failed(error, EDGESLIM_PACKAGE, "manifest.json: more than 1 MiB");
    return EDGESLIM_OK;
}

static int64_t file_bytes(json_value root, const char *name) {
    return json_count(json_member(json_member(json_member(root, "files"), name), "bytes"));
}

static edgeslim_status read_labels(edgeslim_model *m, json_value task, char *to, edgeslim_error *error) {
    json_value one = {NULL, NULL};
    const json_value labels = json_member(task, "labels");
    while ((one = json_next(labels, one)).at != NULL) {
        if (m->label_count == EDGESLIM_MAX_LABELS || !json_text(one, to))
            return failed(error, EDGESLIM_PACKAGE, "manifest.json: too many labels, or one that is no text");
        m->labels[m->label_count++] = to;
        to += strlen(to) + 1;
    }
    return EDGESLIM_OK;
}

static edgeslim_status read_manifest(edgeslim_model *m, edgeslim_error *error, int64_t *threads, int *in_memory) {
    json_value root, task, tokenizer, runtime;
    size_t size;
    int64_t tokens, weights, model;
    edgeslim_status status = read_manifest_text(m, &size, error);
    if (status != EDGESLIM_OK) return status;
    root = json_whole(m->manifest, size);
    if (json_count(json_member(root, "schema")) != SCHEMA)
        return failed(error, EDGESLIM_PACKAGE, "manifest.json: no JSON of schema %d: is the package newer?", SCHEMA);
    task = json_member(root, "task");
    tokenizer = json_member(root, "tokenizer");
    runtime = json_member(root, "runtime");
    weights = file_bytes(root, "weights.bin");
    model = file_bytes(root, "model.onnx");
    if (weights < 0 || model < 0) return failed(error, EDGESLIM_PACKAGE, "manifest.json: no size of weights.bin");
    m->weights_bytes = (uint64_t)weights;
    m->model_bytes = (uint64_t)model;
    m->names = malloc(size + 1); /* each text is shorter than its JSON */
    if (m->names == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for the manifest");
    if (!json_text(json_member(root, "name"), m->names)) return failed(error, EDGESLIM_PACKAGE, "manifest.json: no name");
    m->name = m->names;
    tokens = json_count(json_member(tokenizer, "max_length"));
    m->max_tokens = tokens > 0 && tokens <= 1 << 20 ? (size_t)tokens : 0;
    m->pad = json_is(json_member(tokenizer, "pad"), "true");
    tokens = file_bytes(root, TOKENIZER);
    m->tokenizer_bytes = tokens > 0 ? (uint64_t)tokens : 0;
    m->normalize = json_is(json_member(task, "normalize"), "true");
    m->pooling = json_is(json_member(task, "pooling"), "\"mean\"")  ? POOL_MEAN
                 : json_is(json_member(task, "pooling"), "\"cls\"") ? POOL_CLS
                                                                    : POOL_NONE;
    *threads = json_count(json_member(runtime, "threads"));
    *in_memory = json_is(json_member(runtime, "loading"), "\"memory\"");
    return read_labels(m, task, m->names + strlen(m->names) + 1, error);
}

static edgeslim_status read_tokenizer(edgeslim_model *m, edgeslim_error *error) {
    char path[PATH_ROOM];
    const size_t size = (size_t)m->tokenizer_bytes;
    size_t got = 0;
    FILE *file;
    if (m->tokenizer_bytes == 0) return EDGESLIM_OK;
    if (m->tokenizer_bytes > MOST_TOKENIZER_BYTES) return failed(error, EDGESLIM_PACKAGE, "%s: too large", TOKENIZER);
    file = join(path, m->folder, TOKENIZER) ? fopen(path, "rb") : NULL;
    if (file == NULL) return failed(error, EDGESLIM_PACKAGE, "%s is missing", TOKENIZER);
    m->tokenizer_file = malloc(size + 1);
    if (m->tokenizer_file != NULL) got = fread(m->tokenizer_file, 1, size + 1, file);
    fclose(file);
    if (m->tokenizer_file == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for the tokenizer");
    if (got != size || esz_token_open(&m->tokenizer, m->tokenizer_file, size) != ESZ_TOKEN_OK)
        return failed(error, EDGESLIM_PACKAGE, "%s is damaged", TOKENIZER);
    return EDGESLIM_OK;
}

/* --- Weights and session --- */

static edgeslim_status explain(edgeslim_error *error, esz_load_status loaded) {
    const edgeslim_status status = loaded == ESZ_LOAD_FULL     ? EDGESLIM_FULL
                                   : loaded == ESZ_LOAD_MEMORY ? EDGESLIM_MEMORY
                                                               : EDGESLIM_PACKAGE;
    return failed(error, status, "weights.esz: %s", esz_load_status_text(loaded));
}

/* To the file, or into memory where that is asked for or the file can't be. */
static edgeslim_status decode(edgeslim_model *m, edgeslim_loading loading, edgeslim_error *error) {
    char packed[PATH_ROOM], plain[PATH_ROOM];
    esz_load_status loaded = ESZ_LOAD_FULL;
    if (!join(packed, m->folder, "weights.esz") || !join(plain, m->folder, "weights.bin"))
        return failed(error, EDGESLIM_PACKAGE, "the path of the folder is too long");
    if (loading != EDGESLIM_IN_MEMORY) {
        loaded = esz_load_to_file(packed, plain, m->weights_bytes, NULL);
        if (loaded <= ESZ_LOAD_FOUND) return EDGESLIM_OK;
        if (loading == EDGESLIM_FILE || (loaded != ESZ_LOAD_FULL && loaded != ESZ_LOAD_SYSTEM))
            return explain(error, loaded);
    }
    if (m->weights_bytes > SIZE_MAX / 2) return failed(error, EDGESLIM_FULL, "the weights don't fit the address space");
    m->weights = malloc(m->weights_bytes ? (size_t)m->weights_bytes : 1);
    if (m->weights == NULL) return failed(error, EDGESLIM_FULL, "no room for the decoded weights, on disk or in memory");
    loaded = esz_load_into(packed, m->weights, (size_t)m->weights_bytes, NULL);
    return loaded == ESZ_LOAD_OK ? EDGESLIM_OK : explain(error, loaded);
}

static edgeslim_status make_session(edgeslim_model *m, const char *path, OrtSessionOptions *settings, int threads,
                                    edgeslim_error *error) {
    edgeslim_status status;
    TRY(SetIntraOpNumThreads(settings, threads), "threads");
    TRY(AddSessionConfigEntry(settings, "session.intra_op.allow_spinning", "0"), "settings");
    if (m->weights != NULL) {
        const ORTCHAR_T *name = "weights.bin";
        char *data = m->weights;
        const size_t bytes = (size_t)m->weights_bytes;
        TRY(AddExternalInitializersFromFilesInMemory(settings, &name, &data, &bytes, 1), "weights");
    }
    TRY(CreateSession(m->environment, path, settings, &m->session), "model.onnx");
    return EDGESLIM_OK;
}

static edgeslim_status open_session(edgeslim_model *m, int threads, edgeslim_error *error) {
    char path[PATH_ROOM];
    struct stat facts;
    OrtSessionOptions *settings;
    size_t k;
    edgeslim_status status;
    if (!join(path, m->folder, "model.onnx") || stat(path, &facts) != 0 || (uint64_t)facts.st_size != m->model_bytes)
        return failed(error, EDGESLIM_PACKAGE, "model.onnx is missing or has another size than the manifest says");
    TRY(CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgeslim", &m->environment), "environment");
    TRY(DisableTelemetryEvents(m->environment), "telemetry");
    TRY(CreateSessionOptions(&settings), "settings");
    status = make_session(m, path, settings, threads, error);
    ort->ReleaseSessionOptions(settings);
    if (status != EDGESLIM_OK) return status;
    free(m->weights); /* the runtime has copied what it needs */
    m->weights = NULL;
    TRY(GetAllocatorWithDefaultOptions(&m->allocator), "allocator");
    TRY(CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &m->memory), "memory");
    TRY(SessionGetInputCount(m->session, &m->input_count), "inputs");
    TRY(SessionGetOutputCount(m->session, &m->output_count), "outputs");
    if (m->input_count > EDGESLIM_MAX_TENSORS || m->output_count > EDGESLIM_MAX_TENSORS)
        return failed(error, EDGESLIM_PACKAGE, "model.onnx has more than %d inputs or outputs", EDGESLIM_MAX_TENSORS);
    for (k = 0; k < m->input_count; k++) TRY(SessionGetInputName(m->session, k, m->allocator, &m->inputs[k]), "inputs");
    for (k = 0; k < m->output_count; k++)
        TRY(SessionGetOutputName(m->session, k, m->allocator, &m->outputs[k]), "outputs");
    return EDGESLIM_OK;
}

static edgeslim_status open_all(edgeslim_model *m, const edgeslim_options *options, edgeslim_error *error) {
    int64_t threads = 0;
    int in_memory = 0;
    edgeslim_loading loading = options == NULL ? EDGESLIM_LOWEST : options->loading;
    edgeslim_status status = read_manifest(m, error, &threads, &in_memory);
    if (status == EDGESLIM_OK) status = read_tokenizer(m, error);
    if (status != EDGESLIM_OK) return status;
    ort = OrtGetApiBase()->GetApi(ORT_API);
    if (ort == NULL)
        return failed(error, EDGESLIM_RUNTIME, "ONNX Runtime %s is too old: 1.%d is needed", edgeslim_runtime_version(),
                      ORT_API);
    if (loading == EDGESLIM_LOWEST && in_memory) loading = EDGESLIM_IN_MEMORY;
    if ((status = decode(m, loading, error)) != EDGESLIM_OK) return status;
    if (options != NULL && options->threads > 0) threads = options->threads;
    return open_session(m, threads > 0 && threads < 1024 ? (int)threads : 1, error);
}

edgeslim_status edgeslim_open(const char *folder, const edgeslim_options *options, edgeslim_model **model,
                              edgeslim_error *error) {
    const size_t length = strlen(folder) + 1;
    edgeslim_model *m = calloc(1, sizeof *m);
    edgeslim_status status = EDGESLIM_MEMORY;
    *model = NULL;
    if (m != NULL && (m->folder = malloc(length)) != NULL) {
        memcpy(m->folder, folder, length);
        status = open_all(m, options, error);
    } else {
        failed(error, status, "no memory for the model");
    }
    if (status != EDGESLIM_OK) edgeslim_close(m);
    else *model = m;
    return status;
}

static void release_name(edgeslim_model *m, char *name) {
    OrtStatus *said = name == NULL ? NULL : ort->AllocatorFree(m->allocator, name);
    if (said != NULL) ort->ReleaseStatus(said);
}

void edgeslim_close(edgeslim_model *m) {
    size_t k;
    if (m == NULL) return;
    for (k = 0; k < EDGESLIM_MAX_TENSORS; k++) {
        release_name(m, m->inputs[k]);
        release_name(m, m->outputs[k]);
    }
    if (m->memory != NULL) ort->ReleaseMemoryInfo(m->memory);
    if (m->session != NULL) ort->ReleaseSession(m->session);
    if (m->environment != NULL) ort->ReleaseEnv(m->environment);
    free(m->weights);
    free(m->tokenizer_file);
    free(m->names);
    free(m->manifest);
    free(m->folder);
    free(m);
}

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

/* Type and shape of a result, and where its bytes lie. */
static edgeslim_status look(OrtValue *value, const char *name, edgeslim_tensor *one, void **data, edgeslim_error *error) {
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
    if (input_count != m->input_count || output_count == 0 || output_count > m->output_count)
        return failed(error, EDGESLIM_INPUT, "%zu inputs and %zu outputs; the model has %zu and %zu", input_count,
                      output_count, m->input_count, m->output_count);
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
