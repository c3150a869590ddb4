// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/**
 * Decodes one block (FORMAT.md, sections 5 and 6) from a coded buffer into a decoded one.
 *
 * <p>Streams are read by bit position: eight bytes from there, shifted, hold at least 57 bits, which is five codes.
 * The loops take one such load from each stream in turn, so the look-ups of different streams overlap in the CPU.
 * A damaged stream may run on into foreign bytes, but never past the buffer: each load is bounded by the stream's own
 * end, and the sentinel's check at the end finds it. Hence the {@link #SLACK} bytes behind the coded ones.
 */
final class EszBlock {
    /** Bytes that the coded buffer must have behind the block. */
    static final int SLACK = 32;

    private static final int STORED = 0;
    private static final int OWN_TABLES = 255;
    private static final int MAX_STREAMS = 8;
    /** Codes of at most 12 bits between two loads in {@link #bytes}. */
    private static final int GROUP = 4;

    private final EszIndex.Segment segment;
    private final ByteBuffer in;
    private final byte[] coded;
    private final byte[] decoded;
    /** The codebook's values, or null. */
    private final byte[] book;
    /** Where items go: the decoded buffer, or, with a codebook, indices that are replaced by values afterwards. */
    private final byte[] out;
    private int streams;
    /** Per stream: the next bit, and the bit behind the stream's last byte. */
    private final int[] bit = new int[MAX_STREAMS];
    private final int[] endBit = new int[MAX_STREAMS];
    /** Per stream: the next item and the one behind the last, counted within the block. */
    private final int[] item = new int[MAX_STREAMS];
    private final int[] endItem = new int[MAX_STREAMS];

    /** Both buffers are the caller's; {@code book} is null for a segment without a codebook. */
    EszBlock(EszIndex.Segment segment, byte[] coded, byte[] decoded, byte[] book) {
        this.segment = segment;
        this.coded = coded;
        this.in = ByteBuffer.wrap(coded).order(ByteOrder.LITTLE_ENDIAN);
        this.decoded = decoded;
        this.book = book;
        this.out = book == null ? decoded : new byte[decoded.length >> segment.bookLog2];
    }

    /** Decodes the coded buffer's bytes from {@code start} to {@code end} to exactly {@code decodedBytes}. */
    void decode(int start, int end, int decodedBytes, EszTable.Set[] sets) throws EszException {
        EszTable.Reader reader = new EszTable.Reader(coded, start, end, segment);
        if (book != null) {
            reader.useSymbols(book.length >> segment.bookLog2);
        }
        int mode = reader.u8();
        int table = reader.u8();
        if (mode == STORED) {
            if (table != 0 || end - reader.at != decodedBytes) {
                throw segment.error("a stored block has the wrong size");
            }
            System.arraycopy(coded, reader.at, decoded, 0, decodedBytes);
            return;
        }
        boolean sparse = segment.alphabet == EszIndex.GAP || segment.alphabet == EszIndex.MASK8;
        if (mode != 1 && mode != 4 && (mode != 8 || sparse)) {
            throw segment.error("block mode " + mode + " is unknown");
        }
        EszTable.Set set;
        if (table == OWN_TABLES) {
            set = reader.set();
        } else if (table < sets.length) {
            set = sets[table];
        } else {
            throw segment.error("a block uses a table that isn't there");
        }
        streams = mode;
        layStreams(reader, end);
        int items = decodedBytes >> segment.bookLog2;
        if (sparse) {
            layChunks(segment.nibble ? 2 * items : items);
            Arrays.fill(out, 0, items, (byte) (segment.nibble ? segment.fill * 17 : segment.fill));
            if (segment.alphabet == EszIndex.GAP) {
                gaps(set);
            } else {
                masks(set);
            }
        } else {
            if (streams == 8) {
                for (int s = 0; s < 8; s++) {
                    item[s] = s;
                    endItem[s] = items;
                }
                bytes(set.first, 8);
            } else {
                layChunks(items);
                bytes(set.first, 1);
            }
        }
        checkSentinels();
        if (book != null) {
            lookUp(items);
        }
    }

    /** Replaces each of {@code items} indices by its value of the codebook. */
    private void lookUp(int items) {
        ByteBuffer values = ByteBuffer.wrap(book);
        ByteBuffer target = ByteBuffer.wrap(decoded);
        for (int i = 0; i < items; i++) {
            int index = out[i] & 255;
            switch (segment.bookLog2) {
                case 1:
                    target.putShort(2 * i, values.getShort(2 * index));
                    break;
                case 2:
                    target.putInt(4 * i, values.getInt(4 * index));
                    break;
                default:
                    target.putLong(8 * i, values.getLong(8 * index));
            }
        }
    }

    private void layStreams(EszTable.Reader reader, int end) throws EszException {
        int[] size = new int[streams];
        for (int s = 0; s < streams - 1; s++) {
            size[s] = reader.u24();
        }
        int at = reader.at;
        for (int s = 0; s < streams; s++) {
            if (s == streams - 1) {
                size[s] = end - at;
            }
            if (size[s] < 1 || size[s] > end - at) {
                throw segment.error("a stream's size is wrong");
            }
            bit[s] = at * 8;
            at += size[s];
            endBit[s] = at * 8;
        }
    }

    private void layChunks(int items) {
        int chunk = (items + streams - 1) / streams + 7 & -8;
        for (int s = 0; s < streams; s++) {
            item[s] = Math.min(s * chunk, items);
            endItem[s] = Math.min(item[s] + chunk, items);
        }
    }

