/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Constructors and parsers of the qomni/… events. Out-pointers may be NULL;
 * a parser returns FALSE for any other event, and for one of the right name
 * with a field missing or of another type.
 */
#include "gstqomnievents.h"

/* The structure of a custom event called `name`, else NULL. */
static const GstStructure *
custom_structure (GstEvent * event, const gchar * name)
{
  const GstStructure *s;

  switch (GST_EVENT_TYPE (event)) {
    case GST_EVENT_CUSTOM_UPSTREAM:
    case GST_EVENT_CUSTOM_DOWNSTREAM:
    case GST_EVENT_CUSTOM_DOWNSTREAM_OOB:
    case GST_EVENT_CUSTOM_BOTH:
    case GST_EVENT_CUSTOM_BOTH_OOB:
      break;
    default:
      return NULL;
  }
  s = gst_event_get_structure (event);
  return s != NULL && gst_structure_has_name (s, name) ? s : NULL;
}

static gboolean
get_time (const GstStructure * s, const gchar * field, GstClockTime * ret)
{
  guint64 value;

  if (!gst_structure_get_uint64 (s, field, &value))
    return FALSE;
  if (ret != NULL)
    *ret = value;
  return TRUE;
}

gboolean
gst_qomni_event_is_mark (GstEvent * event)
{
  return custom_structure (event, GST_QOMNI_EVENT_TURN_END) != NULL
      || custom_structure (event, GST_QOMNI_EVENT_SPEECH_START) != NULL
      || custom_structure (event, GST_QOMNI_EVENT_SPEECH_END) != NULL;
}

GstEvent *
gst_qomni_event_new_turn_end (GstClockTime running_time)
{
  return gst_event_new_custom (GST_EVENT_CUSTOM_DOWNSTREAM,
      gst_structure_new (GST_QOMNI_EVENT_TURN_END,
          "running-time", G_TYPE_UINT64, running_time, NULL));
}

gboolean
gst_qomni_event_parse_turn_end (GstEvent * event, GstClockTime * running_time)
{
  const GstStructure *s = custom_structure (event, GST_QOMNI_EVENT_TURN_END);

  return s != NULL && get_time (s, "running-time", running_time);
}

static GstEvent *
new_speech (const gchar * name, GstClockTime running_time,
    GstClockTime stream_time, gdouble probability)
{
  return gst_event_new_custom (GST_EVENT_CUSTOM_DOWNSTREAM,
      gst_structure_new (name, "running-time", G_TYPE_UINT64, running_time,
          "stream-time", G_TYPE_UINT64, stream_time,
          "probability", G_TYPE_DOUBLE, probability, NULL));
}

static gboolean
parse_speech (GstEvent * event, const gchar * name,
    GstClockTime * running_time, GstClockTime * stream_time,
    gdouble * probability)
{
  const GstStructure *s = custom_structure (event, name);
  gdouble p;

  if (s == NULL || !gst_structure_get_double (s, "probability", &p)
      || !get_time (s, "running-time", running_time)
      || !get_time (s, "stream-time", stream_time))
    return FALSE;
  if (probability != NULL)
    *probability = p;
  return TRUE;
}

GstEvent *
gst_qomni_event_new_speech_start (GstClockTime running_time,
    GstClockTime stream_time, gdouble probability)
{
  return new_speech (GST_QOMNI_EVENT_SPEECH_START, running_time, stream_time,
      probability);
}

gboolean
gst_qomni_event_parse_speech_start (GstEvent * event,
    GstClockTime * running_time, GstClockTime * stream_time,
    gdouble * probability)
{
  return parse_speech (event, GST_QOMNI_EVENT_SPEECH_START, running_time,
      stream_time, probability);
}

GstEvent *
gst_qomni_event_new_speech_end (GstClockTime running_time,
    GstClockTime stream_time, gdouble probability)
{
  return new_speech (GST_QOMNI_EVENT_SPEECH_END, running_time, stream_time,
      probability);
}

gboolean
gst_qomni_event_parse_speech_end (GstEvent * event,
    GstClockTime * running_time, GstClockTime * stream_time,
    gdouble * probability)
{
  return parse_speech (event, GST_QOMNI_EVENT_SPEECH_END, running_time,
      stream_time, probability);
}

GstEvent *
gst_qomni_event_new_interrupt (gboolean upstream, guint64 turn_id,
    const gchar * reason)
{
  return gst_event_new_custom (upstream ? GST_EVENT_CUSTOM_UPSTREAM :
      GST_EVENT_CUSTOM_DOWNSTREAM_OOB,
      gst_structure_new (GST_QOMNI_EVENT_INTERRUPT,
          "turn-id", G_TYPE_UINT64, turn_id,
          "reason", G_TYPE_STRING, reason, NULL));
}

gboolean
gst_qomni_event_parse_interrupt (GstEvent * event, guint64 * turn_id,
    const gchar ** reason)
{
  const GstStructure *s = custom_structure (event, GST_QOMNI_EVENT_INTERRUPT);

  if (s == NULL || !get_time (s, "turn-id", turn_id))
    return FALSE;
  if (reason != NULL)
    *reason = gst_structure_get_string (s, "reason");
  return TRUE;
}
