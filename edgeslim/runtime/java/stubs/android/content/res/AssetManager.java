// SPDX-License-Identifier: Apache-2.0
package android.content.res;

import java.io.IOException;
import java.io.InputStream;

public final class AssetManager {
    public static final int ACCESS_STREAMING = 2;

    private AssetManager() {}

    public InputStream open(String fileName, int accessMode) throws IOException {
        throw new UnsupportedOperationException("stub");
    }
}
