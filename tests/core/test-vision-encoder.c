/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * vision-encoder.c against the stages of the parity fixtures, and what clips,
 * slices and odd pictures promise.
 */
#include "vision-encoder.h"

#include "media-data.h"

static QomniVisionEncoder *
new_encoder (QomniModel * model, int64_t min_pixels, int64_t max_pixels,
    QomniProbe * probe)
{
  const QomniVisionEncoderParams params = {.min_pixels = min_pixels,
    .max_pixels = max_pixels,.probe = probe
  };
  g_autoptr (GError) error = NULL;
  QomniVisionEncoder *v = qomni_vision_encoder_new (model, &params, NULL,
      &error);

  g_assert_no_error (error);
  return v;
}

static void
begin (QomniVisionEncoder * v, QomniModality modality)
{
  g_autoptr (GError) error = NULL;

  qomni_vision_encoder_begin (v, modality, 1, &error);
  g_assert_no_error (error);
}

static void
push (QomniVisionEncoder * v, const QomniImage * frame)
{
  g_autoptr (GError) error = NULL;

  qomni_vision_encoder_push (v, frame, &error);
  g_assert_no_error (error);
}

static void
flush (QomniVisionEncoder * v)
{
  g_autoptr (GError) error = NULL;

  qomni_vision_encoder_flush (v, &error);
  g_assert_no_error (error);
}

static QomniEmbeddings *
pull (QomniVisionEncoder * v)
{
  g_autoptr (GError) error = NULL;
  QomniEmbeddings *e = qomni_vision_encoder_pull (v, NULL, &error);

  g_assert_no_error (error);
  return e;
}

static QomniEmbeddings *
encode_image (QomniVisionEncoder * v, const QomniImage * image)
{
  begin (v, QOMNI_MODALITY_IMAGE);
  push (v, image);
  flush (v);
  return pull (v);
}

/* RGB noise; g_free (data). */
static QomniImage
noise (guint32 seed, int width, int height)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (seed);
  size_t n = (size_t) width * (size_t) height * 3;
  uint8_t *data = g_malloc (n);

  for (size_t i = 0; i < n; i++)
    data[i] = (uint8_t) g_rand_int (rand);
  return (QomniImage) { data, width, height, (size_t) width * 3, 3 };
}

static bool
same_data (const QomniEmbeddings * a, const QomniEmbeddings * b)
{
  return a->n_tokens == b->n_tokens && a->n_levels == b->n_levels
      && memcmp (a->data, b->data, sizeof (float)
      * (size_t) (a->n_tokens * a->n_levels * a->width)) == 0;
}

static void
check_stages (QomniProbe * probe, const char *model, const char *name)
{
  g_auto (Tensors) stages = tensors_open (fixture_path (model, "cases", name,
          "stages.safetensors", NULL));

  g_test_message ("%s/%s", model, name);
  check_stage (probe, &stages, "vision.pixels", 1e-6, INFINITY);
  check_stage (probe, &stages, "vision.embeddings", INFINITY, 1e-4);
  check_stage (probe, &stages, "vision.deepstack.0", INFINITY, 1e-4);
  check_stage (probe, &stages, "vision.deepstack.1", INFINITY, 1e-4);
  check_stage (probe, &stages, "vision.deepstack.2", INFINITY, 1e-4);
}

static void
images_give_the_stages_of_the_reference (void)
{
  static const struct
  {
    const char *model, *name, *picture;
  } cases[] = {
    {"tiny-a", "image-odd", "i51x37.in"},
    {"tiny-b", "image-rgba", "irgba.in"},
    {"tiny-c", "image-gray", "igray.in"},
  };
  g_auto (Tensors) pictures = core_data ("pictures.safetensors");

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autoptr (QomniModel) model = open_model (cases[i].model);
    g_autoptr (QomniProbe) probe = qomni_probe_new ();
    g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, probe);
    const QomniTensorInfo *t;
    const uint8_t *data = tensors_get (&pictures, cases[i].picture, &t);
    const QomniImage image = { data, (int) t->dims[1], (int) t->dims[0],
      (size_t) (t->dims[1] * t->dims[2]), (int) t->dims[2]
    };
    g_autoptr (QomniEmbeddings) e = encode_image (v, &image);

    g_assert_nonnull (e);
    check_stages (probe, cases[i].model, cases[i].name);
  }
}

/* The frames that rows [slices * h * w, 3, 2, 16, 16] of patches were cut from,
 * RGB, two a slice. */
