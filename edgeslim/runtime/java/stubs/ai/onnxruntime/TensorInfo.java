// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

public class TensorInfo implements ValueInfo {
    TensorInfo() {}

    public long[] getShape() {
        throw new UnsupportedOperationException("stub");
    }
}
