// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The part of manifest.json that unpacking needs: size and SHA-256 of each file of the package.
 *
 * <pre>
 * { "schema": 1,
 *   "files": { "model.onnx":  {"bytes": 123, "sha256": "64 lower-case hex digits"},
 *              "weights.bin": {…}, … },
 *   … }
 * </pre>
 *
 * <p>Keys that aren't named here are left to the code that uses them ({@link #root()}).
 */
public final class Manifest {
    static final int SCHEMA = 1;
    static final String MODEL = "model.onnx";
    static final String WEIGHTS = "weights.bin";
    static final String TOKENIZER = "tokenizer.etk";

    /** Size and hash of one file. */
    public static final class Entry {
        public final long bytes;
        /** 64 lower-case hex digits. */
        public final String sha256;

        Entry(long bytes, String sha256) {
            this.bytes = bytes;
            this.sha256 = sha256;
        }
    }

    private final Map<String, Object> root;
    private final Map<String, Entry> files;

    private Manifest(Map<String, Object> root, Map<String, Entry> files) {
        this.root = root;
        this.files = files;
    }

    /** Reads manifest.json. Throws an IOException that names the field which is missing or wrong. */
    public static Manifest parse(byte[] json) throws IOException {
        Map<String, Object> root = object(Json.parse(json), "the document");
        Object schema = root.get("schema");
        if (!Long.valueOf(SCHEMA).equals(schema)) {
            throw new IOException("manifest.json: schema is " + schema + ", this loader reads " + SCHEMA);
        }
        Map<String, Entry> files = new LinkedHashMap<>();
        for (Map.Entry<String, Object> member : object(root.get("files"), "files").entrySet()) {
            String where = "files[\"" + member.getKey() + "\"]";
            Map<String, Object> entry = object(member.getValue(), where);
            Object bytes = entry.get("bytes");
            Object sha256 = entry.get("sha256");
            if (!(bytes instanceof Long) || (Long) bytes < 0) {
                throw new IOException("manifest.json: " + where + ".bytes is " + bytes);
            }
            if (!(sha256 instanceof String) || !((String) sha256).matches("[0-9a-f]{64}")) {
                throw new IOException("manifest.json: " + where + ".sha256 is " + sha256);
            }
            files.put(member.getKey(), new Entry((Long) bytes, (String) sha256));
        }
        Manifest manifest = new Manifest(root, files);
        manifest.file(MODEL);
        manifest.file(WEIGHTS);
        return manifest;
    }

    /** The entry of one file; an IOException where the manifest has none. */
    public Entry file(String name) throws IOException {
        Entry entry = files.get(name);
        if (entry == null) {
            throw new IOException("manifest.json: files has no \"" + name + "\"");
        }
        return entry;
    }

    boolean has(String name) {
        return files.containsKey(name);
    }

    /** The packed tokenizer's name in the package, or null. */
    String tokenizer() {
        Object table = root.get("tokenizer");
        Object folder = table instanceof Map ? ((Map<?, ?>) table).get("folder") : null;
        String name = folder + "/" + TOKENIZER;
        return folder instanceof String && has(name) ? name : null;
    }

    /** The whole document: Map, List, String, Long, Double, Boolean or null. */
    public Map<String, Object> root() {
        return root;
    }

    /**
     * The name of an unpacked version, 32 hex digits. It hangs on the unpacked bytes alone: a manifest that only
     * changes its prose, or a container that is only packed better, doesn't unpack anything anew.
     */
    String version() throws IOException {
        MessageDigest digest = Disk.sha256();
        String tokenizer = tokenizer() == null ? "" : file(tokenizer()).sha256;
        digest.update((file(MODEL).sha256 + file(WEIGHTS).sha256 + tokenizer).getBytes(StandardCharsets.US_ASCII));
        return Disk.hex(digest).substring(0, 32);
    }

    @SuppressWarnings("unchecked")
    private static Map<String, Object> object(Object value, String where) throws IOException {
        if (!(value instanceof Map)) {
            throw new IOException("manifest.json: " + where + " is no object");
        }
        return (Map<String, Object>) value;
    }
}
