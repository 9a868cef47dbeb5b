/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Whole pipelines, as somebody would type them: files through demuxers and
 * decoders into qomnibin, text from a pipe, speech into files, models shared.
 */
#include "qomnicheck.h"

#include <fcntl.h>
#include <unistd.h>

#include "gstqomniengine.h"
#include "gstqomnimeta.h"

#define BIN "qomnibin name=q model=%s engine-linger=0 temperature=0 "
#define PICTURE "Describe the picture. Be brief."
#define SOUND "What do you hear?"
#define VIDEO "Describe the video."

static QomniModel *
open_model (const gchar * name)
{
  g_autofree gchar *path = fixture (name);
  QomniModel *model = qomni_model_ref_or_load (path, NULL, NULL);

  fail_unless (model != NULL);
  return model;
}

/* The read end of a pipe that holds `text` and then ends. */
static gint
pipe_with (const gchar * text)
{
  gint fds[2];

  fail_unless (pipe (fds) == 0);
  fail_unless (write (fds[1], text, strlen (text)) == (gssize) strlen (text));
  close (fds[1]);
  return fds[0];
}

GST_START_TEST (a_wav_file_is_heard_as_by_the_reference)
{
  g_autofree gchar *want = expected_text ("tiny-a", "audio-1.01s");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = fixture ("media/s101.wav");
  g_autoptr (Run) run = run_new ("filesrc location=%s ! decodebin ! "
      BIN "max-tokens=24 prompt=\"" SOUND "\" ! fakesink name=text", wav, path);

  run_to_eos (run);
  fail_unless_equals_string (run->said->str, want);
  fail_unless (run_message (run, "qomni/response-done", 1) == NULL);
}

GST_END_TEST;

GST_START_TEST (a_picture_is_seen_as_by_the_reference)
{
  g_autofree gchar *want = expected_text ("tiny-a", "image-odd");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *png = fixture ("media/i51x37.png");
  g_autoptr (Run) run = run_new ("filesrc location=%s ! decodebin ! "
      BIN "max-tokens=24 prompt=\"" PICTURE "\" ! fakesink name=text", png,
      path);

  run_to_eos (run);
  fail_unless_equals_string (run->said->str, want);
}

GST_END_TEST;

GST_START_TEST (a_question_from_a_pipe_waits_for_the_sound)
{
  g_autofree gchar *want = expected_text ("tiny-a", "audio-1.01s");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = fixture ("media/s101.wav");
  gint fd = pipe_with (SOUND "\n");
  g_autoptr (Run) run = run_new (BIN "max-tokens=24 "
      "filesrc location=%s ! decodebin ! q.audio_0 "
      "fdsrc fd=%d ! q.text_0 q.text ! fakesink name=text", path, wav, fd);

  run_to_eos (run);
  fail_unless_equals_string (run->said->str, want);
  close (fd);
}

GST_END_TEST;

GST_START_TEST (further_texts_are_further_turns)
{
  g_autofree gchar *want = expected_text ("tiny-a", "audio-1.01s");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = fixture ("media/s101.wav");
  gint fd = pipe_with ("What do you hear?And whatever now?");
  /* 17 bytes each */
  g_autoptr (Run) run = run_new (BIN "max-tokens=24 granularity=turn "
      "filesrc location=%s ! wavparse ! q.audio_0 "
      "fdsrc fd=%d blocksize=17 ! q.text_0 q.text ! fakesink name=text", path,
      wav, fd);
  GstMapInfo map;

  run_to_eos (run);
  fail_unless_equals_int (run->text->len, 2);
  gst_buffer_map (g_ptr_array_index (run->text, 0), &map, GST_MAP_READ);
  fail_unless_equals_int (map.size, strlen (want));
  fail_unless (memcmp (map.data, want, map.size) == 0);
  gst_buffer_unmap (g_ptr_array_index (run->text, 0), &map);
  close (fd);
}

GST_END_TEST;

/* Video and sound of one file; which of the two pads comes first, and that
 * the sound belongs to the picture. */
