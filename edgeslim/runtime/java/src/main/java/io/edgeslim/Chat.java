// SPDX-License-Identifier: Apache-2.0
package io.edgeslim;

import android.content.Context;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;

/**
 * A conversation with a packaged language model: text in, text out, the KV cache kept from turn to turn.
 *
 * <pre>
 * try (Chat chat = Chat.open(context, "smollm2", RunOptions.defaults().withThreads(2))) {
 *     chat.answer("What is the sea?", Sampling.nucleus(0.7, 0.9, 1), 256, piece -&gt; show(piece));
 * }
 * </pre>
 *
 * <p>Opening and answering take seconds: do both on one worker thread. What stands between the turns comes from the
 * package, so no template engine is needed. The conversation is one thread's at a time, {@link #stop} excepted.
 */
public final class Chat implements AutoCloseable {
    /** Takes an answer's text. */
    public interface Listener {
        /** Called with each piece as soon as it is known: whole characters. */
        void onText(String piece);
    }

    private final ChatSpec spec;
    private final Tokenizer tokenizer;
    private final TokenDecoder decoder;
    private long[] tokens = new long[256];
    private int count;
    private volatile boolean isStopped;

    /** Over a decoder of one's own, which {@link #close} closes. */
    public Chat(Manifest manifest, Tokenizer tokenizer, TokenDecoder decoder) throws IOException {
        this(new ChatSpec(manifest), tokenizer, decoder);
    }

    private Chat(ChatSpec spec, Tokenizer tokenizer, TokenDecoder decoder) {
        this.spec = spec;
        this.tokenizer = tokenizer;
        this.decoder = decoder;
    }

    /** Opens the package {@code name} of this app's assets, as {@link EdgeslimModel#open} does. */
    public static Chat open(Context context, String name, RunOptions options) throws IOException {
        return open(AndroidAssets.unpack(context, name, true), options);
    }

    /** Opens files that are unpacked already. */
    public static Chat open(ModelFiles files, RunOptions options) throws IOException {
        ChatSpec spec = new ChatSpec(files.manifest());
        if (files.tokenizer() == null) {
            throw new IOException("this package has no tokenizer that the loader knows");
        }
        try (InputStream in = new FileInputStream(files.tokenizer())) {
            Tokenizer tokenizer = Tokenizer.open(in);
            return new Chat(spec, tokenizer, OrtTokenDecoder.open(files, options, spec));
        }
    }

    /**
     * The model's answer to the user's next words; special tokens' names in them are plain text. It ends where the model
     * ends it, at {@link #stop}, or where the context is full. After an IOException the conversation may end within a
     * turn: {@link #restart} it.
     *
     * @param maxTokens the longest answer
     * @param listener gets the text as it comes; may be null
     * @return the whole answer
     * @throws IllegalArgumentException where the words don't fit the context any more; the conversation is as it was
     */
    public String answer(String text, Sampling sampling, int maxTokens, Listener listener) throws IOException {
        isStopped = false;
        append(text);
        Sampler sampler = new Sampler(sampling);
        TextStream stream = new TextStream();
        StringBuilder answer = new StringBuilder();
        for (int made = 0; made < maxTokens && count <= spec.contextTokens && !isStopped; made++) {
            long token = sampler.choose(decoder.feed(Arrays.copyOfRange(tokens, decoder.length(), count)));
            if (isEnd(token)) {
                break;
            }
            add(token);
            tell(stream.push(tokenizer.bytesOf(token)), answer, listener);
        }
        tell(stream.finish(), answer, listener);
        return answer.toString();
    }

    private static void tell(String piece, StringBuilder answer, Listener listener) {
        answer.append(piece);
        if (listener != null && !piece.isEmpty()) {
            listener.onText(piece);
        }
    }

    /** The tokens of a turn: what stands before the user's words, those, and what stands behind them. */
    private void append(String text) {
        boolean hasTurns = spec.start != null;
        String before = !hasTurns ? "" : count > 0 ? spec.next : spec.start;
        String behind = hasTurns ? spec.reply : "";
        int last = addedTokens(before)[1];
        int first = addedTokens(behind)[0];
        int turn = count;
        encode(before.substring(0, last), false);
        encode(before.substring(last) + text + behind.substring(0, first), true);
        encode(behind.substring(first), false);
        if (count > spec.contextTokens || count == decoder.length()) {
            String got = count == decoder.length() ? "no tokens" : count + " tokens in all";
            count = turn;
            throw new IllegalArgumentException(got + ", the model's context has " + spec.contextTokens);
        }
    }

    private void encode(String text, boolean literal) {
        for (long token : tokenizer.encode(text, Integer.MAX_VALUE, false, literal)) {
            add(token);
        }
    }

    private void add(long token) {
        if (count == tokens.length) {
            tokens = Arrays.copyOf(tokens, 2 * count);
        }
        tokens[count++] = token;
    }

    /** Where the first added token begins, and where the last one ends; the text's length and 0 if there is none. */
    private int[] addedTokens(String text) {
        int[] found = {text.length(), 0};
        for (int at = 0; at < text.length(); ) {
            int end = Math.min(text.length(), at + 255);
            while (end > at && tokenizer.idOf(text.substring(at, end)) < 0) {
                end--;
            }
            if (end > at) {
                found[0] = Math.min(found[0], at);
                found[1] = end;
            }
            at = Math.max(end, at + 1);
        }
        return found;
    }

    private boolean isEnd(long token) {
        for (long end : spec.endTokens) {
            if (end == token) {
                return true;
            }
        }
        return false;
    }

    /** Ends the answer that is under way, behind the token at hand. Any thread may call it. */
    public void stop() {
        isStopped = true;
    }

    /** Forgets all turns. */
    public void restart() {
        decoder.restart();
        count = 0;
    }

    /** How many tokens the conversation has. */
    public int length() {
        return count;
    }

    @Override
    public void close() throws IOException {
        decoder.close();
    }
}
