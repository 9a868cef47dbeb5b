/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnitalker: samples counted to the last one, formats, voices, interrupts.
 */
#include "qomnicheck.h"

#include <gst/audio/audio.h>

#include "gstqomniengine.h"
#include "gstqomnievents.h"
#include "gstqomnimeta.h"

#define QUESTION "What do you see? Be brief."

/* `format`: caps behind the talker. */
static Run *
speaking (const gchar * talker, const gchar * format)
{
  g_autofree gchar *path = fixture ("tiny-a");

  return run_new ("fakesrc num-buffers=0 ! text/x-raw,format=utf8 ! "
      "qomnithinker name=t model=%s temperature=0 engine-linger=0 "
      "max-tokens=64 respond-on-eos=false t.text ! fakesink name=text "
      "t.hidden ! qomnitalker name=talker engine-linger=0 temperature=0 "
      "max-frames=10 %s ! %s ! fakesink name=speech", path, talker, format);
}

static void
say (Run * run, guint n_turns)
{
  g_autoptr (GstElement) t = gst_bin_get_by_name (GST_BIN (run->pipeline), "t");
  gboolean taken;

  gst_element_set_state (run->pipeline, GST_STATE_PAUSED);
  for (guint i = 0; i < n_turns; i++) {
    g_signal_emit_by_name (t, "send-text", QUESTION, NULL, &taken);
    fail_unless (taken);
  }
}

static gsize
bytes (Run * run)
{
  gsize n = 0;

  for (guint i = 0; i < run->speech->len; i++)
    n += gst_buffer_get_size (g_ptr_array_index (run->speech, i));
  return n;
}

GST_START_TEST (ten_frames_are_1920_times_ten_less_555_samples)
{
  g_autoptr (Run) run = speaking ("", "audio/x-raw");
  GstClockTime at = 0;
  guint64 samples = 0;

  say (run, 1);
  run_to_eos (run);
  fail_unless_equals_uint64 (bytes (run), (1920 * 10 - 555) * 2);
  for (guint i = 0; i < run->speech->len; i++) {
    GstBuffer *b = g_ptr_array_index (run->speech, i);

    fail_unless_equals_uint64 (GST_BUFFER_PTS (b), at);
    samples += gst_buffer_get_size (b) / 2;
    at = gst_util_uint64_scale_int (samples, GST_SECOND, 24000);
    fail_unless_equals_uint64 (GST_BUFFER_PTS (b) + GST_BUFFER_DURATION (b),
        at);
    fail_unless_equals_int (GST_BUFFER_FLAG_IS_SET (b,
            GST_BUFFER_FLAG_DISCONT) != 0, i == 0);
    if (i == 0)
      fail_unless_equals_uint64 (gst_buffer_get_size (b), 1365 * 2);
  }
}

GST_END_TEST;

GST_START_TEST (float_is_the_same_sound)
{
  g_autoptr (Run) a = speaking ("", "audio/x-raw,format=" GST_AUDIO_NE (S16));
  g_autoptr (Run) b = speaking ("", "audio/x-raw,format=" GST_AUDIO_NE (F32));
  gfloat peak = 0;

  say (a, 1);
  run_to_eos (a);
  say (b, 1);
  run_to_eos (b);
  fail_unless_equals_uint64 (bytes (b), 2 * bytes (a));
  fail_unless_equals_int (a->speech->len, b->speech->len);
  for (guint i = 0; i < a->speech->len; i++) {
    GstMapInfo x, y;

    gst_buffer_map (g_ptr_array_index (a->speech, i), &x, GST_MAP_READ);
    gst_buffer_map (g_ptr_array_index (b->speech, i), &y, GST_MAP_READ);
    for (gsize j = 0; j < x.size / 2; j++) {
      gfloat f = ((gfloat *) y.data)[j];

      fail_unless (ABS (((gint16 *) x.data)[j] - f * 32767.0f) <= 0.51f);
      peak = MAX (peak, ABS (f));
    }
    gst_buffer_unmap (g_ptr_array_index (a->speech, i), &x);
    gst_buffer_unmap (g_ptr_array_index (b->speech, i), &y);
  }
  fail_unless (peak > 0.01f, "silence");
}

GST_END_TEST;

