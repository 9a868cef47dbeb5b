/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnithinker: when a turn ends, what it holds, what leaves and in which order,
 * and that it can be stopped at any time. The tiny model's greedy replies are
 * those of the reference (tests/parity).
 */
#include "qomnicheck.h"

#include "gstqomniengine.h"
#include "gstqomnievents.h"
#include "gstqomnimeta.h"

#define QUESTION "What do you see? Be brief."

static GstHarness *
harness (const gchar * options)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *line = g_strdup_printf ("qomnithinker model=%s "
      "engine-linger=0 temperature=0 max-tokens=64 granularity=turn %s", path,
      options);
  g_autoptr (GError) error = NULL;
  GstElement *e = gst_parse_launch (line, &error);
  GstHarness *h;

  fail_unless (error == NULL, "%s", error ? error->message : "");
  h = gst_harness_new_with_element (e, "text_0", "text");
  gst_object_unref (e);
  gst_harness_set_src_caps_str (h, "text/x-raw,format=utf8");
  return h;
}

static GstBuffer *
text_buffer (const gchar * text, GstClockTime pts)
{
  GstBuffer *b = *text == '\0' ? gst_buffer_new ()
      : gst_buffer_new_memdup (text, strlen (text));

  GST_BUFFER_PTS (b) = pts;
  return b;
}

static gchar *
text_of (GstBuffer * b)
{
  GstMapInfo map;
  gchar *text;

  gst_buffer_map (b, &map, GST_MAP_READ);
  text = g_strndup ((const gchar *) map.data, map.size);
  gst_buffer_unmap (b, &map);
  return text;
}

static void
assert_reply (GstHarness * h, const gchar * want)
{
  g_autoptr (GstBuffer) b = gst_harness_pull (h);
  g_autofree gchar *text = NULL;

  fail_unless (b != NULL, "no reply in time");
  text = text_of (b);
  fail_unless_equals_string (text, want);
}

