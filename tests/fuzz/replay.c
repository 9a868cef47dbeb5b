/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Runs a fuzz target once over every file of the directories (or the files)
 * given, so that a corpus is a test without a fuzzer.
 */
#include <glib.h>
#include <stdio.h>

#include "fuzz.h"

static int
replay_file (const char *path)
{
  char *data = NULL;
  gsize n;
  uint8_t *block;

  if (!g_file_get_contents (path, &data, &n, NULL)) {
    fprintf (stderr, "cannot read %s\n", path);
    return 0;
  }
  /* A block without the terminator that GLib adds. */
  block = g_memdup2 (data, n);
  g_free (data);
  LLVMFuzzerTestOneInput (block, n);
  g_free (block);
  return 1;
}

int
main (int argc, char **argv)
{
  int n_files = 0;

  for (int i = 1; i < argc; i++) {
    GDir *dir = g_dir_open (argv[i], 0, NULL);
    const char *name;

    if (dir == NULL) {
      n_files += replay_file (argv[i]);
      continue;
    }
    while ((name = g_dir_read_name (dir)) != NULL) {
      char *path = g_build_filename (argv[i], name, NULL);

      n_files += replay_file (path);
      g_free (path);
    }
    g_dir_close (dir);
  }
  printf ("%d inputs\n", n_files);
  return n_files > 0 ? 0 : 1;
}
