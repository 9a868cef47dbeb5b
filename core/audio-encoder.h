/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniAudioEncoder: 16 kHz mono samples -> blocks of embeddings, 13 tokens per
 * second. One clip is push…, flush; then the next clip may begin.
 *
 *   e = qomni_audio_encoder_new (model, NULL, NULL, &error);
 *   qomni_audio_encoder_push (e, samples, n, &error);
 *   qomni_audio_encoder_flush (e, &error);
 *   while ((block = qomni_audio_encoder_pull (e, NULL, &error)) != NULL) …
 *
 * Any split of the same samples gives the same blocks. The reference scales
 * log-mel by the maximum of the whole clip, so by default nothing comes out
 * before the flush; with `live` the maximum is the one heard so far (at the end
 * of each block) and blocks come out as they close.
 */
#pragma once

#include "embeddings.h"
#include "model.h"

G_BEGIN_DECLS

typedef struct
{
  double block_seconds;         /* attention block: 1 … 8 whole seconds; 0: as
                                 * the config says (8) */
  bool live;
  QomniProbe *probe;            /* audio.features, audio.embeddings */
} QomniAudioEncoderParams;

/* Loads the audio component if need be. params may be NULL. */
QomniAudioEncoder *qomni_audio_encoder_new (QomniModel * model,
    const QomniAudioEncoderParams * params, GCancellable * cancellable,
    GError ** error);
void qomni_audio_encoder_free (QomniAudioEncoder * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniAudioEncoder, qomni_audio_encoder_free)

/* Non-finite samples count as 0. Fails only without memory, and then the clip
 * has a hole: reset. */
bool qomni_audio_encoder_push (QomniAudioEncoder * self, const float *samples,
    size_t n, GError ** error);
bool qomni_audio_encoder_push_s16 (QomniAudioEncoder * self,
    const int16_t * samples, size_t n, GError ** error);
/* Ends the clip: what is left becomes the last block. A clip of up to 200
 * samples is padded with zeros to 400 (one token); an empty one gives no block
 * and has no number. */
bool qomni_audio_encoder_flush (QomniAudioEncoder * self, GError ** error);
/* The next block, or NULL: without an error there is none yet. `clip` counts
 * from 0; start and duration are relative to the clip. */
QomniEmbeddings *qomni_audio_encoder_pull (QomniAudioEncoder * self,
    GCancellable * cancellable, GError ** error);
/* Forgets the open clip and what was not pulled. */
void qomni_audio_encoder_reset (QomniAudioEncoder * self);

/* Tokens of a clip of F mel frames: 13 floor (F/100) + ceil ((F mod 100)/8). */
int64_t qomni_audio_n_tokens (int64_t n_frames);

G_END_DECLS
