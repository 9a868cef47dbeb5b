/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniModel: what small files tell, what components cost, loading each once
 * however many ask, and the registry that shares models.
 */
#include "model.h"

#include <glib/gstdio.h>

#include "scratch.h"
#include "tokenizer.h"

#define ALL (QOMNI_COMPONENT_AUDIO | QOMNI_COMPONENT_VISION \
    | QOMNI_COMPONENT_THINKER | QOMNI_COMPONENT_SPEECH)

static QomniModelOptions
options (void)
{
  QomniModelOptions o = QOMNI_MODEL_OPTIONS_INIT;

  o.n_threads = 1;
  return o;
}

static QomniModel *
open_model (const char *path)
{
  QomniModelOptions o = options ();
  g_autoptr (GError) error = NULL;
  QomniModel *m = qomni_model_new (path, &o, &error);

  g_assert_no_error (error);
  return m;
}

static void
test_new (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (QomniModel) m = NULL;

  if (path == NULL)
    return;
  m = open_model (path);
  g_assert_cmpstr (qomni_model_path (m), ==, path);
  g_assert_cmpint (qomni_model_components (m), ==, ALL);
  g_assert_cmpint (qomni_model_loaded (m), ==, 0);
  g_assert_null (qomni_model_audio (m));
  g_assert_null (qomni_model_code2wav (m));
  g_assert_cmpint (qomni_model_config (m)->text.n_layers, ==, 4);
  g_assert_cmpint (qomni_tokenizer_id (qomni_model_tokenizer (m),
          "<|im_start|>"), ==, qomni_model_config (m)->im_start);
  g_assert_nonnull (qomni_model_backend (m));
  g_assert_cmpuint (strlen (qomni_model_fingerprint (m)), ==, 16);
  g_assert_cmpstr (qomni_component_name (QOMNI_COMPONENT_THINKER), ==,
      "thinker");
  g_assert_cmpstr (qomni_component_name (QOMNI_COMPONENT_SPEECH), ==,
      "unknown");
}

/* All tensors belong to exactly one component. */
static void
test_info (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (QomniModel) m = NULL;
  g_autoptr (GError) error = NULL;
  uint64_t n_parameters = 0, n_stored = 0, bytes = 0;
  size_t n_tensors = 0;
  QomniCheckpoint *c;
  QomniComponentInfo info;

  if (path == NULL)
    return;
  m = open_model (path);
  for (unsigned bit = 1; bit <= QOMNI_COMPONENT_CODE2WAV; bit <<= 1) {
    g_assert_true (qomni_model_component_info (m, bit, &info, &error));
    g_assert_no_error (error);
    g_assert_cmpstr (info.dtype, ==, "BF16");
    g_assert_cmpuint (info.bytes, >, 0);
    n_parameters += info.n_parameters;
    n_tensors += info.n_tensors;
    bytes += info.bytes;
  }
  c = qomni_model_checkpoint (m);
  for (size_t i = 0; i < qomni_checkpoint_n_tensors (c); i++)
    n_stored += qomni_checkpoint_nth (c, i)->bytes / 2;
  g_assert_cmpuint (n_tensors, ==, qomni_checkpoint_n_tensors (c));
  g_assert_cmpuint (n_parameters, ==, n_stored);
  /* bf16, and some of it converted to f32. */
  g_assert_cmpuint (bytes, >=, 2 * n_stored);
  g_assert_cmpuint (bytes, <=, 5 * n_stored);
  g_assert_cmpint (qomni_model_loaded (m), ==, 0);
  g_assert_false (qomni_model_component_info (m, QOMNI_COMPONENT_SPEECH,
          &info, &error));
  assert_refused (&error, QOMNI_ERROR_INPUT, "not one component");
}

typedef struct
{
  uint64_t done, total;
  int n;
  int cancel_after;
  GCancellable *cancellable;
} Watch;

static void
watch (uint64_t done, uint64_t total, void *user_data)
{
  Watch *w = user_data;

  g_assert_cmpuint (done, >=, w->done);
  g_assert_true (w->total == 0 || w->total == total);
  w->done = done;
  w->total = total;
  if (++w->n == w->cancel_after)
    g_cancellable_cancel (w->cancellable);
}

