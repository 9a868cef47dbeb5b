/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * timeline: turns of parts -> ids [n], positions [3, n], media rows [n].
 *
 *   turn = role + parts | role + ids of a reply
 *   part = text | blocks of one clip (a video: of pictures and of its sound)
 *
 * A layout is made anew each time from all turns, so that history cannot drift
 * from what a single prompt of the same content would be. While a clip is still
 * open, only its tokens so far are certain; where the tokens of a video and of
 * its sound are merged by time, only those before the first moment at which a
 * missing one might stand.
 */
#include "timeline.h"

#include <math.h>
#include <string.h>

typedef enum
{
  PART_TEXT,
  PART_AUDIO,
  PART_IMAGE,
  PART_VIDEO,
} PartKind;

/* Blocks of one clip and kind. */
typedef struct
{
  GPtrArray *blocks;            /* QomniEmbeddings */
  GArray *serials;              /* uint64_t, one per block */
  int64_t n_tokens;
  bool complete;                /* the last block has come */
} Track;

typedef struct
{
  PartKind kind;
  uint64_t clip;
  bool in_video;                /* AUDIO: clip is the number of a video */
  char *text;                   /* TEXT */
  Track main;                   /* AUDIO, IMAGE, VIDEO */
  Track sound;                  /* VIDEO: its own sound */
} Part;

typedef struct
{
  QomniRole role;
  GPtrArray *parts;             /* Part */
  GArray *ids;                  /* int32_t; NULL: made of parts */
} Turn;

struct _QomniTimeline
{
  const QomniConfig *config;
  bool use_audio_in_video;
  QomniPrompt *prompt;
  GPtrArray *turns;             /* Turn: closed */
  Turn *open;                   /* the user's turn, or NULL */
  uint64_t next_serial;
};

static void
track_init (Track * t)
{
  t->blocks =
      g_ptr_array_new_with_free_func ((GDestroyNotify) qomni_embeddings_unref);
  t->serials = g_array_new (FALSE, FALSE, sizeof (uint64_t));
}

static void
track_clear (Track * t)
{
  g_ptr_array_unref (t->blocks);
  g_array_unref (t->serials);
}

static void
part_free (Part * p)
{
  g_free (p->text);
  track_clear (&p->main);
  track_clear (&p->sound);
  g_free (p);
}

static Part *
turn_add_part (Turn * turn, PartKind kind, uint64_t clip)
{
  Part *p = g_new0 (Part, 1);

  p->kind = kind;
  p->clip = clip;
  track_init (&p->main);
  track_init (&p->sound);
  g_ptr_array_add (turn->parts, p);
  return p;
}

static Turn *
turn_new (QomniRole role)
{
  Turn *t = g_new0 (Turn, 1);

  t->role = role;
  t->parts = g_ptr_array_new_with_free_func ((GDestroyNotify) part_free);
  return t;
}

static void
turn_free (Turn * t)
{
  if (t == NULL)
    return;
  g_ptr_array_unref (t->parts);
  if (t->ids != NULL)
    g_array_unref (t->ids);
  g_free (t);
}

QomniTimeline *
qomni_timeline_new (const QomniConfig * config,
    const QomniTokenizer * tokenizer, bool use_audio_in_video)
{
  QomniTimeline *self = g_new0 (QomniTimeline, 1);

  self->config = config;
  self->use_audio_in_video = use_audio_in_video;
  self->prompt = qomni_prompt_new (config, tokenizer);
  self->turns = g_ptr_array_new_with_free_func ((GDestroyNotify) turn_free);
  self->next_serial = 1;
  return self;
}

void
qomni_timeline_free (QomniTimeline * self)
{
  if (self == NULL)
    return;
  turn_free (self->open);
  g_ptr_array_unref (self->turns);
  qomni_prompt_free (self->prompt);
  g_free (self);
}

static void
add_text_turn (QomniTimeline * self, QomniRole role, const char *text)
{
  Turn *turn = turn_new (role);

  turn_add_part (turn, PART_TEXT, 0)->text = g_strdup (text);
  g_ptr_array_add (self->turns, turn);
}

void
qomni_timeline_clear (QomniTimeline * self, const char *system_prompt)
{
  g_clear_pointer (&self->open, turn_free);
  g_ptr_array_set_size (self->turns, 0);
  if (system_prompt != NULL)
    add_text_turn (self, QOMNI_ROLE_SYSTEM, system_prompt);
}

/* --- parts -------------------------------------------------------------- */

