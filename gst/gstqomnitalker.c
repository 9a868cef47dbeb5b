/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnitalker: rows of the thinker -> 24 kHz speech.
 *
 *   sink chain -> rows -> src task: QomniTalker -> S16 or F32 -> push
 *
 * The task of the source pad owns the Talker and computes; the chain function
 * only appends, and waits while many rows wait already. Speech leaves in groups
 * of codec frames: the first buffer of a reply is one frame, so that it sounds
 * early, the others are up to four. A frame is 1920 samples, but the first of a
 * reply is 1365, so time comes from counting samples.
 *
 * A reply begins at the running time of its rows (the end of the user's turn)
 * or where the last one ended, whichever is later, and is contiguous.
 *
 * A flush or an interrupt drops the reply, but never the rows of the user's
 * turn: they are the Talker's prompt and are sent once.
 *
 * Locks: `lock` guards what is marked so below, waits are on `cond`; the object
 * lock guards the settings, and the two are never held together. Neither is
 * held while computing, pushing or posting.
 */
/**
 * SECTION:element-qomnitalker
 * @title: qomnitalker
 *
 * Speaks the replies of a #qomnithinker whose `hidden` pad it is linked to. The
 * voices are those of the checkpoint; an unknown one is an error that lists
 * them.
 *
 * ## Example launch line
 * |[
 * echo "Tell me a story." | gst-launch-1.0 fdsrc ! qomnithinker name=t t.hidden ! qomnitalker ! wavenc ! filesink location=story.wav
 * ]| Writes the answer as sound.
 *
 * Since: 0.1
 */
#include "gstqomnitalker.h"

#include <gst/audio/audio.h>
#include <math.h>
#include <string.h>

#include "gstqomniclient.h"
#include "gstqomnierror.h"
#include "gstqomnievents.h"
#include "gstqomnimeta.h"
#include "talker.h"

GST_DEBUG_CATEGORY_STATIC (gst_qomni_talker_debug);
#define GST_CAT_DEFAULT gst_qomni_talker_debug

#define RATE 24000
/* Codec frames of a buffer, except the first of a reply: 320 ms. */
#define GROUP_FRAMES 4
/* Buffers of rows that wait before chain does: half a minute of speech. */
#define MAX_WAITING_ROWS 512

enum
{
  PROP_VOICE = GST_QOMNI_CLIENT_PROP_LAST,
  PROP_TEMPERATURE,
  PROP_TOP_K,
  PROP_TOP_P,
  PROP_REPETITION_PENALTY,
  PROP_SEED,
  PROP_MAX_FRAMES,
};

enum
{
  HEAD_STREAM_START = 1 << 0,
  HEAD_SEGMENT = 1 << 1,
  HEAD_GAP = 1 << 2,            /* after the thinker's */
};

/* Rows that wait; rows NULL: the end of the stream. */
typedef struct
{
  QomniEmbeddings *rows;
  guint64 turn_id;
  GstClockTime time;            /* running time */
} Item;

struct _GstQomniTalker
{
  GstElement parent;

  GstPad *sinkpad, *srcpad;
  GstQomniClient client;

  /* object lock */
  gchar *voice;
  gdouble temperature, top_p, repetition_penalty;       /* -1: the model's */
  gint top_k, max_frames;       /* -1, 0: the model's */
  guint64 seed;
  gboolean voice_changed;

  /* sink streaming thread */
  GstSegment segment;
  gboolean refused;             /* caps or segment, which come again */

  GMutex lock;
  GCond cond;
  /* lock */
  GQueue items;                 /* Item */
  gboolean active;              /* the source pad */
  gboolean flushing, stopping;
  gboolean busy;                /* the task is between two waits */
  gboolean restart_time;
  guint heads;
  guint64 dropped_turn;         /* replies up to this one are not spoken */
  guint64 epoch;                /* counts flushes and interrupts */
  GstFlowReturn flow;           /* what the chain function returns */
  GCancellable *cancellable;    /* of the epoch */

  /* src task */
  QomniTalker *talker;
  GstAudioFormat format;
  gboolean negotiated;
  guint64 seen_epoch;
  gboolean in_reply;            /* the Talker has a reply that did not end */
  gboolean first_sound;         /* … and nothing of it was pushed */
  GstClockTime base;            /* running time of sample 0 of the count */
  guint64 n_samples;            /* since base */
  guint n_failures;             /* in a row */
};

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE ("sink",
    GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("application/x-qomni-embeddings, "
        "modality = (string) thinker, dtype = (string) f32"));

static GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE ("src",
    GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("audio/x-raw, "
        "format = (string) { " GST_AUDIO_NE (S16) ", " GST_AUDIO_NE (F32)
        " }, rate = (int) 24000, channels = (int) 1, "
        "layout = (string) interleaved"));

G_DEFINE_TYPE (GstQomniTalker, gst_qomni_talker, GST_TYPE_ELEMENT);
GST_ELEMENT_REGISTER_DEFINE (qomnitalker, "qomnitalker", GST_RANK_NONE,
    GST_TYPE_QOMNI_TALKER);

static void
item_free (Item * item)
{
  qomni_embeddings_unref (item->rows);
  g_free (item);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC (Item, item_free)
/* --- settings ------------------------------------------------------------- */

static void
get_params (GstQomniTalker * self, const QomniConfig * config,
    QomniTalkerParams * params, gchar ** ret_voice)
{
  qomni_talker_params_init (params, config);
  GST_OBJECT_LOCK (self);
  if (self->temperature == 0) {
    qomni_talker_params_greedy (params);
  } else if (self->temperature > 0) {
    params->sampling.sample = true;
    params->sampling.temperature = self->temperature;
  }
  if (self->top_k >= 0)
    params->sampling.top_k = self->top_k;
  if (self->top_p >= 0)
    params->sampling.top_p = self->top_p;
  if (self->repetition_penalty >= 0)
    params->sampling.repetition_penalty = self->repetition_penalty;
  params->seed = self->seed;
  params->max_frames = self->max_frames;
  params->group_frames = GROUP_FRAMES;
  params->voice = *ret_voice = g_strdup (self->voice);
  self->voice_changed = FALSE;
  GST_OBJECT_UNLOCK (self);
}

/* A voice that was set since the last reply, for the next one. */
static void
update_voice (GstQomniTalker * self)
{
  g_autofree gchar *voice = NULL;
  g_autoptr (GError) error = NULL;
  gboolean changed;

  GST_OBJECT_LOCK (self);
  changed = self->voice_changed;
  self->voice_changed = FALSE;
  voice = g_strdup (self->voice);
  GST_OBJECT_UNLOCK (self);

  if (changed && !qomni_talker_set_voice (self->talker, voice, &error))
    gst_qomni_post_warning (GST_ELEMENT (self), error, "set the voice");
}

/* Waits for the weights, then makes the Talker. FALSE with no error when it was
 * cancelled or the load has failed, which has been said already. */
static gboolean
ensure_talker (GstQomniTalker * self, GCancellable * cancellable,
    GError ** error)
{
  g_autoptr (QomniModel) model = NULL;
  g_autofree gchar *voice = NULL;
  QomniTalkerParams params;
  gboolean failed;

  if (self->talker != NULL)
    return TRUE;
  if (!gst_qomni_client_wait (&self->client, cancellable, &failed)) {
    if (failed) {
      g_mutex_lock (&self->lock);
      self->flow = GST_FLOW_ERROR;
      g_cond_broadcast (&self->cond);
      g_mutex_unlock (&self->lock);
    }
    return FALSE;
  }
  model = gst_qomni_client_ref_model (&self->client);
  if (model == NULL)
    return FALSE;
  get_params (self, qomni_model_config (model), &params, &voice);
  self->talker = qomni_talker_new (model, &params, cancellable, error);
  return self->talker != NULL;
}

/* --- pushing (src task) --------------------------------------------------- */

/* S16 unless the peer wants F32. */
static gboolean
negotiate (GstQomniTalker * self)
{
  g_autoptr (GstCaps) templ = gst_pad_get_pad_template_caps (self->srcpad);
  g_autoptr (GstCaps) peer = gst_pad_peer_query_caps (self->srcpad, templ);
  g_autoptr (GstCaps) caps =
      gst_caps_intersect_full (templ, peer, GST_CAPS_INTERSECT_FIRST);
  GstAudioInfo info;

  if (gst_caps_is_empty (caps))
    return FALSE;
  caps = gst_caps_fixate (caps);
  if (!gst_audio_info_from_caps (&info, caps)
      || !gst_pad_push_event (self->srcpad, gst_event_new_caps (caps)))
    return FALSE;
  self->format = GST_AUDIO_INFO_FORMAT (&info);
  return TRUE;
}

static GstClockTime
position (GstQomniTalker * self)
{
  return self->base
      + gst_util_uint64_scale_int (self->n_samples, GST_SECOND, RATE);
}

static void
push_heads (GstQomniTalker * self, guint heads)
{
  GstSegment segment;

  if (heads & HEAD_STREAM_START) {
    g_autofree gchar *id = gst_pad_create_stream_id (self->srcpad,
        GST_ELEMENT (self), "speech");
    GstEvent *event = gst_event_new_stream_start (id);

    gst_event_set_group_id (event, gst_util_group_id_next ());
    gst_pad_push_event (self->srcpad, event);
    /* When this fails the first sound tries again, and says so. */
    gst_pad_check_reconfigure (self->srcpad);
    self->negotiated = negotiate (self);
  }
  if (heads & HEAD_SEGMENT) {
    gst_segment_init (&segment, GST_FORMAT_TIME);
    gst_pad_push_event (self->srcpad, gst_event_new_segment (&segment));
  }
  /* Lets sinks preroll, however long the answer takes. */
  if (heads & HEAD_GAP)
    gst_pad_push_event (self->srcpad, gst_event_new_gap (position (self),
            GST_CLOCK_TIME_NONE));
}

/* Downstream's answer: TRUE to go on. */
static gboolean
note_flow (GstQomniTalker * self, GstFlowReturn ret)
{
  gboolean fatal, over;

  if (ret == GST_FLOW_FLUSHING)
    return FALSE;
  g_mutex_lock (&self->lock);
  over = ret == GST_FLOW_EOS && self->flow == GST_FLOW_OK;
  fatal = ret < GST_FLOW_EOS && self->flow == GST_FLOW_OK;
  if (self->flow != GST_FLOW_ERROR)
    self->flow = ret;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);

  if (fatal)
    GST_ELEMENT_FLOW_ERROR (self, ret);
  /* A sink that has enough ends with an EOS, like behind any source. */
  if (over)
    gst_pad_push_event (self->srcpad, gst_event_new_eos ());
  return ret == GST_FLOW_OK;
}

static GstBuffer *
make_buffer (GstQomniTalker * self, const float *samples, gsize n)
{
  const gboolean f32 = self->format == GST_AUDIO_FORMAT_F32;
  GstBuffer *buffer = gst_buffer_new_allocate (NULL, n * (f32 ? 4 : 2), NULL);
  GstMapInfo map;

  gst_buffer_map (buffer, &map, GST_MAP_WRITE);
  if (f32) {
    memcpy (map.data, samples, n * sizeof (float));
  } else {
    gint16 *out = (gint16 *) map.data;

    for (gsize i = 0; i < n; i++)
      out[i] = (gint16) lrintf (CLAMP (samples[i] * 32767.0f, -32768.0f,
              32767.0f));
  }
  gst_buffer_unmap (buffer, &map);
  return buffer;
}

static gboolean
push_sound (GstQomniTalker * self, const float *samples, gsize n)
{
  GstClockTime start = position (self);
  GstBuffer *buffer;

  if (n == 0)
    return TRUE;
  if (gst_pad_check_reconfigure (self->srcpad) || !self->negotiated) {
    self->negotiated = negotiate (self);
    if (!self->negotiated) {
      gst_pad_mark_reconfigure (self->srcpad);
      return note_flow (self, gst_pad_is_linked (self->srcpad)
          ? GST_FLOW_NOT_NEGOTIATED : GST_FLOW_NOT_LINKED);
    }
  }

  buffer = make_buffer (self, samples, n);
  self->n_samples += n;
  GST_BUFFER_PTS (buffer) = start;
  GST_BUFFER_DURATION (buffer) = position (self) - start;
  if (self->first_sound)
    GST_BUFFER_FLAG_SET (buffer, GST_BUFFER_FLAG_DISCONT);
  self->first_sound = FALSE;
  return note_flow (self, gst_pad_push (self->srcpad, buffer));
}

/* --- speaking (src task) -------------------------------------------------- */

static void
begin_reply (GstQomniTalker * self, GstClockTime time)
{
  GstClockTime at = position (self);

  self->in_reply = TRUE;
  self->first_sound = TRUE;
  self->base = GST_CLOCK_TIME_IS_VALID (time) ? MAX (at, time) : at;
  self->n_samples = 0;
}

static void
report_failure (GstQomniTalker * self, const GError * error)
{
  if (!gst_qomni_post_failure (GST_ELEMENT (self), error, "speak",
          &self->n_failures))
    return;
  g_mutex_lock (&self->lock);
  self->flow = GST_FLOW_ERROR;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

/* Speaks what the rows so far allow. */
static void
speak (GstQomniTalker * self, GCancellable * cancellable)
{
  g_autoptr (GError) error = NULL;
  QomniTalkerStep step;

  do {
    if (!qomni_talker_step (self->talker, &step, cancellable, &error)) {
      self->in_reply = FALSE;
      report_failure (self, error);
      return;
    }
    if (step.state == QOMNI_TALKER_SOUND
        && !push_sound (self, step.samples, step.n_samples)) {
      /* The epoch's end cancels; anything else has no use for the rest. */
      if (self->in_reply)
        qomni_talker_cancel (self->talker);
      self->in_reply = FALSE;
      return;
    }
    if (step.state == QOMNI_TALKER_END) {
      GST_INFO_OBJECT (self, "spoken: %" G_GINT64_FORMAT " frames, %s",
          (gint64) step.n_frames, qomni_speech_finish_name (step.finish));
      if (step.finish == QOMNI_SPEECH_RUNAWAY)
        GST_ELEMENT_WARNING (self, STREAM, FAILED,
            ("Speech that did not end was stopped."),
            ("after %" G_GINT64_FORMAT " frames", (gint64) step.n_frames));
      self->in_reply = FALSE;
      self->n_failures = 0;
    }
  } while (step.state == QOMNI_TALKER_SOUND);
}

static gboolean
is_dropped (GstQomniTalker * self, const Item * item)
{
  gboolean dropped;

  if (item->rows->rows_kind == QOMNI_ROWS_PROMPT)
    return FALSE;
  g_mutex_lock (&self->lock);
  dropped = item->turn_id > 0 && item->turn_id <= self->dropped_turn;
  g_mutex_unlock (&self->lock);
  return dropped;
}

/* FALSE when a flush or an interrupt came before the Talker was there. */
static gboolean
handle_rows (GstQomniTalker * self, Item * item, GCancellable * cancellable)
{
  g_autoptr (GError) error = NULL;

  if (is_dropped (self, item))
    return TRUE;
  if (!ensure_talker (self, cancellable, &error)) {
    if (g_cancellable_is_cancelled (cancellable))
      return FALSE;
    if (error != NULL)
      report_failure (self, error);
    return TRUE;
  }
  if (item->rows->rows_kind == QOMNI_ROWS_PROMPT)
    update_voice (self);
  if (item->rows->rows_kind == QOMNI_ROWS_HEADER)
    begin_reply (self, item->time);
  if (!qomni_talker_push (self->talker, item->rows, &error)) {
    report_failure (self, error);
    return TRUE;
  }
  speak (self, cancellable);
  return TRUE;
}

/* After a flush or an interrupt: the reply of before is over. */
static void
enter_epoch (GstQomniTalker * self, guint64 epoch, gboolean restart_time)
{
  if (self->in_reply && self->talker != NULL)
    qomni_talker_cancel (self->talker);
  self->in_reply = FALSE;
  self->seen_epoch = epoch;
  if (restart_time)
    self->base = self->n_samples = 0;
}

static void
gst_qomni_talker_loop (GstPad * pad)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (GST_PAD_PARENT (pad));
  g_autoptr (GCancellable) cancellable = NULL;
  g_autoptr (Item) item = NULL;
  gboolean restart_time, handled = TRUE;
  guint64 epoch;
  guint heads;

  g_mutex_lock (&self->lock);
  while (self->active && (self->flushing || (self->heads == 0
              && g_queue_is_empty (&self->items))))
    g_cond_wait (&self->cond, &self->lock);
  if (!self->active) {
    g_mutex_unlock (&self->lock);
    gst_pad_pause_task (pad);
    return;
  }
  heads = self->heads;
  self->heads = 0;
  epoch = self->epoch;
  restart_time = self->restart_time;
  self->restart_time = FALSE;
  if (heads == 0)
    item = g_queue_pop_head (&self->items);
  cancellable = g_object_ref (self->cancellable);
  self->busy = TRUE;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);

  if (epoch != self->seen_epoch || restart_time)
    enter_epoch (self, epoch, restart_time);
  if (heads != 0)
    push_heads (self, heads);
  else if (item->rows == NULL)
    gst_pad_push_event (pad, gst_event_new_eos ());
  else
    handled = handle_rows (self, item, cancellable);

  g_mutex_lock (&self->lock);
  /* They are sent only once. */
  if (!handled && item->rows->rows_kind == QOMNI_ROWS_PROMPT)
    g_queue_push_head (&self->items, g_steal_pointer (&item));
  self->busy = FALSE;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

static gboolean
gst_qomni_talker_src_activate_mode (GstPad * pad, GstObject * parent,
    GstPadMode mode, gboolean active)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (parent);

  if (mode != GST_PAD_MODE_PUSH)
    return FALSE;
  g_mutex_lock (&self->lock);
  self->active = active;
  if (active)
    self->heads |= HEAD_STREAM_START | HEAD_SEGMENT;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);

  return active ? gst_pad_start_task (pad, (GstTaskFunction)
      gst_qomni_talker_loop, pad, NULL) : gst_pad_stop_task (pad);
}

