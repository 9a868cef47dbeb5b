/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * code2wav: codec frames -> speech samples, a frame at a time and yet exact.
 *
 *   codes [n, n_quantizers] -> mean of their embeddings [n, width]
 *     -> pre-transformer with a sliding window
 *     -> upsample stages: transposed conv, ConvNeXt block
 *     -> conv to decoder_dim channels
 *     -> blocks: snake, transposed conv, three dilated residual units
 *     -> snake, conv to one channel -> clamp to -1 … 1
 *
 * Everything looks backwards only, so a stage needs what it was given and the
 * last few rows it saw before: `history` keeps those rows for every conv, and
 * the KV cache of the pre-transformer keeps them for attention. Histories start
 * as zeros, which is the left padding of the reference.
 *
 * The transposed convs of the blocks are the exception: output block m needs
 * the inputs m and m + 1. They keep their last input row, and the very first
 * input of an utterance gives no output. With the published rates that costs
 * 555 samples, once: the first frame has 1365 of them and every other 1920.
 *
 * Activations are [time, channel]. They live in two buffers that stages swap;
 * each has room in front of row 0 where the history of a conv is put back
 * before the conv runs.
 */
#include "code2wav.h"

#include <math.h>

#include "decoder.h"
#include "positions.h"
#include "workspace.h"

/* Frames computed at once: enough to share the reading of the weights, few
 * enough for the buffers to stay near the cache (8 frames: 6 MB each). */
#define GROUP_FRAMES 8

#define TAPS 7                  /* of every conv that is not pointwise */
#define MAX_STAGES 8            /* see QomniCode2WavConfig */
#define N_UNITS 3
static const int64_t unit_dilation[N_UNITS] = { 1, 3, 9 };

/* A causal conv, the rows it remembers and where those are. */
typedef struct
{
  QkTensor weight;              /* [taps, c_out, c_in] */
  float *bias;                  /* [c_out] */
  int64_t c_in, dilation;
  int64_t n_history;            /* rows */
  int64_t history;              /* offset in QomniCode2Wav.history, floats */
} Conv;

typedef struct
{
  float *alpha, *beta;          /* host, [channels]: logarithms */
  int64_t channels;
  int64_t constants;            /* offset in QomniCode2Wav.constants, floats */
} Snake;

typedef struct
{
  int64_t ratio;
  QkTensor up;                  /* [ratio, width, width] */
  float *up_bias;
  Conv depthwise;               /* its weight is [taps, width] f32 */
  float *norm_weight, *norm_bias, *gamma;
  QkTensor fc1, fc2;            /* [4 width, width], [width, 4 width] */
  float *fc1_bias, *fc2_bias;
} Upsample;

typedef struct
{
  Snake act1, act2;
  Conv conv1;
  QkTensor conv2;               /* [c, c]: one tap is a matrix */
  float *conv2_bias;
} Unit;

typedef struct
{
  int64_t rate;
  Snake act;
  Conv up;                      /* [2 rate, c_out, c_in]; remembers one row */
  Unit units[N_UNITS];
} Block;

struct _QomniCode2WavWeights
{
  QkTensor code_embedding;      /* [n_quantizers * codebook_size, width] */
  QomniDecoder *pre;
  int n_upsample, n_blocks;
  Upsample upsample[MAX_STAGES];
  Conv first;
  Block blocks[MAX_STAGES];
  Snake last_act;
  Conv last;

  /* What one decoder of them needs, in floats. */
  int64_t n_history, n_constants;
  int64_t max_front;            /* the longest history of one conv */
};

/* --- weights -------------------------------------------------------------- */

static void
remember (QomniCode2WavWeights * self, Conv * conv, int64_t n_rows)
{
  conv->n_history = n_rows;
  conv->history = self->n_history;
  self->n_history += n_rows * conv->c_in;
  self->max_front = MAX (self->max_front, n_rows * conv->c_in);
}

static void
claim_conv (QomniCode2WavWeights * self, QomniWeights * weights, Conv * conv,
    int64_t c_out, int64_t c_in, int64_t dilation, const char *name)
{
  conv->c_in = c_in;
  conv->dilation = dilation;
  remember (self, conv, (TAPS - 1) * dilation);
  qomni_weights_permuted (weights, &conv->weight,
      (int64_t[]) { c_out, c_in, TAPS }, (int[]) { 2, 0, 1 }, false,
      "%s.conv.weight", name);
  qomni_weights_vector (weights, &conv->bias, c_out, "%s.conv.bias", name);
}

