// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.RandomAccessFile;
import java.nio.channels.FileLock;
import java.util.concurrent.ConcurrentHashMap;

/**
 * A model's files, unpacked once: model.onnx and the weights.bin that it refers to, in one folder.
 *
 * <pre>
 * root/edgeslim/NAME/.lock       held while anything below changes (threads and processes)
 *                    VERSION/    whole and verified, since it appears by rename only
 *                    VERSION.tmp being written, or left over by a process that died
 * </pre>
 *
 * <p>VERSION is a hash of the unpacked files' hashes, so an app update that brings the same model unpacks nothing.
 * An update with another model unpacks into a folder of its own, and the older one goes after that. Where the space
 * suffices only without the older one, it goes first: the assets it came from are gone from the app anyway.
 */
public final class ModelFiles {
    /** Left free beside the files themselves: file system blocks, and the app's other writes meanwhile. */
    private static final long SPARE_BYTES = 1 << 20;

    private static final String TEMPORARY = ".tmp";
    private static final String LOCK = ".lock";
    private static final ConcurrentHashMap<String, Object> MONITORS = new ConcurrentHashMap<>();

    /** Free space by folder: a test states its own. */
    interface Space {
        long usableBytes(File folder);
    }

    private final File folder;
    private final Manifest manifest;
    private final boolean fresh;

    private ModelFiles(File folder, Manifest manifest, boolean fresh) {
        this.folder = folder;
        this.manifest = manifest;
        this.fresh = fresh;
    }

    /**
     * Unpacks a model, or finds it unpacked.
     *
     * @param root folder of the app that isn't backed up, such as Context.getNoBackupFilesDir()
     * @param name the package's name: letters, digits, '.', '_' and '-', at most 64, a letter or digit in front
     * @param assets the package's files: manifest.json, model.onnx, weights.esz
     * @throws NotEnoughSpaceException before anything is written
     * @throws EszException where weights.esz is damaged
     * @throws IOException where an asset is missing or differs from manifest.json, or the storage fails; what was
     *     there before is untouched then, and no partial file stays
     */
    public static ModelFiles prepare(File root, String name, AssetSource assets) throws IOException {
        return prepare(root, name, assets, File::getUsableSpace);
    }

    @SuppressWarnings("try") // the lock is held, not used
    static ModelFiles prepare(File root, String name, AssetSource assets, Space space) throws IOException {
        if (!name.matches("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")) {
            throw new IOException("\"" + name + "\" is no package name");
        }
        Manifest manifest;
        try (InputStream in = assets.open("manifest.json")) {
            manifest = Manifest.parse(Disk.readAll(in, Json.MAX_BYTES));
        }
        File home = new File(new File(root, "edgeslim"), name);
        File target = new File(home, manifest.version());
        if (isWhole(target, manifest) && strangers(home, target).length == 0) {
            return new ModelFiles(target, manifest, false);
        }
        if (!home.isDirectory() && !home.mkdirs() && !home.isDirectory()) {
            throw new IOException("can't create " + home);
        }
        // A file lock keeps other processes out, but belongs to the whole process: threads need the monitor.
        Object monitor = new Object();
        Object earlier = MONITORS.putIfAbsent(home.getCanonicalPath(), monitor);
        synchronized (earlier == null ? monitor : earlier) {
            try (RandomAccessFile lockFile = new RandomAccessFile(new File(home, LOCK), "rw");
                    FileLock lock = lockFile.getChannel().lock()) {
                boolean fresh = !isWhole(target, manifest);
                if (fresh) {
                    unpack(home, target, name, manifest, assets, space);
                }
                delete(strangers(home, target));
                return new ModelFiles(target, manifest, fresh);
            }
        }
    }

    private static void unpack(
            File home, File target, String name, Manifest manifest, AssetSource assets, Space space)
            throws IOException {
        Disk.deleteTree(target);
        File temporary = new File(home, target.getName() + TEMPORARY);
        for (File file : strangers(home, target)) {
            if (file.getName().endsWith(TEMPORARY)) {
                Disk.deleteTree(file);
            }
        }
        makeRoom(home, target, name, manifest, space);
        boolean done = false;
        try {
            if (!temporary.mkdir()) {
                throw new IOException("can't create " + temporary);
            }
            try (InputStream in = assets.open(Manifest.MODEL);
                    Disk.VerifiedOutput out = output(temporary, Manifest.MODEL, manifest)) {
                Disk.copy(in, out);
                out.finish();
            }
            try (InputStream in = assets.open("weights.esz");
                    Disk.VerifiedOutput out = output(temporary, Manifest.WEIGHTS, manifest)) {
                EszDecoder.decode(in, out);
                out.finish();
            }
            // The files are on the storage before the folder gets its name. If power fails in between, the folder
            // is a leftover; if the rename is lost, the next call repeats it. Sizes are checked at every call.
            if (!temporary.renameTo(target)) {
                throw new IOException("can't rename " + temporary + " to " + target);
            }
            done = true;
        } finally {
            if (!done) {
                Disk.deleteTree(temporary);
            }
        }
    }

    private static void makeRoom(File home, File target, String name, Manifest manifest, Space space)
            throws IOException {
        long needed = manifest.file(Manifest.MODEL).bytes + manifest.file(Manifest.WEIGHTS).bytes + SPARE_BYTES;
        long usable = space.usableBytes(home);
        if (usable >= needed) {
            return;
        }
        File[] old = strangers(home, target);
        long freed = 0;
        for (File file : old) {
            freed += Disk.treeBytes(file);
        }
        if (usable + freed < needed) {
            throw new NotEnoughSpaceException(name, needed, usable);
        }
        delete(old);
    }

    private static Disk.VerifiedOutput output(File folder, String file, Manifest manifest) throws IOException {
        return new Disk.VerifiedOutput(new File(folder, file), manifest.file(file));
    }

    private static boolean isWhole(File folder, Manifest manifest) throws IOException {
        for (String file : new String[] {Manifest.MODEL, Manifest.WEIGHTS}) {
            File path = new File(folder, file);
            if (!path.isFile() || path.length() != manifest.file(file).bytes) {
                return false;
            }
        }
        return true;
    }

    /** All in {@code home} but the lock and the version to keep: older versions and leftovers. */
    private static File[] strangers(File home, File keep) {
        File[] found = home.listFiles(file -> !file.getName().equals(LOCK) && !file.equals(keep));
        return found == null ? new File[0] : found;
    }

    private static void delete(File[] files) {
        for (File file : files) {
            Disk.deleteTree(file);
        }
    }

    /** The folder with both files. */
    public File folder() {
        return folder;
    }

    /** The ONNX model; it refers to weights.bin beside it. */
    public File model() {
        return new File(folder, Manifest.MODEL);
    }

    public Manifest manifest() {
        return manifest;
    }

    /** Whether this call unpacked the files, rather than found them. */
    public boolean isFresh() {
        return fresh;
    }
}
