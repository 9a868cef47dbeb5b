/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnivisionenc: video frames -> embeddings, a slice of time per block.
 *
 *   frame -> kept, or dropped unread -> RGB -> upright -> core, two per slice
 *
 * Which frames are kept is decided by their PTS: the first one in each slot of
 * a grid of 1/fps that begins with the clip. Counting frames would go wrong
 * with every stream whose rate varies or is not known.
 *
 * A clip of exactly one frame is a picture (IMAGE), any other is a VIDEO; so
 * the first frame waits for the second, or for the end. The size of the first
 * frame decides that of all, whatever later caps say.
 */
/**
 * SECTION:element-qomnivisionenc
 * @title: qomnivisionenc
 *
 * Encodes video frames or a picture for #qomnithinker. Frames that are not
 * needed are dropped before they are read or converted, so there is no use in a
 * videorate in front. Pictures are turned upright as their image-orientation
 * tag says.
 *
 * A stream of exactly one frame is encoded as a still picture.
 *
 * ## Example launch line
 * |[
 * gst-launch-1.0 videotestsrc num-buffers=1 ! queue ! qomnivisionenc max-pixels=65536 ! fakesink dump=true
 * ]| Shows the embeddings of the test picture.
 *
 * Since: 0.1
 */
#include "gstqomnivisionenc.h"

#include <gst/video/video.h>
#include <string.h>

#include "vision-encoder.h"

GST_DEBUG_CATEGORY_STATIC (gst_qomni_vision_enc_debug);
#define GST_CAT_DEFAULT gst_qomni_vision_enc_debug

#define DEFAULT_FPS_N 2
#define DEFAULT_FPS_D 1

/* A frame this little before its slot is in it: time stamps are rounded. */
#define SLOT_TOLERANCE GST_MSECOND
/* Caps may say anything; slower than the slowest `fps` is as slow. */
#define MIN_FPS (1.0 / 3600)
/* Above this a frame is refused: twice an 8K frame. */
#define MAX_FRAME_PIXELS (G_GUINT64_CONSTANT (1) << 26)

enum
{
  PROP_FPS = GST_QOMNI_CLIENT_PROP_LAST,
  PROP_MIN_PIXELS,
  PROP_MAX_PIXELS,
};

/* A frame as the core wants it: packed, upright. */
typedef struct
{
  guint8 *data;
  gint width, height, n_channels;
  GstClockTime duration;
} Picture;

struct _GstQomniVisionEnc
{
  GstQomniEncoder parent;

  /* object lock */
  gint fps_n, fps_d;
  guint min_pixels, max_pixels;

  /* streaming thread */
  GstVideoInfo info;
  GstVideoInfo rgb_info;        /* what the converter makes */
  GstVideoConverter *converter; /* NULL: the frames are read as they are */
  gint n_channels;
  GstVideoOrientationMethod orientation;
  QomniVisionEncoder *encoder;

  gint clip_fps_n, clip_fps_d;  /* fps when the clip began */
  guint64 n_seen;               /* frames of the clip, dropped ones included */
  guint64 last_slot;
  GstClockTime last_pts;
  Picture first;                /* until the second frame, or the end */
  gboolean begun;               /* the core knows of the clip */
  gboolean image;               /* … as an IMAGE */
};

#define FORMATS "{ RGB, RGBA, GRAY8, I420, YV12, NV12, NV21, YUY2, UYVY, " \
    "Y42B, Y444, I420_10LE, P010_10LE, BGR, RGBx, BGRx, xRGB, xBGR, BGRA, " \
    "ARGB, ABGR, ARGB64, GRAY16_LE, GRAY16_BE }"

static GstStaticPadTemplate sink_template = GST_STATIC_PAD_TEMPLATE ("sink",
    GST_PAD_SINK, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("video/x-raw, format = (string) " FORMATS ", "
        "width = (int) [ 1, 65535 ], height = (int) [ 1, 65535 ], "
        "framerate = (fraction) [ 0/1, 2147483647/1 ]"));

