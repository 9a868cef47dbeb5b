/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * talker: the Thinker's rows -> codec frames -> samples.
 *
 *   user rows -> projected -> prompt                         kept for all turns
 *   header, voice, first token of the reply -> nine rows    the rest of prefill
 *   frame k: code 0 from the last row's logits, the residual codes from the
 *     code predictor, samples from Code2Wav; then one more row
 *       x = sum of the frame's code rows + row k of the text that is left
 *     gives the logits of frame k + 1
 *
 * The text that is left is the reply from its second token on, then the end
 * mark, then padding for ever. A row of it is projected when it is used, so
 * pushed rows are only kept by reference.
 *
 * Rows wait in one queue and are taken in order. The KV cache holds the prompt
 * rows between turns; what a reply appends is cut off at its end. The row after
 * frame k is computed at the start of the next step and not at the end of this
 * one: the sound of a frame does not wait for it, nor for the text it needs.
 */
#include "talker.h"

#include <math.h>

#include "code-predictor.h"
#include "code2wav.h"
#include "decoder.h"
#include "positions.h"
#include "probe.h"
#include "sampler.h"
#include "workspace.h"

#define CHUNK_ROWS 64           /* of one prefill step */
#define HEADER_ROWS 3           /* <|im_start|>assistant\n */
#define EARLY_ROWS 8            /* of the nine: those that need no token */
#define ALL_ROWS 9
#define N_LEVELS 2              /* of a row: Thinker input, accept layer */
#define MAX_CYCLE 16            /* frames, for the loop guard */
/* The codec's control tokens are the last ids of the vocabulary. */
#define N_CONTROL_IDS 1024

/* y = fc2 silu (fc1 x): from the Thinker's width to the Talker's. */
typedef struct
{
  QkTensor fc1, fc2;            /* [inner, thinker_width], [width, inner] */
  float *bias1, *bias2;
} Projection;

enum
{ MARK_BOS, MARK_EOS, MARK_PAD, N_MARKS };

struct _QomniTalkerWeights
{
  QomniDecoder *decoder;
  QkTensor codec_embedding, codec_head; /* [vocab_size, width] */
  Projection text, hidden;
  float *marks;                 /* [N_MARKS, thinker_width], not projected */
  QomniCodePredictorWeights *predictor;
};

/* --- weights -------------------------------------------------------------- */

static void
claim_projection (Projection * p, const QomniTalkerConfig * c,
    QomniWeights * weights, const char *name)
{
  int64_t inner = c->text.intermediate_size, width = c->text.hidden_size;

  qomni_weights_matrix (weights, &p->fc1, 2,
      (int64_t[]) { inner, c->thinker_width }, "%s.linear_fc1.weight", name);
  qomni_weights_vector (weights, &p->bias1, inner, "%s.linear_fc1.bias", name);
  qomni_weights_matrix (weights, &p->fc2, 2, (int64_t[]) { width, inner },
      "%s.linear_fc2.weight", name);
  qomni_weights_vector (weights, &p->bias2, width, "%s.linear_fc2.bias", name);
}

QomniTalkerWeights *
qomni_talker_weights_claim (const QomniConfig * config,
    QomniWeights * weights)
{
  const QomniTalkerConfig *c = &config->talker;
  QomniTalkerWeights *self = g_new0 (QomniTalkerWeights, 1);
  const int64_t table[] = { c->text.vocab_size, c->text.hidden_size };
  const int32_t marks[N_MARKS] = {
    [MARK_BOS] = config->tts_bos,
    [MARK_EOS] = config->tts_eos,
    [MARK_PAD] = config->tts_pad,
  };

  self->decoder = qomni_decoder_claim (&c->text, QOMNI_DECODER_QK_NORM,
      weights, "talker.model");
  qomni_weights_matrix (weights, &self->codec_embedding, 2, table,
      "talker.model.codec_embedding.weight");
  qomni_weights_matrix (weights, &self->codec_head, 2, table,
      "talker.codec_head.weight");
  claim_projection (&self->text, c, weights, "talker.text_projection");
  claim_projection (&self->hidden, c, weights, "talker.hidden_projection");
  qomni_weights_rows (weights, &self->marks,
      (int64_t[]) { config->text.vocab_size, config->text.hidden_size },
      marks, N_MARKS, "%smodel.embed_tokens.weight", config->thinker_prefix);
  self->predictor = qomni_code_predictor_weights_claim (c, weights,
      "talker.code_predictor");
  return self;
}

void
qomni_talker_weights_free (QomniTalkerWeights * self)
{
  if (self == NULL)
    return;
  qomni_decoder_free (self->decoder);
  qomni_code_predictor_weights_free (self->predictor);
  g_free (self);
}

