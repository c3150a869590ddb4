/* Counts what the container's hash does not detect: one line a kind of damage, "name missed tried". Blocks of 4 KiB: noise,
 * zeros, ones, and sparse bytes. The last lines count collisions of 24 bits of the hash, and the bits that a flip changes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "esz.h"

#define N 4096u
#define KINDS 4u

static uint64_t state = 88172645463325252u;
static uint8_t block[N];

static uint32_t next_random(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 20) % below;
}

static void fill(unsigned kind) {
    size_t i;
    for (i = 0; i < N; i++)
        block[i] = (uint8_t)(kind == 0 ? next_random(256) : kind == 1 ? 0 : kind == 2 ? 255 : next_random(10) == 0 ? next_random(256) : 0);
}

static void flip(uint32_t bit) { block[bit >> 3] ^= (uint8_t)(1u << (bit & 7)); }

static unsigned long missed, tried;

/* `changed`: whether the block differs from the one that `hash` is of. */
static void judge(uint32_t hash, int changed) {
    if (!changed) return;
    tried++;
    missed += esz_hash32(block, N) == hash;
}

static void line(const char *name) {
    printf("%s %lu %lu\n", name, missed, tried);
    missed = tried = 0;
}

static int by_value(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    const uint32_t rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1000;
    uint32_t hashes[KINDS], kind, k, i, j;
    uint8_t kept[N];
    static uint32_t short_hashes[1u << 16];
    unsigned long changed_bits = 0, pairs = 0;
#define EACH(name, body) \
    for (kind = 0; kind < KINDS; kind++) { \
        fill(kind); \
        memcpy(kept, block, N); \
        hashes[kind] = esz_hash32(block, N); \
        for (k = 0; k < rounds; k++) { \
            body \
            judge(hashes[kind], memcmp(kept, block, N) != 0); \
            memcpy(block, kept, N); \
        } \
    } \
    line(name);
    EACH("one-bit", flip(k % (8 * N));)
    EACH("two-bits", flip(next_random(8 * N)); flip(next_random(8 * N));)
    EACH("three-bits", flip(next_random(8 * N)); flip(next_random(8 * N)); flip(next_random(8 * N));)
    /* The same bit of two words that one lane takes in, or that lie a multiple of 1 KiB apart. */
    EACH("lane", i = next_random(8 * N); flip(i); flip((i + 512 * next_random(64)) % (8 * N));)
    EACH("kilobyte", i = next_random(8 * N); flip(i); flip((i + 8192 * next_random(4)) % (8 * N));)
    EACH("burst", i = next_random(N - 64); for (j = next_random(64) + 1; j-- > 0;) block[i + j] = (uint8_t)next_random(256);)
    EACH("zeroed", i = next_random(N); j = next_random(N - i) + 1; memset(block + i, 0, j);)
    EACH("swap", i = next_random(N / 64) * 64; j = next_random(N / 64) * 64; memcpy(block + i, kept + j, 64);
         memcpy(block + j, kept + i, 64);)
    EACH("swap-pieces", i = next_random(N / 16) * 16; j = next_random(N / 16) * 16; memcpy(block + i, kept + j, 16);
         memcpy(block + j, kept + i, 16);)
    EACH("moved", i = next_random(N / 2); j = next_random(64) + 1; memmove(block + i + j, kept + i, N - i - j);)
    fill(1);
    for (i = 0; i < 1u << 16; i++) { /* small differences: a counter in a block of zeros */
        memcpy(block + 1000, &i, 4);
        short_hashes[i] = esz_hash32(block, N) & 0xFFFFFFu;
    }
    qsort(short_hashes, 1u << 16, sizeof *short_hashes, by_value);
    for (i = 0; i < 1u << 16; i++)
        for (j = i + 1; j < 1u << 16 && short_hashes[j] == short_hashes[i]; j++) pairs++;
    printf("collisions-of-24-bits %lu 128\n", pairs);
    for (k = 0; k < 8 * N; k++) {
        uint32_t x;
        fill(3);
        x = esz_hash32(block, N);
        flip(k);
        for (x ^= esz_hash32(block, N); x != 0; x &= x - 1) changed_bits++;
    }
    printf("avalanche %lu %lu\n", changed_bits, 16ul * 8 * N);
    return 0;
}
