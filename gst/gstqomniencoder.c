/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The streaming life of an encoder element.
 *
 *   chain -> take() -> pull()* -> push        blocks that are closed already
 *   EOS, qomni/… marks, a new segment -> drain: finish(), pull()*, push, then
 *   the event itself
 *
 * GstBaseTransform passes unknown events on at once, which is why they are
 * caught here: a mark must not overtake the sound that belongs before it.
 *
 * Encoding a block is done on the streaming thread (put a queue in front); it
 * is cancellable, by a flush and by leaving PAUSED.
 *
 * Locks: the object lock guards `cancellable`; everything else belongs to the
 * streaming thread. No lock is held while encoding or pushing.
 */
#include "gstqomniencoder.h"

#include "gstqomnierror.h"
#include "gstqomnievents.h"
#include "gstqomnimeta.h"

GST_DEBUG_CATEGORY_STATIC (gst_qomni_encoder_debug);
#define GST_CAT_DEFAULT gst_qomni_encoder_debug

typedef struct
{
  GstQomniClient client;

  GCancellable *cancellable;    /* under the object lock; replaced by a flush */

  /* streaming thread */
  gboolean created;
  gboolean clip_open;
  gboolean clip_fresh;          /* no block of it was pushed yet */
  GstClockTime clip_start;
  guint64 n_tokens;             /* of the stream, for OFFSET */
  gboolean refused;             /* the segment, which comes again and again */
} GstQomniEncoderPrivate;

G_DEFINE_ABSTRACT_TYPE_WITH_CODE (GstQomniEncoder, gst_qomni_encoder,
    GST_TYPE_BASE_TRANSFORM, G_ADD_PRIVATE (GstQomniEncoder)
    GST_DEBUG_CATEGORY_INIT (gst_qomni_encoder_debug, "qomniencoder", 0,
        "what the qomni encoders share"));

static GstQomniEncoderPrivate *
priv_of (GstQomniEncoder * self)
{
  return gst_qomni_encoder_get_instance_private (self);
}

/* --- cancelling ----------------------------------------------------------- */

static GCancellable *
ref_cancellable (GstQomniEncoder * self)
{
  GCancellable *cancellable;

  GST_OBJECT_LOCK (self);
  cancellable = g_object_ref (priv_of (self)->cancellable);
  GST_OBJECT_UNLOCK (self);
  return cancellable;
}

static void
cancel (GstQomniEncoder * self)
{
  g_autoptr (GCancellable) cancellable = ref_cancellable (self);

  g_cancellable_cancel (cancellable);
}

static void
uncancel (GstQomniEncoder * self)
{
  g_autoptr (GCancellable) old = NULL;

  GST_OBJECT_LOCK (self);
  old = priv_of (self)->cancellable;
  priv_of (self)->cancellable = g_cancellable_new ();
  GST_OBJECT_UNLOCK (self);
}

GstFlowReturn
gst_qomni_encoder_fail (GstQomniEncoder * self, const GError * error)
{
  if (g_error_matches (error, G_IO_ERROR, G_IO_ERROR_CANCELLED))
    return GST_FLOW_FLUSHING;
  gst_qomni_post_error (GST_ELEMENT (self), error, "encode");
  return GST_FLOW_ERROR;
}

/* --- clips ---------------------------------------------------------------- */

void
gst_qomni_encoder_open_clip (GstQomniEncoder * self, GstClockTime start)
{
  GstQomniEncoderPrivate *priv = priv_of (self);

  GST_DEBUG_OBJECT (self, "a clip begins at %" GST_TIME_FORMAT,
      GST_TIME_ARGS (start));
  priv->clip_open = TRUE;
  priv->clip_fresh = TRUE;
  priv->clip_start = start;
}

gboolean
gst_qomni_encoder_has_clip (GstQomniEncoder * self)
{
  return priv_of (self)->clip_open;
}

GstClockTime
gst_qomni_encoder_clip_start (GstQomniEncoder * self)
{
  return priv_of (self)->clip_start;
}