static GstStaticPadTemplate src_template = GST_STATIC_PAD_TEMPLATE ("src",
    GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("application/x-qomni-embeddings, "
        "modality = (string) vision, dtype = (string) f32"));

G_DEFINE_TYPE (GstQomniVisionEnc, gst_qomni_vision_enc, GST_TYPE_QOMNI_ENCODER);
GST_ELEMENT_REGISTER_DEFINE (qomnivisionenc, "qomnivisionenc", GST_RANK_NONE,
    GST_TYPE_QOMNI_VISION_ENC);

/* --- the core's encoder --------------------------------------------------- */

static gboolean
gst_qomni_vision_enc_create (GstQomniEncoder * encoder, QomniModel * model,
    gboolean live, GCancellable * cancellable, GError ** error)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (encoder);
  QomniVisionEncoderParams params = { 0, };

  GST_OBJECT_LOCK (self);
  params.min_pixels = self->min_pixels;
  params.max_pixels = self->max_pixels;
  GST_OBJECT_UNLOCK (self);

  self->encoder = qomni_vision_encoder_new (model, &params, cancellable, error);
  return self->encoder != NULL;
}

static void
picture_clear (Picture * picture)
{
  g_free (picture->data);
  memset (picture, 0, sizeof *picture);
}

static gboolean
push_picture (GstQomniVisionEnc * self, const Picture * picture,
    GError ** error)
{
  QomniImage image = {
    .data = picture->data,
    .width = picture->width,
    .height = picture->height,
    .stride = (size_t) picture->width * picture->n_channels,
    .n_channels = picture->n_channels,
  };

  return qomni_vision_encoder_push (self->encoder, &image, error);
}

/* Tells the core of the clip and gives it the frame that waited. */
static gboolean
begin (GstQomniVisionEnc * self, QomniModality modality, GError ** error)
{
  double fps = (double) self->clip_fps_n / self->clip_fps_d;
  gboolean ok;

  /* A slice is two sampled frames; a slower stream has longer ones. */
  if (self->info.fps_n > 0 && self->info.fps_d > 0)
    fps = CLAMP ((double) self->info.fps_n / self->info.fps_d, MIN_FPS, fps);

  ok = qomni_vision_encoder_begin (self->encoder, modality, 2.0 / fps, error)
      && push_picture (self, &self->first, error);
  self->begun = TRUE;
  self->image = modality == QOMNI_MODALITY_IMAGE;
  picture_clear (&self->first);
  return ok;
}

static gboolean
gst_qomni_vision_enc_finish (GstQomniEncoder * encoder, GError ** error)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (encoder);

  if (!self->begun && !begin (self, self->n_seen == 1 ? QOMNI_MODALITY_IMAGE
          : QOMNI_MODALITY_VIDEO, error))
    return FALSE;
  return qomni_vision_encoder_flush (self->encoder, error);
}

static QomniEmbeddings *
gst_qomni_vision_enc_pull (GstQomniEncoder * encoder,
    GCancellable * cancellable, GError ** error)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (encoder);

  return self->begun ? qomni_vision_encoder_pull (self->encoder, cancellable,
      error) : NULL;
}

static void
gst_qomni_vision_enc_forget (GstQomniEncoder * encoder, gboolean all)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (encoder);

  picture_clear (&self->first);
  self->begun = FALSE;
  self->n_seen = 0;
  if (all) {
    g_clear_pointer (&self->encoder, qomni_vision_encoder_free);
    g_clear_pointer (&self->converter, gst_video_converter_free);
    self->orientation = GST_VIDEO_ORIENTATION_IDENTITY;
  } else if (self->encoder != NULL) {
    qomni_vision_encoder_reset (self->encoder);
  }
}

/* --- frames --------------------------------------------------------------- */

/* Turns a packed picture upright: dst(x, y) = src at the place that the
 * orientation names. */
