/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * norm: rows scaled to unit size. Sums are kept in double.
 */
#include "ref.h"

typedef struct
{
  float *y;                     /* [n, d] */
  const float *x;
  int64_t d;
  const float *w, *b;
  float eps;
} Norm;

static void
rms_norm_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Norm *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    const float *x = j->x + i * j->d;
    float *y = j->y + i * j->d;
    double sum = 0;
    float scale;

    for (int64_t e = 0; e < j->d; e++)
      sum += (double) x[e] * x[e];
    scale = (float) (1 / sqrt (sum / (double) j->d + (double) j->eps));
    for (int64_t e = 0; e < j->d; e++)
      y[e] = j->w[e] * (x[e] * scale);
  }
}

void
qk_c_rms_norm (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w, float eps)
{
  Norm job = {.y = y,.x = x,.d = d,.w = w,.eps = eps };

  qk_cpu_parallel (s, rms_norm_rows, &job, n, d);
}

static void
layer_norm_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Norm *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    const float *x = j->x + i * j->d;
    float *y = j->y + i * j->d;
    double sum = 0, squares = 0, mean;
    float scale;

    for (int64_t e = 0; e < j->d; e++)
      sum += (double) x[e];
    mean = sum / (double) j->d;
    for (int64_t e = 0; e < j->d; e++)
      squares += ((double) x[e] - mean) * ((double) x[e] - mean);
    scale = (float) (1 / sqrt (squares / (double) j->d + (double) j->eps));
    for (int64_t e = 0; e < j->d; e++)
      y[e] = (x[e] - (float) mean) * scale * j->w[e] + j->b[e];
  }
}

void
qk_c_layer_norm (QkStream * s, float *y, const float *x, int64_t n, int64_t d,
    const float *w, const float *b, float eps)
{
  Norm job = {.y = y,.x = x,.d = d,.w = w,.b = b,.eps = eps };

  qk_cpu_parallel (s, layer_norm_rows, &job, n, 2 * d);
}
