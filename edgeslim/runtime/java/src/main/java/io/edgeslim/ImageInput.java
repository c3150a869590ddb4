// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * From a picture to a model's input, as manifest.json says: resize, crop, scale, mean and deviation, layout.
 *
 * <p>It is what the build did to its samples, in the same arithmetic: pixels come out equal to Pillow's, as {@link Resampling} says.
 */
final class ImageInput {
    private static final int MAX_SIDE = 8192;

    final int height;
    final int width;
    private final String mode;
    private final int shortestEdge;
    private final Resampling.Filter filter;
    private final int channels;
    private final float scale;
    private final float[] mean;
    private final float[] deviation;
    private final boolean isChannelsFirst;
    private final boolean isBytes;

    ImageInput(Map<String, Object> table) throws IOException {
        List<?> size = TaskSpec.list(table.get("size"), "preprocessing.size");
        if (size.size() != 2) {
            throw new IOException("manifest.json: preprocessing.size is " + size);
        }
        height = TaskSpec.integer(size.get(0), "preprocessing.size", MAX_SIDE);
        width = TaskSpec.integer(size.get(1), "preprocessing.size", MAX_SIDE);
        mode = choice(table, "mode", "stretch", "crop", "none");
        boolean isCrop = mode.equals("crop");
        shortestEdge = isCrop ? TaskSpec.integer(table.get("shortest_edge"), "preprocessing.shortest_edge", MAX_SIDE) : 0;
        if (isCrop && shortestEdge < Math.max(height, width)) {
            throw new IOException("manifest.json: preprocessing.shortest_edge doesn't cover size");
        }
        String resample = choice(table, "resample", "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming");
        filter = Resampling.Filter.valueOf(resample.toUpperCase(Locale.ROOT));
        channels = choice(table, "channels", "rgb", "gray").equals("rgb") ? 3 : 1;
        scale = (float) TaskSpec.number(table.get("scale"), "preprocessing.scale");
        mean = numbers(table, "mean");
        deviation = numbers(table, "std");
        isChannelsFirst = choice(table, "layout", "nchw", "nhwc").equals("nchw");
        isBytes = choice(table, "dtype", "float32", "uint8").equals("uint8");
    }

    private static String choice(Map<String, Object> table, String key, String... allowed) throws IOException {
        String value = TaskSpec.string(table.get(key), "preprocessing." + key);
        for (String one : allowed) {
            if (one.equals(value)) {
                return value;
            }
        }
        throw new IOException("manifest.json: preprocessing." + key + " is \"" + value + "\"");
    }

    private float[] numbers(Map<String, Object> table, String key) throws IOException {
        List<?> values = TaskSpec.list(table.get(key), "preprocessing." + key);
        if (values.size() != channels) {
            throw new IOException("manifest.json: preprocessing." + key + " has " + values.size() + " numbers");
        }
        float[] numbers = new float[channels];
        for (int i = 0; i < channels; i++) {
            numbers[i] = (float) TaskSpec.number(values.get(i), "preprocessing." + key);
        }
        return numbers;
    }

    /**
     * The input for one picture.
     *
     * @param pixels 0xAARRGGBB row by row, as Bitmap.getPixels gives them; transparency is left out
     */
    Tensor prepare(int[] pixels, int pictureWidth, int pictureHeight) throws IOException {
        if (pictureWidth < 1 || pictureHeight < 1 || pixels.length != (long) pictureWidth * pictureHeight) {
            throw new IllegalArgumentException(pixels.length + " pixels of " + pictureWidth + " x " + pictureHeight);
        }
        byte[] picture = channels(pixels);
        int left = 0;
        int top = 0;
        int wide = width;
        int tall = height;
        if (mode.equals("none") && (pictureWidth != width || pictureHeight != height)) {
            throw new IOException("the picture has " + pictureWidth + " x " + pictureHeight + " pixels, the model takes "
                    + width + " x " + height + " and nothing else");
        }
        if (mode.equals("crop")) {
            int shorter = Math.min(pictureWidth, pictureHeight);
            wide = (int) ((long) shortestEdge * pictureWidth / shorter);
            tall = (int) ((long) shortestEdge * pictureHeight / shorter);
            left = (wide - width) / 2;
            top = (tall - height) / 2;
        }
        byte[] resized = Resampling.resize(picture, pictureWidth, pictureHeight, channels, wide, tall, filter);
        return toTensor(resized, wide, left, top);
    }

    private byte[] channels(int[] pixels) {
        byte[] out = new byte[pixels.length * channels];
        for (int i = 0; i < pixels.length; i++) {
            int red = pixels[i] >> 16 & 0xFF;
            int green = pixels[i] >> 8 & 0xFF;
            int blue = pixels[i] & 0xFF;
            if (channels == 1) {
                out[i] = (byte) (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16); // ITU-R 601-2, as Pillow
            } else {
                out[3 * i] = (byte) red;
                out[3 * i + 1] = (byte) green;
                out[3 * i + 2] = (byte) blue;
            }
        }
        return out;
    }

    private Tensor toTensor(byte[] picture, int wide, int left, int top) {
        int count = height * width * channels;
        float[] floats = isBytes ? null : new float[count];
        byte[] bytes = isBytes ? new byte[count] : null;
        for (int y = 0; y < height; y++) {
            for (int x = 0; x < width; x++) {
                for (int c = 0; c < channels; c++) {
                    byte value = picture[((top + y) * wide + left + x) * channels + c];
                    int at = isChannelsFirst ? (c * height + y) * width + x : (y * width + x) * channels + c;
                    if (isBytes) {
                        bytes[at] = value;
                    } else {
                        floats[at] = ((value & 0xFF) * scale - mean[c]) / deviation[c];
                    }
                }
            }
        }
        long[] shape = isChannelsFirst
                ? new long[] {1, channels, height, width}
                : new long[] {1, height, width, channels};
        return isBytes ? Tensor.of(bytes, shape) : Tensor.of(floats, shape);
    }
}
