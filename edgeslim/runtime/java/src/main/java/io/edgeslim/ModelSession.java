// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.File;
import java.io.IOException;
import java.util.Map;

/** What the loader needs of a runtime. On a device it is ONNX Runtime; a test replays what that once said. */
public interface ModelSession extends AutoCloseable {
    /** Opens sessions. */
    interface Factory {
        /** Opens a model; an IOException where the runtime refuses it. */
        ModelSession open(File model, RunOptions options) throws IOException;
    }

    /**
     * Runs the model once; several threads may do so at the same time.
     *
     * @param output the output that is wanted; null for the first
     */
    Tensor run(Map<String, Tensor> inputs, String output) throws IOException;

    @Override
    void close() throws IOException;
}
