/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniPrompt: the chat layout as a growing list of ids. Text between two
 * markers is tokenised as one run, so a part's first characters meet the
 * header's newline as they do in the reference. Markers spelled in a text are
 * text, never control.
 *
 *   qomni_prompt_open (p, QOMNI_ROLE_USER);
 *   qomni_prompt_audio (p, 68);
 *   qomni_prompt_text (p, "What is said?", &error);
 *   qomni_prompt_close (p);                 <|im_end|>\n
 *   qomni_prompt_open (p, QOMNI_ROLE_ASSISTANT);   the generation prompt
 */
#pragma once

#include "positions.h"
#include "tokenizer.h"

G_BEGIN_DECLS

typedef enum
{
  QOMNI_ROLE_SYSTEM,
  QOMNI_ROLE_USER,
  QOMNI_ROLE_ASSISTANT,
} QomniRole;

typedef struct _QomniPrompt QomniPrompt;

/* Of one text; parts that follow each other may not have more together. */
#define QOMNI_MAX_TEXT_BYTES ((size_t) 1 << 26)

QomniPrompt *qomni_prompt_new (const QomniConfig * config,
    const QomniTokenizer * tokenizer);
void qomni_prompt_free (QomniPrompt * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniPrompt, qomni_prompt_free)
void qomni_prompt_clear (QomniPrompt * self);

bool qomni_prompt_open (QomniPrompt * self, QomniRole role, GError ** error);
bool qomni_prompt_text (QomniPrompt * self, const char *text, GError ** error);
/* Ids generated before, kept as they were (an assistant turn of history). */
bool qomni_prompt_ids (QomniPrompt * self, const int32_t * ids, size_t n,
    GError ** error);
bool qomni_prompt_audio (QomniPrompt * self, int64_t n_tokens, GError ** error);
bool qomni_prompt_image (QomniPrompt * self, const QomniGrid * grid,
    GError ** error);
/* n_audio > 0: the video's own sound is merged into it; else pictures only. */
bool qomni_prompt_video (QomniPrompt * self, const QomniGrid * grid,
    int64_t n_audio, GError ** error);
bool qomni_prompt_close (QomniPrompt * self, GError ** error);

/* The ids so far; text that is not yet followed by a marker is tokenised as if
 * it ended here. `ret_n_final`, if not NULL, is how many can change no more. */
const int32_t *qomni_prompt_get (QomniPrompt * self, int64_t * ret_n,
    int64_t * ret_n_final, GError ** error);
/* What the placeholders stand for. Valid until the next change. */
QomniMediaSizes qomni_prompt_media (QomniPrompt * self);

G_END_DECLS
