/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * thinker-context: layout (ids [n], positions [3, n], media rows) -> logits.
 *
 *   ids -> embeddings [n, width], media rows put over their placeholders
 *     -> decoder layers, DeepStack levels added after the first of them
 *     -> last row: norm, head -> logits [vocab]
 *
 * The one idea: the cache remembers which token, from which embedding, at which
 * position each of its rows was computed for. Whatever happened in between, the
 * next layout keeps the longest common beginning and the rest is computed, so
 * any order of prefills, replies and dropped turns ends where one prefill of
 * the same prompt would.
 *
 * The Talker hears the user's segments. Their rows are kept from the time they
 * are computed until they have been handed over; `n_sent` rows have been and
 * `n_kept` more are waiting, together those of the cached rows.
 */
#include "thinker-context.h"

#include <string.h>

#include "decoder.h"
#include "probe.h"
#include "workspace.h"

/* Rows of one forward pass of a prompt; it can be cancelled between two. */
#define MAX_ROWS 64

struct _QomniThinkerWeights
{
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

/* Step buffers in backend memory. */
typedef struct
{
  QomniWorkspace work;
  float *x;                     /* [MAX_ROWS, width] */
  float *normed;                /* [MAX_ROWS, width] */
  float *media;                 /* [n_levels, MAX_ROWS, width] */
  float *logits;                /* [vocab] */
} Buffers;

struct _QomniThinkerContext
{
  QomniModel *model;
  const QomniConfig *config;
  const QomniThinkerWeights *weights;
  QkBackend *backend;
  QomniProbe *probe;
  int64_t width, vocab;
  int n_layers, n_levels;
  int accept_layer;             /* -1: no rows for a Talker wanted */

  QomniDecoderState *state;     /* NULL after a fault, until it is needed */
  GArray *cached;               /* CachedRow, one per row of the state */

  Buffers dev;
  float *table;                 /* [MAX_ROWS, 2, head_dim / 2] */
  float *staging;               /* [MAX_ROWS, width] */
  float *logits;                /* [vocab] */
  float *input_rows;            /* [MAX_ROWS, width]: H[0] of the last pass */
  float *accept_rows;           /* [MAX_ROWS, width]: H[accept], likewise */

  /* Of the last pass, which is still in dev.x. */
  int64_t n_rows, n_media, n_visual;
  int32_t media_rows[MAX_ROWS], visual_rows[MAX_ROWS];
  bool probing;                 /* rows of a prompt, for the probe */

