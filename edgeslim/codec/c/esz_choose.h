/* Encoder, private: the cheapest alphabet for a segment, by the size that optimal codes would give it. Of a large
 * segment, evenly spread stretches stand for the whole.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_CHOOSE_H
#define ESZ_CHOOSE_H

#include "esz_encode.h"
#include "esz_walk.h"

/* Below this share of fill values MASK8 cannot win and is not tried. */
#define ESZ_SPARSE_SHARE 0.25

/* Nor GAP and JOINT below this: the fill value's code of one bit fits well enough. */
#define ESZ_GAP_SHARE 0.6

/* Nibbles are not tried as elements if their entropy is this far above the bytes'. Masks find what entropy does not
 * see, such as 2:4 sparsity, but no more than that. */
#define ESZ_NIBBLE_MARGIN 1.25

/* GAP and MASK8 decode at a third of the speed of PLAIN and PAIR, and must be this much smaller. */
#define ESZ_SPARSE_GAIN 0.98

/* JOINT decodes a value in one step, GAP in two: GAP and MASK8 must be this much smaller. */
#define ESZ_JOINT_GAIN 0.985

/* MASK8 takes longer than GAP, and stretches of a sample cut gaps off. */
#define ESZ_MASK_GAIN 0.985

/* Gaps above 63 leave less room for the codes of the others, the more so with classes of rows. */
#define ESZ_LONG_GAPS_GAIN 0.99

/* PLANES, too: what a sample of two planes seems to gain over their bytes in one may be chance. */
#define ESZ_PLANES_GAIN 0.99

#define ESZ_STRETCH 4096u
#define ESZ_SHORT_STRETCH 1536u /* of segments below 1 MiB */
#define ESZ_STRETCHES 16u

/* What a table set is made of. */
static void esz_set_shape(const esz_kind *k, int small, unsigned symbols[2], unsigned limit[2]) {
    unsigned sparse = k->alphabet == ESZ_GAP || k->alphabet == ESZ_MASK8;
    symbols[0] = k->alphabet == ESZ_PAIR    ? 16
                 : k->alphabet == ESZ_GAP   ? k->cap + 1
                 : k->alphabet == ESZ_MASK8 ? 256
                 : k->alphabet == ESZ_JOINT ? k->cap * k->top + ESZ_JOINT_RUNS
                                            : k->values;
    symbols[1] = sparse ? (k->nibble ? 16 : k->values) : 0;
    limit[0] = k->alphabet == ESZ_PAIR ? ESZ_MAX_PAIR_BITS : sparse && small ? 8 : ESZ_MAX_CODE_BITS;
    limit[1] = small ? 8 : ESZ_MAX_CODE_BITS;
}

/* The codes for counts (2 x 256). A table that would be empty gets one symbol that no stream uses. */
static void esz_set_codes(esz_codebook b[2], const uint32_t *counts, const esz_kind *k, int small) {
    unsigned symbols[2], limit[2];
    esz_set_shape(k, small, symbols, limit);
    esz_code_lengths(&b[0], counts, symbols[0], limit[0]);
    if (b[0].used == 0) b[0].used = b[0].length[0] = 1;
    b[0].top = k->top;
    b[1].symbols = 0;
    if (symbols[1] == 0) return;
    esz_code_lengths(&b[1], counts + 256, symbols[1], limit[1]);
    if (b[1].used == 0) {
        b[1].used = 1;
        b[1].length[k->fill == 0] = 1;
    }
}

static uint64_t esz_set_bits(const esz_codebook b[2], const uint32_t *counts) {
    return esz_total_bits(&b[0], counts) + (b[1].symbols ? esz_total_bits(&b[1], counts + 256) : 0);
}

static size_t esz_set_write(uint8_t *p, const esz_codebook b[2]) {
    size_t one = b[0].top != 0;
    if (p != NULL && one) p[0] = (uint8_t)b[0].top;
    one += esz_table_write(p ? p + one : NULL, &b[0]);
    return b[1].symbols ? one + esz_table_write(p ? p + one : NULL, &b[1]) : one;
}

