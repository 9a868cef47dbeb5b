/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The part of an element that has to do with its model.
 *
 * Small files are read at NULL->READY, where a fault fails the state change.
 * Weights are read by a thread of their own from READY->PAUSED on, which
 * reports with PROGRESS messages of code "load"; the streaming threads wait for
 * it. The job is reference counted, because a waiter may still look at it when
 * the element has let go.
 *
 * Locks: the object lock of the element guards the fields of the client; the
 * job's own lock guards its outcome. They are never held together, and neither
 * is held while anything is opened, posted or queried.
 */
#include "gstqomniclient.h"

#include "gstqomnierror.h"

#define DEFAULT_ENGINE_LINGER (10 * GST_SECOND)

/* PROGRESS CONTINUE at most this often, unless a whole percent went by. */
#define PROGRESS_INTERVAL (250 * G_TIME_SPAN_MILLISECOND)

typedef enum
{
  LOAD_RUNNING,
  LOAD_DONE,
  LOAD_FAILED,
  LOAD_CANCELLED,
} LoadState;

struct _GstQomniLoad
{
  gint ref_count;
  GstElement *element;          /* a reference */
  QomniModel *model;
  QomniComponents components;
  GCancellable *cancellable;
  GThread *thread;              /* of the starter; joined by _unload() */

  GMutex lock;
  GCond cond;
  LoadState state;

  /* of the thread */
  gint64 last_time;
  gint last_percent;
};

GType
gst_qomni_precision_get_type (void)
{
  static gsize type = 0;
  static const GEnumValue values[] = {
    {GST_QOMNI_PRECISION_AUTO, "As the checkpoint stores it", "auto"},
    {GST_QOMNI_PRECISION_F32, "32-bit floats", "f32"},
    {GST_QOMNI_PRECISION_BF16, "bfloat16", "bf16"},
    {0, NULL, NULL}
  };

  if (g_once_init_enter (&type)) {
    GType new_type = g_enum_register_static ("GstQomniPrecision", values);
    g_once_init_leave (&type, new_type);
  }
  return (GType) type;
}

/* --- properties ----------------------------------------------------------- */

void
gst_qomni_client_install_properties (GObjectClass * klass)
{
  const GParamFlags flags = G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS
      | GST_PARAM_MUTABLE_READY;

  g_object_class_install_property (klass, GST_QOMNI_CLIENT_PROP_MODEL,
      g_param_spec_string ("model", "Model",
          "Checkpoint directory. Unset: the model of the neighbouring elements,"
          " else $QOMNI_MODEL, else the built-in one. Read at NULL->READY",
          NULL, flags | GST_PARAM_DOC_SHOW_DEFAULT));
  g_object_class_install_property (klass, GST_QOMNI_CLIENT_PROP_DEVICE,
      g_param_spec_string ("device", "Device",
          "Where to compute: auto, cpu, or a device the build supports",
          "auto", flags));
  g_object_class_install_property (klass, GST_QOMNI_CLIENT_PROP_PRECISION,
      g_param_spec_enum ("precision", "Precision",
          "Number format of the weights", GST_TYPE_QOMNI_PRECISION,
          GST_QOMNI_PRECISION_AUTO, flags));
  g_object_class_install_property (klass, GST_QOMNI_CLIENT_PROP_ENGINE_ID,
      g_param_spec_string ("engine-id", "Engine id",
          "Elements of different engine ids never share weights; unset: shared"
          " with all of the same settings", NULL, flags));
  g_object_class_install_property (klass, GST_QOMNI_CLIENT_PROP_ENGINE_LINGER,
      g_param_spec_int64 ("engine-linger", "Engine linger",
          "How long the weights are kept after the element went to NULL, for"
          " the next user, in nanoseconds (0 = not at all, -1 = for ever)",
          -1, G_MAXINT64, DEFAULT_ENGINE_LINGER, flags));
  gst_type_mark_as_plugin_api (GST_TYPE_QOMNI_PRECISION, 0);
}

void
gst_qomni_client_init (GstQomniClient * self, GstElement * element)
{
  self->element = element;
  self->device = g_strdup ("auto");
  self->precision = GST_QOMNI_PRECISION_AUTO;
  self->linger = DEFAULT_ENGINE_LINGER;
}

