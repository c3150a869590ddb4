// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** What manifest.json says of a model's use: inputs, tokenizer, pooling, labels, preprocessing of pictures. */
final class TaskSpec {
    private static final int MAX_LENGTH = 1 << 20;

    final String task;
    /** The output that counts; null for the first. */
    final String output;

    /** "mean", "cls" or "none". */
    final String pooling;

    final boolean normalize;
    final List<String> labels;
    final List<String> inputs;
    /** At how many tokens texts are cut; 0 where the model takes no text. */
    final int maxLength;
    final boolean pad;
    /** Null where the model takes no pictures. */
    final ImageInput image;

    TaskSpec(Manifest manifest) throws IOException {
        Map<String, Object> root = manifest.root();
        Map<String, Object> table = table(root.get("task"), "task");
        task = string(table.get("task"), "task.task");
        output = table.get("output") == null ? null : string(table.get("output"), "task.output");
        pooling = table.get("pooling") == null ? "none" : string(table.get("pooling"), "task.pooling");
        if (!pooling.equals("mean") && !pooling.equals("cls") && !pooling.equals("none")) {
            throw new IOException("manifest.json: task.pooling is \"" + pooling + "\"");
        }
        normalize = Boolean.TRUE.equals(table.get("normalize"));
        labels = new ArrayList<>();
        for (Object label : list(table.get("labels"), "task.labels")) {
            labels.add(string(label, "task.labels"));
        }
        inputs = new ArrayList<>();
        for (Object input : list(table(root.get("signature"), "signature").get("inputs"), "signature.inputs")) {
            inputs.add(string(table(input, "signature.inputs").get("name"), "signature.inputs.name"));
        }
        if (root.get("tokenizer") == null) {
            maxLength = 0;
            pad = false;
        } else {
            Map<String, Object> entry = table(root.get("tokenizer"), "tokenizer");
            maxLength = integer(entry.get("max_length"), "tokenizer.max_length", MAX_LENGTH);
            pad = Boolean.TRUE.equals(entry.get("pad"));
        }
        Object preprocessing = table.get("preprocessing");
        image = preprocessing == null ? null : new ImageInput(table(preprocessing, "task.preprocessing"));
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> table(Object value, String where) throws IOException {
        if (!(value instanceof Map)) {
            throw new IOException("manifest.json: " + where + " is no object");
        }
        return (Map<String, Object>) value;
    }

    static List<?> list(Object value, String where) throws IOException {
        if (value == null) {
            return Collections.emptyList();
        }
        if (!(value instanceof List)) {
            throw new IOException("manifest.json: " + where + " is no list");
        }
        return (List<?>) value;
    }

    static String string(Object value, String where) throws IOException {
        if (!(value instanceof String)) {
            throw new IOException("manifest.json: " + where + " is no string");
        }
        return (String) value;
    }

    static int integer(Object value, String where, int most) throws IOException {
        if (!(value instanceof Long) || (Long) value < 1 || (Long) value > most) {
            throw new IOException("manifest.json: " + where + " is " + value + ", expected 1 to " + most);
        }
        return (int) (long) (Long) value;
    }

    static double number(Object value, String where) throws IOException {
        if (!(value instanceof Number)) {
            throw new IOException("manifest.json: " + where + " is no number");
        }
        return ((Number) value).doubleValue();
    }
}
