/* For tests: makes the hashes of a changed container right again, so that the rules behind them are tried. */
#ifndef ESZ_RESEAL_H
#define ESZ_RESEAL_H

#include "esz.h"

static void put32(uint8_t *p, uint32_t x) {
    unsigned k;
    for (k = 0; k < 4; k++) p[k] = (uint8_t)(x >> (8 * k));
}

static uint32_t get32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Makes the hashes of header, index, directories and blocks right, as far as offsets can be followed. */
static void reseal(uint8_t *data, size_t n, uint32_t image_hash) {
    esz_header header;
    esz_cursor cursor;
    esz_segment s;
    size_t at = 64, index_bytes = get32(data + 24);
    unsigned pass;
    if (index_bytes > n - 64) return;
    for (pass = 0; pass < 2; pass++) { /* the second time with the segments' hashes right */
        put32(data + 48, image_hash);
        put32(data + 56, esz_hash32(data + 64, index_bytes));
        put32(data + 60, esz_hash32(data, 60));
        if (pass == 1 || esz_parse_header(data, n, &header) != ESZ_OK) return;
        if (esz_index_begin(&cursor, &header, data + 64, n - 64) != ESZ_OK) return;
        while (esz_index_next(&cursor, &s) == ESZ_OK) {
            uint8_t *payload = data + (size_t)s.coded_offset;
            if (s.coded_offset + s.coded_bytes > n) break;
            if (s.flags & ESZ_COMPACT) {
                put32(data + at + 28, esz_hash32(payload, s.coded_bytes));
            } else {
                uint32_t block, start = 0;
                for (block = 0; block < s.block_count; block++) {
                    uint32_t end = get32(payload + 8 * block);
                    if (end < start || end > s.coded_bytes - s.data_offset) break;
                    put32(payload + 8 * block + 4, esz_hash32(payload + s.data_offset + start, end - start));
                    start = end;
                }
                put32(data + at + 28, esz_hash32(payload, s.directory_bytes));
            }
            at = 64 + (size_t)cursor.at;
        }
    }
}

#endif
