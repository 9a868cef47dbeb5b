/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The Talker fed with what the reference's Thinker gave: the same inputs,
 * logits, codes and samples must come out, in whatever pieces the rows come.
 */
#include "talker.h"

#include "half.h"
#include "probe.h"
#include "speech.h"

#define N_LEVELS 2

/* One turn of a fixture as the Thinker would send it, in one piece each. */
typedef struct
{
  QomniModel *model;
  const QomniConfig *config;
  Stages *stages;
  QomniEmbeddings *prompt, *header, *reply, *end;
  int64_t n_frames;             /* that the reference made */
} Turn;

static QomniEmbeddings *
rows_new (QomniRowsKind kind, int64_t n, int64_t width, uint64_t turn)
{
  g_autoptr (GError) error = NULL;
  QomniEmbeddings *e = qomni_embeddings_new (QOMNI_MODALITY_THINKER, n,
      N_LEVELS, width, &error);

  g_assert_no_error (error);
  e->rows_kind = kind;
  e->turn = turn;
  return e;
}

/* Plain positions first … first+n-1 on all axes. */
static void
set_positions (QomniEmbeddings * e, int64_t first, int64_t n)
{
  g_free (e->positions);
  e->positions = g_new (float, 3 * n);
  e->n_positions = n;
  for (int64_t i = 0; i < 3 * n; i++)
    e->positions[i] = (float) (first + i % n);
}

/* Rows first … first+n-1 of e. */
static QomniEmbeddings *
part (const QomniEmbeddings * e, int64_t first, int64_t n)
{
  const int64_t row = N_LEVELS * e->width;
  QomniEmbeddings *p = rows_new (e->rows_kind, n, e->width, e->turn);

  memcpy (p->data, e->data + first * row, (size_t) (n * row) * sizeof (float));
  p->position_delta = e->position_delta;
  if (e->media != NULL)
    p->media = g_memdup2 (e->media + first, (size_t) n);
  if (e->rows_kind != QOMNI_ROWS_PROMPT)
    return p;
  p->first_row = e->first_row + first;
  set_positions (p, 0, n);
  for (int axis = 0; axis < 3; axis++)
    memcpy (p->positions + axis * n,
        e->positions + axis * e->n_positions + first,
        (size_t) n * sizeof (float));
  return p;
}

/* The Thinker's input row of a token. */
static void
embed (QomniModel * model, int32_t id, float *ret)
{
  QomniCheckpoint *c = qomni_model_checkpoint (model);
  const QomniTensorInfo *t =
      qomni_checkpoint_find (c, "thinker.model.embed_tokens.weight");
  size_t width = (size_t) t->dims[1];
  size_t bytes = width * qk_dtype_size (t->dtype->dtype);
  g_autofree void *raw = g_malloc (bytes);
  g_autoptr (GError) error = NULL;

  qomni_checkpoint_read_part (c, t, (uint64_t) id * bytes, raw, bytes,
      &error);
  g_assert_no_error (error);
  qk_to_f32 (ret, raw, t->dtype->dtype, width);
}

/* Whether each prompt token belongs to a user segment. */
static bool *
user_tokens (const QomniConfig * c, const int64_t * ids, int64_t n)
{
  bool *kept = g_new0 (bool, n);
  bool user = false;

  for (int64_t i = 0; i < n; i++) {
    if (ids[i] == c->im_start)
      user = i + 1 < n && ids[i + 1] == c->user_id;
    kept[i] = user;
  }
  return kept;
}

static bool
is_media (const QomniConfig * c, int64_t id)
{
  return id == c->audio_pad || id == c->image_pad || id == c->video_pad;
}

/* Works for text, sound and videos with their sound: those have plain
 * positions. */