static gboolean
make_upright (Picture * picture, GstVideoOrientationMethod method,
    GError ** error)
{
  const gint w = picture->width, h = picture->height, c = picture->n_channels;
  gboolean swap = method == GST_VIDEO_ORIENTATION_90R
      || method == GST_VIDEO_ORIENTATION_90L
      || method == GST_VIDEO_ORIENTATION_UL_LR
      || method == GST_VIDEO_ORIENTATION_UR_LL;
  gint dw = swap ? h : w, dh = swap ? w : h;
  guint8 *dst;

  if (method == GST_VIDEO_ORIENTATION_IDENTITY)
    return TRUE;
  dst = g_try_malloc ((gsize) w * h * c);
  if (dst == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "%" G_GSIZE_FORMAT " bytes to turn a picture", (gsize) w * h * c);

  for (gint y = 0; y < dh; y++) {
    for (gint x = 0; x < dw; x++) {
      gint sx = x, sy = y;

      switch (method) {
        case GST_VIDEO_ORIENTATION_90R:        /* clockwise */
          sx = y, sy = h - 1 - x;
          break;
        case GST_VIDEO_ORIENTATION_180:
          sx = w - 1 - x, sy = h - 1 - y;
          break;
        case GST_VIDEO_ORIENTATION_90L:
          sx = w - 1 - y, sy = x;
          break;
        case GST_VIDEO_ORIENTATION_HORIZ:
          sx = w - 1 - x;
          break;
        case GST_VIDEO_ORIENTATION_VERT:
          sy = h - 1 - y;
          break;
        case GST_VIDEO_ORIENTATION_UL_LR:
          sx = y, sy = x;
          break;
        case GST_VIDEO_ORIENTATION_UR_LL:
          sx = w - 1 - y, sy = h - 1 - x;
          break;
        default:
          break;
      }
      memcpy (dst + ((gsize) y * dw + x) * c,
          picture->data + ((gsize) sy * w + sx) * c, c);
    }
  }
  g_free (picture->data);
  picture->data = dst;
  picture->width = dw;
  picture->height = dh;
  return TRUE;
}

/* Mapping a frame by its GstVideoMeta looks at where a plane begins, not at
 * where it ends. */
static gboolean
is_whole (const GstVideoFrame * frame)
{
  for (guint i = 0; frame->meta != NULL
      && i < GST_VIDEO_FRAME_N_COMPONENTS (frame); i++) {
    const guint plane = GST_VIDEO_FRAME_COMP_PLANE (frame, i);
    const GstMapInfo *map = &frame->map[plane];
    const gint64 rows = GST_VIDEO_FRAME_COMP_HEIGHT (frame, i);
    const gint64 bytes = (GST_VIDEO_FRAME_COMP_DEPTH (frame, i) + 7) / 8;
    const gint64 end = (guint8 *) GST_VIDEO_FRAME_COMP_DATA (frame, i)
        - map->data + bytes
        + (rows - 1) * GST_VIDEO_FRAME_COMP_STRIDE (frame, i)
        + (gint64) (GST_VIDEO_FRAME_COMP_WIDTH (frame, i) - 1)
        * GST_VIDEO_FRAME_COMP_PSTRIDE (frame, i);

    if (GST_VIDEO_FRAME_COMP_STRIDE (frame, i) < 0 || end > (gint64) map->size)
      return FALSE;
  }
  return TRUE;
}

