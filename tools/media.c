/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * media: files -> encoders, by GStreamer's decoders.
 *
 *   filesrc ! decodebin ! <converters of the wanted kind> ! appsink
 *
 * One appsink takes the first stream of the wanted kind; everything else that
 * decodebin finds ends in a fakesink. The sink is not synchronised, so a file
 * is read as fast as it decodes.
 */
#include "media.h"

#include <gst/app/gstappsink.h>
#include <gst/app/gstappsrc.h>
#include <gst/audio/audio.h>
#include <gst/gst.h>
#include <gst/video/video.h>
#include <string.h>

#define SAMPLE_RATE 16000
/* How often a wait looks at the bus and at the cancellable. */
#define POLL (50 * GST_MSECOND)

typedef struct
{
  const char *path;
  GstElement *pipeline;
  GstElement *sink;             /* the appsink */
  GstElement *head;             /* first element of the chain to it */
  const char *kind;             /* "audio/" or "video/" */
  GMutex lock;
  bool linked;                  /* lock */
} Reader;

static void
on_pad_added (GstElement * decodebin, GstPad * pad, Reader * r)
{
  g_autoptr (GstCaps) caps = gst_pad_get_current_caps (pad);
  const char *name = caps == NULL ? "" :
      gst_structure_get_name (gst_caps_get_structure (caps, 0));
  g_autoptr (GstPad) target = NULL;
  bool take;

  g_mutex_lock (&r->lock);
  take = !r->linked && g_str_has_prefix (name, r->kind);
  if (take)
    r->linked = true;
  g_mutex_unlock (&r->lock);

  if (take) {
    target = gst_element_get_static_pad (r->head, "sink");
  } else {
    GstElement *waste = gst_element_factory_make ("fakesink", NULL);

    g_object_set (waste, "sync", FALSE, "async", FALSE, NULL);
    gst_bin_add (GST_BIN (r->pipeline), waste);
    gst_element_sync_state_with_parent (waste);
    target = gst_element_get_static_pad (waste, "sink");
  }
  gst_pad_link (pad, target);
}

/* The first stream was all there is: an unlinked appsink would wait for ever. */
static void
on_no_more_pads (GstElement * decodebin, Reader * r)
{
  bool linked;

  g_mutex_lock (&r->lock);
  linked = r->linked;
  g_mutex_unlock (&r->lock);
  if (!linked) {
    g_autoptr (GstPad) sink = gst_element_get_static_pad (r->head, "sink");

    gst_pad_send_event (sink, gst_event_new_stream_start ("none"));
    gst_pad_send_event (sink, gst_event_new_eos ());
  }
}

static void
reader_clear (Reader * r)
{
  if (r->pipeline != NULL)
    gst_element_set_state (r->pipeline, GST_STATE_NULL);
  g_clear_pointer (&r->sink, gst_object_unref);
  g_clear_pointer (&r->head, gst_object_unref);
  g_clear_pointer (&r->pipeline, gst_object_unref);
  g_mutex_clear (&r->lock);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Reader, reader_clear)

/* `chain` converts to the caps that are wanted and ends in an appsink named
 * "sink"; its first element is named "head". */
static bool
reader_open (Reader * r, const char *path, const char *kind,
    const char *chain, GError ** error)
{
  g_autofree char *line = g_strdup_printf
      ("filesrc name=file ! decodebin name=decode  %s", chain);
  g_autoptr (GError) failure = NULL;

  g_mutex_init (&r->lock);
  r->path = path;
  r->kind = kind;
  if (!g_file_test (path, G_FILE_TEST_EXISTS))
    return qomni_fail (error, QOMNI_ERROR_NOT_FOUND, "no file '%s'", path);

  r->pipeline = gst_parse_launch (line, &failure);
  if (r->pipeline == NULL || failure != NULL)
    return qomni_fail (error, QOMNI_ERROR_DEVICE,
        "cannot decode media here: %s", failure->message);
  r->sink = gst_bin_get_by_name (GST_BIN (r->pipeline), "sink");
  r->head = gst_bin_get_by_name (GST_BIN (r->pipeline), "head");

  g_autoptr (GstElement) file =
      gst_bin_get_by_name (GST_BIN (r->pipeline), "file");
  g_autoptr (GstElement) decode =
      gst_bin_get_by_name (GST_BIN (r->pipeline), "decode");
  g_object_set (file, "location", path, NULL);
  g_object_set (r->sink, "sync", FALSE, "max-buffers", 8, NULL);
  g_signal_connect (decode, "pad-added", G_CALLBACK (on_pad_added), r);
  g_signal_connect (decode, "no-more-pads", G_CALLBACK (on_no_more_pads), r);
  gst_element_set_state (r->pipeline, GST_STATE_PLAYING);
  return true;
}

