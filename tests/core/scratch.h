/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Scratch directories with files in them, good ones and bad ones, and what a
 * refusal must look like.
 */
#pragma once

#include <glib/gstdio.h>
#include <string.h>

#include "checkpoint.h"

typedef char Scratch;

static inline Scratch *
scratch_new (void)
{
  g_autoptr (GError) error = NULL;
  char *dir = g_dir_make_tmp ("qomni-test-XXXXXX", &error);

  g_assert_no_error (error);
  return dir;
}

/* Entries of entries included; links are removed, not followed. */
static inline void
scratch_remove (const char *path)
{
  g_autoptr (GDir) dir = NULL;
  const char *name;

  if (!g_file_test (path, G_FILE_TEST_IS_SYMLINK))
    dir = g_dir_open (path, 0, NULL);
  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *entry = g_build_filename (path, name, NULL);

    scratch_remove (entry);
  }
  g_remove (path);
}

static inline void
scratch_free (Scratch * dir)
{
  scratch_remove (dir);
  g_free (dir);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC (Scratch, scratch_free)

static inline void
scratch_write (const char *dir, const char *name, const void *data, size_t n)
{
  g_autofree char *path = g_build_filename (dir, name, NULL);
  g_autoptr (GError) error = NULL;

  g_file_set_contents (path, data, (gssize) n, &error);
  g_assert_no_error (error);
}

static inline void
scratch_write_text (const char *dir, const char *name, const char *text)
{
  scratch_write (dir, name, text, strlen (text));
}

/* A safetensors file: that header, then n_data bytes 0, 1, 2, … */
static inline void
scratch_write_shard (const char *dir, const char *name, const char *header,
    size_t n_data)
{
  g_autoptr (GByteArray) file = g_byte_array_new ();
  uint64_t length = GUINT64_TO_LE ((uint64_t) strlen (header));

  g_byte_array_append (file, (const guint8 *) &length, sizeof length);
  g_byte_array_append (file, (const guint8 *) header,
      (guint) strlen (header));
  for (size_t i = 0; i < n_data; i++) {
    guint8 byte = (guint8) i;

    g_byte_array_append (file, &byte, 1);
  }
  scratch_write (dir, name, file->data, file->len);
}

static inline char *
scratch_read (const char *dir, const char *name, size_t *ret_n)
{
  g_autofree char *path = g_build_filename (dir, name, NULL);
  g_autoptr (GError) error = NULL;
  char *data = NULL;
  gsize n;

  g_file_get_contents (path, &data, &n, &error);
  g_assert_no_error (error);
  if (ret_n != NULL)
    *ret_n = n;
  return data;
}

/* The plain files of one directory, into another one. */
static inline void
scratch_copy (const char *from, const char *to)
{
  g_autoptr (GDir) dir = g_dir_open (from, 0, NULL);
  const char *name;

  g_assert_nonnull (dir);
  while ((name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *path = g_build_filename (from, name, NULL);
    g_autofree char *data = NULL;
    size_t n;

    if (!g_file_test (path, G_FILE_TEST_IS_REGULAR))
      continue;
    data = scratch_read (from, name, &n);
    scratch_write (to, name, data, n);
  }
}

/* Replaces the first `from` in a file, which must be there. */
static inline void
scratch_edit (const char *dir, const char *name, const char *from,
    const char *to)
{
  g_autofree char *text = scratch_read (dir, name, NULL);
  g_auto (GStrv) parts = g_strsplit (text, from, 2);
  g_autofree char *edited = NULL;

  g_assert_cmpuint (g_strv_length (parts), ==, 2);
  edited = g_strjoin (to, parts[0], parts[1], NULL);
  scratch_write_text (dir, name, edited);
}

/* An error of that code whose message has `words`; clears it. */
#define assert_refused(error, expected, words) \
  G_STMT_START { \
    g_assert_error (*(error), QOMNI_ERROR, (int) (expected)); \
    if (strstr ((*(error))->message, words) == NULL) \
      g_error ("the message '%s' lacks '%s'", (*(error))->message, words); \
    g_clear_error (error); \
  } G_STMT_END

/* The fixture of that name, or NULL after skipping the test. */
static inline char *
fixture_path (const char *name)
{
  const char *fixtures = g_getenv ("QOMNI_TEST_FIXTURES");
  g_autofree char *path = NULL;

  if (fixtures != NULL)
    path = g_build_filename (fixtures, name, NULL);
  if (path == NULL || !g_file_test (path, G_FILE_TEST_IS_DIR)) {
    g_test_skip ("no fixtures");
    return NULL;
  }
  return g_steal_pointer (&path);
}
