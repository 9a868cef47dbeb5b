/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What rides on buffers: GstQomniEmbeddingsMeta and GstQomniTextMeta, both
 * custom metas (a GstStructure that any language can read), and the way of
 * QomniEmbeddings through a GstBuffer.
 *
 *   buffer = gst_qomni_embeddings_to_buffer (embeddings);      takes no copy
 *   embeddings = gst_qomni_embeddings_from_buffer (buffer, &error);
 *
 * The payload is the packed f32 rows; everything else is in the meta. What
 * comes back from a buffer has been checked field by field against the size of
 * the payload.
 */
#pragma once

#include <gst/gst.h>

#include "embeddings.h"

G_BEGIN_DECLS

#define GST_QOMNI_EMBEDDINGS_MEDIA_TYPE "application/x-qomni-embeddings"
#define GST_QOMNI_EMBEDDINGS_META_NAME "GstQomniEmbeddingsMeta"
#define GST_QOMNI_TEXT_META_NAME "GstQomniTextMeta"

const GstMetaInfo *gst_qomni_embeddings_meta_get_info (void);
const GstMetaInfo *gst_qomni_text_meta_get_info (void);

/* A buffer over the rows of `embeddings`, which it holds a reference to. No
 * timestamps; offset is 0 … n_tokens. */
GstBuffer *gst_qomni_embeddings_to_buffer (QomniEmbeddings * embeddings);
/* A copy of what is in `buffer`, or NULL with the field at fault. */
QomniEmbeddings *gst_qomni_embeddings_from_buffer (GstBuffer * buffer,
    GError ** error);

/* The turn that rows (modality thinker) belong to, counted by the thinker
 * element from 1; 0 when the buffer does not say. */
void gst_qomni_embeddings_buffer_set_turn_id (GstBuffer * buffer,
    guint64 turn_id);
guint64 gst_qomni_embeddings_buffer_get_turn_id (GstBuffer * buffer);

/* final: the last piece of the turn's reply. role is "assistant". */
void gst_qomni_text_buffer_add_meta (GstBuffer * buffer, guint64 turn_id,
    gboolean final, const gchar * role);
gboolean gst_qomni_text_buffer_parse_meta (GstBuffer * buffer,
    guint64 * turn_id, gboolean * final, const gchar ** role);

/* The name in caps for a modality: "audio", "vision", "thinker". */
const gchar *gst_qomni_modality_name (QomniModality modality);

G_END_DECLS
