/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnithinker: turns of a conversation -> text, and rows for a talker.
 *
 *   audio_%u, vision_%u  chain -> blocks of the pad   \
 *   text_%u, send-text          -> texts               > worker: collect a turn,
 *   end-turn, turn-end, EOS                           /  answer it
 *                                                           |
 *   text    <- task <- items  <-----------------------------+
 *   hidden  <- task <- items  <-----------------------------'
 *
 * Chain functions append and return; one worker thread owns the conversation
 * (QomniThinker) and appends to the queues of the source pads, each of which
 * has a task of its own. So a sink that holds the text back until the whole
 * pipeline has prerolled does not keep the speech from its own sink.
 *
 * The end of a turn, when the media are not live:
 *
 *   - media up to EOS belong to the first turn. Texts that arrive meanwhile are
 *     kept; when every media pad in use is at EOS (or at a turn-end mark), the
 *     first text completes that turn and each further text is a turn;
 *   - a turn-end event on a media pad ends the turn there, as soon as the other
 *     media pads have got as far (position, mark or EOS); a text that is there
 *     by then belongs to it;
 *   - a turn-end event on a text pad ends the turn like a text does;
 *   - at EOS of all pads, what is left is the last turn (respond-on-eos).
 *
 * Pads may still be linked while a decoder finds out what is in a file, so the
 * first turn waits until the element plays, or for SETTLE_TIME. A pad that is
 * not linked is never waited for.
 *
 * The parts of a turn are in order of the running time at which they begin;
 * what begins together goes vision, audio, text. Text without time is last.
 *
 * Locks, outermost first:
 *   lock            everything marked so below; waits are on `cond`
 *   object lock     settings; and of a pad, inside gst_pad_is_linked()
 * Nothing is pushed, posted, queried or emitted with either held, and no model
 * work is done under `lock`.
 */
/**
 * SECTION:element-qomnithinker
 * @title: qomnithinker
 *
 * Understands sound (#qomniaudioenc), pictures and video (#qomnivisionenc) and
 * text, and answers with text. Rows for #qomnitalker leave on the request pad
 * `hidden`, which must be requested before the element is in PAUSED.
 *
 * A buffer on a `text_%u` pad is a message of the user; a line end at its end
 * is dropped. Text buffers of a reply together are exactly the reply; they carry
 * a `GstQomniTextMeta` with turn-id, final and role. The first one stands at
 * the running time of the end of the user's turn, the others follow it, 60 ms a
 * character.
 *
 * The reply to a turn of sound or pictures alone is asked for with the property
 * #GstQomniThinker:prompt.
 *
 * ## Example launch lines
 * |[
 * echo "What is a pipeline?" | gst-launch-1.0 -q fdsrc ! qomnithinker ! fdsink
 * ]| Answers a question.
 * |[
 * gst-launch-1.0 -q audiotestsrc num-buffers=100 ! audioconvert ! audioresample ! queue ! qomniaudioenc ! qomnithinker prompt="What is heard?" max-tokens=64 ! fdsink
 * ]| Says what can be heard.
 *
 * Since: 0.1
 */
#include "gstqomnithinker.h"

#include <gst/base/gstflowcombiner.h>
#include <string.h>

#include "gstqomniclient.h"
#include "gstqomnierror.h"
#include "gstqomnievents.h"
#include "gstqomnimeta.h"
#include "gstqomnitext.h"
#include "thinker.h"

GST_DEBUG_CATEGORY_STATIC (gst_qomni_thinker_debug);
#define GST_CAT_DEFAULT gst_qomni_thinker_debug

/* How long the first turn waits for pads that are linked late. */
#define SETTLE_TIME (2 * G_TIME_SPAN_SECOND)
/* How long the sinks' preroll waits for the first stream. A sink that prerolls
 * before a decodebin has found its pads makes the decodebin the last one to
 * commit the pipeline's state, and in GStreamer 1.22 a PLAYING that is asked for
 * at that moment can lose the pipeline's EOS message. */
#define PREROLL_TIME (500 * G_TIME_SPAN_MILLISECOND)
/* Turns that wait on a media pad, texts that wait, before chain blocks. */
#define MAX_WAITING_TURNS 4
#define MAX_WAITING_TEXTS 64
#define MAX_TEXT_BYTES (1 << 20)
/* Twice the longest context of the published models. */
#define MAX_TURN_TOKENS (1 << 17)
/* Items that wait on a source pad before the worker does. A talker needs many
 * rows before its sink prerolls, while the text's sink may be waiting for that
 * very preroll. */
#define MAX_ITEMS 1024

#define DEFAULT_GRANULARITY GST_QOMNI_GRANULARITY_SENTENCE
#define DEFAULT_MESSAGES GST_QOMNI_MESSAGES_TURNS

enum
{
  PROP_SYSTEM_PROMPT = GST_QOMNI_CLIENT_PROP_LAST,
  PROP_PROMPT,
  PROP_TEMPERATURE,
  PROP_TOP_K,
  PROP_TOP_P,
  PROP_REPETITION_PENALTY,
  PROP_MAX_TOKENS,
  PROP_SEED,
  PROP_GRANULARITY,
  PROP_TEXT_ENDS_TURN,
  PROP_RESPOND_ON_EOS,
  PROP_RESET_ON_FLUSH,
  PROP_USE_AUDIO_IN_VIDEO,
  PROP_MESSAGES,
  PROP_STATS,
};

enum
{
  SIGNAL_SEND_TEXT,
  SIGNAL_END_TURN,
  SIGNAL_INTERRUPT,
  SIGNAL_RESET,
  N_SIGNALS,
};

static guint signals[N_SIGNALS];

/* What a turn is asked with; a copy is made when it begins. */
typedef struct
{
  gchar *system_prompt, *prompt;
  gdouble temperature, top_p, repetition_penalty;       /* -1: the model's */
  gint top_k, max_tokens;       /* -1, 0: the model's */
  guint64 seed;
  GstQomniGranularity granularity;
  gboolean text_ends_turn, respond_on_eos, reset_on_flush;
  gboolean use_audio_in_video;
  GstQomniMessages messages;
} Settings;

typedef enum
{
  KIND_VISION,                  /* in the order of a turn's parts */
  KIND_AUDIO,
  KIND_TEXT,
} Kind;

/* What one chain call brought; embeddings NULL: a turn ends here. */
typedef struct
{
  QomniEmbeddings *embeddings;
  guint64 clip;                 /* of the pad, from 0 */
  GstClockTime start, end;      /* running time */
  GstClockTime stream_start, stream_end;
} Block;

typedef struct
{
  gchar *text;                  /* NULL: only an end */
  QomniRole role;
  gboolean ends;                /* the turn */
  GstClockTime time;            /* running time or NONE */
  gpointer pad;                 /* for flushes only; may be dead */
} Text;

/* A clip or a text of the turn. */
typedef struct
{
  Kind kind;
  guint pad_index;
  guint64 clip, sequence;
  GstClockTime start;
  gboolean in_video;
  GPtrArray *blocks;            /* QomniEmbeddings */
  gchar *text;
} Part;

typedef struct
{
  guint64 id;
  GPtrArray *history;           /* Text of other roles, before the turn */
  GPtrArray *parts;
  gboolean has_media, has_text;
  GstClockTime end;             /* running time, NONE when nothing had one */
  GstClockTime evidence_start, evidence_end;    /* stream time */
  guint64 epoch;
} Turn;

#define GST_TYPE_QOMNI_THINKER_PAD (gst_qomni_thinker_pad_get_type ())
G_DECLARE_FINAL_TYPE (GstQomniThinkerPad, gst_qomni_thinker_pad, GST,
    QOMNI_THINKER_PAD, GstPad)

struct _GstQomniThinkerPad
{
  GstPad parent;

  Kind kind;                    /* constant */
  guint index;

  /* streaming thread */
  GstSegment segment;
  gboolean refused;             /* caps or segment, which come again */
  gboolean in_clip;
  guint64 clip, last_clip;

  /* lock */
  gboolean active, flushing, eos, idle;
  guint n_flushes;              /* whose FLUSH_STOP has not come */
  gboolean started;             /* there was a segment */
  GQueue blocks;                /* Block */
  guint n_marks;                /* among them */
  gint64 n_tokens;
  GstClockTime position;        /* running time */
};

G_DEFINE_TYPE (GstQomniThinkerPad, gst_qomni_thinker_pad, GST_TYPE_PAD);

enum
{
  HEAD_STREAM_START = 1 << 0,
  HEAD_SEGMENT = 1 << 1,
  HEAD_GAP = 1 << 2,            /* when there is a stream, see preroll_is_due() */
  HEAD_ALL = HEAD_STREAM_START | HEAD_SEGMENT | HEAD_GAP,
};

/* A source pad and what waits to be pushed on it. */
typedef struct
{
  GstPad *pad;                  /* NULL: not requested */

  /* lock */
  gboolean active;
  gboolean pushing;             /* its task is in a push */
  guint heads;
  GQueue items;                 /* GstBuffer, GstEvent */
  GstClockTime position;        /* where the next buffer begins */
  gboolean dead;                /* downstream wants no more */
} Source;

struct _GstQomniThinker
{
  GstElement parent;

  GstQomniClient client;
  Settings settings;            /* object lock */

  GMutex lock;
  GCond cond;

  /* lock */
  GList *sinks;                 /* GstQomniThinkerPad, no references */
  guint next_index[3];
  GQueue texts;                 /* Text */
  Source text, hidden;
  GstFlowCombiner *combiner;
  GstFlowReturn flow;           /* what chain functions return */
  guint n_flushing;
  guint64 epoch;                /* what belongs to an older one is dropped */
  gboolean stopping, playing, end_requested, eos_sent;
  gboolean reset_requested, replying;
  gint64 settle_at, preroll_at; /* monotonic */
  guint64 turn_id;              /* of the last turn begun */
  GCancellable *cancellable;    /* of the reply, replaced by each */
  guint group_id;
  guint64 n_turns, n_prompt_tokens, n_reply_tokens, n_failed;
  GstClockTime last_ttft, sum_ttft;

  GThread *worker;
  GCancellable *stop;           /* constant from READY->PAUSED on */
  gboolean want_hidden;

  /* worker */
  QomniThinker *thinker;
  guint n_failures;             /* in a row */
};

static GstStaticPadTemplate audio_template =
GST_STATIC_PAD_TEMPLATE ("audio_%u", GST_PAD_SINK, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("application/x-qomni-embeddings, "
        "modality = (string) audio, dtype = (string) f32"));
static GstStaticPadTemplate vision_template =
GST_STATIC_PAD_TEMPLATE ("vision_%u", GST_PAD_SINK, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("application/x-qomni-embeddings, "
        "modality = (string) vision, dtype = (string) f32"));
static GstStaticPadTemplate text_sink_template =
GST_STATIC_PAD_TEMPLATE ("text_%u", GST_PAD_SINK, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("text/x-raw, format = (string) utf8"));
static GstStaticPadTemplate text_template = GST_STATIC_PAD_TEMPLATE ("text",
    GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("text/x-raw, format = (string) utf8"));
static GstStaticPadTemplate hidden_template =
GST_STATIC_PAD_TEMPLATE ("hidden", GST_PAD_SRC, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("application/x-qomni-embeddings, "
        "modality = (string) thinker, dtype = (string) f32"));

G_DEFINE_TYPE (GstQomniThinker, gst_qomni_thinker, GST_TYPE_ELEMENT);
GST_ELEMENT_REGISTER_DEFINE (qomnithinker, "qomnithinker", GST_RANK_NONE,
    GST_TYPE_QOMNI_THINKER);

GType
gst_qomni_messages_get_type (void)
{
  static gsize type = 0;
  static const GEnumValue values[] = {
    {GST_QOMNI_MESSAGES_NONE, "No element messages", "none"},
    {GST_QOMNI_MESSAGES_TURNS, "At the start and end of each turn", "turns"},
    {0, NULL, NULL}
  };

  if (g_once_init_enter (&type)) {
    GType new_type = g_enum_register_static ("GstQomniMessages", values);
    g_once_init_leave (&type, new_type);
  }
  return (GType) type;
}

