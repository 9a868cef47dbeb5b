/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A backend that fails on request: its k-th allocation gives nothing, or at its
 * k-th question a stream has a fault and does no more work, for every k that is
 * reached. Whatever fails says so, nothing leaks, and the same call succeeds
 * when it is made again.
 */
#include "engine.h"
#include "scratch.h"

/* --- the backend ---------------------------------------------------------- */

/* One at a time: the backend's functions have no user data. */
static struct
{
  QkBackend real;
  int allocs_left, errors_left; /* until one fails; -1: none does */
  size_t live;                  /* bytes, and one per stream */
  GHashTable *broken;           /* streams */
} faults;

static bool
count_down (int *left)
{
  return *left >= 0 && (*left)-- == 0;
}

static void *
faulty_alloc (QkBackend * be, size_t bytes)
{
  void *data;

  if (count_down (&faults.allocs_left))
    return NULL;
  data = faults.real.alloc (be, bytes);
  g_assert_nonnull (data);
  faults.live += bytes;
  return data;
}

static void
faulty_release (QkBackend * be, void *data, size_t bytes)
{
  g_assert_cmpuint (bytes, <=, faults.live);
  faults.live -= bytes;
  faults.real.release (be, data, bytes);
}

static QkStream *
faulty_stream_new (QkBackend * be)
{
  if (count_down (&faults.allocs_left))
    return NULL;
  faults.live++;
  return faults.real.stream_new (be);
}

static void
faulty_stream_free (QkStream * s)
{
  faults.live--;
  g_hash_table_remove (faults.broken, s);
  faults.real.stream_free (s);
}

static const char *
faulty_error (QkStream * s)
{
  if (count_down (&faults.errors_left))
    g_hash_table_add (faults.broken, s);
  return g_hash_table_contains (faults.broken, s) ? "made to fail" : NULL;
}

static void
faulty_copy (QkStream * s, void *dst, const void *src, size_t bytes)
{
  if (!g_hash_table_contains (faults.broken, s))
    faults.real.copy (s, dst, src, bytes);
}

static void
faulty_zero (QkStream * s, void *dst, size_t bytes)
{
  if (!g_hash_table_contains (faults.broken, s))
    faults.real.zero (s, dst, bytes);
}

static void
disarm (void)
{
  faults.allocs_left = faults.errors_left = -1;
}

/* A model on such a backend; nothing is loaded yet. */
static QomniModel *
model_new (const char *path)
{
  QomniModelOptions options = QOMNI_MODEL_OPTIONS_INIT;
  g_autoptr (GError) error = NULL;
  QomniModel *model;
  QkBackend *be;

  options.n_threads = 1;
  model = qomni_model_new (path, &options, &error);
  g_assert_no_error (error);
  be = qomni_model_backend (model);
  faults.real = *be;
  faults.live = 0;
  disarm ();
  be->alloc = faulty_alloc;
  be->release = faulty_release;
  be->stream_new = faulty_stream_new;
  be->stream_free = faulty_stream_free;
  be->error = faulty_error;
  be->copy = be->upload = be->download = faulty_copy;
  be->zero = faulty_zero;
  return model;
}

/* --- tests ---------------------------------------------------------------- */

static void
test_load (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  bool ok = false;

  for (int k = 0; path != NULL && !ok; k++) {
    QomniModel *model = model_new (path);
    g_autoptr (GError) error = NULL;

    faults.allocs_left = k;
    ok = qomni_model_load (model, ALL_COMPONENTS, NULL, NULL, NULL, &error);
    if (!ok) {
      assert_refused (&error, QOMNI_ERROR_MEMORY, "no memory");
      g_assert_true (qomni_model_load (model, ALL_COMPONENTS, NULL, NULL, NULL,
              &error));
    }
    g_assert_no_error (error);
    g_assert_true (!ok || k > 4);
    qomni_model_unref (model);
    g_assert_cmpuint (faults.live, ==, 0);
  }
}

static void
test_create (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (GError) error = NULL;
  QomniModel *model;
  bool ok = false;
  size_t loaded;

  if (path == NULL)
    return;
  model = model_new (path);
  g_assert_true (qomni_model_load (model, ALL_COMPONENTS, NULL, NULL, NULL,
          &error));
  loaded = faults.live;
  for (int k = 0; !ok; k++) {
    g_autoptr (Engine) e = NULL;

    faults.allocs_left = k;
    e = engine_new (model, &error);
    ok = e != NULL;
    g_assert_true (!ok || k > 8);
    if (ok)
      break;
    assert_refused (&error, QOMNI_ERROR_MEMORY, "no memory");
    g_assert_cmpuint (faults.live, ==, loaded);
  }
  g_assert_cmpuint (faults.live, ==, loaded);
  qomni_model_unref (model);
}

