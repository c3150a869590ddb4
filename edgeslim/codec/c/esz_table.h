/* Decoder, private: code lengths -> checked canonical code -> look-up table, and the careful bit reader.
 *
 * The careful reader works at every position up to the end of a stream, and is all that a small build has. The fast
 * loops in esz_streams.h run while the input is far from its end, then hand over to it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_TABLE_H
#define ESZ_TABLE_H

#include "esz.h"
#include "esz_hash.h"

#if UINTPTR_MAX > 0xFFFFFFFFu && !defined(ESZ_32_BIT) /* ESZ_32_BIT: tests of what a 32-bit machine runs */
typedef uint64_t esz_word;
#else
typedef uint32_t esz_word;
#endif
#define ESZ_WORD_BITS ((unsigned)sizeof(esz_word) * 8u)

/* What is built in: bit a stands for alphabet a, bit 7 for codebooks. Others are refused. */
#if !defined(ESZ_ALPHABETS)
#define ESZ_ALPHABETS 255u
#endif
#define ESZ_HAS(bit) ((ESZ_ALPHABETS >> (bit) & 1u) != 0)

/* Whether the segment has this alphabet; in a build without it the compiler leaves out what depends on it. */
#define ESZ_IS(segment, name) (ESZ_HAS(name) && (segment)->alphabet == (name))

/* Functions that a small build keeps by themselves: taken into their callers they would make these spill registers. */
#if defined(ESZ_SMALL) && defined(__GNUC__)
#define ESZ_APART static __attribute__((noinline))
#else
#define ESZ_APART static
#endif

/* Code lengths of one table, and how many symbols use each length. */
typedef struct {
    uint8_t length[256];
    uint16_t count[ESZ_MAX_CODE_BITS + 1];
    unsigned used, symbols;
} esz_lengths;

static size_t esz_load24(const uint8_t *p) { return (size_t)p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16; }

/* The next `count` bits of the bytes at `p`, from bit `*at` on; moves on. Past the end all bits are 1, which no length can
 * be read from. */
static unsigned esz_bits_at(const uint8_t *p, size_t avail, size_t *at, unsigned count) {
    unsigned bits = 0, i;
    for (i = 0; i < count; i++, ++*at) bits |= (*at >> 3 < avail ? (unsigned)p[*at >> 3] >> (*at & 7) & 1u : 1u) << i;
    return bits;
}

/* A length as form 3 has it, by its difference from one before, or as all other forms have it. */
static unsigned esz_length_at(const uint8_t *p, size_t avail, size_t *at, unsigned form, unsigned before) {
    unsigned ones = 0;
#if !defined(ESZ_SMALL)
    if (avail >= 8 && *at >> 3 <= avail - 8) { /* the same, all bits at once */
        const unsigned bits = (unsigned)(esz_load64(p + (*at >> 3)) >> (*at & 7)) & 127u;
        const unsigned taken = form != 3 ? 4 : (bits & 1) == 0 ? 1 : (bits & 2) == 0 ? 2 : (bits & 4) == 0 ? 3 : 7;
        *at += taken;
        return taken == 1 ? before : taken == 2 ? before + 1 : taken == 3 ? before - 1 : taken == 4 ? bits & 15 : bits >> 3;
    }
#endif
    if (form == 3) {
        while (ones < 3 && esz_bits_at(p, avail, at, 1)) ones++;
        if (ones < 3) return ones == 2 ? before - 1 : before + ones;
    }
    return esz_bits_at(p, avail, at, 4);
}

/* Reads one serialized table of `symbols` symbols, a row of `row` of them alike, and checks it whole. Returns its size
 * in bytes, or 0. */
ESZ_APART size_t esz_lengths_read(esz_lengths *t, const uint8_t *p, size_t avail, unsigned symbols, unsigned row,
                               unsigned limit) {
    unsigned first = 0, listed = symbols, i, sum = 0, length = 0, symbol = 0, head = 1;
    size_t at;
    const unsigned form = avail < 3 && !(avail == 2 && p[0] == 0) ? 4 : p[0];
    if (form == 2) {
        listed = p[1] + 1u;
        head = 2 + listed;
    } else if (form & 1) {
        first = p[1];
        if (first > p[2]) return 0;
        listed = p[2] - first + 1u;
        head = 3;
    }
    if (form > 3 || first + listed > symbols || head > avail) return 0;
    memset(t, 0, sizeof *t);
    t->symbols = symbols;
    at = 8 * (size_t)head;
    for (i = 0; i < listed; i++) {
        const unsigned before = i >= row ? t->length[first + i - row] : length;
        if (form == 2 && ((i > 0 && p[2 + i] <= symbol) || p[2 + i] >= symbols)) return 0;
        symbol = form == 2 ? p[2 + i] : first + i;
        length = esz_length_at(p, avail, &at, form, before);
        if (length > limit) return 0;
        t->length[symbol] = (uint8_t)length;
        t->count[length]++;
        sum += 1u << (ESZ_MAX_CODE_BITS - length);
    }
    sum -= (unsigned)t->count[0] << ESZ_MAX_CODE_BITS;
    t->used = listed - t->count[0];
    t->count[0] = 0;
    if ((at & 7) != 0 && esz_bits_at(p, avail, &at, 8 - (at & 7)) != 0) return 0;
    if (at >> 3 > avail || (t->used == 1 ? t->count[1] != 1 : sum != 1u << ESZ_MAX_CODE_BITS)) return 0;
    return at >> 3;
}