/* --- small things --------------------------------------------------------- */

static void
block_free (Block * block)
{
  qomni_embeddings_unref (block->embeddings);
  g_free (block);
}

static void
text_free (Text * text)
{
  g_free (text->text);
  g_free (text);
}

static void
part_free (Part * part)
{
  g_clear_pointer (&part->blocks, g_ptr_array_unref);
  g_free (part->text);
  g_free (part);
}

static void
turn_free (Turn * turn)
{
  g_ptr_array_unref (turn->history);
  g_ptr_array_unref (turn->parts);
  g_free (turn);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC (Turn, turn_free)
static void
settings_clear (Settings * s)
{
  g_clear_pointer (&s->system_prompt, g_free);
  g_clear_pointer (&s->prompt, g_free);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Settings, settings_clear)
static void
copy_settings (GstQomniThinker * self, Settings * copy)
{
  GST_OBJECT_LOCK (self);
  *copy = self->settings;
  copy->system_prompt = g_strdup (copy->system_prompt);
  copy->prompt = g_strdup (copy->prompt);
  GST_OBJECT_UNLOCK (self);
}

static gboolean
text_ends_turn (GstQomniThinker * self)
{
  gboolean ends;

  GST_OBJECT_LOCK (self);
  ends = self->settings.text_ends_turn;
  GST_OBJECT_UNLOCK (self);
  return ends;
}

/* Later of two times, either of which may be NONE. */
static GstClockTime
later (GstClockTime a, GstClockTime b)
{
  if (!GST_CLOCK_TIME_IS_VALID (a))
    return b;
  return GST_CLOCK_TIME_IS_VALID (b) ? MAX (a, b) : a;
}

static GstClockTime
earlier (GstClockTime a, GstClockTime b)
{
  return MIN (a, b);            /* NONE is the largest */
}

/* --- sink pads: what they hold -------------------------------------------- */

static void
pad_clear_blocks (GstQomniThinkerPad * pad)
{
  g_queue_clear_full (&pad->blocks, (GDestroyNotify) block_free);
  pad->n_marks = 0;
  pad->n_tokens = 0;
}

static Block *
pad_pop (GstQomniThinkerPad * pad)
{
  Block *block = g_queue_pop_head (&pad->blocks);

  if (block->embeddings == NULL)
    pad->n_marks--;
  else
    pad->n_tokens -= block->embeddings->n_tokens;
  return block;
}

static void
gst_qomni_thinker_pad_finalize (GObject * object)
{
  pad_clear_blocks (GST_QOMNI_THINKER_PAD (object));
  G_OBJECT_CLASS (gst_qomni_thinker_pad_parent_class)->finalize (object);
}

static void
gst_qomni_thinker_pad_class_init (GstQomniThinkerPadClass * klass)
{
  G_OBJECT_CLASS (klass)->finalize = gst_qomni_thinker_pad_finalize;
}

static void
gst_qomni_thinker_pad_init (GstQomniThinkerPad * pad)
{
  g_queue_init (&pad->blocks);
  gst_segment_init (&pad->segment, GST_FORMAT_UNDEFINED);
  pad->position = GST_CLOCK_TIME_NONE;
  pad->flushing = TRUE;
}

/* Of the pads that are waited for. */
static gboolean
pad_is_in_use (GstQomniThinkerPad * pad)
{
  return pad->active && !pad->idle && gst_pad_is_linked (GST_PAD (pad));
}

/* --- collecting a turn (worker, under the lock) --------------------------- */

typedef struct
{
  guint n_media, n_media_done, n_media_eos;
  guint n_pads, n_eos;
  gboolean marked;              /* a media pad holds the end of a turn */
  GstClockTime mark;            /* the latest such end */
  gboolean reached;             /* the other media pads are as far */
  gboolean anything;            /* there is content */
} Survey;

static GstClockTime
first_mark (GstQomniThinkerPad * pad)
{
  for (GList * l = pad->blocks.head; l != NULL; l = l->next) {
    Block *block = l->data;

    if (block->embeddings == NULL)
      return block->start;
  }
  return GST_CLOCK_TIME_NONE;
}

static Survey
survey (GstQomniThinker * self)
{
  Survey s = {.mark = GST_CLOCK_TIME_NONE,.reached = TRUE };

  for (GList * l = self->sinks; l != NULL; l = l->next) {
    GstQomniThinkerPad *pad = l->data;

    if (pad->n_tokens > 0)
      s.anything = TRUE;
    if (pad->n_marks > 0) {
      s.marked = TRUE;
      s.mark = later (s.mark, first_mark (pad));
    }
    if (!pad_is_in_use (pad))
      continue;
    s.n_pads++;
    s.n_eos += pad->eos;
    if (pad->kind == KIND_TEXT)
      continue;
    s.n_media++;
    s.n_media_eos += pad->eos;
    s.n_media_done += pad->eos || pad->n_marks > 0;
  }
  for (GList * l = self->sinks; s.marked && l != NULL; l = l->next) {
    GstQomniThinkerPad *pad = l->data;

    if (pad->kind == KIND_TEXT || pad->eos || pad->n_marks > 0
        || !pad_is_in_use (pad))
      continue;
    if (!GST_CLOCK_TIME_IS_VALID (s.mark)
        || !GST_CLOCK_TIME_IS_VALID (pad->position) || pad->position < s.mark)
      s.reached = FALSE;
  }
  for (GList * l = self->texts.head; l != NULL; l = l->next) {
    Text *text = l->data;

    if (text->text != NULL && text->role == QOMNI_ROLE_USER)
      s.anything = TRUE;
  }
  return s;
}

/* Index of the text that ends the turn, or -1. */
static gint
ending_text (GstQomniThinker * self)
{
  gint i = 0;

  for (GList * l = self->texts.head; l != NULL; l = l->next, i++)
    if (((Text *) l->data)->ends)
      return i;
  return -1;
}

/* Moves the blocks of `pad` that belong to the turn into parts of it: up to the
 * first mark; without one, those that begin before `until`. */
static void
take_blocks (Turn * turn, GstQomniThinkerPad * pad, GstClockTime until)
{
  const gboolean has_mark = pad->n_marks > 0;
  Part *part = NULL;

  while (!g_queue_is_empty (&pad->blocks)) {
    Block *block = g_queue_peek_head (&pad->blocks);

    if (!has_mark && GST_CLOCK_TIME_IS_VALID (until) && block->start >= until)
      return;
    block = pad_pop (pad);
    if (block->embeddings == NULL) {
      turn->end = later (turn->end, block->start);
      block_free (block);
      return;
    }
    if (part == NULL || part->clip != block->clip) {
      part = g_new0 (Part, 1);
      part->kind = pad->kind;
      part->pad_index = pad->index;
      part->clip = block->clip;
      part->sequence = turn->parts->len;
      part->start = block->start;
      part->blocks = g_ptr_array_new_with_free_func ((GDestroyNotify)
          qomni_embeddings_unref);
      g_ptr_array_add (turn->parts, part);
    }
    g_ptr_array_add (part->blocks, g_steal_pointer (&block->embeddings));
    turn->has_media = TRUE;
    turn->end = later (turn->end, block->end);
    turn->evidence_start = earlier (turn->evidence_start, block->stream_start);
    turn->evidence_end = later (turn->evidence_end, block->stream_end);
    block_free (block);
  }
}

/* Moves `n` texts into the turn. */
static void
take_texts (GstQomniThinker * self, Turn * turn, guint n)
{
  while (n-- > 0 && !g_queue_is_empty (&self->texts)) {
    Text *text = g_queue_pop_head (&self->texts);
    Part *part;

    turn->end = later (turn->end, text->time);
    if (text->text == NULL) {
      text_free (text);
      continue;
    }
    if (text->role != QOMNI_ROLE_USER) {
      g_ptr_array_add (turn->history, text);
      continue;
    }
    part = g_new0 (Part, 1);
    part->kind = KIND_TEXT;
    part->sequence = turn->parts->len;
    part->start = text->time;
    part->text = g_steal_pointer (&text->text);
    g_ptr_array_add (turn->parts, part);
    turn->has_text = TRUE;
    text_free (text);
  }
}

static gint
compare_parts (gconstpointer a, gconstpointer b)
{
  const Part *x = *(Part * const *) a, *y = *(Part * const *) b;

  if (x->start != y->start)
    return x->start < y->start ? -1 : 1;
  if (x->kind != y->kind)
    return x->kind < y->kind ? -1 : 1;
  if (x->pad_index != y->pad_index)
    return x->pad_index < y->pad_index ? -1 : 1;
  return x->sequence < y->sequence ? -1 : 1;
}

/* Gives clips the numbers that the core knows them by, unique in the turn, and
 * with use-audio-in-video the k-th sound of audio_i the number of the k-th video
 * of vision_i, right behind which it is put. */
static void
number_clips (Turn * turn, gboolean use_audio_in_video)
{
  guint64 next = 0;
  guint i, j;

  for (i = 0; i < turn->parts->len; i++)
    ((Part *) g_ptr_array_index (turn->parts, i))->clip = next++;
  if (!use_audio_in_video)
    return;

  for (i = 0; i < turn->parts->len; i++) {
    Part *video = g_ptr_array_index (turn->parts, i);

    if (video->kind != KIND_VISION
        || ((QomniEmbeddings *) g_ptr_array_index (video->blocks, 0))->modality
        != QOMNI_MODALITY_VIDEO)
      continue;
    for (j = 0; j < turn->parts->len; j++) {
      Part *sound = g_ptr_array_index (turn->parts, j);

      if (sound->kind != KIND_AUDIO || sound->in_video
          || sound->pad_index != video->pad_index)
        continue;
      sound->in_video = TRUE;
      sound->clip = video->clip;
      sound = g_ptr_array_steal_index (turn->parts, j);
      if (j < i)
        i--;
      g_ptr_array_insert (turn->parts, i + 1, sound);
      break;
    }
  }
}

/* The next turn that is complete, or NULL. */
static Turn *
collect_turn (GstQomniThinker * self, const Settings * settings)
{
  Survey s = survey (self);
  gint ending = ending_text (self);
  const gboolean settled = self->playing
      || g_get_monotonic_time () >= self->settle_at;
  GstClockTime until = GST_CLOCK_TIME_NONE;
  guint n_texts = 0;
  Turn *turn;

  if (self->n_flushing > 0)
    return NULL;

  if (self->end_requested) {
    n_texts = ending >= 0 ? (guint) ending + 1 : self->texts.length;
  } else if (s.marked && s.reached) {
    n_texts = ending >= 0 ? (guint) ending + 1 : self->texts.length;
    until = s.mark;
  } else if (ending >= 0 && settled && s.n_media_done == s.n_media) {
    n_texts = ending + 1;
  } else if (settled && s.n_pads > 0 && s.n_eos == s.n_pads && s.anything
      && settings->respond_on_eos) {
    n_texts = self->texts.length;
  } else {
    return NULL;
  }

  turn = g_new0 (Turn, 1);
  turn->history = g_ptr_array_new_with_free_func ((GDestroyNotify) text_free);
  turn->parts = g_ptr_array_new_with_free_func ((GDestroyNotify) part_free);
  turn->end = turn->evidence_start = turn->evidence_end = GST_CLOCK_TIME_NONE;
  for (GList * l = self->sinks; l != NULL; l = l->next) {
    GstQomniThinkerPad *pad = l->data;

    if (pad->kind != KIND_TEXT)
      take_blocks (turn, pad, pad->eos ? GST_CLOCK_TIME_NONE : until);
  }
  take_texts (self, turn, n_texts);
  self->end_requested = FALSE;
  g_ptr_array_sort (turn->parts, compare_parts);
  number_clips (turn, settings->use_audio_in_video);
  turn->epoch = self->epoch;
  if (turn->parts->len > 0)
    turn->id = ++self->turn_id;
  g_cond_broadcast (&self->cond);
  return turn;
}

/* Nothing will come any more, and all has been answered. */
static gboolean
is_finished (GstQomniThinker * self, const Settings * settings)
{
  Survey s = survey (self);

  if (self->eos_sent || self->n_flushing > 0 || s.n_pads == 0
      || s.n_eos < s.n_pads)
    return FALSE;
  if (!self->playing && g_get_monotonic_time () < self->settle_at)
    return FALSE;
  return !s.anything || !settings->respond_on_eos;
}

/* --- output queues -------------------------------------------------------- */

/* The rows of the user's turn are what the Talker's prompt is made of, and are
 * sent only once; a cancelled reply must not take them away. */
static gboolean
is_prompt_rows (gpointer item)
{
  GstCustomMeta *meta;

  if (!GST_IS_BUFFER (item))
    return FALSE;
  meta = gst_buffer_get_custom_meta (item, GST_QOMNI_EMBEDDINGS_META_NAME);
  return meta != NULL
      && g_strcmp0 (gst_structure_get_string (gst_custom_meta_get_structure
          (meta), "rows"), "prompt") == 0;
}

/* Appends (full). Buffers of an epoch that is over are dropped, but for the
 * rows of a user's turn; the worker waits while the queue is full. TRUE when it
 * was appended. */
static gboolean
queue_item (GstQomniThinker * self, Source * source, gpointer item,
    guint64 epoch)
{
  const gboolean lasting = is_prompt_rows (item);
  gboolean queued = FALSE;

  g_mutex_lock (&self->lock);
  while (source->pad != NULL && !source->dead && source->items.length
      >= MAX_ITEMS && !self->stopping && epoch == self->epoch)
    g_cond_wait (&self->cond, &self->lock);
  if (source->pad != NULL && !source->dead && !self->stopping
      && (lasting || epoch == self->epoch)) {
    g_queue_push_tail (&source->items, item);
    g_cond_broadcast (&self->cond);
    queued = TRUE;
  }
  g_mutex_unlock (&self->lock);

  if (!queued)
    gst_mini_object_unref (item);
  return queued;
}

/* Drops what waits, under the lock. */
static void
drop_items (Source * source, gboolean eos_too)
{
  GQueue kept = G_QUEUE_INIT;
  gpointer item;

  while ((item = g_queue_pop_head (&source->items)) != NULL) {
    if (is_prompt_rows (item) || (!eos_too && GST_IS_EVENT (item)
            && GST_EVENT_TYPE (item) == GST_EVENT_EOS))
      g_queue_push_tail (&kept, item);
    else
      gst_mini_object_unref (item);
  }
  source->items = kept;
}

static void
clear_items (Source * source)
{
  g_queue_clear_full (&source->items, (GDestroyNotify) gst_mini_object_unref);
}

/* --- the source pads' tasks ----------------------------------------------- */

static Source *
source_of (GstQomniThinker * self, GstPad * pad)
{
  return pad == self->text.pad ? &self->text : &self->hidden;
}

static void
push_heads (GstQomniThinker * self, GstPad * pad, guint heads,
    GstClockTime position)
{
  g_autoptr (QomniModel) model = NULL;
  GstSegment segment;

  if (heads & HEAD_STREAM_START) {
    /* gst_pad_create_stream_id() is for elements with one sink pad. */
    g_autofree gchar *uuid = g_uuid_string_random ();
    g_autofree gchar *id = g_strdup_printf ("%s/%s", uuid, GST_PAD_NAME (pad));
    GstEvent *event = gst_event_new_stream_start (id);
    GstCaps *caps;

    gst_event_set_group_id (event, self->group_id);
    gst_event_set_stream_flags (event, GST_STREAM_FLAG_SPARSE);
    gst_pad_push_event (pad, event);

    if (pad == self->text.pad) {
      caps = gst_static_pad_template_get_caps (&text_template);
    } else {
      model = gst_qomni_client_ref_model (&self->client);
      caps = gst_qomni_model_embeddings_caps (model, QOMNI_MODALITY_THINKER);
    }
    gst_pad_push_event (pad, gst_event_new_caps (caps));
    gst_caps_unref (caps);
  }
  if (heads & HEAD_SEGMENT) {
    gst_segment_init (&segment, GST_FORMAT_TIME);
    gst_pad_push_event (pad, gst_event_new_segment (&segment));
  }
  /* Lets sinks preroll, however long the answer takes. */
  if (heads & HEAD_GAP)
    gst_pad_push_event (pad, gst_event_new_gap (position, GST_CLOCK_TIME_NONE));
}

/* Under the lock. */
static gboolean
preroll_is_due (GstQomniThinker * self, Source * source)
{
  if (self->playing || !g_queue_is_empty (&self->texts)
      || !g_queue_is_empty (&source->items)
      || g_get_monotonic_time () >= self->preroll_at)
    return TRUE;
  for (GList * l = self->sinks; l != NULL; l = l->next)
    if (((GstQomniThinkerPad *) l->data)->started)
      return TRUE;
  return FALSE;
}

/* Waits until the task of `source` has something to do: heads to push, or 0 for
 * the first item. Under the lock; the pad may have become inactive. */
static guint
wait_for_work (GstQomniThinker * self, Source * source)
{
  while (source->active) {
    if (self->n_flushing > 0) {
      g_cond_wait (&self->cond, &self->lock);
      continue;
    }
    if (source->heads & ~HEAD_GAP)
      return source->heads & ~HEAD_GAP;
    if (source->heads & HEAD_GAP) {
      if (preroll_is_due (self, source))
        return HEAD_GAP;
      g_cond_wait_until (&self->cond, &self->lock, self->preroll_at);
      continue;
    }
    if (!g_queue_is_empty (&source->items))
      return 0;
    g_cond_wait (&self->cond, &self->lock);
  }
  return 0;
}

/* NOT_LINKED is fine: the bus carries the replies, too. */
static void
note_flow (GstQomniThinker * self, Source * source, GstFlowReturn ret)
{
  g_autoptr (GCancellable) useless = NULL;
  GstFlowReturn combined;
  gboolean fatal = FALSE, over = FALSE;

  g_mutex_lock (&self->lock);
  combined = gst_flow_combiner_update_pad_flow (self->combiner, source->pad,
      ret);
  if (combined == GST_FLOW_NOT_LINKED || combined == GST_FLOW_FLUSHING)
    combined = GST_FLOW_OK;
  if (self->flow != GST_FLOW_ERROR)
    self->flow = combined;
  if (ret == GST_FLOW_EOS || ret < GST_FLOW_EOS) {
    fatal = ret != GST_FLOW_EOS && !source->dead;
    over = ret == GST_FLOW_EOS && !source->dead;
    source->dead = TRUE;
    clear_items (source);
    g_cond_broadcast (&self->cond);
  }
  if (self->flow != GST_FLOW_OK)
    useless = g_object_ref (self->cancellable);
  g_mutex_unlock (&self->lock);

  if (useless != NULL)
    g_cancellable_cancel (useless);     /* nobody takes the rest of the reply */
  if (fatal)
    GST_ELEMENT_FLOW_ERROR (self, ret);
  /* A sink that has enough ends with an EOS, like behind any source. */
  if (over)
    gst_pad_push_event (source->pad, gst_event_new_eos ());
}

static void
source_loop (GstPad * pad)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (GST_PAD_PARENT (pad));
  Source *source = source_of (self, pad);
  GstFlowReturn ret = GST_FLOW_OK;
  gpointer item = NULL;
  GstClockTime position;
  guint heads;

  g_mutex_lock (&self->lock);
  heads = wait_for_work (self, source);
  if (!source->active) {
    g_mutex_unlock (&self->lock);
    gst_pad_pause_task (pad);
    return;
  }
  source->heads &= ~heads;
  position = source->position;
  if (heads == 0)
    item = g_queue_pop_head (&source->items);
  source->pushing = TRUE;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);

  if (heads != 0) {
    push_heads (self, pad, heads, position);
  } else if (GST_IS_EVENT (item)) {
    gst_pad_push_event (pad, g_steal_pointer (&item));
  } else {
    ret = gst_pad_push (pad, gst_buffer_ref (item));
    note_flow (self, source, ret);
  }

  g_mutex_lock (&self->lock);
  source->pushing = FALSE;
  /* A flush caught it on its way, see is_prompt_rows(). */
  if (item != NULL && ret == GST_FLOW_FLUSHING && is_prompt_rows (item))
    g_queue_push_head (&source->items, g_steal_pointer (&item));
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
  if (item != NULL)
    gst_mini_object_unref (item);
}

