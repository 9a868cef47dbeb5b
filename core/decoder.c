/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * decoder: a stack of decoder layers over rows x [n, width], and the cache of
 * keys and values that lets it be run a few rows at a time.
 *
 *   x += scale_a * Wo attention (q, k, Wv a)
 *     q = rope (q_norm (Wq a)), k = rope (k_norm (Wk a))
 *   x += scale_m * mlp (b)           a, b = RMS norms of x
 *
 * Keys and values are projected straight into their rows of the cache, where
 * they are normed and rotated in place. All layers hold the same rows: `fill`
 * of them, the last of `length`. Without a window the cache has every row and
 * grows by doubling. With a window of w keys only the last w - 1 rows matter to
 * later ones, so the cache keeps its size and is moved down when it is full.
 */
#include "decoder.h"

#include <math.h>

#include "workspace.h"

typedef struct
{
  float *input_norm;            /* [width] */
  QkTensor wq;                  /* [n_heads * head_dim, width] */
  QkTensor wk, wv;              /* [n_kv_heads * head_dim, width] */
  QkTensor wo;                  /* [width, n_heads * head_dim] */
  float *q_norm, *k_norm;       /* [head_dim] or NULL */
  float *attention_scale, *mlp_scale;   /* [width] or NULL */
  float *mlp_norm;              /* [width] */

  bool dense;
  QkTensor gate, up;            /* dense: [intermediate, width] */
  QkTensor down;                /* dense: [width, intermediate] */
  QkMoe moe;                    /* not dense */
  QkTensor *experts;            /* [3, n_experts]: gates, ups, downs */
} Layer;

struct _QomniDecoder
{
  QomniDecoderConfig config;
  int64_t q_width, kv_width;
  Layer *layers;
  float *norm;                  /* [width] */
};

/* Keys, then values, each [capacity, kv_width]. */
typedef struct
{
  float *data;
  size_t bytes;
  int64_t capacity;
} Cache;

struct _QomniDecoderState
{
  const QomniDecoder *decoder;
  QkBackend *backend;
  QkStream *stream;
  int64_t max_rows;

  Cache *caches;                /* [n_layers] */
  int64_t capacity;             /* rows that every layer has room for */
  int64_t length;               /* rows seen */
  int64_t fill;                 /* rows held */

  QomniWorkspace work;
  float *a;                     /* [max_rows, width] normed rows */
  float *y;                     /* [max_rows, width] before a layer scale */
  float *q, *att;               /* [max_rows, q_width] */
  float *gate, *up;             /* [max_rows, intermediate] */
  float *table;                 /* [max_rows, 2, head_dim / 2] */
};

/* --- weights ------------------------------------------------------------ */

static void
claim_dense (Layer * l, const QomniDecoderConfig * c, QomniWeights * w,
    const char *prefix, int i)
{
  const int64_t width = c->hidden_size, inner = c->intermediate_size;

  qomni_weights_matrix (w, &l->gate, 2, (int64_t[]) { inner, width },
      "%s.layers.%d.mlp.gate_proj.weight", prefix, i);
  qomni_weights_matrix (w, &l->up, 2, (int64_t[]) { inner, width },
      "%s.layers.%d.mlp.up_proj.weight", prefix, i);
  qomni_weights_matrix (w, &l->down, 2, (int64_t[]) { width, inner },
      "%s.layers.%d.mlp.down_proj.weight", prefix, i);
}

