// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;

/** A language model with its KV cache. On a device it is ONNX Runtime; a test replays what that once said. */
public interface TokenDecoder extends AutoCloseable {
    /**
     * The logits of the token behind these, which follow those that were fed before. After an exception
     * {@link #length} says how many were taken.
     */
    float[] feed(long[] tokens) throws IOException;

    /** How many tokens are in the cache. */
    int length();

    /** Empties the cache. */
    void restart();

    @Override
    void close() throws IOException;
}
