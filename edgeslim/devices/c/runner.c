/* Runs a model on a device: the one program that edgeslim brings there.
 *
 *   runner --runtime libonnxruntime.so --model model.onnx --feeds in.feed --outputs out.feed
 *          [--threads N] [--warm-up N] [--rounds N] [--profile PREFIX] [--counted-clock 1]
 *          [--esz weights.esz --weights weights.bin]
 *
 * Runs each feed of a feed file once and writes its outputs; then the last feed `rounds` times, timed. Any number, type
 * and shape of inputs. The runtime is opened by dlopen, so a missing or old one is told in words. One line of JSON goes
 * to stdout, what went wrong to stderr; exit status: 2 usage, 3 inputs, 4 runtime missing, 5 runtime too old,
 * 6 refused by the runtime, 7 can't write, 8 weights can't be decoded.
 *
 * Under an emulator that counts instructions, `mark` tells it where a stretch of work begins and ends; elsewhere it is a
 * system call that fails. With --counted-clock the clock that the runtime reads is a counter of its readings, one a
 * microsecond: what it does from time to time (it sums up its runs every some seconds) it then does at the same place in
 * every process. With --profile each reading is marked, too: so the runtime's own profile tells, by reading, which
 * operator ran when.
 */
#define _GNU_SOURCE
#include "feed_file.h"
#include "onnxruntime_c_api.h"

#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef EDGESLIM_WITH_ESZ
#include "esz_load.h"
#endif

enum { API = 24, USAGE = 2, INPUT = 3, NO_RUNTIME = 4, OLD_RUNTIME = 5, REFUSED = 6, CANT_WRITE = 7, BAD_WEIGHTS = 8 };
enum { MARK = 0x45534C4D, BEGIN = 1, END = 2, CLOCK = 3, DECODE = 1, LOAD = 2, RUN = 3 };

static const OrtApi *ort;
static int counting, marking;

static void mark(long kind, long which) { syscall(SYS_prctl, (long)MARK, kind, which, 0L, 0L); }

/* Stands in for libc's, also for the runtime, which resolves the name here first. */
__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, struct timespec *now) {
    static long readings;
    if (!counting) return (int)syscall(SYS_clock_gettime, clock, now);
    readings++;
    if (marking) mark(CLOCK, readings);
    now->tv_sec = 1000 + readings / 1000000;
    now->tv_nsec = readings % 1000000 * 1000;
    return 0;
}

static double now_ms(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void fail(int status, const char *where, const char *what) {
    fprintf(stderr, "runner: %s: %s\n", where, what);
    fflush(stderr);
    _exit(status);
}

static void must(OrtStatus *status, const char *where) {
    if (status) fail(REFUSED, where, ort->GetErrorMessage(status));
}

typedef struct {
    const char *runtime, *model, *feeds, *outputs, *profile, *esz, *weights;
    long threads, warm_up, rounds, counted_clock;
} options;

static long number(const char *text) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || value < 0 || value > 100000) fail(USAGE, text, "not a number from 0 to 100000");
    return value;
}

static options parse(int count, char **words) {
    options found = {.threads = 1, .warm_up = 3, .rounds = 10};
    for (int i = 1; i < count; i += 2) {
        const char *name = words[i], *value = i + 1 < count ? words[i + 1] : NULL;
        if (!value) fail(USAGE, name, "needs a value");
        if (!strcmp(name, "--runtime")) found.runtime = value;
        else if (!strcmp(name, "--model")) found.model = value;
        else if (!strcmp(name, "--feeds")) found.feeds = value;
        else if (!strcmp(name, "--outputs")) found.outputs = value;
        else if (!strcmp(name, "--profile")) found.profile = value;
        else if (!strcmp(name, "--esz")) found.esz = value;
        else if (!strcmp(name, "--weights")) found.weights = value;
        else if (!strcmp(name, "--threads")) found.threads = number(value);
        else if (!strcmp(name, "--warm-up")) found.warm_up = number(value);
        else if (!strcmp(name, "--rounds")) found.rounds = number(value);
        else if (!strcmp(name, "--counted-clock")) found.counted_clock = number(value);
        else fail(USAGE, name, "unknown option");
    }
    if (!found.runtime || !found.model || !found.feeds || !found.outputs)
        fail(USAGE, "runner", "needs --runtime, --model, --feeds and --outputs");
    return found;
}

