/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * audio-encoder: samples -> embeddings.
 *
 *   log-mel frames, cut into chunks of 100
 *     -> three convolutions of stride 2 [channels, 16, 13] -> [13, width]
 *     -> transformer over the tokens of 8 chunks -> head [104, output_dim]
 *
 * Chunks do not see each other before the transformer, and no token sees beyond
 * its attention window. So a window is the natural block: it is computed when
 * its frames are complete and never touched again. What is not local is the
 * loudest bin of the clip, from which the floor of all log-mel values hangs;
 * without `live` every block waits for the flush because of it.
 *
 * A block is closed by the frame after it, so that the last one is known to be
 * the last when it is handed out.
 */
#include "audio-encoder.h"

#include <math.h>
#include <string.h>

#include "mel.h"
#include "probe.h"
#include "workspace.h"

#define NORM_EPS 1e-5f          /* not in the config: torch's default */
#define N_CONVS 3
#define FRAME_NS (G_GINT64_CONSTANT (1000000000) * QOMNI_MEL_HOP \
    / QOMNI_SAMPLE_RATE)

typedef struct
{
  QkTensor weight;              /* [m, k] */
  float *bias;                  /* [m] */
} Linear;

typedef struct
{
  float *weight, *bias;         /* [width] */
} Norm;

typedef struct
{
  Norm attention_norm;
  Linear q, k, v, out;          /* [width, width] */
  Norm ffn_norm;
  Linear up;                    /* [ffn, width] */
  Linear down;                  /* [width, ffn] */
} Layer;

struct _QomniAudioTower
{
  QkTensor conv[N_CONVS];       /* [channels, 1 or channels, 3, 3] */
  float *conv_bias[N_CONVS];    /* [channels] */
  QkTensor conv_out;            /* [width, channels * mel / 8] */
  Layer *layers;
  Norm norm;
  Linear head1;                 /* [width, width] */
  Linear head2;                 /* [output_dim, width] */
};

/* The frames of one attention window. */
typedef struct
{
  uint64_t clip;
  int64_t first_frame;          /* of the clip */
  int64_t n_frames;
  float max;                    /* what the frames are scaled by */
  bool ready, last;
  int64_t duration;             /* ns */
  float frames[];               /* [block_frames, n_mel], log10 of powers */
} Block;

struct _QomniAudioEncoder
{
  QomniModel *model;
  const QomniAudioConfig *config;
  const QomniAudioTower *tower;
  bool live;
  QomniProbe *probe;
  int64_t block_chunks, block_frames;

  QomniMel *mel;
  float *frame;                 /* [n_mel] */
  uint64_t clip;
  int64_t n_frames;             /* of the open clip */
  float max;                    /* of the frames of the open clip */
  GQueue blocks;                /* of Block, the last one may be open */

  QkBackend *backend;
  QkStream *stream;
  int64_t stem_width;           /* channels * mel_rows: what the convolutions
                                 * leave of channels * n_mel */
  float *image;                 /* host: [n_mel, chunk_frames] */
  int32_t *order;               /* host: [channels, mel_rows, chunk_tokens] */

  /* In backend memory; rows: the tokens of a block. */
  QomniWorkspace work;
  float *pixels;                /* [n_mel, chunk_frames] */
  float *conv[N_CONVS];         /* [channels, n_mel / 2^i, frames / 2^i] */
  float *stem;                  /* [rows, stem_width] */
  float *sinusoids;             /* [chunk_tokens, width] */
  float *x, *xn;                /* [rows, width] */
  float *q, *k, *v;             /* [rows, width] */
  float *ffn;                   /* [rows, ffn] */
  float *y;                     /* [rows, output_dim] */
};

/* --- token counts --------------------------------------------------------- */

/* What a convolution of stride 2 leaves of n. */
static int64_t
half (int64_t n)
{
  return (n + 1) / 2;
}

/* Tokens of a chunk of n frames. */
static int64_t
chunk_tokens (int64_t n)
{
  return half (half (half (n)));
}

static int64_t
n_tokens (int64_t n_frames, int64_t chunk_frames)
{
  return n_frames / chunk_frames * chunk_tokens (chunk_frames)
      + chunk_tokens (n_frames % chunk_frames);
}

int64_t
qomni_audio_n_tokens (int64_t n_frames)
{
  return n_tokens (n_frames, 100);
}