static void
forget (GstQomniEncoder * self, gboolean all)
{
  GstQomniEncoderPrivate *priv = priv_of (self);

  GST_QOMNI_ENCODER_GET_CLASS (self)->forget (self, all);
  priv->clip_open = FALSE;
  priv->clip_fresh = FALSE;
  if (all)
    priv->created = FALSE;
}

/* Times of a block are relative to its clip. */
static GstBuffer *
wrap_block (GstQomniEncoder * self, QomniEmbeddings * block)
{
  GstQomniEncoderPrivate *priv = priv_of (self);
  GstBuffer *buffer = gst_qomni_embeddings_to_buffer (block);

  GST_BUFFER_PTS (buffer) = priv->clip_start + MAX (block->start, 0);
  GST_BUFFER_DURATION (buffer) = block->duration;
  GST_BUFFER_OFFSET (buffer) = priv->n_tokens;
  priv->n_tokens += block->n_tokens;
  GST_BUFFER_OFFSET_END (buffer) = priv->n_tokens;
  if (priv->clip_fresh)
    GST_BUFFER_FLAG_SET (buffer, GST_BUFFER_FLAG_DISCONT);
  if (block->last)
    GST_BUFFER_FLAG_SET (buffer, GST_BUFFER_FLAG_MARKER);
  priv->clip_fresh = FALSE;

  GST_DEBUG_OBJECT (self, "block of %" G_GINT64_FORMAT " tokens: %"
      GST_PTR_FORMAT, (gint64) block->n_tokens, buffer);
  return buffer;
}

/* *ret_buffer is NULL when there is no block. */
static GstFlowReturn
pull_block (GstQomniEncoder * self, GstBuffer ** ret_buffer)
{
  GstQomniEncoderClass *klass = GST_QOMNI_ENCODER_GET_CLASS (self);
  g_autoptr (GCancellable) cancellable = ref_cancellable (self);
  g_autoptr (QomniEmbeddings) block = NULL;
  g_autoptr (GError) error = NULL;

  *ret_buffer = NULL;
  block = klass->pull (self, cancellable, &error);
  if (block != NULL)
    *ret_buffer = wrap_block (self, block);
  else if (error != NULL)
    return gst_qomni_encoder_fail (self, error);
  return GST_FLOW_OK;
}

GstFlowReturn
gst_qomni_encoder_drain (GstQomniEncoder * self)
{
  GstQomniEncoderPrivate *priv = priv_of (self);
  GstFlowReturn ret = GST_FLOW_OK;
  g_autoptr (GError) error = NULL;
  GstBuffer *buffer;

  if (!priv->clip_open)
    return GST_FLOW_OK;

  if (!GST_QOMNI_ENCODER_GET_CLASS (self)->finish (self, &error))
    ret = gst_qomni_encoder_fail (self, error);
  while (ret == GST_FLOW_OK) {
    ret = pull_block (self, &buffer);
    if (buffer == NULL)
      break;
    ret = gst_pad_push (GST_BASE_TRANSFORM_SRC_PAD (self), buffer);
  }
  if (ret != GST_FLOW_OK)
    forget (self, FALSE);
  priv->clip_open = FALSE;
  return ret;
}

/* --- data ----------------------------------------------------------------- */

static gboolean
upstream_is_live (GstQomniEncoder * self)
{
  g_autoptr (GstQuery) query = gst_query_new_latency ();
  gboolean live = FALSE;

  if (gst_pad_peer_query (GST_BASE_TRANSFORM_SINK_PAD (self), query))
    gst_query_parse_latency (query, &live, NULL, NULL);
  return live;
}

