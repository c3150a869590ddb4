// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

import java.util.Map;

public interface OnnxValue extends AutoCloseable {
    @Override
    void close();

    static void close(Map<String, ? extends OnnxValue> values) {
        throw new UnsupportedOperationException("stub");
    }
}
