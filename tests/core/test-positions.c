/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * positions.c against get_rope_index() and the rotary embedding of the
 * reference (tests/core/data/make-positions.py, which also explains how a
 * prompt is spelled), and what it must refuse.
 */
#include "positions.h"

#include <json-glib/json-glib.h>
#include <math.h>

#include "scratch.h"

enum
{
  VISION_START = 1, VISION_END, AUDIO_START, AUDIO_END,
  IMAGE_PAD, VIDEO_PAD, AUDIO_PAD, TEXT
};

static const QomniConfig config = {
  .position_id_per_seconds = 13,
  .vision_start = VISION_START,
  .vision_end = VISION_END,
  .audio_start = AUDIO_START,
  .audio_end = AUDIO_END,
  .image_pad = IMAGE_PAD,
  .video_pad = VIDEO_PAD,
  .audio_pad = AUDIO_PAD,
};

static int32_t *
ids_of (const char *spelled, int64_t * ret_n)
{
  static const char letters[] = "[]()iva.";
  int64_t n = (int64_t) strlen (spelled);
  int32_t *ids = g_new (int32_t, n + 1);

  for (int64_t i = 0; i < n; i++) {
    const char *letter = strchr (letters, spelled[i]);

    g_assert_nonnull (letter);
    ids[i] = (int32_t) (letter - letters) + 1;
  }
  *ret_n = n;
  return ids;
}

/* A prompt, its media and its positions. */
typedef struct
{
  int32_t *ids;
  int64_t n;
  QomniGrid images[16], videos[16];
  int64_t audios[16];
  QomniMediaSizes media;
  float *positions, delta;
} Prompt;

static void
prompt_clear (Prompt * p)
{
  g_free (p->ids);
  g_free (p->positions);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Prompt, prompt_clear)

static void
prompt_init (Prompt * p, const char *spelled)
{
  p->ids = ids_of (spelled, &p->n);
  p->positions = g_new0 (float, 3 * p->n + 1);
  p->media.images = p->images;
  p->media.videos = p->videos;
  p->media.audios = p->audios;
}

static bool
place (Prompt * p, bool flag, GError ** error)
{
  return qomni_positions (&config, p->ids, p->n, &p->media, flag,
      p->positions, &p->delta, error);
}

static void
assert_row (const Prompt * p, int axis, const float *expected)
{
  for (int64_t i = 0; i < p->n; i++)
    g_assert_cmpfloat (p->positions[axis * p->n + i], ==, expected[i]);
}

/* 0, 1, 2, … on all axes. */
static void
assert_plain (const Prompt * p)
{
  for (int64_t i = 0; i < 3 * p->n; i++)
    g_assert_cmpfloat (p->positions[i], ==, (float) (i % p->n));
  g_assert_cmpfloat (p->delta, ==, 0);
}

static JsonArray *
load (const char *name, JsonParser * parser)
{
  g_autofree char *path = g_build_filename (g_getenv ("QOMNI_TEST_FIXTURES"),
      "..", "..", "core", "data", name, NULL);
  g_autoptr (GError) error = NULL;

  json_parser_load_from_file (parser, path, &error);
  g_assert_no_error (error);
  return json_node_get_array (json_parser_get_root (parser));
}

static size_t
read_grids (JsonArray * list, QomniGrid * ret)
{
  guint n = json_array_get_length (list);

  g_assert_cmpuint (n, <=, 16);
  for (guint i = 0; i < n; i++) {
    JsonArray *grid = json_array_get_array_element (list, i);

    ret[i].t = json_array_get_int_element (grid, 0);
    ret[i].h = json_array_get_int_element (grid, 1);
    ret[i].w = json_array_get_int_element (grid, 2);
    if (json_array_get_length (grid) > 3)
      ret[i].seconds_per_grid = json_array_get_double_element (grid, 3);
  }
  return n;
}

