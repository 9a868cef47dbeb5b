/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * GstQomniClient: what every element with a model does in the same way. It
 * owns the properties that choose the model, finds the engine, and runs the
 * loading job. Embedded in the element; its functions are called from
 *
 *   class_init        gst_qomni_client_install_properties()
 *   init, finalize    _init(), _clear()
 *   set/get_property  _set_property(), _get_property()
 *   set_context       _set_context(), then chain up
 *   pad queries       _query()
 *   NULL->READY       _open()           config, tokenizer, index; posts errors
 *   READY->PAUSED     _load()           posts PROGRESS, returns at once
 *   streaming thread  _wait()           until loaded, failed or cancelled
 *   PAUSED->READY     _unload()         cancels, joins
 *   READY->NULL       _close()
 */
#pragma once

#include "gstqomniengine.h"

G_BEGIN_DECLS

/* The client's properties have the first ids. */
enum
{
  GST_QOMNI_CLIENT_PROP_0,
  GST_QOMNI_CLIENT_PROP_MODEL,
  GST_QOMNI_CLIENT_PROP_DEVICE,
  GST_QOMNI_CLIENT_PROP_PRECISION,
  GST_QOMNI_CLIENT_PROP_ENGINE_ID,
  GST_QOMNI_CLIENT_PROP_ENGINE_LINGER,
  GST_QOMNI_CLIENT_PROP_LAST,
};

/**
 * GstQomniPrecision:
 * @GST_QOMNI_PRECISION_AUTO: as the checkpoint stores it
 * @GST_QOMNI_PRECISION_F32: 32-bit floats
 * @GST_QOMNI_PRECISION_BF16: bfloat16
 */
typedef enum
{
  GST_QOMNI_PRECISION_AUTO,
  GST_QOMNI_PRECISION_F32,
  GST_QOMNI_PRECISION_BF16,
} GstQomniPrecision;

#define GST_TYPE_QOMNI_PRECISION (gst_qomni_precision_get_type ())
GType gst_qomni_precision_get_type (void);

typedef struct _GstQomniLoad GstQomniLoad;

typedef struct
{
  GstElement *element;          /* the owner; no reference */

  /* under the object lock of `element` */
  gchar *model_path, *device, *engine_id;
  GstQomniPrecision precision;
  gint64 linger;
  GstQomniEngine *engine;
  QomniModel *model;            /* READY and above */
  GstQomniLoad *load;           /* PAUSED and above */
} GstQomniClient;

void gst_qomni_client_install_properties (GObjectClass * klass);
void gst_qomni_client_init (GstQomniClient * self, GstElement * element);
void gst_qomni_client_clear (GstQomniClient * self);

/* TRUE when the property is one of the client's. */
gboolean gst_qomni_client_set_property (GstQomniClient * self, guint prop_id,
    const GValue * value);
gboolean gst_qomni_client_get_property (GstQomniClient * self, guint prop_id,
    GValue * value);

void gst_qomni_client_set_context (GstQomniClient * self, GstContext * context);
/* TRUE when the query was a CONTEXT query and has been answered. */
gboolean gst_qomni_client_query (GstQomniClient * self, GstQuery * query);

gboolean gst_qomni_client_open (GstQomniClient * self);
void gst_qomni_client_load (GstQomniClient * self, QomniComponents components);
/* FALSE when the load failed (the error is on the bus) or was cancelled, here
 * by `cancellable` or by _unload(). */
gboolean gst_qomni_client_wait (GstQomniClient * self,
    GCancellable * cancellable, gboolean * ret_failed);
/* Asks the job to stop; does not wait. */
void gst_qomni_client_cancel (GstQomniClient * self);
void gst_qomni_client_unload (GstQomniClient * self);
void gst_qomni_client_close (GstQomniClient * self);

/* A reference, or NULL below READY. */
QomniModel *gst_qomni_client_ref_model (GstQomniClient * self);

G_END_DECLS
