/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * matmul: few rows of x by `dot`, many by the tiles of gemm.c.
 */
#include "simd.h"

/* Columns of y that a unit computes by `dot`. */
#define UNIT_COLS 64

typedef struct
{
  float *y;                     /* [n, m] */
  const float *x;               /* [n, k] */
  const QkTensor *w;
  const float *bias;
  int64_t n, m, k, unit;
  QkActivation act;
  bool accumulate;
  const QkSimd *simd;
} Matmul;

static void
matmul_units (const void *data, int64_t first, int64_t last, int thread)
{
  const Matmul *j = data;
  size_t row_bytes = (size_t) j->k * qk_dtype_size (j->w->dtype);
  const float *x[QK_FEW_ROWS];
  float sums[QK_FEW_ROWS * UNIT_COLS];

  (void) thread;
  for (int64_t i = 0; i < j->n; i++)
    x[i] = j->x + i * j->k;
  for (int64_t u = first; u < last; u++) {
    int64_t col = u * j->unit;
    int64_t cols = j->m - col < j->unit ? j->m - col : j->unit;

    j->simd->dot[j->w->dtype] (sums, UNIT_COLS, x, j->n,
        (const char *) j->w->data + (size_t) col * row_bytes, cols, j->k);
    for (int64_t i = 0; i < j->n; i++)
      j->simd->finish (j->y + i * j->m + col, sums + i * UNIT_COLS,
          j->bias != NULL ? j->bias + col : NULL, cols, j->act,
          j->accumulate);
  }
}

void
qk_simd_matmul_few (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * w, const float *bias, QkActivation act, bool accumulate)
{
  Matmul job = {.y = y,.x = x,.w = w,.bias = bias,.n = n,.m = w->dims[0],
    .k = w->dims[1],.unit = UNIT_COLS,.act = act,.accumulate = accumulate,
    .simd = qk_simd (s)
  };

  if (n <= 0)
    return;
  while (job.unit > 8 && job.unit * 4 * qk_cpu_n_threads (s) > job.m)
    job.unit /= 2;
  qk_cpu_parallel (s, matmul_units, &job,
      (job.m + job.unit - 1) / job.unit, n * job.k * job.unit / 16);
}

void
qk_simd_matmul (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * w, const float *bias, QkActivation act, bool accumulate)
{
  QkGemm gemm = {.y = y,.x = x,.n = n,.m = w->dims[0],.c_in = w->dims[1],
    .n_taps = 1,.w = w->data,.dtype = w->dtype,.bias = bias,
    .n_bias = w->dims[0],.act = act,.accumulate = accumulate
  };

  /* With more rows unpacking the weights for the tiles pays. */
  if (n <= QK_FEW_ROWS)
    qk_simd_matmul_few (s, y, x, n, w, bias, act, accumulate);
  else
    qk_simd_gemm (s, &gemm);
}