static void
read_case (JsonObject * object, Prompt * p)
{
  JsonArray *audios = json_object_get_array_member (object, "audios");

  prompt_init (p, json_object_get_string_member (object, "ids"));
  p->media.n_images = read_grids (json_object_get_array_member (object,
          "images"), p->images);
  p->media.n_videos = read_grids (json_object_get_array_member (object,
          "videos"), p->videos);
  p->media.n_audios = json_array_get_length (audios);
  for (size_t i = 0; i < p->media.n_audios; i++)
    p->audios[i] = json_array_get_int_element (audios, (guint) i);
}

/* The fixture's runs, written out: [3, n]. */
static float *
read_positions (JsonArray * runs, int64_t n)
{
  float *ret = g_new (float, 3 * n);
  int64_t at = 0;

  for (guint i = 0; i < json_array_get_length (runs); i++) {
    JsonArray *run = json_array_get_array_element (runs, i);

    for (int64_t k = 0; k < json_array_get_int_element (run, 0); k++, at++) {
      g_assert_cmpint (at, <, n);
      for (int axis = 0; axis < 3; axis++)
        ret[axis * n + at] = (float) k
            + (float) json_array_get_double_element (run, (guint) axis + 1);
    }
  }
  g_assert_cmpint (at, ==, n);
  return ret;
}

static void
positions_are_those_of_the_reference (void)
{
  g_autoptr (JsonParser) parser = json_parser_new ();
  JsonArray *cases = load ("positions.json", parser);

  g_assert_cmpuint (json_array_get_length (cases), >=, 200);
  for (guint i = 0; i < json_array_get_length (cases); i++) {
    JsonObject *object = json_array_get_object_element (cases, i);
    g_auto (Prompt) p = { 0, };
    g_autofree float *expected = NULL;
    g_autoptr (GError) error = NULL;

    read_case (object, &p);
    expected = read_positions (json_object_get_array_member (object,
            "positions"), p.n);
    place (&p, json_object_get_boolean_member (object, "flag"), &error);
    g_assert_no_error (error);
    for (int64_t k = 0; k < 3 * p.n; k++)
      if (p.positions[k] != expected[k])
        g_error ("prompt %u: axis %d of id %d is %.9g, expected %.9g", i,
            (int) (k / p.n), (int) (k % p.n), p.positions[k], expected[k]);
    g_assert_cmpfloat (p.delta, ==,
        (float) json_object_get_double_member (object, "delta"));
  }
}

static void
merged_ids_are_those_of_the_reference (void)
{
  g_autoptr (JsonParser) parser = json_parser_new ();
  JsonArray *cases = load ("positions.json", parser);
  int n_merged = 0;

  for (guint i = 0; i < json_array_get_length (cases); i++) {
    g_auto (Prompt) p = { 0, };
    size_t v = 0, a = 0;

    read_case (json_array_get_object_element (cases, i), &p);
    for (int64_t k = 0; k + 1 < p.n; k++) {
      if (p.ids[k] == VISION_START && p.ids[k + 1] == AUDIO_START) {
        const QomniGrid *g = &p.videos[v];
        int64_t n = g->t * g->h * g->w + p.audios[a];
        g_autofree int32_t *ids = g_new (int32_t, n);

        qomni_merge_audio_video (&config, g, p.audios[a], ids);
        g_assert_cmpmem (ids, n * sizeof *ids, p.ids + k + 2,
            n * sizeof *ids);
        n_merged++;
      }
      v += p.ids[k] == VISION_START && p.ids[k + 1] != IMAGE_PAD;
      a += p.ids[k] == AUDIO_START;
    }
  }
  g_assert_cmpint (n_merged, >, 50);
}

static void
sound_alone_counts_plainly (void)
{
  g_auto (Prompt) p = { 0, };
  g_autoptr (GError) error = NULL;

  prompt_init (&p, "...(aaaaa)..(a)....");
  p.audios[0] = 5;
  p.audios[1] = 1;
  p.media.n_audios = 2;
  place (&p, true, &error);
  g_assert_no_error (error);
  assert_plain (&p);
}

