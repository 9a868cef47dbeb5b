/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Code2Wav against the reference's waveforms, and streaming against itself.
 */
#include "code2wav.h"

#include "speech.h"

/* Samples of codes [n, n_quantizers], pushed `split` at a time (0: any way). */
static float *
decode (QomniCode2Wav * c, const QomniConfig * config, const int32_t * codes,
    int n, int split, GRand * rand, size_t *ret_n)
{
  GArray *out = g_array_new (FALSE, FALSE, sizeof (float));
  g_autoptr (GError) error = NULL;

  qomni_code2wav_reset (c);
  for (int i = 0; i < n;) {
    int k = split > 0 ? split : g_rand_int_range (rand, 0, 14);
    const float *samples;
    size_t n_samples;

    k = MIN (k, n - i);
    qomni_code2wav_push (c, codes + i * config->code2wav.n_quantizers, k,
        &samples, &n_samples, &error);
    g_assert_no_error (error);
    g_array_append_vals (out, samples, (guint) n_samples);
    i += k;
  }
  *ret_n = out->len;
  return (float *) g_array_free (out, FALSE);
}

static int32_t *
random_codes (const QomniConfig * config, int n, guint32 seed)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (seed);
  size_t count = (size_t) (n * config->code2wav.n_quantizers);
  int32_t *codes = g_new (int32_t, count);

  for (size_t i = 0; i < count; i++)
    codes[i] =
        g_rand_int_range (rand, 0, (gint32) config->code2wav.codebook_size);
  return codes;
}

static size_t
expected_length (const QomniConfig * config, int n)
{
  int64_t samples = config->code2wav.samples_per_frame * n
      - config->code2wav.missing_samples;

  return n > 0 ? (size_t) samples : 0;
}

static QomniCode2Wav *
code2wav_new (QomniModel * model, int max_frames)
{
  g_autoptr (GError) error = NULL;
  QomniCode2Wav *c = qomni_code2wav_new (model, max_frames, NULL, &error);

  g_assert_no_error (error);
  return c;
}

/* --- the trimming rule ---------------------------------------------------- */

/* Full transposed convolution of kernel 2r and stride r, then r outputs cut on
 * both ends. x [n, c_in], w [c_in, c_out, 2r] as in a file. */
static float *
naive_transposed (const float *x, int n, int c_in, int c_out, int r,
    const float *w, const float *bias)
{
  g_autofree double *full = g_new0 (double, (n + 1) * r * c_out);
  float *out = g_new (float, MAX (1, (n - 1) * r * c_out));

  for (int t = 0; t < n; t++)
    for (int j = 0; j < 2 * r; j++)
      for (int o = 0; o < c_out; o++)
        for (int i = 0; i < c_in; i++)
          full[(t * r + j) * c_out + o] +=
              (double) x[t * c_in + i] * w[(i * c_out + o) * 2 * r + j];
  for (int t = 0; t < (n - 1) * r; t++)
    for (int o = 0; o < c_out; o++)
      out[t * c_out + o] = (float) (full[(t + r) * c_out + o] + bias[o]);
  return out;
}

static void
test_transposed (void)
{
  static const int sizes[][4] = {       /* n, c_in, c_out, r */
    {1, 1, 1, 2}, {2, 1, 1, 8}, {5, 1, 1, 3}, {4, 3, 2, 5}, {9, 7, 5, 4},
  };
  QkBackend *be = qk_cpu_backend_new (1, QK_CPU_BEST);
  QkStream *s = be->stream_new (be);
  g_autoptr (GRand) rand = g_rand_new_with_seed (7);

  for (size_t k = 0; k < G_N_ELEMENTS (sizes); k++) {
    int n = sizes[k][0], c_in = sizes[k][1], c_out = sizes[k][2];
    int r = sizes[k][3], n_out = (n - 1) * r * c_out;
    size_t n_w = (size_t) (2 * r * c_out * c_in);
    g_autofree float *x = g_new (float, n * c_in);
    g_autofree float *w = g_new (float, n_w), *permuted = g_new (float, n_w);
    g_autofree float *bias = g_new (float, c_out);
    g_autofree float *y = g_new (float, n_out + 1), *want = NULL;
    QkTensor t = { permuted, QK_F32, 3, {2 * r, c_out, c_in} };

    for (int i = 0; i < n * c_in; i++)
      x[i] = (float) g_rand_double_range (rand, -1, 1);
    for (int i = 0; i < c_out; i++)
      bias[i] = (float) g_rand_double_range (rand, -1, 1);
    for (int i = 0; i < c_in; i++)
      for (int o = 0; o < c_out; o++)
        for (int j = 0; j < 2 * r; j++)
          permuted[(j * c_out + o) * c_in + i] =
              w[(i * c_out + o) * 2 * r + j] =
              (float) g_rand_double_range (rand, -1, 1);

    want = naive_transposed (x, n, c_in, c_out, r, w, bias);
    y[n_out] = 42;
    s->ops->conv1d_transposed (s, y, x, n - 1, r, &t, bias);
    g_assert_cmpfloat (max_error (y, want, (size_t) n_out), <, 1e-5);
    g_assert_cmpfloat (y[n_out], ==, 42);
  }
  be->stream_free (s);
  be->free (be);
}

