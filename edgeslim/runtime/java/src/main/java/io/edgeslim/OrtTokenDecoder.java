// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A decoder in ONNX Runtime. What a run gives as present.* goes into the next one as it is: nothing is copied. */
final class OrtTokenDecoder implements TokenDecoder {
    /** Tokens of a prompt that go in at a time: that bounds the memory of its logits. */
    private static final int PROMPT_PIECE = 64;

    private static final String PAST = "past_key_values";
    /** How many tokens are in a cache of a fixed length. */
    private static final String USED = "past_length";

    private final OrtModelSession session;
    private final ChatSpec spec;
    /** The cache, and the logits of the run that it came from; null while the cache is empty. */
    private OrtSession.Result last;
    private int length;
    /** What all parts of an empty cache share: they are only read. */
    private ByteBuffer zeros;

    /** Opens the model, whose cache {@code spec} knows. */
    static OrtTokenDecoder open(ModelFiles files, RunOptions options, ChatSpec spec) throws IOException {
        return new OrtTokenDecoder(OrtModelSession.open(files.model(), options), spec);
    }

    private OrtTokenDecoder(OrtModelSession session, ChatSpec spec) {
        this.session = session;
        this.spec = spec;
    }

    @Override
    public float[] feed(long[] tokens) throws IOException {
        float[] logits = null;
        for (int at = 0; at < tokens.length; at += PROMPT_PIECE) {
            logits = run(Arrays.copyOfRange(tokens, at, Math.min(tokens.length, at + PROMPT_PIECE)));
        }
        if (logits == null) {
            throw new IllegalArgumentException("no tokens");
        }
        return logits;
    }

    private float[] run(long[] piece) throws IOException {
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        Map<String, OnnxTensor> inputs = new HashMap<>();
        Map<String, OnnxTensor> made = new HashMap<>();
        try {
            made.put("input_ids", OnnxTensor.createTensor(environment, LongBuffer.wrap(piece), new long[] {1, piece.length}));
            boolean isFixed = false;
            for (Map.Entry<String, long[]> part : spec.emptyShapes.entrySet()) {
                isFixed = part.getValue()[2] > 0;
                if (last == null) {
                    made.put(part.getKey(), emptyPart(environment, part.getValue()));
                } else {
                    inputs.put(part.getKey(), tensor(last, "present" + part.getKey().substring(PAST.length())));
                }
            }
            if (isFixed) {
                made.put(USED, OnnxTensor.createTensor(environment, LongBuffer.wrap(new long[] {length}), new long[] {1}));
            }
            inputs.putAll(made);
            OrtSession.Result result = session.session().run(inputs);
            float[] logits;
            try {
                logits = lastRow(tensor(result, "logits"), piece.length);
            } catch (IOException e) {
                result.close();
                throw e;
            }
            restartAt(result, length + piece.length);
            return logits;
        } catch (OrtException e) {
            throw new ModelRunException("ONNX Runtime doesn't run the model", e);
        } finally {
            OnnxValue.close(made);
        }
    }

    /** Zeros, or nothing at an address that is one. */
    private OnnxTensor emptyPart(OrtEnvironment environment, long[] shape) throws OrtException {
        int count = (int) (shape[1] * shape[2] * shape[3]);
        int bytes = spec.isInt8 ? count : 4 * count;
        if (zeros == null || zeros.capacity() < bytes) {
            zeros = ByteBuffer.allocateDirect(Math.max(bytes, 4));
        }
        ByteBuffer part = zeros.duplicate().order(ByteOrder.nativeOrder());
        part.limit(bytes);
        if (spec.isInt8) {
            return OnnxTensor.createTensor(environment, part, shape, OnnxJavaType.INT8);
        }
        return OnnxTensor.createTensor(environment, part.asFloatBuffer(), shape);
    }

    private static OnnxTensor tensor(OrtSession.Result result, String name) throws IOException {
        OnnxValue value = result.get(name).orElse(null);
        if (!(value instanceof OnnxTensor)) {
            throw new ModelRunException("the model has no tensor \"" + name + "\" among its outputs", null);
        }
        return (OnnxTensor) value;
    }

    private static float[] lastRow(OnnxTensor logits, int tokens) throws IOException {
        FloatBuffer floats = logits.getFloatBuffer();
        if (floats == null || floats.remaining() == 0 || floats.remaining() % tokens != 0) {
            throw new ModelRunException("the logits aren't float32 for each of " + tokens + " tokens", null);
        }
        float[] row = new float[floats.remaining() / tokens];
        floats.position(floats.remaining() - row.length);
        floats.get(row);
        return row;
    }

    private void restartAt(OrtSession.Result result, int tokens) {
        if (last != null) {
            last.close();
        }
        last = result;
        length = tokens;
    }

    @Override
    public int length() {
        return length;
    }

    @Override
    public void restart() {
        restartAt(null, 0);
    }

    @Override
    public void close() throws IOException {
        restart();
        session.close();
    }
}
