/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * thinker: a conversation -> text, and rows for the Talker.
 *
 *   parts -> timeline -> layout of the prompt -> context -> logits -> token
 *     -> text;  rows of the user's segments, then of the reply, to the Talker
 *
 * The timeline knows what was said and where it stands, the context what has
 * been computed; this file knows whose turn it is. A reply is drawn token by
 * token. Its rows for the Talker run one token behind, because the last token,
 * be it the end or the one that met the limit, is never spoken.
 */
#include "thinker.h"

#include <math.h>
#include <string.h>

#include "probe.h"
#include "sampler.h"
#include "thinker-context.h"
#include "timeline.h"

#define HEADER_ROWS 3           /* <|im_start|>assistant\n */

struct _QomniThinker
{
  QomniModel *model;
  const QomniConfig *config;
  char *system_prompt;
  bool want_hidden;
  QomniProbe *probe;
  int max_tokens;
  QomniSampler *sampler;
  QomniDetokenizer *detokenizer;        /* of the reply, or NULL */
  QomniTimeline *timeline;
  QomniThinkerContext *context;

  bool replying;
  bool took_turn;               /* end_turn() closed a turn of its own */
  uint64_t turn;
  GArray *reply;                /* int32_t: what was drawn, im_end included */
  int64_t n_prompt;
  float delta;
  bool speaks;                  /* the Talker has somebody to answer */
  int32_t header[HEADER_ROWS];
  float own_positions[3 * QOMNI_TALKER_OWN_ROWS];
  float own_delta;
  GString *text;                /* of the last step */
};

/* --- making and freeing ------------------------------------------------- */

void
qomni_thinker_params_init (QomniThinkerParams * params,
    const QomniConfig * config)
{
  *params = (QomniThinkerParams) {
    .sampling = config->thinker_sampling,
  };
}

/* Speech needs a Talker in the checkpoint. */
static bool
check_speech (QomniModel * model, GError ** error)
{
  if (qomni_model_config (model)->has_speech
      && (qomni_model_components (model) & QOMNI_COMPONENT_TALKER))
    return true;
  return qomni_fail (error, QOMNI_ERROR_SETTINGS,
      "%s has no Talker: it cannot speak", qomni_model_path (model));
}

/* An empty system prompt is none. */
static char *
dup_system_prompt (const char *text)
{
  return text == NULL || text[0] == '\0' ? NULL : g_utf8_make_valid (text, -1);
}

QomniThinker *
qomni_thinker_new (QomniModel * model, const QomniThinkerParams * params,
    GCancellable * cancellable, GError ** error)
{
  g_autoptr (QomniThinker) self = NULL;
  const QomniConfig *config = qomni_model_config (model);
  QomniThinkerParams defaults;

  if (params == NULL) {
    qomni_thinker_params_init (&defaults, config);
    params = &defaults;
  }
  if (params->want_hidden && !check_speech (model, error))
    return NULL;
  if (!qomni_model_load (model, QOMNI_COMPONENT_THINKER, NULL, NULL,
          cancellable, error))
    return NULL;

  self = g_new0 (QomniThinker, 1);
  self->model = qomni_model_ref (model);
  self->config = config;
  self->want_hidden = params->want_hidden;
  self->probe = params->probe == NULL ? NULL : qomni_probe_ref (params->probe);
  self->max_tokens = MAX (1, params->sampling.max_tokens);
  self->system_prompt = dup_system_prompt (params->system_prompt);
  self->reply = g_array_new (FALSE, FALSE, sizeof (int32_t));
  self->text = g_string_new (NULL);

  self->sampler = qomni_sampler_new (&params->sampling, params->seed,
      config->text.vocab_size, error);
  if (self->sampler == NULL)
    return NULL;
  self->context = qomni_thinker_context_new (model, params->want_hidden,
      params->probe, error);
  if (self->context == NULL)
    return NULL;
  self->timeline = qomni_timeline_new (config, qomni_model_tokenizer (model),
      params->use_audio_in_video);
  qomni_timeline_clear (self->timeline, self->system_prompt);
  return g_steal_pointer (&self);
}

