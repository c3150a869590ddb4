// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** XXH32 with seed 0 (the xxHash specification by Yann Collet), over any number of updates. */
final class Xxh32 {
    private static final int PRIME1 = 0x9E3779B1;
    private static final int PRIME2 = 0x85EBCA77;
    private static final int PRIME3 = 0xC2B2AE3D;
    private static final int PRIME4 = 0x27D4EB2F;
    private static final int PRIME5 = 0x165667B1;
    private static final int STRIPE = 16;

    private int lane1 = PRIME1 + PRIME2;
    private int lane2 = PRIME2;
    private int lane3;
    private int lane4 = -PRIME1;
    private long total;
    private final byte[] rest = new byte[STRIPE];
    private int restBytes;

    static int of(byte[] bytes, int offset, int length) {
        Xxh32 hash = new Xxh32();
        hash.update(bytes, offset, length);
        return hash.value();
    }

    void update(byte[] bytes, int offset, int length) {
        total += length;
        int at = offset;
        int end = offset + length;
        if (restBytes > 0) {
            int taken = Math.min(STRIPE - restBytes, length);
            System.arraycopy(bytes, at, rest, restBytes, taken);
            restBytes += taken;
            at += taken;
            if (restBytes < STRIPE) {
                return;
            }
            stripes(rest, 0, STRIPE);
            restBytes = 0;
        }
        int whole = (end - at) / STRIPE * STRIPE;
        stripes(bytes, at, at + whole);
        at += whole;
        restBytes = end - at;
        System.arraycopy(bytes, at, rest, 0, restBytes);
    }

    private void stripes(byte[] bytes, int start, int end) {
        ByteBuffer in = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        int a = lane1;
        int b = lane2;
        int c = lane3;
        int d = lane4;
        for (int at = start; at < end; at += STRIPE) {
            a = Integer.rotateLeft(a + in.getInt(at) * PRIME2, 13) * PRIME1;
            b = Integer.rotateLeft(b + in.getInt(at + 4) * PRIME2, 13) * PRIME1;
            c = Integer.rotateLeft(c + in.getInt(at + 8) * PRIME2, 13) * PRIME1;
            d = Integer.rotateLeft(d + in.getInt(at + 12) * PRIME2, 13) * PRIME1;
        }
        lane1 = a;
        lane2 = b;
        lane3 = c;
        lane4 = d;
    }

    int value() {
        int hash = PRIME5;
        if (total >= STRIPE) {
            hash = Integer.rotateLeft(lane1, 1) + Integer.rotateLeft(lane2, 7)
                    + Integer.rotateLeft(lane3, 12) + Integer.rotateLeft(lane4, 18);
        }
        hash += (int) total;
        ByteBuffer in = ByteBuffer.wrap(rest).order(ByteOrder.LITTLE_ENDIAN);
        int at = 0;
        for (; at + 4 <= restBytes; at += 4) {
            hash = Integer.rotateLeft(hash + in.getInt(at) * PRIME3, 17) * PRIME4;
        }
        for (; at < restBytes; at++) {
            hash = Integer.rotateLeft(hash + (rest[at] & 255) * PRIME5, 11) * PRIME1;
        }
        hash = (hash ^ hash >>> 15) * PRIME2;
        hash = (hash ^ hash >>> 13) * PRIME3;
        return hash ^ hash >>> 16;
    }
}
