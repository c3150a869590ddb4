// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

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

    private final OrtModelSession session;
    private final Map<String, long[]> emptyShapes;
    /** The cache, and the logits of the run that it came from; null while the cache is empty. */
    private OrtSession.Result last;
    private int length;

    /** Opens the model; {@code emptyShapes} has the shape of each part of a cache that holds nothing, by its name. */
    static OrtTokenDecoder open(ModelFiles files, RunOptions options, Map<String, long[]> emptyShapes)
            throws IOException {
        return new OrtTokenDecoder(OrtModelSession.open(files.model(), options), emptyShapes);
    }

    private OrtTokenDecoder(OrtModelSession session, Map<String, long[]> emptyShapes) {
        this.session = session;
        this.emptyShapes = emptyShapes;
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
            for (Map.Entry<String, long[]> part : emptyShapes.entrySet()) {
                if (last == null) {
                    made.put(part.getKey(), OnnxTensor.createTensor(environment, nothing(), part.getValue()));
                } else {
                    inputs.put(part.getKey(), tensor(last, "present" + part.getKey().substring(PAST.length())));
                }
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

    /** No floats, at an address that is one. */
    private static FloatBuffer nothing() {
        FloatBuffer floats = ByteBuffer.allocateDirect(4).order(ByteOrder.nativeOrder()).asFloatBuffer();
        floats.limit(0);
        return floats;
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
