/* Brings a container's weights from a file to where a runtime wants them: C99 and POSIX, on top of the decoder (esz.h).
 *
 *   esz_load_to_file   a file that the runtime maps (ONNX Runtime: weights.bin beside model.onnx). Needs the least memory.
 *   esz_load_into      one buffer (OrtApi.AddExternalInitializersFromFilesInMemory, under the name weights.bin).
 *   esz_load_tensors   tensor by tensor, into memory that the caller gives (OrtApi.AddExternalInitializers).
 *
 * Each holds, besides what the caller gets: the container's index, one directory, one coded block and the decoder's work
 * space; esz_load_to_file one decoded block more. All of it is freed before it returns.
 *
 * The container may come from anybody. Its size is compared with its header before anything is allocated, the whole index
 * is walked before the first tensor, and every hash is checked, the image's last: until a call returns ESZ_LOAD_OK, what
 * is in the caller's memory means nothing. The hashes catch accidents; who must know where a file comes from compares
 * its SHA-256 with the manifest's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_LOAD_H
#define ESZ_LOAD_H

#include "esz.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    ESZ_LOAD_OK = 0,
    ESZ_LOAD_FOUND = 1,   /* esz_load_to_file: the file was there already, and is right. Not an error */
    ESZ_LOAD_FORMAT = 2,  /* the container is malformed or damaged; error.format says how */
    ESZ_LOAD_SIZE = 3,    /* it decodes to another size than expected, or than the caller's memory has */
    ESZ_LOAD_MEMORY = 4,  /* malloc failed */
    ESZ_LOAD_FULL = 5,    /* the disk has no room for the decoded weights */
    ESZ_LOAD_SYSTEM = 6,  /* another call of the system failed; error.system is its errno */
    ESZ_LOAD_STOPPED = 7  /* a callback asked to stop */
} esz_load_status;

/* More about a failure; may be null wherever one is asked for. */
typedef struct {
    esz_status format;
    int system;
    esz_where where;
} esz_load_error;

#define ESZ_LOAD_ANY_SIZE UINT64_MAX /* for `expected_bytes`: do not use it on containers from strangers */

/* The size of the decoded weights, by header and index; so that a buffer can be allocated. */
esz_load_status esz_load_size(const char *container, uint64_t *decoded_bytes, esz_load_error *error);

/* Makes the file `out` the decoded weights. It is written under another name in the same folder, flushed to the disk and
 * renamed, so it is whole whenever it is there. If it is there with the right size and hash, ESZ_LOAD_FOUND comes back
 * and nothing is written. `expected_bytes`: what the manifest says, or ESZ_LOAD_ANY_SIZE. */
esz_load_status esz_load_to_file(const char *container, const char *out, uint64_t expected_bytes, esz_load_error *error);

/* Decodes into `buffer`, which has exactly the size of the weights. */
esz_load_status esz_load_into(const char *container, void *buffer, size_t buffer_bytes, esz_load_error *error);

/* Gives segment->decoded_bytes bytes for a tensor, or null to stop. segment->name is not terminated by zero. */
typedef uint8_t *(*esz_load_place)(void *context, const esz_segment *segment);

/* Is told that a tensor is decoded; anything but 0 stops. May be null. */
typedef int (*esz_load_done)(void *context, const esz_segment *segment, uint8_t *data);

/* Decodes one segment after the other, in the container's order. */
esz_load_status esz_load_tensors(const char *container, uint64_t expected_bytes, esz_load_place place, esz_load_done done,
                                 void *context, esz_load_error *error);

/* A short English sentence for a status; never null. */
const char *esz_load_status_text(esz_load_status status);

#ifdef __cplusplus
}
#endif
#endif