/* How symbols of JOINT stand for a gap and a value: `values` values that are not the fill value. */
typedef struct {
    unsigned values, gaps_log2, fill, nibble;
} esz_joint;

/* The elements that a symbol stands for; the last of them has `value`, the others the fill value. */
static unsigned esz_joint_token(const esz_joint *j, unsigned symbol, unsigned *value) {
    const unsigned pairs = j->values << j->gaps_log2;
    *value = j->fill;
    if (symbol >= pairs) return (symbol - pairs + 1) << j->gaps_log2;
    *value = symbol % j->values;
    *value += *value >= j->fill;
    return symbol / j->values + 1;
}

/* A stream: bits not yet used are the low `held` bits of `bits`, then the bytes from `p` to `end`. */
typedef struct {
    const uint8_t *p, *end;
    esz_word bits;
    unsigned held;
} esz_reader;

/* Goes to where a fast lane stands, `used` bits behind `p`; 0 if that lies behind the stream's end. */
static inline int esz_reader_take(esz_reader *r, const uint8_t *p, unsigned used) {
    p += used >> 3;
    used &= 7;
    if (p > r->end || (p == r->end && used != 0)) return 0;
    r->p = p;
    r->bits = 0;
    r->held = 0;
    if (used != 0) {
        r->bits = (esz_word)(*r->p++ >> used);
        r->held = 8 - used;
    }
    return 1;
}

static void esz_refill(esz_reader *r) {
    while (r->held <= ESZ_WORD_BITS - 8 && r->p < r->end) {
        r->bits |= (esz_word)*r->p++ << r->held;
        r->held += 8;
    }
}

/* Whether what is left is the sentinel and the zero bits behind it. */
static int esz_at_end(esz_reader *r) {
    esz_refill(r);
    return r->p == r->end && r->held >= 1 && r->held <= 8 && r->bits == 1;
}

#if defined(ESZ_SMALL)

static void esz_table_build(esz_table *t, const esz_lengths *l) {
    unsigned length, symbol, n = 0;
    memcpy(t->count, l->count, sizeof t->count);
    for (length = 1; length <= ESZ_MAX_CODE_BITS; length++)
        for (symbol = 0; symbol < l->symbols; symbol++)
            if (l->length[symbol] == length) t->symbol[n++] = (uint8_t)symbol;
    t->count[0] = n == 1;
}

#else

/* The codes of `l`, bit-reversed: the form in which a stream holds them. */
static void esz_reversed_codes(const esz_lengths *l, uint16_t *reversed) {
    unsigned next[ESZ_MAX_CODE_BITS + 2], length, symbol;
    next[1] = 0;
    for (length = 1; length <= ESZ_MAX_CODE_BITS; length++) next[length + 1] = (next[length] + l->count[length]) << 1;
    for (symbol = 0; symbol < l->symbols; symbol++) {
        length = l->length[symbol];
        if (length != 0) reversed[symbol] = (uint16_t)esz_reversed_bits(next[length]++, length);
    }
}

/* A look-up table: entry[the next `bits` bits] is the code's length | symbol << 8; in joint, of 32 bits each, it is
 * the code's length | the value << 8 | the elements that it stands for << 16, or, of nibbles, the value's bits that differ
 * from the fill value's << 8 | the elements << 18. */
typedef struct {
    const uint16_t *entry;
    const uint32_t *joint;
    unsigned bits;
} esz_table;

/* Bits of the longest code; 0 for a lone symbol, whose code takes none. */
static unsigned esz_longest(const esz_lengths *l) {
    unsigned length = ESZ_MAX_CODE_BITS;
    if (l->used == 1) return 0;
    while (l->count[length] == 0) length--;
    return length;
}

/* Symbols as a table is filled with them. */
typedef struct {
    uint32_t entry[256];
    uint16_t reversed[256];
    uint8_t length[256];
    unsigned count;
    int lone; /* the only symbol, whose code takes no bits */
} esz_filling;

/* Fills a table of 2^bits entries of 16 or 32 bits. It grows: the table for codes of one bit more is the one before,
 * twice, with the codes of that length put in. */
