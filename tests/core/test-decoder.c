/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The decoder stack against plain arithmetic in double, on small random
 * checkpoints: one like the Thinker (experts), one like the Talker (with a
 * shared expert), one dense, one like Code2Wav's (layer scales, a window).
 */
#include "decoder.h"

#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#define PREFIX "m"
#define N_ROWS 41

typedef struct
{
  QomniDecoderConfig config;
  QomniDecoderFlags flags;
  char *dir;
  GHashTable *tensors;          /* name -> float[] */
  GArray *out;                  /* QomniTensorOut */
  uint32_t random;

  QkBackend *backend;
  QomniWeights *weights;
  QomniDecoder *decoder;
} Fixture;

static float
next_random (uint32_t * state)
{
  *state = *state * 1664525u + 1013904223u;
  return (float) (*state >> 8) / (float) (1 << 23) - 1.0f;
}

static void
add (Fixture * f, int64_t rows, int64_t width, float mean, float spread,
    const char *format, ...)
{
  const int64_t n = (rows > 0 ? rows : 1) * width;
  float *data = g_new (float, n);
  QomniTensorOut out = { .dtype = "F32", .data = data };
  va_list args;

  va_start (args, format);
  out.name = g_strdup_vprintf (format, args);
  va_end (args);
  for (int64_t i = 0; i < n; i++)
    data[i] = mean + spread * next_random (&f->random);
  if (rows > 0)
    out.dims[out.n_dims++] = rows;
  out.dims[out.n_dims++] = width;
  out.bytes = (size_t) n * sizeof (float);
  g_array_append_val (f->out, out);
  g_hash_table_insert (f->tensors, (char *) out.name, data);
}

static void
add_mlp (Fixture * f, int64_t width, int64_t inner, const char *prefix)
{
  const float a = 1.5f / sqrtf ((float) width);

  add (f, inner, width, 0, a, "%s.gate_proj.weight", prefix);
  add (f, inner, width, 0, a, "%s.up_proj.weight", prefix);
  add (f, width, inner, 0, 2.0f / sqrtf ((float) inner),
      "%s.down_proj.weight", prefix);
}

static void
add_layer (Fixture * f, int i)
{
  const QomniDecoderConfig *c = &f->config;
  const int64_t width = c->hidden_size, q = c->n_heads * c->head_dim;
  const int64_t kv = c->n_kv_heads * c->head_dim;
  const float a = 1.5f / sqrtf ((float) width);
  g_autofree char *l = g_strdup_printf (PREFIX ".layers.%d", i);
  g_autofree char *mlp = g_strconcat (l, ".mlp", NULL);

  add (f, 0, width, 1, 0.3f, "%s.input_layernorm.weight", l);
  add (f, 0, width, 1, 0.3f, "%s.post_attention_layernorm.weight", l);
  add (f, q, width, 0, a, "%s.self_attn.q_proj.weight", l);
  add (f, kv, width, 0, a, "%s.self_attn.k_proj.weight", l);
  add (f, kv, width, 0, a, "%s.self_attn.v_proj.weight", l);
  add (f, width, q, 0, 1.5f / sqrtf ((float) q), "%s.self_attn.o_proj.weight",
      l);
  if (f->flags & QOMNI_DECODER_QK_NORM) {
    add (f, 0, c->head_dim, 1.6f, 0.3f, "%s.self_attn.q_norm.weight", l);
    add (f, 0, c->head_dim, 1.6f, 0.3f, "%s.self_attn.k_norm.weight", l);
  }
  if (f->flags & QOMNI_DECODER_LAYER_SCALE) {
    add (f, 0, width, 0.5f, 0.2f, "%s.self_attn_layer_scale.scale", l);
    add (f, 0, width, 0.5f, 0.2f, "%s.mlp_layer_scale.scale", l);
  }
  if (c->n_experts == 0 || c->dense_layer[i]) {
    add_mlp (f, width, c->intermediate_size, mlp);
    return;
  }
  add (f, c->n_experts, width, 0, 2 * a, "%s.gate.weight", mlp);
  for (int e = 0; e < c->n_experts; e++) {
    g_autofree char *expert = g_strdup_printf ("%s.experts.%d", mlp, e);

    add_mlp (f, width, c->moe_intermediate_size, expert);
  }
  if (c->shared_intermediate_size > 0) {
    g_autofree char *shared = g_strconcat (mlp, ".shared_expert", NULL);

    add_mlp (f, width, c->shared_intermediate_size, shared);
    add (f, 1, width, 0, a, "%s.shared_expert_gate.weight", mlp);
  }
}

