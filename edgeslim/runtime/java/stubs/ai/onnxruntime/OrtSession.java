// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

public class OrtSession implements AutoCloseable {
    OrtSession() {}

    @Override
    public void close() throws OrtException {}

    public static class SessionOptions implements AutoCloseable {
        public SessionOptions() {}

        public void setIntraOpNumThreads(int numThreads) throws OrtException {
            throw new UnsupportedOperationException("stub");
        }

        @Override
        public void close() {}
    }
}
