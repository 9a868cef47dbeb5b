/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checktables FIXTURES [PUBLISHED]: the tables of the reference that need no
 * weights. PUBLISHED is a directory with the published vocabulary, which is not
 * in the tree (README.md says how to recover it); its ids are.
 *
 *   tokenizer/<model>-encode.json, -decode.json   every small vocabulary
 *   positions.json   prompts laid out from their parts, their positions, and
 *                    those of the Talker's prompt
 *
 * One TAP line a table; what differs is printed before it.
 */
#include <stdio.h>
#include <string.h>

#include "json.h"
#include "model-config.h"
#include "positions.h"
#include "tokenizer.h"

static JsonNode *
load (const char *directory, const char *name)
{
  g_autofree char *path = g_build_filename (directory, name, NULL);
  g_autoptr (GError) error = NULL;
  JsonNode *root = qomni_json_read_file (path, QOMNI_MAX_JSON_BYTES,
      QOMNI_JSON_PLAIN, &error);

  if (root == NULL)
    printf ("# %s\n", error->message);
  return root;
}

static JsonArray *
rows_of (JsonNode * root, const char *name)
{
  return json_object_get_array_member (json_node_get_object (root), name);
}

/* The numbers of an array; n of them. */
static float *
floats_of (JsonArray * array)
{
  guint n = json_array_get_length (array);
  float *values = g_new0 (float, n + 1);

  for (guint i = 0; i < n; i++)
    values[i] = (float) json_array_get_double_element (array, i);
  return values;
}

static int32_t *
ids_of (JsonArray * array)
{
  guint n = json_array_get_length (array);
  int32_t *ids = g_new0 (int32_t, n + 1);

  for (guint i = 0; i < n; i++)
    ids[i] = (int32_t) json_array_get_int_element (array, i);
  return ids;
}

/* --- tokenizers --------------------------------------------------------- */

static bool
encodes_to (const QomniTokenizer * t, const char *text,
    QomniEncodeFlags flags, JsonArray * want)
{
  g_autofree int32_t *expected = ids_of (want);
  g_autofree int32_t *got = NULL;
  g_autoptr (GError) error = NULL;
  size_t n;

  got = qomni_tokenizer_encode (t, text, -1, flags, &n, &error);
  if (got != NULL && n == json_array_get_length (want)
      && memcmp (got, expected, n * sizeof *got) == 0)
    return true;
  printf ("# '%s' is encoded otherwise%s%s\n", text,
      error == NULL ? "" : ": ", error == NULL ? "" : error->message);
  return false;
}

static bool
check_encode (const QomniTokenizer * t, JsonNode * table)
{
  JsonArray *rows = rows_of (table, "strings");
  bool ok = true;

  for (guint i = 0; i < json_array_get_length (rows); i++) {
    JsonObject *row = json_array_get_object_element (rows, i);
    const char *text = json_object_get_string_member (row, "text");

    ok &= encodes_to (t, text, QOMNI_ENCODE_SPECIAL,
        json_object_get_array_member (row, "ids"));
    ok &= encodes_to (t, text, QOMNI_ENCODE_PLAIN,
        json_object_get_array_member (row, "ids_split_special"));
  }
  return ok && json_array_get_length (rows) > 0;
}

static bool
check_decode (const QomniTokenizer * t, JsonNode * table)
{
  JsonArray *rows = rows_of (table, "rows");
  bool ok = true;

  for (guint i = 0; i < json_array_get_length (rows); i++) {
    JsonObject *row = json_array_get_object_element (rows, i);
    JsonArray *array = json_object_get_array_member (row, "ids");
    g_autofree int32_t *ids = ids_of (array);
    size_t n = json_array_get_length (array);
    g_autofree char *whole = qomni_tokenizer_decode (t, ids, n, false);
    g_autofree char *plain = qomni_tokenizer_decode (t, ids, n, true);

    if (strcmp (whole, json_object_get_string_member (row, "text")) != 0
        || strcmp (plain, json_object_get_string_member (row,
                "text_skip_special")) != 0) {
      printf ("# row %u is decoded otherwise: '%s'\n", i, whole);
      ok = false;
    }
  }
  return ok && json_array_get_length (rows) > 0;
}