static gboolean
source_activate_mode (GstPad * pad, GstObject * parent, GstPadMode mode,
    gboolean active)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);
  Source *source = source_of (self, pad);

  if (mode != GST_PAD_MODE_PUSH)
    return FALSE;

  g_mutex_lock (&self->lock);
  source->active = active;
  if (active) {
    source->heads = HEAD_ALL;
    source->position = 0;
    source->dead = FALSE;
  }
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);

  return active ? gst_pad_start_task (pad, (GstTaskFunction) source_loop, pad,
      NULL) : gst_pad_stop_task (pad);
}

/* --- answering (worker) --------------------------------------------------- */

static void
post_turn_message (GstQomniThinker * self, const Settings * settings,
    const Turn * turn, GstStructure * s)
{
  GstClockTime end = GST_CLOCK_TIME_IS_VALID (turn->end) ? turn->end : 0;

  if (settings->messages == GST_QOMNI_MESSAGES_NONE) {
    gst_structure_free (s);
    return;
  }
  gst_structure_set (s, "turn-id", G_TYPE_UINT64, turn->id,
      "running-time", G_TYPE_UINT64, end,
      "stream-time", G_TYPE_UINT64,
      GST_CLOCK_TIME_IS_VALID (turn->evidence_end) ? turn->evidence_end : end,
      NULL);
  gst_element_post_message (GST_ELEMENT (self),
      gst_message_new_element (GST_OBJECT (self), s));
}

static void
get_sampling (const Settings * settings, const QomniConfig * config,
    QomniSampling * ret)
{
  *ret = config->thinker_sampling;
  if (settings->temperature >= 0) {
    ret->temperature = settings->temperature;
    ret->sample = settings->temperature > 0;
  }
  if (settings->top_k >= 0)
    ret->top_k = settings->top_k;
  if (settings->top_p >= 0)
    ret->top_p = settings->top_p;
  if (settings->repetition_penalty >= 0)
    ret->repetition_penalty = settings->repetition_penalty;
  if (settings->max_tokens > 0)
    ret->max_tokens = settings->max_tokens;
}

static gboolean
ensure_thinker (GstQomniThinker * self, QomniModel * model,
    const Settings * settings, GError ** error)
{
  QomniThinkerParams params;

  if (self->thinker != NULL)
    return TRUE;

  qomni_thinker_params_init (&params, qomni_model_config (model));
  params.seed = settings->seed;
  params.system_prompt = settings->system_prompt;
  params.use_audio_in_video = settings->use_audio_in_video;
  params.want_hidden = self->want_hidden;
  self->thinker = qomni_thinker_new (model, &params, self->stop, error);
  return self->thinker != NULL;
}

