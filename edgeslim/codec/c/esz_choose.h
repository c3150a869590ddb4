/* Encoder, private: the cheapest alphabet for a segment, by the size that optimal codes would give it. Of a large
 * segment, evenly spread stretches stand for the whole.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_CHOOSE_H
#define ESZ_CHOOSE_H

#include "esz_encode.h"
#include "esz_list.h"

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

/* A table set's codes; `entry` as esz_assign_codes has it, of both tables. */
typedef struct {
    esz_codebook table[2];
    uint32_t entry[512];
} esz_codes;

/* The codes for counts (2 x 256). A table that would be empty gets one symbol that no stream uses. */
static void esz_set_codes(esz_codebook *b, const uint32_t *counts, const esz_kind *k, int small) {
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

static void esz_assign_set(esz_codes *c) {
    esz_assign_codes(&c->table[0], c->entry);
    if (c->table[1].symbols) esz_assign_codes(&c->table[1], c->entry + 256);
}

static uint64_t esz_set_bits(const esz_codebook *b, const uint32_t *counts) {
    return esz_total_bits(&b[0], counts) + (b[1].symbols ? esz_total_bits(&b[1], counts + 256) : 0);
}

static size_t esz_set_write(uint8_t *p, const esz_codebook *b) {
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

/* Which stretches of a segment stand for it: `count` of `size` bytes, or all of it. */
typedef struct {
    size_t size, bytes;
    unsigned count;
} esz_sample;

static esz_sample esz_sample_of(size_t n) {
    const size_t stretch = n < 1u << 20 ? ESZ_SHORT_STRETCH : ESZ_STRETCH;
    esz_sample s = {0, 0, 1};
    s.size = s.bytes = n;
    if (n > stretch * ESZ_STRETCHES) {
        s.size = stretch;
        s.count = ESZ_STRETCHES;
    }
    return s;
}

static size_t esz_stretch(const esz_sample *s, unsigned number) {
    return s->count == 1 ? 0 : (size_t)((uint64_t)(s->bytes - s->size) * number / (s->count - 1)) & ~(size_t)63;
}

static unsigned esz_largest(const uint8_t *d, size_t n) {
    unsigned char most = 0;
    size_t i;
    for (i = 0; i < n; i++) most = d[i] > most ? d[i] : most;
    return most;
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

/* Gaps of a sample and the values behind them, counted once; the tokens of GAP and JOINT of all sizes follow. */
#define ESZ_GAPS 64u /* longer ones are kept apart */
#define ESZ_FAR (2u * ESZ_STRETCHES * ESZ_STRETCH / ESZ_GAPS)

typedef struct {
    uint32_t gap[ESZ_GAPS];
    uint32_t pair[ESZ_GAPS * 128u]; /* gap * top + value, the fill value left out; where JOINT is possible */
    struct {
        uint32_t gap, value;
    } far[ESZ_FAR];
    size_t far_count, tail[ESZ_STRETCHES]; /* elements behind the last value of a stretch */
    unsigned stretches;
} esz_gaps;

/* `top` 0: no pairs are counted. */
ESZ_ALWAYS void esz_count_gaps(esz_gaps *g, const uint8_t *d, const esz_sample *sample, unsigned fill, unsigned top,
                               const unsigned nibble) {
    const size_t to = sample->size << nibble;
    unsigned s;
    memset(g->gap, 0, sizeof g->gap);
    memset(g->pair, 0, ESZ_GAPS * (size_t)top * sizeof *g->pair);
    g->far_count = 0;
    g->stretches = sample->count;
    for (s = 0; s < sample->count; s++) {
        const uint8_t *p = d + esz_stretch(sample, s);
        size_t i, next = 0;
        for (i = 0; i < to; i += 64) {
            uint64_t mask = esz_mask64(p, i, to, fill, nibble, NULL);
            for (; mask != 0; mask &= mask - 1) {
                const size_t other = i + esz_lowest_bit(mask), gap = other - next;
                const unsigned value = esz_element(p, other, nibble);
                next = other + 1;
                if (gap >= ESZ_GAPS) {
                    g->far[g->far_count].gap = (uint32_t)gap;
                    g->far[g->far_count++].value = value - (value > fill);
                    continue;
                }
                g->gap[gap]++;
                if (top != 0) g->pair[gap * top + value - (value > fill)]++;
            }
        }
        g->tail[s] = to - next;
    }
}

/* The gap symbols of GAP with this cap. */
static void esz_cap_gaps(const esz_gaps *g, unsigned cap, uint32_t *counts) {
    unsigned i;
    memset(counts, 0, 256 * sizeof *counts);
    for (i = 0; i < ESZ_GAPS; i++) {
        counts[cap] += g->gap[i] * (i / cap);
        counts[i % cap] += g->gap[i];
    }
    for (i = 0; i < g->far_count; i++) {
        counts[cap] += g->far[i].gap / cap;
        counts[g->far[i].gap % cap]++;
    }
    for (i = 0; i < g->stretches; i++) {
        counts[cap] += (uint32_t)(g->tail[i] / cap);
        if (g->tail[i] % cap != 0) counts[g->tail[i] % cap]++;
    }
}

static void esz_add_runs(uint32_t *runs, size_t steps, uint32_t times) {
    runs[ESZ_JOINT_RUNS - 1] += (uint32_t)(steps / ESZ_JOINT_RUNS) * times;
    if (steps % ESZ_JOINT_RUNS != 0) runs[steps % ESZ_JOINT_RUNS - 1] += times;
}

/* The symbols of JOINT. */
static void esz_join_gaps(const esz_gaps *g, const esz_kind *k, uint32_t *counts) {
    uint32_t *runs = counts + k->cap * k->top;
    unsigned i, v;
    memset(counts, 0, 512 * sizeof *counts);
    for (i = 0; i < ESZ_GAPS; i++) {
        uint32_t *symbols = counts + i % k->cap * k->top;
        if (g->gap[i] == 0) continue;
        esz_add_runs(runs, i / k->cap, g->gap[i]);
        for (v = 0; v < k->top; v++) symbols[v] += g->pair[i * k->top + v];
    }
    for (i = 0; i < g->far_count; i++) {
        esz_add_runs(runs, g->far[i].gap / k->cap, 1);
        counts[g->far[i].gap % k->cap * k->top + g->far[i].value]++;
    }
    for (i = 0; i < g->stretches; i++) /* the last run may reach past the end */
        esz_add_runs(runs, (g->tail[i] + k->cap - 1) / k->cap, 1);
}

ESZ_ALWAYS void esz_count_masks(uint32_t *counts, const uint8_t *d, const esz_sample *sample, unsigned fill,
                                const unsigned nibble) {
    const size_t to = sample->size << nibble;
    unsigned s;
    memset(counts, 0, 256 * sizeof *counts);
    for (s = 0; s < sample->count; s++) {
        const uint8_t *p = d + esz_stretch(sample, s);
        size_t i, j;
        for (i = 0; i < to; i += 64) {
            uint64_t masks = esz_mask64(p, i, to, fill, nibble, NULL);
            for (j = i; j < i + 64 && j < to; j += 8, masks >>= 8) counts[masks & 255]++;
        }
    }
}

/* JOINT and GAP over elements of one size, of which `values` are no fill values. Returns 0 if out of memory. */
static int esz_weigh_gaps(esz_choice *best, const uint8_t *d, const esz_sample *sample, esz_kind k,
                          const uint32_t *values, const esz_encode_options *o, double scale) {
    static const unsigned caps[4] = {31, 63, 127, 255};
    esz_gaps *gaps = (esz_gaps *)malloc(sizeof *gaps);
    uint32_t counts[512];
    double least = 0;
    unsigned i, cap = 31, top = 0;
    if (gaps == NULL) return 0;
    if (o->alphabets >> ESZ_JOINT & 1) top = k.nibble ? 15 : esz_largest(d, sample->bytes);
    if (2 * top + ESZ_JOINT_RUNS > 256 || top < k.fill) top = 0;
    if (k.nibble)
        esz_count_gaps(gaps, d, sample, k.fill, top, 1);
    else
        esz_count_gaps(gaps, d, sample, k.fill, top, 0);
    k.alphabet = ESZ_JOINT;
    k.top = top;
    for (k.cap = 16; k.cap > 1 && top > 0; k.cap /= 2) {
        if (k.cap * k.top + ESZ_JOINT_RUNS > 256) continue;
        esz_join_gaps(gaps, &k, counts);
        esz_weigh(best, &k, counts, scale, o->small != 0);
    }
    k.alphabet = ESZ_GAP;
    k.top = 0;
    if (o->alphabets >> ESZ_GAP & 1) {
        for (i = 0; i < (o->small ? 1u : 4u); i++) {
            esz_codebook b;
            double bits;
            esz_cap_gaps(gaps, caps[i], counts);
            esz_code_lengths(&b, counts, caps[i] + 1, o->small ? 8 : ESZ_MAX_CODE_BITS);
            bits = (double)esz_total_bits(&b, counts) * scale + 8.0 * (double)esz_table_write(NULL, &b);
            if (i > 0 && bits >= least * (i > 1 ? ESZ_LONG_GAPS_GAIN : 1)) continue;
            least = bits;
            cap = caps[i];
        }
        k.cap = cap;
        esz_cap_gaps(gaps, cap, counts);
        memcpy(counts + 256, values, 256 * sizeof *counts);
        esz_weigh(best, &k, counts, scale, o->small != 0);
    }
    free(gaps);
    return 1;
}

/* JOINT, GAP and MASK8 over elements of one size; `seen` counts the sample's elements. Returns 0 if out of memory. */
static int esz_weigh_sparse(esz_choice *best, const uint8_t *d, const esz_sample *sample, unsigned nibble,
                            const uint32_t *seen, const esz_encode_options *o, double scale) {
    uint32_t counts[512];
    double total = 0;
    unsigned i;
    esz_kind k = {ESZ_MASK8, 0, 0, 0, 256, 0, 0};
    k.nibble = nibble;
    for (i = 0; i < 256; i++) {
        total += seen[i];
        if (seen[i] > seen[k.fill]) k.fill = i;
    }
    if (seen[k.fill] < ESZ_SPARSE_SHARE * total) return 1;
    memcpy(counts + 256, seen, 256 * sizeof *counts);
    counts[256 + k.fill] = 0;
    if (seen[k.fill] >= ESZ_GAP_SHARE * total && !esz_weigh_gaps(best, d, sample, k, counts + 256, o, scale)) return 0;
    if (o->alphabets >> ESZ_MASK8 & 1) {
        if (nibble)
            esz_count_masks(counts, d, sample, k.fill, 1);
        else
            esz_count_masks(counts, d, sample, k.fill, 0);
        esz_weigh(best, &k, counts, scale, o->small != 0);
    }
    return 1;
}

/* Sets *best to the cheapest allowed kind and returns its size in bits, or -1 if out of memory. Every allowed alphabet is
 * weighed against storing the bytes. `indices`: the bytes stand for values, so nibbles of them are not tried. */
static double esz_choose(esz_kind *best, const uint8_t *d, size_t n, const esz_encode_options *o, int indices) {
    const esz_sample sample = esz_sample_of(n);
    uint32_t bytes[512] = {0}, nibbles[512] = {0};
    esz_choice choice = {{ESZ_RAW, 0, 0, 0, 256, 0, 0}, 0};
    esz_kind k = {ESZ_PLAIN, 0, 0, 0, 256, 0, 0};
    double scale;
    unsigned s;
    choice.bits = (indices ? 64.0 : 8.0) * (double)n; /* an index replaces up to 8 bytes */
    for (s = 0; s < sample.count; s++) esz_count_bytes(d + esz_stretch(&sample, s), sample.size, bytes);
    esz_count_halves(bytes, nibbles);
    scale = (double)n / (double)(sample.size * sample.count);
    if (o->alphabets >> ESZ_PLAIN & 1) esz_weigh(&choice, &k, bytes, scale, o->small != 0);
    k.alphabet = ESZ_PAIR;
    if ((o->alphabets >> ESZ_PAIR & 1) && !indices) esz_weigh(&choice, &k, nibbles, scale, o->small != 0);
    if (!esz_weigh_sparse(&choice, d, &sample, 0, bytes, o, scale)) return -1;
    if (!indices &&
        (esz_entropy(nibbles, 16) * scale <= ESZ_NIBBLE_MARGIN * choice.bits || choice.kind.alphabet == ESZ_RAW) &&
        !esz_weigh_sparse(&choice, d, &sample, 1, nibbles, o, scale))
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
