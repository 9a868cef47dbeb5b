/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * audio-encoder.c against the stages of the parity fixtures, and what
 * streaming, windows and clips promise.
 */
#include "audio-encoder.h"

#include "media-data.h"

static QomniAudioEncoder *
new_encoder (QomniModel * model, double block_seconds, bool live,
    QomniProbe * probe)
{
  const QomniAudioEncoderParams params = {.block_seconds = block_seconds,
    .live = live,.probe = probe
  };
  g_autoptr (GError) error = NULL;
  QomniAudioEncoder *e = qomni_audio_encoder_new (model, &params, NULL, &error);

  g_assert_no_error (error);
  return e;
}

static void
push (QomniAudioEncoder * e, const float *samples, size_t n)
{
  g_autoptr (GError) error = NULL;

  qomni_audio_encoder_push (e, samples, n, &error);
  g_assert_no_error (error);
}

static void
flush (QomniAudioEncoder * e)
{
  g_autoptr (GError) error = NULL;

  qomni_audio_encoder_flush (e, &error);
  g_assert_no_error (error);
}

/* NULL when there is no block yet. */
static QomniEmbeddings *
pull (QomniAudioEncoder * e)
{
  g_autoptr (GError) error = NULL;
  QomniEmbeddings *block = qomni_audio_encoder_pull (e, NULL, &error);

  g_assert_no_error (error);
  return block;
}

static GPtrArray *
pull_all (QomniAudioEncoder * e)
{
  GPtrArray *blocks =
      g_ptr_array_new_with_free_func ((GDestroyNotify) qomni_embeddings_unref);
  QomniEmbeddings *block;

  while ((block = pull (e)) != NULL)
    g_ptr_array_add (blocks, block);
  return blocks;
}

/* The whole clip at once. */
static GPtrArray *
encode (QomniAudioEncoder * e, const float *samples, size_t n)
{
  push (e, samples, n);
  flush (e);
  return pull_all (e);
}

static bool
same_data (const QomniEmbeddings * a, const QomniEmbeddings * b)
{
  return a->n_tokens == b->n_tokens && a->width == b->width
      && memcmp (a->data, b->data,
      (size_t) (a->n_tokens * a->width) * sizeof (float)) == 0;
}

static void
assert_same_blocks (GPtrArray * got, GPtrArray * want)
{
  g_assert_cmpuint (got->len, ==, want->len);
  for (guint i = 0; i < want->len; i++) {
    const QomniEmbeddings *a = got->pdata[i], *b = want->pdata[i];

    g_assert_true (same_data (a, b));
    g_assert_cmpint (a->start, ==, b->start);
    g_assert_cmpint (a->duration, ==, b->duration);
    g_assert_cmpint (a->last, ==, b->last);
  }
}

/* Noise that is loud in its first half second. */
static float *
speech (guint32 seed, size_t n)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (seed);
  float *x = g_new (float, n + 1);

  for (size_t i = 0; i < n; i++)
    x[i] = (float) g_rand_double_range (rand, -1, 1)
        * (i < 8000 ? 0.9f : 0.05f);
  return x;
}

static void
token_count_follows_the_three_convolutions (void)
{
  for (int64_t f = 0; f <= 5000; f++) {
    int64_t n = f % 100;

    for (int i = 0; i < 3; i++)
      n = n == 0 ? 0 : (n - 1) / 2 + 1;
    g_assert_cmpint (qomni_audio_n_tokens (f), ==, 13 * (f / 100) + n);
    g_assert_cmpint (qomni_audio_n_tokens (f), ==,
        13 * (f / 100) + (f % 100 + 7) / 8);
  }
}

/* Pushes every WAV file of a conversation as a clip. False when there is
 * other sound, which this test cannot decode, or none. */
static bool
push_conversation (QomniAudioEncoder * e, const char *directory)
{
  g_autofree char *path = g_build_filename (directory, "conversation.json",
      NULL);
  g_autofree char *text = NULL;
  g_autoptr (GError) error = NULL;
  const char *at;
  bool any = false;

  g_file_get_contents (path, &text, NULL, &error);
  g_assert_no_error (error);
  if (strstr (text, "\"video\"") != NULL)
    return false;
  at = text;
  while ((at = strstr (at, "\"audio\": \"")) != NULL) {
    g_autofree char *file = NULL;
    g_autofree int16_t *samples = NULL;
    size_t n;

    at += strlen ("\"audio\": \"");
    file = g_strndup (at, strcspn (at, "\""));
    samples = read_wav (g_build_filename (directory, file, NULL), &n);
    qomni_audio_encoder_push_s16 (e, samples, n, &error);
    g_assert_no_error (error);
    flush (e);
    any = true;
  }
  return any;
}

