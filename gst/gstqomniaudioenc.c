/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomniaudioenc: 16 kHz mono sound -> blocks of embeddings, 13 tokens a second.
 *
 * A clip is a run of samples without a hole: from the first sample to the end
 * of the stream, the end of a turn, a DISCONT, or a jump of the time stamps.
 * The features of the model are scaled by the loudest moment of the whole clip,
 * so from a file the blocks leave when the clip ends; from a live source, as
 * they close.
 *
 * Time comes from counting samples. Time stamps that wobble by up to 31 ms
 * (audioresample's own measure, rate/32) are ignored; up to a second of missing
 * sound is filled with silence; a larger hole, or a step back, is the end of a
 * clip.
 */
/**
 * SECTION:element-qomniaudioenc
 * @title: qomniaudioenc
 *
 * Encodes sound for #qomnithinker. The output is of use to elements with the
 * same model only, which the fingerprint in its caps makes sure of.
 *
 * Put a queue in front: encoding a block takes the streaming thread as long as
 * it takes.
 *
 * ## Example launch line
 * |[
 * gst-launch-1.0 audiotestsrc num-buffers=100 ! audioconvert ! audioresample ! queue ! qomniaudioenc ! fakesink dump=true
 * ]| Shows the embeddings of two seconds of a tone.
 *
 * Since: 0.1
 */
#include "gstqomniaudioenc.h"

#include <gst/audio/audio.h>
#include <string.h>

#include "audio-encoder.h"

GST_DEBUG_CATEGORY_STATIC (gst_qomni_audio_enc_debug);
#define GST_CAT_DEFAULT gst_qomni_audio_enc_debug

#define RATE 16000
#define DEFAULT_BLOCK_DURATION (8 * GST_SECOND)

#define MAX_WOBBLE (GST_SECOND / 32)
/* Holes and GAPs up to this long are silence within the clip. */
#define MAX_SILENCE GST_SECOND

enum
{
  PROP_BLOCK_DURATION = GST_QOMNI_CLIENT_PROP_LAST,
};

struct _GstQomniAudioEnc
{
  GstQomniEncoder parent;

  GstClockTime block_duration;  /* object lock */

  /* streaming thread */
  GstAudioInfo info;
  GstAudioStreamAlign *align;
  QomniAudioEncoder *encoder;
  guint64 n_samples;            /* of the open clip */
};

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE ("sink",
    GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("audio/x-raw, "
        "format = (string) { " GST_AUDIO_NE (F32) ", " GST_AUDIO_NE (S16)
        " }, rate = (int) 16000, channels = (int) 1, "
        "layout = (string) interleaved"));

static GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE ("src",
    GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("application/x-qomni-embeddings, "
        "modality = (string) audio, dtype = (string) f32"));

G_DEFINE_TYPE (GstQomniAudioEnc, gst_qomni_audio_enc, GST_TYPE_QOMNI_ENCODER);
GST_ELEMENT_REGISTER_DEFINE (qomniaudioenc, "qomniaudioenc", GST_RANK_NONE,
    GST_TYPE_QOMNI_AUDIO_ENC);

/* --- the core's encoder --------------------------------------------------- */

static GstClockTime
get_block_duration (GstQomniAudioEnc * self)
{
  GstClockTime duration;

  GST_OBJECT_LOCK (self);
  duration = self->block_duration;
  GST_OBJECT_UNLOCK (self);
  return duration;
}

static gboolean
gst_qomni_audio_enc_create (GstQomniEncoder * encoder, QomniModel * model,
    gboolean live, GCancellable * cancellable, GError ** error)
{
  GstQomniAudioEnc *self = GST_QOMNI_AUDIO_ENC (encoder);
  GstClockTime duration = get_block_duration (self);
  QomniAudioEncoderParams params = {
    /* The longest block is the one the checkpoint was made with. */
    .block_seconds = duration == DEFAULT_BLOCK_DURATION ? 0
        : (double) duration / GST_SECOND,
    .live = live,
  };

  self->encoder = qomni_audio_encoder_new (model, &params, cancellable, error);
  return self->encoder != NULL;
}

static gboolean
gst_qomni_audio_enc_finish (GstQomniEncoder * encoder, GError ** error)
{
  return qomni_audio_encoder_flush (GST_QOMNI_AUDIO_ENC (encoder)->encoder,
      error);
}

static QomniEmbeddings *
gst_qomni_audio_enc_pull (GstQomniEncoder * encoder,
    GCancellable * cancellable, GError ** error)
{
  return qomni_audio_encoder_pull (GST_QOMNI_AUDIO_ENC (encoder)->encoder,
      cancellable, error);
}

static void
gst_qomni_audio_enc_forget (GstQomniEncoder * encoder, gboolean all)
{
  GstQomniAudioEnc *self = GST_QOMNI_AUDIO_ENC (encoder);

  self->n_samples = 0;
  if (self->align != NULL)
    gst_audio_stream_align_mark_discont (self->align);
  if (self->encoder == NULL)
    return;
  if (all)
    g_clear_pointer (&self->encoder, qomni_audio_encoder_free);
  else
    qomni_audio_encoder_reset (self->encoder);
}

/* --- samples -------------------------------------------------------------- */

static GstClockTime
clip_end (GstQomniAudioEnc * self)
{
  return gst_qomni_encoder_clip_start (GST_QOMNI_ENCODER (self))
      + gst_util_uint64_scale_int (self->n_samples, GST_SECOND, RATE);
}

static gboolean
push_silence (GstQomniAudioEnc * self, GstClockTime duration, GError ** error)
{
  static const gint16 zeros[RATE / 10];
  guint64 n = gst_util_uint64_scale_int_round (duration, RATE, GST_SECOND);

  self->n_samples += n;
  while (n > 0) {
    gsize part = MIN (n, G_N_ELEMENTS (zeros));

    if (!qomni_audio_encoder_push_s16 (self->encoder, zeros, part, error))
      return FALSE;
    n -= part;
  }
  return TRUE;
}

static gboolean
gst_qomni_audio_enc_gap (GstQomniEncoder * encoder, GstClockTime timestamp,
    GstClockTime duration, GError ** error)
{
  GstQomniAudioEnc *self = GST_QOMNI_AUDIO_ENC (encoder);
  GstClockTime end = timestamp + duration, from = clip_end (self);

  if (end <= from)
    return TRUE;
  if (end - from > MAX_SILENCE)
    return FALSE;
  GST_LOG_OBJECT (self, "silence of %" GST_TIME_FORMAT,
      GST_TIME_ARGS (end - from));
  gst_audio_stream_align_mark_discont (self->align);
  return push_silence (self, end - from, error);
}

/* Decides whether samples at `pts` go on with the open clip. */
static GstFlowReturn
place (GstQomniAudioEnc * self, GstBuffer * buffer, guint n_samples)
{
  GstQomniEncoder *encoder = GST_QOMNI_ENCODER (self);
  GstClockTime pts = GST_BUFFER_PTS (buffer);
  gboolean discont = GST_BUFFER_FLAG_IS_SET (buffer, GST_BUFFER_FLAG_DISCONT);
  g_autoptr (GError) error = NULL;
  GstClockTime out_pts, out_duration;
  GstFlowReturn ret;

  if (!GST_CLOCK_TIME_IS_VALID (pts)) {
    /* Fine in the middle: the sample counter knows. */
    if (gst_qomni_encoder_has_clip (encoder) && !discont)
      return GST_FLOW_OK;
    GST_ELEMENT_ERROR (self, STREAM, FORMAT,
        ("Sound without a time stamp cannot be placed."),
        ("first buffer of a clip has no PTS"));
    return GST_FLOW_ERROR;
  }

  if (!gst_qomni_encoder_has_clip (encoder))
    gst_audio_stream_align_mark_discont (self->align);
  if (!gst_audio_stream_align_process (self->align, discont, pts, n_samples,
          &out_pts, &out_duration, NULL))
    return GST_FLOW_OK;

  if (gst_qomni_encoder_has_clip (encoder)) {
    GstClockTime end = clip_end (self);

    if (!discont && pts + MAX_WOBBLE >= end && pts <= end + MAX_SILENCE) {
      if (pts > end && !push_silence (self, pts - end, &error))
        return gst_qomni_encoder_fail (encoder, error);
      return GST_FLOW_OK;
    }
    GST_DEBUG_OBJECT (self, "%s at %" GST_TIME_FORMAT ", expected %"
        GST_TIME_FORMAT, discont ? "DISCONT" : "jump", GST_TIME_ARGS (pts),
        GST_TIME_ARGS (end));
    ret = gst_qomni_encoder_drain (encoder);
    if (ret != GST_FLOW_OK)
      return ret;
  }
  self->n_samples = 0;
  gst_qomni_encoder_open_clip (encoder, pts);
  return GST_FLOW_OK;
}

static GstFlowReturn
gst_qomni_audio_enc_take (GstQomniEncoder * encoder, GstBuffer * buffer)
{
  GstQomniAudioEnc *self = GST_QOMNI_AUDIO_ENC (encoder);
  gint bpf = GST_AUDIO_INFO_BPF (&self->info);
  GstFlowReturn ret;
  GstMapInfo map;
  g_autoptr (GError) error = NULL;
  gboolean ok;

  if (gst_buffer_get_size (buffer) < (gsize) bpf) {
    gst_buffer_unref (buffer);
    return GST_FLOW_OK;
  }
  /* Clipping believes a duration, and cuts more than there is when it is wrong;
   * without one it counts samples. */
  buffer = gst_buffer_make_writable (buffer);
  GST_BUFFER_DURATION (buffer) = GST_CLOCK_TIME_NONE;
  buffer = gst_audio_buffer_clip (buffer, &GST_BASE_TRANSFORM (self)->segment,
      RATE, bpf);
  if (buffer == NULL) {
    GST_LOG_OBJECT (self, "outside of the segment");
    return GST_FLOW_OK;
  }
  if (gst_buffer_get_size (buffer) < (gsize) bpf) {
    gst_buffer_unref (buffer);
    return GST_FLOW_OK;
  }

  ret = place (self, buffer, gst_buffer_get_size (buffer) / bpf);
  if (ret != GST_FLOW_OK) {
    gst_buffer_unref (buffer);
    return ret;
  }

  if (!gst_buffer_map (buffer, &map, GST_MAP_READ)) {
    GST_ELEMENT_WARNING (self, RESOURCE, READ,
        ("A buffer of sound could not be read."), (NULL));
    gst_buffer_unref (buffer);
    return GST_FLOW_OK;
  }
  if (GST_AUDIO_INFO_FORMAT (&self->info) == GST_AUDIO_FORMAT_F32)
    ok = qomni_audio_encoder_push (self->encoder, (const float *) map.data,
        map.size / bpf, &error);
  else
    ok = qomni_audio_encoder_push_s16 (self->encoder,
        (const int16_t *) map.data, map.size / bpf, &error);
  self->n_samples += map.size / bpf;
  gst_buffer_unmap (buffer, &map);
  gst_buffer_unref (buffer);
  return ok ? GST_FLOW_OK : gst_qomni_encoder_fail (encoder, error);
}

static gboolean
gst_qomni_audio_enc_set_caps (GstBaseTransform * trans, GstCaps * incaps,
    GstCaps * outcaps)
{
  /* S16 or F32 of one rate: the clip goes on. */
  return gst_audio_info_from_caps (&GST_QOMNI_AUDIO_ENC (trans)->info, incaps);
}

static GstClockTime
gst_qomni_audio_enc_latency (GstQomniEncoder * encoder)
{
  return get_block_duration (GST_QOMNI_AUDIO_ENC (encoder));
}

/* --- properties and life -------------------------------------------------- */

static void
gst_qomni_audio_enc_set_property (GObject * object, guint prop_id,
    const GValue * value, GParamSpec * pspec)
{
  GstQomniAudioEnc *self = GST_QOMNI_AUDIO_ENC (object);

  switch (prop_id) {
    case PROP_BLOCK_DURATION:
      GST_OBJECT_LOCK (self);
      /* The encoder works in whole seconds, which are 13 tokens each. */
      self->block_duration = (g_value_get_uint64 (value) + GST_SECOND / 2)
          / GST_SECOND * GST_SECOND;
      GST_OBJECT_UNLOCK (self);
      break;
    default:
      G_OBJECT_CLASS (gst_qomni_audio_enc_parent_class)->set_property (object,
          prop_id, value, pspec);
      break;
  }
}

static void
gst_qomni_audio_enc_get_property (GObject * object, guint prop_id,
    GValue * value, GParamSpec * pspec)
{
  switch (prop_id) {
    case PROP_BLOCK_DURATION:
      g_value_set_uint64 (value,
          get_block_duration (GST_QOMNI_AUDIO_ENC (object)));
      break;
    default:
      G_OBJECT_CLASS (gst_qomni_audio_enc_parent_class)->get_property (object,
          prop_id, value, pspec);
      break;
  }
}

static void
gst_qomni_audio_enc_finalize (GObject * object)
{
  GstQomniAudioEnc *self = GST_QOMNI_AUDIO_ENC (object);

  gst_audio_stream_align_free (self->align);
  qomni_audio_encoder_free (self->encoder);
  G_OBJECT_CLASS (gst_qomni_audio_enc_parent_class)->finalize (object);
}

static void
gst_qomni_audio_enc_class_init (GstQomniAudioEncClass * klass)
{
  GObjectClass *object_class = G_OBJECT_CLASS (klass);
  GstElementClass *element_class = GST_ELEMENT_CLASS (klass);
  GstQomniEncoderClass *encoder_class = GST_QOMNI_ENCODER_CLASS (klass);

  GST_DEBUG_CATEGORY_INIT (gst_qomni_audio_enc_debug, "qomniaudioenc", 0,
      "qomni audio encoder");

  object_class->set_property = gst_qomni_audio_enc_set_property;
  object_class->get_property = gst_qomni_audio_enc_get_property;
  object_class->finalize = gst_qomni_audio_enc_finalize;

  g_object_class_install_property (object_class, PROP_BLOCK_DURATION,
      g_param_spec_uint64 ("block-duration", "Block duration",
          "How much sound is looked at together, in nanoseconds, rounded to"
          " whole seconds; less is sooner, 8 s is what the model was made for",
          GST_SECOND, 8 * GST_SECOND, DEFAULT_BLOCK_DURATION,
          G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS
          | GST_PARAM_MUTABLE_READY));

  gst_element_class_add_static_pad_template (element_class, &sink_template);
  gst_element_class_add_static_pad_template (element_class, &src_template);
  gst_element_class_set_static_metadata (element_class,
      "Qomni audio encoder", "Converter/Audio",
      "Encodes sound for a Qwen3-Omni model",
      "The qomni authors");

  encoder_class->modality = QOMNI_MODALITY_AUDIO;
  encoder_class->component = QOMNI_COMPONENT_AUDIO;
  encoder_class->create = gst_qomni_audio_enc_create;
  encoder_class->take = gst_qomni_audio_enc_take;
  encoder_class->gap = gst_qomni_audio_enc_gap;
  encoder_class->finish = gst_qomni_audio_enc_finish;
  encoder_class->pull = gst_qomni_audio_enc_pull;
  encoder_class->forget = gst_qomni_audio_enc_forget;
  encoder_class->latency = gst_qomni_audio_enc_latency;
  GST_BASE_TRANSFORM_CLASS (klass)->set_caps = gst_qomni_audio_enc_set_caps;
}

static void
gst_qomni_audio_enc_init (GstQomniAudioEnc * self)
{
  self->block_duration = DEFAULT_BLOCK_DURATION;
  self->align = gst_audio_stream_align_new (RATE, MAX_WOBBLE, 0);
}
