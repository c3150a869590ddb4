// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * Which provider ran how many nodes, and for how long, by ONNX Runtime's own profile.
 *
 * <p>That is as far as its Java API lets one see: the profile names the provider of each kernel that ran. A provider
 * that takes a part of the graph as one (NNAPI) shows as one node, so the share by time says more than that by nodes.
 * What the provider itself then hands to a slower unit of the phone can't be seen at all.
 */
public final class ProviderShare {
    /** Nodes that ran, by provider, such as "CPUExecutionProvider". */
    public final Map<String, Integer> nodes;
    /** Microseconds within those nodes, by provider. */
    public final Map<String, Long> micros;

    private ProviderShare(Map<String, Integer> nodes, Map<String, Long> micros) {
        this.nodes = Collections.unmodifiableMap(nodes);
        this.micros = Collections.unmodifiableMap(micros);
    }

    /** Reads a profile of at most 1 MiB: that of a run or two. */
    static ProviderShare read(File profile) throws IOException {
        try (InputStream in = new FileInputStream(profile)) {
            return parse(Disk.readAll(in, Json.MAX_BYTES));
        }
    }

    static ProviderShare parse(byte[] json) throws IOException {
        Map<String, Integer> nodes = new TreeMap<>();
        Map<String, Long> micros = new TreeMap<>();
        Object root = Json.parse(json);
        if (!(root instanceof List)) {
            throw new IOException("the profile is no list of events");
        }
        for (Object event : (List<?>) root) {
            Map<?, ?> fields = event instanceof Map ? (Map<?, ?>) event : Collections.emptyMap();
            Map<?, ?> details = fields.get("args") instanceof Map ? (Map<?, ?>) fields.get("args") : Collections.emptyMap();
            Object provider = details.get("provider");
            if ("Node".equals(fields.get("cat")) && provider instanceof String && fields.get("dur") instanceof Long) {
                Integer count = nodes.get(provider);
                Long time = micros.get(provider);
                nodes.put((String) provider, count == null ? 1 : count + 1);
                micros.put((String) provider, (time == null ? 0 : time) + (Long) fields.get("dur"));
            }
        }
        return new ProviderShare(nodes, micros);
    }

    /** The share of nodes that ran on the CPU provider, 0 to 1: what another provider left. */
    public double cpuShare() {
        int all = 0;
        for (int count : nodes.values()) {
            all += count;
        }
        Integer cpu = nodes.get("CPUExecutionProvider");
        return all == 0 || cpu == null ? 0 : (double) cpu / all;
    }
}
