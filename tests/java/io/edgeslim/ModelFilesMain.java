// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * Scenarios of {@link ModelFiles} on a plain JVM, for the Python tests: a line "ok NAME" or "failed NAME: why" each.
 *
 * <p>Arguments: a container, and an empty folder. With a third argument, a folder shared with another process: unpacks
 * there and prints whether this process did it. Or: "unpack", a package's name, the folder with its assets, and where to
 * unpack it; prints where the files are.
 */
public final class ModelFilesMain {
    private static final long PLENTY = 1L << 40;

    private final byte[] container;
    private final byte[] image;
    private final File root;

    private ModelFilesMain(byte[] container, File root) throws IOException {
        this.container = container;
        this.root = root;
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        EszDecoder.decode(new ByteArrayInputStream(container), out);
        this.image = out.toByteArray();
    }

    private interface Scenario {
        void run() throws Exception;
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("unpack")) {
            AssetSource folder = file -> new FileInputStream(new File(args[2], file));
            System.out.println(ModelFiles.prepare(new File(args[3]), args[1], folder).folder());
            return;
        }
        byte[] container;
        try (InputStream in = new FileInputStream(args[0])) {
            container = Disk.readAll(in, 1 << 30);
        }
        if (args.length == 3) {
            ModelFilesMain race = new ModelFilesMain(container, new File(args[2]));
            System.in.read(); // both processes are up when this comes
            System.out.println(race.prepare(race.assets("model").slow()).isFresh());
            return;
        }
        Map<String, String> names = new LinkedHashMap<>();
        for (java.lang.reflect.Method method : ModelFilesMain.class.getDeclaredMethods()) {
            if (method.getName().startsWith("test")) {
                names.put(method.getName(), "");
            }
        }
        for (String name : names.keySet()) {
            ModelFilesMain scenario = new ModelFilesMain(container, new File(args[1], name));
            try {
                ModelFilesMain.class.getDeclaredMethod(name).invoke(scenario);
                System.out.println("ok " + name);
            } catch (java.lang.reflect.InvocationTargetException e) {
                System.out.println("failed " + name + ": " + e.getCause());
                e.getCause().printStackTrace();
            }
        }
    }

    void testFresh() throws Exception {
        ModelFiles files = prepare(assets("model"));
        require(files.isFresh(), "isn't fresh");
        require(Arrays.equals(read(files.model()), utf8("model")), "model.onnx differs");
        require(Arrays.equals(read(new File(files.folder(), "weights.bin")), image), "weights.bin differs");
        require(files.folder().equals(new File(home(), files.manifest().version())), "wrong folder");
        require(names().length == 1, "something lies beside it");
    }

    void testSecondCallOnlyReadsTheManifest() throws Exception {
        prepare(assets("model"));
        Assets assets = assets("model");
        require(!prepare(assets).isFresh(), "unpacked again");
        require(assets.opened.toString().equals("manifest.json "), "opened " + assets.opened);
    }

    void testOtherProseUnpacksNothing() throws Exception {
        prepare(assets("model"));
        Assets assets = assets("model");
        assets.put("manifest.json", utf8(new String(assets.get("manifest.json"), StandardCharsets.UTF_8)
                .replace("prose", "other prose")));
        require(!prepare(assets).isFresh(), "unpacked again");
        require(ModelFiles.installed(root, "test").manifest().root().get("note").equals("other prose"), "the old prose");
    }

    void testAnotherModelReplacesTheFirst() throws Exception {
        File first = prepare(assets("model")).folder();
        ModelFiles second = prepare(assets("model 2"));
        require(second.isFresh() && !second.folder().equals(first), "not unpacked anew");
        require(Arrays.equals(read(second.model()), utf8("model 2")), "model.onnx differs");
        require(!first.exists() && names().length == 1, "the old version is still there");
    }

    void testPreviousVersionStaysOnDemand() throws Exception {
        File first = prepareAndKeep(assets("model"), PLENTY).folder();
        File second = prepareAndKeep(assets("model 2"), PLENTY).folder();
        require(first.exists() && second.exists() && names().length == 2, "the previous version went");
        require(!prepareAndKeep(assets("model 2"), PLENTY).isFresh() && first.exists(), "gone at the second start");
        File third = prepareAndKeep(assets("model 3"), PLENTY).folder();
        require(!first.exists() && second.exists() && third.exists(), "not one previous version");
        prepare(assets("model 3"));
        require(names().length == 1, "a previous version that nobody wants");
    }

    void testRollBack() throws Exception {
        require(ModelFiles.rollBack(root, "test") == null, "from nothing to nothing");
        File first = prepareAndKeep(assets("model"), PLENTY).folder();
        require(ModelFiles.rollBack(root, "test") == null && first.exists(), "the only version was rolled back");
        File second = prepareAndKeep(assets("model 2"), PLENTY).folder();
        ModelFiles back = ModelFiles.rollBack(root, "test");
        require(back.folder().equals(first) && !second.exists(), "not back");
        ModelFiles again = prepareAndKeep(assets("model 2"), PLENTY);
        require(again.folder().equals(first) && !again.isFresh(), "the refused version came again");
        require(Arrays.equals(read(again.model()), utf8("model")), "model.onnx differs");
        require(ModelFiles.installed(root, "test").folder().equals(first), "another one is installed");
        ModelFiles newer = prepareAndKeep(assets("model 3"), PLENTY);
        require(newer.isFresh() && !newer.folder().equals(first), "a newer version was refused, too");
        require(ModelFiles.rollBack(root, "test").folder().equals(first), "not back from the newer one");
    }

    void testFailedUpdateLeavesTheInstalledVersion() throws Exception {
        require(ModelFiles.installed(root, "test") == null, "something is installed");
        File first = prepareAndKeep(assets("model"), PLENTY).folder();
        Assets broken = assets("model 2");
        broken.put("weights.esz", Arrays.copyOf(container, container.length - 1));
        refused(EszException.class, () -> prepareAndKeep(broken, PLENTY));
        refused(NotEnoughSpaceException.class, () -> prepareAndKeep(assets("model 2"), 1000));
        ModelFiles installed = ModelFiles.installed(root, "test");
        require(installed.folder().equals(first), "another folder");
        require(Arrays.equals(read(installed.model()), utf8("model")), "model.onnx differs");
        require(installed.manifest().file("weights.bin").bytes == image.length, "another manifest");
    }

    void testPreviousVersionMakesRoom() throws Exception {
        File first = prepareAndKeep(assets("model"), PLENTY).folder();
        prepareAndKeep(assets("model 2"), (1 << 20) + image.length);
        require(!first.exists() && names().length == 1, "the previous version is still there");
        require(ModelFiles.rollBack(root, "test") == null, "back to a version that isn't there");
    }

    void testNotesThatAreNoVersions() throws Exception {
        File folder = prepareAndKeep(assets("model"), PLENTY).folder();
        try (OutputStream out = new FileOutputStream(new File(home(), ".versions"))) {
            out.write(utf8("../../x\n" + folder.getName() + "/../x\n\0"));
        }
        require(ModelFiles.installed(root, "test") == null, "a path outside");
        require(!prepareAndKeep(assets("model"), PLENTY).isFresh(), "unpacked again");
        require(ModelFiles.installed(root, "test") != null, "the notes aren't written again");
    }

    void testDamagedManifestOfAnOlderVersion() throws Exception {
        File first = prepareAndKeep(assets("model"), PLENTY).folder();
        try (OutputStream out = new FileOutputStream(new File(first, "manifest.json"))) {
            out.write(1);
        }
        require(ModelFiles.installed(root, "test") == null, "a version without a manifest");
        require(prepareAndKeep(assets("model 2"), PLENTY).isFresh() && !first.exists(), "the update failed");
        require(ModelFiles.rollBack(root, "test") == null, "back to a damaged version");
    }

    void testTokenizerIsUnpackedAndVerified() throws Exception {
        Assets assets = assets("model");
        assets.put("tok/tokenizer.etk", utf8("tokenizer"));
        assets.manifest(utf8("model"), image);
        ModelFiles files = prepare(assets);
        require(Arrays.equals(read(files.tokenizer()), utf8("tokenizer")), "tokenizer.etk differs");
        File before = files.folder();
        assets.put("tok/tokenizer.etk", utf8("tokenizes"));
        refused(IOException.class, () -> {
            require(files.tokenizer().delete(), "no tokenizer");
            prepare(assets);
        });
        assets.manifest(utf8("model"), image);
        require(!prepare(assets).folder().equals(before), "another tokenizer is another version");
        require(prepare(assets("model")).tokenizer() == null, "a tokenizer from nowhere");
    }

    void testTwoModelsDontMeet() throws Exception {
        ModelFiles one = ModelFiles.prepare(root, "one", assets("model"));
        ModelFiles two = ModelFiles.prepare(root, "two", assets("model"));
        require(one.model().isFile() && two.model().isFile() && two.isFresh(), "one model touched the other");
    }

    void testNoSpaceWritesNothing() throws Exception {
        try {
            prepare(assets("model"), 1000);
            throw new AssertionError("no exception");
        } catch (NotEnoughSpaceException e) {
            require(e.usableBytes == 1000 && e.neededBytes > image.length, e.getMessage());
        }
        require(names().length == 0, "something was written");
    }

    void testNoSpaceKeepsTheOldVersion() throws Exception {
        File old = prepare(assets("model")).folder();
        refused(NotEnoughSpaceException.class, () -> prepare(assets("model 2"), 1000));
        require(Arrays.equals(names(), new String[] {old.getName()}), "the old version went");
    }

    void testOldVersionMakesRoom() throws Exception {
        File old = prepare(assets("model")).folder();
        prepare(assets("model 2"), (1 << 20) + image.length); // a few bytes too few
        require(!old.exists() && names().length == 1, "the old version is still there");
    }

    void testDamagedContainerLeavesNothing() throws Exception {
        File old = prepare(assets("model")).folder();
        Assets assets = assets("model 2");
        byte[] damaged = container.clone();
        damaged[damaged.length - 1] ^= 1;
        assets.put("weights.esz", damaged);
        refused(EszException.class, () -> prepare(assets));
        require(Arrays.equals(names(), new String[] {old.getName()}), "not as before: " + Arrays.toString(names()));
    }

    void testCutContainerLeavesNothing() throws Exception {
        Assets assets = assets("model");
        assets.put("weights.esz", Arrays.copyOf(container, container.length - 1));
        refused(EszException.class, () -> prepare(assets));
        require(names().length == 0, "something stayed");
    }

    void testWrongModelLeavesNothing() throws Exception {
        for (String wrong : new String[] {"modem", "mode", "models", ""}) {
            Assets assets = assets("model");
            assets.put("model.onnx", utf8(wrong));
            refused(IOException.class, () -> prepare(assets));
            require(names().length == 0, "something stayed");
        }
    }

    void testOtherWeightsThanTheManifestSays() throws Exception {
        for (int change : new int[] {-1, 0, 1}) {
            Assets assets = assets("model");
            byte[] other = Arrays.copyOf(image, image.length + change);
            other[0] ^= 1;
            assets.manifest(utf8("model"), other);
            refused(IOException.class, () -> prepare(assets));
            require(names().length == 0, "something stayed");
        }
    }

    void testMissingAssetLeavesNothing() throws Exception {
        for (String name : new String[] {"manifest.json", "model.onnx", "weights.esz"}) {
            Assets assets = assets("model");
            assets.files.remove(name);
            refused(FileNotFoundException.class, () -> prepare(assets));
            require(names().length == 0, "something stayed");
        }
    }

    void testLeftoversGo() throws Exception {
        String version = Manifest.parse(assets("model").get("manifest.json")).version();
        leftover(version + ".tmp");
        leftover("0123.tmp");
        leftover("an older version");
        File folder = prepare(assets("model")).folder();
        require(Arrays.equals(names(), new String[] {folder.getName()}), "left: " + Arrays.toString(names()));
        leftover(version + ".tmp");
        leftover("an older version");
        require(!prepare(assets("model")).isFresh(), "unpacked again");
        require(Arrays.equals(names(), new String[] {folder.getName()}), "left: " + Arrays.toString(names()));
    }

    void testShortenedFileIsUnpackedAgain() throws Exception {
        ModelFiles files = prepare(assets("model"));
        try (FileOutputStream out = new FileOutputStream(new File(files.folder(), "weights.bin"))) {
            out.write(1);
        }
        require(prepare(assets("model")).isFresh(), "not unpacked again");
        require(Arrays.equals(read(new File(files.folder(), "weights.bin")), image), "weights.bin differs");
    }

    void testManyThreadsUnpackOnce() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(8);
        Callable<ModelFiles> task = () -> prepare(assets("model").slow());
        int fresh = 0;
        for (Future<ModelFiles> future : pool.invokeAll(java.util.Collections.nCopies(8, task))) {
            fresh += future.get().isFresh() ? 1 : 0;
            require(Arrays.equals(read(future.get().model()), utf8("model")), "model.onnx differs");
        }
        pool.shutdown();
        require(fresh == 1, "unpacked " + fresh + " times");
    }

    void testUnusableFolder() throws Exception {
        require(root.createNewFile(), "no file");
        refused(IOException.class, () -> prepare(assets("model")));
    }

    void testNames() throws Exception {
        for (String name : new String[] {"", ".", "..", "a/b", "a\\b", "../a", ".a", "-a", "ä", "a\n", "a b"}) {
            refused(IOException.class, () -> ModelFiles.prepare(root, name, assets("model")));
        }
        refused(IOException.class, () -> ModelFiles.prepare(root, new String(new char[65]).replace('\0', 'a'), assets("m")));
    }

    void testManifestsThatAreWrong() throws Exception {
        String good = new String(assets("model").get("manifest.json"), StandardCharsets.UTF_8);
        String[][] changes = {
            {"\"schema\": 1", "\"schema\": 2"}, {"\"schema\": 1", "\"schema\": 1.0"}, {"\"schema\"", "\"scheme\""},
            {"model.onnx", "model.ort"}, {"weights.bin", "weights"}, {"\"bytes\": ", "\"bytes\": -"},
            {"\"bytes\": ", "\"bytes\": \"1\", \"x\": "}, {"\"sha256\": \"", "\"sha256\": \"0"}, {"\"files\"", "\"f\""},
            {"{\"bytes\"", "[{\"bytes\""}, {"prose", "\u0001"}
        };
        Manifest.parse(utf8(good));
        for (String[] change : changes) {
            require(good.contains(change[0]), change[0]);
            refused(IOException.class, () -> Manifest.parse(utf8(good.replace(change[0], change[1]))));
        }
    }

    void testJsonIsStrict() throws Exception {
        String[] wrong = {
            "", " ", "{", "[", "[1,]", "{\"a\":1,}", "{\"a\":1,\"a\":2}", "{a:1}", "{\"a\" 1}", "[1 2]", "1 2", "tru",
            "nul", "'a'", "\"a", "\"\\x\"", "\"\\u12g4\"", "\"\\u\uFF11234\"", "\"\n\"", "01", "-", "1.", ".5", "1e",
            "+1", "0x1", "NaN", "Infinity", "// a\n1", "\uFEFF1", new String(new char[40]).replace('\0', '['),
            "\u00a01"
        };
        for (String text : wrong) {
            refused(IOException.class, () -> Json.parse(utf8(text)));
        }
        refused(IOException.class, () -> Json.parse(new byte[] {'"', (byte) 0xC3, '"'}));
        refused(IOException.class, () -> Json.parse(new byte[Json.MAX_BYTES + 1]));
        Object value = Json.parse(utf8(" {\"a\" : [1, -2.5e1, true, false, null, \"\\u00e4\\n\\\"ö\"], \"b\": {}, \"c\": []} "));
        require(value.toString().equals("{a=[1, -25.0, true, false, null, ä\n\"ö], b={}, c=[]}"), value.toString());
    }

    // -- what the scenarios use ------------------------------------------------------------------------------------

    /** A package in memory that notes what is opened. */
    private static final class Assets implements AssetSource {
        final Map<String, byte[]> files = new LinkedHashMap<>();
        final StringBuilder opened = new StringBuilder();
        private boolean slow;

        byte[] get(String name) {
            return files.get(name);
        }

        void put(String name, byte[] bytes) {
            files.put(name, bytes);
        }

        void manifest(byte[] model, byte[] weights) {
            String tokenizer = files.containsKey("tok/tokenizer.etk")
                    ? ", \"tok/tokenizer.etk\": " + entry(get("tok/tokenizer.etk")) : "";
            put("manifest.json", utf8("{\"schema\": 1, \"note\": \"prose\", \"tokenizer\": {\"folder\": \"tok\"}, \"files\": "
                    + "{\"model.onnx\": " + entry(model) + ", \"weights.bin\": " + entry(weights) + tokenizer + "}}"));
        }

        Assets slow() {
            slow = true;
            return this;
        }

        @Override
        public InputStream open(String file) throws IOException {
            opened.append(file).append(' ');
            if (!files.containsKey(file)) {
                throw new FileNotFoundException(file);
            }
            if (slow && file.equals("model.onnx")) {
                try {
                    Thread.sleep(300);
                } catch (InterruptedException e) {
                    throw new IOException(e);
                }
            }
            return new ByteArrayInputStream(files.get(file));
        }
    }

    private Assets assets(String model) {
        Assets assets = new Assets();
        assets.put("model.onnx", utf8(model));
        assets.put("weights.esz", container);
        assets.manifest(utf8(model), image);
        return assets;
    }

    private static String entry(byte[] bytes) {
        MessageDigest digest = Disk.sha256();
        digest.update(bytes);
        return "{\"bytes\": " + bytes.length + ", \"sha256\": \"" + Disk.hex(digest) + "\"}";
    }

    private ModelFiles prepare(Assets assets) throws IOException {
        return prepare(assets, PLENTY);
    }

    private ModelFiles prepare(Assets assets, long usableBytes) throws IOException {
        return ModelFiles.prepare(root, "test", assets, false, folder -> usableBytes);
    }

    private ModelFiles prepareAndKeep(Assets assets, long usableBytes) throws IOException {
        return ModelFiles.prepare(root, "test", assets, true, folder -> usableBytes);
    }

    private File home() {
        return new File(new File(root, "edgeslim"), "test");
    }

    /** What lies in the model's folder beside its own notes. */
    private String[] names() {
        String[] names = home().list((folder, name) -> !name.startsWith("."));
        return names == null ? new String[0] : names;
    }

    private void leftover(String name) throws IOException {
        File folder = new File(home(), name);
        require(folder.mkdirs(), "can't create " + folder);
        try (OutputStream out = new FileOutputStream(new File(folder, "weights.bin"))) {
            out.write(1);
        }
    }

    private static byte[] read(File file) throws IOException {
        try (InputStream in = new FileInputStream(file)) {
            return Disk.readAll(in, 1 << 30);
        }
    }

    private static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static void refused(Class<? extends Exception> kind, Scenario scenario) {
        try {
            scenario.run();
        } catch (Exception e) {
            require(kind.isInstance(e), "threw " + e);
            return;
        }
        throw new AssertionError("no " + kind.getSimpleName());
    }

    private static void require(boolean holds, String message) {
        if (!holds) {
            throw new AssertionError(message);
        }
    }
}
