/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnivisionenc: pictures and video -> embeddings.
 */
#pragma once

#include "gstqomniencoder.h"

G_BEGIN_DECLS

#define GST_TYPE_QOMNI_VISION_ENC (gst_qomni_vision_enc_get_type ())
G_DECLARE_FINAL_TYPE (GstQomniVisionEnc, gst_qomni_vision_enc, GST,
    QOMNI_VISION_ENC, GstQomniEncoder)

GST_ELEMENT_REGISTER_DECLARE (qomnivisionenc);

G_END_DECLS
