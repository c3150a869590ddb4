// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.IOException;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** What manifest.json says of a language model: the texts between turns, what ends an answer, the cache's shape. */
final class ChatSpec {
    private static final int MAX_CONTEXT = 1 << 24;
    private static final int MAX_WIDTH = 1 << 20;
    private static final long MAX_PART = 1 << 28;

    /** Null where the model has no chat template: it goes on with the user's text. */
    final String start;

    final String reply;
    final String next;
    final long[] endTokens;
    /** How many tokens the model can read; MAX_CONTEXT where the package doesn't say. */
    final int contextTokens;
    /** The shape of each part of a cache that holds nothing, or of its buffer of a fixed length, by its input's name. */
    final Map<String, long[]> emptyShapes = new LinkedHashMap<>();
    /** Whether the cache has a byte a number. */
    final boolean isInt8;

    ChatSpec(Manifest manifest) throws IOException {
        Map<String, Object> root = manifest.root();
        Map<String, Object> task = TaskSpec.table(root.get("task"), "task");
        if (!"causal-lm".equals(task.get("task"))) {
            throw new IOException("this package isn't a language model: its task is " + task.get("task"));
        }
        Object listed = task.get("end_tokens");
        endTokens = new long[TaskSpec.list(listed, "task.end_tokens").size()];
        for (int i = 0; i < endTokens.length; i++) {
            Object token = TaskSpec.list(listed, "task.end_tokens").get(i);
            if (!(token instanceof Long)) {
                throw new IOException("manifest.json: task.end_tokens has " + token);
            }
            endTokens[i] = (Long) token;
        }
        Object context = task.get("context_tokens");
        int most = context == null ? MAX_CONTEXT : TaskSpec.integer(context, "task.context_tokens", MAX_CONTEXT);
        if (task.get("chat") == null) {
            start = reply = next = null;
        } else {
            Map<String, Object> chat = TaskSpec.table(task.get("chat"), "task.chat");
            start = TaskSpec.string(chat.get("start"), "task.chat.start");
            reply = TaskSpec.string(chat.get("reply"), "task.chat.reply");
            next = TaskSpec.string(chat.get("next"), "task.chat.next");
        }
        Set<String> kinds = new HashSet<>();
        Map<String, Object> signature = TaskSpec.table(root.get("signature"), "signature");
        for (Object entry : TaskSpec.list(signature.get("inputs"), "signature.inputs")) {
            Map<String, Object> input = TaskSpec.table(entry, "signature.inputs");
            String name = TaskSpec.string(input.get("name"), "signature.inputs.name");
            if (name.startsWith("past_key_values.")) {
                long[] shape = emptyShape(input.get("shape"));
                emptyShapes.put(name, shape);
                most = shape[2] > 0 ? Math.min(most, (int) shape[2]) : most;
                kinds.add(TaskSpec.string(input.get("type"), "signature.inputs.type"));
            }
        }
        contextTokens = most;
        isInt8 = kinds.equals(Collections.singleton("tensor(int8)"));
        if (!isInt8 && !kinds.equals(Collections.singleton("tensor(float)"))) {
            throw new IOException("manifest.json: a KV cache of " + kinds + ", expected float or int8");
        }
    }

    private static long[] emptyShape(Object shape) throws IOException {
        List<?> sizes = TaskSpec.list(shape, "signature.inputs.shape");
        if (sizes.size() != 4) {
            throw new IOException("manifest.json: a KV cache of " + sizes.size() + " dimensions, expected 4");
        }
        long heads = TaskSpec.integer(sizes.get(1), "signature.inputs.shape[1]", MAX_WIDTH);
        long room = sizes.get(2) == null ? 0 : TaskSpec.integer(sizes.get(2), "signature.inputs.shape[2]", MAX_WIDTH);
        long width = TaskSpec.integer(sizes.get(3), "signature.inputs.shape[3]", MAX_WIDTH);
        if (room > 0 && heads * width > MAX_PART / room) {
            throw new IOException("manifest.json: a KV cache of " + sizes + ", expected less");
        }
        return new long[] {1, heads, room, width};
    }
}
