/* Decoder, private: a block's header, the map of its rows' classes, its planes.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_BLOCK_H
#define ESZ_BLOCK_H

#include "esz_sets.h"
#if defined(ESZ_SMALL)
#include "esz_small.h"
#else
#include "esz_streams.h"
#endif

static int esz_has_book(const esz_segment *s) { return ESZ_HAS(7) && s->book_log2 != 0 && !ESZ_IS(s, ESZ_PLANES); }

#if !defined(ESZ_SMALL)
/* What the loops over streams need to know; the rows' map is still missing. */
static void esz_code_begin(esz_code *code, const esz_decoder *d, unsigned classes) {
    const esz_segment *s = &d->segment;
    unsigned k;
    memset(code, 0, sizeof *code);
    code->alphabet = s->alphabet;
    code->nibble = (s->flags & ESZ_NIBBLE) != 0;
    code->cap = s->alphabet == ESZ_GAP ? (1u << s->cap_log2) - 1 : 0;
    code->fill = s->fill;
    code->joint.gaps_log2 = s->cap_log2;
    code->joint.fill = s->fill;
    code->joint.nibble = code->nibble;
    for (k = 0; k < classes; k++) {
        code->first[k].entry = d->entry.code + esz_table_at(d, k, 0);
        code->first[k].joint = d->entry.joint + (s->alphabet == ESZ_JOINT ? esz_table_at(d, k, 0) : 0);
        code->first[k].bits = d->bits[0];
        code->second[k].entry = d->entry.code + esz_table_at(d, k, 1);
        code->second[k].bits = d->bits[1];
    }
}

/* Finds the map of the rows of block `block`, which has `items` bytes. Returns its size, or 0 if it is invalid. */
static size_t esz_read_map(const esz_segment *s, uint32_t block, size_t items, const uint8_t *coded, size_t coded_bytes,
                           esz_code *code) {
    const size_t n = code->nibble ? 2 * items : items;
    const uint64_t before = (uint64_t)block * (s->block_bytes >> s->book_log2 << code->nibble);
    size_t rows, bytes;
    code->row_items = s->row_items;
    code->first_row = (size_t)(s->row_items - before % s->row_items);
    rows = 1 + (n > code->first_row ? (n - code->first_row + s->row_items - 1) / s->row_items : 0);
    bytes = (rows + 3) / 4;
    if (coded_bytes < bytes || (rows % 4 != 0 && coded[bytes - 1] >> (2 * (rows % 4)) != 0)) return 0;
    code->map = coded;
    return bytes;
}
#endif

/* Decodes what stands behind a block's mode and table (FORMAT.md, section 5) into `items` bytes, `stride` apart. */
static esz_status esz_decode_coded(esz_decoder *d, uint32_t block, unsigned mode, unsigned table, const uint8_t *coded,
                               size_t coded_bytes, uint8_t *out, size_t items, size_t stride) {
    const esz_segment *s = &d->segment;
#if !defined(ESZ_SMALL)
    const unsigned classes = table != ESZ_OWN_TABLE && s->row_items != 0 ? ESZ_ROW_CLASSES : 1;
    esz_code code;
#endif
    if (mode != 1 && mode != 4 && (mode != 8 || esz_is_chunked(s))) return ESZ_E_BLOCK;
#if defined(ESZ_SMALL)
    (void)block;
    if (table != d->loaded_set) { /* which is ESZ_OWN_TABLE, or more, if it is none of the directory's */
        const unsigned own = table == ESZ_OWN_TABLE;
        const uint8_t *sets = own ? coded : d->directory + d->sets_at;
        const size_t avail = own ? coded_bytes : d->segment.directory_bytes - d->sets_at;
        size_t bytes;
        if (!own && table >= d->set_count) return ESZ_E_BLOCK;
        bytes = esz_load_set(d, sets, avail, own ? 0 : table);
        d->loaded_set = own ? ESZ_NO_SET : table;
        if (bytes == 0) return ESZ_E_TABLE;
        if (own) {
            coded += bytes;
            coded_bytes -= bytes;
        }
    }
    return esz_streams_decode(d, mode, coded, coded_bytes, out, items, stride);
#else
    if (table == ESZ_OWN_TABLE) {
        size_t bytes = esz_load_own_set(d, coded, coded_bytes);
        if (bytes == 0) return ESZ_E_TABLE;
        coded += bytes;
        coded_bytes -= bytes;
    } else {
        if (table + classes > d->set_count) return ESZ_E_BLOCK;
        esz_load_sets(d, table, classes);
    }
    esz_code_begin(&code, d, classes);
    if (classes > 1) {
        size_t bytes = esz_read_map(s, block, items, coded, coded_bytes, &code);
        if (bytes == 0) return ESZ_E_BLOCK;
        coded += bytes;
        coded_bytes -= bytes;
    }
    return esz_streams_decode(&code, mode, coded, coded_bytes, out, items, stride);
#endif
}

/* Decodes a block of `bytes` bytes, or a plane of one, into every `stride`th byte of `out`. */
static esz_status esz_decode_part(esz_decoder *d, uint32_t block, const uint8_t *coded, size_t coded_bytes, uint8_t *out,
                                  size_t bytes, size_t stride) {
    size_t i;
    if (coded_bytes < 2 || coded_bytes > bytes + 2) return ESZ_E_BLOCK;
    if (coded[0] != ESZ_STORED) {
        const size_t items = esz_has_book(&d->segment) ? bytes >> d->segment.book_log2 : bytes;
        esz_status status = esz_decode_coded(d, block, coded[0], coded[1], coded + 2, coded_bytes - 2, out, items, stride);
        if (items != bytes && status == ESZ_OK) esz_map_book(d, out, items);
        return status;
    }
    if (coded[1] != 0 || coded_bytes != bytes + 2) return ESZ_E_BLOCK;
    if (stride == 1)
        memcpy(out, coded + 2, bytes);
    else
        for (i = 0; i < bytes; i++) out[i * stride] = coded[2 + i];
    return ESZ_OK;
}

/* PLANES: one part for each byte of a value, least significant first. */
static esz_status esz_decode_planes(esz_decoder *d, uint32_t block, const uint8_t *coded, size_t coded_bytes, uint8_t *out,
                                    size_t out_bytes) {
    const size_t width = (size_t)1 << d->segment.book_log2;
    size_t at = 2 + 3 * (width - 1), plane, i;
    if (coded_bytes < at || coded_bytes > out_bytes + 2 || coded[0] != 1 || coded[1] != 0) return ESZ_E_BLOCK;
    for (plane = 0; plane < width; plane++) {
        size_t size = coded_bytes - at;
        esz_status status;
        if (plane + 1 < width) {
            const size_t given = esz_load24(coded + 2 + 3 * plane);
            if (given > size) return ESZ_E_BLOCK;
            size = given;
        }
        status = esz_decode_part(d, block, coded + at, size, out + plane, out_bytes / width, width);
        if (status != ESZ_OK) return status;
        at += size;
    }
    if (d->segment.fill != 0) { /* the sign went to the end, so that the exponent fills a byte: take it back */
        for (; out_bytes > 0; out_bytes -= width, out += width) {
            unsigned above = out[0];
            for (i = width; i-- > 0;) {
                const unsigned byte = out[i];
                out[i] = (uint8_t)(byte >> 1 | above << 7);
                above = byte;
            }
        }
    }
    return ESZ_OK;
}

#endif