static bool
check_tokenizer (const char *fixtures, const char *model, const char *path)
{
  g_autofree char *directory = g_build_filename (fixtures, "tokenizer", NULL);
  g_autofree char *encode = g_strconcat (model, "-encode.json", NULL);
  g_autofree char *decode = g_strconcat (model, "-decode.json", NULL);
  g_autoptr (JsonNode) encoded = load (directory, encode);
  g_autoptr (JsonNode) decoded = load (directory, decode);
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniTokenizer) t = qomni_tokenizer_read (path, &error);
  bool ok;

  if (t == NULL) {
    printf ("# %s\n", error->message);
    return false;
  }
  if (encoded == NULL || decoded == NULL)
    return false;
  ok = check_encode (t, encoded);
  return check_decode (t, decoded) && ok;
}

/* --- positions ---------------------------------------------------------- */

typedef struct
{
  GArray *images, *videos;      /* QomniGrid */
  GArray *audios;               /* int64_t */
} Media;

static int64_t
tokens_of (int64_t frames)
{
  return 13 * (frames / 100) + (frames % 100 + 7) / 8;
}

static QomniGrid
grid_of (JsonObject * item, const char *name)
{
  JsonArray *a = json_object_get_array_member (item, name);

  return (QomniGrid) {
    .t = json_array_get_int_element (a, 0),
    .h = json_array_get_int_element (a, 1) / 2,
    .w = json_array_get_int_element (a, 2) / 2,
    .seconds_per_grid = json_object_has_member (item, "second_per_grid")
        ? json_object_get_double_member (item, "second_per_grid") : 0,
  };
}

static void
append (GArray * ids, int32_t id, int64_t n)
{
  for (int64_t i = 0; i < n; i++)
    g_array_append_val (ids, id);
}

/* One item of a layout: its ids, and what its placeholders stand for. */
static void
lay_out (const QomniConfig * c, JsonObject * item, GArray * ids, Media * m)
{
  if (json_object_has_member (item, "text")) {
    JsonArray *text = json_object_get_array_member (item, "text");

    for (guint i = 0; i < json_array_get_length (text); i++)
      append (ids, (int32_t) json_array_get_int_element (text, i), 1);
  } else if (json_object_has_member (item, "image")) {
    QomniGrid grid = grid_of (item, "image");

    g_array_append_val (m->images, grid);
    append (ids, c->vision_start, 1);
    append (ids, c->image_pad, grid.h * grid.w);
    append (ids, c->vision_end, 1);
  } else if (json_object_has_member (item, "video")) {
    QomniGrid grid = grid_of (item, "video");
    int64_t n = grid.t * grid.h * grid.w;

    g_array_append_val (m->videos, grid);
    append (ids, c->vision_start, 1);
    if (json_object_has_member (item, "audio")) {
      int64_t sound =
          tokens_of (json_object_get_int_member (item, "audio"));
      g_autofree int32_t *merged = g_new (int32_t, n + sound);

      g_array_append_val (m->audios, sound);
      qomni_merge_audio_video (c, &grid, sound, merged);
      append (ids, c->audio_start, 1);
      g_array_append_vals (ids, merged, (guint) (n + sound));
      append (ids, c->audio_end, 1);
    } else {
      append (ids, c->video_pad, n);
    }
    append (ids, c->vision_end, 1);
  } else {
    int64_t n = tokens_of (json_object_get_int_member (item, "audio"));

    g_array_append_val (m->audios, n);
    append (ids, c->audio_start, 1);
    append (ids, c->audio_pad, n);
    append (ids, c->audio_end, 1);
  }
}

