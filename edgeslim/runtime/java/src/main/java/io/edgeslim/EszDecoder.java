// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Decodes an ESZ container (version 1) front to back in one pass.
 *
 * <p>It is written in the order of the format's specification, FORMAT.md, and rejects what that rejects. Memory: the
 * index, one segment's directory and tables, and one block coded and decoded (at most 2 MiB together), however large
 * the image is. What comes before damage has been written to the output already, and its whole is checked last: a
 * caller keeps the output aside until {@link #decode} returns.
 */
public final class EszDecoder {
    private static final int BLOCK_ENTRY_BYTES = 8;
    private static final int MAX_SETS = 64;
    /** A set of two tables, each with 256 symbols listed (form 2). */
    private static final int MAX_SET_BYTES = 2 * (2 + 256 + 128);
    private static final int MAX_BOOK_BYTES = 1 + 256 * 8;

    private final EszSource source;
    private final OutputStream out;
    private final Hash32 image = new Hash32();
    private byte[] coded = new byte[0];
    private byte[] decoded = new byte[0];

    private EszDecoder(InputStream in, OutputStream out) {
        this.source = new EszSource(in);
        this.out = out;
    }

    /**
     * Decodes a whole container, up to the end of {@code in}. Closes neither stream.
     *
     * @return the image's size in bytes
     * @throws EszException where the container is damaged or of an unknown kind
     * @throws IOException where reading or writing fails
     */
    public static long decode(InputStream in, OutputStream out) throws IOException {
        EszDecoder decoder = new EszDecoder(in, out);
        EszIndex index = EszIndex.read(decoder.source);
        for (EszIndex.Segment segment : index.segments) {
            decoder.source.skipPadding(segment.codedOffset);
            if (segment.compact) {
                decoder.compactSegment(segment);
            } else {
                decoder.segment(segment);
            }
        }
        decoder.source.expectEnd();
        if (decoder.image.value() != index.imageHash) {
            throw new EszException("the decoded image's hash differs");
        }
        return index.decodedBytes;
    }

    private void compactSegment(EszIndex.Segment segment) throws IOException {
        int size = (int) segment.codedBytes;
        reserve(size, segment.decodedBytes);
        source.read(coded, 0, size);
        if (Hash32.of(coded, 0, size) != segment.hash) {
            throw segment.error("is damaged (hash differs)");
        }
        if (segment.alphabet == EszIndex.RAW) {
            emit(coded, size);
            return;
        }
        EszTable.Reader reader = new EszTable.Reader(coded, 0, size, segment);
        byte[] book = segment.hasBook() ? reader.book() : null;
        EszBlock block = new EszBlock(segment, coded, decoded, book);
        block.decode(reader.at, size, 0, segment.decodedBytes, new EszTable.Set[0]);
        emit(decoded, segment.decodedBytes);
    }

    private void segment(EszIndex.Segment segment) throws IOException {
        boolean raw = segment.alphabet == EszIndex.RAW;
        int blocks = segment.blockCount();
        long least = (long) blocks * BLOCK_ENTRY_BYTES + (raw ? 0 : 1);
        long most = least + (raw ? 0 : MAX_SETS * MAX_SET_BYTES + MAX_BOOK_BYTES);
        if (segment.directoryBytes < least || segment.directoryBytes > most) {
            throw segment.error("directory has the wrong size");
        }
        byte[] directory = source.readClaimed((int) segment.directoryBytes);
        if (Hash32.of(directory, 0, directory.length) != segment.hash) {
            throw segment.error("directory is damaged (hash differs)");
        }
        long dataStart = segment.codedOffset + directory.length;
        if (raw) {
            dataStart = dataStart + 63 & -64L;
        }
        ByteBuffer entries = ByteBuffer.wrap(directory).order(ByteOrder.LITTLE_ENDIAN);
        checkEnds(segment, entries, blocks, segment.codedEnd() - dataStart);
        EszTable.Reader tables =
                new EszTable.Reader(directory, blocks * BLOCK_ENTRY_BYTES, directory.length, segment);
        byte[] book = segment.hasBook() ? tables.book() : null;
        EszTable.Set[] sets = raw ? new EszTable.Set[0] : sets(segment, tables);
        if (tables.at != directory.length) {
            throw segment.error("directory is longer than its tables");
        }
        source.skipPadding(dataStart);

        int blockBytes = 1 << segment.blockLog2;
        reserve(Math.min(blockBytes, segment.decodedBytes) + 2, Math.min(blockBytes, segment.decodedBytes));
        EszBlock block = new EszBlock(segment, coded, decoded, book);
        int start = 0;
        for (int i = 0; i < blocks; i++) {
            int end = entries.getInt(i * BLOCK_ENTRY_BYTES);
            int size = end - start;
            int decodedBytes = decodedBytes(segment, i);
            source.read(coded, 0, size);
            if (Hash32.of(coded, 0, size) != entries.getInt(i * BLOCK_ENTRY_BYTES + 4)) {
                throw segment.error("block " + i + " is damaged (hash differs)");
            }
            if (raw) {
                emit(coded, size);
            } else {
                block.decode(0, size, i, decodedBytes, sets);
                emit(decoded, decodedBytes);
            }
            start = end;
        }
    }

    private static int decodedBytes(EszIndex.Segment segment, int block) {
        return (int) Math.min(1L << segment.blockLog2, segment.decodedBytes - ((long) block << segment.blockLog2));
    }

    /** Every block's size against its limit, before any of them is read. */
    private static void checkEnds(EszIndex.Segment segment, ByteBuffer entries, int blocks, long dataBytes)
            throws EszException {
        boolean raw = segment.alphabet == EszIndex.RAW;
        long start = 0;
        for (int i = 0; i < blocks; i++) {
            long end = entries.getInt(i * BLOCK_ENTRY_BYTES) & 0xFFFFFFFFL;
            int decodedBytes = decodedBytes(segment, i);
            if (end < start || end - start > decodedBytes + 2 || raw && end - start != decodedBytes) {
                throw segment.error("block " + i + " has the wrong size");
            }
            start = end;
        }
        if (start != dataBytes) {
            throw segment.error("blocks don't end with the payload");
        }
    }

    private static EszTable.Set[] sets(EszIndex.Segment segment, EszTable.Reader reader) throws EszException {
        int count = reader.u8();
        if (count > MAX_SETS) {
            throw segment.error("too many table sets");
        }
        EszTable.Set[] sets = new EszTable.Set[count];
        for (int i = 0; i < count; i++) {
            sets[i] = reader.set();
        }
        return sets;
    }

    private void reserve(int codedBytes, int decodedBytes) {
        if (coded.length < codedBytes + EszBlock.SLACK) {
            coded = new byte[codedBytes + EszBlock.SLACK];
        }
        if (decoded.length < decodedBytes) {
            decoded = new byte[decodedBytes];
        }
    }

    private void emit(byte[] bytes, int length) throws IOException {
        image.update(bytes, 0, length);
        out.write(bytes, 0, length);
    }
}