/* Waits for the weights, then makes the core's encoder. */
static GstFlowReturn
ensure_created (GstQomniEncoder * self)
{
  GstQomniEncoderPrivate *priv = priv_of (self);
  g_autoptr (GCancellable) cancellable = NULL;
  g_autoptr (QomniModel) model = NULL;
  g_autoptr (GError) error = NULL;
  gboolean failed;

  if (priv->created)
    return GST_FLOW_OK;

  cancellable = ref_cancellable (self);
  if (!gst_qomni_client_wait (&priv->client, cancellable, &failed))
    return failed ? GST_FLOW_ERROR : GST_FLOW_FLUSHING;
  model = gst_qomni_client_ref_model (&priv->client);
  if (model == NULL)
    return GST_FLOW_FLUSHING;
  if (!GST_QOMNI_ENCODER_GET_CLASS (self)->create (self, model,
          upstream_is_live (self), cancellable, &error))
    return gst_qomni_encoder_fail (self, error);
  priv->created = TRUE;
  return GST_FLOW_OK;
}

static GstFlowReturn
gst_qomni_encoder_generate_output (GstBaseTransform * trans, GstBuffer ** outbuf)
{
  GstQomniEncoder *self = GST_QOMNI_ENCODER (trans);
  GstBuffer *input = g_steal_pointer (&trans->queued_buf);
  GstFlowReturn ret;

  *outbuf = NULL;
  ret = ensure_created (self);
  if (ret == GST_FLOW_OK && input != NULL)
    ret = GST_QOMNI_ENCODER_GET_CLASS (self)->take (self,
        g_steal_pointer (&input));
  gst_clear_buffer (&input);
  return ret == GST_FLOW_OK ? pull_block (self, outbuf) : ret;
}

static GstCaps *
gst_qomni_encoder_transform_caps (GstBaseTransform * trans,
    GstPadDirection direction, GstCaps * caps, GstCaps * filter)
{
  GstQomniEncoder *self = GST_QOMNI_ENCODER (trans);
  GstQomniEncoderClass *klass = GST_QOMNI_ENCODER_GET_CLASS (self);
  g_autoptr (QomniModel) model = NULL;
  GstCaps *other, *filtered;

  if (direction == GST_PAD_SRC) {
    other = gst_pad_get_pad_template_caps (GST_BASE_TRANSFORM_SINK_PAD (trans));
  } else {
    model = gst_qomni_client_ref_model (&priv_of (self)->client);
    other = model != NULL
        ? gst_qomni_model_embeddings_caps (model, klass->modality)
        : gst_pad_get_pad_template_caps (GST_BASE_TRANSFORM_SRC_PAD (trans));
  }
  if (filter == NULL)
    return other;
  filtered = gst_caps_intersect_full (filter, other, GST_CAPS_INTERSECT_FIRST);
  gst_caps_unref (other);
  return filtered;
}

/* --- events --------------------------------------------------------------- */

static gboolean
same_segment (const GstSegment * a, const GstSegment * b)
{
  GstSegment x = *a, y = *b;

  x.position = y.position = 0;
  return gst_segment_is_equal (&x, &y);
}

/* A sticky event that is refused is sent again with each buffer, so the error
 * is posted once. */
static gboolean
check_segment (GstQomniEncoder * self, const GstSegment * segment)
{
  GstQomniEncoderPrivate *priv = priv_of (self);
  const gboolean again = priv->refused;

  priv->refused = segment->format != GST_FORMAT_TIME || segment->rate <= 0;
  if (!priv->refused || again)
    return !priv->refused;

  if (segment->format != GST_FORMAT_TIME)
    GST_ELEMENT_ERROR (self, STREAM, FORMAT,
        ("Media without time stamps cannot be placed."),
        ("segment of format %s, expected time",
            gst_format_get_name (segment->format)));
  else
    GST_ELEMENT_ERROR (self, CORE, SEEK,
        ("Media cannot be played backwards into the model."),
        ("segment rate %f", segment->rate));
  return FALSE;
}

