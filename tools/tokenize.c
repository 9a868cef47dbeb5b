/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomni tokenize, qomni detokenize: one line in, one line out.
 */
#include "qomni.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "tokenizer.h"

static void
print_ids (const int32_t * ids, size_t n)
{
  putchar ('[');
  for (size_t i = 0; i < n; i++)
    printf ("%s%" G_GINT32_FORMAT, i == 0 ? "" : ", ", ids[i]);
  printf ("]\n");
}

int
command_tokenize (int argc, char **argv)
{
  gboolean special = FALSE;
  const GOptionEntry entries[] = {
    {"special", 0, 0, G_OPTION_ARG_NONE, &special,
        "Recognise special tokens such as <|im_start|> in the text", NULL},
    G_OPTION_ENTRY_NULL
  };
  g_autoptr (QomniTokenizer) tokenizer = NULL;
  g_autoptr (GError) error = NULL;
  g_autofree char *line = NULL;
  const char *path;
  size_t size = 0;
  ssize_t length;

  if (!command_parse (&argc, &argv, entries,
          "Reads lines of UTF-8 text, prints one JSON array of ids for each.",
          &path))
    return STATUS_USAGE;
  tokenizer = qomni_tokenizer_read (path, &error);
  if (tokenizer == NULL)
    return command_fail (error);

  while ((length = getline (&line, &size, stdin)) >= 0) {
    g_autofree int32_t *ids = NULL;
    size_t n;

    if (length > 0 && line[length - 1] == '\n')
      length--;
    ids = qomni_tokenizer_encode (tokenizer, line, length,
        special ? QOMNI_ENCODE_SPECIAL : QOMNI_ENCODE_PLAIN, &n, &error);
    if (ids == NULL)
      return command_fail (error);
    print_ids (ids, n);
  }
  return STATUS_OK;
}

/* The ids of one line; false with an error when it is no array of them. */
static bool
parse_ids (const char *line, size_t length, GArray * ids, GError ** error)
{
  g_autoptr (JsonNode) root =
      qomni_json_parse ("the line", line, length, QOMNI_JSON_STRICT, error);
  JsonArray *array;

  if (root == NULL)
    return false;
  if (!JSON_NODE_HOLDS_ARRAY (root))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the line is %s, wanted an array of ids", json_node_type_name (root));
  array = json_node_get_array (root);
  for (guint i = 0; i < json_array_get_length (array); i++) {
    JsonNode *node = json_array_get_element (array, i);
    gint64 value = JSON_NODE_HOLDS_VALUE (node)
        && json_node_get_value_type (node) == G_TYPE_INT64
        ? json_node_get_int (node) : -1;
    int32_t id = (int32_t) value;

    if (value < 0 || value > QOMNI_MAX_VOCABULARY)
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "element %u of the line is no token id", i + 1);
    g_array_append_val (ids, id);
  }
  return true;
}

int
command_detokenize (int argc, char **argv)
{
  gboolean skip = FALSE;
  const GOptionEntry entries[] = {
    {"skip-special", 0, 0, G_OPTION_ARG_NONE, &skip,
        "Leave special tokens out", NULL},
    G_OPTION_ENTRY_NULL
  };
  g_autoptr (QomniTokenizer) tokenizer = NULL;
  g_autoptr (GError) error = NULL;
  g_autofree char *line = NULL;
  const char *path;
  size_t size = 0;
  ssize_t length;

  if (!command_parse (&argc, &argv, entries,
          "Reads lines with a JSON array of ids each, prints their text.",
          &path))
    return STATUS_USAGE;
  tokenizer = qomni_tokenizer_read (path, &error);
  if (tokenizer == NULL)
    return command_fail (error);

  while ((length = getline (&line, &size, stdin)) >= 0) {
    g_autoptr (GArray) ids = g_array_new (FALSE, FALSE, sizeof (int32_t));
    g_autofree char *text = NULL;

    if (!parse_ids (line, (size_t) length, ids, &error))
      return command_fail (error);
    text = qomni_tokenizer_decode (tokenizer, (const int32_t *) ids->data,
        ids->len, skip);
    puts (text);
  }
  return STATUS_OK;
}