static inline void esz_table_fill(void *table, const unsigned wide, unsigned bits, const esz_filling *f) {
    uint16_t *half = (uint16_t *)table, start[18];
    uint32_t *word = (uint32_t *)table;
    uint8_t order[256];
    unsigned i, k, length;
    memset(start, 0, sizeof start);
    for (i = 0; i < f->count; i++) start[f->length[i] + 1]++;
    for (i = 1; i < 18; i++) start[i] = (uint16_t)(start[i] + start[i - 1]);
    for (i = 0; i < f->count; i++) order[start[f->length[i]]++] = (uint8_t)i;
    /* start[n] is now where the symbols of length n end. */
    if (wide)
        word[0] = f->lone ? f->entry[0] : 0;
    else
        half[0] = (uint16_t)(f->lone ? f->entry[0] : 0);
    for (length = 1; length <= bits; length++) {
        const size_t size = (size_t)1 << (length - 1);
        if (wide)
            memcpy(word + size, word, size * sizeof *word);
        else
            memcpy(half + size, half, size * sizeof *half);
        for (k = start[length - 1]; k < start[length] && !f->lone; k++) {
            i = order[k];
            if (wide)
                word[f->reversed[i]] = f->entry[i];
            else
                half[f->reversed[i]] = (uint16_t)f->entry[i];
        }
    }
}

/* All used symbols of `l`, with nothing but the length in their entries. */
static void esz_filling_begin(esz_filling *f, const esz_lengths *l, const uint16_t *reversed, uint8_t *symbols) {
    unsigned symbol, n = 0;
    f->lone = l->used == 1;
    for (symbol = 0; symbol < l->symbols; symbol++) {
        if (l->length[symbol] == 0) continue;
        symbols[n] = (uint8_t)symbol;
        f->length[n] = l->length[symbol];
        f->reversed[n] = reversed[symbol];
        f->entry[n++] = f->lone ? 0 : l->length[symbol];
    }
    f->count = n;
}

static void esz_table_build(uint16_t *entry, unsigned bits, const esz_lengths *l) {
    uint16_t reversed[256];
    uint8_t symbols[256];
    esz_filling f;
    unsigned i;
    esz_reversed_codes(l, reversed);
    esz_filling_begin(&f, l, reversed, symbols);
    for (i = 0; i < f.count; i++) f.entry[i] |= (uint32_t)symbols[i] << 8;
    esz_table_fill(entry, 0, bits, &f);
}

/* PAIR: one entry decodes both nibbles of a byte, as if the byte were one symbol. */
static void esz_table_build_pairs(uint16_t *entry, unsigned bits, const esz_lengths *l) {
    uint16_t reversed[256];
    uint8_t symbols[256];
    esz_filling f, pairs;
    unsigned a, b, n = 0;
    esz_reversed_codes(l, reversed);
    esz_filling_begin(&f, l, reversed, symbols);
    pairs.lone = f.lone;
    for (a = 0; a < f.count; a++)
        for (b = 0; b < f.count; b++, n++) {
            pairs.length[n] = (uint8_t)(f.length[a] + f.length[b]);
            pairs.reversed[n] = (uint16_t)(f.reversed[a] | (unsigned)f.reversed[b] << f.length[a]);
            pairs.entry[n] = (f.entry[a] + f.entry[b]) | (unsigned)symbols[a] << 8 | (unsigned)symbols[b] << 12;
        }
    pairs.count = n;
    esz_table_fill(entry, 0, bits, &pairs);
}

static void esz_table_build_joint(uint32_t *entry, unsigned bits, const esz_lengths *l, const esz_joint *joint) {
    uint16_t reversed[256];
    uint8_t symbols[256];
    esz_filling f;
    unsigned i, value, elements;
    esz_reversed_codes(l, reversed);
    esz_filling_begin(&f, l, reversed, symbols);
    for (i = 0; i < f.count; i++) {
        elements = esz_joint_token(joint, symbols[i], &value);
        f.entry[i] |= joint->nibble ? (value ^ joint->fill) << 8 | elements << 18 : value << 8 | elements << 16;
    }
    esz_table_fill(entry, 1, bits, &f);
}

/* Takes the code of an entry; 0 if the stream ends within it. */
static int esz_take(esz_reader *r, unsigned entry) {
    const unsigned length = entry & 255u;
    if (length > r->held) return 0;
    r->bits >>= length;
    r->held -= length;
    return 1;
}

static int esz_next(esz_reader *r, const esz_table *t) {
    unsigned entry;
    if (r->held < 12) esz_refill(r);
    entry = t->entry[(unsigned)r->bits & ((1u << t->bits) - 1)];
    return esz_take(r, entry) ? (int)(entry >> 8) : -1;
}

/* The next token of JOINT: how many elements it stands for, or 0 if the stream has none there. */
static unsigned esz_next_joint(esz_reader *r, const esz_table *t, const esz_joint *joint, unsigned *value) {
    uint32_t entry;
    if (r->held < 12) esz_refill(r);
    entry = t->joint[(unsigned)r->bits & ((1u << t->bits) - 1)];
    *value = (entry >> 8 & 255u) ^ (joint->nibble ? joint->fill : 0);
    return esz_take(r, entry) ? entry >> (joint->nibble ? 18 : 16) : 0;
}

#endif
#endif
