/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnibin: raw sound, video and text in, text and speech out.
 */
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

#define GST_TYPE_QOMNI_BIN (gst_qomni_bin_get_type ())
G_DECLARE_FINAL_TYPE (GstQomniBin, gst_qomni_bin, GST, QOMNI_BIN, GstBin)

GST_ELEMENT_REGISTER_DECLARE (qomnibin);

G_END_DECLS
