/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sharing one model between the elements of a pipeline, and between pipelines.
 *
 * Two layers. The truth is the table in libqomni: whoever opens the same files
 * with the same settings gets the same QomniModel. The GstContext is how an
 * element that was told no model finds out which one its neighbours use. That
 * is why an engine exists before it is open: state changes run from the sinks
 * to the sources, so a talker asks a thinker that is still in NULL, and gets an
 * engine made of the thinker's `model` property.
 *
 * Locks: the object lock of the engine guards `model`; the object lock of an
 * element guards its engine pointer. Nothing is opened, posted or queried
 * under either; gst_qomni_engine_open() serialises openers with a lock of its
 * own (`opening`), inside which the core may wait for files.
 */
#include "gstqomniengine.h"

#include "gstqomnierror.h"
#include "gstqomnimeta.h"

#include <stdlib.h>
#include <string.h>

/* Functions here log before the first engine exists, so the category is made on
 * first use. */
static GstDebugCategory *
engine_category (void)
{
  static gsize category = 0;

  if (g_once_init_enter (&category)) {
    gsize made = (gsize) _gst_debug_category_new ("qomni-engine", 0,
        "engine of the qomni elements");

    g_once_init_leave (&category, made);
  }
  return (GstDebugCategory *) category;
}

#define GST_CAT_DEFAULT engine_category ()

struct _GstQomniEngine
{
  GstObject parent;

  gchar *path, *device, *precision, *engine_id; /* constant */
  GMutex opening;
  QomniModel *model;
};

G_DEFINE_TYPE (GstQomniEngine, gst_qomni_engine, GST_TYPE_OBJECT);

static void
gst_qomni_engine_finalize (GObject * object)
{
  GstQomniEngine *self = GST_QOMNI_ENGINE (object);

  qomni_model_unref (self->model);
  g_mutex_clear (&self->opening);
  g_free (self->path);
  g_free (self->device);
  g_free (self->precision);
  g_free (self->engine_id);
  G_OBJECT_CLASS (gst_qomni_engine_parent_class)->finalize (object);
}

static void
gst_qomni_engine_class_init (GstQomniEngineClass * klass)
{
  G_OBJECT_CLASS (klass)->finalize = gst_qomni_engine_finalize;
}

static void
gst_qomni_engine_init (GstQomniEngine * self)
{
  g_mutex_init (&self->opening);
}

/* NULL for what means "whatever". */
static const gchar *
explicit_or_null (const gchar * value)
{
  return value == NULL || *value == '\0' || strcmp (value, "auto") == 0
      ? NULL : value;
}

static gchar *
canonical (const gchar * path)
{
  char *real = realpath (path, NULL);
  gchar *copy = g_strdup (real != NULL ? real : path);

  free (real);
  return copy;
}

GstQomniEngine *
gst_qomni_engine_new (const GstQomniEngineSettings * settings)
{
  GstQomniEngine *self;

  g_return_val_if_fail (settings != NULL && settings->model != NULL, NULL);

  self = g_object_new (GST_TYPE_QOMNI_ENGINE, NULL);
  gst_object_ref_sink (self);
  self->path = g_strdup (settings->model);
  self->device = g_strdup (explicit_or_null (settings->device));
  self->precision = g_strdup (explicit_or_null (settings->precision));
  self->engine_id = g_strdup (explicit_or_null (settings->engine_id));
  return self;
}

QomniModel *
gst_qomni_engine_open (GstQomniEngine * self, GError ** error)
{
  QomniModel *model;

  g_return_val_if_fail (GST_IS_QOMNI_ENGINE (self), NULL);

  g_mutex_lock (&self->opening);
  if (self->model == NULL) {
    QomniModelOptions options = QOMNI_MODEL_OPTIONS_INIT;

    options.device = self->device;
    options.precision = self->precision;
    options.engine_id = self->engine_id;
    GST_INFO_OBJECT (self, "opening %s", self->path);
    model = qomni_model_ref_or_load (self->path, &options, error);
    GST_OBJECT_LOCK (self);
    self->model = model;
    GST_OBJECT_UNLOCK (self);
  }
  model = self->model != NULL ? qomni_model_ref (self->model) : NULL;
  g_mutex_unlock (&self->opening);
  return model;
}