GST_START_TEST (each_turn_begins_with_a_discont_behind_the_last)
{
  g_autoptr (Run) run = speaking ("", "audio/x-raw");
  guint n = 0;
  GstClockTime end = 0;

  say (run, 3);
  run_to_eos (run);
  fail_unless_equals_uint64 (bytes (run), 3 * (1920 * 10 - 555) * 2);
  for (guint i = 0; i < run->speech->len; i++) {
    GstBuffer *b = g_ptr_array_index (run->speech, i);

    n += GST_BUFFER_FLAG_IS_SET (b, GST_BUFFER_FLAG_DISCONT) != 0;
    fail_unless (GST_BUFFER_PTS (b) >= end);
    fail_unless (GST_BUFFER_PTS (b) <= end + 1);
    end = GST_BUFFER_PTS (b) + GST_BUFFER_DURATION (b);
  }
  fail_unless_equals_int (n, 3);
}

GST_END_TEST;

GST_START_TEST (an_unknown_voice_is_an_error_that_lists_the_voices)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (QomniModel) model = qomni_model_ref_or_load (path, NULL, NULL);
  const QomniConfig *config = qomni_model_config (model);
  g_autoptr (Run) run = speaking ("voice=nobody", "audio/x-raw");
  g_autoptr (GstBus) bus = gst_element_get_bus (run->pipeline);
  GstMessage *m;

  fail_unless_equals_int (gst_element_set_state (run->pipeline,
          GST_STATE_PAUSED), GST_STATE_CHANGE_FAILURE);
  m = gst_bus_timed_pop_filtered (bus, TIMEOUT, GST_MESSAGE_ERROR);
  run_take_message (run, m);
  gst_message_unref (m);
  assert_error (run, GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_SETTINGS);
  fail_unless (config->talker.n_voices > 0);
  for (gint i = 0; i < config->talker.n_voices; i++)
    fail_unless (strstr (run->error->message, config->talker.voices[i].name)
        != NULL, "%s", run->error->message);
}

GST_END_TEST;

GST_START_TEST (voices_differ)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (QomniModel) model = qomni_model_ref_or_load (path, NULL, NULL);
  const QomniTalkerConfig *talker = &qomni_model_config (model)->talker;
  GBytes *sound[2] = { NULL, NULL };

  fail_unless (talker->n_voices >= 2);
  for (guint i = 0; i < 2; i++) {
    g_autofree gchar *voice = g_strdup_printf ("voice=%s",
        talker->voices[i].name);
    g_autoptr (Run) run = speaking (voice, "audio/x-raw");
    GByteArray *all = g_byte_array_new ();

    say (run, 1);
    run_to_eos (run);
    for (guint j = 0; j < run->speech->len; j++) {
      GstMapInfo map;

      gst_buffer_map (g_ptr_array_index (run->speech, j), &map, GST_MAP_READ);
      g_byte_array_append (all, map.data, map.size);
      gst_buffer_unmap (g_ptr_array_index (run->speech, j), &map);
    }
    sound[i] = g_byte_array_free_to_bytes (all);
  }
  fail_if (g_bytes_equal (sound[0], sound[1]));
  g_bytes_unref (sound[0]);
  g_bytes_unref (sound[1]);
}

GST_END_TEST;

GST_START_TEST (a_model_without_speech_is_refused)
{
  g_autofree gchar *path = fixture ("tiny-thinking");
  g_autoptr (GstElement) talker = gst_element_factory_make ("qomnitalker",
      NULL);
  g_autoptr (GstBus) bus = gst_bus_new ();
  g_autoptr (GError) error = NULL;
  GstMessage *m;

  gst_element_set_bus (talker, bus);
  g_object_set (talker, "model", path, "engine-linger", (gint64) 0, NULL);
  fail_unless_equals_int (gst_element_set_state (talker, GST_STATE_READY),
      GST_STATE_CHANGE_FAILURE);
  m = gst_bus_timed_pop_filtered (bus, 0, GST_MESSAGE_ERROR);
  fail_unless (m != NULL);
  gst_message_parse_error (m, &error, NULL);
  gst_message_unref (m);
  fail_unless (g_error_matches (error, GST_LIBRARY_ERROR,
          GST_LIBRARY_ERROR_SETTINGS), "%s", error->message);
  gst_element_set_bus (talker, NULL);
  gst_element_set_state (talker, GST_STATE_NULL);
}

GST_END_TEST;

/* A talker fed with recorded rows of a turn. */
static GPtrArray *
record_rows (guint n_turns)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new ("fakesrc num-buffers=0 ! "
      "text/x-raw,format=utf8 ! qomnithinker name=t model=%s temperature=0 "
      "engine-linger=0 max-tokens=64 respond-on-eos=false t.hidden ! "
      "fakesink name=speech", path);

  say (run, n_turns);
  run_to_eos (run);
  return g_ptr_array_ref (run->speech);
}

