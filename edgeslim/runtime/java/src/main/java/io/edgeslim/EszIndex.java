// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** Header and index of a container (FORMAT.md, sections 2 and 3), checked in the specification's order. */
final class EszIndex {
    static final int RAW = 0;
    static final int PLAIN = 1;
    static final int PAIR = 2;
    static final int GAP = 3;
    static final int MASK8 = 4;
    static final int PLANES = 5;
    static final int JOINT = 6;
    /** Symbols of JOINT that stand for runs of fill values. */
    static final int JOINT_RUNS = 8;

    /** Required features that this decoder knows. */
    private static final int CODEBOOK_FEATURE = 2;
    private static final int PLANES_FEATURE = 4;
    private static final int ROWS_FEATURE = 8;
    private static final int FEATURES = CODEBOOK_FEATURE | PLANES_FEATURE | ROWS_FEATURE;
    private static final int HEADER_BYTES = 64;
    private static final int ENTRY_BYTES = 44;
    private static final long MAGIC = 0x0A1A0A0D5A534589L;
    private static final int COMPACT = 1;
    private static final int NIBBLE = 2;
    private static final long U32 = 0xFFFFFFFFL;

    /** One index entry, without name, dtype and shape, which say nothing about decoding. */
    static final class Segment {
        long codedOffset;
        int decodedBytes;
        long codedBytes;
        long directoryBytes;
        int hash;
        int alphabet;
        int blockLog2;
        boolean compact;
        boolean nibble;
        int capLog2;
        int fill;
        /** 0, or the values of the codebook or of PLANES take 2^bookLog2 bytes each. */
        int bookLog2;
        /** Items of a row, if rows have classes; else 0. */
        int rowItems;
        /** Number for messages. */
        int number;

        boolean hasBook() {
            return bookLog2 != 0 && alphabet != PLANES;
        }

        int neededFeatures() {
            int planes = alphabet == PLANES ? PLANES_FEATURE : 0;
            return planes | (hasBook() ? CODEBOOK_FEATURE : 0) | (rowItems != 0 ? ROWS_FEATURE : 0);
        }

        long codedEnd() {
            return codedOffset + codedBytes;
        }

        int blockCount() {
            return (int) ((decodedBytes + (1L << blockLog2) - 1) >>> blockLog2);
        }

        EszException error(String message) {
            return new EszException("segment " + number + ": " + message);
        }
    }

    final long decodedBytes;
    final int imageHash;
    final Segment[] segments;

    private EszIndex(long decodedBytes, int imageHash, Segment[] segments) {
        this.decodedBytes = decodedBytes;
        this.imageHash = imageHash;
        this.segments = segments;
    }

    static EszIndex read(EszSource source) throws IOException {
        byte[] bytes = new byte[HEADER_BYTES];
        source.read(bytes, 0, HEADER_BYTES);
        ByteBuffer header = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        check(header.getLong(0) == MAGIC, "not an ESZ file");
        check(header.getShort(8) == 1, "version is " + (header.getShort(8) & 0xFFFF) + ", this decoder reads 1");
        check(header.getInt(60) == Hash32.of(bytes, 0, 60), "header is damaged (hash differs)");
        check(header.getShort(10) == HEADER_BYTES, "header_bytes isn't 64");
        int features = header.getInt(12);
        check((features & ~FEATURES) == 0,
                "needs features that this decoder lacks: 0x" + Integer.toHexString(features));
        long count = header.getInt(20) & U32;
        long indexBytes = header.getLong(24);
        long decodedBytes = header.getLong(32);
        long fileBytes = header.getLong(40);
        check(count <= 65536, "too many segments");
        check(inRange(indexBytes, 1L << 26), "index is too large");
        check(inRange(decodedBytes, 1L << 40), "image is too large");
        check(inRange(fileBytes, 1L << 41), "file is too large");
        check(header.getInt(52) == 0, "reserved header field isn't 0");
        check(indexBytes >= count * ENTRY_BYTES, "index is too small for its segments");
        check(fileBytes >= HEADER_BYTES + indexBytes, "file_bytes doesn't hold the index");

        byte[] index = source.readClaimed((int) indexBytes);
        check(header.getInt(56) == Hash32.of(index, 0, index.length), "index is damaged (hash differs)");
        Segment[] segments = new Segment[(int) count];
        ByteBuffer in = ByteBuffer.wrap(index).order(ByteOrder.LITTLE_ENDIAN);
        int at = 0;
        long decodedEnd = 0;
        long codedEnd = HEADER_BYTES + indexBytes;
        for (int i = 0; i < segments.length; i++) {
            check(index.length - at >= ENTRY_BYTES, "index ends within an entry");
            Segment segment = entry(in, at, i, decodedEnd, codedEnd);
            require((segment.neededFeatures() & ~features) == 0, segment, "a feature without its bit");
            int nameStart = at + ENTRY_BYTES + 4 * (in.get(at + 36) & 255);
            int end = nameStart + (in.getShort(at + 32) & 0xFFFF);
            check(end <= index.length, "index ends within an entry");
            for (int shape = at + ENTRY_BYTES; shape < nameStart; shape += 4) {
                check(in.getInt(shape) >= 0, "a shape entry is too large");
            }
            for (int name = nameStart; name < end; name++) {
                check((index[name] & 255) >= 0x20, "a control character in a name");
            }
            decodedEnd += segment.decodedBytes;
            codedEnd = segment.codedEnd();
            segments[i] = segment;
            at = end;
        }
        check(at == index.length, "index is longer than its entries");
        check(decodedEnd == decodedBytes, "segments don't add up to the image");
        check(codedEnd == fileBytes, "payloads don't end at file_bytes");
        return new EszIndex(decodedBytes, header.getInt(48), segments);
    }