/* Hands the turn's parts to the conversation. */
static gboolean
push_turn (GstQomniThinker * self, Turn * turn, const Settings * settings,
    GError ** error)
{
  guint i, j;

  for (i = 0; i < turn->history->len; i++) {
    Text *text = g_ptr_array_index (turn->history, i);

    if (!qomni_thinker_push_history (self->thinker, text->role, text->text,
            error))
      return FALSE;
  }
  for (i = 0; i < turn->parts->len; i++) {
    Part *part = g_ptr_array_index (turn->parts, i);

    if (part->kind == KIND_TEXT) {
      if (!qomni_thinker_push_text (self->thinker, part->text, error))
        return FALSE;
      continue;
    }
    for (j = 0; j < part->blocks->len; j++) {
      QomniEmbeddings *e = g_ptr_array_index (part->blocks, j);

      /* Ours alone: it was read from the buffer for this turn. */
      e->clip = part->clip;
      e->in_video = part->in_video;
      if (!qomni_thinker_push_embeddings (self->thinker, e, error))
        return FALSE;
    }
  }
  if (!turn->has_text && settings->prompt != NULL && *settings->prompt != '\0'
      && turn->parts->len > 0
      && !qomni_thinker_push_text (self->thinker, settings->prompt, error))
    return FALSE;
  return turn->parts->len == 0 || qomni_thinker_end_turn (self->thinker, error);
}

static void
emit_text (GstQomniThinker * self, const Turn * turn, gchar * unit,
    gboolean final)
{
  gsize length = strlen (unit);
  GstClockTime duration = gst_qomni_text_duration (unit);
  GstBuffer *buffer;

  buffer = gst_buffer_new_wrapped (unit, length);
  g_mutex_lock (&self->lock);
  GST_BUFFER_PTS (buffer) = self->text.position;
  if (turn->epoch == self->epoch)
    self->text.position += duration;
  g_mutex_unlock (&self->lock);
  GST_BUFFER_DURATION (buffer) = duration;
  if (final)
    GST_BUFFER_FLAG_SET (buffer, GST_BUFFER_FLAG_MARKER);
  gst_qomni_text_buffer_add_meta (buffer, turn->id, final, "assistant");
  queue_item (self, &self->text, buffer, turn->epoch);
}

static void
emit_rows (GstQomniThinker * self, const Turn * turn, QomniEmbeddings * rows)
{
  GstBuffer *buffer = gst_qomni_embeddings_to_buffer (rows);

  gst_qomni_embeddings_buffer_set_turn_id (buffer, turn->id);
  g_mutex_lock (&self->lock);
  GST_BUFFER_PTS (buffer) = self->hidden.position;
  g_mutex_unlock (&self->lock);
  if (rows->rows_kind == QOMNI_ROWS_END)
    GST_BUFFER_FLAG_SET (buffer, GST_BUFFER_FLAG_MARKER);
  queue_item (self, &self->hidden, buffer, turn->epoch);
}

/* A reply that broke off has no END of its own. */
static void
emit_end (GstQomniThinker * self, const Turn * turn)
{
  g_autoptr (QomniModel) model = gst_qomni_client_ref_model (&self->client);
  g_autoptr (QomniEmbeddings) end = qomni_embeddings_new
      (QOMNI_MODALITY_THINKER, 0, 2,
      qomni_model_config (model)->text.hidden_size, NULL);

  if (end == NULL)
    return;
  end->rows_kind = QOMNI_ROWS_END;
  emit_rows (self, turn, end);
}

typedef struct
{
  GString *text;
  QomniFinish finish;
  gboolean any_text;            /* a buffer was made */
  gboolean open_rows;           /* rows were sent, END was not */
  gint64 begin, first;          /* monotonic us; first 0: no text yet */
} Reply;

/* Steps until the reply is complete. */
static gboolean
run_reply (GstQomniThinker * self, const Turn * turn,
    const Settings * settings, Reply * reply, GCancellable * cancellable,
    GError ** error)
{
  g_autoptr (GstQomniText) units = gst_qomni_text_new (settings->granularity);
  gboolean done = FALSE;
  gchar *unit;

  while (!done) {
    QomniThinkerStep step;

    if (!qomni_thinker_step (self->thinker, &step, cancellable, error)) {
      reply->finish = QOMNI_FINISH_CANCELLED;
      return FALSE;
    }
    for (int i = 0; i < step.n_hidden; i++) {
      reply->open_rows = step.hidden[i]->rows_kind != QOMNI_ROWS_END;
      emit_rows (self, turn, step.hidden[i]);
    }
    if (reply->first == 0) {
      reply->first = g_get_monotonic_time ();
      post_turn_message (self, settings, turn,
          gst_structure_new_empty ("qomni/response-start"));
    }
    GST_TRACE_OBJECT (self, "token %d", step.token);
    g_string_append (reply->text, step.text);
    gst_qomni_text_push (units, step.text);
    while ((unit = gst_qomni_text_pull (units)) != NULL) {
      reply->any_text = TRUE;
      emit_text (self, turn, unit, FALSE);
    }
    done = step.done;
    reply->finish = step.finish;
    qomni_thinker_step_clear (&step);
  }

  unit = gst_qomni_text_finish (units);
  if (unit != NULL) {
    reply->any_text = TRUE;
    emit_text (self, turn, unit, TRUE);
  }
  return TRUE;
}

