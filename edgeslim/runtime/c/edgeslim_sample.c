/* See edgeslim_sample.h. SPDX-License-Identifier: Apache-2.0 */
#include "edgeslim_sample.h"

#include <float.h>

enum { TERMS = 12, ID_BITS = 30 };

/* SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"). */
static uint64_t next_bits(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* exp(-distance) in units of 2^-32, by whole numbers: 2^-k shifts, and for the fraction of a power of two the Taylor
 * series of 2^-x, whose coefficients are rounded to 2^-32. */
static uint64_t weigh(double distance) {
    static const uint64_t terms[TERMS] = {4294967296u, 2977044472u, 1031764991u, 238388332u, 41309550u, 5726720u,
                                          661577u,     65510u,      5676u,       437u,       30u,       2u};
    const double scaled = distance * 0x1.71547652b82fep+32; /* log2(e) * 2^32 */
    uint64_t whole, part, sum = terms[TERMS - 1];
    int n;
    if (!(scaled < 33.0 * 4294967296.0)) return 0;
    whole = (uint64_t)scaled;
    part = whole & 0xFFFFFFFFu;
    for (n = TERMS - 2; n >= 0; n--) sum = terms[n] - (sum * part >> 32);
    return sum >> (whole >> 32);
}

/* Puts the key at `at` where it belongs in a heap whose largest is in front. */
static void sink(uint64_t *keys, size_t count, size_t at) {
    const uint64_t key = keys[at];
    size_t child;
    while ((child = 2 * at + 1) < count) {
        if (child + 1 < count && keys[child + 1] > keys[child]) child++;
        if (keys[child] <= key) break;
        keys[at] = keys[child];
        at = child;
    }
    keys[at] = key;
}

static int64_t token_of(uint64_t key) { return (int64_t)((UINT64_C(1) << ID_BITS) - 1 - (key & ((UINT64_C(1) << ID_BITS) - 1))); }

/* `keys` hold weight and token, so that the larger key is that of the likelier token, or of the smaller of two alike. */
static int64_t draw(uint64_t *keys, size_t count, uint64_t total, double top_p, uint64_t *state) {
    const double wanted = top_p * (double)total;
    uint64_t kept = 0, sum = 0;
    size_t left = count, k;
    double point;
    for (k = count / 2; k-- > 0;) sink(keys, count, k);
    do { /* the largest goes behind those that are left */
        const uint64_t largest = keys[0];
        keys[0] = keys[--left];
        sink(keys, left, 0);
        keys[left] = largest;
        kept += largest >> ID_BITS;
    } while (left > 0 && (double)kept < wanted);
    point = (double)(next_bits(state) >> 11) * 0x1p-53;
    point *= (double)kept;
    for (k = count; k-- > left;) {
        sum += keys[k] >> ID_BITS;
        if ((double)sum > point) return token_of(keys[k]);
    }
    return token_of(keys[left]);
}

int64_t edgeslim_choose(const float *logits, size_t count, const edgeslim_sampling *s, uint64_t *state, uint64_t *keys) {
    size_t best = 0, used = 0, k;
    uint64_t total = 0;
    if (count == 0 || count > EDGESLIM_MAX_VOCABULARY || !(s->temperature >= 0 && s->temperature <= 100)) return -1;
    for (k = 0; k < count; k++) {
        if (!(logits[k] <= FLT_MAX)) return -1;
        if (logits[k] > logits[best]) best = k;
    }
    if (!(logits[best] >= -FLT_MAX)) return -1;
    if (s->temperature == 0) return (int64_t)best;
    if (!(s->top_p > 0 && s->top_p <= 1)) return -1;
    for (k = 0; k < count; k++) {
        const double distance = ((double)logits[best] - (double)logits[k]) / s->temperature;
        const uint64_t weight = weigh(distance);
        if (weight == 0) continue;
        total += weight;
        keys[used++] = weight << ID_BITS | ((UINT64_C(1) << ID_BITS) - 1 - k);
    }
    return draw(keys, used, total, s->top_p, state);
}