static void
image_spreads_over_rows_and_columns (void)
{
  static const float t[] = { 0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7 };
  static const float h[] = { 0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7 };
  static const float w[] = { 0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7 };
  g_auto (Prompt) p = { 0, };
  g_autoptr (GError) error = NULL;

  prompt_init (&p, "..[iiiiii].");
  p.images[0] = (QomniGrid) { 1, 2, 3, 0 };
  p.media.n_images = 1;
  place (&p, false, &error);
  g_assert_no_error (error);
  assert_row (&p, 0, t);
  assert_row (&p, 1, h);
  assert_row (&p, 2, w);
  g_assert_cmpfloat (p.delta, ==, -3);
}

static void
sound_and_slices_of_a_second_alternate (void)
{
  QomniGrid grid = { 2, 1, 1, 1.0 };
  int32_t ids[28];

  qomni_merge_audio_video (&config, &grid, 26, ids);
  for (int i = 0; i < 28; i++)
    g_assert_cmpint (ids[i], ==, i == 0 || i == 14 ? VIDEO_PAD : AUDIO_PAD);
}

/* The reference forgets it and places the last medium as text. */
static void
silent_video_is_counted_with_the_flag (void)
{
  static const float t[] = { 0, 1, 2, 2, 2, 2, 4, 5, 6, 7, 7, 7, 7, 9, 10 };
  static const float h[] = { 0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 7, 8, 8, 9, 10 };
  static const float w[] = { 0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 7, 8, 9, 10 };
  g_auto (Prompt) p = { 0, };
  g_autoptr (GError) error = NULL;

  prompt_init (&p, ".[vvvv].[iiii].");
  p.videos[0] = (QomniGrid) { 1, 2, 2, 1.0 };
  p.images[0] = (QomniGrid) { 1, 2, 2, 0 };
  p.media.n_videos = p.media.n_images = 1;
  place (&p, true, &error);
  g_assert_no_error (error);
  assert_row (&p, 0, t);
  assert_row (&p, 1, h);
  assert_row (&p, 2, w);
}

/* The reference raises here; speech must not fail for it. */
static void
video_that_the_counters_miss_becomes_text (void)
{
  g_auto (Prompt) p = { 0, };
  g_autoptr (GError) error = NULL;

  prompt_init (&p, ".[(va)].[vvvv]..");
  p.videos[0] = (QomniGrid) { 1, 1, 1, 1.0 };
  p.videos[1] = (QomniGrid) { 1, 2, 2, 1.0 };
  p.audios[0] = 1;
  p.media.n_videos = 2;
  p.media.n_audios = 1;
  place (&p, false, &error);
  g_assert_no_error (error);
  for (int64_t i = 8; i < p.n; i++)
    for (int axis = 0; axis < 3; axis++)
      g_assert_cmpfloat (p.positions[axis * p.n + i], ==,
          p.positions[7] + (float) (i - 7));
}

static void
stray_markers_and_placeholders_are_text (void)
{
  static const char *const prompts[] = {
    "..[..", "..(..", "..[(..", "[", "(", "[(", ".aaa.", ".)].v.i", "[[((",
    "..(.[.", "[]", "()", "[()]",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (prompts); i++) {
    g_auto (Prompt) p = { 0, };
    g_autoptr (GError) error = NULL;

    prompt_init (&p, prompts[i]);
    place (&p, i % 2, &error);
    g_assert_no_error (error);
    assert_plain (&p);
  }
}

static void
no_ids_have_no_positions (void)
{
  g_auto (Prompt) p = { 0, };
  g_autoptr (GError) error = NULL;

  prompt_init (&p, "");
  p.delta = 7;
  place (&p, false, &error);
  g_assert_no_error (error);
  g_assert_cmpfloat (p.delta, ==, 0);
}