/* What the bus has to say against going on. */
static bool
reader_check (Reader * r, GError ** error)
{
  g_autoptr (GstBus) bus = gst_element_get_bus (r->pipeline);
  g_autoptr (GstMessage) message =
      gst_bus_pop_filtered (bus, GST_MESSAGE_ERROR);

  if (message == NULL)
    return true;

  g_autoptr (GError) failure = NULL;
  gst_message_parse_error (message, &failure, NULL);
  return qomni_fail (error, QOMNI_ERROR_INPUT, "cannot decode '%s': %s",
      r->path, failure->message);
}

/* The next decoded sample; NULL with no error at the end. */
static GstSample *
reader_next (Reader * r, GCancellable * cancellable, GError ** error)
{
  for (;;) {
    GstSample *sample =
        gst_app_sink_try_pull_sample (GST_APP_SINK (r->sink), POLL);

    if (sample != NULL)
      return sample;
    if (!reader_check (r, error) || !qomni_go_on (cancellable, error))
      return NULL;
    if (gst_app_sink_is_eos (GST_APP_SINK (r->sink)))
      return NULL;
  }
}

bool
media_push_audio (const char *path, QomniAudioEncoder * encoder,
    bool *ret_has_sound, GCancellable * cancellable, GError ** error)
{
  g_auto (Reader) r = { 0 };
  g_autoptr (GError) failure = NULL;
  GstSample *sample;

  if (!reader_open (&r, path, "audio/",
          "audioconvert name=head ! audioresample ! audio/x-raw,format="
          GST_AUDIO_NE (F32) ",rate=16000,channels=1 ! appsink name=sink",
          error))
    return false;

  while ((sample = reader_next (&r, cancellable, &failure)) != NULL) {
    GstBuffer *buffer = gst_sample_get_buffer (sample);
    GstMapInfo map;
    bool ok = true;

    if (gst_buffer_map (buffer, &map, GST_MAP_READ)) {
      ok = qomni_audio_encoder_push (encoder, (const float *) map.data,
          map.size / sizeof (float), error);
      gst_buffer_unmap (buffer, &map);
    }
    gst_sample_unref (sample);
    if (!ok)
      return false;
  }
  if (failure != NULL) {
    g_propagate_error (error, g_steal_pointer (&failure));
    return false;
  }

  if (ret_has_sound != NULL)
    *ret_has_sound = r.linked;
  if (!r.linked) {
    if (ret_has_sound != NULL)
      return true;
    return qomni_fail (error, QOMNI_ERROR_INPUT, "no sound in '%s'", path);
  }
  return qomni_audio_encoder_flush (encoder, error);
}

/* Frames keep an alpha channel when the file has one: the engine composites it
 * on white. Orientation tags are applied. Deeper pictures are cut to 8 bits
 * without dithering. */
#define PICTURE_CHAIN \
    "videoconvert name=head dither=none ! videoflip video-direction=auto ! " \
    "videoconvert dither=none ! video/x-raw,format={RGB,RGBA} ! appsink name=sink"

static bool
push_frame (GstSample * sample, QomniVisionEncoder * encoder, GError ** error)
{
  GstVideoInfo info;
  GstVideoFrame frame;
  bool ok;

  if (!gst_video_info_from_caps (&info, gst_sample_get_caps (sample))
      || !gst_video_frame_map (&frame, &info, gst_sample_get_buffer (sample),
          GST_MAP_READ))
    return qomni_fail (error, QOMNI_ERROR_INPUT, "a frame cannot be read");

  QomniImage image = {
    .data = GST_VIDEO_FRAME_PLANE_DATA (&frame, 0),
    .width = GST_VIDEO_FRAME_WIDTH (&frame),
    .height = GST_VIDEO_FRAME_HEIGHT (&frame),
    .stride = (size_t) GST_VIDEO_FRAME_PLANE_STRIDE (&frame, 0),
    .n_channels = GST_VIDEO_FRAME_FORMAT (&frame) == GST_VIDEO_FORMAT_RGBA
        ? 4 : 3,
  };
  ok = qomni_vision_encoder_push (encoder, &image, error);
  gst_video_frame_unmap (&frame);
  return ok;
}

