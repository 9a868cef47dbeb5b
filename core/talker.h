/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniTalker: the Thinker's rows -> 24 kHz speech, frame by frame, while the
 * Thinker is still writing. One text row is used per 80 ms frame; when it has
 * not arrived yet the Talker waits for it.
 *
 *   t = qomni_talker_new (model, &params, NULL, &error);
 *   qomni_talker_push (t, rows, &error);
 *   while (qomni_talker_step (t, &step, NULL, &error)
 *       && step.state == QOMNI_TALKER_SOUND)
 *     write (step.samples, step.n_samples);
 *
 * N frames give 1920 N - 555 samples: the first 1365, then 1920 each.
 */
#pragma once

#include "embeddings.h"
#include "model.h"

G_BEGIN_DECLS

typedef struct
{
  QomniSampling sampling, predictor_sampling;
  uint64_t seed;
  const char *voice;            /* NULL: the default one */
  /* Of one reply. 0: what the sampling's max_tokens allow, which is one less:
   * as in the reference, the last token that may be drawn has no frame. */
  int max_frames;
  /* Frames of one step and of one push into Code2Wav, which reads its weights
   * once for all of them: 1 or more. The first frame of a reply never waits
   * for others. Default 1. */
  int group_frames;
  /* Guards against speech that does not end. They count only once all of the
   * text and its end mark have been used; what they stop ends as
   * QOMNI_SPEECH_RUNAWAY. 0 turns a guard off.
   * At most the larger of tail_frames (400: 32 s) and tail_frames_per_token
   * (12: about a second) times the tokens of the text may follow it. */
  int tail_frames, tail_frames_per_token;
  /* The same first code, or a cycle of at most 16 frames, for this many frames
   * (50: 4 s; off when greedy, where the reference repeats itself as well). */
  int loop_frames;
  QomniProbe *probe;
} QomniTalkerParams;
void qomni_talker_params_init (QomniTalkerParams * params,
    const QomniConfig * config);
/* Argmax for Talker and code predictor alike, and no loop guard. */
void qomni_talker_params_greedy (QomniTalkerParams * params);

QomniTalker *qomni_talker_new (QomniModel * model,
    const QomniTalkerParams * params, GCancellable * cancellable,
    GError ** error);
void qomni_talker_free (QomniTalker * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniTalker, qomni_talker_free)

/* Takes rows of modality THINKER (see embeddings.h); keeps a reference. Rows
 * are used in the order they come: those of a next turn may be pushed while
 * this one is spoken. Nothing is computed here. */
bool qomni_talker_push (QomniTalker * self, QomniEmbeddings * rows,
    GError ** error);

typedef enum
{
  QOMNI_TALKER_WAIT,            /* needs more rows */
  QOMNI_TALKER_SOUND,           /* samples are there */
  QOMNI_TALKER_END,             /* the reply is spoken, or has no speech */
} QomniTalkerState;

typedef enum
{
  QOMNI_SPEECH_STOP,            /* the codec's end token */
  QOMNI_SPEECH_LENGTH,          /* max_frames */
  QOMNI_SPEECH_RUNAWAY,         /* a guard stopped endless or looping speech */
  QOMNI_SPEECH_NONE,            /* nothing to say */
} QomniSpeechFinish;
/* "stop", … */
const char *qomni_speech_finish_name (QomniSpeechFinish finish);

typedef struct
{
  QomniTalkerState state;
  const float *samples;         /* valid until the next step */
  size_t n_samples;
  QomniSpeechFinish finish;     /* when state is END */
  int64_t n_frames;             /* so far in this reply */
} QomniTalkerStep;

/* Works on the prompt rows that have come, then computes one frame (or
 * group_frames of them). Every turn has one END, after which the Talker is
 * ready for the next one. After an error or a cancelled step the reply is over
 * (qomni_talker_cancel() is implied); the next turn works. */
bool qomni_talker_step (QomniTalker * self, QomniTalkerStep * ret,
    GCancellable * cancellable, GError ** error);
/* Drops the reply that is being spoken, or else the first one that waits to be;
 * rows of it that are still to come are ignored, it has no END. The prompt rows
 * are kept. */
void qomni_talker_cancel (QomniTalker * self);
/* Forgets everything but the voice. */
void qomni_talker_reset (QomniTalker * self);
/* From the next turn on. */
bool qomni_talker_set_voice (QomniTalker * self, const char *voice,
    GError ** error);

G_END_DECLS