static const char *open_runtime(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const OrtApiBase *(*base)(void);
    if (!library) fail(NO_RUNTIME, path, dlerror());
    *(void **)&base = dlsym(library, "OrtGetApiBase");
    if (!base) fail(NO_RUNTIME, path, "it isn't ONNX Runtime: no OrtGetApiBase");
    ort = base()->GetApi(API);
    if (!ort) fail(OLD_RUNTIME, path, base()->GetVersionString());
    return base()->GetVersionString();
}

static OrtSession *open_session(const options *given, OrtEnv *environment) {
    OrtSessionOptions *settings;
    OrtSession *session;
    must(ort->CreateSessionOptions(&settings), "session options");
    must(ort->SetIntraOpNumThreads(settings, (int)given->threads), "threads");
    must(ort->AddSessionConfigEntry(settings, "session.intra_op.allow_spinning", "0"), "spinning");
    if (given->profile) {
        must(ort->EnableProfiling(settings, given->profile), "profile");
        counting = marking = 1;
    }
    must(ort->CreateSession(environment, given->model, settings, &session), given->model);
    ort->ReleaseSessionOptions(settings);
    return session;
}

typedef struct {
    size_t count;
    char **names;
} names;

static names output_names(OrtSession *session) {
    OrtAllocator *allocator;
    names found;
    must(ort->GetAllocatorWithDefaultOptions(&allocator), "allocator");
    must(ort->SessionGetOutputCount(session, &found.count), "outputs");
    if (found.count > FEED_MAX_TENSORS) fail(REFUSED, "outputs", "too many");
    found.names = calloc(found.count, sizeof *found.names);
    if (!found.names) fail(REFUSED, "outputs", "no memory");
    for (size_t i = 0; i < found.count; i++)
        must(ort->SessionGetOutputName(session, i, allocator, &found.names[i]), "outputs");
    return found;
}

static void run(OrtSession *session, const feed *in, const names *out, OrtValue **results) {
    static OrtMemoryInfo *memory;
    OrtValue *values[FEED_MAX_TENSORS];
    const char *inputs[FEED_MAX_TENSORS];
    if (!memory) must(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "memory");
    for (uint32_t i = 0; i < in->count; i++) {
        const feed_tensor *one = &in->tensors[i];
        inputs[i] = one->name;
        must(ort->CreateTensorWithDataAsOrtValue(memory, one->data, (size_t)one->bytes, one->dims, one->rank,
                                                 (ONNXTensorElementDataType)one->type, &values[i]),
             one->name);
    }
    memset(results, 0, out->count * sizeof *results);
    must(ort->Run(session, NULL, inputs, (const OrtValue *const *)values, in->count, (const char *const *)out->names,
                  out->count, results),
         "run");
    for (uint32_t i = 0; i < in->count; i++) ort->ReleaseValue(values[i]);
}

static void release(const names *out, OrtValue **results) {
    for (size_t i = 0; i < out->count; i++) ort->ReleaseValue(results[i]);
}

static int write_outputs(FILE *file, const names *out, OrtValue **results) {
    uint32_t count = (uint32_t)out->count;
    int fine = fwrite(&count, 4, 1, file) == 1;
    for (size_t i = 0; fine && i < out->count; i++) {
        OrtTensorTypeAndShapeInfo *info;
        ONNXTensorElementDataType type;
        feed_tensor one = {.name = out->names[i]};
        size_t rank, elements;
        must(ort->GetTensorTypeAndShape(results[i], &info), one.name);
        must(ort->GetTensorElementType(info, &type), one.name);
        must(ort->GetDimensionsCount(info, &rank), one.name);
        if (rank > FEED_MAX_RANK || !element_bytes((int32_t)type)) fail(REFUSED, one.name, "an output it can't carry");
        must(ort->GetDimensions(info, one.dims, rank), one.name);
        must(ort->GetTensorShapeElementCount(info, &elements), one.name);
        must(ort->GetTensorMutableData(results[i], &one.data), one.name);
        one.type = (int32_t)type;
        one.rank = (uint32_t)rank;
        one.bytes = elements * element_bytes((int32_t)type);
        ort->ReleaseTensorTypeAndShapeInfo(info);
        fine = feed_write_tensor(file, &one);
    }
    return fine;
}

