/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Cutting streamed text into words and sentences.
 *
 * A cut lies between two characters and is decided when the one after it is
 * there. Words: after white space, and on both sides of an ideograph or kana.
 * Sentences: after . ! ? … (with the quotes and brackets that close behind
 * them) and white space; after 。！？ and the like at once; after a line end.
 * "Mr. Smith", "J. S. Bach", "3.14" and "1. first" are not ends.
 *
 * Every character is looked at once per push at most (`scanned`), so a reply
 * takes linear time, however it is split.
 */
#include "gstqomnitext.h"

#include <string.h>

/* 60 ms a character is about 17 characters a second, what subtitles allow. */
#define NS_PER_CHARACTER (60 * GST_MSECOND)

struct _GstQomniText
{
  GstQomniGranularity granularity;
  GString *text;
  /* State of the scan, which stands before byte `scanned`. */
  gsize scanned;
  gboolean ended;               /* a terminator, then only closers */
  gboolean wide_ended;          /* the same of 。 and its like */
  gboolean space;               /* white space was the last */
  gboolean line_end;            /* with a line end among it */
  gunichar last;
};

GType
gst_qomni_granularity_get_type (void)
{
  static gsize type = 0;
  static const GEnumValue values[] = {
    {GST_QOMNI_GRANULARITY_TOKEN, "As the model writes", "token"},
    {GST_QOMNI_GRANULARITY_WORD, "Whole words", "word"},
    {GST_QOMNI_GRANULARITY_SENTENCE, "Whole sentences", "sentence"},
    {GST_QOMNI_GRANULARITY_TURN, "The whole reply", "turn"},
    {0, NULL, NULL}
  };

  if (g_once_init_enter (&type)) {
    GType new_type = g_enum_register_static ("GstQomniGranularity", values);
    g_once_init_leave (&type, new_type);
  }
  return (GType) type;
}

GstQomniText *
gst_qomni_text_new (GstQomniGranularity granularity)
{
  GstQomniText *self = g_new0 (GstQomniText, 1);

  self->granularity = granularity;
  self->text = g_string_new (NULL);
  return self;
}

void
gst_qomni_text_free (GstQomniText * self)
{
  if (self == NULL)
    return;
  g_string_free (self->text, TRUE);
  g_free (self);
}

static void
forget_scan (GstQomniText * self)
{
  self->scanned = 0;
  self->ended = self->wide_ended = self->space = self->line_end = FALSE;
  self->last = 0;
}

void
gst_qomni_text_push (GstQomniText * self, const gchar * piece)
{
  g_string_append (self->text, piece);
}

static gboolean
is_terminator (gunichar c)
{
  return c == '.' || c == '!' || c == '?' || c == 0x2026        /* … */
      || c == 0x061F            /* Arabic question mark */
      || c == 0x06D4            /* Urdu full stop */
      || c == 0x0964 || c == 0x0965;    /* danda */
}

static gboolean
is_wide_terminator (gunichar c)
{
  return c == 0x3002 || c == 0xFF01 || c == 0xFF1F      /* 。！？ */
      || c == 0xFF0E || c == 0xFF61;    /* ．｡ */
}

static gboolean
is_closer (gunichar c)
{
  switch (g_unichar_type (c)) {
    case G_UNICODE_CLOSE_PUNCTUATION:  /* ) ] 」 』 */
    case G_UNICODE_FINAL_PUNCTUATION:  /* ” ’ » */
    case G_UNICODE_NON_SPACING_MARK:
    case G_UNICODE_ENCLOSING_MARK:
      return TRUE;
    default:
      return c == '"' || c == '\'' || c == '*' || c == '_';
  }
}

/* Written without spaces between words. */
static gboolean
is_unspaced (gunichar c)
{
  switch (g_unichar_get_script (c)) {
    case G_UNICODE_SCRIPT_HAN:
    case G_UNICODE_SCRIPT_HIRAGANA:
    case G_UNICODE_SCRIPT_KATAKANA:
    case G_UNICODE_SCRIPT_BOPOMOFO:
      return TRUE;
    default:
      return FALSE;
  }
}

/* Marks, closing punctuation and the like stay with what they follow. */
static gboolean
sticks_to_previous (gunichar c)
{
  return g_unichar_ismark (c) || c == 0x200D || c == 0x30FC
      || g_unichar_ispunct (c);
}

