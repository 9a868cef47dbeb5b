/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * libgstqomni-1.0 and the text splitter: no model, no pipeline.
 */
#include "qomnicheck.h"

#include "gstqomnierror.h"
#include "gstqomnievents.h"
#include "gstqomnimeta.h"
#include "gstqomnitext.h"

static GstStructure *
meta_of (GstBuffer * buffer)
{
  return gst_custom_meta_get_structure (gst_buffer_get_custom_meta (buffer,
          GST_QOMNI_EMBEDDINGS_META_NAME));
}

static QomniEmbeddings *
make_rows (void)
{
  QomniEmbeddings *e = qomni_embeddings_new (QOMNI_MODALITY_THINKER, 3, 2, 4,
      NULL);

  for (int i = 0; i < 3 * 2 * 4; i++)
    e->data[i] = (float) i / 7;
  e->rows_kind = QOMNI_ROWS_HEADER;
  e->turn = 5;
  e->first_row = 9;
  e->position_delta = -2.5f;
  e->ids = g_new (int32_t, 3);
  e->media = g_new0 (uint8_t, 3);
  e->n_positions = 2;
  e->positions = g_new (float, 6);
  for (int i = 0; i < 3; i++)
    e->ids[i] = 100 + i;
  e->media[1] = 1;
  for (int i = 0; i < 6; i++)
    e->positions[i] = 0.5f * (float) i;
  return e;
}

static QomniEmbeddings *
make_video (void)
{
  QomniEmbeddings *e = qomni_embeddings_new (QOMNI_MODALITY_VIDEO, 6, 2, 4,
      NULL);

  e->clip = 3;
  e->grid_t = 1;
  e->grid_h = 2;
  e->grid_w = 3;
  e->seconds_per_grid = 1.0;
  e->start = GST_SECOND;
  e->duration = GST_SECOND;
  e->last = true;
  return e;
}

GST_START_TEST (rows_survive_a_buffer)
{
  g_autoptr (QomniEmbeddings) in = make_rows (), out = NULL;
  GstBuffer *buffer = gst_qomni_embeddings_to_buffer (in);
  g_autoptr (GstBuffer) copy = NULL;
  g_autoptr (GError) error = NULL;

  gst_qomni_embeddings_buffer_set_turn_id (buffer, 17);
  fail_unless_equals_int (gst_buffer_get_size (buffer), 3 * 2 * 4 * 4);
  /* As a queue or a recorder would do it. */
  copy = gst_buffer_copy_deep (buffer);
  gst_buffer_unref (buffer);

  out = gst_qomni_embeddings_from_buffer (copy, &error);
  fail_unless (out != NULL, "%s", error ? error->message : "");
  fail_unless_equals_int (out->modality, QOMNI_MODALITY_THINKER);
  fail_unless_equals_int (out->rows_kind, QOMNI_ROWS_HEADER);
  fail_unless_equals_int64 (out->n_tokens, 3);
  fail_unless_equals_int (out->n_levels, 2);
  fail_unless_equals_int64 (out->width, 4);
  fail_unless_equals_uint64 (out->turn, 5);
  fail_unless_equals_int64 (out->first_row, 9);
  fail_unless (out->position_delta == -2.5f);
  fail_unless (memcmp (out->data, in->data, 3 * 2 * 4 * 4) == 0);
  fail_unless (memcmp (out->ids, in->ids, 3 * 4) == 0);
  fail_unless (memcmp (out->media, in->media, 3) == 0);
  fail_unless_equals_int64 (out->n_positions, 2);
  fail_unless (memcmp (out->positions, in->positions, 6 * 4) == 0);
  fail_unless_equals_uint64 (gst_qomni_embeddings_buffer_get_turn_id (copy),
      17);
}

GST_END_TEST;

GST_START_TEST (video_survives_a_buffer)
{
  g_autoptr (QomniEmbeddings) in = make_video (), out = NULL;
  g_autoptr (GstBuffer) buffer = gst_qomni_embeddings_to_buffer (in);

  out = gst_qomni_embeddings_from_buffer (buffer, NULL);
  fail_unless (out != NULL);
  fail_unless_equals_uint64 (out->clip, 3);
  fail_unless_equals_int64 (out->grid_h, 2);
  fail_unless_equals_int64 (out->grid_w, 3);
  fail_unless (out->seconds_per_grid == 1.0);
  fail_unless_equals_int64 (out->start, GST_SECOND);
  fail_unless (out->last);
  fail_unless (!out->in_video);
}

