/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * answers tool LEAST MODEL DIRECTORY QOMNI
 * answers pipelines LEAST MODEL DIRECTORY
 *
 * Asks a trained model the held-out questions of DIRECTORY, which
 * tools/nano/heldout.py made, through the tool or in GStreamer pipelines. Every
 * conversation must be answered in speech that ends by itself, soon after its
 * last word, is as long as its words are, and can be heard: one TAP line each.
 * LEAST of them must be answered with the right words in every reply: one more
 * line. A model of this size does not know everything; tools/nano/judge.py
 * measures how much it does.
 *
 *   filesrc ! decodebin ! qomnibin -> text   -> compared with expected.json
 *                                  -> speech -> measured
 */
#include <glib/gstdio.h>
#include <gst/audio/audio.h>
#include <gst/gst.h>
#include <json-glib/json-glib.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gstqomnievents.h"

#define RATE 24000
#define FRAME 1920              /* samples of speech */
#define MISSING 555             /* samples that the end of a reply lacks */
#define WAV_HEADER 44

/* No answer has as many tokens, or takes 32 s to say: it would not have ended
 * by itself. */
#define MAX_TOKENS 64
#define MAX_FRAMES 400
/* Frames of a word, pauses included. */
#define LEAST_FRAMES 2
#define MOST_FRAMES 12
#define MAX_TAIL (RATE / 2)
#define LOUD 0.05               /* of full scale, somewhere */
#define QUIET 0.03              /* of the loudest 10 ms */

#define CLIP_CAPS "audio/x-raw,format=" GST_AUDIO_NE (F32) \
    ",rate=16000,channels=1"

#define TIMEOUT (60 * GST_SECOND)

typedef struct
{
  const char *directory;
  JsonObject *expected;         /* an entry of expected.json */
  JsonArray *messages;
  GPtrArray *replies;           /* expected: one for each turn of the user */
} Question;

typedef struct
{
  GPtrArray *text;              /* one string for each reply */
  GByteArray *speech;           /* S16 of the machine */
} Answer;

static char *
path_in (const Question * q, const char *name)
{
  return g_build_filename (q->directory, name, NULL);
}

static const char *
string_of (JsonObject * object, const char *name)
{
  return json_object_get_string_member (object, name);
}

static JsonNode *
content_of (const Question * q, guint message)
{
  return json_object_get_member (json_array_get_object_element (q->messages,
          message), "content");
}

static guint
n_messages (const Question * q)
{
  return json_array_get_length (q->messages);
}

static bool
hears_video (const Question * q)
{
  return json_object_get_boolean_member (q->expected, "hears-video");
}

static JsonNode *
read_json (const char *path, GError ** error)
{
  g_autoptr (JsonParser) parser = json_parser_new ();

  if (!json_parser_load_from_file (parser, path, error))
    return NULL;
  return json_parser_steal_root (parser);
}

/* --- speech ------------------------------------------------------------- */

static double
loudness (const gint16 * samples, gsize n)
{
  double sum = 0;

  for (gsize i = 0; i < n; i++)
    sum += (double) samples[i] * samples[i];
  return sqrt (sum / (double) n) / 32768;
}

static bool
check_speech (const Answer * answer, guint n_words)
{
  const gint16 *samples = (const gint16 *) answer->speech->data;
  const gsize n = answer->speech->len / sizeof *samples;
  const gsize step = RATE / 100;
  const gsize n_frames = (n + MISSING) / FRAME;
  gsize end = 0;
  double loudest = 0;

  for (gsize i = 0; i + step <= n; i += step)
    loudest = MAX (loudest, loudness (samples + i, step));
  for (gsize i = 0; i + step <= n; i += step)
    if (loudness (samples + i, step) > QUIET * loudest)
      end = i + step;

  if (n_frames >= MAX_FRAMES)
    printf ("#   the speech does not end\n");
  else if (n_frames < n_words * LEAST_FRAMES)
    printf ("#   %zu frames are too few for %u words\n", n_frames, n_words);
  else if (n_frames > n_words * MOST_FRAMES)
    printf ("#   %zu frames are too many for %u words\n", n_frames, n_words);
  else if (loudest < LOUD)
    printf ("#   it whispers: %.4f of full scale at most\n", loudest);
  else if (n - end > MAX_TAIL)
    printf ("#   %.2f s of silence at the end\n", (double) (n - end) / RATE);
  else
    return true;
  return false;
}

static guint
count_words (const GPtrArray * texts)
{
  guint n = 0;

  for (guint i = 0; i < texts->len; i++) {
    g_auto (GStrv) words = g_strsplit (g_ptr_array_index (texts, i), " ", -1);

    n += g_strv_length (words);
  }
  return n;
}