const gchar *
gst_qomni_engine_get_path (GstQomniEngine * self)
{
  g_return_val_if_fail (GST_IS_QOMNI_ENGINE (self), NULL);

  return self->path;
}

gboolean
gst_qomni_engine_matches (GstQomniEngine * self,
    const GstQomniEngineSettings * settings)
{
  const gchar *device = explicit_or_null (settings->device);
  const gchar *precision = explicit_or_null (settings->precision);
  const gchar *engine_id = explicit_or_null (settings->engine_id);

  if (settings->model != NULL) {
    g_autofree gchar *mine = canonical (self->path);
    g_autofree gchar *wanted = canonical (settings->model);

    if (strcmp (mine, wanted) != 0)
      return FALSE;
  }
  if (device != NULL && g_strcmp0 (device, self->device) != 0)
    return FALSE;
  if (precision != NULL && g_strcmp0 (precision, self->precision) != 0)
    return FALSE;
  return engine_id == NULL || g_strcmp0 (engine_id, self->engine_id) == 0;
}

/* --- contexts ------------------------------------------------------------- */

GstContext *
gst_context_new_qomni_engine (GstQomniEngine * engine, gboolean persistent)
{
  GstContext *context;

  g_return_val_if_fail (GST_IS_QOMNI_ENGINE (engine), NULL);

  context = gst_context_new (GST_QOMNI_ENGINE_CONTEXT_TYPE, persistent);
  gst_structure_set (gst_context_writable_structure (context),
      "engine", GST_TYPE_QOMNI_ENGINE, engine, NULL);
  return context;
}

GstQomniEngine *
gst_context_get_qomni_engine (GstContext * context)
{
  GstQomniEngine *engine = NULL;

  if (!gst_context_has_context_type (context, GST_QOMNI_ENGINE_CONTEXT_TYPE))
    return NULL;
  gst_structure_get (gst_context_get_structure (context),
      "engine", GST_TYPE_QOMNI_ENGINE, &engine, NULL);
  return engine;
}

/* Stores `engine` (taken) in *slot. */
static void
store (GstElement * element, GstQomniEngine ** slot, GstQomniEngine * engine)
{
  GstQomniEngine *old;

  GST_OBJECT_LOCK (element);
  old = *slot;
  *slot = engine;
  GST_OBJECT_UNLOCK (element);
  if (old != NULL)
    gst_object_unref (old);
}

static GstQomniEngine *
peek (GstElement * element, GstQomniEngine ** slot)
{
  GstQomniEngine *engine;

  GST_OBJECT_LOCK (element);
  engine = *slot != NULL ? gst_object_ref (*slot) : NULL;
  GST_OBJECT_UNLOCK (element);
  return engine;
}

gboolean
gst_qomni_handle_set_context (GstElement * element, GstContext * context,
    const GstQomniEngineSettings * settings, GstQomniEngine ** slot)
{
  GstQomniEngine *engine;

  if (context == NULL)
    return FALSE;
  engine = gst_context_get_qomni_engine (context);
  if (engine == NULL)
    return FALSE;

  if (gst_qomni_engine_matches (engine, settings)) {
    store (element, slot, engine);
  } else {
    GST_DEBUG_OBJECT (element, "other settings than %s, not taken",
        engine->path);
    gst_object_unref (engine);
  }
  return TRUE;
}

gboolean
gst_qomni_handle_context_query (GstElement * element, GstQuery * query,
    const GstQomniEngineSettings * settings, GstQomniEngine ** slot)
{
  g_autoptr (GstQomniEngine) engine = NULL;
  g_autoptr (GstContext) context = NULL;
  const gchar *type;

  if (GST_QUERY_TYPE (query) != GST_QUERY_CONTEXT)
    return FALSE;
  gst_query_parse_context_type (query, &type);
  if (g_strcmp0 (type, GST_QOMNI_ENGINE_CONTEXT_TYPE) != 0)
    return FALSE;

  engine = peek (element, slot);
  if (engine == NULL) {
    if (settings->model == NULL)
      return FALSE;
    engine = gst_qomni_engine_new (settings);
    store (element, slot, gst_object_ref (engine));
  }
  context = gst_context_new_qomni_engine (engine, FALSE);
  gst_query_set_context (query, context);
  return TRUE;
}

