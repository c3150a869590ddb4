// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

/** BERT's normalization and WordPiece, one code point after the other; esz_token_wordpiece.h in Java. */
final class WordPiece {
    private static final int HANGUL = 0xAC00;
    private static final int HANGUL_END = 0xD7A4;

    private final TokenTables tables;
    private final IdSink sink;
    private final int[] codes = new int[TokenTables.MAX_WORD];
    private final int[] classes = new int[TokenTables.MAX_WORD];
    private final byte[] text = new byte[4 * TokenTables.MAX_WORD];
    private int count;
    /** Marks of the word from here on may change places. */
    private int ordered;

    WordPiece(TokenTables tables, IdSink sink) {
        this.tables = tables;
        this.sink = sink;
    }

    void encode(byte[] utf8, int start, int end) {
        int at = start;
        count = 0;
        ordered = 0;
        while (at < end && !sink.isCut()) {
            int code = Utf8.codeAt(utf8, at);
            at += Utf8.length(code);
            int flags = tables.flagsOf(code);
            if (has(TokenTables.CLEAN)) {
                if ((flags & TokenTables.DROPPED) != 0) {
                    continue;
                }
                if ((flags & TokenTables.SPACE) != 0) {
                    code = ' ';
                }
            }
            boolean alone = has(TokenTables.SPACE_CHINESE) && (flags & TokenTables.CHINESE) != 0;
            if (alone) {
                endWord();
            }
            if (!has(TokenTables.STRIP_ACCENTS)) {
                addStripped(code, 0);
            } else if ((flags & TokenTables.MARK) == 0) {
                strip(code);
            } else if ((flags & TokenTables.NONSTARTER) == 0) {
                ordered = count; // the mark is gone, but nothing changes places across it
            }
            if (alone) {
                endWord();
            }
        }
        if (!sink.isCut()) {
            endWord();
        }
    }

    private boolean has(int flag) {
        return (tables.flags & flag) != 0;
    }

    private void strip(int code) {
        if (code >= HANGUL && code < HANGUL_END) { // 19 * 21 * 28 syllables
            int syllable = code - HANGUL;
            addDecomposed(0x1100 + syllable / 588);
            addDecomposed(0x1161 + syllable % 588 / 28);
            if (syllable % 28 != 0) {
                addDecomposed(0x11A7 + syllable % 28);
            }
            return;
        }
        int becomes = tables.decompositions.get(code);
        if (becomes >= 0) {
            addDecomposed(becomes);
            return;
        }
        for (int i = 0; i < tables.decompositions.pooledCount(becomes); i++) {
            addDecomposed(tables.decompositions.pooled(becomes, i));
        }
    }

    private void addDecomposed(int code) {
        boolean moves = (tables.flagsOf(code) & TokenTables.NONSTARTER) != 0;
        addStripped(code, moves ? tables.classOf(code) : 0);
    }

    private void addStripped(int code, int combiningClass) {
        int becomes = has(TokenTables.LOWER) ? tables.lowerCase.get(code) : code;
        if (becomes >= 0) {
            addNormalized(becomes, combiningClass);
            return;
        }
        for (int i = 0; i < tables.lowerCase.pooledCount(becomes); i++) {
            addNormalized(tables.lowerCase.pooled(becomes, i), combiningClass);
        }
    }

    private void addNormalized(int code, int combiningClass) {
        int flags = code == ' ' ? TokenTables.SPACE : tables.flagsOf(code);
        if ((flags & (TokenTables.SPACE | TokenTables.PUNCTUATION)) != 0) {
            endWord();
        }
        if ((flags & TokenTables.SPACE) != 0) {
            return;
        }
        add(code, combiningClass);
        if ((flags & TokenTables.PUNCTUATION) != 0) {
            endWord();
        }
    }

    /** A character behind the word, or before the marks of higher class at its end. */
    private void add(int code, int combiningClass) {
        int most = tables.mostCharacters;
        int at = Math.min(count, most);
        if (at < most) {
            for (; combiningClass > 0 && at > ordered && classes[at - 1] > combiningClass; at--) {
                codes[at] = codes[at - 1];
                classes[at] = classes[at - 1];
            }
            codes[at] = code;
            classes[at] = combiningClass;
        }
        if (count <= most) {
            count++;
        }
        if (combiningClass == 0) {
            ordered = count;
        }
    }

    private void endWord() {
        int characters = count;
        count = 0;
        ordered = 0;
        if (characters == 0) {
            return;
        }
        if (characters > tables.mostCharacters) {
            sink.add(tables.unknown);
            return;
        }
        int bytes = 0;
        for (int i = 0; i < characters; i++) {
            bytes += Utf8.put(codes[i], text, bytes);
        }
        int[] pieces = new int[bytes];
        int found = 0;
        for (int at = 0; at < bytes; ) {
            TokenTables.Strings strings = at == 0 ? tables.words : tables.parts;
            int piece = strings.findPrefix(text, at, Math.min(bytes, at + tables.longest));
            if (piece == TokenTables.NONE) {
                sink.add(tables.unknown);
                return;
            }
            pieces[found++] = strings.id(piece);
            at += strings.length(piece);
        }
        for (int i = 0; i < found; i++) {
            sink.add(pieces[i]);
        }
    }
}
