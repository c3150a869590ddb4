// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.util.Arrays;

/** Text as UTF-8; a surrogate without its other half is U+FFFD, where Java's own encoder puts a question mark. */
final class Utf8 {
    private Utf8() {}

    static byte[] encode(String text) {
        byte[] out = new byte[text.length() + 16];
        int bytes = 0;
        for (int i = 0; i < text.length(); ) {
            int code = text.codePointAt(i);
            i += Character.charCount(code);
            if (code >= 0xD800 && code < 0xE000) {
                code = 0xFFFD;
            }
            if (bytes + 4 > out.length) {
                out = Arrays.copyOf(out, 2 * out.length);
            }
            bytes += put(code, out, bytes);
        }
        return Arrays.copyOf(out, bytes);
    }

    static int length(int code) {
        return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    }

    static int put(int code, byte[] to, int at) {
        int length = length(code);
        if (length == 1) {
            to[at] = (byte) code;
            return 1;
        }
        for (int i = length - 1; i > 0; i--) {
            to[at + i] = (byte) (0x80 | code >> 6 * (length - 1 - i) & 0x3F);
        }
        to[at] = (byte) (0xF0 << 4 - length | code >> 6 * (length - 1));
        return length;
    }

    /** The code point at {@code at} of well-formed text. */
    static int codeAt(byte[] utf8, int at) {
        int first = utf8[at] & 0xFF;
        if (first < 0x80) {
            return first;
        }
        int more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
        int code = first & 0x3F >> more;
        for (int i = 1; i <= more; i++) {
            code = code << 6 | utf8[at + i] & 0x3F;
        }
        return code;
    }
}
