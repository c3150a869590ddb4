// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * The container's hash (FORMAT.md, section 1), over any number of updates: XXH32 of four strands of the data, each of
 * every fourth piece of 16 bytes, and XXH32 of their hashes.
 */
final class Hash32 {
    private static final int PRIME1 = 0x9E3779B1;
    private static final int PRIME2 = 0x85EBCA77;
    private static final int PRIME3 = 0xC2B2AE3D;
    private static final int PRIME4 = 0x27D4EB2F;
    private static final int PRIME5 = 0x165667B1;
    private static final int PIECE = 16;
    private static final int STRANDS = 4;
    private static final int STRIPE = STRANDS * PIECE;

    /** Four lanes of each strand. */
    private final int[] lanes = new int[4 * STRANDS];
    private long total;
    private final byte[] rest = new byte[STRIPE];
    private int restBytes;

    Hash32() {
        for (int k = 0; k < lanes.length; k += 4) {
            seed(lanes, k);
        }
    }

    static int of(byte[] bytes, int offset, int length) {
        Hash32 hash = new Hash32();
        hash.update(bytes, offset, length);
        return hash.value();
    }

    private static void seed(int[] lanes, int at) {
        lanes[at] = PRIME1 + PRIME2;
        lanes[at + 1] = PRIME2;
        lanes[at + 2] = 0;
        lanes[at + 3] = -PRIME1;
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

    /** A strand at a time, so that its lanes stay in registers. */
    private static void stripes(int[] lanes, byte[] bytes, int start, int end) {
        ByteBuffer in = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        for (int strand = 0; strand < STRANDS; strand++) {
            strand(lanes, 4 * strand, in, start + PIECE * strand, end);
        }
    }

    private static void strand(int[] lanes, int k, ByteBuffer in, int start, int end) {
        int a = lanes[k];
        int b = lanes[k + 1];
        int c = lanes[k + 2];
        int d = lanes[k + 3];
        for (int at = start; at < end; at += STRIPE) {
            a = round(a, in.getInt(at));
            b = round(b, in.getInt(at + 4));
            c = round(c, in.getInt(at + 8));
            d = round(d, in.getInt(at + 12));
        }
        lanes[k] = a;
        lanes[k + 1] = b;
        lanes[k + 2] = c;
        lanes[k + 3] = d;
    }

    private static int round(int lane, int word) {
        return Integer.rotateLeft(lane + word * PRIME2, 13) * PRIME1;
    }

    int value() {
        int[] last = new int[4];
        seed(last, 0);
        ByteBuffer in = ByteBuffer.wrap(rest).order(ByteOrder.LITTLE_ENDIAN);
        long pieces = total / STRIPE;
        for (int strand = 0; strand < STRANDS; strand++) {
            int[] own = new int[4];
            System.arraycopy(lanes, 4 * strand, own, 0, 4);
            int held = Math.max(0, Math.min(PIECE, restBytes - PIECE * strand));
            if (held == PIECE) {
                strand(own, 0, in, PIECE * strand, PIECE * strand + 1);
            }
            last[strand] = round(last[strand], finish(own, pieces * PIECE + held, in, PIECE * strand));
        }
        return finish(last, PIECE, in, 0);
    }

    /** XXH32 of {@code size} bytes, of which {@code lanes} hold all whole pieces; the others are at {@code at}. */
    private static int finish(int[] lanes, long size, ByteBuffer in, int at) {
        int hash = PRIME5;
        if (size >= PIECE) {
            hash = Integer.rotateLeft(lanes[0], 1) + Integer.rotateLeft(lanes[1], 7)
                    + Integer.rotateLeft(lanes[2], 12) + Integer.rotateLeft(lanes[3], 18);
        }
        hash += (int) size;
        int end = at + (int) (size % PIECE);
        int next = at;
        for (; next + 4 <= end; next += 4) {
            hash = Integer.rotateLeft(hash + in.getInt(next) * PRIME3, 17) * PRIME4;
        }
        for (; next < end; next++) {
            hash = Integer.rotateLeft(hash + (in.get(next) & 255) * PRIME5, 11) * PRIME1;
        }
        hash = (hash ^ hash >>> 15) * PRIME2;
        hash = (hash ^ hash >>> 13) * PRIME3;
        return hash ^ hash >>> 16;
    }
}
