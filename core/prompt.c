/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniPrompt: turns, texts and media sizes -> one list of ids.
 *
 *   <|im_start|> role \n content … <|im_end|> \n
 *
 * The list has a final part and, behind it, the text since the last marker,
 * which stays text until a marker follows: its tokens depend on what is said
 * next. The header belongs to that text ("user\n" and "\nHello" make "\n\n" one
 * token). Media take as many placeholders as their encoders give rows.
 */

#include "prompt.h"

#include <string.h>

/* More than any context holds; keeps the sizes of a list small. */
#define MAX_IDS ((int64_t) 1 << 26)
/* A text and the header before it. */
#define MAX_RUN_BYTES (QOMNI_MAX_TEXT_BYTES + 64)

struct _QomniPrompt
{
  const QomniConfig *config;
  const QomniTokenizer *tokenizer;

  int32_t *ids;                 /* final ones, then those of `run` if shown */
  int64_t n_final, n_shown, room;
  bool shown;                   /* `run` has been tokenised behind the final */
  bool open;                    /* a turn is */
  char *run;                    /* text since the last marker */
  size_t run_length, run_room;

  GArray *images, *videos;      /* QomniGrid */
  GArray *audios;               /* int64_t */
};

QomniPrompt *
qomni_prompt_new (const QomniConfig * config, const QomniTokenizer * tokenizer)
{
  QomniPrompt *self = g_new0 (QomniPrompt, 1);

  self->config = config;
  self->tokenizer = tokenizer;
  self->images = g_array_new (FALSE, FALSE, sizeof (QomniGrid));
  self->videos = g_array_new (FALSE, FALSE, sizeof (QomniGrid));
  self->audios = g_array_new (FALSE, FALSE, sizeof (int64_t));
  return self;
}

void
qomni_prompt_free (QomniPrompt * self)
{
  if (self == NULL)
    return;
  g_free (self->ids);
  g_free (self->run);
  g_array_unref (self->images);
  g_array_unref (self->videos);
  g_array_unref (self->audios);
  g_free (self);
}

void
qomni_prompt_clear (QomniPrompt * self)
{
  self->n_final = 0;
  self->run_length = 0;
  self->shown = self->open = false;
  g_array_set_size (self->images, 0);
  g_array_set_size (self->videos, 0);
  g_array_set_size (self->audios, 0);
}