/* Reads a frame into a packed picture of 1, 3 or 4 channels. */
static gboolean
read_frame (GstQomniVisionEnc * self, GstBuffer * buffer, Picture * ret,
    GError ** error)
{
  const gint w = GST_VIDEO_INFO_WIDTH (&self->info);
  const gint h = GST_VIDEO_INFO_HEIGHT (&self->info);
  const gsize row = (gsize) w * self->n_channels;
  Picture picture = { NULL, w, h, self->n_channels, GST_CLOCK_TIME_NONE };
  GstVideoFrame in, out;

  if (!gst_video_frame_map (&in, &self->info, buffer, GST_MAP_READ))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a %dx%d frame cannot be read (%" G_GSIZE_FORMAT " bytes)", w, h,
        gst_buffer_get_size (buffer));
  if (!is_whole (&in)) {
    gst_video_frame_unmap (&in);
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a %dx%d frame is cut short (%" G_GSIZE_FORMAT " bytes)", w, h,
        gst_buffer_get_size (buffer));
  }

  /* w * h is limited, see set_caps. */
  picture.data = g_try_malloc (row * h);
  if (picture.data == NULL) {
    gst_video_frame_unmap (&in);
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "%" G_GSIZE_FORMAT " bytes for a %dx%d frame", row * h, w, h);
  }

  if (self->converter != NULL) {
    GstBuffer *wrapped = gst_buffer_new_wrapped_full (0, picture.data, row * h,
        0, row * h, NULL, NULL);

    if (!gst_video_frame_map (&out, &self->rgb_info, wrapped, GST_MAP_WRITE)) {
      gst_buffer_unref (wrapped);
      gst_video_frame_unmap (&in);
      picture_clear (&picture);
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "a %dx%d frame cannot be converted", w, h);
    }
    gst_video_converter_frame (self->converter, &in, &out);
    gst_video_frame_unmap (&out);
    gst_buffer_unref (wrapped);
  } else {
    for (gint y = 0; y < h; y++)
      memcpy (picture.data + y * row,
          (const guint8 *) GST_VIDEO_FRAME_PLANE_DATA (&in, 0)
          + (gssize) y * GST_VIDEO_FRAME_PLANE_STRIDE (&in, 0), row);
  }
  gst_video_frame_unmap (&in);

  if (!make_upright (&picture, self->orientation, error)) {
    picture_clear (&picture);
    return FALSE;
  }
  *ret = picture;
  return TRUE;
}

/* Whether the frame at `pts` is the first one in its slot. */
static gboolean
is_wanted (GstQomniVisionEnc * self, GstClockTime pts)
{
  GstClockTime since =
      pts - gst_qomni_encoder_clip_start (GST_QOMNI_ENCODER (self));
  guint64 slot = gst_util_uint64_scale (since + SLOT_TOLERANCE,
      self->clip_fps_n, GST_SECOND * self->clip_fps_d);

  if (self->n_seen > 1 && slot <= self->last_slot)
    return FALSE;
  self->last_slot = slot;
  return TRUE;
}

static void
begin_clip (GstQomniVisionEnc * self, GstClockTime pts)
{
  self->n_seen = 0;
  self->last_slot = 0;
  self->begun = FALSE;
  GST_OBJECT_LOCK (self);
  self->clip_fps_n = self->fps_n;
  self->clip_fps_d = self->fps_d;
  GST_OBJECT_UNLOCK (self);
  gst_qomni_encoder_open_clip (GST_QOMNI_ENCODER (self), pts);
}

/* The frame's PTS, and whether a new clip begins with it. */
static GstFlowReturn
place (GstQomniVisionEnc * self, GstBuffer * buffer, GstClockTime * ret_pts)
{
  GstQomniEncoder *encoder = GST_QOMNI_ENCODER (self);
  GstClockTime pts = GST_BUFFER_PTS (buffer);
  GstFlowReturn ret;

  if (!GST_CLOCK_TIME_IS_VALID (pts)) {
    /* Image decoders leave it out; a second such frame is nowhere. */
    if (gst_qomni_encoder_has_clip (encoder)) {
      GST_ELEMENT_ERROR (self, STREAM, FORMAT,
          ("Video without time stamps cannot be placed."),
          ("frame %" G_GUINT64_FORMAT " has no PTS", self->n_seen));
      return GST_FLOW_ERROR;
    }
    pts = GST_BASE_TRANSFORM (self)->segment.start;
  }

  if (gst_qomni_encoder_has_clip (encoder) && pts < self->last_pts) {
    GST_DEBUG_OBJECT (self, "time goes back to %" GST_TIME_FORMAT,
        GST_TIME_ARGS (pts));
    ret = gst_qomni_encoder_drain (encoder);
    if (ret != GST_FLOW_OK)
      return ret;
  }
  if (!gst_qomni_encoder_has_clip (encoder))
    begin_clip (self, pts);
  self->last_pts = pts;
  self->n_seen++;
  *ret_pts = pts;
  return GST_FLOW_OK;
}