bool
media_push_image (const char *path, QomniVisionEncoder * encoder,
    GCancellable * cancellable, GError ** error)
{
  g_auto (Reader) r = { 0 };
  g_autoptr (GError) failure = NULL;
  g_autoptr (GstSample) sample = NULL;

  if (!reader_open (&r, path, "video/", PICTURE_CHAIN, error))
    return false;
  sample = reader_next (&r, cancellable, &failure);
  if (failure != NULL) {
    g_propagate_error (error, g_steal_pointer (&failure));
    return false;
  }
  if (sample == NULL)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "no picture in '%s'", path);

  return qomni_vision_encoder_begin (encoder, QOMNI_MODALITY_IMAGE, 0, error)
      && push_frame (sample, encoder, error)
      && qomni_vision_encoder_flush (encoder, error);
}

/* Frames of the file and their rate: of the caps, or where those have none, of
 * the times of the first and the last frame. */
static bool
count_frames (const char *path, int64_t *ret_total, double *ret_fps,
    GCancellable * cancellable, GError ** error)
{
  g_auto (Reader) r = { 0 };
  g_autoptr (GError) failure = NULL;
  GstClockTime first = GST_CLOCK_TIME_NONE, last = GST_CLOCK_TIME_NONE;
  int64_t total = 0;
  double fps = 0;
  GstSample *sample;

  if (!reader_open (&r, path, "video/",
          "identity name=head ! appsink name=sink", error))
    return false;
  while ((sample = reader_next (&r, cancellable, &failure)) != NULL) {
    GstStructure *s =
        gst_caps_get_structure (gst_sample_get_caps (sample), 0);
    int num, den;

    if (fps == 0 && gst_structure_get_fraction (s, "framerate", &num, &den)
        && num > 0 && den > 0)
      fps = (double) num / den;
    last = GST_BUFFER_PTS (gst_sample_get_buffer (sample));
    if (total++ == 0)
      first = last;
    gst_sample_unref (sample);
  }
  if (failure != NULL) {
    g_propagate_error (error, g_steal_pointer (&failure));
    return false;
  }
  if (total == 0)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "no pictures in '%s'", path);
  if (fps == 0 && GST_CLOCK_TIME_IS_VALID (first)
      && GST_CLOCK_TIME_IS_VALID (last) && last > first)
    fps = (double) (total - 1) * GST_SECOND / (double) (last - first);

  *ret_total = total;
  *ret_fps = fps > 0 ? fps : 25;
  return true;
}

bool
media_push_video (const char *path, double fps, int64_t max_frames,
    int slice_frames, QomniVisionEncoder * encoder, GCancellable * cancellable,
    GError ** error)
{
  g_auto (Reader) r = { 0 };
  g_autoptr (GError) failure = NULL;
  g_autofree int64_t *wanted = NULL;
  int64_t total = 0;
  double video_fps = 0, taken_fps;
  size_t n, next = 0;
  GstSample *sample;

  if (!count_frames (path, &total, &video_fps, cancellable, error))
    return false;
  n = qomni_sample_frames (total, video_fps, fps, max_frames, &wanted,
      &taken_fps);
  if (n == 0)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory to choose from the %" G_GINT64_FORMAT " frames of '%s'",
        total, path);

  if (!qomni_vision_encoder_begin (encoder, QOMNI_MODALITY_VIDEO,
          slice_frames / taken_fps, error)
      || !reader_open (&r, path, "video/", PICTURE_CHAIN, error))
    return false;
  for (int64_t i = 0; next < n
      && (sample = reader_next (&r, cancellable, &failure)) != NULL; i++) {
    bool ok = true;

    for (; ok && next < n && wanted[next] == i; next++)
      ok = push_frame (sample, encoder, error);
    gst_sample_unref (sample);
    if (!ok)
      return false;
  }
  if (failure != NULL) {
    g_propagate_error (error, g_steal_pointer (&failure));
    return false;
  }
  if (next < n)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "'%s' had %" G_GINT64_FORMAT " frames when counted, fewer when read",
        path, total);
  return qomni_vision_encoder_flush (encoder, error);
}

