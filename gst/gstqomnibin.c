/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomnibin: the elements of a conversation, plugged together.
 *
 *   audio_%u -> capsfilter ! audioconvert ! audioresample ! queue
 *                                                   ! qomniaudioenc -.
 *   video_%u -> videoconvert ! queue ! qomnivisionenc ----------------+-> thinker
 *   text_%u  ---------------------------------------------------------'    |  |
 *   text   <---------------------------------------------------------------'  |
 *   speech <- talker <- hidden <-----------------------------------------------'
 *
 * A chain is made when its pad is requested, and the talker with the speech pad,
 * so what nobody asks for is never loaded. A chain whose pad is not linked is
 * not waited for: the thinker's pad is marked as not in use meanwhile.
 *
 * Properties are those of the children. What belongs to more than one child is
 * kept here and handed to children that are made later; the rest is read and
 * written through.
 *
 * Locks: the object lock guards the fields; no child is touched under it.
 */
/**
 * SECTION:element-qomnibin
 * @title: qomnibin
 *
 * A conversation with a Qwen3-Omni model: give it sound, video, pictures or
 * text on request pads, take text from `text` and speech from the request pad
 * `speech`.
 *
 * The children are named `thinker`, `talker`, `audioenc0`, `visionenc0` and so
 * on, so that `thinker::top-k=20` reaches what has no property here.
 *
 * ## Example launch lines
 * |[
 * gst-launch-1.0 -q filesrc location=question.wav ! decodebin ! qomnibin prompt="What is said?" ! fdsink
 * ]| Answers a question about a sound file.
 * |[
 * gst-launch-1.0 qomnibin name=q prompt="What happens here?" use-audio-in-video=true filesrc location=film.mkv ! decodebin name=d d. ! q.video_0 d. ! q.audio_0 q.text ! fdsink q.speech ! wavenc ! filesink location=answer.wav
 * ]| Describes a film with its sound, in text and speech.
 *
 * Since: 0.1
 */
#include "gstqomnibin.h"

#include <string.h>

#include "gstqomniaudioenc.h"
#include "gstqomnitalker.h"
#include "gstqomnithinker.h"
#include "gstqomnivisionenc.h"

GST_DEBUG_CATEGORY_STATIC (gst_qomni_bin_debug);
#define GST_CAT_DEFAULT gst_qomni_bin_debug

#define MAX_CHAIN 5
/* audioresample's tables grow with the rate: at 2^31 - 1 they are 266 GB, and
 * GLib ends the process. */
#define MAX_AUDIO_RATE 768000
/* Sound waits here while the weights load: 16 kHz mono, a few bytes of memory;
 * long enough for a recording whose pictures are decoded first. */
#define AUDIO_QUEUE_BYTES (64 << 20)

enum
{
  ON_THINKER = 1 << 0,
  ON_TALKER = 1 << 1,
  ON_AUDIO = 1 << 2,
  ON_VISION = 1 << 3,
  ON_ALL = ON_THINKER | ON_TALKER | ON_AUDIO | ON_VISION,
};

/* Our property, the children that have it, its name there. Its description is
 * the child's. */
typedef struct
{
  const gchar *name;
  guint where;
  const gchar *child_name;
} Forward;

static const Forward forwards[] = {
  {"model", ON_ALL, "model"},
  {"device", ON_ALL, "device"},
  {"precision", ON_ALL, "precision"},
  {"engine-id", ON_ALL, "engine-id"},
  {"engine-linger", ON_ALL, "engine-linger"},
  {"system-prompt", ON_THINKER, "system-prompt"},
  {"prompt", ON_THINKER, "prompt"},
  {"temperature", ON_THINKER, "temperature"},
  {"top-k", ON_THINKER, "top-k"},
  {"top-p", ON_THINKER, "top-p"},
  {"repetition-penalty", ON_THINKER, "repetition-penalty"},
  {"max-tokens", ON_THINKER, "max-tokens"},
  {"seed", ON_THINKER | ON_TALKER, "seed"},
  {"granularity", ON_THINKER, "granularity"},
  {"text-ends-turn", ON_THINKER, "text-ends-turn"},
  {"respond-on-eos", ON_THINKER, "respond-on-eos"},
  {"reset-on-flush", ON_THINKER, "reset-on-flush"},
  {"use-audio-in-video", ON_THINKER, "use-audio-in-video"},
  {"messages", ON_THINKER, "messages"},
  {"stats", ON_THINKER, "stats"},
  {"voice", ON_TALKER, "voice"},
  {"block-duration", ON_AUDIO, "block-duration"},
  {"vision-fps", ON_VISION, "fps"},
  {"min-pixels", ON_VISION, "min-pixels"},
  {"max-pixels", ON_VISION, "max-pixels"},
};