static gchar *
watch (const gchar * file, const gchar * links, gboolean in_video)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *sub = g_build_filename ("media", file, NULL);
  g_autofree gchar *media = fixture (sub);
  g_autoptr (Run) run = run_new (BIN "max-tokens=24 min-pixels=1024 "
      "max-pixels=16384 use-audio-in-video=%s prompt=\"" VIDEO "\" "
      "filesrc location=%s ! decodebin name=d %s "
      "q.text ! fakesink name=text", path, in_video ? "true" : "false", media,
      links);

  run_to_eos (run);
  fail_unless (run_message (run, "qomni/response-done", 0) != NULL);
  fail_unless (run_message (run, "qomni/response-done", 1) == NULL,
      "more than one turn");
  return g_strdup (run->said->str);
}

GST_START_TEST (a_film_is_one_turn_whichever_pad_comes_first)
{
  g_autofree gchar *a = watch ("v10av.avi", "d. ! q.video_0 d. ! q.audio_0",
      TRUE);
  g_autofree gchar *b = watch ("v10av.avi", "d. ! q.audio_0 d. ! q.video_0",
      TRUE);
  g_autofree gchar *c = watch ("v10av.avi", "d. ! q.video_0 d. ! q.audio_0",
      FALSE);
  g_autofree gchar *d = watch ("v10av.avi", "d. ! queue ! q.video_0 "
      "d. ! audioconvert ! fakesink", FALSE);

  fail_unless (strlen (a) > 0);
  fail_unless_equals_string (a, b);
  fail_if (g_str_equal (a, c), "use-audio-in-video makes no difference");
  fail_if (g_str_equal (c, d), "the sound makes no difference");
}

GST_END_TEST;

GST_START_TEST (matroska_works_too)
{
  g_autofree gchar *a = watch ("v12av.mkv", "d. ! q.video_0 d. ! q.audio_0",
      TRUE);

  fail_unless (strlen (a) > 0);
}

GST_END_TEST;

GST_START_TEST (a_pad_that_is_never_linked_does_not_stall)
{
  g_autofree gchar *want = expected_text ("tiny-a", "audio-1.01s");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = fixture ("media/s101.wav");
  g_autoptr (Run) run = run_new ("filesrc location=%s ! wavparse ! q.audio_0 "
      BIN "max-tokens=24 prompt=\"" SOUND "\" ! fakesink name=text", wav,
      path);
  g_autoptr (GstElement) q = gst_bin_get_by_name (GST_BIN (run->pipeline), "q");
  g_autoptr (GstPad) video = gst_element_request_pad_simple (q, "video_%u");
  g_autoptr (GstPad) text = gst_element_request_pad_simple (q, "text_%u");
  g_autoptr (GstPad) audio = gst_element_request_pad_simple (q, "audio_%u");

  fail_unless (video != NULL && text != NULL);
  fail_unless_equals_string (GST_PAD_NAME (audio), "audio_1");
  run_to_eos (run);
  fail_unless_equals_string (run->said->str, want);
}

GST_END_TEST;

GST_START_TEST (pads_can_be_released)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new ("audiotestsrc num-buffers=5 ! q.audio_0 "
      BIN "max-tokens=4 prompt=hm ! fakesink name=text", path);
  g_autoptr (GstElement) q = gst_bin_get_by_name (GST_BIN (run->pipeline), "q");
  GstPad *video = gst_element_request_pad_simple (q, "video_%u");
  GstPad *speech = gst_element_request_pad_simple (q, "speech");

  fail_unless (video != NULL && speech != NULL);
  fail_unless (gst_bin_get_by_name (GST_BIN (q), "talker") != NULL);
  gst_object_unref (gst_bin_get_by_name (GST_BIN (q), "talker"));
  gst_object_unref (gst_bin_get_by_name (GST_BIN (q), "talker"));
  gst_element_release_request_pad (q, video);
  gst_element_release_request_pad (q, speech);
  gst_object_unref (video);
  gst_object_unref (speech);
  fail_unless (gst_bin_get_by_name (GST_BIN (q), "talker") == NULL);
  fail_unless (gst_bin_get_by_name (GST_BIN (q), "visionenc0") == NULL);
  run_to_eos (run);
}

GST_END_TEST;

/* The text's thread waits in the thinker, the sound's in its queue; neither may
 * hold up who takes the pad away. */
