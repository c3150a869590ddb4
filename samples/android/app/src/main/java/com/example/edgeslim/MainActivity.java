package com.example.edgeslim;

import android.app.Activity;
import android.os.Bundle;
import android.widget.TextView;
import io.edgeslim.EdgeslimModel;
import io.edgeslim.ProviderShare;
import io.edgeslim.RunOptions;
import java.io.IOException;
import java.util.Arrays;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * Compares sentences by the packaged encoder, and measures it: how long it takes to open and to run, with each provider,
 * and which share of the nodes falls back to the CPU.
 */
public final class MainActivity extends Activity {
    private static final int THREADS = 2;
    private static final int WARM_UP = 5;
    private static final int RUNS = 50;
    private static final String QUESTION = "How do I reset my password?";
    private static final String[] ANSWERS = {
        "Choose \"forgot password\" on the login page and follow the link in the mail.",
        "Our offices are open from nine to five.",
        "The parcel left the warehouse yesterday."
    };

    /** Unpacking reads and writes files, and running takes a while: neither belongs on the main thread. */
    private final ExecutorService worker = Executors.newSingleThreadExecutor();

    private TextView view;
    private volatile EdgeslimModel model;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        view = new TextView(this);
        setContentView(view);
        show("opening the model");
        worker.execute(() -> {
            try {
                compare();
                for (RunOptions.Provider provider : RunOptions.Provider.values()) {
                    measure(provider);
                }
            } catch (IOException e) {
                show(e.toString());
            }
        });
    }

    private void compare() throws IOException {
        long start = System.nanoTime();
        try {
            model = EdgeslimModel.open(this, BuildConfig.MODEL, THREADS);
        } catch (IOException e) {
            // The update can't be unpacked: the version that was there before still can be used.
            model = EdgeslimModel.openInstalled(this, BuildConfig.MODEL, RunOptions.defaults());
            if (model == null) {
                throw e;
            }
        }
        show((model.files().isFresh() ? "unpacked and opened in " : "opened in ") + millisSince(start) + " ms\n" + QUESTION);
        float[] question = model.embed(QUESTION);
        for (String answer : ANSWERS) {
            show(String.format("%.3f  %s", cosine(question, model.embed(answer)), answer));
        }
    }

    private void measure(RunOptions.Provider provider) throws IOException {
        RunOptions options = RunOptions.defaults().withThreads(THREADS).withProvider(provider);
        double[] millis = new double[RUNS];
        try (EdgeslimModel measured = EdgeslimModel.open(model.files(), options)) {
            for (int i = -WARM_UP; i < RUNS; i++) {
                long start = System.nanoTime();
                measured.embed(ANSWERS[0]);
                if (i >= 0) {
                    millis[i] = millisSince(start);
                }
            }
        } catch (IOException e) {
            show(provider + ": " + e);
            return;
        }
        Arrays.sort(millis);
        ProviderShare share = EdgeslimModel.profile(model.files(), options, ANSWERS[0], getCacheDir());
        show(String.format("%s: p50 %.1f ms, p95 %.1f ms, %.0f %% of the nodes on the CPU provider",
                provider, millis[RUNS / 2], millis[RUNS * 95 / 100], 100 * share.cpuShare()));
    }

    @Override
    public void onTrimMemory(int level) {
        super.onTrimMemory(level);
        EdgeslimModel opened = model;
        if (opened != null) {
            worker.execute(() -> {
                try {
                    opened.onTrimMemory(level);
                } catch (IOException e) {
                    show(e.toString());
                }
            });
        }
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        worker.execute(() -> {
            try {
                if (model != null) {
                    model.close();
                }
            } catch (IOException e) {
                show(e.toString());
            }
        });
        worker.shutdown();
    }

    private void show(String line) {
        runOnUiThread(() -> view.append(line + "\n"));
    }

    private static double millisSince(long start) {
        return (System.nanoTime() - start) / 1e6;
    }

    /** Of vectors that have length 1. */
    private static double cosine(float[] a, float[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; i++) {
            sum += a[i] * b[i];
        }
        return sum;
    }
}