void
gst_qomni_client_clear (GstQomniClient * self)
{
  g_clear_pointer (&self->model_path, g_free);
  g_clear_pointer (&self->device, g_free);
  g_clear_pointer (&self->engine_id, g_free);
  gst_clear_object (&self->engine);
  g_clear_pointer (&self->model, qomni_model_unref);
}

gboolean
gst_qomni_client_set_property (GstQomniClient * self, guint prop_id,
    const GValue * value)
{
  gboolean handled = TRUE;

  GST_OBJECT_LOCK (self->element);
  switch (prop_id) {
    case GST_QOMNI_CLIENT_PROP_MODEL:
      g_free (self->model_path);
      self->model_path = g_value_dup_string (value);
      break;
    case GST_QOMNI_CLIENT_PROP_DEVICE:
      g_free (self->device);
      self->device = g_value_dup_string (value);
      break;
    case GST_QOMNI_CLIENT_PROP_PRECISION:
      self->precision = g_value_get_enum (value);
      break;
    case GST_QOMNI_CLIENT_PROP_ENGINE_ID:
      g_free (self->engine_id);
      self->engine_id = g_value_dup_string (value);
      break;
    case GST_QOMNI_CLIENT_PROP_ENGINE_LINGER:
      self->linger = g_value_get_int64 (value);
      break;
    default:
      handled = FALSE;
      break;
  }
  GST_OBJECT_UNLOCK (self->element);
  return handled;
}

gboolean
gst_qomni_client_get_property (GstQomniClient * self, guint prop_id,
    GValue * value)
{
  gboolean handled = TRUE;

  GST_OBJECT_LOCK (self->element);
  switch (prop_id) {
    case GST_QOMNI_CLIENT_PROP_MODEL:
      g_value_set_string (value, self->model_path);
      break;
    case GST_QOMNI_CLIENT_PROP_DEVICE:
      g_value_set_string (value, self->device);
      break;
    case GST_QOMNI_CLIENT_PROP_PRECISION:
      g_value_set_enum (value, self->precision);
      break;
    case GST_QOMNI_CLIENT_PROP_ENGINE_ID:
      g_value_set_string (value, self->engine_id);
      break;
    case GST_QOMNI_CLIENT_PROP_ENGINE_LINGER:
      g_value_set_int64 (value, self->linger);
      break;
    default:
      handled = FALSE;
      break;
  }
  GST_OBJECT_UNLOCK (self->element);
  return handled;
}

/* --- engine --------------------------------------------------------------- */

/* The properties as engine settings; `hold` owns the strings. */
typedef struct
{
  GstQomniEngineSettings settings;
  gchar *model, *device, *engine_id;
} SettingsCopy;