static QomniDecoderConfig
thinker_like (void)
{
  QomniDecoderConfig c = {
    .hidden_size = 20, .n_layers = 3, .n_heads = 4, .n_kv_heads = 2,
    .head_dim = 6, .intermediate_size = 14, .n_experts = 5, .top_k = 2,
    .moe_intermediate_size = 9, .norm_top_k = true, .rms_norm_eps = 1e-6,
  };

  c.dense_layer[1] = true;
  return c;
}

static QomniDecoderConfig
talker_like (void)
{
  return (QomniDecoderConfig) {
    .hidden_size = 16, .n_layers = 2, .n_heads = 3, .n_kv_heads = 1,
    .head_dim = 8, .intermediate_size = 99, .n_experts = 4, .top_k = 3,
    .moe_intermediate_size = 5, .shared_intermediate_size = 7,
    .rms_norm_eps = 1e-6,
  };
}

static QomniDecoderConfig
windowed (void)
{
  return (QomniDecoderConfig) {
    .hidden_size = 12, .n_layers = 3, .n_heads = 2, .n_kv_heads = 2,
    .head_dim = 6, .intermediate_size = 17, .rms_norm_eps = 1e-5,
    .sliding_window = 7,
  };
}

static void
fixture_write (Fixture * f, QomniDecoderConfig config,
    QomniDecoderFlags flags)
{
  g_autofree char *path = NULL;
  GError *error = NULL;

  f->config = config;
  f->flags = flags;
  f->random = 7;
  f->tensors = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, g_free);
  f->out = g_array_new (FALSE, FALSE, sizeof (QomniTensorOut));
  for (int i = 0; i < config.n_layers; i++)
    add_layer (f, i);
  add (f, 0, config.hidden_size, 1, 0.3f, PREFIX ".norm.weight");

  f->dir = g_dir_make_tmp ("qomni-decoder-XXXXXX", &error);
  g_assert_no_error (error);
  path = g_build_filename (f->dir, "model.safetensors", NULL);
  qomni_safetensors_write (path, (QomniTensorOut *) f->out->data, f->out->len,
      &error);
  g_assert_no_error (error);
}

static bool
fixture_load (Fixture * f, GError ** error)
{
  g_autoptr (QomniCheckpoint) checkpoint =
      qomni_checkpoint_open (f->dir, QOMNI_READ_PRIVATE, error);

  g_assert_nonnull (checkpoint);
  f->backend = qk_cpu_backend_new (1, QK_CPU_BEST);
  f->weights = qomni_weights_new (checkpoint, f->backend);
  f->decoder = qomni_decoder_claim (&f->config, f->flags, f->weights, PREFIX);
  return qomni_weights_load (f->weights, NULL, NULL, NULL, error);
}

static void
fixture_make (Fixture * f, QomniDecoderConfig config, QomniDecoderFlags flags)
{
  GError *error = NULL;

  fixture_write (f, config, flags);
  fixture_load (f, &error);
  g_assert_no_error (error);
}

static void
fixture_clear (Fixture * f)
{
  g_autofree char *path =
      g_build_filename (f->dir, "model.safetensors", NULL);

  qomni_decoder_free (f->decoder);
  qomni_weights_free (f->weights);
  f->backend->free (f->backend);
  g_hash_table_unref (f->tensors);
  g_array_unref (f->out);
  g_unlink (path);
  g_rmdir (f->dir);
  g_free (f->dir);
}

/* --- plain arithmetic --------------------------------------------------- */

static const float *
get (const Fixture * f, const char *prefix, const char *name)
{
  g_autofree char *full = g_strconcat (prefix, name, NULL);
  const float *data = g_hash_table_lookup (f->tensors, full);

  g_assert_nonnull (data);
  return data;
}

static void
ref_matmul (double *y, const double *x, const float *w, int64_t m, int64_t k)
{
  for (int64_t i = 0; i < m; i++) {
    y[i] = 0;
    for (int64_t j = 0; j < k; j++)
      y[i] += (double) w[i * k + j] * x[j];
  }
}

