/* The generate loop in C by hand:
 *   chat_main sample FILE VOCABULARY TEMPERATURE TOP_P SEED     a token a line, for each row of float32 logits of the file
 *   chat_main answer FOLDER TEMPERATURE TOP_P SEED MOST TEXT…   a turn a text: pieces in hex, then its tokens of all
 *   chat_main utf8 FILE                                         the file's bytes, one at a time, as whole characters */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeslim_chat.h"
#include "edgeslim_utf8.h"

static int failed(edgeslim_status status, const edgeslim_error *error) {
    fprintf(stderr, "%s\n", error->text);
    return 10 + (int)status;
}

static edgeslim_sampling sampling_of(char **words) {
    edgeslim_sampling made;
    made.temperature = atof(words[0]);
    made.top_p = atof(words[1]);
    made.seed = strtoull(words[2], NULL, 10);
    return made;
}

static int sample(char **words) {
    const size_t count = (size_t)atoll(words[1]);
    const edgeslim_sampling sampling = sampling_of(words + 2);
    uint64_t state = sampling.seed, *keys = malloc(count * sizeof *keys);
    float *logits = malloc(count * sizeof *logits);
    FILE *file = fopen(words[0], "rb");
    if (file == NULL || keys == NULL || logits == NULL) return 2;
    while (fread(logits, sizeof *logits, count, file) == count)
        printf("%lld\n", (long long)edgeslim_choose(logits, count, &sampling, &state, keys));
    fclose(file);
    free(keys);
    free(logits);
    return 0;
}

static int utf8(const char *path) {
    utf8_part part = {{0}, 0, 0};
    char out[8];
    FILE *file = fopen(path, "rb");
    int byte;
    if (file == NULL) return 2;
    while ((byte = getc(file)) != EOF) fwrite(out, 1, utf8_push(&part, (uint8_t)byte, out), stdout);
    fwrite(out, 1, utf8_finish(&part, out), stdout);
    fclose(file);
    return 0;
}

static int print(void *context, const char *text, size_t bytes) {
    size_t *left = context, k;
    for (k = 0; k < bytes; k++) printf("%02x", (unsigned)(uint8_t)text[k]);
    puts("");
    return --*left == 0;
}

static int answer(edgeslim_model *model, char **words, int count) {
    const edgeslim_sampling sampling = sampling_of(words);
    edgeslim_chat *chat;
    edgeslim_error error = {""};
    edgeslim_status status = edgeslim_chat_open(model, &chat, &error);
    int k;
    for (k = 4; k < count && status == EDGESLIM_OK; k++) {
        size_t made = 0, pieces = strcmp(words[k], "stop") == 0 ? 2 : (size_t)-1;
        if (strcmp(words[k], "restart") == 0) {
            edgeslim_chat_restart(chat);
            continue;
        }
        status = edgeslim_chat_answer(chat, words[k], &sampling, (size_t)atoll(words[3]), print, &pieces, &made, &error);
        printf("%zu of %zu\n", made, edgeslim_chat_length(chat));
    }
    edgeslim_chat_close(chat);
    return status == EDGESLIM_OK ? 0 : failed(status, &error);
}

int main(int count, char **words) {
    edgeslim_options options = {1, EDGESLIM_LOWEST};
    edgeslim_model *model;
    edgeslim_error error = {""};
    edgeslim_status status;
    int code = 2;
    if (count < 3) return 2;
    if (strcmp(words[1], "utf8") == 0) return utf8(words[2]);
    if (strcmp(words[1], "sample") == 0) return count == 7 ? sample(words + 2) : 2;
    if ((status = edgeslim_open(words[2], &options, &model, &error)) != EDGESLIM_OK) return failed(status, &error);
    if (strcmp(words[1], "answer") == 0 && count > 7) code = answer(model, words + 3, count - 3);
    edgeslim_close(model);
    return code;
}
