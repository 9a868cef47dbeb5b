/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mel.c against WhisperFeatureExtractor (tests/core/data/make-media.py), and
 * what streaming must not change.
 */
#include "mel.h"

#include "media-data.h"

#define N_MEL 128

/* All frames of a clip, [frames, N_MEL], pushed `step` samples at a time. */
static float *
transform (QomniMel * mel, const float *samples, size_t n, size_t step,
    int64_t * ret_n)
{
  float *frames = g_new0 (float, (n / 160 + 3) * N_MEL);
  int64_t count = 0;

  while (n > 0) {
    size_t used = qomni_mel_push (mel, samples, MIN (n, step));

    g_assert_cmpuint (used, >, 0);
    samples += used;
    n -= used;
    while (qomni_mel_next (mel, frames + count * N_MEL))
      count++;
  }
  qomni_mel_flush (mel);
  while (qomni_mel_next (mel, frames + count * N_MEL))
    count++;
  qomni_mel_reset (mel);
  *ret_n = count;
  return frames;
}

static void
normalize_clip (float *frames, int64_t n)
{
  float max = -INFINITY;

  for (int64_t i = 0; i < n * N_MEL; i++)
    max = fmaxf (max, frames[i]);
  qomni_mel_normalize (frames, (size_t) (n * N_MEL), max);
}

static void
features_are_those_of_whispers_extractor (void)
{
  static const char *const names[] = {
    "shortest", "reflected", "tone-and-silence", "click-behind-the-last-frame",
    "pcm", "unpadded"
  };
  g_auto (Tensors) sounds = core_data ("sounds.safetensors");
  g_autoptr (QomniMel) mel = qomni_mel_new (N_MEL);

  for (size_t i = 0; i < G_N_ELEMENTS (names); i++) {
    g_autofree char *in = g_strconcat (names[i], ".samples", NULL);
    g_autofree char *out = g_strconcat (names[i], ".features", NULL);
    const QomniTensorInfo *si, *fi;
    const float *samples = tensors_get (&sounds, in, &si);
    const float *want = tensors_get (&sounds, out, &fi);
    g_autofree float *got = NULL;
    double worst = 0;
    int64_t n;

    got = transform (mel, samples, (size_t) si->dims[0], SIZE_MAX, &n);
    g_assert_cmpint (fi->dims[0], ==, N_MEL);
    g_assert_cmpint (n, ==, fi->dims[1]);
    normalize_clip (got, n);
    for (int64_t t = 0; t < n; t++)
      for (int m = 0; m < N_MEL; m++)
        worst = fmax (worst, fabs (got[t * N_MEL + m] - want[m * n + t]));
    g_test_message ("%s: %.2g", names[i], worst);
    g_assert_cmpfloat (worst, <=, 1e-4);
  }
}

static float *
noise (GRand * rand, size_t n)
{
  float *x = g_new (float, n + 1);

  for (size_t i = 0; i < n; i++)
    x[i] = (float) g_rand_double_range (rand, -1, 1);
  return x;
}

static void
any_split_gives_the_same_frames (void)
{
  static const size_t lengths[] = { 1, 200, 201, 359, 360, 400, 16000, 33333 };
  static const size_t steps[] = { 1, 7, 159, 160, 201, 4096, 5000 };
  g_autoptr (GRand) rand = g_rand_new_with_seed (1);
  g_autoptr (QomniMel) mel = qomni_mel_new (N_MEL);

  for (size_t i = 0; i < G_N_ELEMENTS (lengths); i++) {
    g_autofree float *x = noise (rand, lengths[i]);
    int64_t n;
    g_autofree float *want = transform (mel, x, lengths[i], SIZE_MAX, &n);

    g_assert_cmpint (n, ==, lengths[i] <= 200 ? 2 : lengths[i] / 160);
    for (size_t j = 0; j < G_N_ELEMENTS (steps); j++) {
      int64_t n_got;
      g_autofree float *got = transform (mel, x, lengths[i], steps[j], &n_got);

      g_assert_cmpmem (got, n_got * N_MEL * 4, want, n * N_MEL * 4);
    }
  }
}