static Turn *
turn_open (QomniModel * model, const char *fixture, const char *name)
{
  Turn *t = g_new0 (Turn, 1);
  const QomniConfig *c = qomni_model_config (model);
  g_autofree char *file = g_build_filename (fixture, "cases", name,
      "stages.safetensors", NULL);
  g_autofree char *hidden =
      g_strdup_printf ("thinker.hidden.%d", c->talker.accept_layer);
  const QomniTensorInfo *info, *out_info;
  g_autofree int64_t *ids = NULL, *out = NULL, *codes = NULL;
  g_autofree float *h = NULL;
  g_autofree bool *user = NULL;
  const int64_t width = c->talker.thinker_width, row = N_LEVELS * width;
  int64_t n, n_out, n_user = 0;

  t->model = qomni_model_ref (model);
  t->config = c;
  t->stages = stages_open (file);
  ids = stages_get (t->stages, "input_ids", "I64", &info);
  n = info->dims[0];
  out = stages_get (t->stages, "output_ids", "I64", &out_info);
  n_out = out_info->dims[0];
  h = stages_get (t->stages, hidden, "F32", &info);
  codes = stages_get (t->stages, "codes", "I64", &info);
  t->n_frames = info->dims[1];

  user = user_tokens (c, ids, n);
  for (int64_t i = 0; i < n; i++)
    n_user += user[i];
  t->prompt = rows_new (QOMNI_ROWS_PROMPT, n_user, width, 1);
  t->prompt->media = g_new0 (uint8_t, n_user);
  set_positions (t->prompt, 0, n_user);
  for (int64_t i = 0, k = 0; i < n; i++) {
    if (!user[i])
      continue;
    /* each row has the level that the Talker should look at, and a trap */
    t->prompt->media[k] = is_media (c, ids[i]);
    for (int64_t e = 0; e < row; e++)
      t->prompt->data[k * row + e] = 1e9f;
    if (is_media (c, ids[i]))
      memcpy (t->prompt->data + k * row + width, h + i * width,
          (size_t) width * sizeof (float));
    else
      embed (model, (int32_t) ids[i], t->prompt->data + k * row);
    k++;
  }

  t->header = rows_new (QOMNI_ROWS_HEADER, 3, width, 1);
  set_positions (t->header, n_user, 9);
  for (int64_t i = 0; i < 3; i++)
    embed (model, (int32_t) ids[n - 3 + i], t->header->data + i * row);

  t->reply = rows_new (QOMNI_ROWS_REPLY, n_out - 1, width, 1);
  for (int64_t i = 0; i < n_out - 1; i++)
    embed (model, (int32_t) out[i], t->reply->data + i * row);
  t->end = rows_new (QOMNI_ROWS_END, 0, width, 1);
  return t;
}

