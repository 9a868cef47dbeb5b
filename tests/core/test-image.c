/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image.c against transformers' smart_resize and torchvision's resize: tables
 * of the parity fixtures and tests/core/data/make-media.py.
 */
#include "vision-encoder.h"

#include "media-data.h"

static JsonNode *
read_json (char *path)
{
  g_autoptr (JsonParser) parser = json_parser_new ();
  g_autoptr (GError) error = NULL;

  json_parser_load_from_file (parser, path, &error);
  g_assert_no_error (error);
  g_free (path);
  return json_parser_steal_root (parser);
}

static void
target_sizes_are_those_of_the_reference (void)
{
  g_autoptr (JsonNode) root = read_json (fixture_path ("resize.json", NULL));
  JsonObject *table = json_node_get_object (root);
  JsonArray *rows = json_object_get_array_member (table, "rows");
  int64_t factor = json_object_get_int_member (table, "factor");

  g_assert_cmpuint (json_array_get_length (rows), >, 20);
  for (guint i = 0; i < json_array_get_length (rows); i++) {
    JsonObject *row = json_array_get_object_element (rows, i);
    JsonNode *want = json_object_get_member (row, "resized");
    g_autoptr (GError) error = NULL;
    int64_t h = 0, w = 0;
    bool ok = qomni_smart_resize (json_object_get_int_member (row, "height"),
        json_object_get_int_member (row, "width"), factor,
        json_object_get_int_member (row, "min_pixels"),
        json_object_get_int_member (row, "max_pixels"), &h, &w, &error);

    if (!JSON_NODE_HOLDS_ARRAY (want)) {
      g_assert_false (ok);
      g_assert_nonnull (error);
      continue;
    }
    g_assert_no_error (error);
    g_assert_cmpint (h, ==,
        json_array_get_int_element (json_node_get_array (want), 0));
    g_assert_cmpint (w, ==,
        json_array_get_int_element (json_node_get_array (want), 1));
  }
}

static void
expect_size (int64_t h, int64_t w, int64_t want_h, int64_t want_w)
{
  g_autoptr (GError) error = NULL;
  int64_t got_h = 0, got_w = 0;

  qomni_smart_resize (h, w, 32, 3136, 12845056, &got_h, &got_w, &error);
  g_assert_no_error (error);
  g_assert_cmpint (got_h, ==, want_h);
  g_assert_cmpint (got_w, ==, want_w);
}

static void
halves_round_to_even_and_small_pictures_grow (void)
{
  expect_size (48, 48, 64, 64);
  expect_size (80, 80, 64, 64);
  expect_size (31, 31, 64, 64);
  expect_size (1, 1, 64, 64);
  expect_size (20, 4000, 32, 4000);
}

static void
expect_refusal (int64_t h, int64_t w, int64_t low, int code, const char *text)
{
  g_autoptr (GError) error = NULL;
  int64_t got_h = -1, got_w = -1;

  g_assert_false (qomni_smart_resize (h, w, 32, low, 1 << 20, &got_h, &got_w,
          &error));
  g_assert_error (error, QOMNI_ERROR, code);
  g_assert_nonnull (strstr (error->message, text));
  g_assert_cmpint (got_h, ==, -1);
  g_assert_cmpint (got_w, ==, -1);
}

static void
impossible_sizes_are_refused_by_name (void)
{
  expect_refusal (20, 4001, 3136, QOMNI_ERROR_INPUT, "4001x20");
  expect_refusal (4001, 20, 3136, QOMNI_ERROR_INPUT, "20x4001");
  expect_refusal (1, 65535, 3136, QOMNI_ERROR_INPUT, "65535x1");
  expect_refusal (0, 5, 3136, QOMNI_ERROR_LIMIT, "5x0");
  expect_refusal (-1, 5, 3136, QOMNI_ERROR_LIMIT, "5x-1");
  expect_refusal (65536, 65536, 3136, QOMNI_ERROR_LIMIT, "65536x65536");
  expect_refusal (INT64_MAX, INT64_MAX, 3136, QOMNI_ERROR_LIMIT, "65535");
  /* Nothing of 32 x 32 has room for 2^60 pixels. */
  expect_refusal (64, 64, (int64_t) 1 << 60, QOMNI_ERROR_LIMIT, "65535");
}

static void
check_resize (const QomniImage * in, const uint8_t * want, int w, int h)
{
  g_autofree uint8_t *got = g_malloc0 ((size_t) w * (size_t) h * 3);
  g_autoptr (GError) error = NULL;

  g_assert_true (qomni_resize_bicubic (in, got, w, h, &error));
  g_assert_no_error (error);
  g_assert_cmpmem (got, w * h * 3, want, w * h * 3);
}

static void
resize_is_bit_exact_with_torchvision (void)
{
  g_auto (Tensors) pictures = core_data ("pictures.safetensors");
  int n = 0;

  for (size_t i = 0; i < pictures.header.n; i++) {
    const QomniTensorInfo *in = &pictures.header.tensors[i], *out;
    g_autofree char *stem = g_strndup (in->name, strcspn (in->name, "."));
    g_autofree char *out_name = g_strconcat (stem, ".out", NULL);
    const uint8_t *want = tensors_find (&pictures, out_name, &out);
    g_autofree uint8_t *padded = NULL;
    QomniImage image;
    size_t row = (size_t) (in->dims[1] * in->dims[2]);

    if (!g_str_has_suffix (in->name, ".in") || want == NULL)
      continue;
    image = (QomniImage) {
      .data = (const uint8_t *) pictures.bytes + in->offset,
      .height = (int) in->dims[0], .width = (int) in->dims[1],
      .n_channels = (int) in->dims[2], .stride = row,
    };
    check_resize (&image, want, (int) out->dims[1], (int) out->dims[0]);

    /* Rows may be further apart than they are long. */
    padded = g_malloc0 ((row + 5) * (size_t) image.height);
    for (int y = 0; y < image.height; y++)
      memcpy (padded + (size_t) y * (row + 5), image.data + (size_t) y * row,
          row);
    image.data = padded;
    image.stride = row + 5;
    check_resize (&image, want, (int) out->dims[1], (int) out->dims[0]);
    n++;
  }
  g_assert_cmpint (n, ==, 9);
}