/* Room for `n` ids behind the first `used`. */
static bool
reserve (QomniPrompt * self, int64_t used, int64_t n, GError ** error)
{
  int64_t room = MAX (self->room, 256);
  int32_t *ids;

  if (n > MAX_IDS - used)
    return qomni_fail (error, QOMNI_ERROR_LIMIT, "%" G_GINT64_FORMAT
        " ids after %" G_GINT64_FORMAT " others, a prompt has at most %"
        G_GINT64_FORMAT, n, used, MAX_IDS);
  if (used + n <= self->room)
    return true;
  while (room < used + n)
    room *= 2;
  ids = g_try_renew (int32_t, self->ids, (size_t) room);
  if (ids == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for a prompt of %" G_GINT64_FORMAT " ids", used + n);
  self->ids = ids;
  self->room = room;
  return true;
}

/* Adds to the text since the last marker. */
static bool
add_text (QomniPrompt * self, const char *text, GError ** error)
{
  size_t n = strlen (text), room = MAX (self->run_room, 256);
  char *run;

  if (n > MAX_RUN_BYTES - self->run_length)
    return qomni_fail (error, QOMNI_ERROR_LIMIT,
        "a text of %zu bytes after %zu others, at most %zu", n,
        self->run_length, MAX_RUN_BYTES);
  while (room < self->run_length + n)
    room *= 2;
  if (room > self->run_room) {
    run = g_try_realloc (self->run, room);
    if (run == NULL)
      return qomni_fail (error, QOMNI_ERROR_MEMORY,
          "no memory for a text of %zu bytes", room);
    self->run = run;
    self->run_room = room;
  }
  memcpy (self->run + self->run_length, text, n);
  self->run_length += n;
  self->shown = false;
  return true;
}

/* Tokenises `run` behind the final ids, and makes room for `n_more`. */
static bool
show_run (QomniPrompt * self, int64_t n_more, GError ** error)
{
  if (!self->shown) {
    g_autofree int32_t *ids = NULL;
    size_t n;

    ids = qomni_tokenizer_encode (self->tokenizer,
        self->run != NULL ? self->run : "", (gssize) self->run_length,
        QOMNI_ENCODE_PLAIN, &n, error);
    if (ids == NULL || !reserve (self, self->n_final, (int64_t) n, error))
      return false;
    if (n > 0)
      memcpy (self->ids + self->n_final, ids, n * sizeof *ids);
    self->n_shown = self->n_final + (int64_t) n;
    self->shown = true;
  }
  return reserve (self, self->n_shown, n_more, error);
}

/* Makes the text so far final. show_run() came before. */
static void
end_run (QomniPrompt * self)
{
  self->n_final = self->n_shown;
  self->shown = false;
  self->run_length = 0;
}

/* One more final id, or `n` of them; the room is there. */
static void
put (QomniPrompt * self, int32_t id, int64_t n)
{
  while (n-- > 0)
    self->ids[self->n_final++] = id;
}

static bool
need_open (const QomniPrompt * self, const char *what, GError ** error)
{
  if (!self->open)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%s outside of a turn", what);
  return true;
}

/* The role's word, unless the tokenizer and the config disagree on its id. */
static const char *
role_word (const QomniPrompt * self, QomniRole role, GError ** error)
{
  const char *word = role == QOMNI_ROLE_SYSTEM ? "system"
      : role == QOMNI_ROLE_USER ? "user" : "assistant";
  int32_t wanted = role == QOMNI_ROLE_SYSTEM ? self->config->system_id
      : role == QOMNI_ROLE_USER ? self->config->user_id
      : self->config->assistant_id;
  g_autofree int32_t *ids = NULL;
  size_t n;

  ids = qomni_tokenizer_encode (self->tokenizer, word, -1, QOMNI_ENCODE_PLAIN,
      &n, error);
  if (ids == NULL)
    return NULL;
  if (wanted >= 0 && (n != 1 || ids[0] != wanted)) {
    qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "the tokenizer makes %zu ids of '%s', the first is %d; the config has "
        "%d", n, word, n > 0 ? ids[0] : -1, wanted);
    return NULL;
  }
  return word;
}

bool
qomni_prompt_open (QomniPrompt * self, QomniRole role, GError ** error)
{
  g_autofree char *header = NULL;
  const char *word;

  if (self->open)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a turn begins inside another one");
  word = role_word (self, role, error);
  if (word == NULL || !reserve (self, self->n_final, 1, error))
    return false;
  header = g_strconcat (word, "\n", NULL);
  if (!add_text (self, header, error))
    return false;
  put (self, self->config->im_start, 1);
  self->open = true;
  return true;
}

bool
qomni_prompt_text (QomniPrompt * self, const char *text, GError ** error)
{
  if (!need_open (self, "text", error))
    return false;
  if (!g_utf8_validate (text, -1, NULL))
    return qomni_fail (error, QOMNI_ERROR_INPUT, "the text is not UTF-8");
  return add_text (self, text, error);
}

bool
qomni_prompt_ids (QomniPrompt * self, const int32_t * ids, size_t n,
    GError ** error)
{
  if (!need_open (self, "ids", error)
      || !show_run (self, (int64_t) MIN (n, (size_t) INT64_MAX), error))
    return false;
  end_run (self);
  if (n > 0)
    memcpy (self->ids + self->n_final, ids, n * sizeof *ids);
  self->n_final += (int64_t) n;
  return true;
}

bool
qomni_prompt_audio (QomniPrompt * self, int64_t n_tokens, GError ** error)
{
  const QomniConfig *c = self->config;

  if (!need_open (self, "audio", error))
    return false;
  if (n_tokens < 1 || n_tokens > MAX_IDS)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "an audio clip of %"
        G_GINT64_FORMAT " tokens", n_tokens);
  if (!show_run (self, n_tokens + 2, error))
    return false;
  end_run (self);
  put (self, c->audio_start, 1);
  put (self, c->audio_pad, n_tokens);
  put (self, c->audio_end, 1);
  g_array_append_val (self->audios, n_tokens);
  return true;
}

