/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * sampler.c: the order and the rules of the processors, seen through what is
 * drawn and how often.
 */
#include "sampler.h"

#include <math.h>

#include "scratch.h"

static const QomniSampling greedy = {
  .temperature = 1, .top_p = 1, .repetition_penalty = 1,
};

static const QomniSampling everything = {
  .sample = true, .temperature = 1, .top_p = 1, .repetition_penalty = 1,
};

static QomniSampler *
sampler (const QomniSampling * sampling, uint64_t seed, int64_t vocab)
{
  g_autoptr (GError) error = NULL;
  QomniSampler *self = qomni_sampler_new (sampling, seed, vocab, &error);

  g_assert_no_error (error);
  return self;
}

/* Draws from a copy. */
static int32_t
draw (QomniSampler * self, const float *logits, size_t n)
{
  g_autofree float *copy = g_memdup2 (logits, n * sizeof *logits);
  g_autoptr (GError) error = NULL;
  int32_t id = qomni_sampler_draw (self, copy, &error);

  g_assert_no_error (error);
  return id;
}

/* Draws often: the share of each id is its probability, and an id with
 * probability 0 never comes. */
static void
assert_shares (const QomniSampling * sampling, const float *logits,
    const double *p, size_t n)
{
  const int times = 40000;
  g_autofree int *count = g_new0 (int, n);
  g_autoptr (QomniSampler) s = sampler (sampling, 11, (int64_t) n);

  for (int i = 0; i < times; i++) {
    count[draw (s, logits, n)]++;
    qomni_sampler_reset (s);
  }
  for (size_t i = 0; i < n; i++) {
    double expected = p[i] * times;

    if (p[i] == 0)
      g_assert_cmpint (count[i], ==, 0);
    else                        /* five standard deviations */
      g_assert_cmpfloat (fabs (count[i] - expected), <,
          5 * sqrt (expected) + 1);
  }
}

/* softmax of logits / temperature over the ids in `keep`. */
static void
shares_of (const float *logits, const bool *keep, size_t n, double temperature,
    double *ret)
{
  double sum = 0;

  for (size_t i = 0; i < n; i++) {
    ret[i] = keep[i] ? exp (logits[i] / temperature) : 0;
    sum += ret[i];
  }
  for (size_t i = 0; i < n; i++)
    ret[i] /= sum;
}

static void
greedy_takes_the_largest_and_of_equals_the_first (void)
{
  static const float logits[] = { -1, 3, -INFINITY, 3, 2.5f };
  QomniSampling cold = everything;
  g_autoptr (QomniSampler) s = sampler (&greedy, 1, 5);
  g_autoptr (QomniSampler) zero = NULL;

  cold.temperature = 0;
  zero = sampler (&cold, 1, 5);
  for (int i = 0; i < 10; i++) {
    g_assert_cmpint (draw (s, logits, 5), ==, 1);
    g_assert_cmpint (draw (zero, logits, 5), ==, 1);
  }
}

static void
penalty_moves_each_seen_id_once_and_down (void)
{
  static const int32_t ids[] = { 0, 1, 1, 0, 1, -5, 99 };
  QomniSampling sampling = greedy;
  g_autoptr (QomniSampler) s = NULL;
  g_autoptr (GError) error = NULL;
  float logits[] = { 3, -2, 1, -1 };

  sampling.repetition_penalty = 1.5;
  s = sampler (&sampling, 1, 4);
  qomni_sampler_seen (s, ids, G_N_ELEMENTS (ids));
  g_assert_cmpint (qomni_sampler_draw (s, logits, &error), ==, 0);
  g_assert_cmpfloat (logits[0], ==, 3 / 1.5f);
  g_assert_cmpfloat (logits[1], ==, -2 * 1.5f);
  g_assert_cmpfloat (logits[2], ==, 1);
  g_assert_cmpfloat (logits[3], ==, -1);
}

