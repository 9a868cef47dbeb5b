/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Calls of the streaming objects in any order: two bytes of the input are one
 * call, its number and what it is given. Whatever is misused says so, and
 * nothing else happens. $QOMNI_TEST_FIXTURES has the model.
 */
#include "fuzz.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio-encoder.h"
#include "talker.h"
#include "thinker.h"
#include "vision-encoder.h"

#define MAX_CALLS 256
#define N_BLOCKS 8
#define MOST_SAMPLES 40000
#define MOST_SIDE 160

typedef struct
{
  QomniModel *model;
  QomniAudioEncoder *audio;
  QomniVisionEncoder *vision;
  QomniThinker *thinker;
  QomniTalker *talker;
  GCancellable *cancelled;
  QomniEmbeddings *blocks[N_BLOCKS];    /* what came out, to be put in */
  unsigned n_blocks;            /* ever kept */
} Engine;

/* A call that fails has an error, and one that does not has none. */
static void
check (bool ok, GError ** error)
{
  if (ok != (*error == NULL))
    abort ();
  g_clear_error (error);
}

static void
keep (Engine * e, QomniEmbeddings * block, uint8_t with)
{
  QomniEmbeddings **place = &e->blocks[e->n_blocks++ % N_BLOCKS];

  if (block == NULL)
    return;
  if (with & 1)
    block->last = !block->last;
  if (with & 2)
    block->in_video = true;
  if (with & 4)
    block->clip ^= 1;
  if ((with & 0x38) == 0x38) {
    block->rows_kind = with >> 6;
    block->first_row += with & 7;
  }
  qomni_embeddings_unref (*place);
  *place = block;
}

/* --- encoders ------------------------------------------------------------- */

static void
push_sound (Engine * e, uint8_t with)
{
  static float samples[MOST_SAMPLES];
  size_t n = MIN ((size_t) with * with, MOST_SAMPLES);
  GError *error = NULL;

  for (size_t i = 0; i < n; i++)
    samples[i] = with % 8 == 7 && i % 100 == 0 ? NAN
        : sinf ((float) i * 0.01f * (float) with);
  check (qomni_audio_encoder_push (e->audio, samples, n, &error), &error);
}

static void
push_picture (Engine * e, uint8_t with)
{
  static const int sides[] = { 1, 2, 31, 64, MOST_SIDE, 0, -1, 65536 };
  static uint8_t pixels[MOST_SIDE * MOST_SIDE * 4];
  const int width = sides[with & 7], height = sides[with >> 3 & 7];
  const int n_channels = 1 + (with >> 6);
  const QomniImage image = {
    pixels, width, height, (size_t) MAX (width, 0) * (size_t) n_channels,
    n_channels
  };
  GError *error = NULL;

  memset (pixels, with, sizeof pixels);
  check (qomni_vision_encoder_push (e->vision, &image, &error), &error);
}

static void
begin_clip (Engine * e, uint8_t with)
{
  static const double seconds[] = { 1, 0.5, 0, -1, NAN, INFINITY, 1e300, 2 };
  GError *error = NULL;

  check (qomni_vision_encoder_begin (e->vision, (QomniModality) (with % 4),
          seconds[with >> 2 & 7], &error), &error);
}

/* Nothing without an error: there is none yet. */
static void
pulled (Engine * e, QomniEmbeddings * block, GError * error, uint8_t with)
{
  if (block != NULL && error != NULL)
    abort ();
  g_clear_error (&error);
  keep (e, block, with);
}

static void
call_encoder (Engine * e, uint8_t call, uint8_t with)
{
  GCancellable *cancellable = with % 8 == 0 ? e->cancelled : NULL;
  QomniEmbeddings *block;
  GError *error = NULL;

  switch (call) {
    case 0:
      push_sound (e, with);
      break;
    case 1:
      check (qomni_audio_encoder_flush (e->audio, &error), &error);
      break;
    case 2:
      block = qomni_audio_encoder_pull (e->audio, cancellable, &error);
      pulled (e, block, error, with);
      break;
    case 3:
      qomni_audio_encoder_reset (e->audio);
      break;
    case 4:
      begin_clip (e, with);
      break;
    case 5:
      push_picture (e, with);
      break;
    case 6:
      check (qomni_vision_encoder_flush (e->vision, &error), &error);
      break;
    case 7:
      block = qomni_vision_encoder_pull (e->vision, cancellable, &error);
      pulled (e, block, error, with);
      break;
    default:
      qomni_vision_encoder_reset (e->vision);
  }
}

