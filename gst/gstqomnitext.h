/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * GstQomniText: the Thinker's text, piece by piece as it is written -> units
 * that make sense on a text pad: tokens, words, sentences or whole turns.
 *
 *   gst_qomni_text_push (text, "It is a c");
 *   while ((unit = gst_qomni_text_pull (text)) != NULL) …
 *   rest = gst_qomni_text_finish (text);
 *
 * All units of a turn together are exactly what was pushed: white space stays
 * at the end of the unit it follows. A unit is only handed out when something
 * more has come after it, so that the rest is never empty unless the reply was,
 * and the rest is always the last.
 */
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

/**
 * GstQomniGranularity:
 * @GST_QOMNI_GRANULARITY_TOKEN: as the model writes
 * @GST_QOMNI_GRANULARITY_WORD: whole words
 * @GST_QOMNI_GRANULARITY_SENTENCE: whole sentences
 * @GST_QOMNI_GRANULARITY_TURN: the whole reply
 */
typedef enum
{
  GST_QOMNI_GRANULARITY_TOKEN,
  GST_QOMNI_GRANULARITY_WORD,
  GST_QOMNI_GRANULARITY_SENTENCE,
  GST_QOMNI_GRANULARITY_TURN,
} GstQomniGranularity;

#define GST_TYPE_QOMNI_GRANULARITY (gst_qomni_granularity_get_type ())
GType gst_qomni_granularity_get_type (void);

typedef struct _GstQomniText GstQomniText;

GstQomniText *gst_qomni_text_new (GstQomniGranularity granularity);
void gst_qomni_text_free (GstQomniText * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (GstQomniText, gst_qomni_text_free)

/* `piece` is UTF-8 and splits no code point. */
void gst_qomni_text_push (GstQomniText * self, const gchar * piece);
/* The next whole unit, or NULL when it is not certain yet. g_free(). */
gchar *gst_qomni_text_pull (GstQomniText * self);
/* What is left, or NULL; the next push begins a new reply. g_free(). */
gchar *gst_qomni_text_finish (GstQomniText * self);

/* How long a unit stays on the screen: 60 ms a character, white space at its
 * end not counted. Never 0. */
GstClockTime gst_qomni_text_duration (const gchar * unit);

G_END_DECLS
