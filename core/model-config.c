/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * config.json -> QomniConfig.
 *
 * A Section is one JSON object with its path ("thinker_config.text_config"),
 * and one getter per kind of value takes a key, its range, and what stands
 * for an absent key. The first fault of a document is latched with file, key,
 * value and range, and the getters after it do nothing, so that parsing reads
 * like the table it is. Null counts as absent.
 *
 * Values that stand for absent keys are those of the released 30B-A3B model,
 * except where the reference has a rule of its own (head_dim, rope_theta).
 * Sizes that every checkpoint carries have none.
 */
#include "model-config.h"

#include "checkpoint.h"
#include "file.h"
#include "json.h"

#include <limits.h>
#include <math.h>
#include <string.h>

/* Stands for "no value if the key is absent": the key is required. */
#define REQUIRED INT64_MIN
#define MAX_TOKENS (1 << 20)
#define MAX_HEAD_DIM 4096

typedef struct
{
  const char *file;
  GError *error;                /* the first one */
} Reader;

typedef struct
{
  Reader *r;
  JsonObject *object;           /* NULL: every key is absent */
  char path[96];                /* "thinker_config.", … or "" */
} Section;

static bool
refuse (const Section * s, const char *key, const char *format, ...)
    G_GNUC_PRINTF (3, 4);

static bool
refuse (const Section * s, const char *key, const char *format, ...)
{
  g_autofree char *what = NULL;
  va_list args;

  if (s->r->error != NULL)
    return false;
  va_start (args, format);
  what = g_strdup_vprintf (format, args);
  va_end (args);
  return qomni_fail (&s->r->error, QOMNI_ERROR_FORMAT, "%s: %s%s %s",
      s->r->file, s->path, key, what);
}

static bool
unsupported (const Section * s, const char *key, const char *value,
    const char *wanted)
{
  g_autofree char *text = qomni_excerpt (value, 60);

  if (s->r->error != NULL)
    return false;
  return qomni_fail (&s->r->error, QOMNI_ERROR_UNSUPPORTED,
      "%s: %s%s is %s, supported is %s", s->r->file, s->path, key, text,
      wanted);
}

/* --- values -------------------------------------------------------------- */

static JsonNode *
member (const Section * s, const char *key)
{
  JsonNode *node;

  if (s->object == NULL || s->r->error != NULL)
    return NULL;
  node = json_object_get_member (s->object, key);
  return node == NULL || JSON_NODE_HOLDS_NULL (node) ? NULL : node;
}

static bool
has (const Section * s, const char *key)
{
  return member (s, key) != NULL;
}

static GType
value_type (JsonNode * node)
{
  return JSON_NODE_HOLDS_VALUE (node) ? json_node_get_value_type (node)
      : G_TYPE_INVALID;
}

/* The value as the message shows it. */
static char *
node_str (JsonNode * node)
{
  g_autofree char *text = json_to_string (node, FALSE);

  return qomni_excerpt (text, 60);
}

static int64_t
check_range (const Section * s, const char *key, int64_t v, int64_t min,
    int64_t max)
{
  if (v >= min && v <= max)
    return v;
  refuse (s, key, "is %" G_GINT64_FORMAT ", expected %" G_GINT64_FORMAT " to %"
      G_GINT64_FORMAT, v, min, max);
  return min;
}

/* After an error the result is `min`, so that what follows stays in range. */
static int64_t
get_int (const Section * s, const char *key, int64_t min, int64_t max,
    int64_t absent)
{
  JsonNode *node = member (s, key);

  if (s->r->error != NULL)
    return min;
  if (node == NULL) {
    if (absent == REQUIRED) {
      refuse (s, key, "is missing");
      return min;
    }
    return check_range (s, key, absent, min, max);
  }
  if (value_type (node) != G_TYPE_INT64) {
    g_autofree char *text = node_str (node);

    refuse (s, key, "is %s, expected an integer", text);
    return min;
  }
  return check_range (s, key, json_node_get_int (node), min, max);
}

static double
get_number (const Section * s, const char *key, double min, double max,
    double absent)
{
  JsonNode *node = member (s, key);
  double v;

  if (node == NULL)
    return absent;
  if (value_type (node) != G_TYPE_INT64 && value_type (node) != G_TYPE_DOUBLE) {
    g_autofree char *text = node_str (node);

    refuse (s, key, "is %s, expected a number", text);
    return absent;
  }
  v = json_node_get_double (node);
  if (!(v >= min && v <= max)) {
    refuse (s, key, "is %g, expected %g to %g", v, min, max);
    return absent;
  }
  return v;
}

static bool
get_bool (const Section * s, const char *key, bool absent)
{
  JsonNode *node = member (s, key);

  if (node == NULL)
    return absent;
  if (value_type (node) != G_TYPE_BOOLEAN) {
    g_autofree char *text = node_str (node);

    refuse (s, key, "is %s, expected true or false", text);
    return absent;
  }
  return json_node_get_boolean (node);
}

/* The string lives as long as the document; NULL when absent. */
static const char *
get_string (const Section * s, const char *key)
{
  JsonNode *node = member (s, key);

  if (node == NULL)
    return NULL;
  if (value_type (node) != G_TYPE_STRING) {
    g_autofree char *text = node_str (node);

    refuse (s, key, "is %s, expected a string", text);
    return NULL;
  }
  return json_node_get_string (node);
}

