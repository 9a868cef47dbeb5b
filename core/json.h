/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * JSON from files we do not trust: one strict pass over the bytes (size,
 * UTF-8, grammar, nesting, value count), then json-glib.
 */
#pragma once

#include <json-glib/json-glib.h>

#include "types.h"

G_BEGIN_DECLS

typedef enum
{
  QOMNI_JSON_PLAIN = 0,
  /* Checkpoint documents: also refuses duplicate keys, integers outside
   * int64, numbers that overflow double, and \u0000. */
  QOMNI_JSON_STRICT = 1 << 0,
  /* Shard headers: integers within 0 … 2^48-1 as well. */
  QOMNI_JSON_HEADER = 1 << 1,
} QomniJsonFlags;

/* Checks one document; `name` is for the message, which has the byte. */
bool qomni_json_check (const char *name, const char *data, size_t length,
    QomniJsonFlags flags, GError ** error);
/* Checks and parses; free with json_node_unref(). */
JsonNode *qomni_json_parse (const char *name, const char *data, size_t length,
    QomniJsonFlags flags, GError ** error);
/* Reads at most `max_bytes` of a regular file, checks and parses it. */
JsonNode *qomni_json_read_file (const char *path, size_t max_bytes,
    QomniJsonFlags flags, GError ** error);
/* The bytes of a regular file of at most max_bytes and a NUL; g_free(). */
char *qomni_read_file (const char *path, size_t max_bytes, size_t * ret_length,
    GError ** error);

G_END_DECLS
