// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

/** How an answer's tokens are chosen: the likeliest each time, or drawn from those that are likely enough. */
public final class Sampling {
    final double temperature;
    final double topP;
    final long seed;

    private Sampling(double temperature, double topP, long seed) {
        this.temperature = temperature;
        this.topP = topP;
        this.seed = seed;
    }

    /** The likeliest token each time. */
    public static Sampling greedy() {
        return new Sampling(0, 1, 0);
    }

    /**
     * Draws from the likeliest tokens that together have probability {@code topP}. Equal seeds draw equal answers, here
     * as in C and in Python.
     *
     * @param temperature above 0, at most 100: more varies
     * @param topP above 0, at most 1
     * @param seed where the draws of an answer begin; all 64 bits count
     */
    public static Sampling nucleus(double temperature, double topP, long seed) {
        if (!(temperature > 0 && temperature <= 100)) {
            throw new IllegalArgumentException("temperature is " + temperature + ", expected above 0, at most 100");
        }
        if (!(topP > 0 && topP <= 1)) {
            throw new IllegalArgumentException("topP is " + topP + ", expected above 0, at most 1");
        }
        return new Sampling(temperature, topP, seed);
    }
}