/* Integers of a list; -1 when absent. */
static int
get_ints (const Section * s, const char *key, int64_t min, int64_t max,
    int max_n, int *ret)
{
  JsonNode *node = member (s, key);
  JsonArray *array;

  if (node == NULL)
    return -1;
  if (!JSON_NODE_HOLDS_ARRAY (node)) {
    g_autofree char *text = node_str (node);

    refuse (s, key, "is %s, expected a list of integers", text);
    return -1;
  }
  array = json_node_get_array (node);
  if (json_array_get_length (array) > (guint) max_n) {
    refuse (s, key, "has %u entries, expected at most %d",
        json_array_get_length (array), max_n);
    return -1;
  }
  for (guint i = 0; i < json_array_get_length (array); i++) {
    JsonNode *item = json_array_get_element (array, i);

    if (value_type (item) != G_TYPE_INT64) {
      g_autofree char *text = node_str (item);

      refuse (s, key, "has the entry %s, expected an integer", text);
      return -1;
    }
    ret[i] = (int) check_range (s, key, json_node_get_int (item), min, max);
  }
  return (int) json_array_get_length (array);
}

/* A section without object when the key is absent. */
static Section
subsection (const Section * s, const char *key)
{
  JsonNode *node = member (s, key);
  Section sub = { s->r, NULL, "" };

  g_snprintf (sub.path, sizeof sub.path, "%s%s.", s->path, key);
  if (node == NULL)
    return sub;
  if (!JSON_NODE_HOLDS_OBJECT (node)) {
    g_autofree char *text = node_str (node);

    refuse (s, key, "is %s, expected an object", text);
  } else {
    sub.object = json_node_get_object (node);
  }
  return sub;
}

static Section
required_section (const Section * s, const char *key)
{
  Section sub = subsection (s, key);

  if (sub.object == NULL)
    refuse (s, key, "is missing");
  return sub;
}

/* Refuses any other value than `wanted`; absent is fine. */
static void
want_string (const Section * s, const char *key, const char *wanted)
{
  const char *v = get_string (s, key);

  if (v != NULL && strcmp (v, wanted) != 0)
    unsupported (s, key, v, wanted);
}

static void
want_int (const Section * s, const char *key, int64_t wanted)
{
  int64_t v = get_int (s, key, INT64_MIN + 1, INT64_MAX, wanted);
  g_autofree char *have = NULL;
  g_autofree char *want = NULL;

  if (s->r->error != NULL || v == wanted)
    return;
  have = g_strdup_printf ("%" G_GINT64_FORMAT, v);
  want = g_strdup_printf ("%" G_GINT64_FORMAT, wanted);
  unsupported (s, key, have, want);
}

/* --- decoders ------------------------------------------------------------ */

/* What stands for absent keys of one kind of decoder. */
typedef struct
{
  int n_kv_heads;
  int head_dim;                 /* 0: hidden_size / n_heads */
  int64_t intermediate_size;
  int n_experts, top_k;         /* 0: dense */
  int64_t moe_intermediate_size, shared_intermediate_size;
  bool norm_top_k;
  double rope_theta, rms_norm_eps;
  bool is_mrope;
  bool is_talker;
} DecoderDefaults;

static const DecoderDefaults thinker_defaults = {
  .n_kv_heads = 4,.intermediate_size = 768,.n_experts = 128,.top_k = 8,
  .moe_intermediate_size = 768,.norm_top_k = true,.rope_theta = 1e6,
  .rms_norm_eps = 1e-6,.is_mrope = true
};

/* rope_theta: the reference's own rule for these two. */
static const DecoderDefaults talker_defaults = {
  .n_kv_heads = 2,.intermediate_size = 2048,.n_experts = 128,.top_k = 6,
  .moe_intermediate_size = 384,.shared_intermediate_size = 768,
  .norm_top_k = true,.rope_theta = 1e4,.rms_norm_eps = 1e-6,.is_mrope = true,
  .is_talker = true
};

static const DecoderDefaults predictor_defaults = {
  .n_kv_heads = 8,.head_dim = 128,.intermediate_size = 3072,.rope_theta = 1e4,
  .rms_norm_eps = 1e-6
};

static const DecoderDefaults code2wav_defaults = {
  .n_kv_heads = 16,.intermediate_size = 3072,.rope_theta = 1e4,
  .rms_norm_eps = 1e-5
};

