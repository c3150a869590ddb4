/* Just enough JSON to read a manifest in place: values are found by their path, nothing is allocated.
 *
 * A value is the text from `at` to `end`. Everything is bounded by the text and by a depth; malformed text is "no such
 * value". Part of edgeslim_open.c and edgeslim_chat.c.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_JSON_H
#define EDGESLIM_JSON_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { JSON_DEPTH = 32 };

typedef struct {
    const char *at, *end; /* at == NULL: no such value */
} json_value;

static const char *json_blank(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) p++;
    return p;
}

/* Behind the string that begins at `p`; null if it doesn't end. */
static const char *json_string_end(const char *p, const char *end) {
    for (p++; p < end && *p != '"'; p++)
        if (*p == '\\' && ++p == end) return NULL;
    return p < end ? p + 1 : NULL;
}

/* Of a number, true, false or null; which of them it is, is asked later. */
static int json_is_word(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == 'E' || c == '+' || c == '-' || c == '.';
}

/* Behind the value that begins at `p`; null if it is malformed. */
static const char *json_value_end(const char *p, const char *end, int depth) {
    char close;
    if (p >= end || depth == 0) return NULL;
    if (*p == '"') return json_string_end(p, end);
    if (*p != '{' && *p != '[') {
        const char *begin = p;
        while (p < end && json_is_word(*p)) p++;
        return p > begin ? p : NULL;
    }
    close = *p == '{' ? '}' : ']';
    p = json_blank(p + 1, end);
    if (p < end && *p == close) return p + 1;
    for (;;) {
        if (close == '}') {
            if (p >= end || *p != '"' || (p = json_string_end(p, end)) == NULL) return NULL;
            p = json_blank(p, end);
            if (p >= end || *p != ':') return NULL;
            p = json_blank(p + 1, end);
        }
        if ((p = json_value_end(p, end, depth - 1)) == NULL) return NULL;
        p = json_blank(p, end);
        if (p >= end || (*p != ',' && *p != close)) return NULL;
        if (*p == close) return p + 1;
        p = json_blank(p + 1, end);
    }
}

static json_value json_whole(const char *text, size_t size) {
    json_value none = {NULL, NULL}, found;
    const char *end = text + size;
    found.at = json_blank(text, end);
    found.end = json_value_end(found.at, end, JSON_DEPTH);
    return found.end != NULL && json_blank(found.end, end) == end ? found : none;
}

/* The member `name` of an object that json_whole or this function gave. */
static json_value json_member(json_value object, const char *name) {
    json_value found = {NULL, NULL};
    const size_t length = strlen(name);
    const char *p;
    if (object.at == NULL || *object.at != '{') return found;
    for (p = json_blank(object.at + 1, object.end); *p == '"';) {
        const char *key = p + 1, *after = json_string_end(p, object.end), *value, *end;
        value = json_blank(json_blank(after, object.end) + 1, object.end);
        end = json_value_end(value, object.end, JSON_DEPTH);
        if ((size_t)(after - 1 - key) == length && memcmp(key, name, length) == 0) {
            found.at = value;
            found.end = end;
        }
        p = json_blank(end, object.end);
        if (*p != ',') break;
        p = json_blank(p + 1, object.end);
    }
    return found;
}

/* The next element of an array; begin with `last` = {NULL, NULL}. */
static json_value json_next(json_value array, json_value last) {
    json_value none = {NULL, NULL}, found;
    const char *p;
    if (array.at == NULL || *array.at != '[') return none;
    p = json_blank(last.at == NULL ? array.at + 1 : last.end, array.end);
    if (last.at != NULL) {
        if (*p != ',') return none;
        p = json_blank(p + 1, array.end);
    }
    if (*p == ']') return none;
    found.at = p;
    found.end = json_value_end(p, array.end, JSON_DEPTH);
    return found;
}

/* A whole number from 0 to 2^53; -1 if the value is none. */
static int64_t json_count(json_value value) {
    int64_t number = 0;
    const char *p = value.at;
    if (p == NULL || p == value.end) return -1;
    for (; p < value.end; p++) {
        if (*p < '0' || *p > '9' || number > (INT64_C(1) << 53) / 10) return -1;
        number = number * 10 + (*p - '0');
    }
    return number;
}

static int json_is(json_value value, const char *text) {
    const size_t length = strlen(text);
    return value.at != NULL && (size_t)(value.end - value.at) == length && memcmp(value.at, text, length) == 0;
}

static unsigned json_hex4(const char *p) {
    unsigned value = 0, k;
    for (k = 0; k < 4; k++) {
        const char c = p[k];
        const unsigned digit = c >= '0' && c <= '9' ? (unsigned)(c - '0') : ((unsigned)c | 32u) - 'a' + 10u;
        if (digit > 15) return 0x10000u;
        value = value << 4 | digit;
    }
    return value;
}

static size_t json_utf8(unsigned code, char *to) {
    if (code < 0x80) return to[0] = (char)code, 1;
    if (code < 0x800) return to[0] = (char)(0xC0 | code >> 6), to[1] = (char)(0x80 | (code & 63)), 2;
    if (code < 0x10000) {
        to[0] = (char)(0xE0 | code >> 12), to[1] = (char)(0x80 | (code >> 6 & 63)), to[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    to[0] = (char)(0xF0 | code >> 18), to[1] = (char)(0x80 | (code >> 12 & 63));
    to[2] = (char)(0x80 | (code >> 6 & 63)), to[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* A string's text into `to`, which has room for the value's length and a zero; 0 if the value is no string. */
static int json_text(json_value value, char *to) {
    static const char plain[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    const char *p;
    if (value.at == NULL || *value.at != '"') return 0;
    for (p = value.at + 1; p < value.end - 1; p++) {
        const char *escape;
        if (*p != '\\') {
            *to++ = *p;
        } else if (*++p != 'u') {
            if (*p == 0 || (escape = strchr(plain, *p)) == NULL) return 0;
            *to++ = meant[escape - plain];
        } else {
            unsigned code = value.end - p > 5 ? json_hex4(p + 1) : 0x10000u, low;
            if (code > 0xFFFF || code == 0) return 0;
            p += 4;
            if (code >= 0xD800 && code < 0xDC00) { /* the first half of a pair */
                if (value.end - p <= 7 || p[1] != '\\' || p[2] != 'u') return 0;
                low = json_hex4(p + 3);
                if (low < 0xDC00 || low > 0xDFFF) return 0;
                code = 0x10000u + ((code - 0xD800u) << 10) + (low - 0xDC00u);
                p += 6;
            }
            to += json_utf8(code, to);
        }
    }
    *to = 0;
    return 1;
}

#endif
