// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;

/**
 * The tables of a packed tokenizer (tokenizer.etk), used where they lie in the file's bytes.
 *
 * <p>The layout is that of edgeslim/packaging/tokenizer_file.py, which esz_token.c reads, too. The whole file is
 * checked once, so that no lookup leaves it, whoever wrote it. What Unicode says comes from the file and not from the
 * phone: Android's own tables differ from version to version.
 */
final class TokenTables {
    static final int WORDPIECE = 1;
    static final int BPE = 2;
    static final int CLEAN = 1;
    static final int SPACE_CHINESE = 2;
    static final int STRIP_ACCENTS = 4;
    static final int LOWER = 8;
    static final int PREFIX_SPACE = 16;
    static final int FUSE_UNKNOWN = 32;
    static final int SINGLE_DIGITS = 64;
    static final int WHOLE_WORDS = 128;
    private static final int WIDE = 256;

    /** Flags of code points. */
    static final int DROPPED = 1;

    static final int SPACE = 2;
    static final int CHINESE = 4;
    static final int PUNCTUATION = 8;
    static final int MARK = 16;
    static final int NONSTARTER = 32;
    static final int LETTER = 64;
    static final int NUMBER = 128;
    static final int REGEX_SPACE = 256;
    static final int NUMERIC = 512;

    static final int NONE = -1;
    static final int MAX_BYTES = 256 << 20;
    static final int MAX_WORD = 256;
    private static final int MAGIC = 0x014B5445;
    private static final int HEADER_BYTES = 128;
    private static final int MAX_COUNT = 1 << 20;
    private static final int MAX_FRAME = 16;
    private static final int MAX_TOKEN_BYTES = 255;
    private static final int CODE_BITS = 21;
    private static final int CODE_MASK = (1 << CODE_BITS) - 1;
    private static final int SPECIAL = 1 << 31;
    private static final int BLOCK = 16;

    final byte[] file;
    final int kind;
    final int flags;
    final int vocabularySize;
    final int unknown;
    final int mostCharacters;
    final int pad;
    final int longest;
    final int front;
    final int behind;
    final Strings added;
    final Strings words;
    final Strings parts;
    final CodeMap decompositions;
    final CodeMap lowerCase;
    private final boolean wide;
    private final int frameAt;
    private final int segmentsAt;
    private final int segmentCount;
    private final int classesAt;
    private final int classCount;
    private final int mergesAt;
    private final int ranksAt;
    private final int mergedAt;
    private final int mergeCount;
    private final int byIdAt;
    private final int byIdCount;
    private int at = HEADER_BYTES;

    TokenTables(byte[] file) throws IOException {
        this.file = file;
        require(file.length >= HEADER_BYTES && get32(0) == MAGIC && head(28) == file.length, "no whole file");
        for (int i = 8; i < 28; i++) {
            require(head(i) >= 0 && head(i) <= MAX_TOKEN_BYTES * MAX_COUNT, "a number of the header");
        }
        require((head(29) | head(30) | head(31)) == 0, "a newer version");
        kind = head(1);
        flags = head(2);
        vocabularySize = head(3);
        unknown = head(4);
        mostCharacters = head(5);
        pad = head(6);
        longest = head(7);
        front = head(8);
        behind = head(9);
        wide = (flags & WIDE) != 0;
        require((kind == WORDPIECE || kind == BPE) && (flags & -2 * WIDE) == 0, "another kind");
        require(vocabularySize >= 0 && vocabularySize <= MAX_COUNT, "the vocabulary's size");
        require(front <= MAX_FRAME && behind <= MAX_FRAME && longest >= 0 && longest <= MAX_TOKEN_BYTES, "a length");
        require(pad == NONE || isId(pad), "the padding token");
        require(isId(unknown) || unknown == NONE && kind == BPE, "the unknown token");
        require(kind == BPE || mostCharacters > 0 && mostCharacters <= MAX_WORD, "the longest word");
        segmentCount = head(10);
        classCount = head(11);
        mergeCount = head(26);
        byIdCount = head(27);
        require(kind != BPE || byIdCount == vocabularySize, "the index by id");
        frameAt = take(front + behind, 4);
        segmentsAt = take(segmentCount, 4);
        classesAt = take(classCount, 4);
        decompositions = new CodeMap(12);
        lowerCase = new CodeMap(16);
        added = new Strings(20, true);
        words = new Strings(22, wide);
        parts = new Strings(24, wide);
        mergesAt = take(mergeCount, wide ? 8 : 4);
        ranksAt = take(mergeCount, wide ? 4 : 2);
        mergedAt = take(mergeCount, wide ? 4 : 2);
        byIdAt = take(byIdCount, wide ? 4 : 2);
        require(at == file.length, "something behind it");
        check();
    }

    private static void require(boolean holds, String what) throws IOException {
        if (!holds) {
            throw new IOException("tokenizer.etk: damaged, or of another version: " + what);
        }
    }

    private int take(long count, int size) throws IOException {
        long bytes = (count * size + 3) / 4 * 4;
        require(bytes <= file.length - at, "it ends too early");
        int start = at;
        at += (int) bytes;
        return start;
    }

