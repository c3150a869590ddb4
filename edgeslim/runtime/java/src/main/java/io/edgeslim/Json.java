// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A strict, bounded JSON reader (RFC 8259) for manifest.json.
 *
 * <p>Android has org.json, a plain JVM has not, and org.json accepts much that isn't JSON. This reader knows no
 * option: UTF-8 without errors, no duplicate key, no comment, nothing behind the value, at most {@link #MAX_BYTES}
 * bytes and {@link #MAX_DEPTH} levels. Values become Map, List, String, Long, Double, Boolean or null.
 */
final class Json {
    static final int MAX_BYTES = 1 << 20;
    static final int MAX_DEPTH = 32;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** Parses one whole document; the bytes hold nothing else. */
    static Object parse(byte[] utf8) throws IOException {
        if (utf8.length > MAX_BYTES) {
            throw new IOException("JSON: " + utf8.length + " bytes, at most " + MAX_BYTES + " are read");
        }
        String text;
        try {
            text = StandardCharsets.UTF_8.newDecoder()
                    .onMalformedInput(CodingErrorAction.REPORT)
                    .onUnmappableCharacter(CodingErrorAction.REPORT)
                    .decode(ByteBuffer.wrap(utf8)).toString();
        } catch (CharacterCodingException e) {
            throw new IOException("JSON: not UTF-8", e);
        }
        Json json = new Json(text);
        Object value = json.value(0);
        json.skipSpace();
        if (json.at != text.length()) {
            throw json.error("something behind the value");
        }
        return value;
    }

    private Object value(int depth) throws IOException {
        if (depth > MAX_DEPTH) {
            throw error("nested deeper than " + MAX_DEPTH);
        }
        skipSpace();
        char c = peek();
        switch (c) {
            case '{':
                return object(depth);
            case '[':
                return array(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> object(int depth) throws IOException {
        Map<String, Object> members = new LinkedHashMap<>();
        at++;
        skipSpace();
        if (peek() == '}') {
            at++;
            return members;
        }
        while (true) {
            skipSpace();
            if (peek() != '"') {
                throw error("expected a key");
            }
            String key = string();
            if (members.containsKey(key)) {
                throw error("key \"" + key + "\" comes twice");
            }
            skipSpace();
            if (peek() != ':') {
                throw error("expected ':'");
            }
            at++;
            members.put(key, value(depth + 1));
            if (endOfItem('}')) {
                return members;
            }
        }
    }

    private List<Object> array(int depth) throws IOException {
        List<Object> items = new ArrayList<>();
        at++;
        skipSpace();
        if (peek() == ']') {
            at++;
            return items;
        }
        while (true) {
            items.add(value(depth + 1));
            if (endOfItem(']')) {
                return items;
            }
        }
    }

    private boolean endOfItem(char close) throws IOException {
        skipSpace();
        char c = peek();
        at++;
        if (c != ',' && c != close) {
            at--;
            throw error("expected ',' or '" + close + "'");
        }
        return c == close;
    }

    private String string() throws IOException {
        StringBuilder out = new StringBuilder();
        at++;
        while (true) {
            char c = peek();
            at++;
            if (c == '"') {
                return out.toString();
            }
            if (c < 0x20) {
                throw error("control character in a string");
            }
            out.append(c == '\\' ? escape() : c);
        }
    }

    private char escape() throws IOException {
        char c = peek();
        at++;
        switch (c) {
            case '"':
            case '\\':
            case '/':
                return c;
            case 'b':
                return '\b';
            case 'f':
                return '\f';
            case 'n':
                return '\n';
            case 'r':
                return '\r';
            case 't':
                return '\t';
            case 'u':
                int code = 0;
                for (int i = 0; i < 4; i++) {
                    char hex = peek();
                    int digit = hex < 0x80 ? Character.digit(hex, 16) : -1;
                    if (digit < 0) {
                        throw error("expected four hex digits");
                    }
                    code = code << 4 | digit;
                    at++;
                }
                return (char) code;
            default:
                throw error("unknown escape");
        }
    }

    private Object word(String word, Object meaning) throws IOException {
        if (!text.startsWith(word, at)) {
            throw error("expected a value");
        }
        at += word.length();
        return meaning;
    }

    private Object number() throws IOException {
        int start = at;
        if (peek() == '-') {
            at++;
        }
        int first = at;
        int digits = digits();
        if (digits == 0 || digits > 1 && text.charAt(first) == '0') {
            throw error("expected a value");
        }
        boolean whole = true;
        if (at < text.length() && text.charAt(at) == '.') {
            whole = false;
            at++;
            if (digits() == 0) {
                throw error("expected a digit");
            }
        }
        if (at < text.length() && (text.charAt(at) == 'e' || text.charAt(at) == 'E')) {
            whole = false;
            at++;
            if (at < text.length() && (text.charAt(at) == '+' || text.charAt(at) == '-')) {
                at++;
            }
            if (digits() == 0) {
                throw error("expected a digit");
            }
        }
        String number = text.substring(start, at);
        if (whole && digits <= 18) {
            return Long.valueOf(number);
        }
        return Double.valueOf(number);
    }

    private int digits() {
        int start = at;
        while (at < text.length() && text.charAt(at) >= '0' && text.charAt(at) <= '9') {
            at++;
        }
        return at - start;
    }

    private void skipSpace() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private char peek() throws IOException {
        if (at >= text.length()) {
            throw error("ends too early");
        }
        return text.charAt(at);
    }

    private IOException error(String what) {
        return new IOException("JSON: " + what + " at character " + at);
    }
}
