// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;

/** ONNX Runtime behind the loader's interface. Nothing else of the loader knows its classes. */
final class OrtModelSession implements ModelSession {
    private final OrtSession session;
    private final boolean isProfiled;

    private OrtModelSession(OrtSession session, boolean isProfiled) {
        this.session = session;
        this.isProfiled = isProfiled;
    }

    static OrtModelSession open(File model, RunOptions options) throws IOException {
        try (OrtSession.SessionOptions settings = new OrtSession.SessionOptions()) {
            apply(options, settings);
            return open(model, settings, options.profile != null);
        } catch (OrtException e) {
            throw new ModelRunException("ONNX Runtime doesn't open " + model + " by " + options.provider, e);
        }
    }

    static OrtModelSession open(File model, OrtSession.SessionOptions settings, boolean isProfiled) throws OrtException {
        // The environment is one object for the whole process and lives as long, so it isn't closed here.
        return new OrtModelSession(OrtEnvironment.getEnvironment().createSession(model.getPath(), settings), isProfiled);
    }

    private static void apply(RunOptions options, OrtSession.SessionOptions settings) throws OrtException {
        if (options.profile != null) {
            settings.enableProfiling(options.profile.getPath());
        }
        if (options.provider == RunOptions.Provider.NNAPI) {
            settings.addNnapi();
        }
        if (options.provider == RunOptions.Provider.XNNPACK) {
            // XNNPACK has threads of its own; ONNX Runtime's would only spin beside them.
            String threads = String.valueOf(Math.max(1, options.threads));
            settings.addXnnpack(Collections.singletonMap("intra_op_num_threads", threads));
            settings.addConfigEntry("session.intra_op.allow_spinning", "0");
            settings.setIntraOpNumThreads(1);
        } else if (options.threads > 0) {
            settings.setIntraOpNumThreads(options.threads);
        }
    }

    OrtSession session() {
        return session;
    }

    @Override
    public Tensor run(Map<String, Tensor> inputs, String output) throws IOException {
        Map<String, OnnxTensor> feed = new HashMap<>();
        try {
            for (Map.Entry<String, Tensor> input : inputs.entrySet()) {
                feed.put(input.getKey(), toRuntime(input.getValue()));
            }
            try (OrtSession.Result result = session.run(feed)) {
                OnnxValue value = output == null ? result.get(0) : result.get(output).orElse(null);
                if (!(value instanceof OnnxTensor)) {
                    throw new ModelRunException("the model has no tensor \"" + output + "\" among its outputs", null);
                }
                return fromRuntime((OnnxTensor) value);
            }
        } catch (OrtException e) {
            throw new ModelRunException("ONNX Runtime doesn't run the model", e);
        } finally {
            OnnxValue.close(feed);
        }
    }

    private static OnnxTensor toRuntime(Tensor tensor) throws OrtException {
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        if (tensor.floats != null) {
            return OnnxTensor.createTensor(environment, FloatBuffer.wrap(tensor.floats), tensor.shape);
        }
        if (tensor.longs != null) {
            return OnnxTensor.createTensor(environment, LongBuffer.wrap(tensor.longs), tensor.shape);
        }
        ByteBuffer bytes = ByteBuffer.allocateDirect(tensor.bytes.length).order(ByteOrder.nativeOrder());
        bytes.put(tensor.bytes).rewind();
        return OnnxTensor.createTensor(environment, bytes, tensor.shape, OnnxJavaType.UINT8);
    }

    private static Tensor fromRuntime(OnnxTensor tensor) throws ModelRunException {
        long[] shape = tensor.getInfo().getShape();
        FloatBuffer floats = tensor.getFloatBuffer();
        if (floats != null) {
            float[] values = new float[floats.remaining()];
            floats.get(values);
            return Tensor.of(values, shape);
        }
        throw new ModelRunException("the output isn't float32: " + tensor.getInfo(), null);
    }

    @Override
    public void close() throws IOException {
        try {
            if (isProfiled) {
                session.endProfiling();
            }
            session.close();
        } catch (OrtException e) {
            throw new ModelRunException("ONNX Runtime doesn't close its session", e);
        }
    }
}