static GstHarness *
talker_harness (void)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (QomniModel) model = qomni_model_ref_or_load (path, NULL, NULL);
  GstElement *talker = gst_element_factory_make ("qomnitalker", NULL);
  GstHarness *h;

  g_object_set (talker, "model", path, "engine-linger", (gint64) 0,
      "temperature", 0.0, "max-frames", 200, NULL);
  h = gst_harness_new_with_element (talker, "sink", "src");
  gst_object_unref (talker);
  gst_harness_set_src_caps (h, gst_qomni_model_embeddings_caps (model,
          QOMNI_MODALITY_THINKER));
  return h;
}

GST_START_TEST (an_interrupt_stops_one_reply_and_not_the_next)
{
  g_autoptr (GPtrArray) rows = record_rows (2);
  GstHarness *h = talker_harness ();
  GstBuffer *b;
  GstEvent *event;
  guint n_discont = 0;
  gboolean eos = FALSE, passed = FALSE;

  for (guint i = 0; i < rows->len; i++) {
    b = g_ptr_array_index (rows, i);
    if (gst_qomni_embeddings_buffer_get_turn_id (b) != 1)
      continue;
    gst_harness_push (h, gst_buffer_ref (b));
  }
  gst_buffer_unref (gst_harness_pull (h));
  gst_harness_push_event (h, gst_qomni_event_new_interrupt (FALSE, 1, "test"));
  while (gst_harness_buffers_in_queue (h) > 0)
    gst_buffer_unref (gst_harness_pull (h));

  for (guint i = 0; i < rows->len; i++) {
    b = g_ptr_array_index (rows, i);
    if (gst_qomni_embeddings_buffer_get_turn_id (b) == 2)
      gst_harness_push (h, gst_buffer_ref (b));
  }
  gst_harness_push_event (h, gst_event_new_eos ());
  while (!eos && (event = gst_harness_pull_event (h)) != NULL) {
    eos = GST_EVENT_TYPE (event) == GST_EVENT_EOS;
    passed |= gst_qomni_event_parse_interrupt (event, NULL, NULL);
    gst_event_unref (event);
  }
  fail_unless (eos && passed);
  while ((b = gst_harness_try_pull (h)) != NULL) {
    n_discont += GST_BUFFER_FLAG_IS_SET (b, GST_BUFFER_FLAG_DISCONT) != 0;
    gst_buffer_unref (b);
  }
  fail_unless_equals_int (n_discont, 1);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (a_flush_silences_and_keeps_the_users_turn)
{
  g_autoptr (GPtrArray) rows = record_rows (2);
  GstHarness *h = talker_harness ();
  GstSegment segment;
  GstBuffer *b;

  for (guint i = 0; i < rows->len; i++) {
    b = g_ptr_array_index (rows, i);
    if (gst_qomni_embeddings_buffer_get_turn_id (b) == 1)
      gst_harness_push (h, gst_buffer_ref (b));
  }
  gst_buffer_unref (gst_harness_pull (h));
  gst_harness_push_event (h, gst_event_new_flush_start ());
  gst_harness_push_event (h, gst_event_new_flush_stop (TRUE));
  while (gst_harness_buffers_in_queue (h) > 0)
    gst_buffer_unref (gst_harness_pull (h));
  gst_segment_init (&segment, GST_FORMAT_TIME);
  gst_harness_push_event (h, gst_event_new_segment (&segment));
  g_usleep (50000);
  fail_unless_equals_int (gst_harness_buffers_in_queue (h), 0);

  /* Its rows would have a hole in front, had the first turn been lost. */
  for (guint i = 0; i < rows->len; i++) {
    b = g_ptr_array_index (rows, i);
    if (gst_qomni_embeddings_buffer_get_turn_id (b) == 2)
      fail_unless_equals_int (gst_harness_push (h, gst_buffer_ref (b)),
          GST_FLOW_OK);
  }
  b = gst_harness_pull (h);
  fail_unless (b != NULL);
  fail_unless_equals_uint64 (GST_BUFFER_PTS (b), 0);
  gst_buffer_unref (b);
  gst_harness_teardown (h);
}

GST_END_TEST;

/* The prompt of a turn is sent once, whatever happens while it is on its way. */
GST_START_TEST (a_flush_while_loading_keeps_the_users_turn)
{
  g_autoptr (GPtrArray) rows = record_rows (2);

  for (guint delay = 0; delay < 10; delay++) {
    GstHarness *h = talker_harness ();
    g_autoptr (GstBus) bus = gst_bus_new ();
    GstSegment segment;
    GstBuffer *b;

    gst_element_set_bus (h->element, bus);
    gst_harness_push (h, gst_buffer_ref (g_ptr_array_index (rows, 0)));
    g_usleep (delay * 300);
    gst_harness_push_event (h, gst_event_new_flush_start ());
    gst_harness_push_event (h, gst_event_new_flush_stop (TRUE));
    gst_segment_init (&segment, GST_FORMAT_TIME);
    gst_harness_push_event (h, gst_event_new_segment (&segment));
    for (guint i = 0; i < rows->len; i++) {
      b = g_ptr_array_index (rows, i);
      if (gst_qomni_embeddings_buffer_get_turn_id (b) == 2)
        gst_harness_push (h, gst_buffer_ref (b));
    }
    b = gst_harness_pull (h);
    fail_unless (b != NULL, "silence after a flush");
    gst_buffer_unref (b);
    fail_unless (gst_bus_pop_filtered (bus, GST_MESSAGE_ERROR) == NULL);
    gst_harness_teardown (h);
  }
}

GST_END_TEST;

GST_START_TEST (speech_that_is_linked_late_begins_with_the_next_turn)
{
  g_autoptr (GPtrArray) rows = record_rows (3);
  GstHarness *h = talker_harness ();
  g_autoptr (GstPad) src = gst_element_get_static_pad (h->element, "src");
  g_autoptr (GstBus) bus = gst_bus_new ();
  GstBuffer *b;
  guint64 turn;

  gst_element_set_bus (h->element, bus);
  gst_pad_unlink (src, h->sinkpad);
  for (guint i = 0; i < rows->len; i++) {
    b = g_ptr_array_index (rows, i);
    turn = gst_qomni_embeddings_buffer_get_turn_id (b);
    if (turn == 2 && gst_qomni_embeddings_buffer_get_turn_id
        (g_ptr_array_index (rows, i - 1)) == 1)
      g_usleep (100000);        /* for the first turn to find nobody there */
    if (turn < 3)
      gst_harness_push (h, gst_buffer_ref (b));
  }
  fail_unless_equals_int (gst_pad_link (src, h->sinkpad), GST_PAD_LINK_OK);
  for (guint i = 0; i < rows->len; i++) {
    b = g_ptr_array_index (rows, i);
    if (gst_qomni_embeddings_buffer_get_turn_id (b) == 3)
      gst_harness_push (h, gst_buffer_ref (b));
  }
  b = gst_harness_pull (h);
  fail_unless (b != NULL, "no speech");
  gst_buffer_unref (b);
  fail_unless (gst_bus_pop_filtered (bus, GST_MESSAGE_ERROR) == NULL);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (null_while_speaking_is_quick)
{
  g_autoptr (GPtrArray) rows = record_rows (2);

  for (guint i = 0; i < 10; i++) {
    GstHarness *h = talker_harness ();
    gint64 begin;

    for (guint j = 0; j < rows->len; j++)
      gst_harness_push (h, gst_buffer_ref (g_ptr_array_index (rows, j)));
    g_usleep (i * 4000);
    begin = g_get_monotonic_time ();
    fail_unless_equals_int (gst_element_set_state (h->element,
            GST_STATE_NULL), GST_STATE_CHANGE_SUCCESS);
    fail_unless (g_get_monotonic_time () - begin < 2 * G_TIME_SPAN_SECOND);
    gst_harness_teardown (h);
  }
}

GST_END_TEST;

static Suite *
talker_suite (void)
{
  Suite *suite = suite_create ("talker");
  TCase *tc = tcase_create ("general");

  suite_add_tcase (suite, tc);
  tcase_add_test (tc, ten_frames_are_1920_times_ten_less_555_samples);
  tcase_add_test (tc, float_is_the_same_sound);
  tcase_add_test (tc, each_turn_begins_with_a_discont_behind_the_last);
  tcase_add_test (tc, an_unknown_voice_is_an_error_that_lists_the_voices);
  tcase_add_test (tc, voices_differ);
  tcase_add_test (tc, a_model_without_speech_is_refused);
  tcase_add_test (tc, an_interrupt_stops_one_reply_and_not_the_next);
  tcase_add_test (tc, a_flush_silences_and_keeps_the_users_turn);
  tcase_add_test (tc, a_flush_while_loading_keeps_the_users_turn);
  tcase_add_test (tc, speech_that_is_linked_late_begins_with_the_next_turn);
  tcase_add_test (tc, null_while_speaking_is_quick);
  return suite;
}

GST_CHECK_MAIN (talker);