    private static Segment entry(ByteBuffer in, int at, int number, long decodedEnd, long codedEnd)
            throws EszException {
        Segment segment = new Segment();
        segment.number = number;
        segment.codedOffset = in.getLong(at + 8);
        segment.decodedBytes = in.getInt(at + 16);
        segment.codedBytes = in.getInt(at + 20) & U32;
        segment.directoryBytes = in.getInt(at + 24) & U32;
        segment.hash = in.getInt(at + 28);
        segment.alphabet = in.get(at + 34) & 255;
        segment.blockLog2 = in.get(at + 37) & 255;
        int flags = in.get(at + 38) & 255;
        segment.compact = (flags & COMPACT) != 0;
        segment.nibble = (flags & NIBBLE) != 0;
        segment.capLog2 = in.get(at + 39) & 255;
        segment.fill = in.get(at + 40) & 255;
        segment.bookLog2 = in.get(at + 41) & 255;
        segment.rowItems = (in.getShort(at + 42) & 0xFFFF) * 8;
        boolean sparse = isSparse(segment.alphabet);

        require(in.getLong(at) == decodedEnd, segment, "decoded_offset leaves a gap");
        require(segment.decodedBytes >= 0, segment, "decoded_bytes is too large");
        require((in.getShort(at + 32) & 0xFFFF) <= 1024, segment, "name is too long");
        require(segment.alphabet <= JOINT, segment, "alphabet " + segment.alphabet + " is unknown");
        require((in.get(at + 36) & 255) <= 8, segment, "rank is too large");
        require((flags & ~(COMPACT | NIBBLE)) == 0, segment, "unknown flags");
        require(!segment.nibble || sparse, segment, "NIBBLE with this alphabet");
        int least = segment.alphabet == GAP ? 5 : segment.alphabet == JOINT ? 1 : 0;
        int most = segment.alphabet == GAP ? 8 : segment.alphabet == JOINT ? 4 : 0;
        require(segment.capLog2 >= least && segment.capLog2 <= most, segment, "cap_log2 is wrong");
        int mostFill = sparse ? segment.nibble ? 15 : 255 : segment.alphabet == PLANES ? 1 : 0;
        require(segment.fill <= mostFill, segment, "fill is wrong");
        require(segment.rowItems == 0 || !segment.compact && (sparse || segment.alphabet == PLAIN),
                segment, "rows with this alphabet, or COMPACT");
        require(segment.bookLog2 != 0 || segment.alphabet != PLANES, segment, "PLANES without a value size");
        if (segment.bookLog2 != 0) {
            require(segment.bookLog2 <= 3, segment, "book_log2 is wrong");
            boolean fits = sparse || segment.alphabet == PLAIN || segment.alphabet == PLANES;
            require(fits && !segment.nibble, segment, "codebook with this alphabet");
            require((segment.decodedBytes & (1 << segment.bookLog2) - 1) == 0, segment, "size isn't one of whole values");
        }
        if (segment.compact) {
            require(segment.codedOffset == codedEnd, segment, "coded_offset is wrong");
            require(segment.blockLog2 == 0 && segment.directoryBytes == 0, segment, "COMPACT with a directory");
            require(segment.decodedBytes <= 65536, segment, "too large for COMPACT");
            int mostCoded = segment.decodedBytes + (segment.alphabet == RAW ? 0 : 2);
            require(segment.codedBytes <= mostCoded, segment, "coded larger than stored");
            require(segment.alphabet != RAW || segment.codedBytes == segment.decodedBytes, segment, "RAW size differs");
            require(segment.decodedBytes > 0 || segment.alphabet == RAW, segment, "empty, but not RAW");
        } else {
            require(segment.codedOffset == (codedEnd + 63 & -64L), segment, "coded_offset is wrong");
            require(segment.blockLog2 >= 12 && segment.blockLog2 <= 20, segment, "block_log2 is wrong");
            require(segment.decodedBytes > 0, segment, "empty, but not COMPACT");
            require(segment.directoryBytes <= segment.codedBytes, segment, "directory is larger than the payload");
        }
        return segment;
    }

    /** Whether fill values are not coded one by one. */
    static boolean isSparse(int alphabet) {
        return alphabet == GAP || alphabet == MASK8 || alphabet == JOINT;
    }

    private static boolean inRange(long value, long most) {
        return value >= 0 && value <= most;
    }

    private static void check(boolean holds, String message) throws EszException {
        if (!holds) {
            throw new EszException(message);
        }
    }

    private static void require(boolean holds, Segment segment, String message) throws EszException {
        if (!holds) {
            throw segment.error(message);
        }
    }
}