/* Whether the full stop that ends `text` (length n, closers and white space
 * included) belongs to an abbreviation, an initial or a list number. */
static gboolean
is_abbreviation (const gchar * text, gsize n)
{
  static const gchar *const known[] = {
    "Mr", "Mrs", "Ms", "Dr", "Prof", "St", "Jr", "Sr", "vs", "etc", "e.g",
    "i.e", "No", "Nr", "z.B", "d.h", "bzw", "ca", "approx",
  };
  gsize end = n, start;

  while (end > 0 && g_ascii_isspace (text[end - 1]))
    end--;
  if (end == 0 || text[end - 1] != '.')
    return FALSE;
  end--;
  start = end;
  while (start > 0 && (g_ascii_isalnum (text[start - 1])
          || text[start - 1] == '.'))
    start--;
  if (start == end)
    return FALSE;

  /* An initial: one capital letter that is a word. */
  if (end - start == 1 && g_ascii_isupper (text[start]) && text[start] != 'I')
    return start == 0 || g_ascii_isspace (text[start - 1])
        || text[start - 1] == '(';
  /* "12." at the start of the unit numbers a list. */
  if (start == 0) {
    gsize i = start;

    while (i < end && g_ascii_isdigit (text[i]))
      i++;
    if (i == end)
      return TRUE;
  }
  for (guint i = 0; i < G_N_ELEMENTS (known); i++)
    if (strlen (known[i]) == end - start
        && strncmp (known[i], text + start, end - start) == 0)
      return TRUE;
  return FALSE;
}

/* Whether a unit ends before the character `c`, which is not white space. */
static gboolean
cuts_before (GstQomniText * self, gunichar c)
{
  if (self->granularity == GST_QOMNI_GRANULARITY_WORD) {
    if (self->last == 0)
      return FALSE;
    if (self->space)
      return TRUE;
    return !sticks_to_previous (c) && (is_unspaced (c)
        || is_unspaced (self->last)) && !g_unichar_ispunct (self->last);
  }

  if (self->line_end && self->last != 0)
    return TRUE;
  if (self->wide_ended)
    return !is_closer (c) && !is_wide_terminator (c);
  return self->ended && self->space
      && !is_abbreviation (self->text->str, self->scanned);
}

static gchar *
cut (GstQomniText * self, gsize n)
{
  gchar *unit = g_strndup (self->text->str, n);

  g_string_erase (self->text, 0, n);
  forget_scan (self);
  return unit;
}

gchar *
gst_qomni_text_pull (GstQomniText * self)
{
  if (self->granularity == GST_QOMNI_GRANULARITY_TURN)
    return NULL;

  if (self->granularity == GST_QOMNI_GRANULARITY_TOKEN) {
    /* One token's text is held back, see the header. */
    gsize before = self->scanned;

    self->scanned = self->text->len;
    return before > 0 && before < self->text->len ? cut (self, before) : NULL;
  }

  while (self->scanned < self->text->len) {
    const gchar *p = self->text->str + self->scanned;
    gunichar c = g_utf8_get_char (p);

    if (g_unichar_isspace (c)) {
      self->space = TRUE;
      if (c == '\n' || c == '\r')
        self->line_end = TRUE;
    } else {
      if (cuts_before (self, c))
        return cut (self, self->scanned);
      if (is_terminator (c))
        self->ended = TRUE;
      else if (is_wide_terminator (c))
        self->wide_ended = TRUE;
      else if (!is_closer (c) || self->space)
        self->ended = self->wide_ended = FALSE;
      self->space = self->line_end = FALSE;
      self->last = c;
    }
    self->scanned = g_utf8_next_char (p) - self->text->str;
  }
  return NULL;
}

gchar *
gst_qomni_text_finish (GstQomniText * self)
{
  gchar *rest = self->text->len > 0 ? g_strdup (self->text->str) : NULL;

  g_string_truncate (self->text, 0);
  forget_scan (self);
  return rest;
}

GstClockTime
gst_qomni_text_duration (const gchar * unit)
{
  gsize n = strlen (unit);

  while (n > 0 && g_ascii_isspace (unit[n - 1]))
    n--;
  return MAX (1, g_utf8_strlen (unit, n)) * NS_PER_CHARACTER;
}