GST_START_TEST (pads_can_be_released_while_their_threads_wait)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new (BIN "audiotestsrc is-live=true ! q.audio_0 "
      "fakesrc sizetype=fixed sizemax=3 filltype=pattern ! "
      "text/x-raw,format=utf8 ! q.text_0 "
      "q.text ! fakesink name=text", path);
  g_autoptr (GstElement) q = gst_bin_get_by_name (GST_BIN (run->pipeline), "q");
  static const gchar *const names[] = { "text_0", "audio_0" };

  gst_element_set_state (run->pipeline, GST_STATE_PLAYING);
  g_usleep (150000);
  for (guint i = 0; i < G_N_ELEMENTS (names); i++) {
    g_autoptr (GstPad) pad = gst_element_get_static_pad (q, names[i]);

    gst_element_release_request_pad (q, pad);
    fail_unless (gst_element_get_static_pad (q, names[i]) == NULL);
  }
}

GST_END_TEST;

GST_START_TEST (a_sink_that_has_enough_ends_the_pipeline)
{
  g_autofree gchar *path = fixture ("tiny-a");

  for (guint i = 0; i < 2; i++) {
    gint fd = pipe_with ("What do you see? Be brief.");
    g_autoptr (Run) run = run_new ("fdsrc fd=%d ! " BIN "max-tokens=64 "
        "granularity=token talker::temperature=0 talker::max-frames=40 "
        "q.text ! fakesink name=text %s q.speech ! fakesink name=speech %s", fd,
        path, i == 0 ? "num-buffers=2" : "", i == 1 ? "num-buffers=2" : "");

    run_to_eos (run);
    fail_unless_equals_int ((i == 0 ? run->text : run->speech)->len, 2);
    fail_unless ((i == 0 ? run->speech : run->text)->len > 2);
    close (fd);
  }
}

GST_END_TEST;

GST_START_TEST (rates_that_no_resampler_has_memory_for_are_refused)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new (BIN "! fakesink", path);
  g_autoptr (GstElement) q = gst_bin_get_by_name (GST_BIN (run->pipeline), "q");
  g_autoptr (GstPad) pad = gst_element_request_pad_simple (q, "audio_%u");
  static const gint rates[] = { 8000, 384000, G_MAXINT };

  for (guint i = 0; i < G_N_ELEMENTS (rates); i++) {
    g_autoptr (GstCaps) caps = gst_caps_new_simple ("audio/x-raw",
        "format", G_TYPE_STRING, "S16LE", "layout", G_TYPE_STRING,
        "interleaved", "channels", G_TYPE_INT, 2, "channel-mask",
        GST_TYPE_BITMASK, (guint64) 3, "rate", G_TYPE_INT, rates[i], NULL);

    fail_unless_equals_int (gst_pad_query_accept_caps (pad, caps),
        rates[i] != G_MAXINT);
  }
}

GST_END_TEST;

GST_START_TEST (seeks_at_any_time_do_not_lose_what_the_talker_needs)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = fixture ("media/s101.wav");
  g_autoptr (Run) run = run_new ("filesrc location=%s ! wavparse ! q.audio_0 "
      BIN "max-tokens=20 granularity=token prompt=\"" SOUND "\" "
      "talker::max-frames=4 q.text ! queue ! fakesink name=text "
      "q.speech ! queue ! fakesink name=speech", wav, path);

  gst_element_set_state (run->pipeline, GST_STATE_PLAYING);
  gst_element_get_state (run->pipeline, NULL, NULL, TIMEOUT);
  for (guint i = 0; i < 40; i++) {
    gst_element_seek_simple (run->pipeline, GST_FORMAT_TIME,
        GST_SEEK_FLAG_FLUSH, i * 10 * GST_MSECOND);
    g_usleep (i % 10 * 1000);
  }
  run_to_eos (run);
}

GST_END_TEST;

