/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * moe: mixture of experts, expert by expert.
 *
 *   route     logits of all tokens, each token chooses
 *   group     (token, expert) pairs in the order of experts, then of tokens;
 *             the shared expert is one more, chosen by all
 *   inner     h[pair] = silu (gate x) * up x
 *   outer     d[pair] = down h[pair]
 *   combine   y[token] += sum of weight * d[pair], in the order of experts
 *
 * The rows of weights of all experts that were chosen form one list of work,
 * so every weight is read once and threads finish together even for one token.
 */
#include "../c/ref.h"
#include "simd.h"

#include <string.h>

/* Tokens taken together: enough that every expert has some. */
#define MOST_TOKENS 1024
/* Rows of weights per unit of work, and pairs they meet at a time. */
#define INNER_ROWS 32
#define OUTER_ROWS 64
#define MOST_PAIRS 12

typedef struct
{
  const QkMoe *moe;
  const QkSimd *simd;
  float *y;                     /* [n, width] */
  const float *x;
  int32_t *ret_experts;
  int64_t n, width;
  int n_slots;                  /* experts per token, the shared one too */
  int64_t inner;                /* of the widest expert, stride of h */

  float *p;                     /* [n, n_experts] */
  int32_t *experts;             /* [n, n_slots], ascending, the shared last */
  float *weights;
  int64_t *pair_at;             /* [n, n_slots] */
  int32_t *pair_token;          /* [n * n_slots] */
  int64_t *first_pair;          /* [n_experts + 2] */
  int32_t *active;              /* experts with pairs */
  int64_t *first_unit;          /* [n_active + 1] */
  int n_active;
  float *h;                     /* [n * n_slots, inner] */
  float *d;                     /* [n * n_slots, width] */
} Job;

static const QkTensor *
expert_tensor (const Job * j, const QkTensor * experts,
    const QkTensor * shared, int e)
{
  return e == j->moe->n_experts ? shared : &experts[e];
}

static void
choose_tokens (const void *data, int64_t first, int64_t last, int thread)
{
  const Job *j = data;
  const QkMoe *moe = j->moe;

  (void) thread;
  for (int64_t i = first; i < last; i++) {
    int32_t *experts = j->experts + i * j->n_slots;
    float *weights = j->weights + i * j->n_slots;

    qk_c_choose_experts (moe, j->p + i * moe->n_experts, experts, weights,
        j->ret_experts != NULL ? j->ret_experts + i * moe->top_k : NULL);
    if (j->n_slots > moe->top_k) {
      experts[moe->top_k] = moe->n_experts;
      weights[moe->top_k] = qk_c_sigmoid (weights[moe->top_k]);
    }
  }
}

static void
route (QkStream * s, const Job * j)
{
  const QkMoe *moe = j->moe;

  /* By `dot` whatever their number, so that a token's choice is its own. */
  for (int64_t i = 0; i < j->n; i += QK_FEW_ROWS) {
    QkGemm gemm = {.y = j->p + i * moe->n_experts,.x = j->x + i * j->width,
      .n = j->n - i < QK_FEW_ROWS ? j->n - i : QK_FEW_ROWS,
      .m = moe->n_experts,.c_in = j->width,.n_taps = 1,
      .w = moe->router.data,.dtype = moe->router.dtype,
      .n_bias = moe->n_experts
    };

    qk_simd_gemm_few (s, &gemm);
  }
  if (j->n_slots > moe->top_k) {
    for (int64_t i = 0; i < j->n; i++) {
      const float *x = j->x + i * j->width;

      j->simd->dot[moe->shared_scale.dtype] (j->weights + i * j->n_slots
          + moe->top_k, 1, &x, 1, moe->shared_scale.data, 1, j->width);
    }
  }
  qk_cpu_parallel (s, choose_tokens, j, j->n,
      moe->n_experts * (moe->top_k + 8));
}

