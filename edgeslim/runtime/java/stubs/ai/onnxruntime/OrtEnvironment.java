// SPDX-License-Identifier: Apache-2.0
package ai.onnxruntime;

public final class OrtEnvironment implements AutoCloseable {
    private OrtEnvironment() {}

    public static OrtEnvironment getEnvironment() {
        throw new UnsupportedOperationException("stub");
    }

    public OrtSession createSession(String modelPath, OrtSession.SessionOptions options) throws OrtException {
        throw new UnsupportedOperationException("stub");
    }

    @Override
    public void close() {}
}