GST_START_TEST (speech_is_written_to_a_file)
{
  g_autofree gchar *want = expected_text ("tiny-a", "text");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = g_build_filename (g_get_tmp_dir (),
      "qomni-test-XXXXXX", NULL);
  gint fd = pipe_with ("What do you see? Be brief.");
  gint out = mkstemp (wav);
  g_autoptr (Run) run = run_new ("fdsrc fd=%d ! " BIN "max-tokens=64 "
      "talker::temperature=0 talker::max-frames=40 q.text ! fakesink name=text "
      "q.speech ! wavenc ! filesink location=%s", fd, path, wav);
  g_autofree gchar *contents = NULL;
  gsize length;

  run_to_eos (run);
  fail_unless_equals_string (run->said->str, want);
  fail_unless (g_file_get_contents (wav, &contents, &length, NULL));
  fail_unless_equals_uint64 (length, 44 + (1920 * 40 - 555) * 2);
  unlink (wav);
  close (out);
  close (fd);
}

GST_END_TEST;

/* The text's sink holds its first buffer until all sinks have prerolled, and
 * the muxer's needs a second of speech for that. */
GST_START_TEST (a_muxed_speech_and_a_bare_text_sink_do_not_deadlock)
{
  g_autofree gchar *path = fixture ("tiny-a");
  gint fd = pipe_with ("What do you see? Be brief.");
  g_autoptr (Run) run = run_new ("fdsrc fd=%d ! " BIN "max-tokens=64 "
      "granularity=token talker::temperature=0 talker::max-frames=40 "
      "q.text ! fakesink name=text async=true sync=false "
      "q.speech ! audioconvert ! vorbisenc ! oggmux ! "
      "fakesink name=speech async=true sync=false", fd, path);

  run_to_eos (run);
  fail_unless (run->speech->len > 0);
  close (fd);
}

GST_END_TEST;

GST_START_TEST (without_speech_no_talker_is_loaded)
{
  g_autoptr (QomniModel) model = open_model ("tiny-a");
  g_autofree gchar *path = fixture ("tiny-a");
  gint fd = pipe_with ("Hello");
  g_autoptr (Run) run = run_new ("fdsrc fd=%d ! " BIN "max-tokens=4 ! "
      "fakesink name=text", fd, path);

  run_to_eos (run);
  fail_unless_equals_int (qomni_model_loaded (model), QOMNI_COMPONENT_THINKER);
  close (fd);
}

GST_END_TEST;

static QomniModel *
model_of (Run * run, const gchar * name)
{
  g_autoptr (GstElement) e = gst_bin_get_by_name (GST_BIN (run->pipeline),
      name);
  g_autoptr (GstQuery) query =
      gst_query_new_context (GST_QOMNI_ENGINE_CONTEXT_TYPE);
  g_autoptr (GstPad) pad = gst_element_get_static_pad (e, "text");
  g_autoptr (GstQomniEngine) engine = NULL;
  GstContext *context;

  fail_unless (gst_pad_query (pad, query));
  gst_query_parse_context (query, &context);
  engine = gst_context_get_qomni_engine (context);
  return gst_qomni_engine_open (engine, NULL);
}

GST_START_TEST (two_pipelines_share_one_model)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *other_path = fixture ("tiny-a/cases/../");
  const gchar *line = "fakesrc num-buffers=0 ! text/x-raw,format=utf8 ! "
      "qomnithinker name=t model=%s engine-linger=0 %s ! fakesink name=text";
  g_autoptr (Run) a = NULL, b = NULL, c = NULL;
  g_autoptr (QomniModel) x = NULL, y = NULL, z = NULL;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  a = run_new (line, path, "");
  b = run_new (line, other_path, "");
  c = run_new (line, path, "engine-id=mine");
#pragma GCC diagnostic pop
  run_to_eos (a);
  run_to_eos (b);
  run_to_eos (c);
  x = model_of (a, "t");
  y = model_of (b, "t");
  z = model_of (c, "t");
  fail_unless (x == y, "the same files, two models");
  fail_if (x == z, "another engine-id, the same model");
}

GST_END_TEST;