/* log2(x) for 1 <= x < 2^32, to about 0.001. */
static double esz_log2(double x) {
    uint64_t n = (uint64_t)x;
    double whole = 0, y;
#if defined(__GNUC__)
    whole = 63 - __builtin_clzll(n);
    x /= (double)((uint64_t)1 << (63 - __builtin_clzll(n)));
#else
    for (; n >= 65536; n >>= 16, x /= 65536) whole += 16;
    for (; n >= 2; n >>= 1, x /= 2) whole += 1;
#endif
    y = (x - 1) / (x + 1); /* log2(x) = 2 / ln 2 (y + y^3 / 3 + y^5 / 5 + ...) */
    return whole + 2.8853901 * y * (1 + y * y * (0.3333333 + y * y * (0.2 + y * y * 0.1428571)));
}

/* Order-0 entropy of the counts, in bits. */
static double esz_entropy(const uint32_t *counts, unsigned symbols) {
    double bits = 0, total = 0;
    unsigned i;
    for (i = 0; i < symbols; i++) {
        total += counts[i];
        if (counts[i] > 1) bits -= counts[i] * esz_log2(counts[i]);
    }
    return total > 1 ? bits + total * esz_log2(total) : 0;
}

/* Turns gap counts for cap 255 into counts for a smaller cap (long runs to within one symbol a run). */
static void esz_recap(uint32_t *to, const uint32_t *counts, unsigned cap) {
    unsigned g;
    memset(to, 0, 256 * sizeof *to);
    for (g = 0; g <= 255; g++) {
        to[cap] += counts[g] * (g / cap);
        if (g < 255) to[g % cap] += counts[g];
    }
}

static unsigned esz_largest(const uint8_t *d, size_t n) {
    unsigned char most = 0;
    size_t i;
    for (i = 0; i < n; i++) most = d[i] > most ? d[i] : most;
    return most;
}

/* Counts over all of the segment, or over stretches of it. Returns the number of bytes counted. */
static size_t esz_sample(const uint8_t *d, size_t n, const esz_kind *k, uint32_t *counts) {
    const size_t per_byte = k->nibble ? 2 : 1, stretch = n < 1u << 20 ? ESZ_SHORT_STRETCH : ESZ_STRETCH;
    unsigned s;
    memset(counts, 0, 512 * sizeof *counts);
    if (n <= stretch * ESZ_STRETCHES) {
        esz_count(d, 0, n * per_byte, k, NULL, 0, counts);
        return n;
    }
    for (s = 0; s < ESZ_STRETCHES; s++) {
        size_t at = (size_t)((uint64_t)(n - stretch) * s / (ESZ_STRETCHES - 1)) & ~(size_t)63;
        esz_count(d + at, 0, stretch * per_byte, k, NULL, 0, counts);
    }
    return stretch * ESZ_STRETCHES;
}

/* Byte `plane` of a value whose bits are rotated up by one, the sign to the end, or not. */
static unsigned esz_plane_byte(const uint8_t *value, size_t width, size_t plane, unsigned rotate) {
    unsigned below = value[plane > 0 ? plane - 1 : width - 1];
    return rotate ? (value[plane] << 1 | below >> 7) & 255u : value[plane];
}

typedef struct {
    esz_kind kind;
    double bits;
} esz_choice;

/* Takes `k` if it is cheaper; `scale` makes the counted bits those of the whole segment. */
static void esz_weigh(esz_choice *best, const esz_kind *k, const uint32_t *counts, double scale, int small) {
    esz_codebook b[2];
    double bits, gain = 1;
    esz_set_codes(b, counts, k, small);
    bits = (double)esz_set_bits(b, counts) * scale + 8.0 * (double)esz_set_write(NULL, b);
    if (k->alphabet > ESZ_PAIR && best->kind.alphabet <= ESZ_PAIR) gain = ESZ_SPARSE_GAIN;
    if (k->alphabet != ESZ_JOINT && best->kind.alphabet == ESZ_JOINT) gain = ESZ_JOINT_GAIN;
    if (k->alphabet == ESZ_MASK8 && best->kind.alphabet == ESZ_GAP) gain = ESZ_MASK_GAIN;
    if (k->alphabet == ESZ_JOINT && (best->kind.alphabet == ESZ_GAP || best->kind.alphabet == ESZ_MASK8))
        gain = 1 / ESZ_JOINT_GAIN;
    if (bits >= best->bits * gain) return;
    best->bits = bits;
    best->kind = *k;
}