static void
claim_snake (QomniCode2WavWeights * self, QomniWeights * weights,
    Snake * snake, int64_t channels, const char *name)
{
  snake->channels = channels;
  snake->constants = self->n_constants;
  self->n_constants += 2 * channels;
  qomni_weights_host (weights, &snake->alpha, 1, &channels, "%s.alpha", name);
  qomni_weights_host (weights, &snake->beta, 1, &channels, "%s.beta", name);
}

static void
claim_upsample (QomniCode2WavWeights * self, QomniWeights * weights,
    Upsample * u, int64_t width, int64_t ratio, int i)
{
  const char *p = "code2wav.upsample";

  u->ratio = ratio;
  qomni_weights_permuted (weights, &u->up,
      (int64_t[]) { width, width, ratio }, (int[]) { 2, 1, 0 }, false,
      "%s.%d.0.conv.weight", p, i);
  qomni_weights_vector (weights, &u->up_bias, width, "%s.%d.0.conv.bias", p,
      i);

  u->depthwise.c_in = width;
  u->depthwise.dilation = 1;
  remember (self, &u->depthwise, TAPS - 1);
  qomni_weights_permuted (weights, &u->depthwise.weight,
      (int64_t[]) { width, 1, TAPS }, (int[]) { 2, 0, 1 }, true,
      "%s.%d.1.dwconv.conv.weight", p, i);
  qomni_weights_vector (weights, &u->depthwise.bias, width,
      "%s.%d.1.dwconv.conv.bias", p, i);

  qomni_weights_vector (weights, &u->norm_weight, width,
      "%s.%d.1.norm.weight", p, i);
  qomni_weights_vector (weights, &u->norm_bias, width, "%s.%d.1.norm.bias", p,
      i);
  qomni_weights_vector (weights, &u->gamma, width, "%s.%d.1.gamma", p, i);
  qomni_weights_matrix (weights, &u->fc1, 2, (int64_t[]) { 4 * width, width },
      "%s.%d.1.pwconv1.weight", p, i);
  qomni_weights_vector (weights, &u->fc1_bias, 4 * width,
      "%s.%d.1.pwconv1.bias", p, i);
  qomni_weights_matrix (weights, &u->fc2, 2, (int64_t[]) { width, 4 * width },
      "%s.%d.1.pwconv2.weight", p, i);
  qomni_weights_vector (weights, &u->fc2_bias, width, "%s.%d.1.pwconv2.bias",
      p, i);
}

static void
claim_unit (QomniCode2WavWeights * self, QomniWeights * weights, Unit * u,
    int64_t c, int64_t dilation, const char *prefix)
{
  g_autofree char *act1 = g_strdup_printf ("%s.act1", prefix);
  g_autofree char *act2 = g_strdup_printf ("%s.act2", prefix);
  g_autofree char *conv1 = g_strdup_printf ("%s.conv1", prefix);

  claim_snake (self, weights, &u->act1, c, act1);
  claim_conv (self, weights, &u->conv1, c, c, dilation, conv1);
  claim_snake (self, weights, &u->act2, c, act2);
  qomni_weights_matrix (weights, &u->conv2, 3, (int64_t[]) { c, c, 1 },
      "%s.conv2.conv.weight", prefix);
  qomni_weights_vector (weights, &u->conv2_bias, c, "%s.conv2.conv.bias",
      prefix);
}

static void
claim_block (QomniCode2WavWeights * self, QomniWeights * weights, Block * b,
    int64_t c_in, int64_t c_out, int64_t rate, int i)
{
  g_autofree char *act = g_strdup_printf ("code2wav.decoder.%d.block.0", i);

  b->rate = rate;
  claim_snake (self, weights, &b->act, c_in, act);
  b->up.c_in = c_in;
  remember (self, &b->up, 1);
  qomni_weights_permuted (weights, &b->up.weight,
      (int64_t[]) { c_in, c_out, 2 * rate }, (int[]) { 2, 1, 0 }, false,
      "code2wav.decoder.%d.block.1.conv.weight", i);
  qomni_weights_vector (weights, &b->up.bias, c_out,
      "code2wav.decoder.%d.block.1.conv.bias", i);
  for (int k = 0; k < N_UNITS; k++) {
    g_autofree char *unit =
        g_strdup_printf ("code2wav.decoder.%d.block.%d", i, 2 + k);

    claim_unit (self, weights, &b->units[k], c_out, unit_dilation[k], unit);
  }
}

