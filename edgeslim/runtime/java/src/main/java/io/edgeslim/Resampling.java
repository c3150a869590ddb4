// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

/**
 * Resizing of pictures, bit for bit as Pillow does it: a filter that widens with the reduction, its weights in fixed
 * point, first along the rows and then along the columns, rounded to bytes after each. Pillow 13 takes the columns first
 * where that is less work (a picture that is reduced much more in height than in width): there a level may differ, and
 * more beside hard edges.
 */
final class Resampling {
    /** Weights by distance in pixels of the smaller scale. */
    enum Filter {
        NEAREST(0),
        BOX(0.5),
        BILINEAR(1),
        HAMMING(1),
        BICUBIC(2),
        LANCZOS(3);

        final double support;

        Filter(double support) {
            this.support = support;
        }

        double weight(double distance) {
            double x = Math.abs(distance);
            switch (this) {
                case BOX:
                    return distance > -0.5 && distance <= 0.5 ? 1 : 0;
                case BILINEAR:
                    return x < 1 ? 1 - x : 0;
                case HAMMING:
                    return x == 0 ? 1 : x >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(x * Math.PI));
                case BICUBIC:
                    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
                case LANCZOS:
                    return distance >= -3 && distance < 3 ? sinc(distance) * sinc(distance / 3) : 0;
                default:
                    throw new IllegalStateException(name());
            }
        }

        private static double sinc(double x) {
            return x == 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
        }
    }

    private static final int PRECISION_BITS = 22;

    private Resampling() {}

    /** {@code picture}: bytes, [height, width, channels]. */
    static byte[] resize(byte[] picture, int width, int height, int channels, int wide, int tall, Filter filter) {
        if (wide == width && tall == height) {
            return picture;
        }
        if (filter == Filter.NEAREST) {
            return nearest(picture, width, height, channels, wide, tall);
        }
        byte[] rows = picture;
        if (wide != width) {
            rows = along(picture, height, width, channels, channels, width * channels, wide, filter, true);
        }
        return tall == height
                ? rows
                : along(rows, wide, height, channels, wide * channels, channels, tall, filter, false);
    }

    private static byte[] nearest(byte[] picture, int width, int height, int channels, int wide, int tall) {
        byte[] out = new byte[wide * tall * channels];
        double stepX = (double) width / wide;
        double stepY = (double) height / tall;
        double placeY = stepY / 2; // summed up as Pillow does it, since the last bit decides at whole pixels
        for (int y = 0; y < tall; y++, placeY += stepY) {
            double placeX = stepX / 2;
            for (int x = 0; x < wide; x++, placeX += stepX) {
                int from = ((int) placeY * width + (int) placeX) * channels;
                System.arraycopy(picture, from, out, (y * wide + x) * channels, channels);
            }
        }
        return out;
    }

    /**
     * One direction.
     *
     * @param lines how many lines there are; {@code lineStep} from one to the next
     * @param length pixels of a line, {@code step} from one to the next
     * @param isRows whether lines are rows: then the new ones are dense, else columns of a picture as wide as before
     */
    private static byte[] along(
            byte[] from,
            int lines,
            int length,
            int channels,
            int step,
            int lineStep,
            int size,
            Filter filter,
            boolean isRows) {
        byte[] out = new byte[lines * size * channels];
        double scale = (double) length / size;
        double widened = Math.max(scale, 1);
        double support = filter.support * widened;
        for (int i = 0; i < size; i++) {
            double centre = (i + 0.5) * scale;
            int first = Math.max(0, (int) (centre - support + 0.5));
            int count = Math.min(length, (int) (centre + support + 0.5)) - first;
            int[] weights = weights(filter, first, count, centre, 1 / widened);
            for (int line = 0; line < lines; line++) {
                int base = line * lineStep + first * step;
                int target = isRows ? (line * size + i) * channels : i * step + line * channels;
                for (int c = 0; c < channels; c++) {
                    int sum = 1 << PRECISION_BITS - 1;
                    for (int k = 0; k < count; k++) {
                        sum += (from[base + k * step + c] & 0xFF) * weights[k];
                    }
                    out[target + c] = (byte) Math.max(0, Math.min(255, sum >> PRECISION_BITS));
                }
            }
        }
        return out;
    }

    private static int[] weights(Filter filter, int first, int count, double centre, double narrowed) {
        double[] exact = new double[count];
        double sum = 0;
        for (int k = 0; k < count; k++) {
            exact[k] = filter.weight((first + k - centre + 0.5) * narrowed);
            sum += exact[k];
        }
        int[] weights = new int[count];
        for (int k = 0; k < count; k++) {
            double share = sum == 0 ? exact[k] : exact[k] / sum;
            weights[k] = (int) (share < 0 ? share * (1 << PRECISION_BITS) - 0.5 : share * (1 << PRECISION_BITS) + 0.5);
        }
        return weights;
    }
}
