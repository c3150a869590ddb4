/* The loader in C by hand: loader_main FOLDER WAY ids ID… | text TEXT | floats VALUE… | labels. Prints a number or name a line.
 * WAY is 0 (lowest), 1 (file) or 2 (memory). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edgeslim.h"

enum { ROOM = 4096 };

static int failed(edgeslim_status status, const edgeslim_error *error) {
    fprintf(stderr, "%s\n", error->text);
    return 10 + (int)status;
}

int main(int count, char **words) {
    static float vector[ROOM], values[ROOM];
    static int64_t ids[ROOM];
    edgeslim_options options = {0};
    edgeslim_model *model;
    edgeslim_error error = {""};
    edgeslim_status status;
    size_t size = 0, given = (size_t)count - 4, k;
    if (count < 4 || given > ROOM) return 2;
    options.loading = (edgeslim_loading)atoi(words[2]);
    status = edgeslim_open(words[1], &options, &model, &error);
    if (status != EDGESLIM_OK) return failed(status, &error);
    if (strcmp(words[3], "labels") == 0) {
        for (k = 0; edgeslim_label(model, k) != NULL; k++) puts(edgeslim_label(model, k));
        printf("%zu %zu %s\n", edgeslim_label_count(model), edgeslim_max_tokens(model), edgeslim_name(model));
    } else if (strcmp(words[3], "text") == 0) {
        status = edgeslim_embed(model, words[4], vector, ROOM, &size, &error);
    } else if (strcmp(words[3], "ids") == 0) {
        for (k = 0; k < given; k++) ids[k] = atoll(words[4 + k]);
        status = edgeslim_embed_ids(model, ids, given, vector, ROOM, &size, &error);
    } else {
        edgeslim_tensor in = {NULL, 1, 2, {1, (int64_t)given}, values, given * sizeof *values};
        edgeslim_tensor out = {NULL, 0, 0, {0}, vector, sizeof vector};
        for (k = 0; k < given; k++) values[k] = (float)atof(words[4 + k]);
        status = edgeslim_run(model, &in, 1, &out, 1, &error);
        size = out.bytes / sizeof *vector;
    }
    for (k = 0; status == EDGESLIM_OK && k < size; k++) printf("%.9g\n", (double)vector[k]);
    edgeslim_close(model);
    return status == EDGESLIM_OK ? 0 : failed(status, &error);
}