/* Fails at the k-th chance for every k, in turns of engines of their own. What
 * can do with less memory may succeed; a turn that fails is repeated. */
static void
fail_everywhere (int *left, int code, const char *words, int at_least)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (GString) want = g_string_new (NULL);
  g_autoptr (GString) got = g_string_new (NULL);
  g_autoptr (GError) error = NULL;
  QomniModel *model;
  size_t loaded;
  int n_failed = 0;
  bool reached = true;

  if (path == NULL)
    return;
  model = model_new (path);
  g_assert_true (qomni_model_load (model, ALL_COMPONENTS, NULL, NULL, NULL,
          &error));
  loaded = faults.live;
  for (int k = -1; reached; k++) {
    g_autoptr (Engine) e = engine_new (model, &error);

    g_assert_no_error (error);
    *left = k;
    if (!converse (e, k < 0 ? want : got, NULL, &error)) {
      assert_refused (&error, code, words);
      n_failed++;
      disarm ();
      engine_reset (e);
      g_assert_true (converse (e, got, NULL, &error));
    }
    reached = *left < 0;
    disarm ();
    if (k >= 0)
      g_assert_cmpstr (got->str, ==, want->str);
  }
  g_assert_cmpint (n_failed, >=, at_least);
  g_assert_cmpuint (faults.live, ==, loaded);
  qomni_model_unref (model);
}

static void
test_steps_without_memory (void)
{
  fail_everywhere (&faults.allocs_left, QOMNI_ERROR_MEMORY, "no memory", 1);
}

static void
test_steps_with_faults (void)
{
  fail_everywhere (&faults.errors_left, QOMNI_ERROR_BACKEND, "made to fail",
      20);
}

/* The Talker keeps the prompt through a fault, whenever it comes: the next turn
 * sounds as if there had been none. */
static void
test_prompt_survives (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (GString) want = g_string_new (NULL);
  g_autoptr (GString) got = g_string_new (NULL);
  g_autoptr (GString) ignored = g_string_new (NULL);
  g_autoptr (GError) error = NULL;
  QomniModel *model;
  int n_failed = 0;
  bool reached = true;

  if (path == NULL)
    return;
  model = model_new (path);
  for (int k = -1; reached; k++) {
    g_autoptr (Engine) e = engine_new (model, &error);
    QomniTalkerStep speech;

    g_assert_no_error (error);
    g_assert_true (converse (e, ignored, NULL, &error));
    g_assert_true (qomni_thinker_push_text (e->thinker, "And?", &error));
    g_assert_true (answer (e, ignored, NULL, &error));
    faults.errors_left = k;
    while (qomni_talker_step (e->talker, &speech, NULL, &error)
        && speech.state != QOMNI_TALKER_END);
    /* A fault that is found when a reply begins has cost nothing. */
    if (error != NULL) {
      assert_refused (&error, QOMNI_ERROR_BACKEND, "made to fail");
      n_failed++;
    }
    reached = faults.errors_left < 0;
    disarm ();
    g_assert_true (converse (e, k < 0 ? want : got, NULL, &error));
    if (k >= 0)
      g_assert_cmpstr (got->str, ==, want->str);
  }
  g_assert_cmpint (n_failed, >=, 10);
  qomni_model_unref (model);
}

int
main (int argc, char **argv)
{
  int ret;

  g_test_init (&argc, &argv, NULL);
  faults.broken = g_hash_table_new (NULL, NULL);
  g_test_add_func ("/faulty-backend/load_without_memory_may_be_retried",
      test_load);
  g_test_add_func ("/faulty-backend/objects_without_memory_leave_nothing",
      test_create);
  g_test_add_func ("/faulty-backend/turn_after_missing_memory_is_whole",
      test_steps_without_memory);
  g_test_add_func ("/faulty-backend/turn_after_a_fault_is_whole",
      test_steps_with_faults);
  g_test_add_func ("/faulty-backend/prompt_survives_a_fault_of_the_talker",
      test_prompt_survives);
  ret = g_test_run ();
  g_hash_table_unref (faults.broken);
  return ret;
}
