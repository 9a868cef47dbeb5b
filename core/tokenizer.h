/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Byte-level BPE of the Qwen2 family, from vocab.json + merges.txt +
 * tokenizer_config.json, or from tokenizer.json. Immutable after loading.
 *
 *   ids = qomni_tokenizer_encode (t, "hello", -1, QOMNI_ENCODE_PLAIN, &n, &error);
 *
 * Order, as in the reference: added tokens are cut out of the raw text; each
 * piece between them is normalised (NFC), split by the pre-tokenizer's
 * pattern, and merged. Time is linear (n log n within one word) on any input.
 */
#pragma once

#include "types.h"

G_BEGIN_DECLS

typedef enum
{
  QOMNI_ENCODE_PLAIN = 0,       /* special tokens in the text are plain text */
  QOMNI_ENCODE_SPECIAL = 1 << 0,        /* they are recognised */
} QomniEncodeFlags;

QomniTokenizer *qomni_tokenizer_read (const char *path, GError ** error);
void qomni_tokenizer_free (QomniTokenizer * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniTokenizer, qomni_tokenizer_free)

/* length -1: NUL-terminated. The text must be UTF-8. g_free() the result, which
 * is never NULL on success, even for no ids. */
int32_t *qomni_tokenizer_encode (const QomniTokenizer * self, const char *text,
    gssize length, QomniEncodeFlags flags, size_t * ret_n, GError ** error);
/* The id of exactly this token (added or regular, spelled as it reads), or -1. */
int32_t qomni_tokenizer_id (const QomniTokenizer * self, const char *token);
/* One more than the largest id that has a token. */
int32_t qomni_tokenizer_size (const QomniTokenizer * self);
bool qomni_tokenizer_is_special (const QomniTokenizer * self, int32_t id);

/* Text of `n` ids; bytes that are not UTF-8 become U+FFFD as in Python's
 * errors="replace". Special tokens are left out when `skip_special`. Ids
 * without a token give nothing. g_free(). */
char *qomni_tokenizer_decode (const QomniTokenizer * self, const int32_t * ids,
    size_t n, bool skip_special);

/* Text out of a stream of ids, never a split code point: bytes that may still
 * become one are held back until the next id or the flush. Special tokens are
 * skipped. All pieces together equal qomni_tokenizer_decode(). */
typedef struct _QomniDetokenizer QomniDetokenizer;
QomniDetokenizer *qomni_detokenizer_new (const QomniTokenizer * tokenizer);
void qomni_detokenizer_free (QomniDetokenizer * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniDetokenizer, qomni_detokenizer_free)
/* The text that is now certain, maybe empty; valid until the next call. */
const char *qomni_detokenizer_push (QomniDetokenizer * self, int32_t id);
const char *qomni_detokenizer_flush (QomniDetokenizer * self);

G_END_DECLS
