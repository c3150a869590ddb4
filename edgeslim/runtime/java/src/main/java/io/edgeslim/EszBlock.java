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
    private static final int CLASSES = 4;
    /** Codes of at most 12 bits between two loads in {@link #bytes}. */
    private static final int GROUP = 4;

    private final EszIndex.Segment segment;
    private final ByteBuffer in;
    private final byte[] coded;
    private final byte[] decoded;
    /** The codebook's values, or null. */
    private final byte[] book;
    /** Where items go: the decoded buffer, or indices into the codebook, or one plane of the values. */
    private final byte[] out;
    private int streams;
    /** Per stream: the next bit, and the bit behind the stream's last byte. */
    private final int[] bit = new int[MAX_STREAMS];
    private final int[] endBit = new int[MAX_STREAMS];
    /** Per stream: the next item and the one behind the last, counted within the block. */
    private final int[] item = new int[MAX_STREAMS];
    private final int[] endItem = new int[MAX_STREAMS];
    /** Per stream: the tables of the row that it is in, and where that row ends. */
    private final EszTable.Set[] set = new EszTable.Set[MAX_STREAMS];
    private final int[] endRow = new int[MAX_STREAMS];
    /** The sets that the block's rows choose from, or its only one; where the rows' classes stand. */
    private EszTable.Set[] classes;
    private int mapAt;
    /** The block's first item within the segment. */
    private long start;

    /** Both buffers are the caller's; {@code book} is null for a segment without a codebook. */
    EszBlock(EszIndex.Segment segment, byte[] coded, byte[] decoded, byte[] book) {
        this.segment = segment;
        this.coded = coded;
        this.in = ByteBuffer.wrap(coded).order(ByteOrder.LITTLE_ENDIAN);
        this.decoded = decoded;
        this.book = book;
        this.out = segment.bookLog2 == 0 ? decoded : new byte[decoded.length >> segment.bookLog2];
    }

    /** Decodes block {@code number}, the coded bytes {@code from} to {@code end}, to exactly {@code decodedBytes}. */
    void decode(int from, int end, int number, int decodedBytes, EszTable.Set[] sets) throws EszException {
        EszTable.Reader reader = new EszTable.Reader(coded, from, end, segment);
        int items = decodedBytes >> segment.bookLog2;
        int mode = reader.u8();
        int table = reader.u8();
        start = ((long) number << segment.blockLog2 >> segment.bookLog2) * (segment.nibble ? 2 : 1);
        if (mode == STORED) {
            copyStored(reader, table, end, decoded, decodedBytes);
        } else if (segment.alphabet == EszIndex.PLANES) {
            if (mode != 1 || table != 0) {
                throw segment.error("planes with the wrong mode or table");
            }
            planes(reader, end, items, sets);
        } else {
            items(reader, mode, table, end, items, sets);
            if (book != null) {
                lookUp(items);
            }
        }
    }

    private void copyStored(EszTable.Reader reader, int table, int end, byte[] target, int size) throws EszException {
        if (table != 0 || end - reader.at != size) {
            throw segment.error("a stored block has the wrong size");
        }
        System.arraycopy(coded, reader.at, target, 0, size);
    }

    /** One part for each byte of a value, least significant first. */
    private void planes(EszTable.Reader sizes, int end, int items, EszTable.Set[] sets) throws EszException {
        int width = 1 << segment.bookLog2;
        int at = sizes.at + 3 * (width - 1);
        for (int plane = 0; plane < width; plane++) {
            int size = plane < width - 1 ? sizes.u24() : end - at;
            if (size < 2 || size > items + 2 || size > end - at) {
                throw segment.error("a plane's size is wrong");
            }
            EszTable.Reader reader = new EszTable.Reader(coded, at, at + size, segment);
            int mode = reader.u8();
            int table = reader.u8();
            at += size;
            if (mode == STORED) {
                copyStored(reader, table, at, out, items);
            } else {
                items(reader, mode, table, at, items, sets);
            }
            for (int i = 0; i < items; i++) {
                decoded[i * width + plane] = out[i];
            }
        }
        if (segment.fill != 0) {
            rotateBack(items, width);
        }
    }

    /** The sign went to the end, so that the exponent fills a byte: each value goes down by one bit. */
    private void rotateBack(int items, int width) {
        for (int at = 0; at < items * width; at += width) {
            int sign = decoded[at] & 1;
            for (int i = at; i < at + width; i++) {
                int above = i + 1 < at + width ? decoded[i + 1] & 1 : sign;
                decoded[i] = (byte) ((decoded[i] & 255) >> 1 | above << 7);
            }
        }
    }

    /** What stands behind mode and table: a table set of its own, or its rows' classes; then the streams. */
    private void items(EszTable.Reader reader, int mode, int table, int end, int items, EszTable.Set[] sets)
            throws EszException {
        boolean sparse = EszIndex.isSparse(segment.alphabet);
        if (mode != 1 && mode != 4 && (mode != 8 || sparse)) {
            throw segment.error("block mode " + mode + " is unknown");
        }
        int elements = segment.nibble ? 2 * items : items;
        boolean rows = false;
        if (table == OWN_TABLES) {
            if (book != null) {
                reader.useSymbols(book.length >> segment.bookLog2);
            }
            classes = new EszTable.Set[] {reader.set()};
        } else {
            rows = segment.rowItems != 0;
            int count = rows ? CLASSES : 1;
            if (table + count > sets.length) {
                throw segment.error("a block uses a table that isn't there");
            }
            classes = Arrays.copyOfRange(sets, table, table + count);
        }
        if (rows) {
            mapAt = reader.at;
            long rowCount = (start + elements - 1) / segment.rowItems - start / segment.rowItems + 1;
            int last = 0;
            for (long row = 0; row < rowCount; row += 4) {
                last = reader.u8();
            }
            if (rowCount % 4 != 0 && last >> rowCount % 4 * 2 != 0) {
                throw segment.error("the rows' classes go on behind the last row");
            }
        }
        streams = mode;
        layStreams(reader, end);
        if (mode == 8) {
            for (int s = 0; s < 8; s++) {
                item[s] = s;
                endItem[s] = items;
            }
        } else {
            layChunks(elements);
        }
        for (int s = 0; s < streams; s++) {
            set[s] = classes[0];
            endRow[s] = rows ? 0 : Integer.MAX_VALUE;
        }
        if (sparse) {
            Arrays.fill(out, 0, items, (byte) (segment.nibble ? segment.fill * 17 : segment.fill));
            if (segment.alphabet == EszIndex.GAP) {
                gaps();
            } else if (segment.alphabet == EszIndex.JOINT) {
                joint();
            } else {
                masks();
            }
        } else if (mode == 8) {
            for (int at = 0; at < items; at = endRow[0]) {
                seekRow(0, at);
                bytes(set[0].first, 8, 0, 8, endRow[0]);
            }
        } else if (rows) {
            for (int s = 0; s < streams; s++) {
                while (item[s] < endItem[s]) {
                    seekRow(s, item[s]);
                    bytes(set[s].first, 1, s, s + 1, endRow[s]);
                }
            }
        } else {
            bytes(set[0].first, 1, 0, streams, Integer.MAX_VALUE);
        }
        checkSentinels();
    }

    /** Makes the tables of a stream those of item {@code at}, if another row has begun there. */
    private void seekRow(int stream, int at) {
        if (at < endRow[stream]) {
            return;
        }
        long row = (start + at) / segment.rowItems;
        int index = (int) (row - start / segment.rowItems);
        set[stream] = classes[coded[mapAt + (index >> 2)] >> (index & 3) * 2 & 3];
        endRow[stream] = (int) Math.min((row + 1) * segment.rowItems - start, Integer.MAX_VALUE);
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

    /**
     * PLAIN and PAIR: one code a byte; a stream's items are {@code stride} apart. Streams {@code first} to
     * {@code last - 1} go on up to item {@code limit}.
     */
    private void bytes(EszTable table, int stride, int first, int last, int limit) throws EszException {
        char[] entries = table.entries;
        int mask = table.mask;
        int rounds = Integer.MAX_VALUE;
        for (int s = first; s < last; s++) {
            int left = Math.min(endItem[s], limit) - item[s];
            rounds = Math.min(rounds, left <= 0 ? 0 : (left + stride - 1) / stride / GROUP);
        }
        for (int round = 0; round < rounds; round++) {
            for (int s = first; s < last; s++) {
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
        for (int s = first; s < last; s++) {
            int at = bit[s];
            int end = Math.min(endItem[s], limit);
            int o = item[s];
            for (; o < end; o += stride) {
                checkInside(at, s);
                int e = entries[(int) (in.getLong(at >>> 3) >>> (at & 7)) & mask];
                out[o] = (byte) (e >> 4);
                at += e & 15;
            }
            bit[s] = at;
            item[s] = o;
        }
    }

    private void gaps() throws EszException {
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
                    seekRow(s, p);
                    EszTable gaps = set[s].first;
                    EszTable values = set[s].values;
                    int gap = gaps.entries[(int) bits & gaps.mask];
                    bits >>>= gap & 15;
                    at += gap & 15;
                    gap >>= 4;
                    p += gap;
                    if (p > end) {
                        throw segment.error("a gap leads out of its chunk");
                    }
                    if (gap != cap && p != end) {
                        int value = values.entries[(int) bits & values.mask];
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

    private void joint() throws EszException {
        int log2 = segment.capLog2;
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
                // Five codes of at most 11 bits fit one load.
                for (int k = 0; k < 5 && p < end; k++) {
                    seekRow(s, p);
                    EszTable table = set[s].first;
                    int entry = table.entries[(int) bits & table.mask];
                    bits >>>= entry & 15;
                    at += entry & 15;
                    int symbol = entry >> 4;
                    int run = symbol - (table.values << log2);
                    if (run >= 0) {
                        p += run + 1 << log2;
                        continue;
                    }
                    int gap = symbol / table.values;
                    int value = symbol - gap * table.values;
                    p += gap;
                    if (p >= end) {
                        throw segment.error("a value leads out of its chunk");
                    }
                    put(p, value >= segment.fill ? value + 1 : value);
                    p++;
                }
                bit[s] = at;
                item[s] = p;
                more |= p < end;
            }
        }
    }

    private void masks() throws EszException {
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
                seekRow(s, p);
                EszTable masks = set[s].first;
                EszTable values = set[s].values;
                int entry = masks.entries[(int) bits & masks.mask];
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
                    int value = values.entries[(int) bits & values.mask];
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
