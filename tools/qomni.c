/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomni: the engine on the command line, for people without a pipeline in mind
 * and as the fixed door for tests.
 */
#include "qomni.h"

#include <locale.h>
#include <string.h>

static const struct
{
  const char *name;
  int (*run) (int argc, char **argv);
  const char *what;
} commands[] = {
  {"info", command_info, "what a checkpoint holds and needs"},
  {"tokenize", command_tokenize, "lines of text to JSON arrays of ids"},
  {"detokenize", command_detokenize, "JSON arrays of ids to text"},
  {"generate", command_generate, "answer a conversation, in text and speech"},
};

static void
print_usage (FILE * to)
{
  fprintf (to, "usage: qomni COMMAND MODEL [OPTION…]\n\n");
  for (size_t i = 0; i < G_N_ELEMENTS (commands); i++)
    fprintf (to, "  %-11s %s\n", commands[i].name, commands[i].what);
  fprintf (to, "\nMODEL is a checkpoint directory as published on Hugging "
      "Face.\n`qomni COMMAND --help` lists the options.\n");
}

bool
command_parse (int *argc, char ***argv, const GOptionEntry * entries,
    const char *summary, const char **ret_model)
{
  g_autoptr (GOptionContext) context = g_option_context_new ("MODEL");
  g_autofree char *name = g_strdup ((*argv)[0]);
  g_autoptr (GError) error = NULL;

  g_option_context_set_summary (context, summary);
  g_option_context_add_main_entries (context, entries, NULL);
  if (!g_option_context_parse (context, argc, argv, &error)) {
    fprintf (stderr, "qomni %s: %s\n", name, error->message);
    return false;
  }
  if (*argc == 3 && strcmp ((*argv)[1], "--") == 0) {
    (*argv)++;
    (*argc)--;
  }
  if (*argc != 2) {
    fprintf (stderr, "qomni %s: %s\n", name, *argc < 2 ? "no MODEL given"
        : "too many arguments: one MODEL is wanted");
    return false;
  }
  *ret_model = (*argv)[1];
  return true;
}

int
command_fail (const GError * error)
{
  fprintf (stderr, "qomni: %s\n", error->message);
  return STATUS_FAILED;
}

void
command_print_json (JsonBuilder * builder)
{
  g_autoptr (JsonNode) root = json_builder_get_root (builder);
  g_autofree char *text = json_to_string (root, FALSE);

  /* json-glib escapes the control characters below this one. */
  for (const char *p = text; *p != '\0'; p++) {
    if (*p == '\x1f')
      fputs ("\\u001f", stdout);
    else
      putchar (*p);
  }
  putchar ('\n');
}

int
main (int argc, char **argv)
{
  setlocale (LC_ALL, "");
  /* Numbers are read and written with a point, whatever the language. */
  setlocale (LC_NUMERIC, "C");
  g_set_prgname ("qomni");
  if (argc < 2) {
    print_usage (stderr);
    return STATUS_USAGE;
  }
  if (strcmp (argv[1], "--help") == 0 || strcmp (argv[1], "-h") == 0) {
    print_usage (stdout);
    return STATUS_OK;
  }
  if (strcmp (argv[1], "--version") == 0) {
    printf ("qomni %s\n", QOMNI_VERSION);
    return STATUS_OK;
  }
  for (size_t i = 0; i < G_N_ELEMENTS (commands); i++)
    if (strcmp (argv[1], commands[i].name) == 0)
      return commands[i].run (argc - 1, argv + 1);
  fprintf (stderr, "qomni: no command '%s'\n", argv[1]);
  print_usage (stderr);
  return STATUS_USAGE;
}