static bool
grid_cells (const QomniGrid * grid, const char *kind, int64_t * ret,
    GError ** error)
{
  size_t cells;

  if (grid->t < 1 || grid->h < 1 || grid->w < 1
      || !qomni_size_mul3 ((size_t) grid->t, (size_t) grid->h,
          (size_t) grid->w, &cells) || cells > (size_t) MAX_IDS)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%s of %" G_GINT64_FORMAT
        " x %" G_GINT64_FORMAT " x %" G_GINT64_FORMAT " cells", kind, grid->t,
        grid->h, grid->w);
  *ret = (int64_t) cells;
  return true;
}

bool
qomni_prompt_image (QomniPrompt * self, const QomniGrid * grid,
    GError ** error)
{
  const QomniConfig *c = self->config;
  int64_t n;

  if (!need_open (self, "an image", error)
      || !grid_cells (grid, "an image", &n, error)
      || !show_run (self, n + 2, error))
    return false;
  end_run (self);
  put (self, c->vision_start, 1);
  put (self, c->image_pad, n);
  put (self, c->vision_end, 1);
  g_array_append_vals (self->images, grid, 1);
  return true;
}

bool
qomni_prompt_video (QomniPrompt * self, const QomniGrid * grid,
    int64_t n_audio, GError ** error)
{
  const QomniConfig *c = self->config;
  int64_t n;

  if (!need_open (self, "a video", error)
      || !grid_cells (grid, "a video", &n, error))
    return false;
  if (n_audio > MAX_IDS)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a video with %" G_GINT64_FORMAT " audio tokens", n_audio);
  n_audio = MAX (n_audio, 0);
  if (!show_run (self, n + n_audio + 4, error))
    return false;
  end_run (self);

  put (self, c->vision_start, 1);
  if (n_audio > 0) {
    put (self, c->audio_start, 1);
    qomni_merge_audio_video (c, grid, n_audio, self->ids + self->n_final);
    self->n_final += n + n_audio;
    put (self, c->audio_end, 1);
    g_array_append_val (self->audios, n_audio);
  } else {
    put (self, c->video_pad, n);
  }
  put (self, c->vision_end, 1);
  g_array_append_vals (self->videos, grid, 1);
  return true;
}

bool
qomni_prompt_close (QomniPrompt * self, GError ** error)
{
  g_autofree int32_t *newline = NULL;
  size_t n;

  if (!need_open (self, "the end of a turn", error))
    return false;
  /* A marker follows the newline for certain, so it is a run of its own. */
  newline = qomni_tokenizer_encode (self->tokenizer, "\n", 1,
      QOMNI_ENCODE_PLAIN, &n, error);
  if (newline == NULL || !show_run (self, 1 + (int64_t) n, error))
    return false;
  end_run (self);
  put (self, self->config->im_end, 1);
  for (size_t i = 0; i < n; i++)
    put (self, newline[i], 1);
  self->open = false;
  return true;
}

const int32_t *
qomni_prompt_get (QomniPrompt * self, int64_t * ret_n, int64_t * ret_n_final,
    GError ** error)
{
  /* One id more than needed, so that an empty prompt is not NULL. */
  if (!show_run (self, 1, error))
    return NULL;
  *ret_n = self->n_shown;
  if (ret_n_final != NULL)
    *ret_n_final = self->n_final;
  return self->ids;
}

QomniMediaSizes
qomni_prompt_media (QomniPrompt * self)
{
  QomniMediaSizes ret = {
    .images = (const QomniGrid *) (void *) self->images->data,
    .videos = (const QomniGrid *) (void *) self->videos->data,
    .audios = (const int64_t *) (void *) self->audios->data,
    .n_images = self->images->len,
    .n_videos = self->videos->len,
    .n_audios = self->audios->len,
  };

  return ret;
}
