// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

/**
 * One canonical, length-limited Huffman code as a look-up table (FORMAT.md, section 7).
 *
 * <p>{@code entries[next bits & mask]} is {@code symbol << 4 | length}, with as many index bits as the longest code
 * has. A code of one symbol takes no bits: one entry of length 0.
 */
final class EszTable {
    static final int MAX_BITS = 11;
    static final int MAX_PAIR_BITS = 6;

    final char[] entries;
    final int mask;

    /** JOINT: how many values there are but the fill value. */
    int values;

    private EszTable(char[] entries) {
        this.entries = entries;
        this.mask = entries.length - 1;
    }

    /** The tables of one alphabet, read together. */
    static final class Set {
        /** PLAIN and PAIR: bytes; GAP: gaps; MASK8: masks; JOINT: gaps with values. */
        final EszTable first;
        /** GAP and MASK8: values; else null. */
        final EszTable values;

        private Set(EszTable first, EszTable values) {
            this.first = first;
            this.values = values;
        }
    }

    /** Reads tables out of one buffer: a directory, or a block. */
    static final class Reader {
        private final byte[] bytes;
        private final int end;
        private final EszIndex.Segment segment;
        /** Symbols of PLAIN's table and of value tables. */
        private int symbols;
        int at;

        Reader(byte[] bytes, int at, int end, EszIndex.Segment segment) {
            this.symbols = segment.nibble ? 16 : 256;
            this.bytes = bytes;
            this.at = at;
            this.end = end;
            this.segment = segment;
        }

        int u8() throws EszException {
            if (at >= end) {
                throw segment.error("ends within its tables");
            }
            return bytes[at++] & 255;
        }

        int u24() throws EszException {
            return u8() | u8() << 8 | u8() << 16;
        }

        /** Reads the segment's codebook: its values, the first at byte 0. Tables read from here on are as long. */
        byte[] book() throws EszException {
            int count = u8() + 1;
            byte[] book = new byte[count << segment.bookLog2];
            for (int i = 0; i < book.length; i++) {
                book[i] = (byte) u8();
            }
            if (segment.fill >= count) {
                throw segment.error("the fill value isn't in the codebook");
            }
            symbols = count;
            return book;
        }

        void useSymbols(int count) {
            symbols = count;
        }

        Set set() throws EszException {
            switch (segment.alphabet) {
                case EszIndex.PLAIN:
                case EszIndex.PLANES:
                    return new Set(build(lengths(symbols, 1, MAX_BITS)), null);
                case EszIndex.PAIR:
                    return new Set(pairs(build(lengths(16, 1, MAX_PAIR_BITS))), null);
                case EszIndex.GAP:
                    return new Set(build(lengths(1 << segment.capLog2, 1, MAX_BITS)), values());
                case EszIndex.JOINT:
                    return new Set(joint(), null);
                default:
                    return new Set(build(lengths(256, 1, MAX_BITS)), values());
            }
        }

        private EszTable joint() throws EszException {
            int top = u8();
            int count = (top << segment.capLog2) + EszIndex.JOINT_RUNS;
            if (top == 0 || top < segment.fill || top >= symbols || count > 256) {
                throw segment.error("the largest value is wrong");
            }
            EszTable table = build(lengths(count, top, MAX_BITS));
            table.values = top;
            return table;
        }

        private EszTable values() throws EszException {
            byte[] lengths = lengths(symbols, 1, MAX_BITS);
            if (lengths[segment.fill] != 0) {
                throw segment.error("the fill value has a code");
            }
            return build(lengths);
        }

        /** Code length of each of {@code symbols} symbols, 0 for an unused one; {@code row} of them are a row. */
        private byte[] lengths(int symbols, int row, int limit) throws EszException {
            byte[] lengths = new byte[symbols];
            int form = u8();
            int[] listed;
            if (form == 0) {
                listed = range(0, symbols - 1);
            } else if (form == 1 || form == 3) {
                int first = u8();
                int last = u8();
                if (first > last || last >= symbols) {
                    throw segment.error("a table's symbol range is wrong");
                }
                listed = range(first, last);
            } else if (form == 2) {
                listed = new int[u8() + 1];
                for (int i = 0; i < listed.length; i++) {
                    listed[i] = u8();
                    if (listed[i] >= symbols || i > 0 && listed[i] <= listed[i - 1]) {
                        throw segment.error("a table's symbols don't rise");
                    }
                }
            } else {
                throw segment.error("table form " + form + " is unknown");
            }
            if (form == 3) {
                differences(lengths, listed[0], listed.length, row, limit);
                return lengths;
            }
            for (int i = 0; i < listed.length; i += 2) {
                int two = u8();
                lengths[listed[i]] = (byte) (two & 15);
                if (i + 1 < listed.length) {
                    lengths[listed[i + 1]] = (byte) (two >> 4);
                } else if (two >> 4 != 0) {
                    throw segment.error("a table's last nibble isn't 0");
                }
            }
            for (byte length : lengths) {
                if (length > limit) {
                    throw segment.error("a code is longer than " + limit + " bits");
                }
            }
            return lengths;
        }