static void
claim_experts (Layer * l, const QomniDecoderConfig * c, QomniWeights * w,
    const char *prefix, int i)
{
  const int64_t width = c->hidden_size, shared = c->shared_intermediate_size;
  const size_t n = (size_t) c->n_experts;
  QkMoe *moe = &l->moe;

  l->experts = g_try_new0 (QkTensor, 3 * n);
  if (l->experts == NULL) {
    qomni_weights_fail (w, g_error_new (QOMNI_ERROR, QOMNI_ERROR_MEMORY,
            "no memory to list the %zu experts of %s.layers.%d", n, prefix, i));
    return;
  }
  moe->n_experts = c->n_experts;
  moe->top_k = c->top_k;
  moe->norm_top_k = c->norm_top_k;
  moe->gate = l->experts;
  moe->up = l->experts + n;
  moe->down = l->experts + 2 * n;

  qomni_weights_matrix (w, &moe->router, 2,
      (int64_t[]) { c->n_experts, width }, "%s.layers.%d.mlp.gate.weight",
      prefix, i);
  qomni_weights_experts (w, l->experts, l->experts + n, l->experts + 2 * n,
      c->n_experts, width, c->moe_intermediate_size,
      "%s.layers.%d.mlp.experts", prefix, i);
  if (shared == 0)
    return;

  qomni_weights_matrix (w, &moe->shared_gate, 2, (int64_t[]) { shared, width },
      "%s.layers.%d.mlp.shared_expert.gate_proj.weight", prefix, i);
  qomni_weights_matrix (w, &moe->shared_up, 2, (int64_t[]) { shared, width },
      "%s.layers.%d.mlp.shared_expert.up_proj.weight", prefix, i);
  qomni_weights_matrix (w, &moe->shared_down, 2, (int64_t[]) { width, shared },
      "%s.layers.%d.mlp.shared_expert.down_proj.weight", prefix, i);
  qomni_weights_matrix (w, &moe->shared_scale, 2, (int64_t[]) { 1, width },
      "%s.layers.%d.mlp.shared_expert_gate.weight", prefix, i);
}

static void
claim_layer (const QomniDecoder * self, Layer * l, QomniDecoderFlags flags,
    QomniWeights * w, const char *prefix, int i)
{
  const QomniDecoderConfig *c = &self->config;
  const int64_t width = c->hidden_size;

  qomni_weights_vector (w, &l->input_norm, width,
      "%s.layers.%d.input_layernorm.weight", prefix, i);
  qomni_weights_matrix (w, &l->wq, 2, (int64_t[]) { self->q_width, width },
      "%s.layers.%d.self_attn.q_proj.weight", prefix, i);
  qomni_weights_matrix (w, &l->wk, 2, (int64_t[]) { self->kv_width, width },
      "%s.layers.%d.self_attn.k_proj.weight", prefix, i);
  qomni_weights_matrix (w, &l->wv, 2, (int64_t[]) { self->kv_width, width },
      "%s.layers.%d.self_attn.v_proj.weight", prefix, i);
  qomni_weights_matrix (w, &l->wo, 2, (int64_t[]) { width, self->q_width },
      "%s.layers.%d.self_attn.o_proj.weight", prefix, i);
  if (flags & QOMNI_DECODER_QK_NORM) {
    qomni_weights_vector (w, &l->q_norm, c->head_dim,
        "%s.layers.%d.self_attn.q_norm.weight", prefix, i);
    qomni_weights_vector (w, &l->k_norm, c->head_dim,
        "%s.layers.%d.self_attn.k_norm.weight", prefix, i);
  }
  qomni_weights_vector (w, &l->mlp_norm, width,
      "%s.layers.%d.post_attention_layernorm.weight", prefix, i);
  if (flags & QOMNI_DECODER_LAYER_SCALE) {
    qomni_weights_vector (w, &l->attention_scale, width,
        "%s.layers.%d.self_attn_layer_scale.scale", prefix, i);
    qomni_weights_vector (w, &l->mlp_scale, width,
        "%s.layers.%d.mlp_layer_scale.scale", prefix, i);
  }

  l->dense = c->n_experts == 0 || c->dense_layer[i];
  if (l->dense)
    claim_dense (l, c, w, prefix, i);
  else
    claim_experts (l, c, w, prefix, i);
}