    private boolean isId(int id) {
        return id >= 0 && id < vocabularySize;
    }

    private int head(int index) {
        return get32(4 * index);
    }

    private int get16(int place) {
        return file[place] & 0xFF | (file[place + 1] & 0xFF) << 8;
    }

    private int get32(int place) {
        return get16(place) | get16(place + 2) << 16;
    }

    private int getId(int start, int index, boolean isWide) {
        return isWide ? get32(start + 4 * index) : get16(start + 2 * index);
    }

    private void check() throws IOException {
        for (int i = 0; i < front + behind; i++) {
            require(isId(frameId(i)), "a special token");
        }
        for (int i = 0; i < segmentCount; i++) {
            int code = get32(segmentsAt + 4 * i) & CODE_MASK;
            boolean rises = i == 0 ? code == 0 : code > (get32(segmentsAt + 4 * i - 4) & CODE_MASK);
            require(rises, "the order of segments");
        }
        for (int i = 1; i < classCount; i++) {
            require(get32(classesAt + 4 * i) > get32(classesAt + 4 * i - 4), "the order of classes");
        }
        require(segmentCount > 0, "no segments");
        decompositions.check();
        lowerCase.check();
        added.check(MAX_TOKEN_BYTES, ~SPECIAL);
        words.check(longest, -1);
        parts.check(longest, -1);
        for (int i = 0; i < mergeCount; i++) {
            require(i == 0 || mergeKey(i) > mergeKey(i - 1), "the order of merges");
            int rank = getId(ranksAt, i, wide);
            require(rank >= 0 && rank < mergeCount && isId(getId(mergedAt, i, wide)), "a merge");
        }
        for (int i = 0; i < byIdCount; i++) {
            int index = getId(byIdAt, i, wide);
            require(index == (wide ? NONE : 0xFFFF) || index >= 0 && index < words.count, "the index by id");
        }
    }

    int frameId(int index) {
        return get32(frameAt + 4 * index);
    }

    int flagsOf(int code) {
        return get32(segmentsAt + 4 * findLast(segmentsAt, segmentCount, 4, CODE_MASK, code)) >>> CODE_BITS;
    }