/* --- flushes and interrupts ----------------------------------------------- */

/* Ends the epoch under the lock; the caller cancels what is returned, without
 * it. Rows of the user's turns stay; `up_to`: of other rows, those of later
 * turns do. */
static GCancellable *
end_epoch (GstQomniTalker * self, guint64 up_to)
{
  GCancellable *old = self->cancellable;
  GQueue kept = G_QUEUE_INIT;
  Item *item;

  while ((item = g_queue_pop_head (&self->items)) != NULL) {
    gboolean keep = item->rows == NULL ? up_to != G_MAXUINT64
        : item->rows->rows_kind == QOMNI_ROWS_PROMPT || item->turn_id > up_to;

    if (keep)
      g_queue_push_tail (&kept, item);
    else
      item_free (item);
  }
  self->items = kept;
  self->epoch++;
  self->cancellable = g_cancellable_new ();
  g_cond_broadcast (&self->cond);
  return old;
}

static void
flush_start (GstQomniTalker * self)
{
  g_autoptr (GCancellable) old = NULL;

  g_mutex_lock (&self->lock);
  self->flushing = TRUE;
  old = end_epoch (self, G_MAXUINT64);
  g_mutex_unlock (&self->lock);
  g_cancellable_cancel (old);
  gst_pad_push_event (self->srcpad, gst_event_new_flush_start ());
}

