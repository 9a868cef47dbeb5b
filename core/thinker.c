/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * thinker: a conversation -> text, and rows for the Talker.
 *
 *   timeline -> layout: ids [n], positions [3, n], media rows
 *     -> embeddings [n, width], media rows put over their placeholders
 *     -> decoder layers, DeepStack levels added after the first of them
 *     -> last row: norm, head -> logits [vocab] -> token -> the same again
 *
 * The one idea: the cache remembers which token, from which embedding, at which
 * position each of its rows was computed for. Whatever happened in between, the
 * next prompt keeps the longest common beginning and computes the rest, so any
 * order of prefills, replies and dropped turns ends where one prefill of the
 * same prompt would.
 *
 * The Talker hears the user's segments. Their rows are kept from the time they
 * are computed until they have been handed over; `n_sent` rows have been and
 * `n_kept` more are waiting, together those of the cached rows.
 */
#include "thinker.h"

#include <math.h>
#include <string.h>

#include "decoder.h"
#include "probe.h"
#include "sampler.h"
#include "timeline.h"

/* Rows of one forward pass of a prompt; it can be cancelled between two. */
#define MAX_ROWS 64

struct _QomniThinkerWeights
{
  const QomniConfig *config;
  QomniDecoder *decoder;
  QkTensor embed;               /* [vocab, width] */
  QkTensor head;                /* [vocab, width] */
};

/* What a row of the cache was computed for. */
typedef struct
{
  int32_t id;
  float at[3];
  uint64_t serial;
  int64_t row;
  bool heard;
} CachedRow;

/* Step buffers in backend memory, one allocation. */
typedef struct
{
  float *data;
  size_t bytes;
  float *x;                     /* [MAX_ROWS, width] */
  float *normed;                /* [MAX_ROWS, width] */
  float *media;                 /* [n_levels, MAX_ROWS, width] */
  float *logits;                /* [vocab] */
} Buffers;

struct _QomniThinker
{
  QomniModel *model;
  const QomniConfig *config;
  const QomniThinkerWeights *weights;
  QkBackend *backend;
  int64_t width, vocab;
  int n_layers, n_levels;
  int accept_layer;             /* -1: no rows for a Talker wanted */

  char *system_prompt;
  QomniProbe *probe;
  int max_tokens;
  QomniSampler *sampler;
  QomniDetokenizer *detokenizer;        /* of the reply, or NULL */

  QomniTimeline *timeline;
  QomniDecoderState *state;     /* NULL after a fault, until it is needed */
  GArray *cached;               /* CachedRow, one per row of the state */

  Buffers dev;
  float *table;                 /* [MAX_ROWS, 2, head_dim / 2] */
  float *staging;               /* [MAX_ROWS, width] */
  float *logits;                /* [vocab] */
  float *input_rows;            /* [MAX_ROWS, width]: H[0] of the last pass */
  float *accept_rows;           /* [MAX_ROWS, width]: H[accept], likewise */

  /* Of the pass under way, for after_layer(). */
  int32_t media_rows[MAX_ROWS], visual_rows[MAX_ROWS];
  int64_t n_media, n_visual;
  bool probing;
  int64_t n_rows;               /* of the last pass, still in dev.x */

  int64_t n_sent, n_kept;
  float *kept;                  /* [n_kept, 2, width] */
  size_t kept_rows;             /* allocated */
  GArray *sent_positions;       /* float, 3 per row sent */

  bool replying;
  bool took_turn;               /* end_turn() closed a turn of its own */
  uint64_t turn;
  GArray *reply;                /* int32_t: what was drawn, im_end included */
  int64_t n_prompt;
  float delta;
  bool speaks;                  /* the Talker has somebody to answer */
  int32_t header[3];            /* <|im_start|> assistant \n */
  float own_positions[3 * QOMNI_TALKER_OWN_ROWS];
  float own_delta;
  GString *text;                /* of the last step */
};

/* --- weights ------------------------------------------------------------ */