/* A request pad and the elements behind it. */
typedef struct
{
  GstPad *pad;                  /* the ghost; no reference */
  GstPad *thinker_pad;          /* a reference */
  GstElement *elements[MAX_CHAIN];      /* references; the first is outermost */
  guint n_elements;
} Chain;

struct _GstQomniBin
{
  GstBin parent;

  /* References of ours: a bin lets go of its children before its pads. */
  GstElement *thinker;          /* constant */
  /* object lock */
  GstElement *talker;           /* or NULL */
  GList *chains;
  guint next_index[3];
  GValue values[G_N_ELEMENTS (forwards)];       /* what was set */
};

static GstStaticPadTemplate audio_template =
GST_STATIC_PAD_TEMPLATE ("audio_%u", GST_PAD_SINK, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("audio/x-raw"));
static GstStaticPadTemplate video_template =
GST_STATIC_PAD_TEMPLATE ("video_%u", GST_PAD_SINK, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("video/x-raw"));
static GstStaticPadTemplate text_sink_template =
GST_STATIC_PAD_TEMPLATE ("text_%u", GST_PAD_SINK, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("text/x-raw, format = (string) utf8"));
static GstStaticPadTemplate text_template = GST_STATIC_PAD_TEMPLATE ("text",
    GST_PAD_SRC, GST_PAD_ALWAYS,
    GST_STATIC_CAPS ("text/x-raw, format = (string) utf8"));
static GstStaticPadTemplate speech_template =
GST_STATIC_PAD_TEMPLATE ("speech", GST_PAD_SRC, GST_PAD_REQUEST,
    GST_STATIC_CAPS ("audio/x-raw, rate = (int) 24000, channels = (int) 1, "
        "layout = (string) interleaved"));

G_DEFINE_TYPE (GstQomniBin, gst_qomni_bin, GST_TYPE_BIN);
GST_ELEMENT_REGISTER_DEFINE (qomnibin, "qomnibin", GST_RANK_NONE,
    GST_TYPE_QOMNI_BIN);


/* --- properties ----------------------------------------------------------- */

static GType
child_type (guint where)
{
  return where & ON_THINKER ? GST_TYPE_QOMNI_THINKER :
      where & ON_TALKER ? GST_TYPE_QOMNI_TALKER :
      where & ON_AUDIO ? GST_TYPE_QOMNI_AUDIO_ENC : GST_TYPE_QOMNI_VISION_ENC;
}

/* The children of kind `where`, each with a reference. */
static GList *
ref_children (GstQomniBin * self, guint where)
{
  GList *children = NULL;

  if (where & ON_THINKER)
    children = g_list_prepend (children, gst_object_ref (self->thinker));
  GST_OBJECT_LOCK (self);
  if ((where & ON_TALKER) && self->talker != NULL)
    children = g_list_prepend (children, gst_object_ref (self->talker));
  for (GList * l = self->chains; l != NULL; l = l->next) {
    Chain *chain = l->data;
    GstElement *last = chain->n_elements > 0
        ? chain->elements[chain->n_elements - 1] : NULL;

    if (((where & ON_AUDIO) && GST_IS_QOMNI_AUDIO_ENC (last))
        || ((where & ON_VISION) && GST_IS_QOMNI_VISION_ENC (last)))
      children = g_list_prepend (children, gst_object_ref (last));
  }
  GST_OBJECT_UNLOCK (self);
  return children;
}

static void
gst_qomni_bin_set_property (GObject * object, guint prop_id,
    const GValue * value, GParamSpec * pspec)
{
  GstQomniBin *self = GST_QOMNI_BIN (object);
  const Forward *f = &forwards[prop_id - 1];
  GValue *kept = &self->values[prop_id - 1];
  GList *children;

  GST_OBJECT_LOCK (self);
  if (G_IS_VALUE (kept))
    g_value_unset (kept);
  g_value_init (kept, G_VALUE_TYPE (value));
  g_value_copy (value, kept);
  GST_OBJECT_UNLOCK (self);

  children = ref_children (self, f->where);
  for (GList * l = children; l != NULL; l = l->next)
    g_object_set_property (l->data, f->child_name, value);
  g_list_free_full (children, gst_object_unref);
}

