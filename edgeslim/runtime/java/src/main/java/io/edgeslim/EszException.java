// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;

/** An ESZ container that is damaged, cut short, or of a kind that this decoder doesn't know. */
public final class EszException extends IOException {
    private static final long serialVersionUID = 1L;

    EszException(String message) {
        super("ESZ container: " + message);
    }
}