static Turn *
open_turn (QomniTimeline * self)
{
  if (self->open == NULL)
    self->open = turn_new (QOMNI_ROLE_USER);
  return self->open;
}

static bool
check_text (const char *text, GError ** error)
{
  const size_t n = strlen (text);
  const char *end;

  /* Here already, or each layout from now on would fail. */
  if (n > QOMNI_MAX_TEXT_BYTES)
    return qomni_fail (error, QOMNI_ERROR_LIMIT,
        "a text of %zu bytes, at most %zu", n, QOMNI_MAX_TEXT_BYTES);
  if (!g_utf8_validate (text, -1, &end))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the text is not UTF-8 from byte %zu on", (size_t) (end - text));
  return true;
}

bool
qomni_timeline_push_text (QomniTimeline * self, const char *text,
    GError ** error)
{
  if (!check_text (text, error))
    return false;
  if (text[0] != '\0')
    turn_add_part (open_turn (self), PART_TEXT, 0)->text = g_strdup (text);
  return true;
}

/* The part of the open turn that `block`, of `kind`, continues. */
static Part *
find_part (const QomniTimeline * self, PartKind kind,
    const QomniEmbeddings * block, bool is_sound)
{
  if (self->open == NULL || kind == PART_IMAGE)
    return NULL;
  for (guint i = self->open->parts->len; i > 0; i--) {
    Part *p = g_ptr_array_index (self->open->parts, i - 1);

    if (p->kind == kind && p->clip == block->clip
        && (kind != PART_AUDIO || p->in_video == block->in_video)
        && !(is_sound ? p->sound.complete : p->main.complete))
      return p;
  }
  return NULL;
}

/* Slices of one clip share their grid and their time. */
static bool
check_slice (const Part * p, const QomniEmbeddings * block, GError ** error)
{
  const QomniEmbeddings *first;

  if (p->kind != PART_VIDEO || p->main.blocks->len == 0)
    return true;
  first = g_ptr_array_index (p->main.blocks, 0);
  if (block->grid_h != first->grid_h || block->grid_w != first->grid_w)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a slice of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT " cells in video "
        "clip %" G_GUINT64_FORMAT " of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT,
        block->grid_h, block->grid_w, block->clip, first->grid_h,
        first->grid_w);
  if (block->seconds_per_grid != first->seconds_per_grid)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a slice of %g s in video clip %" G_GUINT64_FORMAT " of %g s slices",
        block->seconds_per_grid, block->clip, first->seconds_per_grid);
  return true;
}

bool
qomni_timeline_push_embeddings (QomniTimeline * self, QomniEmbeddings * block,
    GError ** error)
{
  const bool is_sound = block->modality == QOMNI_MODALITY_AUDIO
      && block->in_video && self->use_audio_in_video;
  PartKind kind;
  Part *part;
  Track *track;

  switch (block->modality) {
    case QOMNI_MODALITY_AUDIO:
      kind = is_sound ? PART_VIDEO : PART_AUDIO;
      break;
    case QOMNI_MODALITY_IMAGE:
      kind = PART_IMAGE;
      break;
    case QOMNI_MODALITY_VIDEO:
      kind = PART_VIDEO;
      break;
    default:
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "rows for the Talker are no part of a turn");
  }

  part = find_part (self, kind, block, is_sound);
  if (block->n_tokens == 0 && (part == NULL || !block->last))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "an empty block of %s (clip %" G_GUINT64_FORMAT ")",
        kind == PART_AUDIO || is_sound ? "sound" : "pictures", block->clip);
  if (part != NULL && !is_sound && block->n_tokens > 0
      && !check_slice (part, block, error))
    return false;

  if (part == NULL) {
    part = turn_add_part (open_turn (self), kind, block->clip);
    part->in_video = block->in_video;
  }
  track = is_sound ? &part->sound : &part->main;
  if (block->n_tokens > 0) {
    g_ptr_array_add (track->blocks, qomni_embeddings_ref (block));
    g_array_append_val (track->serials, self->next_serial);
    self->next_serial++;
    track->n_tokens += block->n_tokens;
  }
  track->complete = block->last || kind == PART_IMAGE;
  return true;
}

/* --- turns -------------------------------------------------------------- */

bool
qomni_timeline_is_open (const QomniTimeline * self)
{
  return self->open != NULL;
}

bool
qomni_timeline_is_empty (const QomniTimeline * self)
{
  return self->open == NULL && self->turns->len == 0;
}

static const Turn *
last_turn (const QomniTimeline * self)
{
  return self->turns->len == 0 ? NULL
      : g_ptr_array_index (self->turns, self->turns->len - 1);
}

