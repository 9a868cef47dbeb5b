/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a checkpoint that is in order gives: tensors by name and in file order,
 * bytes by reading and by mapping, the layouts of a directory.
 */
#include "checkpoint.h"

#include <errno.h>
#include <unistd.h>

#include "file.h"
#include "probe.h"
#include "scratch.h"

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define B "\"b.x\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]}"
#define INDEX "model.safetensors.index.json"

static QomniCheckpoint *
open_ok (const char *path, QomniReadMode mode)
{
  g_autoptr (GError) error = NULL;
  QomniCheckpoint *c = qomni_checkpoint_open (path, mode, &error);

  g_assert_no_error (error);
  return c;
}

static void
test_single (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *slash = g_strconcat (dir, "/", NULL);
  g_autoptr (QomniCheckpoint) c = NULL;
  const QomniTensorInfo *t;
  uint8_t bytes[12];

  /* Metadata, padding, and entries in another order than their data. */
  scratch_write_shard (dir, "model.safetensors",
      "{\"__metadata__\":{\"format\":\"pt\",\"x\":\"}\"}," B "," A ",\"e\":"
      "{\"dtype\":\"I64\",\"shape\":[0,4],\"data_offsets\":[20,20]},\"s\":"
      "{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[20,21]}}     ", 21);
  c = open_ok (slash, QOMNI_READ_PRIVATE);
  g_assert_cmpstr (qomni_checkpoint_path (c), ==, slash);
  g_assert_cmpuint (qomni_checkpoint_n_tensors (c), ==, 4);
  g_assert_cmpuint (qomni_checkpoint_n_shards (c), ==, 1);
  g_assert_cmpstr (qomni_checkpoint_shard_name (c, 0), ==,
      "model.safetensors");
  g_assert_cmpstr (qomni_checkpoint_nth (c, 0)->name, ==, "a");
  g_assert_cmpstr (qomni_checkpoint_nth (c, 1)->name, ==, "b.x");
  g_assert_cmpstr (qomni_checkpoint_nth (c, 2)->name, ==, "e");
  g_assert_cmpstr (qomni_checkpoint_nth (c, 3)->name, ==, "s");
  g_assert_null (qomni_checkpoint_nth (c, 4));

  t = qomni_checkpoint_find (c, "b.x");
  g_assert_nonnull (t);
  g_assert_cmpstr (t->dtype->name, ==, "BF16");
  g_assert_true (t->dtype->is_weight);
  g_assert_cmpint (t->n_dims, ==, 2);
  g_assert_cmpint (t->dims[0], ==, 2);
  g_assert_cmpint (t->dims[1], ==, 3);
  g_assert_cmpuint (t->bytes, ==, 12);
  g_assert_true (qomni_checkpoint_read (c, t, bytes, NULL));
  g_assert_cmpint (bytes[0], ==, 8);
  g_assert_cmpint (bytes[11], ==, 19);
  g_assert_true (qomni_checkpoint_read_part (c, t, 10, bytes, 2, NULL));
  g_assert_cmpint (bytes[0], ==, 18);
  g_assert_false (qomni_checkpoint_read_part (c, t, 11, bytes, 2, NULL));
  g_assert_false (qomni_checkpoint_read_part (c, t, UINT64_MAX, bytes, 2,
          NULL));
  g_assert_null (qomni_checkpoint_map (c, t));
  g_assert_false (qomni_checkpoint_find (c, "e")->dtype->is_weight);

  g_assert_null (qomni_checkpoint_find (c, "__metadata__"));
  g_assert_null (qomni_checkpoint_find (c, "b"));
  g_assert_true (qomni_checkpoint_has_prefix (c, "b."));
  g_assert_false (qomni_checkpoint_has_prefix (c, "b.y"));
}

static void
test_shards (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniCheckpoint) c = NULL;
  const QomniTensorInfo *t;
  float a[2];

  scratch_write_shard (dir, "two.safetensors", "{" A "}", 8);
  scratch_write_shard (dir, "one.safetensors",
      "{\"z\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]},"
      "\"extra\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[2,4]}}", 4);
  scratch_write_text (dir, INDEX, "{\"metadata\":{\"total_size\":12.0},"
      "\"weight_map\":{\"a\":\"two.safetensors\",\"z\":\"one.safetensors\"}}");
  c = open_ok (dir, QOMNI_READ_PRIVATE);
  g_assert_cmpuint (qomni_checkpoint_n_shards (c), ==, 2);
  g_assert_cmpuint (qomni_checkpoint_n_tensors (c), ==, 3);
  g_assert_cmpstr (qomni_checkpoint_nth (c, 0)->name, ==, "z");
  t = qomni_checkpoint_find (c, "a");
  g_assert_cmpstr (qomni_checkpoint_shard_name (c, t->shard), ==,
      "two.safetensors");
  g_assert_true (qomni_checkpoint_read (c, t, a, NULL));
  /* Left out by the index, but there and not ambiguous. */
  g_assert_nonnull (qomni_checkpoint_find (c, "extra"));
}

