// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.security.MessageDigest;
import java.util.Arrays;

/** Runs the decoder for the Python tests: many containers in one JVM. */
public final class DecoderMain {
    private DecoderMain() {}

    public static void main(String[] args) throws IOException {
        switch (args[0]) {
            case "batch":
                batch(new DataInputStream(System.in));
                break;
            case "damage":
                for (String file : Arrays.copyOfRange(args, 1, args.length)) {
                    damage(file, read(file));
                }
                break;
            case "bench":
                bench(read(args[1]), Integer.parseInt(args[2]));
                break;
            default:
                throw new IllegalArgumentException(args[0]);
        }
    }

    /** Containers from stdin, each behind its size (big-endian): a line "ok SHA256 BYTES" or "no MESSAGE" each. */
    private static void batch(DataInputStream in) throws IOException {
        while (true) {
            int size;
            try {
                size = in.readInt();
            } catch (EOFException e) {
                return;
            }
            byte[] container = new byte[size];
            in.readFully(container);
            try {
                byte[] image = decode(container, container.length);
                MessageDigest digest = Disk.sha256();
                digest.update(image);
                System.out.println("ok " + Disk.hex(digest) + " " + image.length);
            } catch (EszException e) {
                System.out.println("no " + e.getMessage());
            }
        }
    }

    /** Every truncation, every single-bit flip and a byte too many: a line "FILE CASES ACCEPTED". */
    private static void damage(String file, byte[] container) throws IOException {
        int cases = 0;
        int accepted = 0;
        for (int length = 0; length < container.length; length++, cases++) {
            accepted += isAccepted(container, length, file + " cut to " + length);
        }
        for (int bit = 0; bit < container.length * 8; bit++, cases++) {
            container[bit / 8] ^= (byte) (1 << bit % 8);
            accepted += isAccepted(container, container.length, file + " with bit " + bit + " flipped");
            container[bit / 8] ^= (byte) (1 << bit % 8);
        }
        accepted += isAccepted(Arrays.copyOf(container, container.length + 1), container.length + 1, file + " and 0");
        System.out.println(file + " " + (cases + 1) + " " + accepted);
    }

    private static int isAccepted(byte[] container, int length, String what) throws IOException {
        try {
            decode(container, length);
        } catch (EszException e) {
            return 0;
        }
        System.err.println("accepted: " + what);
        return 1;
    }

    /** The median speed of {@code rounds} decodes after a warm-up, in decoded MB a second of this thread's CPU time. */
    private static void bench(byte[] container, int rounds) throws IOException {
        OutputStream nowhere = new OutputStream() {
            @Override
            public void write(int b) {}

            @Override
            public void write(byte[] bytes, int offset, int length) {}
        };
        ThreadMXBean clock = ManagementFactory.getThreadMXBean();
        double[] speeds = new double[rounds];
        for (int i = -rounds; i < rounds; i++) {
            long start = clock.getCurrentThreadCpuTime();
            long bytes = EszDecoder.decode(new ByteArrayInputStream(container), nowhere);
            if (i >= 0) {
                speeds[i] = bytes * 1e3 / (clock.getCurrentThreadCpuTime() - start);
            }
        }
        Arrays.sort(speeds);
        System.out.printf("%.0f%n", speeds[rounds / 2]);
    }

    private static byte[] decode(byte[] container, int length) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        EszDecoder.decode(new ByteArrayInputStream(container, 0, length), out);
        return out.toByteArray();
    }

    private static byte[] read(String file) throws IOException {
        try (InputStream in = new FileInputStream(file)) {
            return Disk.readAll(in, 1 << 30);
        }
    }
}