/* --- parameters ----------------------------------------------------------- */

void
qomni_talker_params_init (QomniTalkerParams * params,
    const QomniConfig * config)
{
  *params = (QomniTalkerParams) {
    .sampling = config->talker_sampling,
    .predictor_sampling = config->predictor_sampling,
    .group_frames = 1,
    .tail_frames = 400,
    .tail_frames_per_token = 12,
    .loop_frames = 50,
  };
}

void
qomni_talker_params_greedy (QomniTalkerParams * params)
{
  params->sampling.sample = false;
  params->predictor_sampling.sample = false;
  params->loop_frames = 0;
}

const char *
qomni_speech_finish_name (QomniSpeechFinish finish)
{
  switch (finish) {
    case QOMNI_SPEECH_STOP:
      return "stop";
    case QOMNI_SPEECH_LENGTH:
      return "length";
    case QOMNI_SPEECH_RUNAWAY:
      return "runaway";
    case QOMNI_SPEECH_NONE:
      return "none";
  }
  return "unknown";
}

/* --- life ----------------------------------------------------------------- */

typedef enum
{
  PHASE_IDLE,                   /* no reply */
  PHASE_HEADER,                 /* eight rows of it are in the cache */
  PHASE_SPEAKING,               /* there are logits or a row is owed */
  PHASE_FINISHED,               /* the END is still to be told */
} Phase;

struct _QomniTalker
{
  QomniModel *model;
  const QomniConfig *config;
  const QomniTalkerWeights *w;
  QkBackend *backend;
  QomniDecoderState *state;
  QomniSampler *sampler;
  QomniCodePredictor *predictor;
  QomniCode2Wav *code2wav;
  QomniProbe *probe;
  int64_t max_frames;
  int group_frames, tail_frames, tail_frames_per_token, loop_frames;
  int32_t voice;

  /* Rows not used yet, and how many of the first block are. */
  GQueue queue;
  int64_t n_used;
  int64_t pushed_rows;          /* prompt rows once the queue is worked off */
  int64_t prompt_rows;          /* prompt rows in the cache */
  GArray *prompt_probe;         /* float [prompt_rows, width]; NULL: no probe */

  /* The reply. */
  Phase phase;
  uint64_t turn;
  QomniEmbeddings *header;      /* for its positions */
  bool text_done;               /* no REPLY follows */
  bool mark_used;               /* nor does the end mark */
  bool owes_row;                /* a frame was made, its row was not */
  int64_t n_tokens;             /* text rows used */
  int64_t n_frames, n_tail;     /* frames; of them after the end mark */
  QomniSpeechFinish finish;
  /* Rows of a reply that is over are still to come, up to its END. */
  bool skipping;
  uint64_t skip_turn;

  /* Loop guard: the last MAX_CYCLE frames, and for how many frames in a row
   * each has equalled the one p before it. run[0] is of the first code alone,
   * compared with the frame before. */
  int32_t *recent;              /* [MAX_CYCLE, n_groups] */
  int run[MAX_CYCLE + 1];

  QomniWorkspace work;          /* the following, in backend memory */
  float *x;                     /* [CHUNK_ROWS, width] */
  float *projected;             /* [CHUNK_ROWS, width] */
  float *in;                    /* [CHUNK_ROWS, thinker_width] */
  float *inner;                 /* [CHUNK_ROWS, intermediate_size] */
  float *marks;                 /* [N_MARKS, width] */
  float *z;                     /* [width]: the normed row of the logits */
  float *logits;                /* [vocab_size] */

  float *host_rows;             /* [CHUNK_ROWS, larger of the widths] */
  float *host_logits;           /* [vocab_size]: of the code to draw next */
  float *table;                 /* [CHUNK_ROWS, 2, head_dim/2] */
  int32_t rows[CHUNK_ROWS];
  int32_t *codes;               /* [group_frames, n_groups] */
  int32_t *last;                /* [n_groups]: of the last frame */
};

static size_t
row_bytes (int64_t n, int64_t width)
{
  return (size_t) (n * width) * sizeof (float);
}

