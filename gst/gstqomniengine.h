/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * GstQomniEngine: a QomniModel on its way through a pipeline, so that `model=`
 * is written once. It travels in a GstContext of type "gst.qomni.engine", in
 * the field "engine".
 *
 * An element keeps a pointer to an engine and calls, at NULL->READY,
 *
 *   gst_qomni_ensure_engine (element, &settings, &self->engine);
 *   model = gst_qomni_engine_open (self->engine, &error);
 *   gst_qomni_announce_engine (element, self->engine);
 *
 * gst_qomni_handle_set_context() in its set_context vfunc, and
 * gst_qomni_handle_context_query() in the query functions of its pads.
 *
 * An application may inject one:
 *
 *   engine = gst_qomni_engine_new (&settings);
 *   context = gst_context_new_qomni_engine (engine, TRUE);
 *   gst_element_set_context (pipeline, context);
 */
#pragma once

#include <gst/gst.h>

#include "embeddings.h"
#include "model.h"

G_BEGIN_DECLS

#define GST_QOMNI_ENGINE_CONTEXT_TYPE "gst.qomni.engine"

#define GST_TYPE_QOMNI_ENGINE (gst_qomni_engine_get_type ())
G_DECLARE_FINAL_TYPE (GstQomniEngine, gst_qomni_engine, GST, QOMNI_ENGINE,
    GstObject)

/* NULL in any field: whatever. "auto" in device and precision means the same. */
typedef struct
{
  const gchar *model;           /* path of a checkpoint */
  const gchar *device;          /* "cpu", "cuda", "cuda:0" */
  const gchar *precision;       /* "f32", "bf16" */
  const gchar *engine_id;       /* engines of different ids share no weights */
} GstQomniEngineSettings;

/* Opens nothing yet. settings->model must be set. */
GstQomniEngine *gst_qomni_engine_new (const GstQomniEngineSettings * settings);
/* Takes the model from the process-wide table, or reads its config, tokenizer
 * and tensor index. A reference; NULL with an error. Thread safe, once. */
QomniModel *gst_qomni_engine_open (GstQomniEngine * self, GError ** error);
const gchar *gst_qomni_engine_get_path (GstQomniEngine * self);
/* Whether somebody who asks for `settings` can use this engine. */
gboolean gst_qomni_engine_matches (GstQomniEngine * self,
    const GstQomniEngineSettings * settings);

/* A context that is not persistent is dropped when its holder goes to NULL. */
GstContext *gst_context_new_qomni_engine (GstQomniEngine * engine,
    gboolean persistent);
/* A reference, or NULL when the context is of another type. */
GstQomniEngine *gst_context_get_qomni_engine (GstContext * context);

/* Makes sure that *engine is one that fits `settings`, asking in this order: a
 * context that was set, the neighbours downstream and upstream, the bin or the
 * application, settings->model, $QOMNI_MODEL, the built-in checkpoint (the last
 * two are announced by an INFO message). An explicit model or engine id is
 * never overridden. FALSE, with an ERROR posted, when there is no model.
 * *engine is read and written under the object lock of `element`. */
gboolean gst_qomni_ensure_engine (GstElement * element,
    const GstQomniEngineSettings * settings, GstQomniEngine ** engine);
/* Tells the application and the bins above, which tell others. */
void gst_qomni_announce_engine (GstElement * element, GstQomniEngine * engine);
/* TRUE when the context was of this type, whether taken or not. */
gboolean gst_qomni_handle_set_context (GstElement * element,
    GstContext * context, const GstQomniEngineSettings * settings,
    GstQomniEngine ** engine);
/* Answers a CONTEXT query of this type: with *engine, or when the element was
 * given a model, with an engine for that one. */
gboolean gst_qomni_handle_context_query (GstElement * element, GstQuery * query,
    const GstQomniEngineSettings * settings, GstQomniEngine ** engine);

/* Keeps `model` for `linger` ns (negative: for ever), so that a pipeline that
 * comes back finds it still loaded. Takes no reference away from the caller. */
void gst_qomni_linger (QomniModel * model, gint64 linger);

/* Caps of what this model's audio or vision encoder makes, or of its Thinker's
 * rows for the Talker. */
GstCaps *gst_qomni_model_embeddings_caps (QomniModel * model,
    QomniModality modality);
/* Whether `caps` are such caps of `model`; the error names both sides. */
gboolean gst_qomni_model_check_caps (QomniModel * model, GstCaps * caps,
    QomniModality modality, GError ** error);

G_END_DECLS
