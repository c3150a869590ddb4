// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import android.content.Context;
import java.io.File;
import java.io.IOException;
import java.util.List;

/**
 * A packaged model, opened: unpacked at the first use, then texts or pictures in, vectors or classes out.
 *
 * <pre>
 * try (EdgeslimModel model = EdgeslimModel.open(context, "minilm", RunOptions.defaults().withThreads(2))) {
 *     float[] vector = model.embed("how do I reset my password?");
 * }
 * </pre>
 *
 * <p>Opening reads and writes files and takes seconds the first time: do it on a worker thread, and run there, too. Several
 * threads may use a model at once. {@link #close()} and {@link #release()} wait until their runs are over.
 */
public final class EdgeslimModel implements AutoCloseable {
    /** ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW; the levels of an app in the background are above it. */
    private static final int TRIM_MEMORY_RUNNING_LOW = 10;

    private final ModelRunner runner;

    private EdgeslimModel(ModelRunner runner) {
        this.runner = runner;
    }

    /** Opens with ONNX Runtime's own choice of threads, on the CPU. */
    public static EdgeslimModel open(Context context, String name) throws IOException {
        return open(context, name, RunOptions.defaults());
    }

    /** Opens on the CPU; {@code threads} is how many one operator may use, 0 leaves the choice to ONNX Runtime. */
    public static EdgeslimModel open(Context context, String name, int threads) throws IOException {
        return open(context, name, RunOptions.defaults().withThreads(threads));
    }

    /**
     * Opens the package {@code name} of this app's assets. The version that an app update replaces stays beside it, for
     * {@link #rollBack}, as long as there is room.
     *
     * @throws NotEnoughSpaceException before anything is written
     * @throws EszException where the weights are damaged
     * @throws ModelRunException where ONNX Runtime refuses the model or the provider
     * @throws IOException where an asset is missing or isn't what manifest.json says, or the storage fails. After any of
     *     these {@link #openInstalled} opens the version that was in use before, if there is one
     */
    public static EdgeslimModel open(Context context, String name, RunOptions options) throws IOException {
        return open(AndroidAssets.unpack(context, name, true), options);
    }

    /** Opens the version that was last in use, whatever this app's assets hold; null if there is none. */
    public static EdgeslimModel openInstalled(Context context, String name, RunOptions options) throws IOException {
        ModelFiles files = ModelFiles.installed(context.getNoBackupFilesDir(), name);
        return files == null ? null : open(files, options);
    }

    /**
     * Goes back to the version before the one in use and deletes that one: {@link #open} won't bring it again. Models
     * that are open must be closed first.
     *
     * @return the version before, opened; null, and nothing is changed, where none was kept
     */
    public static EdgeslimModel rollBack(Context context, String name, RunOptions options) throws IOException {
        ModelFiles files = ModelFiles.rollBack(context.getNoBackupFilesDir(), name);
        return files == null ? null : open(files, options);
    }

    /** Opens files that are unpacked already. */
    public static EdgeslimModel open(ModelFiles files, RunOptions options) throws IOException {
        return open(files, options, OrtModelSession::open);
    }

    /** Opens files that are unpacked already, with session options of the caller, who closes them after the model. */
    public static EdgeslimModel open(ModelFiles files, OrtSession.SessionOptions options) throws IOException {
        return open(files, RunOptions.defaults(), (model, ignored) -> {
            try {
                return OrtModelSession.open(model, options, false);
            } catch (OrtException e) {
                throw new ModelRunException("ONNX Runtime doesn't open " + model, e);
            }
        });
    }

    private static EdgeslimModel open(ModelFiles files, RunOptions options, ModelSession.Factory factory)
            throws IOException {
        ModelRunner runner = new ModelRunner(files, options, factory);
        runner.use(session -> null); // what the runtime refuses shows here, not at the first run
        return new EdgeslimModel(runner);
    }

    /** A text's vector, pooled and scaled as the model wants it. A long text is cut at the model's greatest length. */
    public float[] embed(String text) throws IOException {
        return runner.embed(text);
    }

    /** A vector for each text. */
    public List<float[]> embed(List<String> texts) throws IOException {
        return runner.embed(texts);
    }

    /** A text's class. */
    public Classification classify(String text) throws IOException {
        return runner.classify(text);
    }

    /**
     * A picture's class. The picture is resized, cut and scaled as the model was calibrated.
     *
     * @param pixels 0xAARRGGBB row by row, as Bitmap.getPixels gives them; {@code width} times {@code height} of them
     */
    public Classification classify(int[] pixels, int width, int height) throws IOException {
        return runner.classify(pixels, width, height);
    }

    /** The tokenizer alone; null where the package has none that the loader knows. */
    public Tokenizer tokenizer() {
        return runner.tokenizer();
    }

    /**
     * Which provider runs how many of the model's nodes: opens a session of its own with ONNX Runtime's profiler, runs
     * the text once, and reads the profile, which lies in {@code folder} meanwhile.
     */
    public static ProviderShare profile(ModelFiles files, RunOptions options, String text, File folder)
            throws IOException {
        File prefix = File.createTempFile("profile", "", folder);
        try {
            try (ModelRunner profiled = new ModelRunner(files, options.withProfile(prefix), OrtModelSession::open)) {
                profiled.embed(text);
            }
            File[] found = folder.listFiles(file -> file.getName().startsWith(prefix.getName() + "_"));
            if (found == null || found.length != 1) {
                throw new IOException("ONNX Runtime left no profile in " + folder);
            }
            try {
                return ProviderShare.read(found[0]);
            } finally {
                found[0].delete();
            }
        } finally {
            prefix.delete();
        }
    }

    /** To be called from the app's onTrimMemory: under pressure the session is closed; the next use opens it again. */
    public void onTrimMemory(int level) throws IOException {
        if (level >= TRIM_MEMORY_RUNNING_LOW) {
            release();
        }
    }

    /** Closes the session, and with it nearly all of the memory; the next use opens it again. */
    public void release() throws IOException {
        runner.release();
    }

    /** ONNX Runtime's session, for inputs of one's own. It is closed by {@link #release} and {@link #close}. */
    public OrtSession session() throws IOException {
        return runner.use(session -> ((OrtModelSession) session).session());
    }

    public ModelFiles files() {
        return runner.files();
    }

    @Override
    public void close() throws IOException {
        runner.close();
    }
}