/* As the Hugging Face cache lays out a download. */
static void
test_cache (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *root = g_build_filename (dir, "models--a--b", NULL);
  g_autofree char *refs = g_build_filename (root, "refs", NULL);
  g_autofree char *blobs = g_build_filename (root, "blobs", NULL);
  g_autofree char *snapshot = g_build_filename (root, "snapshots", "c0ffee",
      NULL);
  g_autofree char *link = g_build_filename (snapshot, "model.safetensors",
      NULL);
  g_autoptr (GError) error = NULL;

  g_mkdir_with_parents (refs, 0700);
  g_mkdir_with_parents (blobs, 0700);
  g_mkdir_with_parents (snapshot, 0700);
  scratch_write_text (refs, "main", "c0ffee\n");
  scratch_write_shard (blobs, "1234", "{" A "}", 8);
  g_assert_cmpint (symlink ("../../blobs/1234", link), ==, 0);
  {
    g_autoptr (QomniCheckpoint) c = open_ok (root, QOMNI_READ_PRIVATE);

    g_assert_nonnull (qomni_checkpoint_find (c, "a"));
    g_assert_cmpstr (qomni_checkpoint_path (c), ==, root);
    g_assert_cmpstr (qomni_checkpoint_directory (c), ==, snapshot);
  }

  scratch_write_text (refs, "main", "../../elsewhere");
  g_assert_null (qomni_checkpoint_open (root, QOMNI_READ_PRIVATE, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "does not name a snapshot");
  scratch_write_text (refs, "main", "deadbeef");
  g_assert_null (qomni_checkpoint_open (root, QOMNI_READ_PRIVATE, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "deadbeef");
}

static void
test_mapped (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  /* 8 + 2 + header; the header is padded so that data begins at 64. */
  const char *header =
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
      "\"odd\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]},"
      "\"b\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[9,11]}}";
  g_autofree char *padded = g_strdup_printf ("%-184s", header);
  g_autoptr (QomniCheckpoint) c = NULL;
  const uint8_t *a;
  uint8_t copy[8];

  scratch_write_shard (dir, "model.safetensors", padded, 11);
  c = open_ok (dir, QOMNI_READ_MAPPED);
  a = qomni_checkpoint_map (c, qomni_checkpoint_find (c, "a"));
  g_assert_nonnull (a);
  g_assert_true (qomni_checkpoint_read (c, qomni_checkpoint_find (c, "a"),
          copy, NULL));
  g_assert_cmpmem (a, 8, copy, 8);
  g_assert_nonnull (qomni_checkpoint_map (c, qomni_checkpoint_find (c,
              "odd")));
  /* Two-byte elements at an odd address. */
  g_assert_null (qomni_checkpoint_map (c, qomni_checkpoint_find (c, "b")));
}

static void
test_file_replaced_after_opening (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniCheckpoint) c = NULL;
  uint8_t bytes[8];

  scratch_write_shard (dir, "model.safetensors", "{" A "}", 8);
  c = open_ok (dir, QOMNI_READ_PRIVATE);
  scratch_write_text (dir, "model.safetensors", "gone");        /* renames */
  g_assert_true (qomni_checkpoint_read (c, qomni_checkpoint_find (c, "a"),
          bytes, NULL));
  g_assert_cmpint (bytes[7], ==, 7);
}

static void
test_both_layouts_prefer_the_single_file (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniCheckpoint) c = NULL;

  scratch_write_shard (dir, "model.safetensors", "{" A "}", 8);
  scratch_write_text (dir, INDEX, "{");
  c = open_ok (dir, QOMNI_READ_PRIVATE);
  g_assert_cmpuint (qomni_checkpoint_n_tensors (c), ==, 1);
}

/* 28,010 tensors are the published model. */
static void
test_many_tensors (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (GString) header = g_string_new ("{");
  g_autoptr (QomniCheckpoint) c = NULL;
  const int n = 30000;

  for (int i = 0; i < n; i++)
    g_string_append_printf (header, "%s\"thinker.model.layers.%d.weight\":"
        "{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[%d,%d]}",
        i > 0 ? "," : "", i, 2 * i, 2 * i + 2);
  g_string_append (header, "}");
  scratch_write_shard (dir, "model.safetensors", header->str, 2 * (size_t) n);
  c = open_ok (dir, QOMNI_READ_PRIVATE);
  g_assert_cmpuint (qomni_checkpoint_n_tensors (c), ==, n);
  g_assert_cmpuint (qomni_checkpoint_find (c,
          "thinker.model.layers.29999.weight")->bytes, ==, 2);
}