bool
qomni_timeline_wants_reply (const QomniTimeline * self)
{
  const Turn *last = last_turn (self);

  return self->open != NULL
      || (last != NULL && last->role != QOMNI_ROLE_ASSISTANT);
}

bool
qomni_timeline_close (QomniTimeline * self, GError ** error)
{
  if (self->open == NULL)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "the turn is empty");

  for (guint i = 0; i < self->open->parts->len; i++) {
    const Part *p = g_ptr_array_index (self->open->parts, i);

    if (p->kind != PART_TEXT && p->main.n_tokens + p->sound.n_tokens == 0)
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "part %u of the turn (clip %" G_GUINT64_FORMAT ") is empty", i,
          p->clip);
  }
  g_ptr_array_add (self->turns, g_steal_pointer (&self->open));
  return true;
}

void
qomni_timeline_drop_open (QomniTimeline * self)
{
  g_clear_pointer (&self->open, turn_free);
}

void
qomni_timeline_drop_last (QomniTimeline * self)
{
  if (self->turns->len > 0)
    g_ptr_array_set_size (self->turns, (gint) self->turns->len - 1);
}

bool
qomni_timeline_push_turn (QomniTimeline * self, QomniRole role,
    const char *text, GError ** error)
{
  if (self->open != NULL)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "history cannot be added while a turn is open");
  if (!check_text (text, error))
    return false;
  add_text_turn (self, role, text);
  return true;
}

/* Whether an id means something to the layout of a prompt. */
static bool
is_layout_id (const QomniConfig * c, int32_t id)
{
  return id == c->im_start || id == c->im_end || id == c->audio_pad
      || id == c->audio_start || id == c->audio_end || id == c->image_pad
      || id == c->video_pad || id == c->vision_start || id == c->vision_end;
}

void
qomni_timeline_push_reply (QomniTimeline * self, const int32_t * ids, size_t n)
{
  Turn *turn = turn_new (QOMNI_ROLE_ASSISTANT);

  turn->ids = g_array_new (FALSE, FALSE, sizeof (int32_t));
  for (size_t i = 0; i < n; i++)
    if (!is_layout_id (self->config, ids[i]))
      g_array_append_val (turn->ids, ids[i]);
  g_ptr_array_add (self->turns, turn);
}

/* --- layout ------------------------------------------------------------- */

/* A layout in the making: what the placeholders of each kind stand for, in
 * prompt order. */
typedef struct
{
  QomniPrompt *prompt;
  GArray *audio, *image, *video;        /* QomniMediaRow: row 0 of each block */
  int64_t limit;                /* ids from here on are not certain; -1: none */
} Plan;

static void
plan_track (GArray * rows, const Track * t)
{
  for (guint i = 0; i < t->blocks->len; i++) {
    const QomniMediaRow first = {
      .block = g_ptr_array_index (t->blocks, i),
      .serial = g_array_index (t->serials, uint64_t, i),
    };

    g_array_append_val (rows, first);
  }
}

static QomniGrid
track_grid (const Track * t)
{
  const QomniEmbeddings *first = g_ptr_array_index (t->blocks, 0);
  QomniGrid grid = {
    .h = first->grid_h,
    .w = first->grid_w,
    .seconds_per_grid = first->seconds_per_grid,
  };

  for (guint i = 0; i < t->blocks->len; i++) {
    const QomniEmbeddings *block = g_ptr_array_index (t->blocks, i);

    grid.t += block->grid_t;
  }
  return grid;
}

/* How many ids of an open part are certain, from its first marker on. */
static int64_t
certain_ids (const QomniTimeline * self, const Part * p)
{
  const int64_t sound = p->sound.n_tokens;
  double until = INFINITY;
  int64_t slices, sounds;
  QomniGrid grid;

  if (p->kind == PART_AUDIO)
    return p->main.n_tokens > 0 ? 1 + p->main.n_tokens : 0;
  if (p->main.n_tokens == 0)
    return 0;                   /* sound, but is there a picture? */
  if (!self->use_audio_in_video)
    return 1 + p->main.n_tokens;
  if (sound == 0)
    return 0;                   /* pictures, but is there a sound? */

  /* In units of position ids. A slice or sound that is still missing can come
   * no earlier than the end of what is there. */
  grid = track_grid (&p->main);
  if (!p->main.complete)
    until = (double) grid.t * grid.seconds_per_grid
        * self->config->position_id_per_seconds;
  if (!p->sound.complete)
    until = MIN (until, (double) sound);
  for (slices = 0; slices < grid.t; slices++)
    if (!((double) slices * grid.seconds_per_grid
            * self->config->position_id_per_seconds < until))
      break;
  sounds = isinf (until) ? sound : MIN (sound, (int64_t) ceil (until));
  return 2 + slices * grid.h * grid.w + sounds;
}