static uint8_t *
frames_of_patches (const float *x, int slices, int h, int w)
{
  uint8_t *frames = g_malloc ((size_t) slices * 2 * h * w * 16 * 16 * 3);

  for (int s = 0; s < slices; s++)
    for (int p = 0; p < h * w; p++) {
      int token = p / 4, row = token / (w / 2) * 2 + p % 4 / 2;
      int column = token % (w / 2) * 2 + p % 2;

      for (int c = 0; c < 3; c++)
        for (int f = 0; f < 2; f++)
          for (int i = 0; i < 256; i++, x++) {
            size_t line = (size_t) ((s * 2 + f) * h + row) * 16 + i / 16;

            frames[(line * w * 16 + column * 16 + i % 16) * 3 + c] =
                (uint8_t) lrintf ((*x + 1) * 127.5f);
          }
    }
  return frames;
}

static void
videos_give_the_stages_of_the_reference (void)
{
  static const struct
  {
    const char *model, *name;
    QomniModality modality;
    int slices, h, w;
  } cases[] = {
    {"tiny-a", "video-sound", QOMNI_MODALITY_VIDEO, 2, 4, 4},
    {"tiny-a", "video-29.97fps", QOMNI_MODALITY_VIDEO, 3, 2, 2},
    {"tiny-b", "video-sound", QOMNI_MODALITY_VIDEO, 3, 4, 4},
    {"tiny-thinking", "image-wide", QOMNI_MODALITY_IMAGE, 1, 4, 6},
  };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    const int w = cases[i].w * 16, h = cases[i].h * 16;
    const int n = cases[i].modality == QOMNI_MODALITY_IMAGE ? 1
        : cases[i].slices * 2;
    g_auto (Tensors) stages = tensors_open (fixture_path (cases[i].model,
            "cases", cases[i].name, "stages.safetensors", NULL));
    g_autoptr (QomniModel) model = open_model (cases[i].model);
    g_autoptr (QomniProbe) probe = qomni_probe_new ();
    /* The frames have been resized already. */
    g_autoptr (QomniVisionEncoder) v = new_encoder (model, w * h, w * h, probe);
    const QomniTensorInfo *info;
    const float *pixels = tensors_get (&stages, "vision.pixels", &info);
    g_autofree uint8_t *frames = NULL;

    g_assert_cmpint (info->dims[0], ==, cases[i].slices * cases[i].h
        * cases[i].w);
    frames = frames_of_patches (pixels, cases[i].slices, cases[i].h,
        cases[i].w);
    begin (v, cases[i].modality);
    for (int f = 0; f < n; f++)
      push (v, &(QomniImage) {frames + (size_t) f * w * h * 3, w, h,
            (size_t) w * 3, 3});
    flush (v);
    for (int s = 0; s < cases[i].slices; s++) {
      g_autoptr (QomniEmbeddings) e = pull (v);

      g_assert_nonnull (e);
      g_assert_cmpint (e->last, ==, s == cases[i].slices - 1);
    }
    g_assert_null (pull (v));
    check_stages (probe, cases[i].model, cases[i].name);
  }
}

static void
an_image_is_a_slice_of_its_own (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, NULL);
  const QomniImage image = noise (1, 100, 130);
  g_autoptr (QomniEmbeddings) e = NULL;

  begin (v, QOMNI_MODALITY_IMAGE);
  push (v, &image);
  e = pull (v);
  g_assert_nonnull (e);
  flush (v);
  g_assert_null (pull (v));
  g_assert_cmpint (e->modality, ==, QOMNI_MODALITY_IMAGE);
  g_assert_true (e->last);
  g_assert_cmpint (e->grid_t, ==, 1);
  g_assert_cmpint (e->grid_h, ==, 4);
  g_assert_cmpint (e->grid_w, ==, 3);
  g_assert_cmpint (e->n_tokens, ==, 12);
  g_assert_cmpint (e->n_levels, ==, 4);
  g_assert_cmpint (e->width, ==, 48);
  g_assert_cmpint (e->start, ==, 0);
  g_free ((void *) image.data);
}

