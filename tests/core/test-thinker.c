/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The Thinker against the reference's conversations, with the reference's own
 * embeddings of sound and pictures; then against itself: whatever way a
 * conversation takes, it must end where one prefill of the same prompt does.
 */
#include "thinker.h"

#include <json-glib/json-glib.h>

#include "probe.h"
#include "speech.h"

#define WIDTH 48                /* of tiny-a */
#define DEEPSTACK 3

/* --- conversations of the reference -------------------------------------- */

typedef struct
{
  Stages *stages;
  JsonParser *expected, *conversation;
  int64_t n;                    /* prompt */
  int64_t *ids;                 /* [n] */
  float *positions;             /* [3, n] */
  int64_t width;
  float *audio, *vision;        /* [tokens, width] */
  float *deepstack[8];
  int n_deepstack;
  int64_t at;                   /* in ids: what has been rebuilt */
  int64_t audio_used, vision_used;
  uint64_t clip;
} Case;

static JsonParser *
read_json (const char *path, const char *name)
{
  g_autofree char *file = g_build_filename (path, name, NULL);
  g_autoptr (GError) error = NULL;
  JsonParser *parser = json_parser_new ();

  json_parser_load_from_file (parser, file, &error);
  g_assert_no_error (error);
  return parser;
}

static float *
read_f32 (const Stages * stages, const char *name, int64_t * ret_width)
{
  const QomniTensorInfo *t;
  float *data = stages_get (stages, name, "F32", &t);

  if (t != NULL && ret_width != NULL)
    *ret_width = t->dims[t->n_dims - 1];
  return data;
}

static void
case_open (Case * c, const char *path)
{
  g_autofree char *file = g_build_filename (path, "stages.safetensors", NULL);
  const QomniTensorInfo *t;

  c->stages = stages_open (file);
  c->expected = read_json (path, "expected.json");
  c->conversation = read_json (path, "conversation.json");
  c->ids = stages_get (c->stages, "input_ids", "I64", &t);
  c->n = t->dims[0];
  c->positions = read_f32 (c->stages, "position_ids", NULL);
  c->audio = read_f32 (c->stages, "audio.embeddings", &c->width);
  c->vision = read_f32 (c->stages, "vision.embeddings", &c->width);
  for (int k = 0; k < 8; k++) {
    g_autofree char *name = g_strdup_printf ("vision.deepstack.%d", k);

    c->deepstack[k] = read_f32 (c->stages, name, NULL);
    c->n_deepstack += c->deepstack[k] != NULL;
  }
}

static void
case_close (Case * c)
{
  stages_close (c->stages);
  g_object_unref (c->expected);
  g_object_unref (c->conversation);
  g_free (c->ids);
  g_free (c->positions);
  g_free (c->audio);
  g_free (c->vision);
  for (int k = 0; k < 8; k++)
    g_free (c->deepstack[k]);
}

/* Whether the stages hold the embeddings of all media in the prompt. */
static bool
case_is_complete (const Case * c, const QomniConfig * config)
{
  for (int64_t i = 0; i < c->n; i++) {
    if (c->ids[i] == config->audio_pad && c->audio == NULL)
      return false;
    if ((c->ids[i] == config->image_pad || c->ids[i] == config->video_pad)
        && (c->vision == NULL || c->n_deepstack < config->vision.n_deepstack))
      return false;
  }
  return true;
}

/* The fraction that a number read from float positions was made of. */
static double
as_fraction (double x)
{
  for (int q = 1; q < 4000; q++) {
    const double p = round (x * q);

    if (fabs (p / q - x) < 4e-7 * x)
      return p / q;
  }
  return x;
}

/* The next clip of the prompt: its grid out of the positions, its rows out of
 * the stages. Cells and sounds of a video stand between the same markers. */
static void
push_next_clip (Case * c, const QomniConfig * config, QomniThinker * t)
{
  int64_t sounds = 0, cells = 0, first = -1;
  float most[3] = { 0, 0, 0 };
  int32_t pad = 0;
  GError *error = NULL;

  while (c->ids[c->at] != config->vision_start
      && c->ids[c->at] != config->audio_start)
    c->at++;
  for (; c->ids[c->at] != config->vision_end
      && (cells > 0 || c->ids[c->at] != config->audio_end); c->at++) {
    const int32_t id = (int32_t) c->ids[c->at];

    sounds += id == config->audio_pad;
    if (id != config->image_pad && id != config->video_pad)
      continue;
    pad = id;
    if (cells++ == 0)
      first = c->at;
    for (int axis = 0; axis < 3; axis++)
      most[axis] = MAX (most[axis], c->positions[axis * c->n + c->at]
          - c->positions[axis * c->n + first]);
  }
  g_assert_cmpint (sounds + cells, >, 0);

  if (cells > 0) {
    g_autoptr (QomniEmbeddings) e = qomni_embeddings_new (pad ==
        config->image_pad ? QOMNI_MODALITY_IMAGE : QOMNI_MODALITY_VIDEO,
        cells, 1 + c->n_deepstack, c->width, &error);

    e->clip = c->clip;
    e->last = true;
    e->grid_h = (int64_t) most[1] + 1;
    e->grid_w = (int64_t) most[2] + 1;
    e->grid_t = cells / (e->grid_h * e->grid_w);
    e->seconds_per_grid = e->grid_t == 1 ? 1
        : as_fraction (most[0] / (double) (e->grid_t - 1)
        / config->position_id_per_seconds);
    for (int64_t i = 0; i < cells; i++)
      for (int level = 0; level <= c->n_deepstack; level++)
        memcpy (e->data + (i * e->n_levels + level) * c->width,
            (level == 0 ? c->vision : c->deepstack[level - 1])
            + (c->vision_used + i) * c->width,
            (size_t) c->width * sizeof (float));
    c->vision_used += cells;
    qomni_thinker_push_embeddings (t, e, &error);
    g_assert_no_error (error);
  }
  if (sounds > 0) {
    g_autoptr (QomniEmbeddings) e = qomni_embeddings_new (QOMNI_MODALITY_AUDIO,
        sounds, 1, c->width, &error);

    e->clip = c->clip;
    e->last = true;
    e->in_video = cells > 0;
    memcpy (e->data, c->audio + c->audio_used * c->width,
        (size_t) (sounds * c->width) * sizeof (float));
    c->audio_used += sounds;
    qomni_thinker_push_embeddings (t, e, &error);
    g_assert_no_error (error);
  }
  c->clip++;
}