static bool
part_is_complete (const QomniTimeline * self, const Part * p)
{
  switch (p->kind) {
    case PART_VIDEO:
      return p->main.complete && (!self->use_audio_in_video
          || p->sound.complete);
    case PART_AUDIO:
      return p->main.complete;
    default:
      return true;
  }
}

static bool
plan_part (const QomniTimeline * self, Plan * plan, const Part * p,
    bool is_open, GError ** error)
{
  QomniGrid grid;

  if (is_open && plan->limit < 0 && !part_is_complete (self, p)) {
    int64_t n;

    if (qomni_prompt_get (plan->prompt, &n, NULL, error) == NULL)
      return false;
    plan->limit = n + certain_ids (self, p);
  }

  switch (p->kind) {
    case PART_TEXT:
      return qomni_prompt_text (plan->prompt, p->text, error);
    case PART_AUDIO:
      if (p->main.n_tokens == 0)
        return true;
      plan_track (plan->audio, &p->main);
      return qomni_prompt_audio (plan->prompt, p->main.n_tokens, error);
    case PART_IMAGE:
      plan_track (plan->image, &p->main);
      grid = track_grid (&p->main);
      return qomni_prompt_image (plan->prompt, &grid, error);
    case PART_VIDEO:
      break;
  }

  plan_track (plan->audio, &p->sound);
  plan_track (plan->video, &p->main);
  if (p->main.n_tokens == 0)
    return p->sound.n_tokens == 0
        || qomni_prompt_audio (plan->prompt, p->sound.n_tokens, error);
  grid = track_grid (&p->main);
  return qomni_prompt_video (plan->prompt, &grid,
      p->sound.n_tokens > 0 ? p->sound.n_tokens : -1, error);
}

static bool
plan_turn (const QomniTimeline * self, Plan * plan, const Turn * turn,
    bool is_open, GError ** error)
{
  if (!qomni_prompt_open (plan->prompt, turn->role, error))
    return false;
  if (turn->ids != NULL && !qomni_prompt_ids (plan->prompt,
          (const int32_t *) turn->ids->data, turn->ids->len, error))
    return false;
  for (guint i = 0; i < turn->parts->len; i++)
    if (!plan_part (self, plan, g_ptr_array_index (turn->parts, i), is_open,
            error))
      return false;
  return is_open || qomni_prompt_close (plan->prompt, error);
}

/* Takes the next row of a kind: `at` counts blocks, `row` rows in that one. */
static bool
take_row (const GArray * rows, guint * at, int64_t * row, QomniMediaRow * ret)
{
  if (*at >= rows->len)
    return false;
  *ret = g_array_index (rows, QomniMediaRow, *at);
  ret->row = *row;
  if (++*row == ret->block->n_tokens) {
    ++*at;
    *row = 0;
  }
  return true;
}

static bool
place_media (const QomniTimeline * self, QomniLayout * l, const Plan * plan,
    GError ** error)
{
  const QomniConfig *c = self->config;
  struct
  {
    int32_t id;
    const GArray *rows;
    guint at;
    int64_t row;
  } kinds[] = {
    { c->audio_pad, plan->audio, 0, 0 },
    { c->image_pad, plan->image, 0, 0 },
    { c->video_pad, plan->video, 0, 0 },
  };

  for (int64_t i = 0; i < l->n; i++) {
    for (size_t k = 0; k < G_N_ELEMENTS (kinds); k++) {
      if (l->ids[i] != kinds[k].id)
        continue;
      if (!take_row (kinds[k].rows, &kinds[k].at, &kinds[k].row,
              &l->media[i]))
        return qomni_fail (error, QOMNI_ERROR_INPUT,
            "the prompt has more placeholders %d than embeddings for them",
            kinds[k].id);
      break;
    }
  }
  for (size_t k = 0; k < G_N_ELEMENTS (kinds); k++)
    if (kinds[k].at < kinds[k].rows->len)
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "the prompt has fewer placeholders %d than embeddings for them",
          kinds[k].id);
  return true;
}

