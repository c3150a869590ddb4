/* Opening and closing a package. See edgeslim.h. SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "edgeslim_json.h"
#include "edgeslim_model.h"
#include "esz_load.h"

enum { ORT_API = 18, SCHEMA = 1, MOST_MANIFEST_BYTES = 1 << 20, MOST_TOKENIZER_BYTES = 64 << 20, PATH_ROOM = 4096, MOST_NAMES = 4096 };

const OrtApi *edgeslim_ort;
static const char TOKENIZER[] = "tokenizer/tokenizer.etk";

edgeslim_status failed(edgeslim_error *error, edgeslim_status status, const char *form, ...) {
    va_list rest;
    if (error != NULL) {
        va_start(rest, form);
        vsnprintf(error->text, sizeof error->text, form, rest);
        va_end(rest);
    }
    return status;
}

edgeslim_status told(OrtStatus *said, edgeslim_error *error, const char *what) {
    edgeslim_status status;
    if (said == NULL) return EDGESLIM_OK;
    status = failed(error, EDGESLIM_RUNTIME, "%s: %s", what, ort->GetErrorMessage(said));
    ort->ReleaseStatus(said);
    return status;
}

static const char *join(char *path, const char *folder, const char *name) {
    const int length = snprintf(path, PATH_ROOM, "%s/%s", folder, name);
    return length > 0 && length < PATH_ROOM ? path : NULL;
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
    m->manifest_bytes = size;
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
    if (m->input_count > MOST_NAMES || m->output_count > MOST_NAMES)
        return failed(error, EDGESLIM_PACKAGE, "model.onnx has more than %d inputs or outputs", MOST_NAMES);
    m->inputs = calloc(m->input_count + m->output_count + 1, sizeof *m->inputs);
    if (m->inputs == NULL) return failed(error, EDGESLIM_MEMORY, "no memory for the names of inputs");
    m->outputs = m->inputs + m->input_count;
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
    for (k = 0; m->inputs != NULL && k < m->input_count + m->output_count; k++) release_name(m, m->inputs[k]);
    free(m->inputs);
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