static gboolean
gst_qomni_encoder_sink_event (GstBaseTransform * trans, GstEvent * event)
{
  GstQomniEncoder *self = GST_QOMNI_ENCODER (trans);
  GstQomniEncoderPrivate *priv = priv_of (self);
  GstFlowReturn ret = GST_FLOW_OK;

  switch (GST_EVENT_TYPE (event)) {
    case GST_EVENT_FLUSH_START:
      cancel (self);
      break;
    case GST_EVENT_FLUSH_STOP:
      forget (self, FALSE);
      uncancel (self);
      break;
    case GST_EVENT_SEGMENT:{
      const GstSegment *segment;

      gst_event_parse_segment (event, &segment);
      if (!check_segment (self, segment)) {
        gst_event_unref (event);
        return FALSE;
      }
      if (!same_segment (segment, &trans->segment))
        ret = gst_qomni_encoder_drain (self);
      break;
    }
    case GST_EVENT_STREAM_START:
    case GST_EVENT_EOS:
      ret = gst_qomni_encoder_drain (self);
      break;
    case GST_EVENT_GAP:{
      g_autoptr (GError) error = NULL;
      GstClockTime timestamp, duration;

      if (!priv->clip_open)
        break;
      gst_event_parse_gap (event, &timestamp, &duration);
      if (GST_CLOCK_TIME_IS_VALID (duration)
          && GST_QOMNI_ENCODER_GET_CLASS (self)->gap (self, timestamp,
              duration, &error)) {
        gst_event_unref (event);
        return TRUE;
      }
      if (error != NULL) {
        gst_qomni_encoder_fail (self, error);
        gst_event_unref (event);
        return FALSE;
      }
      ret = gst_qomni_encoder_drain (self);
      break;
    }
    default:
      if (gst_qomni_event_is_mark (event))
        ret = gst_qomni_encoder_drain (self);
      break;
  }

  if (ret == GST_FLOW_FLUSHING) {
    gst_event_unref (event);
    return FALSE;
  }
  return GST_BASE_TRANSFORM_CLASS (gst_qomni_encoder_parent_class)->sink_event
      (trans, event);
}

static gboolean
gst_qomni_encoder_query (GstBaseTransform * trans, GstPadDirection direction,
    GstQuery * query)
{
  GstQomniEncoder *self = GST_QOMNI_ENCODER (trans);

  if (gst_qomni_client_query (&priv_of (self)->client, query))
    return TRUE;

  if (GST_QUERY_TYPE (query) == GST_QUERY_LATENCY && direction == GST_PAD_SRC) {
    GstClockTime min, max, own;
    gboolean live;

    if (!gst_pad_peer_query (GST_BASE_TRANSFORM_SINK_PAD (trans), query))
      return FALSE;
    gst_query_parse_latency (query, &live, &min, &max);
    if (live) {
      own = GST_QOMNI_ENCODER_GET_CLASS (self)->latency (self);
      min += own;
      if (GST_CLOCK_TIME_IS_VALID (max))
        max += own;
    }
    gst_query_set_latency (query, live, min, max);
    return TRUE;
  }
  return GST_BASE_TRANSFORM_CLASS (gst_qomni_encoder_parent_class)->query
      (trans, direction, query);
}

/* --- states --------------------------------------------------------------- */

static gboolean
gst_qomni_encoder_stop (GstBaseTransform * trans)
{
  GstQomniEncoder *self = GST_QOMNI_ENCODER (trans);

  forget (self, TRUE);
  priv_of (self)->n_tokens = 0;
  priv_of (self)->refused = FALSE;
  return TRUE;
}

static gboolean
check_component (GstQomniEncoder * self)
{
  QomniComponents component = GST_QOMNI_ENCODER_GET_CLASS (self)->component;
  g_autoptr (QomniModel) model =
      gst_qomni_client_ref_model (&priv_of (self)->client);

  if (qomni_model_components (model) & component)
    return TRUE;
  GST_ELEMENT_ERROR (self, LIBRARY, SETTINGS,
      ("The model has no %s encoder.", qomni_component_name (component)),
      ("%s", qomni_model_path (model)));
  return FALSE;
}