QomniDecoder *
qomni_decoder_claim (const QomniDecoderConfig * config,
    QomniDecoderFlags flags, QomniWeights * weights, const char *prefix)
{
  QomniDecoder *self = g_new0 (QomniDecoder, 1);

  self->config = *config;
  self->q_width = (int64_t) config->n_heads * config->head_dim;
  self->kv_width = (int64_t) config->n_kv_heads * config->head_dim;
  self->layers = g_new0 (Layer, config->n_layers);
  for (int i = 0; i < config->n_layers; i++)
    claim_layer (self, &self->layers[i], flags, weights, prefix, i);
  qomni_weights_vector (weights, &self->norm, config->hidden_size,
      "%s.norm.weight", prefix);
  return self;
}

void
qomni_decoder_free (QomniDecoder * self)
{
  if (self == NULL)
    return;
  for (int i = 0; i < self->config.n_layers; i++)
    g_free (self->layers[i].experts);
  g_free (self->layers);
  g_free (self);
}

/* --- state -------------------------------------------------------------- */

static float *
cache_keys (const QomniDecoderState * s, int layer, int64_t row)
{
  return s->caches[layer].data + row * s->decoder->kv_width;
}

static float *
cache_values (const QomniDecoderState * s, int layer, int64_t row)
{
  const Cache *c = &s->caches[layer];

  return c->data + (c->capacity + row) * s->decoder->kv_width;
}

/* Gives every layer room for `capacity` rows, layer by layer, so that only one
 * of them exists twice at a time. When it fails, some layers have grown and
 * `s->capacity` has not: nothing is lost. */
static bool
grow (QomniDecoderState * s, int64_t capacity, GError ** error)
{
  const size_t row = (size_t) s->decoder->kv_width * sizeof (float);
  size_t bytes;

  if (!qomni_size_mul3 (2, (size_t) capacity, row, &bytes))
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "a key/value cache of %" G_GINT64_FORMAT " rows is too large",
        capacity);

  for (int i = 0; i < s->decoder->config.n_layers; i++) {
    Cache *c = &s->caches[i];
    Cache larger = { NULL, bytes, capacity };
    const size_t held = (size_t) s->fill * row;

    if (c->capacity >= capacity)
      continue;
    larger.data = s->backend->alloc (s->backend, bytes);
    if (larger.data == NULL)
      return qomni_fail (error, QOMNI_ERROR_MEMORY,
          "no memory for %zu bytes of keys and values (layer %d of %d, "
          "%" G_GINT64_FORMAT " tokens)", bytes, i,
          s->decoder->config.n_layers, capacity);
    if (held > 0) {
      s->backend->copy (s->stream, larger.data, c->data, held);
      s->backend->copy (s->stream,
          larger.data + capacity * s->decoder->kv_width,
          cache_values (s, i, 0), held);
    }
    if (c->data != NULL)
      s->backend->release (s->backend, c->data, c->bytes);
    *c = larger;
  }
  s->capacity = capacity;
  return true;
}

