// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

import java.util.Map;
import java.util.Optional;

public class OrtSession implements AutoCloseable {
    OrtSession() {}

    @Override
    public void close() throws OrtException {}

    public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
        throw new UnsupportedOperationException("stub");
    }

    public String endProfiling() throws OrtException {
        throw new UnsupportedOperationException("stub");
    }

    public static class Result implements AutoCloseable {
        Result() {}

        public OnnxValue get(int index) {
            throw new UnsupportedOperationException("stub");
        }

        public Optional<OnnxValue> get(String key) {
            throw new UnsupportedOperationException("stub");
        }

        @Override
        public void close() {}
    }

    public static class SessionOptions implements AutoCloseable {
        public SessionOptions() {}

        public void setIntraOpNumThreads(int numThreads) throws OrtException {
            throw new UnsupportedOperationException("stub");
        }

        public void enableProfiling(String filePath) throws OrtException {
            throw new UnsupportedOperationException("stub");
        }

        public void addConfigEntry(String key, String value) throws OrtException {
            throw new UnsupportedOperationException("stub");
        }

        public void addNnapi() throws OrtException {
            throw new UnsupportedOperationException("stub");
        }

        public void addXnnpack(Map<String, String> providerOptions) throws OrtException {
            throw new UnsupportedOperationException("stub");
        }

        @Override
        public void close() {}
    }
}