static void
a_drawn_id_counts_as_seen_until_the_reset (void)
{
  static const float logits[] = { 1.0f, 1.2f };
  QomniSampling sampling = greedy;
  g_autoptr (QomniSampler) s = NULL;

  sampling.repetition_penalty = 1.3;
  s = sampler (&sampling, 1, 2);
  g_assert_cmpint (draw (s, logits, 2), ==, 1);
  g_assert_cmpint (draw (s, logits, 2), ==, 0);
  g_assert_cmpint (draw (s, logits, 2), ==, 1);
  qomni_sampler_reset (s);
  g_assert_cmpint (draw (s, logits, 2), ==, 1);
  g_assert_cmpint (draw (s, logits, 2), ==, 0);
}

static void
suppressed_ids_are_never_drawn_but_the_exception_is (void)
{
  enum { VOCAB = 3072, CODES = 2048, EOS = 2150 };
  g_autoptr (GRand) rand = g_rand_new_with_seed (5);
  g_autofree float *logits = g_new (float, VOCAB);
  g_autoptr (QomniSampler) s = sampler (&everything, 3, VOCAB);
  int n_eos = 0;

  qomni_sampler_suppress (s, CODES, VOCAB - 1, EOS);
  for (int i = 0; i < 2000; i++) {
    int32_t id;

    for (int k = 0; k < VOCAB; k++)
      logits[k] = (float) g_rand_double_range (rand, -4, 4);
    logits[EOS] += 3;
    logits[EOS + 1] += 30;
    id = draw (s, logits, VOCAB);
    g_assert_true (id < CODES || id == EOS);
    n_eos += id == EOS;
  }
  g_assert_cmpint (n_eos, >, 0);
  qomni_sampler_set (s, &greedy);
  g_assert_cmpint (draw (s, logits, VOCAB), !=, EOS + 1);
}

static void
suppressing_outside_of_the_vocabulary_is_harmless (void)
{
  static const float logits[] = { 1, 2, 3 };
  g_autoptr (QomniSampler) s = sampler (&greedy, 1, 3);

  qomni_sampler_suppress (s, -7, 0, -1);
  qomni_sampler_suppress (s, 2, INT32_MAX, -1);
  g_assert_cmpint (draw (s, logits, 3), ==, 1);
}

static void
temperature_shapes_the_shares (void)
{
  static const float logits[] = { 0, 1, 2, -1, 0.5f };
  static const bool keep[] = { true, true, true, true, true };
  QomniSampling sampling = everything;
  double p[5];

  for (sampling.temperature = 0.5; sampling.temperature < 3;
      sampling.temperature *= 2) {
    shares_of (logits, keep, 5, sampling.temperature, p);
    assert_shares (&sampling, logits, p, 5);
  }
}

static void
top_k_keeps_what_equals_the_kth (void)
{
  static const float logits[] = { 1, 0, 1, 2, 0.5f, 1, -3, -INFINITY };
  static const bool first[] = { 0, 0, 0, 1, 0, 0, 0, 0 };
  static const bool ties[] = { 1, 0, 1, 1, 0, 1, 0, 0 };
  static const bool five[] = { 1, 0, 1, 1, 1, 1, 0, 0 };
  static const bool all[] = { 1, 1, 1, 1, 1, 1, 1, 0 };
  static const bool *const expected[] = {
    all, first, ties, ties, ties, five
  };
  QomniSampling sampling = everything;
  double p[8];

  for (sampling.top_k = 0; sampling.top_k < 6; sampling.top_k++) {
    shares_of (logits, expected[sampling.top_k], 8, 1, p);
    assert_shares (&sampling, logits, p, 8);
  }
  sampling.top_k = 8;
  shares_of (logits, all, 8, 1, p);
  assert_shares (&sampling, logits, p, 8);
  sampling.top_k = INT_MAX;
  assert_shares (&sampling, logits, p, 8);
}

/* 0.4, 0.3, 0.2, 0.1 */
static void
top_p_keeps_the_likeliest_until_they_reach_p (void)
{
  const float logits[] = { logf (2), logf (4), logf (1), logf (3) };
  static const struct
  {
    double p;
    bool keep[4];
  } cases[] = {
    {0.0, {0, 1, 0, 0}},
    {0.39, {0, 1, 0, 0}},
    {0.41, {0, 1, 0, 1}},
    {0.69, {0, 1, 0, 1}},
    {0.71, {1, 1, 0, 1}},
    {0.91, {1, 1, 1, 1}},
    {1.0, {1, 1, 1, 1}},
  };
  QomniSampling sampling = everything;
  double p[4];

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    sampling.top_p = cases[i].p;
    shares_of (logits, cases[i].keep, 4, 1, p);
    assert_shares (&sampling, logits, p, 4);
  }
}

