/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * elementwise: one value in, one value out, and rows moved by index.
 */
#include "ref.h"

/* y[n, d], of which a flat op sees n values and d is 1. */
typedef struct
{
  float *y;
  const float *x;
  int64_t d;
  const float *a, *b;           /* [d] */
  float lo, hi;
  QkActivation act;
  const QkTensor *table;
  const int32_t *rows;
  bool accumulate;
} Map;

static void
silu_mul_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->y[i] = qk_c_silu (j->y[i]) * j->x[i];
}

void
qk_c_silu_mul (QkStream * s, float *y, const float *up, int64_t n)
{
  Map job = {.y = y,.x = up };

  qk_cpu_parallel (s, silu_mul_range, &job, n, 20);
}

static void
activate_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->y[i] = qk_c_act (j->y[i], j->act);
}

void
qk_c_activate (QkStream * s, float *y, int64_t n, QkActivation act)
{
  Map job = {.y = y,.act = act };

  if (act != QK_ACT_NONE)
    qk_cpu_parallel (s, activate_range, &job, n, 20);
}

static void
add_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->y[i] += j->x[i];
}

void
qk_c_add (QkStream * s, float *y, const float *x, int64_t n)
{
  Map job = {.y = y,.x = x };

  qk_cpu_parallel (s, add_range, &job, n, 1);
}

static void
scale_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    j->y[i] *= j->hi;
}

void
qk_c_scale (QkStream * s, float *y, float factor, int64_t n)
{
  Map job = {.y = y,.hi = factor };

  qk_cpu_parallel (s, scale_range, &job, n, 1);
}

static void
clamp_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    /* Both comparisons are false for a NaN, which therefore stays. */
    if (j->y[i] < j->lo)
      j->y[i] = j->lo;
    else if (j->y[i] > j->hi)
      j->y[i] = j->hi;
  }
}

void
qk_c_clamp (QkStream * s, float *y, float lo, float hi, int64_t n)
{
  Map job = {.y = y,.lo = lo,.hi = hi };

  qk_cpu_parallel (s, clamp_range, &job, n, 1);
}

static void
add_scaled_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    for (int64_t e = 0; e < j->d; e++)
      j->y[i * j->d + e] += j->a[e] * j->x[i * j->d + e];
}

void
qk_c_add_scaled (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w)
{
  Map job = {.y = y,.x = x,.d = d,.a = w };

  qk_cpu_parallel (s, add_scaled_rows, &job, n, d);
}

static void
snake_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    for (int64_t e = 0; e < j->d; e++) {
      float x = j->x[i * j->d + e];
      float sine = sinf (x * j->a[e]);

      j->y[i * j->d + e] = x + sine * sine * j->b[e];
    }
  }
}

void
qk_c_snake (QkStream * s, float *y, const float *x, int64_t n, int64_t c,
    const float *a, const float *b)
{
  Map job = {.y = y,.x = x,.d = c,.a = a,.b = b };

  qk_cpu_parallel (s, snake_rows, &job, n, 20 * c);
}

static void
embed_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;
  size_t size = qk_dtype_size (j->table->dtype);

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    const char *row = (const char *) j->table->data
        + (size_t) (j->rows[i] * j->d) * size;
    float *y = j->y + i * j->d;

    if (!j->accumulate) {
      qk_to_f32 (y, row, j->table->dtype, (size_t) j->d);
      continue;
    }
    for (int64_t e = 0; e < j->d; e++) {
      float value;

      qk_to_f32 (&value, row + (size_t) e * size, j->table->dtype, 1);
      y[e] += value;
    }
  }
}

void
qk_c_embed (QkStream * s, float *y, const QkTensor * table,
    const int32_t * ids, int64_t n, bool accumulate)
{
  Map job = {.y = y,.d = table->dims[1],.table = table,.rows = ids,
    .accumulate = accumulate
  };

  qk_cpu_parallel (s, embed_rows, &job, n, job.d);
}

static void
scatter_rows_range (const void *data, int64_t first, int64_t last, int thread)
{
  const Map *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    float *y = j->y + j->rows[i] * j->d;
    const float *x = j->x + i * j->d;

    for (int64_t e = 0; e < j->d; e++)
      y[e] = j->accumulate ? y[e] + x[e] : x[e];
  }
}

void
qk_c_scatter_rows (QkStream * s, float *y, const float *x, int64_t d,
    const int32_t * rows, int64_t n, bool accumulate)
{
  Map job = {.y = y,.x = x,.d = d,.rows = rows,.accumulate = accumulate };

  qk_cpu_parallel (s, scatter_rows_range, &job, n, d);
}