/* Either dialect: rope_parameters, or rope_theta beside rope_scaling. */
static void
parse_rope (const Section * s, const DecoderDefaults * d,
    QomniDecoderConfig * ret)
{
  static const int released[3] = { 24, 20, 20 };
  bool v5 = has (s, "rope_parameters");
  Section rope = subsection (s, v5 ? "rope_parameters" : "rope_scaling");
  const char *type = get_string (&rope, has (&rope, "rope_type")
      ? "rope_type" : "type");
  int section[3], n, sum = 0;

  if (type != NULL && strcmp (type, "default") != 0
      && strcmp (type, "mrope") != 0)
    unsupported (&rope, "rope_type", type, "default");

  ret->rope_theta = get_number (s, "rope_theta", 1, 1e12, d->rope_theta);
  ret->rope_theta = get_number (&rope, "rope_theta", 1, 1e12, ret->rope_theta);
  if (!d->is_mrope)
    return;

  n = get_ints (&rope, "mrope_section", 0, MAX_HEAD_DIM, 3, section);
  if (n < 0) {
    /* As in the reference, whatever the size of the heads: what is given to
     * rows and columns is cut off at head_dim / 2. */
    memcpy (ret->mrope_section, released, sizeof released);
    return;
  }
  for (int i = 0; i < n; i++)
    sum += section[i];
  if (n != 3)
    refuse (&rope, "mrope_section", "has %d entries, expected 3", n);
  else if (sum != ret->head_dim / 2)
    refuse (&rope, "mrope_section", "sums to %d, expected %d, half of head_dim",
        sum, ret->head_dim / 2);
  else
    memcpy (ret->mrope_section, section, sizeof section);
}

/* Layer l of the Thinker has experts unless mlp_only_layers says otherwise,
 * where (l + 1) is a multiple of decoder_sparse_step, and never a shared one.
 * Every layer of the Talker has experts and a shared one, whatever those keys
 * say. */
static void
parse_experts (const Section * s, const DecoderDefaults * d,
    QomniDecoderConfig * ret)
{
  const char *key = has (s, "num_local_experts") && !has (s, "num_experts")
      ? "num_local_experts" : "num_experts";
  int only_mlp[QOMNI_MAX_LAYERS], n;

  ret->n_experts = (int) get_int (s, key, d->is_talker, QOMNI_MAX_EXPERTS,
      d->n_experts);
  if (ret->n_experts == 0) {
    memset (ret->dense_layer, 1, (size_t) ret->n_layers);
    return;
  }
  ret->top_k = (int) get_int (s, "num_experts_per_tok", 1, ret->n_experts,
      d->top_k);
  ret->moe_intermediate_size = get_int (s, "moe_intermediate_size", 1,
      QOMNI_MAX_WIDTH, d->moe_intermediate_size);
  ret->shared_intermediate_size = get_int (s,
      "shared_expert_intermediate_size", 0, QOMNI_MAX_WIDTH,
      d->shared_intermediate_size);
  if (!d->is_talker)
    ret->shared_intermediate_size = 0;
  ret->norm_top_k = get_bool (s, "norm_topk_prob", d->norm_top_k);
  ret->decoder_sparse_step = (int) get_int (s, "decoder_sparse_step", 1,
      QOMNI_MAX_LAYERS, 1);

  for (int l = 0; l < ret->n_layers; l++)
    ret->dense_layer[l] = (l + 1) % ret->decoder_sparse_step != 0;
  n = get_ints (s, "mlp_only_layers", 0, ret->n_layers - 1, QOMNI_MAX_LAYERS,
      only_mlp);
  for (int i = 0; i < n; i++)
    ret->dense_layer[only_mlp[i]] = true;
  if (d->is_talker)
    memset (ret->dense_layer, 0, (size_t) ret->n_layers);
}

static void
parse_decoder (const Section * s, const DecoderDefaults * d,
    QomniDecoderConfig * ret)
{
  int64_t by_heads;

  ret->hidden_size = get_int (s, "hidden_size", 1, QOMNI_MAX_WIDTH, REQUIRED);
  ret->n_layers = (int) get_int (s, "num_hidden_layers", 1, QOMNI_MAX_LAYERS,
      REQUIRED);
  ret->n_heads = (int) get_int (s, "num_attention_heads", 1, QOMNI_MAX_HEADS,
      REQUIRED);
  ret->n_kv_heads = (int) get_int (s, "num_key_value_heads", 1, ret->n_heads,
      d->n_kv_heads);
  if (ret->n_heads % ret->n_kv_heads != 0)
    refuse (s, "num_key_value_heads", "is %d, which does not divide the %d of "
        "num_attention_heads", ret->n_kv_heads, ret->n_heads);

  by_heads = d->head_dim > 0 ? d->head_dim
      : ret->hidden_size / ret->n_heads;
  ret->head_dim = (int) get_int (s, "head_dim", 2, MAX_HEAD_DIM, by_heads);
  if (ret->head_dim % 2 != 0)
    refuse (s, "head_dim", "is %d, expected an even number", ret->head_dim);

  ret->intermediate_size = get_int (s, "intermediate_size", 1,
      QOMNI_MAX_WIDTH, d->intermediate_size);
  ret->rms_norm_eps = get_number (s, "rms_norm_eps", 0, 1, d->rms_norm_eps);
  ret->decoder_sparse_step = 1;
  if (d->n_experts > 0)
    parse_experts (s, d, ret);
  else
    memset (ret->dense_layer, 1, (size_t) ret->n_layers);
  parse_rope (s, d, ret);

  want_string (s, "hidden_act", "silu");
  if (get_bool (s, "attention_bias", false))
    unsupported (s, "attention_bias", "true", "false");
}

static int64_t
parse_vocabulary (const Section * s)
{
  return get_int (s, "vocab_size", 1, QOMNI_MAX_VOCABULARY, REQUIRED);
}

