/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One core error -> one message on the bus, with a stable domain and code.
 *
 *   if (model == NULL) {
 *     gst_qomni_post_error (GST_ELEMENT (self), error, "load");
 *     return GST_STATE_CHANGE_FAILURE;
 *   }
 *
 * Call them with no lock held.
 */
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

/* RESOURCE, LIBRARY or STREAM error for an error of the engine (QOMNI_ERROR,
 * G_IO_ERROR). FALSE, and nothing set, for a cancellation, which is none. */
gboolean gst_qomni_error_to_gst (const GError * error, GQuark * ret_domain,
    gint * ret_code);

/* Posts `error` as an ERROR or a WARNING of `element`. The details structure
 * "qomni-error" carries {stage, code}; `stage` is what was being done: "load",
 * "encode", "generate", "speak". A cancellation posts nothing. */
void gst_qomni_post_error (GstElement * element, const GError * error,
    const gchar * stage);
void gst_qomni_post_warning (GstElement * element, const GError * error,
    const gchar * stage);

/* Posts what ended a reply: a fault of the machine (memory, backend, numbers)
 * as a WARNING, the third in a row of `n_failures` and a fault of what the
 * element was given as an ERROR. Counts in `n_failures`; the caller sets it to 0
 * after a reply that went well. TRUE when the stream is over. A cancellation
 * posts and counts nothing. */
gboolean gst_qomni_post_failure (GstElement * element, const GError * error,
    const gchar * stage, guint * n_failures);

G_END_DECLS
