/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniThinker: one conversation with the language model. Turns are pushed part
 * by part, and prefilled as they become certain; then the reply is stepped out
 * token by token. History and its KV cache are kept from turn to turn.
 *
 *   t = qomni_thinker_new (model, &params, NULL, &error);
 *   qomni_thinker_push_embeddings (t, audio_block, &error);
 *   qomni_thinker_push_text (t, "What is said?", &error);
 *   qomni_thinker_end_turn (t, &error);
 *   do {
 *     ok = qomni_thinker_step (t, &step, NULL, &error);
 *     fputs (step.text, stdout);
 *   } while (ok && !step.done);
 *
 * Used by one thread at a time.
 */
#pragma once

#include "embeddings.h"
#include "model.h"
#include "prompt.h"

G_BEGIN_DECLS

typedef struct
{
  QomniSampling sampling;       /* see qomni_thinker_params_init() */
  uint64_t seed;
  const char *system_prompt;    /* NULL: none */
  bool use_audio_in_video;      /* cannot change within a conversation */
  bool want_hidden;             /* make rows for a Talker */
  /* input_ids, position_ids, thinker.…, output_ids of the last turn. With a
   * probe every prompt is computed whole, at the end of its turn. */
  QomniProbe *probe;
} QomniThinkerParams;
/* The checkpoint's defaults. */
void qomni_thinker_params_init (QomniThinkerParams * params,
    const QomniConfig * config);

QomniThinker *qomni_thinker_new (QomniModel * model,
    const QomniThinkerParams * params, GCancellable * cancellable,
    GError ** error);
void qomni_thinker_free (QomniThinker * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniThinker, qomni_thinker_free)

/* Parts of the user's turn, in prompt order. A block of embeddings whose
 * modality and clip equal those of a part of this turn that has not had its
 * `last` block is appended to it, else it begins a new part, as every IMAGE
 * does. With use_audio_in_video, AUDIO blocks with in_video set join the VIDEO
 * part of the same clip; without it they are ordinary sound. Parts may be
 * pushed while a reply is stepped: they are of the next turn. A block that is
 * refused leaves the turn as it was. */
bool qomni_thinker_push_text (QomniThinker * self, const char *text,
    GError ** error);
bool qomni_thinker_push_embeddings (QomniThinker * self,
    QomniEmbeddings * block, GError ** error);
/* A whole turn of earlier conversation (what an assistant said, a system
 * message in the middle). Not while a turn is open. */
bool qomni_thinker_push_history (QomniThinker * self, QomniRole role,
    const char *text, GError ** error);
/* Ends a user turn without asking for an answer (history that has media). */
bool qomni_thinker_close_turn (QomniThinker * self, GError ** error);

/* Computes as much of the prompt as is certain by now; optional, it shortens
 * the wait after the end of the turn. */
bool qomni_thinker_prefill (QomniThinker * self, GCancellable * cancellable,
    GError ** error);
/* Ends the user's turn; stepping may begin. */
bool qomni_thinker_end_turn (QomniThinker * self, GError ** error);

typedef enum
{
  QOMNI_FINISH_NONE,
  QOMNI_FINISH_STOP,            /* the model ended its reply */
  QOMNI_FINISH_LENGTH,          /* max_tokens */
  QOMNI_FINISH_CANCELLED,
} QomniFinish;
const char *qomni_finish_name (QomniFinish finish);     /* "stop", … */

typedef struct
{
  int32_t token;                /* -1 when none was drawn */
  const char *text;             /* what became certain; valid until the next step */
  bool done;
  QomniFinish finish;           /* when done */
  QomniEmbeddings *hidden[4];   /* for the Talker, in order; the caller unrefs */
  int n_hidden;
} QomniThinkerStep;

/* The first step also prefills what is left of the prompt. After a cancelled
 * step the reply is over (qomni_thinker_cancel() is implied). After any other
 * error it is forgotten together with the turn that it was to answer, and the
 * conversation goes on as if that had not been. */
bool qomni_thinker_step (QomniThinker * self, QomniThinkerStep * ret,
    GCancellable * cancellable, GError ** error);
void qomni_thinker_step_clear (QomniThinkerStep * step);
/* Ends the reply at what was said so far; history keeps that (less the ids that
 * mean layout or media, should the model have drawn any). */
void qomni_thinker_cancel (QomniThinker * self);
/* Drops the open turn's parts (a flush); history is kept. */
void qomni_thinker_drop_turn (QomniThinker * self);
/* Forgets the conversation. */
void qomni_thinker_reset (QomniThinker * self);

void qomni_thinker_set_sampling (QomniThinker * self,
    const QomniSampling * sampling);
/* From the next conversation (after reset) on. */
void qomni_thinker_set_system_prompt (QomniThinker * self, const char *text);

int64_t qomni_thinker_prompt_tokens (const QomniThinker * self);
int64_t qomni_thinker_reply_tokens (const QomniThinker * self);

G_END_DECLS