static void
gst_qomni_bin_get_property (GObject * object, guint prop_id, GValue * value,
    GParamSpec * pspec)
{
  GstQomniBin *self = GST_QOMNI_BIN (object);
  const Forward *f = &forwards[prop_id - 1];

  if (f->where & ON_THINKER) {
    g_object_get_property (G_OBJECT (self->thinker), f->child_name, value);
    return;
  }
  GST_OBJECT_LOCK (self);
  if (G_IS_VALUE (&self->values[prop_id - 1]))
    g_value_copy (&self->values[prop_id - 1], value);
  else
    g_param_value_set_default (pspec, value);
  GST_OBJECT_UNLOCK (self);
}

/* What was set before `child`, of kind `where`, was made. */
static void
hand_down (GstQomniBin * self, GstElement * child, guint where)
{
  for (guint i = 0; i < G_N_ELEMENTS (forwards); i++) {
    GValue value = G_VALUE_INIT;

    if (!(forwards[i].where & where))
      continue;
    GST_OBJECT_LOCK (self);
    if (G_IS_VALUE (&self->values[i])) {
      g_value_init (&value, G_VALUE_TYPE (&self->values[i]));
      g_value_copy (&self->values[i], &value);
    }
    GST_OBJECT_UNLOCK (self);
    if (G_IS_VALUE (&value)) {
      g_object_set_property (G_OBJECT (child), forwards[i].child_name, &value);
      g_value_unset (&value);
    }
  }
}

/* The child's property under another name. */
static GParamSpec *
copy_pspec (const gchar * name, GParamSpec * p)
{
  const gchar *nick = g_param_spec_get_nick (p);
  const gchar *blurb = g_param_spec_get_blurb (p);
  const GParamFlags flags = p->flags;

  if (G_IS_PARAM_SPEC_STRING (p))
    return g_param_spec_string (name, nick, blurb,
        G_PARAM_SPEC_STRING (p)->default_value, flags);
  if (G_IS_PARAM_SPEC_BOOLEAN (p))
    return g_param_spec_boolean (name, nick, blurb,
        G_PARAM_SPEC_BOOLEAN (p)->default_value, flags);
  if (G_IS_PARAM_SPEC_ENUM (p))
    return g_param_spec_enum (name, nick, blurb, p->value_type,
        G_PARAM_SPEC_ENUM (p)->default_value, flags);
  if (G_IS_PARAM_SPEC_INT (p))
    return g_param_spec_int (name, nick, blurb, G_PARAM_SPEC_INT (p)->minimum,
        G_PARAM_SPEC_INT (p)->maximum, G_PARAM_SPEC_INT (p)->default_value,
        flags);
  if (G_IS_PARAM_SPEC_UINT (p))
    return g_param_spec_uint (name, nick, blurb,
        G_PARAM_SPEC_UINT (p)->minimum, G_PARAM_SPEC_UINT (p)->maximum,
        G_PARAM_SPEC_UINT (p)->default_value, flags);
  if (G_IS_PARAM_SPEC_INT64 (p))
    return g_param_spec_int64 (name, nick, blurb,
        G_PARAM_SPEC_INT64 (p)->minimum, G_PARAM_SPEC_INT64 (p)->maximum,
        G_PARAM_SPEC_INT64 (p)->default_value, flags);
  if (G_IS_PARAM_SPEC_UINT64 (p))
    return g_param_spec_uint64 (name, nick, blurb,
        G_PARAM_SPEC_UINT64 (p)->minimum, G_PARAM_SPEC_UINT64 (p)->maximum,
        G_PARAM_SPEC_UINT64 (p)->default_value, flags);
  if (G_IS_PARAM_SPEC_DOUBLE (p))
    return g_param_spec_double (name, nick, blurb,
        G_PARAM_SPEC_DOUBLE (p)->minimum, G_PARAM_SPEC_DOUBLE (p)->maximum,
        G_PARAM_SPEC_DOUBLE (p)->default_value, flags);
  if (GST_IS_PARAM_SPEC_FRACTION (p)) {
    GstParamSpecFraction *f = GST_PARAM_SPEC_FRACTION (p);

    return gst_param_spec_fraction (name, nick, blurb, f->min_num, f->min_den,
        f->max_num, f->max_den, f->def_num, f->def_den, flags);
  }
  return g_param_spec_boxed (name, nick, blurb, p->value_type, flags);
}