GST_END_TEST;

GST_START_TEST (an_end_without_rows_survives_a_buffer)
{
  g_autoptr (QomniEmbeddings) in = qomni_embeddings_new
      (QOMNI_MODALITY_THINKER, 0, 2, 4, NULL), out = NULL;
  g_autoptr (GstBuffer) buffer = NULL;

  in->rows_kind = QOMNI_ROWS_END;
  buffer = gst_qomni_embeddings_to_buffer (in);
  out = gst_qomni_embeddings_from_buffer (buffer, NULL);
  fail_unless (out != NULL);
  fail_unless_equals_int (out->rows_kind, QOMNI_ROWS_END);
}

GST_END_TEST;

/* Each of these makes one field lie. */
static void
lie_tokens (GstBuffer * b)
{
  gst_structure_set (meta_of (b), "n-tokens", G_TYPE_INT64, (gint64) 4, NULL);
}

static void
lie_huge (GstBuffer * b)
{
  gst_structure_set (meta_of (b), "n-tokens", G_TYPE_INT64,
      (gint64) G_MAXINT32, "width", G_TYPE_INT64, (gint64) 65536,
      "levels", G_TYPE_INT, 512, NULL);
}

static void
lie_negative (GstBuffer * b)
{
  gst_structure_set (meta_of (b), "n-tokens", G_TYPE_INT64, (gint64) - 3, NULL);
}

static void
lie_type (GstBuffer * b)
{
  gst_structure_set (meta_of (b), "width", G_TYPE_STRING, "4", NULL);
}

static void
lie_kind (GstBuffer * b)
{
  gst_structure_set (meta_of (b), "kind", G_TYPE_STRING, "smell", NULL);
}

static void
lie_ids (GstBuffer * b)
{
  g_autoptr (GBytes) bytes = g_bytes_new_static ("123456789", 8);

  gst_structure_set (meta_of (b), "ids", G_TYPE_BYTES, bytes, NULL);
}

static void
lie_id_range (GstBuffer * b)
{
  static const gint32 ids[3] = { 1, -1, 2 };
  g_autoptr (GBytes) bytes = g_bytes_new_static (ids, sizeof ids);

  gst_structure_set (meta_of (b), "ids", G_TYPE_BYTES, bytes, NULL);
}

static void
lie_positions (GstBuffer * b)
{
  gst_structure_set (meta_of (b), "n-positions", G_TYPE_INT64,
      (gint64) G_MAXINT32, NULL);
}

static void
lie_missing (GstBuffer * b)
{
  gst_structure_remove_field (meta_of (b), "clip");
}

static void
lie_payload (GstBuffer * b)
{
  gst_buffer_resize (b, 0, 3 * 2 * 4 * 4 - 1);
}

GST_START_TEST (a_meta_that_lies_is_refused)
{
  static void (*const lies[]) (GstBuffer *) = {
    lie_tokens, lie_huge, lie_negative, lie_type, lie_kind, lie_ids,
    lie_id_range, lie_positions, lie_missing, lie_payload,
  };

  for (guint i = 0; i < G_N_ELEMENTS (lies); i++) {
    g_autoptr (QomniEmbeddings) in = make_rows (), out = NULL;
    g_autoptr (GstBuffer) buffer = gst_qomni_embeddings_to_buffer (in);
    g_autoptr (GError) error = NULL;

    lies[i] (buffer);
    out = gst_qomni_embeddings_from_buffer (buffer, &error);
    fail_unless (out == NULL, "lie %u was believed", i);
    fail_unless (g_error_matches (error, QOMNI_ERROR, QOMNI_ERROR_FORMAT));
  }
}

GST_END_TEST;

GST_START_TEST (a_grid_that_is_not_the_tokens_is_refused)
{
  g_autoptr (QomniEmbeddings) in = make_video (), out = NULL;
  g_autoptr (GstBuffer) buffer = gst_qomni_embeddings_to_buffer (in);
  g_autoptr (GError) error = NULL;

  gst_structure_set (meta_of (buffer), "grid-w", G_TYPE_INT64, (gint64) 4,
      NULL);
  out = gst_qomni_embeddings_from_buffer (buffer, &error);
  fail_unless (out == NULL);
  fail_unless (strstr (error->message, "1x2x4") != NULL, "%s", error->message);
}

GST_END_TEST;

