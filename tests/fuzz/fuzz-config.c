/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The text of a config.json. What is accepted keeps the promises that sizes
 * and loops of the engine are built on.
 */
#include "fuzz.h"

#include <stdlib.h>

#include "model-config.h"

static void
check_decoder (const QomniDecoderConfig * d)
{
  if (d->hidden_size < 1 || d->hidden_size > QOMNI_MAX_WIDTH
      || d->n_layers < 1 || d->n_layers > QOMNI_MAX_LAYERS || d->n_heads < 1
      || d->n_heads > QOMNI_MAX_HEADS || d->n_kv_heads < 1
      || d->n_heads % d->n_kv_heads != 0 || d->head_dim < 2
      || d->head_dim % 2 != 0 || d->n_experts > QOMNI_MAX_EXPERTS
      || d->top_k > d->n_experts || d->vocab_size < 1
      || d->intermediate_size < 1 || !(d->rope_theta >= 1))
    abort ();
}

static void
check (const QomniConfig * c)
{
  check_decoder (&c->text);
  if (c->has_audio && (c->audio.width % c->audio.n_heads != 0
          || c->audio.output_dim != c->text.hidden_size
          || c->audio.window_chunks < 1))
    abort ();
  if (c->has_vision && (c->vision.width % c->vision.n_heads != 0
          || c->vision.output_dim != c->text.hidden_size
          || c->vision.position_side < 1))
    abort ();
  for (int i = 0; c->has_vision && i < c->vision.n_deepstack; i++) {
    if (c->vision.deepstack_layer[i] >= c->vision.depth)
      abort ();
  }
  if (c->im_start >= c->text.vocab_size || c->audio_pad >= c->text.vocab_size)
    abort ();
  if (!c->has_speech)
    return;
  check_decoder (&c->talker.text);
  check_decoder (&c->talker.predictor);
  check_decoder (&c->code2wav.pre);
  if (c->talker.accept_layer > c->text.n_layers
      || c->talker.codec_eos >= c->talker.text.vocab_size
      || c->code2wav.n_quantizers != c->talker.n_groups
      || c->code2wav.codebook_size != c->talker.codebook_size
      || c->code2wav.samples_per_frame > 1 << 20)
    abort ();
  for (int i = 0; i < c->talker.n_voices; i++) {
    if (c->talker.voices[i].id >= c->talker.text.vocab_size)
      abort ();
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (size > 1 << 16)
    return 0;
  c = qomni_config_parse ("fuzz", (const char *) data, size, &error);
  if ((c != NULL) != (error == NULL))
    abort ();
  if (c != NULL)
    check (c);
  return 0;
}