static void
slices_tile_the_clip (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 4096, 4096, NULL);
  const QomniImage image = noise (2, 64, 64);
  g_autoptr (GError) error = NULL;

  for (uint64_t clip = 0; clip < 2; clip++) {
    qomni_vision_encoder_begin (v, QOMNI_MODALITY_VIDEO, 0.75, &error);
    g_assert_no_error (error);
    for (int i = 0; i < 5; i++)
      push (v, &image);
    flush (v);
    for (int i = 0; i < 3; i++) {
      g_autoptr (QomniEmbeddings) e = pull (v);

      g_assert_cmpint (e->modality, ==, QOMNI_MODALITY_VIDEO);
      g_assert_cmpuint (e->clip, ==, clip);
      g_assert_cmpint (e->start, ==, i * 750000000);
      g_assert_cmpint (e->duration, ==, 750000000);
      g_assert_cmpfloat (e->seconds_per_grid, ==, 0.75);
      g_assert_cmpint (e->last, ==, i == 2);
    }
    g_assert_null (pull (v));
  }
  g_free ((void *) image.data);
}

static void
a_slice_comes_with_its_second_frame (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 4096, 4096, NULL);
  const QomniImage image = noise (3, 64, 64);
  g_autoptr (QomniEmbeddings) first = NULL, second = NULL;

  begin (v, QOMNI_MODALITY_VIDEO);
  push (v, &image);
  g_assert_null (pull (v));
  push (v, &image);
  first = pull (v);
  g_assert_nonnull (first);
  g_assert_false (first->last);
  push (v, &image);
  g_assert_null (pull (v));
  flush (v);
  second = pull (v);
  g_assert_nonnull (second);
  g_assert_true (second->last);
  g_free ((void *) image.data);
}

static void
a_lone_frame_is_paired_with_itself (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 4096, 4096, NULL);
  const QomniImage a = noise (4, 64, 64), b = noise (5, 64, 64);
  g_autoptr (QomniEmbeddings) ab = NULL, lone = NULL, bb = NULL, image = NULL;

  begin (v, QOMNI_MODALITY_VIDEO);
  push (v, &a);
  push (v, &b);
  push (v, &b);
  flush (v);
  ab = pull (v);
  lone = pull (v);
  begin (v, QOMNI_MODALITY_VIDEO);
  push (v, &b);
  push (v, &b);
  flush (v);
  bb = pull (v);
  image = encode_image (v, &b);
  g_assert_false (same_data (ab, lone));
  g_assert_true (same_data (lone, bb));
  g_assert_true (same_data (lone, image));
  g_free ((void *) a.data);
  g_free ((void *) b.data);
}

static void
frames_of_another_size_get_the_grid_of_the_first (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 1024, 65536, NULL);
  const QomniImage a = noise (6, 96, 64), b = noise (7, 33, 200);
  g_autoptr (QomniEmbeddings) first = NULL, second = NULL, next_clip = NULL;

  begin (v, QOMNI_MODALITY_VIDEO);
  push (v, &a);
  push (v, &b);
  push (v, &b);
  flush (v);
  first = pull (v);
  second = pull (v);
  g_assert_cmpint (first->grid_h, ==, 2);
  g_assert_cmpint (first->grid_w, ==, 3);
  g_assert_cmpint (second->grid_h, ==, 2);
  g_assert_cmpint (second->grid_w, ==, 3);
  next_clip = encode_image (v, &b);
  g_assert_cmpint (next_clip->grid_h, ==, 6);
  g_assert_cmpint (next_clip->grid_w, ==, 1);
  g_free ((void *) a.data);
  g_free ((void *) b.data);
}

/* 1280 patches are more than are computed at a time. */
static void
large_pictures_give_the_embeddings_of_the_reference (void)
{
  static const int64_t tokens[] = { 0, 200, 319 };
  g_autoptr (QomniModel) model = open_model ("tiny-c");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 1024, 1 << 20, NULL);
  g_auto (Tensors) pictures = core_data ("pictures.safetensors");
  const QomniTensorInfo *info;
  const float *want = tensors_get (&pictures, "large.embeddings", &info);
  g_autofree uint8_t *data = g_malloc (640 * 512 * 3);
  g_autoptr (QomniEmbeddings) e = NULL;

  for (int y = 0, i = 0; y < 512; y++)
    for (int x = 0; x < 640; x++)
      for (int c = 0; c < 3; c++)
        data[i++] = (uint8_t) (x * x / 7 + y * 13 + x * y / 50 + c * 80);
  e = encode_image (v, &(QomniImage) {data, 640, 512, 640 * 3, 3});
  g_assert_cmpint (e->n_tokens, ==, 320);
  g_assert_cmpint (e->width, ==, info->dims[1]);
  for (size_t i = 0; i < G_N_ELEMENTS (tokens); i++)
    g_assert_cmpfloat (relative_rms (e->data + tokens[i] * e->n_levels
            * e->width, want + i * (size_t) e->width, (size_t) e->width), <=,
        1e-4);
}

