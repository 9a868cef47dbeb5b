/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The events that travel beside the data: where a turn ends, where speech
 * begins and ends, and that a reply is to stop. Applications and elements use
 * these functions and spell no field names.
 *
 *   gst_pad_push_event (pad, gst_qomni_event_new_turn_end (running_time));
 *
 *   GstClockTime t;
 *   if (gst_qomni_event_parse_turn_end (event, &t)) …
 */
#pragma once

#include <gst/gst.h>

G_BEGIN_DECLS

#define GST_QOMNI_EVENT_TURN_END "qomni/turn-end"
#define GST_QOMNI_EVENT_SPEECH_START "qomni/speech-start"
#define GST_QOMNI_EVENT_SPEECH_END "qomni/speech-end"
#define GST_QOMNI_EVENT_INTERRUPT "qomni/interrupt"

/* Whether `event` is a serialised event of this family: an encoder lets go of
 * what it holds before it passes one on. */
gboolean gst_qomni_event_is_mark (GstEvent * event);

/* Serialised, downstream: the user's turn ends here. */
GstEvent *gst_qomni_event_new_turn_end (GstClockTime running_time);
gboolean gst_qomni_event_parse_turn_end (GstEvent * event,
    GstClockTime * running_time);

/* Serialised, downstream: an edge of speech. probability is 0 … 1. */
GstEvent *gst_qomni_event_new_speech_start (GstClockTime running_time,
    GstClockTime stream_time, gdouble probability);
gboolean gst_qomni_event_parse_speech_start (GstEvent * event,
    GstClockTime * running_time, GstClockTime * stream_time,
    gdouble * probability);
GstEvent *gst_qomni_event_new_speech_end (GstClockTime running_time,
    GstClockTime stream_time, gdouble probability);
gboolean gst_qomni_event_parse_speech_end (GstEvent * event,
    GstClockTime * running_time, GstClockTime * stream_time,
    gdouble * probability);

/* Not serialised, upstream or downstream: stop the reply of turn `turn_id` and
 * of all turns before it. reason may be NULL. */
GstEvent *gst_qomni_event_new_interrupt (gboolean upstream, guint64 turn_id,
    const gchar * reason);
/* The reason stays the event's. */
gboolean gst_qomni_event_parse_interrupt (GstEvent * event, guint64 * turn_id,
    const gchar ** reason);

G_END_DECLS