/* Channels before block b (b = n_blocks: after the last one). */
static int64_t
block_channels (const QomniCode2WavConfig * c, int b)
{
  return c->decoder_dim >> b;
}

QomniCode2WavWeights *
qomni_code2wav_weights_claim (const QomniConfig * config,
    QomniWeights * weights)
{
  const QomniCode2WavConfig *c = &config->code2wav;
  QomniCode2WavWeights *self = g_new0 (QomniCode2WavWeights, 1);
  int64_t width = c->pre.hidden_size;
  int64_t last = block_channels (c, c->n_blocks);
  g_autofree char *last_act =
      g_strdup_printf ("code2wav.decoder.%d", c->n_blocks + 1);
  g_autofree char *last_conv =
      g_strdup_printf ("code2wav.decoder.%d", c->n_blocks + 2);

  qomni_weights_matrix (weights, &self->code_embedding, 2,
      (int64_t[]) { c->n_quantizers * c->codebook_size, width },
      "code2wav.code_embedding.weight");
  self->pre = qomni_decoder_claim (&c->pre, QOMNI_DECODER_LAYER_SCALE,
      weights, "code2wav.pre_transformer");

  self->n_upsample = c->n_upsample;
  for (int i = 0; i < c->n_upsample; i++)
    claim_upsample (self, weights, &self->upsample[i], width,
        c->upsample_ratio[i], i);

  claim_conv (self, weights, &self->first, c->decoder_dim, width, 1,
      "code2wav.decoder.0");
  self->n_blocks = c->n_blocks;
  for (int b = 0; b < c->n_blocks; b++)
    claim_block (self, weights, &self->blocks[b], block_channels (c, b),
        block_channels (c, b + 1), c->upsample_rate[b], b + 1);
  claim_snake (self, weights, &self->last_act, last, last_act);
  claim_conv (self, weights, &self->last, 1, last, 1, last_conv);
  return self;
}

void
qomni_code2wav_weights_free (QomniCode2WavWeights * self)
{
  if (self == NULL)
    return;
  qomni_decoder_free (self->pre);
  g_free (self);
}

/* --- decoder -------------------------------------------------------------- */

struct _QomniCode2Wav
{
  QomniModel *model;
  const QomniCode2WavWeights *w;
  const QomniCode2WavConfig *config;
  QkBackend *backend;
  QomniDecoderState *state;
  int max_frames;

  /* Since the utterance began: frames, and whether the transposed conv of
   * block b has seen an input. */
  int64_t n_frames;
  bool started[MAX_STAGES];

  QomniWorkspace work;          /* the following, in backend memory */
  float *history;               /* [n_history] */
  float *constants;             /* [n_constants]: a, b of every snake */
  float *a, *b;                 /* row 0 of the buffers that stages swap */
  float *t;                     /* a third one of that size, no history */
  float *inner;                 /* [rows, 4 width] of the ConvNeXt blocks */

  int32_t *ids;                 /* [n_quantizers, GROUP_FRAMES] */
  float *positions;             /* [3, GROUP_FRAMES] */
  float *table;                 /* [GROUP_FRAMES, 2, head_dim/2] */
  float *samples;               /* host, [max_frames * samples_per_frame] */
};

/* Limits of the config keep rows * width below 2^41 here: at most 2^23 rows of
 * a group, each of at most 4 * 65536 values. */
static bool
allocate (QomniCode2Wav * self, GError ** error)
{
  const QomniCode2WavWeights *w = self->w;
  const QomniCode2WavConfig *c = self->config;
  const int64_t width = c->pre.hidden_size;
  /* row 0 stays aligned behind the front */
  const int64_t front = (w->max_front + 15) / 16 * 16;
  int64_t rows = GROUP_FRAMES, most = rows * width, inner = 0;

  for (int i = 0; i < c->n_upsample; i++) {
    rows *= c->upsample_ratio[i];
    most = MAX (most, rows * width);
    inner = MAX (inner, rows * 4 * width);
  }
  most = MAX (most, rows * c->decoder_dim);
  for (int b = 0; b < c->n_blocks; b++) {
    rows *= c->upsample_rate[b];
    most = MAX (most, rows * block_channels (c, b + 1));
  }

  const QomniBuffer buffers[] = {
    { &self->history, 1, w->n_history },
    { &self->constants, 1, w->n_constants },
    { &self->a, 1, front + most },
    { &self->b, 1, front + most },
    { &self->t, 1, most },
    { &self->inner, 1, inner },
  };
  if (!qomni_workspace_alloc (&self->work, self->backend, buffers,
          G_N_ELEMENTS (buffers), "Code2Wav", error))
    return false;
  self->a += front;
  self->b += front;
  return true;
}

