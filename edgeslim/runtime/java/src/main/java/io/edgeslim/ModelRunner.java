// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.locks.ReentrantReadWriteLock;

/**
 * Texts and pictures through a model, whatever runtime runs it. The session opens when it is needed, and again after
 * it was released; runs go on side by side, and a release waits for them.
 */
final class ModelRunner implements AutoCloseable {
    private final ModelFiles files;
    private final TaskSpec spec;
    private final Tokenizer tokenizer;
    private final ModelSession.Factory factory;
    private final RunOptions options;
    private final ReentrantReadWriteLock lock = new ReentrantReadWriteLock();
    private ModelSession session;
    private boolean isClosed;

    ModelRunner(ModelFiles files, RunOptions options, ModelSession.Factory factory) throws IOException {
        this.files = files;
        this.spec = new TaskSpec(files.manifest());
        this.options = options;
        this.factory = factory;
        if (files.tokenizer() == null) {
            tokenizer = null;
        } else {
            try (InputStream in = new FileInputStream(files.tokenizer())) {
                tokenizer = Tokenizer.open(in);
            }
        }
    }

    /** What runs while the session can't go away. */
    interface Use<T> {
        T with(ModelSession session) throws IOException;
    }

    <T> T use(Use<T> use) throws IOException {
        lock.readLock().lock();
        if (session == null) {
            lock.readLock().unlock();
            openAndHold();
        }
        try {
            return use.with(session);
        } finally {
            lock.readLock().unlock();
        }
    }

    /** Opens the session, and takes the read lock before anybody can close it again. */
    private void openAndHold() throws IOException {
        lock.writeLock().lock();
        try {
            if (isClosed) {
                throw new IllegalStateException("the model is closed");
            }
            if (session == null) {
                session = factory.open(files.model(), options);
            }
            lock.readLock().lock();
        } finally {
            lock.writeLock().unlock();
        }
    }

    /** Closes the session; the next use opens it again. */
    void release() throws IOException {
        lock.writeLock().lock();
        try {
            if (session != null) {
                session.close();
                session = null;
            }
        } finally {
            lock.writeLock().unlock();
        }
    }

    @Override
    public void close() throws IOException {
        lock.writeLock().lock();
        try {
            isClosed = true;
            release();
        } finally {
            lock.writeLock().unlock();
        }
    }

    boolean isOpen() {
        lock.readLock().lock();
        try {
            return session != null;
        } finally {
            lock.readLock().unlock();
        }
    }

    ModelFiles files() {
        return files;
    }

    Tokenizer tokenizer() {
        return tokenizer;
    }

    float[] embed(String text) throws IOException {
        long[] ids = encode(text);
        long[] mask = mask(ids.length);
        Tensor output = use(opened -> opened.run(feed(ids, mask), spec.output));
        return Pooling.pool(floats(output), mask, spec.pooling, spec.normalize);
    }

    /** One after the other: a run as long as its text needs the least memory, and gives the same vectors. */
    List<float[]> embed(List<String> texts) throws IOException {
        List<float[]> vectors = new ArrayList<>(texts.size());
        for (String text : texts) {
            vectors.add(embed(text));
        }
        return vectors;
    }

    Classification classify(String text) throws IOException {
        long[] ids = encode(text);
        return decide(use(opened -> opened.run(feed(ids, mask(ids.length)), spec.output)));
    }

    Classification classify(int[] pixels, int width, int height) throws IOException {
        if (spec.image == null || spec.inputs.size() != 1) {
            throw new IllegalStateException("this model takes no picture: its task is " + spec.task);
        }
        Tensor picture = spec.image.prepare(pixels, width, height);
        Map<String, Tensor> inputs = Collections.singletonMap(spec.inputs.get(0), picture);
        return decide(use(opened -> opened.run(inputs, spec.output)));
    }

    private Classification decide(Tensor output) throws IOException {
        float[] probabilities = Pooling.probabilities(floats(output).floats);
        List<String> labels = new ArrayList<>(spec.labels);
        if (labels.size() != probabilities.length) {
            if (!labels.isEmpty()) {
                throw new IOException("the model tells " + probabilities.length + " classes apart, manifest.json names "
                        + labels.size());
            }
            for (int i = 0; i < probabilities.length; i++) {
                labels.add(String.valueOf(i));
            }
        }
        return new Classification(Collections.unmodifiableList(labels), probabilities);
    }

    private static Tensor floats(Tensor output) throws IOException {
        if (output.floats == null || output.floats.length == 0) {
            throw new IOException("the model's output has no float32 values");
        }
        return output;
    }

    private long[] encode(String text) {
        if (tokenizer == null) {
            throw new IllegalStateException("this package has no tokenizer that the loader knows");
        }
        return tokenizer.encode(text, spec.maxLength);
    }

    /** 1 for each token of the text; 0 for padding behind it, where the model wants texts of one length. */
    private long[] mask(int tokens) {
        long[] mask = new long[spec.pad ? spec.maxLength : tokens];
        Arrays.fill(mask, 0, tokens, 1);
        return mask;
    }

    private Map<String, Tensor> feed(long[] ids, long[] mask) throws IOException {
        long[] padded = Arrays.copyOf(ids, mask.length);
        Arrays.fill(padded, ids.length, mask.length, Math.max(0, tokenizer.padId()));
        Map<String, Tensor> feed = new LinkedHashMap<>();
        for (String name : spec.inputs) {
            switch (name) {
                case "input_ids":
                    feed.put(name, Tensor.of(padded, 1, mask.length));
                    break;
                case "attention_mask":
                    feed.put(name, Tensor.of(mask, 1, mask.length));
                    break;
                case "token_type_ids":
                    feed.put(name, Tensor.of(new long[mask.length], 1, mask.length));
                    break;
                default:
                    throw new IOException("the model's input \"" + name + "\" comes from no tokenizer");
            }
        }
        return feed;
    }
}