static void
install_properties (GObjectClass * klass)
{
  for (guint i = 0; i < G_N_ELEMENTS (forwards); i++) {
    GObjectClass *child = g_type_class_ref (child_type (forwards[i].where));

    g_object_class_install_property (klass, i + 1,
        copy_pspec (forwards[i].name,
            g_object_class_find_property (child, forwards[i].child_name)));
    g_type_class_unref (child);
  }
}

/* --- chains --------------------------------------------------------------- */

static void
chain_free (Chain * chain)
{
  gst_clear_object (&chain->thinker_pad);
  for (guint i = 0; i < chain->n_elements; i++)
    gst_object_unref (chain->elements[i]);
  g_free (chain);
}

/* A new child of ours, called name<index>; NULL when there is no such element,
 * which the bus hears of. */
static GstElement *
add_child (GstQomniBin * self, const gchar * factory, const gchar * name,
    guint index)
{
  g_autofree gchar *full = g_strdup_printf ("%s%u", name, index);
  GstElement *element = gst_element_factory_make (factory, full);

  if (element == NULL) {
    GST_ELEMENT_ERROR (self, CORE, MISSING_PLUGIN,
        ("The element '%s' is missing.", factory), (NULL));
    return NULL;
  }
  if (!gst_bin_add (GST_BIN (self), element)) {
    GST_WARNING_OBJECT (self, "cannot add %s", full);
    return NULL;
  }
  return element;
}

static void
remove_child (GstQomniBin * self, GstElement * child)
{
  if (!gst_object_has_as_parent (GST_OBJECT (child), GST_OBJECT (self)))
    return;
  gst_element_set_locked_state (child, TRUE);
  gst_element_set_state (child, GST_STATE_NULL);
  gst_bin_remove (GST_BIN (self), child);
}

/* Lets go of a thread that waits somewhere in the chain: from the thinker,
 * which may have all it can hold, to the queue, which may be full. */
static void
stop_chain (Chain * chain)
{
  gst_pad_set_active (chain->thinker_pad, FALSE);
  for (guint i = chain->n_elements; i > 0; i--) {
    gst_element_set_locked_state (chain->elements[i - 1], TRUE);
    gst_element_set_state (chain->elements[i - 1], GST_STATE_NULL);
  }
}

static void
remove_chain (GstQomniBin * self, Chain * chain)
{
  for (guint i = 0; i < chain->n_elements; i++)
    remove_child (self, chain->elements[i]);
  if (chain->thinker_pad != NULL)
    gst_element_release_request_pad (self->thinker, chain->thinker_pad);
  chain_free (chain);
}

/* Makes and links the elements behind an audio or video pad. */
static gboolean
fill_chain (GstQomniBin * self, Chain * chain, gboolean audio, guint index)
{
  static const gchar *const audio_names[][2] = {
    {"capsfilter", "audiocaps"}, {"audioconvert", "audioconvert"},
    {"audioresample", "audioresample"}, {"queue", "audioqueue"},
    {"qomniaudioenc", "audioenc"},
  };
  static const gchar *const video_names[][2] = {
    {"videoconvert", "videoconvert"}, {"queue", "videoqueue"},
    {"qomnivisionenc", "visionenc"},
  };
  const gchar *const (*names)[2] = audio ? audio_names : video_names;
  const guint n = audio ? G_N_ELEMENTS (audio_names)
      : G_N_ELEMENTS (video_names);
  GstElement *queue, *encoder;

  for (guint i = 0; i < n; i++) {
    GstElement *element = add_child (self, names[i][0], names[i][1], index);

    if (element == NULL)
      return FALSE;
    chain->elements[chain->n_elements++] = gst_object_ref (element);
  }
  queue = chain->elements[n - 2];
  encoder = chain->elements[n - 1];

  /* While the encoder is busy the other streams of the same file go on. Frames
   * are large, and only a few of them are used. */
  g_object_set (queue, "max-size-time", (guint64) 0,
      "max-size-buffers", audio ? 0 : 16,
      "max-size-bytes", audio ? AUDIO_QUEUE_BYTES : 0, NULL);
  hand_down (self, encoder, audio ? ON_AUDIO : ON_VISION);
  if (audio) {
    g_autoptr (GstCaps) caps = gst_caps_new_simple ("audio/x-raw",
        "rate", GST_TYPE_INT_RANGE, 1, MAX_AUDIO_RATE, NULL);

    g_object_set (chain->elements[0], "caps", caps, NULL);
  }

  for (guint i = 0; i + 1 < n; i++)
    if (!gst_element_link (chain->elements[i], chain->elements[i + 1]))
      return FALSE;
  {
    g_autoptr (GstPad) src = gst_element_get_static_pad (encoder, "src");

    if (gst_pad_link (src, chain->thinker_pad) != GST_PAD_LINK_OK)
      return FALSE;
  }
  for (guint i = n; i > 0; i--)
    if (!gst_element_sync_state_with_parent (chain->elements[i - 1]))
      return FALSE;
  return TRUE;
}