/* a = e^alpha, b = 1 / (e^beta + 1e-9), as the reference forms them. */
static void
fill_constants (float *constants, const Snake * snake)
{
  float *a = constants + snake->constants, *b = a + snake->channels;

  for (int64_t i = 0; i < snake->channels; i++) {
    a[i] = expf (snake->alpha[i]);
    b[i] = 1.0f / (expf (snake->beta[i]) + 1e-9f);
  }
}

static bool
upload_constants (QomniCode2Wav * self, GError ** error)
{
  const QomniCode2WavWeights *w = self->w;
  size_t n = (size_t) w->n_constants;
  g_autofree float *constants = g_try_new (float, n);

  if (constants == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for %zu snake constants", n);
  for (int b = 0; b < w->n_blocks; b++) {
    fill_constants (constants, &w->blocks[b].act);
    for (int k = 0; k < N_UNITS; k++) {
      fill_constants (constants, &w->blocks[b].units[k].act1);
      fill_constants (constants, &w->blocks[b].units[k].act2);
    }
  }
  fill_constants (constants, &w->last_act);
  self->backend->upload (qomni_decoder_state_stream (self->state),
      self->constants, constants, n * sizeof (float));
  return true;
}

static bool
check_backend (QomniCode2Wav * self, GError ** error)
{
  const char *fault =
      self->backend->error (qomni_decoder_state_stream (self->state));

  if (fault != NULL)
    return qomni_fail (error, QOMNI_ERROR_BACKEND, "Code2Wav: %s", fault);
  return true;
}

QomniCode2Wav *
qomni_code2wav_new (QomniModel * model, int max_frames,
    GCancellable * cancellable, GError ** error)
{
  const QomniCode2WavConfig *c = &qomni_model_config (model)->code2wav;
  g_autoptr (QomniCode2Wav) self = NULL;
  size_t n_samples;

  if (max_frames < 1) {
    qomni_fail (error, QOMNI_ERROR_INPUT,
        "pushes of at most %d codec frames, expected 1 or more", max_frames);
    return NULL;
  }
  if (!qomni_model_load (model, QOMNI_COMPONENT_CODE2WAV, NULL, NULL,
          cancellable, error))
    return NULL;

  self = g_new0 (QomniCode2Wav, 1);
  self->model = qomni_model_ref (model);
  self->w = qomni_model_code2wav (model);
  self->config = c;
  self->backend = qomni_model_backend (model);
  self->max_frames = max_frames;

  self->state = qomni_decoder_state_new (self->w->pre, self->backend,
      GROUP_FRAMES, error);
  if (self->state == NULL)
    return NULL;

  if (!qomni_size_mul ((size_t) max_frames, (size_t) c->samples_per_frame,
          &n_samples)) {
    qomni_fail (error, QOMNI_ERROR_LIMIT,
        "%d codec frames of %" G_GINT64_FORMAT " samples are too many for one "
        "push", max_frames, c->samples_per_frame);
    return NULL;
  }
  if (!allocate (self, error))
    return NULL;
  self->samples = g_try_new (float, n_samples);
  if (self->samples == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for %zu samples of %d codec frames",
        n_samples, max_frames);
    return NULL;
  }
  self->ids = g_new (int32_t, c->n_quantizers * GROUP_FRAMES);
  self->positions = g_new (float, 3 * GROUP_FRAMES);
  self->table = g_new (float, c->pre.head_dim * GROUP_FRAMES);

  if (!upload_constants (self, error) || !check_backend (self, error))
    return NULL;
  qomni_code2wav_reset (self);
  return g_steal_pointer (&self);
}

void
qomni_code2wav_free (QomniCode2Wav * self)
{
  if (self == NULL)
    return;
  qomni_workspace_clear (&self->work);
  qomni_decoder_state_free (self->state);
  g_free (self->ids);
  g_free (self->positions);
  g_free (self->table);
  g_free (self->samples);
  qomni_model_unref (self->model);
  g_free (self);
}

