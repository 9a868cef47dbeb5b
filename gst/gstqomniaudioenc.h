/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomniaudioenc: speech and sounds -> embeddings.
 */
#pragma once

#include "gstqomniencoder.h"

G_BEGIN_DECLS

#define GST_TYPE_QOMNI_AUDIO_ENC (gst_qomni_audio_enc_get_type ())
G_DECLARE_FINAL_TYPE (GstQomniAudioEnc, gst_qomni_audio_enc, GST,
    QOMNI_AUDIO_ENC, GstQomniEncoder)

GST_ELEMENT_REGISTER_DECLARE (qomniaudioenc);

G_END_DECLS
