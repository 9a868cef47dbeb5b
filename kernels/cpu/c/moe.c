/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * moe: mixture of experts, token by token.
 *
 *   route   the experts of each token and their weights, the shared expert
 *           is one slot more
 *   inner   h = silu (gate x) * up x for each (token, slot)
 *   outer   y += sum over the slots, in the order of the expert numbers
 */
#include "ref.h"

typedef struct
{
  float *y;                     /* [n, width] */
  const float *x;
  int64_t n, width;
  const QkMoe *moe;
  int n_slots;                  /* top_k, plus one with a shared expert */
  int64_t inner;                /* widest expert */
  int32_t *ret_experts;

  float *p;                     /* [n_threads, n_experts] */
  int32_t *slot_expert;         /* [n, n_slots], ascending; shared is last */
  float *slot_weight;
  float *h;                     /* [n, n_slots, inner] */
} Moe;

/* The order of being chosen, best first, made the order of expert numbers. */
static void
sort_slots (int32_t * experts, float *weights, int n)
{
  for (int i = 1; i < n; i++) {
    int32_t expert = experts[i];
    float weight = weights[i];
    int at = i;

    for (; at > 0 && experts[at - 1] > expert; at--) {
      experts[at] = experts[at - 1];
      weights[at] = weights[at - 1];
    }
    experts[at] = expert;
    weights[at] = weight;
  }
}

void
qk_c_choose_experts (const QkMoe * moe, float *p, int32_t * experts,
    float *weights, int32_t * ret_experts)
{
  float max = -INFINITY, sum = 0, chosen = 0;

  for (int e = 0; e < moe->n_experts; e++)
    if (p[e] > max)
      max = p[e];
  for (int e = 0; e < moe->n_experts; e++) {
    p[e] = expf (p[e] - max);
    sum += p[e];
  }

  for (int t = 0; t < moe->top_k; t++) {
    int best = -1;

    /* One that was taken is below zero. A NaN is above nothing, so it is
     * taken only when it comes first; it spoils the sum in any case. */
    for (int e = 0; e < moe->n_experts; e++)
      if (!(p[e] < 0) && (best < 0 || p[e] > p[best]))
        best = e;
    experts[t] = best;
    weights[t] = p[best] / sum;
    chosen += weights[t];
    p[best] = -1;
  }
  if (ret_experts != NULL)
    for (int t = 0; t < moe->top_k; t++)
      ret_experts[t] = experts[t];
  if (moe->norm_top_k)
    for (int t = 0; t < moe->top_k; t++)
      weights[t] /= chosen;
  sort_slots (experts, weights, moe->top_k);
}

static void
route_tokens (const void *data, int64_t first, int64_t last, int thread)
{
  const Moe *j = data;
  const QkMoe *moe = j->moe;
  float *p = j->p + thread * moe->n_experts;

  for (int64_t i = first; i < last; i++) {
    const float *x = j->x + i * j->width;
    int32_t *experts = j->slot_expert + i * j->n_slots;
    float *weights = j->slot_weight + i * j->n_slots;

    for (int e = 0; e < moe->n_experts; e++)
      p[e] = qk_c_dot (x, &moe->router, e, j->width);
    qk_c_choose_experts (moe, p, experts, weights,
        j->ret_experts != NULL ? j->ret_experts + i * moe->top_k : NULL);
    if (j->n_slots > moe->top_k) {
      experts[moe->top_k] = moe->n_experts;
      weights[moe->top_k] =
          qk_c_sigmoid (qk_c_dot (x, &moe->shared_scale, 0, j->width));
    }
  }
}

static void
inner_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Moe *j = data;

  (void) thread;
  for (int64_t u = first; u < last; u++) {
    int64_t slot = u / j->inner, row = u % j->inner;
    int32_t e = j->slot_expert[slot];
    bool shared = e == j->moe->n_experts;
    const QkTensor *gate = shared ? &j->moe->shared_gate : &j->moe->gate[e];
    const QkTensor *up = shared ? &j->moe->shared_up : &j->moe->up[e];
    const float *x = j->x + slot / j->n_slots * j->width;

    if (row < gate->dims[0])
      j->h[u] = qk_c_silu (qk_c_dot (x, gate, row, j->width))
          * qk_c_dot (x, up, row, j->width);
  }
}

static void
outer_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Moe *j = data;

  (void) thread;
  for (int64_t u = first; u < last; u++) {
    int64_t i = u / j->width, row = u % j->width;
    float sum = 0;

    for (int64_t slot = i * j->n_slots; slot < (i + 1) * j->n_slots; slot++) {
      int32_t e = j->slot_expert[slot];
      const QkTensor *down = e == j->moe->n_experts ?
          &j->moe->shared_down : &j->moe->down[e];

      sum += j->slot_weight[slot] * qk_c_dot (j->h + slot * j->inner, down,
          row, down->dims[1]);
    }
    j->y[u] += sum;
  }
}

void
qk_c_moe (QkStream * s, float *y, const float *x, int64_t n, const QkMoe * moe,
    int32_t * ret_experts)
{
  Moe job = {.y = y,.x = x,.n = n,.moe = moe,.ret_experts = ret_experts };
  size_t n_slots, p_bytes, slot_bytes, h_bytes;
  char *scratch;

  job.width = moe->router.dims[1];
  job.inner = moe->gate[0].dims[0];
  job.n_slots = moe->top_k;
  if (moe->shared_gate.data != NULL) {
    job.n_slots++;
    if (job.inner < moe->shared_gate.dims[0])
      job.inner = moe->shared_gate.dims[0];
  }

  n_slots = (size_t) n * (size_t) job.n_slots;
  p_bytes = qk_align64 ((size_t) qk_cpu_n_threads (s)
      * (size_t) moe->n_experts * sizeof (float));
  slot_bytes = qk_align64 (n_slots * sizeof (float));
  h_bytes = n_slots * (size_t) job.inner * sizeof (float);
  scratch = qk_cpu_scratch (s, p_bytes + 2 * slot_bytes + h_bytes);
  if (scratch == NULL)
    return;
  job.p = (float *) scratch;
  job.slot_expert = (int32_t *) (scratch + p_bytes);
  job.slot_weight = (float *) (scratch + p_bytes + slot_bytes);
  job.h = (float *) (scratch + p_bytes + 2 * slot_bytes);

  qk_cpu_parallel (s, route_tokens, &job, n, moe->n_experts * job.width / 4);
  qk_cpu_parallel (s, inner_rows, &job, (int64_t) n_slots * job.inner,
      job.width / 2);
  qk_cpu_parallel (s, outer_rows, &job, n * job.width,
      job.n_slots * job.inner / 4);
}
