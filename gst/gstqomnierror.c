/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QOMNI_ERROR -> GStreamer error domains.
 *
 * The core's message names the thing, what it is and what was wanted, so it is
 * the sentence for the user; domain and code are what a program switches on.
 */
#include "gstqomnierror.h"

#include "types.h"

/* The machine may fail this often in a row before it is an error. */
#define MAX_FAILURES 3

gboolean
gst_qomni_error_to_gst (const GError * error, GQuark * ret_domain,
    gint * ret_code)
{
  static const struct
  {
    QomniErrorCode code;
    gboolean resource;
    gboolean library;
    gint gst_code;
  } table[] = {
    {QOMNI_ERROR_NOT_FOUND, TRUE, FALSE, GST_RESOURCE_ERROR_NOT_FOUND},
    {QOMNI_ERROR_OPEN, TRUE, FALSE, GST_RESOURCE_ERROR_OPEN_READ},
    {QOMNI_ERROR_READ, TRUE, FALSE, GST_RESOURCE_ERROR_READ},
    {QOMNI_ERROR_FORMAT, FALSE, FALSE, GST_STREAM_ERROR_FORMAT},
    {QOMNI_ERROR_UNSUPPORTED, FALSE, TRUE, GST_LIBRARY_ERROR_SETTINGS},
    {QOMNI_ERROR_SETTINGS, FALSE, TRUE, GST_LIBRARY_ERROR_SETTINGS},
    {QOMNI_ERROR_MEMORY, TRUE, FALSE, GST_RESOURCE_ERROR_NO_SPACE_LEFT},
    {QOMNI_ERROR_LIMIT, FALSE, FALSE, GST_STREAM_ERROR_FORMAT},
    {QOMNI_ERROR_DEVICE, FALSE, TRUE, GST_LIBRARY_ERROR_INIT},
    {QOMNI_ERROR_INPUT, FALSE, FALSE, GST_STREAM_ERROR_FORMAT},
    {QOMNI_ERROR_NUMERIC, FALSE, FALSE, GST_STREAM_ERROR_FAILED},
    {QOMNI_ERROR_BACKEND, FALSE, FALSE, GST_STREAM_ERROR_FAILED},
  };
  guint i;

  if (error == NULL
      || g_error_matches (error, G_IO_ERROR, G_IO_ERROR_CANCELLED))
    return FALSE;

  *ret_domain = GST_STREAM_ERROR;
  *ret_code = GST_STREAM_ERROR_FAILED;

  if (error->domain == G_IO_ERROR) {
    *ret_domain = GST_RESOURCE_ERROR;
    *ret_code = error->code == G_IO_ERROR_NOT_FOUND
        ? GST_RESOURCE_ERROR_NOT_FOUND : GST_RESOURCE_ERROR_READ;
  } else if (error->domain == GST_RESOURCE_ERROR
      || error->domain == GST_LIBRARY_ERROR
      || error->domain == GST_STREAM_ERROR || error->domain == GST_CORE_ERROR) {
    *ret_domain = error->domain;
    *ret_code = error->code;
  } else if (error->domain == QOMNI_ERROR) {
    for (i = 0; i < G_N_ELEMENTS (table); i++) {
      if ((gint) table[i].code != error->code)
        continue;
      *ret_domain = table[i].resource ? GST_RESOURCE_ERROR :
          table[i].library ? GST_LIBRARY_ERROR : GST_STREAM_ERROR;
      *ret_code = table[i].gst_code;
    }
  }
  return TRUE;
}

static void
post (GstElement * element, GstMessageType type, const GError * error,
    const gchar * stage)
{
  GQuark domain;
  gint code;

  if (!gst_qomni_error_to_gst (error, &domain, &code))
    return;

  /* gst_element_message_full() prints it into the log by itself. */
  gst_element_message_full_with_details (element, type, domain, code,
      g_strdup (error->message),
      g_strdup_printf ("while: %s; %s %d", stage,
          g_quark_to_string (error->domain), error->code),
      __FILE__, G_STRFUNC, __LINE__,
      gst_structure_new ("qomni-error",
          "stage", G_TYPE_STRING, stage, "code", G_TYPE_INT, error->code,
          NULL));
}

void
gst_qomni_post_error (GstElement * element, const GError * error,
    const gchar * stage)
{
  post (element, GST_MESSAGE_ERROR, error, stage);
}

void
gst_qomni_post_warning (GstElement * element, const GError * error,
    const gchar * stage)
{
  post (element, GST_MESSAGE_WARNING, error, stage);
}

gboolean
gst_qomni_post_failure (GstElement * element, const GError * error,
    const gchar * stage, guint * n_failures)
{
  const gboolean passing = error->domain == QOMNI_ERROR
      && (error->code == QOMNI_ERROR_NUMERIC
      || error->code == QOMNI_ERROR_BACKEND
      || error->code == QOMNI_ERROR_LIMIT
      || error->code == QOMNI_ERROR_MEMORY);

  if (g_error_matches (error, G_IO_ERROR, G_IO_ERROR_CANCELLED))
    return FALSE;

  if (++*n_failures < MAX_FAILURES && passing) {
    gst_qomni_post_warning (element, error, stage);
    return FALSE;
  }
  gst_qomni_post_error (element, error, stage);
  return TRUE;
}