static void
turn_close (Turn * t)
{
  qomni_embeddings_unref (t->prompt);
  qomni_embeddings_unref (t->header);
  qomni_embeddings_unref (t->reply);
  qomni_embeddings_unref (t->end);
  stages_close (t->stages);
  qomni_model_unref (t->model);
  g_free (t);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC (Turn, turn_close)

/* So short that the text ends before the speech does. */
#define SHORT_REPLY 12

static Turn *
short_turn (QomniModel * model, const char *fixture)
{
  Turn *t = turn_open (model, fixture, "text");
  QomniEmbeddings *whole = t->reply;

  g_assert_cmpint (t->n_frames, >, 2 * SHORT_REPLY);
  t->reply = part (whole, 0, SHORT_REPLY);
  qomni_embeddings_unref (whole);
  return t;
}

/* A short turn of tiny-a, or NULL after skipping the test. */
static Turn *
text_turn (void)
{
  g_autofree char *path = fixture_path ("tiny-a");

  if (path == NULL)
    return NULL;
  g_autoptr (QomniModel) model = model_at (path);
  return short_turn (model, path);
}

static void
greedy (QomniTalkerParams * params, const Turn * t)
{
  qomni_talker_params_init (params, t->config);
  qomni_talker_params_greedy (params);
  params->max_frames = (int) t->n_frames;
}

static QomniTalker *
talker_new (QomniModel * model, const QomniTalkerParams * params)
{
  g_autoptr (GError) error = NULL;
  QomniTalker *talker = qomni_talker_new (model, params, NULL, &error);

  g_assert_no_error (error);
  return talker;
}

static void
push (QomniTalker * talker, QomniEmbeddings * rows)
{
  g_autoptr (GError) error = NULL;

  qomni_talker_push (talker, rows, &error);
  g_assert_no_error (error);
}

static void
push_part (QomniTalker * talker, const QomniEmbeddings * e, int64_t first,
    int64_t n)
{
  g_autoptr (QomniEmbeddings) p = part (e, first, n);

  push (talker, p);
}

static void
push_turn (QomniTalker * talker, const Turn * t)
{
  push (talker, t->prompt);
  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
}

/* Steps while there is sound, which is appended to `sound`. */
static QomniTalkerStep
run (QomniTalker * talker, GArray * sound)
{
  g_autoptr (GError) error = NULL;
  QomniTalkerStep step;

  do {
    qomni_talker_step (talker, &step, NULL, &error);
    g_assert_no_error (error);
    if (sound != NULL && step.state == QOMNI_TALKER_SOUND)
      g_array_append_vals (sound, step.samples, (guint) step.n_samples);
  } while (step.state == QOMNI_TALKER_SOUND);
  return step;
}

static GArray *
sound_new (void)
{
  return g_array_new (FALSE, FALSE, sizeof (float));
}

/* What a Talker of its own says in the turn. */
static GArray *
speak (const Turn * t, const QomniTalkerParams * params,
    QomniTalkerStep * ret_end)
{
  g_autoptr (QomniTalker) talker = talker_new (t->model, params);
  GArray *sound = sound_new ();

  push_turn (talker, t);
  *ret_end = run (talker, sound);
  g_assert_cmpint (ret_end->state, ==, QOMNI_TALKER_END);
  return sound;
}

/* How the turn ends; what is said does not matter. */
static QomniTalkerStep
end_of (const Turn * t, const QomniTalkerParams * params)
{
  QomniTalkerStep end;

  g_array_unref (speak (t, params, &end));
  return end;
}

static void
assert_same_sound (GArray * a, GArray * b)
{
  g_assert_cmpuint (a->len, ==, b->len);
  g_assert_cmpfloat (max_error ((float *) a->data, (float *) b->data, a->len),
      <=, 1e-5);
}

static guint
sound_length (const QomniConfig * c, int64_t n_frames)
{
  return (guint) (c->code2wav.samples_per_frame * n_frames
      - c->code2wav.missing_samples);
}

/* --- against the reference ------------------------------------------------ */

static void
compare_stage (const Turn * t, QomniProbe * probe, const char *name,
    double tolerance)
{
  const QomniTensorInfo *info = NULL;
  g_autofree float *want = stages_get (t->stages, name, "F32", &info);
  int64_t dims[4], count = 1;
  const float *got;
  double error;
  int n_dims;

  if (want == NULL)
    return;
  got = qomni_probe_get (probe, name, &n_dims, dims);
  g_assert_nonnull (got);
  g_assert_cmpint (n_dims, ==, info->n_dims);
  for (int i = 0; i < n_dims; i++) {
    g_assert_cmpint (dims[i], ==, info->dims[i]);
    count *= dims[i];
  }
  error = max_error (got, want, (size_t) count);
  g_test_message ("%s: largest error %.2g, rms %.2g", name, error,
      rms (want, (size_t) count));
  g_assert_cmpfloat (error, <, tolerance);
}

/* Codes are compared through the file that the probe writes. */
static void
compare_codes (const Turn * t, QomniProbe * probe)
{
  g_autofree char *directory = g_dir_make_tmp ("qomni-test-XXXXXX", NULL);
  g_autofree char *file = g_build_filename (directory, "got", NULL);
  const QomniTensorInfo *info, *got_info;
  g_autofree int64_t *want =
      stages_get (t->stages, "codes", "I64", &info), *got = NULL;
  g_autoptr (GError) error = NULL;
  Stages *stages;

  qomni_probe_write (probe, file, &error);
  g_assert_no_error (error);
  stages = stages_open (file);
  got = stages_get (stages, "codes", "I64", &got_info);
  g_assert_cmpint (got_info->n_dims, ==, 2);
  g_assert_cmpmem (got, got_info->bytes, want, info->bytes);
  stages_close (stages);
  g_unlink (file);
  g_rmdir (directory);
}

static void
test_reference (const void *data)
{
  g_auto (GStrv) names = g_strsplit (data, "/", 3);     /* model, case, voice */
  g_autofree char *path = fixture_path (names[0]);

  if (path == NULL)
    return;
  g_autoptr (QomniModel) model = model_at (path);
  g_autoptr (Turn) t = turn_open (model, path, names[1]);
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  QomniTalkerParams params;
  QomniTalkerStep end;

  greedy (&params, t);
  params.probe = probe;
  params.voice = names[2];
  g_autoptr (GArray) sound = speak (t, &params, &end);
  g_assert_cmpint (end.n_frames, ==, t->n_frames);
  compare_stage (t, probe, "talker.inputs_embeds", 1e-4);
  compare_stage (t, probe, "talker.logits", 1e-3);
  compare_stage (t, probe, "waveform", 1e-4);
  compare_codes (t, probe);
  g_assert_cmpuint (sound->len, ==, sound_length (t->config, t->n_frames));
  if (end.finish == QOMNI_SPEECH_LENGTH)
    return;

  /* it ended by itself: the limit had no part in that */
  params.max_frames = 0;
  g_autoptr (GArray) free_sound = speak (t, &params, &end);
  g_assert_cmpint (end.finish, ==, QOMNI_SPEECH_STOP);
  assert_same_sound (free_sound, sound);
}

/* --- rows in pieces ------------------------------------------------------- */

static void
test_waits_for_text (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (GArray) got = sound_new ();
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_WAIT);
  for (int64_t i = 0; i < t->prompt->n_tokens; i += 5)
    push_part (talker, t->prompt, i, MIN (5, t->prompt->n_tokens - i));
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_WAIT);
  push (talker, t->header);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_WAIT);
  g_assert_cmpuint (got->len, ==, 0);

  for (int64_t i = 0; i < t->reply->n_tokens; i++) {
    push_part (talker, t->reply, i, 1);
    step = run (talker, got);
    g_assert_cmpint (step.state, ==, QOMNI_TALKER_WAIT);
    /* one row of text, one frame */
    g_assert_cmpint (step.n_frames, ==, i + 1);
  }
  push (talker, t->end);
  step = run (talker, got);
  g_assert_cmpint (step.state, ==, QOMNI_TALKER_END);
  g_assert_cmpint (step.finish, ==, QOMNI_SPEECH_LENGTH);
  assert_same_sound (got, want);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_WAIT);
}

