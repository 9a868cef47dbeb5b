/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * matmul: y = x w^T, one row of weights after the other.
 */
#include "ref.h"

typedef struct
{
  float *y;                     /* [n, m] */
  const float *x;               /* [n, k] */
  const QkTensor *w;            /* [m, k] */
  const float *bias;
  int64_t n, m, k;
  QkActivation act;
  bool accumulate;
} Matmul;

/* Columns first … last-1 of y. */
static void
matmul_columns (const void *data, int64_t first, int64_t last, int thread)
{
  const Matmul *j = data;

  (void) thread;
  for (int64_t c = first; c < last; c++) {
    for (int64_t i = 0; i < j->n; i++) {
      float *y = j->y + i * j->m + c;
      float sum = qk_c_dot (j->x + i * j->k, j->w, c, j->k);

      if (j->bias != NULL)
        sum += j->bias[c];
      if (j->accumulate)
        *y += sum;
      else
        *y = qk_c_act (sum, j->act);
    }
  }
}

void
qk_c_matmul (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * w, const float *bias, QkActivation act, bool accumulate)
{
  Matmul job = {.y = y,.x = x,.w = w,.bias = bias,.n = n,.m = w->dims[0],
    .k = w->dims[1],.act = act,.accumulate = accumulate
  };

  if (n > 0)
    qk_cpu_parallel (s, matmul_columns, &job, job.m, n * job.k / 4);
}
