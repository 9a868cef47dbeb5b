/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the tests of hearing and seeing read: tensors of one safetensors file,
 * 16-bit WAV files, and the places where they lie.
 */
#pragma once

#include <glib/gstdio.h>
#include <json-glib/json-glib.h>
#include <math.h>
#include <string.h>

#include "model.h"
#include "probe.h"
#include "safetensors.h"

G_GNUC_UNUSED static char *
fixture_path (const char *first, ...)
{
  const char *root = g_getenv ("QOMNI_TEST_FIXTURES");
  g_autofree char *rest = NULL;
  va_list args;

  g_assert_nonnull (root);
  va_start (args, first);
  rest = g_build_filename_valist (first, &args);
  va_end (args);
  return g_build_filename (root, rest, NULL);
}

typedef struct
{
  char *bytes;
  QomniSafetensors header;
} Tensors;

static inline void
tensors_clear (Tensors * self)
{
  g_free (self->bytes);
  qomni_safetensors_clear (&self->header);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Tensors, tensors_clear)

/* Takes the path. */
G_GNUC_UNUSED static Tensors
tensors_open (char *path)
{
  Tensors self = { 0 };
  g_autoptr (GError) error = NULL;
  uint64_t length;
  gsize size;

  g_file_get_contents (path, &self.bytes, &size, &error);
  g_assert_no_error (error);
  memcpy (&length, self.bytes, sizeof length);
  length = GUINT64_FROM_LE (length);
  qomni_safetensors_parse (path, self.bytes + 8, length, size, &self.header,
      &error);
  g_assert_no_error (error);
  g_free (path);
  return self;
}

G_GNUC_UNUSED static Tensors
core_data (const char *name)
{
  return tensors_open (fixture_path ("..", "..", "core", "data", name, NULL));
}

/* NULL when there is none. */
G_GNUC_UNUSED static const void *
tensors_find (const Tensors * self, const char *name,
    const QomniTensorInfo ** ret_info)
{
  for (size_t i = 0; i < self->header.n; i++) {
    const QomniTensorInfo *t = &self->header.tensors[i];

    if (strcmp (t->name, name) == 0) {
      *ret_info = t;
      return self->bytes + t->offset;
    }
  }
  return NULL;
}

G_GNUC_UNUSED static const void *
tensors_get (const Tensors * self, const char *name,
    const QomniTensorInfo ** ret_info)
{
  const void *data = tensors_find (self, name, ret_info);

  if (data == NULL)
    g_error ("no tensor %s", name);
  return data;
}

/* Samples of a mono 16-bit WAV file with the canonical header; g_free(). */
G_GNUC_UNUSED static int16_t *
read_wav (char *path, size_t *ret_n)
{
  g_autofree char *bytes = NULL;
  g_autoptr (GError) error = NULL;
  gsize size;

  g_file_get_contents (path, &bytes, &size, &error);
  g_assert_no_error (error);
  g_assert_cmpmem (bytes + 36, 4, "data", 4);
  *ret_n = (size - 44) / 2;
  g_free (path);
  return g_memdup2 (bytes + 44, size - 44);
}

G_GNUC_UNUSED static QomniModel *
open_model (const char *name)
{
  const QomniModelOptions options = {.precision = "f32", .n_threads = 1,
    .cpu_level = QK_CPU_BEST
  };
  g_autofree char *path = fixture_path (name, NULL);
  g_autoptr (GError) error = NULL;
  QomniModel *model = qomni_model_new (path, &options, &error);

  g_assert_no_error (error);
  return model;
}

/* Of a against b. */
G_GNUC_UNUSED static double
relative_rms (const float *a, const float *b, size_t n)
{
  double error = 0, power = 0;

  for (size_t i = 0; i < n; i++) {
    error += pow ((double) a[i] - b[i], 2);
    power += pow (b[i], 2);
  }
  return sqrt (error / power);
}

G_GNUC_UNUSED static double
largest_difference (const float *a, const float *b, size_t n)
{
  double worst = 0;

  for (size_t i = 0; i < n; i++)
    worst = fmax (worst, fabs ((double) a[i] - b[i]));
  return worst;
}

/* A stage of the probe has the shape and, within bounds, the values of the
 * reference. */
G_GNUC_UNUSED static void
check_stage (QomniProbe * probe, const Tensors * stages, const char *name,
    double absolute, double relative)
{
  const QomniTensorInfo *info;
  const float *want = tensors_find (stages, name, &info);
  int64_t dims[4];
  int n_dims;
  const float *got = qomni_probe_get (probe, name, &n_dims, dims);
  double difference, rms;
  size_t n;

  if (want == NULL)
    return;
  g_assert_nonnull (got);
  g_assert_cmpint (n_dims, ==, 2);
  g_assert_cmpint (dims[0], ==, info->dims[0]);
  g_assert_cmpint (dims[1], ==, info->dims[1]);
  n = (size_t) (dims[0] * dims[1]);
  difference = largest_difference (got, want, n);
  rms = relative_rms (got, want, n);
  g_test_message ("%s: largest difference %.2g, relative RMS %.2g", name,
      difference, rms);
  g_assert_cmpfloat (difference, <=, absolute);
  g_assert_cmpfloat (rms, <=, relative);
}

/* A copy of tiny-a in which `tensor` is NaN. */
G_GNUC_UNUSED static QomniModel *
open_poisoned_model (const char *tensor)
{
  static const char *const files[] = { "config.json", "generation_config.json",
    "merges.txt", "model.safetensors", "preprocessor_config.json",
    "tokenizer_config.json", "vocab.json"
  };
  g_autoptr (GError) error = NULL;
  g_autofree char *directory = g_dir_make_tmp ("qomni-XXXXXX", &error);
  QomniModel *model;

  g_assert_no_error (error);
  for (size_t i = 0; i < G_N_ELEMENTS (files); i++) {
    g_autofree char *from = fixture_path ("tiny-a", files[i], NULL);
    g_autofree char *to = g_build_filename (directory, files[i], NULL);
    g_autofree char *bytes = NULL;
    gsize size;

    g_file_get_contents (from, &bytes, &size, &error);
    g_assert_no_error (error);
    if (strcmp (files[i], "model.safetensors") == 0) {
      g_auto (Tensors) tensors = tensors_open (g_strdup (from));
      const QomniTensorInfo *info;

      tensors_get (&tensors, tensor, &info);
      memset (bytes + info->offset, 0xff, info->bytes);
    }
    g_file_set_contents (to, bytes, (gssize) size, &error);
    g_assert_no_error (error);
  }
  model = qomni_model_new (directory, NULL, &error);
  g_assert_no_error (error);
  qomni_model_load (model, QOMNI_COMPONENT_AUDIO, NULL, NULL, NULL, &error);
  g_assert_no_error (error);
  qomni_model_load (model, QOMNI_COMPONENT_VISION, NULL, NULL, NULL, &error);
  g_assert_no_error (error);
  for (size_t i = 0; i < G_N_ELEMENTS (files); i++) {
    g_autofree char *path = g_build_filename (directory, files[i], NULL);

    g_unlink (path);
  }
  g_rmdir (directory);
  return model;
}
