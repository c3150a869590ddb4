// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import android.content.Context;
import java.io.IOException;

/**
 * A packaged model, opened: unpacked at the first use, then an ordinary ONNX Runtime session.
 *
 * <pre>
 * try (EdgeslimModel model = EdgeslimModel.open(context, "minilm", 2)) {
 *     OrtSession.Result result = model.session().run(inputs);
 * }
 * </pre>
 *
 * <p>Opening reads and writes files and takes seconds the first time: do it on a worker thread. A session serves
 * several threads at once; {@link #close()} waits for none of them.
 */
public final class EdgeslimModel implements AutoCloseable {
    private final ModelFiles files;
    private final OrtSession session;

    private EdgeslimModel(ModelFiles files, OrtSession session) {
        this.files = files;
        this.session = session;
    }

    /** Opens with ONNX Runtime's own choice of threads. */
    public static EdgeslimModel open(Context context, String name) throws IOException, OrtException {
        return open(context, name, 0);
    }

    /**
     * Opens the package {@code name} of this app's assets.
     *
     * @param threads how many threads one operator may use; 0 leaves the choice to ONNX Runtime
     */
    public static EdgeslimModel open(Context context, String name, int threads) throws IOException, OrtException {
        if (threads < 0) {
            throw new IllegalArgumentException("threads is " + threads);
        }
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            if (threads > 0) {
                options.setIntraOpNumThreads(threads);
            }
            return open(AndroidAssets.unpack(context, name), options);
        }
    }

    /** Opens files that are unpacked already, with session options (providers, say) of the caller, who closes them. */
    public static EdgeslimModel open(ModelFiles files, OrtSession.SessionOptions options) throws OrtException {
        // The environment is one object for the whole process and lives as long, so it isn't closed here.
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        return new EdgeslimModel(files, environment.createSession(files.model().getPath(), options));
    }

    public OrtSession session() {
        return session;
    }

    public ModelFiles files() {
        return files;
    }

    @Override
    public void close() throws OrtException {
        session.close();
    }
}