/* --- against the reference ------------------------------------------------ */

static void
compare_case (QomniModel * model, const char *file)
{
  const QomniConfig *config = qomni_model_config (model);
  Stages *stages = stages_open (file);
  const QomniTensorInfo *codes_info = NULL, *wave_info = NULL;
  g_autofree int64_t *codes = stages_get (stages, "codes", "I64", &codes_info);
  g_autofree float *wave = stages_get (stages, "waveform", "F32", &wave_info);

  if (codes != NULL && wave != NULL) {
    int groups = (int) codes_info->dims[0], n = (int) codes_info->dims[1];
    g_autofree int32_t *rows = g_new (int32_t, groups * n);
    g_autoptr (QomniCode2Wav) c = code2wav_new (model, n);
    g_autofree float *got = NULL;
    double error;
    size_t n_got;

    for (int g = 0; g < groups; g++)
      for (int i = 0; i < n; i++)
        rows[i * groups + g] = (int32_t) codes[g * n + i];
    got = decode (c, config, rows, n, n, NULL, &n_got);
    g_assert_cmpuint (n_got, ==, (size_t) wave_info->dims[0]);
    g_assert_cmpuint (n_got, ==, expected_length (config, n));
    error = max_error (got, wave, n_got);
    g_test_message ("%s: %d frames, largest error %.2g, rms %.2g", file, n,
        error, rms (wave, n_got));
    g_assert_cmpfloat (rms (wave, n_got), >, 1e-3);
    g_assert_cmpfloat (error, <, 2e-5);
  }
  stages_close (stages);
}