GST_START_TEST (a_buffer_without_meta_is_refused)
{
  g_autoptr (GstBuffer) buffer = gst_buffer_new_allocate (NULL, 96, NULL);
  g_autoptr (GError) error = NULL;

  fail_unless (gst_qomni_embeddings_from_buffer (buffer, &error) == NULL);
  fail_unless (g_error_matches (error, QOMNI_ERROR, QOMNI_ERROR_FORMAT));
}

GST_END_TEST;

GST_START_TEST (events_parse_as_they_were_made)
{
  GstEvent *turn = gst_qomni_event_new_turn_end (3 * GST_SECOND);
  GstEvent *speech = gst_qomni_event_new_speech_end (1, 2, 0.75);
  GstEvent *stop = gst_qomni_event_new_interrupt (FALSE, 7, "enough");
  GstClockTime a, b;
  const gchar *reason;
  gdouble p;
  guint64 id;

  fail_unless (gst_qomni_event_is_mark (turn));
  fail_unless (gst_qomni_event_parse_turn_end (turn, &a));
  fail_unless_equals_uint64 (a, 3 * GST_SECOND);
  fail_if (gst_qomni_event_parse_speech_end (turn, NULL, NULL, NULL));

  fail_unless (gst_qomni_event_parse_speech_end (speech, &a, &b, &p));
  fail_unless_equals_uint64 (a, 1);
  fail_unless_equals_uint64 (b, 2);
  fail_unless_equals_float (p, 0.75);
  fail_if (gst_qomni_event_parse_speech_start (speech, NULL, NULL, NULL));

  fail_unless (gst_qomni_event_parse_interrupt (stop, &id, &reason));
  fail_unless_equals_uint64 (id, 7);
  fail_unless_equals_string (reason, "enough");
  fail_if (GST_EVENT_IS_SERIALIZED (stop));
  fail_unless (GST_EVENT_IS_SERIALIZED (turn));
  fail_if (gst_qomni_event_is_mark (stop));

  gst_event_unref (turn);
  gst_event_unref (speech);
  gst_event_unref (stop);
}

GST_END_TEST;

GST_START_TEST (errors_have_their_domains)
{
  static const struct
  {
    QomniErrorCode code;
    GQuark (*domain) (void);
    gint gst_code;
  } rows[] = {
    {QOMNI_ERROR_NOT_FOUND, gst_resource_error_quark,
        GST_RESOURCE_ERROR_NOT_FOUND},
    {QOMNI_ERROR_OPEN, gst_resource_error_quark, GST_RESOURCE_ERROR_OPEN_READ},
    {QOMNI_ERROR_READ, gst_resource_error_quark, GST_RESOURCE_ERROR_READ},
    {QOMNI_ERROR_FORMAT, gst_stream_error_quark, GST_STREAM_ERROR_FORMAT},
    {QOMNI_ERROR_UNSUPPORTED, gst_library_error_quark,
        GST_LIBRARY_ERROR_SETTINGS},
    {QOMNI_ERROR_SETTINGS, gst_library_error_quark, GST_LIBRARY_ERROR_SETTINGS},
    {QOMNI_ERROR_DEVICE, gst_library_error_quark, GST_LIBRARY_ERROR_INIT},
    {QOMNI_ERROR_MEMORY, gst_resource_error_quark,
        GST_RESOURCE_ERROR_NO_SPACE_LEFT},
    {QOMNI_ERROR_NUMERIC, gst_stream_error_quark, GST_STREAM_ERROR_FAILED},
    {QOMNI_ERROR_BACKEND, gst_stream_error_quark, GST_STREAM_ERROR_FAILED},
  };
  g_autoptr (GError) cancelled = g_error_new (G_IO_ERROR,
      G_IO_ERROR_CANCELLED, "cancelled");
  GQuark domain;
  gint code;

  for (guint i = 0; i < G_N_ELEMENTS (rows); i++) {
    g_autoptr (GError) error = g_error_new (QOMNI_ERROR, rows[i].code, "x");

    fail_unless (gst_qomni_error_to_gst (error, &domain, &code));
    fail_unless_equals_int (domain, rows[i].domain ());
    fail_unless_equals_int (code, rows[i].gst_code);
  }
  fail_if (gst_qomni_error_to_gst (cancelled, &domain, &code));
}

GST_END_TEST;

/* What `text`, pushed `step` bytes at a time (whole characters), is cut into,
 * joined with '|'. */
