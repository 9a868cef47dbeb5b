/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One of each streaming object on a model, and a turn that uses all of them.
 */
#pragma once

#include <math.h>

#include "audio-encoder.h"
#include "talker.h"
#include "thinker.h"
#include "vision-encoder.h"

#define SIDE 64
#define N_SAMPLES 24000
#define ALL_COMPONENTS (QOMNI_COMPONENT_AUDIO | QOMNI_COMPONENT_VISION \
    | QOMNI_COMPONENT_THINKER | QOMNI_COMPONENT_SPEECH)

typedef struct
{
  QomniAudioEncoder *audio;
  QomniVisionEncoder *vision;
  QomniThinker *thinker;
  QomniTalker *talker;
} Engine;

static inline void
engine_free (Engine * e)
{
  qomni_audio_encoder_free (e->audio);
  qomni_vision_encoder_free (e->vision);
  qomni_thinker_free (e->thinker);
  qomni_talker_free (e->talker);
  g_free (e);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC (Engine, engine_free)

static inline Engine *
engine_new (QomniModel * model, GError ** error)
{
  const QomniConfig *config = qomni_model_config (model);
  g_autoptr (Engine) e = g_new0 (Engine, 1);
  QomniThinkerParams thinker;
  QomniTalkerParams talker;

  qomni_thinker_params_init (&thinker, config);
  thinker.sampling.sample = false;
  thinker.sampling.max_tokens = 3;
  thinker.want_hidden = true;
  qomni_talker_params_init (&talker, config);
  qomni_talker_params_greedy (&talker);
  talker.max_frames = 4;

  e->audio = qomni_audio_encoder_new (model, NULL, NULL, error);
  if (e->audio == NULL)
    return NULL;
  e->vision = qomni_vision_encoder_new (model, NULL, NULL, error);
  if (e->vision == NULL)
    return NULL;
  e->thinker = qomni_thinker_new (model, &thinker, NULL, error);
  if (e->thinker == NULL)
    return NULL;
  e->talker = qomni_talker_new (model, &talker, NULL, error);
  return e->talker != NULL ? g_steal_pointer (&e) : NULL;
}

static inline void
engine_reset (Engine * e)
{
  qomni_audio_encoder_reset (e->audio);
  qomni_vision_encoder_reset (e->vision);
  qomni_thinker_reset (e->thinker);
  qomni_talker_reset (e->talker);
}

static inline bool
hear (Engine * e, GCancellable * cancellable, GError ** error)
{
  g_autofree float *samples = g_new (float, N_SAMPLES);
  QomniEmbeddings *block;
  GError *failure = NULL;

  for (int i = 0; i < N_SAMPLES; i++)
    samples[i] = sinf ((float) i * 0.1f) * 0.3f;
  if (!qomni_audio_encoder_push (e->audio, samples, N_SAMPLES, error)
      || !qomni_audio_encoder_flush (e->audio, error))
    return false;
  while ((block = qomni_audio_encoder_pull (e->audio, cancellable,
              &failure)) != NULL) {
    g_assert_true (qomni_thinker_push_embeddings (e->thinker, block, NULL));
    qomni_embeddings_unref (block);
  }
  if (failure == NULL)
    return true;
  g_propagate_error (error, failure);
  return false;
}

static inline bool
see (Engine * e, GCancellable * cancellable, GError ** error)
{
  g_autofree uint8_t *pixels = g_malloc (SIDE * SIDE * 3);
  const QomniImage image = { pixels, SIDE, SIDE, SIDE * 3, 3 };
  g_autoptr (QomniEmbeddings) block = NULL;

  for (int i = 0; i < SIDE * SIDE * 3; i++)
    pixels[i] = (uint8_t) (i * 7);
  if (!qomni_vision_encoder_begin (e->vision, QOMNI_MODALITY_IMAGE, 0, error)
      || !qomni_vision_encoder_push (e->vision, &image, error)
      || !qomni_vision_encoder_flush (e->vision, error))
    return false;
  block = qomni_vision_encoder_pull (e->vision, cancellable, error);
  return block != NULL
      && qomni_thinker_push_embeddings (e->thinker, block, error);
}

/* The Thinker's answer, its tokens appended to `ret`. */
static inline bool
answer (Engine * e, GString * ret, GCancellable * cancellable,
    GError ** error)
{
  QomniThinkerStep step = {.done = false };

  if (!qomni_thinker_end_turn (e->thinker, error))
    return false;
  for (bool done = false; !done;) {
    if (!qomni_thinker_step (e->thinker, &step, cancellable, error))
      return false;
    g_string_append_printf (ret, "%d ", step.token);
    for (int i = 0; i < step.n_hidden; i++)
      g_assert_true (qomni_talker_push (e->talker, step.hidden[i], NULL));
    done = step.done;
    qomni_thinker_step_clear (&step);
  }
  return true;
}

/* What a turn amounts to, in a string. */
static inline bool
converse (Engine * e, GString * ret, GCancellable * cancellable,
    GError ** error)
{
  QomniTalkerStep speech = {.state = QOMNI_TALKER_WAIT };
  size_t n_samples = 0;
  double sum = 0;

  g_string_truncate (ret, 0);
  if (!hear (e, cancellable, error) || !see (e, cancellable, error)
      || !qomni_thinker_push_text (e->thinker, "What is this?", error)
      || !qomni_thinker_prefill (e->thinker, cancellable, error)
      || !answer (e, ret, cancellable, error))
    return false;

  while (speech.state != QOMNI_TALKER_END) {
    if (!qomni_talker_step (e->talker, &speech, cancellable, error))
      return false;
    n_samples += speech.n_samples;
    for (size_t i = 0; i < speech.n_samples; i++)
      sum += fabs ((double) speech.samples[i]);
  }
  g_string_append_printf (ret, "%zu %.9g", n_samples, sum);
  g_assert_cmpuint (n_samples, >, 0);
  return true;
}
