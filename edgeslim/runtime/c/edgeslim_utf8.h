/* Bytes that come in pieces to whole characters of UTF-8. What is none becomes U+FFFD, a maximal part of a character at a
 * time, as Python's errors="replace" and Java's decoder have it. Part of edgeslim_chat.c.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_UTF8_H
#define EDGESLIM_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint8_t bytes[4]; /* of a character that isn't whole yet */
    unsigned have, need;
} utf8_part;

static size_t utf8_replace(char *to) {
    memcpy(to, "\xEF\xBF\xBD", 3);
    return 3;
}

static int utf8_goes_on(const utf8_part *part, uint8_t byte) {
    uint8_t lowest = 0x80, highest = 0xBF;
    if (part->have == 1) {
        if (part->bytes[0] == 0xE0) lowest = 0xA0;
        if (part->bytes[0] == 0xED) highest = 0x9F;
        if (part->bytes[0] == 0xF0) lowest = 0x90;
        if (part->bytes[0] == 0xF4) highest = 0x8F;
    }
    return byte >= lowest && byte <= highest;
}

/* What is known once `byte` came, at most 6 bytes, to `to`; how many it is. */
static size_t utf8_push(utf8_part *part, uint8_t byte, char *to) {
    size_t made = 0;
    if (part->have > 0 && !utf8_goes_on(part, byte)) {
        made = utf8_replace(to);
        part->have = 0;
    }
    if (part->have == 0) {
        if (byte < 0x80) return to[made] = (char)byte, made + 1;
        if (byte < 0xC2 || byte > 0xF4) return made + utf8_replace(to + made);
        part->need = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    }
    part->bytes[part->have++] = byte;
    if (part->have < part->need) return made;
    memcpy(to + made, part->bytes, part->have);
    made += part->have;
    part->have = 0;
    return made;
}

/* What is left at the end of the text. */
static size_t utf8_finish(utf8_part *part, char *to) {
    const size_t made = part->have > 0 ? utf8_replace(to) : 0;
    part->have = 0;
    return made;
}

#endif