QomniThinkerWeights *
qomni_thinker_weights_claim (const QomniConfig * config, QomniWeights * weights)
{
  QomniThinkerWeights *self = g_new0 (QomniThinkerWeights, 1);
  g_autofree char *prefix = g_strconcat (config->thinker_prefix, "model", NULL);
  const int64_t dims[] = { config->text.vocab_size, config->text.hidden_size };

  self->config = config;
  qomni_weights_matrix (weights, &self->embed, 2, dims,
      "%s.embed_tokens.weight", prefix);
  self->decoder = qomni_decoder_claim (&config->text, QOMNI_DECODER_QK_NORM,
      weights, prefix);
  qomni_weights_matrix (weights, &self->head, 2, dims, "%slm_head.weight",
      config->thinker_prefix);
  return self;
}

void
qomni_thinker_weights_free (QomniThinkerWeights * self)
{
  if (self == NULL)
    return;
  qomni_decoder_free (self->decoder);
  g_free (self);
}

/* --- making and freeing ------------------------------------------------- */

void
qomni_thinker_params_init (QomniThinkerParams * params,
    const QomniConfig * config)
{
  *params = (QomniThinkerParams) {
    .sampling = config->thinker_sampling,
  };
}

static bool
ensure_state (QomniThinker * self, GError ** error)
{
  if (self->state == NULL)
    self->state = qomni_decoder_state_new (self->weights->decoder,
        self->backend, MAX_ROWS, error);
  return self->state != NULL;
}

/* Cuts the step buffers out of one allocation; with `data` NULL it only counts
 * the floats. */
static bool
lay_out (QomniThinker * self, size_t * ret_floats)
{
  Buffers *b = &self->dev;
  struct
  {
    float **place;
    size_t rows, width;
  } const parts[] = {
    { &b->x, MAX_ROWS, (size_t) self->width },
    { &b->normed, MAX_ROWS, (size_t) self->width },
    { &b->media, (size_t) self->n_levels * MAX_ROWS, (size_t) self->width },
    { &b->logits, 1, (size_t) self->vocab },
  };
  size_t used = 0;

  for (size_t i = 0; i < G_N_ELEMENTS (parts); i++) {
    size_t floats;

    if (b->data != NULL)
      *parts[i].place = b->data + used;
    /* Rounded up to 64 bytes, the alignment of the allocation. */
    if (!qomni_size_mul (parts[i].rows, parts[i].width, &floats)
        || !qomni_size_add (floats, 15, &floats)
        || !qomni_size_add (used, floats & ~(size_t) 15, &used))
      return false;
  }
  *ret_floats = used;
  return true;
}