static void
test_groups (void)
{
  g_autoptr (Turn) t = text_turn ();
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  params.group_frames = 4;
  g_autoptr (GArray) got = speak (t, &params, &step);
  g_assert_cmpint (step.n_frames, ==, t->n_frames);
  assert_same_sound (got, want);

  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);
  g_autoptr (GError) error = NULL;
  push_turn (talker, t);
  qomni_talker_step (talker, &step, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpint (step.n_frames, ==, 1);
  qomni_talker_step (talker, &step, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpint (step.n_frames, ==, 5);
}

/* --- turns ---------------------------------------------------------------- */

static void
test_prompt_is_kept (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  const int64_t n = t->prompt->n_tokens, first = n / 2;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  params.probe = probe;
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  /* a turn with half of the prompt and a wrong row after it */
  push_part (talker, t->prompt, 0, first);
  g_autoptr (QomniEmbeddings) wrong = part (t->prompt, 0, 1);
  wrong->first_row = first;
  push (talker, wrong);
  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
  g_assert_cmpint (run (talker, NULL).state, ==, QOMNI_TALKER_END);

  /* the wrong row is replaced by what really follows */
  g_autoptr (GArray) got = sound_new ();
  push_part (talker, t->prompt, first, n - first);
  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_END);
  assert_same_sound (got, want);
  compare_stage (t, probe, "talker.inputs_embeds", 1e-4);
}

static void
test_cancel (void)
{
  g_autoptr (Turn) t = text_turn ();
  QomniTalkerParams params;
  QomniTalkerStep step;
  g_autoptr (GError) error = NULL;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  push (talker, t->prompt);
  push (talker, t->header);
  push_part (talker, t->reply, 0, 4);
  for (int i = 0; i < 3; i++) {
    qomni_talker_step (talker, &step, NULL, &error);
    g_assert_no_error (error);
    g_assert_cmpint (step.state, ==, QOMNI_TALKER_SOUND);
  }
  qomni_talker_cancel (talker);
  g_assert_cmpint (run (talker, NULL).state, ==, QOMNI_TALKER_WAIT);
  /* the Thinker was still writing */
  push_part (talker, t->reply, 4, t->reply->n_tokens - 4);
  push (talker, t->end);
  g_assert_cmpint (run (talker, NULL).state, ==, QOMNI_TALKER_WAIT);

  g_autoptr (GArray) got = sound_new ();
  t->header->turn = t->reply->turn = t->end->turn = 2;
  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_END);
  assert_same_sound (got, want);
}