static void
ghost_linked (GstPad * ghost, GstPad * peer, GstPad * thinker_pad)
{
  gst_qomni_thinker_pad_set_in_use (thinker_pad, TRUE);
}

static void
ghost_unlinked (GstPad * ghost, GstPad * peer, GstPad * thinker_pad)
{
  gst_qomni_thinker_pad_set_in_use (thinker_pad, FALSE);
}

static guint
take_index (GstQomniBin * self, guint kind, const gchar * name)
{
  const gchar *number = name != NULL ? strchr (name, '_') : NULL;
  guint64 wanted;
  guint index;

  GST_OBJECT_LOCK (self);
  index = self->next_index[kind];
  if (number != NULL && g_ascii_string_to_unsigned (number + 1, 10, 0,
          G_MAXINT, &wanted, NULL))
    index = (guint) wanted;
  self->next_index[kind] = MAX (self->next_index[kind], index + 1);
  GST_OBJECT_UNLOCK (self);
  return index;
}

static GstPad *
request_sink (GstQomniBin * self, GstPadTemplate * templ, const gchar * name)
{
  static const gchar *const prefixes[] = { "audio", "video", "text" };
  static const gchar *const thinker_prefixes[] = { "audio", "vision", "text" };
  const gchar *template_name = GST_PAD_TEMPLATE_NAME_TEMPLATE (templ);
  guint kind = g_str_has_prefix (template_name, "audio") ? 0 :
      g_str_has_prefix (template_name, "video") ? 1 : 2;
  guint index = take_index (self, kind, name);
  g_autofree gchar *ghost_name = g_strdup_printf ("%s_%u", prefixes[kind],
      index);
  g_autofree gchar *thinker_name = g_strdup_printf ("%s_%u",
      thinker_prefixes[kind], index);
  g_autoptr (GstPad) target = NULL;
  Chain *chain = g_new0 (Chain, 1);

  chain->thinker_pad = gst_element_request_pad_simple (self->thinker,
      thinker_name);
  if (chain->thinker_pad == NULL) {
    chain_free (chain);
    return NULL;
  }
  gst_qomni_thinker_pad_set_in_use (chain->thinker_pad, FALSE);
  if (kind == 2) {
    target = gst_object_ref (chain->thinker_pad);
  } else {
    if (!fill_chain (self, chain, kind == 0, index)) {
      remove_chain (self, chain);
      return NULL;
    }
    target = gst_element_get_static_pad (chain->elements[0], "sink");
  }

  chain->pad = gst_ghost_pad_new_from_template (ghost_name, target, templ);
  g_signal_connect_object (chain->pad, "linked", G_CALLBACK (ghost_linked),
      chain->thinker_pad, 0);
  g_signal_connect_object (chain->pad, "unlinked", G_CALLBACK (ghost_unlinked),
      chain->thinker_pad, 0);
  gst_pad_set_active (chain->pad, GST_STATE (self) > GST_STATE_READY);
  GST_OBJECT_LOCK (self);
  self->chains = g_list_append (self->chains, chain);
  GST_OBJECT_UNLOCK (self);
  if (!gst_element_add_pad (GST_ELEMENT (self), chain->pad)) {
    GST_OBJECT_LOCK (self);
    self->chains = g_list_remove (self->chains, chain);
    GST_OBJECT_UNLOCK (self);
    remove_chain (self, chain);
    return NULL;
  }
  return chain->pad;
}

