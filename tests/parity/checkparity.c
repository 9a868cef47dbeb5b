/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkparity QOMNI MODEL_DIR: answers every conversation of MODEL_DIR/cases
 * with `qomni generate --dump` and compares each stage with what the reference
 * implementation computed (expected.json, stages.safetensors). One TAP line a
 * case; the worst error of each stage is printed as a comment.
 *
 * Bounds, f32: ids, positions and codes equal; log-mel 1e-4 and the waveform
 * 1e-3 absolute; pixels equal to the 8-bit level; every other stage 1e-4
 * relative RMS. The expected.json of a case records by what margin the greedy
 * choices were made; when text or codes differ and that margin is a tie
 * (below 1e-5), the line says so, and still fails.
 */
#include <glib/gstdio.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint.h"
#include "json.h"

typedef enum
{
  EQUAL,                        /* bit for bit, as numbers */
  ABSOLUTE,
  RELATIVE_RMS,
} Measure;

/* By prefix of the stage's name; the first that fits. */
static const struct
{
  const char *prefix;
  Measure measure;
  double bound;
} bounds[] = {
  {"input_ids", EQUAL, 0},
  {"output_ids", EQUAL, 0},
  {"position_ids", EQUAL, 0},
  {"codes", EQUAL, 0},
  {"audio.features", ABSOLUTE, 1e-4},
  /* Half of a level is 1/255. */
  {"vision.pixels", ABSOLUTE, 1e-6},
  {"waveform", ABSOLUTE, 1e-3},
  {"", RELATIVE_RMS, 1e-4},
};

/* A safetensors file of any name, read as the one file of a directory. */
static QomniCheckpoint *
open_file (const char *directory, const char *path, GError ** error)
{
  g_autofree char *link = g_build_filename (directory, "model.safetensors",
      NULL);
  g_autoptr (GFile) file = g_file_new_for_path (link);

  if (path != NULL) {
    g_autofree char *target = g_canonicalize_filename (path, NULL);

    if (!g_file_make_symbolic_link (file, target, NULL, error))
      return NULL;
  }
  return qomni_checkpoint_open (directory, QOMNI_READ_PRIVATE, error);
}

/* All values as doubles; exact for f32, and for ids below 2^53. */
static double *
read_values (QomniCheckpoint * c, const QomniTensorInfo * t, size_t *ret_n,
    GError ** error)
{
  size_t n = (size_t) t->bytes * 8 / t->dtype->bits;
  g_autofree void *data = g_malloc (t->bytes + 1);
  double *values;

  if (!qomni_checkpoint_read (c, t, data, error))
    return NULL;
  values = g_new (double, n + 1);
  for (size_t i = 0; i < n; i++) {
    if (strcmp (t->dtype->name, "I64") == 0)
      values[i] = (double) ((const int64_t *) data)[i];
    else if (strcmp (t->dtype->name, "F32") == 0)
      values[i] = ((const float *) data)[i];
    else
      values[i] = NAN;
  }
  *ret_n = n;
  return values;
}

static double
error_of (Measure measure, const double *got, const double *want, size_t n)
{
  double worst = 0, square = 0, scale = 0;

  for (size_t i = 0; i < n; i++) {
    double d = fabs (got[i] - want[i]);

    if (!(d <= worst))          /* a NaN is the worst there is */
      worst = d;
    square += d * d;
    scale += want[i] * want[i];
  }
  if (measure == RELATIVE_RMS)
    return n == 0 || square == 0 ? 0 : sqrt (square / scale);
  return worst;
}