static void
push_message (Case * c, const QomniConfig * config, QomniThinker * t,
    JsonObject * message, bool is_last)
{
  const char *role = json_object_get_string_member (message, "role");
  JsonNode *content = json_object_get_member (message, "content");
  const bool is_user = strcmp (role, "user") == 0;
  GError *error = NULL;

  /* A user who says nothing opens no turn: that is history, too. */
  if (!is_user || (JSON_NODE_HOLDS_VALUE (content)
          && json_node_get_string (content)[0] == '\0')) {
    qomni_thinker_push_history (t, is_user ? QOMNI_ROLE_USER
        : strcmp (role, "system") == 0 ? QOMNI_ROLE_SYSTEM
        : QOMNI_ROLE_ASSISTANT,
        JSON_NODE_HOLDS_VALUE (content) ? json_node_get_string (content) :
        json_object_get_string_member (json_array_get_object_element
            (json_node_get_array (content), 0), "text"), &error);
    g_assert_no_error (error);
    return;
  }
  if (JSON_NODE_HOLDS_VALUE (content)) {
    qomni_thinker_push_text (t, json_node_get_string (content), &error);
    g_assert_no_error (error);
  } else {
    JsonArray *parts = json_node_get_array (content);

    for (guint i = 0; i < json_array_get_length (parts); i++) {
      JsonObject *part = json_array_get_object_element (parts, i);

      if (json_object_has_member (part, "text"))
        qomni_thinker_push_text (t, json_object_get_string_member (part,
                "text"), &error);
      else
        push_next_clip (c, config, t);
      g_assert_no_error (error);
    }
  }
  if (is_last)
    qomni_thinker_end_turn (t, &error);
  else
    qomni_thinker_close_turn (t, &error);
  g_assert_no_error (error);
}

/* Root mean square of the difference, against that of the reference. */
static double
relative_error (const float *got, const float *want, size_t n)
{
  g_autofree float *d = g_new (float, n);

  for (size_t i = 0; i < n; i++)
    d[i] = got[i] - want[i];
  return rms (d, n) / rms (want, n);
}

/* Stages that the case lacks are not compared. */
static void
compare_stage (const Case * c, QomniProbe * probe, const char *name,
    double tolerance)
{
  const QomniTensorInfo *info;
  g_autofree float *want = stages_get (c->stages, name, "F32", &info);
  const float *got;
  int64_t dims[4];
  size_t n = 1;
  int n_dims;

  if (info == NULL)
    return;
  got = qomni_probe_get (probe, name, &n_dims, dims);
  g_assert_nonnull (got);
  g_assert_cmpint (n_dims, ==, info->n_dims);
  for (int i = 0; i < n_dims; i++) {
    g_assert_cmpint (dims[i], ==, info->dims[i]);
    n *= (size_t) dims[i];
  }
  if (g_test_verbose ())
    g_test_message ("%s: %.2e", name, relative_error (got, want, n));
  g_assert_cmpfloat (relative_error (got, want, n), <, tolerance);
}

