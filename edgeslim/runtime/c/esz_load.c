/* See esz_load.h. SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "esz_load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOWHERE 0xFFFFFFFFu
#define PADDING_BYTES 64u /* a gap before or in a payload is smaller */
#define CHUNK_BYTES 65536u

typedef struct {
    int file;
    esz_header header;
    uint8_t *index;
    esz_decoder *decoder;
    void *hash;
    uint8_t *directory, *coded; /* grow as segments need it */
    size_t directory_room, coded_room;
    uint64_t end; /* of what was read */
    uint32_t most_block_bytes;
    esz_load_error error;
} walk;

/* Where the decoded bytes of a block go, and what happens to them then. Null stops. */
typedef uint8_t *(*block_place)(void *context, const esz_segment *segment, uint32_t block, uint32_t size);
typedef esz_load_status (*block_done)(void *context, const uint8_t *data, size_t size, esz_load_error *error);
typedef esz_load_status (*segment_done)(void *context, const esz_segment *segment);

static esz_load_status malformed(walk *w, esz_status status, uint64_t offset, uint32_t segment, uint32_t block) {
    w->error.format = status;
    w->error.where.offset = offset;
    w->error.where.segment = segment;
    w->error.where.block = block;
    return ESZ_LOAD_FORMAT;
}

static esz_load_status failed(esz_load_error *error) {
    error->system = errno;
    return errno == ENOSPC || errno == EFBIG
#ifdef EDQUOT
                   || errno == EDQUOT
#endif
               ? ESZ_LOAD_FULL
               : ESZ_LOAD_SYSTEM;
}