void
qomni_thinker_free (QomniThinker * self)
{
  if (self == NULL)
    return;
  qomni_timeline_free (self->timeline);
  qomni_thinker_context_free (self->context);
  g_array_unref (self->reply);
  g_string_free (self->text, TRUE);
  qomni_sampler_free (self->sampler);
  qomni_detokenizer_free (self->detokenizer);
  qomni_probe_unref (self->probe);
  g_free (self->system_prompt);
  qomni_model_unref (self->model);
  g_free (self);
}

/* --- the prompt --------------------------------------------------------- */

bool
qomni_thinker_prefill (QomniThinker * self, GCancellable * cancellable,
    GError ** error)
{
  g_autoptr (QomniLayout) layout = NULL;

  /* With a probe the prompt is computed in one go. */
  if (self->replying || self->probe != NULL
      || qomni_timeline_is_empty (self->timeline))
    return true;
  layout = qomni_timeline_layout (self->timeline, QOMNI_LAYOUT_SO_FAR, error);
  return layout != NULL
      && qomni_thinker_context_compute (self->context, layout,
      layout->n_final, layout->n_final, cancellable, error);
}

/* The dump describes the last turn. */
static void
clear_probe (QomniThinker * self)
{
  static const char *const names[] = {
    "input_ids", "position_ids", "thinker.inputs_embeds", "thinker.logits",
    "output_ids",
  };

  if (self->probe == NULL)
    return;
  for (size_t i = 0; i < G_N_ELEMENTS (names); i++)
    qomni_probe_clear (self->probe, names[i]);
  for (int i = 0; i <= self->config->text.n_layers; i++) {
    g_autofree char *name = g_strdup_printf ("thinker.hidden.%d", i);

    qomni_probe_clear (self->probe, name);
  }
}

static void
probe_ids (QomniThinker * self, const char *name, const int32_t * ids,
    int64_t n)
{
  g_autofree int64_t *wide = NULL;

  if (self->probe == NULL || (wide = g_try_new (int64_t, n)) == NULL)
    return;
  for (int64_t i = 0; i < n; i++)
    wide[i] = ids[i];
  qomni_probe_append_ids (self->probe, name, 0, 1, &n, wide);
}

/* Computes what is left of the prompt, and remembers of its layout what the
 * reply needs. */
static bool
compute_prompt (QomniThinker * self, const QomniLayout * l,
    GCancellable * cancellable, GError ** error)
{
  const int64_t dims[] = { 3, l->n };

  probe_ids (self, "input_ids", l->ids, l->n);
  qomni_probe_append (self->probe, "position_ids", 1, 2, dims, l->positions);
  /* The last row is computed in any case: it gives the logits. */
  if (!qomni_thinker_context_compute (self->context, l, l->n, l->n - 1,
          cancellable, error))
    return false;

  self->n_prompt = l->n;
  self->delta = l->delta;
  self->speaks = l->talker_positions != NULL && l->n_heard > 0;
  memcpy (self->header, l->ids + l->n - HEADER_ROWS, sizeof (self->header));
  if (self->speaks) {
    for (int axis = 0; axis < 3; axis++)
      memcpy (self->own_positions + axis * QOMNI_TALKER_OWN_ROWS,
          l->talker_positions + axis * (l->n_heard + QOMNI_TALKER_OWN_ROWS)
          + l->n_heard, QOMNI_TALKER_OWN_ROWS * sizeof (float));
    self->own_delta = l->talker_delta;
  }
  qomni_sampler_reset (self->sampler);
  qomni_sampler_seen (self->sampler, l->ids, (size_t) l->n);
  return true;
}

/* --- rows for the Talker ------------------------------------------------ */

static size_t
row_bytes (const QomniThinker * self)
{
  return (size_t) self->config->text.hidden_size * sizeof (float);
}