static void
reference_conversation_is_answered_alike (gconstpointer data)
{
  const char *path = data;
  g_autofree char *model_path = g_build_filename (path, "..", "..", NULL);
  g_autoptr (QomniModel) model = model_at (model_path);
  const QomniConfig *config = qomni_model_config (model);
  g_autoptr (QomniThinker) thinker = NULL;
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  g_autoptr (GArray) reply = g_array_new (FALSE, FALSE, sizeof (int32_t));
  g_autoptr (GString) text = g_string_new (NULL);
  QomniThinkerParams params;
  QomniThinkerStep step;
  Case c = { 0 };
  JsonObject *expected, *options;
  JsonArray *messages, *output;
  GError *error = NULL;
  bool done;

  case_open (&c, path);
  if (!case_is_complete (&c, config)) {
    g_test_skip ("the case lacks the embeddings of its media");
    case_close (&c);
    return;
  }
  expected = json_node_get_object (json_parser_get_root (c.expected));
  options = json_object_get_object_member (expected, "options");
  messages = json_node_get_array (json_parser_get_root (c.conversation));

  qomni_thinker_params_init (&params, config);
  params.sampling.sample = false;
  params.sampling.max_tokens =
      (int) json_object_get_int_member (options, "max-tokens");
  params.use_audio_in_video = json_object_get_boolean_member_with_default
      (options, "use-audio-in-video", FALSE);
  params.system_prompt =
      json_object_get_string_member_with_default (options, "system", NULL);
  params.probe = probe;
  params.want_hidden = config->has_speech;
  thinker = qomni_thinker_new (model, &params, NULL, &error);
  g_assert_no_error (error);
  for (guint i = 0; i < json_array_get_length (messages); i++)
    push_message (&c, config, thinker, json_array_get_object_element (messages,
            i), i + 1 == json_array_get_length (messages));

  do {
    qomni_thinker_step (thinker, &step, NULL, &error);
    g_assert_no_error (error);
    done = step.done;
    g_array_append_val (reply, step.token);
    g_string_append (text, step.text);
    qomni_thinker_step_clear (&step);
  } while (!done);

  g_assert_cmpint (qomni_thinker_prompt_tokens (thinker), ==, c.n);
  g_assert_cmpint (qomni_thinker_reply_tokens (thinker), ==, reply->len);
  compare_stage (&c, probe, "position_ids", 1e-6);
  compare_stage (&c, probe, "thinker.inputs_embeds", 1e-6);
  for (int i = 0; i <= config->text.n_layers; i++) {
    g_autofree char *name = g_strdup_printf ("thinker.hidden.%d", i);

    compare_stage (&c, probe, name, 1e-5);
  }
  compare_stage (&c, probe, "thinker.logits", 1e-5);

  output = json_object_get_array_member (expected, "output_ids");
  g_assert_cmpuint (reply->len, ==, json_array_get_length (output));
  for (guint i = 0; i < reply->len; i++)
    g_assert_cmpint (g_array_index (reply, int32_t, i), ==,
        json_array_get_int_element (output, i));
  g_assert_cmpstr (text->str, ==,
      json_object_get_string_member (expected, "text"));
  case_close (&c);
}

/* --- conversations with itself ------------------------------------------- */

static QomniEmbeddings *
block_new (QomniModality modality, uint64_t clip, int64_t t, int64_t h,
    int64_t w, bool last, uint32_t seed)
{
  QomniEmbeddings *e = qomni_embeddings_new (modality, t * h * w,
      modality == QOMNI_MODALITY_AUDIO ? 1 : 1 + DEEPSTACK, WIDTH, NULL);

  e->clip = clip;
  e->last = last;
  e->grid_t = t;
  e->grid_h = h;
  e->grid_w = w;
  e->seconds_per_grid = 0.7;
  for (int64_t i = 0; i < e->n_tokens * e->n_levels * WIDTH; i++) {
    seed = seed * 1664525u + 1013904223u;
    e->data[i] = (float) (seed >> 8) / (float) (1 << 23) - 1.0f;
  }
  return e;
}

static QomniEmbeddings *
sound_new (uint64_t clip, int64_t n, bool in_video, bool last, uint32_t seed)
{
  QomniEmbeddings *e =
      block_new (QOMNI_MODALITY_AUDIO, clip, n, 1, 1, last, seed);

  e->in_video = in_video;
  return e;
}

/* Takes the block. */
static void
push (QomniThinker * t, QomniEmbeddings * block)
{
  GError *error = NULL;

  qomni_thinker_push_embeddings (t, block, &error);
  g_assert_no_error (error);
  qomni_embeddings_unref (block);
}

static void
say (QomniThinker * t, const char *text)
{
  GError *error = NULL;

  qomni_thinker_push_text (t, text, &error);
  g_assert_no_error (error);
}

static void
prefill (QomniThinker * t)
{
  GError *error = NULL;

  qomni_thinker_prefill (t, NULL, &error);
  g_assert_no_error (error);
}

/* What a Talker would hold, and what was said. */
typedef struct
{
  GArray *tokens;               /* int32_t, all turns */
  GArray *prompt;               /* float [rows, 2, WIDTH] */
  GArray *prompt_positions;     /* float [rows, 3] */
  GArray *ids;                  /* int32_t [rows] */
  GArray *reply;                /* float [rows, WIDTH], header too */
  GArray *own_positions;        /* float [turns, 27] */
  GString *kinds;               /* P, H, R, E as they came; | between turns */
  QomniFinish finish;
} Heard;

static Heard *
heard_new (void)
{
  Heard *h = g_new0 (Heard, 1);

  h->tokens = g_array_new (FALSE, FALSE, sizeof (int32_t));
  h->prompt = g_array_new (FALSE, FALSE, 2 * WIDTH * sizeof (float));
  h->prompt_positions = g_array_new (FALSE, FALSE, 3 * sizeof (float));
  h->ids = g_array_new (FALSE, FALSE, sizeof (int32_t));
  h->reply = g_array_new (FALSE, FALSE, WIDTH * sizeof (float));
  h->own_positions = g_array_new (FALSE, FALSE, 27 * sizeof (float));
  h->kinds = g_string_new (NULL);
  return h;
}

