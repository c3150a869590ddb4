// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.File;

/** How a model is run. The int8 forms that edgeslim builds are made for the CPU provider's kernels. */
public final class RunOptions {
    /** Who executes nodes; what a provider doesn't take falls back to the CPU. */
    public enum Provider {
        CPU,
        XNNPACK,
        NNAPI
    }

    final int threads;
    final Provider provider;
    final File profile;

    private RunOptions(int threads, Provider provider, File profile) {
        this.threads = threads;
        this.provider = provider;
        this.profile = profile;
    }

    /** The CPU, with ONNX Runtime's own choice of threads. */
    public static RunOptions defaults() {
        return new RunOptions(0, Provider.CPU, null);
    }

    /** How many threads one operator may use; 0 leaves the choice to ONNX Runtime. */
    public RunOptions withThreads(int count) {
        if (count < 0) {
            throw new IllegalArgumentException("threads is " + count);
        }
        return new RunOptions(count, provider, profile);
    }

    public RunOptions withProvider(Provider wanted) {
        return new RunOptions(threads, wanted, profile);
    }

    /** Writes ONNX Runtime's profile, whose name begins with {@code prefix}, when the session closes. */
    public RunOptions withProfile(File prefix) {
        return new RunOptions(threads, provider, prefix);
    }
}