static void
resize_follows_the_processor (void)
{
  g_autoptr (JsonNode) root = read_json (fixture_path ("bicubic", "index.json",
          NULL));
  JsonArray *rows = json_node_get_array (root);

  g_assert_cmpuint (json_array_get_length (rows), >=, 5);
  for (guint i = 0; i < json_array_get_length (rows); i++) {
    JsonObject *row = json_array_get_object_element (rows, i);
    g_autofree char *in = fixture_path ("bicubic",
        json_object_get_string_member (row, "input"), NULL);
    g_autofree char *out = fixture_path ("bicubic",
        json_object_get_string_member (row, "output"), NULL);
    g_autofree char *pixels = NULL, *want = NULL;
    g_autoptr (GError) error = NULL;
    int width = (int) json_object_get_int_member (row, "width");
    int height = (int) json_object_get_int_member (row, "height");
    int64_t w, h;

    g_file_get_contents (in, &pixels, NULL, &error);
    g_assert_no_error (error);
    g_file_get_contents (out, &want, NULL, &error);
    g_assert_no_error (error);
    qomni_smart_resize (height, width, 32,
        json_object_get_int_member (row, "min_pixels"),
        json_object_get_int_member (row, "max_pixels"), &h, &w, &error);
    g_assert_no_error (error);
    g_assert_cmpint (w, ==, json_object_get_int_member (row, "out_width"));
    g_assert_cmpint (h, ==, json_object_get_int_member (row, "out_height"));
    check_resize (&(QomniImage) {
          (const uint8_t *) pixels, width, height, (size_t) width * 3, 3},
        (const uint8_t *) want, (int) w, (int) h);
  }
}

static void
transparent_pixels_are_white (void)
{
  const uint8_t rgba[8] = { 10, 20, 30, 0, 10, 20, 30, 255 };
  const uint8_t want[6] = { 255, 255, 255, 10, 20, 30 };

  check_resize (&(QomniImage) {rgba, 2, 1, 8, 4}, want, 2, 1);
}

/* `want`: the expected indices, ended by -1. */
static void
expect_frames (int64_t total, double video_fps, double fps, int64_t max,
    const int64_t * want, double want_fps)
{
  g_autofree int64_t *got = NULL;
  double got_fps;
  size_t n = qomni_sample_frames (total, video_fps, fps, max, &got, &got_fps);

  for (size_t i = 0; i < n; i++)
    g_assert_cmpint (got[i], ==, want[i]);
  g_assert_cmpint (want[n], ==, -1);
  g_assert_cmpfloat_with_epsilon (got_fps, want_fps, 1e-12);
}

static void
frames_are_spread_over_the_file (void)
{
  expect_frames (21, 10, 2, 768, (int64_t[]) { 0, 7, 13, 20, -1 }, 40.0 / 21);
  expect_frames (17, 8, 4, 768,
      (int64_t[]) { 0, 2, 5, 7, 9, 11, 14, 16, -1 }, 8 * 8.0 / 17);
  expect_frames (100, 25, 2, 4, (int64_t[]) { 0, 33, 66, 99, -1 }, 1);
  expect_frames (3, 10, 2, 768, (int64_t[]) { 0, 2, -1 }, 20.0 / 3);
  expect_frames (2, 10, 2, 768, (int64_t[]) { 0, 1, -1 }, 10);
  expect_frames (1, 10, 2, 768, (int64_t[]) { 0, -1 }, 2);
  expect_frames (0, 10, 2, 768, (int64_t[]) { -1 }, 2);
  expect_frames (6, 0, 2, 768, (int64_t[]) { 0, 1, 2, 3, 4, 5, -1 }, 2);
  expect_frames (6, 10, NAN, 4, (int64_t[]) { 0, 2, 3, 5, -1 }, 40.0 / 6);
}

static void
long_files_are_sampled_as_torch_does (void)
{
  g_autofree int64_t *got = NULL;
  double fps;
  size_t n = qomni_sample_frames (13059, 10, 2, 768, &got, &fps);

  /* torch.linspace (0, 13058, 768) [545] is 9278.5; exactly it is .50065. */
  g_assert_cmpuint (n, ==, 768);
  g_assert_cmpint (got[545], ==, 9278);
  g_assert_cmpint (got[767], ==, 13058);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define CLAIM(name) g_test_add_func ("/image/" #name, name)
  CLAIM (target_sizes_are_those_of_the_reference);
  CLAIM (halves_round_to_even_and_small_pictures_grow);
  CLAIM (impossible_sizes_are_refused_by_name);
  CLAIM (resize_is_bit_exact_with_torchvision);
  CLAIM (resize_follows_the_processor);
  CLAIM (transparent_pixels_are_white);
  CLAIM (frames_are_spread_over_the_file);
  CLAIM (long_files_are_sampled_as_torch_does);
  return g_test_run ();
}
