/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * naive: the ops as the header of the kernels defines them, one output at a
 * time and in double precision, to judge the plain C kernels by.
 */
#include "naive.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double
weight_at (const QkTensor * w, int64_t at)
{
  float value;

  qk_to_f32 (&value, (const char *) w->data
      + (size_t) at * qk_dtype_size (w->dtype), w->dtype, 1);
  return (double) value;
}

static double
dot (const float *x, const QkTensor * w, int64_t row, int64_t k)
{
  double sum = 0;

  for (int64_t e = 0; e < k; e++)
    sum += (double) x[e] * weight_at (w, row * k + e);
  return sum;
}

static double
act_of (double x, QkActivation act)
{
  switch (act) {
    case QK_ACT_GELU:
      return x * (0.5 * erfc (-x * sqrt (0.5)));
    case QK_ACT_GELU_TANH:
      return x / 2 * (1 + tanh (sqrt (2 / 3.14159265358979323846)
              * (x + 0.044715 * x * x * x)));
    case QK_ACT_SILU:
      return x / (1 + exp (-x));
    default:
      return x;
  }
}

static void
naive_matmul (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * w, const float *bias, QkActivation act, bool accumulate)
{
  int64_t m = w->dims[0], k = w->dims[1];

  (void) s;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t c = 0; c < m; c++) {
      double sum = dot (x + i * k, w, c, k)
          + (bias != NULL ? (double) bias[c] : 0);

      y[i * m + c] = (float) (accumulate ? (double) y[i * m + c] + sum
          : act_of (sum, act));
    }
  }
}

static void
naive_rms_norm (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w, float eps)
{
  (void) s;
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;

    for (int64_t e = 0; e < d; e++)
      sum += (double) x[i * d + e] * (double) x[i * d + e];
    for (int64_t e = 0; e < d; e++)
      y[i * d + e] = (float) ((double) w[e] * (double) x[i * d + e]
          / sqrt (sum / (double) d + (double) eps));
  }
}

static void
naive_layer_norm (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w, const float *b, float eps)
{
  (void) s;
  for (int64_t i = 0; i < n; i++) {
    const float *row = x + i * d;
    double mean = 0, var = 0;

    for (int64_t e = 0; e < d; e++)
      mean += (double) row[e] / (double) d;
    for (int64_t e = 0; e < d; e++)
      var += pow ((double) row[e] - mean, 2) / (double) d;
    for (int64_t e = 0; e < d; e++)
      y[i * d + e] = (float) (((double) row[e] - mean)
          / sqrt (var + (double) eps) * (double) w[e] + (double) b[e]);
  }
}

static void
naive_rope (QkStream * s, float *x, const float *table, int64_t n, int n_heads,
    int head_dim)
{
  int half = head_dim / 2;

  (void) s;
  for (int64_t i = 0; i < n; i++) {
    for (int h = 0; h < n_heads; h++) {
      for (int e = 0; e < half; e++) {
        float *a = x + (i * n_heads + h) * head_dim + e;
        double c = (double) table[i * 2 * half + e];
        double si = (double) table[(i * 2 + 1) * half + e];
        double re = (double) a[0], im = (double) a[half];

        a[0] = (float) (re * c - im * si);
        a[half] = (float) (im * c + re * si);
      }
    }
  }
}

static bool
sees (const QkAttention * a, int64_t query, int64_t key)
{
  int64_t here = a->first + query;

  if (!a->causal)
    return true;
  return key <= here && (a->window <= 0 || key > here - a->window);
}

static void
naive_attention (QkStream * s, float *out, const float *q, const float *k,
    const float *v, const QkAttention * a)
{
  double *p = malloc ((size_t) (a->n_kv + 1) * sizeof *p);
  int64_t dim = a->head_dim;

  (void) s;
  for (int64_t i = 0; i < a->n_q; i++) {
    for (int64_t h = 0; h < a->n_heads; h++) {
      int64_t at = (i * a->n_heads + h) * dim;
      int64_t kv_head = h / (a->n_heads / a->n_kv_heads);
      double max = -INFINITY, sum = 0;

      for (int64_t t = 0; t < a->n_kv; t++) {
        if (!sees (a, i, t))
          continue;
        p[t] = 0;
        for (int64_t e = 0; e < dim; e++)
          p[t] += (double) q[at + e]
              * (double) k[(t * a->n_kv_heads + kv_head) * dim + e];
        p[t] *= (double) a->scale;
        if (p[t] > max)
          max = p[t];
      }
      for (int64_t t = 0; t < a->n_kv; t++)
        if (sees (a, i, t))
          sum += exp (p[t] - max);
      for (int64_t e = 0; e < dim; e++) {
        double total = 0;
        bool any = false;

        for (int64_t t = 0; t < a->n_kv; t++) {
          if (!sees (a, i, t))
            continue;
          any = true;
          total += exp (p[t] - max)
              * (double) v[(t * a->n_kv_heads + kv_head) * dim + e];
        }
        out[at + e] = any ? (float) (total / sum) : 0;
      }
    }
  }
  free (p);
}

