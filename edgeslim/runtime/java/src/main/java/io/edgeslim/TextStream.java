// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

/**
 * Bytes that come in pieces to whole characters; edgeslim_utf8.h in Java. What isn't UTF-8 becomes U+FFFD, a maximal part
 * of a character at a time. (Java's decoder replaces some of these parts byte by byte.)
 */
final class TextStream {
    private static final char REPLACEMENT = '\uFFFD';

    /** Of a character that isn't whole yet: its bits so far, how many bytes they are, and how many it has. */
    private int code;

    private int have;
    private int need;

    /** What is known once these bytes came. */
    String push(byte[] bytes) {
        StringBuilder out = new StringBuilder();
        for (byte one : bytes) {
            push(one & 0xFF, out);
        }
        return out.toString();
    }

    /** What is left at the end of the text. */
    String finish() {
        String rest = have > 0 ? String.valueOf(REPLACEMENT) : "";
        have = 0;
        return rest;
    }

    private void push(int one, StringBuilder out) {
        if (have > 0 && !goesOn(one)) {
            out.append(REPLACEMENT);
            have = 0;
        }
        if (have > 0) {
            code = code << 6 | one & 0x3F;
            have++;
        } else if (one < 0x80) {
            out.append((char) one);
        } else if (one < 0xC2 || one > 0xF4) {
            out.append(REPLACEMENT);
        } else {
            need = one < 0xE0 ? 2 : one < 0xF0 ? 3 : 4;
            code = one & 0x7F >> need;
            have = 1;
        }
        if (have > 0 && have == need) {
            out.appendCodePoint(code);
            have = 0;
        }
    }

    private boolean goesOn(int one) {
        if (one < 0x80 || one > 0xBF) {
            return false;
        }
        int next = code << 6 | one & 0x3F;
        if (have > 1) {
            return true;
        }
        // Not longer than it has to be, no surrogate, nothing above U+10FFFF: the second byte tells.
        return need == 2
                || need == 3 && next >= 0x20 && (next < 0x360 || next >= 0x380)
                || need == 4 && next >= 0x10 && next < 0x110;
    }
}