static GstPad *
request_speech (GstQomniBin * self, GstPadTemplate * templ)
{
  g_autoptr (GstPad) hidden = NULL, sink = NULL, src = NULL;
  GstElement *talker;
  GstPad *ghost;

  GST_OBJECT_LOCK (self);
  talker = self->talker;
  GST_OBJECT_UNLOCK (self);
  if (talker != NULL) {
    GST_WARNING_OBJECT (self, "there is one speech pad only");
    return NULL;
  }

  hidden = gst_element_request_pad_simple (self->thinker, "hidden");
  if (hidden == NULL)
    return NULL;
  talker = gst_element_factory_make ("qomnitalker", "talker");
  if (talker == NULL || !gst_bin_add (GST_BIN (self), talker)) {
    gst_element_release_request_pad (self->thinker, hidden);
    return NULL;
  }
  hand_down (self, talker, ON_TALKER);
  sink = gst_element_get_static_pad (talker, "sink");
  src = gst_element_get_static_pad (talker, "src");
  gst_pad_link (hidden, sink);
  gst_element_sync_state_with_parent (talker);

  GST_OBJECT_LOCK (self);
  self->talker = gst_object_ref (talker);
  GST_OBJECT_UNLOCK (self);
  ghost = gst_ghost_pad_new_from_template ("speech", src, templ);
  gst_pad_set_active (ghost, GST_STATE (self) > GST_STATE_READY);
  gst_element_add_pad (GST_ELEMENT (self), ghost);
  return ghost;
}

static GstPad *
gst_qomni_bin_request_new_pad (GstElement * element, GstPadTemplate * templ,
    const gchar * name, const GstCaps * caps)
{
  GstQomniBin *self = GST_QOMNI_BIN (element);

  return GST_PAD_TEMPLATE_DIRECTION (templ) == GST_PAD_SRC
      ? request_speech (self, templ) : request_sink (self, templ, name);
}

static void
release_speech (GstQomniBin * self, GstPad * pad)
{
  g_autoptr (GstPad) hidden =
      gst_element_get_static_pad (self->thinker, "hidden");
  GstElement *talker;

  gst_pad_set_active (pad, FALSE);
  GST_OBJECT_LOCK (self);
  talker = self->talker;
  self->talker = NULL;
  GST_OBJECT_UNLOCK (self);

  gst_ghost_pad_set_target (GST_GHOST_PAD (pad), NULL);
  gst_element_remove_pad (GST_ELEMENT (self), pad);
  remove_child (self, talker);
  gst_object_unref (talker);
  if (hidden != NULL)
    gst_element_release_request_pad (self->thinker, hidden);
}

static void
gst_qomni_bin_release_pad (GstElement * element, GstPad * pad)
{
  GstQomniBin *self = GST_QOMNI_BIN (element);
  Chain *chain = NULL;

  if (GST_PAD_IS_SRC (pad)) {
    release_speech (self, pad);
    return;
  }
  GST_OBJECT_LOCK (self);
  for (GList * l = self->chains; l != NULL; l = l->next) {
    if (((Chain *) l->data)->pad == pad) {
      chain = l->data;
      self->chains = g_list_delete_link (self->chains, l);
      break;
    }
  }
  GST_OBJECT_UNLOCK (self);
  if (chain == NULL)
    return;

  /* Before the ghost, which waits for the thread that is in it. */
  stop_chain (chain);
  gst_pad_set_active (pad, FALSE);
  gst_ghost_pad_set_target (GST_GHOST_PAD (pad), NULL);
  gst_element_remove_pad (element, pad);
  remove_chain (self, chain);
}

/* --- action signals ------------------------------------------------------- */

static gboolean
gst_qomni_bin_send_text (GstQomniBin * self, const gchar * text,
    const gchar * role)
{
  gboolean taken = FALSE;

  g_signal_emit_by_name (self->thinker, "send-text", text, role, &taken);
  return taken;
}

static void
gst_qomni_bin_end_turn (GstQomniBin * self)
{
  g_signal_emit_by_name (self->thinker, "end-turn");
}

static void
gst_qomni_bin_interrupt (GstQomniBin * self, const gchar * reason)
{
  g_signal_emit_by_name (self->thinker, "interrupt", reason);
}

static void
gst_qomni_bin_reset (GstQomniBin * self, gboolean keep_system_prompt)
{
  g_signal_emit_by_name (self->thinker, "reset", keep_system_prompt);
}