        /** Form 3: each length by its difference from the one a row before. */
        private void differences(byte[] lengths, int first, int count, int row, int limit) throws EszException {
            int held = 0;
            int bits = 0;
            int length = 0;
            for (int i = 0; i < count; i++) {
                if (i >= row) {
                    length = lengths[first + i - row];
                }
                int ones = 0;
                int explicit = 0;
                for (int k = 0; k < 7 && (k == ones || ones == 3); k++) {
                    if (bits == 0) {
                        held = u8();
                        bits = 8;
                    }
                    int bit = held & 1;
                    held >>= 1;
                    bits--;
                    if (k < 3) {
                        ones += bit;
                    } else {
                        explicit |= bit << k - 3;
                    }
                }
                length = ones == 3 ? explicit : length + (ones == 1 ? 1 : ones == 2 ? -1 : 0);
                if (length < 0 || length > limit) {
                    throw segment.error("a code isn't of 0 to " + limit + " bits");
                }
                lengths[first + i] = (byte) length;
            }
            if (held != 0) {
                throw segment.error("a table's last bits aren't 0");
            }
        }

        private static int[] range(int first, int last) {
            int[] symbols = new int[last - first + 1];
            for (int i = 0; i < symbols.length; i++) {
                symbols[i] = first + i;
            }
            return symbols;
        }

        private EszTable build(byte[] lengths) throws EszException {
            int[] count = new int[MAX_BITS + 1];
            int used = 0;
            int longest = 0;
            int lastUsed = 0;
            for (int symbol = 0; symbol < lengths.length; symbol++) {
                if (lengths[symbol] != 0) {
                    count[lengths[symbol]]++;
                    used++;
                    longest = Math.max(longest, lengths[symbol]);
                    lastUsed = symbol;
                }
            }
            if (used == 0) {
                throw segment.error("a table without symbols");
            }
            if (used == 1) {
                if (lengths[lastUsed] != 1) {
                    throw segment.error("a table's only code isn't 1 bit long");
                }
                return new EszTable(new char[] {(char) (lastUsed << 4)});
            }
            int space = 0;
            for (int length = 1; length <= longest; length++) {
                space += count[length] << longest - length;
            }
            if (space != 1 << longest) {
                throw segment.error("a code is over-subscribed or incomplete");
            }
            int[] next = new int[longest + 1];
            for (int length = 1, code = 0; length <= longest; length++) {
                code = code + count[length - 1] << 1;
                next[length] = code;
            }
            char[] entries = new char[1 << longest];
            for (int symbol = 0; symbol < lengths.length; symbol++) {
                int length = lengths[symbol];
                if (length != 0) {
                    int reversed = Integer.reverse(next[length]++) >>> 32 - length;
                    for (int i = reversed; i < entries.length; i += 1 << length) {
                        entries[i] = (char) (symbol << 4 | length);
                    }
                }
            }
            return new EszTable(entries);
        }

        /** From a code of nibbles the one of bytes: the low nibble's code, then the high one's. */
        private static EszTable pairs(EszTable nibbles) {
            int bits = Integer.numberOfTrailingZeros(nibbles.entries.length);
            char[] entries = new char[1 << 2 * bits];
            for (int i = 0; i < entries.length; i++) {
                int low = nibbles.entries[i & nibbles.mask];
                int high = nibbles.entries[i >> (low & 15) & nibbles.mask];
                entries[i] = (char) ((high >> 4 << 4 | low >> 4) << 4 | (low & 15) + (high & 15));
            }
            return new EszTable(entries);
        }
    }
}
