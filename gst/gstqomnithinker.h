/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnithinker: embeddings and text in, the model's answer out.
 */
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

#define GST_TYPE_QOMNI_THINKER (gst_qomni_thinker_get_type ())
G_DECLARE_FINAL_TYPE (GstQomniThinker, gst_qomni_thinker, GST, QOMNI_THINKER,
    GstElement)

/**
 * GstQomniMessages:
 * @GST_QOMNI_MESSAGES_NONE: no element messages
 * @GST_QOMNI_MESSAGES_TURNS: at the start and end of each turn
 */
typedef enum
{
  GST_QOMNI_MESSAGES_NONE,
  GST_QOMNI_MESSAGES_TURNS,
} GstQomniMessages;

#define GST_TYPE_QOMNI_MESSAGES (gst_qomni_messages_get_type ())
GType gst_qomni_messages_get_type (void);

/* For qomnibin: whether anything is connected to what feeds this sink pad. A
 * pad that is not in use is not waited for. */
void gst_qomni_thinker_pad_set_in_use (GstPad * pad, gboolean in_use);

GST_ELEMENT_REGISTER_DECLARE (qomnithinker);

G_END_DECLS
