/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomniaudioenc and qomnivisionenc against the core's encoders: the same media,
 * whatever the buffers, give the same embeddings at the right times.
 */
#include "qomnicheck.h"

#include <gst/audio/audio.h>
#include <gst/video/video.h>
#include <math.h>

#include "audio-encoder.h"
#include "gstqomniengine.h"
#include "gstqomnievents.h"
#include "gstqomnimeta.h"
#include "vision-encoder.h"

#define AUDIO_CAPS "audio/x-raw,format=" GST_AUDIO_NE (S16) \
    ",rate=16000,channels=1,layout=interleaved"

static QomniModel *
open_model (const gchar * name)
{
  g_autofree gchar *path = fixture (name);
  QomniModel *model = qomni_model_ref_or_load (path, NULL, NULL);

  fail_unless (model != NULL);
  return model;
}

static GstHarness *
harness (const gchar * element, const gchar * caps)
{
  g_autofree gchar *path = fixture ("tiny-a");
  GstElement *e = gst_element_factory_make (element, NULL);
  GstHarness *h;

  fail_unless (e != NULL, "no %s", element);
  g_object_set (e, "model", path, "engine-linger", (gint64) 0, NULL);
  h = gst_harness_new_with_element (e, "sink", "src");
  gst_object_unref (e);
  if (caps != NULL)
    gst_harness_set_src_caps_str (h, caps);
  return h;
}

/* --- audio ---------------------------------------------------------------- */

/* A sweep that is not the same anywhere. */
static gint16 *
make_sound (gsize n)
{
  gint16 *s = g_new (gint16, n);

  for (gsize i = 0; i < n; i++)
    s[i] = (gint16) (9000 * sin (1e-6 * (double) i * (double) i)
        + 2000 * sin (0.05 * (double) i));
  return s;
}

static GstBuffer *
sound_buffer (const gint16 * s, gsize from, gsize n)
{
  GstBuffer *b = gst_buffer_new_memdup (s + from, n * 2);

  GST_BUFFER_PTS (b) = gst_util_uint64_scale_int (from, GST_SECOND, 16000);
  GST_BUFFER_DURATION (b) = gst_util_uint64_scale_int (n, GST_SECOND, 16000);
  return b;
}

static void
push_sound (GstHarness * h, const gint16 * s, gsize from, gsize to, gsize step)
{
  for (gsize i = from; i < to; i += step)
    fail_unless_equals_int (gst_harness_push (h, sound_buffer (s, i,
                MIN (step, to - i))), GST_FLOW_OK);
}

/* The blocks that the core makes of one clip. */
static GPtrArray *
core_blocks (const gint16 * s, gsize n, double seconds)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  QomniAudioEncoderParams params = {.block_seconds = seconds };
  g_autoptr (QomniAudioEncoder) encoder = qomni_audio_encoder_new (model,
      &params, NULL, NULL);
  GPtrArray *blocks = g_ptr_array_new_with_free_func ((GDestroyNotify)
      qomni_embeddings_unref);
  QomniEmbeddings *e;

  fail_unless (qomni_audio_encoder_push_s16 (encoder, s, n, NULL));
  fail_unless (qomni_audio_encoder_flush (encoder, NULL));
  while ((e = qomni_audio_encoder_pull (encoder, NULL, NULL)) != NULL)
    g_ptr_array_add (blocks, e);
  return blocks;
}

static void
assert_block (GstBuffer * buffer, QomniEmbeddings * want, GstClockTime clip)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniEmbeddings) e = gst_qomni_embeddings_from_buffer (buffer,
      &error);

  fail_unless (e != NULL, "%s", error ? error->message : "");
  fail_unless_equals_int64 (e->n_tokens, want->n_tokens);
  fail_unless_equals_int (e->modality, want->modality);
  fail_unless_equals_int64 (e->grid_h, want->grid_h);
  fail_unless_equals_int64 (e->grid_w, want->grid_w);
  fail_unless (e->seconds_per_grid == want->seconds_per_grid);
  fail_unless (memcmp (e->data, want->data, gst_buffer_get_size (buffer)) == 0,
      "the rows differ");
  fail_unless_equals_int (e->last, want->last);
  fail_unless_equals_uint64 (GST_BUFFER_PTS (buffer), clip + want->start);
  fail_unless_equals_uint64 (GST_BUFFER_DURATION (buffer), want->duration);
}