/* Adds n rows of a kind to the step's; NULL and an error without memory. */
static QomniEmbeddings *
add_rows (QomniThinker * self, QomniThinkerStep * step, QomniRowsKind kind,
    int64_t n, GError ** error)
{
  QomniEmbeddings *e = qomni_embeddings_new (QOMNI_MODALITY_THINKER, n, 2,
      self->config->text.hidden_size, error);

  if (e == NULL)
    return NULL;
  e->rows_kind = kind;
  e->turn = self->turn;
  step->hidden[step->n_hidden++] = e;
  return e;
}

/* The rows heard that have not been handed over. They have been once the step
 * has succeeded. */
static bool
add_prompt (QomniThinker * self, QomniThinkerStep * step,
    const QomniLayout * l, GError ** error)
{
  const int64_t stride = l->n_heard + QOMNI_TALKER_OWN_ROWS;
  int64_t first, n, heard = 0;
  const float *rows =
      qomni_thinker_context_heard (self->context, &first, &n);
  QomniEmbeddings *e = add_rows (self, step, QOMNI_ROWS_PROMPT, n, error);

  if (e == NULL)
    return false;
  e->first_row = first;
  e->n_positions = n;
  e->ids = g_try_new (int32_t, n);
  e->media = g_try_new (uint8_t, n);
  e->positions = g_try_new (float, 3 * n);
  if (n > 0 && (e->ids == NULL || e->media == NULL || e->positions == NULL))
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for %" G_GINT64_FORMAT " rows for the Talker", n);
  if (n > 0)
    memcpy (e->data, rows, (size_t) n * 2 * row_bytes (self));

  for (int64_t i = 0; i < l->n; i++) {
    const int64_t to = heard - first;

    if (!l->heard[i])
      continue;
    if (to >= 0) {
      e->ids[to] = l->ids[i];
      e->media[to] = l->media[i].block != NULL;
      for (int axis = 0; axis < 3; axis++)
        e->positions[axis * n + to] =
            l->talker_positions[axis * stride + heard];
    }
    heard++;
  }
  return true;
}

static bool
add_header (QomniThinker * self, QomniThinkerStep * step, GError ** error)
{
  const int64_t width = self->config->text.hidden_size;
  g_autofree float *rows = g_try_malloc (HEADER_ROWS * row_bytes (self));
  QomniEmbeddings *e =
      add_rows (self, step, QOMNI_ROWS_HEADER, HEADER_ROWS, error);

  if (e == NULL)
    return false;
  if (rows == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for %d rows",
        HEADER_ROWS);
  qomni_thinker_context_embed (self->context, self->header, HEADER_ROWS, rows);
  for (int i = 0; i < HEADER_ROWS; i++)
    memcpy (e->data + i * 2 * width, rows + i * width, row_bytes (self));
  e->ids = g_memdup2 (self->header, sizeof (self->header));
  e->n_positions = QOMNI_TALKER_OWN_ROWS;
  e->positions = g_memdup2 (self->own_positions, sizeof (self->own_positions));
  e->position_delta = self->own_delta;
  return true;
}

/* The token before the last one drawn, which has just been computed. */
static bool
add_reply (QomniThinker * self, QomniThinkerStep * step, GError ** error)
{
  QomniEmbeddings *e = add_rows (self, step, QOMNI_ROWS_REPLY, 1, error);

  if (e == NULL)
    return false;
  memcpy (e->data, qomni_thinker_context_input (self->context),
      row_bytes (self));
  e->ids = g_memdup2 (&g_array_index (self->reply, int32_t,
          self->reply->len - 2), sizeof (int32_t));
  return true;
}

/* What this step's token makes certain for the Talker. A reply whose first
 * token is its last has nothing to say. `l`: the prompt's layout, in the first
 * step. */
static bool
add_hidden (QomniThinker * self, QomniThinkerStep * step,
    const QomniLayout * l, GError ** error)
{
  if (!self->want_hidden)
    return true;
  if (self->speaks) {
    if (self->reply->len == 1 && !step->done
        && !add_prompt (self, step, l, error))
      return false;
    if (self->reply->len == 2 && !add_header (self, step, error))
      return false;
    if (self->reply->len >= 2 && !add_reply (self, step, error))
      return false;
  }
  return !step->done
      || add_rows (self, step, QOMNI_ROWS_END, 0, error) != NULL;
}