    /** PLAIN and PAIR: one code a byte; a stream's items are {@code stride} apart. */
    private void bytes(EszTable table, int stride) throws EszException {
        char[] entries = table.entries;
        int mask = table.mask;
        int rounds = Integer.MAX_VALUE;
        for (int s = 0; s < streams; s++) {
            rounds = Math.min(rounds, (endItem[s] - item[s] + stride - 1) / stride / GROUP);
        }
        for (int round = 0; round < rounds; round++) {
            for (int s = 0; s < streams; s++) {
                int at = bit[s];
                checkInside(at, s);
                long bits = in.getLong(at >>> 3) >>> (at & 7);
                int o = item[s];
                int e0 = entries[(int) bits & mask];
                out[o] = (byte) (e0 >> 4);
                bits >>>= e0 & 15;
                int e1 = entries[(int) bits & mask];
                out[o + stride] = (byte) (e1 >> 4);
                bits >>>= e1 & 15;
                int e2 = entries[(int) bits & mask];
                out[o + 2 * stride] = (byte) (e2 >> 4);
                bits >>>= e2 & 15;
                int e3 = entries[(int) bits & mask];
                out[o + 3 * stride] = (byte) (e3 >> 4);
                bit[s] = at + (e0 & 15) + (e1 & 15) + (e2 & 15) + (e3 & 15);
                item[s] = o + GROUP * stride;
            }
        }
        for (int s = 0; s < streams; s++) {
            int at = bit[s];
            for (int o = item[s]; o < endItem[s]; o += stride) {
                checkInside(at, s);
                int e = entries[(int) (in.getLong(at >>> 3) >>> (at & 7)) & mask];
                out[o] = (byte) (e >> 4);
                at += e & 15;
            }
            bit[s] = at;
        }
    }

    private void gaps(EszTable.Set set) throws EszException {
        char[] gapEntries = set.first.entries;
        char[] valueEntries = set.values.entries;
        int gapMask = set.first.mask;
        int valueMask = set.values.mask;
        int cap = (1 << segment.capLog2) - 1;
        boolean more = true;
        while (more) {
            more = false;
            for (int s = 0; s < streams; s++) {
                int p = item[s];
                int end = endItem[s];
                if (p >= end) {
                    continue;
                }
                int at = bit[s];
                checkInside(at, s);
                long bits = in.getLong(at >>> 3) >>> (at & 7);
                // Two gaps and two values of at most 11 bits fit one load.
                for (int k = 0; k < 2 && p < end; k++) {
                    int gap = gapEntries[(int) bits & gapMask];
                    bits >>>= gap & 15;
                    at += gap & 15;
                    gap >>= 4;
                    p += gap;
                    if (p > end) {
                        throw segment.error("a gap leads out of its chunk");
                    }
                    if (gap != cap && p != end) {
                        int value = valueEntries[(int) bits & valueMask];
                        bits >>>= value & 15;
                        at += value & 15;
                        put(p, value >> 4);
                        p++;
                    }
                }
                bit[s] = at;
                item[s] = p;
                more |= p < end;
            }
        }
    }

    private void masks(EszTable.Set set) throws EszException {
        char[] maskEntries = set.first.entries;
        char[] valueEntries = set.values.entries;
        int maskMask = set.first.mask;
        int valueMask = set.values.mask;
        boolean more = true;
        while (more) {
            more = false;
            for (int s = 0; s < streams; s++) {
                int p = item[s];
                int end = endItem[s];
                if (p >= end) {
                    continue;
                }
                int at = bit[s];
                checkInside(at, s);
                long bits = in.getLong(at >>> 3) >>> (at & 7);
                int entry = maskEntries[(int) bits & maskMask];
                bits >>>= entry & 15;
                at += entry & 15;
                int mask = entry >> 4;
                if (end - p < 8 && mask >> end - p != 0) {
                    throw segment.error("a mask leads out of its chunk");
                }
                // A mask and four values of at most 11 bits fit one load; four more values need another.
                for (int k = 0; mask != 0; mask &= mask - 1, k++) {
                    if (k == 4) {
                        checkInside(at, s);
                        bits = in.getLong(at >>> 3) >>> (at & 7);
                    }
                    int value = valueEntries[(int) bits & valueMask];
                    bits >>>= value & 15;
                    at += value & 15;
                    put(p + Integer.numberOfTrailingZeros(mask), value >> 4);
                }
                bit[s] = at;
                item[s] = p + 8;
                more |= p + 8 < end;
            }
        }
    }

    /** Sets an element of a buffer that holds fill values so far; each element is set once at most. */
    private void put(int element, int value) {
        if (segment.nibble) {
            int shift = (element & 1) << 2;
            int keep = out[element >> 1] & 0xF0 >> shift;
            out[element >> 1] = (byte) (keep | value << shift);
        } else {
            out[element] = (byte) value;
        }
    }

    private void checkInside(int at, int stream) throws EszException {
        if (at > endBit[stream]) {
            throw segment.error("a stream ends too early");
        }
    }

    private void checkSentinels() throws EszException {
        for (int s = 0; s < streams; s++) {
            int left = endBit[s] - bit[s];
            if (left < 1 || left > 8 || (coded[bit[s] >>> 3] & 255) >>> (bit[s] & 7) != 1) {
                throw segment.error("a stream doesn't end at its sentinel");
            }
        }
    }
}