/* Ids 1, 2 and 3 weigh the same. */
static void
top_p_keeps_the_higher_of_equal_ids (void)
{
  static const float logits[] = { -1, 1, 1, 1 };
  static const bool keep[] = { 0, 0, 1, 1 };
  QomniSampling sampling = everything;
  double p[4];

  sampling.top_p = 0.6;
  shares_of (logits, keep, 4, 1, p);
  assert_shares (&sampling, logits, p, 4);
}

/* Of 0.4 0.3 0.2 0.1 top-k 3 leaves 4/9 3/9 2/9; of these top-p 0.75 the first
 * two. Before top-k it would have kept all three. */
static void
top_p_comes_after_top_k_and_temperature (void)
{
  const float logits[] = { logf (2), logf (4), logf (1), logf (3) };
  static const bool two[] = { 0, 1, 0, 1 };
  static const bool one[] = { 0, 1, 0, 0 };
  QomniSampling sampling = everything;
  double p[4];

  sampling.top_k = 3;
  sampling.top_p = 0.75;
  shares_of (logits, two, 4, 1, p);
  assert_shares (&sampling, logits, p, 4);
  sampling.temperature = 0.2;   /* 1024 : 243 : 32 */
  shares_of (logits, one, 4, 0.2, p);
  assert_shares (&sampling, logits, p, 4);
}

/* xoshiro256** of seed 42, worked out elsewhere. */
static void
a_seed_draws_the_same_everywhere (void)
{
  static const int32_t expected[] = {
    83, 378, 680, 924, 991, 769, 719, 850, 761, 583, 682, 290
  };
  g_autofree float *logits = g_new0 (float, 1000);
  g_autoptr (QomniSampler) s = sampler (&everything, 42, 1000);
  g_autoptr (QomniSampler) other = sampler (&everything, 43, 1000);
  int n_same = 0;

  for (size_t i = 0; i < G_N_ELEMENTS (expected); i++) {
    g_assert_cmpint (draw (s, logits, 1000), ==, expected[i]);
    n_same += draw (other, logits, 1000) == expected[i];
  }
  g_assert_cmpint (n_same, <, 3);
}

static void
logits_that_are_no_numbers_are_errors (void)
{
  static const struct
  {
    float logits[3];
    const char *words;
  } cases[] = {
    {{1, NAN, 2}, "the logit of id 1 is"},
    {{1, 2, INFINITY}, "the logit of id 2 is"},
    {{-INFINITY, -INFINITY, -INFINITY}, "no id of 3 can be drawn"},
  };
  static const float good[] = { 1, 5, 2 };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    for (int sample = 0; sample < 2; sample++) {
      g_autoptr (QomniSampler) s =
          sampler (sample ? &everything : &greedy, 1, 3);
      g_autoptr (GError) error = NULL;
      float logits[3];

      memcpy (logits, cases[i].logits, sizeof logits);
      g_assert_cmpint (qomni_sampler_draw (s, logits, &error), ==, -1);
      assert_refused (&error, QOMNI_ERROR_NUMERIC, cases[i].words);
      g_assert_cmpint (draw (s, good, 3), >=, 0);
    }
  }
}

static void
everything_suppressed_is_an_error (void)
{
  g_autoptr (QomniSampler) s = sampler (&everything, 1, 2);
  g_autoptr (GError) error = NULL;
  float logits[] = { 1, 2 };

  qomni_sampler_suppress (s, 0, 1, -1);
  g_assert_cmpint (qomni_sampler_draw (s, logits, &error), ==, -1);
  assert_refused (&error, QOMNI_ERROR_NUMERIC, "no id of 2 can be drawn");
}

