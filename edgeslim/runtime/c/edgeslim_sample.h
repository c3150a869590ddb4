/* The next token out of a model's logits: the likeliest, or one drawn from those that together have probability top_p
 * (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751).
 *
 * For equal logits, settings and seeds C, Java and Python draw the same tokens, on every machine: probabilities are whole
 * numbers, and no function of a mathematical library is called. docs/generating.md has the steps.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_SAMPLE_H
#define EDGESLIM_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    double temperature; /* 0 takes the likeliest token; more varies: 0 to 100 */
    double top_p;       /* above 0, at most 1; not read at temperature 0 */
    uint64_t seed;      /* where the draws of an answer begin */
} edgeslim_sampling;

enum { EDGESLIM_MAX_VOCABULARY = 1 << 20 };

/* A token for `count` logits, or -1: none of them is finite, one is NaN or infinitely large, or a setting is out of its
 * range. `*state` is the generator's, at first the seed; a draw moves it on. `keys` is work space for `count` numbers. */
int64_t edgeslim_choose(const float *logits, size_t count, const edgeslim_sampling *sampling, uint64_t *state,
                        uint64_t *keys);

#ifdef __cplusplus
}
#endif
#endif