static gchar *
cut (GstQomniGranularity granularity, const gchar * text, glong step)
{
  g_autoptr (GstQomniText) units = gst_qomni_text_new (granularity);
  GString *joined = g_string_new (NULL);
  gchar *unit;

  while (*text != '\0') {
    glong n = MIN (step, g_utf8_strlen (text, -1));
    const gchar *end = g_utf8_offset_to_pointer (text, n);
    g_autofree gchar *piece = g_strndup (text, end - text);

    gst_qomni_text_push (units, piece);
    while ((unit = gst_qomni_text_pull (units)) != NULL) {
      g_string_append_printf (joined, "%s|", unit);
      g_free (unit);
    }
    text = end;
  }
  unit = gst_qomni_text_finish (units);
  if (unit != NULL)
    g_string_append (joined, unit);
  g_free (unit);
  return g_string_free (joined, FALSE);
}

static void
assert_cut (GstQomniGranularity granularity, const gchar * text,
    const gchar * want)
{
  /* However it comes in. */
  for (glong step = 1; step < 12; step += 3) {
    g_autofree gchar *got = cut (granularity, text, step);

    fail_unless_equals_string (got, want);
  }
}

GST_START_TEST (sentences_end_where_they_end)
{
  const GstQomniGranularity s = GST_QOMNI_GRANULARITY_SENTENCE;

  assert_cut (s, "Hello there. How are you? Fine!",
      "Hello there. |How are you? |Fine!");
  assert_cut (s, "He said \"Stop.\" Then he left.",
      "He said \"Stop.\" |Then he left.");
  assert_cut (s, "Mr. Smith met J. S. Bach, e.g. twice. Really.",
      "Mr. Smith met J. S. Bach, e.g. twice. |Really.");
  assert_cut (s, "Pi is 3.14159. Yes...  well", "Pi is 3.14159. |Yes...  |well");
  assert_cut (s, "1. First\n2. Second", "1. First\n|2. Second");
  assert_cut (s, "你好。今天很好！是吗？对", "你好。|今天很好！|是吗？|对");
  assert_cut (s, "「はい。」と言った。終", "「はい。」|と言った。|終");
  assert_cut (s, "\n\nHi. ", "\n\nHi. ");
  assert_cut (s, "no end", "no end");
  assert_cut (s, "", "");
}

GST_END_TEST;

GST_START_TEST (words_are_whole)
{
  const GstQomniGranularity w = GST_QOMNI_GRANULARITY_WORD;

  assert_cut (w, "It's a  test, ok", "It's |a  |test, |ok");
  assert_cut (w, "naïve café", "naïve |café");
  assert_cut (w, "我爱你。好", "我|爱|你。好");
  assert_cut (w, "one", "one");
}

GST_END_TEST;

GST_START_TEST (a_turn_is_one_unit_and_tokens_are_pieces)
{
  assert_cut (GST_QOMNI_GRANULARITY_TURN, "A. B. C d", "A. B. C d");
  {
    g_autofree gchar *got = cut (GST_QOMNI_GRANULARITY_TOKEN, "abcdef", 2);

    fail_unless_equals_string (got, "ab|cd|ef");
  }
}

GST_END_TEST;

GST_START_TEST (a_unit_lasts_as_long_as_it_takes_to_read)
{
  fail_unless_equals_uint64 (gst_qomni_text_duration ("ab \n"),
      120 * GST_MSECOND);
  fail_unless_equals_uint64 (gst_qomni_text_duration ("好"), 60 * GST_MSECOND);
  fail_unless_equals_uint64 (gst_qomni_text_duration (" "), 60 * GST_MSECOND);
}

GST_END_TEST;

static Suite *
lib_suite (void)
{
  Suite *suite = suite_create ("lib");
  TCase *tc = tcase_create ("general");

  suite_add_tcase (suite, tc);
  tcase_add_test (tc, rows_survive_a_buffer);
  tcase_add_test (tc, video_survives_a_buffer);
  tcase_add_test (tc, an_end_without_rows_survives_a_buffer);
  tcase_add_test (tc, a_meta_that_lies_is_refused);
  tcase_add_test (tc, a_grid_that_is_not_the_tokens_is_refused);
  tcase_add_test (tc, a_buffer_without_meta_is_refused);
  tcase_add_test (tc, events_parse_as_they_were_made);
  tcase_add_test (tc, errors_have_their_domains);
  tcase_add_test (tc, sentences_end_where_they_end);
  tcase_add_test (tc, words_are_whole);
  tcase_add_test (tc, a_turn_is_one_unit_and_tokens_are_pieces);
  tcase_add_test (tc, a_unit_lasts_as_long_as_it_takes_to_read);
  return suite;
}

GST_CHECK_MAIN (lib);