GST_START_TEST (a_model_is_named_once_in_a_pipeline)
{
  g_autofree gchar *want = expected_text ("tiny-a", "audio-1.01s");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *wav = fixture ("media/s101.wav");
  static const gchar *const where[][3] = {
    {"model", "", ""}, {"", "model", ""}, {"", "", "model"},
  };

  g_unsetenv ("QOMNI_MODEL");
  for (guint i = 0; i < G_N_ELEMENTS (where); i++) {
    g_autofree gchar *set = g_strdup_printf ("model=%s", path);
    g_autoptr (Run) run = run_new ("filesrc location=%s ! wavparse ! "
        "audioconvert ! audioresample ! queue ! qomniaudioenc "
        "engine-linger=0 %s ! qomnithinker name=t engine-linger=0 %s "
        "temperature=0 max-tokens=24 prompt=\"" SOUND "\" t.text ! "
        "fakesink name=text t.hidden ! qomnitalker engine-linger=0 "
        "temperature=0 max-frames=3 %s ! fakesink name=speech", wav,
        *where[i][0] ? set : "", *where[i][1] ? set : "",
        *where[i][2] ? set : "");

    run_to_eos (run);
    fail_unless_equals_string (run->said->str, want);
    fail_unless_equals_int (run->n_infos, 0);
    fail_unless (run->speech->len > 0);
  }
}

GST_END_TEST;

GST_START_TEST (an_injected_engine_is_used)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new ("fakesrc num-buffers=0 ! "
      "text/x-raw,format=utf8 ! qomnithinker name=t engine-linger=0 ! "
      "fakesink name=text");
  GstQomniEngineSettings settings = {.model = path,.engine_id = "injected" };
  g_autoptr (GstQomniEngine) engine = gst_qomni_engine_new (&settings);
  g_autoptr (GstContext) context = gst_context_new_qomni_engine (engine, TRUE);
  g_autoptr (QomniModel) mine = NULL, theirs = NULL;

  g_setenv ("QOMNI_MODEL", "/nowhere", TRUE);
  gst_element_set_context (run->pipeline, context);
  run_to_eos (run);
  mine = gst_qomni_engine_open (engine, NULL);
  theirs = model_of (run, "t");
  fail_unless (mine == theirs);
}

GST_END_TEST;

GST_START_TEST (the_environment_names_a_model_and_the_bus_says_so)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = NULL;

  g_setenv ("QOMNI_MODEL", path, TRUE);
  run = run_new ("fakesrc num-buffers=0 ! text/x-raw,format=utf8 ! "
      "qomnithinker engine-linger=0 ! fakesink name=text");
  run_to_eos (run);
  fail_unless_equals_int (run->n_infos, 1);
}

GST_END_TEST;

GST_START_TEST (children_are_reached_by_name)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autoptr (Run) run = run_new (BIN "voice=chelsie vision-fps=1/2 "
      "thinker::top-k=7 fakesrc num-buffers=0 ! video/x-raw,format=RGB,"
      "width=64,height=64,framerate=1/1 ! q.video_0 "
      "q.speech ! fakesink", path);
  g_autoptr (GstElement) q = gst_bin_get_by_name (GST_BIN (run->pipeline), "q");
  g_autofree gchar *voice = NULL;
  GValue fps = G_VALUE_INIT;
  gint top_k, n, d;

  gst_child_proxy_get (GST_CHILD_PROXY (q), "talker::voice", &voice,
      "thinker::top-k", &top_k, NULL);
  fail_unless_equals_string (voice, "chelsie");
  fail_unless_equals_int (top_k, 7);
  g_object_get (q, "top-k", &top_k, NULL);
  fail_unless_equals_int (top_k, 7);
  gst_child_proxy_get_property (GST_CHILD_PROXY (q), "visionenc0::fps", &fps);
  n = gst_value_get_fraction_numerator (&fps);
  d = gst_value_get_fraction_denominator (&fps);
  fail_unless_equals_int (n, 1);
  fail_unless_equals_int (d, 2);
  g_value_unset (&fps);
}

GST_END_TEST;

GST_START_TEST (null_at_any_time_and_again)
{
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *media = fixture ("media/v10av.avi");

  for (guint i = 0; i < 12; i++) {
    g_autoptr (Run) run = run_new (BIN "max-tokens=24 min-pixels=1024 "
        "max-pixels=16384 use-audio-in-video=true prompt=\"" VIDEO "\" "
        "filesrc location=%s ! decodebin name=d d. ! q.video_0 "
        "d. ! q.audio_0 q.text ! fakesink name=text "
        "q.speech ! fakesink name=speech", path, media);

    gst_element_set_state (run->pipeline, GST_STATE_PLAYING);
    g_usleep (i * 8000);
  }
}