static void
media_that_do_not_fit_the_ids_are_refused (void)
{
  static const struct
  {
    const char *ids;
    size_t n_images, n_videos, n_audios;        /* of 2 cells, 2 tokens */
    const char *words;
  } cases[] = {
    {".[ii].", 0, 0, 0, "place for image 1, but 0 came"},
    {".[ii].", 2, 0, 0, "1 images"},
    {".[ii].", 1, 1, 0, "0 videos"},
    {".[vv].", 0, 0, 0, "place for video 1"},
    {".(aa).", 0, 0, 0, "place for audio clip 1"},
    {"......", 0, 0, 1, "0 audio clips"},
    {".[i].", 1, 0, 0, "should have 2 cells"},
    {".[iii].", 1, 0, 0, "should have 2 cells"},
    {".[iv].", 1, 0, 0, "should have 2 cells"},
    {".[ii.", 1, 0, 0, "its placeholders differ"},
    {".[ii).", 1, 0, 0, "its placeholders differ"},
    {".[ii", 1, 0, 0, "needs 4 ids, but 3 are left"},
    {".(a).", 0, 0, 1, "2 audio tokens"},
    {".(aa].", 0, 0, 1, "its placeholders differ"},
    {".(aa", 0, 0, 1, "are left"},
    {".[(vava])", 0, 1, 1, "its placeholders differ"},
    {".[(vaaa)]", 0, 1, 1, "its placeholders differ"},
    {".[(vava)]", 0, 1, 0, "place for audio clip 1"},
    {".[(vava)]", 0, 0, 1, "place for video 1"},
    {".[(vava)", 0, 1, 1, "are left"},
  };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_auto (Prompt) p = { 0, };
    g_autoptr (GError) error = NULL;

    prompt_init (&p, cases[i].ids);
    for (int k = 0; k < 16; k++) {
      p.images[k] = (QomniGrid) { 1, 1, 2, 0 };
      p.videos[k] = (QomniGrid) { 2, 1, 1, 1.0 };
      p.audios[k] = 2;
    }
    p.media.n_images = cases[i].n_images;
    p.media.n_videos = cases[i].n_videos;
    p.media.n_audios = cases[i].n_audios;
    for (int flag = 0; flag < 2; flag++) {
      g_assert_false (place (&p, flag, &error));
      assert_refused (&error, QOMNI_ERROR_INPUT, cases[i].words);
    }
  }
}

static void
impossible_sizes_are_refused (void)
{
  static const QomniGrid grids[] = {
    {0, 1, 2, 1}, {1, -1, 2, 1}, {1, 1, INT64_MIN, 1},
    {INT64_MAX, 2, 2, 1}, {INT64_C (1) << 32, INT64_C (1) << 32, 1, 1},
    {2, 1, 1, NAN}, {2, 1, 1, -1}, {2, 1, 1, INFINITY}, {2, 1, 1, 1e30},
  };
  static const int64_t counts[] = { 0, -1, INT64_MAX, INT64_MIN };

  for (size_t i = 0; i < G_N_ELEMENTS (grids); i++) {
    g_auto (Prompt) p = { 0, };
    g_autoptr (GError) error = NULL;

    prompt_init (&p, ".[vv].");
    p.videos[0] = grids[i];
    p.media.n_videos = 1;
    g_assert_false (place (&p, false, &error));
    assert_refused (&error, QOMNI_ERROR_INPUT, "video 1");
  }
  for (size_t i = 0; i < G_N_ELEMENTS (counts); i++) {
    g_auto (Prompt) p = { 0, };
    g_autoptr (GError) error = NULL;

    prompt_init (&p, ".(aa).");
    p.audios[0] = counts[i];
    p.media.n_audios = 1;
    g_assert_false (place (&p, false, &error));
    assert_refused (&error, QOMNI_ERROR_INPUT, "audio clip 1");
  }
}

