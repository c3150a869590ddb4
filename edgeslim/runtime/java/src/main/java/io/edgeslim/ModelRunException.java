// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;

/** The runtime refused a model or a run; its own exception is the cause. */
public final class ModelRunException extends IOException {
    private static final long serialVersionUID = 1L;

    ModelRunException(String message, Throwable cause) {
        super(message, cause);
    }
}
