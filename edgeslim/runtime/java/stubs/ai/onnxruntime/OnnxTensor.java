// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;

public class OnnxTensor extends OnnxTensorLike {
    OnnxTensor() {}

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException("stub");
    }

    public static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException("stub");
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type)
            throws OrtException {
        throw new UnsupportedOperationException("stub");
    }

    public TensorInfo getInfo() {
        throw new UnsupportedOperationException("stub");
    }

    public FloatBuffer getFloatBuffer() {
        throw new UnsupportedOperationException("stub");
    }

    @Override
    public void close() {}
}