/* --- weights -------------------------------------------------------------- */

static void
claim_linear (QomniWeights * w, Linear * l, int64_t m, int64_t k,
    const char *prefix, const char *name)
{
  qomni_weights_matrix (w, &l->weight, 2, (int64_t[]) { m, k },
      "%s%s.weight", prefix, name);
  qomni_weights_vector (w, &l->bias, m, "%s%s.bias", prefix, name);
}

static void
claim_norm (QomniWeights * w, Norm * norm, int64_t width, const char *prefix,
    const char *name)
{
  qomni_weights_vector (w, &norm->weight, width, "%s%s.weight", prefix, name);
  qomni_weights_vector (w, &norm->bias, width, "%s%s.bias", prefix, name);
}

static void
claim_layer (QomniWeights * w, Layer * l, const QomniAudioConfig * c,
    const char *prefix)
{
  const int64_t width = c->width;

  claim_norm (w, &l->attention_norm, width, prefix, "self_attn_layer_norm");
  claim_linear (w, &l->q, width, width, prefix, "self_attn.q_proj");
  claim_linear (w, &l->k, width, width, prefix, "self_attn.k_proj");
  claim_linear (w, &l->v, width, width, prefix, "self_attn.v_proj");
  claim_linear (w, &l->out, width, width, prefix, "self_attn.out_proj");
  claim_norm (w, &l->ffn_norm, width, prefix, "final_layer_norm");
  claim_linear (w, &l->up, c->ffn, width, prefix, "fc1");
  claim_linear (w, &l->down, width, c->ffn, prefix, "fc2");
}

QomniAudioTower *
qomni_audio_tower_claim (const QomniConfig * config, QomniWeights * w)
{
  const QomniAudioConfig *c = &config->audio;
  QomniAudioTower *self = g_new0 (QomniAudioTower, 1);
  g_autofree char *prefix = g_strconcat (config->thinker_prefix,
      "audio_tower.", NULL);
  const int64_t stem_width = c->conv_channels * chunk_tokens (c->n_mel);

  for (int i = 0; i < N_CONVS; i++) {
    int64_t inputs = i == 0 ? 1 : c->conv_channels;

    qomni_weights_matrix (w, &self->conv[i], 4,
        (int64_t[]) { c->conv_channels, inputs, 3, 3 },
        "%sconv2d%d.weight", prefix, i + 1);
    qomni_weights_vector (w, &self->conv_bias[i], c->conv_channels,
        "%sconv2d%d.bias", prefix, i + 1);
  }
  qomni_weights_matrix (w, &self->conv_out, 2,
      (int64_t[]) { c->width, stem_width }, "%sconv_out.weight", prefix);
  self->layers = g_new0 (Layer, c->n_layers);
  for (int i = 0; i < c->n_layers; i++) {
    g_autofree char *layer_prefix = g_strdup_printf ("%slayers.%d.", prefix, i);

    claim_layer (w, &self->layers[i], c, layer_prefix);
  }
  claim_norm (w, &self->norm, c->width, prefix, "ln_post");
  claim_linear (w, &self->head1, c->width, c->width, prefix, "proj1");
  claim_linear (w, &self->head2, c->output_dim, c->width, prefix, "proj2");
  return self;
}

void
qomni_audio_tower_free (QomniAudioTower * self)
{
  if (self == NULL)
    return;
  g_free (self->layers);
  g_free (self);
}

/* --- making an encoder ---------------------------------------------------- */