/* --- the Thinker ---------------------------------------------------------- */

static const char *const texts[] = {
  "What is said?", "", " ", "\n", "<|im_end|>\n<|im_start|>user\n", "\xff",
  "a\xcc\x81\xf0\x9f\x98\x80", "<|audio_pad|><|vision_start|>",
};

static void
step_thinker (Engine * e, uint8_t with)
{
  QomniThinkerStep step;
  GError *error = NULL;

  check (qomni_thinker_step (e->thinker, &step, with % 16 == 0 ? e->cancelled
          : NULL, &error), &error);
  for (int i = 0; i < step.n_hidden; i++) {
    GError *refused = NULL;

    if (with % 2 == 0)
      check (qomni_talker_push (e->talker, step.hidden[i], &refused), &refused);
    else
      keep (e, g_steal_pointer (&step.hidden[i]), with);
  }
  qomni_thinker_step_clear (&step);
}

static void
set_sampling (Engine * e, uint8_t with)
{
  static const double numbers[] = { 1, 0, -1, NAN, INFINITY, 1e-300, 0.5, 2 };
  const QomniSampling sampling = {
    .sample = with & 1,
    .temperature = numbers[with >> 1 & 7],
    .top_p = numbers[with >> 2 & 7],
    .repetition_penalty = numbers[with >> 3 & 7],
    .top_k = with % 5 - 1,
    .max_tokens = with % 7 - 1,
  };

  qomni_thinker_set_sampling (e->thinker, &sampling);
}

static void
call_thinker (Engine * e, uint8_t call, uint8_t with)
{
  const char *text = texts[with % G_N_ELEMENTS (texts)];
  QomniEmbeddings *block = e->blocks[with % N_BLOCKS];
  GError *error = NULL;

  switch (call) {
    case 0:
      check (qomni_thinker_push_text (e->thinker, text, &error), &error);
      break;
    case 1:
      if (block != NULL)
        check (qomni_thinker_push_embeddings (e->thinker, block, &error),
            &error);
      break;
    case 2:
      check (qomni_thinker_push_history (e->thinker,
              (QomniRole) (with >> 3 & 1) + (with >> 4 & 1), text, &error),
          &error);
      break;
    case 3:
      check (qomni_thinker_close_turn (e->thinker, &error), &error);
      break;
    case 4:
      check (qomni_thinker_prefill (e->thinker,
              with % 8 == 0 ? e->cancelled : NULL, &error), &error);
      break;
    case 5:
      check (qomni_thinker_end_turn (e->thinker, &error), &error);
      break;
    case 6:
    case 7:
      step_thinker (e, with);
      break;
    case 8:
      qomni_thinker_cancel (e->thinker);
      break;
    case 9:
      qomni_thinker_drop_turn (e->thinker);
      break;
    case 10:
      qomni_thinker_set_system_prompt (e->thinker, with % 9 ? text : NULL);
      break;
    case 11:
      set_sampling (e, with);
      break;
    default:
      qomni_thinker_reset (e->thinker);
  }
}

/* --- the Talker, and all of them ------------------------------------------ */

static void
call_talker (Engine * e, uint8_t call, uint8_t with)
{
  QomniEmbeddings *block = e->blocks[with % N_BLOCKS];
  QomniTalkerStep step;
  GError *error = NULL;

  switch (call) {
    case 0:
      if (block != NULL)
        check (qomni_talker_push (e->talker, block, &error), &error);
      break;
    case 1:
    case 2:
      check (qomni_talker_step (e->talker, &step, with % 16 == 0
              ? e->cancelled : NULL, &error), &error);
      for (size_t i = 0; i < step.n_samples; i++)
        if (!(fabsf (step.samples[i]) <= 1))
          abort ();
      break;
    case 3:
      qomni_talker_cancel (e->talker);
      break;
    case 4:
      check (qomni_talker_set_voice (e->talker, with % 2 ? NULL : "nobody",
              &error), &error);
      break;
    default:
      qomni_talker_reset (e->talker);
  }
}

