/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * ref: the two things most plain C ops are made of: a row of weights times a
 * row of activations, and the activation functions.
 */
#pragma once

#include "../../half.h"
#include "../cpu.h"

#include <math.h>

/* Eight partial sums keep the error of long rows small and let a compiler use
 * whatever vectors it has without reordering anything. */
#define QK_C_DOT(value)                                                 \
  float sums[8] = { 0 }, sum = 0;                                       \
  int64_t i = 0;                                                        \
                                                                        \
  for (; i + 8 <= k; i += 8)                                            \
    for (int64_t l = 0, e = i; l < 8; l++, e++)                         \
      sums[l] += x[e] * (value);                                        \
  for (int64_t e = i; e < k; e++)                                       \
    sum += x[e] * (value);                                              \
  return sum + (((sums[0] + sums[1]) + (sums[2] + sums[3]))             \
      + ((sums[4] + sums[5]) + (sums[6] + sums[7])))

static inline float
qk_c_dot_f32 (const float *x, const float *w, int64_t k)
{
  QK_C_DOT (w[e]);
}

static inline float
qk_c_dot_bf16 (const float *x, const uint16_t * w, int64_t k)
{
  QK_C_DOT (qk_bf16_to_f32 (w[e]));
}

static inline float
qk_c_dot_f16 (const float *x, const uint16_t * w, int64_t k)
{
  QK_C_DOT (qk_f16_to_f32 (w[e]));
}

/* Row `row` of the weights w, rows of k values, times x[k]. */
static inline float
qk_c_dot (const float *x, const QkTensor * w, int64_t row, int64_t k)
{
  switch (w->dtype) {
    case QK_BF16:
      return qk_c_dot_bf16 (x, (const uint16_t *) w->data + row * k, k);
    case QK_F16:
      return qk_c_dot_f16 (x, (const uint16_t *) w->data + row * k, k);
    default:
      return qk_c_dot_f32 (x, (const float *) w->data + row * k, k);
  }
}

static inline float
qk_c_silu (float x)
{
  return x / (1 + expf (-x));
}

static inline float
qk_c_act (float x, QkActivation act)
{
  switch (act) {
    case QK_ACT_GELU:
      return 0.5f * x * (1 + erff (x * 0.70710678f));
    case QK_ACT_GELU_TANH:     /* 0.7978… = sqrt (2 / pi) */
      return 0.5f * x * (1 + tanhf (0.79788456f * (x + 0.044715f * x * x * x)));
    case QK_ACT_SILU:
      return qk_c_silu (x);
    default:
      return x;
  }
}

static inline float
qk_c_sigmoid (float x)
{
  return 1 / (1 + expf (-x));
}

/* The experts of one token from its router logits p[n_experts], which are
 * overwritten: in ascending order with their weights, and when asked for in
 * the order of being chosen. */
void qk_c_choose_experts (const QkMoe * moe, float *p, int32_t * experts,
    float *weights, int32_t * ret_experts);

/* The ops, one file per family. */
void qk_c_matmul (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * w, const float *bias, QkActivation act, bool accumulate);
void qk_c_rms_norm (QkStream * s, float *y, const float *x, int64_t n,
    int64_t d, const float *w, float eps);
void qk_c_layer_norm (QkStream * s, float *y, const float *x, int64_t n,
    int64_t d, const float *w, const float *b, float eps);
void qk_c_rope (QkStream * s, float *x, const float *table, int64_t n,
    int n_heads, int head_dim);
void qk_c_attention (QkStream * s, float *out, const float *q, const float *k,
    const float *v, const QkAttention * a);
void qk_c_moe (QkStream * s, float *y, const float *x, int64_t n,
    const QkMoe * moe, int32_t * ret_experts);
void qk_c_silu_mul (QkStream * s, float *y, const float *up, int64_t n);
void qk_c_activate (QkStream * s, float *y, int64_t n, QkActivation act);
void qk_c_add (QkStream * s, float *y, const float *x, int64_t n);
void qk_c_scale (QkStream * s, float *y, float factor, int64_t n);
void qk_c_clamp (QkStream * s, float *y, float lo, float hi, int64_t n);
void qk_c_add_scaled (QkStream * s, float *y, const float *x, int64_t n,
    int64_t d, const float *w);
void qk_c_embed (QkStream * s, float *y, const QkTensor * table,
    const int32_t * ids, int64_t n, bool accumulate);
void qk_c_scatter_rows (QkStream * s, float *y, const float *x, int64_t d,
    const int32_t * rows, int64_t n, bool accumulate);
void qk_c_conv2d_s2 (QkStream * s, float *y, const float *x, int64_t h,
    int64_t w, const QkTensor * weight, const float *bias, QkActivation act);
void qk_c_conv1d (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * weight, const float *bias, int64_t dilation,
    bool accumulate);
void qk_c_conv1d_depthwise (QkStream * s, float *y, const float *x, int64_t n,
    int64_t c, const float *weight, int64_t k, const float *bias);
void qk_c_conv1d_transposed (QkStream * s, float *y, const float *x, int64_t n,
    int64_t r, const QkTensor * weight, const float *bias);
void qk_c_snake (QkStream * s, float *y, const float *x, int64_t n, int64_t c,
    const float *a, const float *b);