static void
report_failure (GstQomniThinker * self, const GError * error)
{
  if (!gst_qomni_post_failure (GST_ELEMENT (self), error, "generate",
          &self->n_failures))
    return;
  g_mutex_lock (&self->lock);
  self->flow = GST_FLOW_ERROR;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

static void
finish_reply (GstQomniThinker * self, const Turn * turn,
    const Settings * settings, const Reply * reply, const GError * error)
{
  const gboolean ok = error == NULL;
  const gchar *reason = ok ? qomni_finish_name (reply->finish) :
      g_error_matches (error, G_IO_ERROR, G_IO_ERROR_CANCELLED) ? "cancelled" :
      "error";
  const gint64 now = g_get_monotonic_time ();
  const gint64 tokens = qomni_thinker_reply_tokens (self->thinker);
  const gint64 prompt_tokens = qomni_thinker_prompt_tokens (self->thinker);
  GstClockTime ttft = reply->first > 0
      ? (GstClockTime) (reply->first - reply->begin) * GST_USECOND
      : GST_CLOCK_TIME_NONE;
  GstStructure *s;

  g_mutex_lock (&self->lock);
  self->n_turns++;
  self->n_prompt_tokens += prompt_tokens;
  self->n_reply_tokens += tokens;
  if (!ok && turn->epoch == self->epoch)
    self->n_failed++;
  if (GST_CLOCK_TIME_IS_VALID (ttft)) {
    self->last_ttft = ttft;
    self->sum_ttft += ttft;
  }
  g_mutex_unlock (&self->lock);

  s = gst_structure_new ("qomni/response-done",
      "text", G_TYPE_STRING, reply->text->str,
      "tokens", G_TYPE_INT64, tokens,
      "prompt-tokens", G_TYPE_INT64, prompt_tokens,
      "ttft", G_TYPE_UINT64, ttft,
      "duration", G_TYPE_UINT64,
      (GstClockTime) (now - reply->begin) * GST_USECOND,
      "finish-reason", G_TYPE_STRING, reason, NULL);
  if (GST_CLOCK_TIME_IS_VALID (turn->evidence_start))
    gst_structure_set (s,
        "evidence-start", G_TYPE_UINT64, turn->evidence_start,
        "evidence-end", G_TYPE_UINT64, turn->evidence_end, NULL);
  post_turn_message (self, settings, turn, s);
}

static void
answer (GstQomniThinker * self, QomniModel * model, Turn * turn,
    const Settings * settings)
{
  g_autoptr (GCancellable) cancellable = NULL;
  g_autoptr (GError) error = NULL;
  QomniSampling sampling;
  Reply reply = {.text = NULL };
  GstClockTime start;
  gboolean reset;

  if (!ensure_thinker (self, model, settings, &error)) {
    report_failure (self, error);
    return;
  }

  g_mutex_lock (&self->lock);
  reset = self->reset_requested;
  self->reset_requested = FALSE;
  cancellable = g_object_ref (self->cancellable);
  if (turn->epoch == self->epoch) {
    start = GST_CLOCK_TIME_IS_VALID (turn->end) ? turn->end : 0;
    self->text.position = MAX (self->text.position, start);
    self->hidden.position = MAX (self->hidden.position, start);
  }
  g_mutex_unlock (&self->lock);

  if (reset) {
    qomni_thinker_set_system_prompt (self->thinker, settings->system_prompt);
    qomni_thinker_reset (self->thinker);
  }
  get_sampling (settings, qomni_model_config (model), &sampling);
  qomni_thinker_set_sampling (self->thinker, &sampling);

  GST_INFO_OBJECT (self, "turn %" G_GUINT64_FORMAT " with %u parts, end %"
      GST_TIME_FORMAT, turn->id, turn->parts->len, GST_TIME_ARGS (turn->end));
  if (turn->parts->len > 0)
    post_turn_message (self, settings, turn,
        gst_structure_new_empty ("qomni/turn-start"));

  reply.begin = g_get_monotonic_time ();
  if (!push_turn (self, turn, settings, &error)) {
    qomni_thinker_drop_turn (self->thinker);
    report_failure (self, error);
  }
  if (turn->parts->len == 0)
    return;                     /* history only */

  reply.text = g_string_new (NULL);
  if (error == NULL) {
    if (run_reply (self, turn, settings, &reply, cancellable, &error))
      self->n_failures = 0;
    else
      report_failure (self, error);
  }
  if (reply.open_rows)
    emit_end (self, turn);
  if (!reply.any_text) {
    g_mutex_lock (&self->lock);
    start = self->text.position;
    g_mutex_unlock (&self->lock);
    queue_item (self, &self->text, gst_event_new_gap (start,
            GST_CLOCK_TIME_NONE), turn->epoch);
  }
  finish_reply (self, turn, settings, &reply, error);
  g_string_free (reply.text, TRUE);
}

static gpointer
worker_thread (gpointer user_data)
{
  GstQomniThinker *self = user_data;
  g_autoptr (QomniModel) model = gst_qomni_client_ref_model (&self->client);
  gboolean failed;

  if (!gst_qomni_client_wait (&self->client, self->stop, &failed)) {
    g_mutex_lock (&self->lock);
    if (failed)
      self->flow = GST_FLOW_ERROR;
    g_cond_broadcast (&self->cond);
    g_mutex_unlock (&self->lock);
    return NULL;
  }

  g_mutex_lock (&self->lock);
  while (!self->stopping) {
    g_auto (Settings) settings = {.prompt = NULL };
    g_autoptr (Turn) turn = NULL;

    /* Settings are under the object lock, which is the inner one. */
    copy_settings (self, &settings);
    if (self->flow == GST_FLOW_OK)
      turn = collect_turn (self, &settings);
    if (turn != NULL) {
      g_object_unref (self->cancellable);
      self->cancellable = g_cancellable_new ();
      self->replying = TRUE;
      g_mutex_unlock (&self->lock);
      answer (self, model, turn, &settings);
      g_mutex_lock (&self->lock);
      self->replying = FALSE;
      continue;
    }
    if (self->flow == GST_FLOW_OK && is_finished (self, &settings)) {
      guint64 epoch = self->epoch;

      self->eos_sent = TRUE;
      g_mutex_unlock (&self->lock);
      queue_item (self, &self->text, gst_event_new_eos (), epoch);
      queue_item (self, &self->hidden, gst_event_new_eos (), epoch);
      g_mutex_lock (&self->lock);
      continue;
    }
    if (!self->playing && g_get_monotonic_time () < self->settle_at)
      g_cond_wait_until (&self->cond, &self->lock, self->settle_at);
    else
      g_cond_wait (&self->cond, &self->lock);
  }
  g_mutex_unlock (&self->lock);
  return NULL;
}

/* --- cancelling ----------------------------------------------------------- */

/* Ends the reply of the moment and drops what it left behind; under the lock.
 * The caller cancels what is returned without it, as cancelling calls back. */
static GCancellable *
cancel_reply (GstQomniThinker * self, gboolean eos_too)
{
  self->epoch++;
  drop_items (&self->text, eos_too);
  drop_items (&self->hidden, eos_too);
  if (eos_too)
    self->eos_sent = FALSE;
  g_cond_broadcast (&self->cond);
  return g_object_ref (self->cancellable);
}

/* The pad of a source with a reference, or NULL. */
static GstPad *
ref_pad (GstQomniThinker * self, Source * source)
{
  GstPad *pad;

  g_mutex_lock (&self->lock);
  pad = source->pad != NULL ? gst_object_ref (source->pad) : NULL;
  g_mutex_unlock (&self->lock);
  return pad;
}

static void
interrupt (GstQomniThinker * self, guint64 turn_id, const gchar * reason)
{
  g_auto (Settings) settings = {.prompt = NULL };
  g_autoptr (GCancellable) cancellable = NULL;
  g_autoptr (GstPad) hidden = NULL;
  Turn turn = {.evidence_end = GST_CLOCK_TIME_NONE };
  gboolean speaking;
  guint64 current;

  copy_settings (self, &settings);
  g_mutex_lock (&self->lock);
  current = self->turn_id;
  /* The talker may be busy with a reply that has been written already. */
  speaking = current > 0 && current <= turn_id && (self->replying
      || self->hidden.pad != NULL || self->text.items.length > 0);
  if (speaking)
    cancellable = cancel_reply (self, FALSE);
  turn.id = current;
  turn.end = self->text.position;
  g_mutex_unlock (&self->lock);
  if (!speaking)
    return;

  GST_INFO_OBJECT (self, "turn %" G_GUINT64_FORMAT " interrupted: %s", current,
      GST_STR_NULL (reason));
  g_cancellable_cancel (cancellable);
  hidden = ref_pad (self, &self->hidden);
  if (hidden != NULL)
    gst_pad_push_event (hidden, gst_qomni_event_new_interrupt (FALSE, current,
            reason));
  post_turn_message (self, &settings, &turn,
      gst_structure_new ("qomni/interrupted",
          "reason", G_TYPE_STRING, reason, NULL));
}

static void
flush_start (GstQomniThinker * self, GstQomniThinkerPad * pad)
{
  g_autoptr (GCancellable) cancellable = NULL;
  g_autoptr (GstPad) text = NULL, hidden = NULL;
  gboolean first;

  g_mutex_lock (&self->lock);
  pad->flushing = TRUE;
  pad->n_flushes++;
  pad_clear_blocks (pad);
  for (GList * l = self->texts.head; l != NULL;) {
    GList *next = l->next;

    if (((Text *) l->data)->pad == pad) {
      text_free (l->data);
      g_queue_delete_link (&self->texts, l);
    }
    l = next;
  }
  first = self->n_flushing++ == 0;
  if (first)
    cancellable = cancel_reply (self, TRUE);
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
  if (!first)
    return;

  g_cancellable_cancel (cancellable);
  text = ref_pad (self, &self->text);
  hidden = ref_pad (self, &self->hidden);
  gst_pad_push_event (text, gst_event_new_flush_start ());
  if (hidden != NULL)
    gst_pad_push_event (hidden, gst_event_new_flush_start ());
}

static void
flush_stop (GstQomniThinker * self, GstQomniThinkerPad * pad,
    gboolean reset_time)
{
  g_autoptr (GstPad) text = NULL, hidden = NULL;
  g_auto (Settings) settings = {.prompt = NULL };
  gboolean stray, last;

  copy_settings (self, &settings);
  text = ref_pad (self, &self->text);
  hidden = ref_pad (self, &self->hidden);

  g_mutex_lock (&self->lock);
  stray = pad->n_flushes == 0;  /* it belongs to no flush of ours */
  last = !stray && self->n_flushing == 1;
  /* Nothing from before may come after: wait for pushes that are on their way,
   * which downstream lets go of at once. */
  while (last && !self->stopping && (self->text.pushing
          || self->hidden.pushing))
    g_cond_wait (&self->cond, &self->lock);
  g_mutex_unlock (&self->lock);

  if (last) {
    gst_pad_push_event (text, gst_event_new_flush_stop (reset_time));
    if (hidden != NULL)
      gst_pad_push_event (hidden, gst_event_new_flush_stop (reset_time));
  }

  g_mutex_lock (&self->lock);
  if (pad->n_flushes > 0) {
    pad->n_flushes--;
    self->n_flushing--;
  }
  pad->flushing = pad->n_flushes > 0 || !pad->active;
  pad->eos = FALSE;
  pad->in_clip = FALSE;
  pad->position = GST_CLOCK_TIME_NONE;
  gst_segment_init (&pad->segment, GST_FORMAT_UNDEFINED);
  if (last) {
    self->text.heads |= HEAD_SEGMENT | HEAD_GAP;
    self->hidden.heads |= HEAD_SEGMENT | HEAD_GAP;
    self->text.dead = self->hidden.dead = FALSE;
    if (reset_time)
      self->text.position = self->hidden.position = 0;
    gst_flow_combiner_reset (self->combiner);
    if (self->flow == GST_FLOW_EOS)
      self->flow = GST_FLOW_OK;
    self->reset_requested |= settings.reset_on_flush;
  }
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

/* --- sink pads: data ------------------------------------------------------ */

/* Appends a block (full), waiting while turns enough wait already. */
static GstFlowReturn
append_block (GstQomniThinker * self, GstQomniThinkerPad * pad, Block * block)
{
  GstFlowReturn ret = GST_FLOW_OK;
  gboolean too_long = FALSE;

  g_mutex_lock (&self->lock);
  while (pad->n_marks >= MAX_WAITING_TURNS && !pad->flushing
      && !self->stopping && self->flow == GST_FLOW_OK)
    g_cond_wait (&self->cond, &self->lock);

  if (pad->flushing || self->stopping)
    ret = GST_FLOW_FLUSHING;
  else if (self->flow != GST_FLOW_OK)
    ret = self->flow;
  else if (pad->n_tokens > MAX_TURN_TOKENS)
    too_long = TRUE;

  if (ret == GST_FLOW_OK && !too_long) {
    pad->position = later (pad->position, block->end);
    if (block->embeddings == NULL)
      pad->n_marks++;
    else
      pad->n_tokens += block->embeddings->n_tokens;
    g_queue_push_tail (&pad->blocks, g_steal_pointer (&block));
    g_cond_broadcast (&self->cond);
  }
  g_mutex_unlock (&self->lock);

  g_clear_pointer (&block, block_free);
  if (too_long) {
    GST_ELEMENT_ERROR (self, STREAM, FAILED,
        ("The turn is too long for the model."),
        ("more than %d tokens on %s:%s", MAX_TURN_TOKENS,
            GST_DEBUG_PAD_NAME (pad)));
    return GST_FLOW_ERROR;
  }
  return ret;
}

static GstFlowReturn
media_chain (GstPad * gstpad, GstObject * parent, GstBuffer * buffer)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);
  GstQomniThinkerPad *pad = GST_QOMNI_THINKER_PAD (gstpad);
  g_autoptr (GstBuffer) input = buffer;
  g_autoptr (GError) error = NULL;
  QomniEmbeddings *e;
  GstClockTime pts = GST_BUFFER_PTS (input), end;
  Block *block;

  e = gst_qomni_embeddings_from_buffer (input, &error);
  if (e != NULL && e->modality == QOMNI_MODALITY_THINKER) {
    g_clear_pointer (&e, qomni_embeddings_unref);
    qomni_fail (&error, QOMNI_ERROR_INPUT, "rows for a talker on %s:%s",
        GST_DEBUG_PAD_NAME (pad));
  }
  if (e == NULL) {
    gst_qomni_post_error (GST_ELEMENT (self), error, "receive");
    return GST_FLOW_ERROR;
  }
  if (!GST_CLOCK_TIME_IS_VALID (pts)) {
    qomni_embeddings_unref (e);
    GST_ELEMENT_ERROR (self, STREAM, FORMAT,
        ("Embeddings without a time stamp cannot be placed."), (NULL));
    return GST_FLOW_ERROR;
  }
  end = GST_BUFFER_DURATION_IS_VALID (input)
      ? pts + GST_BUFFER_DURATION (input) : pts;

  if (!pad->in_clip || e->clip != pad->last_clip
      || e->modality == QOMNI_MODALITY_IMAGE)
    pad->clip++;
  pad->in_clip = !e->last;
  pad->last_clip = e->clip;

  block = g_new0 (Block, 1);
  block->embeddings = e;
  block->clip = pad->clip;
  block->start = gst_segment_to_running_time (&pad->segment, GST_FORMAT_TIME,
      pts);
  block->end = gst_segment_to_running_time (&pad->segment, GST_FORMAT_TIME,
      end);
  block->end = later (block->end, block->start);
  block->stream_start = gst_segment_to_stream_time (&pad->segment,
      GST_FORMAT_TIME, pts);
  block->stream_end = later (gst_segment_to_stream_time (&pad->segment,
          GST_FORMAT_TIME, end), block->stream_start);
  GST_LOG_OBJECT (pad, "%" G_GINT64_FORMAT " tokens of clip %" G_GUINT64_FORMAT
      " at %" GST_TIME_FORMAT, (gint64) e->n_tokens, block->clip,
      GST_TIME_ARGS (block->start));
  return append_block (self, pad, block);
}

/* The text of a buffer as clean UTF-8, NULL when there is none or too much. */
static gchar *
read_text (GstQomniThinker * self, GstBuffer * buffer)
{
  g_autofree gchar *copy = NULL;
  gchar *clean;
  GstMapInfo map;
  gsize n = 0;

  if (!gst_buffer_map (buffer, &map, GST_MAP_READ)) {
    GST_ELEMENT_WARNING (self, RESOURCE, READ, ("A text could not be read."),
        (NULL));
    return NULL;
  }
  if (map.size > MAX_TEXT_BYTES) {
    GST_ELEMENT_WARNING (self, STREAM, FORMAT,
        ("A text is too long and was left out."),
        ("%" G_GSIZE_FORMAT " bytes, limit %d", map.size, MAX_TEXT_BYTES));
    gst_buffer_unmap (buffer, &map);
    return NULL;
  }
  /* No NULs, no line end at the end. */
  copy = g_malloc (map.size + 1);
  for (gsize i = 0; i < map.size; i++)
    if (map.data[i] != '\0')
      copy[n++] = (gchar) map.data[i];
  gst_buffer_unmap (buffer, &map);
  while (n > 0 && (copy[n - 1] == '\n' || copy[n - 1] == '\r'))
    n--;
  copy[n] = '\0';
  if (n == 0)
    return NULL;

  if (g_utf8_validate (copy, n, NULL))
    return g_steal_pointer (&copy);
  clean = g_utf8_make_valid (copy, n);
  GST_ELEMENT_WARNING (self, STREAM, FORMAT,
      ("A text is not valid UTF-8; the bytes at fault were replaced."), (NULL));
  return clean;
}

static GstFlowReturn
append_text (GstQomniThinker * self, GstQomniThinkerPad * pad, Text * text)
{
  GstFlowReturn ret = GST_FLOW_OK;

  g_mutex_lock (&self->lock);
  while (self->texts.length >= MAX_WAITING_TEXTS && !pad->flushing
      && !self->stopping && self->flow == GST_FLOW_OK)
    g_cond_wait (&self->cond, &self->lock);
  if (pad->flushing || self->stopping)
    ret = GST_FLOW_FLUSHING;
  else
    ret = self->flow;
  if (ret == GST_FLOW_OK) {
    g_queue_push_tail (&self->texts, g_steal_pointer (&text));
    g_cond_broadcast (&self->cond);
  }
  g_mutex_unlock (&self->lock);
  g_clear_pointer (&text, text_free);
  return ret;
}

static GstFlowReturn
text_chain (GstPad * gstpad, GstObject * parent, GstBuffer * buffer)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);
  GstQomniThinkerPad *pad = GST_QOMNI_THINKER_PAD (gstpad);
  g_autoptr (GstBuffer) input = buffer;
  g_autofree gchar *string = read_text (self, input);
  Text *text;

  if (string == NULL)
    return GST_FLOW_OK;
  text = g_new0 (Text, 1);
  text->text = g_steal_pointer (&string);
  text->role = QOMNI_ROLE_USER;
  text->ends = text_ends_turn (self);
  text->pad = pad;
  text->time = GST_CLOCK_TIME_NONE;
  if (pad->segment.format == GST_FORMAT_TIME)
    text->time = gst_segment_to_running_time (&pad->segment, GST_FORMAT_TIME,
        GST_BUFFER_PTS (input));
  return append_text (self, pad, text);
}