/* --- encoders ------------------------------------------------------------ */

static void
want_text_width (const Section * s, const char *key, int64_t width,
    const QomniConfig * c)
{
  if (width != c->text.hidden_size)
    refuse (s, key, "is %" G_GINT64_FORMAT ", expected %" G_GINT64_FORMAT
        ", the hidden_size of text_config", width, c->text.hidden_size);
}

static void
want_divisor (const Section * s, const char *key, int n,
    const char *width_key, int64_t width)
{
  if (width % n != 0)
    refuse (s, key, "is %d, which does not divide the %" G_GINT64_FORMAT
        " of %s", n, width, width_key);
}

static void
parse_audio (const Section * s, QomniConfig * c)
{
  QomniAudioConfig *a = &c->audio;
  int64_t window;

  a->n_mel = (int) get_int (s, "num_mel_bins", 8, 1024, 128);
  a->n_layers = (int) get_int (s, "encoder_layers", 1, QOMNI_MAX_LAYERS,
      REQUIRED);
  a->n_heads = (int) get_int (s, "encoder_attention_heads", 1,
      QOMNI_MAX_HEADS, REQUIRED);
  a->ffn = get_int (s, "encoder_ffn_dim", 1, QOMNI_MAX_WIDTH, REQUIRED);
  a->width = get_int (s, "d_model", 4, QOMNI_MAX_WIDTH, REQUIRED);
  a->output_dim = get_int (s, "output_dim", 1, QOMNI_MAX_WIDTH, REQUIRED);
  a->conv_channels = get_int (s, "downsample_hidden_size", 1, 16384, 480);
  want_divisor (s, "encoder_attention_heads", a->n_heads, "d_model", a->width);
  if (a->width % 2 != 0)
    refuse (s, "d_model", "is %" G_GINT64_FORMAT ", expected an even number",
        a->width);
  want_text_width (s, "output_dim", a->output_dim, c);
  want_string (s, "activation_function", "gelu");

  /* 13 tokens per 100 frames is built into the positions. */
  want_int (s, "n_window", 50);
  a->chunk_frames = 100;
  /* Whole chunks; what is left over does not count. */
  window = get_int (s, "n_window_infer", a->chunk_frames, 1 << 20, 800);
  a->window_chunks = (int) (window / a->chunk_frames);
}

static void
parse_deepstack (const Section * s, QomniConfig * c)
{
  static const int released[] = { 8, 16, 24 };
  QomniVisionConfig *v = &c->vision;
  const char *key = "deepstack_visual_indexes";

  v->n_deepstack = get_ints (s, key, 0, v->depth - 1, QOMNI_MAX_LAYERS,
      v->deepstack_layer);
  if (v->n_deepstack < 0) {
    v->n_deepstack = G_N_ELEMENTS (released);
    memcpy (v->deepstack_layer, released, sizeof released);
    check_range (s, key, released[G_N_ELEMENTS (released) - 1], 0,
        v->depth - 1);
  }
  for (int i = 1; i < v->n_deepstack; i++) {
    if (v->deepstack_layer[i] <= v->deepstack_layer[i - 1])
      refuse (s, key, "has %d after %d, expected ascending blocks",
          v->deepstack_layer[i], v->deepstack_layer[i - 1]);
  }
}

static void
parse_vision (const Section * s, QomniConfig * c)
{
  QomniVisionConfig *v = &c->vision;
  int64_t positions;
  Section rope;

  v->depth = (int) get_int (s, "depth", 1, QOMNI_MAX_LAYERS, REQUIRED);
  v->n_heads = (int) get_int (s, "num_heads", 1, QOMNI_MAX_HEADS, REQUIRED);
  v->width = get_int (s, "hidden_size", 1, QOMNI_MAX_WIDTH, REQUIRED);
  v->ffn = get_int (s, "intermediate_size", 1, QOMNI_MAX_WIDTH, REQUIRED);
  v->output_dim = get_int (s, "out_hidden_size", 1, QOMNI_MAX_WIDTH, REQUIRED);
  v->in_channels = (int) get_int (s, "in_channels", 3, 3, 3);
  v->patch_size = (int) get_int (s, "patch_size", 1, 256, 16);
  v->temporal_patch_size = (int) get_int (s, "temporal_patch_size", 1, 16, 2);
  v->merge_size = (int) get_int (s, "spatial_merge_size", 1, 16, 2);
  want_divisor (s, "num_heads", v->n_heads, "hidden_size", v->width);
  /* Rows and columns rotate a quarter of the head each, in pairs. */
  if (v->width / v->n_heads % 4 != 0)
    refuse (s, "num_heads", "is %d: heads of %" G_GINT64_FORMAT " values, "
        "expected a multiple of 4", v->n_heads, v->width / v->n_heads);
  want_text_width (s, "out_hidden_size", v->output_dim, c);
  want_string (s, "hidden_act", "gelu_pytorch_tanh");

  positions = get_int (s, "num_position_embeddings", 1, 1 << 24, 2304);
  v->position_side = (int) lround (sqrt ((double) positions));
  if ((int64_t) v->position_side * v->position_side != positions)
    refuse (s, "num_position_embeddings", "is %" G_GINT64_FORMAT ", expected a "
        "square", positions);
  parse_deepstack (s, c);

  rope = subsection (s, "rope_parameters");
  if (get_number (&rope, "rope_theta", 0, 1e12, 10000) != 10000)
    unsupported (&rope, "rope_theta", "another number", "10000");
}