static bool
allocate (QomniTalker * self, GError ** error)
{
  const QomniTalkerConfig *c = &self->config->talker;
  const int64_t width = c->text.hidden_size;
  const QomniBuffer buffers[] = {
    { &self->x, CHUNK_ROWS, width },
    { &self->projected, CHUNK_ROWS, width },
    { &self->in, CHUNK_ROWS, c->thinker_width },
    { &self->inner, CHUNK_ROWS, c->text.intermediate_size },
    { &self->marks, N_MARKS, width },
    { &self->z, 1, width },
    { &self->logits, 1, c->text.vocab_size },
  };

  self->host_rows = g_try_new (float,
      CHUNK_ROWS * MAX (c->thinker_width, width));
  self->host_logits = g_try_new (float, c->text.vocab_size);
  self->table = g_try_new (float, CHUNK_ROWS * c->text.head_dim);
  self->codes = g_try_new (int32_t, (size_t) self->group_frames
      * (size_t) c->n_groups);
  self->last = g_try_new (int32_t, c->n_groups);
  self->recent = g_try_new (int32_t, MAX_CYCLE * c->n_groups);
  if (self->host_rows == NULL || self->host_logits == NULL
      || self->table == NULL || self->codes == NULL || self->last == NULL
      || self->recent == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for a Talker");
  return qomni_workspace_alloc (&self->work, self->backend, buffers,
      G_N_ELEMENTS (buffers), "the Talker", error);
}

/* y [n, width] = projection of in [n, thinker_width] */
static void
project (QomniTalker * self, const Projection * p, float *y, const float *in,
    int64_t n)
{
  QkStream *s = qomni_decoder_state_stream (self->state);

  s->ops->matmul (s, self->inner, in, n, &p->fc1, p->bias1, QK_ACT_SILU,
      false);
  s->ops->matmul (s, y, self->inner, n, &p->fc2, p->bias2, QK_ACT_NONE,
      false);
}

static bool
check_backend (QomniTalker * self, GError ** error)
{
  const char *fault =
      self->backend->error (qomni_decoder_state_stream (self->state));

  if (fault != NULL)
    return qomni_fail (error, QOMNI_ERROR_BACKEND, "Talker: %s", fault);
  return true;
}

static bool
make_parts (QomniTalker * self, const QomniTalkerParams * params,
    GCancellable * cancellable, GError ** error)
{
  const QomniTalkerConfig *c = &self->config->talker;

  self->state = qomni_decoder_state_new (self->w->decoder, self->backend,
      CHUNK_ROWS, error);
  if (self->state == NULL)
    return false;
  self->sampler = qomni_sampler_new (&params->sampling, params->seed,
      c->text.vocab_size, error);
  if (self->sampler == NULL)
    return false;
  qomni_sampler_suppress (self->sampler,
      (int32_t) MAX (0, c->text.vocab_size - N_CONTROL_IDS),
      (int32_t) c->text.vocab_size - 1, c->codec_eos);
  /* a stream of random numbers of its own */
  self->predictor = qomni_code_predictor_new (self->w->predictor, c,
      self->backend, &params->predictor_sampling, ~params->seed, error);
  if (self->predictor == NULL)
    return false;
  self->code2wav = qomni_code2wav_new (self->model, self->group_frames,
      cancellable, error);
  return self->code2wav != NULL;
}

QomniTalker *
qomni_talker_new (QomniModel * model, const QomniTalkerParams * params,
    GCancellable * cancellable, GError ** error)
{
  const QomniConfig *config = qomni_model_config (model);
  g_autoptr (QomniTalker) self = NULL;

  if (params->group_frames < 1 || params->max_frames < 0) {
    qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "groups of %d codec frames, at most %d in a reply: expected at least "
        "1 and 0", params->group_frames, params->max_frames);
    return NULL;
  }
  if (!qomni_model_load (model, QOMNI_COMPONENT_SPEECH, NULL, NULL,
          cancellable, error))
    return NULL;

  self = g_new0 (QomniTalker, 1);
  self->model = qomni_model_ref (model);
  self->config = config;
  self->w = qomni_model_talker (model);
  self->backend = qomni_model_backend (model);
  g_queue_init (&self->queue);
  self->group_frames = params->group_frames;
  self->tail_frames = params->tail_frames;
  self->tail_frames_per_token = params->tail_frames_per_token;
  self->loop_frames = params->loop_frames;
  /* The last token that may be drawn has no frame. */
  self->max_frames = params->max_frames > 0 ? params->max_frames
      : params->sampling.max_tokens > 0 ? params->sampling.max_tokens - 1
      : INT64_MAX;
  if (params->probe != NULL) {
    self->probe = qomni_probe_ref (params->probe);
    self->prompt_probe = g_array_new (FALSE, FALSE, sizeof (float));
  }

  if (!qomni_talker_set_voice (self, params->voice, error)
      || !make_parts (self, params, cancellable, error)
      || !allocate (self, error))
    return NULL;
  project (self, &self->w->text, self->marks, self->w->marks, N_MARKS);
  if (!check_backend (self, error))
    return NULL;
  return g_steal_pointer (&self);
}

static void
clear_queue (QomniTalker * self)
{
  g_queue_clear_full (&self->queue, (GDestroyNotify) qomni_embeddings_unref);
  self->n_used = 0;
}

