/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnitalker: the thinker's rows in, speech out.
 */
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

#define GST_TYPE_QOMNI_TALKER (gst_qomni_talker_get_type ())
G_DECLARE_FINAL_TYPE (GstQomniTalker, gst_qomni_talker, GST, QOMNI_TALKER,
    GstElement)

GST_ELEMENT_REGISTER_DECLARE (qomnitalker);

G_END_DECLS