/* --- speech -------------------------------------------------------------- */

static void
parse_voices (const Section * s, QomniTalkerConfig * t)
{
  Section voices = subsection (s, "speaker_id");
  JsonObjectIter iter;
  const char *name;

  if (voices.object == NULL)
    return;
  if (json_object_get_size (voices.object) > 4096) {
    refuse (s, "speaker_id", "has %u voices, expected at most 4096",
        json_object_get_size (voices.object));
    return;
  }
  t->voices = g_new0 (QomniVoice, json_object_get_size (voices.object));
  json_object_iter_init_ordered (&iter, voices.object);
  while (json_object_iter_next_ordered (&iter, &name, NULL)) {
    QomniVoice *v = &t->voices[t->n_voices++];

    if (strlen (name) > 256)
      refuse (s, "speaker_id", "has a name of %zu bytes, expected at most 256",
          strlen (name));
    v->name = g_utf8_strdown (name, -1);
    v->id = (int32_t) get_int (&voices, name, 0, t->text.vocab_size - 1,
        REQUIRED);
  }
}

static void
parse_predictor (const Section * s, QomniTalkerConfig * t)
{
  JsonNode *types;

  parse_decoder (s, &predictor_defaults, &t->predictor);
  t->predictor.vocab_size = parse_vocabulary (s);
  t->codebook_size = t->predictor.vocab_size;
  types = member (s, "layer_types");
  if (types != NULL && JSON_NODE_HOLDS_ARRAY (types)) {
    JsonArray *array = json_node_get_array (types);

    for (guint i = 0; i < json_array_get_length (array); i++) {
      JsonNode *node = json_array_get_element (array, i);

      if (value_type (node) != G_TYPE_STRING
          || strcmp (json_node_get_string (node), "full_attention") != 0) {
        g_autofree char *text = node_str (node);

        unsupported (s, "layer_types", text, "full_attention");
      }
    }
  }

  if (t->predictor.hidden_size != t->text.hidden_size)
    refuse (s, "hidden_size", "is %" G_GINT64_FORMAT ", expected %"
        G_GINT64_FORMAT ", the hidden_size of the talker",
        t->predictor.hidden_size, t->text.hidden_size);
  if (get_int (s, "num_code_groups", 1, INT32_MAX, t->n_groups) != t->n_groups)
    refuse (s, "num_code_groups", "is not %d, the num_code_groups of the "
        "talker", t->n_groups);
}

static void
parse_talker (const Section * s, QomniConfig * c)
{
  QomniTalkerConfig *t = &c->talker;
  Section text = required_section (s, "text_config");
  Section predictor = required_section (s, "code_predictor_config");
  int64_t last;

  parse_decoder (&text, &talker_defaults, &t->text);
  t->text.vocab_size = parse_vocabulary (&text);
  last = t->text.vocab_size - 1;

  t->accept_layer = (int) get_int (s, "accept_hidden_layer", 0,
      c->text.n_layers, 24);
  t->thinker_width = get_int (s, "thinker_hidden_size", 1, QOMNI_MAX_WIDTH,
      c->text.hidden_size);
  want_text_width (s, "thinker_hidden_size", t->thinker_width, c);
  t->n_groups = (int) get_int (s, "num_code_groups", 2, 256, 16);
  t->codec_pad = (int32_t) get_int (s, "codec_pad_id", 0, last, 2148);
  t->codec_bos = (int32_t) get_int (s, "codec_bos_id", 0, last, 2149);
  t->codec_eos = (int32_t) get_int (s, "codec_eos_token_id", 0, last, 2150);
  t->codec_nothink = (int32_t) get_int (s, "codec_nothink_id", 0, last, 2155);
  t->codec_think_bos = (int32_t) get_int (s, "codec_think_bos_id", 0, last,
      2156);
  t->codec_think_eos = (int32_t) get_int (s, "codec_think_eos_id", 0, last,
      2157);
  parse_voices (s, t);
  parse_predictor (&predictor, t);

  /* The last 1024 ids of the Talker are never drawn, what is left must be
   * codes of the codebook. */
  if (t->text.vocab_size < t->codebook_size
      || t->text.vocab_size > t->codebook_size + 1024)
    refuse (&text, "vocab_size", "is %" G_GINT64_FORMAT ", expected %"
        G_GINT64_FORMAT " to %" G_GINT64_FORMAT " for a codebook of %"
        G_GINT64_FORMAT, t->text.vocab_size, t->codebook_size,
        t->codebook_size + 1024, t->codebook_size);
}

/* Ratios of the stages; n of them. */
static int
parse_ratios (const Section * s, const char *key, const int *released,
    int n_released, int *ret)
{
  int n = get_ints (s, key, 1, 64, 8, ret);

  if (n >= 1)
    return n;
  if (n == 0)
    refuse (s, key, "is empty");
  memcpy (ret, released, (size_t) n_released * sizeof *ret);
  return n_released;
}

