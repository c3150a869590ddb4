// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Runs the generate loop over recorded logits, for test_chat.py. */
public final class ChatMain {
    private ChatMain() {}

    public static void main(String[] args) throws Exception {
        File folder = new File(args[1]);
        if (args[0].equals("sample")) {
            sample(new File(folder, "rows.bin"), Integer.parseInt(args[2]), sampling(args, 3));
        } else if (args[0].equals("spec")) {
            spec(folder);
        } else if (args[0].equals("utf8")) {
            utf8(folder);
        } else {
            chat(folder, sampling(args, 2), Integer.parseInt(args[5]), Arrays.copyOfRange(args, 6, args.length));
        }
    }

    /** What the loop knows of the cache, or why it wants none of it. */
    private static void spec(File folder) throws IOException {
        try {
            byte[] json = Files.readAllBytes(new File(folder, "manifest.json").toPath());
            ChatSpec spec = new ChatSpec(Manifest.parse(json));
            System.out.println(spec.contextTokens + " " + spec.isInt8);
            for (Map.Entry<String, long[]> part : spec.emptyShapes.entrySet()) {
                System.out.println(part.getKey() + " " + Arrays.toString(part.getValue()));
            }
        } catch (IOException e) {
            System.out.println(e.getMessage());
        }
    }

    private static Sampling sampling(String[] args, int at) {
        double temperature = Double.parseDouble(args[at]);
        long seed = Long.parseUnsignedLong(args[at + 2]);
        return temperature == 0
                ? Sampling.greedy()
                : Sampling.nucleus(temperature, Double.parseDouble(args[at + 1]), seed);
    }

    private static float[] floats(DataInputStream in, int count) throws IOException {
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = in.readFloat();
        }
        return values;
    }

    private static void sample(File rows, int vocabulary, Sampling sampling) throws IOException {
        Sampler sampler = new Sampler(sampling);
        try (DataInputStream in = new DataInputStream(new FileInputStream(rows))) {
            while (in.available() > 0) {
                try {
                    System.out.println(sampler.choose(floats(in, vocabulary)));
                } catch (IOException e) {
                    System.out.println(-1);
                }
            }
        }
    }

    private static void utf8(File folder) throws IOException {
        TextStream stream = new TextStream();
        StringBuilder text = new StringBuilder();
        for (byte one : Files.readAllBytes(new File(folder, "raw").toPath())) {
            text.append(stream.push(new byte[] {one}));
        }
        text.append(stream.finish());
        Files.write(new File(folder, "out").toPath(), text.toString().getBytes(StandardCharsets.UTF_8));
    }

    /** Logits by all tokens up to there: what comes in must be one of the recordings. */
    private static final class Replay implements TokenDecoder {
        private final Map<List<Long>, float[]> recorded = new HashMap<>();
        private final List<Long> tokens = new ArrayList<>();
        boolean isClosed;

        Replay(File recording) throws IOException {
            try (DataInputStream in = new DataInputStream(new FileInputStream(recording))) {
                for (int left = in.readInt(); left > 0; left--) {
                    List<Long> ids = new ArrayList<>();
                    for (int more = in.readInt(); more > 0; more--) {
                        ids.add((long) in.readInt());
                    }
                    recorded.put(ids, floats(in, in.readInt()));
                }
            }
        }

        @Override
        public float[] feed(long[] more) throws IOException {
            for (long token : more) {
                tokens.add(token);
            }
            float[] logits = recorded.get(tokens);
            if (logits == null) {
                throw new IOException("not recorded: " + tokens);
            }
            return logits;
        }

        @Override
        public int length() {
            return tokens.size();
        }

        @Override
        public void restart() {
            tokens.clear();
        }

        @Override
        public void close() {
            isClosed = true;
        }
    }

    private static void chat(File folder, Sampling sampling, int most, String[] turns) throws IOException {
        Manifest manifest = Manifest.parse(Files.readAllBytes(new File(folder, "manifest.json").toPath()));
        Tokenizer tokenizer = Tokenizer.open(Files.readAllBytes(new File(folder, "tokenizer/tokenizer.etk").toPath()));
        Replay replay = new Replay(new File(folder, "recording.bin"));
        try (DataOutputStream out = new DataOutputStream(new FileOutputStream(new File(folder, "out.bin")));
                Chat chat = new Chat(manifest, tokenizer, replay)) {
            for (String turn : turns) {
                if (turn.equals("restart")) {
                    chat.restart();
                    continue;
                }
                if (turn.equals("stop")) {
                    chat.answer("A fox?", sampling, most, piece -> chat.stop());
                    System.out.println(chat.length());
                    continue;
                }
                String text = new String(Files.readAllBytes(new File(folder, turn).toPath()), StandardCharsets.UTF_8);
                StringBuilder pieces = new StringBuilder();
                try {
                    String answer = chat.answer(text, sampling, most, pieces::append);
                    if (!answer.equals(pieces.toString())) {
                        throw new AssertionError("pieces differ from the answer");
                    }
                    byte[] bytes = answer.getBytes(StandardCharsets.UTF_8);
                    out.writeInt(bytes.length);
                    out.write(bytes);
                } catch (IllegalArgumentException e) {
                    System.out.println(e.getMessage());
                }
                System.out.println(chat.length());
            }
        }
        System.out.println(replay.isClosed);
    }
}