static void
heard_free (Heard * h)
{
  g_array_unref (h->tokens);
  g_array_unref (h->prompt);
  g_array_unref (h->prompt_positions);
  g_array_unref (h->ids);
  g_array_unref (h->reply);
  g_array_unref (h->own_positions);
  g_string_free (h->kinds, TRUE);
  g_free (h);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Heard, heard_free)

static void
hear (Heard * h, const QomniEmbeddings * e)
{
  g_assert_cmpint (e->modality, ==, QOMNI_MODALITY_THINKER);
  g_string_append_c (h->kinds, "PHRE"[e->rows_kind]);
  switch (e->rows_kind) {
    case QOMNI_ROWS_PROMPT:
      g_assert_cmpint (e->first_row, <=, h->prompt->len);
      g_assert_cmpint (e->n_positions, ==, e->n_tokens);
      g_array_set_size (h->prompt, (guint) e->first_row);
      g_array_set_size (h->prompt_positions, (guint) e->first_row);
      g_array_set_size (h->ids, (guint) e->first_row);
      g_array_append_vals (h->prompt, e->data, (guint) e->n_tokens);
      g_array_append_vals (h->ids, e->ids, (guint) e->n_tokens);
      for (int64_t i = 0; i < e->n_tokens; i++) {
        const float at[] = { e->positions[i], e->positions[e->n_tokens + i],
          e->positions[2 * e->n_tokens + i]
        };

        g_array_append_val (h->prompt_positions, at);
      }
      break;
    case QOMNI_ROWS_HEADER:
      g_assert_cmpint (e->n_tokens, ==, 3);
      g_assert_cmpint (e->n_positions, ==, 9);
      g_array_append_vals (h->own_positions, e->positions, 1);
      G_GNUC_FALLTHROUGH;
    case QOMNI_ROWS_REPLY:
      for (int64_t i = 0; i < e->n_tokens; i++)
        g_array_append_vals (h->reply, e->data + i * 2 * WIDTH, 1);
      break;
    case QOMNI_ROWS_END:
      g_assert_cmpint (e->n_tokens, ==, 0);
      break;
  }
}

/* Steps until the reply ends or `n` tokens have come; n < 0: no matter. */
static void
listen (QomniThinker * t, Heard * h, int n)
{
  QomniThinkerStep step;
  GError *error = NULL;
  bool done = false;

  while (!done && n-- != 0) {
    qomni_thinker_step (t, &step, NULL, &error);
    g_assert_no_error (error);
    g_array_append_val (h->tokens, step.token);
    for (int i = 0; i < step.n_hidden; i++)
      hear (h, step.hidden[i]);
    h->finish = step.finish;
    done = step.done;
    qomni_thinker_step_clear (&step);
  }
}

static void
answer (QomniThinker * t, Heard * h)
{
  GError *error = NULL;

  qomni_thinker_end_turn (t, &error);
  g_assert_no_error (error);
  listen (t, h, -1);
  g_string_append_c (h->kinds, '|');
}

static void
assert_near (const GArray * a, const GArray * b, int width)
{
  g_assert_cmpuint (a->len, ==, b->len);
  g_assert_cmpfloat (relative_error ((const float *) a->data,
          (const float *) b->data, a->len * (size_t) width), <, 1e-5);
}

static void
assert_same_ids (const GArray * a, const GArray * b)
{
  g_assert_cmpmem (a->data, a->len * sizeof (int32_t), b->data,
      b->len * sizeof (int32_t));
}

static void
assert_alike (const Heard * a, const Heard * b)
{
  assert_same_ids (a->tokens, b->tokens);
  assert_same_ids (a->ids, b->ids);
  assert_near (a->prompt, b->prompt, 2 * WIDTH);
  assert_near (a->prompt_positions, b->prompt_positions, 3);
  assert_near (a->reply, b->reply, WIDTH);
  assert_near (a->own_positions, b->own_positions, 27);
}

/* Shared by the tests; opened by the first. */
static QomniModel *shared_model;

static bool
have_model (void)
{
  g_autofree char *path = fixture_path ("tiny-a");

  if (path != NULL && shared_model == NULL)
    shared_model = model_at (path);
  return path != NULL;
}

static QomniThinkerParams
default_params (int max_tokens)
{
  QomniThinkerParams params;

  qomni_thinker_params_init (&params, qomni_model_config (shared_model));
  params.sampling.sample = false;
  params.sampling.max_tokens = max_tokens;
  params.use_audio_in_video = true;
  params.want_hidden = true;
  return params;
}

static QomniThinker *
thinker_new (const QomniThinkerParams * params)
{
  GError *error = NULL;
  QomniThinker *t = qomni_thinker_new (shared_model, params, NULL, &error);

  g_assert_no_error (error);
  return t;
}

/* A turn of live media: two open clips of sound, a video with its sound coming
 * along, a picture. `early`: computes after every part. */