static void
flush_stop (GstQomniTalker * self, gboolean reset_time)
{
  /* Nothing from before may come after. */
  g_mutex_lock (&self->lock);
  while (self->busy && !self->stopping)
    g_cond_wait (&self->cond, &self->lock);
  g_mutex_unlock (&self->lock);

  gst_pad_push_event (self->srcpad, gst_event_new_flush_stop (reset_time));

  gst_segment_init (&self->segment, GST_FORMAT_UNDEFINED);
  g_mutex_lock (&self->lock);
  self->flushing = FALSE;
  self->restart_time |= reset_time;
  self->heads |= HEAD_SEGMENT;
  if (self->flow != GST_FLOW_ERROR)
    self->flow = GST_FLOW_OK;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

static void
interrupt (GstQomniTalker * self, guint64 turn_id)
{
  g_autoptr (GCancellable) old = NULL;

  g_mutex_lock (&self->lock);
  if (turn_id > self->dropped_turn) {
    self->dropped_turn = turn_id;
    old = end_epoch (self, turn_id);
  }
  g_mutex_unlock (&self->lock);
  if (old != NULL)
    g_cancellable_cancel (old);
}

/* --- sink pad ------------------------------------------------------------- */

static GstFlowReturn
append (GstQomniTalker * self, Item * item)
{
  GstFlowReturn ret;

  g_mutex_lock (&self->lock);
  while (self->items.length >= MAX_WAITING_ROWS && !self->flushing
      && !self->stopping && self->flow == GST_FLOW_OK)
    g_cond_wait (&self->cond, &self->lock);
  ret = self->flushing || self->stopping ? GST_FLOW_FLUSHING : self->flow;
  /* The end is the end, and a pad that is linked later speaks the turns from
   * then on, for which it needs the user's rows of all. */
  if (ret == GST_FLOW_OK || (item->rows == NULL && ret != GST_FLOW_FLUSHING)
      || (ret == GST_FLOW_NOT_LINKED
          && item->rows->rows_kind == QOMNI_ROWS_PROMPT)) {
    g_queue_push_tail (&self->items, g_steal_pointer (&item));
    g_cond_broadcast (&self->cond);
  }
  g_mutex_unlock (&self->lock);
  g_clear_pointer (&item, item_free);
  return ret;
}

static GstFlowReturn
gst_qomni_talker_chain (GstPad * pad, GstObject * parent, GstBuffer * buffer)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (parent);
  g_autoptr (GstBuffer) input = buffer;
  g_autoptr (QomniEmbeddings) rows = NULL;
  g_autoptr (GError) error = NULL;
  Item *item;

  rows = gst_qomni_embeddings_from_buffer (input, &error);
  if (rows != NULL && rows->modality != QOMNI_MODALITY_THINKER) {
    g_clear_pointer (&rows, qomni_embeddings_unref);
    qomni_fail (&error, QOMNI_ERROR_INPUT,
        "embeddings of media, expected rows of a thinker");
  }
  if (rows == NULL) {
    gst_qomni_post_error (GST_ELEMENT (self), error, "receive");
    return GST_FLOW_ERROR;
  }
  item = g_new0 (Item, 1);
  item->rows = g_steal_pointer (&rows);
  item->turn_id = gst_qomni_embeddings_buffer_get_turn_id (input);
  item->time = gst_segment_to_running_time (&self->segment, GST_FORMAT_TIME,
      GST_BUFFER_PTS (input));
  return append (self, item);
}

