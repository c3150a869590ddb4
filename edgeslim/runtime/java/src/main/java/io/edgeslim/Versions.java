// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;

/** Which version of a model is in use, which was before it, which isn't wanted: a line each, in one small file. */
final class Versions {
    static final String FILE = ".versions";
    private static final int MAX_BYTES = 1024;

    final String current;
    final String previous;
    final String refused;

    Versions(String current, String previous, String refused) {
        this.current = current;
        this.previous = previous;
        this.refused = refused;
    }

    /** Reads the file; whatever isn't a version in it, or a missing file, counts as none. */
    static Versions read(File home) throws IOException {
        File file = new File(home, FILE);
        if (!file.isFile()) {
            return new Versions(null, null, null);
        }
        String[] lines;
        try (InputStream in = new FileInputStream(file)) {
            lines = new String(Disk.readAll(in, MAX_BYTES), StandardCharsets.US_ASCII).split("\n", -1);
        }
        return new Versions(version(lines, 0), version(lines, 1), version(lines, 2));
    }

    private static String version(String[] lines, int index) {
        return index < lines.length && lines[index].matches("[0-9a-f]{32}") ? lines[index] : null;
    }

    void write(File home) throws IOException {
        String text = line(current) + line(previous) + line(refused);
        Disk.writeWhole(new File(home, FILE), text.getBytes(StandardCharsets.US_ASCII));
    }

    private static String line(String version) {
        return (version == null ? "-" : version) + "\n";
    }
}