static void
ref_norm (double *y, const double *x, const float *w, int64_t n, double eps)
{
  double sum = 0;

  for (int64_t i = 0; i < n; i++)
    sum += x[i] * x[i];
  for (int64_t i = 0; i < n; i++)
    y[i] = w[i] * x[i] / sqrt (sum / (double) n + eps);
}

static void
ref_heads (double *x, const float *norm, const float *table, int n, int dim,
    double eps)
{
  const int half = dim / 2;

  for (int h = 0; h < n; h++, x += dim) {
    if (norm != NULL)
      ref_norm (x, x, norm, dim, eps);
    for (int i = 0; i < half; i++) {
      const double a = x[i], b = x[i + half];

      x[i] = a * table[i] - b * table[half + i];
      x[i + half] = b * table[i] + a * table[half + i];
    }
  }
}

/* y += factor * down (silu (gate x) * up x) */
static void
ref_mlp (const Fixture * f, double *y, const double *x, int64_t width,
    int64_t inner, double factor, const char *prefix)
{
  g_autofree double *gate = g_new (double, inner);
  g_autofree double *up = g_new (double, inner);
  g_autofree double *down = g_new (double, width);

  ref_matmul (gate, x, get (f, prefix, ".gate_proj.weight"), inner, width);
  ref_matmul (up, x, get (f, prefix, ".up_proj.weight"), inner, width);
  for (int64_t i = 0; i < inner; i++)
    gate[i] *= up[i] / (1 + exp (-gate[i]));
  ref_matmul (down, gate, get (f, prefix, ".down_proj.weight"), width, inner);
  for (int64_t i = 0; i < width; i++)
    y[i] += factor * down[i];
}

static void
ref_experts (const Fixture * f, double *y, const double *x, const char *mlp)
{
  const QomniDecoderConfig *c = &f->config;
  const int64_t width = c->hidden_size;
  double p[16], sum = 0, chosen_sum = 0;
  bool chosen[16] = { false };

  ref_matmul (p, x, get (f, mlp, ".gate.weight"), c->n_experts, width);
  for (int e = 0; e < c->n_experts; e++)
    sum += p[e] = exp (p[e]);
  for (int k = 0; k < c->top_k; k++) {
    int best = -1;

    for (int e = 0; e < c->n_experts; e++)
      if (!chosen[e] && (best < 0 || p[e] > p[best]))
        best = e;
    chosen[best] = true;
    chosen_sum += p[best];
  }
  for (int e = 0; e < c->n_experts; e++) {
    g_autofree char *expert = g_strdup_printf ("%s.experts.%d", mlp, e);

    if (chosen[e])
      ref_mlp (f, y, x, width, c->moe_intermediate_size,
          p[e] / (c->norm_top_k ? chosen_sum : sum), expert);
  }
  if (c->shared_intermediate_size > 0) {
    g_autofree char *shared = g_strconcat (mlp, ".shared_expert", NULL);
    double gate;

    ref_matmul (&gate, x, get (f, mlp, ".shared_expert_gate.weight"), 1,
        width);
    ref_mlp (f, y, x, width, c->shared_intermediate_size,
        1 / (1 + exp (-gate)), shared);
  }
}