static void
stages_are_those_of_the_reference (void)
{
  static const char *const models[] = { "tiny-a", "tiny-b", "tiny-c",
    "tiny-thinking"
  };
  int n_cases = 0;

  for (size_t i = 0; i < G_N_ELEMENTS (models); i++) {
    g_autoptr (QomniModel) model = open_model (models[i]);
    g_autofree char *cases = fixture_path (models[i], "cases", NULL);
    g_autoptr (GDir) dir = g_dir_open (cases, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name (dir)) != NULL) {
      g_autofree char *path = g_build_filename (cases, name, NULL);
      g_autoptr (QomniProbe) probe = qomni_probe_new ();
      g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, probe);
      g_autoptr (GPtrArray) blocks = NULL;
      g_auto (Tensors) stages = { 0 };

      if (!push_conversation (e, path))
        continue;
      g_test_message ("%s/%s", models[i], name);
      blocks = pull_all (e);
      stages = tensors_open (g_build_filename (path, "stages.safetensors",
              NULL));
      check_stage (probe, &stages, "audio.features", 1e-4, INFINITY);
      check_stage (probe, &stages, "audio.embeddings", INFINITY, 1e-4);
      n_cases++;
    }
  }
  g_assert_cmpint (n_cases, >=, 8);
}

static void
a_clip_shorter_than_a_chunk_is_not_padded (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  g_auto (Tensors) sounds = core_data ("sounds.safetensors");
  const QomniTensorInfo *si, *ei;
  const float *samples = tensors_get (&sounds, "unpadded.samples", &si);
  const float *want = tensors_get (&sounds, "unpadded.embeddings", &ei);
  g_autoptr (GPtrArray) blocks = encode (e, samples, (size_t) si->dims[0]);
  const QomniEmbeddings *b = blocks->pdata[0];

  g_assert_cmpint (b->n_tokens, ==, ei->dims[0]);
  g_assert_cmpint (b->width, ==, ei->dims[1]);
  g_assert_cmpfloat (relative_rms (b->data, want,
          (size_t) (b->n_tokens * b->width)), <=, 1e-4);
}

static void
any_split_gives_the_same_blocks (void)
{
  static const size_t steps[] = { 1, 160, 1000, 16001 };
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 1, false, NULL);
  const size_t n = 16000 * 2 + 4321;
  g_autofree float *x = speech (1, n);
  g_autoptr (GPtrArray) want = encode (e, x, n);

  g_assert_cmpuint (want->len, ==, 3);
  for (int live = 0; live < 2; live++) {
    for (size_t i = 0; i < G_N_ELEMENTS (steps); i++) {
      g_autoptr (QomniAudioEncoder) other = new_encoder (model, 1, live, NULL);
      g_autoptr (GPtrArray) got = pull_all (other);

      for (size_t at = 0; at < n; at += steps[i]) {
        QomniEmbeddings *block;

        push (other, x + at, MIN (steps[i], n - at));
        while ((block = pull (other)) != NULL)
          g_ptr_array_add (got, block);
      }
      flush (other);
      g_ptr_array_extend_and_steal (got, pull_all (other));
      /* The loudest frame is in the first block: live hears the same. */
      assert_same_blocks (got, want);
    }
  }
}

static void
s16_is_a_32768th (void)
{
  static const int16_t samples[] = { 0, 1, -1, 32767, -32768, 1234, -20000 };
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  g_autofree int16_t *x = g_new (int16_t, 3000);
  g_autofree float *y = g_new (float, 3000);
  g_autoptr (GPtrArray) a = NULL, b = NULL;
  g_autoptr (GError) error = NULL;

  for (int i = 0; i < 3000; i++) {
    x[i] = samples[i * 31 % 7];
    y[i] = x[i] / 32768.0f;
  }
  g_assert_true (qomni_audio_encoder_push_s16 (e, x, 3000, &error));
  flush (e);
  a = pull_all (e);
  b = encode (e, y, 3000);
  assert_same_blocks (a, b);
}

static void
tokens_do_not_see_beyond_their_window (void)
{
  /* 8 s, as published. */
  g_autoptr (QomniModel) model = open_model ("tiny-b");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  const size_t n = 16000 * 9, changed = 16000 * 81 / 10;
  g_autofree float *x = speech (2, n);
  g_autoptr (GPtrArray) a = encode (e, x, n), b = NULL;

  for (size_t i = changed; i < n; i++)
    x[i] = -0.5f * x[i];
  b = encode (e, x, n);

  g_assert_cmpuint (a->len, ==, 2);
  g_assert_cmpint (((QomniEmbeddings *) a->pdata[0])->n_tokens, ==, 104);
  g_assert_true (same_data (a->pdata[0], b->pdata[0]));
  g_assert_false (same_data (a->pdata[1], b->pdata[1]));
}