static void
parse_code2wav (const Section * s, QomniConfig * c)
{
  static const int ratios[] = { 2, 2 }, rates[] = { 8, 5, 4, 3 };
  QomniCode2WavConfig *w = &c->code2wav;

  parse_decoder (s, &code2wav_defaults, &w->pre);
  /* Here alone: the others see everything, whatever their window. */
  w->pre.sliding_window = get_int (s, "sliding_window", 1, INT32_MAX, 72);
  w->codebook_size = get_int (s, "codebook_size", 1, QOMNI_MAX_VOCABULARY,
      2048);
  w->n_quantizers = (int) get_int (s, "num_quantizers", 1, 256, 16);
  w->pre.vocab_size = w->codebook_size * w->n_quantizers;
  w->decoder_dim = get_int (s, "decoder_dim", 1, QOMNI_MAX_WIDTH, 1536);
  w->n_upsample = parse_ratios (s, "upsampling_ratios", ratios,
      G_N_ELEMENTS (ratios), w->upsample_ratio);
  w->n_blocks = parse_ratios (s, "upsample_rates", rates,
      G_N_ELEMENTS (rates), w->upsample_rate);
  if (w->decoder_dim >> w->n_blocks == 0)
    refuse (s, "decoder_dim", "is %" G_GINT64_FORMAT ", expected at least %d: "
        "it is halved by each of upsample_rates", w->decoder_dim,
        1 << w->n_blocks);

  /* Every block of rate r loses r of its outputs, worth what follows. */
  w->samples_per_frame = 1;
  w->missing_samples = 0;
  for (int i = 0; i < w->n_upsample && w->samples_per_frame <= 1 << 20; i++)
    w->samples_per_frame *= w->upsample_ratio[i];
  for (int i = 0; i < w->n_blocks && w->samples_per_frame <= 1 << 20; i++) {
    w->samples_per_frame *= w->upsample_rate[i];
    w->missing_samples = (w->missing_samples + 1) * w->upsample_rate[i];
  }
  if (w->samples_per_frame > 1 << 20)
    refuse (s, "upsample_rates", "and upsampling_ratios multiply to more than "
        "%d", 1 << 20);

  if (w->codebook_size != c->talker.codebook_size)
    refuse (s, "codebook_size", "is %" G_GINT64_FORMAT ", expected %"
        G_GINT64_FORMAT ", the vocab_size of code_predictor_config",
        w->codebook_size, c->talker.codebook_size);
  if (w->n_quantizers != c->talker.n_groups)
    refuse (s, "num_quantizers", "is %d, expected %d, the num_code_groups of "
        "the talker", w->n_quantizers, c->talker.n_groups);
}

/* --- the Thinker and the root -------------------------------------------- */

/* A token id; -1 when the key is absent: the tokenizer knows better than any
 * number written here. */
static int32_t
get_token (const Section * s, const char *key, const QomniConfig * c)
{
  if (!has (s, key))
    return -1;
  return (int32_t) get_int (s, key, 0, c->text.vocab_size - 1, REQUIRED);
}

static void
parse_thinker (const Section * s, QomniConfig * c)
{
  Section text = required_section (s, "text_config");
  Section audio = subsection (s, "audio_config");
  Section vision = subsection (s, "vision_config");

  parse_decoder (&text, &thinker_defaults, &c->text);
  c->text.vocab_size = parse_vocabulary (&text);
  c->has_audio = audio.object != NULL;
  if (c->has_audio)
    parse_audio (&audio, c);
  c->has_vision = vision.object != NULL;
  if (c->has_vision)
    parse_vision (&vision, c);

  c->position_id_per_seconds = get_number (s, "position_id_per_seconds", 0.001,
      1e6, 13);
  c->audio_pad = get_token (s, "audio_token_id", c);
  c->audio_start = get_token (s, "audio_start_token_id", c);
  c->audio_end = get_token (s, "audio_end_token_id", c);
  c->image_pad = get_token (s, "image_token_id", c);
  c->video_pad = get_token (s, "video_token_id", c);
  c->vision_start = get_token (s, "vision_start_token_id", c);
  c->vision_end = get_token (s, "vision_end_token_id", c);
  /* On the root as well, which then wins. */
  c->user_id = get_token (s, "user_token_id", c);
}

