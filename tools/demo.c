/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomni-demo: asks questions in real pipelines and times the answers. It is
 * also a small example of an application around qomnibin:
 *
 *   filesrc ! decodebin ! qomnibin -> text  -> appsink, printed as it comes
 *                                  -> speech -> wavenc ! filesink
 *
 * The answer about the video is then written under it: OUT_DIR/captioned.png is
 * its last frame.
 *
 * usage: qomni-demo OUT_DIR question.wav picture.png clip.webm
 */
#include <gst/app/gstappsink.h>
#include <gst/gst.h>
#include <stdbool.h>
#include <stdio.h>

#define SPEECH_RATE 24000

typedef struct
{
  const char *what;             /* for people */
  const char *name;             /* of the WAV file */
  const char *properties;       /* of the bin */
  const char *links;            /* from the decoder "d" to the bin "q" */
} Job;

static const Job jobs[] = {
  {"a spoken question", "answer-sound", "", "d. ! q.audio_0"},
  {"what do you see", "answer-picture", "prompt=\"what do you see\"",
      "d. ! q.video_0"},
  {"a video that asks itself", "answer-video", "use-audio-in-video=true",
      "d. ! q.video_0  d. ! q.audio_0"},
};

#define CAPTIONED 2             /* the job whose answer is a caption */

typedef struct
{
  gint64 start, loaded, end;    /* monotonic µs */
  /* Written by streaming threads: */
  gint64 first_text, first_sound;
  guint64 n_samples;
  GString *text;
} Result;

static GstFlowReturn
on_text (GstAppSink * sink, gpointer data)
{
  Result *r = data;
  GstSample *sample = gst_app_sink_pull_sample (sink);
  GstMapInfo map;

  if (sample == NULL)
    return GST_FLOW_EOS;
  if (r->first_text == 0) {
    r->first_text = g_get_monotonic_time ();
    printf ("  ");
  }
  if (gst_buffer_map (gst_sample_get_buffer (sample), &map, GST_MAP_READ)) {
    fwrite (map.data, 1, map.size, stdout);
    fflush (stdout);
    g_string_append_len (r->text, (const char *) map.data, (gssize) map.size);
    gst_buffer_unmap (gst_sample_get_buffer (sample), &map);
  }
  gst_sample_unref (sample);
  return GST_FLOW_OK;
}

static GstPadProbeReturn
on_speech (GstPad * pad, GstPadProbeInfo * info, gpointer data)
{
  Result *r = data;

  if (r->first_sound == 0)
    r->first_sound = g_get_monotonic_time ();
  r->n_samples +=
      gst_buffer_get_size (GST_PAD_PROBE_INFO_BUFFER (info)) / sizeof (gint16);
  return GST_PAD_PROBE_OK;
}

/* Until the end or an error, which is printed. */
static bool
watch (GstElement * pipeline, Result * r)
{
  g_autoptr (GstBus) bus = gst_element_get_bus (pipeline);

  for (;;) {
    g_autoptr (GstMessage) message = gst_bus_timed_pop_filtered (bus,
        GST_CLOCK_TIME_NONE, GST_MESSAGE_EOS | GST_MESSAGE_ERROR
        | GST_MESSAGE_PROGRESS | GST_MESSAGE_INFO);
    g_autoptr (GError) error = NULL;
    g_autofree char *debug = NULL, *text = NULL;
    GstProgressType type;

    switch (GST_MESSAGE_TYPE (message)) {
      case GST_MESSAGE_EOS:
        return true;
      case GST_MESSAGE_ERROR:
        gst_message_parse_error (message, &error, &debug);
        fprintf (stderr, "%s: %s\n%s\n", GST_OBJECT_NAME (message->src),
            error->message, debug == NULL ? "" : debug);
        return false;
      case GST_MESSAGE_INFO:
        gst_message_parse_info (message, &error, &debug);
        printf ("  (%s)\n", error->message);
        break;
      case GST_MESSAGE_PROGRESS:
        gst_message_parse_progress (message, &type, NULL, &text);
        /* Each element loads its part; the last one counts. */
        if (type == GST_PROGRESS_TYPE_COMPLETE) {
          if (r->loaded == r->start)
            printf ("  %s\n", text);
          r->loaded = g_get_monotonic_time ();
        }
        break;
      default:
        break;
    }
  }
}

