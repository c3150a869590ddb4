// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** The container's hash (FORMAT.md, section 1), over any number of updates. */
final class Hash32 {
    private static final int PRIME1 = 0x9E3779B1;
    private static final int PRIME2 = 0x85EBCA77;
    private static final int PRIME3 = 0xC2B2AE3D;
    private static final int STRIPE = 32;
    private static final int LANES = 8;

    /** Of each lane the sum of its words, and behind them the rotating sums of these sums. */
    private final int[] lanes = new int[2 * LANES];
    private long total;
    private final byte[] rest = new byte[STRIPE];
    private int restBytes;

    Hash32() {
        for (int k = 0; k < lanes.length; k++) {
            lanes[k] = (k + 1) * PRIME1;
        }
    }

    static int of(byte[] bytes, int offset, int length) {
        Hash32 hash = new Hash32();
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
            stripes(lanes, rest, 0, STRIPE);
            restBytes = 0;
        }
        int whole = (end - at) / STRIPE * STRIPE;
        stripes(lanes, bytes, at, at + whole);
        at += whole;
        restBytes = end - at;
        System.arraycopy(bytes, at, rest, 0, restBytes);
    }

    /** Four lanes at a time, so that all that is summed up stays in registers. */
    private static void stripes(int[] lanes, byte[] bytes, int start, int end) {
        ByteBuffer in = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        for (int k = 0; k < LANES; k += 4) {
            int a = lanes[k];
            int b = lanes[k + 1];
            int c = lanes[k + 2];
            int d = lanes[k + 3];
            int e = lanes[k + 8];
            int f = lanes[k + 9];
            int g = lanes[k + 10];
            int h = lanes[k + 11];
            for (int at = start + 4 * k; at < end; at += STRIPE) {
                a += in.getInt(at);
                b += in.getInt(at + 4);
                c += in.getInt(at + 8);
                d += in.getInt(at + 12);
                e = Integer.rotateLeft(e, 9) + a;
                f = Integer.rotateLeft(f, 9) + b;
                g = Integer.rotateLeft(g, 9) + c;
                h = Integer.rotateLeft(h, 9) + d;
            }
            lanes[k] = a;
            lanes[k + 1] = b;
            lanes[k + 2] = c;
            lanes[k + 3] = d;
            lanes[k + 8] = e;
            lanes[k + 9] = f;
            lanes[k + 10] = g;
            lanes[k + 11] = h;
        }
    }

    int value() {
        int[] last = lanes.clone();
        if (restBytes > 0) {
            byte[] padded = new byte[STRIPE];
            System.arraycopy(rest, 0, padded, 0, restBytes);
            stripes(last, padded, 0, STRIPE);
        }
        int hash = (int) total * PRIME3;
        for (int lane : last) {
            hash = Integer.rotateLeft(hash ^ lane, 13) * PRIME1;
        }
        hash = (hash ^ hash >>> 15) * PRIME2;
        hash = (hash ^ hash >>> 13) * PRIME3;
        return hash ^ hash >>> 16;
    }
}
