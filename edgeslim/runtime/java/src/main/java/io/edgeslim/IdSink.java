// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.util.Arrays;

/** Takes token ids, as many as there is room for. */
final class IdSink {
    private final int room;
    private long[] ids = new long[64];
    private int count;
    private boolean cut;

    IdSink(int room) {
        this.room = room;
    }

    void add(int id) {
        if (count == room) {
            cut = true;
            return;
        }
        if (count == ids.length) {
            ids = Arrays.copyOf(ids, 2 * count);
        }
        ids[count++] = id;
    }

    /** Whether an id found no room: what follows is for nothing. */
    boolean isCut() {
        return cut;
    }

    int count() {
        return count;
    }

    void copyTo(long[] to, int at) {
        System.arraycopy(ids, 0, to, at, count);
    }
}