GST_START_TEST (a_text_is_answered_as_by_the_reference)
{
  g_autofree gchar *want = expected_text ("tiny-a", "text");
  GstHarness *h = harness ("");

  gst_harness_push (h, text_buffer (QUESTION "\n", 0));
  assert_reply (h, want);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (units_together_are_the_reply_and_contiguous)
{
  static const gchar *const names[] = { "token", "word", "sentence" };
  g_autofree gchar *want = expected_text ("tiny-a", "text");

  for (guint i = 0; i < G_N_ELEMENTS (names); i++) {
    g_autofree gchar *path = fixture ("tiny-a");
    g_autoptr (Run) run = run_new ("fakesrc num-buffers=0 ! "
        "text/x-raw,format=utf8 ! qomnithinker name=t model=%s temperature=0 "
        "engine-linger=0 max-tokens=64 granularity=%s respond-on-eos=false ! "
        "fakesink name=text", path, names[i]);
    g_autoptr (GstElement) t = gst_bin_get_by_name (GST_BIN (run->pipeline),
        "t");
    gboolean taken;
    GstClockTime at = 0;

    /* The text first: the end of the stream answers what is there. */
    gst_element_set_state (run->pipeline, GST_STATE_PAUSED);
    g_signal_emit_by_name (t, "send-text", QUESTION, NULL, &taken);
    fail_unless (taken);
    run_to_eos (run);
    fail_unless_equals_string (run->said->str, want);
    for (guint j = 0; j < run->text->len; j++) {
      GstBuffer *b = g_ptr_array_index (run->text, j);
      guint64 turn;
      gboolean final;
      const gchar *role;
      g_autofree gchar *text = text_of (b);

      fail_unless (g_utf8_validate (text, -1, NULL));
      fail_unless_equals_uint64 (GST_BUFFER_PTS (b), at);
      fail_unless (GST_BUFFER_DURATION_IS_VALID (b));
      at += GST_BUFFER_DURATION (b);
      fail_unless (gst_qomni_text_buffer_parse_meta (b, &turn, &final, &role));
      fail_unless_equals_uint64 (turn, 1);
      fail_unless_equals_int (final, j + 1 == run->text->len);
      fail_unless_equals_string (role, "assistant");
    }
    fail_unless (run->text->len > 1, "%s", names[i]);
  }
}

GST_END_TEST;

GST_START_TEST (events_come_in_order_and_eos_once_and_last)
{
  GstHarness *h = harness ("");
  GstEvent *event;
  GString *order = g_string_new (NULL);
  guint n_eos = 0;

  gst_harness_push (h, text_buffer (QUESTION, 0));
  gst_harness_push_event (h, gst_event_new_eos ());
  gst_buffer_unref (gst_harness_pull (h));
  while (n_eos == 0 && (event = gst_harness_pull_event (h)) != NULL) {
    g_string_append_printf (order, "%s ", GST_EVENT_TYPE_NAME (event));
    n_eos += GST_EVENT_TYPE (event) == GST_EVENT_EOS;
    gst_event_unref (event);
  }
  fail_unless_equals_string (order->str, "stream-start caps segment gap eos ");
  g_usleep (50000);
  fail_unless (gst_harness_try_pull_event (h) == NULL);
  g_string_free (order, TRUE);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (each_text_is_a_turn_with_the_history_of_those_before)
{
  GstHarness *h = harness ("max-tokens=8");
  g_autoptr (GstBuffer) a = NULL, b = NULL;
  g_autofree gchar *x = NULL, *y = NULL;
  guint64 turn;

  gst_harness_push (h, text_buffer (QUESTION, 0));
  gst_harness_push (h, text_buffer (QUESTION, GST_SECOND));
  a = gst_harness_pull (h);
  b = gst_harness_pull (h);
  x = text_of (a);
  y = text_of (b);
  fail_if (g_str_equal (x, y), "the second turn knows nothing of the first");
  fail_unless (gst_qomni_text_buffer_parse_meta (b, &turn, NULL, NULL));
  fail_unless_equals_uint64 (turn, 2);
  fail_unless (GST_BUFFER_PTS (b) >= GST_SECOND);
  fail_unless (GST_BUFFER_PTS (b) >= GST_BUFFER_PTS (a)
      + GST_BUFFER_DURATION (a));
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (reset_forgets_the_conversation)
{
  GstHarness *h = harness ("max-tokens=8");
  g_autofree gchar *x = NULL, *y = NULL;
  GstBuffer *b;

  gst_harness_push (h, text_buffer (QUESTION, 0));
  b = gst_harness_pull (h);
  x = text_of (b);
  gst_buffer_unref (b);
  g_signal_emit_by_name (h->element, "reset", TRUE);
  gst_harness_push (h, text_buffer (QUESTION, 0));
  b = gst_harness_pull (h);
  y = text_of (b);
  gst_buffer_unref (b);
  fail_unless_equals_string (x, y);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (a_second_run_is_like_the_first)
{
  g_autofree gchar *want = expected_text ("tiny-a", "text");
  GstHarness *h = harness ("");

  gst_harness_push (h, text_buffer (QUESTION, 0));
  assert_reply (h, want);
  gst_harness_push (h, text_buffer ("and more", 0));
  gst_element_set_state (h->element, GST_STATE_READY);
  while (gst_harness_buffers_in_queue (h) > 0)
    gst_buffer_unref (gst_harness_pull (h));
  gst_element_set_state (h->element, GST_STATE_PLAYING);
  gst_harness_set_src_caps_str (h, "text/x-raw,format=utf8");
  gst_harness_push (h, text_buffer (QUESTION, 0));
  assert_reply (h, want);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (several_parts_of_text_are_one_turn)
{
  g_autofree gchar *want = expected_text ("tiny-a", "text");
  GstHarness *h = harness ("text-ends-turn=false");

  gst_harness_push (h, text_buffer ("What do you see? ", 0));
  gst_harness_push (h, text_buffer ("Be brief.", 0));
  g_usleep (20000);
  fail_unless_equals_int (gst_harness_buffers_received (h), 0);
  gst_harness_push_event (h, gst_qomni_event_new_turn_end (0));
  assert_reply (h, want);

  gst_harness_push (h, text_buffer ("More", 0));
  g_signal_emit_by_name (h->element, "end-turn");
  gst_buffer_unref (gst_harness_pull (h));

  gst_harness_push (h, text_buffer ("Last", 0));
  gst_harness_push_event (h, gst_event_new_eos ());
  gst_buffer_unref (gst_harness_pull (h));
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (nothing_asked_is_nothing_answered)
{
  GstHarness *h = harness ("");
  GstEvent *event;
  gboolean eos = FALSE;

  gst_harness_push (h, text_buffer ("\n", 0));
  gst_harness_push (h, text_buffer ("", 0));
  gst_harness_push_event (h, gst_event_new_eos ());
  while (!eos && (event = gst_harness_pull_event (h)) != NULL) {
    eos = GST_EVENT_TYPE (event) == GST_EVENT_EOS;
    gst_event_unref (event);
  }
  fail_unless (eos);
  fail_unless_equals_int (gst_harness_buffers_received (h), 0);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (broken_text_is_repaired_with_a_warning)
{
  GstHarness *h = harness ("max-tokens=4");
  g_autoptr (GstBus) bus = gst_bus_new ();
  GstMessage *m;

  gst_element_set_bus (h->element, bus);
  gst_harness_push (h, text_buffer ("a\xff\xfe" "b", 0));
  m = gst_bus_timed_pop_filtered (bus, TIMEOUT, GST_MESSAGE_WARNING);
  fail_unless (m != NULL);
  gst_message_unref (m);
  gst_buffer_unref (gst_harness_pull (h));
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (too_much_text_is_left_out_with_a_warning)
{
  GstHarness *h = harness ("max-tokens=4");
  g_autoptr (GstBus) bus = gst_bus_new ();
  GstMessage *m;
  GstBuffer *b = gst_buffer_new_allocate (NULL, 10 << 20, NULL);

  gst_element_set_bus (h->element, bus);
  gst_buffer_memset (b, 0, 'x', -1);
  fail_unless_equals_int (gst_harness_push (h, b), GST_FLOW_OK);
  m = gst_bus_timed_pop_filtered (bus, TIMEOUT, GST_MESSAGE_WARNING);
  fail_unless (m != NULL);
  gst_message_unref (m);
  gst_harness_push (h, text_buffer ("short", 0));
  gst_buffer_unref (gst_harness_pull (h));
  fail_unless_equals_int (gst_harness_buffers_received (h), 1);
  gst_harness_teardown (h);
}

GST_END_TEST;

/* Sampled from a flat distribution, so that it does not end soon. */
static GstHarness *
chatterbox (void)
{
  return harness ("temperature=5 max-tokens=100000 granularity=token");
}

GST_START_TEST (interrupt_ends_the_reply_and_the_next_turn_works)
{
  GstHarness *h = chatterbox ();
  g_autoptr (GstBus) bus = gst_bus_new ();
  GstMessage *m;
  guint64 turn = 0;
  gboolean cancelled = FALSE, interrupted = FALSE;

  gst_element_set_bus (h->element, bus);
  gst_harness_push (h, text_buffer (QUESTION, 0));
  for (guint i = 0; i < 5; i++)
    gst_buffer_unref (gst_harness_pull (h));
  g_signal_emit_by_name (h->element, "interrupt", "test");
  while (!cancelled
      && (m = gst_bus_timed_pop_filtered (bus, TIMEOUT,
              GST_MESSAGE_ELEMENT)) != NULL) {
    const GstStructure *s = gst_message_get_structure (m);

    interrupted |= gst_structure_has_name (s, "qomni/interrupted")
        && gst_structure_has_field (s, "running-time")
        && gst_structure_has_field (s, "stream-time");
    if (gst_structure_has_name (s, "qomni/response-done"))
      cancelled = g_strcmp0 (gst_structure_get_string (s, "finish-reason"),
          "cancelled") == 0;
    gst_message_unref (m);
  }
  fail_unless (cancelled && interrupted);

  while (gst_harness_buffers_in_queue (h) > 0)
    gst_buffer_unref (gst_harness_pull (h));
  g_object_set (h->element, "max-tokens", 3, NULL);
  gst_harness_push (h, text_buffer (QUESTION, 0));
  while (turn < 2) {
    GstBuffer *b = gst_harness_pull (h);

    fail_unless (b != NULL, "no reply to the second turn");
    gst_qomni_text_buffer_parse_meta (b, &turn, NULL, NULL);
    gst_buffer_unref (b);
  }
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (a_flush_ends_the_reply_and_the_next_turn_works)
{
  GstHarness *h = chatterbox ();
  GstSegment segment;
  GstBuffer *b;
  guint64 turn;

  gst_harness_push (h, text_buffer (QUESTION, 0));
  for (guint i = 0; i < 5; i++)
    gst_buffer_unref (gst_harness_pull (h));
  gst_harness_push_event (h, gst_event_new_flush_start ());
  gst_harness_push_event (h, gst_event_new_flush_stop (TRUE));
  /* Nothing of before comes after. */
  while (gst_harness_buffers_in_queue (h) > 0)
    gst_buffer_unref (gst_harness_pull (h));
  g_object_set (h->element, "max-tokens", 3, NULL);
  gst_segment_init (&segment, GST_FORMAT_TIME);
  gst_harness_push_event (h, gst_event_new_segment (&segment));
  gst_harness_push (h, text_buffer (QUESTION, 0));
  b = gst_harness_pull (h);
  fail_unless (gst_qomni_text_buffer_parse_meta (b, &turn, NULL, NULL));
  fail_unless_equals_uint64 (turn, 2);
  fail_unless_equals_uint64 (GST_BUFFER_PTS (b), 0);
  gst_buffer_unref (b);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (a_pad_that_is_released_in_a_flush_ends_it)
{
  GstHarness *h = harness ("max-tokens=4");
  GstPad *other = gst_element_request_pad_simple (h->element, "text_1");

  gst_pad_send_event (other, gst_event_new_flush_start ());
  gst_element_release_request_pad (h->element, other);
  gst_object_unref (other);
  gst_harness_push (h, text_buffer (QUESTION, 0));
  g_signal_emit_by_name (h->element, "end-turn");
  gst_buffer_unref (gst_harness_pull (h));
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (null_in_any_phase_is_quick)
{
  for (guint i = 0; i < 20; i++) {
    GstHarness *h = chatterbox ();
    gint64 begin;

    gst_harness_push (h, text_buffer (QUESTION, 0));
    g_usleep (i * 2500);
    begin = g_get_monotonic_time ();
    fail_unless_equals_int (gst_element_set_state (h->element,
            GST_STATE_NULL), GST_STATE_CHANGE_SUCCESS);
    fail_unless (g_get_monotonic_time () - begin < 2 * G_TIME_SPAN_SECOND);
    gst_harness_teardown (h);
  }
}

GST_END_TEST;

GST_START_TEST (latency_is_none_when_not_live)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new ("fakesrc num-buffers=0 ! "
      "text/x-raw,format=utf8 ! qomnithinker name=t model=%s engine-linger=0 ! "
      "fakesink name=text", path);
  g_autoptr (GstElement) t = gst_bin_get_by_name (GST_BIN (run->pipeline), "t");
  g_autoptr (GstPad) src = gst_element_get_static_pad (t, "text");
  g_autoptr (GstQuery) query = gst_query_new_latency ();
  GstClockTime min, max;
  gboolean live;

  run_to_eos (run);
  fail_unless (gst_pad_query (src, query));
  gst_query_parse_latency (query, &live, &min, &max);
  fail_if (live);
  fail_unless_equals_uint64 (min, 0);
  fail_unless_equals_uint64 (max, GST_CLOCK_TIME_NONE);
}

GST_END_TEST;

GST_START_TEST (embeddings_of_another_model_are_refused_by_name)
{
  g_autofree gchar *a = fixture ("tiny-a");
  g_autofree gchar *b = fixture ("tiny-b");
  g_autoptr (Run) run = run_new ("audiotestsrc num-buffers=10 ! audioconvert ! "
      "audioresample ! queue ! qomniaudioenc model=%s engine-linger=0 ! "
      "qomnithinker model=%s engine-linger=0 ! fakesink", a, b);

  run_play (run);
  assert_error (run, GST_LIBRARY_ERROR, GST_LIBRARY_ERROR_SETTINGS);
  fail_unless (strstr (run->error->message, "fingerprint") != NULL);
  fail_unless (g_str_has_prefix (GST_OBJECT_NAME (run->culprit),
          "qomnithinker"));
}

GST_END_TEST;

GST_START_TEST (a_missing_model_fails_the_state_change)
{
  static const gchar *const names[] = {
    "qomnithinker", "qomnitalker", "qomniaudioenc", "qomnivisionenc",
    "qomnibin",
  };

  for (guint i = 0; i < G_N_ELEMENTS (names); i++) {
    g_autoptr (GstElement) e = gst_element_factory_make (names[i], NULL);
    g_autoptr (GstBus) bus = gst_bus_new ();
    g_autoptr (GError) error = NULL;
    GstMessage *m;

    gst_element_set_bus (e, bus);
    g_object_set (e, "model", "/nowhere/at/all", NULL);
    fail_unless_equals_int (gst_element_set_state (e, GST_STATE_READY),
        GST_STATE_CHANGE_FAILURE);
    m = gst_bus_timed_pop_filtered (bus, 0, GST_MESSAGE_ERROR);
    fail_unless (m != NULL, "%s said nothing", names[i]);
    gst_message_parse_error (m, &error, NULL);
    gst_message_unref (m);
    fail_unless (g_error_matches (error, GST_RESOURCE_ERROR,
            GST_RESOURCE_ERROR_NOT_FOUND), "%s", error->message);
    fail_unless (gst_bus_pop_filtered (bus, GST_MESSAGE_ERROR) == NULL);
    gst_element_set_bus (e, NULL);
    gst_element_set_state (e, GST_STATE_NULL);
  }
}

GST_END_TEST;

GST_START_TEST (a_bad_model_does_not_spoil_a_good_one)
{
  g_autofree gchar *want = expected_text ("tiny-a", "text");
  g_autofree gchar *path = fixture ("tiny-a");
  GstElement *t = gst_element_factory_make ("qomnithinker", NULL);
  GstHarness *h;

  g_object_set (t, "model", "/nowhere", "engine-linger", (gint64) 0,
      "temperature", 0.0, "max-tokens", 64, NULL);
  gst_util_set_object_arg (G_OBJECT (t), "granularity", "turn");
  fail_unless_equals_int (gst_element_set_state (t, GST_STATE_PAUSED),
      GST_STATE_CHANGE_FAILURE);
  gst_element_set_state (t, GST_STATE_NULL);
  g_object_set (t, "model", path, NULL);
  h = gst_harness_new_with_element (t, "text_0", "text");
  gst_object_unref (t);
  gst_harness_set_src_caps_str (h, "text/x-raw,format=utf8");
  gst_harness_push (h, text_buffer (QUESTION, 0));
  assert_reply (h, want);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (progress_tells_of_the_load)
{
  GstHarness *h;
  g_autoptr (GstBus) bus = gst_bus_new ();
  g_autofree gchar *path = fixture ("tiny-a");
  GstElement *t = gst_element_factory_make ("qomnithinker", NULL);
  GString *types = g_string_new (NULL);
  GstProgressType type = GST_PROGRESS_TYPE_START;
  GstMessage *m;

  gst_element_set_bus (t, bus);
  g_object_set (t, "model", path, "engine-linger", (gint64) 0, NULL);
  h = gst_harness_new_with_element (t, "text_0", "text");
  gst_object_unref (t);
  while (type != GST_PROGRESS_TYPE_COMPLETE
      && (m = gst_bus_timed_pop_filtered (bus, TIMEOUT,
              GST_MESSAGE_PROGRESS | GST_MESSAGE_ERROR)) != NULL) {
    g_autofree gchar *code = NULL;

    gst_message_parse_progress (m, &type, &code, NULL);
    fail_unless_equals_string (code, "load");
    if (type != GST_PROGRESS_TYPE_CONTINUE)
      g_string_append_printf (types, "%d ", type);
    gst_message_unref (m);
  }
  fail_unless_equals_int (type, GST_PROGRESS_TYPE_COMPLETE);
  fail_unless_equals_string (types->str, "0 2 ");
  g_string_free (types, TRUE);
  gst_harness_teardown (h);
}

GST_END_TEST;

GST_START_TEST (properties_hold_what_is_set)
{
  GstElement *t = gst_element_factory_make ("qomnithinker", NULL);
  g_autofree gchar *prompt = NULL;
  gdouble temperature;
  guint64 seed;
  gint tokens;
  GstStructure *stats;

  g_object_get (t, "temperature", &temperature, "max-tokens", &tokens, NULL);
  fail_unless_equals_float (temperature, -1);
  fail_unless_equals_int (tokens, 0);
  g_object_set (t, "prompt", "hm?", "temperature", 0.5, "seed",
      G_GUINT64_CONSTANT (12345678901), "max-tokens", 9, NULL);
  g_object_get (t, "prompt", &prompt, "temperature", &temperature, "seed",
      &seed, "max-tokens", &tokens, "stats", &stats, NULL);
  fail_unless_equals_string (prompt, "hm?");
  fail_unless_equals_float (temperature, 0.5);
  fail_unless_equals_uint64 (seed, G_GUINT64_CONSTANT (12345678901));
  fail_unless_equals_int (tokens, 9);
  fail_unless (gst_structure_has_name (stats,
          "application/x-qomni-thinker-stats"));
  gst_structure_free (stats);
  gst_object_unref (t);
}

GST_END_TEST;

GST_START_TEST (hidden_rows_are_a_whole_turn)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new ("fakesrc num-buffers=0 ! "
      "text/x-raw,format=utf8 ! qomnithinker name=t model=%s temperature=0 "
      "engine-linger=0 max-tokens=6 respond-on-eos=false  t.text ! "
      "fakesink name=text  t.hidden ! fakesink name=speech", path);
  g_autoptr (GstElement) t = gst_bin_get_by_name (GST_BIN (run->pipeline), "t");
  gboolean taken;
  guint i;

  gst_element_set_state (run->pipeline, GST_STATE_PAUSED);
  g_signal_emit_by_name (t, "send-text", QUESTION, NULL, &taken);
  run_to_eos (run);
  fail_unless (run->speech->len >= 4);
  for (i = 0; i < run->speech->len; i++) {
    GstBuffer *b = g_ptr_array_index (run->speech, i);
    g_autoptr (QomniEmbeddings) e = gst_qomni_embeddings_from_buffer (b, NULL);
    QomniRowsKind want = i == 0 ? QOMNI_ROWS_PROMPT : i == 1 ? QOMNI_ROWS_HEADER
        : i + 1 == run->speech->len ? QOMNI_ROWS_END : QOMNI_ROWS_REPLY;

    fail_unless (e != NULL);
    fail_unless_equals_int (e->rows_kind, want);
    fail_unless_equals_uint64 (gst_qomni_embeddings_buffer_get_turn_id (b), 1);
  }
}

GST_END_TEST;

GST_START_TEST (turn_messages_tell_what_happened)
{
  g_autofree gchar *want = expected_text ("tiny-a", "audio-1.01s");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = fixture ("media/s101.wav");
  g_autoptr (Run) run = run_new ("filesrc location=%s ! wavparse ! "
      "audioconvert ! audioresample ! queue ! qomniaudioenc engine-linger=0 ! "
      "qomnithinker model=%s engine-linger=0 temperature=0 max-tokens=24 "
      "prompt=\"What do you hear?\" ! fakesink name=text", wav, path);
  const GstStructure *s;
  guint64 id, start, end;
  gint64 tokens;
  GstBuffer *b;

  run_to_eos (run);
  fail_unless_equals_string (run->said->str, want);
  fail_unless (run_message (run, "qomni/turn-start", 0) != NULL);
  fail_unless (run_message (run, "qomni/response-start", 0) != NULL);
  s = run_message (run, "qomni/response-done", 0);
  fail_unless (s != NULL);
  fail_unless (run_message (run, "qomni/response-done", 1) == NULL);
  fail_unless_equals_string (gst_structure_get_string (s, "text"), want);
  fail_unless_equals_string (gst_structure_get_string (s, "finish-reason"),
      "length");
  fail_unless (gst_structure_get_uint64 (s, "turn-id", &id));
  fail_unless_equals_uint64 (id, 1);
  fail_unless (gst_structure_get_int64 (s, "tokens", &tokens));
  fail_unless_equals_int64 (tokens, 24);
  fail_unless (gst_structure_get_uint64 (s, "evidence-start", &start));
  fail_unless (gst_structure_get_uint64 (s, "evidence-end", &end));
  fail_unless_equals_uint64 (start, 0);
  fail_unless (end > GST_SECOND && end < GST_SECOND * 11 / 10);
  /* The reply begins where the question ended. */
  b = g_ptr_array_index (run->text, 0);
  fail_unless_equals_uint64 (GST_BUFFER_PTS (b), end);
}

GST_END_TEST;

static Suite *
thinker_suite (void)
{
  Suite *suite = suite_create ("thinker");
  TCase *tc = tcase_create ("general");

  suite_add_tcase (suite, tc);
  tcase_add_test (tc, a_text_is_answered_as_by_the_reference);
  tcase_add_test (tc, units_together_are_the_reply_and_contiguous);
  tcase_add_test (tc, events_come_in_order_and_eos_once_and_last);
  tcase_add_test (tc, each_text_is_a_turn_with_the_history_of_those_before);
  tcase_add_test (tc, reset_forgets_the_conversation);
  tcase_add_test (tc, a_second_run_is_like_the_first);
  tcase_add_test (tc, several_parts_of_text_are_one_turn);
  tcase_add_test (tc, nothing_asked_is_nothing_answered);
  tcase_add_test (tc, broken_text_is_repaired_with_a_warning);
  tcase_add_test (tc, too_much_text_is_left_out_with_a_warning);
  tcase_add_test (tc, interrupt_ends_the_reply_and_the_next_turn_works);
  tcase_add_test (tc, a_flush_ends_the_reply_and_the_next_turn_works);
  tcase_add_test (tc, a_pad_that_is_released_in_a_flush_ends_it);
  tcase_add_test (tc, null_in_any_phase_is_quick);
  tcase_add_test (tc, latency_is_none_when_not_live);
  tcase_add_test (tc, embeddings_of_another_model_are_refused_by_name);
  tcase_add_test (tc, a_missing_model_fails_the_state_change);
  tcase_add_test (tc, a_bad_model_does_not_spoil_a_good_one);
  tcase_add_test (tc, progress_tells_of_the_load);
  tcase_add_test (tc, properties_hold_what_is_set);
  tcase_add_test (tc, hidden_rows_are_a_whole_turn);
  tcase_add_test (tc, turn_messages_tell_what_happened);
  return suite;
}

GST_CHECK_MAIN (thinker);
