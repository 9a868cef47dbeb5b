/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * logits [vocab] -> one id.
 *
 *   repetition penalty -> suppressed ids -> (argmax, or:) temperature -> top-k
 *     -> top-p -> softmax -> one draw
 *
 * This is the reference's order. As there, top-k keeps every logit equal to the
 * k-th. Which of equal logits top-p drops first the reference leaves to a sort
 * that is not stable; here it is the lower ids.
 *
 * A draw visits the vocabulary a few times and sorts only what it must: the k-th
 * logit comes out of a heap of k, top-p takes the likeliest from a heap until it
 * has enough. Randomness is xoshiro256** (Blackman and Vigna), seeded through
 * splitmix64; one draw uses one number.
 */

#include "sampler.h"

#include <math.h>

enum
{
  SEEN = 1 << 0,
  SUPPRESSED = 1 << 1,
};

typedef struct
{
  float logit;
  int32_t id;
  double weight;                /* how likely it is, the best one being 1 */
} Candidate;

struct _QomniSampler
{
  QomniSampling sampling;
  uint64_t random[4];
  int32_t vocab_size;

  uint8_t *flags;               /* [vocab_size] */
  int32_t *seen;                /* [vocab_size], n_seen of them used */
  int32_t n_seen;

  Candidate *candidates;        /* [vocab_size] scratch */
  float *top;                   /* [vocab_size] scratch: the k largest logits */
};

static uint64_t
splitmix64 (uint64_t * state)
{
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);

  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static uint64_t
rotate_left (uint64_t x, int k)
{
  return (x << k) | (x >> (64 - k));
}

/* xoshiro256**: uniform in [0, 1) with 53 bits. */
static double
next_uniform (uint64_t * s)
{
  uint64_t bits = rotate_left (s[1] * 5, 7) * 9;
  uint64_t t = s[1] << 17;

  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate_left (s[3], 45);
  return (double) (bits >> 11) * 0x1p-53;
}

static bool
check_sampling (const QomniSampling * s, GError ** error)
{
  if (!(s->temperature >= 0) || !isfinite (s->temperature))
    return qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "temperature is %g, expected 0 (greedy) or more", s->temperature);
  if (!(s->top_p >= 0 && s->top_p <= 1))
    return qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "top-p is %g, expected 0 to 1", s->top_p);
  if (!(s->repetition_penalty > 0) || !isfinite (s->repetition_penalty))
    return qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "repetition penalty is %g, expected more than 0 (1: none)",
        s->repetition_penalty);
  if (s->top_k < 0)
    return qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "top-k is %d, expected 0 (all) or more", s->top_k);
  return true;
}

QomniSampler *
qomni_sampler_new (const QomniSampling * sampling, uint64_t seed,
    int64_t vocab_size, GError ** error)
{
  g_autoptr (QomniSampler) self = NULL;
  size_t n = (size_t) vocab_size;

  if (vocab_size < 1 || vocab_size > QOMNI_MAX_VOCABULARY) {
    qomni_fail (error, QOMNI_ERROR_SETTINGS, "vocabulary of %" G_GINT64_FORMAT
        " ids, expected 1 to %d", vocab_size, QOMNI_MAX_VOCABULARY);
    return NULL;
  }
  if (!check_sampling (sampling, error))
    return NULL;

  self = g_new0 (QomniSampler, 1);
  self->sampling = *sampling;
  self->vocab_size = (int32_t) vocab_size;
  for (int i = 0; i < 4; i++)
    self->random[i] = splitmix64 (&seed);
  self->flags = g_try_new0 (uint8_t, n);
  self->seen = g_try_new (int32_t, n);
  self->candidates = g_try_new (Candidate, n);
  self->top = g_try_new (float, n);
  if (self->flags == NULL || self->seen == NULL || self->candidates == NULL
      || self->top == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory to sample from %zu ids",
        n);
    return NULL;
  }
  return g_steal_pointer (&self);
}

void
qomni_sampler_free (QomniSampler * self)
{
  if (self == NULL)
    return;
  g_free (self->flags);
  g_free (self->seen);
  g_free (self->candidates);
  g_free (self->top);
  g_free (self);
}

void
qomni_sampler_suppress (QomniSampler * self, int32_t first, int32_t last,
    int32_t except)
{
  for (int64_t id = MAX (first, 0); id <= last && id < self->vocab_size; id++)
    if (id != except)
      self->flags[id] |= SUPPRESSED;
}

void
qomni_sampler_set (QomniSampler * self, const QomniSampling * sampling)
{
  QomniSampling *s = &self->sampling;

  *s = *sampling;
  if (!(s->temperature >= 0) || !isfinite (s->temperature))
    s->temperature = 0;
  if (!(s->top_p >= 0 && s->top_p <= 1))
    s->top_p = 1;
  if (!(s->repetition_penalty > 0) || !isfinite (s->repetition_penalty))
    s->repetition_penalty = 1;
  s->top_k = MAX (s->top_k, 0);
}

void
qomni_sampler_reset (QomniSampler * self)
{
  for (int32_t i = 0; i < self->n_seen; i++)
    self->flags[self->seen[i]] &= (uint8_t) ~ SEEN;
  self->n_seen = 0;
}