/* Cuts the rows of every active expert into units. Returns their number. */
static int64_t
list_units (Job * j, bool inner, int64_t unit_rows)
{
  int64_t n = 0;

  for (int i = 0; i < j->n_active; i++) {
    const QkTensor *w = inner ?
        expert_tensor (j, j->moe->gate, &j->moe->shared_gate, j->active[i]) :
        expert_tensor (j, j->moe->down, &j->moe->shared_down, j->active[i]);

    j->first_unit[i] = n;
    n += (w->dims[0] + unit_rows - 1) / unit_rows;
  }
  j->first_unit[j->n_active] = n;
  return n;
}

/* The active expert that unit u belongs to. */
static int
find_expert (const Job * j, int64_t u)
{
  int low = 0, high = j->n_active;

  while (high - low > 1) {
    int mid = (low + high) / 2;

    if (j->first_unit[mid] <= u)
      low = mid;
    else
      high = mid;
  }
  return low;
}

static void
group_pairs (Job * j)
{
  int n_experts = j->moe->n_experts;
  int64_t n_pairs = j->n * j->n_slots;

  memset (j->first_pair, 0, (size_t) (n_experts + 2) * sizeof (int64_t));
  for (int64_t i = 0; i < n_pairs; i++)
    j->first_pair[j->experts[i] + 1]++;
  j->n_active = 0;
  for (int e = 0; e <= n_experts; e++) {
    if (j->first_pair[e + 1] > 0)
      j->active[j->n_active++] = e;
    j->first_pair[e + 1] += j->first_pair[e];
  }
  /* Each pair takes the next place of its expert; that moves the beginnings
   * one expert on, so they are moved back. */
  for (int64_t i = 0; i < n_pairs; i++) {
    int64_t at = j->first_pair[j->experts[i]]++;

    j->pair_at[i] = at;
    j->pair_token[at] = (int32_t) (i / j->n_slots);
  }
  for (int e = n_experts + 1; e > 0; e--)
    j->first_pair[e] = j->first_pair[e - 1];
  j->first_pair[0] = 0;
}

static const void *
weight_rows (const QkTensor * w, int64_t row)
{
  return (const char *) w->data
      + (size_t) (row * w->dims[1]) * qk_dtype_size (w->dtype);
}

static void
inner_units (const void *data, int64_t first, int64_t last, int thread)
{
  const Job *j = data;

  (void) thread;
  for (int64_t u = first; u < last; u++) {
    int i = find_expert (j, u);
    int e = j->active[i];
    int64_t row = (u - j->first_unit[i]) * INNER_ROWS;
    const QkTensor *gate =
        expert_tensor (j, j->moe->gate, &j->moe->shared_gate, e);
    const QkTensor *up = expert_tensor (j, j->moe->up, &j->moe->shared_up, e);
    int64_t rows = gate->dims[0] - row < INNER_ROWS ? gate->dims[0] - row
        : INNER_ROWS;

    for (int64_t pair = j->first_pair[e]; pair < j->first_pair[e + 1];
        pair += MOST_PAIRS) {
      int64_t n = j->first_pair[e + 1] - pair;
      const float *x[MOST_PAIRS];
      float ups[MOST_PAIRS * INNER_ROWS];
      float *h = j->h + pair * j->inner + row;

      if (n > MOST_PAIRS)
        n = MOST_PAIRS;
      for (int64_t p = 0; p < n; p++)
        x[p] = j->x + j->pair_token[pair + p] * j->width;
      j->simd->dot[gate->dtype] (h, j->inner, x, n, weight_rows (gate, row),
          rows, j->width);
      j->simd->dot[up->dtype] (ups, INNER_ROWS, x, n, weight_rows (up, row),
          rows, j->width);
      for (int64_t p = 0; p < n; p++)
        j->simd->silu_mul (h + p * j->inner, ups + p * INNER_ROWS, rows);
    }
  }
}