/* Reads exactly `size` bytes at `offset`; a file that became shorter meanwhile is truncated. */
static esz_load_status read_at(walk *w, uint64_t offset, uint8_t *to, size_t size) {
    while (size > 0) {
        const ssize_t got = pread(w->file, to, size, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return failed(&w->error);
        if (got == 0) return malformed(w, ESZ_E_FILE_SIZE, offset, NOWHERE, NOWHERE);
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return ESZ_LOAD_OK;
}

static int grow(uint8_t **buffer, size_t *room, size_t size) {
    uint8_t *larger;
    if (size <= *room) return 1;
    larger = realloc(*buffer, size);
    if (larger == NULL) return 0;
    *buffer = larger;
    *room = size;
    return 1;
}

/* Opens a container, and walks its whole index. */
static esz_load_status begin(walk *w, const char *container, uint64_t expected_bytes) {
    uint8_t head[ESZ_HEADER_BYTES];
    struct stat facts;
    esz_cursor cursor;
    esz_segment segment;
    esz_status status;
    esz_load_status loaded;
    memset(w, 0, sizeof *w);
    w->error.where.segment = w->error.where.block = NOWHERE;
    w->file = open(container, O_RDONLY | O_CLOEXEC);
    if (w->file < 0 || fstat(w->file, &facts) != 0) return failed(&w->error);
    if (!S_ISREG(facts.st_mode)) {
        errno = EINVAL;
        return failed(&w->error);
    }
    if (facts.st_size < (off_t)sizeof head) return malformed(w, ESZ_E_TRUNCATED, 0, NOWHERE, NOWHERE);
    if ((loaded = read_at(w, 0, head, sizeof head)) != ESZ_LOAD_OK) return loaded;
    if ((status = esz_parse_header(head, sizeof head, &w->header)) != ESZ_OK)
        return malformed(w, status, 0, NOWHERE, NOWHERE);
    if (w->header.file_bytes != (uint64_t)facts.st_size || w->header.index_bytes > w->header.file_bytes - sizeof head)
        return malformed(w, ESZ_E_FILE_SIZE, 40, NOWHERE, NOWHERE);
    if (expected_bytes != ESZ_LOAD_ANY_SIZE && w->header.decoded_bytes != expected_bytes) return ESZ_LOAD_SIZE;
    w->index = malloc((size_t)w->header.index_bytes + 1);
    w->decoder = malloc(sizeof *w->decoder);
    w->hash = malloc(esz_hash_begin(NULL));
    if (w->index == NULL || w->decoder == NULL || w->hash == NULL) return ESZ_LOAD_MEMORY;
    esz_hash_begin(w->hash);
    loaded = read_at(w, ESZ_HEADER_BYTES, w->index, (size_t)w->header.index_bytes);
    if (loaded != ESZ_LOAD_OK) return loaded;
    status = esz_index_begin(&cursor, &w->header, w->index, (size_t)w->header.index_bytes);
    if (status != ESZ_OK) return malformed(w, status, ESZ_HEADER_BYTES, NOWHERE, NOWHERE);
    while ((status = esz_index_next(&cursor, &segment)) == ESZ_OK)
        if (segment.block_bytes > w->most_block_bytes) w->most_block_bytes = segment.block_bytes;
    if (status != ESZ_END) return malformed(w, status, ESZ_HEADER_BYTES + cursor.at, cursor.number, NOWHERE);
    w->end = ESZ_HEADER_BYTES + w->header.index_bytes;
    return ESZ_LOAD_OK;
}

/* Frees everything; hands on what is known about a failure. */
static esz_load_status finish(walk *w, esz_load_status status, esz_load_error *error) {
    if (error != NULL) *error = w->error;
    if (w->file >= 0) close(w->file);
    free(w->index);
    free(w->decoder);
    free(w->hash);
    free(w->directory);
    free(w->coded);
    return status;
}

/* The bytes from `from` to `to` are zero, and few. */
static esz_load_status check_padding(walk *w, uint64_t from, uint64_t to, uint32_t segment) {
    uint8_t gap[PADDING_BYTES];
    size_t k, size = (size_t)(to - from);
    esz_load_status loaded;
    if (to < from || to - from >= sizeof gap) return malformed(w, ESZ_E_INDEX, from, segment, NOWHERE);
    if ((loaded = read_at(w, from, gap, size)) != ESZ_LOAD_OK) return loaded;
    for (k = 0; k < size; k++)
        if (gap[k] != 0) return malformed(w, ESZ_E_PADDING, from + k, segment, NOWHERE);
    return ESZ_LOAD_OK;
}

static esz_load_status decode_segment(walk *w, const esz_segment *s, block_place place, block_done done, void *context) {
    const uint64_t start = s->coded_offset;
    uint32_t block, offset, coded_bytes, decoded_bytes;
    esz_status status;
    esz_load_status loaded = check_padding(w, w->end, start, s->number);
    if (loaded != ESZ_LOAD_OK) return loaded;
    if (!grow(&w->directory, &w->directory_room, s->directory_bytes + 1u)) return ESZ_LOAD_MEMORY;
    if ((loaded = read_at(w, start, w->directory, s->directory_bytes)) != ESZ_LOAD_OK) return loaded;
    status = esz_segment_begin(w->decoder, s, w->directory, s->directory_bytes);
    if (status != ESZ_OK) return malformed(w, status, start, s->number, NOWHERE);
    loaded = check_padding(w, start + s->directory_bytes, start + s->data_offset, s->number);
    for (block = 0; loaded == ESZ_LOAD_OK && block < s->block_count; block++) {
        uint8_t *to;
        uint64_t at;
        if ((status = esz_block_at(w->decoder, block, &offset, &coded_bytes, &decoded_bytes)) != ESZ_OK)
            return malformed(w, status, start, s->number, block);
        at = start + s->data_offset + offset;
        if (!grow(&w->coded, &w->coded_room, coded_bytes + 1u)) return ESZ_LOAD_MEMORY;
        if ((loaded = read_at(w, at, w->coded, coded_bytes)) != ESZ_LOAD_OK) return loaded;
        if ((to = place(context, s, block, decoded_bytes)) == NULL) return ESZ_LOAD_STOPPED;
        status = esz_block_decode(w->decoder, block, w->coded, coded_bytes, to, decoded_bytes);
        if (status != ESZ_OK) return malformed(w, status, at, s->number, block);
        esz_hash_add(w->hash, to, decoded_bytes);
        if (done != NULL) loaded = done(context, to, decoded_bytes, &w->error);
    }
    w->end = start + s->coded_bytes;
    return loaded;
}

static esz_load_status decode_all(walk *w, block_place place, block_done done, segment_done next, void *context) {
    esz_cursor cursor;
    esz_segment segment;
    esz_load_status loaded = ESZ_LOAD_OK;
    if (esz_index_begin(&cursor, &w->header, w->index, (size_t)w->header.index_bytes) != ESZ_OK)
        return malformed(w, ESZ_E_INDEX, ESZ_HEADER_BYTES, NOWHERE, NOWHERE); /* it was fine before */
    while (loaded == ESZ_LOAD_OK && esz_index_next(&cursor, &segment) == ESZ_OK) {
        loaded = decode_segment(w, &segment, place, done, context);
        if (loaded == ESZ_LOAD_OK && next != NULL) loaded = next(context, &segment);
    }
    if (loaded == ESZ_LOAD_OK && esz_hash_end(w->hash) != w->header.image_hash)
        return malformed(w, ESZ_E_IMAGE_HASH, 48, NOWHERE, NOWHERE);
    return loaded;
}

esz_load_status esz_load_size(const char *container, uint64_t *decoded_bytes, esz_load_error *error) {
    walk w;
    const esz_load_status loaded = begin(&w, container, ESZ_LOAD_ANY_SIZE);
    *decoded_bytes = loaded == ESZ_LOAD_OK ? w.header.decoded_bytes : 0;
    return finish(&w, loaded, error);
}

/* --- Into one buffer --- */

static uint8_t *place_in_buffer(void *context, const esz_segment *segment, uint32_t block, uint32_t size) {
    (void)size;
    return (uint8_t *)context + (size_t)segment->decoded_offset + (size_t)block * segment->block_bytes;
}

esz_load_status esz_load_into(const char *container, void *buffer, size_t buffer_bytes, esz_load_error *error) {
    walk w;
    esz_load_status loaded = begin(&w, container, buffer_bytes);
    if (loaded == ESZ_LOAD_OK) loaded = decode_all(&w, place_in_buffer, NULL, NULL, buffer);
    return finish(&w, loaded, error);
}

/* --- Tensor by tensor --- */

typedef struct {
    esz_load_place place;
    esz_load_done done;
    void *context;
    uint8_t *data; /* of the segment under way */
    uint8_t none;  /* where nothing goes */
} tensor_sink;

static uint8_t *place_in_tensor(void *context, const esz_segment *segment, uint32_t block, uint32_t size) {
    tensor_sink *sink = context;
    (void)size;
    if (block == 0) sink->data = sink->place(sink->context, segment);
    return sink->data == NULL ? NULL : sink->data + (size_t)block * segment->block_bytes;
}

static esz_load_status tensor_done(void *context, const esz_segment *segment) {
    tensor_sink *sink = context;
    uint8_t *data = segment->block_count ? sink->data : &sink->none;
    return sink->done == NULL || sink->done(sink->context, segment, data) == 0 ? ESZ_LOAD_OK : ESZ_LOAD_STOPPED;
}

esz_load_status esz_load_tensors(const char *container, uint64_t expected_bytes, esz_load_place place, esz_load_done done,
                                 void *context, esz_load_error *error) {
    walk w;
    tensor_sink sink = {place, done, context, NULL, 0};
    esz_load_status loaded = begin(&w, container, expected_bytes);
    if (loaded == ESZ_LOAD_OK) loaded = decode_all(&w, place_in_tensor, NULL, tensor_done, &sink);
    return finish(&w, loaded, error);
}

/* --- To a file --- */

typedef struct {
    int file;
    uint8_t *block;
} file_sink;

static uint8_t *place_in_block(void *context, const esz_segment *segment, uint32_t block, uint32_t size) {
    (void)segment, (void)block, (void)size;
    return ((file_sink *)context)->block;
}

static esz_load_status write_block(void *context, const uint8_t *data, size_t size, esz_load_error *error) {
    while (size > 0) {
        const ssize_t put = write(((file_sink *)context)->file, data, size);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return failed(error);
        data += put;
        size -= (size_t)put;
    }
    return ESZ_LOAD_OK;
}

/* Whether the file `out` has the image's size and hash. */
static int is_image(walk *w, const char *out) {
    uint8_t *chunk = NULL;
    struct stat facts;
    ssize_t got = -1;
    int same = 0;
    const int file = open(out, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    if (fstat(file, &facts) == 0 && S_ISREG(facts.st_mode) && (uint64_t)facts.st_size == w->header.decoded_bytes)
        chunk = malloc(CHUNK_BYTES);
    if (chunk != NULL) {
        while ((got = read(file, chunk, CHUNK_BYTES)) > 0 || (got < 0 && errno == EINTR))
            if (got > 0) esz_hash_add(w->hash, chunk, (size_t)got);
        same = got == 0 && esz_hash_end(w->hash) == w->header.image_hash;
        esz_hash_begin(w->hash);
    }
    free(chunk);
    close(file);
    return same;
}

/* Room for the whole file at once, where the system can tell; else writing will. */
static esz_load_status make_room(int file, uint64_t size, esz_load_error *error) {
    const int failure = size > 0 ? posix_fallocate(file, 0, (off_t)size) : 0;
    if (failure != ENOSPC && failure != EFBIG) return ESZ_LOAD_OK;
    errno = failure;
    return failed(error);
}

static void sync_folder(char *path) {
    char *slash = strrchr(path, '/');
    int folder;
    if (slash != NULL) slash[slash == path] = 0;
    folder = open(slash == NULL ? "." : path, O_RDONLY | O_CLOEXEC);
    if (folder < 0) return;
    fsync(folder); /* not every system has it for folders; then the rename is on the disk a little later */
    close(folder);
}

static esz_load_status write_image(walk *w, const char *out) {
    const mode_t mode = S_IRUSR | S_IWUSR;
    const size_t length = strlen(out);
    char *temporary = malloc(length + sizeof ".XXXXXX");
    file_sink sink = {-1, malloc(w->most_block_bytes + 1u)};
    esz_load_status loaded = ESZ_LOAD_MEMORY;
    if (temporary != NULL && sink.block != NULL) {
        memcpy(temporary, out, length);
        memcpy(temporary + length, ".XXXXXX", sizeof ".XXXXXX");
        sink.file = mkstemp(temporary);
        loaded = sink.file < 0 ? failed(&w->error) : make_room(sink.file, w->header.decoded_bytes, &w->error);
        if (loaded == ESZ_LOAD_OK) loaded = decode_all(w, place_in_block, write_block, NULL, &sink);
        if (loaded == ESZ_LOAD_OK && (fchmod(sink.file, mode) != 0 || fsync(sink.file) != 0)) loaded = failed(&w->error);
        if (sink.file >= 0 && close(sink.file) != 0 && loaded == ESZ_LOAD_OK) loaded = failed(&w->error);
        if (loaded == ESZ_LOAD_OK && rename(temporary, out) != 0) loaded = failed(&w->error);
        if (loaded != ESZ_LOAD_OK && sink.file >= 0) unlink(temporary);
        if (loaded == ESZ_LOAD_OK) sync_folder(temporary);
    }
    free(sink.block);
    free(temporary);
    return loaded;
}

esz_load_status esz_load_to_file(const char *container, const char *out, uint64_t expected_bytes, esz_load_error *error) {
    walk w;
    esz_load_status loaded = begin(&w, container, expected_bytes);
    if (loaded == ESZ_LOAD_OK) loaded = is_image(&w, out) ? ESZ_LOAD_FOUND : write_image(&w, out);
    return finish(&w, loaded, error);
}

const char *esz_load_status_text(esz_load_status status) {
    static const char *const texts[] = {
        "fine", "the file is there already", "the container is malformed or damaged",
        "the weights have another size than expected", "out of memory", "no room for the decoded weights on the disk",
        "a call of the system failed", "stopped by the caller"};
    return (unsigned)status < sizeof texts / sizeof *texts ? texts[status] : "unknown status";
}