GST_END_TEST;

GST_START_TEST (a_pipeline_runs_twice)
{
  g_autofree gchar *want = expected_text ("tiny-a", "image-odd");
  g_autofree gchar *path = fixture ("tiny-a");
  g_autofree gchar *png = fixture ("media/i51x37.png");
  g_autoptr (Run) run = run_new ("filesrc location=%s ! pngdec ! q.video_0 "
      BIN "max-tokens=24 prompt=\"" PICTURE "\" ! fakesink name=text", png,
      path);

  for (guint i = 0; i < 3; i++) {
    run->eos = FALSE;
    g_string_truncate (run->said, 0);
    run_to_eos (run);
    fail_unless_equals_string (run->said->str, want);
    gst_element_set_state (run->pipeline,
        i == 0 ? GST_STATE_READY : GST_STATE_NULL);
  }
}

GST_END_TEST;

GST_START_TEST (after_the_last_user_the_model_is_gone)
{
  g_autofree gchar *path = fixture ("tiny-a");
  gint fd = pipe_with ("Hello");
  QomniModel *model;

  {
    g_autoptr (Run) run = run_new ("fdsrc fd=%d ! " BIN "max-tokens=4 ! "
        "fakesink name=text", fd, path);

    run_to_eos (run);
  }
  model = open_model ("tiny-a");
  fail_unless_equals_int (qomni_model_loaded (model), 0);
  qomni_model_unref (model);
  close (fd);
}

GST_END_TEST;

GST_START_TEST (with_linger_the_model_stays)
{
  g_autofree gchar *path = fixture ("tiny-a");
  gint fd = pipe_with ("Hello");
  QomniModel *model;

  {
    g_autoptr (Run) run = run_new ("fdsrc fd=%d ! qomnithinker model=%s "
        "engine-linger=60000000000 max-tokens=4 ! fakesink name=text", fd,
        path);

    run_to_eos (run);
  }
  model = open_model ("tiny-a");
  fail_unless_equals_int (qomni_model_loaded (model), QOMNI_COMPONENT_THINKER);
  qomni_model_unref (model);
  close (fd);
}

GST_END_TEST;

static Suite *
pipelines_suite (void)
{
  Suite *suite = suite_create ("pipelines");
  TCase *tc = tcase_create ("general");

  suite_add_tcase (suite, tc);
  tcase_add_test (tc, a_wav_file_is_heard_as_by_the_reference);
  tcase_add_test (tc, a_picture_is_seen_as_by_the_reference);
  tcase_add_test (tc, a_question_from_a_pipe_waits_for_the_sound);
  tcase_add_test (tc, further_texts_are_further_turns);
  tcase_add_test (tc, a_film_is_one_turn_whichever_pad_comes_first);
  tcase_add_test (tc, matroska_works_too);
  tcase_add_test (tc, a_pad_that_is_never_linked_does_not_stall);
  tcase_add_test (tc, pads_can_be_released);
  tcase_add_test (tc, pads_can_be_released_while_their_threads_wait);
  tcase_add_test (tc, a_sink_that_has_enough_ends_the_pipeline);
  tcase_add_test (tc, rates_that_no_resampler_has_memory_for_are_refused);
  tcase_add_test (tc, seeks_at_any_time_do_not_lose_what_the_talker_needs);
  tcase_add_test (tc, speech_is_written_to_a_file);
  tcase_add_test (tc, a_muxed_speech_and_a_bare_text_sink_do_not_deadlock);
  tcase_add_test (tc, without_speech_no_talker_is_loaded);
  tcase_add_test (tc, two_pipelines_share_one_model);
  tcase_add_test (tc, a_model_is_named_once_in_a_pipeline);
  tcase_add_test (tc, an_injected_engine_is_used);
  tcase_add_test (tc, the_environment_names_a_model_and_the_bus_says_so);
  tcase_add_test (tc, children_are_reached_by_name);
  tcase_add_test (tc, null_at_any_time_and_again);
  tcase_add_test (tc, a_pipeline_runs_twice);
  tcase_add_test (tc, after_the_last_user_the_model_is_gone);
  tcase_add_test (tc, with_linger_the_model_stays);
  return suite;
}

GST_CHECK_MAIN (pipelines);
