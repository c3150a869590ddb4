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

/* Code lengths of one table, and how many symbols use each length. */
typedef struct {
    uint8_t length[256];
    uint16_t count[ESZ_MAX_CODE_BITS + 1];
    unsigned used, symbols;
} esz_lengths;

static unsigned esz_nibble_at(const uint8_t *p, unsigned i) { return (unsigned)p[i >> 1] >> (4 * (i & 1)) & 15u; }

/* Reads one serialized table of `symbols` symbols and checks it whole. Returns its size in bytes, or 0. */
static size_t esz_lengths_read(esz_lengths *t, const uint8_t *p, size_t avail, unsigned symbols, unsigned limit) {
    unsigned first = 0, listed = symbols, i, sum = 0;
    const uint8_t *list = NULL;
    size_t head = 1, bytes;
    if (avail < 1) return 0;
    if (p[0] == 1) {
        if (avail < 3 || p[1] > p[2] || p[2] >= symbols) return 0;
        first = p[1];
        listed = p[2] - first + 1u;
        head = 3;
    } else if (p[0] == 2) {
        if (avail < 2) return 0;
        listed = p[1] + 1u;
        head = 2u + listed;
        list = p + 2;
    } else if (p[0] != 0) {
        return 0;
    }
    bytes = head + (listed + 1) / 2;
    if (listed > symbols || avail < bytes) return 0;
    memset(t, 0, sizeof *t);
    t->symbols = symbols;
    for (i = 0; i < listed; i++) {
        unsigned symbol = list ? list[i] : first + i, length = esz_nibble_at(p + head, i);
        if (list && (symbol >= symbols || (i > 0 && list[i - 1] >= symbol))) return 0;
        if (length > limit) return 0;
        t->length[symbol] = (uint8_t)length;
        if (length == 0) continue;
        t->count[length]++;
        t->used++;
        sum += 1u << (ESZ_MAX_CODE_BITS - length);
    }
    if ((listed & 1) && p[bytes - 1] >> 4 != 0) return 0;
    if (t->used == 1 ? t->count[1] != 1 : sum != 1u << ESZ_MAX_CODE_BITS) return 0;
    return bytes;
}

/* A stream: bits not yet used are the low `held` bits of `bits`, then the bytes from `p` to `end`. */
typedef struct {
    const uint8_t *p, *end;
    esz_word bits;
    unsigned held;
} esz_reader;

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
    for (length = 1; length <= ESZ_MAX_CODE_BITS; length++) {
        t->count[length] = l->count[length];
        for (symbol = 0; l->count[length] && symbol < l->symbols; symbol++)
            if (l->length[symbol] == length) t->symbol[n++] = (uint8_t)symbol;
    }
    t->count[0] = l->used == 1;
}

/* The next symbol, or -1 if the stream has no code there. */
static int esz_next(esz_reader *r, const esz_table *t) {
    unsigned code = 0, first = 0, at = 0, length;
    if (t->count[0]) return t->symbol[0];
    if (r->held < ESZ_MAX_CODE_BITS) esz_refill(r);
    for (length = 1; length <= ESZ_MAX_CODE_BITS && length <= r->held; length++) {
        unsigned count = t->count[length];
        code |= (unsigned)(r->bits >> (length - 1)) & 1u;
        if (code - first < count) {
            r->bits >>= length;
            r->held -= length;
            return t->symbol[at + code - first];
        }
        at += count;
        first = (first + count) << 1;
        code <<= 1;
    }
    return -1;
}

#else

/* The codes of `l`, bit-reversed: the form in which a stream holds them. */
static void esz_reversed_codes(const esz_lengths *l, uint16_t *reversed) {
    unsigned next[ESZ_MAX_CODE_BITS + 2], length, symbol;
    next[1] = 0;
    for (length = 1; length <= ESZ_MAX_CODE_BITS; length++) next[length + 1] = (next[length] + l->count[length]) << 1;
    for (symbol = 0; symbol < l->symbols; symbol++) {
        unsigned code, r = 0, i;
        length = l->length[symbol];
        if (length == 0) continue;
        code = next[length]++;
        for (i = 0; i < length; i++) r |= (code >> i & 1u) << (length - 1 - i);
        reversed[symbol] = (uint16_t)r;
    }
}

/* A look-up table: entry[the next `bits` bits] is the code's length | symbol << 8. */
typedef struct {
    const uint16_t *entry;
    unsigned bits;
} esz_table;

/* Bits of the longest code; 0 for a lone symbol, whose code takes none. */
static unsigned esz_longest(const esz_lengths *l) {
    unsigned length = ESZ_MAX_CODE_BITS;
    if (l->used == 1) return 0;
    while (l->count[length] == 0) length--;
    return length;
}

static void esz_table_fill(uint16_t *entry, unsigned bits, unsigned code, unsigned length, unsigned symbol) {
    unsigned at;
    for (at = code; at < 1u << bits; at += 1u << length) entry[at] = (uint16_t)(length | symbol << 8);
}

static void esz_table_build(uint16_t *entry, unsigned bits, const esz_lengths *l) {
    uint16_t reversed[256];
    unsigned symbol;
    esz_reversed_codes(l, reversed);
    for (symbol = 0; symbol < l->symbols; symbol++) {
        if (l->length[symbol] == 0) continue;
        esz_table_fill(entry, bits, reversed[symbol], l->used == 1 ? 0 : l->length[symbol], symbol);
    }
}

/* PAIR: one entry decodes both nibbles of a byte, as if the byte were one symbol. */
static void esz_table_build_pairs(uint16_t *entry, unsigned bits, const esz_lengths *l) {
    uint16_t reversed[256];
    unsigned low, high, one = l->used == 1;
    esz_reversed_codes(l, reversed);
    for (low = 0; low < 16; low++)
        for (high = 0; high < 16; high++) {
            unsigned a = l->length[low], b = l->length[high];
            if (a == 0 || b == 0) continue;
            esz_table_fill(entry, bits, one ? 0 : reversed[low] | (unsigned)reversed[high] << a, one ? 0 : a + b,
                           low | high << 4);
        }
}

static int esz_next(esz_reader *r, const esz_table *t) {
    unsigned entry, length;
    if (r->held < 12) esz_refill(r);
    entry = t->entry[(unsigned)r->bits & ((1u << t->bits) - 1)];
    length = entry & 255u;
    if (length > r->held) return -1;
    r->bits >>= length;
    r->held -= length;
    return (int)(entry >> 8);
}

#endif
#endif
