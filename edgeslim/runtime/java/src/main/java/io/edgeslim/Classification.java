// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.util.List;

/** What a classifier says of one text or picture. */
public final class Classification {
    /** The likeliest class, and its place among the logits. */
    public final String label;

    public final int index;
    /** Of each class, in the order of {@link #labels}; they sum to 1. */
    public final float[] probabilities;
    /** The classes' names; numbers where the model has no names. */
    public final List<String> labels;

    Classification(List<String> labels, float[] probabilities) {
        int best = 0;
        for (int i = 1; i < probabilities.length; i++) {
            best = probabilities[i] > probabilities[best] ? i : best;
        }
        this.index = best;
        this.label = labels.get(best);
        this.probabilities = probabilities;
        this.labels = labels;
    }
}
