/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniMel: 16 kHz samples -> log-mel frames, 100 per second, as Whisper's
 * feature extractor has them before it scales them by the clip's maximum.
 *
 *   while (n > 0) {
 *     size_t used = qomni_mel_push (mel, samples, n);
 *     samples += used;
 *     n -= used;
 *     while (qomni_mel_next (mel, frame))
 *       …
 *   }
 *   qomni_mel_flush (mel);
 *   while (qomni_mel_next (mel, frame))
 *     …
 *   qomni_mel_normalize (frame, n_mel, maximum of all frames);
 *   qomni_mel_reset (mel);
 *
 * Any split of the same samples gives the same frames, bit for bit. Nothing is
 * allocated and nothing can fail once it is made.
 */
#pragma once

#include "types.h"

G_BEGIN_DECLS

#define QOMNI_SAMPLE_RATE 16000
#define QOMNI_MEL_HOP 160
/* What a clip that is too short for the reflection at its ends (1 … 200
 * samples) is padded to with zeros: one analysis window, two frames. */
#define QOMNI_MEL_SHORTEST 400

typedef struct _QomniMel QomniMel;

/* NULL without memory. n_mel >= 1 */
QomniMel *qomni_mel_new (int n_mel);
void qomni_mel_free (QomniMel * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniMel, qomni_mel_free)

/* Takes the samples it has room for, at least one when all finished frames
 * were fetched, and says how many. Non-finite samples count as 0. */
size_t qomni_mel_push (QomniMel * self, const float *samples, size_t n);
/* Ends the clip: the frames that wait for samples to come are finished. */
void qomni_mel_flush (QomniMel * self);
/* Writes the next finished frame, log10 of [n_mel] powers, or returns false. A
 * clip of L samples has floor (L / 160) frames. */
bool qomni_mel_next (QomniMel * self, float *ret_frame);
/* Samples of this clip so far, without padding. */
int64_t qomni_mel_n_samples (const QomniMel * self);
/* Back to the beginning of a clip. */
void qomni_mel_reset (QomniMel * self);

/* In place: 80 dB below `max` and all under it are one, then about -1 … 1.
 * `max` is that of all the frames of the clip. */
void qomni_mel_normalize (float *values, size_t n, float max);

G_END_DECLS