  int64_t n_sent, n_kept;
  float *kept;                  /* [n_kept, 2, width] */
  size_t kept_rows;             /* allocated */
  GArray *sent_positions;       /* float, 3 per row sent */
};

/* --- weights ------------------------------------------------------------ */

QomniThinkerWeights *
qomni_thinker_weights_claim (const QomniConfig * config, QomniWeights * weights)
{
  QomniThinkerWeights *self = g_new0 (QomniThinkerWeights, 1);
  g_autofree char *prefix = g_strconcat (config->thinker_prefix, "model", NULL);
  const int64_t dims[] = { config->text.vocab_size, config->text.hidden_size };

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

static bool
ensure_state (QomniThinkerContext * self, GError ** error)
{
  if (self->state == NULL)
    self->state = qomni_decoder_state_new (self->weights->decoder,
        self->backend, MAX_ROWS, error);
  return self->state != NULL;
}

static bool
allocate (QomniThinkerContext * self, GError ** error)
{
  const size_t rows = MAX_ROWS, width = (size_t) self->width;
  const QomniBuffer buffers[] = {
    { &self->dev.x, MAX_ROWS, self->width },
    { &self->dev.normed, MAX_ROWS, self->width },
    { &self->dev.media, self->n_levels * MAX_ROWS, self->width },
    { &self->dev.logits, 1, self->vocab },
  };

  if (!qomni_workspace_alloc (&self->dev.work, self->backend, buffers,
          G_N_ELEMENTS (buffers), "the Thinker", error))
    return false;
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

QomniThinkerContext *
qomni_thinker_context_new (QomniModel * model, bool want_hidden,
    QomniProbe * probe, GError ** error)
{
  const QomniConfig *config = qomni_model_config (model);
  g_autoptr (QomniThinkerContext) self = g_new0 (QomniThinkerContext, 1);

  self->model = qomni_model_ref (model);
  self->config = config;
  self->weights = qomni_model_thinker (model);
  self->backend = qomni_model_backend (model);
  self->probe = probe == NULL ? NULL : qomni_probe_ref (probe);
  self->width = config->text.hidden_size;
  self->vocab = config->text.vocab_size;
  self->n_layers = config->text.n_layers;
  self->n_levels = 1 + (config->has_vision ? config->vision.n_deepstack : 0);
  self->accept_layer = want_hidden ? config->talker.accept_layer : -1;
  self->cached = g_array_new (FALSE, FALSE, sizeof (CachedRow));
  self->sent_positions = g_array_new (FALSE, FALSE, sizeof (float));
  if (!allocate (self, error))
    return NULL;
  return g_steal_pointer (&self);
}

void
qomni_thinker_context_free (QomniThinkerContext * self)
{
  if (self == NULL)
    return;
  qomni_decoder_state_free (self->state);
  qomni_workspace_clear (&self->dev.work);
  g_free (self->table);
  g_free (self->staging);
  g_free (self->logits);
  g_free (self->input_rows);
  g_free (self->accept_rows);
  g_free (self->kept);
  g_array_unref (self->cached);
  g_array_unref (self->sent_positions);
  qomni_probe_unref (self->probe);
  qomni_model_unref (self->model);
  g_free (self);
}

/* --- one pass ----------------------------------------------------------- */

static size_t
row_bytes (const QomniThinkerContext * self, int64_t n)
{
  return (size_t) (n * self->width) * sizeof (float);
}

static void
probe_rows (QomniThinkerContext * self, int depth, const float *x, int64_t n)
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
  QomniThinkerContext *self = user_data;
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
upload_level (QomniThinkerContext * self, const QomniLayout * l, int64_t first,
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
place_media (QomniThinkerContext * self, const QomniLayout * l, int64_t first,
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
reserve_kept (QomniThinkerContext * self, int64_t n, GError ** error)
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
keep_rows (QomniThinkerContext * self, const QomniLayout * l, int64_t first,
    int64_t n)
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
forget_rows (QomniThinkerContext * self, int64_t n)
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
static bool
check_fault (QomniThinkerContext * self, GError ** error)
{
  const char *fault =
      self->backend->error (qomni_decoder_state_stream (self->state));

  if (fault == NULL)
    return true;
  qomni_fail (error, QOMNI_ERROR_BACKEND, "the Thinker: %s", fault);
  forget_rows (self, 0);
  g_clear_pointer (&self->state, qomni_decoder_state_free);
  return false;
}

/* Computes the n rows of the layout from `first` on, which are the next ones
 * of the cache. Room has been reserved. */
static bool
forward (QomniThinkerContext * self, const QomniLayout * l, int64_t first,
    int64_t n, GError ** error)
{
  const QomniDecoder *decoder = self->weights->decoder;
  QkStream *st = qomni_decoder_state_stream (self->state);
  const bool hears = self->accept_layer >= 0;

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

  if (!check_fault (self, error))
    return false;
  for (int64_t i = 0; i < n; i++) {
    const CachedRow row = row_of (l, first + i);

    g_array_append_val (self->cached, row);
  }
  self->n_rows = n;
  if (hears)
    keep_rows (self, l, first, n);
  return true;
}

/* --- layouts ------------------------------------------------------------ */

/* How many rows of the cache, of the first n, the layout agrees with. */
static int64_t
common_rows (const QomniThinkerContext * self, const QomniLayout * l,
    int64_t n)
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
first_moved_row (const QomniThinkerContext * self, const QomniLayout * l)
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

bool
qomni_thinker_context_compute (QomniThinkerContext * self,
    const QomniLayout * l, int64_t n, int64_t keep,
    GCancellable * cancellable, GError ** error)
{
  int64_t first;

  self->probing = self->probe != NULL;
  if (self->probing)
    keep = 0;
  if (l->talker_positions != NULL)
    keep = MIN (keep, first_moved_row (self, l));
  first = common_rows (self, l, MIN (n, keep));
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
qomni_thinker_context_append (QomniThinkerContext * self, int32_t id,
    float position, GError ** error)
{
  float positions[3] = { position, position, position };
  QomniMediaRow none = { NULL, 0, 0 };
  bool heard = false;
  const QomniLayout l = {
    .n = 1, .ids = &id, .media = &none, .heard = &heard, .positions = positions,
  };

  self->probing = false;
  return qomni_decoder_state_reserve (self->state, 1, error)
      && forward (self, &l, 0, 1, error);
}

float *
qomni_thinker_context_logits (QomniThinkerContext * self, GError ** error)
{
  QkStream *st = qomni_decoder_state_stream (self->state);

  qomni_decoder_norm (self->weights->decoder, self->state, self->dev.normed,
      self->dev.x + (self->n_rows - 1) * self->width, 1);
  st->ops->matmul (st, self->dev.logits, self->dev.normed, 1,
      &self->weights->head, NULL, QK_ACT_NONE, false);
  self->backend->download (st, self->logits, self->dev.logits,
      (size_t) self->vocab * sizeof (float));
  if (!check_fault (self, error))
    return NULL;
  if (self->probing)
    qomni_probe_append (self->probe, "thinker.logits", 0, 1, &self->vocab,
        self->logits);
  return self->logits;
}

void
qomni_thinker_context_forget (QomniThinkerContext * self)
{
  forget_rows (self, 0);
}

/* --- rows for the Talker ------------------------------------------------ */

const float *
qomni_thinker_context_heard (const QomniThinkerContext * self,
    int64_t * ret_first, int64_t * ret_n)
{
  *ret_first = self->n_sent;
  *ret_n = self->n_kept;
  return self->kept;
}

void
qomni_thinker_context_sent (QomniThinkerContext * self, const float *positions)
{
  for (int64_t i = 0; i < self->n_kept; i++)
    for (int axis = 0; axis < 3; axis++)
      g_array_append_val (self->sent_positions,
          positions[axis * self->n_kept + i]);
  self->n_sent += self->n_kept;
  self->n_kept = 0;
}

const float *
qomni_thinker_context_input (const QomniThinkerContext * self)
{
  return self->input_rows + (self->n_rows - 1) * self->width;
}

void
qomni_thinker_context_embed (QomniThinkerContext * self, const int32_t * ids,
    int64_t n, float *ret)
{
  QkStream *st = qomni_decoder_state_stream (self->state);

  st->ops->embed (st, self->dev.normed, &self->weights->embed, ids, n, false);
  self->backend->download (st, ret, self->dev.normed, row_bytes (self, n));
}