static void
tokens_see_all_of_their_window (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-b");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  const size_t n = 16000 * 8;
  g_autofree float *x = speech (3, n);
  g_autoptr (GPtrArray) a = encode (e, x, n), b = NULL;
  const QomniEmbeddings *first, *second;

  for (size_t i = 7 * 16000; i < n; i++)
    x[i] = 0;
  b = encode (e, x, n);
  first = a->pdata[0];
  second = b->pdata[0];
  g_assert_cmpuint (a->len, ==, 1);
  g_assert_true (memcmp (first->data, second->data,
          (size_t) first->width * sizeof (float)) != 0);
}

static void
blocks_tile_the_clip (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 2, false, NULL);
  const size_t n = 16000 * 5 + 333;
  g_autofree float *x = speech (4, n);
  g_autoptr (GPtrArray) blocks = encode (e, x, n);
  int64_t at = 0;

  g_assert_cmpuint (blocks->len, ==, 3);
  for (guint i = 0; i < blocks->len; i++) {
    const QomniEmbeddings *b = blocks->pdata[i];

    g_assert_cmpint (b->modality, ==, QOMNI_MODALITY_AUDIO);
    g_assert_cmpint (b->n_levels, ==, 1);
    g_assert_cmpuint (b->clip, ==, 0);
    g_assert_cmpint (b->start, ==, at);
    g_assert_cmpint (b->last, ==, i == 2);
    g_assert_cmpint (b->n_tokens, ==, i == 2 ? 14 : 26);
    at += b->duration;
  }
  g_assert_cmpint (at, ==, n * 62500);
}

static void
live_blocks_come_before_the_flush (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 1, true, NULL);
  g_autofree float *x = speech (5, 40000);
  g_autoptr (QomniEmbeddings) first = NULL, second = NULL, last = NULL;

  push (e, x, 16000);
  g_assert_null (pull (e));
  push (e, x + 16000, 200);
  first = pull (e);
  g_assert_nonnull (first);
  g_assert_false (first->last);
  g_assert_cmpint (first->n_tokens, ==, 13);
  g_assert_null (pull (e));
  push (e, x + 16200, 23800);
  second = pull (e);
  g_assert_nonnull (second);
  g_assert_cmpint (second->start, ==, 1000000000);
  g_assert_null (pull (e));
  flush (e);
  last = pull (e);
  g_assert_true (last->last);
  g_assert_cmpint (last->n_tokens, ==, 7);
  g_assert_null (pull (e));
}

static void
live_scales_by_what_was_heard_so_far (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 1, true, probe);
  g_autofree float *x = g_new0 (float, 32000);
  g_autoptr (GPtrArray) blocks = NULL;
  const float *features;
  int64_t dims[4];
  int n_dims;

  /* A whisper, then a shout: only then is silence at the floor of 80 dB. */
  x[8000] = 1e-4f;
  x[24000] = 1;
  blocks = encode (e, x, 32000);
  g_assert_cmpuint (blocks->len, ==, 2);
  features = qomni_probe_get (probe, "audio.features", &n_dims, dims);
  g_assert_cmpint (dims[1], ==, 200);
  g_assert_cmpfloat (features[0], ==, (-10 + 4) / 4.0f);
  g_assert_cmpfloat (features[199], >, (-10 + 4) / 4.0f);
}

static void
the_last_block_is_marked_when_it_is_full (void)
{
  for (int live = 0; live < 2; live++) {
    g_autoptr (QomniModel) model = open_model ("tiny-a");
    g_autoptr (QomniAudioEncoder) e = new_encoder (model, 1, live, NULL);
    /* 150 samples more do not make another frame. */
    g_autofree float *x = speech (6, 16150);
    g_autoptr (GPtrArray) blocks = encode (e, x, 16150);

    g_assert_cmpuint (blocks->len, ==, 1);
    g_assert_true (((QomniEmbeddings *) blocks->pdata[0])->last);
    g_assert_cmpint (((QomniEmbeddings *) blocks->pdata[0])->duration, ==,
        16150 * 62500);
  }
}

static void
one_sample_gives_a_token_and_none_gives_none (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  const float one = 0.5f;
  g_autoptr (GPtrArray) none = NULL, some = NULL;

  none = encode (e, NULL, 0);
  g_assert_cmpuint (none->len, ==, 0);
  some = encode (e, &one, 1);
  g_assert_cmpuint (some->len, ==, 1);
  g_assert_cmpint (((QomniEmbeddings *) some->pdata[0])->n_tokens, ==, 1);
  g_assert_cmpint (((QomniEmbeddings *) some->pdata[0])->duration, ==, 62500);
  g_assert_true (((QomniEmbeddings *) some->pdata[0])->last);
  g_assert_cmpuint (((QomniEmbeddings *) some->pdata[0])->clip, ==, 0);
}

