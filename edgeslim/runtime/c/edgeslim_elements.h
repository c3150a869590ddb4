/* How large ONNX's element types are. Part of edgeslim.c, and of the device runner. SPDX-License-Identifier: Apache-2.0 */
#ifndef EDGESLIM_ELEMENTS_H
#define EDGESLIM_ELEMENTS_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of an element of ONNX's type `type`; 0 for types that aren't plain numbers (strings and others). */
static size_t element_bytes(int32_t type) {
    switch (type) {
        case 2: case 3: case 9: return 1;           /* uint8, int8, bool */
        case 4: case 5: case 10: case 16: return 2; /* uint16, int16, float16, bfloat16 */
        case 1: case 6: case 12: return 4;          /* float, int32, uint32 */
        case 7: case 11: case 13: return 8;         /* int64, double, uint64 */
        default: return 0;
    }
}

#endif
