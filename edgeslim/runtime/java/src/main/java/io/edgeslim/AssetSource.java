// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.io.InputStream;

/** Where the files of one package are read from: an app's assets, or a folder in a test. */
public interface AssetSource {
    /** Opens one file, such as "weights.esz"; the caller closes the stream. */
    InputStream open(String file) throws IOException;
}