static void
rotation_tables_are_those_of_the_reference (void)
{
  g_autoptr (JsonParser) parser = json_parser_new ();
  JsonArray *tables = load ("rope.json", parser);

  for (guint i = 0; i < json_array_get_length (tables); i++) {
    JsonObject *object = json_array_get_object_element (tables, i);
    JsonArray *rows = json_object_get_array_member (object, "positions");
    JsonArray *section = json_object_get_array_member (object, "section");
    JsonArray *cosines = json_object_get_array_member (object, "cos");
    JsonArray *sines = json_object_get_array_member (object, "sin");
    guint n = json_array_get_length (json_array_get_array_element (rows, 0));
    g_autofree QomniDecoderConfig *decoder = g_new0 (QomniDecoderConfig, 1);
    g_autofree float *positions = g_new (float, 3 * (n + 2));
    g_autofree float *table = NULL;
    guint half;

    decoder->rope_theta = json_object_get_double_member (object, "theta");
    decoder->head_dim = (int) json_object_get_int_member (object, "head_dim");
    half = (guint) decoder->head_dim / 2;
    for (guint axis = 0; axis < 3; axis++) {
      JsonArray *row = json_array_get_array_element (rows, axis);

      decoder->mrope_section[axis] =
          (int) json_array_get_int_element (section, axis);
      for (guint k = 0; k < n; k++)
        positions[axis * (n + 2) + k] =
            (float) json_array_get_double_element (row, k);
    }
    table = g_new (float, n * 2 * half);
    qomni_rope_table (decoder, positions, n + 2, n, table);
    for (guint k = 0; k < n; k++)
      for (guint j = 0; j < half; j++) {
        g_assert_cmpfloat_with_epsilon (table[k * 2 * half + j],
            json_array_get_double_element (cosines, k * half + j), 2e-6);
        g_assert_cmpfloat_with_epsilon (table[k * 2 * half + half + j],
            json_array_get_double_element (sines, k * half + j), 2e-6);
      }
  }
}

/* Rows where one axis stands apart show which angles it turns. */
static void
axes_interleave_as_published (void)
{
  g_autofree QomniDecoderConfig *decoder = g_new0 (QomniDecoderConfig, 1);
  static const float positions[3] = { 0, 1, 2 };
  float table[128], expected;
  char map[65] = "";

  decoder->rope_theta = 1e6;
  decoder->head_dim = 128;
  decoder->mrope_section[0] = 24;
  decoder->mrope_section[1] = decoder->mrope_section[2] = 20;
  qomni_rope_table (decoder, positions, 1, 1, table);
  for (int i = 0; i < 64; i++) {
    double inverse = pow (1e6, -2.0 * i / 128);

    map[i] = '?';
    for (int axis = 0; axis < 3; axis++) {
      expected = (float) sin (axis * inverse);
      if (fabsf (table[64 + i] - expected) < 1e-3f * (float) inverse)
        map[i] = "THW"[axis];
    }
  }
  g_assert_cmpstr (map, ==,
      "THWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTHWTTTT");
}

static void
without_sections_the_first_axis_turns_all (void)
{
  g_autofree QomniDecoderConfig *decoder = g_new0 (QomniDecoderConfig, 1);
  static const float positions[6] = { 3, 4, 100, 100, 200, 200 };
  static const float same[6] = { 3, 4, 3, 4, 3, 4 };
  float plain[2 * 16], equal[2 * 16];

  decoder->rope_theta = 1e4;
  decoder->head_dim = 16;
  qomni_rope_table (decoder, positions, 2, 2, plain);
  decoder->mrope_section[0] = 4;
  decoder->mrope_section[1] = decoder->mrope_section[2] = 2;
  qomni_rope_table (decoder, same, 2, 2, equal);
  g_assert_cmpmem (plain, sizeof plain, equal, sizeof equal);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define CLAIM(name) g_test_add_func ("/positions/" #name, name)
  CLAIM (positions_are_those_of_the_reference);
  CLAIM (merged_ids_are_those_of_the_reference);
  CLAIM (sound_alone_counts_plainly);
  CLAIM (image_spreads_over_rows_and_columns);
  CLAIM (sound_and_slices_of_a_second_alternate);
  CLAIM (silent_video_is_counted_with_the_flag);
  CLAIM (video_that_the_counters_miss_becomes_text);
  CLAIM (stray_markers_and_placeholders_are_text);
  CLAIM (no_ids_have_no_positions);
  CLAIM (media_that_do_not_fit_the_ids_are_refused);
  CLAIM (impossible_sizes_are_refused);
  CLAIM (rotation_tables_are_those_of_the_reference);
  CLAIM (axes_interleave_as_published);
  CLAIM (without_sections_the_first_axis_turns_all);
  return g_test_run ();
}