static void
the_smallest_and_longest_pictures_are_accepted (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, NULL);
  const uint8_t dot = 7;
  const QomniImage bar = noise (9, 20, 4000);
  g_autoptr (QomniEmbeddings) small = NULL, lengthy = NULL;

  small = encode_image (v, &(QomniImage) {&dot, 1, 1, 1, 1});
  g_assert_cmpint (small->n_tokens, ==, 4);
  lengthy = encode_image (v, &bar);
  g_assert_cmpint (lengthy->grid_h, ==, 125);
  g_assert_cmpint (lengthy->grid_w, ==, 1);
  g_free ((void *) bar.data);
}

static void
expect_refusal (QomniVisionEncoder * v, const QomniImage * image, int code,
    const char *text)
{
  g_autoptr (GError) error = NULL;

  g_assert_false (qomni_vision_encoder_push (v, image, &error));
  g_assert_error (error, QOMNI_ERROR, code);
  if (strstr (error->message, text) == NULL)
    g_error ("'%s' does not say '%s'", error->message, text);
}

static void
unusable_frames_are_refused_and_change_nothing (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, NULL);
  const QomniImage image = noise (10, 64, 64);
  QomniImage bad = image;
  g_autoptr (QomniEmbeddings) got = NULL, want = encode_image (v, &image);

  expect_refusal (v, &image, QOMNI_ERROR_INPUT, "outside a clip");
  begin (v, QOMNI_MODALITY_IMAGE);
  bad.n_channels = 2;
  expect_refusal (v, &bad, QOMNI_ERROR_INPUT, "2 channels");
  bad = image;
  bad.stride = 191;
  expect_refusal (v, &bad, QOMNI_ERROR_INPUT, "191");
  bad = image;
  bad.data = NULL;
  expect_refusal (v, &bad, QOMNI_ERROR_INPUT, "64x64");
  bad = image;
  bad.height = 0;
  expect_refusal (v, &bad, QOMNI_ERROR_LIMIT, "64x0");
  bad.height = INT_MAX;
  expect_refusal (v, &bad, QOMNI_ERROR_LIMIT, "65535");
  bad = image;
  bad.width = 1;
  bad.height = 201;
  expect_refusal (v, &bad, QOMNI_ERROR_INPUT, "1x201");
  push (v, &image);
  expect_refusal (v, &image, QOMNI_ERROR_INPUT, "second frame");
  flush (v);
  got = pull (v);
  g_assert_true (same_data (got, want));
  g_free ((void *) image.data);
}

static void
clips_must_be_flushed_and_have_a_time (void)
{
  static const double bad[] = { 0, -1, NAN, INFINITY };
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, NULL);

  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++) {
    g_autoptr (GError) error = NULL;

    g_assert_false (qomni_vision_encoder_begin (v, QOMNI_MODALITY_VIDEO, bad[i],
            &error));
    g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_INPUT);
  }
  for (int i = 0; i < 2; i++) {
    g_autoptr (GError) error = NULL;
    bool ok = qomni_vision_encoder_begin (v, QOMNI_MODALITY_VIDEO, 1e300,
        &error);

    g_assert_cmpint (ok, ==, i == 0);
  }
  flush (v);
  g_assert_null (pull (v));
}

static void
times_beyond_the_clock_are_clamped (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 4096, 4096, NULL);
  const QomniImage image = noise (11, 64, 64);
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniEmbeddings) first = NULL, second = NULL;

  qomni_vision_encoder_begin (v, QOMNI_MODALITY_VIDEO, 1e300, &error);
  for (int i = 0; i < 4; i++)
    push (v, &image);
  flush (v);
  first = pull (v);
  second = pull (v);
  g_assert_cmpint (first->start, ==, 0);
  g_assert_cmpint (second->start, ==, INT64_MAX);
  g_free ((void *) image.data);
}

static void
bounds_that_contradict_are_refused (void)
{
  static const int64_t bad[][2] = { {4096, 1024}, {-1, 0}, {0, -5} };
  g_autoptr (QomniModel) model = open_model ("tiny-a");

  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++) {
    const QomniVisionEncoderParams params = {.min_pixels = bad[i][0],
      .max_pixels = bad[i][1]
    };
    g_autoptr (GError) error = NULL;

    g_assert_null (qomni_vision_encoder_new (model, &params, NULL, &error));
    g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_SETTINGS);
  }
}

