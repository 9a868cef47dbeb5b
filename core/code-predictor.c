/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * code-predictor: the residual codes of one codec frame.
 *
 *   position 0: z, the Talker's normed hidden row that gave code 0
 *   position 1: row of code 0 in the Talker's table  -> head 0 -> code 1
 *   position 2: row of code 1 in table 0             -> head 1 -> code 2
 *   …
 *
 * A small decoder with a table and a head of its own for every group. Its cache
 * lives for one frame, so the rotation table is made once for all frames. The
 * last code is drawn but never fed back.
 */
#include "code-predictor.h"

#include "positions.h"
#include "sampler.h"
#include "workspace.h"

/* The first step has two rows, every other one. */
#define FIRST_ROWS 2

QomniCodePredictorWeights *
qomni_code_predictor_weights_claim (const QomniTalkerConfig * config,
    QomniWeights * weights, const char *prefix)
{
  QomniCodePredictorWeights *self = g_new0 (QomniCodePredictorWeights, 1);
  const int64_t table[] =
      { config->predictor.vocab_size, config->predictor.hidden_size };
  g_autofree char *model = g_strdup_printf ("%s.model", prefix);

  self->decoder = qomni_decoder_claim (&config->predictor,
      QOMNI_DECODER_QK_NORM, weights, model);
  self->n_residual = config->n_groups - 1;
  self->embedding = g_new0 (QkTensor, self->n_residual);
  self->head = g_new0 (QkTensor, self->n_residual);
  for (int i = 0; i < self->n_residual; i++) {
    qomni_weights_matrix (weights, &self->embedding[i], 2, table,
        "%s.model.codec_embedding.%d.weight", prefix, i);
    qomni_weights_matrix (weights, &self->head[i], 2, table,
        "%s.lm_head.%d.weight", prefix, i);
  }
  return self;
}

void
qomni_code_predictor_weights_free (QomniCodePredictorWeights * self)
{
  if (self == NULL)
    return;
  qomni_decoder_free (self->decoder);
  g_free (self->embedding);
  g_free (self->head);
  g_free (self);
}

struct _QomniCodePredictor
{
  const QomniCodePredictorWeights *w;
  int64_t width, vocab_size;
  QkBackend *backend;
  QomniDecoderState *state;
  QomniSampler *sampler;

  QomniWorkspace work;
  float *x;                     /* backend: [FIRST_ROWS, width] */
  float *logits;                /* backend: [vocab_size] */

  float *table;                 /* [n_residual + 1, 2, head_dim/2] */
  int64_t table_row;            /* floats in one row of it */
  float *host_logits;           /* [vocab_size] */
};

QomniCodePredictor *
qomni_code_predictor_new (const QomniCodePredictorWeights * weights,
    const QomniTalkerConfig * config, QkBackend * backend,
    const QomniSampling * sampling, uint64_t seed, GError ** error)
{
  const QomniDecoderConfig *c = &config->predictor;
  g_autoptr (QomniCodePredictor) self = g_new0 (QomniCodePredictor, 1);
  g_autofree float *positions = NULL;
  int64_t rows = weights->n_residual + 1;
  const QomniBuffer buffers[] = {
    { &self->x, FIRST_ROWS, c->hidden_size },
    { &self->logits, 1, c->vocab_size },
  };

  self->w = weights;
  self->width = c->hidden_size;
  self->vocab_size = c->vocab_size;
  self->backend = backend;

  self->state =
      qomni_decoder_state_new (weights->decoder, backend, FIRST_ROWS, error);
  if (self->state == NULL
      || !qomni_decoder_state_reserve (self->state, rows, error))
    return NULL;
  self->sampler =
      qomni_sampler_new (sampling, seed, self->vocab_size, error);
  if (self->sampler == NULL)
    return NULL;

  self->host_logits = g_try_new (float, self->vocab_size);
  if (self->host_logits == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for %" G_GINT64_FORMAT
        " logits", self->vocab_size);
    return NULL;
  }
  if (!qomni_workspace_alloc (&self->work, backend, buffers,
          G_N_ELEMENTS (buffers), "the code predictor", error))
    return NULL;

  self->table_row = c->head_dim;        /* 2 * head_dim / 2 */
  self->table = g_new (float, rows * self->table_row);
  positions = g_new (float, 3 * rows);
  for (int64_t i = 0; i < 3 * rows; i++)
    positions[i] = (float) (i % rows);
  qomni_rope_table (c, positions, rows, rows, self->table);
  return g_steal_pointer (&self);
}

void
qomni_code_predictor_free (QomniCodePredictor * self)
{
  if (self == NULL)
    return;
  qomni_workspace_clear (&self->work);
  qomni_decoder_state_free (self->state);
  qomni_sampler_free (self->sampler);
  g_free (self->host_logits);
  g_free (self->table);
  g_free (self);
}

/* Logits of head `group` for the last of the n rows of x, to the host. */
static bool
predict (QomniCodePredictor * self, int64_t position, int64_t n, int group,
    GError ** error)
{
  QkStream *s = qomni_decoder_state_stream (self->state);
  float *last = self->x + (n - 1) * self->width;
  const char *fault;

  qomni_decoder_forward (self->w->decoder, self->state, self->x, n,
      self->table + position * self->table_row, NULL, NULL);
  qomni_decoder_norm (self->w->decoder, self->state, last, last, 1);
  s->ops->matmul (s, self->logits, last, 1, &self->w->head[group], NULL,
      QK_ACT_NONE, false);
  self->backend->download (s, self->host_logits, self->logits,
      (size_t) self->vocab_size * sizeof (float));
  fault = self->backend->error (s);
  if (fault != NULL)
    return qomni_fail (error, QOMNI_ERROR_BACKEND, "code predictor: %s",
        fault);
  return true;
}

bool
qomni_code_predictor_run (QomniCodePredictor * self, const float *z,
    const QkTensor * first, int32_t * codes, GError ** error)
{
  const QomniCodePredictorWeights *w = self->w;
  QkStream *s;
  int64_t position = 0;

  /* Room for one frame was reserved when the state was made. */
  qomni_decoder_state_recover (self->state);
  qomni_decoder_state_truncate (self->state, 0);
  s = qomni_decoder_state_stream (self->state);
  qomni_sampler_reset (self->sampler);

  self->backend->copy (s, self->x, z,
      (size_t) self->width * sizeof (float));
  s->ops->embed (s, self->x + self->width, first, codes, 1, false);
  for (int g = 0; g < w->n_residual; g++) {
    int64_t n = g == 0 ? FIRST_ROWS : 1;

    if (g > 0)
      s->ops->embed (s, self->x, &w->embedding[g - 1], &codes[g], 1, false);
    if (!predict (self, position, n, g, error))
      return false;
    position += n;
    codes[g + 1] =
        qomni_sampler_draw (self->sampler, self->host_logits, error);
    if (codes[g + 1] < 0) {
      g_prefix_error (error, "code predictor, group %d: ", g + 1);
      return false;
    }
  }
  return true;
}