void
qomni_talker_free (QomniTalker * self)
{
  if (self == NULL)
    return;
  clear_queue (self);
  qomni_embeddings_unref (self->header);
  qomni_workspace_clear (&self->work);
  qomni_code2wav_free (self->code2wav);
  qomni_code_predictor_free (self->predictor);
  qomni_sampler_free (self->sampler);
  qomni_decoder_state_free (self->state);
  if (self->prompt_probe != NULL)
    g_array_unref (self->prompt_probe);
  qomni_probe_unref (self->probe);
  g_free (self->host_rows);
  g_free (self->host_logits);
  g_free (self->table);
  g_free (self->codes);
  g_free (self->last);
  g_free (self->recent);
  qomni_model_unref (self->model);
  g_free (self);
}

bool
qomni_talker_set_voice (QomniTalker * self, const char *voice,
    GError ** error)
{
  const QomniVoice *v = qomni_config_voice (self->config, voice, error);

  if (v == NULL)
    return false;
  self->voice = v->id;
  return true;
}

/* --- rows coming in ------------------------------------------------------- */

static const char *
kind_name (QomniRowsKind kind)
{
  switch (kind) {
    case QOMNI_ROWS_PROMPT:
      return "prompt";
    case QOMNI_ROWS_HEADER:
      return "header";
    case QOMNI_ROWS_REPLY:
      return "reply";
    case QOMNI_ROWS_END:
      return "end";
  }
  return "unknown";
}

static bool
all_finite (const float *x, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if (!isfinite (x[i]))
      return false;
  return true;
}

static bool
check_positions (const QomniEmbeddings * rows, int64_t n, GError ** error)
{
  if (rows->n_positions != n || (rows->positions == NULL && n > 0))
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%s rows with %"
        G_GINT64_FORMAT " positions, expected %" G_GINT64_FORMAT,
        kind_name (rows->rows_kind), rows->n_positions, n);
  if (n > 0 && !all_finite (rows->positions, 3 * (size_t) n))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%s rows with a position that is not a number",
        kind_name (rows->rows_kind));
  return true;
}

static bool
check_rows (const QomniTalker * self, const QomniEmbeddings * rows,
    GError ** error)
{
  const int64_t width = self->config->talker.thinker_width;
  const char *kind = kind_name (rows->rows_kind);

  if (rows->modality != QOMNI_MODALITY_THINKER)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the Talker takes rows of a Thinker, not encoder blocks");
  if (rows->n_tokens > 0 && (rows->n_levels != N_LEVELS
          || rows->width != width))
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%s rows have %d levels of "
        "width %" G_GINT64_FORMAT ", expected %d of %" G_GINT64_FORMAT, kind,
        rows->n_levels, rows->width, N_LEVELS, width);
  if (!all_finite (rows->data, (size_t) rows->n_tokens * N_LEVELS
          * (size_t) width))
    return qomni_fail (error, QOMNI_ERROR_NUMERIC,
        "%s rows of the Thinker hold a value that is not a number", kind);

  switch (rows->rows_kind) {
    case QOMNI_ROWS_PROMPT:
      if (rows->first_row < 0 || rows->first_row > self->pushed_rows)
        return qomni_fail (error, QOMNI_ERROR_INPUT, "prompt rows from %"
            G_GINT64_FORMAT " on, but there are %" G_GINT64_FORMAT,
            rows->first_row, self->pushed_rows);
      return check_positions (rows, rows->n_tokens, error);
    case QOMNI_ROWS_HEADER:
      if (rows->n_tokens != HEADER_ROWS || !isfinite (rows->position_delta))
        return qomni_fail (error, QOMNI_ERROR_INPUT, "%" G_GINT64_FORMAT
            " header rows, positions then go on by %f: expected %d, and a "
            "number", rows->n_tokens, rows->position_delta, HEADER_ROWS);
      return check_positions (rows, ALL_ROWS, error);
    case QOMNI_ROWS_REPLY:
    case QOMNI_ROWS_END:
      return true;
  }
  return qomni_fail (error, QOMNI_ERROR_INPUT, "rows of unknown kind %d",
      rows->rows_kind);
}

bool
qomni_talker_push (QomniTalker * self, QomniEmbeddings * rows,
    GError ** error)
{
  if (!check_rows (self, rows, error))
    return false;
  if (rows->rows_kind == QOMNI_ROWS_PROMPT)
    self->pushed_rows = rows->first_row + rows->n_tokens;
  g_queue_push_tail (&self->queue, qomni_embeddings_ref (rows));
  return true;
}

static QomniEmbeddings *
head (QomniTalker * self)
{
  return g_queue_peek_head (&self->queue);
}

