/* Runs the C tokenizer for test_token_c.py.
 *
 *   harness FILE encode OPTIONS ROOM    texts from stdin, each behind its size (u32): a line "STATUS CUT ids..." each
 *   harness FILE decode SKIP            id lists from stdin, each behind its count (u32; ids are u32): "STATUS hex" each
 *   harness FILE fuzz ROUNDS            damages the file ROUNDS times and encodes a text: how many opened
 *   harness FILE bench ROUNDS           texts from stdin: microseconds a text
 * Texts are copied to memory of exactly their size, so that the sanitizer sees a byte too many. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "esz_token.h"

static uint8_t *read_all(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    if (file == NULL) exit(2);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    data = malloc(*bytes > 0 ? *bytes : 1);
    if (fread(data, 1, *bytes, file) != *bytes) exit(2);
    fclose(file);
    return data;
}

static uint8_t *next_text(uint32_t unit, uint32_t *count) {
    uint8_t *text;
    if (fread(count, 4, 1, stdin) != 1) return NULL;
    text = malloc((size_t)*count * unit + (*count == 0));
    if (fread(text, unit, *count, stdin) != *count) exit(2);
    return text;
}

static void encode(const esz_tokenizer *t, unsigned options, size_t room) {
    int64_t *ids = malloc(8 * room + 1);
    uint8_t *text;
    uint32_t bytes;
    while ((text = next_text(1, &bytes)) != NULL) {
        size_t count, i;
        int cut;
        const esz_token_status status = esz_token_encode(t, (const char *)text, bytes, options, ids, room, &count, &cut);
        printf("%d %d", status, cut);
        for (i = 0; i < count; i++) printf(" %" PRId64, ids[i]);
        printf("\n");
        free(text);
    }
    free(ids);
}

static void decode(const esz_tokenizer *t, int skip) {
    uint8_t *list;
    uint32_t count;
    while ((list = next_text(4, &count)) != NULL) {
        int64_t *ids = malloc(8 * (size_t)count + 1);
        size_t bytes, again, i;
        char *text;
        esz_token_status status;
        for (i = 0; i < count; i++) {
            uint32_t id;
            memcpy(&id, list + 4 * i, 4);
            ids[i] = id;
        }
        status = esz_token_decode(t, ids, count, skip, NULL, 0, &bytes);
        text = malloc(bytes + 1);
        if (status == ESZ_TOKEN_ROOM) status = esz_token_decode(t, ids, count, skip, text, bytes, &again);
        printf("%d ", status);
        for (i = 0; status == ESZ_TOKEN_OK && i < bytes; i++) printf("%02x", (unsigned char)text[i]);
        printf("\n");
        free(text);
        free(ids);
        free(list);
    }
}

static void fuzz(uint8_t *file, size_t bytes, unsigned rounds) {
    static const char text[] = "Hello, W\xC3\xB6rld! \xE4\xB8\xAD\xE6\x96\x87 \xED\x95\x9C\xEA\xB8\x80 \xE0\xAF\x8A it's 12 [SEP] <|im_end|> \xF0\x9F\x98\x80";
    unsigned round, opened = 0;
    srand(7);
    for (round = 0; round < rounds; round++) {
        uint8_t *damaged = malloc(bytes);
        const size_t cut = round % 8 == 7 ? (size_t)rand() % bytes : bytes;
        unsigned i;
        esz_tokenizer t;
        memcpy(damaged, file, bytes);
        for (i = 0; i < 1 + round % 3; i++) {
            const size_t at = (round % 2 ? 4 * ((size_t)rand() % 32) : (size_t)rand() % bytes);
            damaged[at + (size_t)rand() % 4 * (at + 4 <= bytes)] = (uint8_t)rand();
        }
        if (esz_token_open(&t, damaged, cut) == ESZ_TOKEN_OK) {
            int64_t ids[64];
            char out[4096];
            size_t count, size;
            opened++;
            esz_token_encode(&t, text, sizeof text - 1, 0, ids, 64, &count, NULL);
            esz_token_decode(&t, ids, count, 0, out, sizeof out, &size);
        }
        free(damaged);
    }
    printf("%u\n", opened);
}

static void bench(const esz_tokenizer *t, unsigned rounds) {
    static uint8_t *texts[100000];
    static uint32_t sizes[100000];
    uint32_t count = 0, i;
    unsigned round;
    clock_t start;
    while (count < 100000 && (texts[count] = next_text(1, &sizes[count])) != NULL) count++;
    start = clock();
    for (round = 0; round < rounds; round++) {
        for (i = 0; i < count; i++) {
            int64_t ids[128];
            size_t used;
            esz_token_encode(t, (const char *)texts[i], sizes[i], 0, ids, 128, &used, NULL);
        }
    }
    printf("%.3f\n", 1e6 * (double)(clock() - start) / CLOCKS_PER_SEC / rounds / count);
}

int main(int argc, char **argv) {
    size_t bytes;
    uint8_t *file = argc < 4 ? NULL : read_all(argv[1], &bytes);
    esz_tokenizer t;
    if (file == NULL) return 2;
    if (strcmp(argv[2], "fuzz") == 0) {
        fuzz(file, bytes, (unsigned)atoi(argv[3]));
        free(file);
        return 0;
    }
    if (esz_token_open(&t, file, bytes) != ESZ_TOKEN_OK) {
        printf("format\n");
        free(file);
        return 0;
    }
    if (strcmp(argv[2], "encode") == 0) encode(&t, (unsigned)atoi(argv[3]), (size_t)atoi(argv[4]));
    if (strcmp(argv[2], "decode") == 0) decode(&t, atoi(argv[3]));
    if (strcmp(argv[2], "bench") == 0) bench(&t, (unsigned)atoi(argv[3]));
    free(file);
    return 0;
}