static gboolean
is_in_segment (GstQomniVisionEnc * self, GstBuffer * buffer)
{
  const GstSegment *segment = &GST_BASE_TRANSFORM (self)->segment;
  GstClockTime pts = GST_BUFFER_PTS (buffer);

  if (!GST_CLOCK_TIME_IS_VALID (pts))
    return TRUE;
  return gst_segment_clip (segment, GST_FORMAT_TIME, pts,
      GST_BUFFER_DURATION_IS_VALID (buffer)
      ? pts + GST_BUFFER_DURATION (buffer) : pts, NULL, NULL);
}

static GstFlowReturn
gst_qomni_vision_enc_take (GstQomniEncoder * encoder, GstBuffer * buffer)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (encoder);
  g_autoptr (GstBuffer) frame = buffer;
  g_autoptr (GError) error = NULL;
  Picture picture = {.data = NULL };
  GstClockTime pts = 0;
  GstFlowReturn ret;

  if (!is_in_segment (self, frame))
    return GST_FLOW_OK;
  ret = place (self, frame, &pts);
  if (ret != GST_FLOW_OK)
    return ret;

  if (self->n_seen == 2 && !self->begun
      && !begin (self, QOMNI_MODALITY_VIDEO, &error))
    return gst_qomni_encoder_fail (encoder, error);
  if (!is_wanted (self, pts)) {
    GST_LOG_OBJECT (self, "not needed: %" GST_PTR_FORMAT, frame);
    return GST_FLOW_OK;
  }

  if (!read_frame (self, frame, &picture, &error))
    return gst_qomni_encoder_fail (encoder, error);
  if (self->n_seen == 1) {
    self->first = picture;
    return GST_FLOW_OK;
  }
  if (!push_picture (self, &picture, &error))
    ret = gst_qomni_encoder_fail (encoder, error);
  picture_clear (&picture);
  return ret;
}

/* A pause in the pictures is a longer frame. */
static gboolean
gst_qomni_vision_enc_gap (GstQomniEncoder * encoder, GstClockTime timestamp,
    GstClockTime duration, GError ** error)
{
  return TRUE;
}

/* --- caps, tags ----------------------------------------------------------- */