static void
add_expert (double *y, const float *x, int64_t width, const QkTensor * gate,
    const QkTensor * up, const QkTensor * down, double weight)
{
  int64_t inner = gate->dims[0];
  double *h = malloc ((size_t) (inner + 1) * sizeof *h);

  for (int64_t r = 0; r < inner; r++)
    h[r] = act_of (dot (x, gate, r, width), QK_ACT_SILU)
        * dot (x, up, r, width);
  for (int64_t r = 0; r < width; r++)
    for (int64_t e = 0; e < inner; e++)
      y[r] += weight * h[e] * weight_at (down, r * inner + e);
  free (h);
}

static void
naive_moe (QkStream * s, float *y, const float *x, int64_t n,
    const QkMoe * moe, int32_t * ret_experts)
{
  int64_t width = moe->router.dims[1];
  double *p = malloc ((size_t) moe->n_experts * sizeof *p);
  double *sum = malloc ((size_t) width * sizeof *sum);
  int *chosen = malloc ((size_t) moe->top_k * sizeof *chosen);

  (void) s;
  for (int64_t i = 0; i < n; i++) {
    const float *row = x + i * width;
    double total = 0, of_chosen = 0;

    for (int e = 0; e < moe->n_experts; e++) {
      p[e] = exp (dot (row, &moe->router, e, width));
      total += p[e];
    }
    for (int t = 0; t < moe->top_k; t++) {
      chosen[t] = -1;
      for (int e = 0; e < moe->n_experts; e++) {
        bool before = false;

        for (int u = 0; u < t; u++)
          before |= chosen[u] == e;
        if (!before && (chosen[t] < 0 || p[e] > p[chosen[t]]))
          chosen[t] = e;
      }
      of_chosen += p[chosen[t]];
      if (ret_experts != NULL)
        ret_experts[i * moe->top_k + t] = chosen[t];
    }

    memset (sum, 0, (size_t) width * sizeof *sum);
    for (int t = 0; t < moe->top_k; t++)
      add_expert (sum, row, width, &moe->gate[chosen[t]], &moe->up[chosen[t]],
          &moe->down[chosen[t]],
          p[chosen[t]] / (moe->norm_top_k ? of_chosen : total));
    if (moe->shared_gate.data != NULL)
      add_expert (sum, row, width, &moe->shared_gate, &moe->shared_up,
          &moe->shared_down,
          1 / (1 + exp (-dot (row, &moe->shared_scale, 0, width))));
    for (int64_t r = 0; r < width; r++)
      y[i * width + r] = (float) ((double) y[i * width + r] + sum[r]);
  }
  free (chosen);
  free (sum);
  free (p);
}

static void
naive_silu_mul (QkStream * s, float *y, const float *up, int64_t n)
{
  (void) s;
  for (int64_t i = 0; i < n; i++)
    y[i] = (float) (act_of ((double) y[i], QK_ACT_SILU) * (double) up[i]);
}

static void
naive_activate (QkStream * s, float *y, int64_t n, QkActivation act)
{
  (void) s;
  for (int64_t i = 0; i < n; i++)
    y[i] = (float) act_of ((double) y[i], act);
}

static void
naive_add (QkStream * s, float *y, const float *x, int64_t n)
{
  (void) s;
  for (int64_t i = 0; i < n; i++)
    y[i] = (float) ((double) y[i] + (double) x[i]);
}

static void
naive_scale (QkStream * s, float *y, float factor, int64_t n)
{
  (void) s;
  for (int64_t i = 0; i < n; i++)
    y[i] = (float) ((double) y[i] * (double) factor);
}

static void
naive_clamp (QkStream * s, float *y, float lo, float hi, int64_t n)
{
  (void) s;
  for (int64_t i = 0; i < n; i++)
    if (!isnan (y[i]))
      y[i] = y[i] < lo ? lo : y[i] > hi ? hi : y[i];
}

static void
naive_add_scaled (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w)
{
  (void) s;
  for (int64_t i = 0; i < n * d; i++)
    y[i] = (float) ((double) y[i] + (double) w[i % d] * (double) x[i]);
}

static void
naive_embed (QkStream * s, float *y, const QkTensor * table,
    const int32_t * ids, int64_t n, bool accumulate)
{
  int64_t d = table->dims[1];

  (void) s;
  for (int64_t i = 0; i < n; i++)
    for (int64_t e = 0; e < d; e++)
      y[i * d + e] = (float) ((accumulate ? (double) y[i * d + e] : 0)
          + weight_at (table, ids[i] * d + e));
}