/* Asks the neighbours on one side; the answer arrives as gst_element_set_context
 * would bring it. Returns any engine seen, wanted or not. */
static GstQomniEngine *
ask_neighbours (GstElement * element, GstPadDirection direction)
{
  g_autoptr (GstQuery) query =
      gst_query_new_context (GST_QOMNI_ENGINE_CONTEXT_TYPE);
  GstQomniEngine *seen = NULL;
  g_autoptr (GstIterator) it = direction == GST_PAD_SRC
      ? gst_element_iterate_src_pads (element)
      : gst_element_iterate_sink_pads (element);
  GValue item = G_VALUE_INIT;
  gboolean done = FALSE;

  while (!done) {
    switch (gst_iterator_next (it, &item)) {
      case GST_ITERATOR_OK:
        if (gst_pad_peer_query (g_value_get_object (&item), query)) {
          GstContext *context = NULL;

          gst_query_parse_context (query, &context);
          if (context != NULL) {
            seen = gst_context_get_qomni_engine (context);
            gst_element_set_context (element, context);
            done = TRUE;
          }
        }
        g_value_reset (&item);
        break;
      case GST_ITERATOR_RESYNC:
        gst_iterator_resync (it);
        break;
      default:
        done = TRUE;
        break;
    }
  }
  g_value_unset (&item);
  return seen;
}

/* Ends a search: TRUE when *slot now fits. */
static gboolean
found (GstElement * element, const GstQomniEngineSettings * settings,
    GstQomniEngine ** slot)
{
  g_autoptr (GstQomniEngine) engine = peek (element, slot);

  return engine != NULL && gst_qomni_engine_matches (engine, settings);
}

gboolean
gst_qomni_ensure_engine (GstElement * element,
    const GstQomniEngineSettings * settings, GstQomniEngine ** slot)
{
  GstQomniEngineSettings own = *settings;
  g_autoptr (GstQomniEngine) seen = NULL;
  g_autofree gchar *path = NULL;
  bool builtin = false;

  if (found (element, settings, slot))
    return TRUE;

  if (settings->model == NULL) {
    GstContext *context =
        gst_element_get_context (element, GST_QOMNI_ENGINE_CONTEXT_TYPE);

    if (context != NULL) {
      gst_qomni_handle_set_context (element, context, settings, slot);
      seen = gst_context_get_qomni_engine (context);
      gst_context_unref (context);
    }
    if (!found (element, settings, slot) && seen == NULL)
      seen = ask_neighbours (element, GST_PAD_SRC);
    if (!found (element, settings, slot) && seen == NULL)
      seen = ask_neighbours (element, GST_PAD_SINK);
    if (!found (element, settings, slot) && seen == NULL) {
      /* A bin or a sync handler answers by setting the context. */
      gst_element_post_message (element,
          gst_message_new_need_context (GST_OBJECT (element),
              GST_QOMNI_ENGINE_CONTEXT_TYPE));
    }
    if (found (element, settings, slot))
      return TRUE;

    /* Somebody's model, but with settings of our own. */
    if (seen != NULL)
      own.model = seen->path;
  }

  if (own.model == NULL) {
    own.model = path = qomni_model_default_path (&builtin);
    if (path == NULL) {
      GST_ELEMENT_ERROR (element, RESOURCE, SETTINGS,
          ("No model: set the property 'model' or the environment variable "
              "QOMNI_MODEL to a checkpoint directory."),
          ("the built-in checkpoint is not installed either"));
      return FALSE;
    }
    if (builtin)
      GST_ELEMENT_INFO (element, RESOURCE, SETTINGS,
          ("Using the small built-in model; set 'model' to use a real one."),
          ("%s", path));
    else
      GST_ELEMENT_INFO (element, RESOURCE, SETTINGS,
          ("Using the model that QOMNI_MODEL names."), ("%s", path));
  }

  store (element, slot, gst_qomni_engine_new (&own));
  return TRUE;
}