static gboolean
check_caps (GstQomniTalker * self, GstCaps * caps)
{
  g_autoptr (QomniModel) model = gst_qomni_client_ref_model (&self->client);
  g_autoptr (GError) error = NULL;

  if (model == NULL)
    return FALSE;
  if (gst_qomni_model_check_caps (model, caps, QOMNI_MODALITY_THINKER,
          &error)) {
    self->refused = FALSE;
    return TRUE;
  }
  /* A sticky event that is refused is sent again with each buffer. */
  if (!self->refused)
    gst_qomni_post_error (GST_ELEMENT (self), error, "negotiate");
  self->refused = TRUE;
  return FALSE;
}

static gboolean
take_segment (GstQomniTalker * self, const GstSegment * segment)
{
  if (segment->format != GST_FORMAT_TIME) {
    if (!self->refused)
      GST_ELEMENT_ERROR (self, STREAM, FORMAT,
          ("Rows without time stamps cannot be spoken."),
          ("segment of format %s, expected time",
              gst_format_get_name (segment->format)));
    self->refused = TRUE;
    return FALSE;
  }
  self->refused = FALSE;
  gst_segment_copy_into (segment, &self->segment);
  return TRUE;
}

/* The source pad has a stream of its own; only what is for anybody passes. */
static gboolean
gst_qomni_talker_sink_event (GstPad * pad, GstObject * parent, GstEvent * event)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (parent);
  gboolean ret = TRUE, reset_time;
  const GstSegment *segment;
  guint64 turn_id;
  GstCaps *caps;

  switch (GST_EVENT_TYPE (event)) {
    case GST_EVENT_FLUSH_START:
      flush_start (self);
      break;
    case GST_EVENT_FLUSH_STOP:
      gst_event_parse_flush_stop (event, &reset_time);
      flush_stop (self, reset_time);
      break;
    case GST_EVENT_CAPS:
      gst_event_parse_caps (event, &caps);
      ret = check_caps (self, caps);
      break;
    case GST_EVENT_SEGMENT:
      gst_event_parse_segment (event, &segment);
      ret = take_segment (self, segment);
      break;
    case GST_EVENT_GAP:
      g_mutex_lock (&self->lock);
      self->heads |= HEAD_GAP;
      g_cond_broadcast (&self->cond);
      g_mutex_unlock (&self->lock);
      break;
    case GST_EVENT_EOS:
      append (self, g_new0 (Item, 1));
      break;
    case GST_EVENT_CUSTOM_DOWNSTREAM_OOB:
      if (gst_qomni_event_parse_interrupt (event, &turn_id, NULL))
        interrupt (self, turn_id);
      return gst_pad_push_event (self->srcpad, event);
    default:
      break;
  }
  gst_event_unref (event);
  return ret;
}