/* A sample's gaps and values, as GAP's tokens with a cap of 255: one list for each stretch. JOINT's tokens of all sizes
 * follow from them. */
typedef struct {
    uint16_t *token;
    size_t end[ESZ_STRETCHES];
    unsigned stretches;
} esz_gap_list;

/* Lists what esz_sample counts. Returns 0 if out of memory. */
static int esz_list_sample(esz_gap_list *l, const uint8_t *d, size_t n, const esz_kind *k) {
    const size_t per_byte = k->nibble ? 2 : 1, stretch = n < 1u << 20 ? ESZ_SHORT_STRETCH : ESZ_STRETCH;
    const int whole = n <= stretch * ESZ_STRETCHES;
    const size_t each = (whole ? n : stretch) * per_byte;
    uint16_t *to;
    unsigned s;
    l->stretches = whole ? 1 : ESZ_STRETCHES;
    to = l->token = (uint16_t *)malloc(l->stretches * (2 * each + 2) * sizeof *to);
    if (to == NULL) return 0;
    for (s = 0; s < l->stretches; s++) {
        size_t at = whole ? 0 : (size_t)((uint64_t)(n - stretch) * s / (ESZ_STRETCHES - 1)) & ~(size_t)63;
        to = esz_list(d + at, 0, each, k, to);
        l->end[s] = (size_t)(to - l->token);
    }
    return 1;
}

static void esz_count_runs(uint32_t *runs, size_t *gap, unsigned cap) {
    while (*gap >= cap) {
        const size_t run = *gap / cap < ESZ_JOINT_RUNS ? *gap / cap : ESZ_JOINT_RUNS;
        runs[run - 1]++;
        *gap -= run * cap;
    }
}

/* Counts the sample as JOINT's tokens. */
static void esz_count_joint(const esz_gap_list *l, const esz_kind *k, uint32_t *counts) {
    uint32_t *runs = counts + k->cap * k->top;
    size_t i = 0, gap;
    unsigned s;
    memset(counts, 0, 512 * sizeof *counts);
    for (s = 0; s < l->stretches; s++) {
        for (gap = 0; i < l->end[s]; i++) {
            const unsigned value = l->token[i] & 255u;
            if (l->token[i] < 256) {
                gap += value;
                continue;
            }
            esz_count_runs(runs, &gap, k->cap);
            counts[gap * k->top + value - (value > k->fill)]++;
            gap = 0;
        }
        gap += k->cap - 1; /* the last run may reach past the end */
        esz_count_runs(runs, &gap, k->cap);
    }
}

/* JOINT, GAP and MASK8 over elements of one size; `seen` counts the elements. Returns 0 if out of memory. */
static int esz_weigh_sparse(esz_choice *best, const uint8_t *d, size_t n, unsigned nibble, const uint32_t *seen,
                             const esz_encode_options *o, double scale) {
    static const unsigned caps[4] = {31, 63, 127, 255};
    uint32_t counts[512], recapped[512];
    esz_gap_list list = {NULL, {0}, 0};
    int gaps;
    double total = 0, least = 0;
    size_t at;
    unsigned i, cap = 31;
    esz_kind k = {ESZ_GAP, 0, 255, 0, 256, 0, 0};
    k.nibble = nibble;
    for (i = 0; i < (nibble ? 16u : 256u); i++) {
        total += seen[i];
        if (seen[i] > seen[k.fill]) k.fill = i;
    }
    if (seen[k.fill] < ESZ_SPARSE_SHARE * total) return 1;
    gaps = seen[k.fill] >= ESZ_GAP_SHARE * total;
    if (gaps && !esz_list_sample(&list, d, n, &k)) return 0;
    if (gaps && (o->alphabets >> ESZ_JOINT & 1)) {
        k.alphabet = ESZ_JOINT;
        k.top = nibble ? 15 : esz_largest(d, n);
        for (k.cap = 16; k.cap > 1 && k.top >= k.fill && k.top > 0; k.cap /= 2) {
            if (k.cap * k.top + ESZ_JOINT_RUNS > 256) continue;
            esz_count_joint(&list, &k, counts);
            esz_weigh(best, &k, counts, scale, o->small != 0);
        }
        k.alphabet = ESZ_GAP;
        k.top = 0;
        k.cap = 255;
    }
    if (gaps && (o->alphabets >> ESZ_GAP & 1)) {
        memset(counts, 0, sizeof counts);
        for (at = 0; at < list.end[list.stretches - 1]; at++) counts[list.token[at]]++;
        memcpy(recapped + 256, counts + 256, 256 * sizeof *counts);
        for (i = 0; i < (o->small ? 1u : 4u); i++) {
            esz_codebook b;
            double bits;
            esz_recap(recapped, counts, caps[i]);
            esz_code_lengths(&b, recapped, caps[i] + 1, o->small ? 8 : ESZ_MAX_CODE_BITS);
            bits = (double)esz_total_bits(&b, recapped) * scale + 8.0 * (double)esz_table_write(NULL, &b);
            if (i > 0 && bits >= least * (i > 1 ? ESZ_LONG_GAPS_GAIN : 1)) continue;
            least = bits;
            cap = caps[i];
        }
        k.cap = cap;
        esz_recap(recapped, counts, cap);
        esz_weigh(best, &k, recapped, scale, o->small != 0);
    }
    if (o->alphabets >> ESZ_MASK8 & 1) {
        k.alphabet = ESZ_MASK8;
        k.cap = 0;
        esz_sample(d, n, &k, counts);
        esz_weigh(best, &k, counts, scale, o->small != 0);
    }
    free(list.token);
    return 1;
}