static gboolean
gst_qomni_vision_enc_set_caps (GstBaseTransform * trans, GstCaps * incaps,
    GstCaps * outcaps)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (trans);
  GstVideoFormat target;
  GstVideoInfo info;
  guint64 pixels;

  if (!gst_video_info_from_caps (&info, incaps))
    return FALSE;
  pixels = (guint64) GST_VIDEO_INFO_WIDTH (&info)
      * GST_VIDEO_INFO_HEIGHT (&info);
  if (pixels > MAX_FRAME_PIXELS) {
    GST_ELEMENT_ERROR (self, STREAM, FORMAT,
        ("Frames of %dx%d are too large.", GST_VIDEO_INFO_WIDTH (&info),
            GST_VIDEO_INFO_HEIGHT (&info)),
        ("%" G_GUINT64_FORMAT " pixels, limit %" G_GUINT64_FORMAT, pixels,
            MAX_FRAME_PIXELS));
    return FALSE;
  }

  self->info = info;
  g_clear_pointer (&self->converter, gst_video_converter_free);
  switch (GST_VIDEO_INFO_FORMAT (&info)) {
    case GST_VIDEO_FORMAT_GRAY8:
      self->n_channels = 1;
      return TRUE;
    case GST_VIDEO_FORMAT_RGB:
      self->n_channels = 3;
      return TRUE;
    case GST_VIDEO_FORMAT_RGBA:
      self->n_channels = 4;
      return TRUE;
    default:
      break;
  }

  self->n_channels = GST_VIDEO_INFO_HAS_ALPHA (&info) ? 4 : 3;
  target = self->n_channels == 4 ? GST_VIDEO_FORMAT_RGBA : GST_VIDEO_FORMAT_RGB;
  if (!gst_video_info_set_format (&self->rgb_info, target,
          GST_VIDEO_INFO_WIDTH (&info), GST_VIDEO_INFO_HEIGHT (&info)))
    return FALSE;
  /* Packed, so that it is the picture itself that is written. */
  self->rgb_info.stride[0] = GST_VIDEO_INFO_WIDTH (&info) * self->n_channels;
  self->rgb_info.size = (gsize) self->rgb_info.stride[0]
      * GST_VIDEO_INFO_HEIGHT (&info);
  self->rgb_info.interlace_mode = info.interlace_mode;
  self->rgb_info.fps_n = info.fps_n;
  self->rgb_info.fps_d = info.fps_d;
  self->converter = gst_video_converter_new (&self->info, &self->rgb_info, NULL);
  return self->converter != NULL;
}

static gboolean
gst_qomni_vision_enc_sink_event (GstBaseTransform * trans, GstEvent * event)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (trans);

  switch (GST_EVENT_TYPE (event)) {
    case GST_EVENT_STREAM_START:
      self->orientation = GST_VIDEO_ORIENTATION_IDENTITY;
      break;
    case GST_EVENT_TAG:{
      GstVideoOrientationMethod method;
      GstTagList *tags;

      gst_event_parse_tag (event, &tags);
      if (gst_video_orientation_from_tag (tags, &method))
        self->orientation = method;
      break;
    }
    default:
      break;
  }
  return GST_BASE_TRANSFORM_CLASS (gst_qomni_vision_enc_parent_class)->sink_event
      (trans, event);
}

/* Two frames make a slice. */
static GstClockTime
gst_qomni_vision_enc_latency (GstQomniEncoder * encoder)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (encoder);
  GstClockTime slice;

  GST_OBJECT_LOCK (self);
  slice = gst_util_uint64_scale_int (2 * GST_SECOND, self->fps_d, self->fps_n);
  GST_OBJECT_UNLOCK (self);
  return slice;
}

/* --- properties and life -------------------------------------------------- */

static void
gst_qomni_vision_enc_set_property (GObject * object, guint prop_id,
    const GValue * value, GParamSpec * pspec)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (object);

  if (prop_id < GST_QOMNI_CLIENT_PROP_LAST) {
    G_OBJECT_CLASS (gst_qomni_vision_enc_parent_class)->set_property (object,
        prop_id, value, pspec);
    return;
  }
  GST_OBJECT_LOCK (self);
  switch (prop_id) {
    case PROP_FPS:
      self->fps_n = gst_value_get_fraction_numerator (value);
      self->fps_d = gst_value_get_fraction_denominator (value);
      break;
    case PROP_MIN_PIXELS:
      self->min_pixels = g_value_get_uint (value);
      break;
    case PROP_MAX_PIXELS:
      self->max_pixels = g_value_get_uint (value);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
      break;
  }
  GST_OBJECT_UNLOCK (self);
}

static void
gst_qomni_vision_enc_get_property (GObject * object, guint prop_id,
    GValue * value, GParamSpec * pspec)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (object);

  if (prop_id < GST_QOMNI_CLIENT_PROP_LAST) {
    G_OBJECT_CLASS (gst_qomni_vision_enc_parent_class)->get_property (object,
        prop_id, value, pspec);
    return;
  }
  GST_OBJECT_LOCK (self);
  switch (prop_id) {
    case PROP_FPS:
      gst_value_set_fraction (value, self->fps_n, self->fps_d);
      break;
    case PROP_MIN_PIXELS:
      g_value_set_uint (value, self->min_pixels);
      break;
    case PROP_MAX_PIXELS:
      g_value_set_uint (value, self->max_pixels);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
      break;
  }
  GST_OBJECT_UNLOCK (self);
}