static void
test_load (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (QomniModel) m = NULL;
  g_autoptr (GError) error = NULL;
  QomniComponentInfo before, after;
  Watch w = { 0 };
  bool ok;

  if (path == NULL)
    return;
  m = open_model (path);
  qomni_model_component_info (m, QOMNI_COMPONENT_TALKER, &before, NULL);
  ok = qomni_model_load (m, QOMNI_COMPONENT_AUDIO, NULL, NULL, NULL, &error);
  g_assert_no_error (error);
  g_assert_true (ok);
  g_assert_cmpint (qomni_model_loaded (m), ==, QOMNI_COMPONENT_AUDIO);
  g_assert_nonnull (qomni_model_audio (m));
  g_assert_null (qomni_model_vision (m));

  ok = qomni_model_load (m, ALL, watch, &w, NULL, &error);
  g_assert_no_error (error);
  g_assert_true (ok);
  g_assert_cmpint (qomni_model_loaded (m), ==, ALL);
  g_assert_nonnull (qomni_model_vision (m));
  g_assert_nonnull (qomni_model_thinker (m));
  g_assert_nonnull (qomni_model_talker (m));
  g_assert_nonnull (qomni_model_code2wav (m));
  /* One bar for all of them. */
  g_assert_cmpuint (w.done, ==, w.total);
  g_assert_cmpint (w.n, >, 100);
  qomni_model_component_info (m, QOMNI_COMPONENT_TALKER, &after, NULL);
  g_assert_cmpuint (before.bytes, ==, after.bytes);
  g_assert_cmpuint (before.n_tensors, ==, after.n_tensors);

  w = (Watch) { 0 };
  g_assert_true (qomni_model_load (m, ALL, watch, &w, NULL, &error));
  g_assert_cmpint (w.n, ==, 0);
}

static void
test_cancel_and_retry (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (QomniModel) m = NULL;

  if (path == NULL)
    return;
  m = open_model (path);
  for (int after = 1; after < 400; after += 40) {
    Watch w = {.cancel_after = after,.cancellable = g_cancellable_new () };
    g_autoptr (QomniModel) other = open_model (path);
    g_autoptr (GError) error = NULL;
    bool ok = qomni_model_load (other, ALL, watch, &w, w.cancellable, &error);

    g_assert_false (ok);
    g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
    g_assert_cmpint (qomni_model_loaded (other), !=, ALL);
    g_clear_error (&error);
    if (after == 1) {
      qomni_model_load (other, ALL, NULL, NULL, NULL, &error);
      g_assert_no_error (error);
      g_assert_cmpint (qomni_model_loaded (other), ==, ALL);
    }
    g_object_unref (w.cancellable);
  }
  g_assert_cmpint (qomni_model_loaded (m), ==, 0);
}

/* --- many threads -------------------------------------------------------- */

typedef struct
{
  QomniModel *model;
  GCancellable *cancellable;    /* cancelled by the first tensor it loads */
  bool ok, cancelled;
  GError *error;
} Asker;

static void
cancel_asker (uint64_t done, uint64_t total, void *user_data)
{
  Asker *a = user_data;

  if (a->cancellable != NULL)
    g_cancellable_cancel (a->cancellable);
}

static gpointer
ask (gpointer data)
{
  Asker *a = data;

  a->ok = qomni_model_load (a->model, ALL, cancel_asker, a, a->cancellable,
      &a->error);
  return NULL;
}

