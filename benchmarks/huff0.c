/* huff0 as codec.py measures it: blocks of 128 KiB, each behind its sizes; no hash. Links Debian's static libzstd, whose
 * internal symbols (of 1.5.4 and later) are declared by hand here, since no installed header has them.
 *
 *     gcc -O3 -shared -fPIC huff0.c -l:libzstd.a
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

size_t HUF_compress4X_repeat(void *dst, size_t dst_size, const void *src, size_t src_size, unsigned most, unsigned log,
                             void *work, size_t work_size, size_t *old_table, int *repeat, int flags);
size_t HUF_decompress4X_hufOnly_wksp(uint32_t *table, void *dst, size_t dst_size, const void *src, size_t src_size,
                                     void *work, size_t work_size, int flags);
unsigned HUF_isError(size_t code);

#define BLOCK 131072u

static uint64_t work[4096];

/* 1: the CPU has BMI2, so that huff0 may run its assembly. */
static int flags(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("bmi2") != 0;
#else
    return 0;
#endif
}

static void put(uint8_t *p, size_t x) {
    uint32_t y = (uint32_t)x;
    memcpy(p, &y, 4);
}

static size_t get(const uint8_t *p) {
    uint32_t y;
    memcpy(&y, p, 4);
    return y;
}

/* `dst` has room for 2 n + 64 bytes. Returns the coded size. A block that does not shrink is stored. */
size_t huff0_encode(uint8_t *dst, const uint8_t *src, size_t n) {
    uint8_t *p = dst;
    while (n > 0) {
        size_t size = n < BLOCK ? n : BLOCK;
        size_t coded = HUF_compress4X_repeat(p + 8, size + 1024, src, size, 255, 11, work, sizeof work, NULL, NULL, flags());
        int constant = coded == 1;
        if (HUF_isError(coded)) return 0;
        if (coded == 0 || coded >= size) {
            coded = size;
            memcpy(p + 8, src, size);
        }
        put(p, size);
        put(p + 4, constant ? 1 : coded);
        p += 8 + coded;
        src += size;
        n -= size;
    }
    return (size_t)(p - dst);
}

/* Returns the decoded size, or 0 if a block is damaged. */
size_t huff0_decode(uint8_t *dst, const uint8_t *src, size_t n) {
    const uint8_t *end = src + n;
    uint8_t *p = dst;
    static uint32_t table[4097];
    while (src < end) {
        size_t size = get(src), coded = get(src + 4), found = size;
        if (coded == size)
            memcpy(p, src + 8, size);
        else if (coded == 1)
            memset(p, src[8], size);
        else {
            table[0] = 12 * 0x01000001u;
            found = HUF_decompress4X_hufOnly_wksp(table, p, size, src + 8, coded, work, sizeof work, flags());
        }
        if (found != size) return 0;
        src += 8 + coded;
        p += size;
    }
    return (size_t)(p - dst);
}