/* Each feed once. Gives the last one in `last`, which is timed afterwards, and how long the first took. */
static double run_all(const options *given, OrtSession *session, const names *out, OrtValue **results, feed *last) {
    FILE *in = fopen(given->feeds, "rb"), *to;
    uint32_t count;
    double first = 0;
    const char *wrong;
    if (!in) fail(INPUT, given->feeds, "can't be read");
    if ((wrong = feed_open(in, &count)) || !count) fail(INPUT, given->feeds, wrong ? wrong : "no feeds");
    if (!(to = fopen(given->outputs, "wb"))) fail(CANT_WRITE, given->outputs, "can't be written");
    if (fwrite("EDGEFEED\1\0\0\0", 12, 1, to) != 1 || fwrite(&count, 4, 1, to) != 1)
        fail(CANT_WRITE, given->outputs, "can't be written");
    for (uint32_t i = 0; i < count; i++) {
        double started;
        if ((wrong = feed_read(in, last))) fail(INPUT, given->feeds, wrong);
        started = now_ms();
        run(session, last, out, results);
        if (!i) first = now_ms() - started;
        if (!write_outputs(to, out, results)) fail(CANT_WRITE, given->outputs, "can't be written");
        release(out, results);
        if (i + 1 < count) feed_free(last);
    }
    fclose(in);
    if (fclose(to) != 0) fail(CANT_WRITE, given->outputs, "can't be written");
    return first;
}

/* Most memory that was resident, in bytes; 0 where the system doesn't say. */
static long long peak_bytes(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (long long)usage.ru_maxrss * 1024 : 0;
}

static double decode(const options *given) {
    double started = now_ms();
    if (!given->esz) return 0;
#ifdef EDGESLIM_WITH_ESZ
    mark(BEGIN, DECODE);
    esz_load_status status = esz_load_to_file(given->esz, given->weights, ESZ_LOAD_ANY_SIZE, NULL);
    mark(END, DECODE);
    if (status == ESZ_LOAD_FULL) fail(CANT_WRITE, given->weights, esz_load_status_text(status));
    if (status > ESZ_LOAD_FOUND) fail(BAD_WEIGHTS, given->esz, esz_load_status_text(status));
#else
    fail(USAGE, "--esz", "this runner was built without the decoder");
#endif
    return now_ms() - started;
}

int main(int count, char **words) {
    options given = parse(count, words);
    counting = given.counted_clock != 0;
    const char *version = open_runtime(given.runtime);
    OrtEnv *environment;
    feed last;
    double decode_ms = decode(&given), load_ms, first_ms;
    must(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgeslim", &environment), "environment");
    must(ort->DisableTelemetryEvents(environment), "telemetry");
    load_ms = now_ms();
    mark(BEGIN, LOAD);
    OrtSession *session = open_session(&given, environment);
    mark(END, LOAD);
    load_ms = now_ms() - load_ms;
    names out = output_names(session);
    OrtValue **results = calloc(out.count ? out.count : 1, sizeof *results);
    if (!results) fail(REFUSED, "outputs", "no memory");
    first_ms = run_all(&given, session, &out, results, &last);
    for (long i = 0; i < given.warm_up; i++) {
        run(session, &last, &out, results);
        release(&out, results);
    }
    printf("{\"runtime\": \"%s\", \"decode_ms\": %.3f, \"load_ms\": %.3f, \"first_run_ms\": %.3f, \"run_ms\": [", version,
           decode_ms, load_ms, first_ms);
    for (long i = 0; i < given.rounds; i++) {
        double started = now_ms();
        mark(BEGIN, RUN);
        run(session, &last, &out, results);
        mark(END, RUN);
        printf("%s%.3f", i ? ", " : "", now_ms() - started);
        release(&out, results);
    }
    printf("], \"peak_bytes\": %lld}\n", peak_bytes());
    if (given.profile) {
        OrtAllocator *allocator;
        char *path;
        must(ort->GetAllocatorWithDefaultOptions(&allocator), "allocator");
        must(ort->SessionEndProfiling(session, allocator, &path), "profile");
        printf("profile: %s\n", path);
    }
    fflush(stdout);
    _exit(0); /* without the runtime's own clean-up, which is no part of what is measured */
}
