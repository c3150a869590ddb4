// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;

/** From a model's output to a vector or to probabilities. */
final class Pooling {
    private static final double LEAST_NORM = 1e-12;

    private Pooling() {}

    /**
     * One text's vector.
     *
     * @param output hidden states [1, tokens, width], or a vector [1, width]
     * @param mask 1 for the tokens that count, 0 for padding
     */
    static float[] pool(Tensor output, long[] mask, String pooling, boolean normalize) throws IOException {
        float[] vector;
        if (output.shape.length == 3 && !pooling.equals("none")) {
            int tokens = (int) output.shape[1];
            int width = (int) output.shape[2];
            if (output.shape[0] != 1 || tokens != mask.length || output.floats.length != tokens * width) {
                throw new IOException("the model gives " + tokens + " tokens for " + mask.length);
            }
            vector = new float[width];
            if (pooling.equals("cls")) {
                System.arraycopy(output.floats, 0, vector, 0, width);
            } else {
                average(output.floats, mask, vector);
            }
        } else {
            vector = output.floats.clone();
        }
        if (normalize) {
            double square = 0;
            for (float value : vector) {
                square += (double) value * value;
            }
            double norm = Math.max(Math.sqrt(square), LEAST_NORM);
            for (int i = 0; i < vector.length; i++) {
                vector[i] = (float) (vector[i] / norm);
            }
        }
        return vector;
    }

    private static void average(float[] states, long[] mask, float[] vector) {
        double[] sums = new double[vector.length];
        int count = 0;
        for (int token = 0; token < mask.length; token++) {
            if (mask[token] == 0) {
                continue;
            }
            count++;
            for (int i = 0; i < vector.length; i++) {
                sums[i] += states[token * vector.length + i];
            }
        }
        for (int i = 0; i < vector.length; i++) {
            vector[i] = (float) (sums[i] / Math.max(1, count));
        }
    }

    /** Softmax of logits; one logit alone is that of the second of two classes. */
    static float[] probabilities(float[] logits) {
        if (logits.length == 1) {
            float second = (float) (1 / (1 + Math.exp(-logits[0])));
            return new float[] {1 - second, second};
        }
        double most = Double.NEGATIVE_INFINITY;
        for (float logit : logits) {
            most = Math.max(most, logit);
        }
        double sum = 0;
        double[] powers = new double[logits.length];
        for (int i = 0; i < logits.length; i++) {
            powers[i] = Math.exp(logits[i] - most);
            sum += powers[i];
        }
        float[] shares = new float[logits.length];
        for (int i = 0; i < logits.length; i++) {
            shares[i] = (float) (powers[i] / sum);
        }
        return shares;
    }
}
