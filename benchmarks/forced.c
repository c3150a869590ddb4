/* forced FOLDER TOKENS: the model's likeliest token behind each of those in the file, a number a line, which are fed one
 * at a time through the KV cache whatever the model would have said (teacher forcing). Prints a token a line. */
#include <inttypes.h>
#include <stdio.h>

#include "edgeslim_decoder.h"

int main(int count, char **words) {
    const edgeslim_options options = {1, EDGESLIM_LOWEST};
    edgeslim_model *model = NULL;
    edgeslim_decoder *decoder = NULL;
    edgeslim_error error = {""};
    edgeslim_status status;
    const float *logits;
    size_t vocabulary;
    int64_t token;
    FILE *file = count == 3 ? fopen(words[2], "r") : NULL;
    if (file == NULL) return fprintf(stderr, "usage: forced FOLDER TOKENS\n"), 2;
    status = edgeslim_open(words[1], &options, &model, &error);
    if (status == EDGESLIM_OK) status = edgeslim_decoder_open(model, &decoder, &error);
    while (status == EDGESLIM_OK && fscanf(file, "%" SCNd64, &token) == 1) {
        status = edgeslim_decoder_feed(decoder, &token, 1, &logits, &vocabulary, &error);
        if (status == EDGESLIM_OK) printf("%zu\n", edgeslim_best(logits, vocabulary));
        fflush(stdout);
    }
    if (status != EDGESLIM_OK) fprintf(stderr, "%s\n", error.text);
    edgeslim_decoder_close(decoder);
    edgeslim_close(model);
    fclose(file);
    return status == EDGESLIM_OK ? 0 : 10 + (int)status;
}