/* A segment runs from its <|im_start|> to just before the next one. */
static void
find_heard (const QomniTimeline * self, QomniLayout * l)
{
  bool heard = false;

  l->n_heard = 0;
  for (int64_t i = 0; i < l->n; i++) {
    if (l->ids[i] == self->config->im_start)
      heard = i + 1 < l->n && l->ids[i + 1] == self->config->user_id;
    l->heard[i] = heard;
    l->n_heard += heard;
  }
}

/* The Talker never gets use_audio_in_video from the reference, so its
 * positions are found without it. All media stand in user segments. */
static bool
place_for_talker (const QomniTimeline * self, QomniLayout * l,
    const QomniMediaSizes * sizes, GError ** error)
{
  const int64_t n = l->n_heard + QOMNI_TALKER_OWN_ROWS;
  g_autofree int32_t *ids = g_try_new (int32_t, n);
  int64_t j = 0;

  l->talker_positions = g_try_new (float, 3 * n);
  if (ids == NULL || l->talker_positions == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for the positions of %" G_GINT64_FORMAT " rows", n);
  for (int64_t i = 0; i < l->n; i++)
    if (l->heard[i])
      ids[j++] = l->ids[i];
  while (j < n)
    ids[j++] = self->config->tts_pad;
  return qomni_positions (self->config, ids, n, sizes, false,
      l->talker_positions, &l->talker_delta, error);
}

static bool
fill_layout (QomniTimeline * self, QomniLayout * l, const Plan * plan,
    QomniLayoutKind kind, GError ** error)
{
  QomniMediaSizes sizes;
  const int32_t *ids = qomni_prompt_get (self->prompt, &l->n, &l->n_final,
      error);
  size_t n;

  if (ids == NULL)
    return false;
  n = (size_t) l->n;
  l->ids = g_try_new (int32_t, n);
  l->media = g_try_new0 (QomniMediaRow, n);
  l->heard = g_try_new0 (bool, n);
  l->positions = n > G_MAXSIZE / 3 ? NULL : g_try_new (float, 3 * n);
  if (n > 0 && (l->ids == NULL || l->media == NULL || l->heard == NULL
          || l->positions == NULL))
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for a prompt of %zu tokens", n);

  for (size_t i = 0; i < n; i++) {
    if (ids[i] < 0 || ids[i] >= self->config->text.vocab_size)
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "token %d of the prompt is not among the %" G_GINT64_FORMAT
          " of the model", ids[i], self->config->text.vocab_size);
    l->ids[i] = ids[i];
  }
  if (kind != QOMNI_LAYOUT_SO_FAR)
    l->n_final = l->n;
  else if (plan->limit >= 0)
    l->n_final = MIN (l->n_final, plan->limit);

  sizes = qomni_prompt_media (self->prompt);
  find_heard (self, l);
  return place_media (self, l, plan, error)
      && qomni_positions (self->config, l->ids, l->n, &sizes,
      self->use_audio_in_video, l->positions, &l->delta, error)
      && (kind != QOMNI_LAYOUT_SPOKEN || place_for_talker (self, l, &sizes,
          error));
}

QomniLayout *
qomni_timeline_layout (QomniTimeline * self, QomniLayoutKind kind,
    GError ** error)
{
  g_autoptr (QomniLayout) layout = g_new0 (QomniLayout, 1);
  g_autoptr (GArray) audio = g_array_new (FALSE, FALSE, sizeof (QomniMediaRow));
  g_autoptr (GArray) image = g_array_new (FALSE, FALSE, sizeof (QomniMediaRow));
  g_autoptr (GArray) video = g_array_new (FALSE, FALSE, sizeof (QomniMediaRow));
  Plan plan = { self->prompt, audio, image, video, -1 };

  qomni_prompt_clear (self->prompt);
  for (guint i = 0; i < self->turns->len; i++)
    if (!plan_turn (self, &plan, g_ptr_array_index (self->turns, i), false,
            error))
      return NULL;
  if (kind != QOMNI_LAYOUT_SO_FAR) {
    if (!qomni_prompt_open (self->prompt, QOMNI_ROLE_ASSISTANT, error))
      return NULL;
  } else if (self->open != NULL
      && !plan_turn (self, &plan, self->open, true, error)) {
    return NULL;
  }

  if (!fill_layout (self, layout, &plan, kind, error))
    return NULL;
  return g_steal_pointer (&layout);
}

void
qomni_layout_free (QomniLayout * self)
{
  if (self == NULL)
    return;
  g_free (self->ids);
  g_free (self->media);
  g_free (self->heard);
  g_free (self->positions);
  g_free (self->talker_positions);
  g_free (self);
}