static void
settings_copy_clear (SettingsCopy * copy)
{
  g_free (copy->model);
  g_free (copy->device);
  g_free (copy->engine_id);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (SettingsCopy, settings_copy_clear);

static void
copy_settings (GstQomniClient * self, SettingsCopy * copy)
{
  GstQomniPrecision precision;

  GST_OBJECT_LOCK (self->element);
  copy->model = g_strdup (self->model_path);
  copy->device = g_strdup (self->device);
  copy->engine_id = g_strdup (self->engine_id);
  precision = self->precision;
  GST_OBJECT_UNLOCK (self->element);

  copy->settings.model = copy->model;
  copy->settings.device = copy->device;
  copy->settings.engine_id = copy->engine_id;
  copy->settings.precision = precision == GST_QOMNI_PRECISION_F32 ? "f32" :
      precision == GST_QOMNI_PRECISION_BF16 ? "bf16" : NULL;
}

void
gst_qomni_client_set_context (GstQomniClient * self, GstContext * context)
{
  g_auto (SettingsCopy) copy = { .model = NULL };

  copy_settings (self, &copy);
  gst_qomni_handle_set_context (self->element, context, &copy.settings,
      &self->engine);
}

gboolean
gst_qomni_client_query (GstQomniClient * self, GstQuery * query)
{
  g_auto (SettingsCopy) copy = { .model = NULL };

  if (GST_QUERY_TYPE (query) != GST_QUERY_CONTEXT)
    return FALSE;
  copy_settings (self, &copy);
  return gst_qomni_handle_context_query (self->element, query,
      &copy.settings, &self->engine);
}

gboolean
gst_qomni_client_open (GstQomniClient * self)
{
  g_auto (SettingsCopy) copy = { .model = NULL };
  g_autoptr (GstQomniEngine) engine = NULL;
  g_autoptr (QomniModel) model = NULL;
  g_autoptr (GError) error = NULL;

  copy_settings (self, &copy);
  if (!gst_qomni_ensure_engine (self->element, &copy.settings, &self->engine))
    return FALSE;

  GST_OBJECT_LOCK (self->element);
  engine = self->engine != NULL ? gst_object_ref (self->engine) : NULL;
  GST_OBJECT_UNLOCK (self->element);
  if (engine == NULL)
    return FALSE;

  model = gst_qomni_engine_open (engine, &error);
  if (model == NULL) {
    gst_qomni_post_error (self->element, error, "open");
    gst_qomni_client_close (self);
    return FALSE;
  }

  GST_OBJECT_LOCK (self->element);
  self->model = g_steal_pointer (&model);
  GST_OBJECT_UNLOCK (self->element);

  gst_qomni_announce_engine (self->element, engine);
  return TRUE;
}

void
gst_qomni_client_close (GstQomniClient * self)
{
  g_autoptr (GstQomniEngine) engine = NULL;
  g_autoptr (QomniModel) model = NULL;
  gint64 linger;

  GST_OBJECT_LOCK (self->element);
  engine = g_steal_pointer (&self->engine);
  model = g_steal_pointer (&self->model);
  linger = self->linger;
  GST_OBJECT_UNLOCK (self->element);

  if (model != NULL)
    gst_qomni_linger (model, linger);
}

QomniModel *
gst_qomni_client_ref_model (GstQomniClient * self)
{
  QomniModel *model;

  GST_OBJECT_LOCK (self->element);
  model = self->model != NULL ? qomni_model_ref (self->model) : NULL;
  GST_OBJECT_UNLOCK (self->element);
  return model;
}

/* --- the loading job ------------------------------------------------------ */

static GstQomniLoad *
load_ref (GstQomniLoad * load)
{
  g_atomic_int_inc (&load->ref_count);
  return load;
}

static void
load_unref (GstQomniLoad * load)
{
  if (!g_atomic_int_dec_and_test (&load->ref_count))
    return;
  gst_object_unref (load->element);
  qomni_model_unref (load->model);
  g_object_unref (load->cancellable);
  g_mutex_clear (&load->lock);
  g_cond_clear (&load->cond);
  g_free (load);
}

static void
post_progress (GstQomniLoad * load, GstProgressType type, gint percent,
    const gchar * text)
{
  GstMessage *message = gst_message_new_progress (GST_OBJECT (load->element),
      type, "load", text);

  gst_structure_set (gst_message_writable_structure (message),
      "percent", G_TYPE_INT, percent, NULL);
  gst_element_post_message (load->element, message);
}

static void
on_progress (uint64_t done, uint64_t total, void *user_data)
{
  GstQomniLoad *load = user_data;
  gint64 now = g_get_monotonic_time ();
  gint percent = total > 0 ? (gint) (100.0 * done / total) : 100;
  g_autofree gchar *text = NULL;

  if (percent == load->last_percent
      && now - load->last_time < PROGRESS_INTERVAL)
    return;
  load->last_percent = percent;
  load->last_time = now;
  text = g_strdup_printf ("Loading the model: %d %%", percent);
  post_progress (load, GST_PROGRESS_TYPE_CONTINUE, percent, text);
}

static gpointer
load_thread (gpointer user_data)
{
  GstQomniLoad *load = user_data;
  g_autoptr (GError) error = NULL;
  LoadState state = LOAD_DONE;

  if (!qomni_model_load (load->model, load->components, on_progress, load,
          load->cancellable, &error))
    state = g_error_matches (error, G_IO_ERROR, G_IO_ERROR_CANCELLED)
        ? LOAD_CANCELLED : LOAD_FAILED;

  switch (state) {
    case LOAD_DONE:
      post_progress (load, GST_PROGRESS_TYPE_COMPLETE, 100, "Model loaded");
      break;
    case LOAD_FAILED:
      gst_qomni_post_error (load->element, error, "load");
      post_progress (load, GST_PROGRESS_TYPE_ERROR, load->last_percent,
          error->message);
      break;
    default:
      post_progress (load, GST_PROGRESS_TYPE_CANCELED, load->last_percent,
          "Loading cancelled");
      break;
  }

  /* After the messages, so that whoever saw the failure has its reason. */
  g_mutex_lock (&load->lock);
  load->state = state;
  g_cond_broadcast (&load->cond);
  g_mutex_unlock (&load->lock);
  load_unref (load);
  return NULL;
}

void
gst_qomni_client_load (GstQomniClient * self, QomniComponents components)
{
  GstQomniLoad *load = g_new0 (GstQomniLoad, 1);
  g_autoptr (GError) error = NULL;

  load->ref_count = 1;
  load->element = gst_object_ref (self->element);
  load->model = gst_qomni_client_ref_model (self);
  load->components = components;
  load->cancellable = g_cancellable_new ();
  g_mutex_init (&load->lock);
  g_cond_init (&load->cond);

  post_progress (load, GST_PROGRESS_TYPE_START, 0, "Loading the model");
  load->thread = g_thread_try_new ("qomni-load", load_thread, load_ref (load),
      &error);
  if (load->thread == NULL) {
    gst_qomni_post_error (self->element, error, "load");
    post_progress (load, GST_PROGRESS_TYPE_ERROR, 0, error->message);
    load->state = LOAD_FAILED;
    load_unref (load);
  }

  GST_OBJECT_LOCK (self->element);
  self->load = load;
  GST_OBJECT_UNLOCK (self->element);
}

static void
wake_waiter (GCancellable * cancellable, gpointer user_data)
{
  GstQomniLoad *load = user_data;

  g_mutex_lock (&load->lock);
  g_cond_broadcast (&load->cond);
  g_mutex_unlock (&load->lock);
}

gboolean
gst_qomni_client_wait (GstQomniClient * self, GCancellable * cancellable,
    gboolean * ret_failed)
{
  GstQomniLoad *load;
  LoadState state;
  gulong handler;

  *ret_failed = FALSE;
  GST_OBJECT_LOCK (self->element);
  load = self->load != NULL ? load_ref (self->load) : NULL;
  GST_OBJECT_UNLOCK (self->element);
  if (load == NULL)
    return FALSE;

  handler = g_cancellable_connect (cancellable, G_CALLBACK (wake_waiter), load,
      NULL);
  g_mutex_lock (&load->lock);
  while (load->state == LOAD_RUNNING
      && !g_cancellable_is_cancelled (cancellable))
    g_cond_wait (&load->cond, &load->lock);
  state = load->state;
  g_mutex_unlock (&load->lock);
  g_cancellable_disconnect (cancellable, handler);
  load_unref (load);

  *ret_failed = state == LOAD_FAILED;
  return state == LOAD_DONE && !g_cancellable_is_cancelled (cancellable);
}

void
gst_qomni_client_cancel (GstQomniClient * self)
{
  g_autoptr (GCancellable) cancellable = NULL;

  GST_OBJECT_LOCK (self->element);
  if (self->load != NULL)
    cancellable = g_object_ref (self->load->cancellable);
  GST_OBJECT_UNLOCK (self->element);

  if (cancellable != NULL)
    g_cancellable_cancel (cancellable);
}

void
gst_qomni_client_unload (GstQomniClient * self)
{
  GstQomniLoad *load;

  GST_OBJECT_LOCK (self->element);
  load = g_steal_pointer (&self->load);
  GST_OBJECT_UNLOCK (self->element);
  if (load == NULL)
    return;

  g_cancellable_cancel (load->cancellable);
  /* The job's own message may have made somebody change our state from inside
   * a sync handler; a thread does not wait for itself. */
  if (load->thread != NULL) {
    if (load->thread == g_thread_self ())
      g_thread_unref (load->thread);
    else
      g_thread_join (load->thread);
  }
  load_unref (load);
}