/* --- the reply ---------------------------------------------------------- */

/* Feeds the last token drawn. */
static bool
compute_token (QomniThinker * self, GError ** error)
{
  const guint last = self->reply->len - 1;

  return qomni_thinker_context_append (self->context,
      g_array_index (self->reply, int32_t, last),
      (float) (self->n_prompt + last) + self->delta, error);
}

static void
end_reply (QomniThinker * self)
{
  const int32_t *ids = (const int32_t *) self->reply->data;
  size_t n = self->reply->len;

  if (!self->replying)
    return;
  self->replying = false;
  probe_ids (self, "output_ids", ids, (int64_t) n);
  if (n > 0 && ids[n - 1] == self->config->im_end)
    n--;
  qomni_timeline_push_reply (self->timeline, ids, n);
}

/* A reply that failed leaves no trace of itself or of what it failed on. */
static void
drop_reply (QomniThinker * self)
{
  self->replying = false;
  if (self->took_turn)
    qomni_timeline_drop_last (self->timeline);
}

static bool
step_forward (QomniThinker * self, QomniThinkerStep * ret,
    GCancellable * cancellable, GError ** error)
{
  g_autoptr (QomniLayout) layout = NULL;
  float *logits;

  g_string_truncate (self->text, 0);
  if (!qomni_go_on (cancellable, error))
    return false;
  if (self->reply->len == 0) {
    layout = qomni_timeline_layout (self->timeline, self->want_hidden
        ? QOMNI_LAYOUT_SPOKEN : QOMNI_LAYOUT_PROMPT, error);
    if (layout == NULL
        || !compute_prompt (self, layout, cancellable, error))
      return false;
  } else if (!compute_token (self, error)) {
    return false;
  }

  logits = qomni_thinker_context_logits (self->context, error);
  if (logits == NULL)
    return false;
  ret->token = qomni_sampler_draw (self->sampler, logits, error);
  if (ret->token < 0)
    return false;
  g_array_append_val (self->reply, ret->token);
  if (ret->token == self->config->im_end)
    ret->finish = QOMNI_FINISH_STOP;
  else if (self->reply->len >= (guint) self->max_tokens)
    ret->finish = QOMNI_FINISH_LENGTH;
  ret->done = ret->finish != QOMNI_FINISH_NONE;
  if (!add_hidden (self, ret, layout, error))
    return false;

  if (ret->n_hidden > 0 && ret->hidden[0]->rows_kind == QOMNI_ROWS_PROMPT)
    qomni_thinker_context_sent (self->context, ret->hidden[0]->positions);
  if (ret->finish != QOMNI_FINISH_STOP)
    g_string_append (self->text,
        qomni_detokenizer_push (self->detokenizer, ret->token));
  if (ret->done) {
    g_string_append (self->text, qomni_detokenizer_flush (self->detokenizer));
    end_reply (self);
  }
  ret->text = self->text->str;
  return true;
}

bool
qomni_thinker_step (QomniThinker * self, QomniThinkerStep * ret,
    GCancellable * cancellable, GError ** error)
{
  GError *failure = NULL;

  *ret = (QomniThinkerStep) {
    .token = -1, .text = "",
  };
  if (!self->replying)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "no turn has ended that asks for a reply");
  if (step_forward (self, ret, cancellable, &failure))
    return true;

  qomni_thinker_step_clear (ret);
  ret->token = -1;
  ret->done = true;
  if (g_error_matches (failure, G_IO_ERROR, G_IO_ERROR_CANCELLED)) {
    ret->finish = QOMNI_FINISH_CANCELLED;
    end_reply (self);
  } else {
    if (g_error_matches (failure, QOMNI_ERROR, QOMNI_ERROR_NUMERIC))
      qomni_thinker_context_forget (self->context);
    drop_reply (self);
  }
  g_propagate_error (error, failure);
  return false;
}