/* Without a backend that fails there is no reason why one cannot be made. */
static void
need (const void *object, const GError * error)
{
  if (object != NULL)
    return;
  g_printerr ("%s\n", error->message);
  abort ();
}

static void
make (Engine * e, uint8_t which, uint8_t with)
{
  const QomniConfig *config = qomni_model_config (e->model);
  const QomniAudioEncoderParams audio = {.block_seconds = 1,.live = with & 1 };
  const QomniVisionEncoderParams vision = {.min_pixels = 1,.max_pixels = 8192 };
  QomniThinkerParams thinker;
  QomniTalkerParams talker;
  g_autoptr (GError) error = NULL;

  if (which == 0) {
    qomni_audio_encoder_free (e->audio);
    e->audio = qomni_audio_encoder_new (e->model, &audio, NULL, &error);
    need (e->audio, error);
  } else if (which == 1) {
    qomni_vision_encoder_free (e->vision);
    e->vision = qomni_vision_encoder_new (e->model, &vision, NULL, &error);
    need (e->vision, error);
  } else if (which == 2) {
    qomni_thinker_params_init (&thinker, config);
    thinker.sampling.max_tokens = 4;
    thinker.use_audio_in_video = with & 1;
    thinker.want_hidden = (with & 6) != 0;
    thinker.system_prompt = with & 8 ? "Be brief." : NULL;
    qomni_thinker_free (e->thinker);
    e->thinker = qomni_thinker_new (e->model, &thinker, NULL, &error);
    need (e->thinker, error);
  } else {
    qomni_talker_params_init (&talker, config);
    talker.max_frames = 3;
    talker.group_frames = 1 + (with & 3);
    qomni_talker_free (e->talker);
    e->talker = qomni_talker_new (e->model, &talker, NULL, &error);
    need (e->talker, error);
  }
}

static void
call (Engine * e, uint8_t number, uint8_t with)
{
  if (number < 9)
    call_encoder (e, number, with);
  else if (number < 22)
    call_thinker (e, number - 9, with);
  else if (number < 28)
    call_talker (e, number - 22, with);
  else
    make (e, number - 28, with);
}

static QomniModel *
open_model (void)
{
  static const QomniComponents all = QOMNI_COMPONENT_AUDIO
      | QOMNI_COMPONENT_VISION | QOMNI_COMPONENT_THINKER
      | QOMNI_COMPONENT_SPEECH;
  const char *fixtures = g_getenv ("QOMNI_TEST_FIXTURES");
  QomniModelOptions options = QOMNI_MODEL_OPTIONS_INIT;
  g_autofree char *path = g_build_filename (fixtures != NULL ? fixtures
      : "tests/parity/fixtures", "tiny-a", NULL);
  g_autoptr (GError) error = NULL;
  QomniModel *model;

  options.n_threads = 1;
  model = qomni_model_new (path, &options, &error);
  if (model == NULL
      || !qomni_model_load (model, all, NULL, NULL, NULL, &error)) {
    g_printerr ("%s\n", error->message);
    abort ();
  }
  return model;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  static QomniModel *model;
  Engine e = { 0 };

  if (model == NULL)
    model = open_model ();
  e.model = model;
  e.cancelled = g_cancellable_new ();
  g_cancellable_cancel (e.cancelled);
  for (uint8_t i = 0; i < 4; i++)
    make (&e, i, size > 0 ? data[0] : 6);

  for (size_t i = 0; i + 1 < size && i < 2 * MAX_CALLS; i += 2)
    call (&e, data[i] % 32, data[i + 1]);

  for (size_t i = 0; i < N_BLOCKS; i++)
    qomni_embeddings_unref (e.blocks[i]);
  qomni_audio_encoder_free (e.audio);
  qomni_vision_encoder_free (e.vision);
  qomni_thinker_free (e.thinker);
  qomni_talker_free (e.talker);
  g_object_unref (e.cancelled);
  return 0;
}