static gboolean
gst_qomni_talker_sink_query (GstPad * pad, GstObject * parent,
    GstQuery * query)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (parent);

  if (gst_qomni_client_query (&self->client, query))
    return TRUE;
  /* What the speech's sink allocates has nothing to do with rows. */
  if (GST_QUERY_TYPE (query) == GST_QUERY_ALLOCATION)
    return FALSE;
  return gst_pad_query_default (pad, parent, query);
}

/* --- source pad ----------------------------------------------------------- */

static gboolean
gst_qomni_talker_src_event (GstPad * pad, GstObject * parent, GstEvent * event)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (parent);

  switch (GST_EVENT_TYPE (event)) {
    case GST_EVENT_QOS:
      gst_event_unref (event);
      return TRUE;
    case GST_EVENT_RECONFIGURE:
      /* Linked at last. */
      g_mutex_lock (&self->lock);
      if (self->flow == GST_FLOW_NOT_LINKED)
        self->flow = GST_FLOW_OK;
      g_mutex_unlock (&self->lock);
      gst_event_unref (event);
      return TRUE;
    default:
      return gst_pad_event_default (pad, parent, event);
  }
}

static gboolean
gst_qomni_talker_src_query (GstPad * pad, GstObject * parent, GstQuery * query)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (parent);

  if (gst_qomni_client_query (&self->client, query))
    return TRUE;
  return gst_pad_query_default (pad, parent, query);
}