/* The end of a turn at `time` on `pad`. */
static gboolean
append_turn_end (GstQomniThinker * self, GstQomniThinkerPad * pad,
    GstClockTime time)
{
  if (pad->kind == KIND_TEXT) {
    Text *text = g_new0 (Text, 1);

    text->ends = TRUE;
    text->role = QOMNI_ROLE_USER;
    text->time = time;
    text->pad = pad;
    return append_text (self, pad, text) == GST_FLOW_OK;
  } else {
    Block *block = g_new0 (Block, 1);

    block->start = block->end = time;
    pad->in_clip = FALSE;
    return append_block (self, pad, block) == GST_FLOW_OK;
  }
}

/* --- sink pads: events and queries ---------------------------------------- */

static gboolean
check_caps (GstQomniThinker * self, GstQomniThinkerPad * pad, GstCaps * caps)
{
  g_autoptr (QomniModel) model = NULL;
  g_autoptr (GError) error = NULL;

  if (pad->kind == KIND_TEXT)
    return TRUE;
  model = gst_qomni_client_ref_model (&self->client);
  if (model == NULL)
    return FALSE;
  if (gst_qomni_model_check_caps (model, caps, pad->kind == KIND_AUDIO
          ? QOMNI_MODALITY_AUDIO : QOMNI_MODALITY_VIDEO, &error)) {
    pad->refused = FALSE;
    return TRUE;
  }
  /* A sticky event that is refused is sent again with each buffer. */
  if (!pad->refused)
    gst_qomni_post_error (GST_ELEMENT (self), error, "negotiate");
  pad->refused = TRUE;
  return FALSE;
}

static gboolean
take_segment (GstQomniThinker * self, GstQomniThinkerPad * pad,
    GstEvent * event)
{
  const GstSegment *segment;

  gst_event_parse_segment (event, &segment);
  /* A text from a file or a pipe has no time, and needs none. */
  if (segment->format != GST_FORMAT_TIME && pad->kind != KIND_TEXT) {
    if (!pad->refused)
      GST_ELEMENT_ERROR (self, STREAM, FORMAT,
          ("Media without time stamps cannot be placed."),
          ("segment of format %s, expected time",
              gst_format_get_name (segment->format)));
    pad->refused = TRUE;
    return FALSE;
  }
  pad->refused = FALSE;
  gst_segment_copy_into (segment, &pad->segment);
  g_mutex_lock (&self->lock);
  pad->started = TRUE;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
  return TRUE;
}

/* The stream begins; anew, when there was one before. */
static void
begin_stream (GstQomniThinker * self, GstQomniThinkerPad * pad)
{
  gboolean again;

  g_mutex_lock (&self->lock);
  again = pad->n_tokens > 0 && !pad->eos;
  if (pad->eos && self->eos_sent) {
    self->eos_sent = FALSE;
    self->text.heads = self->hidden.heads = HEAD_ALL;
  }
  pad->eos = FALSE;
  g_mutex_unlock (&self->lock);
  if (again)
    append_turn_end (self, pad, pad->position);
}

static void
end_stream (GstQomniThinker * self, GstQomniThinkerPad * pad)
{
  g_mutex_lock (&self->lock);
  pad->eos = TRUE;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

static void
take_gap (GstQomniThinker * self, GstQomniThinkerPad * pad, GstEvent * event)
{
  GstClockTime timestamp, duration;

  gst_event_parse_gap (event, &timestamp, &duration);
  if (GST_CLOCK_TIME_IS_VALID (duration))
    timestamp += duration;
  if (pad->segment.format != GST_FORMAT_TIME)
    return;
  timestamp = gst_segment_to_running_time (&pad->segment, GST_FORMAT_TIME,
      timestamp);
  g_mutex_lock (&self->lock);
  pad->position = later (pad->position, timestamp);
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

/* The source pads have streams of their own, so nothing is passed on but
 * tags of the application's and custom events nobody here knows. */
static gboolean
sink_event (GstPad * gstpad, GstObject * parent, GstEvent * event)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);
  GstQomniThinkerPad *pad = GST_QOMNI_THINKER_PAD (gstpad);
  gboolean ret = TRUE, reset_time;
  const gchar *reason;
  GstClockTime time;
  guint64 turn_id;
  GstCaps *caps;

  switch (GST_EVENT_TYPE (event)) {
    case GST_EVENT_FLUSH_START:
      flush_start (self, pad);
      break;
    case GST_EVENT_FLUSH_STOP:
      gst_event_parse_flush_stop (event, &reset_time);
      flush_stop (self, pad, reset_time);
      break;
    case GST_EVENT_STREAM_START:
      begin_stream (self, pad);
      break;
    case GST_EVENT_CAPS:
      gst_event_parse_caps (event, &caps);
      ret = check_caps (self, pad, caps);
      break;
    case GST_EVENT_SEGMENT:
      ret = take_segment (self, pad, event);
      break;
    case GST_EVENT_GAP:
      take_gap (self, pad, event);
      break;
    case GST_EVENT_EOS:
      end_stream (self, pad);
      break;
    case GST_EVENT_CUSTOM_DOWNSTREAM:
    case GST_EVENT_CUSTOM_DOWNSTREAM_OOB:
      if (gst_qomni_event_parse_turn_end (event, &time))
        ret = append_turn_end (self, pad, time);
      else if (gst_qomni_event_parse_interrupt (event, &turn_id, &reason))
        interrupt (self, turn_id, reason);
      break;
    default:
      break;
  }
  gst_event_unref (event);
  return ret;
}

static gboolean
sink_query (GstPad * pad, GstObject * parent, GstQuery * query)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);

  if (gst_qomni_client_query (&self->client, query))
    return TRUE;
  /* The source pads' caps have nothing to do with these. */
  if (GST_QUERY_TYPE (query) == GST_QUERY_ALLOCATION)
    return FALSE;
  return gst_pad_query_default (pad, parent, query);
}

static gboolean
sink_activate_mode (GstPad * gstpad, GstObject * parent, GstPadMode mode,
    gboolean active)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);
  GstQomniThinkerPad *pad = GST_QOMNI_THINKER_PAD (gstpad);

  if (mode != GST_PAD_MODE_PUSH)
    return FALSE;
  g_mutex_lock (&self->lock);
  self->n_flushing -= pad->n_flushes;   /* their FLUSH_STOPs will not come */
  pad->n_flushes = 0;
  pad->active = active;
  pad->flushing = !active;
  pad->eos = pad->started = FALSE;
  pad->position = GST_CLOCK_TIME_NONE;
  pad_clear_blocks (pad);
  if (active) {
    gst_segment_init (&pad->segment, GST_FORMAT_UNDEFINED);
    pad->refused = pad->in_clip = FALSE;
  }
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
  return TRUE;
}

static void
sink_link_changed (GstPad * gstpad, GstPad * peer, GstQomniThinker * self)
{
  g_mutex_lock (&self->lock);
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

void
gst_qomni_thinker_pad_set_in_use (GstPad * gstpad, gboolean in_use)
{
  g_autoptr (GstElement) parent = gst_pad_get_parent_element (gstpad);
  GstQomniThinker *self;

  if (parent == NULL)
    return;
  self = GST_QOMNI_THINKER (parent);
  g_mutex_lock (&self->lock);
  GST_QOMNI_THINKER_PAD (gstpad)->idle = !in_use;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

/* --- source pads: events and queries -------------------------------------- */

static gboolean
source_event (GstPad * pad, GstObject * parent, GstEvent * event)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);
  const gchar *reason;
  guint64 turn_id;

  switch (GST_EVENT_TYPE (event)) {
    case GST_EVENT_QOS:
      /* How late an answer is says nothing about the question. */
      gst_event_unref (event);
      return TRUE;
    case GST_EVENT_CUSTOM_UPSTREAM:
      if (gst_qomni_event_parse_interrupt (event, &turn_id, &reason)) {
        interrupt (self, turn_id, reason);
        gst_event_unref (event);
        return TRUE;
      }
      break;
    default:
      break;
  }
  return gst_pad_event_default (pad, parent, event);
}

static gboolean
upstream_is_live (GstQomniThinker * self)
{
  g_autoptr (GstQuery) query = gst_query_new_latency ();
  GList *pads = NULL;
  gboolean live = FALSE;

  g_mutex_lock (&self->lock);
  for (GList * l = self->sinks; l != NULL; l = l->next)
    pads = g_list_prepend (pads, gst_object_ref (l->data));
  g_mutex_unlock (&self->lock);
  for (GList * l = pads; l != NULL && !live; l = l->next)
    if (gst_pad_peer_query (l->data, query))
      gst_query_parse_latency (query, &live, NULL, NULL);
  g_list_free_full (pads, gst_object_unref);
  return live;
}

static gboolean
source_query (GstPad * pad, GstObject * parent, GstQuery * query)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (parent);

  if (gst_qomni_client_query (&self->client, query))
    return TRUE;
  if (GST_QUERY_TYPE (query) == GST_QUERY_LATENCY) {
    /* An answer is no delayed question: upstream's numbers do not add up. */
    gst_query_set_latency (query, upstream_is_live (self), 0,
        GST_CLOCK_TIME_NONE);
    return TRUE;
  }
  return gst_pad_query_default (pad, parent, query);
}

static void
set_up_source (GstQomniThinker * self, Source * source, GstPad * pad)
{
  gst_pad_set_activatemode_function (pad, source_activate_mode);
  gst_pad_set_event_function (pad, source_event);
  gst_pad_set_query_function (pad, source_query);
  gst_pad_use_fixed_caps (pad);

  g_mutex_lock (&self->lock);
  source->pad = pad;
  gst_flow_combiner_add_pad (self->combiner, pad);
  g_mutex_unlock (&self->lock);
}

/* --- request pads --------------------------------------------------------- */

static GstPad *
request_hidden (GstQomniThinker * self, GstPadTemplate * templ)
{
  GstPad *pad;

  if (self->hidden.pad != NULL) {
    GST_WARNING_OBJECT (self, "there is one hidden pad only");
    return NULL;
  }
  if (GST_STATE (self) > GST_STATE_READY
      || GST_STATE_NEXT (self) > GST_STATE_READY) {
    GST_WARNING_OBJECT (self, "too late: request the hidden pad in NULL or "
        "READY");
    return NULL;
  }
  pad = gst_pad_new_from_template (templ, "hidden");
  set_up_source (self, &self->hidden, pad);
  gst_element_add_pad (GST_ELEMENT (self), pad);
  return pad;
}