static void
parse_root (const Section * root, QomniConfig * c)
{
  const char *type = get_string (root, "model_type");
  bool whole = has (root, "thinker_config");
  Section thinker = whole ? subsection (root, "thinker_config") : *root;
  const char *wanted = whole ? "qwen3_omni_moe" : "qwen3_omni_moe_thinker";

  if (root->r->error != NULL)
    return;
  if (type == NULL) {
    refuse (root, "model_type", "is missing");
    return;
  }
  if (strcmp (type, wanted) != 0) {
    unsupported (root, "model_type", type,
        strcmp (type, "qwen3_omni_moe") == 0
        ? "only with a thinker_config" : "qwen3_omni_moe");
    return;
  }
  c->model_type = g_strdup (type);
  c->thinker_prefix = g_strdup (whole ? "thinker." : "");
  parse_thinker (&thinker, c);

  c->im_start = get_token (root, "im_start_token_id", c);
  c->im_end = get_token (root, "im_end_token_id", c);
  c->system_id = get_token (root, "system_token_id", c);
  c->assistant_id = get_token (root, "assistant_token_id", c);
  if (has (root, "user_token_id"))
    c->user_id = get_token (root, "user_token_id", c);
  c->tts_pad = get_token (root, "tts_pad_token_id", c);
  c->tts_bos = get_token (root, "tts_bos_token_id", c);
  c->tts_eos = get_token (root, "tts_eos_token_id", c);

  c->has_speech = whole && get_bool (root, "enable_audio_output", true)
      && has (root, "talker_config") && has (root, "code2wav_config");
  if (c->has_speech) {
    Section talker = subsection (root, "talker_config");
    Section code2wav = subsection (root, "code2wav_config");

    parse_talker (&talker, c);
    parse_code2wav (&code2wav, c);
  }
}

/* --- the other files ----------------------------------------------------- */

static void
parse_pixels (const Section * s, int64_t *min, int64_t *max)
{
  const int64_t limit = (int64_t) QOMNI_MAX_IMAGE_SIDE * QOMNI_MAX_IMAGE_SIDE;
  Section size = subsection (s, "size");

  *min = get_int (&size, "shortest_edge", 1, limit, *min);
  *max = get_int (&size, "longest_edge", 1, limit, *max);
  *min = get_int (s, "min_pixels", 1, limit, *min);
  *max = get_int (s, "max_pixels", 1, limit, *max);
  if (*min > *max)
    refuse (s, "max_pixels", "is %" G_GINT64_FORMAT ", expected at least the "
        "minimum %" G_GINT64_FORMAT, *max, *min);
}

static void
parse_colours (const Section * s, const char *key, double min, float ret[3])
{
  JsonNode *node = member (s, key);
  JsonArray *array;

  for (int i = 0; i < 3; i++)
    ret[i] = 0.5f;
  if (node == NULL)
    return;
  if (!JSON_NODE_HOLDS_ARRAY (node)
      || json_array_get_length (json_node_get_array (node)) != 3) {
    refuse (s, key, "is no list of 3 numbers");
    return;
  }
  array = json_node_get_array (node);
  for (guint i = 0; i < 3; i++) {
    JsonNode *item = json_array_get_element (array, i);
    double v = value_type (item) == G_TYPE_DOUBLE
        || value_type (item) == G_TYPE_INT64 ? json_node_get_double (item)
        : NAN;

    if (!(v >= min && v <= 1000))
      refuse (s, key, "has the entry %g, expected %g to 1000", v, min);
    else
      ret[i] = (float) v;
  }
}

static void
parse_patches (const Section * s, const QomniConfig * c)
{
  if (!c->has_vision)
    return;
  want_int (s, "patch_size", c->vision.patch_size);
  want_int (s, "merge_size", c->vision.merge_size);
  want_int (s, "temporal_patch_size", c->vision.temporal_patch_size);
}

static void
parse_preprocessor (const Section * s, QomniConfig * c)
{
  QomniPreprocessorConfig *p = &c->preprocessor;

  parse_pixels (s, &p->image_min_pixels, &p->image_max_pixels);
  parse_colours (s, "image_mean", -1000, p->image_mean);
  parse_colours (s, "image_std", 1e-6, p->image_std);
  parse_patches (s, c);
  want_int (s, "sampling_rate", p->sampling_rate);
  want_int (s, "n_fft", p->n_fft);
  want_int (s, "hop_length", p->hop_length);
  if (c->has_audio)
    want_int (s, "feature_size", c->audio.n_mel);
}

static void
parse_video_preprocessor (const Section * s, QomniConfig * c)
{
  parse_pixels (s, &c->preprocessor.video_min_pixels,
      &c->preprocessor.video_max_pixels);
  parse_patches (s, c);
}

/* `<prefix>do_sample`, `<prefix>temperature`, … */
static void
parse_sampling (const Section * s, const char *prefix, QomniSampling * ret)
{
  char key[64];

#define KEY(name) (g_snprintf (key, sizeof key, "%s" name, prefix), key)
  ret->sample = get_bool (s, KEY ("do_sample"), ret->sample);
  /* The library's own defaults for what is sampled without a say. */
  if (ret->sample && ret->temperature == 0) {
    ret->temperature = 1;
    ret->top_k = 50;
  }
  ret->temperature = get_number (s, KEY ("temperature"), 0, 100,
      ret->temperature);
  ret->top_p = get_number (s, KEY ("top_p"), 0, 1, ret->top_p);
  ret->top_k = (int) get_int (s, KEY ("top_k"), 0, INT32_MAX, ret->top_k);
  ret->repetition_penalty = get_number (s, KEY ("repetition_penalty"), 0.01,
      100, ret->repetition_penalty);
  ret->max_tokens = (int) get_int (s, KEY ("max_new_tokens"), 1, MAX_TOKENS,
      ret->max_tokens);
#undef KEY
  if (!ret->sample)
    ret->temperature = 0;
}

/* Keys without a prefix are those of the whole model, which the reference does
 * not hand on to its parts. */
