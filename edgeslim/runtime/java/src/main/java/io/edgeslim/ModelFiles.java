// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.RandomAccessFile;
import java.nio.channels.FileLock;
import java.util.Arrays;
import java.util.concurrent.ConcurrentHashMap;

/**
 * A model's files, unpacked once: model.onnx, the weights.bin that it refers to, manifest.json and tokenizer.etk.
 *
 * <pre>
 * root/edgeslim/NAME/.lock       held while anything below changes (threads and processes)
 *                    .versions   which version is in use, which came before it, which was rolled back
 *                    VERSION/    whole and verified, since it appears by rename only
 *                    VERSION.tmp being written, or left over by a process that died
 * </pre>
 *
 * <p>VERSION is a hash of the unpacked files' hashes, so an app update that brings the same model unpacks nothing.
 * An update with another model unpacks into a folder of its own, and the older one goes after that, or stays on demand
 * until the next one, for {@link #rollBack}. Where the space suffices only without the older one, it goes first.
 *
 * <p>An update that can't be unpacked leaves the older version as it was: {@link #installed} finds it, without any
 * assets.
 */
public final class ModelFiles {
    /** Left free beside the files themselves: file system blocks, and the app's other writes meanwhile. */
    private static final long SPARE_BYTES = 1 << 20;

