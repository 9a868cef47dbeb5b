/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the tests of the Talker and of Code2Wav share: the parity fixtures'
 * models and stages, changed copies of a model, and comparisons.
 */
#pragma once

#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "checkpoint.h"
#include "model.h"

/* A directory of the fixtures, or NULL after skipping the test. */
static inline char *
fixture_path (const char *name)
{
  const char *root = g_getenv ("QOMNI_TEST_FIXTURES");
  g_autofree char *path = NULL;

  if (root != NULL)
    path = g_build_filename (root, name, NULL);
  if (path == NULL || !g_file_test (path, G_FILE_TEST_EXISTS)) {
    g_test_skip ("QOMNI_TEST_FIXTURES does not have it");
    return NULL;
  }
  return g_steal_pointer (&path);
}

static inline QomniModel *
model_at (const char *path)
{
  QomniModelOptions options = QOMNI_MODEL_OPTIONS_INIT;
  g_autoptr (GError) error = NULL;
  QomniModel *model;

  options.n_threads = 1;
  model = qomni_model_new (path, &options, &error);
  g_assert_no_error (error);
  return model;
}

/* A directory that is gone with the test: links to the files of another one. */
static inline char *
linked_copy (const char *path)
{
  g_autoptr (GError) error = NULL;
  char *copy = g_dir_make_tmp ("qomni-test-XXXXXX", &error);
  g_autoptr (GDir) dir = NULL;
  const char *name;

  g_assert_no_error (error);
  dir = g_dir_open (path, 0, &error);
  g_assert_no_error (error);
  while ((name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *from = g_build_filename (path, name, NULL);
    g_autofree char *to = g_build_filename (copy, name, NULL);

    if (g_file_test (from, G_FILE_TEST_IS_REGULAR))
      g_assert_cmpint (symlink (from, to), ==, 0);
  }
  return copy;
}

static inline void
remove_copy (char *path)
{
  g_autoptr (GDir) dir = g_dir_open (path, 0, NULL);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *file = g_build_filename (path, name, NULL);

    g_assert_cmpint (g_unlink (file), ==, 0);
  }
  g_assert_cmpint (g_rmdir (path), ==, 0);
  g_free (path);
}

/* The tensors of one safetensors file, opened as a checkpoint. */
typedef struct
{
  QomniCheckpoint *checkpoint;
  char *directory;
} Stages;

static inline Stages *
stages_open (const char *file)
{
  g_autoptr (GError) error = NULL;
  Stages *self = g_new0 (Stages, 1);
  g_autofree char *link = NULL;

  self->directory = g_dir_make_tmp ("qomni-test-XXXXXX", &error);
  g_assert_no_error (error);
  link = g_build_filename (self->directory, "model.safetensors", NULL);
  g_assert_cmpint (symlink (file, link), ==, 0);
  self->checkpoint =
      qomni_checkpoint_open (self->directory, QOMNI_READ_PRIVATE, &error);
  g_assert_no_error (error);
  return self;
}

static inline void
stages_close (Stages * self)
{
  qomni_checkpoint_unref (self->checkpoint);
  remove_copy (self->directory);
  g_free (self);
}

/* The bytes of a tensor and what it is; both NULL when there is none. */
static inline void *
stages_get (const Stages * self, const char *name, const char *dtype,
    const QomniTensorInfo ** ret)
{
  const QomniTensorInfo *t = qomni_checkpoint_find (self->checkpoint, name);
  g_autoptr (GError) error = NULL;
  void *data;

  *ret = t;
  if (t == NULL)
    return NULL;
  g_assert_cmpstr (t->dtype->name, ==, dtype);
  data = g_malloc (t->bytes);
  qomni_checkpoint_read (self->checkpoint, t, data, &error);
  g_assert_no_error (error);
  return data;
}

/* The largest difference; not a number when one of a or b is not. */
static inline double
max_error (const float *a, const float *b, size_t n)
{
  double worst = 0;

  for (size_t i = 0; i < n; i++) {
    double d = fabs ((double) a[i] - b[i]);

    if (!(d <= worst))
      worst = d;
    if (isnan (worst))
      break;
  }
  return worst;
}

static inline double
rms (const float *a, size_t n)
{
  double sum = 0;

  for (size_t i = 0; i < n; i++)
    sum += (double) a[i] * a[i];
  return n > 0 ? sqrt (sum / (double) n) : 0;
}
