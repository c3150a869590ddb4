// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import android.content.Context;
import android.content.res.AssetManager;
import java.io.IOException;
import java.io.InputStream;

/** The assets that an edgeslim AAR puts into an app: assets/edgeslim/NAME/. */
public final class AndroidAssets implements AssetSource {
    private final AssetManager assets;
    private final String folder;

    public AndroidAssets(Context context, String name) {
        this.assets = context.getAssets();
        this.folder = "edgeslim/" + name + "/";
    }

    /** Unpacks the model into the app's no-backup folder, or finds it there. Not for the main thread. */
    public static ModelFiles unpack(Context context, String name) throws IOException {
        return unpack(context, name, false);
    }

    /** The same; {@code keepPrevious} as in {@link ModelFiles#prepare}. */
    public static ModelFiles unpack(Context context, String name, boolean keepPrevious) throws IOException {
        AssetSource assets = new AndroidAssets(context, name);
        return ModelFiles.prepare(context.getNoBackupFilesDir(), name, assets, keepPrevious);
    }

    @Override
    public InputStream open(String file) throws IOException {
        return assets.open(folder + file, AssetManager.ACCESS_STREAMING);
    }
}