static GstPad *
gst_qomni_thinker_request_new_pad (GstElement * element,
    GstPadTemplate * templ, const gchar * name, const GstCaps * caps)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (element);
  const gchar *prefix = GST_PAD_TEMPLATE_NAME_TEMPLATE (templ);
  g_autofree gchar *own_name = NULL;
  GstQomniThinkerPad *pad;
  guint index = 0;
  Kind kind;

  if (GST_PAD_TEMPLATE_DIRECTION (templ) == GST_PAD_SRC)
    return request_hidden (self, templ);

  kind = g_str_has_prefix (prefix, "audio") ? KIND_AUDIO :
      g_str_has_prefix (prefix, "vision") ? KIND_VISION : KIND_TEXT;
  g_mutex_lock (&self->lock);
  if (name == NULL || strchr (name, '_') == NULL
      || !g_ascii_string_to_unsigned (strchr (name, '_') + 1, 10, 0,
          G_MAXINT, NULL, NULL))
    index = self->next_index[kind];
  else
    index = (guint) g_ascii_strtoull (strchr (name, '_') + 1, NULL, 10);
  self->next_index[kind] = MAX (self->next_index[kind], index + 1);
  g_mutex_unlock (&self->lock);

  own_name = g_strdup_printf ("%.*s%u", (int) strcspn (prefix, "%"), prefix,
      index);
  pad = g_object_new (GST_TYPE_QOMNI_THINKER_PAD, "name", own_name,
      "direction", GST_PAD_SINK, "template", templ, NULL);
  pad->kind = kind;
  pad->index = index;
  gst_pad_set_chain_function (GST_PAD (pad),
      kind == KIND_TEXT ? text_chain : media_chain);
  gst_pad_set_event_function (GST_PAD (pad), sink_event);
  gst_pad_set_query_function (GST_PAD (pad), sink_query);
  gst_pad_set_activatemode_function (GST_PAD (pad), sink_activate_mode);
  g_signal_connect_object (pad, "linked", G_CALLBACK (sink_link_changed), self,
      0);
  g_signal_connect_object (pad, "unlinked", G_CALLBACK (sink_link_changed),
      self, 0);

  g_mutex_lock (&self->lock);
  self->sinks = g_list_append (self->sinks, pad);
  g_mutex_unlock (&self->lock);
  if (!gst_element_add_pad (element, GST_PAD (pad))) {
    g_mutex_lock (&self->lock);
    self->sinks = g_list_remove (self->sinks, pad);
    g_mutex_unlock (&self->lock);
    return NULL;
  }
  return GST_PAD (pad);
}

static void
gst_qomni_thinker_release_pad (GstElement * element, GstPad * pad)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (element);
  gboolean flushing = FALSE;

  gst_object_ref (pad);
  if (GST_PAD_IS_SINK (pad)) {
    g_mutex_lock (&self->lock);
    flushing = GST_QOMNI_THINKER_PAD (pad)->n_flushes > 0;
    g_mutex_unlock (&self->lock);
  }
  /* Downstream heard of a flush whose end will not come. */
  if (flushing)
    gst_pad_send_event (pad, gst_event_new_flush_stop (FALSE));
  gst_pad_set_active (pad, FALSE);
  g_mutex_lock (&self->lock);
  if (pad == self->hidden.pad) {
    gst_flow_combiner_remove_pad (self->combiner, pad);
    self->hidden.pad = NULL;
    clear_items (&self->hidden);
  } else {
    self->sinks = g_list_remove (self->sinks, pad);
  }
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
  gst_element_remove_pad (element, pad);
  gst_object_unref (pad);
}

/* --- action signals ------------------------------------------------------- */

static gboolean
gst_qomni_thinker_send_text (GstQomniThinker * self, const gchar * string,
    const gchar * role)
{
  gboolean taken = FALSE;
  Text *text;

  if (string == NULL || *string == '\0' || !g_utf8_validate (string, -1, NULL)
      || strlen (string) > MAX_TEXT_BYTES)
    return FALSE;
  text = g_new0 (Text, 1);
  text->text = g_strdup (string);
  text->time = GST_CLOCK_TIME_NONE;
  text->role = QOMNI_ROLE_USER;
  if (g_strcmp0 (role, "assistant") == 0)
    text->role = QOMNI_ROLE_ASSISTANT;
  else if (g_strcmp0 (role, "system") == 0)
    text->role = QOMNI_ROLE_SYSTEM;
  else
    text->ends = text_ends_turn (self);

  g_mutex_lock (&self->lock);
  if (self->texts.length < MAX_WAITING_TEXTS && self->worker != NULL
      && !self->stopping) {
    g_queue_push_tail (&self->texts, g_steal_pointer (&text));
    g_cond_broadcast (&self->cond);
    taken = TRUE;
  }
  g_mutex_unlock (&self->lock);
  g_clear_pointer (&text, text_free);
  return taken;
}

static void
gst_qomni_thinker_end_turn (GstQomniThinker * self)
{
  g_mutex_lock (&self->lock);
  self->end_requested = TRUE;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

static void
gst_qomni_thinker_interrupt (GstQomniThinker * self, const gchar * reason)
{
  interrupt (self, G_MAXUINT64, reason);
}

static void
gst_qomni_thinker_reset (GstQomniThinker * self, gboolean keep_system_prompt)
{
  if (!keep_system_prompt) {
    GST_OBJECT_LOCK (self);
    g_clear_pointer (&self->settings.system_prompt, g_free);
    GST_OBJECT_UNLOCK (self);
    g_object_notify (G_OBJECT (self), "system-prompt");
  }
  /* First, so that a turn that begins meanwhile begins anew. */
  g_mutex_lock (&self->lock);
  self->reset_requested = TRUE;
  g_mutex_unlock (&self->lock);
  interrupt (self, G_MAXUINT64, "reset");
}

/* --- states --------------------------------------------------------------- */

static gboolean
start_worker (GstQomniThinker * self)
{
  g_autoptr (GError) error = NULL;

  g_mutex_lock (&self->lock);
  self->stopping = self->playing = FALSE;
  self->end_requested = self->eos_sent = self->reset_requested = FALSE;
  self->replying = FALSE;
  self->flow = GST_FLOW_OK;
  self->n_flushing = 0;
  self->turn_id = 0;
  self->n_turns = self->n_prompt_tokens = self->n_reply_tokens = 0;
  self->n_failed = 0;
  self->last_ttft = self->sum_ttft = 0;
  self->group_id = gst_util_group_id_next ();
  self->settle_at = g_get_monotonic_time () + SETTLE_TIME;
  self->preroll_at = g_get_monotonic_time () + PREROLL_TIME;
  gst_flow_combiner_reset (self->combiner);
  g_object_unref (self->cancellable);
  self->cancellable = g_cancellable_new ();
  g_object_unref (self->stop);
  self->stop = g_cancellable_new ();
  self->want_hidden = self->hidden.pad != NULL;
  self->n_failures = 0;
  self->worker = g_thread_try_new ("qomni-thinker", worker_thread, self,
      &error);
  g_mutex_unlock (&self->lock);

  if (self->worker != NULL)
    return TRUE;
  gst_qomni_post_error (GST_ELEMENT (self), error, "start");
  return FALSE;
}

static void
signal_stop (GstQomniThinker * self)
{
  g_autoptr (GCancellable) cancellable = NULL;

  g_mutex_lock (&self->lock);
  self->stopping = TRUE;
  self->epoch++;
  cancellable = g_object_ref (self->cancellable);
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
  g_cancellable_cancel (self->stop);
  g_cancellable_cancel (cancellable);
  gst_qomni_client_cancel (&self->client);
}

static void
join_worker (GstQomniThinker * self)
{
  if (self->worker != NULL)
    g_thread_join (self->worker);

  g_mutex_lock (&self->lock);
  self->worker = NULL;
  g_queue_clear_full (&self->texts, (GDestroyNotify) text_free);
  for (GList * l = self->sinks; l != NULL; l = l->next)
    pad_clear_blocks (l->data);
  clear_items (&self->text);
  clear_items (&self->hidden);
  g_mutex_unlock (&self->lock);
  g_clear_pointer (&self->thinker, qomni_thinker_free);
  gst_qomni_client_unload (&self->client);
}

static void
set_playing (GstQomniThinker * self)
{
  g_mutex_lock (&self->lock);
  self->playing = TRUE;
  g_cond_broadcast (&self->cond);
  g_mutex_unlock (&self->lock);
}

static GstStateChangeReturn
gst_qomni_thinker_change_state (GstElement * element,
    GstStateChange transition)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (element);
  GstStateChangeReturn ret;

  switch (transition) {
    case GST_STATE_CHANGE_NULL_TO_READY:
      if (!gst_qomni_client_open (&self->client))
        return GST_STATE_CHANGE_FAILURE;
      break;
    case GST_STATE_CHANGE_READY_TO_PAUSED:
      gst_qomni_client_load (&self->client, QOMNI_COMPONENT_THINKER);
      if (!start_worker (self)) {
        gst_qomni_client_unload (&self->client);
        return GST_STATE_CHANGE_FAILURE;
      }
      break;
    case GST_STATE_CHANGE_PAUSED_TO_PLAYING:
      set_playing (self);
      break;
    case GST_STATE_CHANGE_PAUSED_TO_READY:
      signal_stop (self);
      break;
    default:
      break;
  }

  ret = GST_ELEMENT_CLASS (gst_qomni_thinker_parent_class)->change_state
      (element, transition);

  if (transition == GST_STATE_CHANGE_READY_TO_PAUSED
      && ret == GST_STATE_CHANGE_FAILURE) {
    signal_stop (self);
    join_worker (self);
  }
  if (transition == GST_STATE_CHANGE_PAUSED_TO_READY)
    join_worker (self);
  if (transition == GST_STATE_CHANGE_READY_TO_NULL
      || (transition == GST_STATE_CHANGE_NULL_TO_READY
          && ret == GST_STATE_CHANGE_FAILURE))
    gst_qomni_client_close (&self->client);
  return ret;
}

static void
gst_qomni_thinker_set_context (GstElement * element, GstContext * context)
{
  gst_qomni_client_set_context (&GST_QOMNI_THINKER (element)->client, context);
  GST_ELEMENT_CLASS (gst_qomni_thinker_parent_class)->set_context (element,
      context);
}

/* --- properties and life -------------------------------------------------- */

static GstStructure *
get_stats (GstQomniThinker * self)
{
  GstStructure *s;

  g_mutex_lock (&self->lock);
  s = gst_structure_new ("application/x-qomni-thinker-stats",
      "turns", G_TYPE_UINT64, self->n_turns,
      "turns-failed", G_TYPE_UINT64, self->n_failed,
      "prompt-tokens", G_TYPE_UINT64, self->n_prompt_tokens,
      "reply-tokens", G_TYPE_UINT64, self->n_reply_tokens,
      "ttft-last", G_TYPE_UINT64, self->last_ttft,
      "ttft-mean", G_TYPE_UINT64,
      self->n_turns > 0 ? self->sum_ttft / self->n_turns : 0, NULL);
  g_mutex_unlock (&self->lock);
  return s;
}

static void
gst_qomni_thinker_set_property (GObject * object, guint prop_id,
    const GValue * value, GParamSpec * pspec)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (object);
  Settings *s = &self->settings;

  if (gst_qomni_client_set_property (&self->client, prop_id, value))
    return;

  GST_OBJECT_LOCK (self);
  switch (prop_id) {
    case PROP_SYSTEM_PROMPT:
      g_free (s->system_prompt);
      s->system_prompt = g_value_dup_string (value);
      break;
    case PROP_PROMPT:
      g_free (s->prompt);
      s->prompt = g_value_dup_string (value);
      break;
    case PROP_TEMPERATURE:
      s->temperature = g_value_get_double (value);
      break;
    case PROP_TOP_K:
      s->top_k = g_value_get_int (value);
      break;
    case PROP_TOP_P:
      s->top_p = g_value_get_double (value);
      break;
    case PROP_REPETITION_PENALTY:
      s->repetition_penalty = g_value_get_double (value);
      break;
    case PROP_MAX_TOKENS:
      s->max_tokens = g_value_get_int (value);
      break;
    case PROP_SEED:
      s->seed = g_value_get_uint64 (value);
      break;
    case PROP_GRANULARITY:
      s->granularity = g_value_get_enum (value);
      break;
    case PROP_TEXT_ENDS_TURN:
      s->text_ends_turn = g_value_get_boolean (value);
      break;
    case PROP_RESPOND_ON_EOS:
      s->respond_on_eos = g_value_get_boolean (value);
      break;
    case PROP_RESET_ON_FLUSH:
      s->reset_on_flush = g_value_get_boolean (value);
      break;
    case PROP_USE_AUDIO_IN_VIDEO:
      s->use_audio_in_video = g_value_get_boolean (value);
      break;
    case PROP_MESSAGES:
      s->messages = g_value_get_enum (value);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
      break;
  }
  GST_OBJECT_UNLOCK (self);
}

