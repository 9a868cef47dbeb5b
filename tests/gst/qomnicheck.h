/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the element tests share: the fixtures, and running a pipeline to its
 * end while collecting what leaves at sinks called "text" and "speech".
 */
#pragma once

#include <gst/check/gstcheck.h>
#include <gst/check/gstharness.h>
#include <json-glib/json-glib.h>
#include <string.h>

#define TIMEOUT (60 * GST_SECOND)

typedef struct
{
  GstElement *pipeline;
  GMutex lock;
  GPtrArray *text, *speech;     /* GstBuffer */
  GString *said;                /* all of text */
  GPtrArray *messages;          /* GstStructure of element messages */
  GError *error;                /* the first ERROR, or NULL */
  GstElement *culprit;          /* who posted it */
  guint n_errors, n_warnings, n_infos;
  gboolean eos;
} Run;

static inline gchar *
fixture (const gchar * path)
{
  const gchar *root = g_getenv ("QOMNI_TEST_FIXTURES");

  fail_unless (root != NULL, "QOMNI_TEST_FIXTURES is not set");
  return g_build_filename (root, path, NULL);
}

/* `text` of the expected.json of a parity case. */
static inline gchar *
expected_text (const gchar * model, const gchar * name)
{
  g_autofree gchar *sub = g_build_filename (model, "cases", name,
      "expected.json", NULL);
  g_autofree gchar *path = fixture (sub);
  g_autoptr (JsonParser) parser = json_parser_new ();

  fail_unless (json_parser_load_from_file (parser, path, NULL), "%s", path);
  return g_strdup (json_object_get_string_member (json_node_get_object
          (json_parser_get_root (parser)), "text"));
}

static inline void
on_text (GstElement * sink, GstBuffer * buffer, GstPad * pad, Run * run)
{
  GstMapInfo map;

  g_mutex_lock (&run->lock);
  g_ptr_array_add (run->text, gst_buffer_ref (buffer));
  gst_buffer_map (buffer, &map, GST_MAP_READ);
  g_string_append_len (run->said, (const gchar *) map.data, map.size);
  gst_buffer_unmap (buffer, &map);
  g_mutex_unlock (&run->lock);
}

static inline void
on_speech (GstElement * sink, GstBuffer * buffer, GstPad * pad, Run * run)
{
  g_mutex_lock (&run->lock);
  g_ptr_array_add (run->speech, gst_buffer_ref (buffer));
  g_mutex_unlock (&run->lock);
}

static inline void
connect_sink (Run * run, const gchar * name, GCallback callback)
{
  GstElement *sink = gst_bin_get_by_name (GST_BIN (run->pipeline), name);

  if (sink == NULL)
    return;
  g_object_set (sink, "signal-handoffs", TRUE, NULL);
  g_signal_connect (sink, "handoff", callback, run);
  gst_object_unref (sink);
}

/* `format` is a launch line whose sinks are `fakesink name=text` and so on. */
G_GNUC_PRINTF (1, 2)
static inline Run *
run_new (const gchar * format, ...)
{
  g_autoptr (GError) error = NULL;
  g_autofree gchar *line = NULL;
  Run *run = g_new0 (Run, 1);
  va_list args;

  va_start (args, format);
  line = g_strdup_vprintf (format, args);
  va_end (args);

  g_mutex_init (&run->lock);
  run->text = g_ptr_array_new_with_free_func ((GDestroyNotify) gst_buffer_unref);
  run->speech = g_ptr_array_new_with_free_func ((GDestroyNotify)
      gst_buffer_unref);
  run->messages = g_ptr_array_new_with_free_func ((GDestroyNotify)
      gst_structure_free);
  run->said = g_string_new (NULL);
  run->pipeline = gst_parse_launch (line, &error);
  fail_unless (error == NULL, "%s: %s", line, error ? error->message : "");
  connect_sink (run, "text", G_CALLBACK (on_text));
  connect_sink (run, "speech", G_CALLBACK (on_speech));
  return run;
}

static inline void
run_take_message (Run * run, GstMessage * message)
{
  switch (GST_MESSAGE_TYPE (message)) {
    case GST_MESSAGE_ERROR:
      run->n_errors++;
      if (run->error == NULL) {
        gst_message_parse_error (message, &run->error, NULL);
        run->culprit = GST_ELEMENT (GST_MESSAGE_SRC (message));
      }
      break;
    case GST_MESSAGE_WARNING:
      run->n_warnings++;
      break;
    case GST_MESSAGE_INFO:
      run->n_infos++;
      break;
    case GST_MESSAGE_ELEMENT:
      if (g_str_has_prefix (gst_structure_get_name (gst_message_get_structure
                  (message)), "qomni/"))
        g_ptr_array_add (run->messages,
            gst_structure_copy (gst_message_get_structure (message)));
      break;
    case GST_MESSAGE_EOS:
      run->eos = TRUE;
      break;
    default:
      break;
  }
}

/* Waits for EOS, or an ERROR. */
static inline void
run_wait (Run * run)
{
  GstBus *bus = gst_element_get_bus (run->pipeline);
  GstMessage *message;

  while (!run->eos && run->error == NULL) {
    message = gst_bus_timed_pop (bus, TIMEOUT);
    fail_unless (message != NULL, "neither EOS nor ERROR in time");
    run_take_message (run, message);
    gst_message_unref (message);
  }
  gst_object_unref (bus);
}

static inline void
run_play (Run * run)
{
  gst_element_set_state (run->pipeline, GST_STATE_PLAYING);
  run_wait (run);
}

static inline void
run_free (Run * run)
{
  fail_unless_equals_int (gst_element_set_state (run->pipeline,
          GST_STATE_NULL), GST_STATE_CHANGE_SUCCESS);
  gst_object_unref (run->pipeline);
  g_ptr_array_unref (run->text);
  g_ptr_array_unref (run->speech);
  g_ptr_array_unref (run->messages);
  g_string_free (run->said, TRUE);
  g_clear_error (&run->error);
  g_mutex_clear (&run->lock);
  g_free (run);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC (Run, run_free)

/* The n-th element message of that name, or NULL. */
static inline const GstStructure *
run_message (Run * run, const gchar * name, guint n)
{
  for (guint i = 0; i < run->messages->len; i++) {
    const GstStructure *s = g_ptr_array_index (run->messages, i);

    if (gst_structure_has_name (s, name) && n-- == 0)
      return s;
  }
  return NULL;
}

/* Plays until EOS and expects no error. */
static inline void
run_to_eos (Run * run)
{
  run_play (run);
  fail_unless (run->error == NULL, "%s", run->error ? run->error->message : "");
  fail_unless (run->eos);
}

static inline void
assert_error (Run * run, GQuark domain, gint code)
{
  fail_unless (run->error != NULL, "no error");
  fail_unless (g_error_matches (run->error, domain, code), "%s %d: %s",
      g_quark_to_string (run->error->domain), run->error->code,
      run->error->message);
}
