// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.util.PriorityQueue;

/** Byte-level BPE: GPT-2's splitting, then merges by rank; esz_token_bpe.h in Java. */
final class BytePairs {
    private static final int OTHER_CLASS = 0;
    private static final int LETTER_CLASS = 1;
    private static final int NUMBER_CLASS = 2;
    private static final int SPACE_CLASS = 3;
    private static final int NOBODY = -1;

    private final TokenTables tables;
    private final IdSink sink;
    private final int[] byteIds;

    BytePairs(TokenTables tables, IdSink sink, int[] byteIds) {
        this.tables = tables;
        this.sink = sink;
        this.byteIds = byteIds;
    }

    /** The token of each byte, or NONE. */
    static int[] byteIds(TokenTables tables) {
        int[] ids = new int[256];
        for (int i = 0; i < 256; i++) {
            int found = tables.words.find(new byte[] {(byte) i}, 0, 1);
            ids[i] = found == TokenTables.NONE ? TokenTables.NONE : tables.words.id(found);
        }
        return ids;
    }

    void encode(byte[] given, int from, int to) {
        byte[] utf8 = given;
        int at = from;
        int end = to;
        if ((tables.flags & TokenTables.PREFIX_SPACE) != 0 && at < end && utf8[at] != ' ') {
            utf8 = new byte[end - at + 1];
            utf8[0] = ' ';
            System.arraycopy(given, at, utf8, 1, end - at);
            end = utf8.length;
            at = 0;
        }
        boolean singleDigits = (tables.flags & TokenTables.SINGLE_DIGITS) != 0;
        while (at < end && !sink.isCut()) {
            int stop = singleDigits ? at : end;
            while (stop < end && !isNumeric(Utf8.codeAt(utf8, stop))) {
                stop += Utf8.length(Utf8.codeAt(utf8, stop));
            }
            if (stop == at) { // a digit is a piece, and ends the one before it
                stop += Utf8.length(Utf8.codeAt(utf8, at));
            }
            while (at < stop && !sink.isCut()) {
                int next = splitEnd(utf8, at, stop);
                encodePiece(utf8, at, next);
                at = next;
            }
        }
    }

    private boolean isNumeric(int code) {
        return (tables.flagsOf(code) & TokenTables.NUMERIC) != 0;
    }

    private int classOf(int code) {
        int flags = tables.flagsOf(code);
        if ((flags & TokenTables.LETTER) != 0) {
            return LETTER_CLASS;
        }
        if ((flags & TokenTables.NUMBER) != 0) {
            return NUMBER_CLASS;
        }
        return (flags & TokenTables.REGEX_SPACE) != 0 ? SPACE_CLASS : OTHER_CLASS;
    }

    /** Where GPT-2's pattern ends its match: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
    private int splitEnd(byte[] utf8, int at, int end) {
        int ending = ending(utf8, at, end);
        if (ending > 0) {
            return at + ending;
        }
        int place = utf8[at] == ' ' && at + 1 < end ? at + 1 : at;
        int code = Utf8.codeAt(utf8, place);
        int kind = classOf(code);
        if (kind != SPACE_CLASS) {
            do {
                place += Utf8.length(code);
                code = place < end ? Utf8.codeAt(utf8, place) : 0;
            } while (place < end && classOf(code) == kind);
            return place;
        }
        // White space: up to the last one, which goes with what follows, unless nothing does or it is alone.
        int last = at;
        place = at;
        while (place < end && classOf(Utf8.codeAt(utf8, place)) == SPACE_CLASS) {
            last = place;
            place += Utf8.length(Utf8.codeAt(utf8, place));
        }
        return place == end || last == at ? place : last;
    }

    private static int ending(byte[] utf8, int at, int end) {
        if (end - at < 2 || utf8[at] != '\'') {
            return 0;
        }
        byte first = utf8[at + 1];
        if (first == 's' || first == 't' || first == 'm' || first == 'd') {
            return 2;
        }
        byte second = end - at > 2 ? utf8[at + 2] : 0;
        boolean pair = first == 'r' && second == 'e' || first == 'v' && second == 'e' || first == 'l' && second == 'l';
        return pair ? 3 : 0;
    }

    private void encodePiece(byte[] utf8, int at, int end) {
        if ((tables.flags & TokenTables.WHOLE_WORDS) != 0 && end - at <= tables.longest) {
            int found = tables.words.find(utf8, at, end - at);
            if (found != TokenTables.NONE) {
                sink.add(tables.words.id(found));
                return;
            }
        }
        int[] ids = new int[end - at];
        int count = 0;
        boolean unknown = false;
        for (int i = at; i < end; i++) {
            int id = byteIds[utf8[i] & 0xFF];
            if (id != TokenTables.NONE) {
                ids[count++] = id;
            } else if (tables.unknown != TokenTables.NONE
                    && !(unknown && (tables.flags & TokenTables.FUSE_UNKNOWN) != 0)) {
                ids[count++] = tables.unknown;
            }
            unknown = id == TokenTables.NONE && (unknown || tables.unknown != TokenTables.NONE);
        }
        merge(ids, count);
    }

    /** Merges the two neighbours of lowest rank, the leftmost first, until none is in the table. */
    private void merge(int[] ids, int count) {
        int[] before = new int[count];
        int[] behind = new int[count];
        int[] ranks = new int[count];
        PriorityQueue<Long> queue = new PriorityQueue<>();
        for (int i = 0; i < count; i++) {
            before[i] = i - 1;
            behind[i] = i + 1 == count ? NOBODY : i + 1;
        }
        for (int i = 0; i < count; i++) {
            rank(ids, behind, ranks, queue, i);
        }
        while (!queue.isEmpty()) {
            long entry = queue.remove();
            int at = (int) entry;
            if (ranks[at] != (int) (entry >> 32)) {
                continue; // an earlier merge made it stale
            }
            int gone = behind[at];
            ids[at] = tables.mergedId(tables.findMerge(ids[at], ids[gone]));
            behind[at] = behind[gone];
            ranks[gone] = NOBODY;
            if (behind[at] != NOBODY) {
                before[behind[at]] = at;
            }
            rank(ids, behind, ranks, queue, at);
            if (before[at] != NOBODY) {
                rank(ids, behind, ranks, queue, before[at]);
            }
        }
        for (int i = count > 0 ? 0 : NOBODY; i != NOBODY && !sink.isCut(); i = behind[i]) {
            sink.add(ids[i]);
        }
    }

    private void rank(int[] ids, int[] behind, int[] ranks, PriorityQueue<Long> queue, int at) {
        ranks[at] = NOBODY;
        int merge = behind[at] == NOBODY ? TokenTables.NONE : tables.findMerge(ids[at], ids[behind[at]]);
        if (merge != TokenTables.NONE) {
            ranks[at] = tables.mergeRank(merge);
            queue.add((long) ranks[at] << 32 | at);
        }
    }
}