/* Sets *best to the cheapest allowed kind and returns its size in bits, or -1 if out of memory. Every allowed alphabet is weighed against
 * storing the bytes. `indices`: the bytes stand for values, so nibbles of them are not tried. */
static double esz_choose(esz_kind *best, const uint8_t *d, size_t n, const esz_encode_options *o, int indices) {
    uint32_t bytes[512], nibbles[512] = {0};
    esz_choice choice = {{ESZ_RAW, 0, 0, 0, 256, 0, 0}, 0};
    esz_kind k = {ESZ_PLAIN, 0, 0, 0, 256, 0, 0};
    double scale;
    unsigned i;
    choice.bits = (indices ? 64.0 : 8.0) * (double)n; /* an index replaces up to 8 bytes */
    scale = (double)n / (double)esz_sample(d, n, &k, bytes);
    for (i = 0; i < 256; i++) {
        nibbles[i & 15] += bytes[i];
        nibbles[i >> 4] += bytes[i];
    }
    if (o->alphabets >> ESZ_PLAIN & 1) esz_weigh(&choice, &k, bytes, scale, o->small != 0);
    k.alphabet = ESZ_PAIR;
    if ((o->alphabets >> ESZ_PAIR & 1) && !indices) esz_weigh(&choice, &k, nibbles, scale, o->small != 0);
    if (!esz_weigh_sparse(&choice, d, n, 0, bytes, o, scale)) return -1;
    if (!indices &&
        (esz_entropy(nibbles, 16) * scale <= ESZ_NIBBLE_MARGIN * choice.bits || choice.kind.alphabet == ESZ_RAW) &&
        !esz_weigh_sparse(&choice, d, n, 1, nibbles, o, scale))
        return -1;
    *best = choice.kind;
    return choice.bits;
}

/* PLANES of values of 2^log2 bytes: the bits of it all, and whether rotated values are cheaper. */
static double esz_weigh_planes(const uint8_t *d, size_t n, unsigned log2, unsigned *rotate) {
    const size_t width = (size_t)1 << log2, values = n >> log2, step = values / 16384 + 1;
    double bits[2] = {0, 0};
    size_t plane, i, seen;
    for (*rotate = 0; *rotate < 2; (*rotate)++)
        for (plane = 0; plane < width; plane++) {
            uint32_t counts[256] = {0};
            double coded;
            esz_codebook b;
            for (i = seen = 0; i < values; i += step, seen++)
                counts[esz_plane_byte(d + i * width, width, plane, *rotate)]++;
            esz_code_lengths(&b, counts, 256, ESZ_MAX_CODE_BITS);
            coded = (double)esz_total_bits(&b, counts) * (double)values / (double)seen;
            coded += 8.0 * (double)esz_table_write(NULL, &b) + 24;
            bits[*rotate] += coded < 8.0 * (double)values ? coded : 8.0 * (double)values + 16;
        }
    *rotate = bits[1] < bits[0];
    return bits[*rotate] + 24.0 * (double)width;
}

#endif