static void
push_live_turn (QomniThinker * t, bool early)
{
  QomniEmbeddings *const blocks[] = {
    sound_new (1, 13, false, false, 1),
    block_new (QOMNI_MODALITY_VIDEO, 2, 1, 2, 2, false, 2),
    sound_new (2, 13, true, false, 3),
    sound_new (1, 5, false, true, 4),
    block_new (QOMNI_MODALITY_VIDEO, 2, 2, 2, 2, false, 5),
    block_new (QOMNI_MODALITY_IMAGE, 2, 1, 3, 2, true, 6),
    sound_new (2, 26, true, true, 7),
    block_new (QOMNI_MODALITY_VIDEO, 2, 1, 2, 2, true, 8),
    sound_new (3, 70, false, true, 9),
  };

  say (t, "Look at ");
  for (size_t i = 0; i < G_N_ELEMENTS (blocks); i++) {
    push (t, blocks[i]);
    if (early)
      prefill (t);
  }
  say (t, "this.\n");
  if (early)
    prefill (t);
  say (t, "\nWhat is it?");
  if (early)
    prefill (t);
}

static void
prefill_after_every_part_changes_nothing (gconstpointer data)
{
  const bool use_audio_in_video = GPOINTER_TO_INT (data);

  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (24);
  g_autoptr (Heard) at_once = heard_new ();
  g_autoptr (Heard) early = heard_new ();
  g_autoptr (QomniThinker) a = NULL;
  g_autoptr (QomniThinker) b = NULL;

  params.use_audio_in_video = use_audio_in_video;
  a = thinker_new (&params);
  b = thinker_new (&params);
  for (int turn = 0; turn < 2; turn++) {
    push_live_turn (a, false);
    answer (a, at_once);
    push_live_turn (b, true);
    answer (b, early);
  }
  assert_alike (at_once, early);
}

/* With a probe every turn is computed from the start. */
static void
kept_cache_equals_computing_each_turn_afresh (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (12);
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  g_autoptr (Heard) kept = heard_new ();
  g_autoptr (Heard) fresh = heard_new ();
  g_autoptr (QomniThinker) a = thinker_new (&params);
  g_autoptr (QomniThinker) b = NULL;

  params.probe = probe;
  b = thinker_new (&params);
  for (int i = 0; i < 2; i++) {
    QomniThinker *t = i == 0 ? a : b;
    Heard *h = i == 0 ? kept : fresh;

    say (t, "Hello");
    answer (t, h);
    push_live_turn (t, false);
    answer (t, h);
    push (t, block_new (QOMNI_MODALITY_IMAGE, 9, 1, 2, 3, true, 10));
    say (t, "And this?");
    answer (t, h);
  }
  assert_alike (kept, fresh);
}

/* The Talker places an audio+video clip on a plain line, until a picture in a
 * later turn makes it a grid: its rows have to be sent again. */
static void
rows_that_move_for_the_talker_are_sent_again (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (6);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (QomniThinker) fresh = thinker_new (&params);
  g_autoptr (Heard) h = heard_new ();
  g_autoptr (Heard) want = heard_new ();
  GError *error = NULL;

  for (int i = 0; i < 2; i++) {
    QomniThinker *now = i == 0 ? t : fresh;

    push (now, block_new (QOMNI_MODALITY_VIDEO, 1, 2, 2, 3, true, 1));
    push (now, sound_new (1, 20, true, true, 2));
    if (i == 0) {
      answer (t, h);
      qomni_thinker_cancel (t);
    } else {
      qomni_thinker_close_turn (fresh, &error);
      g_assert_no_error (error);
    }
    push (now, block_new (QOMNI_MODALITY_IMAGE, 2, 1, 3, 3, true, 3));
    answer (now, i == 0 ? h : want);
  }
  /* The rows differ, as one heard a reply between; their places do not. */
  assert_same_ids (h->ids, want->ids);
  assert_near (h->prompt_positions, want->prompt_positions, 3);
}

static void
rows_for_the_talker_are_user_segments_and_the_reply_but_its_last_token (void)
{
  if (!have_model ())
    return;

  const QomniConfig *config = qomni_model_config (shared_model);
  QomniThinkerParams params = default_params (7);
  g_autoptr (QomniThinker) t = NULL;
  g_autoptr (Heard) h = heard_new ();

  params.system_prompt = "Be brief.";
  t = thinker_new (&params);
  push (t, sound_new (1, 10, false, true, 1));
  answer (t, h);
  g_assert_cmpint (h->finish, ==, QOMNI_FINISH_LENGTH);
  g_assert_cmpstr (h->kinds->str, ==, "PHRRRRRRE|");
  g_assert_cmpuint (h->reply->len, ==, 3 + 6);
  /* <|im_start|> user \n <|audio_start|> 10 pads <|audio_end|> <|im_end|> \n */
  g_assert_cmpuint (h->ids->len, ==, 3 + 12 + 2);
  g_assert_cmpint (g_array_index (h->ids, int32_t, 0), ==, config->im_start);
  g_assert_cmpint (g_array_index (h->ids, int32_t, 1), ==, config->user_id);
  g_assert_cmpint (g_array_index (h->ids, int32_t, 15), ==, config->im_end);
}

