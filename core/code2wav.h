/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniCode2Wav: codec frames -> samples, exact and causal: any split of the
 * frames gives the samples of one decode. N frames give 1920 N - 555 samples
 * with the published rates; in general samples_per_frame N - missing_samples,
 * but not less than none.
 *
 *   c = qomni_code2wav_new (model, 4, NULL, &error);
 *   while (more codes)
 *     if (qomni_code2wav_push (c, codes, n, &samples, &n_samples, &error))
 *       write (samples, n_samples);
 */
#pragma once

#include "model.h"

G_BEGIN_DECLS

typedef struct _QomniCode2Wav QomniCode2Wav;

/* At most `max_frames` frames go into one push. Loads the component. */
QomniCode2Wav *qomni_code2wav_new (QomniModel * model, int max_frames,
    GCancellable * cancellable, GError ** error);
void qomni_code2wav_free (QomniCode2Wav * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniCode2Wav, qomni_code2wav_free)

/* codes [n_frames, n_quantizers], each within the codebook (checked, and then
 * nothing has changed). The samples, within -1 … 1, are valid until the next
 * call. After any other error the next push begins a new utterance. */
bool qomni_code2wav_push (QomniCode2Wav * self, const int32_t * codes,
    int n_frames, const float **ret_samples, size_t *ret_n_samples,
    GError ** error);
/* The next push begins a new utterance. */
void qomni_code2wav_reset (QomniCode2Wav * self);

G_END_DECLS
