package com.example.edgeslim;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import android.app.Activity;
import android.os.Bundle;
import android.widget.TextView;
import io.edgeslim.EdgeslimModel;
import java.io.IOException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/** Opens the packaged text model, runs it once on fixed token ids, and shows what came out and how long it took. */
public final class MainActivity extends Activity {
    private static final int THREADS = 2;
    /** "hello world" for a BERT vocabulary: [CLS] hello world [SEP]. */
    private static final long[][] IDS = {{101, 7592, 2088, 102}};

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        TextView view = new TextView(this);
        view.setText("opening the model");
        setContentView(view);
        // Unpacking reads and writes files, and running takes a while: neither belongs on the main thread.
        new Thread(() -> {
            String text;
            try {
                text = runOnce();
            } catch (IOException | OrtException e) {
                text = e.toString();
            }
            String result = text;
            runOnUiThread(() -> view.setText(result));
        }).start();
    }

    private String runOnce() throws IOException, OrtException {
        long start = System.nanoTime();
        try (EdgeslimModel model = EdgeslimModel.open(this, BuildConfig.MODEL, THREADS)) {
            long opened = System.nanoTime();
            Map<String, OnnxTensor> inputs = new HashMap<>();
            try {
                for (String name : model.session().getInputNames()) {
                    inputs.put(name, OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), values(name)));
                }
                try (OrtSession.Result result = model.session().run(inputs)) {
                    long done = System.nanoTime();
                    return (model.files().isFresh() ? "unpacked and opened" : "opened")
                            + " in " + (opened - start) / 1000000 + " ms, ran in " + (done - opened) / 1000000
                            + " ms, output " + result.get(0).getInfo();
                }
            } finally {
                for (OnnxTensor input : inputs.values()) {
                    input.close();
                }
            }
        }
    }

    private static long[][] values(String input) {
        if (input.equals("input_ids")) {
            return IDS;
        }
        long[][] values = new long[1][IDS[0].length];
        if (input.equals("attention_mask")) {
            Arrays.fill(values[0], 1);
        }
        return values; // token_type_ids
    }
}