/* --- states --------------------------------------------------------------- */

static gboolean
check_model (GstQomniTalker * self)
{
  g_autoptr (QomniModel) model = gst_qomni_client_ref_model (&self->client);
  g_autoptr (GError) error = NULL;
  g_autofree gchar *voice = NULL;

  if ((qomni_model_components (model) & QOMNI_COMPONENT_SPEECH)
      != QOMNI_COMPONENT_SPEECH) {
    GST_ELEMENT_ERROR (self, LIBRARY, SETTINGS, ("The model cannot speak."),
        ("%s has no talker or no code2wav", qomni_model_path (model)));
    return FALSE;
  }
  GST_OBJECT_LOCK (self);
  voice = g_strdup (self->voice);
  GST_OBJECT_UNLOCK (self);
  if (qomni_config_voice (qomni_model_config (model), voice, &error) == NULL) {
    gst_qomni_post_error (GST_ELEMENT (self), error, "open");
    return FALSE;
  }
  return TRUE;
}

static void
start (GstQomniTalker * self)
{
  g_mutex_lock (&self->lock);
  self->flushing = self->stopping = self->restart_time = FALSE;
  self->flow = GST_FLOW_OK;
  self->dropped_turn = 0;
  self->seen_epoch = self->epoch;
  g_object_unref (self->cancellable);
  self->cancellable = g_cancellable_new ();
  g_mutex_unlock (&self->lock);

  self->in_reply = self->negotiated = self->refused = FALSE;
  self->base = self->n_samples = 0;
  self->n_failures = 0;
  gst_segment_init (&self->segment, GST_FORMAT_UNDEFINED);
}