void
gst_qomni_announce_engine (GstElement * element, GstQomniEngine * engine)
{
  gst_element_post_message (element,
      gst_message_new_have_context (GST_OBJECT (element),
          gst_context_new_qomni_engine (engine, FALSE)));
}

/* --- linger --------------------------------------------------------------- */

static gpointer
unref_thread (gpointer model)
{
  qomni_model_unref (model);
  return NULL;
}

/* Freeing tens of gigabytes takes a while, and this is the clock's thread. */
static gboolean
linger_is_over (GstClock * clock, GstClockTime time, GstClockID id,
    gpointer model)
{
  GThread *thread = g_thread_try_new ("qomni-unload", unref_thread,
      qomni_model_ref (model), NULL);

  if (thread != NULL)
    g_thread_unref (thread);
  else
    qomni_model_unref (model);
  return TRUE;
}

void
gst_qomni_linger (QomniModel * model, gint64 linger)
{
  g_autoptr (GstClock) clock = NULL;
  GstClockID id;

  if (linger == 0)
    return;
  qomni_model_ref (model);
  if (linger < 0)
    return;

  clock = gst_system_clock_obtain ();
  id = gst_clock_new_single_shot_id (clock, gst_clock_get_time (clock) + linger);
  gst_clock_id_wait_async (id, linger_is_over, model,
      (GDestroyNotify) qomni_model_unref);
  gst_clock_id_unref (id);
}

/* --- caps ----------------------------------------------------------------- */

GstCaps *
gst_qomni_model_embeddings_caps (QomniModel * model, QomniModality modality)
{
  const QomniConfig *config = qomni_model_config (model);
  gint levels = 1, rate = 0;

  switch (modality) {
    case QOMNI_MODALITY_AUDIO:
      rate = (gint) config->position_id_per_seconds;
      break;
    case QOMNI_MODALITY_IMAGE:
    case QOMNI_MODALITY_VIDEO:
      levels = 1 + config->vision.n_deepstack;
      break;
    case QOMNI_MODALITY_THINKER:
      levels = 2;
      break;
  }
  return gst_caps_new_simple (GST_QOMNI_EMBEDDINGS_MEDIA_TYPE,
      "modality", G_TYPE_STRING, gst_qomni_modality_name (modality),
      "fingerprint", G_TYPE_STRING, qomni_model_fingerprint (model),
      "dtype", G_TYPE_STRING, "f32",
      "width", G_TYPE_INT, (gint) config->text.hidden_size,
      "levels", G_TYPE_INT, levels,
      "token-rate", GST_TYPE_FRACTION, rate, 1, NULL);
}

gboolean
gst_qomni_model_check_caps (QomniModel * model, GstCaps * caps,
    QomniModality modality, GError ** error)
{
  const GstStructure *s = gst_caps_get_structure (caps, 0);
  g_autoptr (GstCaps) wanted =
      gst_qomni_model_embeddings_caps (model, modality);
  const gchar *fingerprint = gst_structure_get_string (s, "fingerprint");

  if (g_strcmp0 (fingerprint, qomni_model_fingerprint (model)) != 0) {
    g_set_error (error, GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_SETTINGS,
        "the embeddings come from another model: fingerprint %s, but %s is %s",
        fingerprint != NULL ? fingerprint : "(none)", qomni_model_path (model),
        qomni_model_fingerprint (model));
    return FALSE;
  }
  if (!gst_caps_can_intersect (caps, wanted)) {
    g_autofree gchar *have = gst_caps_to_string (caps);
    g_autofree gchar *want = gst_caps_to_string (wanted);

    g_set_error (error, GST_STREAM_ERROR, GST_STREAM_ERROR_FORMAT,
        "embeddings of another layout: %s, expected %s", have, want);
    return FALSE;
  }
  return TRUE;
}