void
qomni_thinker_step_clear (QomniThinkerStep * step)
{
  for (int i = 0; i < step->n_hidden; i++)
    qomni_embeddings_unref (step->hidden[i]);
  *step = (QomniThinkerStep) {
    .token = -1, .text = "",
  };
}

const char *
qomni_finish_name (QomniFinish finish)
{
  switch (finish) {
    case QOMNI_FINISH_STOP:
      return "stop";
    case QOMNI_FINISH_LENGTH:
      return "length";
    case QOMNI_FINISH_CANCELLED:
      return "cancelled";
    default:
      return "none";
  }
}

void
qomni_thinker_cancel (QomniThinker * self)
{
  end_reply (self);
}

/* --- turns -------------------------------------------------------------- */

bool
qomni_thinker_push_text (QomniThinker * self, const char *text,
    GError ** error)
{
  return qomni_timeline_push_text (self->timeline, text, error);
}

bool
qomni_thinker_push_embeddings (QomniThinker * self, QomniEmbeddings * block,
    GError ** error)
{
  const int64_t n = block->n_tokens * block->n_levels * block->width;

  /* An empty block may close a clip. */
  if (block->n_tokens != 0
      && !qomni_embeddings_check (block, self->config, error))
    return false;
  for (int64_t i = 0; i < n; i++)
    if (!isfinite (block->data[i]))
      return qomni_fail (error, QOMNI_ERROR_NUMERIC,
          "value %" G_GINT64_FORMAT " of a block of embeddings (clip %"
          G_GUINT64_FORMAT ") is not finite", i, block->clip);
  return qomni_timeline_push_embeddings (self->timeline, block, error);
}

static bool
check_not_replying (const QomniThinker * self, GError ** error)
{
  if (self->replying)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the reply to the last turn has not ended");
  return true;
}

bool
qomni_thinker_push_history (QomniThinker * self, QomniRole role,
    const char *text, GError ** error)
{
  return check_not_replying (self, error)
      && qomni_timeline_push_turn (self->timeline, role, text, error);
}

bool
qomni_thinker_close_turn (QomniThinker * self, GError ** error)
{
  return check_not_replying (self, error)
      && qomni_timeline_close (self->timeline, error);
}

bool
qomni_thinker_end_turn (QomniThinker * self, GError ** error)
{
  if (!check_not_replying (self, error))
    return false;
  if (!qomni_timeline_wants_reply (self->timeline))
    return qomni_fail (error, QOMNI_ERROR_INPUT, "the turn is empty");
  self->took_turn = qomni_timeline_is_open (self->timeline);
  if (self->took_turn && !qomni_timeline_close (self->timeline, error))
    return false;

  self->replying = true;
  self->turn++;
  g_array_set_size (self->reply, 0);
  self->n_prompt = 0;
  clear_probe (self);
  qomni_detokenizer_free (self->detokenizer);
  self->detokenizer =
      qomni_detokenizer_new (qomni_model_tokenizer (self->model));
  return true;
}

void
qomni_thinker_drop_turn (QomniThinker * self)
{
  qomni_timeline_drop_open (self->timeline);
}

void
qomni_thinker_reset (QomniThinker * self)
{
  self->replying = false;
  qomni_timeline_clear (self->timeline, self->system_prompt);
  qomni_thinker_context_forget (self->context);
  qomni_sampler_reset (self->sampler);
  g_array_set_size (self->reply, 0);
  self->n_prompt = 0;
}

void
qomni_thinker_set_sampling (QomniThinker * self, const QomniSampling * sampling)
{
  qomni_sampler_set (self->sampler, sampling);
  self->max_tokens = MAX (1, sampling->max_tokens);
}

void
qomni_thinker_set_system_prompt (QomniThinker * self, const char *text)
{
  g_free (self->system_prompt);
  self->system_prompt = dup_system_prompt (text);
}

int64_t
qomni_thinker_prompt_tokens (const QomniThinker * self)
{
  return self->n_prompt;
}

int64_t
qomni_thinker_reply_tokens (const QomniThinker * self)
{
  return self->reply->len;
}