static void
install_signals (GType type)
{
  const GSignalFlags flags = G_SIGNAL_RUN_LAST | G_SIGNAL_ACTION;

  /**
   * GstQomniBin::send-text:
   * @text: UTF-8
   * @role: "user", "assistant" or "system"; %NULL means "user"
   *
   * See #GstQomniThinker::send-text.
   *
   * Returns: whether it was taken
   */
  g_signal_new_class_handler ("send-text", type, flags,
      G_CALLBACK (gst_qomni_bin_send_text), NULL, NULL, NULL, G_TYPE_BOOLEAN,
      2, G_TYPE_STRING, G_TYPE_STRING);
  /**
   * GstQomniBin::end-turn:
   *
   * See #GstQomniThinker::end-turn.
   */
  g_signal_new_class_handler ("end-turn", type, flags,
      G_CALLBACK (gst_qomni_bin_end_turn), NULL, NULL, NULL, G_TYPE_NONE, 0);
  /**
   * GstQomniBin::interrupt:
   * @reason: for the message qomni/interrupted
   *
   * See #GstQomniThinker::interrupt.
   */
  g_signal_new_class_handler ("interrupt", type, flags,
      G_CALLBACK (gst_qomni_bin_interrupt), NULL, NULL, NULL, G_TYPE_NONE, 1,
      G_TYPE_STRING);
  /**
   * GstQomniBin::reset:
   * @keep_system_prompt: else the property system-prompt is cleared
   *
   * See #GstQomniThinker::reset.
   */
  g_signal_new_class_handler ("reset", type, flags,
      G_CALLBACK (gst_qomni_bin_reset), NULL, NULL, NULL, G_TYPE_NONE, 1,
      G_TYPE_BOOLEAN);
}

/* --- life ----------------------------------------------------------------- */

static void
gst_qomni_bin_finalize (GObject * object)
{
  GstQomniBin *self = GST_QOMNI_BIN (object);

  g_list_free_full (self->chains, (GDestroyNotify) chain_free);
  for (guint i = 0; i < G_N_ELEMENTS (forwards); i++)
    if (G_IS_VALUE (&self->values[i]))
      g_value_unset (&self->values[i]);
  gst_clear_object (&self->talker);
  gst_clear_object (&self->thinker);
  G_OBJECT_CLASS (gst_qomni_bin_parent_class)->finalize (object);
}

static void
gst_qomni_bin_class_init (GstQomniBinClass * klass)
{
  GObjectClass *object_class = G_OBJECT_CLASS (klass);
  GstElementClass *element_class = GST_ELEMENT_CLASS (klass);

  GST_DEBUG_CATEGORY_INIT (gst_qomni_bin_debug, "qomnibin", 0, "qomni bin");

  object_class->set_property = gst_qomni_bin_set_property;
  object_class->get_property = gst_qomni_bin_get_property;
  object_class->finalize = gst_qomni_bin_finalize;
  install_properties (object_class);
  install_signals (G_TYPE_FROM_CLASS (klass));

  element_class->request_new_pad = gst_qomni_bin_request_new_pad;
  element_class->release_pad = gst_qomni_bin_release_pad;

  /* First, so that a source of anything (fdsrc) is taken for text. */
  gst_element_class_add_static_pad_template (element_class,
      &text_sink_template);
  gst_element_class_add_static_pad_template (element_class, &audio_template);
  gst_element_class_add_static_pad_template (element_class, &video_template);
  gst_element_class_add_static_pad_template (element_class, &text_template);
  gst_element_class_add_static_pad_template (element_class, &speech_template);
  gst_element_class_set_static_metadata (element_class,
      "Qomni bin", "Generic/Bin",
      "A conversation with a Qwen3-Omni model: sound, video and text in, text"
      " and speech out", "The qomni authors");
}

static void
gst_qomni_bin_init (GstQomniBin * self)
{
  g_autoptr (GstPadTemplate) templ =
      gst_static_pad_template_get (&text_template);
  g_autoptr (GstPad) text = NULL;

  self->thinker = g_object_new (GST_TYPE_QOMNI_THINKER, "name", "thinker",
      NULL);
  gst_object_ref_sink (self->thinker);
  gst_bin_add (GST_BIN (self), self->thinker);
  text = gst_element_get_static_pad (self->thinker, "text");
  gst_element_add_pad (GST_ELEMENT (self),
      gst_ghost_pad_new_from_template ("text", text, templ));
}