static void
signal_stop (GstQomniTalker * self)
{
  g_autoptr (GCancellable) cancellable = NULL;

  g_mutex_lock (&self->lock);
  self->stopping = TRUE;
  cancellable = g_object_ref (self->cancellable);
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
  g_cancellable_cancel (cancellable);
  gst_qomni_client_cancel (&self->client);
}

/* Once the task has been joined. */
static void
stop (GstQomniTalker * self)
{
  g_mutex_lock (&self->lock);
  g_queue_clear_full (&self->items, (GDestroyNotify) item_free);
  self->heads = 0;
  g_mutex_unlock (&self->lock);
  g_clear_pointer (&self->talker, qomni_talker_free);
  gst_qomni_client_unload (&self->client);
}

static GstStateChangeReturn
gst_qomni_talker_change_state (GstElement * element, GstStateChange transition)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (element);
  GstStateChangeReturn ret;

  switch (transition) {
    case GST_STATE_CHANGE_NULL_TO_READY:
      if (!gst_qomni_client_open (&self->client))
        return GST_STATE_CHANGE_FAILURE;
      if (!check_model (self)) {
        gst_qomni_client_close (&self->client);
        return GST_STATE_CHANGE_FAILURE;
      }
      break;
    case GST_STATE_CHANGE_READY_TO_PAUSED:
      start (self);
      gst_qomni_client_load (&self->client, QOMNI_COMPONENT_SPEECH);
      break;
    case GST_STATE_CHANGE_PAUSED_TO_READY:
      signal_stop (self);
      break;
    default:
      break;
  }

  ret = GST_ELEMENT_CLASS (gst_qomni_talker_parent_class)->change_state
      (element, transition);

  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY
      || (transition == GST_STATE_CHANGE_READY_TO_PAUSED
          && ret == GST_STATE_CHANGE_FAILURE))
    stop (self);
  if (transition == GST_STATE_CHANGE_READY_TO_NULL
      || (transition == GST_STATE_CHANGE_NULL_TO_READY
          && ret == GST_STATE_CHANGE_FAILURE))
    gst_qomni_client_close (&self->client);
  return ret;
}

static void
gst_qomni_talker_set_context (GstElement * element, GstContext * context)
{
  gst_qomni_client_set_context (&GST_QOMNI_TALKER (element)->client, context);
  GST_ELEMENT_CLASS (gst_qomni_talker_parent_class)->set_context (element,
      context);
}

/* --- properties and life -------------------------------------------------- */

static void
gst_qomni_talker_set_property (GObject * object, guint prop_id,
    const GValue * value, GParamSpec * pspec)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (object);

  if (gst_qomni_client_set_property (&self->client, prop_id, value))
    return;

  GST_OBJECT_LOCK (self);
  switch (prop_id) {
    case PROP_VOICE:
      g_free (self->voice);
      self->voice = g_value_dup_string (value);
      self->voice_changed = TRUE;
      break;
    case PROP_TEMPERATURE:
      self->temperature = g_value_get_double (value);
      break;
    case PROP_TOP_K:
      self->top_k = g_value_get_int (value);
      break;
    case PROP_TOP_P:
      self->top_p = g_value_get_double (value);
      break;
    case PROP_REPETITION_PENALTY:
      self->repetition_penalty = g_value_get_double (value);
      break;
    case PROP_SEED:
      self->seed = g_value_get_uint64 (value);
      break;
    case PROP_MAX_FRAMES:
      self->max_frames = g_value_get_int (value);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
      break;
  }
  GST_OBJECT_UNLOCK (self);
}

static void
gst_qomni_talker_get_property (GObject * object, guint prop_id,
    GValue * value, GParamSpec * pspec)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (object);

  if (gst_qomni_client_get_property (&self->client, prop_id, value))
    return;

  GST_OBJECT_LOCK (self);
  switch (prop_id) {
    case PROP_VOICE:
      g_value_set_string (value, self->voice);
      break;
    case PROP_TEMPERATURE:
      g_value_set_double (value, self->temperature);
      break;
    case PROP_TOP_K:
      g_value_set_int (value, self->top_k);
      break;
    case PROP_TOP_P:
      g_value_set_double (value, self->top_p);
      break;
    case PROP_REPETITION_PENALTY:
      g_value_set_double (value, self->repetition_penalty);
      break;
    case PROP_SEED:
      g_value_set_uint64 (value, self->seed);
      break;
    case PROP_MAX_FRAMES:
      g_value_set_int (value, self->max_frames);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
      break;
  }
  GST_OBJECT_UNLOCK (self);
}