static void
test_reference (const void *data)
{
  g_autofree char *path = fixture_path (data);
  g_autofree char *cases = NULL;
  g_autoptr (QomniModel) model = NULL;
  g_autoptr (GDir) dir = NULL;
  const char *name;

  if (path == NULL)
    return;
  model = model_at (path);
  cases = g_build_filename (path, "cases", NULL);
  dir = g_dir_open (cases, 0, NULL);
  g_assert_nonnull (dir);
  while ((name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *file =
        g_build_filename (cases, name, "stages.safetensors", NULL);

    compare_case (model, file);
  }
}

/* tiny-a with the vocoder of data/code2wav-odd: other ratios, rates, heads and
 * window, so that nothing rests on the published numbers. */
static char *
odd_copy (void)
{
  static const char *const files[] = { "config.json", "model.safetensors" };
  g_autofree char *path = fixture_path ("tiny-a");
  g_autofree char *odd =
      fixture_path ("../../core/data/code2wav-odd");
  char *copy;

  if (path == NULL || odd == NULL)
    return NULL;
  copy = linked_copy (path);
  for (size_t i = 0; i < G_N_ELEMENTS (files); i++) {
    g_autofree char *from = g_build_filename (odd, files[i], NULL);
    g_autofree char *to = g_build_filename (copy, files[i], NULL);

    g_assert_cmpint (g_unlink (to), ==, 0);
    g_assert_cmpint (symlink (from, to), ==, 0);
  }
  return copy;
}

static void
test_odd_stages (void)
{
  char *path = odd_copy ();

  if (path == NULL)
    return;
  g_autofree char *file =
      fixture_path ("../../core/data/code2wav-odd/stages.safetensors");
  g_autoptr (QomniModel) model = model_at (path);

  g_assert_cmpint (qomni_model_config (model)->code2wav.samples_per_frame, ==,
      30);
  compare_case (model, file);
  remove_copy (path);
}

/* --- streaming ------------------------------------------------------------ */

static void
check_splits (const char *path)
{
  const int n = 75;             /* more than any window and any group */
  g_autoptr (QomniModel) model = model_at (path);
  const QomniConfig *config = qomni_model_config (model);
  g_autoptr (QomniCode2Wav) c = code2wav_new (model, n);
  g_autoptr (GRand) rand = g_rand_new_with_seed (3);
  g_autofree int32_t *codes = random_codes (config, n, 11);
  g_autofree float *whole = NULL;
  size_t n_whole, n_got;

  whole = decode (c, config, codes, n, n, NULL, &n_whole);
  g_assert_cmpuint (n_whole, ==, expected_length (config, n));
  for (int split = 0; split <= 17; split++) {
    g_autofree float *got =
        decode (c, config, codes, n, split, rand, &n_got);

    g_assert_cmpuint (n_got, ==, n_whole);
    g_assert_cmpfloat (max_error (got, whole, n_whole), <=, 1e-5);
  }
}

static void
test_any_split (const void *data)
{
  g_autofree char *path = fixture_path (data);

  if (path != NULL)
    check_splits (path);
}

static void
test_any_split_odd (void)
{
  char *path = odd_copy ();

  if (path == NULL)
    return;
  check_splits (path);
  remove_copy (path);
}

static void
test_published_lengths (void)
{
  g_autofree char *path = fixture_path ("tiny-a");

  if (path == NULL)
    return;
  g_autoptr (QomniModel) model = model_at (path);
  const QomniConfig *config = qomni_model_config (model);
  g_autoptr (QomniCode2Wav) c = code2wav_new (model, 1);
  g_autofree int32_t *codes = random_codes (config, 3, 1);
  g_autoptr (GError) error = NULL;
  static const size_t want[] = { 1365, 1920, 1920 };

  for (int i = 0; i < 3; i++) {
    const float *samples;
    size_t n;

    qomni_code2wav_push (c, codes + i * config->code2wav.n_quantizers, 1,
        &samples, &n, &error);
    g_assert_no_error (error);
    g_assert_cmpuint (n, ==, want[i]);
    for (size_t k = 0; k < n; k++)
      g_assert_cmpfloat (fabsf (samples[k]), <=, 1.0f);
  }
}

static void
test_bad_codes (void)
{
  g_autofree char *path = fixture_path ("tiny-a");

  if (path == NULL)
    return;
  g_autoptr (QomniModel) model = model_at (path);
  const QomniConfig *config = qomni_model_config (model);
  const int q = config->code2wav.n_quantizers;
  g_autoptr (QomniCode2Wav) c = code2wav_new (model, 4);
  g_autofree int32_t *codes = random_codes (config, 4, 5);
  g_autofree int32_t *bad = g_memdup2 (codes, 4 * q * sizeof (int32_t));
  g_autofree float *want = NULL;
  g_autoptr (GError) error = NULL;
  const int32_t wrong[] = { (int32_t) config->code2wav.codebook_size, -1 };
  const float *samples;
  size_t n, n_want;

  want = decode (c, config, codes, 4, 4, NULL, &n_want);
  qomni_code2wav_reset (c);
  qomni_code2wav_push (c, codes, 1, &samples, &n, &error);
  g_assert_no_error (error);
  for (size_t i = 0; i < G_N_ELEMENTS (wrong); i++) {
    bad[3 * q - 1] = wrong[i];
    g_assert_false (qomni_code2wav_push (c, bad, 4, &samples, &n, &error));
    g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_INPUT);
    g_assert_nonnull (strstr (error->message, "frame 2"));
    g_clear_error (&error);
  }
  g_assert_false (qomni_code2wav_push (c, codes, 5, &samples, &n, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_INPUT);
  g_clear_error (&error);

  /* as if nothing had been tried in between */
  qomni_code2wav_push (c, codes + q, 3, &samples, &n, &error);
  g_assert_no_error (error);
  g_assert_cmpfloat (max_error (samples, want + n_want - n, n), <=, 1e-5);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/code2wav/transposed_conv_is_the_full_one_trimmed",
      test_transposed);
  g_test_add_data_func ("/code2wav/waveform_is_the_references/tiny-a",
      "tiny-a", test_reference);
  g_test_add_data_func ("/code2wav/waveform_is_the_references/tiny-b",
      "tiny-b", test_reference);
  g_test_add_data_func ("/code2wav/waveform_is_the_references/tiny-c",
      "tiny-c", test_reference);
  g_test_add_func ("/code2wav/waveform_is_the_references/odd-stages",
      test_odd_stages);
  g_test_add_func ("/code2wav/any_split_gives_one_decode/odd-stages",
      test_any_split_odd);
  g_test_add_data_func ("/code2wav/any_split_gives_one_decode/tiny-a",
      "tiny-a", test_any_split);
  g_test_add_data_func ("/code2wav/any_split_gives_one_decode/tiny-b",
      "tiny-b", test_any_split);
  g_test_add_func ("/code2wav/first_frame_is_555_samples_shorter",
      test_published_lengths);
  g_test_add_func ("/code2wav/refused_codes_leave_no_trace", test_bad_codes);
  return g_test_run ();
}
