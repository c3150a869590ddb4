/* Talks with the language model of an unpacked package: chat FOLDER [TEMPERATURE [SEED]]. A line is a turn; an empty one
 * ends it. The time to the first piece and the tokens a second go to the error output. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "edgeslim_chat.h"

enum { MOST_TOKENS = 256, MOST_LINE = 8192 };

typedef struct {
    double asked, first; /* seconds; `first` is 0 until a piece has come */
} answer_times;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int print(void *context, const char *text, size_t bytes) {
    answer_times *times = context;
    if (times->first == 0) times->first = seconds();
    return fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout) != 0;
}

static edgeslim_status talk(edgeslim_chat *chat, const edgeslim_sampling *sampling, edgeslim_error *error) {
    static char line[MOST_LINE];
    edgeslim_status status = EDGESLIM_OK;
    while (status == EDGESLIM_OK && fgets(line, sizeof line, stdin) != NULL) {
        answer_times times = {0, 0};
        size_t tokens = 0;
        double ended;
        line[strcspn(line, "\r\n")] = 0;
        if (line[0] == 0) break;
        times.asked = seconds();
        status = edgeslim_chat_answer(chat, line, sampling, MOST_TOKENS, print, &times, &tokens, error);
        ended = seconds();
        puts("");
        if (times.first > 0 && tokens > 1)
            fprintf(stderr, "(%.2f s to the first piece, then %.1f tokens a second)\n", times.first - times.asked,
                    (double)(tokens - 1) / (ended - times.first));
    }
    return status;
}

int main(int count, char **words) {
    edgeslim_sampling sampling = {0, 0.9, 0};
    edgeslim_model *model;
    edgeslim_chat *chat = NULL;
    edgeslim_error error;
    edgeslim_status status;
    if (count < 2) return fprintf(stderr, "usage: chat FOLDER [TEMPERATURE [SEED]]\n"), 2;
    if (count > 2) sampling.temperature = atof(words[2]);
    if (count > 3) sampling.seed = strtoull(words[3], NULL, 10);
    status = edgeslim_open(words[1], NULL, &model, &error);
    if (status == EDGESLIM_OK) status = edgeslim_chat_open(model, &chat, &error);
    if (status == EDGESLIM_OK) status = talk(chat, &sampling, &error);
    if (status != EDGESLIM_OK) fprintf(stderr, "%s\n", error.text);
    edgeslim_chat_close(chat);
    edgeslim_close(model);
    return status == EDGESLIM_OK ? 0 : 1;
}