    private static final String TEMPORARY = ".tmp";
    private static final String LOCK = ".lock";
    private static final String MANIFEST = "manifest.json";
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
        return prepare(root, name, assets, false);
    }

    /**
     * Unpacks a model, or finds it unpacked.
     *
     * @param keepPrevious whether the version that was in use stays beside a new one, as long as there is room, so that
     *     {@link #rollBack} can go back to it. A version that was rolled back isn't taken again: then this gives the
     *     one before it.
     */
    public static ModelFiles prepare(File root, String name, AssetSource assets, boolean keepPrevious)
            throws IOException {
        return prepare(root, name, assets, keepPrevious, File::getUsableSpace);
    }

    /** The version that was last in use, without looking at any assets; null if there is none. */
    public static ModelFiles installed(File root, String name) throws IOException {
        File home = home(root, name);
        return find(home, Versions.read(home).current);
    }

    /**
     * Goes back to the version before the one in use, and deletes that one, for good: the same assets won't bring it
     * again. Sessions that are open on it must be closed first.
     *
     * @return the version before, in use from now on; null, and nothing is changed, where none was kept
     */
    public static ModelFiles rollBack(File root, String name) throws IOException {
        File home = home(root, name);
        if (!home.isDirectory()) {
            return null;
        }
        return locked(home, () -> {
            Versions versions = Versions.read(home);
            ModelFiles previous = find(home, versions.previous);
            if (previous == null) {
                return null;
            }
            new Versions(versions.previous, null, versions.current).write(home);
            Disk.deleteTree(new File(home, versions.current));
            return previous;
        });
    }

    private static File home(File root, String name) throws IOException {
        if (!name.matches("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")) {
            throw new IOException("\"" + name + "\" is no package name");
        }
        return new File(new File(root, "edgeslim"), name);
    }

    /** A version in {@code home} that is whole, by what was stored with it; null if there is none, or it can't be read. */
    private static ModelFiles find(File home, String version) {
        File folder = version == null ? null : new File(home, version);
        if (folder == null || !new File(folder, MANIFEST).isFile()) {
            return null;
        }
        try {
            Manifest manifest = Manifest.parse(stored(folder));
            return isWhole(folder, manifest) ? new ModelFiles(folder, manifest, false) : null;
        } catch (IOException e) {
            return null; // as good as gone: an update must not fail since an older version is damaged
        }
    }

    private static byte[] stored(File folder) throws IOException {
        try (InputStream in = new FileInputStream(new File(folder, MANIFEST))) {
            return Disk.readAll(in, Json.MAX_BYTES);
        }
    }

    static ModelFiles prepare(File root, String name, AssetSource assets, boolean keepPrevious, Space space)
            throws IOException {
        File home = home(root, name);
        byte[] json;
        try (InputStream in = assets.open(MANIFEST)) {
            json = Disk.readAll(in, Json.MAX_BYTES);
        }
        Manifest manifest = Manifest.parse(json);
        File target = new File(home, manifest.version());
        Versions known = Versions.read(home);
        ModelFiles before = target.getName().equals(known.refused) ? find(home, known.current) : null;
        if (before != null) {
            return before;
        }
        String kept = keepPrevious ? known.previous : null;
        boolean isInUse = target.getName().equals(known.current) && isWhole(target, manifest);
        if (isInUse && Arrays.equals(json, stored(target)) && strangers(home, target, kept).length == 0) {
            return new ModelFiles(target, manifest, false);
        }
        if (!home.isDirectory() && !home.mkdirs() && !home.isDirectory()) {
            throw new IOException("can't create " + home);
        }
        return locked(home, () -> {
            Versions versions = Versions.read(home);
            boolean fresh = !isWhole(target, manifest);
            if (fresh) {
                unpack(home, target, name, json, manifest, assets, space);
            } else {
                Disk.writeWhole(new File(target, MANIFEST), json);
            }
            boolean isNew = !target.getName().equals(versions.current);
            String previous = !keepPrevious ? null : isNew ? versions.current : versions.previous;
            previous = find(home, previous) == null ? null : previous;
            new Versions(target.getName(), previous, null).write(home);
            delete(strangers(home, target, previous));
            return new ModelFiles(target, manifest, fresh);
        });
    }

    /** What is done while a model's folder belongs to this thread alone. */
    private interface Work {
        ModelFiles run() throws IOException;
    }

    @SuppressWarnings("try") // the lock is held, not used
    private static ModelFiles locked(File home, Work work) throws IOException {
        // A file lock keeps other processes out, but belongs to the whole process: threads need the monitor.
        Object monitor = new Object();
        Object earlier = MONITORS.putIfAbsent(home.getCanonicalPath(), monitor);
        synchronized (earlier == null ? monitor : earlier) {
            try (RandomAccessFile lockFile = new RandomAccessFile(new File(home, LOCK), "rw");
                    FileLock lock = lockFile.getChannel().lock()) {
                return work.run();
            }
        }
    }

    private static void unpack(
            File home, File target, String name, byte[] json, Manifest manifest, AssetSource assets, Space space)
            throws IOException {
        Disk.deleteTree(target);
        File temporary = new File(home, target.getName() + TEMPORARY);
        for (File file : strangers(home, target, null)) {
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
            String tokenizer = manifest.tokenizer();
            if (tokenizer != null) {
                try (InputStream in = assets.open(tokenizer);
                        Disk.VerifiedOutput out = new Disk.VerifiedOutput(
                                new File(temporary, Manifest.TOKENIZER), manifest.file(tokenizer))) {
                    Disk.copy(in, out);
                    out.finish();
                }
            }
            Disk.writeWhole(new File(temporary, MANIFEST), json);
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
        String tokenizer = manifest.tokenizer();
        long needed = manifest.file(Manifest.MODEL).bytes + manifest.file(Manifest.WEIGHTS).bytes + SPARE_BYTES;
        needed += tokenizer == null ? 0 : manifest.file(tokenizer).bytes;
        long usable = space.usableBytes(home);
        if (usable >= needed) {
            return;
        }
        File[] old = strangers(home, target, null);
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
        String tokenizer = manifest.tokenizer();
        return isWhole(folder, Manifest.MODEL, manifest.file(Manifest.MODEL))
                && isWhole(folder, Manifest.WEIGHTS, manifest.file(Manifest.WEIGHTS))
                && (tokenizer == null || isWhole(folder, Manifest.TOKENIZER, manifest.file(tokenizer)))
                && new File(folder, MANIFEST).isFile();
    }

    private static boolean isWhole(File folder, String name, Manifest.Entry entry) {
        File path = new File(folder, name);
        return path.isFile() && path.length() == entry.bytes;
    }

    /** All in {@code home} but its own notes and the versions to keep: older versions and leftovers. */
    private static File[] strangers(File home, File keep, String previous) {
        File[] found = home.listFiles(file -> !file.getName().equals(LOCK)
                && !file.getName().equals(Versions.FILE)
                && !file.equals(keep)
                && !file.getName().equals(previous));
        return found == null ? new File[0] : found;
    }

    private static void delete(File[] files) {
        for (File file : files) {
            Disk.deleteTree(file);
        }
    }

    /** The folder with the files. */
    public File folder() {
        return folder;
    }

    /** The ONNX model; it refers to weights.bin beside it. */
    public File model() {
        return new File(folder, Manifest.MODEL);
    }

    /** The packed tokenizer; null where the model has none. */
    public File tokenizer() {
        return manifest.tokenizer() == null ? null : new File(folder, Manifest.TOKENIZER);
    }

    public Manifest manifest() {
        return manifest;
    }

    /** Whether this call unpacked the files, rather than found them. */
    public boolean isFresh() {
        return fresh;
    }
}
