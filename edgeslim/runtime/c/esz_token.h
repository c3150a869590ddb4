/* Texts to token ids and back, by the tables of a packed tokenizer (tokenizer.etk): C99, no dependency, no file.
 *
 *   BERT's WordPiece: cleaned, spaced, stripped of accents and lower-cased text, split at white space and punctuation;
 *   byte-level BPE (GPT-2 and its kin): split by GPT-2's pattern, bytes merged by rank; and back to text.
 *
 * The caller owns all memory. The file's bytes are used where they lie (flash, a mapped file) and must stay; they are
 * checked as a whole by esz_token_open, so they may come from anybody. Texts are UTF-8 with their length, may hold zero
 * bytes, and what is malformed counts as U+FFFD, as Python's errors="replace" has it. WordPiece takes about 8 KB of
 * stack and allocates nothing. BPE needs work space of 32 bytes for each byte of a piece between two splits (a word, a
 * run of spaces): 8 KB of it lie on the stack, too; for a longer piece it is allocated and freed within the call.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ESZ_TOKEN_H
#define ESZ_TOKEN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    ESZ_TOKEN_OK = 0,
    ESZ_TOKEN_FORMAT = 1, /* no tokenizer file, a newer one, or a damaged one */
    ESZ_TOKEN_ROOM = 2,   /* not even the special tokens fit; or the text of decoded tokens doesn't */
    ESZ_TOKEN_MEMORY = 3, /* malloc failed: a very long word */
    ESZ_TOKEN_ID = 4      /* no such token */
} esz_token_status;

#define ESZ_TOKEN_NONE (-1)

/* Tokens sorted by their bytes. */
typedef struct {
    const uint8_t *lengths, *places, *ids, *pool;
    uint32_t count, pool_bytes;
    int wide;
} esz_token_strings;

typedef struct {
    const uint8_t *runs, *pairs, *pool, *shorts;
    uint32_t run_count, pair_count, pool_count, short_count;
} esz_token_map;

/* An open tokenizer: pointers into the file's bytes. About 1.5 KB; several threads may use one at once. */
typedef struct {
    const uint8_t *frame, *segments, *classes, *merge_keys, *merge_ranks, *merge_ids, *by_id;
    esz_token_map decompositions, lower_case;
    esz_token_strings added, words, parts;
    uint32_t kind, flags, vocabulary_size, unknown, most_characters, pad, longest, front, behind;
    uint32_t segment_count, class_count, merge_count, by_id_count;
    uint32_t longest_added;
    uint32_t byte_ids[256]; /* BPE: the token of each byte, or all ones */
    uint8_t added_first[32]; /* a bit for each byte that an added token begins with */
} esz_tokenizer;

/* Checks the whole file and points into it; `data` needs no alignment. Takes about a millisecond a megabyte. */
esz_token_status esz_token_open(esz_tokenizer *tokenizer, const void *data, size_t bytes);

/* For `options`. */
#define ESZ_TOKEN_PLAIN 1u   /* no special tokens in front and behind */
#define ESZ_TOKEN_LITERAL 2u /* a special token's name in the text is plain text: for what users or strangers wrote */

/* The ids of one text, special tokens included, at most `room` (a model's greatest length). A longer text is cut as
 * Hugging Face's tokenizers cut it: the special tokens stay. `*was_cut`, which may be null, says whether it was. */
esz_token_status esz_token_encode(const esz_tokenizer *tokenizer, const char *text, size_t text_bytes, unsigned options,
                                  int64_t *ids, size_t room, size_t *count, int *was_cut);

/* The padding token's id, or ESZ_TOKEN_NONE. */
int64_t esz_token_pad(const esz_tokenizer *tokenizer);

/* The id of an added token, such as "<|im_end|>" or "[SEP]", by its name; ESZ_TOKEN_NONE if there is none. */
int64_t esz_token_id(const esz_tokenizer *tokenizer, const char *name, size_t name_bytes);

/* BPE: the bytes of one token. A character may be spread over several tokens. Whether it is a special token goes to
 * `*special`, which may be null. */
esz_token_status esz_token_text(const esz_tokenizer *tokenizer, int64_t id, const char **text, size_t *text_bytes,
                                int *special);

/* BPE: ids to the bytes of their text, special tokens left out on demand. `*text_bytes` is what it takes, even where it
 * is more than `room`. What isn't valid UTF-8 (a text that begins or ends within a character) is for the caller to
 * replace. */
esz_token_status esz_token_decode(const esz_tokenizer *tokenizer, const int64_t *ids, size_t count, int skip_special,
                                  char *text, size_t room, size_t *text_bytes);

#ifdef __cplusplus
}
#endif
#endif