static void
drop_head (QomniTalker * self)
{
  qomni_embeddings_unref (g_queue_pop_head (&self->queue));
  self->n_used = 0;
}

/* --- the transformer ------------------------------------------------------ */

/* Notes x [n, width], the Talker's input, and keeps what is prompt. */
static void
probe_inputs (QomniTalker * self, int64_t n, bool prompt)
{
  const int64_t width = self->config->talker.text.hidden_size;

  if (self->probe == NULL)
    return;
  self->backend->download (qomni_decoder_state_stream (self->state),
      self->host_rows, self->x, row_bytes (n, width));
  if (prompt)
    g_array_append_vals (self->prompt_probe, self->host_rows,
        (guint) (n * width));
  else
    qomni_probe_append (self->probe, "talker.inputs_embeds", 0, 2,
        (int64_t[]) { n, width }, self->host_rows);
}

/* Runs the n rows of x, which have `positions` [3, n] of the given stride. */
static bool
run_rows (QomniTalker * self, const float *positions, int64_t stride,
    int64_t n, GError ** error)
{
  if (!qomni_decoder_state_reserve (self->state, n, error))
    return false;
  qomni_rope_table (&self->config->talker.text, positions, stride, n,
      self->table);
  qomni_decoder_forward (self->w->decoder, self->state, self->x, n,
      self->table, NULL, NULL);
  return true;
}

/* z and host_logits from the only row of x. */
static void
predict (QomniTalker * self)
{
  const int64_t vocab_size = self->config->talker.text.vocab_size;
  QkStream *s = qomni_decoder_state_stream (self->state);

  qomni_decoder_norm (self->w->decoder, self->state, self->z, self->x, 1);
  s->ops->matmul (s, self->logits, self->z, 1, &self->w->codec_head, NULL,
      QK_ACT_NONE, false);
  self->backend->download (s, self->host_logits, self->logits,
      row_bytes (1, vocab_size));
}

/* projected [n, width] = p of those of rows first … first+n-1 that are media
 * (level 1) or not (level 0); returns how many, self->rows says which. */
static int64_t
project_some (QomniTalker * self, const QomniEmbeddings * rows, int64_t first,
    int64_t n, bool media)
{
  const int64_t width = rows->width;
  int64_t some = 0;

  for (int64_t i = 0; i < n; i++) {
    const float *row = rows->data + (first + i) * N_LEVELS * width;

    if ((rows->media != NULL && rows->media[first + i]) != media)
      continue;
    memcpy (self->host_rows + some * width, row + (media ? width : 0),
        row_bytes (1, width));
    self->rows[some++] = (int32_t) i;
  }
  if (some == 0)
    return 0;
  self->backend->upload (qomni_decoder_state_stream (self->state), self->in,
      self->host_rows, row_bytes (some, width));
  project (self, media ? &self->w->hidden : &self->w->text, self->projected,
      self->in, some);
  return some;
}

/* The next chunk of the prompt rows at the head of the queue. */
static bool
prefill_chunk (QomniTalker * self, GError ** error)
{
  const QomniEmbeddings *rows = head (self);
  const int64_t width = self->config->talker.text.hidden_size;
  const int64_t first = self->n_used;
  const int64_t n = MIN (CHUNK_ROWS, rows->n_tokens - first);
  QkStream *s = qomni_decoder_state_stream (self->state);

  if (first == 0) {
    qomni_decoder_state_truncate (self->state, rows->first_row);
    self->prompt_rows = rows->first_row;
    if (self->prompt_probe != NULL)
      g_array_set_size (self->prompt_probe,
          (guint) (rows->first_row * width));
  }
  for (int media = 0; media < 2; media++) {
    int64_t some = project_some (self, rows, first, n, media == 1);

    if (some > 0)
      s->ops->scatter_rows (s, self->x, self->projected, width, self->rows,
          some, false);
  }
  if (n > 0) {
    probe_inputs (self, n, true);
    if (!run_rows (self, rows->positions + first, rows->n_positions, n,
            error) || !check_backend (self, error)) {
      qomni_decoder_state_truncate (self->state, self->prompt_rows);
      if (self->prompt_probe != NULL)
        g_array_set_size (self->prompt_probe,
            (guint) (self->prompt_rows * width));
      return false;
    }
  }

  self->prompt_rows += n;
  self->n_used += n;
  if (self->n_used == rows->n_tokens)
    drop_head (self);
  return true;
}

/* --- one reply ------------------------------------------------------------ */

