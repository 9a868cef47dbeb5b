/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * attention: softmax (q k^T) v in blocks of keys, never a whole row of scores.
 *
 * A unit is one kv head and some (query, head) pairs that read it, its rows.
 * For each block of keys:
 *
 *   s[rows][keys] = q k^T          k is packed like weights
 *   s = e^(s - max), out *= factor running softmax
 *   out += s v                     v is [keys, dim] as the tiles want it
 *
 * Blocks begin at multiples of their length, so a row's sums do not depend on
 * the rows beside it. A key that a row does not see has weight 0, which adds
 * nothing, unless the value is infinite or a NaN: then rows go one by one over
 * the keys they see.
 *
 * The rows of one kv head are short pieces far apart, which the CPU does not
 * see coming: the next block is prefetched a panel at a time, between work on
 * this one.
 */
#include "simd.h"

#include <math.h>
#include <string.h>

#define BLOCK_KEYS 64
#define MOST_ROWS 96
/* Distance of two rows of scores: not a power of two. */
#define SCORE_STRIDE (BLOCK_KEYS + 16)

typedef struct
{
  float *out;
  const float *q, *k, *v;
  const QkAttention *a;
  const QkSimd *simd;
  int64_t rows_per_kv_head;     /* (query, head) pairs in all */
  int64_t unit_rows, units_per_kv_head;
  int64_t stride;               /* of rows of q and out in the scratch */
  float *scratch;               /* [n_threads, thread_floats] */
  int64_t thread_floats;
} Job;

/* What one thread works with. */
typedef struct
{
  float *q, *out;               /* [rows, stride] */
  float *scores;                /* [rows, SCORE_STRIDE] */
  float *keys;                  /* [head_dim][tile_cols] */
  float max[MOST_ROWS], sum[MOST_ROWS];
  int64_t begin[MOST_ROWS], end[MOST_ROWS];     /* keys that a row sees */
  int64_t end_of_all;
} Rows;

static void
see_keys (const QkAttention * a, int64_t query, int64_t * begin, int64_t * end)
{
  *begin = 0;
  *end = a->n_kv;
  if (a->causal) {
    int64_t here = a->first + query + 1;

    if (*end > here)
      *end = here;
    if (a->window > 0 && *begin < here - a->window)
      *begin = here - a->window;
  }
}

/* Row r of a kv head is head r % group of query r / group. */
static int64_t
row_offset (const QkAttention * a, int64_t kv_head, int64_t row)
{
  int64_t group = a->n_heads / a->n_kv_heads;

  return (row / group * a->n_heads + kv_head * group + row % group)
      * a->head_dim;
}

/* `dim` floats of the rows t0 … t1-1, or those there are, one block on. */
static void
prefetch_next (const Rows * w, const float *p, int64_t row, int64_t dim,
    int64_t t0, int64_t t1)
{
  int64_t end = t1 + BLOCK_KEYS < w->end_of_all ? t1 + BLOCK_KEYS
      : w->end_of_all;

  for (int64_t t = t0 + BLOCK_KEYS; t < end; t++)
    for (int64_t e = 0; e < dim; e += 16)
      __builtin_prefetch (p + t * row + e, 0, 2);
}

/* s[rows, keys] for the keys t0 … t1-1. */
static void
score_block (const Job * j, Rows * w, const float *k, int n_rows, int64_t t0,
    int64_t t1)
{
  const QkSimd *simd = j->simd;
  int64_t dim = j->a->head_dim, kv_row = j->a->n_kv_heads * dim;
  int height = qk_tile_height (n_rows, simd->tile_rows);

  for (int64_t t = t0; t < t1; t += simd->tile_cols) {
    int cols = (int) (t1 - t < simd->tile_cols ? t1 - t : simd->tile_cols);

    simd->pack[QK_F32] (w->keys, k + t * kv_row, kv_row, cols, dim);
    prefetch_next (w, k, kv_row, dim, t, t + cols);
    for (int row = 0; row < n_rows; row += height)
      simd->tile (w->scores + row * SCORE_STRIDE + (t - t0), SCORE_STRIDE,
          w->q + row * j->stride, j->stride, w->keys, simd->tile_cols, dim,
          n_rows - row < height ? n_rows - row : height, cols, false);
  }
}

/* out += s v for rows over the keys t0 … t1-1. */
static void
add_values (const Job * j, float *out, const float *scores, const float *v,
    int n_rows, int64_t t0, int64_t t1, const Rows * w)
{
  const QkSimd *simd = j->simd;
  int64_t dim = j->a->head_dim, kv_row = j->a->n_kv_heads * dim;
  int height = qk_tile_height (n_rows, simd->tile_rows);

  for (int64_t e = 0; e < dim; e += simd->tile_cols) {
    int cols = (int) (dim - e < simd->tile_cols ? dim - e : simd->tile_cols);

    for (int row = 0; row < n_rows; row += height)
      simd->tile (out + row * j->stride + e, j->stride,
          scores + row * SCORE_STRIDE, SCORE_STRIDE, v + t0 * kv_row + e,
          kv_row, t1 - t0, n_rows - row < height ? n_rows - row : height,
          cols, true);
    prefetch_next (w, v + e, kv_row, cols, t0, t1);
  }
}

static bool
values_are_finite (const Job * j, const float *v, int64_t t0, int64_t t1)
{
  int64_t dim = j->a->head_dim, kv_row = j->a->n_kv_heads * dim;

  for (int64_t t = t0; t < t1; t++)
    if (!j->simd->is_finite (v + t * kv_row, dim))
      return false;
  return true;
}