static void
images_and_videos_have_bounds_of_their_own (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, NULL);
  g_autoptr (QomniVisionEncoder) capped = new_encoder (model, 0, 4096, NULL);
  const QomniImage image = noise (12, 64, 64);
  g_autoptr (QomniEmbeddings) still = encode_image (v, &image), moving = NULL;
  g_autoptr (QomniEmbeddings) small = NULL;

  g_assert_cmpint (still->n_tokens, ==, 4);
  begin (v, QOMNI_MODALITY_VIDEO);
  push (v, &image);
  flush (v);
  moving = pull (v);
  /* At least 131072 pixels: 384 x 384. */
  g_assert_cmpint (moving->n_tokens, ==, 144);

  begin (capped, QOMNI_MODALITY_VIDEO);
  push (capped, &image);
  flush (capped);
  small = pull (capped);
  g_assert_cmpint (small->n_tokens, ==, 4);
  g_free ((void *) image.data);
}

static void
reset_forgets_the_open_clip (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 4096, 4096, NULL);
  const QomniImage a = noise (13, 64, 64), b = noise (14, 32, 128);
  g_autoptr (QomniEmbeddings) want = encode_image (v, &b), got = NULL;

  begin (v, QOMNI_MODALITY_VIDEO);
  for (int i = 0; i < 3; i++)
    push (v, &a);
  qomni_vision_encoder_reset (v);
  g_assert_null (pull (v));
  got = encode_image (v, &b);
  g_assert_true (same_data (got, want));
  g_assert_cmpuint (got->clip, ==, 2);
  g_free ((void *) a.data);
  g_free ((void *) b.data);
}

static void
a_cancelled_slice_can_be_pulled_again (void)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, NULL);
  g_autoptr (GCancellable) cancellable = g_cancellable_new ();
  const QomniImage image = noise (15, 64, 64);
  g_autoptr (QomniEmbeddings) want = encode_image (v, &image), got = NULL;
  g_autoptr (GError) error = NULL;

  begin (v, QOMNI_MODALITY_IMAGE);
  push (v, &image);
  flush (v);
  g_cancellable_cancel (cancellable);
  g_assert_null (qomni_vision_encoder_pull (v, cancellable, &error));
  g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
  got = pull (v);
  g_assert_true (same_data (got, want));
  g_free ((void *) image.data);
}

static void
expect_numeric_error (const char *tensor, const char *text)
{
  g_autoptr (QomniModel) model = open_poisoned_model (tensor);
  g_autoptr (QomniVisionEncoder) v = new_encoder (model, 0, 0, NULL);
  const QomniImage image = noise (16, 64, 64);
  g_autoptr (GError) error = NULL;

  begin (v, QOMNI_MODALITY_IMAGE);
  push (v, &image);
  g_assert_null (qomni_vision_encoder_pull (v, NULL, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_NUMERIC);
  g_assert_nonnull (strstr (error->message, text));
  g_free ((void *) image.data);
}

static void
non_finite_embeddings_name_their_stage (void)
{
  expect_numeric_error ("thinker.visual.merger.mlp.2.bias",
      "vision encoder: non-finite values in the embeddings of slice 0");
  expect_numeric_error ("thinker.visual.merger_list.1.mlp.0.bias",
      "vision encoder: non-finite values in DeepStack level 1 of slice 0");
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define CLAIM(name) g_test_add_func ("/vision-encoder/" #name, name)
  CLAIM (images_give_the_stages_of_the_reference);
  CLAIM (videos_give_the_stages_of_the_reference);
  CLAIM (an_image_is_a_slice_of_its_own);
  CLAIM (slices_tile_the_clip);
  CLAIM (a_slice_comes_with_its_second_frame);
  CLAIM (a_lone_frame_is_paired_with_itself);
  CLAIM (frames_of_another_size_get_the_grid_of_the_first);
  CLAIM (large_pictures_give_the_embeddings_of_the_reference);
  CLAIM (the_smallest_and_longest_pictures_are_accepted);
  CLAIM (unusable_frames_are_refused_and_change_nothing);
  CLAIM (clips_must_be_flushed_and_have_a_time);
  CLAIM (times_beyond_the_clock_are_clamped);
  CLAIM (bounds_that_contradict_are_refused);
  CLAIM (images_and_videos_have_bounds_of_their_own);
  CLAIM (reset_forgets_the_open_clip);
  CLAIM (a_cancelled_slice_can_be_pulled_again);
  CLAIM (non_finite_embeddings_name_their_stage);
  return g_test_run ();
}