static void
test_cancel_leaves_next_turn (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (GArray) got = sound_new ();
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  /* not begun yet: the first of the two waiting replies is dropped */
  push_part (talker, t->prompt, 0, 3);
  push (talker, t->header);
  push_part (talker, t->reply, 0, 2);
  push (talker, t->end);
  push_part (talker, t->prompt, 3, t->prompt->n_tokens - 3);
  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
  qomni_talker_cancel (talker);
  step = run (talker, got);
  g_assert_cmpint (step.state, ==, QOMNI_TALKER_END);
  g_assert_cmpint (step.n_frames, ==, t->n_frames);
  assert_same_sound (got, want);
}

static void
test_cancelled_step (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (GCancellable) cancellable = g_cancellable_new ();
  g_autoptr (GArray) got = sound_new ();
  g_autoptr (GError) error = NULL;
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  push_turn (talker, t);
  g_cancellable_cancel (cancellable);
  g_assert_false (qomni_talker_step (talker, &step, cancellable, &error));
  g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_WAIT);
  g_assert_cmpuint (got->len, ==, 0);

  /* the prompt is still there */
  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_END);
  assert_same_sound (got, want);
}

static void
test_no_speech (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (GArray) sound = sound_new ();
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  push (talker, t->end);
  step = run (talker, sound);
  g_assert_cmpint (step.state, ==, QOMNI_TALKER_END);
  g_assert_cmpint (step.finish, ==, QOMNI_SPEECH_NONE);

  /* a reply of one token only has none for the Talker */
  push (talker, t->prompt);
  push (talker, t->header);
  g_assert_cmpint (run (talker, sound).state, ==, QOMNI_TALKER_WAIT);
  push (talker, t->end);
  step = run (talker, sound);
  g_assert_cmpint (step.state, ==, QOMNI_TALKER_END);
  g_assert_cmpint (step.finish, ==, QOMNI_SPEECH_NONE);
  g_assert_cmpint (step.n_frames, ==, 0);
  g_assert_cmpuint (sound->len, ==, 0);
}

static void
test_reset (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (GArray) got = sound_new ();
  g_autoptr (GError) error = NULL;
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  push_turn (talker, t);
  qomni_talker_step (talker, &step, NULL, &error);
  g_assert_no_error (error);
  qomni_talker_reset (talker);
  g_autoptr (QomniEmbeddings) late = part (t->prompt, 1, 1);
  g_assert_false (qomni_talker_push (talker, late, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_INPUT);
  push_turn (talker, t);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_END);
  assert_same_sound (got, want);
}

/* --- voices --------------------------------------------------------------- */

static void
test_voices (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (GError) error = NULL;
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  params.voice = "nobody";
  g_assert_null (qomni_talker_new (t->model, &params, NULL, &error));
  g_assert_nonnull (error);
  for (int i = 0; i < t->config->talker.n_voices; i++)
    g_assert_nonnull (strstr (error->message,
            t->config->talker.voices[i].name));
  g_clear_error (&error);

  params.voice = "Chelsie";
  g_autoptr (GArray) chelsie = speak (t, &params, &step);
  params.voice = NULL;
  g_autoptr (GArray) ethan = speak (t, &params, &step);
  g_assert_cmpfloat (max_error ((float *) chelsie->data,
          (float *) ethan->data, MIN (chelsie->len, ethan->len)), >, 1e-2);

  /* while a reply is spoken, the next one's voice is set */
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);
  g_autoptr (GArray) first = sound_new (), second = sound_new ();
  push_turn (talker, t);
  qomni_talker_step (talker, &step, NULL, &error);
  g_assert_no_error (error);
  g_array_append_vals (first, step.samples, (guint) step.n_samples);
  g_assert_false (qomni_talker_set_voice (talker, "nobody", &error));
  g_clear_error (&error);
  g_assert_true (qomni_talker_set_voice (talker, "CHELSIE", &error));
  run (talker, first);
  assert_same_sound (first, ethan);
  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
  run (talker, second);
  assert_same_sound (second, chelsie);
}

/* --- ends ----------------------------------------------------------------- */

static void
test_limit (void)
{
  g_autoptr (Turn) t = text_turn ();
  QomniTalkerParams params;
  QomniTalkerStep end;

  if (t == NULL)
    return;
  greedy (&params, t);
  params.max_frames = 5;
  g_autoptr (GArray) sound = speak (t, &params, &end);
  g_assert_cmpint (end.finish, ==, QOMNI_SPEECH_LENGTH);
  g_assert_cmpint (end.n_frames, ==, 5);
  g_assert_cmpuint (sound->len, ==, 1920 * 5 - 555);

  /* the reference's limit counts drawn codes, and the last has no frame */
  params.max_frames = 0;
  params.sampling.max_tokens = 4;
  g_autoptr (GArray) shorter = speak (t, &params, &end);
  g_assert_cmpint (end.n_frames, ==, 3);
  g_assert_cmpuint (shorter->len, ==, 1920 * 3 - 555);
}

