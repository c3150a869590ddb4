/* Decodes a container on a bare Cortex-M3 (QEMU's mps2-an385), block by block into 16 KiB, and compares every byte.
 *
 * The container and its image are linked in as if they lay in flash. Time is SysTick at 25 MHz; under `-icount shift=0`
 * an instruction takes exactly a nanosecond, so a tick is 40 instructions. What is said goes to semihosting:
 *
 *     same BYTES instructions N stack N work N block N
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "esz.h"

#define BLOCK_BYTES 16384u
#define INSTRUCTIONS_A_TICK 40u
#define PAINT 0xA5A5A5A5u

extern const uint8_t container[], container_end[], image[], image_end[];
extern uint32_t stack_low[], stack_top[], bss_start[], bss_end[];
int main(void);
void reset(void);
void fault(void);

struct vector_table {
    uint32_t *stack;
    void (*handlers[15])(void);
};
extern const struct vector_table vectors;
const struct vector_table vectors __attribute__((section(".vectors"), used)) = {
    stack_top, {reset, fault, fault, fault, fault, fault}};

static esz_decoder decoder;
static uint8_t block[BLOCK_BYTES];

static volatile uint32_t *const systick = (volatile uint32_t *)0xE000E010u; /* control, reload, current */

static int semihost(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void say(const char *text) { semihost(4, text); }

static void say_number(uint32_t value) {
    char text[12];
    int at = 11;
    text[at] = 0;
    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    say(text + at);
}

static void leave(uint32_t status) {
    const uint32_t reason[2] = {0x20026u, status}; /* ADP_Stopped_ApplicationExit */
    semihost(0x20, reason);
    for (;;) {
    }
}

void fault(void) {
    say("fault\n");
    leave(9);
}

static void need(int holds, const char *what) {
    if (holds) return;
    say("failed: ");
    say(what);
    say("\n");
    leave(1);
}

static void decode_all(void) {
    const size_t size = (size_t)(container_end - container);
    esz_header header;
    esz_cursor cursor;
    esz_segment segment;
    uint32_t done = 0, number, offset, coded_bytes, decoded_bytes;
    esz_status status;
    need(esz_parse_header(container, size, &header) == ESZ_OK && header.file_bytes == size, "header");
    need(header.decoded_bytes == (size_t)(image_end - image), "size");
    need(esz_index_begin(&cursor, &header, container + ESZ_HEADER_BYTES, (size_t)header.index_bytes) == ESZ_OK, "index");
    while ((status = esz_index_next(&cursor, &segment)) == ESZ_OK) {
        const uint8_t *payload = container + (size_t)segment.coded_offset;
        need(esz_segment_begin(&decoder, &segment, payload, segment.directory_bytes) == ESZ_OK, "segment");
        for (number = 0; number < segment.block_count; number++) {
            need(esz_block_at(&decoder, number, &offset, &coded_bytes, &decoded_bytes) == ESZ_OK, "block's place");
            need(decoded_bytes <= BLOCK_BYTES, "block's size");
            need(esz_block_decode(&decoder, number, payload + segment.data_offset + offset, coded_bytes, block,
                                  decoded_bytes) == ESZ_OK,
                 "block");
            systick[0] = 4; /* comparing takes no time */
            need(memcmp(block, image + done, decoded_bytes) == 0, "bytes");
            systick[0] = 5;
            done += decoded_bytes;
        }
    }
    need(status == ESZ_END && done == header.decoded_bytes, "end");
}

int main(void) {
    uint32_t ticks, *untouched = stack_low;
    systick[1] = 0xFFFFFF;
    systick[2] = 0;
    systick[0] = 5; /* on, processor clock */
    decode_all();
    ticks = 0xFFFFFF - systick[2];
    need((systick[0] & 1u << 16) == 0, "the timer went round");
    while (*untouched == PAINT) untouched++;
    say("same ");
    say_number((uint32_t)(image_end - image));
    say(" instructions ");
    say_number(ticks * INSTRUCTIONS_A_TICK);
    say(" stack ");
    say_number((uint32_t)(stack_top - untouched) * 4);
    say(" work ");
    say_number(sizeof decoder);
    say(" block ");
    say_number(BLOCK_BYTES);
    say("\n");
    return 0;
}

void reset(void) {
    uint32_t *at;
    for (at = bss_start; at < bss_end; at++) *at = 0;
    for (at = stack_low; at < (uint32_t *)__builtin_frame_address(0) - 64; at++) *at = PAINT;
    leave((uint32_t)main());
}