static bool
check_stage (QomniCheckpoint * got, QomniCheckpoint * want,
    const QomniTensorInfo * w)
{
  const QomniTensorInfo *g = qomni_checkpoint_find (got, w->name);
  g_autofree double *have = NULL, *expected = NULL;
  g_autoptr (GError) error = NULL;
  size_t n_have, n_expected, b = 0;
  double e;

  if (g == NULL) {
    printf ("#   %-24s missing\n", w->name);
    return false;
  }
  if (g->n_dims != w->n_dims
      || memcmp (g->dims, w->dims, sizeof w->dims[0] * (size_t) w->n_dims)) {
    printf ("#   %-24s shape is", w->name);
    for (int i = 0; i < g->n_dims; i++)
      printf (" %" G_GINT64_FORMAT, g->dims[i]);
    printf (", expected");
    for (int i = 0; i < w->n_dims; i++)
      printf (" %" G_GINT64_FORMAT, w->dims[i]);
    printf ("\n");
    return false;
  }
  have = read_values (got, g, &n_have, &error);
  expected = have == NULL ? NULL : read_values (want, w, &n_expected, &error);
  if (expected == NULL) {
    printf ("#   %-24s %s\n", w->name, error->message);
    return false;
  }
  while (!g_str_has_prefix (w->name, bounds[b].prefix))
    b++;
  e = error_of (bounds[b].measure, have, expected, n_expected);
  printf ("#   %-24s %-12s %.2e%s\n", w->name,
      bounds[b].measure == EQUAL ? "differs by" :
      bounds[b].measure == ABSOLUTE ? "absolute" : "relative RMS", e,
      e <= bounds[b].bound ? "" : "  TOO MUCH");
  return e <= bounds[b].bound;
}

/* `qomni generate` with the options of the case; its --json object. */
static JsonNode *
run_tool (const char *qomni, const char *model, const char *directory,
    const char *scratch, JsonObject * options, GError ** error)
{
  g_autoptr (GPtrArray) argv = g_ptr_array_new_with_free_func (g_free);
  g_autoptr (GSubprocess) process = NULL;
  g_autoptr (GList) names = json_object_get_members (options);
  g_autofree char *out = NULL, *err = NULL;

  g_ptr_array_add (argv, g_strdup (qomni));
  g_ptr_array_add (argv, g_strdup ("generate"));
  g_ptr_array_add (argv, g_strdup (model));
  g_ptr_array_add (argv, g_strdup ("--json"));
  g_ptr_array_add (argv, g_strdup ("--greedy"));
  g_ptr_array_add (argv, g_strdup ("--talker-greedy"));
  g_ptr_array_add (argv, g_strdup_printf ("--conversation=%s/conversation.json",
          directory));
  g_ptr_array_add (argv, g_strdup_printf ("--dump=%s/model.safetensors",
          scratch));
  for (GList * l = names; l != NULL; l = l->next) {
    JsonNode *value = json_object_get_member (options, l->data);
    g_autofree char *text = NULL;

    if (strcmp (l->data, "speech") == 0) {
      if (json_node_get_boolean (value))
        g_ptr_array_add (argv, g_strdup_printf ("--speech=%s/speech.wav",
                scratch));
    } else if (json_node_get_value_type (value) == G_TYPE_BOOLEAN) {
      if (json_node_get_boolean (value))
        g_ptr_array_add (argv, g_strdup_printf ("--%s", (char *) l->data));
    } else {
      text = json_node_get_value_type (value) == G_TYPE_STRING ?
          json_node_dup_string (value) : json_to_string (value, FALSE);
      g_ptr_array_add (argv, g_strdup_printf ("--%s=%s", (char *) l->data,
              text));
    }
  }
  g_ptr_array_add (argv, NULL);

  process = g_subprocess_newv ((const char *const *) argv->pdata,
      G_SUBPROCESS_FLAGS_STDOUT_PIPE | G_SUBPROCESS_FLAGS_STDERR_PIPE, error);
  if (process == NULL || !g_subprocess_communicate_utf8 (process, NULL, NULL,
          &out, &err, error))
    return NULL;
  if (!g_subprocess_get_successful (process)) {
    qomni_fail (error, QOMNI_ERROR_INPUT, "qomni failed: %s", err);
    return NULL;
  }
  return qomni_json_parse ("qomni --json", out, strlen (out),
      QOMNI_JSON_PLAIN, error);
}

static bool
check_text (JsonObject * got, JsonObject * want)
{
  const char *g = json_object_get_string_member_with_default (got, "text", "");
  const char *w = json_object_get_string_member_with_default (want, "text", "");

  if (strcmp (g, w) == 0)
    return true;
  printf ("#   text differs\n#     got      %s\n#     expected %s\n", g, w);
  return false;
}