static void
test_load_by_many (void)
{
  g_autofree char *path = fixture_path ("tiny-a");

  if (path == NULL)
    return;
  for (int round = 0; round < 5; round++) {
    g_autoptr (QomniModel) m = open_model (path);
    Asker askers[6] = { 0 };
    GThread *threads[6];

    /* Half of them give up as soon as they load something: the others still
     * get their model. */
    for (int i = 0; i < 6; i++) {
      askers[i].model = m;
      askers[i].cancellable = i % 2 == 0 ? g_cancellable_new () : NULL;
      threads[i] = g_thread_new ("ask", ask, &askers[i]);
    }
    for (int i = 0; i < 6; i++) {
      g_thread_join (threads[i]);
      if (askers[i].cancellable == NULL)
        g_assert_no_error (askers[i].error);
      else if (!askers[i].ok)
        g_assert_error (askers[i].error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
      g_assert_true (askers[i].ok == (askers[i].error == NULL));
      g_clear_error (&askers[i].error);
      g_clear_object (&askers[i].cancellable);
    }
    g_assert_cmpint (qomni_model_loaded (m), ==, ALL);
  }
}

static gpointer
open_shared (gpointer path)
{
  QomniModelOptions o = options ();
  g_autoptr (GError) error = NULL;
  QomniModel *m = qomni_model_ref_or_load (path, &o, &error);

  g_assert_no_error (error);
  return m;
}

static void
test_registry_single_flight (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  GThread *threads[8];
  QomniModel *models[8];

  if (path == NULL)
    return;
  for (int i = 0; i < 8; i++)
    threads[i] = g_thread_new ("open", open_shared, path);
  for (int i = 0; i < 8; i++) {
    models[i] = g_thread_join (threads[i]);
    g_assert_true (models[i] == models[0]);
  }
  for (int i = 0; i < 8; i++)
    qomni_model_unref (models[i]);
}

static gpointer
open_and_drop (gpointer path)
{
  for (int i = 0; i < 20; i++)
    qomni_model_unref (open_shared (path));
  return NULL;
}

/* Look-ups race with last references. */
static void
test_registry_churn (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  GThread *threads[4];

  if (path == NULL)
    return;
  for (int i = 0; i < 4; i++)
    threads[i] = g_thread_new ("churn", open_and_drop, path);
  for (int i = 0; i < 4; i++)
    g_thread_join (threads[i]);
}

/* --- the registry's key -------------------------------------------------- */

static void
test_registry_key (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autofree char *other_spelling = NULL;
  g_autoptr (QomniModel) m = NULL;
  QomniModelOptions o = options ();
  QomniModelOptions variants[] = { o, o, o, o, o };

  if (path == NULL)
    return;
  m = qomni_model_ref_or_load (path, &o, NULL);
  other_spelling = g_strconcat (path, "/../tiny-a//", NULL);
  o.device = "cpu";
  o.precision = "auto";
  o.engine_id = "";
  {
    g_autoptr (QomniModel) same = qomni_model_ref_or_load (other_spelling, &o,
        NULL);

    g_assert_true (same == m);
  }
  variants[0].precision = "f32";
  variants[1].engine_id = "mine";
  variants[2].n_threads = 2;
  variants[3].cpu_level = QK_CPU_C;
  variants[4].read_mode = QOMNI_READ_MAPPED;
  for (size_t i = 0; i < G_N_ELEMENTS (variants); i++) {
    g_autoptr (QomniModel) other = qomni_model_ref_or_load (path, &variants[i],
        NULL);

    g_assert_nonnull (other);
    g_assert_true (other != m);
  }
}

static void
test_replaced_files (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (Scratch) dir = NULL;
  g_autoptr (QomniModel) a = NULL;
  g_autoptr (QomniModel) b = NULL;
  g_autofree char *config = NULL;
  QomniModelOptions o = options ();
  size_t n;

  if (path == NULL)
    return;
  dir = scratch_new ();
  scratch_copy (path, dir);
  a = qomni_model_ref_or_load (dir, &o, NULL);
  config = scratch_read (dir, "config.json", &n);
  scratch_write (dir, "config.json", config, n);        /* a new file */
  b = qomni_model_ref_or_load (dir, &o, NULL);
  g_assert_true (a != b);
}

static void
test_fingerprint (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autofree char *path_b = fixture_path ("tiny-b");
  g_autoptr (Scratch) dir = NULL;
  g_autoptr (QomniModel) a = NULL;
  g_autoptr (QomniModel) copy = NULL;
  g_autoptr (QomniModel) changed = NULL;
  g_autofree char *weights = NULL;
  size_t n;
  const QomniTensorInfo *t;

  if (path == NULL || path_b == NULL)
    return;
  a = open_model (path);
  dir = scratch_new ();
  scratch_copy (path, dir);
  copy = open_model (dir);
  g_assert_cmpstr (qomni_model_fingerprint (a), ==,
      qomni_model_fingerprint (copy));

  /* Another encoder under the same config. */
  t = qomni_checkpoint_find (qomni_model_checkpoint (a),
      "thinker.visual.merger.ln_q.weight");
  weights = scratch_read (dir, "model.safetensors", &n);
  weights[t->offset] ^= 1;
  scratch_write (dir, "model.safetensors", weights, n);
  changed = open_model (dir);
  g_assert_cmpstr (qomni_model_fingerprint (a), !=,
      qomni_model_fingerprint (changed));
}

/* --- refusals ------------------------------------------------------------ */

static void
test_options (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (GError) error = NULL;
  QomniModelOptions o = options ();

  if (path == NULL)
    return;
  o.device = "cuda:1";
  g_assert_null (qomni_model_ref_or_load (path, &o, &error));
  assert_refused (&error, QOMNI_ERROR_DEVICE, "no CUDA backend");
  o.device = "tpu";
  g_assert_null (qomni_model_new (path, &o, &error));
  assert_refused (&error, QOMNI_ERROR_SETTINGS, "'tpu'");
  o = options ();
  o.precision = "int3";
  g_assert_null (qomni_model_ref_or_load (path, &o, &error));
  assert_refused (&error, QOMNI_ERROR_SETTINGS, "'int3'");
  o = options ();
  o.n_threads = -1;
  g_assert_null (qomni_model_new (path, &o, &error));
  assert_refused (&error, QOMNI_ERROR_SETTINGS, "-1 threads");
}

static void
test_bad_paths (void)
{
  g_autofree char *good = fixture_path ("tiny-a");
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *file = g_build_filename (dir, "x.gguf", NULL);
  g_autoptr (GError) error = NULL;
  QomniModelOptions o = options ();

  g_assert_null (qomni_model_ref_or_load ("/nonexistent", &o, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "/nonexistent");
  g_assert_null (qomni_model_ref_or_load ("", &o, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "no path");
  g_assert_null (qomni_model_ref_or_load (dir, &o, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "config.json");
  scratch_write_text (dir, "x.gguf", "GGUF");
  g_assert_null (qomni_model_ref_or_load (file, &o, &error));
  assert_refused (&error, QOMNI_ERROR_UNSUPPORTED, "GGUF");
  /* The same process goes on with a good one. */
  if (good != NULL)
    qomni_model_unref (open_shared (good));
}

/* The config describes speech, the files have none. */
static void
test_text_only_tensors (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (Scratch) dir = NULL;
  g_autoptr (QomniCheckpoint) from = NULL;
  g_autofree QomniTensorOut *outs = NULL;
  g_autoptr (GPtrArray) data = g_ptr_array_new_with_free_func (g_free);
  g_autofree char *file = NULL;
  g_autoptr (QomniModel) m = NULL;
  g_autoptr (GError) error = NULL;
  QomniComponentInfo info;
  size_t n = 0;

  if (path == NULL)
    return;
  dir = scratch_new ();
  scratch_copy (path, dir);
  from = qomni_checkpoint_open (path, QOMNI_READ_PRIVATE, NULL);
  outs = g_new0 (QomniTensorOut, qomni_checkpoint_n_tensors (from));
  for (size_t i = 0; i < qomni_checkpoint_n_tensors (from); i++) {
    const QomniTensorInfo *t = qomni_checkpoint_nth (from, i);
    QomniTensorOut *out = &outs[n];

    if (!g_str_has_prefix (t->name, "thinker."))
      continue;
    *out = (QomniTensorOut) {.name = t->name,.dtype = t->dtype->name,
      .n_dims = t->n_dims,.bytes = (size_t) t->bytes
    };
    memcpy (out->dims, t->dims, sizeof t->dims);
    out->data = g_malloc ((size_t) t->bytes);
    g_ptr_array_add (data, (gpointer) out->data);
    g_assert_true (qomni_checkpoint_read (from, t, (void *) out->data, NULL));
    n++;
  }
  file = g_build_filename (dir, "model.safetensors", NULL);
  g_assert_true (qomni_safetensors_write (file, outs, n, NULL));

  m = open_model (dir);
  g_assert_true (qomni_model_config (m)->has_speech);
  g_assert_cmpint (qomni_model_components (m), ==,
      ALL & ~QOMNI_COMPONENT_SPEECH);
  g_assert_true (qomni_model_component_info (m, QOMNI_COMPONENT_TALKER, &info,
          NULL));
  g_assert_cmpuint (info.bytes, ==, 0);
  g_assert_false (qomni_model_load (m, ALL, NULL, NULL, NULL, &error));
  assert_refused (&error, QOMNI_ERROR_SETTINGS, "no talker");
  g_assert_true (qomni_model_load (m, QOMNI_COMPONENT_THINKER, NULL, NULL, NULL,
          &error));
}

/* Config and tensors that disagree are found by the claims. */
static void
test_disagreement (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (Scratch) dir = NULL;
  g_autoptr (QomniModel) m = NULL;
  g_autoptr (GError) error = NULL;
  QomniComponentInfo info;

  if (path == NULL)
    return;
  dir = scratch_new ();
  scratch_copy (path, dir);
  scratch_edit (dir, "config.json", "\"moe_intermediate_size\": 32",
      "\"moe_intermediate_size\": 31");
  m = open_model (dir);
  g_assert_false (qomni_model_component_info (m, QOMNI_COMPONENT_THINKER,
          &info, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "expected BF16 [31, 48]");
  g_assert_false (qomni_model_load (m, QOMNI_COMPONENT_THINKER, NULL, NULL,
          NULL, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "expected BF16 [31, 48]");
  g_assert_true (qomni_model_load (m, QOMNI_COMPONENT_AUDIO, NULL, NULL, NULL,
          &error));

  /* Without experts the layers would be dense, and there are no such. */
  g_clear_pointer (&m, qomni_model_unref);
  scratch_copy (path, dir);
  scratch_edit (dir, "config.json", "\"num_experts\": 8",
      "\"num_experts\": 0");
  m = open_model (dir);
  g_assert_false (qomni_model_load (m, QOMNI_COMPONENT_THINKER, NULL, NULL,
          NULL, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, ".mlp.gate_proj.weight'");
}

static void
test_ids_from_the_tokenizer (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (Scratch) dir = NULL;
  g_autoptr (QomniModel) m = NULL;

  if (path == NULL)
    return;
  dir = scratch_new ();
  scratch_copy (path, dir);
  scratch_edit (dir, "config.json", "\"im_end_token_id\": 588,", "");
  scratch_edit (dir, "config.json", "\"assistant_token_id\": 266,", "");
  scratch_edit (dir, "config.json", "\"tts_bos_token_id\": 615,", "");
  m = open_model (dir);
  g_assert_cmpint (qomni_model_config (m)->im_end, ==, 588);
  g_assert_cmpint (qomni_model_config (m)->assistant_id, ==, 266);
  g_assert_cmpint (qomni_model_config (m)->tts_bos, ==, 615);
}

static void
test_default_path (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *nano = g_build_filename (dir, "qomni-nano", NULL);
  bool builtin;

  g_setenv ("QOMNI_MODELS_DIR", dir, TRUE);
  g_setenv ("QOMNI_MODEL", "/some/where", TRUE);
  {
    g_autofree char *path = qomni_model_default_path (&builtin);

    g_assert_cmpstr (path, ==, "/some/where");
    g_assert_false (builtin);
  }
  g_unsetenv ("QOMNI_MODEL");
  g_assert_null (qomni_model_default_path (NULL));
  g_mkdir (nano, 0700);
  scratch_write_text (nano, "config.json", "{}");
  {
    g_autofree char *path = qomni_model_default_path (&builtin);

    g_assert_cmpstr (path, ==, nano);
    g_assert_true (builtin);
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/model/new_reads_small_files_only", test_new);
  g_test_add_func ("/model/components_cover_every_tensor_once", test_info);
  g_test_add_func ("/model/components_load_once", test_load);
  g_test_add_func ("/model/cancelled_load_may_be_retried",
      test_cancel_and_retry);
  g_test_add_func ("/model/many_threads_load_one_model", test_load_by_many);
  g_test_add_func ("/model/registry_opens_once_for_many",
      test_registry_single_flight);
  g_test_add_func ("/model/registry_survives_churn", test_registry_churn);
  g_test_add_func ("/model/registry_shares_only_equal_settings",
      test_registry_key);
  g_test_add_func ("/model/replaced_files_are_another_model",
      test_replaced_files);
  g_test_add_func ("/model/fingerprint_tells_encoders_apart",
      test_fingerprint);
  g_test_add_func ("/model/bad_options_are_refused", test_options);
  g_test_add_func ("/model/bad_paths_are_refused", test_bad_paths);
  g_test_add_func ("/model/speech_needs_its_tensors", test_text_only_tensors);
  g_test_add_func ("/model/config_at_odds_with_tensors_is_refused",
      test_disagreement);
  g_test_add_func ("/model/absent_ids_come_from_the_tokenizer",
      test_ids_from_the_tokenizer);
  g_test_add_func ("/model/default_path_prefers_the_environment",
      test_default_path);
  return g_test_run ();
}