static bool
allocate (QomniDecoderState * s, GError ** error)
{
  const QomniDecoder *d = s->decoder;
  const QomniDecoderConfig *c = &d->config;
  int64_t inner = 0, scaled = 0;

  for (int i = 0; i < c->n_layers; i++) {
    if (d->layers[i].dense)
      inner = c->intermediate_size;
    if (d->layers[i].attention_scale != NULL)
      scaled = c->hidden_size;
  }

  const QomniBuffer buffers[] = {
    { &s->a, s->max_rows, c->hidden_size },
    { &s->y, s->max_rows, scaled },
    { &s->q, s->max_rows, d->q_width },
    { &s->att, s->max_rows, d->q_width },
    { &s->gate, s->max_rows, inner },
    { &s->up, s->max_rows, inner },
    { &s->table, s->max_rows, c->head_dim },
  };

  s->stream = s->backend->stream_new (s->backend);
  if (s->stream == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for a stream of work");
  return qomni_workspace_alloc (&s->work, s->backend, buffers,
      G_N_ELEMENTS (buffers), "decoder layers", error);
}

QomniDecoderState *
qomni_decoder_state_new (const QomniDecoder * decoder, QkBackend * backend,
    int64_t max_rows, GError ** error)
{
  QomniDecoderState *s = g_new0 (QomniDecoderState, 1);
  const int64_t window = decoder->config.sliding_window;

  s->decoder = decoder;
  s->backend = backend;
  s->max_rows = max_rows;
  s->caches = g_new0 (Cache, decoder->config.n_layers);

  /* Twice the window, so that it is moved down once per `window` rows. */
  if (!allocate (s, error)
      || (window > 0 && !grow (s, 2 * window + max_rows, error))) {
    qomni_decoder_state_free (s);
    return NULL;
  }
  return s;
}

void
qomni_decoder_state_free (QomniDecoderState * self)
{
  if (self == NULL)
    return;
  for (int i = 0; i < self->decoder->config.n_layers; i++)
    if (self->caches[i].data != NULL)
      self->backend->release (self->backend, self->caches[i].data,
          self->caches[i].bytes);
  g_free (self->caches);
  qomni_workspace_clear (&self->work);
  if (self->stream != NULL)
    self->backend->stream_free (self->stream);
  g_free (self);
}

QkStream *
qomni_decoder_state_stream (QomniDecoderState * self)
{
  return self->stream;
}

void
qomni_decoder_state_recover (QomniDecoderState * self)
{
  if (self->backend->error (self->stream) != NULL)
    qomni_stream_replace (self->backend, &self->stream);
}

int64_t
qomni_decoder_state_length (const QomniDecoderState * self)
{
  return self->length;
}

bool
qomni_decoder_state_reserve (QomniDecoderState * self, int64_t n,
    GError ** error)
{
  int64_t need, ample;

  if (self->decoder->config.sliding_window > 0)
    return true;
  if (n > INT64_MAX / 4 - self->fill)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no room for %" G_GINT64_FORMAT " more tokens", n);
  need = self->fill + n;
  if (need <= self->capacity)
    return true;

  ample = MAX (need, MAX (2 * self->capacity, 256));
  return grow (self, ample, NULL) || grow (self, need, error);
}

void
qomni_decoder_state_truncate (QomniDecoderState * self, int64_t n)
{
  const int64_t dropped = self->length - n;

  if (dropped <= 0)
    return;
  self->fill = MAX (0, self->fill - dropped);
  self->length = n;
}

/* --- forward ------------------------------------------------------------ */

/* Moves a full sliding window down to the start of the cache. */
static void
make_room (QomniDecoderState * s, int64_t n)
{
  const int64_t keep = MIN (s->fill, s->decoder->config.sliding_window - 1);
  const int64_t first = s->fill - keep;
  const size_t bytes =
      (size_t) (keep * s->decoder->kv_width) * sizeof (float);

  if (s->fill + n <= s->capacity)
    return;
  for (int i = 0; i < s->decoder->config.n_layers; i++) {
    s->backend->copy (s->stream, cache_keys (s, i, 0),
        cache_keys (s, i, first), bytes);
    s->backend->copy (s->stream, cache_values (s, i, 0),
        cache_values (s, i, first), bytes);
  }
  s->fill = keep;
}

/* One layer over n rows; x is changed in place. */
static void
layer_forward (const QomniDecoder * d, QomniDecoderState * s, int i,
    float *x /* [n, width] */, int64_t n)
{
  const QomniDecoderConfig *c = &d->config;
  const Layer *l = &d->layers[i];
  const int64_t width = c->hidden_size;
  const float eps = (float) c->rms_norm_eps;
  QkStream *st = s->stream;
  const QkOps *op = st->ops;
  float *k = cache_keys (s, i, s->fill);
  float *v = cache_values (s, i, s->fill);
  /* Rows before the first query's window are not even looked at. */
  const int64_t unseen = c->sliding_window == 0 ? 0
      : MAX (0, s->fill - (c->sliding_window - 1));
  const QkAttention attention = {
    .n_q = n,
    .n_kv = s->fill + n - unseen,
    .n_heads = c->n_heads,
    .n_kv_heads = c->n_kv_heads,
    .head_dim = c->head_dim,
    .scale = 1.0f / sqrtf ((float) c->head_dim),
    .causal = true,
    .first = s->fill - unseen,
    .window = c->sliding_window,
  };

  op->rms_norm (st, s->a, x, n, width, l->input_norm, eps);
  op->matmul (st, s->q, s->a, n, &l->wq, NULL, QK_ACT_NONE, false);
  op->matmul (st, k, s->a, n, &l->wk, NULL, QK_ACT_NONE, false);
  op->matmul (st, v, s->a, n, &l->wv, NULL, QK_ACT_NONE, false);
  if (l->q_norm != NULL) {
    op->rms_norm (st, s->q, s->q, n * c->n_heads, c->head_dim, l->q_norm, eps);
    op->rms_norm (st, k, k, n * c->n_kv_heads, c->head_dim, l->k_norm, eps);
  }
  op->rope (st, s->q, s->table, n, c->n_heads, c->head_dim);
  op->rope (st, k, s->table, n, c->n_kv_heads, c->head_dim);
  op->attention (st, s->att, s->q, cache_keys (s, i, unseen),
      cache_values (s, i, unseen), &attention);
  if (l->attention_scale != NULL) {
    op->matmul (st, s->y, s->att, n, &l->wo, NULL, QK_ACT_NONE, false);
    op->add_scaled (st, x, s->y, n, width, l->attention_scale);
  } else {
    op->matmul (st, x, s->att, n, &l->wo, NULL, QK_ACT_NONE, true);
  }

  op->rms_norm (st, s->a, x, n, width, l->mlp_norm, eps);
  if (l->dense) {
    op->matmul (st, s->gate, s->a, n, &l->gate, NULL, QK_ACT_NONE, false);
    op->matmul (st, s->up, s->a, n, &l->up, NULL, QK_ACT_NONE, false);
    op->silu_mul (st, s->gate, s->up, n * c->intermediate_size);
    if (l->mlp_scale != NULL) {
      op->matmul (st, s->y, s->gate, n, &l->down, NULL, QK_ACT_NONE, false);
      op->add_scaled (st, x, s->y, n, width, l->mlp_scale);
    } else {
      op->matmul (st, x, s->gate, n, &l->down, NULL, QK_ACT_NONE, true);
    }
  } else if (l->mlp_scale != NULL) {
    s->backend->zero (st, s->y, (size_t) (n * width) * sizeof (float));
    op->moe (st, s->y, s->a, n, &l->moe, NULL);
    op->add_scaled (st, x, s->y, n, width, l->mlp_scale);
  } else {
    op->moe (st, x, s->a, n, &l->moe, NULL);
  }
}

void
qomni_decoder_forward (const QomniDecoder * self, QomniDecoderState * state,
    float *x, int64_t n, const float *table, QomniLayerFunc func,
    void *user_data)
{
  if (n == 0)
    return;
  if (self->config.sliding_window > 0)
    make_room (state, n);

  state->backend->upload (state->stream, state->table, table,
      (size_t) (n * self->config.head_dim) * sizeof (float));
  if (func != NULL)
    func (-1, x, n, user_data);
  for (int i = 0; i < self->config.n_layers; i++) {
    layer_forward (self, state, i, x, n);
    if (func != NULL)
      func (i, x, n, user_data);
  }
  state->fill += n;
  state->length += n;
}

void
qomni_decoder_norm (const QomniDecoder * self, QomniDecoderState * state,
    float *y, const float *x, int64_t n)
{
  state->stream->ops->rms_norm (state->stream, y, x, n,
      self->config.hidden_size, self->norm, (float) self->config.rms_norm_eps);
}