void
qomni_sampler_seen (QomniSampler * self, const int32_t * ids, size_t n)
{
  for (size_t i = 0; i < n; i++) {
    int32_t id = ids[i];

    if (id < 0 || id >= self->vocab_size || (self->flags[id] & SEEN))
      continue;
    self->flags[id] |= SEEN;
    self->seen[self->n_seen++] = id;
  }
}

static void
penalise (const QomniSampler * self, float *logits)
{
  float penalty = (float) self->sampling.repetition_penalty;

  if (self->sampling.repetition_penalty == 1.0)
    return;
  for (int32_t i = 0; i < self->n_seen; i++) {
    float *l = &logits[self->seen[i]];

    *l = *l < 0 ? *l * penalty : *l / penalty;
  }
}

/* Masks the suppressed ids and finds the best of the others. */
static int32_t
best (const QomniSampler * self, float *logits, GError ** error)
{
  int32_t ret = -1;

  for (int32_t id = 0; id < self->vocab_size; id++) {
    float l = logits[id];

    if (isnan (l) || l == INFINITY) {
      qomni_fail (error, QOMNI_ERROR_NUMERIC, "the logit of id %d is %g", id,
          l);
      return -1;
    }
    if (self->flags[id] & SUPPRESSED)
      logits[id] = -INFINITY;
    else if (l > -INFINITY && (ret < 0 || l > logits[ret]))
      ret = id;
  }
  if (ret < 0)
    qomni_fail (error, QOMNI_ERROR_NUMERIC, "no id of %d can be drawn",
        self->vocab_size);
  return ret;
}

/* Puts `value` at `i` of a heap whose root is the smallest. */
static void
sift_min (float *heap, int32_t n, int32_t i, float value)
{
  for (;;) {
    int32_t child = 2 * i + 1;

    if (child >= n)
      break;
    if (child + 1 < n && heap[child + 1] < heap[child])
      child++;
    if (heap[child] >= value)
      break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = value;
}

/* The k-th largest of n > k logits; `heap` has room for k. */
static float
kth_largest (const float *logits, int32_t n, int32_t k, float *heap)
{
  for (int32_t i = 0; i < k; i++)
    heap[i] = logits[i];
  for (int32_t i = k / 2 - 1; i >= 0; i--)
    sift_min (heap, k, i, heap[i]);
  for (int32_t i = k; i < n; i++)
    if (logits[i] > heap[0])
      sift_min (heap, k, 0, logits[i]);
  return heap[0];
}

static bool
likelier (const Candidate * a, const Candidate * b)
{
  return a->logit > b->logit || (a->logit == b->logit && a->id > b->id);
}

/* The same with the likeliest candidate at the root. */
static void
sift_candidate (Candidate * heap, int32_t n, int32_t i, Candidate value)
{
  for (;;) {
    int32_t child = 2 * i + 1;

    if (child >= n)
      break;
    if (child + 1 < n && likelier (&heap[child + 1], &heap[child]))
      child++;
    if (!likelier (&heap[child], &value))
      break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = value;
}

static double
total_weight (const Candidate * c, int32_t n)
{
  double total = 0;

  for (int32_t i = 0; i < n; i++)
    total += c[i].weight;
  return total;
}

/* Keeps the likeliest candidates until they weigh `top_p` of all; they come to
 * stand at the end of the list, whose first kept index is returned. */
static int32_t
keep_top_p (Candidate * c, int32_t n, double top_p)
{
  double enough = top_p * total_weight (c, n), weight = 0;
  int32_t left = n;

  for (int32_t i = n / 2 - 1; i >= 0; i--)
    sift_candidate (c, n, i, c[i]);
  do {
    Candidate next = c[0];

    left--;
    sift_candidate (c, left, 0, c[left]);
    c[left] = next;
    weight += next.weight;
  } while (left > 0 && weight < enough);
  return left;
}

static int32_t
draw_weighted (uint64_t * random, const Candidate * c, int32_t n)
{
  double x = next_uniform (random) * total_weight (c, n);

  for (int32_t i = 0; i < n - 1; i++) {
    x -= c[i].weight;
    if (x < 0)
      return c[i].id;
  }
  return c[n - 1].id;
}

/* One of the ids that top-k and top-p leave; `max` is the largest logit. */
static int32_t
draw_sampled (QomniSampler * self, const float *logits, float max)
{
  const QomniSampling *s = &self->sampling;
  Candidate *c = self->candidates;
  float least = -INFINITY;
  int32_t n = 0, first = 0;

  if (s->top_k > 0 && s->top_k < self->vocab_size)
    least = kth_largest (logits, self->vocab_size, s->top_k, self->top);
  for (int32_t id = 0; id < self->vocab_size; id++) {
    if (logits[id] < least || logits[id] == -INFINITY)
      continue;
    c[n].logit = logits[id];
    c[n].id = id;
    c[n].weight = exp (((double) logits[id] - max) / s->temperature);
    n++;
  }
  if (s->top_p < 1)
    first = keep_top_p (c, n, s->top_p);
  return draw_weighted (self->random, c + first, n - first);
}

int32_t
qomni_sampler_draw (QomniSampler * self, float *logits, GError ** error)
{
  int32_t id;

  penalise (self, logits);
  id = best (self, logits, error);
  if (id < 0)
    return -1;
  if (self->sampling.sample && self->sampling.temperature > 0)
    id = draw_sampled (self, logits, logits[id]);
  qomni_sampler_seen (self, &id, 1);
  return id;
}