    /** The last record whose first number, masked, isn't above {@code key}; -1 if none is. */
    private int findLast(int start, int count, int size, int mask, int key) {
        int low = 0;
        int high = count;
        while (low < high) {
            int middle = (low + high) >>> 1;
            if ((get32(start + size * middle) & mask) <= key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low - 1;
    }

    int classOf(int code) {
        int found = findLast(classesAt, classCount, 4, -1, code << 8 | 0xFF);
        int entry = found < 0 ? 0 : get32(classesAt + 4 * found);
        return found >= 0 && entry >>> 8 == code ? entry & 0xFF : 0;
    }

    /** Keys are compared as what they are, unsigned 32 or 64 bits: ids are below 2^20. */
    private long mergeKey(int index) {
        long low = get32(mergesAt + (wide ? 8 : 4) * index) & 0xFFFFFFFFL;
        return wide ? (long) get32(mergesAt + 8 * index + 4) << 32 | low : low;
    }

    int findMerge(int left, int right) {
        long key = wide ? (long) left << 32 | right : (long) left << 16 | right;
        int low = 0;
        int high = mergeCount;
        while (low < high) {
            int middle = (low + high) >>> 1;
            long found = mergeKey(middle);
            if (found == key) {
                return middle;
            }
            if (found < key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return NONE;
    }

    int mergeRank(int merge) {
        return getId(ranksAt, merge, wide);
    }

    int mergedId(int merge) {
        return getId(mergedAt, merge, wide);
    }

    /** The index of an id in {@link #words}, or NONE. */
    int wordOf(int id) {
        int index = getId(byIdAt, id, wide);
        return index >= 0 && index < words.count ? index : NONE;
    }

    /** Code points that become others. */
    final class CodeMap {
        private final int runCount;
        private final int pairCount;
        private final int poolCount;
        private final int shortCount;
        private final int runsAt;
        private final int pairsAt;
        private final int poolAt;
        private final int shortsAt;

        CodeMap(int header) throws IOException {
            runCount = head(header);
            pairCount = head(header + 1);
            poolCount = head(header + 2);
            shortCount = head(header + 3);
            runsAt = take(runCount, 12);
            pairsAt = take(pairCount, 8);
            poolAt = take(poolCount, 4);
            shortsAt = take(shortCount, 4);
        }

        private void check() throws IOException {
            for (int i = 0; i < runCount; i++) {
                int run = runsAt + 12 * i;
                int step = get16(run + 6);
                long moved = (long) get32(run) + get32(run + 8);
                require(get32(run) >= 0 && get32(run) <= Character.MAX_CODE_POINT && step > 0, "a run");
                require(i == 0 || get32(run) > get32(run - 12), "the order of runs");
                require(moved >= 0 && moved + (long) step * get16(run + 4) <= Character.MAX_CODE_POINT, "a run");
            }
            for (int i = 0; i < pairCount; i++) {
                int value = get32(pairsAt + 8 * i + 4);
                boolean inside = value >= 0 ? value <= Character.MAX_CODE_POINT : first(value) + count(value) <= poolCount;
                require(inside && (i == 0 || get32(pairsAt + 8 * i) > get32(pairsAt + 8 * i - 8)), "a pair");
            }
            for (int i = 0; i < poolCount; i++) {
                require(Character.isValidCodePoint(get32(poolAt + 4 * i)), "a code point");
            }
            for (int i = 1; i < shortCount; i++) {
                require(get16(shortsAt + 4 * i) > get16(shortsAt + 4 * i - 4), "the order of pairs");
            }
        }

        private int first(int value) {
            return value >>> 8 & 0x7FFFFF;
        }

        private int count(int value) {
            return value & 0xFF;
        }

        /** What a code point becomes: one, as a number from 0 on; several, as a negative handle for the pool. */
        int get(int code) {
            int run = findLast(runsAt, runCount, 12, -1, code);
            if (run >= 0) {
                int start = runsAt + 12 * run;
                int away = code - get32(start);
                if (away % get16(start + 6) == 0 && away / get16(start + 6) < get16(start + 4)) {
                    return code + get32(start + 8);
                }
            }
            int pair = findLast(pairsAt, pairCount, 8, -1, code);
            if (pair >= 0 && get32(pairsAt + 8 * pair) == code) {
                return get32(pairsAt + 8 * pair + 4);
            }
            int found = findLast(shortsAt, shortCount, 4, 0xFFFF, code);
            if (found >= 0 && get16(shortsAt + 4 * found) == code) {
                return get16(shortsAt + 4 * found + 2);
            }
            return code;
        }

        int pooledCount(int handle) {
            return count(handle);
        }

        int pooled(int handle, int index) {
            return get32(poolAt + 4 * (first(handle) + index));
        }
    }

    /** Tokens, sorted by their bytes. */
    final class Strings {
        final int count;
        private final int poolBytes;
        private final boolean isWide;
        private final int lengthsAt;
        private final int placesAt;
        private final int idsAt;
        private final int poolAt;

        Strings(int header, boolean isWide) throws IOException {
            this.isWide = isWide;
            count = head(header);
            poolBytes = head(header + 1);
            lengthsAt = take(count, 1);
            placesAt = take((count + BLOCK - 1) / BLOCK, 4);
            idsAt = take(count, isWide ? 4 : 2);
            poolAt = take(poolBytes, 1);
        }

        private void check(int most, int mask) throws IOException {
            int place = 0;
            for (int i = 0; i < count; i++) {
                require(i % BLOCK != 0 || get32(placesAt + 4 * (i / BLOCK)) == place, "a place");
                require(length(i) > 0 && length(i) <= most && length(i) <= poolBytes - place, "a token's length");
                require(isId(getId(idsAt, i, isWide) & mask), "an id");
                require(i == 0 || compare(poolAt + place - length(i - 1), length(i - 1), file, poolAt + place, length(i)) < 0,
                        "the order of tokens");
                place += length(i);
            }
            require(place == poolBytes, "the tokens' bytes");
        }

        private int compare(int start, int bytes, byte[] other, int otherStart, int otherBytes) {
            for (int i = 0; i < bytes && i < otherBytes; i++) {
                int difference = (file[start + i] & 0xFF) - (other[otherStart + i] & 0xFF);
                if (difference != 0) {
                    return difference;
                }
            }
            return bytes - otherBytes;
        }

        int length(int index) {
            return file[lengthsAt + index] & 0xFF;
        }

        int id(int index) {
            return getId(idsAt, index, isWide) & ~(isWide ? SPECIAL : 0);
        }

        boolean isSpecial(int index) {
            return isWide && (getId(idsAt, index, true) & SPECIAL) != 0;
        }

        /** Where a token's bytes begin in the file. */
        int place(int index) {
            int place = poolAt + get32(placesAt + 4 * (index / BLOCK));
            for (int i = index / BLOCK * BLOCK; i < index; i++) {
                place += length(i);
            }
            return place;
        }

        int find(byte[] text, int start, int bytes) {
            int low = 0;
            int high = (count + BLOCK - 1) / BLOCK;
            while (low < high) {
                int middle = (low + high) >>> 1;
                int head = poolAt + get32(placesAt + 4 * middle);
                if (compare(head, length(BLOCK * middle), text, start, bytes) <= 0) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if (low == 0) {
                return NONE;
            }
            int i = BLOCK * (low - 1);
            int end = Math.min(count, i + BLOCK);
            for (int place = poolAt + get32(placesAt + 4 * (low - 1)); i < end; place += length(i++)) {
                if (length(i) == bytes && compare(place, bytes, text, start, bytes) == 0) {
                    return i;
                }
            }
            return NONE;
        }

        /** The longest token that stands at {@code start}, or NONE. */
        int findPrefix(byte[] text, int start, int end) {
            for (int size = Math.min(end - start, MAX_TOKEN_BYTES); size > 0; size--) {
                int found = find(text, start, size);
                if (found != NONE) {
                    return found;
                }
            }
            return NONE;
        }
    }
}