static void
extreme_settings_draw_something_likely (void)
{
  static const float logits[] = { -3e38f, 3e38f, 1e38f, -INFINITY, 0 };
  static const double temperatures[] = { 1e-300, 1e-30, 1, 1e30, 1e300 };
  QomniSampling sampling = everything;

  for (size_t i = 0; i < G_N_ELEMENTS (temperatures); i++) {
    for (int k = 0; k < 4; k++) {
      g_autoptr (QomniSampler) s = NULL;

      sampling.temperature = temperatures[i];
      sampling.top_k = k;
      sampling.top_p = k % 2 ? 1e-300 : 1;
      s = sampler (&sampling, 7, 5);
      for (int j = 0; j < 20; j++) {
        int32_t id = draw (s, logits, 5);

        g_assert_cmpint (id, !=, 3);
        if (i < 3 || k % 2)
          g_assert_cmpint (id, ==, 1);
      }
    }
  }
}

static void
a_vocabulary_of_one_always_gives_it (void)
{
  static const float logits[] = { -12 };
  g_autoptr (QomniSampler) s = sampler (&everything, 1, 1);

  for (int i = 0; i < 10; i++)
    g_assert_cmpint (draw (s, logits, 1), ==, 0);
}

static void
bad_settings_are_refused_by_name (void)
{
  static const struct
  {
    QomniSampling sampling;
    const char *words;
  } cases[] = {
    {{true, -1, 1, 1, 0, 0}, "temperature is -1"},
    {{true, NAN, 1, 1, 0, 0}, "temperature"},
    {{true, INFINITY, 1, 1, 0, 0}, "temperature"},
    {{true, 1, -0.1, 1, 0, 0}, "top-p is -0.1"},
    {{true, 1, 1.1, 1, 0, 0}, "top-p is 1.1"},
    {{true, 1, NAN, 1, 0, 0}, "top-p"},
    {{true, 1, 1, 0, 0, 0}, "repetition penalty is 0"},
    {{true, 1, 1, NAN, 0, 0}, "repetition penalty"},
    {{true, 1, 1, 1, -1, 0}, "top-k is -1"},
  };
  static const float logits[] = { 1, 2, 3 };
  g_autoptr (GError) error = NULL;

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autoptr (QomniSampler) s = sampler (&greedy, 1, 3);

    g_assert_null (qomni_sampler_new (&cases[i].sampling, 1, 3, &error));
    assert_refused (&error, QOMNI_ERROR_SETTINGS, cases[i].words);
    /* Later changes cannot be refused; they count as off. */
    qomni_sampler_set (s, &cases[i].sampling);
    g_assert_cmpint (draw (s, logits, 3), >=, 0);
  }
  g_assert_null (qomni_sampler_new (&greedy, 1, 0, &error));
  assert_refused (&error, QOMNI_ERROR_SETTINGS, "vocabulary of 0 ids");
  g_assert_null (qomni_sampler_new (&greedy, 1, INT64_MAX, &error));
  assert_refused (&error, QOMNI_ERROR_SETTINGS, "vocabulary of");
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define CLAIM(name) g_test_add_func ("/sampler/" #name, name)
  CLAIM (greedy_takes_the_largest_and_of_equals_the_first);
  CLAIM (penalty_moves_each_seen_id_once_and_down);
  CLAIM (a_drawn_id_counts_as_seen_until_the_reset);
  CLAIM (suppressed_ids_are_never_drawn_but_the_exception_is);
  CLAIM (suppressing_outside_of_the_vocabulary_is_harmless);
  CLAIM (temperature_shapes_the_shares);
  CLAIM (top_k_keeps_what_equals_the_kth);
  CLAIM (top_p_keeps_the_likeliest_until_they_reach_p);
  CLAIM (top_p_keeps_the_higher_of_equal_ids);
  CLAIM (top_p_comes_after_top_k_and_temperature);
  CLAIM (a_seed_draws_the_same_everywhere);
  CLAIM (logits_that_are_no_numbers_are_errors);
  CLAIM (everything_suppressed_is_an_error);
  CLAIM (extreme_settings_draw_something_likely);
  CLAIM (a_vocabulary_of_one_always_gives_it);
  CLAIM (bad_settings_are_refused_by_name);
  return g_test_run ();
}