/* --- a system that misbehaves -------------------------------------------- */

typedef struct
{
  int n_calls;
  int interrupt_every;          /* 0: never */
  size_t at_most;               /* bytes of one read; 0: all */
  int fail_call;                /* this call gives EIO; 0: none */
} Faults;

static ssize_t
faulty_read_at (void *user_data, int fd, void *dst, size_t bytes,
    uint64_t offset)
{
  Faults *f = user_data;

  f->n_calls++;
  if (f->n_calls == f->fail_call) {
    errno = EIO;
    return -1;
  }
  if (f->interrupt_every > 0 && f->n_calls % f->interrupt_every == 0) {
    errno = EINTR;
    return -1;
  }
  if (f->at_most > 0 && bytes > f->at_most)
    bytes = f->at_most;
  return pread (fd, dst, bytes, (off_t) offset);
}

static void
test_interrupted_and_short_reads (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Faults faults = {.interrupt_every = 2,.at_most = 3 };
  QomniFileIo io = { faulty_read_at, &faults };
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniCheckpoint) c = NULL;
  uint8_t bytes[12];

  scratch_write_shard (dir, "model.safetensors", "{" A "," B "}", 20);
  c = qomni_checkpoint_open_with_io (dir, QOMNI_READ_PRIVATE, &io, &error);
  g_assert_no_error (error);
  g_assert_true (qomni_checkpoint_read (c, qomni_checkpoint_find (c, "b.x"),
          bytes, &error));
  for (int i = 0; i < 12; i++)
    g_assert_cmpint (bytes[i], ==, 8 + i);
  g_assert_cmpint (faults.n_calls, >, 20);
}

/* The k-th read fails, for every k. */
static void
test_every_read_may_fail (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  int n_failed = 0;

  scratch_write_shard (dir, "one.safetensors", "{" A "}", 8);
  scratch_write_shard (dir, "two.safetensors",
      "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
  scratch_write_text (dir, INDEX, "{\"weight_map\":{\"a\":\"one.safetensors\","
      "\"b\":\"two.safetensors\"}}");
  for (int k = 1;; k++) {
    Faults faults = {.fail_call = k };
    QomniFileIo io = { faulty_read_at, &faults };
    g_autoptr (GError) error = NULL;
    g_autoptr (QomniCheckpoint) c = NULL;
    uint8_t bytes[8];

    c = qomni_checkpoint_open_with_io (dir, QOMNI_READ_PRIVATE, &io, &error);
    if (c != NULL
        && qomni_checkpoint_read (c, qomni_checkpoint_find (c, "a"), bytes,
            &error))
      break;
    g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_READ);
    g_assert_nonnull (strstr (error->message, g_strerror (EIO)));
    g_assert_nonnull (strstr (error->message, ".safetensors"));
    n_failed++;
  }
  g_assert_cmpint (n_failed, ==, 5);    /* two lengths, two headers, one read */
}

/* --- writing ------------------------------------------------------------- */

static void
test_write_and_read_back (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, "model.safetensors", NULL);
  const float f[3] = { 1, 2, 3 };
  const int64_t ids[2] = { -1, 7 };
  const QomniTensorOut outs[] = {
    {"f \"quoted\"", "F32", 2, {1, 3}, f, sizeof f},
    {"ids", "I64", 1, {2}, ids, sizeof ids},
    {"none", "F32", 1, {0}, NULL, 0},
  };
  QomniTensorOut wrong = outs[0];
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (GDir) listing = NULL;
  int64_t back[2];

  g_assert_true (qomni_safetensors_write (path, outs, 3, &error));
  g_assert_no_error (error);
  c = open_ok (dir, QOMNI_READ_MAPPED);
  g_assert_true (qomni_checkpoint_read (c, qomni_checkpoint_find (c, "ids"),
          back, NULL));
  g_assert_cmpmem (back, sizeof back, ids, sizeof ids);
  g_assert_nonnull (qomni_checkpoint_map (c, qomni_checkpoint_find (c, "ids")));
  g_assert_nonnull (qomni_checkpoint_find (c, "f \"quoted\""));

  wrong.bytes = 8;
  g_assert_false (qomni_safetensors_write (path, &wrong, 1, &error));
  assert_refused (&error, QOMNI_ERROR_INPUT, "its shape takes 12");
  wrong = outs[0];
  wrong.dtype = "F33";
  g_assert_false (qomni_safetensors_write (path, &wrong, 1, &error));
  assert_refused (&error, QOMNI_ERROR_INPUT, "F33");
  g_assert_false (qomni_safetensors_write ("/nonexistent/x", outs, 3,
          &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "/nonexistent/x");

  /* No temporary file is left. */
  listing = g_dir_open (dir, 0, NULL);
  g_assert_cmpstr (g_dir_read_name (listing), ==, "model.safetensors");
  g_assert_null (g_dir_read_name (listing));
}

