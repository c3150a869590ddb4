/* Files of named tensors, the way in and out of the runner.
 *
 * Little-endian: "EDGEFEED", u32 version (1), u32 count of feeds; a feed is a u32 count of tensors; a tensor is
 * u32 length of the name, the name, i32 element type (ONNX's numbers), u32 rank, i64 dimensions, u64 bytes, the bytes.
 * A big-endian machine is refused at compile time.
 */
#ifndef EDGESLIM_FEED_FILE_H
#define EDGESLIM_FEED_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeslim_elements.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "feed files are little-endian"
#endif

enum { FEED_MAX_NAME = 1024, FEED_MAX_RANK = 8, FEED_MAX_TENSORS = 256, FEED_MAX_FEEDS = 1 << 20 };

typedef struct {
    char *name;
    int32_t type;
    uint32_t rank;
    int64_t dims[FEED_MAX_RANK];
    uint64_t bytes;
    void *data;
} feed_tensor;

typedef struct {
    uint32_t count;
    feed_tensor *tensors;
} feed;

static int feed_take(FILE *file, void *into, size_t bytes) { return fread(into, 1, bytes, file) == bytes; }

static void feed_free(feed *one) {
    for (uint32_t i = 0; i < one->count; i++) {
        free(one->tensors[i].name);
        free(one->tensors[i].data);
    }
    free(one->tensors);
    one->tensors = NULL;
    one->count = 0;
}

/* Bytes that are left in a file, which bounds every length that it names. */
static uint64_t feed_left(FILE *file) {
    long here = ftell(file), end;
    if (here < 0 || fseek(file, 0, SEEK_END) != 0) return 0;
    end = ftell(file);
    if (end < here || fseek(file, here, SEEK_SET) != 0) return 0;
    return (uint64_t)(end - here);
}

static const char *feed_read_tensor(FILE *file, feed_tensor *one) {
    uint32_t length;
    uint64_t elements = 1;
    size_t size;
    if (!feed_take(file, &length, 4) || length > FEED_MAX_NAME) return "a name that is cut off or too long";
    one->name = calloc(length + 1, 1);
    if (!one->name || !feed_take(file, one->name, length)) return "a name that is cut off";
    if (!feed_take(file, &one->type, 4) || !(size = element_bytes(one->type))) return "an element type it can't carry";
    if (!feed_take(file, &one->rank, 4) || one->rank > FEED_MAX_RANK) return "too many dimensions";
    for (uint32_t i = 0; i < one->rank; i++) {
        if (!feed_take(file, &one->dims[i], 8) || one->dims[i] < 0) return "a negative dimension";
        if (one->dims[i] && elements > UINT64_C(0x7fffffff) / (uint64_t)one->dims[i]) return "a tensor that is too large";
        elements *= (uint64_t)one->dims[i];
    }
    if (!feed_take(file, &one->bytes, 8) || one->bytes != elements * size) return "bytes that don't fit the shape";
    if (one->bytes > feed_left(file)) return "a tensor that is cut off";
    one->data = malloc(one->bytes ? (size_t)one->bytes : 1);
    if (!one->data) return "no memory";
    return feed_take(file, one->data, (size_t)one->bytes) ? NULL : "a tensor that is cut off";
}

/* Reads the file's head; gives the count of feeds in `count`. NULL, or what is wrong. */
static const char *feed_open(FILE *file, uint32_t *count) {
    char magic[8];
    uint32_t version;
    if (!feed_take(file, magic, 8) || memcmp(magic, "EDGEFEED", 8) != 0) return "no feed file";
    if (!feed_take(file, &version, 4) || version != 1) return "a feed file of another version";
    return feed_take(file, count, 4) && *count <= FEED_MAX_FEEDS ? NULL : "too many feeds";
}

/* Reads the next feed, to be released by feed_free whatever comes back. NULL, or what is wrong. */
static const char *feed_read(FILE *file, feed *one) {
    uint32_t count;
    one->count = 0;
    one->tensors = NULL;
    if (!feed_take(file, &count, 4) || count > FEED_MAX_TENSORS) return "a feed that is cut off or too large";
    one->tensors = calloc(count ? count : 1, sizeof *one->tensors);
    if (!one->tensors) return "no memory";
    for (; one->count < count;) {
        const char *wrong = feed_read_tensor(file, &one->tensors[one->count++]);
        if (wrong) return wrong;
    }
    return NULL;
}

static int feed_write_tensor(FILE *file, const feed_tensor *one) {
    uint32_t length = (uint32_t)strlen(one->name);
    return fwrite(&length, 4, 1, file) == 1 && fwrite(one->name, 1, length, file) == length &&
           fwrite(&one->type, 4, 1, file) == 1 && fwrite(&one->rank, 4, 1, file) == 1 &&
           fwrite(one->dims, 8, one->rank, file) == one->rank && fwrite(&one->bytes, 8, 1, file) == 1 &&
           fwrite(one->data, 1, (size_t)one->bytes, file) == one->bytes;
}

#endif