/* Rows 0 … 7 of the nine: everything before the first token of the reply. */
static bool
begin_reply (QomniTalker * self, GError ** error)
{
  const QomniTalkerConfig *c = &self->config->talker;
  const int64_t width = c->text.hidden_size;
  const int32_t ids[] = { c->codec_nothink, c->codec_think_bos,
    c->codec_think_eos, self->voice, c->codec_pad
  };
  const float *pad = self->marks + MARK_PAD * width;
  const float *bos = self->marks + MARK_BOS * width;
  QkStream *s = qomni_decoder_state_stream (self->state);

  self->header = g_queue_pop_head (&self->queue);
  self->turn = self->header->turn;
  self->phase = PHASE_HEADER;
  self->text_done = self->mark_used = self->owes_row = false;
  self->n_tokens = self->n_frames = self->n_tail = 0;
  self->skipping = false;
  memset (self->run, 0, sizeof self->run);
  qomni_sampler_reset (self->sampler);
  qomni_code2wav_reset (self->code2wav);

  if (self->probe != NULL) {
    qomni_probe_clear (self->probe, "talker.inputs_embeds");
    qomni_probe_clear (self->probe, "talker.logits");
    qomni_probe_clear (self->probe, "codes");
    qomni_probe_clear (self->probe, "waveform");
    qomni_probe_append (self->probe, "talker.inputs_embeds", 0, 2,
        (int64_t[]) { self->prompt_rows, width },
        (const float *) self->prompt_probe->data);
  }

  project_some (self, self->header, 0, HEADER_ROWS, false);
  self->backend->copy (s, self->x, self->projected,
      row_bytes (HEADER_ROWS, width));
  for (int i = HEADER_ROWS; i < EARLY_ROWS; i++)
    self->backend->copy (s, self->x + i * width,
        i < EARLY_ROWS - 1 ? pad : bos, row_bytes (1, width));
  s->ops->embed (s, self->x + HEADER_ROWS * width, &self->w->codec_embedding,
      ids, G_N_ELEMENTS (ids), true);

  probe_inputs (self, EARLY_ROWS, false);
  return run_rows (self, self->header->positions, ALL_ROWS, EARLY_ROWS, error);
}

/* Cuts the reply off the cache. Rows of it that come later are of no use. */
static void
end_reply (QomniTalker * self)
{
  if (self->phase == PHASE_IDLE)
    return;
  self->skipping = !self->text_done;
  self->skip_turn = self->turn;
  self->phase = PHASE_IDLE;
  g_clear_pointer (&self->header, qomni_embeddings_unref);
  qomni_decoder_state_truncate (self->state, self->prompt_rows);
}

static void
finish_reply (QomniTalker * self, QomniSpeechFinish finish)
{
  self->finish = finish;
  self->phase = PHASE_FINISHED;
}

/* Whether the reply's next text row is at the head of the queue; if not, then
 * text_done says whether one may come. */
static bool
has_text (QomniTalker * self)
{
  QomniEmbeddings *rows;

  while (!self->text_done && (rows = head (self)) != NULL) {
    if (rows->rows_kind == QOMNI_ROWS_REPLY) {
      if (self->n_used < rows->n_tokens)
        return true;
      drop_head (self);
    } else {
      /* rows of a next turn end this one even without its END */
      self->text_done = true;
      if (rows->rows_kind == QOMNI_ROWS_END)
        drop_head (self);
    }
  }
  return false;
}

/* projected [1, width] = the next text row, which has_text() has found. */
static void
project_text (QomniTalker * self)
{
  project_some (self, head (self), self->n_used, 1, false);
  self->n_used++;
  self->n_tokens++;
}

/* The first token of the reply completes the prompt. */
static bool
first_row (QomniTalker * self, GError ** error)
{
  const QomniTalkerConfig *c = &self->config->talker;
  QkStream *s = qomni_decoder_state_stream (self->state);

  project_text (self);
  self->backend->copy (s, self->x, self->projected,
      row_bytes (1, c->text.hidden_size));
  s->ops->embed (s, self->x, &self->w->codec_embedding, &c->codec_bos, 1,
      true);
  probe_inputs (self, 1, false);
  if (!run_rows (self, self->header->positions + EARLY_ROWS, ALL_ROWS, 1,
          error))
    return false;
  predict (self);
  return check_backend (self, error);
}

/* The row that follows the last frame: its codes and a row of text. */
static bool
next_row (QomniTalker * self, GError ** error)
{
  const QomniTalkerWeights *w = self->w;
  const int64_t width = self->config->talker.text.hidden_size;
  QkStream *s = qomni_decoder_state_stream (self->state);
  const float *text = self->projected;
  float at[3];

  s->ops->embed (s, self->x, &w->codec_embedding, self->last, 1, false);
  for (int g = 0; g < w->predictor->n_residual; g++)
    s->ops->embed (s, self->x, &w->predictor->embedding[g],
        &self->last[1 + g], 1, true);

  if (has_text (self)) {
    project_text (self);
  } else {
    text = self->marks + (self->mark_used ? MARK_PAD : MARK_EOS) * width;
    self->mark_used = true;
  }
  s->ops->add (s, self->x, text, width);

  at[0] = at[1] = at[2] = (float) qomni_decoder_state_length (self->state)
      + self->header->position_delta;
  if (!run_rows (self, at, 1, 1, error))
    return false;
  predict (self);
  return check_backend (self, error);
}

