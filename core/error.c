/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The error domain, cancellation, and sizes that cannot wrap.
 */
#include "types.h"

#include <string.h>

G_DEFINE_QUARK (qomni-error-quark, qomni_error)

bool
qomni_fail (GError ** error, QomniErrorCode code, const char *format, ...)
{
  va_list args;

  if (error == NULL)
    return false;
  va_start (args, format);
  g_propagate_error (error, g_error_new_valist (QOMNI_ERROR, code, format,
          args));
  va_end (args);
  return false;
}

char *
qomni_excerpt (const char *text, size_t max_bytes)
{
  const char *end = text;

  if (strlen (text) <= max_bytes)
    return g_strdup (text);
  while ((size_t) (g_utf8_next_char (end) - text) <= max_bytes)
    end = g_utf8_next_char (end);
  return g_strdup_printf ("%.*s...", (int) (end - text), text);
}

bool
qomni_go_on (GCancellable * cancellable, GError ** error)
{
  return !g_cancellable_set_error_if_cancelled (cancellable, error);
}

bool
qomni_size_mul (size_t a, size_t b, size_t *ret)
{
  return !__builtin_mul_overflow (a, b, ret);
}

bool
qomni_size_mul3 (size_t a, size_t b, size_t c, size_t *ret)
{
  size_t ab;

  /* a * b may overflow although c is 0; that still counts as too large. */
  return qomni_size_mul (a, b, &ab) && qomni_size_mul (ab, c, ret);
}

bool
qomni_size_add (size_t a, size_t b, size_t *ret)
{
  return !__builtin_add_overflow (a, b, ret);
}
