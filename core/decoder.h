/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniDecoder: the stack of decoder layers that Thinker, Talker, code
 * predictor and Code2Wav's pre-transformer share, and QomniDecoderState, the KV
 * cache and step buffers of one user of it.
 *
 *   x += attention (norm (x));  x += mlp or experts (norm (x))
 *
 * with RMS norms, grouped queries, rotary positions, optional q/k norms,
 * optional layer scales and an optional sliding window.
 */
#pragma once

#include "model-config.h"
#include "weights.h"

G_BEGIN_DECLS

typedef struct _QomniDecoder QomniDecoder;
typedef struct _QomniDecoderState QomniDecoderState;

typedef enum
{
  QOMNI_DECODER_QK_NORM = 1 << 0,       /* self_attn.q_norm, k_norm */
  QOMNI_DECODER_LAYER_SCALE = 1 << 1,   /* self_attn_layer_scale, mlp_layer_scale */
} QomniDecoderFlags;

/* Claims `<prefix>.layers.<i>.…` and `<prefix>.norm.weight`. */
QomniDecoder *qomni_decoder_claim (const QomniDecoderConfig * config,
    QomniDecoderFlags flags, QomniWeights * weights, const char *prefix);
void qomni_decoder_free (QomniDecoder * self);

/* Steps of at most max_rows rows. */
QomniDecoderState *qomni_decoder_state_new (const QomniDecoder * decoder,
    QkBackend * backend, int64_t max_rows, GError ** error);
void qomni_decoder_state_free (QomniDecoderState * self);

QkStream *qomni_decoder_state_stream (QomniDecoderState * self);
/* After a fault: a new stream, if the present one has a fault. Rows that were
 * complete before it are still good; the caller truncates to those. */
void qomni_decoder_state_recover (QomniDecoderState * self);
int64_t qomni_decoder_state_length (const QomniDecoderState * self);
/* Room for `n` more rows; call before the forward that needs it. A stack with a
 * sliding window always has room. After an error the state is as before. */
bool qomni_decoder_state_reserve (QomniDecoderState * self, int64_t n,
    GError ** error);
/* Keeps the first n cached rows. A stack with a sliding window holds only the
 * rows that the next one may see: there n is 0 or the present length. */
void qomni_decoder_state_truncate (QomniDecoderState * self, int64_t n);

/* Called between layers with the residual stream x [n, width] in backend
 * memory, after layer `layer` (and before the next): DeepStack and captures
 * happen here. layer -1: the input. */
typedef void (*QomniLayerFunc) (int layer, float *x, int64_t n,
    void *user_data);

/* Runs n <= max_rows rows x [n, width] (backend memory, changed in place into
 * the residual stream after the last layer), appends to the cache. table is
 * [n, 2, head_dim/2] in host memory. Room must have been reserved. */
void qomni_decoder_forward (const QomniDecoder * self,
    QomniDecoderState * state, float *x, int64_t n, const float *table,
    QomniLayerFunc func, void *user_data);
/* y [n, width] = the final norm of x; may be x. */
void qomni_decoder_norm (const QomniDecoder * self, QomniDecoderState * state,
    float *y, const float *x, int64_t n);

G_END_DECLS