static void
naive_scatter_rows (QkStream * s, float *y, const float *x, int64_t d,
    const int32_t * rows, int64_t n, bool accumulate)
{
  (void) s;
  for (int64_t i = 0; i < n; i++)
    for (int64_t e = 0; e < d; e++)
      y[rows[i] * d + e] = (accumulate ? y[rows[i] * d + e] : 0)
          + x[i * d + e];
}

static void
naive_conv2d_s2 (QkStream * s, float *y, const float *x, int64_t h, int64_t w,
    const QkTensor * weight, const float *bias, QkActivation act)
{
  int64_t c_out = weight->dims[0], c_in = weight->dims[1];
  int64_t out_h = (h + 1) / 2, out_w = (w + 1) / 2;

  (void) s;
  for (int64_t i = 0; i < c_out * out_h * out_w; i++) {
    int64_t ox = i % out_w, oy = i / out_w % out_h, o = i / out_w / out_h;
    double sum = bias != NULL ? (double) bias[o] : 0;

    for (int64_t t = 0; t < c_in * 9; t++) {
      int64_t ix = 2 * ox - 1 + t % 3, iy = 2 * oy - 1 + t / 3 % 3;

      if (ix >= 0 && ix < w && iy >= 0 && iy < h)
        sum += weight_at (weight, o * c_in * 9 + t)
            * (double) x[(t / 9 * h + iy) * w + ix];
    }
    y[i] = (float) act_of (sum, act);
  }
}

static void
naive_conv1d (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * weight, const float *bias, int64_t dilation,
    bool accumulate)
{
  int64_t k = weight->dims[0], c_out = weight->dims[1];
  int64_t c_in = weight->dims[2];

  (void) s;
  for (int64_t i = 0; i < n * c_out; i++) {
    int64_t t = i / c_out, o = i % c_out;
    double sum = bias != NULL ? (double) bias[o] : 0;

    for (int64_t tap = 0; tap < k; tap++)
      sum += dot (x + (t - (k - 1 - tap) * dilation) * c_in, weight,
          tap * c_out + o, c_in);
    y[i] = (float) (accumulate ? (double) y[i] + sum : sum);
  }
}

static void
naive_conv1d_depthwise (QkStream * s, float *y, const float *x, int64_t n,
    int64_t c, const float *weight, int64_t k, const float *bias)
{
  (void) s;
  for (int64_t i = 0; i < n * c; i++) {
    double sum = bias != NULL ? (double) bias[i % c] : 0;

    for (int64_t tap = 0; tap < k; tap++)
      sum += (double) weight[tap * c + i % c]
          * (double) x[i - (k - 1 - tap) * c];
    y[i] = (float) sum;
  }
}

/* The definition of a transposed convolution, every input spread over the
 * outputs it touches, then the cut. */
static void
naive_conv1d_transposed (QkStream * s, float *y, const float *x, int64_t n,
    int64_t r, const QkTensor * weight, const float *bias)
{
  int64_t kernel = weight->dims[0], c_out = weight->dims[1];
  int64_t c_in = weight->dims[2], cut = kernel == 2 * r ? r : 0;
  int64_t n_in = n > 0 && cut > 0 ? n + 1 : n;
  int64_t raw = n_in > 0 ? (n_in - 1) * r + kernel : 0;
  double *wide = calloc ((size_t) (raw * c_out + 1), sizeof *wide);

  (void) s;
  for (int64_t t = 0; t < n_in; t++)
    for (int64_t i = 0; i < kernel * c_out; i++)
      wide[t * r * c_out + i] += dot (x + t * c_in, weight, i, c_in);
  for (int64_t i = 0; i < n * r * c_out; i++)
    y[i] = (float) (wide[cut * c_out + i]
        + (bias != NULL ? (double) bias[i % c_out] : 0));
  free (wide);
}

static void
naive_snake (QkStream * s, float *y, const float *x, int64_t n, int64_t c,
    const float *a, const float *b)
{
  (void) s;
  for (int64_t i = 0; i < n * c; i++) {
    /* The angle is a float in every implementation. */
    double sine = sin ((double) (x[i] * a[i % c]));

    y[i] = (float) ((double) x[i] + sine * sine * (double) b[i % c]);
  }
}

const QkOps naive_ops = {
  .matmul = naive_matmul,
  .rms_norm = naive_rms_norm,
  .layer_norm = naive_layer_norm,
  .rope = naive_rope,
  .attention = naive_attention,
  .moe = naive_moe,
  .silu_mul = naive_silu_mul,
  .activate = naive_activate,
  .add = naive_add,
  .scale = naive_scale,
  .clamp = naive_clamp,
  .add_scaled = naive_add_scaled,
  .embed = naive_embed,
  .scatter_rows = naive_scatter_rows,
  .conv2d_s2 = naive_conv2d_s2,
  .conv1d = naive_conv1d,
  .conv1d_depthwise = naive_conv1d_depthwise,
  .conv1d_transposed = naive_conv1d_transposed,
  .snake = naive_snake,
};