static void
ref_layer (const Fixture * f, int layer, double *x, int64_t n,
    const float *table)
{
  const QomniDecoderConfig *c = &f->config;
  const int64_t width = c->hidden_size, q_width = c->n_heads * c->head_dim;
  const int64_t kv_width = c->n_kv_heads * c->head_dim;
  const bool scaled = f->flags & QOMNI_DECODER_LAYER_SCALE;
  g_autofree char *l = g_strdup_printf (PREFIX ".layers.%d", layer);
  g_autofree char *mlp = g_strconcat (l, ".mlp", NULL);
  g_autofree double *a = g_new (double, width);
  g_autofree double *y = g_new (double, width);
  g_autofree double *att = g_new (double, q_width);
  g_autofree double *q = g_new (double, n * q_width);
  g_autofree double *k = g_new (double, n * kv_width);
  g_autofree double *v = g_new (double, n * kv_width);
  const float *q_norm = NULL, *k_norm = NULL;

  if (f->flags & QOMNI_DECODER_QK_NORM) {
    q_norm = get (f, l, ".self_attn.q_norm.weight");
    k_norm = get (f, l, ".self_attn.k_norm.weight");
  }
  for (int64_t i = 0; i < n; i++) {
    ref_norm (a, x + i * width, get (f, l, ".input_layernorm.weight"), width,
        c->rms_norm_eps);
    ref_matmul (q + i * q_width, a, get (f, l, ".self_attn.q_proj.weight"),
        q_width, width);
    ref_matmul (k + i * kv_width, a, get (f, l, ".self_attn.k_proj.weight"),
        kv_width, width);
    ref_matmul (v + i * kv_width, a, get (f, l, ".self_attn.v_proj.weight"),
        kv_width, width);
    ref_heads (q + i * q_width, q_norm, table + i * c->head_dim, c->n_heads,
        c->head_dim, c->rms_norm_eps);
    ref_heads (k + i * kv_width, k_norm, table + i * c->head_dim,
        c->n_kv_heads, c->head_dim, c->rms_norm_eps);
  }

  for (int64_t i = 0; i < n; i++) {
    const int64_t first = c->sliding_window == 0 ? 0
        : MAX (0, i - c->sliding_window + 1);
    double *xi = x + i * width;

    memset (att, 0, (size_t) q_width * sizeof (double));
    for (int h = 0; h < c->n_heads; h++) {
      const int64_t kv = h / (c->n_heads / c->n_kv_heads) * c->head_dim;
      double sum = 0;

      for (int64_t j = first; j <= i; j++) {
        double dot = 0;

        for (int d = 0; d < c->head_dim; d++)
          dot += q[i * q_width + h * c->head_dim + d]
              * k[j * kv_width + kv + d];
        dot = exp (dot / sqrt (c->head_dim));
        sum += dot;
        for (int d = 0; d < c->head_dim; d++)
          att[h * c->head_dim + d] += dot * v[j * kv_width + kv + d];
      }
      for (int d = 0; d < c->head_dim; d++)
        att[h * c->head_dim + d] /= sum;
    }
    ref_matmul (y, att, get (f, l, ".self_attn.o_proj.weight"), width,
        q_width);
    for (int64_t j = 0; j < width; j++)
      xi[j] += y[j] * (scaled ?
          get (f, l, ".self_attn_layer_scale.scale")[j] : 1);

    ref_norm (a, xi, get (f, l, ".post_attention_layernorm.weight"), width,
        c->rms_norm_eps);
    memset (y, 0, (size_t) width * sizeof (double));
    if (c->n_experts == 0 || c->dense_layer[layer])
      ref_mlp (f, y, a, width, c->intermediate_size, 1, mlp);
    else
      ref_experts (f, y, a, mlp);
    for (int64_t j = 0; j < width; j++)
      xi[j] += y[j] * (scaled ? get (f, l, ".mlp_layer_scale.scale")[j] : 1);
  }
}

/* --- what the tests share ------------------------------------------------ */

/* x [n, width] and table [n, 2, head_dim / 2] for positions 0, 0.7, 1.4, … */
static void
make_input (const Fixture * f, int64_t n, float *x, float *table)
{
  const int half = f->config.head_dim / 2;
  uint32_t random = 3;

  for (int64_t i = 0; i < n * f->config.hidden_size; i++)
    x[i] = next_random (&random);
  for (int64_t i = 0; i < n; i++)
    for (int j = 0; j < half; j++) {
      const double angle = 0.7 * (double) i * pow (100, -(double) j / half);

      table[(2 * i) * half + j] = (float) cos (angle);
      table[(2 * i + 1) * half + j] = (float) sin (angle);
    }
}

/* Runs rows first … n-1 of x, `step` at a time, into y. */
static void
run (const Fixture * f, QomniDecoderState * s, float *y, const float *x,
    const float *table, int64_t first, int64_t n, int64_t step)
{
  const int64_t width = f->config.hidden_size;
  QkStream *st = qomni_decoder_state_stream (s);
  const size_t bytes = (size_t) (step * width) * sizeof (float);
  float *dev = f->backend->alloc (f->backend, bytes);
  GError *error = NULL;

  for (int64_t i = first; i < n; i += step) {
    const int64_t rows = MIN (step, n - i);
    const size_t part = (size_t) (rows * width) * sizeof (float);

    qomni_decoder_state_reserve (s, rows, &error);
    g_assert_no_error (error);
    f->backend->upload (st, dev, x + i * width, part);
    qomni_decoder_forward (f->decoder, s, dev, rows,
        table + i * f->config.head_dim, NULL, NULL);
    qomni_decoder_norm (f->decoder, s, dev, dev, rows);
    f->backend->download (st, y + i * width, dev, part);
    g_assert_null (f->backend->error (st));
  }
  f->backend->release (f->backend, dev, bytes);
}