/* --- WAV ---------------------------------------------------------------- */

struct _MediaWav
{
  char *path;
  int rate;
  GstElement *pipeline, *src;
  guint64 n_written;
};

static bool
wav_check (MediaWav * self, GError ** error)
{
  Reader r = {.path = self->path,.pipeline = self->pipeline };
  g_autoptr (GError) failure = NULL;

  if (reader_check (&r, &failure))
    return true;
  return qomni_fail (error, QOMNI_ERROR_OPEN, "cannot write '%s': %s",
      self->path, failure->message);
}

MediaWav *
media_wav_open (const char *path, int rate, GError ** error)
{
  MediaWav *self = g_new0 (MediaWav, 1);
  g_autoptr (GError) failure = NULL;
  g_autoptr (GstElement) file = NULL;
  g_autoptr (GstCaps) caps = NULL;

  self->path = g_strdup (path);
  self->rate = rate;
  self->pipeline = gst_parse_launch
      ("appsrc name=src format=time max-bytes=0 ! audioconvert "
      "! audio/x-raw,format=S16LE ! wavenc ! filesink name=file", &failure);
  if (self->pipeline == NULL || failure != NULL) {
    qomni_fail (error, QOMNI_ERROR_DEVICE, "cannot write WAV here: %s",
        failure->message);
    media_wav_free (self);
    return NULL;
  }
  self->src = gst_bin_get_by_name (GST_BIN (self->pipeline), "src");
  file = gst_bin_get_by_name (GST_BIN (self->pipeline), "file");
  caps = gst_caps_new_simple ("audio/x-raw",
      "format", G_TYPE_STRING, GST_AUDIO_NE (F32), "rate", G_TYPE_INT, rate,
      "channels", G_TYPE_INT, 1, "layout", G_TYPE_STRING, "interleaved", NULL);
  g_object_set (self->src, "caps", caps, NULL);
  g_object_set (file, "location", path, "async", FALSE, "sync", FALSE, NULL);
  if (gst_element_set_state (self->pipeline, GST_STATE_PLAYING)
      == GST_STATE_CHANGE_FAILURE) {
    if (wav_check (self, error))
      qomni_fail (error, QOMNI_ERROR_OPEN, "cannot write '%s'", path);
    media_wav_free (self);
    return NULL;
  }
  return self;
}

bool
media_wav_write (MediaWav * self, const float *samples, size_t n,
    GError ** error)
{
  GstBuffer *buffer = gst_buffer_new_memdup (samples, n * sizeof (float));

  GST_BUFFER_PTS (buffer) =
      gst_util_uint64_scale (self->n_written, GST_SECOND, self->rate);
  self->n_written += n;
  GST_BUFFER_DURATION (buffer) =
      gst_util_uint64_scale (self->n_written, GST_SECOND, self->rate)
      - GST_BUFFER_PTS (buffer);
  gst_app_src_push_buffer (GST_APP_SRC (self->src), buffer);
  return wav_check (self, error);
}

bool
media_wav_close (MediaWav * self, GError ** error)
{
  g_autoptr (GstBus) bus = gst_element_get_bus (self->pipeline);
  bool ok = true;

  gst_app_src_end_of_stream (GST_APP_SRC (self->src));
  g_autoptr (GstMessage) message = gst_bus_timed_pop_filtered (bus,
      GST_CLOCK_TIME_NONE, GST_MESSAGE_EOS | GST_MESSAGE_ERROR);
  if (GST_MESSAGE_TYPE (message) == GST_MESSAGE_ERROR) {
    g_autoptr (GError) failure = NULL;

    gst_message_parse_error (message, &failure, NULL);
    ok = qomni_fail (error, QOMNI_ERROR_OPEN, "cannot write '%s': %s",
        self->path, failure->message);
  }
  media_wav_free (self);
  return ok;
}

void
media_wav_free (MediaWav * self)
{
  if (self == NULL)
    return;
  if (self->pipeline != NULL)
    gst_element_set_state (self->pipeline, GST_STATE_NULL);
  g_clear_pointer (&self->src, gst_object_unref);
  g_clear_pointer (&self->pipeline, gst_object_unref);
  g_free (self->path);
  g_free (self);
}