void
qomni_code2wav_reset (QomniCode2Wav * self)
{
  self->n_frames = 0;
  memset (self->started, 0, sizeof self->started);
  qomni_decoder_state_recover (self->state);
  qomni_decoder_state_truncate (self->state, 0);
  self->backend->zero (qomni_decoder_state_stream (self->state),
      self->history, (size_t) self->w->n_history * sizeof (float));
}

/* Puts the rows that `conv` remembers in front of x. */
static void
recall (QomniCode2Wav * self, QkStream * s, const Conv * conv, float *x)
{
  int64_t n = conv->n_history * conv->c_in;

  self->backend->copy (s, x - n, self->history + conv->history,
      (size_t) n * sizeof (float));
}

/* Keeps the last rows of x [n, c_in], which has its history in front. */
static void
keep (QomniCode2Wav * self, QkStream * s, const Conv * conv, const float *x,
    int64_t n)
{
  int64_t first = (n - conv->n_history) * conv->c_in;

  self->backend->copy (s, self->history + conv->history, x + first,
      (size_t) (conv->n_history * conv->c_in) * sizeof (float));
}

/* y [n, c_out] = conv (x [n, c_in]) */
static void
convolve (QomniCode2Wav * self, QkStream * s, const Conv * conv, float *y,
    float *x, int64_t n)
{
  recall (self, s, conv, x);
  s->ops->conv1d (s, y, x, n, &conv->weight, conv->bias, conv->dilation,
      false);
  keep (self, s, conv, x, n);
}

static void
snake (QomniCode2Wav * self, QkStream * s, const Snake * act, float *y,
    const float *x, int64_t n)
{
  const float *a = self->constants + act->constants;

  s->ops->snake (s, y, x, n, act->channels, a, a + act->channels);
}

static void
swap (QomniCode2Wav * self)
{
  float *a = self->a;

  self->a = self->b;
  self->b = a;
}

/* a [n, width] = the pre-transformer's view of n frames of codes. */
static void
pre_forward (QomniCode2Wav * self, QkStream * s, const int32_t * codes, int n)
{
  const QomniCode2WavConfig *c = self->config;
  int64_t width = c->pre.hidden_size;

  for (int q = 0; q < c->n_quantizers; q++) {
    int32_t *ids = self->ids + q * GROUP_FRAMES;

    for (int i = 0; i < n; i++)
      ids[i] = codes[i * c->n_quantizers + q]
          + (int32_t) (q * c->codebook_size);
    s->ops->embed (s, self->a, &self->w->code_embedding, ids, n, q > 0);
  }
  s->ops->scale (s, self->a, 1.0f / (float) c->n_quantizers, n * width);

  for (int i = 0; i < n; i++)
    for (int axis = 0; axis < 3; axis++)
      self->positions[axis * GROUP_FRAMES + i] = (float) (self->n_frames + i);
  qomni_rope_table (&c->pre, self->positions, GROUP_FRAMES, n, self->table);
  qomni_decoder_forward (self->w->pre, self->state, self->a, n, self->table,
      NULL, NULL);
  qomni_decoder_norm (self->w->pre, self->state, self->a, self->a, n);
}

/* a [n, width] -> a [n * ratio, width]; returns the rows. */
static int64_t
upsample_forward (QomniCode2Wav * self, QkStream * s, const Upsample * u,
    int64_t n)
{
  int64_t width = u->depthwise.c_in;
  float *x = self->b, *t = self->t;

  s->ops->conv1d_transposed (s, x, self->a, n, u->ratio, &u->up, u->up_bias);
  n *= u->ratio;

  recall (self, s, &u->depthwise, x);
  s->ops->conv1d_depthwise (s, t, x, n, width, u->depthwise.weight.data, TAPS,
      u->depthwise.bias);
  keep (self, s, &u->depthwise, x, n);
  s->ops->layer_norm (s, t, t, n, width, u->norm_weight, u->norm_bias, 1e-6f);
  s->ops->matmul (s, self->inner, t, n, &u->fc1, u->fc1_bias, QK_ACT_GELU,
      false);
  s->ops->matmul (s, t, self->inner, n, &u->fc2, u->fc2_bias, QK_ACT_NONE,
      false);
  s->ops->add_scaled (s, x, t, n, width, u->gamma);
  swap (self);
  return n;
}

