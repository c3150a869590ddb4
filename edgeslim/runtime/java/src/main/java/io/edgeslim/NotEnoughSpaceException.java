// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;

/** The device has too little free space to unpack a model. Nothing was written. */
public final class NotEnoughSpaceException extends IOException {
    private static final long serialVersionUID = 1L;

    public final long neededBytes;
    public final long usableBytes;

    NotEnoughSpaceException(String name, long neededBytes, long usableBytes) {
        super("model \"" + name + "\" needs " + neededBytes + " bytes of free space, " + usableBytes + " are there");
        this.neededBytes = neededBytes;
        this.usableBytes = usableBytes;
    }
}