static void
gst_qomni_talker_finalize (GObject * object)
{
  GstQomniTalker *self = GST_QOMNI_TALKER (object);

  gst_qomni_client_clear (&self->client);
  g_free (self->voice);
  g_queue_clear_full (&self->items, (GDestroyNotify) item_free);
  g_object_unref (self->cancellable);
  g_mutex_clear (&self->lock);
  g_cond_clear (&self->cond);
  G_OBJECT_CLASS (gst_qomni_talker_parent_class)->finalize (object);
}

static void
install_properties (GObjectClass * klass)
{
  const GParamFlags flags = G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS;
  const GParamFlags ready = flags | GST_PARAM_MUTABLE_READY;

  gst_qomni_client_install_properties (klass);
  g_object_class_install_property (klass, PROP_VOICE,
      g_param_spec_string ("voice", "Voice",
          "One of the checkpoint's voices, unset = its default; from the next"
          " turn on", NULL, flags | GST_PARAM_MUTABLE_PLAYING));
  g_object_class_install_property (klass, PROP_TEMPERATURE,
      g_param_spec_double ("temperature", "Temperature",
          "0 = always the likeliest code, higher = more varied, -1 = as the"
          " checkpoint says", -1, 100, -1, ready));
  g_object_class_install_property (klass, PROP_TOP_K,
      g_param_spec_int ("top-k", "Top k",
          "Draw among this many likeliest codes, 0 = all, -1 = as the"
          " checkpoint says", -1, G_MAXINT, -1, ready));
  g_object_class_install_property (klass, PROP_TOP_P,
      g_param_spec_double ("top-p", "Top p",
          "Draw among the likeliest codes that have this probability together,"
          " -1 = as the checkpoint says", -1, 1, -1, ready));
  g_object_class_install_property (klass, PROP_REPETITION_PENALTY,
      g_param_spec_double ("repetition-penalty", "Repetition penalty",
          "Above 1 makes codes that were used already less likely, -1 = as the"
          " checkpoint says", -1, 100, -1, ready));
  g_object_class_install_property (klass, PROP_SEED,
      g_param_spec_uint64 ("seed", "Seed",
          "Of the random draws; the same seed gives the same speech",
          0, G_MAXUINT64, 0, ready));
  g_object_class_install_property (klass, PROP_MAX_FRAMES,
      g_param_spec_int ("max-frames", "Maximum frames",
          "The speech of a reply is cut after this many frames of 80 ms, 0 = as"
          " the checkpoint says", 0, G_MAXINT, 0, ready));
}

static void
gst_qomni_talker_class_init (GstQomniTalkerClass * klass)
{
  GObjectClass *object_class = G_OBJECT_CLASS (klass);
  GstElementClass *element_class = GST_ELEMENT_CLASS (klass);

  GST_DEBUG_CATEGORY_INIT (gst_qomni_talker_debug, "qomnitalker", 0,
      "qomni talker");

  object_class->set_property = gst_qomni_talker_set_property;
  object_class->get_property = gst_qomni_talker_get_property;
  object_class->finalize = gst_qomni_talker_finalize;
  install_properties (object_class);

  element_class->change_state = gst_qomni_talker_change_state;
  element_class->set_context = gst_qomni_talker_set_context;

  gst_element_class_add_static_pad_template (element_class, &sink_template);
  gst_element_class_add_static_pad_template (element_class, &src_template);
  gst_element_class_set_static_metadata (element_class,
      "Qomni talker", "Converter/Audio",
      "Speaks the replies of a qomnithinker",
      "The qomni authors");
}

static void
gst_qomni_talker_init (GstQomniTalker * self)
{
  gst_qomni_client_init (&self->client, GST_ELEMENT (self));
  self->temperature = self->top_p = self->repetition_penalty = -1;
  self->top_k = -1;

  g_mutex_init (&self->lock);
  g_cond_init (&self->cond);
  g_queue_init (&self->items);
  self->cancellable = g_cancellable_new ();

  self->sinkpad = gst_pad_new_from_static_template (&sink_template, "sink");
  gst_pad_set_chain_function (self->sinkpad, gst_qomni_talker_chain);
  gst_pad_set_event_function (self->sinkpad, gst_qomni_talker_sink_event);
  gst_pad_set_query_function (self->sinkpad, gst_qomni_talker_sink_query);
  gst_element_add_pad (GST_ELEMENT (self), self->sinkpad);

  self->srcpad = gst_pad_new_from_static_template (&src_template, "src");
  gst_pad_set_activatemode_function (self->srcpad,
      gst_qomni_talker_src_activate_mode);
  gst_pad_set_event_function (self->srcpad, gst_qomni_talker_src_event);
  gst_pad_set_query_function (self->srcpad, gst_qomni_talker_src_query);
  gst_element_add_pad (GST_ELEMENT (self), self->srcpad);
}