typedef void (*ChangeFunc) (uint16_t * head, const QomniConfig * config,
    int32_t code);

/* A copy of tiny-a, which is bf16, with another codec head. */
static QomniModel *
changed_model (const char *path, ChangeFunc change, int32_t code,
    char **ret_copy)
{
  g_autoptr (QomniModel) model = model_at (path);
  const QomniTensorInfo *t =
      qomni_checkpoint_find (qomni_model_checkpoint (model),
      "talker.codec_head.weight");
  char *copy = linked_copy (path);
  g_autofree char *from = g_build_filename (path, "model.safetensors", NULL);
  g_autofree char *to = g_build_filename (copy, "model.safetensors", NULL);
  g_autofree char *bytes = NULL;
  g_autofree uint16_t *head = g_malloc (t->bytes);
  g_autoptr (GError) error = NULL;
  size_t length;

  g_assert_cmpstr (t->dtype->name, ==, "BF16");
  g_file_get_contents (from, &bytes, &length, &error);
  g_assert_no_error (error);
  memcpy (head, bytes + t->offset, t->bytes);
  change (head, qomni_model_config (model), code);
  memcpy (bytes + t->offset, head, t->bytes);
  g_unlink (to);
  g_file_set_contents (to, bytes, (gssize) length, &error);
  g_assert_no_error (error);
  *ret_copy = copy;
  return model_at (copy);
}

static uint16_t *
head_row (uint16_t * head, const QomniConfig * config, int32_t id)
{
  return head + id * config->talker.text.hidden_size;
}

/* The end token looks like `code`, only more so. */
static void
end_like_code (uint16_t * head, const QomniConfig * config, int32_t code)
{
  uint16_t *from = head_row (head, config, code);
  uint16_t *to = head_row (head, config, config->talker.codec_eos);

  for (int64_t i = 0; i < config->talker.text.hidden_size; i++)
    to[i] = qk_f32_to_bf16 (1.05f * qk_bf16_to_f32 (from[i]));
}

static void
all_alike (uint16_t * head, const QomniConfig * config, int32_t code)
{
  memset (head, 0, (size_t) (config->talker.text.vocab_size
          * config->talker.text.hidden_size) * sizeof (*head));
}

static void
not_a_number (uint16_t * head, const QomniConfig * config, int32_t code)
{
  *head_row (head, config, code) = 0x7fc0;
}

static Turn *
changed_turn (ChangeFunc change, int64_t frame, char **ret_copy)
{
  g_autofree char *path = fixture_path ("tiny-a");
  const QomniTensorInfo *info;

  if (path == NULL)
    return NULL;
  g_autoptr (QomniModel) plain = model_at (path);
  g_autoptr (Turn) t = turn_open (plain, path, "text");
  g_autofree int64_t *codes = stages_get (t->stages, "codes", "I64", &info);
  g_autoptr (QomniModel) model =
      changed_model (path, change, (int32_t) codes[frame], ret_copy);
  return short_turn (model, path);
}

static void
test_stop (void)
{
  char *copy;
  g_autoptr (Turn) t = changed_turn (end_like_code, 6, &copy);
  g_autoptr (Turn) plain = text_turn ();
  QomniTalkerParams params;
  QomniTalkerStep step;
  g_autoptr (GArray) got = sound_new ();

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (plain, &params, &step);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  /* it stops while the Thinker is still writing: what comes late is ignored */
  push (talker, t->prompt);
  push (talker, t->header);
  push_part (talker, t->reply, 0, 10);
  step = run (talker, got);
  g_assert_cmpint (step.state, ==, QOMNI_TALKER_END);
  g_assert_cmpint (step.finish, ==, QOMNI_SPEECH_STOP);
  g_assert_cmpint (step.n_frames, >, 0);
  g_assert_cmpint (step.n_frames, <=, 6);
  g_assert_cmpuint (got->len, ==, sound_length (t->config, step.n_frames));
  g_assert_cmpfloat (max_error ((float *) got->data, (float *) want->data,
          got->len), <=, 1e-5);
  push_part (talker, t->reply, 10, t->reply->n_tokens - 10);
  push (talker, t->end);
  g_assert_cmpint (run (talker, NULL).state, ==, QOMNI_TALKER_WAIT);
  remove_copy (copy);
}