static void
attend_block (const Job * j, Rows * w, const float *k, const float *v,
    int n_rows, int64_t t0, int64_t t1)
{
  bool all_see_all = true;

  score_block (j, w, k, n_rows, t0, t1);
  for (int r = 0; r < n_rows; r++) {
    int64_t begin = w->begin[r] > t0 ? w->begin[r] : t0;
    int64_t end = w->end[r] < t1 ? w->end[r] : t1;
    float *scores = w->scores + r * SCORE_STRIDE;

    if (begin < end) {
      float factor = j->simd->softmax (scores + (begin - t0), end - begin,
          j->a->scale, &w->max[r], &w->sum[r]);

      if (factor != 1)
        j->simd->scale (w->out + r * j->stride, factor, j->a->head_dim);
    }
    if (begin != t0 || end != t1) {
      all_see_all = false;
      for (int64_t t = t0; t < t1; t++)
        if (t < begin || t >= end)
          scores[t - t0] = 0;
    }
  }

  if (all_see_all || values_are_finite (j, v, t0, t1)) {
    add_values (j, w->out, w->scores, v, n_rows, t0, t1, w);
    return;
  }
  for (int r = 0; r < n_rows; r++) {
    int64_t begin = w->begin[r] > t0 ? w->begin[r] : t0;
    int64_t end = w->end[r] < t1 ? w->end[r] : t1;

    if (begin < end)
      add_values (j, w->out + r * j->stride,
          w->scores + r * SCORE_STRIDE + (begin - t0), v, 1, begin, end, w);
  }
}

static void
attend_rows (const Job * j, Rows * w, int64_t kv_head, int64_t first,
    int n_rows)
{
  const QkAttention *a = j->a;
  int64_t group = a->n_heads / a->n_kv_heads, dim = a->head_dim;
  int64_t begin = INT64_MAX, end = 0;
  const float *k = j->k + kv_head * dim, *v = j->v + kv_head * dim;
  size_t bytes = (size_t) dim * sizeof (float);

  for (int r = 0; r < n_rows; r++) {
    see_keys (a, (first + r) / group, &w->begin[r], &w->end[r]);
    if (begin > w->begin[r])
      begin = w->begin[r];
    if (end < w->end[r])
      end = w->end[r];
    w->max[r] = -INFINITY;
    w->sum[r] = 0;
    memcpy (w->q + r * j->stride, j->q + row_offset (a, kv_head, first + r),
        bytes);
    memset (w->out + r * j->stride, 0, bytes);
  }

  w->end_of_all = end;
  for (int64_t t = begin / BLOCK_KEYS * BLOCK_KEYS; t < end; t += BLOCK_KEYS) {
    int64_t t0 = t > begin ? t : begin;
    int64_t t1 = t + BLOCK_KEYS < end ? t + BLOCK_KEYS : end;

    attend_block (j, w, k, v, n_rows, t0, t1);
  }

  for (int r = 0; r < n_rows; r++) {
    float *out = j->out + row_offset (a, kv_head, first + r);

    memcpy (out, w->out + r * j->stride, bytes);
    if (w->begin[r] < w->end[r])
      j->simd->scale (out, 1 / w->sum[r], dim);
  }
}

static void
attention_units (const void *data, int64_t first, int64_t last, int thread)
{
  const Job *j = data;
  float *scratch = j->scratch + thread * j->thread_floats;
  Rows rows;

  rows.q = scratch;
  rows.out = rows.q + j->unit_rows * j->stride;
  rows.scores = rows.out + j->unit_rows * j->stride;
  rows.keys = rows.scores + j->unit_rows * SCORE_STRIDE;
  for (int64_t u = first; u < last; u++) {
    int64_t kv_head = u % j->a->n_kv_heads;
    int64_t row = u / j->a->n_kv_heads * j->unit_rows;
    int64_t n_rows = j->rows_per_kv_head - row;

    attend_rows (j, &rows, kv_head, row,
        (int) (n_rows < j->unit_rows ? n_rows : j->unit_rows));
  }
}

void
qk_simd_attention (QkStream * s, float *out, const float *q, const float *k,
    const float *v, const QkAttention * a)
{
  const QkSimd *simd = qk_simd (s);
  int64_t threads = qk_cpu_n_threads (s), group = a->n_heads / a->n_kv_heads;
  Job job = {.out = out,.q = q,.k = k,.v = v,.a = a,.simd = simd,
    .rows_per_kv_head = a->n_q * group,.unit_rows = MOST_ROWS
  };

  if (a->n_q <= 0)
    return;
  while (job.unit_rows > simd->tile_rows && job.unit_rows * 2 * threads
      > job.rows_per_kv_head * a->n_kv_heads)
    job.unit_rows -= simd->tile_rows;
  if (job.unit_rows > job.rows_per_kv_head)
    job.unit_rows = job.rows_per_kv_head;
  /* More threads than kv heads share one. */
  while (job.unit_rows > 1 && threads * job.unit_rows
      > job.rows_per_kv_head * a->n_kv_heads)
    job.unit_rows--;
  job.units_per_kv_head = (job.rows_per_kv_head + job.unit_rows - 1)
      / job.unit_rows;

  job.stride = (a->head_dim + 15) / 16 * 16;
  if (job.stride % 64 == 0)
    job.stride += 16;
  job.thread_floats = job.unit_rows * (2 * job.stride + SCORE_STRIDE)
      + (int64_t) a->head_dim * simd->tile_cols;
  job.thread_floats = (job.thread_floats + 15) / 16 * 16;
  job.scratch = qk_cpu_scratch (s, (size_t) (threads * job.thread_floats)
      * sizeof (float));
  if (job.scratch != NULL)
    qk_cpu_parallel (s, attention_units, &job,
        job.units_per_kv_head * a->n_kv_heads,
        job.unit_rows * (a->n_kv + 1) * a->head_dim / 8);
}