static void
test_probe (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, "model.safetensors", NULL);
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniCheckpoint) c = NULL;
  const float a[4] = { 1, 2, 3, 4 }, b[2] = { 5, 6 };
  const float rows[6] = { 1, 2, 3, 4, 5, 6 };
  const float columns[6] = { 1, 2, 5, 3, 4, 6 };
  const int64_t ids[2] = { 1, 2 };
  int64_t dims[4];
  int n_dims;

  qomni_probe_append (NULL, "x", 0, 1, (int64_t[]) { 4 }, a);
  qomni_probe_append (probe, "rows", 0, 2, (int64_t[]) { 2, 2 }, a);
  qomni_probe_append (probe, "rows", 0, 2, (int64_t[]) { 1, 2 }, b);
  qomni_probe_append (probe, "columns", 1, 2, (int64_t[]) { 2, 2 }, a);
  qomni_probe_append (probe, "columns", 1, 2, (int64_t[]) { 2, 1 }, b);
  qomni_probe_append_ids (probe, "ids", 0, 1, (int64_t[]) { 2 }, ids);
  qomni_probe_append (probe, "gone", 0, 1, (int64_t[]) { 2 }, b);
  qomni_probe_clear (probe, "gone");

  g_assert_cmpmem (qomni_probe_get (probe, "rows", &n_dims, dims), 24, rows,
      24);
  g_assert_cmpint (n_dims, ==, 2);
  g_assert_cmpint (dims[0], ==, 3);
  g_assert_cmpint (dims[1], ==, 2);
  g_assert_cmpmem (qomni_probe_get (probe, "columns", NULL, dims), 24,
      columns, 24);
  g_assert_cmpint (dims[0], ==, 2);
  g_assert_cmpint (dims[1], ==, 3);
  g_assert_null (qomni_probe_get (probe, "ids", NULL, NULL));
  g_assert_null (qomni_probe_get (probe, "gone", NULL, NULL));

  g_assert_true (qomni_probe_write (probe, path, &error));
  c = open_ok (dir, QOMNI_READ_PRIVATE);
  g_assert_cmpuint (qomni_checkpoint_n_tensors (c), ==, 3);
  g_assert_cmpstr (qomni_checkpoint_find (c, "ids")->dtype->name, ==, "I64");

  /* The first fault is told when writing. */
  qomni_probe_append (probe, "rows", 0, 2, (int64_t[]) { 1, 3 }, a);
  g_assert_false (qomni_probe_write (probe, path, &error));
  assert_refused (&error, QOMNI_ERROR_INPUT, "'rows'");
}

static void
test_fixture (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (QomniCheckpoint) c = NULL;

  if (path == NULL)
    return;
  c = open_ok (path, QOMNI_READ_PRIVATE);
  g_assert_true (qomni_checkpoint_has_prefix (c, "code2wav."));
  g_assert_nonnull (qomni_checkpoint_find (c, "thinker.lm_head.weight"));
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/checkpoint/single_file_lists_its_tensors_in_order",
      test_single);
  g_test_add_func ("/checkpoint/shards_are_one_list", test_shards);
  g_test_add_func ("/checkpoint/cache_directory_leads_to_its_snapshot",
      test_cache);
  g_test_add_func ("/checkpoint/mapped_tensors_equal_read_ones", test_mapped);
  g_test_add_func ("/checkpoint/file_replaced_after_opening_has_no_effect",
      test_file_replaced_after_opening);
  g_test_add_func ("/checkpoint/single_file_wins_over_an_index",
      test_both_layouts_prefer_the_single_file);
  g_test_add_func ("/checkpoint/thirty_thousand_tensors_open",
      test_many_tensors);
  g_test_add_func ("/checkpoint/interrupted_and_short_reads_go_on",
      test_interrupted_and_short_reads);
  g_test_add_func ("/checkpoint/every_failing_read_is_an_error_with_errno",
      test_every_read_may_fail);
  g_test_add_func ("/checkpoint/written_file_reads_back",
      test_write_and_read_back);
  g_test_add_func ("/checkpoint/probe_appends_along_its_axis", test_probe);
  g_test_add_func ("/checkpoint/fixture_opens", test_fixture);
  return g_test_run ();
}
