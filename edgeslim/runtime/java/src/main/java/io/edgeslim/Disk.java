// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/**
 * Plain file operations. java.io only: java.nio.file came to Android with API level 26, later than this library's
 * lowest level.
 */
final class Disk {
    private static final char[] HEX = "0123456789abcdef".toCharArray();

    private Disk() {}

    static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("every Java platform has SHA-256", e);
        }
    }

    static String hex(MessageDigest digest) {
        StringBuilder out = new StringBuilder();
        for (byte b : digest.digest()) {
            out.append(HEX[b >> 4 & 15]).append(HEX[b & 15]);
        }
        return out.toString();
    }

    /** Reads a small file whole; refuses one above the limit. */
    static byte[] readAll(InputStream in, int limitBytes) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] buffer = new byte[8192];
        for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
            if (out.size() + n > limitBytes) {
                throw new IOException("larger than " + limitBytes + " bytes");
            }
            out.write(buffer, 0, n);
        }
        return out.toByteArray();
    }

    static void copy(InputStream in, OutputStream out) throws IOException {
        byte[] buffer = new byte[1 << 16];
        for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
            out.write(buffer, 0, n);
        }
    }

    /** Writes a small file beside its place, forces it to the storage and renames it. */
    static void writeWhole(File target, byte[] content) throws IOException {
        File temporary = new File(target.getPath() + ".new");
        try (FileOutputStream out = new FileOutputStream(temporary)) {
            out.write(content);
            out.getFD().sync();
        }
        if (!temporary.renameTo(target)) {
            throw new IOException("can't rename " + temporary + " to " + target);
        }
    }

    /** Deletes a file or folder with all in it, as far as that goes. */
    static void deleteTree(File file) {
        File[] children = file.listFiles();
        if (children != null) {
            for (File child : children) {
                deleteTree(child);
            }
        }
        file.delete();
    }

    static long treeBytes(File file) {
        File[] children = file.listFiles();
        if (children == null) {
            return file.length();
        }
        long bytes = 0;
        for (File child : children) {
            bytes += treeBytes(child);
        }
        return bytes;
    }

    /**
     * Writes one file that must come out as its manifest entry says: not a byte longer while writing, and of the
     * same size and SHA-256 at {@link #finish()}, which also forces it to the storage.
     */
    static final class VerifiedOutput extends OutputStream {
        private final String name;
        private final Manifest.Entry expected;
        private final FileOutputStream file;
        private final MessageDigest digest = sha256();
        private long written;

        VerifiedOutput(File target, Manifest.Entry expected) throws IOException {
            this.name = target.getName();
            this.expected = expected;
            this.file = new FileOutputStream(target);
        }

        @Override
        public void write(int b) throws IOException {
            write(new byte[] {(byte) b}, 0, 1);
        }

        @Override
        public void write(byte[] bytes, int offset, int length) throws IOException {
            if (length > expected.bytes - written) {
                throw new IOException(name + ": longer than the " + expected.bytes + " bytes of manifest.json");
            }
            file.write(bytes, offset, length);
            digest.update(bytes, offset, length);
            written += length;
        }

        void finish() throws IOException {
            if (written != expected.bytes) {
                throw new IOException(name + ": " + written + " bytes, manifest.json says " + expected.bytes);
            }
            String got = hex(digest);
            if (!got.equals(expected.sha256)) {
                throw new IOException(name + ": SHA-256 is " + got + ", manifest.json says " + expected.sha256);
            }
            file.getFD().sync();
        }

        @Override
        public void close() throws IOException {
            file.close();
        }
    }
}