/* a [n, c] += conv2 (snake (conv1 (snake (a)))) */
static void
unit_forward (QomniCode2Wav * self, QkStream * s, const Unit * u, int64_t n)
{
  QkTensor conv2 = { u->conv2.data, u->conv2.dtype, 2,
    {u->conv2.dims[0], u->conv2.dims[1]}
  };

  snake (self, s, &u->act1, self->b, self->a, n);
  convolve (self, s, &u->conv1, self->t, self->b, n);
  snake (self, s, &u->act2, self->t, self->t, n);
  s->ops->matmul (s, self->a, self->t, n, &conv2, u->conv2_bias, QK_ACT_NONE,
      true);
}

/* a [n, c_in] -> a [rows, c_out]; returns the rows. */
static int64_t
block_forward (QomniCode2Wav * self, QkStream * s, const Block * b,
    bool *started, int64_t n)
{
  float *x = self->a;
  int64_t n_out = *started ? n : n - 1;

  if (n == 0)
    return 0;
  snake (self, s, &b->act, x, x, n);
  if (*started) {
    recall (self, s, &b->up, x);
    x -= b->up.c_in;
  }
  s->ops->conv1d_transposed (s, self->b, x, n_out, b->rate, &b->up.weight,
      b->up.bias);
  keep (self, s, &b->up, self->a, n);
  *started = true;
  swap (self);

  n_out *= b->rate;
  if (n_out > 0)
    for (int k = 0; k < N_UNITS; k++)
      unit_forward (self, s, &b->units[k], n_out);
  return n_out;
}

/* n <= GROUP_FRAMES frames; returns how many samples came of them. */
static int64_t
forward (QomniCode2Wav * self, const int32_t * codes, int n, float *samples)
{
  const QomniCode2WavWeights *w = self->w;
  QkStream *s = qomni_decoder_state_stream (self->state);
  int64_t rows = n;

  pre_forward (self, s, codes, n);
  for (int i = 0; i < w->n_upsample; i++)
    rows = upsample_forward (self, s, &w->upsample[i], rows);
  convolve (self, s, &w->first, self->b, self->a, rows);
  swap (self);
  for (int b = 0; b < w->n_blocks; b++)
    rows = block_forward (self, s, &w->blocks[b], &self->started[b], rows);
  if (rows > 0) {
    snake (self, s, &w->last_act, self->a, self->a, rows);
    convolve (self, s, &w->last, self->b, self->a, rows);
    self->backend->download (s, samples, self->b,
        (size_t) rows * sizeof (float));
  }
  self->n_frames += n;
  return rows;
}

static bool
check_codes (const QomniCode2Wav * self, const int32_t * codes, int n_frames,
    GError ** error)
{
  const QomniCode2WavConfig *c = self->config;

  if (n_frames < 0 || n_frames > self->max_frames)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%d codec frames in one push, at most %d were announced", n_frames,
        self->max_frames);
  for (int i = 0; i < n_frames; i++)
    for (int q = 0; q < c->n_quantizers; q++) {
      int32_t code = codes[i * c->n_quantizers + q];

      if (code < 0 || code >= c->codebook_size)
        return qomni_fail (error, QOMNI_ERROR_INPUT,
            "code %d of group %d in codec frame %d, expected 0 … %"
            G_GINT64_FORMAT, code, q, i, c->codebook_size - 1);
    }
  return true;
}

bool
qomni_code2wav_push (QomniCode2Wav * self, const int32_t * codes,
    int n_frames, const float **ret_samples, size_t *ret_n_samples,
    GError ** error)
{
  int64_t n_samples = 0;

  if (!check_codes (self, codes, n_frames, error))
    return false;
  for (int i = 0; i < n_frames; i += GROUP_FRAMES) {
    int n = MIN (GROUP_FRAMES, n_frames - i);

    if (!qomni_decoder_state_reserve (self->state, n, error)) {
      qomni_code2wav_reset (self);
      return false;
    }
    n_samples += forward (self, codes + i * self->config->n_quantizers, n,
        self->samples + n_samples);
  }

  if (!check_backend (self, error)) {
    qomni_code2wav_reset (self);
    return false;
  }
  /* Clamped here and not by an op, so that a NaN is seen before. */
  for (int64_t i = 0; i < n_samples; i++) {
    float x = self->samples[i];

    if (!isfinite (x)) {
      qomni_code2wav_reset (self);
      return qomni_fail (error, QOMNI_ERROR_NUMERIC,
          "Code2Wav: sample %" G_GINT64_FORMAT " is %f, expected a number", i,
          x);
    }
    self->samples[i] = CLAMP (x, -1.0f, 1.0f);
  }
  *ret_samples = self->samples;
  *ret_n_samples = (size_t) n_samples;
  return true;
}