static void
test_end_first (void)
{
  char *copy;
  g_autoptr (Turn) t = changed_turn (end_like_code, 0, &copy);
  QomniTalkerParams params;
  QomniTalkerStep end;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) sound = speak (t, &params, &end);
  g_assert_cmpint (end.finish, ==, QOMNI_SPEECH_NONE);
  g_assert_cmpint (end.n_frames, ==, 0);
  g_assert_cmpuint (sound->len, ==, 0);
  remove_copy (copy);
}

static void
test_guards (void)
{
  char *copy;
  g_autoptr (Turn) t = changed_turn (all_alike, 0, &copy);
  QomniTalkerParams params;
  QomniTalkerStep end;

  if (t == NULL)
    return;
  const int64_t n = t->reply->n_tokens;
  greedy (&params, t);
  params.max_frames = 1000;

  /* row n + 1 uses the end mark; the frame after it is the first that counts */
  params.tail_frames = 7;
  params.tail_frames_per_token = 0;
  end = end_of (t, &params);
  g_assert_cmpint (end.finish, ==, QOMNI_SPEECH_RUNAWAY);
  g_assert_cmpint (end.n_frames, ==, n + 7);

  params.tail_frames = 0;
  params.tail_frames_per_token = 1;
  end = end_of (t, &params);
  g_assert_cmpint (end.finish, ==, QOMNI_SPEECH_RUNAWAY);
  g_assert_cmpint (end.n_frames, ==, 2 * n);

  /* one frame to compare with, then 11 equal ones */
  params.tail_frames_per_token = 0;
  params.loop_frames = 11;
  end = end_of (t, &params);
  g_assert_cmpint (end.finish, ==, QOMNI_SPEECH_RUNAWAY);
  g_assert_cmpint (end.n_frames, ==, n + 12);

  params.loop_frames = 0;
  params.max_frames = 100;
  end = end_of (t, &params);
  g_assert_cmpint (end.finish, ==, QOMNI_SPEECH_LENGTH);
  g_assert_cmpint (end.n_frames, ==, 100);
  remove_copy (copy);
}

/* --- faults --------------------------------------------------------------- */

static void
test_not_a_number (void)
{
  char *copy;
  g_autoptr (Turn) t = changed_turn (not_a_number, 0, &copy);
  g_autoptr (GError) error = NULL;
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);
  push_turn (talker, t);
  g_assert_false (qomni_talker_step (talker, &step, NULL, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_NUMERIC);
  g_assert_nonnull (strstr (error->message, "Talker"));
  remove_copy (copy);
}

static void
test_next_turn_after_fault (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (GArray) got = sound_new ();
  g_autoptr (GError) error = NULL;
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (GArray) want = speak (t, &params, &step);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);
  g_autoptr (QomniEmbeddings) huge = part (t->reply, 0, t->reply->n_tokens);

  for (int64_t i = 0; i < huge->n_tokens * N_LEVELS * huge->width; i++)
    huge->data[i] = i % 2 == 0 ? 3e38f : -3e38f;
  push (talker, t->prompt);
  push (talker, t->header);
  push (talker, huge);
  push (talker, t->end);
  g_assert_false (qomni_talker_step (talker, &step, NULL, &error));
  g_assert_error (error, QOMNI_ERROR, QOMNI_ERROR_NUMERIC);
  g_clear_error (&error);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_WAIT);

  push (talker, t->header);
  push (talker, t->reply);
  push (talker, t->end);
  g_assert_cmpint (run (talker, got).state, ==, QOMNI_TALKER_END);
  assert_same_sound (got, want);
}

static void
assert_refused (QomniTalker * talker, QomniEmbeddings * rows, int code)
{
  g_autoptr (GError) error = NULL;

  g_assert_false (qomni_talker_push (talker, rows, &error));
  g_assert_error (error, QOMNI_ERROR, code);
  qomni_embeddings_unref (rows);
}