static void
assert_near (const float *got, const float *want, int64_t n, double tolerance)
{
  for (int64_t i = 0; i < n; i++)
    if (!(fabs ((double) got[i] - want[i]) <= tolerance))
      g_error ("value %" G_GINT64_FORMAT " of %" G_GINT64_FORMAT " is %g, "
          "expected %g", i, n, got[i], want[i]);
}

typedef struct
{
  const char *name;
  QomniDecoderConfig (*config) (void);
  QomniDecoderFlags flags;
} Case;

static const Case cases[] = {
  { "experts", thinker_like, QOMNI_DECODER_QK_NORM },
  { "shared_expert", talker_like, QOMNI_DECODER_QK_NORM },
  { "window_and_layer_scale", windowed, QOMNI_DECODER_LAYER_SCALE },
};

static void
equals_plain_arithmetic_in_any_split (gconstpointer data)
{
  const Case *c = data;
  static const int64_t steps[] = { 1, 2, 5, 16, N_ROWS };
  Fixture f = { 0 };

  fixture_make (&f, c->config (), c->flags);

  const int64_t n = N_ROWS * f.config.hidden_size;
  g_autofree float *x = g_new (float, n);
  g_autofree float *y = g_new (float, n);
  g_autofree float *want = g_new (float, n);
  g_autofree float *table = g_new (float, N_ROWS * f.config.head_dim);
  g_autofree double *exact = g_new (double, n);

  make_input (&f, N_ROWS, x, table);
  for (int64_t i = 0; i < n; i++)
    exact[i] = x[i];
  for (int i = 0; i < f.config.n_layers; i++)
    ref_layer (&f, i, exact, N_ROWS, table);
  for (int64_t i = 0; i < N_ROWS; i++) {
    double *row = exact + i * f.config.hidden_size;

    ref_norm (row, row, get (&f, PREFIX, ".norm.weight"), f.config.hidden_size,
        f.config.rms_norm_eps);
  }
  for (int64_t i = 0; i < n; i++)
    want[i] = (float) exact[i];

  for (size_t i = 0; i < G_N_ELEMENTS (steps); i++) {
    GError *error = NULL;
    QomniDecoderState *s = qomni_decoder_state_new (f.decoder, f.backend,
        steps[i], &error);

    g_assert_no_error (error);
    run (&f, s, y, x, table, 0, N_ROWS, steps[i]);
    assert_near (y, want, n, 2e-5);
    g_assert_cmpint (qomni_decoder_state_length (s), ==, N_ROWS);
    qomni_decoder_state_free (s);
  }
  fixture_clear (&f);
}

/* The cache grows between the steps (256 rows at first), and rows cut off come
 * back as they were. */
static void
truncated_and_grown_cache_gives_the_same_rows (void)
{
  const int64_t rows = 600;
  Fixture f = { 0 };
  GError *error = NULL;

  fixture_make (&f, talker_like (), QOMNI_DECODER_QK_NORM);

  const int64_t n = rows * f.config.hidden_size;
  g_autofree float *x = g_new (float, n);
  g_autofree float *y = g_new0 (float, n);
  g_autofree float *want = g_new (float, n);
  g_autofree float *table = g_new (float, rows * f.config.head_dim);
  QomniDecoderState *once = qomni_decoder_state_new (f.decoder, f.backend,
      rows, &error);
  QomniDecoderState *s = qomni_decoder_state_new (f.decoder, f.backend, 64,
      &error);

  make_input (&f, rows, x, table);
  run (&f, once, want, x, table, 0, rows, rows);
  run (&f, s, y, x, table, 0, 300, 64);
  qomni_decoder_state_truncate (s, 100);
  g_assert_cmpint (qomni_decoder_state_length (s), ==, 100);
  run (&f, s, y, x, table, 100, rows, 64);
  assert_near (y, want, n, 1e-5);

  qomni_decoder_state_truncate (s, 0);
  memset (y, 0, (size_t) n * sizeof (float));
  run (&f, s, y, x, table, 0, 70, 7);
  assert_near (y, want, 70 * f.config.hidden_size, 1e-5);

  qomni_decoder_state_free (s);
  qomni_decoder_state_free (once);
  fixture_clear (&f);
}

