/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniCodePredictor: the residual codes of one codec frame, one after the
 * other, from the Talker's last hidden row and the code it drew.
 *
 *   codes[0] = …;
 *   qomni_code_predictor_run (p, z, &codec_embedding, codes, &error);
 */
#pragma once

#include "decoder.h"

G_BEGIN_DECLS

typedef struct
{
  QomniDecoder *decoder;
  int n_residual;               /* codes made here: n_groups - 1 */
  QkTensor *embedding;          /* [n_residual] of [codebook_size, width] */
  QkTensor *head;               /* likewise */
} QomniCodePredictorWeights;

/* Claims `<prefix>.model.…` and `<prefix>.lm_head.<i>.weight`. */
QomniCodePredictorWeights *qomni_code_predictor_weights_claim (
    const QomniTalkerConfig * config, QomniWeights * weights,
    const char *prefix);
void qomni_code_predictor_weights_free (QomniCodePredictorWeights * self);

typedef struct _QomniCodePredictor QomniCodePredictor;

/* `weights` and `config` must outlive it. */
QomniCodePredictor *qomni_code_predictor_new (
    const QomniCodePredictorWeights * weights,
    const QomniTalkerConfig * config, QkBackend * backend,
    const QomniSampling * sampling, uint64_t seed, GError ** error);
void qomni_code_predictor_free (QomniCodePredictor * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniCodePredictor, qomni_code_predictor_free)

/* codes [n_residual + 1]: the first one is given, the others are drawn. z
 * [width], in backend memory, is the Talker's row of that code; work on it that
 * another stream has queued must have ended. `first` is the Talker's table. */
bool qomni_code_predictor_run (QomniCodePredictor * self, const float *z,
    const QkTensor * first, int32_t * codes, GError ** error);

G_END_DECLS
