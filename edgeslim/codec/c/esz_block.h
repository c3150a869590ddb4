/* Decoder, private: a block's header, the map of its rows' classes, its planes.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_BLOCK_H
#define ESZ_BLOCK_H

#include "esz_sets.h"
#include "esz_streams.h"

static int esz_has_book(const esz_segment *s) { return s->book_log2 != 0 && s->alphabet != ESZ_PLANES; }

/* Decodes what stands behind a block's mode and table (FORMAT.md, section 5) into `items` bytes, `stride` apart. */
static esz_status esz_decode_coded(esz_decoder *d, uint32_t block, unsigned mode, unsigned table, const uint8_t *coded,
                               size_t coded_bytes, uint8_t *out, size_t items, size_t stride) {
    const esz_segment *s = &d->segment;
    const unsigned chunked = s->alphabet != ESZ_PLAIN && s->alphabet != ESZ_PAIR && s->alphabet != ESZ_PLANES;
    esz_code code;
    if (mode != 1 && mode != 4 && (mode != 8 || chunked)) return ESZ_E_BLOCK;
    memset(&code, 0, sizeof code);
    code.alphabet = s->alphabet;
    code.nibble = (s->flags & ESZ_NIBBLE) != 0;
    code.cap = s->alphabet == ESZ_GAP ? (1u << s->cap_log2) - 1 : 0;
    code.fill = s->fill;
    code.joint.gaps_log2 = s->cap_log2;
    code.joint.fill = s->fill;
    code.joint.nibble = code.nibble;
    if (table == ESZ_OWN_TABLE) {
        size_t bytes = esz_load_own_set(d, coded, coded_bytes);
        if (bytes == 0) return ESZ_E_TABLE;
        coded += bytes;
        coded_bytes -= bytes;
    } else {
        unsigned sets = s->row_items != 0 ? ESZ_ROW_CLASSES : 1;
        if (table + sets > d->set_count) return ESZ_E_BLOCK;
        esz_load_sets(d, table, sets);
        if (s->row_items != 0) {
            size_t n = code.nibble ? 2 * items : items, rows, bytes;
            uint64_t before = (uint64_t)block * (s->block_bytes >> s->book_log2 << code.nibble);
            code.row_items = s->row_items;
            code.first_row = (size_t)(s->row_items - before % s->row_items);
            rows = 1 + (n > code.first_row ? (n - code.first_row + s->row_items - 1) / s->row_items : 0);
            bytes = (rows + 3) / 4;
            if (coded_bytes < bytes || (rows % 4 != 0 && coded[bytes - 1] >> (2 * (rows % 4)) != 0)) return ESZ_E_BLOCK;
            code.map = coded;
            coded += bytes;
            coded_bytes -= bytes;
        }
    }
#if defined(ESZ_SMALL)
    code.first = &d->table[0];
    code.second = &d->table[1];
    code.joint.values = d->values;
#else
    for (table = 0; table < (code.row_items != 0 ? ESZ_ROW_CLASSES : 1u); table++) {
        code.first[table].entry = d->entry.code + esz_table_at(d, table, 0);
        code.first[table].joint = d->entry.joint + (s->alphabet == ESZ_JOINT ? esz_table_at(d, table, 0) : 0);
        code.first[table].bits = d->bits[0];
        code.second[table].entry = d->entry.code + esz_table_at(d, table, 1);
        code.second[table].bits = d->bits[1];
    }
#endif
    return esz_streams_decode(&code, mode, coded, coded_bytes, out, items, stride);
}

/* PLANES: one part for each byte of a value, least significant first. */
static esz_status esz_decode_planes(esz_decoder *d, uint32_t block, const uint8_t *coded, size_t coded_bytes, uint8_t *out,
                                size_t out_bytes) {
    const size_t width = (size_t)1 << d->segment.book_log2, items = out_bytes / width;
    size_t at = 3 * (width - 1), plane, i;
    if (coded_bytes < at) return ESZ_E_BLOCK;
    for (plane = 0; plane < width; plane++) {
        const uint8_t *z = coded + 3 * plane, *part = coded + at;
        size_t size = coded_bytes - at;
        if (plane + 1 < width) {
            size_t given = (size_t)z[0] | (size_t)z[1] << 8 | (size_t)z[2] << 16;
            if (given > size) return ESZ_E_BLOCK;
            size = given;
        }
        if (size < 2 || size > items + 2) return ESZ_E_BLOCK;
        if (part[0] == ESZ_STORED) {
            if (part[1] != 0 || size != items + 2) return ESZ_E_BLOCK;
            for (i = 0; i < items; i++) out[i * width + plane] = part[2 + i];
        } else {
            esz_status status =
                esz_decode_coded(d, block, part[0], part[1], part + 2, size - 2, out + plane, items, width);
            if (status != ESZ_OK) return status;
        }
        at += size;
    }
    if (d->segment.fill != 0) { /* the sign went to the end, so that the exponent fills a byte: take it back */
        for (; out_bytes > 0; out_bytes -= width, out += width) {
            unsigned sign = out[0] & 1u;
            for (i = 0; i < width; i++)
                out[i] = (uint8_t)(out[i] >> 1 | (i + 1 < width ? out[i + 1] & 1u : sign) << 7);
        }
    }
    return ESZ_OK;
}

#endif
