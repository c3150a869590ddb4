/* esz_load from the outside, for tests:
 *
 *     harness_load size|into|tensors CONTAINER            the weights on stdout
 *     harness_load file CONTAINER OUT EXPECTED            EXPECTED: bytes, or "any"
 *     harness_load stop CONTAINER NUMBER                  stops at that tensor, first when asked for memory, then when done
 *     harness_load fuzz CONTAINER MUTATIONS OUT           damaged copies through all ways; must do no harm
 *
 * The last line on stderr: status, format's status, errno, offset, segment, block, and how much the high-water mark rose
 * in KiB (-1 where the system can't tell). Memory comes from malloc in exactly the size that is needed. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "esz_load.h"
#include "esz_reseal.h"

static esz_load_error error;

static long high_water(void) {
    char line[256];
    long kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, "VmHWM:", 6) == 0) kib = strtol(line + 6, NULL, 10);
    if (f != NULL) fclose(f);
    return kib;
}

static int reset_high_water(void) {
    FILE *f = fopen("/proc/self/clear_refs", "w");
    int fine = f != NULL && fputs("5", f) >= 0;
    return f != NULL && fclose(f) == 0 && fine;
}

static int tell(esz_load_status status, long grown) {
    fprintf(stderr, "%d %d %d %llu %ld %ld %ld\n", (int)status, (int)error.format, error.system,
            (unsigned long long)error.where.offset, (long)(int32_t)error.where.segment, (long)(int32_t)error.where.block,
            grown);
    return esz_load_status_text(status)[0] == 0;
}

typedef struct {
    long left;
    int print, late;
} tensors;

static uint8_t *place(void *context, const esz_segment *segment) {
    tensors *t = context;
    if (t->left == 0 && !t->late) return NULL;
    return malloc(segment->decoded_bytes);
}

static int done(void *context, const esz_segment *segment, uint8_t *data) {
    tensors *t = context;
    int stop = t->left == 0 && t->late;
    if (t->print) fwrite(data, 1, segment->decoded_bytes, stdout);
    if (segment->block_count) free(data);
    t->left--;
    return stop;
}

static esz_load_status into(const char *container, int print) {
    uint64_t size;
    uint8_t *buffer;
    esz_load_status status = esz_load_size(container, &size, &error);
    if (status != ESZ_LOAD_OK || size > 1u << 26) return status;
    buffer = malloc(size ? (size_t)size : 1);
    if (buffer == NULL) exit(3);
    status = esz_load_into(container, buffer, (size_t)size, &error);
    if (print && status == ESZ_LOAD_OK) fwrite(buffer, 1, (size_t)size, stdout);
    if (print && esz_load_into(container, buffer, (size_t)size + 1, NULL) != ESZ_LOAD_SIZE) exit(4);
    free(buffer);
    return status;
}

/* Tensors are leaked when a container fails halfway, as the caller owns them: here they go to one place instead. */
static uint8_t *place_once(void *context, const esz_segment *segment) {
    uint8_t **last = context;
    free(*last);
    return *last = segment->decoded_bytes > 1u << 26 ? NULL : malloc(segment->decoded_bytes);
}

static int fuzz(const char *container, unsigned long mutations, const char *out) {
    static uint8_t bytes[1 << 20], changed[1 << 20];
    uint32_t state = 2463534242u;
    size_t n;
    unsigned long k, refused = 0;
    FILE *f = fopen(container, "rb");
    char name[4096];
    if (f == NULL) return 2;
    n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    snprintf(name, sizeof name, "%s.damaged", out);
    for (k = 0; k < mutations; k++) {
        size_t size = n;
        unsigned many;
        uint8_t *last = NULL;
        esz_load_status status;
        memcpy(changed, bytes, n);
        state = state * 1664525u + 1013904223u;
        if (k % 5 == 0) size = state % n;
        for (many = 1 + k % 4; many > 0; many--) {
            state = state * 1664525u + 1013904223u;
            changed[(state >> 8) % n] ^= (uint8_t)(1u << (state >> 4 & 7));
        }
        if (k % 2 && size > 64) reseal(changed, size, get32(bytes + 48));
        f = fopen(name, "wb");
        if (f == NULL || fwrite(changed, 1, size, f) != size || fclose(f) != 0) return 2;
        status = into(name, 0);
        if (status != ESZ_LOAD_OK) refused++;
        esz_load_tensors(name, n * 64, place_once, NULL, &last, NULL);
        free(last);
        last = NULL;
        if ((esz_load_tensors(name, ESZ_LOAD_ANY_SIZE, place_once, NULL, &last, NULL) == ESZ_LOAD_OK) !=
            (status == ESZ_LOAD_OK))
            return 5;
        free(last);
        unlink(out);
        if ((esz_load_to_file(name, out, ESZ_LOAD_ANY_SIZE, &error) == ESZ_LOAD_OK) != (status == ESZ_LOAD_OK)) return 6;
        if ((access(out, F_OK) == 0) != (status == ESZ_LOAD_OK)) return 7;
        unlink(out);
    }
    unlink(name);
    fprintf(stderr, "refused %lu of %lu\n", refused, mutations);
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "";
    long before;
    esz_load_status status = ESZ_LOAD_SYSTEM;
    signal(SIGXFSZ, SIG_IGN);
    before = reset_high_water() ? high_water() : -1;
    if (strcmp(what, "fuzz") == 0 && argc > 4) return fuzz(argv[2], strtoul(argv[3], NULL, 10), argv[4]);
    if (strcmp(what, "size") == 0) {
        uint64_t size;
        status = esz_load_size(argv[2], &size, &error);
        printf("%llu", (unsigned long long)size);
    } else if (strcmp(what, "into") == 0) {
        status = into(argv[2], 1);
    } else if (strcmp(what, "tensors") == 0) {
        tensors t = {-1, 1, 0};
        status = esz_load_tensors(argv[2], ESZ_LOAD_ANY_SIZE, place, done, &t, &error);
    } else if (strcmp(what, "stop") == 0 && argc > 3) {
        tensors early = {strtol(argv[3], NULL, 10), 0, 0}, late = {strtol(argv[3], NULL, 10), 0, 1};
        status = esz_load_tensors(argv[2], ESZ_LOAD_ANY_SIZE, place, done, &early, &error);
        if (esz_load_tensors(argv[2], ESZ_LOAD_ANY_SIZE, place, done, &late, NULL) != status) return 8;
    } else if (strcmp(what, "file") == 0 && argc > 4) {
        const uint64_t expected = strcmp(argv[4], "any") ? strtoull(argv[4], NULL, 10) : ESZ_LOAD_ANY_SIZE;
        status = esz_load_to_file(argv[2], argv[3], expected, &error);
    }
    fflush(stdout);
    return tell(status, before < 0 ? -1 : high_water() - before);
}
