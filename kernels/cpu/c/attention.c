/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * attention: rotary positions and softmax (q k^T) v, one (query, head) at a
 * time. A query that sees no key gives zeros.
 */
#include "ref.h"

#include <string.h>

typedef struct
{
  float *x;                     /* [n, n_heads, head_dim] */
  const float *table;           /* [n, 2, head_dim/2] */
  int n_heads, head_dim;
} Rope;

static void
rope_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Rope *j = data;
  int half = j->head_dim / 2;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    const float *cosines = j->table + i * 2 * half;
    const float *sines = cosines + half;

    for (int h = 0; h < j->n_heads; h++) {
      float *a = j->x + (i * j->n_heads + h) * j->head_dim;
      float *b = a + half;

      for (int e = 0; e < half; e++) {
        float re = a[e] * cosines[e] - b[e] * sines[e];
        float im = b[e] * cosines[e] + a[e] * sines[e];

        a[e] = re;
        b[e] = im;
      }
    }
  }
}

void
qk_c_rope (QkStream * s, float *x, const float *table, int64_t n, int n_heads,
    int head_dim)
{
  Rope job = {.x = x,.table = table,.n_heads = n_heads,.head_dim = head_dim };

  qk_cpu_parallel (s, rope_rows, &job, n, (int64_t) n_heads * head_dim);
}

typedef struct
{
  float *out;                   /* [n_q, n_heads, head_dim] */
  const float *q;
  const float *k, *v;           /* [n_kv, n_kv_heads, head_dim] */
  const QkAttention *a;
  float *scores;                /* [n_threads, n_kv] */
} Attention;

static void
attention_units (const void *data, int64_t first, int64_t last, int thread)
{
  const Attention *j = data;
  const QkAttention *a = j->a;
  int64_t dim = a->head_dim, kv_row = a->n_kv_heads * dim;
  float *p = j->scores + thread * a->n_kv;

  for (int64_t u = first; u < last; u++) {
    int64_t i = u / a->n_heads, h = u % a->n_heads;
    int64_t kv_head = h / (a->n_heads / a->n_kv_heads);
    const float *k = j->k + kv_head * dim, *v = j->v + kv_head * dim;
    float *out = j->out + u * dim;
    int64_t begin = 0, end = a->n_kv;
    float max = -INFINITY, sum = 0;

    if (a->causal) {
      if (end > a->first + i + 1)
        end = a->first + i + 1;
      if (a->window > 0 && begin < a->first + i + 1 - a->window)
        begin = a->first + i + 1 - a->window;
    }

    for (int64_t t = begin; t < end; t++) {
      p[t] = qk_c_dot_f32 (j->q + u * dim, k + t * kv_row, dim) * a->scale;
      if (p[t] > max)
        max = p[t];
    }
    memset (out, 0, (size_t) dim * sizeof *out);
    for (int64_t t = begin; t < end; t++) {
      p[t] = expf (p[t] - max);
      sum += p[t];
      for (int64_t e = 0; e < dim; e++)
        out[e] += p[t] * v[t * kv_row + e];
    }
    if (begin < end)
      for (int64_t e = 0; e < dim; e++)
        out[e] /= sum;
  }
}

void
qk_c_attention (QkStream * s, float *out, const float *q, const float *k,
    const float *v, const QkAttention * a)
{
  Attention job = {.out = out,.q = q,.k = k,.v = v,.a = a };

  job.scores = qk_cpu_scratch (s, (size_t) qk_cpu_n_threads (s)
      * (size_t) a->n_kv * sizeof (float));
  if (job.scores != NULL)
    qk_cpu_parallel (s, attention_units, &job, a->n_q * a->n_heads,
        a->n_kv * a->head_dim / 2);
}