static void
outer_units (const void *data, int64_t first, int64_t last, int thread)
{
  const Job *j = data;

  (void) thread;
  for (int64_t u = first; u < last; u++) {
    int i = find_expert (j, u);
    int e = j->active[i];
    int64_t row = (u - j->first_unit[i]) * OUTER_ROWS;
    const QkTensor *down =
        expert_tensor (j, j->moe->down, &j->moe->shared_down, e);
    int64_t rows = down->dims[0] - row < OUTER_ROWS ? down->dims[0] - row
        : OUTER_ROWS;

    for (int64_t pair = j->first_pair[e]; pair < j->first_pair[e + 1];
        pair += MOST_PAIRS) {
      int64_t n = j->first_pair[e + 1] - pair;
      const float *h[MOST_PAIRS];

      if (n > MOST_PAIRS)
        n = MOST_PAIRS;
      for (int64_t p = 0; p < n; p++)
        h[p] = j->h + (pair + p) * j->inner;
      j->simd->dot[down->dtype] (j->d + pair * j->width + row, j->width, h, n,
          weight_rows (down, row), rows, down->dims[1]);
    }
  }
}

static void
combine_tokens (const void *data, int64_t first, int64_t last, int thread)
{
  const Job *j = data;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    for (int64_t slot = i * j->n_slots; slot < (i + 1) * j->n_slots; slot++)
      j->simd->axpy (j->y + i * j->width, j->d + j->pair_at[slot] * j->width,
          j->weights[slot], j->width);
}

static void
forward (QkStream * s, Job * j)
{
  int64_t n_pairs = j->n * j->n_slots, n_units, pairs_each;

  route (s, j);
  group_pairs (j);
  pairs_each = n_pairs / j->n_active;

  n_units = list_units (j, true, INNER_ROWS);
  qk_cpu_parallel (s, inner_units, j, n_units,
      pairs_each * j->width * 2 * INNER_ROWS / 16);
  n_units = list_units (j, false, OUTER_ROWS);
  qk_cpu_parallel (s, outer_units, j, n_units,
      pairs_each * j->inner * OUTER_ROWS / 16);
  qk_cpu_parallel (s, combine_tokens, j, j->n, j->n_slots * j->width / 8);
}

static void *
take (char *base, size_t *used, int64_t count, size_t size)
{
  void *at = base != NULL ? base + *used : NULL;

  *used += qk_align64 ((size_t) count * size);
  return at;
}

/* Lays the arrays for n tokens out from `base`; returns their size, which is
 * all that happens when base is NULL. */
static size_t
lay_out (Job * j, char *base, int64_t n)
{
  int64_t pairs = n * j->n_slots, n_experts = j->moe->n_experts;
  size_t used = 0;

  j->p = take (base, &used, n * n_experts, sizeof (float));
  j->experts = take (base, &used, pairs, sizeof (int32_t));
  j->weights = take (base, &used, pairs, sizeof (float));
  j->pair_at = take (base, &used, pairs, sizeof (int64_t));
  j->pair_token = take (base, &used, pairs, sizeof (int32_t));
  j->first_pair = take (base, &used, n_experts + 2, sizeof (int64_t));
  j->active = take (base, &used, n_experts + 1, sizeof (int32_t));
  j->first_unit = take (base, &used, n_experts + 2, sizeof (int64_t));
  j->h = take (base, &used, pairs * j->inner, sizeof (float));
  j->d = take (base, &used, pairs * j->width, sizeof (float));
  return used;
}

void
qk_simd_moe (QkStream * s, float *y, const float *x, int64_t n,
    const QkMoe * moe, int32_t * ret_experts)
{
  Job job = {.moe = moe,.simd = qk_simd (s),.width = moe->router.dims[1],
    .inner = moe->gate[0].dims[0],.n_slots = moe->top_k
  };
  int64_t most = n < MOST_TOKENS ? n : MOST_TOKENS;
  char *scratch;

  if (n <= 0)
    return;
  if (moe->shared_gate.data != NULL) {
    job.n_slots++;
    if (job.inner < moe->shared_gate.dims[0])
      job.inner = moe->shared_gate.dims[0];
  }
  scratch = qk_cpu_scratch (s, lay_out (&job, NULL, most));
  if (scratch == NULL)
    return;
  lay_out (&job, scratch, most);

  for (int64_t i = 0; i < n; i += most) {
    job.n = n - i < most ? n - i : most;
    job.y = y + i * job.width;
    job.x = x + i * job.width;
    job.ret_experts = ret_experts != NULL ? ret_experts + i * moe->top_k
        : NULL;
    forward (s, &job);
  }
}