static void
test_bad_rows (void)
{
  g_autoptr (Turn) t = text_turn ();
  QomniTalkerParams params;
  QomniEmbeddings *e;

  if (t == NULL)
    return;
  greedy (&params, t);
  g_autoptr (QomniTalker) talker = talker_new (t->model, &params);

  assert_refused (talker, part (t->prompt, 1, 2), QOMNI_ERROR_INPUT);
  assert_refused (talker, part (t->header, 0, 3), QOMNI_ERROR_INPUT);
  e = part (t->prompt, 0, 2);
  e->n_positions = 1;
  assert_refused (talker, e, QOMNI_ERROR_INPUT);
  e = part (t->prompt, 0, 2);
  e->positions[1] = NAN;
  assert_refused (talker, e, QOMNI_ERROR_INPUT);
  e = part (t->prompt, 0, 2);
  e->data[3] = INFINITY;
  assert_refused (talker, e, QOMNI_ERROR_NUMERIC);
  e = part (t->reply, 0, 2);
  e->modality = QOMNI_MODALITY_AUDIO;
  assert_refused (talker, e, QOMNI_ERROR_INPUT);
  e = rows_new (QOMNI_ROWS_REPLY, 1, t->reply->width + 1, 1);
  assert_refused (talker, e, QOMNI_ERROR_INPUT);

  /* rows that replace earlier ones leave nothing behind them */
  push_part (talker, t->prompt, 0, 4);
  push_part (talker, t->prompt, 1, 1);
  assert_refused (talker, part (t->prompt, 3, 1), QOMNI_ERROR_INPUT);
  push_part (talker, t->prompt, 2, 1);
}

/* --- sampling ------------------------------------------------------------- */

static void
test_sampling (void)
{
  g_autoptr (Turn) t = text_turn ();
  g_autoptr (QomniProbe) probe = qomni_probe_new ();
  QomniTalkerParams params;
  QomniTalkerStep step;

  if (t == NULL)
    return;
  qomni_talker_params_init (&params, t->config);
  params.max_frames = 30;
  params.seed = 5;
  g_autoptr (GArray) first = speak (t, &params, &step);
  g_autoptr (GArray) again = speak (t, &params, &step);
  params.seed = 6;
  params.probe = probe;
  g_autoptr (GArray) other = speak (t, &params, &step);

  /* Code2Wav refuses ids that are no codes, so every one drawn was legal */
  assert_same_sound (first, again);
  g_assert_cmpfloat (max_error ((float *) first->data, (float *) other->data,
          MIN (first->len, other->len)), >, 1e-2);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define REFERENCE(name) \
  g_test_add_data_func ("/talker/speaks_as_the_reference/" name, name, \
      test_reference)
  REFERENCE ("tiny-a/text");
  REFERENCE ("tiny-a/audio-1.01s");
  REFERENCE ("tiny-b/text");
  REFERENCE ("tiny-a/video-sound");
  REFERENCE ("tiny-b/video-sound");
  REFERENCE ("tiny-c/text/aiden");
  REFERENCE ("tiny-c/video-29.97fps-sound");
  g_test_add_func ("/talker/waits_for_every_row_of_text", test_waits_for_text);
  g_test_add_func ("/talker/groups_of_frames_sound_the_same", test_groups);
  g_test_add_func ("/talker/prompt_rows_are_kept_and_replaced",
      test_prompt_is_kept);
  g_test_add_func ("/talker/cancelled_reply_is_forgotten", test_cancel);
  g_test_add_func ("/talker/cancel_leaves_the_next_turn_alone",
      test_cancel_leaves_next_turn);
  g_test_add_func ("/talker/cancelled_step_keeps_the_prompt",
      test_cancelled_step);
  g_test_add_func ("/talker/turn_without_speech_ends", test_no_speech);
  g_test_add_func ("/talker/reset_forgets_the_prompt", test_reset);
  g_test_add_func ("/talker/voice_changes_with_the_next_turn", test_voices);
  g_test_add_func ("/talker/limit_gives_exactly_that_many_frames", test_limit);
  g_test_add_func ("/talker/end_token_stops_speech", test_stop);
  g_test_add_func ("/talker/end_token_first_is_silence", test_end_first);
  g_test_add_func ("/talker/guards_stop_endless_speech", test_guards);
  g_test_add_func ("/talker/not_a_number_is_an_error_with_its_stage",
      test_not_a_number);
  g_test_add_func ("/talker/turn_after_a_fault_is_whole",
      test_next_turn_after_fault);
  g_test_add_func ("/talker/unusable_rows_are_refused", test_bad_rows);
  g_test_add_func ("/talker/same_seed_says_the_same", test_sampling);
  return g_test_run ();
}