typedef struct
{
  int next;
  const Fixture *f;
  QomniDecoderState *state;
  float last[64];
} Seen;

static void
see_layer (int layer, float *x, int64_t n, void *user_data)
{
  Seen *seen = user_data;

  g_assert_cmpint (layer, ==, seen->next);
  seen->next++;
  seen->f->backend->download (qomni_decoder_state_stream (seen->state),
      seen->last, x,
      (size_t) (n * seen->f->config.hidden_size) * sizeof (float));
}

static void
layer_func_sees_the_residual_stream_from_input_to_last (void)
{
  Fixture f = { 0 };
  GError *error = NULL;

  fixture_make (&f, windowed (), QOMNI_DECODER_LAYER_SCALE);

  const int64_t width = f.config.hidden_size;
  const size_t bytes = (size_t) (2 * width) * sizeof (float);
  float x[64], table[16];
  float *dev = f.backend->alloc (f.backend, bytes);
  QomniDecoderState *s = qomni_decoder_state_new (f.decoder, f.backend, 2,
      &error);
  Seen seen = { -1, &f, s, { 0 } };

  make_input (&f, 2, x, table);
  f.backend->upload (qomni_decoder_state_stream (s), dev, x, bytes);
  qomni_decoder_forward (f.decoder, s, dev, 2, table, see_layer, &seen);
  g_assert_cmpint (seen.next, ==, f.config.n_layers);
  f.backend->download (qomni_decoder_state_stream (s), x, dev, bytes);
  assert_near (seen.last, x, 2 * width, 0);

  qomni_decoder_state_free (s);
  f.backend->release (f.backend, dev, bytes);
  fixture_clear (&f);
}

static void
impossible_reservation_is_refused_and_leaves_the_cache (void)
{
  Fixture f = { 0 };
  GError *error = NULL;

  fixture_make (&f, talker_like (), QOMNI_DECODER_QK_NORM);

  const int64_t n = 9 * f.config.hidden_size;
  g_autofree float *x = g_new (float, n);
  g_autofree float *y = g_new (float, n);
  g_autofree float *want = g_new (float, n);
  g_autofree float *table = g_new (float, 9 * f.config.head_dim);
  QomniDecoderState *s = qomni_decoder_state_new (f.decoder, f.backend, 9,
      &error);

  make_input (&f, 9, x, table);
  run (&f, s, want, x, table, 0, 9, 9);
  qomni_decoder_state_truncate (s, 4);
  g_assert_false (qomni_decoder_state_reserve (s, INT64_MAX / 8, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_MEMORY);
  g_clear_error (&error);
  memcpy (y, want, (size_t) n * sizeof (float));
  run (&f, s, y, x, table, 4, 9, 2);
  assert_near (y, want, n, 1e-5);

  qomni_decoder_state_free (s);
  fixture_clear (&f);
}

static void
wrong_shape_is_refused_with_its_name (void)
{
  Fixture f = { 0 };
  GError *error = NULL;

  fixture_write (&f, windowed (), QOMNI_DECODER_LAYER_SCALE);
  f.config.intermediate_size++;
  g_assert_false (fixture_load (&f, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_FORMAT);
  g_assert_nonnull (strstr (error->message,
          PREFIX ".layers.0.mlp.gate_proj.weight"));
  g_clear_error (&error);
  fixture_clear (&f);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autofree char *path = g_strdup_printf (
        "/decoder/%s_equals_plain_arithmetic_in_any_split", cases[i].name);

    g_test_add_data_func (path, &cases[i],
        equals_plain_arithmetic_in_any_split);
  }
  g_test_add_func ("/decoder/truncated_and_grown_cache_gives_the_same_rows",
      truncated_and_grown_cache_gives_the_same_rows);
  g_test_add_func
      ("/decoder/layer_func_sees_the_residual_stream_from_input_to_last",
      layer_func_sees_the_residual_stream_from_input_to_last);
  g_test_add_func
      ("/decoder/impossible_reservation_is_refused_and_leaves_the_cache",
      impossible_reservation_is_refused_and_leaves_the_cache);
  g_test_add_func ("/decoder/wrong_shape_is_refused_with_its_name",
      wrong_shape_is_refused_with_its_name);
  return g_test_run ();
}