static void
assert_clip (GstHarness * h, const gint16 * s, gsize from, gsize to,
    double seconds)
{
  g_autoptr (GPtrArray) blocks = core_blocks (s + from, to - from, seconds);

  for (guint i = 0; i < blocks->len; i++) {
    g_autoptr (GstBuffer) b = gst_harness_try_pull (h);

    fail_unless (b != NULL, "block %u is missing", i);
    assert_block (b, g_ptr_array_index (blocks, i),
        gst_util_uint64_scale_int (from, GST_SECOND, 16000));
  }
}

GST_START_TEST (audio_any_buffer_size_gives_the_blocks_of_one_clip)
{
  static const gsize steps[] = { 160, 1, 4801, 37, 16000, 40000 };
  const gsize n = 40000;
  g_autofree gint16 *s = make_sound (n);

  for (guint i = 0; i < G_N_ELEMENTS (steps); i++) {
    GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);

    if (steps[i] == 1)
      push_sound (h, s, 0, 2000, 1), push_sound (h, s, 2000, n, 999);
    else
      push_sound (h, s, 0, n, steps[i]);
    fail_unless_equals_int (gst_harness_buffers_in_queue (h), 0);
    gst_harness_push_event (h, gst_event_new_eos ());
    assert_clip (h, s, 0, n, 0);
    fail_unless_equals_int (gst_harness_buffers_in_queue (h), 0);
    gst_harness_teardown (h);
  }
}

GST_END_TEST;