static bool
allocate (QomniThinker * self, GError ** error)
{
  const size_t rows = MAX_ROWS, width = (size_t) self->width;
  size_t floats;

  if (!lay_out (self, &floats)
      || !qomni_size_mul (floats, sizeof (float), &self->dev.bytes))
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "step buffers of the Thinker are too large");
  self->dev.data = self->backend->alloc (self->backend, self->dev.bytes);
  if (self->dev.data == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for %zu bytes of step buffers", self->dev.bytes);
  lay_out (self, &floats);

  self->table = g_try_new (float, rows * (size_t) self->config->text.head_dim);
  self->staging = g_try_new (float, rows * width);
  self->logits = g_try_new (float, self->vocab);
  self->input_rows = g_try_new (float, rows * width);
  self->accept_rows = g_try_new (float, rows * width);
  if (self->table == NULL || self->staging == NULL || self->logits == NULL
      || self->input_rows == NULL || self->accept_rows == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for rows of %zu values", width);
  return ensure_state (self, error);
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
  self->weights = qomni_model_thinker (model);
  self->backend = qomni_model_backend (model);
  self->width = config->text.hidden_size;
  self->vocab = config->text.vocab_size;
  self->n_layers = config->text.n_layers;
  self->n_levels = 1 + (config->has_vision ? config->vision.n_deepstack : 0);
  self->accept_layer =
      params->want_hidden ? config->talker.accept_layer : -1;
  self->probe = params->probe == NULL ? NULL : qomni_probe_ref (params->probe);
  self->max_tokens = MAX (1, params->sampling.max_tokens);
  self->system_prompt = dup_system_prompt (params->system_prompt);
  self->cached = g_array_new (FALSE, FALSE, sizeof (CachedRow));
  self->sent_positions = g_array_new (FALSE, FALSE, sizeof (float));
  self->reply = g_array_new (FALSE, FALSE, sizeof (int32_t));
  self->text = g_string_new (NULL);

  self->sampler = qomni_sampler_new (&params->sampling, params->seed,
      self->vocab, error);
  if (self->sampler == NULL || !allocate (self, error))
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
  qomni_decoder_state_free (self->state);
  if (self->dev.data != NULL)
    self->backend->release (self->backend, self->dev.data, self->dev.bytes);
  g_free (self->table);
  g_free (self->staging);
  g_free (self->logits);
  g_free (self->input_rows);
  g_free (self->accept_rows);
  g_free (self->kept);
  g_array_unref (self->cached);
  g_array_unref (self->sent_positions);
  g_array_unref (self->reply);
  g_string_free (self->text, TRUE);
  qomni_sampler_free (self->sampler);
  qomni_detokenizer_free (self->detokenizer);
  qomni_probe_unref (self->probe);
  g_free (self->system_prompt);
  qomni_model_unref (self->model);
  g_free (self);
}

/* --- one pass ----------------------------------------------------------- */

static size_t
row_bytes (const QomniThinker * self, int64_t n)
{
  return (size_t) (n * self->width) * sizeof (float);
}

static void
probe_rows (QomniThinker * self, int depth, const float *x, int64_t n)
{
  g_autofree char *name = g_strdup_printf ("thinker.hidden.%d", depth);
  const int64_t dims[] = { n, self->width };

  self->backend->download (qomni_decoder_state_stream (self->state),
      self->staging, x, row_bytes (self, n));
  qomni_probe_append (self->probe, name, 0, 2, dims, self->staging);
  if (depth == 0)
    qomni_probe_append (self->probe, "thinker.inputs_embeds", 0, 2, dims,
        self->staging);
}

/* After each layer: what others want to see of it, before DeepStack adds to
 * it. H[depth] of the reference is the residual stream after `depth` layers. */
static void
after_layer (int layer, float *x, int64_t n, void *user_data)
{
  QomniThinker *self = user_data;
  QkStream *st = qomni_decoder_state_stream (self->state);
  const int depth = layer + 1;

  if (depth == 0 && self->accept_layer >= 0)
    self->backend->download (st, self->input_rows, x, row_bytes (self, n));
  if (depth == self->accept_layer && depth < self->n_layers
      && self->n_media > 0)
    self->backend->download (st, self->accept_rows, x, row_bytes (self, n));
  if (self->probing && depth < self->n_layers)
    probe_rows (self, depth, x, n);

  if (layer >= 0 && layer + 1 < self->n_levels && self->n_visual > 0)
    st->ops->scatter_rows (st, x,
        self->dev.media + (layer + 1) * MAX_ROWS * self->width, self->width,
        self->visual_rows, self->n_visual, true);
}

/* The embeddings of level `level` of the n rows from `first` on, in order, to
 * their place in dev.media. */
static void
upload_level (QomniThinker * self, const QomniLayout * l, int64_t first,
    const int32_t * rows, int64_t n, int level)
{
  for (int64_t i = 0; i < n; i++) {
    const QomniMediaRow *m = &l->media[first + rows[i]];

    memcpy (self->staging + i * self->width,
        m->block->data + (m->row * m->block->n_levels + level) * self->width,
        row_bytes (self, 1));
  }
  self->backend->upload (qomni_decoder_state_stream (self->state),
      self->dev.media + level * MAX_ROWS * self->width, self->staging,
      row_bytes (self, n));
}

/* Puts media rows over the placeholders in dev.x, and makes ready what
 * DeepStack will add. */
static void
place_media (QomniThinker * self, const QomniLayout * l, int64_t first,
    int64_t n)
{
  QkStream *st = qomni_decoder_state_stream (self->state);

  self->n_media = self->n_visual = 0;
  for (int64_t i = 0; i < n; i++) {
    const QomniEmbeddings *block = l->media[first + i].block;

    if (block == NULL)
      continue;
    self->media_rows[self->n_media++] = (int32_t) i;
    if (block->n_levels == self->n_levels && self->n_levels > 1)
      self->visual_rows[self->n_visual++] = (int32_t) i;
  }
  if (self->n_media == 0)
    return;
  upload_level (self, l, first, self->media_rows, self->n_media, 0);
  st->ops->scatter_rows (st, self->dev.x, self->dev.media, self->width,
      self->media_rows, self->n_media, false);
  for (int level = 1; self->n_visual > 0 && level < self->n_levels; level++)
    upload_level (self, l, first, self->visual_rows, self->n_visual, level);
}

/* Room to keep `n` more rows for the Talker. */
static bool
reserve_kept (QomniThinker * self, int64_t n, GError ** error)
{
  const size_t need = (size_t) (self->n_kept + n);
  size_t rows = MAX (need, MAX (2 * self->kept_rows, 64)), bytes;
  float *larger;

  if (need <= self->kept_rows)
    return true;
  if (!qomni_size_mul3 (rows, 2 * sizeof (float), (size_t) self->width, &bytes)
      || (larger = g_try_realloc (self->kept, bytes)) == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory to keep %zu rows for the Talker", rows);
  self->kept = larger;
  self->kept_rows = rows;
  return true;
}

/* Keeps the heard ones of the n rows just computed: H[0], and H[accept] where
 * there is media. */
static void
keep_rows (QomniThinker * self, const QomniLayout * l, int64_t first, int64_t n)
{
  for (int64_t i = 0; i < n; i++) {
    float *to = self->kept + self->n_kept * 2 * self->width;

    if (!l->heard[first + i])
      continue;
    memcpy (to, self->input_rows + i * self->width, row_bytes (self, 1));
    if (l->media[first + i].block != NULL)
      memcpy (to + self->width, self->accept_rows + i * self->width,
          row_bytes (self, 1));
    else
      memset (to + self->width, 0, row_bytes (self, 1));
    self->n_kept++;
  }
}

static CachedRow
row_of (const QomniLayout * l, int64_t i)
{
  return (CachedRow) {
    .id = l->ids[i],
    .at = { l->positions[i], l->positions[l->n + i],
        l->positions[2 * l->n + i] },
    .serial = l->media[i].serial,
    .row = l->media[i].row,
    .heard = l->heard[i],
  };
}

/* Keeps the first n rows of the cache. */
static void
forget_rows (QomniThinker * self, int64_t n)
{
  int64_t heard = 0;

  if (self->state != NULL)
    qomni_decoder_state_truncate (self->state, n);
  g_array_set_size (self->cached, (guint) n);
  for (int64_t i = 0; i < n; i++)
    heard += g_array_index (self->cached, CachedRow, i).heard;
  self->n_sent = MIN (self->n_sent, heard);
  self->n_kept = MIN (self->n_kept, heard - self->n_sent);
  g_array_set_size (self->sent_positions, (guint) (3 * self->n_sent));
}

/* After a fault the stream keeps saying so, and what it computed is doubtful:
 * the next pass begins with a new one. */
static void
forget_state (QomniThinker * self)
{
  forget_rows (self, 0);
  g_clear_pointer (&self->state, qomni_decoder_state_free);
}

/* Computes the n rows of the layout from `first` on, which are the next ones
 * of the cache. Room has been reserved. */
static bool
forward (QomniThinker * self, const QomniLayout * l, int64_t first, int64_t n,
    GError ** error)
{
  const QomniDecoder *decoder = self->weights->decoder;
  QkStream *st = qomni_decoder_state_stream (self->state);
  const bool hears = self->accept_layer >= 0;
  const char *fault;

  if (hears && !reserve_kept (self, n, error))
    return false;

  st->ops->embed (st, self->dev.x, &self->weights->embed, l->ids + first, n,
      false);
  place_media (self, l, first, n);
  qomni_rope_table (&self->config->text, l->positions + first, l->n, n,
      self->table);
  qomni_decoder_forward (decoder, self->state, self->dev.x, n, self->table,
      after_layer, self);

  /* The reference's last hidden state is the normed one. */
  if (hears && self->accept_layer == self->n_layers && self->n_media > 0) {
    qomni_decoder_norm (decoder, self->state, self->dev.normed, self->dev.x, n);
    self->backend->download (st, self->accept_rows, self->dev.normed,
        row_bytes (self, n));
  }
  if (self->probing) {
    qomni_decoder_norm (decoder, self->state, self->dev.normed, self->dev.x, n);
    probe_rows (self, self->n_layers, self->dev.normed, n);
  }

  fault = self->backend->error (st);
  if (fault != NULL) {
    qomni_fail (error, QOMNI_ERROR_BACKEND, "the Thinker: %s", fault);
    forget_state (self);
    return false;
  }
  for (int64_t i = 0; i < n; i++) {
    const CachedRow row = row_of (l, first + i);

    g_array_append_val (self->cached, row);
  }
  self->n_rows = n;
  if (hears)
    keep_rows (self, l, first, n);
  return true;
}

/* Draws a token after the last row computed. -1 and an error on failure. */
static int32_t
draw (QomniThinker * self, GError ** error)
{
  QkStream *st = qomni_decoder_state_stream (self->state);
  const char *fault;

  qomni_decoder_norm (self->weights->decoder, self->state, self->dev.normed,
      self->dev.x + (self->n_rows - 1) * self->width, 1);
  st->ops->matmul (st, self->dev.logits, self->dev.normed, 1,
      &self->weights->head, NULL, QK_ACT_NONE, false);
  self->backend->download (st, self->logits, self->dev.logits,
      (size_t) self->vocab * sizeof (float));
  fault = self->backend->error (st);
  if (fault != NULL) {
    qomni_fail (error, QOMNI_ERROR_BACKEND, "the Thinker: %s", fault);
    forget_state (self);
    return -1;
  }
  if (self->probing)
    qomni_probe_append (self->probe, "thinker.logits", 0, 1, &self->vocab,
        self->logits);
  self->probing = false;
  return qomni_sampler_draw (self->sampler, self->logits, error);
}

/* --- the prompt --------------------------------------------------------- */

/* How many rows of the cache, of the first n, the layout agrees with. */
static int64_t
common_rows (const QomniThinker * self, const QomniLayout * l, int64_t n)
{
  int64_t i;

  n = MIN (n, (int64_t) self->cached->len);
  for (i = 0; i < n; i++) {
    const CachedRow *a = &g_array_index (self->cached, CachedRow, i);
    const CachedRow b = row_of (l, i);

    if (a->id != b.id || a->at[0] != b.at[0] || a->at[1] != b.at[1]
        || a->at[2] != b.at[2] || a->serial != b.serial || a->row != b.row
        || a->heard != b.heard)
      break;
  }
  return i;
}

/* The first row that stands elsewhere for the Talker than when it was sent: it
 * has to be computed and sent again. n when there is none. */
static int64_t
first_moved_row (const QomniThinker * self, const QomniLayout * l)
{
  const int64_t stride = l->n_heard + QOMNI_TALKER_OWN_ROWS;
  int64_t heard = 0;

  for (int64_t i = 0; i < l->n && heard < self->n_sent; i++) {
    const float *was =
        &g_array_index (self->sent_positions, float, 3 * heard);

    if (!l->heard[i])
      continue;
    for (int axis = 0; axis < 3; axis++)
      if (l->talker_positions[axis * stride + heard] != was[axis])
        return i;
    heard++;
  }
  return l->n;
}

/* Brings the cache to rows 0 … n-1 of the layout, of which it keeps at most
 * the first `keep`. */
static bool
compute (QomniThinker * self, const QomniLayout * l, int64_t n, int64_t keep,
    GCancellable * cancellable, GError ** error)
{
  int64_t first = common_rows (self, l, MIN (n, keep));

  if (first >= n)
    return true;
  forget_rows (self, first);
  if (!ensure_state (self, error)
      || !qomni_decoder_state_reserve (self->state, n - first, error))
    return false;
  while (first < n) {
    const int64_t rows = MIN (n - first, MAX_ROWS);

    if (!qomni_go_on (cancellable, error)
        || !forward (self, l, first, rows, error))
      return false;
    first += rows;
  }
  return true;
}

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
      && compute (self, layout, layout->n_final, layout->n_final, cancellable,
      error);
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
  for (int i = 0; i <= self->n_layers; i++) {
    g_autofree char *name = g_strdup_printf ("thinker.hidden.%d", i);

    qomni_probe_clear (self->probe, name);
  }
}

static void
probe_ids (QomniThinker * self, const char *name, const int32_t * ids,
    int64_t n)
{
  g_autofree int64_t *wide = g_try_new (int64_t, n);

  if (self->probe == NULL || wide == NULL)
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
  int64_t keep = l->n - 1;      /* the last row gives the logits */

  if (l->talker_positions != NULL)
    keep = MIN (keep, first_moved_row (self, l));
  if (self->probe != NULL) {
    const int64_t dims[] = { 3, l->n };

    keep = 0;
    self->probing = true;
    clear_probe (self);
    probe_ids (self, "input_ids", l->ids, l->n);
    qomni_probe_append (self->probe, "position_ids", 1, 2, dims, l->positions);
  }
  if (!compute (self, l, l->n, keep, cancellable, error))
    return false;

  self->n_prompt = l->n;
  self->delta = l->delta;
  self->speaks = l->talker_positions != NULL && l->n_heard > 0;
  memcpy (self->header, l->ids + l->n - 3, sizeof (self->header));
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

/* Adds n rows of a kind to the step's; NULL and an error without memory. */
static QomniEmbeddings *
add_rows (QomniThinker * self, QomniThinkerStep * step, QomniRowsKind kind,
    int64_t n, GError ** error)
{
  QomniEmbeddings *e = qomni_embeddings_new (QOMNI_MODALITY_THINKER, n, 2,
      self->width, error);

  if (e == NULL)
    return NULL;
  e->rows_kind = kind;
  e->turn = self->turn;
  step->hidden[step->n_hidden++] = e;
  return e;
}

/* The rows heard that have not been handed over. The Talker has them once the
 * step has succeeded, see prompt_was_sent(). */
static bool
add_prompt (QomniThinker * self, QomniThinkerStep * step,
    const QomniLayout * l, GError ** error)
{
  const int64_t n = self->n_kept;
  const int64_t stride = l->n_heard + QOMNI_TALKER_OWN_ROWS;
  QomniEmbeddings *e =
      add_rows (self, step, QOMNI_ROWS_PROMPT, n, error);
  int64_t heard = 0;

  if (e == NULL)
    return false;
  e->first_row = self->n_sent;
  e->n_positions = n;
  e->ids = g_try_new (int32_t, n);
  e->media = g_try_new (uint8_t, n);
  e->positions = g_try_new (float, 3 * n);
  if (n > 0 && (e->ids == NULL || e->media == NULL || e->positions == NULL))
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for %" G_GINT64_FORMAT " rows for the Talker", n);
  if (n > 0)
    memcpy (e->data, self->kept, 2 * row_bytes (self, n));

  for (int64_t i = 0; i < l->n; i++) {
    const int64_t to = heard - self->n_sent;

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

static void
prompt_was_sent (QomniThinker * self, const QomniEmbeddings * e)
{
  for (int64_t i = 0; i < e->n_tokens; i++)
    for (int axis = 0; axis < 3; axis++)
      g_array_append_val (self->sent_positions,
          e->positions[axis * e->n_tokens + i]);
  self->n_sent += e->n_tokens;
  self->n_kept = 0;
}

static bool
add_header (QomniThinker * self, QomniThinkerStep * step, GError ** error)
{
  QkStream *st = qomni_decoder_state_stream (self->state);
  QomniEmbeddings *e = add_rows (self, step, QOMNI_ROWS_HEADER, 3, error);

  if (e == NULL)
    return false;
  st->ops->embed (st, self->dev.normed, &self->weights->embed, self->header, 3,
      false);
  self->backend->download (st, self->staging, self->dev.normed,
      row_bytes (self, 3));
  for (int64_t i = 0; i < 3; i++)
    memcpy (e->data + i * 2 * self->width, self->staging + i * self->width,
        row_bytes (self, 1));
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
  const guint i = self->reply->len - 2;
  QomniEmbeddings *e = add_rows (self, step, QOMNI_ROWS_REPLY, 1, error);

  if (e == NULL)
    return false;
  memcpy (e->data, self->input_rows, row_bytes (self, 1));
  e->ids = g_memdup2 (&g_array_index (self->reply, int32_t, i),
      sizeof (int32_t));
  return true;
}

/* What this step's token makes certain for the Talker. The last token of a
 * reply, be it the end or the one that met the limit, is never spoken, and
 * without a token before it there is nothing to say. `l`: the prompt's layout
 * in the first step. */
static bool
add_hidden (QomniThinker * self, QomniThinkerStep * step,
    const QomniLayout * l, GError ** error)
{
  if (self->accept_layer < 0)
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
  const float at = (float) (self->n_prompt + last) + self->delta;
  int32_t id = g_array_index (self->reply, int32_t, last);
  float positions[3] = { at, at, at };
  QomniMediaRow none = { NULL, 0, 0 };
  bool heard = false;
  const QomniLayout l = {
    .n = 1, .ids = &id, .media = &none, .heard = &heard, .positions = positions,
  };

  return qomni_decoder_state_reserve (self->state, 1, error)
      && forward (self, &l, 0, 1, error);
}

static void
end_reply (QomniThinker * self)
{
  const int32_t *ids = (const int32_t *) self->reply->data;
  size_t n = self->reply->len;

  if (!self->replying)
    return;
  self->replying = self->probing = false;
  probe_ids (self, "output_ids", ids, (int64_t) n);
  if (n > 0 && ids[n - 1] == self->config->im_end)
    n--;
  qomni_timeline_push_reply (self->timeline, ids, n);
}

/* A reply that failed leaves no trace of itself or of what it failed on. */
static void
drop_reply (QomniThinker * self)
{
  self->replying = self->probing = false;
  if (self->took_turn)
    qomni_timeline_drop_last (self->timeline);
}

static bool
step_forward (QomniThinker * self, QomniThinkerStep * ret,
    GCancellable * cancellable, GError ** error)
{
  g_autoptr (QomniLayout) layout = NULL;

  g_string_truncate (self->text, 0);
  if (!qomni_go_on (cancellable, error))
    return false;
  if (self->reply->len == 0) {
    layout = qomni_timeline_layout (self->timeline, self->accept_layer >= 0
        ? QOMNI_LAYOUT_SPOKEN : QOMNI_LAYOUT_PROMPT, error);
    if (layout == NULL
        || !compute_prompt (self, layout, cancellable, error))
      return false;
  } else if (!compute_token (self, error)) {
    return false;
  }

  ret->token = draw (self, error);
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
    prompt_was_sent (self, ret->hidden[0]);
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
      forget_rows (self, 0);
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
  self->replying = self->probing = false;
  qomni_timeline_clear (self->timeline, self->system_prompt);
  forget_rows (self, 0);
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
