/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * GstQomniEncoder: what qomniaudioenc and qomnivisionenc have in common. Media
 * goes in, a clip at a time; blocks of embeddings come out. A subclass says how
 * a buffer is taken and how the core's encoder is made, finished and pulled;
 * the base class has the model, the clips' edges, events and states.
 */
#pragma once

#include <gst/base/gstbasetransform.h>

#include "gstqomniclient.h"

G_BEGIN_DECLS

#define GST_TYPE_QOMNI_ENCODER (gst_qomni_encoder_get_type ())
G_DECLARE_DERIVABLE_TYPE (GstQomniEncoder, gst_qomni_encoder, GST,
    QOMNI_ENCODER, GstBaseTransform)

struct _GstQomniEncoderClass
{
  GstBaseTransformClass parent_class;

  QomniModality modality;       /* of its caps */
  QomniComponents component;

  /* All are called on the streaming thread. */

  /* Makes the core's encoder, which must be cheap once weights are there. */
    gboolean (*create) (GstQomniEncoder * self, QomniModel * model,
      gboolean live, GCancellable * cancellable, GError ** error);
  /* Takes a buffer (full): opens a clip with _open_clip() or goes on with the
   * open one; may call _drain() first. */
    GstFlowReturn (*take) (GstQomniEncoder * self, GstBuffer * buffer);
  /* No data for `duration` (valid) at `timestamp`, within an open clip. TRUE
   * when it has been taken as a part of the clip; else the clip ends. */
    gboolean (*gap) (GstQomniEncoder * self, GstClockTime timestamp,
      GstClockTime duration, GError ** error);
  /* The clip ends: what is left can be pulled after this. */
    gboolean (*finish) (GstQomniEncoder * self, GError ** error);
  /* The next block, or NULL. */
  QomniEmbeddings *(*pull) (GstQomniEncoder * self,
      GCancellable * cancellable, GError ** error);
  /* Forgets the open clip, and the core's encoder when `all`. */
  void (*forget) (GstQomniEncoder * self, gboolean all);
  /* How much later a block leaves than its first sample or frame came in. */
    GstClockTime (*latency) (GstQomniEncoder * self);
};

/* Begins a clip at `start` (PTS). */
void gst_qomni_encoder_open_clip (GstQomniEncoder * self, GstClockTime start);
gboolean gst_qomni_encoder_has_clip (GstQomniEncoder * self);
GstClockTime gst_qomni_encoder_clip_start (GstQomniEncoder * self);
/* Ends the open clip, if any, and pushes all its blocks. */
GstFlowReturn gst_qomni_encoder_drain (GstQomniEncoder * self);
/* Posts `error` and returns what a streaming thread returns for it. */
GstFlowReturn gst_qomni_encoder_fail (GstQomniEncoder * self,
    const GError * error);

G_END_DECLS