/* Whether there are as many replies as there must be, and all are right. */
static bool
check_words (const Question * q, const Answer * answer)
{
  bool ok = answer->text->len == q->replies->len;

  if (!ok)
    printf ("#   %u replies, expected %u\n", answer->text->len,
        q->replies->len);
  for (guint i = 0; ok && i < q->replies->len; i++) {
    const char *got = g_ptr_array_index (answer->text, i);
    const char *want = g_ptr_array_index (q->replies, i);

    if (strcmp (got, want) != 0) {
      printf ("#   got      %s\n#   expected %s\n", got, want);
      ok = false;
    }
  }
  return ok;
}

/* --- the tool ----------------------------------------------------------- */

static bool
ask_tool (const Question * q, const char *qomni, const char *model,
    const char *scratch, Answer * answer, GError ** error)
{
  g_autofree char *file = path_in (q, string_of (q->expected, "conversation"));
  g_autofree char *wav = g_build_filename (scratch, "speech.wav", NULL);
  g_autofree char *tokens = g_strdup_printf ("%d", MAX_TOKENS);
  g_autofree char *frames = g_strdup_printf ("%d", MAX_FRAMES);
  g_autofree char *out = NULL, *err = NULL, *sound = NULL;
  g_autoptr (JsonParser) parser = json_parser_new ();
  const char *argv[] = { qomni, "generate", model, "--conversation", file,
    "--greedy", "--json", "--max-tokens", tokens, "--speech", wav, "--voice",
    string_of (q->expected, "voice"), "--talker-greedy", "--max-frames",
    frames, hears_video (q) ? "--use-audio-in-video" : NULL, NULL
  };
  gsize length;
  int status;

  if (!g_spawn_sync (NULL, (char **) argv, NULL, G_SPAWN_DEFAULT, NULL, NULL,
          &out, &err, &status, error))
    return false;
  if (!g_spawn_check_wait_status (status, NULL)) {
    printf ("#   %s", err);
    return false;
  }
  if (!json_parser_load_from_data (parser, out, -1, error)
      || !g_file_get_contents (wav, &sound, &length, error))
    return false;
  g_unlink (wav);
  g_ptr_array_add (answer->text, g_strdup (string_of (json_node_get_object
              (json_parser_get_root (parser)), "text")));
  if (length > WAV_HEADER)
    g_byte_array_append (answer->speech, (guint8 *) sound + WAV_HEADER,
        (guint) (length - WAV_HEADER));
  return true;
}

/* --- pipelines ---------------------------------------------------------- */

static void
on_text (GstElement * sink, GstBuffer * buffer, GstPad * pad, Answer * answer)
{
  GstMapInfo map;

  if (!gst_buffer_map (buffer, &map, GST_MAP_READ))
    return;
  g_ptr_array_add (answer->text, g_strndup ((const char *) map.data, map.size));
  gst_buffer_unmap (buffer, &map);
}

static void
on_speech (GstElement * sink, GstBuffer * buffer, GstPad * pad,
    Answer * answer)
{
  GstMapInfo map;

  if (!gst_buffer_map (buffer, &map, GST_MAP_READ))
    return;
  g_byte_array_append (answer->speech, map.data, (guint) map.size);
  gst_buffer_unmap (buffer, &map);
}

/* The parts of the only turn: a property of the bin, or chains. */
static void
add_parts (const Question * q, JsonArray * parts, GString * bin,
    GString * chains)
{
  for (guint i = 0; i < json_array_get_length (parts); i++) {
    JsonObject *part = json_array_get_object_element (parts, i);
    const char *type = string_of (part, "type");
    const char *value = string_of (part, type);
    g_autofree char *path = path_in (q, value);

    if (strcmp (type, "text") == 0)
      g_string_append_printf (bin, "prompt=\"%s\" ", value);
    else if (strcmp (type, "audio") == 0)
      g_string_append_printf (chains,
          "filesrc location=\"%s\" ! decodebin ! q.audio_0 ", path);
    else if (strcmp (type, "image") == 0)
      g_string_append_printf (chains,
          "filesrc location=\"%s\" ! decodebin ! q.video_0 ", path);
    else
      g_string_append_printf (chains, "filesrc location=\"%s\" ! decodebin "
          "name=d d. ! queue ! q.video_0 %s", path, hears_video (q)
          ? "d. ! queue ! q.audio_0 " : "");
  }
}