GST_START_TEST (audio_block_duration_cuts_blocks)
{
  const gsize n = 16000 * 5 / 2;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", NULL);
  GstBuffer *b;

  g_object_set (h->element, "block-duration", GST_SECOND, NULL);
  gst_harness_set_src_caps_str (h, AUDIO_CAPS);
  push_sound (h, s, 0, n, 1000);
  gst_harness_push_event (h, gst_event_new_eos ());
  fail_unless_equals_int (gst_harness_buffers_in_queue (h), 3);
  b = gst_harness_pull (h);
  fail_unless_equals_uint64 (GST_BUFFER_OFFSET (b), 0);
  fail_unless_equals_uint64 (GST_BUFFER_OFFSET_END (b), 13);
  fail_unless (GST_BUFFER_FLAG_IS_SET (b, GST_BUFFER_FLAG_DISCONT));
  fail_if (GST_BUFFER_FLAG_IS_SET (b, GST_BUFFER_FLAG_MARKER));
  gst_buffer_unref (b);
  b = gst_harness_pull (h);
  fail_unless_equals_uint64 (GST_BUFFER_PTS (b), GST_SECOND);
  fail_unless_equals_uint64 (GST_BUFFER_DURATION (b), GST_SECOND);
  fail_unless_equals_uint64 (GST_BUFFER_OFFSET (b), 13);
  fail_if (GST_BUFFER_FLAG_IS_SET (b, GST_BUFFER_FLAG_DISCONT));
  gst_buffer_unref (b);
  b = gst_harness_pull (h);
  fail_unless (GST_BUFFER_FLAG_IS_SET (b, GST_BUFFER_FLAG_MARKER));
  gst_buffer_unref (b);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_a_turn_end_comes_after_the_sound_before_it)
{
  const gsize n = 32000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  GstEvent *event;
  gboolean seen = FALSE;

  push_sound (h, s, 0, 16000, 1600);
  fail_unless (gst_harness_push_event (h,
          gst_qomni_event_new_turn_end (GST_SECOND)));
  fail_unless_equals_int (gst_harness_buffers_in_queue (h), 1);
  assert_clip (h, s, 0, 16000, 0);
  while ((event = gst_harness_try_pull_event (h)) != NULL) {
    seen |= gst_qomni_event_parse_turn_end (event, NULL);
    gst_event_unref (event);
  }
  fail_unless (seen);

  push_sound (h, s, 16000, n, 1600);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 16000, n, 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_a_discont_begins_a_clip)
{
  const gsize n = 40000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  GstBuffer *b;

  push_sound (h, s, 0, 16000, 1600);
  b = sound_buffer (s, 24000, 16000);
  GST_BUFFER_FLAG_SET (b, GST_BUFFER_FLAG_DISCONT);
  fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_OK);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 0, 16000, 0);
  assert_clip (h, s, 24000, n, 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_a_short_hole_is_silence_and_a_wobble_is_nothing)
{
  const gsize n = 32000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  GstBuffer *b;

  memset (s + 16000, 0, 3200 * 2);
  push_sound (h, s, 0, 16000, 1600);
  /* 200 ms later, without a flag */
  b = sound_buffer (s, 19200, 4800);
  fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_OK);
  b = sound_buffer (s, 24000, 8000);
  GST_BUFFER_PTS (b) += 20 * GST_MSECOND;
  fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_OK);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 0, n, 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_a_gap_event_within_a_clip_is_silence)
{
  const gsize n = 32000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);

  memset (s + 16000, 0, 8000 * 2);
  push_sound (h, s, 0, 16000, 1600);
  gst_harness_push_event (h, gst_event_new_gap (GST_SECOND, GST_SECOND / 2));
  push_sound (h, s, 24000, n, 1600);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 0, n, 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_outside_of_the_segment_is_clipped)
{
  const gsize n = 32000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  GstSegment segment;

  gst_segment_init (&segment, GST_FORMAT_TIME);
  segment.start = GST_SECOND / 2;
  segment.stop = GST_SECOND * 3 / 2;
  gst_harness_push_event (h, gst_event_new_segment (&segment));
  push_sound (h, s, 0, n, 3000);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 8000, 24000, 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_is_clipped_by_its_samples_whatever_its_duration_says)
{
  const gsize n = 16000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  GstBuffer *b = sound_buffer (s, 0, n);
  GstSegment segment;

  gst_segment_init (&segment, GST_FORMAT_TIME);
  segment.stop = GST_SECOND / 2;
  gst_harness_push_event (h, gst_event_new_segment (&segment));
  GST_BUFFER_DURATION (b) = 3600 * GST_SECOND;
  fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_OK);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 0, n / 2, 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_before_a_flush_is_forgotten)
{
  const gsize n = 32000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  GstSegment segment;

  push_sound (h, s, 0, 9000, 1600);
  gst_harness_push_event (h, gst_event_new_flush_start ());
  gst_harness_push_event (h, gst_event_new_flush_stop (TRUE));
  gst_segment_init (&segment, GST_FORMAT_TIME);
  gst_harness_push_event (h, gst_event_new_segment (&segment));
  push_sound (h, s, 0, n, 1600);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 0, n, 0);
  fail_unless_equals_int (gst_harness_buffers_in_queue (h), 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_a_second_run_is_like_the_first)
{
  const gsize n = 20000;
  g_autofree gint16 *s = make_sound (n);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);

  push_sound (h, s, 0, 7777, 700);
  gst_element_set_state (h->element, GST_STATE_READY);
  gst_element_set_state (h->element, GST_STATE_PLAYING);
  gst_harness_set_src_caps_str (h, AUDIO_CAPS);
  push_sound (h, s, 0, n, 700);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_clip (h, s, 0, n, 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (audio_caps_name_the_model)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  const QomniConfig *config = qomni_model_config (model);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  g_autofree gint16 *s = make_sound (1600);
  const GstStructure *c;
  GstCaps *caps;
  gint width, levels, n, d;

  push_sound (h, s, 0, 1600, 1600);
  caps = gst_pad_get_current_caps (h->sinkpad);
  fail_unless (caps != NULL);
  c = gst_caps_get_structure (caps, 0);
  fail_unless_equals_string (gst_structure_get_name (c),
      "application/x-qomni-embeddings");
  fail_unless_equals_string (gst_structure_get_string (c, "modality"), "audio");
  fail_unless_equals_string (gst_structure_get_string (c, "fingerprint"),
      qomni_model_fingerprint (model));
  fail_unless_equals_string (gst_structure_get_string (c, "dtype"), "f32");
  fail_unless (gst_structure_get_int (c, "width", &width));
  fail_unless_equals_int (width, config->text.hidden_size);
  fail_unless (gst_structure_get_int (c, "levels", &levels));
  fail_unless_equals_int (levels, 1);
  fail_unless (gst_structure_get_fraction (c, "token-rate", &n, &d));
  fail_unless_equals_int (n, 13);
  gst_caps_unref (caps);
  gst_harness_teardown (h);
}