static bool
places (const QomniConfig * c, const int32_t * ids, int64_t n,
    const QomniMediaSizes * media, bool use_audio_in_video, JsonArray * want,
    double want_delta)
{
  g_autofree float *got = g_new0 (float, 3 * n + 1);
  g_autoptr (GError) error = NULL;
  float delta;

  if (!qomni_positions (c, ids, n, media, use_audio_in_video, got, &delta,
          &error)) {
    printf ("#   %s\n", error->message);
    return false;
  }
  for (int axis = 0; axis < 3; axis++) {
    g_autofree float *expected =
        floats_of (json_array_get_array_element (want, (guint) axis));

    if (memcmp (got + axis * n, expected, (size_t) n * sizeof (float)) != 0)
      return false;
  }
  return delta == (float) want_delta;
}

static bool
check_layout (const QomniConfig * c, JsonObject * row)
{
  JsonArray *layout = json_object_get_array_member (row, "layout");
  JsonArray *want = json_object_get_array_member (row, "ids");
  JsonArray *talker = json_object_get_array_member (row, "talker_ids");
  g_autofree int32_t *expected = ids_of (want);
  g_autofree int32_t *talker_ids = ids_of (talker);
  g_autoptr (GArray) ids = g_array_new (FALSE, FALSE, sizeof (int32_t));
  g_autoptr (GArray) images = g_array_new (FALSE, FALSE, sizeof (QomniGrid));
  g_autoptr (GArray) videos = g_array_new (FALSE, FALSE, sizeof (QomniGrid));
  g_autoptr (GArray) audios = g_array_new (FALSE, FALSE, sizeof (int64_t));
  Media m = { images, videos, audios };

  for (guint i = 0; i < json_array_get_length (layout); i++)
    lay_out (c, json_array_get_object_element (layout, i), ids, &m);
  if (ids->len != json_array_get_length (want)
      || memcmp (ids->data, expected, ids->len * sizeof (int32_t)) != 0)
    return false;

  const QomniMediaSizes sizes = {
    .images = (const QomniGrid *) images->data,.n_images = images->len,
    .videos = (const QomniGrid *) videos->data,.n_videos = videos->len,
    .audios = (const int64_t *) audios->data,.n_audios = audios->len,
  };
  return places (c, expected, ids->len, &sizes,
      json_object_get_boolean_member (row, "use_audio_in_video"),
      json_object_get_array_member (row, "positions"),
      json_object_get_double_member (row, "delta"))
      && places (c, talker_ids, json_array_get_length (talker), &sizes, false,
      json_object_get_array_member (row, "talker_positions"),
      json_object_get_double_member (row, "talker_delta"));
}

static bool
check_positions (const char *fixtures)
{
  g_autoptr (JsonNode) table = load (fixtures, "positions.json");
  g_autofree char *path = g_build_filename (fixtures, "tiny-a", NULL);
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) config = qomni_config_read (path, &error);
  JsonArray *rows;
  bool ok = true;

  if (config == NULL)
    printf ("# %s\n", error->message);
  if (table == NULL || config == NULL)
    return false;
  rows = rows_of (table, "rows");
  for (guint i = 0; i < json_array_get_length (rows); i++) {
    if (!check_layout (config, json_array_get_object_element (rows, i))) {
      printf ("# layout %u is placed otherwise\n", i);
      ok = false;
    }
  }
  return ok && json_array_get_length (rows) > 0;
}

static bool
report (bool ok, int number, const char *what)
{
  printf ("%s %d - %s\n", ok ? "ok" : "not ok", number, what);
  return ok;
}

int
main (int argc, char **argv)
{
  static const char *const models[] = {
    "tiny-a", "tiny-b", "tiny-c", "tiny-thinking",
  };
  int number = 0;
  bool ok;

  if (argc < 2 || argc > 3) {
    fprintf (stderr, "usage: checktables FIXTURES [PUBLISHED]\n");
    return 2;
  }
  ok = report (check_positions (argv[1]), ++number, "positions");
  for (size_t i = 0; i < G_N_ELEMENTS (models); i++) {
    g_autofree char *path = g_build_filename (argv[1], models[i], NULL);

    ok &= report (check_tokenizer (argv[1], models[i], path), ++number,
        models[i]);
  }
  if (argc == 3)
    ok &= report (check_tokenizer (argv[1], "published", argv[2]), ++number,
        "the published vocabulary");
  printf ("1..%d\n", number);
  return ok ? 0 : 1;
}
