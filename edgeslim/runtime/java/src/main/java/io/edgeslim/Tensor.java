// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

/** Values of a model's input or output: of one type, in row-major order. */
public final class Tensor {
    public final long[] shape;
    /** float32 values; null where the tensor is of another type. */
    public final float[] floats;
    /** int64 values; null where the tensor is of another type. */
    public final long[] longs;
    /** uint8 values; null where the tensor is of another type. */
    public final byte[] bytes;

    private Tensor(float[] floats, long[] longs, byte[] bytes, long[] shape) {
        this.floats = floats;
        this.longs = longs;
        this.bytes = bytes;
        this.shape = shape;
    }

    public static Tensor of(float[] values, long... shape) {
        return new Tensor(values, null, null, shape);
    }

    public static Tensor of(long[] values, long... shape) {
        return new Tensor(null, values, null, shape);
    }

    public static Tensor of(byte[] values, long... shape) {
        return new Tensor(null, null, values, shape);
    }
}