static void
non_finite_samples_count_as_zero (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  g_autofree float *x = speech (7, 5000);
  g_autoptr (GPtrArray) a = NULL, b = NULL;

  x[10] = x[3000] = 0;
  a = encode (e, x, 5000);
  x[10] = NAN;
  x[3000] = -INFINITY;
  b = encode (e, x, 5000);
  assert_same_blocks (a, b);
}

static void
clips_may_queue_and_are_numbered (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  g_autofree float *x = speech (8, 20000);
  g_autoptr (GPtrArray) alone = encode (e, x, 20000);
  g_autoptr (GPtrArray) two = NULL;

  push (e, x, 20000);
  flush (e);
  two = encode (e, x, 20000);
  g_assert_cmpuint (two->len, ==, 2);
  for (guint i = 0; i < 2; i++) {
    g_assert_cmpuint (((QomniEmbeddings *) two->pdata[i])->clip, ==, i + 1);
    g_assert_true (same_data (two->pdata[i], alone->pdata[0]));
  }
}

static void
reset_forgets_the_open_clip (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 1, true, NULL);
  g_autoptr (QomniAudioEncoder) fresh = new_encoder (model, 1, true, NULL);
  g_autofree float *x = speech (9, 50000), *y = speech (10, 20000);
  g_autoptr (GPtrArray) got = NULL, want = encode (fresh, y, 20000);

  push (e, x, 50000);
  qomni_audio_encoder_reset (e);
  g_assert_null (pull (e));
  got = encode (e, y, 20000);
  assert_same_blocks (got, want);
  g_assert_cmpuint (((QomniEmbeddings *) got->pdata[0])->clip, ==, 1);
}

static void
a_cancelled_block_can_be_pulled_again (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, probe);
  g_autoptr (GCancellable) cancellable = g_cancellable_new ();
  g_autofree float *x = speech (11, 20000);
  g_autoptr (GPtrArray) want = encode (e, x, 20000), got = NULL;
  g_autoptr (GError) error = NULL;
  int64_t dims[4];
  int n_dims;

  push (e, x, 20000);
  flush (e);
  g_cancellable_cancel (cancellable);
  g_assert_null (qomni_audio_encoder_pull (e, cancellable, &error));
  g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
  got = pull_all (e);
  assert_same_blocks (got, want);
  qomni_probe_get (probe, "audio.features", &n_dims, dims);
  g_assert_cmpint (dims[1], ==, 250);
}

static void
block_lengths_are_whole_seconds_up_to_8 (void)
{
  static const double bad[] = { -1, 0.5, 1.5, 9, 1e300, NAN };
  g_autoptr (QomniModel) model = open_model ("tiny-a");

  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++) {
    const QomniAudioEncoderParams params = {.block_seconds = bad[i] };
    g_autoptr (GError) error = NULL;

    g_assert_null (qomni_audio_encoder_new (model, &params, NULL, &error));
    g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_SETTINGS);
  }
}

static void
non_finite_embeddings_are_an_error (void)
{
  g_autoptr (QomniModel) model =
      open_poisoned_model ("thinker.audio_tower.layers.1.fc1.bias");
  g_autoptr (QomniAudioEncoder) e = new_encoder (model, 0, false, NULL);
  g_autofree float *x = speech (12, 20000);
  g_autoptr (GError) error = NULL;

  push (e, x, 20000);
  flush (e);
  g_assert_null (qomni_audio_encoder_pull (e, NULL, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_NUMERIC);
  g_assert_nonnull (strstr (error->message, "audio encoder"));
  qomni_audio_encoder_reset (e);
  g_assert_null (pull (e));
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define CLAIM(name) g_test_add_func ("/audio-encoder/" #name, name)
  CLAIM (token_count_follows_the_three_convolutions);
  CLAIM (stages_are_those_of_the_reference);
  CLAIM (a_clip_shorter_than_a_chunk_is_not_padded);
  CLAIM (any_split_gives_the_same_blocks);
  CLAIM (s16_is_a_32768th);
  CLAIM (tokens_do_not_see_beyond_their_window);
  CLAIM (tokens_see_all_of_their_window);
  CLAIM (blocks_tile_the_clip);
  CLAIM (live_blocks_come_before_the_flush);
  CLAIM (live_scales_by_what_was_heard_so_far);
  CLAIM (the_last_block_is_marked_when_it_is_full);
  CLAIM (one_sample_gives_a_token_and_none_gives_none);
  CLAIM (non_finite_samples_count_as_zero);
  CLAIM (clips_may_queue_and_are_numbered);
  CLAIM (reset_forgets_the_open_clip);
  CLAIM (a_cancelled_block_can_be_pulled_again);
  CLAIM (block_lengths_are_whole_seconds_up_to_8);
  CLAIM (non_finite_embeddings_are_an_error);
  return g_test_run ();
}