static bool
alloc_buffers (QomniAudioEncoder * self, GError ** error)
{
  const QomniAudioConfig *c = self->config;
  const int64_t tokens = chunk_tokens (c->chunk_frames);
  const int64_t rows = self->block_chunks * tokens;
  const int64_t area = (int64_t) c->n_mel * c->chunk_frames;
  const int64_t area1 = half (c->n_mel) * half (c->chunk_frames);
  const int64_t area2 = half (half (c->n_mel)) * half (half (c->chunk_frames));
  const QomniBuffer buffers[] = {
    {&self->pixels, 1, area},
    {&self->conv[0], c->conv_channels, area1},
    {&self->conv[1], c->conv_channels, area2},
    {&self->conv[2], self->stem_width, tokens},
    {&self->stem, rows, self->stem_width},
    {&self->sinusoids, tokens, c->width},
    {&self->x, rows, c->width},
    {&self->xn, rows, c->width},
    {&self->q, rows, c->width},
    {&self->k, rows, c->width},
    {&self->v, rows, c->width},
    {&self->ffn, rows, c->ffn},
    {&self->y, rows, c->output_dim},
  };

  if (!qomni_workspace_alloc (&self->work, self->backend, buffers,
          G_N_ELEMENTS (buffers), "the audio encoder", error))
    return false;

  /* order[] numbers the elements of the stem's rows of one chunk. */
  if (self->stem_width > INT32_MAX / tokens)
    return qomni_fail (error, QOMNI_ERROR_LIMIT,
        "a chunk of the audio encoder has %" G_GINT64_FORMAT " x %"
        G_GINT64_FORMAT " values: too many", tokens, self->stem_width);
  self->mel = qomni_mel_new (c->n_mel);
  self->frame = g_try_new (float, c->n_mel);
  self->image = g_try_new (float, area);
  self->order = g_try_new (int32_t, self->stem_width * tokens);
  if (self->mel == NULL || self->frame == NULL || self->image == NULL
      || self->order == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for an audio encoder");
  return true;
}

/* The positions of the tokens of a chunk: sines in the first half of a row,
 * cosines in the second, over wavelengths from 2 pi to 10000 * 2 pi. */
static bool
upload_sinusoids (QomniAudioEncoder * self, GError ** error)
{
  const int64_t width = self->config->width, pairs = width / 2;
  const int64_t n = chunk_tokens (self->config->chunk_frames);
  g_autofree float *table = g_try_new0 (float, n * width);

  if (table == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for an audio encoder");
  for (int64_t j = 0; j < pairs; j++) {
    double step = log (10000) / (double) MAX (pairs - 1, 1);
    float frequency = (float) exp (-step * (double) j);

    for (int64_t t = 0; t < n; t++) {
      table[t * width + j] = sinf ((float) t * frequency);
      table[t * width + pairs + j] = cosf ((float) t * frequency);
    }
  }
  self->backend->upload (self->stream, self->sinusoids, table,
      (size_t) (n * width) * sizeof (float));
  return true;
}

/* After a fault the block may be tried again, on a new stream. */
static bool
check_fault (QomniAudioEncoder * self, GError ** error)
{
  const char *fault = self->backend->error (self->stream);

  if (fault == NULL)
    return true;
  qomni_fail (error, QOMNI_ERROR_BACKEND, "audio encoder: %s", fault);
  qomni_stream_replace (self->backend, &self->stream);
  return false;
}

/* 0 seconds: what the config says. */
static bool
choose_block (QomniAudioEncoder * self, double seconds, GError ** error)
{
  const QomniAudioConfig *c = self->config;

  self->block_chunks = MAX (c->window_chunks, 1);
  if (seconds != 0) {
    if (!(seconds >= 1 && seconds <= 8) || seconds != floor (seconds))
      return qomni_fail (error, QOMNI_ERROR_SETTINGS,
          "audio blocks of %g s: wanted 1 to 8 whole seconds", seconds);
    self->block_chunks = MAX ((int64_t) (seconds * 100) / c->chunk_frames, 1);
  }
  self->block_frames = self->block_chunks * c->chunk_frames;
  return true;
}

QomniAudioEncoder *
qomni_audio_encoder_new (QomniModel * model,
    const QomniAudioEncoderParams * params, GCancellable * cancellable,
    GError ** error)
{
  static const QomniAudioEncoderParams defaults = { 0 };
  g_autoptr (QomniAudioEncoder) self = NULL;
  const QomniAudioConfig *c;

  if (params == NULL)
    params = &defaults;
  if (!qomni_model_load (model, QOMNI_COMPONENT_AUDIO, NULL, NULL, cancellable,
          error))
    return NULL;
  self = g_new0 (QomniAudioEncoder, 1);
  self->model = qomni_model_ref (model);
  self->config = c = &qomni_model_config (model)->audio;
  self->tower = qomni_model_audio (model);
  self->live = params->live;
  if (params->probe != NULL)
    self->probe = qomni_probe_ref (params->probe);
  self->max = -INFINITY;
  g_queue_init (&self->blocks);
  self->stem_width = c->conv_channels * chunk_tokens (c->n_mel);
  if (!choose_block (self, params->block_seconds, error))
    return NULL;

  self->backend = qomni_model_backend (model);
  self->stream = self->backend->stream_new (self->backend);
  if (self->stream == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for a stream of work");
    return NULL;
  }
  if (!alloc_buffers (self, error) || !upload_sinusoids (self, error)
      || !check_fault (self, error))
    return NULL;
  return g_steal_pointer (&self);
}

void
qomni_audio_encoder_free (QomniAudioEncoder * self)
{
  if (self == NULL)
    return;
  g_queue_clear_full (&self->blocks, g_free);
  qomni_workspace_clear (&self->work);
  if (self->stream != NULL)
    self->backend->stream_free (self->stream);
  qomni_mel_free (self->mel);
  g_free (self->frame);
  g_free (self->image);
  g_free (self->order);
  qomni_probe_unref (self->probe);
  qomni_model_unref (self->model);
  g_free (self);
}

/* --- samples to blocks of frames ------------------------------------------ */

static Block *
block_new (const QomniAudioEncoder * self, GError ** error)
{
  size_t bytes;
  Block *b = NULL;

  if (qomni_size_mul3 ((size_t) self->block_frames,
          (size_t) self->config->n_mel, sizeof (float), &bytes)
      && qomni_size_add (bytes, sizeof (Block), &bytes))
    b = g_try_malloc (bytes);
  if (b == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for %" G_GINT64_FORMAT " frames of sound",
        self->block_frames);
    return NULL;
  }
  b->clip = self->clip;
  b->first_frame = self->n_frames;
  b->n_frames = 0;
  b->max = -INFINITY;
  b->ready = b->last = false;
  b->duration = 0;
  return b;
}

/* Appends self->frame to the open block. A full one is closed first. */
static bool
add_frame (QomniAudioEncoder * self, GError ** error)
{
  const int n_mel = self->config->n_mel;
  Block *b = self->n_frames == 0 ? NULL : g_queue_peek_tail (&self->blocks);

  if (b == NULL || b->n_frames == self->block_frames) {
    Block *next = block_new (self, error);

    if (next == NULL)
      return false;
    if (b != NULL) {
      b->ready = self->live;
      b->duration = b->n_frames * FRAME_NS;
    }
    g_queue_push_tail (&self->blocks, next);
    b = next;
  }
  memcpy (b->frames + b->n_frames * n_mel, self->frame,
      (size_t) n_mel * sizeof (float));
  for (int m = 0; m < n_mel; m++)
    self->max = fmaxf (self->max, self->frame[m]);
  b->max = self->max;
  b->n_frames++;
  self->n_frames++;
  return true;
}

static bool
take_frames (QomniAudioEncoder * self, GError ** error)
{
  while (qomni_mel_next (self->mel, self->frame)) {
    if (!add_frame (self, error))
      return false;
  }
  return true;
}

bool
qomni_audio_encoder_push (QomniAudioEncoder * self, const float *samples,
    size_t n, GError ** error)
{
  while (n > 0) {
    size_t used = qomni_mel_push (self->mel, samples, n);

    samples += used;
    n -= used;
    if (!take_frames (self, error))
      return false;
  }
  return true;
}

bool
qomni_audio_encoder_push_s16 (QomniAudioEncoder * self,
    const int16_t * samples, size_t n, GError ** error)
{
  float part[1024];

  while (n > 0) {
    size_t used = MIN (n, G_N_ELEMENTS (part));

    for (size_t i = 0; i < used; i++)
      part[i] = (float) samples[i] / 32768;
    if (!qomni_audio_encoder_push (self, part, used, error))
      return false;
    samples += used;
    n -= used;
  }
  return true;
}

static void
begin_clip (QomniAudioEncoder * self)
{
  if (qomni_mel_n_samples (self->mel) > 0)
    self->clip++;
  self->n_frames = 0;
  self->max = -INFINITY;
  qomni_mel_reset (self->mel);
}

bool
qomni_audio_encoder_flush (QomniAudioEncoder * self, GError ** error)
{
  int64_t n_samples = qomni_mel_n_samples (self->mel);
  int64_t end = n_samples / QOMNI_SAMPLE_RATE * G_GINT64_CONSTANT (1000000000)
      + n_samples % QOMNI_SAMPLE_RATE * G_GINT64_CONSTANT (1000000000)
      / QOMNI_SAMPLE_RATE;

  qomni_mel_flush (self->mel);
  if (!take_frames (self, error))
    return false;

  for (GList * l = self->blocks.tail; l != NULL; l = l->prev) {
    Block *b = l->data;

    if (b->clip != self->clip || b->ready)
      break;
    b->max = self->max;
    b->ready = true;
    if (l == self->blocks.tail) {
      b->last = true;
      b->duration = end - b->first_frame * FRAME_NS;
    }
  }
  begin_clip (self);
  return true;
}

void
qomni_audio_encoder_reset (QomniAudioEncoder * self)
{
  g_queue_clear_full (&self->blocks, g_free);
  begin_clip (self);
}

/* --- blocks of frames to embeddings --------------------------------------- */

static void
linear (QomniAudioEncoder * self, float *y, const float *x, int64_t n,
    const Linear * l, QkActivation act, bool accumulate)
{
  self->stream->ops->matmul (self->stream, y, x, n, &l->weight, l->bias, act,
      accumulate);
}

static void
norm (QomniAudioEncoder * self, float *y, const float *x, int64_t n,
    const Norm * norm)
{
  self->stream->ops->layer_norm (self->stream, y, x, n, self->config->width,
      norm->weight, norm->bias, NORM_EPS);
}

/* Scales frames first … first+n-1 of the block into dst [n_mel, width], width
 * >= n; what is right of them is 0. */
static void
fill_image (const QomniAudioEncoder * self, const Block * b, int64_t first,
    int64_t n, float *dst, int64_t width)
{
  const int n_mel = self->config->n_mel;

  for (int m = 0; m < n_mel; m++) {
    float *row = dst + m * width;

    for (int64_t t = 0; t < n; t++)
      row[t] = b->frames[(first + t) * n_mel + m];
    qomni_mel_normalize (row, (size_t) n, b->max);
    memset (row + n, 0, (size_t) (width - n) * sizeof (float));
  }
}

/* Where the values of a convolved chunk [channels, mel_rows, n] stand in the
 * rows of the stem [n, channels, mel_rows]. */
static void
fill_order (QomniAudioEncoder * self, int64_t n)
{
  for (int64_t i = 0; i < self->stem_width; i++) {
    for (int64_t t = 0; t < n; t++)
      self->order[i * n + t] = (int32_t) (t * self->stem_width + i);
  }
}

/* One chunk of `n` frames, to rows of the stem. The reference pads all chunks
 * of a clip to the longest of them: a short one is computed as an image of
 * `width` frames, which leaves surplus tokens behind those of the block. */
static void
stem_forward (QomniAudioEncoder * self, const Block * b, int64_t first,
    int64_t n, int64_t width, float *stem)
{
  const QomniAudioTower *tower = self->tower;
  const float *x = self->pixels;
  int64_t mel = self->config->n_mel;

  fill_image (self, b, first, n, self->image, width);
  self->backend->upload (self->stream, self->pixels, self->image,
      (size_t) (mel * width) * sizeof (float));
  for (int i = 0; i < N_CONVS; i++) {
    self->stream->ops->conv2d_s2 (self->stream, self->conv[i], x, mel, width,
        &tower->conv[i], tower->conv_bias[i], QK_ACT_GELU);
    x = self->conv[i];
    mel = half (mel);
    width = half (width);
  }
  self->stream->ops->scatter_rows (self->stream, stem, x, 1, self->order,
      self->stem_width * width, false);
}

static void
layer_forward (QomniAudioEncoder * self, const Layer * l, int64_t n)
{
  const QomniAudioConfig *c = self->config;
  const int head_dim = (int) (c->width / c->n_heads);
  const QkAttention attention = {
    .n_q = n, .n_kv = n,
    .n_heads = c->n_heads, .n_kv_heads = c->n_heads, .head_dim = head_dim,
    .scale = 1 / sqrtf ((float) head_dim),
  };

  norm (self, self->xn, self->x, n, &l->attention_norm);
  linear (self, self->q, self->xn, n, &l->q, QK_ACT_NONE, false);
  linear (self, self->k, self->xn, n, &l->k, QK_ACT_NONE, false);
  linear (self, self->v, self->xn, n, &l->v, QK_ACT_NONE, false);
  self->stream->ops->attention (self->stream, self->xn, self->q, self->k,
      self->v, &attention);
  linear (self, self->x, self->xn, n, &l->out, QK_ACT_NONE, true);

  norm (self, self->xn, self->x, n, &l->ffn_norm);
  linear (self, self->ffn, self->xn, n, &l->up, QK_ACT_GELU, false);
  linear (self, self->x, self->ffn, n, &l->down, QK_ACT_NONE, true);
}

/* Queues the forward pass of a block: self->y [n, output_dim]. */
static bool
forward (QomniAudioEncoder * self, const Block * b, int64_t n,
    GCancellable * cancellable, GError ** error)
{
  const QkOps *ops = self->stream->ops;
  const QomniAudioTower *tower = self->tower;
  const QomniAudioConfig *c = self->config;
  const int64_t per_chunk = chunk_tokens (c->chunk_frames);
  /* A clip that fills no chunk is not padded. */
  const int64_t image_width = b->first_frame == 0
      && b->n_frames < c->chunk_frames ? b->n_frames : c->chunk_frames;
  int64_t row = 0;

  fill_order (self, chunk_tokens (image_width));
  for (int64_t t = 0; t < b->n_frames; t += c->chunk_frames) {
    if (!qomni_go_on (cancellable, error))
      return false;
    stem_forward (self, b, t, MIN (c->chunk_frames, b->n_frames - t),
        image_width, self->stem + row * self->stem_width);
    row += per_chunk;
  }
  ops->matmul (self->stream, self->x, self->stem, n, &tower->conv_out, NULL,
      QK_ACT_NONE, false);
  for (row = 0; row < n; row += per_chunk)
    ops->add (self->stream, self->x + row * c->width, self->sinusoids,
        MIN (per_chunk, n - row) * c->width);

  for (int i = 0; i < c->n_layers; i++) {
    if (!qomni_go_on (cancellable, error))
      return false;
    layer_forward (self, &tower->layers[i], n);
  }
  norm (self, self->x, self->x, n, &tower->norm);
  linear (self, self->xn, self->x, n, &tower->head1, QK_ACT_GELU, false);
  linear (self, self->y, self->xn, n, &tower->head2, QK_ACT_NONE, false);
  return true;
}

static bool
all_finite (const float *x, int64_t n)
{
  for (int64_t i = 0; i < n; i++) {
    if (!isfinite (x[i]))
      return false;
  }
  return true;
}

static void
probe_block (const QomniAudioEncoder * self, const Block * b,
    const QomniEmbeddings * e)
{
  const int64_t n_mel = self->config->n_mel;
  g_autofree float *features = NULL;

  if (self->probe == NULL)
    return;
  features = g_new (float, n_mel * b->n_frames);
  fill_image (self, b, 0, b->n_frames, features, b->n_frames);
  qomni_probe_append (self->probe, "audio.features", 1, 2,
      (int64_t[]) { n_mel, b->n_frames }, features);
  qomni_probe_append (self->probe, "audio.embeddings", 0, 2,
      (int64_t[]) { e->n_tokens, e->width }, e->data);
}

QomniEmbeddings *
qomni_audio_encoder_pull (QomniAudioEncoder * self,
    GCancellable * cancellable, GError ** error)
{
  const QomniAudioConfig *c = self->config;
  Block *b = g_queue_peek_head (&self->blocks);
  g_autoptr (QomniEmbeddings) e = NULL;
  int64_t n;

  if (b == NULL || !b->ready)
    return NULL;
  n = n_tokens (b->n_frames, c->chunk_frames);
  e = qomni_embeddings_new (QOMNI_MODALITY_AUDIO, n, 1, c->output_dim, error);
  if (e == NULL || !forward (self, b, n, cancellable, error))
    return NULL;
  self->backend->download (self->stream, e->data, self->y,
      (size_t) (n * c->output_dim) * sizeof (float));
  if (!check_fault (self, error))
    return NULL;
  e->clip = b->clip;
  e->last = b->last;
  e->start = b->first_frame * FRAME_NS;
  e->duration = b->duration;
  if (!all_finite (e->data, n * c->output_dim)) {
    qomni_fail (error, QOMNI_ERROR_NUMERIC, "audio encoder: non-finite values "
        "in the embeddings of the sound from %.2f s to %.2f s",
        (double) e->start / 1e9, (double) (e->start + e->duration) / 1e9);
    return NULL;
  }
  probe_block (self, b, e);
  g_free (g_queue_pop_head (&self->blocks));
  return g_steal_pointer (&e);
}
