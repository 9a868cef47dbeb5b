/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * rows: the ops that go over rows or values one by one: norms, rotary
 * positions, everything elementwise. And the table of all vector ops.
 */
#include "simd.h"

typedef struct
{
  const QkSimd *simd;
  float *y;                     /* [n, d] */
  const float *x;
  int64_t d;
  const float *a, *b;           /* [d] */
  float lo, hi;
  QkActivation act;
  int n_heads, head_dim;
} Map;

static void
rms_norm_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->simd->rms_norm (j->y + i * j->d, j->x + i * j->d, j->d, j->a, j->lo);
}

static void
rms_norm (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w, float eps)
{
  Map job = {.simd = qk_simd (s),.y = y,.x = x,.d = d,.a = w,.lo = eps };

  qk_cpu_parallel (s, rms_norm_rows, &job, n, d / 4);
}

static void
layer_norm_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->simd->layer_norm (j->y + i * j->d, j->x + i * j->d, j->d, j->a, j->b,
        j->lo);
}

static void
layer_norm (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w, const float *b, float eps)
{
  Map job = {.simd = qk_simd (s),.y = y,.x = x,.d = d,.a = w,.b = b,
    .lo = eps
  };

  qk_cpu_parallel (s, layer_norm_rows, &job, n, d / 2);
}

static void
rope_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;
  int64_t half = j->head_dim / 2;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    const float *table = j->x + i * 2 * half;

    for (int h = 0; h < j->n_heads; h++) {
      float *y = j->y + (i * j->n_heads + h) * j->head_dim;

      j->simd->rotate (y, y + half, table, table + half, half);
    }
  }
}

static void
rope (QkStream * s, float *x, const float *table, int64_t n, int n_heads,
    int head_dim)
{
  Map job = {.simd = qk_simd (s),.y = x,.x = table,.n_heads = n_heads,
    .head_dim = head_dim
  };

  qk_cpu_parallel (s, rope_rows, &job, n, (int64_t) n_heads * head_dim / 4);
}

static void
silu_mul_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  j->simd->silu_mul (j->y + first, j->x + first, last - first);
}

static void
silu_mul (QkStream * s, float *y, const float *up, int64_t n)
{
  Map job = {.simd = qk_simd (s),.y = y,.x = up };

  qk_cpu_parallel (s, silu_mul_range, &job, n, 3);
}

static void
activate_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  j->simd->finish (j->y + first, j->y + first, NULL, last - first, j->act,
      false);
}

static void
activate (QkStream * s, float *y, int64_t n, QkActivation act)
{
  Map job = {.simd = qk_simd (s),.y = y,.act = act };

  if (act != QK_ACT_NONE)
    qk_cpu_parallel (s, activate_range, &job, n, 3);
}

static void
add_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  j->simd->add (j->y + first, j->x + first, last - first);
}

static void
add (QkStream * s, float *y, const float *x, int64_t n)
{
  Map job = {.simd = qk_simd (s),.y = y,.x = x };

  qk_cpu_parallel (s, add_range, &job, n, 1);
}

static void
scale_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  j->simd->scale (j->y + first, j->hi, last - first);
}

static void
scale (QkStream * s, float *y, float factor, int64_t n)
{
  Map job = {.simd = qk_simd (s),.y = y,.hi = factor };

  qk_cpu_parallel (s, scale_range, &job, n, 1);
}

static void
clamp_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  j->simd->clamp (j->y + first, j->lo, j->hi, last - first);
}

static void
clamp (QkStream * s, float *y, float lo, float hi, int64_t n)
{
  Map job = {.simd = qk_simd (s),.y = y,.lo = lo,.hi = hi };

  qk_cpu_parallel (s, clamp_range, &job, n, 1);
}

static void
add_scaled_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->simd->mul_add (j->y + i * j->d, j->x + i * j->d, j->a, j->d);
}

static void
add_scaled (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w)
{
  Map job = {.simd = qk_simd (s),.y = y,.x = x,.d = d,.a = w };

  qk_cpu_parallel (s, add_scaled_rows, &job, n, d);
}

static void
snake_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->simd->snake (j->y + i * j->d, j->x + i * j->d, j->a, j->b, j->d);
}

static void
snake (QkStream * s, float *y, const float *x, int64_t n, int64_t c,
    const float *a, const float *b)
{
  Map job = {.simd = qk_simd (s),.y = y,.x = x,.d = c,.a = a,.b = b };

  qk_cpu_parallel (s, snake_rows, &job, n, 2 * c);
}

/* Moving rows by index stays plain C: it is bound by memory. */
void
qk_cpu_widen_simd (QkOps * ops)
{
  ops->matmul = qk_simd_matmul;
  ops->rms_norm = rms_norm;
  ops->layer_norm = layer_norm;
  ops->rope = rope;
  ops->attention = qk_simd_attention;
  ops->moe = qk_simd_moe;
  ops->silu_mul = silu_mul;
  ops->activate = activate;
  ops->add = add;
  ops->scale = scale;
  ops->clamp = clamp;
  ops->add_scaled = add_scaled;
  ops->conv2d_s2 = qk_simd_conv2d_s2;
  ops->conv1d = qk_simd_conv1d;
  ops->conv1d_depthwise = qk_simd_conv1d_depthwise;
  ops->conv1d_transposed = qk_simd_conv1d_transposed;
  ops->snake = snake;
}