static void
parse_generation (const Section * s, QomniConfig * c)
{
  parse_sampling (s, "thinker_", &c->thinker_sampling);
  parse_sampling (s, "talker_", &c->talker_sampling);
}

typedef void (*ParseFunc) (const Section * root, QomniConfig * config);

static bool
parse_node (const char *file, JsonNode * node, ParseFunc parse,
    QomniConfig * config, GError ** error)
{
  Reader r = { file, NULL };
  Section root = { &r, NULL, "" };

  if (!JSON_NODE_HOLDS_OBJECT (node))
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: the document is no "
        "object", file);
  root.object = json_node_get_object (node);
  parse (&root, config);
  if (r.error == NULL)
    return true;
  g_propagate_error (error, r.error);
  return false;
}

static bool
read_document (const char *directory, const char *name, bool optional,
    ParseFunc parse, QomniConfig * config, GError ** error)
{
  g_autofree char *path = g_build_filename (directory, name, NULL);
  g_autoptr (JsonNode) node = NULL;

  if (optional && !qomni_file_exists (directory, name))
    return true;
  node = qomni_json_read_file (path, QOMNI_MAX_JSON_BYTES, QOMNI_JSON_STRICT,
      error);
  return node != NULL && parse_node (path, node, parse, config, error);
}

/* --- public -------------------------------------------------------------- */

static QomniConfig *
config_new (void)
{
  QomniConfig *c = g_new0 (QomniConfig, 1);

  c->preprocessor = (QomniPreprocessorConfig) {
    .image_min_pixels = 3136,.image_max_pixels = 12845056,
    .video_min_pixels = 131072,.video_max_pixels = 786432,
    .image_mean = {0.5f, 0.5f, 0.5f},.image_std = {0.5f, 0.5f, 0.5f},
    .sampling_rate = 16000,.n_fft = 400,.hop_length = 160
  };
  c->thinker_sampling = (QomniSampling) {
    .top_p = 1,.repetition_penalty = 1,.max_tokens = 1024
  };
  c->talker_sampling = (QomniSampling) {
    .sample = true,.temperature = 0.9,.top_p = 1,.top_k = 50,
    .repetition_penalty = 1.05,.max_tokens = 4096
  };
  return c;
}

static void
finish (QomniConfig * c)
{
  c->predictor_sampling = (QomniSampling) {
    .sample = c->talker_sampling.sample,
    .temperature = c->talker_sampling.sample ? 1 : 0,.top_p = 0.8,.top_k = 50,
    .repetition_penalty = 1,.max_tokens = MAX (c->talker.n_groups - 1, 0)
  };
}

QomniConfig *
qomni_config_read (const char *path, GError ** error)
{
  g_autoptr (QomniConfig) c = config_new ();
  g_autofree char *directory = qomni_checkpoint_resolve (path, error);

  if (directory == NULL
      || !read_document (directory, "config.json", false, parse_root, c, error)
      || !read_document (directory, "preprocessor_config.json", true,
          parse_preprocessor, c, error)
      || !read_document (directory, "video_preprocessor_config.json", true,
          parse_video_preprocessor, c, error)
      || !read_document (directory, "generation_config.json", true,
          parse_generation, c, error))
    return NULL;
  finish (c);
  return g_steal_pointer (&c);
}

QomniConfig *
qomni_config_parse (const char *name, const char *json, size_t length,
    GError ** error)
{
  g_autoptr (QomniConfig) c = config_new ();
  g_autoptr (JsonNode) node = qomni_json_parse (name, json, length,
      QOMNI_JSON_STRICT, error);

  if (node == NULL || !parse_node (name, node, parse_root, c, error))
    return NULL;
  finish (c);
  return g_steal_pointer (&c);
}

void
qomni_config_free (QomniConfig * self)
{
  if (self == NULL)
    return;
  for (int i = 0; i < self->talker.n_voices; i++)
    g_free (self->talker.voices[i].name);
  g_free (self->talker.voices);
  g_free (self->model_type);
  g_free (self->thinker_prefix);
  g_free (self);
}

static char *
lower_case (const char *name)
{
  return g_utf8_validate (name, -1, NULL) ? g_utf8_strdown (name, -1)
      : g_ascii_strdown (name, -1);
}

const QomniVoice *
qomni_config_voice (const QomniConfig * self, const char *name,
    GError ** error)
{
  const QomniTalkerConfig *t = &self->talker;
  g_autofree char *lower = lower_case (name != NULL ? name : "ethan");
  g_autoptr (GString) list = g_string_new (NULL);

  for (int i = 0; i < t->n_voices; i++) {
    if (strcmp (t->voices[i].name, lower) == 0)
      return &t->voices[i];
    g_string_append_printf (list, "%s%s", i > 0 ? ", " : "", t->voices[i].name);
  }
  if (name == NULL && t->n_voices > 0)
    return &t->voices[0];
  if (t->n_voices == 0)
    qomni_fail (error, QOMNI_ERROR_SETTINGS, "the model has no voices");
  else
    qomni_fail (error, QOMNI_ERROR_SETTINGS, "no voice '%s', the model has %s",
        name, list->str);
  return NULL;
}
