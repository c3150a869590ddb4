// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;

/**
 * The tokens of one answer, one after the other: edgeslim_sample.c in Java. Probabilities are whole numbers and no
 * function of a mathematical library is called, so every machine draws the same; docs/generating.md has the steps.
 */
public final class Sampler {
    private static final int MAX_VOCABULARY = 1 << 20;
    private static final int ID_BITS = 30;
    private static final long LAST = (1L << ID_BITS) - 1;
    /** log2(e) in units of 2^-32. */
    private static final double SCALE = 0x1.71547652b82fep32;
    /** Taylor coefficients of 2^-x, without their signs, in units of 2^-32. */
    private static final long[] TERMS = {
        4294967296L, 2977044472L, 1031764991L, 238388332L, 41309550L, 5726720L, 661577L, 65510L, 5676L, 437L, 30L, 2L
    };

    private final Sampling sampling;
    private long state;
    /** Weight and token, so that the larger key is that of the likelier token, or of the smaller of two alike. */
    private long[] keys = new long[0];

    public Sampler(Sampling sampling) {
        this.sampling = sampling;
        this.state = sampling.seed;
    }

    /** A token for logits; of two that are as likely, the first. An IOException where they aren't finite. */
    public int choose(float[] logits) throws IOException {
        int best = 0;
        for (int i = 0; i < logits.length; i++) {
            if (!(logits[i] <= Float.MAX_VALUE)) {
                throw new IOException("the model's logits are NaN or infinite");
            }
            if (logits[i] > logits[best]) {
                best = i;
            }
        }
        if (logits.length == 0 || logits.length > MAX_VOCABULARY || !(logits[best] >= -Float.MAX_VALUE)) {
            throw new IOException("the model has " + logits.length + " logits, or none that is finite");
        }
        if (sampling.temperature == 0) {
            return best;
        }
        if (keys.length < logits.length) {
            keys = new long[logits.length];
        }
        int used = 0;
        long total = 0;
        for (int i = 0; i < logits.length; i++) {
            long weight = weigh(((double) logits[best] - (double) logits[i]) / sampling.temperature);
            if (weight != 0) {
                total += weight;
                keys[used++] = weight << ID_BITS | LAST - i;
            }
        }
        return draw(used, sampling.topP * (double) total);
    }

    /** exp(-distance) in units of 2^-32. */
    private static long weigh(double distance) {
        double scaled = distance * SCALE;
        if (!(scaled < 33 * 4294967296.0)) {
            return 0;
        }
        long whole = (long) scaled;
        long part = whole & 0xFFFFFFFFL;
        long sum = TERMS[TERMS.length - 1];
        for (int n = TERMS.length - 2; n >= 0; n--) {
            sum = TERMS[n] - (sum * part >>> 32);
        }
        return sum >> (whole >> 32);
    }

    private int draw(int count, double wanted) {
        for (int i = count / 2 - 1; i >= 0; i--) {
            sink(count, i);
        }
        int left = count;
        long kept = 0;
        do { // the largest goes behind those that are left
            long largest = keys[0];
            keys[0] = keys[--left];
            sink(left, 0);
            keys[left] = largest;
            kept += largest >> ID_BITS;
        } while (left > 0 && (double) kept < wanted);
        double point = (double) (nextBits() >>> 11) * 0x1p-53 * (double) kept;
        long sum = 0;
        for (int i = count - 1; i >= left; i--) {
            sum += keys[i] >> ID_BITS;
            if ((double) sum > point) {
                return token(keys[i]);
            }
        }
        return token(keys[left]);
    }

    private static int token(long key) {
        return (int) (LAST - (key & LAST));
    }

    /** Puts the key at {@code place} where it belongs in a heap whose largest is in front. */
    private void sink(int count, int place) {
        int at = place;
        long key = keys[at];
        for (int child = 2 * at + 1; child < count; child = 2 * at + 1) {
            if (child + 1 < count && keys[child + 1] > keys[child]) {
                child++;
            }
            if (keys[child] <= key) {
                break;
            }
            keys[at] = keys[child];
            at = child;
        }
        keys[at] = key;
    }

    /** SplitMix64. */
    private long nextBits() {
        state += 0x9E3779B97F4A7C15L;
        long z = state;
        z = (z ^ z >>> 30) * 0xBF58476D1CE4E5B9L;
        z = (z ^ z >>> 27) * 0x94D049BB133111EBL;
        return z ^ z >>> 31;
    }
}