GST_END_TEST;

static void
expect_error (GstHarness * h, GstBus * bus, GQuark domain, gint code)
{
  GstMessage *m = gst_bus_timed_pop_filtered (bus, TIMEOUT, GST_MESSAGE_ERROR);
  g_autoptr (GError) error = NULL;

  fail_unless (m != NULL);
  gst_message_parse_error (m, &error, NULL);
  fail_unless (g_error_matches (error, domain, code), "%s", error->message);
  gst_message_unref (m);
}

GST_START_TEST (audio_without_time_is_an_error)
{
  g_autofree gint16 *s = make_sound (1600);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  g_autoptr (GstBus) bus = gst_bus_new ();
  GstBuffer *b = sound_buffer (s, 0, 1600);

  gst_element_set_bus (h->element, bus);
  GST_BUFFER_PTS (b) = GST_CLOCK_TIME_NONE;
  fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_ERROR);
  expect_error (h, bus, GST_STREAM_ERROR, GST_STREAM_ERROR_FORMAT);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (a_bytes_segment_is_an_error)
{
  g_autofree gint16 *s = make_sound (1600);
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);
  g_autoptr (GstBus) bus = gst_bus_new ();
  GstSegment segment;

  gst_element_set_bus (h->element, bus);
  gst_segment_init (&segment, GST_FORMAT_BYTES);
  gst_harness_push_event (h, gst_event_new_segment (&segment));
  fail_if (gst_harness_push (h, sound_buffer (s, 0, 1600)) == GST_FLOW_OK);
  expect_error (h, bus, GST_STREAM_ERROR, GST_STREAM_ERROR_FORMAT);
  /* Once, however often the source tries. */
  fail_unless (gst_bus_pop_filtered (bus, GST_MESSAGE_ERROR) == NULL);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (latency_is_upstreams_unless_live_then_a_block_more)
{
  GstHarness *h = harness ("qomniaudioenc", AUDIO_CAPS);

  gst_harness_set_upstream_latency (h, 5 * GST_MSECOND);
  /* The harness answers as a live source. */
  fail_unless_equals_uint64 (gst_harness_query_latency (h),
      8 * GST_SECOND + 5 * GST_MSECOND);
  gst_harness_teardown (h);
}

GST_END_TEST;

/* --- vision --------------------------------------------------------------- */

#define W 64
#define H 48

static void
paint (guint8 * rgb, guint t)
{
  for (guint y = 0; y < H; y++)
    for (guint x = 0; x < W; x++) {
      rgb[(y * W + x) * 3 + 0] = (guint8) (x * 3 + t * 17);
      rgb[(y * W + x) * 3 + 1] = (guint8) (y * 5 + t * 3);
      rgb[(y * W + x) * 3 + 2] = (guint8) ((x ^ y) + t * 29);
    }
}

static GstBuffer *
frame (guint t, GstClockTime pts, GstClockTime duration)
{
  GstBuffer *b = gst_buffer_new_allocate (NULL, W * H * 3, NULL);
  GstMapInfo map;

  gst_buffer_map (b, &map, GST_MAP_WRITE);
  paint (map.data, t);
  gst_buffer_unmap (b, &map);
  GST_BUFFER_PTS (b) = pts;
  GST_BUFFER_DURATION (b) = duration;
  return b;
}

static gchar *
rgb_caps (gint fps)
{
  return g_strdup_printf ("video/x-raw,format=RGB,width=%d,height=%d,"
      "framerate=%d/1", W, H, fps);
}

/* What the core makes of these frames. */
static GPtrArray *
core_slices (QomniModality modality, double seconds, const guint * times,
    guint n)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  QomniVisionEncoderParams params = {.min_pixels = 0 };
  g_autoptr (QomniVisionEncoder) encoder = qomni_vision_encoder_new (model,
      &params, NULL, NULL);
  GPtrArray *slices = g_ptr_array_new_with_free_func ((GDestroyNotify)
      qomni_embeddings_unref);
  g_autofree guint8 *rgb = g_malloc (W * H * 3);
  QomniEmbeddings *e;

  fail_unless (qomni_vision_encoder_begin (encoder, modality, seconds, NULL));
  for (guint i = 0; i < n; i++) {
    QomniImage image = { rgb, W, H, W * 3, 3 };

    paint (rgb, times[i]);
    fail_unless (qomni_vision_encoder_push (encoder, &image, NULL));
  }
  fail_unless (qomni_vision_encoder_flush (encoder, NULL));
  while ((e = qomni_vision_encoder_pull (encoder, NULL, NULL)) != NULL)
    g_ptr_array_add (slices, e);
  return slices;
}