static bool
run (const Job * job, const char *file, const char *out, Result * r)
{
  g_autofree char *line = g_strdup_printf
      ("filesrc location=\"%s\" ! decodebin name=d  "
      "qomnibin name=q max-tokens=48 talker::max-frames=100 %s  %s  "
      "q.text ! appsink name=text sync=false  "
      "q.speech ! audio/x-raw,format=S16LE,rate=%d ! wavenc name=wav "
      "! filesink location=\"%s/%s.wav\"",
      file, job->properties, job->links, SPEECH_RATE, out, job->name);
  GstAppSinkCallbacks callbacks = {.new_sample = on_text };
  g_autoptr (GError) error = NULL;
  g_autoptr (GstElement) pipeline = gst_parse_launch (line, &error);
  g_autoptr (GstElement) sink = NULL, wav = NULL;
  g_autoptr (GstPad) pad = NULL;
  bool ok;

  if (pipeline == NULL || error != NULL) {
    fprintf (stderr, "%s\n", error->message);
    return false;
  }
  sink = gst_bin_get_by_name (GST_BIN (pipeline), "text");
  wav = gst_bin_get_by_name (GST_BIN (pipeline), "wav");
  pad = gst_element_get_static_pad (wav, "sink");
  gst_app_sink_set_callbacks (GST_APP_SINK (sink), &callbacks, r, NULL);
  gst_pad_add_probe (pad, GST_PAD_PROBE_TYPE_BUFFER, on_speech, r, NULL);

  r->start = r->loaded = g_get_monotonic_time ();
  gst_element_set_state (pipeline, GST_STATE_PLAYING);
  ok = watch (pipeline, r);
  r->end = g_get_monotonic_time ();
  gst_element_set_state (pipeline, GST_STATE_NULL);
  printf ("\n");
  return ok;
}

/* Writes the text under every frame of a video and keeps the last one. */
static bool
caption (const char *file, const char *text, const char *out)
{
  g_autofree char *line = g_strdup_printf
      ("filesrc location=\"%s\" ! decodebin ! videoconvert "
      "! textoverlay name=caption font-desc=\"Sans 24\" "
      "shaded-background=true ! videoconvert ! pngenc "
      "! multifilesink location=\"%s\"", file, out);
  g_autoptr (GError) error = NULL;
  g_autoptr (GstElement) pipeline = gst_parse_launch (line, &error);
  g_autoptr (GstElement) overlay = NULL;
  Result unused = { 0 };
  bool ok;

  if (pipeline == NULL || error != NULL) {
    fprintf (stderr, "%s\n", error->message);
    return false;
  }
  overlay = gst_bin_get_by_name (GST_BIN (pipeline), "caption");
  g_object_set (overlay, "text", text, NULL);
  gst_element_set_state (pipeline, GST_STATE_PLAYING);
  ok = watch (pipeline, &unused);
  gst_element_set_state (pipeline, GST_STATE_NULL);
  return ok;
}

static double
seconds (const Result * r, gint64 time)
{
  return time == 0 ? 0 : (double) (time - r->loaded) / 1e6;
}

int
main (int argc, char **argv)
{
  Result results[G_N_ELEMENTS (jobs)] = { {0} };
  g_autofree char *captioned = NULL;

  gst_init (&argc, &argv);
  if (argc != 2 + (int) G_N_ELEMENTS (jobs)) {
    fprintf (stderr, "usage: qomni-demo OUT_DIR question.wav picture.png "
        "clip.webm\n");
    return 2;
  }
  for (size_t i = 0; i < G_N_ELEMENTS (jobs); i++) {
    printf ("%s (%s)\n", jobs[i].what, argv[2 + i]);
    results[i].text = g_string_new (NULL);
    if (!run (&jobs[i], argv[2 + i], argv[1], &results[i]))
      return 1;
  }
  captioned = g_build_filename (argv[1], "captioned.png", NULL);
  if (!caption (argv[2 + CAPTIONED], results[CAPTIONED].text->str, captioned))
    return 1;
  printf ("captioned: %s\n", captioned);

  printf ("\n%-24s %10s %11s %8s %7s  %s\n", "", "first text", "first sound",
      "speech", "RTF", "file");
  for (size_t i = 0; i < G_N_ELEMENTS (jobs); i++) {
    const Result *r = &results[i];
    double speech = (double) r->n_samples / SPEECH_RATE;

    printf ("%-24s %8.2f s %9.2f s %6.1f s %7.3f  %s/%s.wav\n", jobs[i].what,
        seconds (r, r->first_text), seconds (r, r->first_sound), speech,
        speech == 0 ? 0 : seconds (r, r->end) / speech, argv[1],
        jobs[i].name);
    g_string_free (results[i].text, TRUE);
  }
  printf ("RTF: time from the loaded model to the end, per second of speech; "
      "below 1 is faster than real time.\n");
  return 0;
}