static GstStateChangeReturn
gst_qomni_encoder_change_state (GstElement * element,
    GstStateChange transition)
{
  GstQomniEncoder *self = GST_QOMNI_ENCODER (element);
  GstQomniClient *client = &priv_of (self)->client;
  GstStateChangeReturn ret;

  switch (transition) {
    case GST_STATE_CHANGE_NULL_TO_READY:
      if (!gst_qomni_client_open (client))
        return GST_STATE_CHANGE_FAILURE;
      if (!check_component (self)) {
        gst_qomni_client_close (client);
        return GST_STATE_CHANGE_FAILURE;
      }
      break;
    case GST_STATE_CHANGE_READY_TO_PAUSED:
      uncancel (self);
      gst_qomni_client_load (client,
          GST_QOMNI_ENCODER_GET_CLASS (self)->component);
      break;
    case GST_STATE_CHANGE_PAUSED_TO_READY:
      cancel (self);
      gst_qomni_client_cancel (client);
      break;
    default:
      break;
  }

  ret = GST_ELEMENT_CLASS (gst_qomni_encoder_parent_class)->change_state
      (element, transition);

  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY
      || (transition == GST_STATE_CHANGE_READY_TO_PAUSED
          && ret == GST_STATE_CHANGE_FAILURE))
    gst_qomni_client_unload (client);
  if (transition == GST_STATE_CHANGE_READY_TO_NULL
      || (transition == GST_STATE_CHANGE_NULL_TO_READY
          && ret == GST_STATE_CHANGE_FAILURE))
    gst_qomni_client_close (client);
  return ret;
}

static void
gst_qomni_encoder_set_context (GstElement * element, GstContext * context)
{
  gst_qomni_client_set_context (&priv_of (GST_QOMNI_ENCODER (element))->client,
      context);
  GST_ELEMENT_CLASS (gst_qomni_encoder_parent_class)->set_context (element,
      context);
}

/* --- properties and life -------------------------------------------------- */

static void
gst_qomni_encoder_set_property (GObject * object, guint prop_id,
    const GValue * value, GParamSpec * pspec)
{
  if (!gst_qomni_client_set_property (&priv_of (GST_QOMNI_ENCODER
              (object))->client, prop_id, value))
    G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
}

static void
gst_qomni_encoder_get_property (GObject * object, guint prop_id,
    GValue * value, GParamSpec * pspec)
{
  if (!gst_qomni_client_get_property (&priv_of (GST_QOMNI_ENCODER
              (object))->client, prop_id, value))
    G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
}

static void
gst_qomni_encoder_finalize (GObject * object)
{
  GstQomniEncoderPrivate *priv = priv_of (GST_QOMNI_ENCODER (object));

  gst_qomni_client_clear (&priv->client);
  g_object_unref (priv->cancellable);
  G_OBJECT_CLASS (gst_qomni_encoder_parent_class)->finalize (object);
}

static void
gst_qomni_encoder_class_init (GstQomniEncoderClass * klass)
{
  GObjectClass *object_class = G_OBJECT_CLASS (klass);
  GstElementClass *element_class = GST_ELEMENT_CLASS (klass);
  GstBaseTransformClass *trans_class = GST_BASE_TRANSFORM_CLASS (klass);

  object_class->set_property = gst_qomni_encoder_set_property;
  object_class->get_property = gst_qomni_encoder_get_property;
  object_class->finalize = gst_qomni_encoder_finalize;
  gst_qomni_client_install_properties (object_class);

  element_class->change_state = gst_qomni_encoder_change_state;
  element_class->set_context = gst_qomni_encoder_set_context;

  trans_class->stop = gst_qomni_encoder_stop;
  trans_class->transform_caps = gst_qomni_encoder_transform_caps;
  trans_class->generate_output = gst_qomni_encoder_generate_output;
  trans_class->sink_event = gst_qomni_encoder_sink_event;
  trans_class->query = gst_qomni_encoder_query;

  gst_type_mark_as_plugin_api (GST_TYPE_QOMNI_ENCODER, 0);
}

static void
gst_qomni_encoder_init (GstQomniEncoder * self)
{
  GstQomniEncoderPrivate *priv = priv_of (self);

  gst_qomni_client_init (&priv->client, GST_ELEMENT (self));
  priv->cancellable = g_cancellable_new ();
  gst_base_transform_set_in_place (GST_BASE_TRANSFORM (self), FALSE);
  gst_base_transform_set_gap_aware (GST_BASE_TRANSFORM (self), TRUE);
}