static void
second_turn_sends_only_its_own_rows (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (4);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (Heard) h = heard_new ();
  QomniThinkerStep step;
  GError *error = NULL;
  guint first;

  say (t, "Hello");
  answer (t, h);
  first = h->ids->len;
  say (t, "And?");
  qomni_thinker_end_turn (t, &error);
  qomni_thinker_step (t, &step, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpint (step.n_hidden, ==, 1);
  g_assert_cmpint (step.hidden[0]->rows_kind, ==, QOMNI_ROWS_PROMPT);
  g_assert_cmpint (step.hidden[0]->first_row, ==, first);
  g_assert_cmpint (step.hidden[0]->ids[0], ==,
      qomni_model_config (shared_model)->im_start);
  g_assert_cmpuint (step.hidden[0]->turn, ==, 2);
  qomni_thinker_step_clear (&step);
}

static void
reply_of_one_token_is_end_alone_and_its_rows_come_with_the_next (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (1);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (Heard) h = heard_new ();
  QomniSampling longer = params.sampling;

  say (t, "Hello");
  answer (t, h);
  g_assert_cmpstr (h->kinds->str, ==, "E|");
  longer.max_tokens = 2;
  qomni_thinker_set_sampling (t, &longer);
  say (t, "And?");
  answer (t, h);
  g_assert_cmpstr (h->kinds->str, ==, "E|PHRE|");
  /* Both turns, from the first row on. */
  g_assert_cmpuint (h->ids->len, >, 2 * 5);
}

static void
without_a_user_there_is_text_but_nothing_to_speak (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (3);
  g_autoptr (QomniThinker) t = NULL;
  g_autoptr (Heard) h = heard_new ();

  params.system_prompt = "Be brief.";
  t = thinker_new (&params);
  answer (t, h);
  g_assert_cmpuint (h->tokens->len, ==, 3);
  g_assert_cmpstr (h->kinds->str, ==, "E|");
}

/* Cut by cancel or by the limit, history is the same. */
static void
cancelled_reply_leaves_what_was_said (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (3);
  g_autoptr (QomniThinker) limited = thinker_new (&params);
  g_autoptr (QomniThinker) cancelled = NULL;
  g_autoptr (Heard) a = heard_new ();
  g_autoptr (Heard) b = heard_new ();
  QomniSampling longer = params.sampling;
  GError *error = NULL;

  longer.max_tokens = params.sampling.max_tokens = 20;
  cancelled = thinker_new (&params);

  push_live_turn (limited, false);
  answer (limited, a);
  qomni_thinker_set_sampling (limited, &longer);
  push_live_turn (cancelled, false);
  qomni_thinker_end_turn (cancelled, &error);
  listen (cancelled, b, 3);
  qomni_thinker_cancel (cancelled);
  assert_same_ids (a->tokens, b->tokens);

  say (limited, "Go on.");
  answer (limited, a);
  say (cancelled, "Go on.");
  answer (cancelled, b);
  g_assert_cmpuint (a->tokens->len, ==, 23);
  assert_same_ids (a->tokens, b->tokens);
  assert_near (a->prompt, b->prompt, 2 * WIDTH);
}

static void
step_with_cancelled_cancellable_ends_the_reply_and_the_next_turn_works (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (8);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (GCancellable) cancellable = g_cancellable_new ();
  g_autoptr (Heard) h = heard_new ();
  QomniThinkerStep step;
  GError *error = NULL;

  push_live_turn (t, false);
  qomni_thinker_end_turn (t, &error);
  g_assert_no_error (error);
  g_cancellable_cancel (cancellable);
  g_assert_false (qomni_thinker_step (t, &step, cancellable, &error));
  g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
  g_clear_error (&error);
  g_assert_true (step.done);
  g_assert_cmpint (step.finish, ==, QOMNI_FINISH_CANCELLED);
  g_assert_cmpint (step.n_hidden, ==, 0);
  g_assert_false (qomni_thinker_step (t, &step, NULL, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_INPUT);
  g_clear_error (&error);

  say (t, "Go on.");
  answer (t, h);
  g_assert_cmpuint (h->tokens->len, ==, 8);
}

static void
dropped_turn_leaves_no_trace (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (8);
  g_autoptr (QomniThinker) plain = thinker_new (&params);
  g_autoptr (QomniThinker) flushed = thinker_new (&params);
  g_autoptr (Heard) a = heard_new ();
  g_autoptr (Heard) b = heard_new ();

  for (int i = 0; i < 2; i++) {
    QomniThinker *t = i == 0 ? plain : flushed;

    say (t, "Hello");
    answer (t, i == 0 ? a : b);
    if (i == 1) {
      push_live_turn (t, true);
      qomni_thinker_drop_turn (t);
    }
    push (t, sound_new (1, 9, false, true, 77));
    answer (t, i == 0 ? a : b);
  }
  assert_alike (a, b);
}

static void
reset_conversation_begins_as_a_new_one (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (8);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (Heard) first = heard_new ();
  g_autoptr (Heard) second = heard_new ();

  push_live_turn (t, false);
  answer (t, first);
  qomni_thinker_reset (t);
  push_live_turn (t, true);
  answer (t, second);
  assert_alike (first, second);
}

/* Large enough to overflow inside the network, small enough to be pushed. */
static void
overflowing_media_end_the_reply_and_the_conversation_goes_on (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (8);
  g_autoptr (QomniThinker) plain = thinker_new (&params);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  QomniEmbeddings *huge =
      block_new (QOMNI_MODALITY_IMAGE, 1, 1, 2, 2, true, 1);
  g_autoptr (Heard) a = heard_new ();
  g_autoptr (Heard) b = heard_new ();
  QomniThinkerStep step;
  GError *error = NULL;

  for (int64_t i = 0; i < 4 * 4 * WIDTH; i++)
    huge->data[i] = 3e38f;
  say (plain, "Hello");
  answer (plain, a);
  say (t, "Hello");
  answer (t, b);

  push (t, huge);
  qomni_thinker_end_turn (t, &error);
  g_assert_false (qomni_thinker_step (t, &step, NULL, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_NUMERIC);
  g_clear_error (&error);
  g_assert_true (step.done);

  say (plain, "Go on.");
  answer (plain, a);
  say (t, "Go on.");
  answer (t, b);
  assert_alike (a, b);
}

static void
repeated_media_ids_of_a_reply_do_not_break_the_next_turn (void)
{
  if (!have_model ())
    return;

  const QomniConfig *config = qomni_model_config (shared_model);
  QomniThinkerParams params = default_params (200);
  g_autoptr (QomniThinker) t = NULL;
  g_autoptr (Heard) h = heard_new ();

  /* Hot enough to draw every id of the vocabulary now and then. */
  params.sampling.sample = true;
  params.sampling.temperature = 1000;
  params.sampling.top_k = 0;
  params.sampling.top_p = 1;
  params.seed = 5;
  t = thinker_new (&params);
  for (int turn = 0; turn < 8; turn++) {
    push (t, sound_new (1, 3, false, true, (uint32_t) turn));
    answer (t, h);
  }
  for (guint i = 0; i < h->tokens->len; i++)
    if (g_array_index (h->tokens, int32_t, i) == config->audio_pad)
      return;
  g_assert_not_reached ();
}

static void
assert_refused (bool ok, GError ** error, int code)
{
  g_assert_false (ok);
  g_assert_error (*error, QOMNI_ERROR, code);
  g_clear_error (error);
}

static void
unusable_parts_are_refused_and_the_turn_goes_on (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (4);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (QomniEmbeddings) other_grid =
      block_new (QOMNI_MODALITY_VIDEO, 1, 1, 2, 3, true, 1);
  g_autoptr (QomniEmbeddings) not_finite = sound_new (7, 4, false, true, 1);
  g_autoptr (QomniEmbeddings) empty = sound_new (8, 0, false, true, 1);
  g_autoptr (Heard) h = heard_new ();
  GError *error = NULL;

  assert_refused (qomni_thinker_end_turn (t, &error), &error,
      QOMNI_ERROR_INPUT);
  assert_refused (qomni_thinker_close_turn (t, &error), &error,
      QOMNI_ERROR_INPUT);
  push (t, block_new (QOMNI_MODALITY_VIDEO, 1, 1, 2, 2, false, 1));
  assert_refused (qomni_thinker_push_embeddings (t, other_grid, &error),
      &error, QOMNI_ERROR_INPUT);
  not_finite->data[100] = NAN;
  assert_refused (qomni_thinker_push_embeddings (t, not_finite, &error),
      &error, QOMNI_ERROR_NUMERIC);
  assert_refused (qomni_thinker_push_embeddings (t, empty, &error), &error,
      QOMNI_ERROR_INPUT);
  assert_refused (qomni_thinker_push_text (t, "\xff", &error), &error,
      QOMNI_ERROR_INPUT);
  assert_refused (qomni_thinker_push_history (t, QOMNI_ROLE_USER, "x",
          &error), &error, QOMNI_ERROR_INPUT);
  answer (t, h);
  g_assert_cmpuint (h->tokens->len, ==, 4);
}

/* Three ids and the end's two for the user, three for the header. */
static void
empty_user_turn_is_answered (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (4);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (Heard) h = heard_new ();
  GError *error = NULL;

  qomni_thinker_push_history (t, QOMNI_ROLE_USER, "", &error);
  g_assert_no_error (error);
  answer (t, h);
  g_assert_cmpint (qomni_thinker_prompt_tokens (t), ==, 8);
  g_assert_cmpuint (h->tokens->len, ==, 4);
}

/* As turns of five ids each. */
static void
empty_messages_of_the_history_are_kept (void)
{
  static const QomniRole roles[] = { QOMNI_ROLE_SYSTEM, QOMNI_ROLE_USER,
    QOMNI_ROLE_ASSISTANT
  };

  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (1);
  int64_t before = 0;

  for (size_t n = 0; n <= G_N_ELEMENTS (roles); n++) {
    g_autoptr (QomniThinker) t = thinker_new (&params);
    g_autoptr (Heard) h = heard_new ();
    GError *error = NULL;

    for (size_t i = 0; i < n; i++) {
      qomni_thinker_push_history (t, roles[i], "", &error);
      g_assert_no_error (error);
    }
    say (t, "Hello");
    answer (t, h);
    if (n > 0)
      g_assert_cmpint (qomni_thinker_prompt_tokens (t), ==, before + 5);
    before = qomni_thinker_prompt_tokens (t);
  }
}

static void
endless_text_is_refused_and_the_turn_goes_on (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (1);
  g_autoptr (QomniThinker) t = thinker_new (&params);
  g_autoptr (Heard) h = heard_new ();
  g_autofree char *text = g_strnfill (QOMNI_MAX_TEXT_BYTES + 1, 'a');
  GError *error = NULL;

  g_assert_false (qomni_thinker_push_text (t, text, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_LIMIT);
  g_clear_error (&error);
  g_assert_false (qomni_thinker_push_history (t, QOMNI_ROLE_USER, text,
          &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_LIMIT);
  g_clear_error (&error);
  say (t, "Hello");
  answer (t, h);
}

static void
probe_holds_the_last_turn_alone (void)
{
  if (!have_model ())
    return;

  QomniThinkerParams params = default_params (5);
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  g_autoptr (QomniThinker) t = NULL;
  g_autoptr (Heard) h = heard_new ();
  int64_t dims[4];
  int n_dims;

  params.probe = probe;
  t = thinker_new (&params);
  say (t, "Hello");
  answer (t, h);
  push_live_turn (t, true);
  answer (t, h);
  for (int i = 0; i <= 4; i++) {
    g_autofree char *name = g_strdup_printf ("thinker.hidden.%d", i);

    g_assert_nonnull (qomni_probe_get (probe, name, &n_dims, dims));
    g_assert_cmpint (dims[0], ==, qomni_thinker_prompt_tokens (t));
  }
  g_assert_nonnull (qomni_probe_get (probe, "thinker.logits", &n_dims, dims));
  g_assert_cmpint (dims[0], ==,
      qomni_model_config (shared_model)->text.vocab_size);
}

static void
speech_of_a_model_without_talker_is_refused_with_its_name (void)
{
  g_autofree char *path = fixture_path ("tiny-thinking");
  QomniThinkerParams params;
  GError *error = NULL;

  if (path == NULL)
    return;

  g_autoptr (QomniModel) model = model_at (path);

  qomni_thinker_params_init (&params, qomni_model_config (model));
  params.want_hidden = true;
  g_assert_null (qomni_thinker_new (model, &params, NULL, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_SETTINGS);
  g_assert_nonnull (strstr (error->message, "tiny-thinking"));
  g_clear_error (&error);
}

static void
add_reference_conversations (void)
{
  const char *root = g_getenv ("QOMNI_TEST_FIXTURES");
  g_autoptr (GDir) models = root == NULL ? NULL : g_dir_open (root, 0, NULL);
  const char *model, *name;

  while (models != NULL && (model = g_dir_read_name (models)) != NULL) {
    g_autofree char *path = g_build_filename (root, model, "cases", NULL);
    g_autoptr (GDir) cases = g_dir_open (path, 0, NULL);

    while (cases != NULL && (name = g_dir_read_name (cases)) != NULL) {
      g_autofree char *test = g_strdup_printf ("/thinker/reference/%s/%s",
          model, name);

      g_test_add_data_func_full (test, g_build_filename (path, name, NULL),
          reference_conversation_is_answered_alike, g_free);
    }
  }
}

int
main (int argc, char **argv)
{
  int status;

  g_test_init (&argc, &argv, NULL);
  add_reference_conversations ();
  g_test_add_data_func ("/thinker/prefill_after_every_part_changes_nothing"
      "/sound_beside_video", GINT_TO_POINTER (false),
      prefill_after_every_part_changes_nothing);
  g_test_add_data_func ("/thinker/prefill_after_every_part_changes_nothing"
      "/sound_in_video", GINT_TO_POINTER (true),
      prefill_after_every_part_changes_nothing);
#define ADD(name) g_test_add_func ("/thinker/" #name, name)
  ADD (kept_cache_equals_computing_each_turn_afresh);
  ADD (rows_that_move_for_the_talker_are_sent_again);
  ADD (rows_for_the_talker_are_user_segments_and_the_reply_but_its_last_token);
  ADD (second_turn_sends_only_its_own_rows);
  ADD (reply_of_one_token_is_end_alone_and_its_rows_come_with_the_next);
  ADD (without_a_user_there_is_text_but_nothing_to_speak);
  ADD (cancelled_reply_leaves_what_was_said);
  ADD (step_with_cancelled_cancellable_ends_the_reply_and_the_next_turn_works);
  ADD (dropped_turn_leaves_no_trace);
  ADD (reset_conversation_begins_as_a_new_one);
  ADD (overflowing_media_end_the_reply_and_the_conversation_goes_on);
  ADD (repeated_media_ids_of_a_reply_do_not_break_the_next_turn);
  ADD (unusable_parts_are_refused_and_the_turn_goes_on);
  ADD (empty_user_turn_is_answered);
  ADD (empty_messages_of_the_history_are_kept);
  ADD (endless_text_is_refused_and_the_turn_goes_on);
  ADD (probe_holds_the_last_turn_alone);
  ADD (speech_of_a_model_without_talker_is_refused_with_its_name);
#undef ADD
  status = g_test_run ();
  qomni_model_unref (shared_model);
  return status;
}
