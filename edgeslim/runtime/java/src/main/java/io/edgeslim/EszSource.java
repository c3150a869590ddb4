// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.BufferedInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;

/** The container's bytes, front to back, with the position in the file. */
final class EszSource {
    private static final int GROW_BYTES = 1 << 20;

    private final InputStream in;
    private long position;

    EszSource(InputStream in) {
        this.in = new BufferedInputStream(in, 1 << 16);
    }

    void read(byte[] target, int offset, int length) throws IOException {
        int done = 0;
        while (done < length) {
            int n = in.read(target, offset + done, length - done);
            if (n < 0) {
                throw new EszException("ends after " + (position + done) + " bytes");
            }
            done += n;
        }
        position += length;
    }

    /** Reads a part whose size the file claims: memory grows as the bytes really come. */
    byte[] readClaimed(int length) throws IOException {
        byte[] bytes = new byte[Math.min(length, GROW_BYTES)];
        int done = 0;
        while (true) {
            read(bytes, done, bytes.length - done);
            done = bytes.length;
            if (done == length) {
                return bytes;
            }
            bytes = Arrays.copyOf(bytes, (int) Math.min(length, 2L * done));
        }
    }

    /** Reads up to {@code target}, which is at most 63 bytes away; all of them must be zero. */
    void skipPadding(long target) throws IOException {
        byte[] padding = new byte[64];
        int length = (int) (target - position);
        read(padding, 0, length);
        for (int i = 0; i < length; i++) {
            if (padding[i] != 0) {
                throw new EszException("padding isn't zero before byte " + target);
            }
        }
    }

    void expectEnd() throws IOException {
        if (in.read() >= 0) {
            throw new EszException("longer than its header says, " + position + " bytes");
        }
    }
}