/* Notes the last frame; true when it is one too many after the text's end. */
static bool
runs_away (QomniTalker * self)
{
  const int n_groups = self->config->talker.n_groups;
  const size_t bytes = (size_t) n_groups * sizeof (int32_t);
  const int64_t tail = MAX (self->tail_frames,
      self->tail_frames_per_token * self->n_tokens);
  const int64_t t = self->n_tail;
  bool loops = false;

  if (!self->mark_used)
    return false;
  for (int p = 0; p <= MAX_CYCLE; p++) {
    const int back = MAX (p, 1);
    const int32_t *old =
        self->recent + (t + MAX_CYCLE - back) % MAX_CYCLE * n_groups;
    bool same = t >= back && memcmp (self->last, old,
        p == 0 ? sizeof (int32_t) : bytes) == 0;

    self->run[p] = same ? self->run[p] + 1 : 0;
    loops = loops || self->run[p] >= self->loop_frames;
  }
  memcpy (self->recent + t % MAX_CYCLE * n_groups, self->last, bytes);
  self->n_tail++;
  return (tail > 0 && self->n_tail >= tail)
      || (self->loop_frames > 0 && loops);
}

static void
probe_codes (QomniTalker * self)
{
  const int n_groups = self->config->talker.n_groups;

  if (self->probe == NULL)
    return;
  g_autofree int64_t *codes = g_new (int64_t, n_groups);
  for (int g = 0; g < n_groups; g++)
    codes[g] = self->last[g];
  qomni_probe_append_ids (self->probe, "codes", 1, 2,
      (int64_t[]) { n_groups, 1 }, codes);
}

typedef enum
{
  FRAME_MADE,
  FRAME_WAIT,
  FRAME_NONE,                   /* the reply is finished */
  FRAME_ERROR,
} FrameResult;

/* Makes sure of logits to draw from: FRAME_MADE when there are. */
static FrameResult
advance (QomniTalker * self, GError ** error)
{
  if (self->phase == PHASE_HEADER) {
    if (has_text (self)) {
      self->phase = PHASE_SPEAKING;
      return first_row (self, error) ? FRAME_MADE : FRAME_ERROR;
    }
    if (!self->text_done)
      return FRAME_WAIT;
    finish_reply (self, QOMNI_SPEECH_NONE);
    return FRAME_NONE;
  }
  if (self->owes_row) {
    if (!has_text (self) && !self->text_done)
      return FRAME_WAIT;
    if (!next_row (self, error))
      return FRAME_ERROR;
    self->owes_row = false;
  }
  return FRAME_MADE;
}

/* The codes of the next frame, which becomes the last one. */
static FrameResult
make_frame (QomniTalker * self, int32_t * codes, GError ** error)
{
  const QomniTalkerConfig *c = &self->config->talker;
  FrameResult result = advance (self, error);

  if (result != FRAME_MADE)
    return result;
  qomni_probe_append (self->probe, "talker.logits", 0, 2,
      (int64_t[]) { 1, c->text.vocab_size }, self->host_logits);
  codes[0] = qomni_sampler_draw (self->sampler, self->host_logits, error);
  if (codes[0] < 0) {
    g_prefix_error (error, "Talker, frame %" G_GINT64_FORMAT ": ",
        self->n_frames);
    return FRAME_ERROR;
  }
  /* One code more than frames is drawn, as the reference does it: speech that
   * ends on the limit has ended. The end token has no frame. */
  if (codes[0] == c->codec_eos || self->n_frames >= self->max_frames) {
    finish_reply (self, codes[0] != c->codec_eos ? QOMNI_SPEECH_LENGTH
        : self->n_frames == 0 ? QOMNI_SPEECH_NONE : QOMNI_SPEECH_STOP);
    return FRAME_NONE;
  }
  if (!qomni_code_predictor_run (self->predictor, self->z,
          &self->w->codec_embedding, codes, error))
    return FRAME_ERROR;

  memcpy (self->last, codes, (size_t) c->n_groups * sizeof (int32_t));
  self->n_frames++;
  self->owes_row = true;
  probe_codes (self);
  if (runs_away (self))
    finish_reply (self, QOMNI_SPEECH_RUNAWAY);
  return FRAME_MADE;
}

/* --- steps ---------------------------------------------------------------- */

