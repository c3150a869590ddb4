// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * Texts to token ids as Hugging Face's tokenizers make them, and for BPE back: WordPiece of BERT's family, byte-level
 * BPE of GPT-2's.
 *
 * <p>It opens tokenizer.etk, which edgeslim packs from a tokenizer.json, and holds its bytes. Nothing of the phone's
 * Unicode tables is used, so ids are the same on every Android. Several threads may use one tokenizer at once.
 */
public final class Tokenizer {
    private final TokenTables tables;
    private final int[] byteIds;

    private Tokenizer(TokenTables tables) {
        this.tables = tables;
        this.byteIds = tables.kind == TokenTables.BPE ? BytePairs.byteIds(tables) : null;
    }

    /** Opens the bytes of a tokenizer.etk, which it keeps; an IOException where they are damaged. */
    public static Tokenizer open(byte[] file) throws IOException {
        return new Tokenizer(new TokenTables(file));
    }

    /** Reads a tokenizer.etk; the caller closes the stream. */
    public static Tokenizer open(InputStream in) throws IOException {
        return open(Disk.readAll(in, TokenTables.MAX_BYTES));
    }

    /**
     * The ids of one text, with the special tokens in front and behind.
     *
     * @param maxLength the most ids, special ones included; a longer text is cut
     */
    public long[] encode(String text, int maxLength) {
        return encode(text, maxLength, true, false);
    }

    /**
     * The ids of one text.
     *
     * @param framed whether the special tokens of a text stand in front and behind
     * @param literal whether a special token's name in the text is plain text, as what users wrote should be
     */
    public long[] encode(String text, int maxLength, boolean framed, boolean literal) {
        int front = framed ? tables.front : 0;
        int behind = framed ? tables.behind : 0;
        if (maxLength < front + behind) {
            throw new IllegalArgumentException("maxLength is " + maxLength + ", special tokens take " + (front + behind));
        }
        IdSink sink = new IdSink(maxLength - front - behind);
        encode(Utf8.encode(text), literal, sink);
        long[] ids = new long[front + sink.count() + behind];
        for (int i = 0; i < front; i++) {
            ids[i] = tables.frameId(i);
        }
        sink.copyTo(ids, front);
        for (int i = 0; i < behind; i++) {
            ids[front + sink.count() + i] = tables.frameId(front + i);
        }
        return ids;
    }

    /** The text between added tokens, and those. */
    private void encode(byte[] utf8, boolean literal, IdSink sink) {
        WordPiece wordPiece = byteIds == null ? new WordPiece(tables, sink) : null;
        BytePairs bytePairs = byteIds == null ? null : new BytePairs(tables, sink, byteIds);
        boolean[] first = new boolean[256];
        for (int i = 0; i < tables.added.count; i++) {
            first[tables.file[tables.added.place(i)] & 0xFF] = true;
        }
        int start = 0;
        int at = 0;
        while (at < utf8.length && !sink.isCut()) {
            int found = first[utf8[at] & 0xFF] ? tables.added.findPrefix(utf8, at, utf8.length) : TokenTables.NONE;
            if (found == TokenTables.NONE) {
                at++;
            } else if (literal && tables.added.isSpecial(found)) {
                at += tables.added.length(found);
            } else {
                encode(wordPiece, bytePairs, utf8, start, at);
                if (!sink.isCut()) {
                    sink.add(tables.added.id(found));
                }
                at += tables.added.length(found);
                start = at;
            }
        }
        if (!sink.isCut()) {
            encode(wordPiece, bytePairs, utf8, start, utf8.length);
        }
    }

    private static void encode(WordPiece wordPiece, BytePairs bytePairs, byte[] utf8, int start, int end) {
        if (wordPiece != null) {
            wordPiece.encode(utf8, start, end);
        } else {
            bytePairs.encode(utf8, start, end);
        }
    }

    /** The padding token's id, or -1. */
    public long padId() {
        return tables.pad;
    }

    /** The id of an added token by its name, such as "[SEP]" or "&lt;|im_end|&gt;"; -1 if there is none. */
    public long idOf(String addedToken) {
        byte[] name = Utf8.encode(addedToken);
        int found = tables.added.find(name, 0, name.length);
        return found == TokenTables.NONE ? -1 : tables.added.id(found);
    }

    /**
     * BPE: the text of ids. What isn't UTF-8, since a character's tokens are incomplete, becomes U+FFFD.
     *
     * @throws IllegalArgumentException an id that is no token, or a tokenizer other than BPE
     */
    public String decode(long[] ids, boolean skipSpecial) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (long id : ids) {
            byte[] bytes = bytesOf(id, skipSpecial);
            if (bytes == null) {
                throw new IllegalArgumentException("no token with a text: " + id);
            }
            out.write(bytes, 0, bytes.length);
        }
        return new String(out.toByteArray(), StandardCharsets.UTF_8);
    }

    /** BPE: the bytes of a token, part of a character perhaps; none for a special token, or for one without a text. */
    byte[] bytesOf(long id) {
        byte[] bytes = bytesOf(id, true);
        return bytes == null ? new byte[0] : bytes;
    }

    /** The bytes of a token; null where it has none. */
    private byte[] bytesOf(long id, boolean skipSpecial) {
        if (tables.kind != TokenTables.BPE || id < 0 || id >= tables.vocabularySize) {
            return null;
        }
        int added = addedOf(id);
        if (added != TokenTables.NONE && skipSpecial && tables.added.isSpecial(added)) {
            return new byte[0];
        }
        int word = added == TokenTables.NONE ? tables.wordOf((int) id) : added;
        if (word == TokenTables.NONE) {
            return null;
        }
        TokenTables.Strings strings = added == TokenTables.NONE ? tables.words : tables.added;
        int place = strings.place(word);
        return Arrays.copyOfRange(tables.file, place, place + strings.length(word));
    }

    private int addedOf(long id) {
        for (int i = 0; i < tables.added.count; i++) {
            if (tables.added.id(i) == id) {
                return i;
            }
        }
        return TokenTables.NONE;
    }
}