static void
frames_come_as_soon_as_their_samples_are_in (void)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (2);
  g_autoptr (QomniMel) mel = qomni_mel_new (N_MEL);
  g_autofree float *x = noise (rand, 2000);
  float frame[N_MEL];

  for (int64_t i = 0, n = 0; i < 2000; i++) {
    g_assert_cmpuint (qomni_mel_push (mel, x + i, 1), ==, 1);
    g_assert_cmpint (qomni_mel_n_samples (mel), ==, i + 1);
    while (qomni_mel_next (mel, frame))
      n++;
    /* Frame t ends 200 samples behind its centre, 160 t. */
    g_assert_cmpint (n, ==, i + 1 < 201 ? 0 : (i + 1 - 200) / 160 + 1);
  }
}

static void
a_full_buffer_takes_nothing_until_frames_are_fetched (void)
{
  g_autoptr (QomniMel) mel = qomni_mel_new (N_MEL);
  g_autofree float *x = g_new0 (float, 100000);
  float frame[N_MEL];
  size_t n = qomni_mel_push (mel, x, 100000);

  g_assert_cmpuint (n, <, 100000);
  g_assert_cmpuint (qomni_mel_push (mel, x, 1), ==, 0);
  while (qomni_mel_next (mel, frame));
  g_assert_cmpuint (qomni_mel_push (mel, x, 1), ==, 1);
}

static void
no_samples_give_no_frames (void)
{
  g_autoptr (QomniMel) mel = qomni_mel_new (N_MEL);
  float frame[N_MEL];

  g_assert_false (qomni_mel_next (mel, frame));
  qomni_mel_flush (mel);
  g_assert_false (qomni_mel_next (mel, frame));
}

static void
non_finite_samples_count_as_zero (void)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (3);
  g_autoptr (QomniMel) mel = qomni_mel_new (N_MEL);
  g_autofree float *x = noise (rand, 1000), *got = NULL, *want = NULL;
  int64_t n, m;

  x[5] = x[300] = x[301] = 0;
  want = transform (mel, x, 1000, SIZE_MAX, &n);
  x[5] = NAN;
  x[300] = INFINITY;
  x[301] = -INFINITY;
  got = transform (mel, x, 1000, SIZE_MAX, &m);
  g_assert_cmpmem (got, m * N_MEL * 4, want, n * N_MEL * 4);
}

static void
any_finite_sample_gives_finite_frames (void)
{
  static const float values[] = { 1e30f, -3.4e38f, 1e-45f, 0 };
  g_autoptr (QomniMel) mel = qomni_mel_new (N_MEL);
  g_autofree float *x = g_new (float, 800);

  for (size_t i = 0; i < G_N_ELEMENTS (values); i++) {
    g_autofree float *got = NULL;
    int64_t n;

    for (int j = 0; j < 800; j++)
      x[j] = j % 3 == 0 ? values[i] : -values[i];
    got = transform (mel, x, 800, SIZE_MAX, &n);
    normalize_clip (got, n);
    for (int64_t j = 0; j < n * N_MEL; j++)
      g_assert_true (isfinite (got[j]));
  }
}

static void
other_numbers_of_bins_work (void)
{
  static const int counts[] = { 1, 2, 80, 201, 1000 };
  g_autoptr (GRand) rand = g_rand_new_with_seed (4);
  g_autofree float *x = noise (rand, 400);

  for (size_t i = 0; i < G_N_ELEMENTS (counts); i++) {
    g_autoptr (QomniMel) mel = qomni_mel_new (counts[i]);
    g_autofree float *frame = g_new (float, counts[i]);

    g_assert_cmpuint (qomni_mel_push (mel, x, 400), ==, 400);
    g_assert_true (qomni_mel_next (mel, frame));
    for (int m = 0; m < counts[i]; m++)
      g_assert_true (isfinite (frame[m]));
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define CLAIM(name) g_test_add_func ("/mel/" #name, name)
  CLAIM (features_are_those_of_whispers_extractor);
  CLAIM (any_split_gives_the_same_frames);
  CLAIM (frames_come_as_soon_as_their_samples_are_in);
  CLAIM (a_full_buffer_takes_nothing_until_frames_are_fetched);
  CLAIM (no_samples_give_no_frames);
  CLAIM (non_finite_samples_count_as_zero);
  CLAIM (any_finite_sample_gives_finite_frames);
  CLAIM (other_numbers_of_bins_work);
  return g_test_run ();
}