/* Takes rows from the queue until a reply begins or none are left. */
static bool
work_queue (QomniTalker * self, GCancellable * cancellable, GError ** error)
{
  QomniEmbeddings *rows;

  while (self->phase == PHASE_IDLE && (rows = head (self)) != NULL) {
    if (!qomni_go_on (cancellable, error))
      return false;
    switch (rows->rows_kind) {
      case QOMNI_ROWS_PROMPT:
        if (!prefill_chunk (self, error))
          return false;
        break;
      case QOMNI_ROWS_HEADER:
        if (!begin_reply (self, error))
          return false;
        break;
      case QOMNI_ROWS_REPLY:
        drop_head (self);
        break;
      case QOMNI_ROWS_END:
        if (!self->skipping || self->skip_turn != rows->turn) {
          self->turn = rows->turn;
          self->text_done = true;
          self->n_frames = 0;
          finish_reply (self, QOMNI_SPEECH_NONE);
        }
        self->skipping = false;
        drop_head (self);
        break;
    }
  }
  return true;
}

/* Samples of the n frames in self->codes. */
static bool
sound (QomniTalker * self, int n, QomniTalkerStep * ret, GError ** error)
{
  if (!qomni_code2wav_push (self->code2wav, self->codes, n, &ret->samples,
          &ret->n_samples, error))
    return false;
  ret->state = QOMNI_TALKER_SOUND;
  qomni_probe_append (self->probe, "waveform", 0, 1,
      (int64_t[]) { (int64_t) ret->n_samples }, ret->samples);
  return true;
}

static bool
step (QomniTalker * self, QomniTalkerStep * ret, GCancellable * cancellable,
    GError ** error)
{
  const int n_groups = self->config->talker.n_groups;
  int n = 0, wanted;

  if (!work_queue (self, cancellable, error))
    return false;
  wanted = self->n_frames == 0 ? 1 : self->group_frames;
  while (n < wanted && (self->phase == PHASE_HEADER
          || self->phase == PHASE_SPEAKING)) {
    FrameResult result;

    if (!qomni_go_on (cancellable, error))
      return false;
    result = make_frame (self, self->codes + n * n_groups, error);
    if (result == FRAME_ERROR)
      return false;
    if (result != FRAME_MADE)
      break;
    n++;
  }

  ret->n_frames = self->n_frames;
  if (n > 0)
    return sound (self, n, ret, error);
  if (self->phase == PHASE_FINISHED) {
    ret->state = QOMNI_TALKER_END;
    ret->finish = self->finish;
    end_reply (self);
  }
  return true;
}

bool
qomni_talker_step (QomniTalker * self, QomniTalkerStep * ret,
    GCancellable * cancellable, GError ** error)
{
  *ret = (QomniTalkerStep) {.state = QOMNI_TALKER_WAIT };
  if (step (self, ret, cancellable, error))
    return true;
  *ret = (QomniTalkerStep) {.state = QOMNI_TALKER_WAIT };
  /* The rows of the prompt were checked when they were computed. */
  qomni_decoder_state_recover (self->state);
  qomni_talker_cancel (self);
  return false;
}

/* Takes a link out of the queue; returns the one after it. */
static GList *
drop_link (QomniTalker * self, GList * l)
{
  GList *next = l->next;

  if (l == self->queue.head)
    self->n_used = 0;
  qomni_embeddings_unref (l->data);
  g_queue_delete_link (&self->queue, l);
  return next;
}

void
qomni_talker_cancel (QomniTalker * self)
{
  GList *l = self->queue.head;

  if (self->phase != PHASE_IDLE) {
    end_reply (self);
  } else {
    while (l != NULL
        && ((QomniEmbeddings *) l->data)->rows_kind != QOMNI_ROWS_HEADER)
      l = l->next;
    if (l == NULL)
      return;
    self->skipping = true;
    self->skip_turn = ((QomniEmbeddings *) l->data)->turn;
    l = drop_link (self, l);
  }

  /* The rows of this reply that are there follow, up to its END. */
  while (self->skipping && l != NULL) {
    QomniRowsKind kind = ((QomniEmbeddings *) l->data)->rows_kind;

    if (kind != QOMNI_ROWS_REPLY && kind != QOMNI_ROWS_END)
      return;
    self->skipping = kind != QOMNI_ROWS_END;
    l = drop_link (self, l);
  }
}

void
qomni_talker_reset (QomniTalker * self)
{
  end_reply (self);
  clear_queue (self);
  qomni_decoder_state_truncate (self->state, 0);
  self->pushed_rows = self->prompt_rows = 0;
  self->skipping = false;
  if (self->prompt_probe != NULL)
    g_array_set_size (self->prompt_probe, 0);
}