static void
gst_qomni_thinker_get_property (GObject * object, guint prop_id,
    GValue * value, GParamSpec * pspec)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (object);
  const Settings *s = &self->settings;

  if (gst_qomni_client_get_property (&self->client, prop_id, value))
    return;
  if (prop_id == PROP_STATS) {
    g_value_take_boxed (value, get_stats (self));
    return;
  }

  GST_OBJECT_LOCK (self);
  switch (prop_id) {
    case PROP_SYSTEM_PROMPT:
      g_value_set_string (value, s->system_prompt);
      break;
    case PROP_PROMPT:
      g_value_set_string (value, s->prompt);
      break;
    case PROP_TEMPERATURE:
      g_value_set_double (value, s->temperature);
      break;
    case PROP_TOP_K:
      g_value_set_int (value, s->top_k);
      break;
    case PROP_TOP_P:
      g_value_set_double (value, s->top_p);
      break;
    case PROP_REPETITION_PENALTY:
      g_value_set_double (value, s->repetition_penalty);
      break;
    case PROP_MAX_TOKENS:
      g_value_set_int (value, s->max_tokens);
      break;
    case PROP_SEED:
      g_value_set_uint64 (value, s->seed);
      break;
    case PROP_GRANULARITY:
      g_value_set_enum (value, s->granularity);
      break;
    case PROP_TEXT_ENDS_TURN:
      g_value_set_boolean (value, s->text_ends_turn);
      break;
    case PROP_RESPOND_ON_EOS:
      g_value_set_boolean (value, s->respond_on_eos);
      break;
    case PROP_RESET_ON_FLUSH:
      g_value_set_boolean (value, s->reset_on_flush);
      break;
    case PROP_USE_AUDIO_IN_VIDEO:
      g_value_set_boolean (value, s->use_audio_in_video);
      break;
    case PROP_MESSAGES:
      g_value_set_enum (value, s->messages);
      break;
    default:
      G_OBJECT_WARN_INVALID_PROPERTY_ID (object, prop_id, pspec);
      break;
  }
  GST_OBJECT_UNLOCK (self);
}

static void
gst_qomni_thinker_finalize (GObject * object)
{
  GstQomniThinker *self = GST_QOMNI_THINKER (object);

  gst_qomni_client_clear (&self->client);
  settings_clear (&self->settings);
  g_queue_clear_full (&self->texts, (GDestroyNotify) text_free);
  clear_items (&self->text);
  clear_items (&self->hidden);
  g_list_free (self->sinks);
  gst_flow_combiner_free (self->combiner);
  g_object_unref (self->cancellable);
  g_object_unref (self->stop);
  g_mutex_clear (&self->lock);
  g_cond_clear (&self->cond);
  G_OBJECT_CLASS (gst_qomni_thinker_parent_class)->finalize (object);
}

static void
install_properties (GObjectClass * klass)
{
  const GParamFlags flags = G_PARAM_READWRITE | G_PARAM_STATIC_STRINGS;
  const GParamFlags playing = flags | GST_PARAM_MUTABLE_PLAYING;
  const GParamFlags ready = flags | GST_PARAM_MUTABLE_READY;

  gst_qomni_client_install_properties (klass);

  g_object_class_install_property (klass, PROP_SYSTEM_PROMPT,
      g_param_spec_string ("system-prompt", "System prompt",
          "How the model is to behave; from the next conversation on (start, or"
          " the signal reset)", NULL, playing));
  g_object_class_install_property (klass, PROP_PROMPT,
      g_param_spec_string ("prompt", "Prompt",
          "Text added to each turn that has none of its own", NULL, playing));
  g_object_class_install_property (klass, PROP_TEMPERATURE,
      g_param_spec_double ("temperature", "Temperature",
          "0 = always the likeliest token, higher = more varied, -1 = as the"
          " checkpoint says; from the next turn on", -1, 100, -1, playing));
  g_object_class_install_property (klass, PROP_TOP_K,
      g_param_spec_int ("top-k", "Top k",
          "Draw among this many likeliest tokens, 0 = all, -1 = as the"
          " checkpoint says", -1, G_MAXINT, -1, playing));
  g_object_class_install_property (klass, PROP_TOP_P,
      g_param_spec_double ("top-p", "Top p",
          "Draw among the likeliest tokens that have this probability together,"
          " -1 = as the checkpoint says", -1, 1, -1, playing));
  g_object_class_install_property (klass, PROP_REPETITION_PENALTY,
      g_param_spec_double ("repetition-penalty", "Repetition penalty",
          "Above 1 makes tokens that were used already less likely, -1 = as the"
          " checkpoint says", -1, 100, -1, playing));
  g_object_class_install_property (klass, PROP_MAX_TOKENS,
      g_param_spec_int ("max-tokens", "Maximum tokens",
          "A reply is cut after this many tokens, 0 = as the checkpoint says",
          0, G_MAXINT, 0, playing));
  g_object_class_install_property (klass, PROP_SEED,
      g_param_spec_uint64 ("seed", "Seed",
          "Of the random draws; the same seed gives the same reply",
          0, G_MAXUINT64, 0, ready));
  g_object_class_install_property (klass, PROP_GRANULARITY,
      g_param_spec_enum ("granularity", "Granularity",
          "What a buffer of text holds", GST_TYPE_QOMNI_GRANULARITY,
          DEFAULT_GRANULARITY, playing));
  g_object_class_install_property (klass, PROP_TEXT_ENDS_TURN,
      g_param_spec_boolean ("text-ends-turn", "Text ends turn",
          "A buffer of text is a whole message and asks for a reply",
          TRUE, playing));
  g_object_class_install_property (klass, PROP_RESPOND_ON_EOS,
      g_param_spec_boolean ("respond-on-eos", "Respond on EOS",
          "The end of all streams ends the turn and asks for a reply",
          TRUE, playing));
  g_object_class_install_property (klass, PROP_RESET_ON_FLUSH,
      g_param_spec_boolean ("reset-on-flush", "Reset on flush",
          "A flush begins a new conversation", FALSE, playing));
  g_object_class_install_property (klass, PROP_USE_AUDIO_IN_VIDEO,
      g_param_spec_boolean ("use-audio-in-video", "Use audio in video",
          "Sound on audio_N belongs to the video on vision_N and is understood"
          " together with it", FALSE, ready));
  g_object_class_install_property (klass, PROP_MESSAGES,
      g_param_spec_enum ("messages", "Messages",
          "Element messages to post: qomni/turn-start, qomni/response-start,"
          " qomni/response-done", GST_TYPE_QOMNI_MESSAGES, DEFAULT_MESSAGES,
          playing));
  g_object_class_install_property (klass, PROP_STATS,
      g_param_spec_boxed ("stats", "Statistics",
          "Turns, tokens and times since the element went to PAUSED",
          GST_TYPE_STRUCTURE, G_PARAM_READABLE | G_PARAM_STATIC_STRINGS));

  gst_type_mark_as_plugin_api (GST_TYPE_QOMNI_GRANULARITY, 0);
  gst_type_mark_as_plugin_api (GST_TYPE_QOMNI_MESSAGES, 0);
}

static void
install_signals (GType type)
{
  const GSignalFlags flags = G_SIGNAL_RUN_LAST | G_SIGNAL_ACTION;

  /**
   * GstQomniThinker::send-text:
   * @text: UTF-8
   * @role: "user", "assistant" or "system"; %NULL means "user"
   *
   * Adds a message to the conversation, in PAUSED and PLAYING. One of the user
   * ends the turn when text-ends-turn is set; the others are history.
   *
   * Returns: whether it was taken
   */
  signals[SIGNAL_SEND_TEXT] = g_signal_new_class_handler ("send-text", type,
      flags, G_CALLBACK (gst_qomni_thinker_send_text), NULL, NULL, NULL,
      G_TYPE_BOOLEAN, 2, G_TYPE_STRING, G_TYPE_STRING);
  /**
   * GstQomniThinker::end-turn:
   *
   * Ends the user's turn with what has arrived.
   */
  signals[SIGNAL_END_TURN] = g_signal_new_class_handler ("end-turn", type,
      flags, G_CALLBACK (gst_qomni_thinker_end_turn), NULL, NULL, NULL,
      G_TYPE_NONE, 0);
  /**
   * GstQomniThinker::interrupt:
   * @reason: for the message qomni/interrupted
   *
   * Stops the reply; what was not pushed yet is dropped. History keeps what was
   * generated.
   */
  signals[SIGNAL_INTERRUPT] = g_signal_new_class_handler ("interrupt", type,
      flags, G_CALLBACK (gst_qomni_thinker_interrupt), NULL, NULL, NULL,
      G_TYPE_NONE, 1, G_TYPE_STRING);
  /**
   * GstQomniThinker::reset:
   * @keep_system_prompt: else the property system-prompt is cleared
   *
   * Forgets the conversation; a reply that is being made is stopped.
   */
  signals[SIGNAL_RESET] = g_signal_new_class_handler ("reset", type, flags,
      G_CALLBACK (gst_qomni_thinker_reset), NULL, NULL, NULL,
      G_TYPE_NONE, 1, G_TYPE_BOOLEAN);
}

static void
gst_qomni_thinker_class_init (GstQomniThinkerClass * klass)
{
  GObjectClass *object_class = G_OBJECT_CLASS (klass);
  GstElementClass *element_class = GST_ELEMENT_CLASS (klass);

  GST_DEBUG_CATEGORY_INIT (gst_qomni_thinker_debug, "qomnithinker", 0,
      "qomni thinker");

  object_class->set_property = gst_qomni_thinker_set_property;
  object_class->get_property = gst_qomni_thinker_get_property;
  object_class->finalize = gst_qomni_thinker_finalize;
  install_properties (object_class);
  install_signals (G_TYPE_FROM_CLASS (klass));

  element_class->change_state = gst_qomni_thinker_change_state;
  element_class->set_context = gst_qomni_thinker_set_context;
  element_class->request_new_pad = gst_qomni_thinker_request_new_pad;
  element_class->release_pad = gst_qomni_thinker_release_pad;

  /* First, so that a source of anything (fdsrc) is taken for text. */
  gst_element_class_add_static_pad_template_with_gtype (element_class,
      &text_sink_template, GST_TYPE_QOMNI_THINKER_PAD);
  gst_element_class_add_static_pad_template_with_gtype (element_class,
      &audio_template, GST_TYPE_QOMNI_THINKER_PAD);
  gst_element_class_add_static_pad_template_with_gtype (element_class,
      &vision_template, GST_TYPE_QOMNI_THINKER_PAD);
  gst_element_class_add_static_pad_template (element_class, &text_template);
  gst_element_class_add_static_pad_template (element_class, &hidden_template);
  gst_type_mark_as_plugin_api (GST_TYPE_QOMNI_THINKER_PAD, 0);

  gst_element_class_set_static_metadata (element_class,
      "Qomni thinker", "Converter/Audio/Video/Text",
      "Understands sound, pictures and text, and answers with text",
      "The qomni authors");
}

static void
gst_qomni_thinker_init (GstQomniThinker * self)
{
  Settings *s = &self->settings;

  gst_qomni_client_init (&self->client, GST_ELEMENT (self));
  s->temperature = s->top_p = s->repetition_penalty = -1;
  s->top_k = -1;
  s->granularity = DEFAULT_GRANULARITY;
  s->text_ends_turn = s->respond_on_eos = TRUE;
  s->messages = DEFAULT_MESSAGES;

  g_mutex_init (&self->lock);
  g_cond_init (&self->cond);
  g_queue_init (&self->texts);
  g_queue_init (&self->text.items);
  g_queue_init (&self->hidden.items);
  self->combiner = gst_flow_combiner_new ();
  self->cancellable = g_cancellable_new ();
  self->stop = g_cancellable_new ();

  set_up_source (self, &self->text,
      gst_pad_new_from_static_template (&text_template, "text"));
  gst_element_add_pad (GST_ELEMENT (self), self->text.pad);
}