/* One clip after the other, a turn each: see end_turns. */
static void
add_clips (const Question * q, GString * chains)
{
  g_string_append (chains, "concat name=clips ! q.audio_0 ");
  for (guint i = 0; i < n_messages (q); i += 2) {
    JsonObject *part = json_array_get_object_element (json_node_get_array
        (content_of (q, i)), 0);
    g_autofree char *path = path_in (q, string_of (part, "audio"));

    g_string_append_printf (chains, "filesrc location=\"%s\" ! decodebin ! "
        "audioconvert ! audioresample ! " CLIP_CAPS " ! clips. ", path);
  }
}

static GstElement *
make_pipeline (const Question * q, const char *model, GError ** error)
{
  g_autoptr (GString) bin = g_string_new (NULL);
  g_autoptr (GString) chains = g_string_new (NULL);

  g_string_append_printf (bin, "qomnibin name=q model=\"%s\" temperature=0 "
      "granularity=turn voice=%s use-audio-in-video=%s max-tokens=%d "
      "talker::temperature=0 talker::max-frames=%d ", model,
      string_of (q->expected, "voice"), hears_video (q) ? "true" : "false",
      MAX_TOKENS, MAX_FRAMES);
  if (!JSON_NODE_HOLDS_ARRAY (content_of (q, 0)))
    g_string_append (chains,
        "appsrc name=typed caps=text/x-raw,format=utf8 ! q.text_0 ");
  else if (n_messages (q) > 1)
    add_clips (q, chains);
  else
    add_parts (q, json_node_get_array (content_of (q, 0)), bin, chains);
  g_string_append_printf (bin, "%s q.text ! fakesink name=text "
      "signal-handoffs=true sync=false async=false "
      "q.speech ! audio/x-raw,format=%s ! fakesink name=speech "
      "signal-handoffs=true sync=false async=false", chains->str,
      GST_AUDIO_NE (S16));
  return gst_parse_launch (bin->str, error);
}

/* What the user types, turn by turn; what was answered is not told again. */
static void
type_turns (const Question * q, GstElement * pipeline)
{
  g_autoptr (GstElement) typed = gst_bin_get_by_name (GST_BIN (pipeline),
      "typed");
  GstFlowReturn flow;

  if (typed == NULL)
    return;
  for (guint i = 0; i < n_messages (q); i += 2) {
    const char *text = json_node_get_string (content_of (q, i));
    GstBuffer *buffer = gst_buffer_new_memdup (text, strlen (text));

    g_signal_emit_by_name (typed, "push-buffer", buffer, &flow);
    gst_buffer_unref (buffer);
  }
  g_signal_emit_by_name (typed, "end-of-stream", &flow);
}

static GstPadProbeReturn
on_clip_event (GstPad * pad, GstPadProbeInfo * info, gpointer out)
{
  if (GST_EVENT_TYPE (GST_PAD_PROBE_INFO_EVENT (info)) == GST_EVENT_EOS)
    gst_pad_push_event (out, gst_qomni_event_new_turn_end
        (GST_CLOCK_TIME_NONE));
  return GST_PAD_PROBE_OK;
}

/* The end of a clip is the end of a turn; that of the last one needs no help. */
static void
end_turns (const Question * q, GstElement * pipeline)
{
  g_autoptr (GstElement) clips = gst_bin_get_by_name (GST_BIN (pipeline),
      "clips");
  g_autoptr (GstPad) out = NULL;

  if (clips == NULL)
    return;
  out = gst_element_get_static_pad (clips, "src");
  for (guint i = 0; i < n_messages (q) / 2; i++) {
    g_autofree char *name = g_strdup_printf ("sink_%u", i);
    g_autoptr (GstPad) pad = gst_element_get_static_pad (clips, name);

    gst_pad_add_probe (pad, GST_PAD_PROBE_TYPE_EVENT_DOWNSTREAM, on_clip_event,
        gst_object_ref (out), gst_object_unref);
  }
}

static void
connect_sink (GstElement * pipeline, const char *name, GCallback callback,
    Answer * answer)
{
  g_autoptr (GstElement) sink = gst_bin_get_by_name (GST_BIN (pipeline), name);

  g_signal_connect (sink, "handoff", callback, answer);
}

