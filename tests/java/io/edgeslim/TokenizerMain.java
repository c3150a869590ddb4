// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Random;

/** Runs the tokenizer for the Python tests: many texts in one JVM. */
public final class TokenizerMain {
    private TokenizerMain() {}

    public static void main(String[] args) throws IOException {
        byte[] file;
        try (FileInputStream in = new FileInputStream(args[0])) {
            file = Disk.readAll(in, 1 << 24);
        }
        PrintStream out = new PrintStream(System.out, false, "UTF-8");
        DataInputStream in = new DataInputStream(new BufferedInputStream(System.in));
        switch (args[1]) {
            case "encode":
                encode(Tokenizer.open(file), Integer.parseInt(args[2]), args[3].contains("f"), args[3].contains("l"), in, out);
                break;
            case "decode":
                decode(Tokenizer.open(file), args[2].equals("1"), in, out);
                break;
            case "fuzz":
                out.println(fuzz(file, Integer.parseInt(args[2])));
                break;
            default:
                throw new IllegalArgumentException(args[1]);
        }
        out.flush();
    }

    /** Texts in UTF-16, each behind its number of units: a line of ids each. */
    private static void encode(
            Tokenizer tokenizer, int most, boolean framed, boolean literal, DataInputStream in, PrintStream out)
            throws IOException {
        for (int count = next(in); count >= 0; count = next(in)) {
            char[] units = new char[count];
            for (int i = 0; i < count; i++) {
                units[i] = in.readChar();
            }
            StringBuilder line = new StringBuilder();
            for (long id : tokenizer.encode(new String(units), most, framed, literal)) {
                line.append(line.length() == 0 ? "" : " ").append(id);
            }
            out.println(line);
        }
    }

    /** Lists of ids, each behind its length: a text in hexadecimal UTF-8 each. */
    private static void decode(Tokenizer tokenizer, boolean skip, DataInputStream in, PrintStream out) throws IOException {
        for (int count = next(in); count >= 0; count = next(in)) {
            long[] ids = new long[count];
            for (int i = 0; i < count; i++) {
                ids[i] = in.readInt();
            }
            StringBuilder line = new StringBuilder();
            for (byte b : tokenizer.decode(ids, skip).getBytes(StandardCharsets.UTF_8)) {
                line.append(String.format("%02x", b));
            }
            out.println(line);
        }
    }

    private static int next(DataInputStream in) throws IOException {
        try {
            return in.readInt();
        } catch (EOFException e) {
            return -1;
        }
    }

    /** Damaged files: how many opened, and then took a text. Anything but an IOException ends the program. */
    private static int fuzz(byte[] file, int rounds) {
        Random random = new Random(7);
        int opened = 0;
        for (int round = 0; round < rounds; round++) {
            byte[] damaged = file.clone();
            for (int i = 0; i < 1 + round % 3; i++) {
                int at = round % 2 == 0 ? random.nextInt(file.length) : random.nextInt(128);
                damaged[at] = (byte) random.nextInt();
            }
            Tokenizer tokenizer;
            try {
                tokenizer = Tokenizer.open(damaged);
            } catch (IOException e) {
                continue;
            }
            opened++;
            tokenizer.encode("Hello, Wörld! 中文 한글 ொ it's 12 [SEP] <|im_end|> \uD83D\uDE00 \uD800", 64);
        }
        return opened;
    }
}