static void
print_margins (JsonObject * want)
{
  JsonObject *margins = json_object_has_member (want, "margins") ?
      json_object_get_object_member (want, "margins") : NULL;
  g_autoptr (GList) names =
      margins == NULL ? NULL : json_object_get_members (margins);

  for (GList * l = names; l != NULL; l = l->next) {
    double margin = json_object_get_double_member (margins, l->data);

    if (margin < 1e-5)
      printf ("#   the reference chose %s by %g: a tie\n", (char *) l->data,
          margin);
  }
}

static bool
check_case (const char *qomni, const char *model, const char *directory,
    const char *scratch, GError ** error)
{
  g_autofree char *expected = g_build_filename (directory, "expected.json",
      NULL);
  g_autofree char *stages = g_build_filename (directory, "stages.safetensors",
      NULL);
  g_autofree char *want_directory = g_build_filename (scratch, "want", NULL);
  g_autoptr (JsonNode) want = NULL, got = NULL;
  g_autoptr (QomniCheckpoint) want_stages = NULL, got_stages = NULL;
  JsonObject *object;
  bool ok;

  want = qomni_json_read_file (expected, QOMNI_MAX_JSON_BYTES,
      QOMNI_JSON_PLAIN, error);
  if (want == NULL)
    return false;
  object = json_node_get_object (want);
  got = run_tool (qomni, model, directory, scratch,
      json_object_get_object_member (object, "options"), error);
  if (got == NULL)
    return false;
  g_mkdir (want_directory, 0700);
  want_stages = open_file (want_directory, stages, error);
  got_stages = want_stages == NULL ? NULL : open_file (scratch, NULL, error);
  if (got_stages == NULL)
    return false;

  ok = check_text (json_node_get_object (got), object);
  for (size_t i = 0; i < qomni_checkpoint_n_tensors (want_stages); i++)
    if (!check_stage (got_stages, want_stages,
            qomni_checkpoint_nth (want_stages, i)))
      ok = false;
  if (!ok)
    print_margins (object);
  return ok;
}

static void
remove_tree (const char *path)
{
  g_autoptr (GDir) dir = g_dir_open (path, 0, NULL);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *child = g_build_filename (path, name, NULL);

    if (g_file_test (child, G_FILE_TEST_IS_DIR)
        && !g_file_test (child, G_FILE_TEST_IS_SYMLINK))
      remove_tree (child);
    else
      g_remove (child);
  }
  g_rmdir (path);
}

static int
compare_names (gconstpointer a, gconstpointer b)
{
  return strcmp (*(char *const *) a, *(char *const *) b);
}

int
main (int argc, char **argv)
{
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);
  g_autoptr (GError) error = NULL;
  g_autoptr (GDir) dir = NULL;
  g_autofree char *cases = NULL;
  const char *name;
  int failed = 0;

  if (argc < 3) {
    fprintf (stderr, "usage: checkparity QOMNI MODEL_DIR [CASE…]\n");
    return 2;
  }
  cases = g_build_filename (argv[2], "cases", NULL);
  dir = g_dir_open (cases, 0, &error);
  if (dir == NULL) {
    printf ("Bail out! %s\n", error->message);
    return 1;
  }
  while ((name = g_dir_read_name (dir)) != NULL)
    if (argc == 3 || g_strv_contains ((const char *const *) argv + 3, name))
      g_ptr_array_add (names, g_strdup (name));
  g_ptr_array_sort (names, compare_names);
  if (names->len == 0) {
    printf ("Bail out! no cases in '%s'\n", cases);
    return 1;
  }

  printf ("1..%u\n", names->len);
  for (guint i = 0; i < names->len; i++) {
    g_autofree char *directory =
        g_build_filename (cases, g_ptr_array_index (names, i), NULL);
    g_autofree char *scratch =
        g_dir_make_tmp ("qomni-parity-XXXXXX", &error);
    bool ok = scratch != NULL
        && check_case (argv[1], argv[2], directory, scratch, &error);

    if (error != NULL)
      printf ("#   %s\n", error->message);
    g_clear_error (&error);
    printf ("%s %u - %s\n", ok ? "ok" : "not ok", i + 1,
        (char *) g_ptr_array_index (names, i));
    fflush (stdout);
    failed += !ok;
    if (scratch != NULL)
      remove_tree (scratch);
  }
  return failed > 0;
}
