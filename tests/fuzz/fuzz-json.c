/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * First byte: flags. The rest: a document. What the guard lets through
 * json-glib can read.
 */
#include "fuzz.h"

#include <stdlib.h>

#include "json.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (JsonNode) node = NULL;
  QomniJsonFlags flags;
  bool ok;

  if (size < 1 || size > 1 << 16)
    return 0;
  flags = data[0] & (QOMNI_JSON_STRICT | QOMNI_JSON_HEADER);
  ok = qomni_json_check ("fuzz", (const char *) data + 1, size - 1, flags,
      &error);
  if (ok != (error == NULL))
    abort ();
  g_clear_error (&error);
  node = qomni_json_parse ("fuzz", (const char *) data + 1, size - 1, flags,
      &error);
  if (ok != (node != NULL) || ok != (error == NULL))
    abort ();
  return 0;
}