static void
gst_qomni_vision_enc_finalize (GObject * object)
{
  GstQomniVisionEnc *self = GST_QOMNI_VISION_ENC (object);

  picture_clear (&self->first);
  qomni_vision_encoder_free (self->encoder);
  g_clear_pointer (&self->converter, gst_video_converter_free);
  G_OBJECT_CLASS (gst_qomni_vision_enc_parent_class)->finalize (object);
}

static void
gst_qomni_vision_enc_class_init (GstQomniVisionEncClass * klass)
{
  GObjectClass *object_class = G_OBJECT_CLASS (klass);
  GstElementClass *element_class = GST_ELEMENT_CLASS (klass);
  GstBaseTransformClass *trans_class = GST_BASE_TRANSFORM_CLASS (klass);
  GstQomniEncoderClass *encoder_class = GST_QOMNI_ENCODER_CLASS (klass);

  GST_DEBUG_CATEGORY_INIT (gst_qomni_vision_enc_debug, "qomnivisionenc", 0,
      "qomni vision encoder");

  object_class->set_property = gst_qomni_vision_enc_set_property;
  object_class->get_property = gst_qomni_vision_enc_get_property;
  object_class->finalize = gst_qomni_vision_enc_finalize;

  g_object_class_install_property (object_class, PROP_FPS,
      gst_param_spec_fraction ("fps", "Frames per second",
          "How many frames of a second are looked at; from the next clip on",
          1, 3600, 60, 1, DEFAULT_FPS_N, DEFAULT_FPS_D,
          G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS
          | GST_PARAM_MUTABLE_PLAYING));
  g_object_class_install_property (object_class, PROP_MIN_PIXELS,
      g_param_spec_uint ("min-pixels", "Minimum pixels",
          "Smaller frames are enlarged to this many pixels (0 = as the"
          " checkpoint says)", 0, G_MAXINT, 0,
          G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS
          | GST_PARAM_MUTABLE_READY));
  g_object_class_install_property (object_class, PROP_MAX_PIXELS,
      g_param_spec_uint ("max-pixels", "Maximum pixels",
          "Larger frames are reduced to this many pixels (0 = as the"
          " checkpoint says)", 0, G_MAXINT, 0,
          G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS
          | GST_PARAM_MUTABLE_READY));

  gst_element_class_add_static_pad_template (element_class, &sink_template);
  gst_element_class_add_static_pad_template (element_class, &src_template);
  gst_element_class_set_static_metadata (element_class,
      "Qomni vision encoder", "Converter/Video",
      "Encodes pictures and video for a Qwen3-Omni model",
      "The qomni authors");

  encoder_class->modality = QOMNI_MODALITY_VIDEO;
  encoder_class->component = QOMNI_COMPONENT_VISION;
  encoder_class->create = gst_qomni_vision_enc_create;
  encoder_class->take = gst_qomni_vision_enc_take;
  encoder_class->gap = gst_qomni_vision_enc_gap;
  encoder_class->finish = gst_qomni_vision_enc_finish;
  encoder_class->pull = gst_qomni_vision_enc_pull;
  encoder_class->forget = gst_qomni_vision_enc_forget;
  encoder_class->latency = gst_qomni_vision_enc_latency;
  trans_class->set_caps = gst_qomni_vision_enc_set_caps;
  trans_class->sink_event = gst_qomni_vision_enc_sink_event;
}

static void
gst_qomni_vision_enc_init (GstQomniVisionEnc * self)
{
  self->fps_n = DEFAULT_FPS_N;
  self->fps_d = DEFAULT_FPS_D;
  self->orientation = GST_VIDEO_ORIENTATION_IDENTITY;
}