static bool
ask_pipeline (const Question * q, const char *model, Answer * answer,
    GError ** error)
{
  g_autoptr (GstElement) pipeline = make_pipeline (q, model, error);
  g_autoptr (GstMessage) message = NULL;
  g_autoptr (GstBus) bus = NULL;

  if (pipeline == NULL)
    return false;
  connect_sink (pipeline, "text", G_CALLBACK (on_text), answer);
  connect_sink (pipeline, "speech", G_CALLBACK (on_speech), answer);
  end_turns (q, pipeline);
  bus = gst_element_get_bus (pipeline);
  gst_element_set_state (pipeline, GST_STATE_PLAYING);
  type_turns (q, pipeline);
  message = gst_bus_timed_pop_filtered (bus, TIMEOUT,
      GST_MESSAGE_EOS | GST_MESSAGE_ERROR);
  if (message != NULL && GST_MESSAGE_TYPE (message) == GST_MESSAGE_ERROR)
    gst_message_parse_error (message, error, NULL);
  else if (message == NULL)
    printf ("#   no end in time\n");
  gst_element_set_state (pipeline, GST_STATE_NULL);
  return message != NULL && GST_MESSAGE_TYPE (message) == GST_MESSAGE_EOS;
}

/* --- the questions ------------------------------------------------------ */

static void
answer_clear (Answer * answer)
{
  g_ptr_array_unref (answer->text);
  g_byte_array_unref (answer->speech);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Answer, answer_clear)

/* A pipeline gives every reply itself, the tool only the last one. */
static GPtrArray *
expected_replies (const Question * q, bool pipeline)
{
  GPtrArray *replies = g_ptr_array_new ();

  for (guint i = 1; pipeline && i < n_messages (q); i += 2)
    g_ptr_array_add (replies, (char *) json_node_get_string (content_of (q,
                i)));
  g_ptr_array_add (replies, (char *) string_of (q->expected, "answer"));
  return replies;
}

/* Whether it spoke as it must; counts in `understood` if it said the right
 * words. */
static bool
ask (Question * q, const char *qomni, const char *model, const char *scratch,
    int *understood)
{
  g_auto (Answer) answer = {
    .text = g_ptr_array_new_with_free_func (g_free),
    .speech = g_byte_array_new (),
  };
  g_autoptr (GPtrArray) replies = expected_replies (q, qomni == NULL);
  g_autoptr (GError) error = NULL;
  bool ok;

  q->replies = replies;
  ok = qomni != NULL ? ask_tool (q, qomni, model, scratch, &answer, &error)
      : ask_pipeline (q, model, &answer, &error);
  if (error != NULL)
    printf ("#   %s\n", error->message);
  if (!ok)
    return false;
  *understood += check_words (q, &answer);
  return check_speech (&answer, count_words (answer.text));
}

/* Asks all. `qomni` NULL: in pipelines. */
static int
ask_all (int least, const char *model, const char *directory,
    const char *qomni)
{
  g_autofree char *file = g_build_filename (directory, "expected.json", NULL);
  g_autofree char *scratch = g_dir_make_tmp ("qomni-nano-XXXXXX", NULL);
  g_autoptr (GError) error = NULL;
  g_autoptr (JsonNode) root = read_json (file, &error);
  int n = 0, understood = 0;
  bool spoke = true;

  if (root == NULL || scratch == NULL) {
    printf ("Bail out! %s\n", error == NULL ? "no scratch" : error->message);
    return 1;
  }
  for (guint i = 0; i < json_array_get_length (json_node_get_array (root)); i++) {
    Question q = {.directory = directory };
    g_autoptr (JsonNode) messages = NULL;
    g_autofree char *path = NULL;
    const char *name;
    bool ok;

    q.expected = json_array_get_object_element (json_node_get_array (root), i);
    name = string_of (q.expected, "conversation");
    path = path_in (&q, name);
    messages = read_json (path, &error);
    if (messages == NULL) {
      printf ("Bail out! %s\n", error->message);
      return 1;
    }
    q.messages = json_node_get_array (messages);
    ok = ask (&q, qomni, model, scratch, &understood);
    printf ("%sok %d - %s\n", ok ? "" : "not ", ++n, name);
    fflush (stdout);
    spoke = spoke && ok;
  }
  g_rmdir (scratch);
  printf ("# %d of %d conversations understood, %d wanted\n", understood, n,
      least);
  printf ("%sok %d - understood\n1..%d\n", understood >= least ? "" : "not ",
      n + 1, n + 1);
  return n == 0 || !spoke || understood < least;
}

int
main (int argc, char **argv)
{
  bool tool = argc == 6 && strcmp (argv[1], "tool") == 0;

  if (!tool && (argc != 5 || strcmp (argv[1], "pipelines") != 0)) {
    fprintf (stderr, "usage: answers tool LEAST MODEL DIRECTORY QOMNI\n"
        "       answers pipelines LEAST MODEL DIRECTORY\n");
    return 2;
  }
  if (!tool)
    gst_init (NULL, NULL);
  return ask_all (atoi (argv[2]), argv[3], argv[4], tool ? argv[5] : NULL);
}