static void
assert_slices (GstHarness * h, GPtrArray * want)
{
  for (guint i = 0; i < want->len; i++) {
    QomniEmbeddings *w = g_ptr_array_index (want, i);
    g_autoptr (GstBuffer) b = gst_harness_try_pull (h);
    g_autoptr (QomniEmbeddings) e = NULL;

    fail_unless (b != NULL, "slice %u is missing", i);
    e = gst_qomni_embeddings_from_buffer (b, NULL);
    fail_unless (e != NULL);
    fail_unless_equals_int (e->modality, w->modality);
    fail_unless_equals_int64 (e->n_tokens, w->n_tokens);
    fail_unless (e->seconds_per_grid == w->seconds_per_grid);
    fail_unless (memcmp (e->data, w->data, gst_buffer_get_size (b)) == 0,
        "slice %u differs", i);
    fail_unless_equals_uint64 (GST_BUFFER_PTS (b), w->start);
  }
  fail_unless_equals_int (gst_harness_buffers_in_queue (h), 0);
}

GST_START_TEST (vision_one_frame_is_a_picture)
{
  static const guint times[] = { 3 };
  g_autofree gchar *caps = rgb_caps (0);
  GstHarness *h = harness ("qomnivisionenc", caps);
  g_autoptr (GPtrArray) want = core_slices (QOMNI_MODALITY_IMAGE, 1.0, times,
      1);

  gst_harness_push (h, frame (3, 0, GST_CLOCK_TIME_NONE));
  fail_unless_equals_int (gst_harness_buffers_in_queue (h), 0);
  gst_harness_push_event (h, gst_event_new_eos ());
  {
    g_autoptr (GstBuffer) b = gst_harness_pull (h);
    g_autoptr (QomniEmbeddings) e = gst_qomni_embeddings_from_buffer (b, NULL);
    QomniEmbeddings *w = g_ptr_array_index (want, 0);

    fail_unless_equals_int (e->modality, QOMNI_MODALITY_IMAGE);
    fail_unless (memcmp (e->data, w->data, gst_buffer_get_size (b)) == 0);
  }
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (vision_frames_are_kept_by_their_time)
{
  /* 10 fps for 2 s at fps=2: the first at or after 0, 500, 1000, 1500 ms. */
  static const guint times[] = { 0, 5, 10, 15 };
  g_autofree gchar *caps = rgb_caps (10);
  GstHarness *h = harness ("qomnivisionenc", caps);
  g_autoptr (GPtrArray) want = core_slices (QOMNI_MODALITY_VIDEO, 1.0, times,
      4);

  for (guint i = 0; i < 20; i++)
    fail_unless_equals_int (gst_harness_push (h, frame (i,
                i * 100 * GST_MSECOND, 100 * GST_MSECOND)), GST_FLOW_OK);
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_slices (h, want);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (vision_the_rate_of_the_frames_does_not_matter)
{
  /* Irregular, and one second missing. */
  static const guint at[] = { 0, 10, 490, 499, 700, 980, 1010, 2300, 2600 };
  static const guint kept[] = { 0, 3, 6, 7, 8 };
  g_autofree gchar *caps = rgb_caps (0);
  GstHarness *h = harness ("qomnivisionenc", caps);
  g_autoptr (GPtrArray) want = core_slices (QOMNI_MODALITY_VIDEO, 1.0, kept,
      5);

  for (guint i = 0; i < G_N_ELEMENTS (at); i++)
    gst_harness_push (h, frame (i, at[i] * GST_MSECOND, GST_CLOCK_TIME_NONE));
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_slices (h, want);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (vision_a_slow_stream_has_longer_slices)
{
  static const guint times[] = { 0, 1, 2, 3 };
  g_autofree gchar *caps = rgb_caps (1);
  GstHarness *h = harness ("qomnivisionenc", caps);
  g_autoptr (GPtrArray) want = core_slices (QOMNI_MODALITY_VIDEO, 2.0, times,
      4);

  for (guint i = 0; i < 4; i++)
    gst_harness_push (h, frame (i, i * GST_SECOND, GST_SECOND));
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_slices (h, want);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (vision_absurd_frame_rates_are_harmless)
{
  static const gchar *const rates[] = { "0/1", "1/2147483647", "2147483647/1" };

  for (guint i = 0; i < G_N_ELEMENTS (rates); i++) {
    g_autofree gchar *caps = g_strdup_printf ("video/x-raw,format=RGB,width=%d,"
        "height=%d,framerate=%s", W, H, rates[i]);
    GstHarness *h = harness ("qomnivisionenc", caps);
    g_autoptr (QomniEmbeddings) e = NULL;
    g_autoptr (GstBuffer) b = NULL;

    gst_harness_push (h, frame (0, 0, GST_SECOND));
    gst_harness_push (h, frame (1, GST_SECOND, GST_SECOND));
    gst_harness_push_event (h, gst_event_new_eos ());
    b = gst_harness_try_pull (h);
    fail_unless (b != NULL, "nothing at %s", rates[i]);
    e = gst_qomni_embeddings_from_buffer (b, NULL);
    /* The thinker takes slices shorter than this only. */
    fail_unless (e->seconds_per_grid > 0 && e->seconds_per_grid < 1e6);
    gst_harness_teardown (h);
  }
}

GST_END_TEST;

/* With a GstVideoMeta nobody else compares the planes with the memory. */
GST_START_TEST (vision_a_frame_cut_short_is_an_error)
{
  g_autofree gchar *caps = rgb_caps (1);
  GstHarness *h = harness ("qomnivisionenc", caps);
  g_autoptr (GstBus) bus = gst_bus_new ();
  GstBuffer *b = gst_buffer_new_memdup (caps, 16);
  GstMessage *m;

  gst_element_set_bus (h->element, bus);
  gst_buffer_add_video_meta (b, GST_VIDEO_FRAME_FLAG_NONE, GST_VIDEO_FORMAT_RGB,
      W, H);
  GST_BUFFER_PTS (b) = 0;
  fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_ERROR);
  m = gst_bus_timed_pop_filtered (bus, 0, GST_MESSAGE_ERROR);
  fail_unless (m != NULL);
  gst_message_unref (m);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (vision_a_short_video_is_a_video)
{
  /* Three frames seen, one kept. */
  static const guint times[] = { 0 };
  g_autofree gchar *caps = rgb_caps (25);
  GstHarness *h = harness ("qomnivisionenc", caps);
  g_autoptr (GPtrArray) want = core_slices (QOMNI_MODALITY_VIDEO, 1.0, times,
      1);

  for (guint i = 0; i < 3; i++)
    gst_harness_push (h, frame (i, i * 40 * GST_MSECOND, 40 * GST_MSECOND));
  gst_harness_push_event (h, gst_event_new_eos ());
  assert_slices (h, want);
  gst_harness_teardown (h);
}

GST_END_TEST;

/* The picture of a pad of formats must be that of RGB. */
GST_START_TEST (vision_strides_and_channel_orders_are_respected)
{
  static const gchar *const formats[] = { "BGRx", "xRGB", "RGBA", "BGRA" };
  static const gint red[] = { 2, 1, 0, 2 }, blue[] = { 0, 3, 2, 0 },
      green[] = { 1, 2, 1, 1 }, alpha[] = { 3, 0, 3, 3 };
  static const guint times[] = { 1 };
  g_autoptr (GPtrArray) want = core_slices (QOMNI_MODALITY_IMAGE, 1.0, times,
      1);
  g_autofree guint8 *rgb = g_malloc (W * H * 3);

  paint (rgb, 1);
  for (guint f = 0; f < G_N_ELEMENTS (formats); f++) {
    g_autofree gchar *caps = g_strdup_printf ("video/x-raw,format=%s,width=%d,"
        "height=%d,framerate=0/1", formats[f], W, H);
    GstHarness *h = harness ("qomnivisionenc", caps);
    const gint stride = W * 4 + 32;
    gsize offset[GST_VIDEO_MAX_PLANES] = { 16, };
    gint strides[GST_VIDEO_MAX_PLANES] = { stride, };
    GstBuffer *b = gst_buffer_new_allocate (NULL, 16 + stride * H, NULL);
    g_autoptr (GstBuffer) out = NULL;
    g_autoptr (QomniEmbeddings) e = NULL;
    GstMapInfo map;

    gst_buffer_map (b, &map, GST_MAP_WRITE);
    memset (map.data, 0x5a, map.size);
    for (guint i = 0; i < W * H; i++) {
      guint8 *p = map.data + 16 + (i / W) * stride + (i % W) * 4;

      p[red[f]] = rgb[i * 3];
      p[green[f]] = rgb[i * 3 + 1];
      p[blue[f]] = rgb[i * 3 + 2];
      p[alpha[f]] = 255;
    }
    gst_buffer_unmap (b, &map);
    gst_buffer_add_video_meta_full (b, 0,
        gst_video_format_from_string (formats[f]), W, H, 1, offset, strides);
    GST_BUFFER_PTS (b) = 0;
    fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_OK);
    gst_harness_push_event (h, gst_event_new_eos ());
    out = gst_harness_pull (h);
    e = gst_qomni_embeddings_from_buffer (out, NULL);
    fail_unless (memcmp (e->data, ((QomniEmbeddings *) g_ptr_array_index (want,
                    0))->data, gst_buffer_get_size (out)) == 0, "%s",
        formats[f]);
    gst_harness_teardown (h);
  }
}

GST_END_TEST;

static GstBuffer *
encode_oriented (const gchar * tag, gint w, gint h, const guint8 * rgb)
{
  g_autofree gchar *caps = g_strdup_printf ("video/x-raw,format=RGB,width=%d,"
      "height=%d,framerate=0/1", w, h);
  GstHarness *hs = harness ("qomnivisionenc", caps);
  GstBuffer *b = gst_buffer_new_memdup (rgb, (gsize) w * h * 3), *out;

  if (tag != NULL)
    gst_harness_push_event (hs, gst_event_new_tag (gst_tag_list_new
            (GST_TAG_IMAGE_ORIENTATION, tag, NULL)));
  GST_BUFFER_PTS (b) = 0;
  gst_harness_push (hs, b);
  gst_harness_push_event (hs, gst_event_new_eos ());
  out = gst_harness_pull (hs);
  gst_harness_teardown (hs);
  return out;
}

GST_START_TEST (vision_a_picture_is_turned_upright)
{
  g_autofree guint8 *rgb = g_malloc (W * H * 3);
  g_autofree guint8 *turned = g_malloc (W * H * 3);
  g_autoptr (GstBuffer) a = NULL, b = NULL;
  GstMapInfo x, y;

  paint (rgb, 2);
  /* rotate-90: the camera lay on its side; shown upright the picture is
   * H wide, and its column H-1-r is row r. */
  for (guint r = 0; r < H; r++)
    for (guint c = 0; c < W; c++)
      memcpy (turned + (c * H + (H - 1 - r)) * 3, rgb + (r * W + c) * 3, 3);
  a = encode_oriented ("rotate-90", W, H, rgb);
  b = encode_oriented (NULL, H, W, turned);
  gst_buffer_map (a, &x, GST_MAP_READ);
  gst_buffer_map (b, &y, GST_MAP_READ);
  fail_unless_equals_int (x.size, y.size);
  fail_unless (memcmp (x.data, y.data, x.size) == 0);
  gst_buffer_unmap (a, &x);
  gst_buffer_unmap (b, &y);
}

GST_END_TEST;

GST_START_TEST (vision_huge_caps_are_refused_with_the_limit)
{
  GstHarness *h = harness ("qomnivisionenc", NULL);
  g_autoptr (GstBus) bus = gst_bus_new ();

  gst_element_set_bus (h->element, bus);
  gst_harness_set_src_caps_str (h,
      "video/x-raw,format=RGB,width=32767,height=32767,framerate=1/1");
  gst_harness_push (h, gst_buffer_new_allocate (NULL, 16, NULL));
  expect_error (h, bus, GST_STREAM_ERROR, GST_STREAM_ERROR_FORMAT);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (vision_a_size_change_keeps_the_grid)
{
  g_autofree gchar *caps = rgb_caps (2);
  GstHarness *h = harness ("qomnivisionenc", caps);
  GstBuffer *b;
  g_autoptr (QomniEmbeddings) before = NULL, after = NULL;

  gst_harness_push (h, frame (0, 0, GST_SECOND / 2));
  gst_harness_push (h, frame (1, GST_SECOND / 2, GST_SECOND / 2));
  gst_harness_set_src_caps_str (h,
      "video/x-raw,format=RGB,width=128,height=128,framerate=2/1");
  for (guint i = 2; i < 4; i++) {
    b = gst_buffer_new_allocate (NULL, 128 * 128 * 3, NULL);
    gst_buffer_memset (b, 0, 77, -1);
    GST_BUFFER_PTS (b) = i * GST_SECOND / 2;
    fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_OK);
  }
  gst_harness_push_event (h, gst_event_new_eos ());
  b = gst_harness_pull (h);
  before = gst_qomni_embeddings_from_buffer (b, NULL);
  gst_buffer_unref (b);
  b = gst_harness_pull (h);
  after = gst_qomni_embeddings_from_buffer (b, NULL);
  gst_buffer_unref (b);
  fail_unless_equals_int64 (before->grid_h, after->grid_h);
  fail_unless_equals_int64 (before->grid_w, after->grid_w);
  fail_unless_equals_uint64 (before->clip, after->clip);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (null_while_loading_or_encoding_works)
{
  for (guint i = 0; i < 10; i++) {
    g_autofree gchar *path = fixture ("tiny-a");
    Run *run = run_new ("audiotestsrc num-buffers=%u ! audioconvert ! "
        "audioresample ! queue ! qomniaudioenc model=%s engine-linger=0 ! "
        "fakesink", 400, path);

    gst_element_set_state (run->pipeline, GST_STATE_PLAYING);
    g_usleep (i * 3000);
    run_free (run);
  }
}

GST_END_TEST;

static Suite *
encoders_suite (void)
{
  Suite *suite = suite_create ("encoders");
  TCase *tc = tcase_create ("general");

  suite_add_tcase (suite, tc);
  tcase_add_test (tc, audio_any_buffer_size_gives_the_blocks_of_one_clip);
  tcase_add_test (tc, audio_block_duration_cuts_blocks);
  tcase_add_test (tc, audio_a_turn_end_comes_after_the_sound_before_it);
  tcase_add_test (tc, audio_a_discont_begins_a_clip);
  tcase_add_test (tc, audio_a_short_hole_is_silence_and_a_wobble_is_nothing);
  tcase_add_test (tc, audio_a_gap_event_within_a_clip_is_silence);
  tcase_add_test (tc, audio_outside_of_the_segment_is_clipped);
  tcase_add_test (tc, audio_is_clipped_by_its_samples_whatever_its_duration_says);
  tcase_add_test (tc, audio_before_a_flush_is_forgotten);
  tcase_add_test (tc, audio_a_second_run_is_like_the_first);
  tcase_add_test (tc, audio_caps_name_the_model);
  tcase_add_test (tc, audio_without_time_is_an_error);
  tcase_add_test (tc, a_bytes_segment_is_an_error);
  tcase_add_test (tc, latency_is_upstreams_unless_live_then_a_block_more);
  tcase_add_test (tc, vision_one_frame_is_a_picture);
  tcase_add_test (tc, vision_frames_are_kept_by_their_time);
  tcase_add_test (tc, vision_the_rate_of_the_frames_does_not_matter);
  tcase_add_test (tc, vision_a_slow_stream_has_longer_slices);
  tcase_add_test (tc, vision_absurd_frame_rates_are_harmless);
  tcase_add_test (tc, vision_a_frame_cut_short_is_an_error);
  tcase_add_test (tc, vision_a_short_video_is_a_video);
  tcase_add_test (tc, vision_strides_and_channel_orders_are_respected);
  tcase_add_test (tc, vision_a_picture_is_turned_upright);
  tcase_add_test (tc, vision_huge_caps_are_refused_with_the_limit);
  tcase_add_test (tc, vision_a_size_change_keeps_the_grid);
  tcase_add_test (tc, null_while_loading_or_encoding_works);
  return suite;
}

GST_CHECK_MAIN (encoders);
