// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;

/** Runs the loader over a session that replays recorded outputs, for test_runner.py. */
public final class RunnerMain {
    private RunnerMain() {}

    public static void main(String[] args) throws Exception {
        File folder = new File(args[1]);
        try (DataOutputStream out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(new File(folder, "out.bin"))))) {
            switch (args[0]) {
                case "embed":
                    texts(folder, out, true);
                    break;
                case "classify":
                    texts(folder, out, false);
                    break;
                case "pictures":
                    pictures(folder, out);
                    break;
                case "profile":
                    ProviderShare share = ProviderShare.read(new File(folder, "profile.json"));
                    System.out.println(share.nodes + " " + share.micros + " " + share.cpuShare());
                    break;
                case "lifecycle":
                    lifecycle(folder);
                    break;
                default:
                    throw new IllegalArgumentException(args[0]);
            }
        }
    }

    /** The recorded outputs by input ids: what comes in must be one of them, whole. */
    private static final class Replay implements ModelSession {
        static final AtomicInteger OPEN = new AtomicInteger();
        final Map<String, Tensor> outputs = new HashMap<>();
        private boolean isClosed;

        Replay(File recording) throws IOException {
            OPEN.incrementAndGet();
            try (DataInputStream in = new DataInputStream(new BufferedInputStream(new FileInputStream(recording)))) {
                for (int left = in.readInt(); left > 0; left--) {
                    long[] ids = new long[in.readInt()];
                    for (int i = 0; i < ids.length; i++) {
                        ids[i] = in.readInt();
                    }
                    int real = in.readInt();
                    long[] shape = new long[in.readInt()];
                    int count = 1;
                    for (int i = 0; i < shape.length; i++) {
                        shape[i] = in.readInt();
                        count *= (int) shape[i];
                    }
                    float[] values = new float[count];
                    for (int i = 0; i < count; i++) {
                        values[i] = in.readFloat();
                    }
                    outputs.put(real + Arrays.toString(ids), Tensor.of(values, shape));
                }
            }
        }

        @Override
        public Tensor run(Map<String, Tensor> inputs, String output) throws IOException {
            if (isClosed) {
                throw new IOException("run on a closed session");
            }
            long[] ids = inputs.get("input_ids").longs;
            int real = 0;
            for (long one : inputs.get("attention_mask").longs) {
                real += (int) one;
            }
            for (long type : inputs.get("token_type_ids").longs) {
                if (type != 0) {
                    throw new IOException("a token type " + type);
                }
            }
            Tensor recorded = outputs.get(real + Arrays.toString(ids));
            if (recorded == null || !"last_hidden_state".equals(output) && output != null) {
                throw new IOException("not recorded: " + Arrays.toString(ids) + " for " + output);
            }
            return recorded;
        }

        @Override
        public void close() {
            isClosed = true;
            OPEN.decrementAndGet();
        }
    }

    private static ModelRunner open(File folder) throws IOException {
        AssetSource assets = file -> new FileInputStream(new File(folder, file));
        ModelFiles files = ModelFiles.prepare(new File(folder, "app"), "test", assets);
        return new ModelRunner(files, RunOptions.defaults(), (model, options) -> new Replay(new File(folder, "recording.bin")));
    }

    private static String[] lines(File folder) throws IOException {
        try (DataInputStream in = new DataInputStream(new BufferedInputStream(new FileInputStream(new File(folder, "texts.bin"))))) {
            String[] texts = new String[in.readInt()];
            for (int i = 0; i < texts.length; i++) {
                char[] units = new char[in.readInt()];
                for (int k = 0; k < units.length; k++) {
                    units[k] = in.readChar();
                }
                texts[i] = new String(units);
            }
            return texts;
        }
    }

    private static void texts(File folder, DataOutputStream out, boolean embeds) throws IOException {
        try (ModelRunner runner = open(folder)) {
            for (String text : lines(folder)) {
                float[] values;
                if (embeds) {
                    values = runner.embed(text);
                } else {
                    Classification found = runner.classify(text);
                    System.out.println(found.index + " " + found.label);
                    values = found.probabilities;
                }
                for (float value : values) {
                    out.writeFloat(value);
                }
            }
        }
    }

    /** N.json is a preprocessing table, N.bin the picture: width, height, pixels. */
    private static void pictures(File folder, DataOutputStream out) throws IOException {
        for (int number = 0; new File(folder, number + ".json").exists(); number++) {
            ImageInput input;
            try (InputStream in = new FileInputStream(new File(folder, number + ".json"))) {
                input = new ImageInput(TaskSpec.table(Json.parse(Disk.readAll(in, 10000)), "test"));
            }
            try (DataInputStream in = new DataInputStream(new BufferedInputStream(new FileInputStream(new File(folder, number + ".bin"))))) {
                int width = in.readInt();
                int height = in.readInt();
                int[] pixels = new int[width * height];
                for (int i = 0; i < pixels.length; i++) {
                    pixels[i] = in.readInt();
                }
                Tensor tensor = input.prepare(pixels, width, height);
                System.out.println(Arrays.toString(tensor.shape));
                for (int i = 0; tensor.floats != null && i < tensor.floats.length; i++) {
                    out.writeFloat(tensor.floats[i]);
                }
                if (tensor.bytes != null) {
                    out.write(tensor.bytes);
                }
            }
        }
    }

    /** Released while threads run: each run sees an open session; closed, it stays closed. */
    private static void lifecycle(File folder) throws Exception {
        ModelRunner runner = open(folder);
        String text = lines(folder)[0];
        require(!runner.isOpen() && Replay.OPEN.get() == 0, "open before it is used");
        float[] expected = runner.embed(text);
        require(runner.isOpen() && Replay.OPEN.get() == 1, "not open after its use");
        runner.release();
        runner.release();
        require(!runner.isOpen() && Replay.OPEN.get() == 0, "open after its release");
        require(Arrays.equals(runner.embed(text), expected), "another vector after opening again");
        AtomicInteger wrong = new AtomicInteger();
        Thread[] threads = new Thread[4];
        CountDownLatch start = new CountDownLatch(1);
        for (int i = 0; i < threads.length; i++) {
            threads[i] = new Thread(() -> {
                try {
                    start.await();
                    for (int k = 0; k < 200; k++) {
                        wrong.addAndGet(Arrays.equals(runner.embed(text), expected) ? 0 : 1);
                    }
                } catch (IOException | InterruptedException e) {
                    wrong.addAndGet(1000);
                }
            });
            threads[i].start();
        }
        start.countDown();
        for (int k = 0; k < 100; k++) {
            runner.release();
            Thread.sleep(1);
        }
        for (Thread thread : threads) {
            thread.join();
        }
        require(wrong.get() == 0, wrong + " wrong runs");
        runner.close();
        require(Replay.OPEN.get() == 0, "a session is left open");
        try {
            runner.embed(text);
            throw new AssertionError("ran after close");
        } catch (IllegalStateException e) {
            System.out.println("closed: " + e.getMessage());
        }
    }

    private static void require(boolean holds, String message) {
        if (!holds) {
            throw new AssertionError(message);
        }
    }
}
