/* gateway MODEL_FOLDER COMMANDS.txt [TEXT...]: says of each text, or of each line that it reads, which command is meant.
 *
 * Each line of COMMANDS.txt becomes a vector once, each text another; the nearest command wins, unless it is too far
 * away. Prints "cosine <tab> command". SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "edgeslim.h"

enum { MOST_COMMANDS = 64, LINE_ROOM = 512, VECTOR_ROOM = 1024 };
static const float far_away = 0.4f;

static char commands[MOST_COMMANDS][LINE_ROOM];
static float known[MOST_COMMANDS][VECTOR_ROOM];

static int failed(const edgeslim_error *error) {
    fprintf(stderr, "gateway: %s\n", error->text);
    return 1;
}

/* The next line without its end; 0 at the end of the file. */
static int read_line(FILE *file, char *line) {
    if (fgets(line, LINE_ROOM, file) == NULL) return 0;
    line[strcspn(line, "\r\n")] = 0;
    return 1;
}

static float product(const float *a, const float *b, size_t size) {
    float sum = 0;
    size_t k;
    for (k = 0; k < size; k++) sum += a[k] * b[k];
    return sum;
}

/* Says which of the `number` commands is nearest to `text`. */
static int answer(edgeslim_model *model, const char *text, size_t number) {
    float vector[VECTOR_ROOM], scores[MOST_COMMANDS];
    size_t size, best, k;
    edgeslim_error error;
    if (edgeslim_embed(model, text, vector, VECTOR_ROOM, &size, &error) != EDGESLIM_OK) return failed(&error);
    for (k = 0; k < number; k++) scores[k] = product(vector, known[k], size);
    best = edgeslim_best(scores, number);
    printf("%.6f\t%s\n", (double)scores[best], scores[best] < far_away ? "?" : commands[best]);
    fflush(stdout);
    return 0;
}

int main(int count, char **words) {
    char line[LINE_ROOM];
    size_t size, number = 0;
    int k, status = 0;
    edgeslim_model *model;
    edgeslim_error error;
    FILE *file;
    if (count < 3) return fprintf(stderr, "usage: gateway MODEL_FOLDER COMMANDS.txt [TEXT...]\n"), 2;
    if (edgeslim_open(words[1], NULL, &model, &error) != EDGESLIM_OK) return failed(&error);
    fprintf(stderr, "gateway: %s on ONNX Runtime %s\n", edgeslim_name(model), edgeslim_runtime_version());
    if ((file = fopen(words[2], "r")) == NULL) return fprintf(stderr, "gateway: no %s\n", words[2]), 1;
    for (; number < MOST_COMMANDS && read_line(file, commands[number]); number++)
        if (edgeslim_embed(model, commands[number], known[number], VECTOR_ROOM, &size, &error) != EDGESLIM_OK)
            return failed(&error);
    fclose(file);
    if (number == 0) return fprintf(stderr, "gateway: no commands\n"), 1;
    for (k = 3; k < count && status == 0; k++) status = answer(model, words[k], number);
    while (count == 3 && status == 0 && read_line(stdin, line)) status = answer(model, line, number);
    edgeslim_close(model);
    return status;
}
