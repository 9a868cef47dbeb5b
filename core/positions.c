/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * TM-RoPE: ids + sizes of the media in them -> positions [3, n] (time, row,
 * column) -> rotation table.
 *
 * Text advances all three axes together. An image or video spreads its cells
 * over rows and columns and stands in time at 13 positions a second, its sound
 * runs along beside it, and text goes on after the largest position used.
 *
 * Two passes. The first, read_clips(), finds the clips and compares each with
 * the size that came for it, so the second has nothing left to check. The
 * second, place(), is get_rope_index() of the reference with its counters; they
 * matter when sound merged into a video is placed without the flag, as for the
 * Talker's ids. All position arithmetic is in float32, one rounding for each
 * of the reference's, because a clip at 12 frames per second has positions
 * between the integers and a rounding decides the order of cell and sound.
 */

#include "positions.h"

#include <math.h>

/* Far above any real frame rate's, far below where float32 overflows. */
#define MAX_SECONDS_PER_GRID 1e6

typedef enum
{
  CLIP_AUDIO,
  CLIP_IMAGE,
  CLIP_VIDEO,
  CLIP_AUDIO_VIDEO,             /* a video with its sound merged into it */
} ClipKind;

typedef struct
{
  ClipKind kind;
  int64_t start;                /* index of the first begin marker */
  int64_t n_cells, n_audio;
  const QomniGrid *grid;        /* NULL for audio */
} Clip;

typedef struct
{
  const QomniConfig *config;
  const int32_t *ids;
  int64_t n;
  Clip *clips;
  size_t n_clips;
} Layout;

static bool
grid_cells (const QomniGrid * grid, int64_t * ret)
{
  size_t cells;

  if (grid->t < 1 || grid->h < 1 || grid->w < 1
      || !qomni_size_mul3 ((size_t) grid->t, (size_t) grid->h,
          (size_t) grid->w, &cells) || cells > INT32_MAX)
    return false;
  *ret = (int64_t) cells;
  return true;
}

/* No id of a model, given or missing, is INT32_MIN. */
static int32_t
id_at (const Layout * l, int64_t i)
{
  return i < l->n ? l->ids[i] : INT32_MIN;
}

/* What begins at `i`. A marker with no placeholder after it (a reply may
 * contain one) is text. */
static bool
clip_begins (const Layout * l, int64_t i, ClipKind * ret)
{
  const QomniConfig *c = l->config;
  int32_t next = id_at (l, i + 1);

  if (l->ids[i] == c->audio_start) {
    *ret = CLIP_AUDIO;
    return next == c->audio_pad;
  }
  if (l->ids[i] != c->vision_start)
    return false;
  if (next == c->image_pad) {
    *ret = CLIP_IMAGE;
    return true;
  }
  if (next == c->video_pad) {
    *ret = CLIP_VIDEO;
    return true;
  }
  *ret = CLIP_AUDIO_VIDEO;
  return next == c->audio_start && (id_at (l, i + 2) == c->video_pad
      || id_at (l, i + 2) == c->audio_pad);
}

static bool
take_grid (const QomniGrid * grids, size_t n_grids, size_t * k,
    const char *kind, Clip * clip, GError ** error)
{
  const QomniGrid *g;

  if (*k == n_grids)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the prompt has a place for %s %zu, but %zu came", kind, *k + 1,
        n_grids);
  g = &grids[*k];
  if (!grid_cells (g, &clip->n_cells))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%s %zu has a grid of %" G_GINT64_FORMAT " x %" G_GINT64_FORMAT " x %"
        G_GINT64_FORMAT " cells", kind, *k + 1, g->t, g->h, g->w);
  clip->grid = g;
  (*k)++;
  return true;
}

static bool
take_audio (const QomniMediaSizes * media, size_t * k, Clip * clip,
    GError ** error)
{
  if (*k == media->n_audios)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the prompt has a place for audio clip %zu, but %zu came", *k + 1,
        media->n_audios);
  clip->n_audio = media->audios[*k];
  if (clip->n_audio < 1 || clip->n_audio > INT32_MAX)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "audio clip %zu has %" G_GINT64_FORMAT " tokens", *k + 1,
        clip->n_audio);
  (*k)++;
  return true;
}

static int
n_markers (const Clip * clip)
{
  return clip->kind == CLIP_AUDIO_VIDEO ? 2 : 1;
}

/* Index after the last end marker. */
static int64_t
clip_end (const Clip * clip)
{
  return clip->start + 2 * n_markers (clip) + clip->n_cells + clip->n_audio;
}

/* Whether the ids between the markers are the clip's placeholders, and its end
 * markers follow. */
static bool
clip_is_whole (const Layout * l, const Clip * clip, GError ** error)
{
  const QomniConfig *c = l->config;
  int64_t first = clip->start + n_markers (clip), end = clip_end (clip);
  int64_t n_audio = 0, n_cells = 0, i;
  int32_t cell = clip->kind == CLIP_IMAGE ? c->image_pad : c->video_pad;
  bool closed;

  if (end > l->n)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the clip at id %" G_GINT64_FORMAT " needs %" G_GINT64_FORMAT
        " ids, but %" G_GINT64_FORMAT " are left", clip->start,
        end - clip->start, l->n - clip->start);
  for (i = first; i < end - n_markers (clip); i++) {
    n_audio += l->ids[i] == c->audio_pad;
    n_cells += l->ids[i] == cell;
  }
  if (clip->kind == CLIP_AUDIO)
    closed = l->ids[end - 1] == c->audio_end;
  else if (clip->kind == CLIP_AUDIO_VIDEO)
    closed = l->ids[end - 2] == c->audio_end
        && l->ids[end - 1] == c->vision_end;
  else
    closed = l->ids[end - 1] == c->vision_end;
  if (!closed || n_audio != clip->n_audio || n_cells != clip->n_cells)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the clip at id %" G_GINT64_FORMAT " should have %" G_GINT64_FORMAT
        " cells and %" G_GINT64_FORMAT " audio tokens, but its placeholders "
        "differ", clip->start, clip->n_cells, clip->n_audio);
  return true;
}

/* Finds the clips; `l->clips` has room for as many as there are media. */
static bool
read_clips (Layout * l, const QomniMediaSizes * media, GError ** error)
{
  size_t n_images = 0, n_videos = 0, n_audios = 0;
  int64_t i = 0;

  while (i < l->n) {
    Clip clip = { 0, };

    if (!clip_begins (l, i, &clip.kind)) {
      i++;
      continue;
    }
    clip.start = i;
    if (clip.kind == CLIP_IMAGE) {
      if (!take_grid (media->images, media->n_images, &n_images, "image",
              &clip, error))
        return false;
    } else if (clip.kind != CLIP_AUDIO) {
      if (!take_grid (media->videos, media->n_videos, &n_videos, "video",
              &clip, error))
        return false;
      if (!(clip.grid->seconds_per_grid >= 0
              && clip.grid->seconds_per_grid <= MAX_SECONDS_PER_GRID))
        return qomni_fail (error, QOMNI_ERROR_INPUT,
            "video %zu has %g seconds per slice", n_videos,
            clip.grid->seconds_per_grid);
    }
    if (clip.kind == CLIP_AUDIO || clip.kind == CLIP_AUDIO_VIDEO) {
      if (!take_audio (media, &n_audios, &clip, error))
        return false;
    }
    if (!clip_is_whole (l, &clip, error))
      return false;
    l->clips[l->n_clips++] = clip;
    i = clip_end (&clip);
  }

  if (n_images != media->n_images || n_videos != media->n_videos
      || n_audios != media->n_audios)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "the prompt has places for %zu images, %zu videos and %zu audio clips,"
        " but %zu, %zu and %zu came", n_images, n_videos, n_audios,
        media->n_images, media->n_videos, media->n_audios);
  return true;
}

/* Where positions are appended. */
typedef struct
{
  float *axis[3];               /* t, h, w */
  int64_t n;                    /* appended so far */
  float next;                   /* where text goes on */
} Cursor;

static void
append (Cursor * c, float t, float h, float w)
{
  c->axis[0][c->n] = t;
  c->axis[1][c->n] = h;
  c->axis[2][c->n] = w;
  c->n++;
}

/* `count` positions on all axes, from c->next on. */
static void
append_run (Cursor * c, int64_t count)
{
  for (int64_t k = 0; k < count; k++) {
    float p = (float) k + c->next;

    append (c, p, p, p);
  }
  c->next += (float) count;
}

static void
append_cell (Cursor * c, float start, float time, int64_t row, int64_t column)
{
  append (c, time + start, (float) row + start, (float) column + start);
}

static float
largest (const Cursor * c, int64_t first, int64_t end)
{
  float max = -INFINITY;

  for (int axis = 0; axis < 3; axis++)
    for (int64_t i = first; i < end; i++)
      max = fmaxf (max, c->axis[axis][i]);
  return max;
}

static float
slice_time (const QomniConfig * config, const Clip * clip, int64_t slice)
{
  float seconds = clip->kind == CLIP_IMAGE ? 1.0f :
      (float) clip->grid->seconds_per_grid;

  /* Two roundings, as in the reference. */
  float t = (float) slice * seconds;

  return t * (float) config->position_id_per_seconds;
}

/* Cells `first` … of a clip that is based at `start`. */
static void
append_cells (Cursor * c, const QomniConfig * config, const Clip * clip,
    float start, int64_t first)
{
  int64_t w = clip->grid->w, slice_cells = clip->grid->h * w;

  for (int64_t i = first; i < clip->n_cells; i++)
    append_cell (c, start, slice_time (config, clip, i / slice_cells),
        i % slice_cells / w, i % w);
}

/* Body of a video with its sound; leaves c->next after the segment that the
 * reference appends last, which is what is left of the longer list. */
static void
append_audio_video (Cursor * c, const QomniConfig * config, const Clip * clip)
{
  float start = c->next;
  int64_t w = clip->grid->w, slice_cells = clip->grid->h * w;
  int64_t i = 0, j = 0, last;

  while (i < clip->n_cells && j < clip->n_audio) {
    float t = slice_time (config, clip, i / slice_cells);
    float a = (float) j + start;

    if (t + start <= a) {
      append_cell (c, start, t, i % slice_cells / w, i % w);
      i++;
    } else {
      append (c, a, a, a);
      j++;
    }
  }
  last = c->n;
  append_cells (c, config, clip, start, i);
  for (; j < clip->n_audio; j++) {
    float a = (float) j + start;

    append (c, a, a, a);
  }
  c->next = largest (c, last, c->n) + 1;
}

/* After a body or its end markers the reference counts on from the last
 * position, after text from the first; the roundings differ. */
static void
append_run_and_recount (Cursor * c, int64_t count)
{
  append_run (c, count);
  c->next = c->axis[0][c->n - 1] + 1;
}

static void
append_vision (Cursor * c, const QomniConfig * config, const Clip * clip)
{
  int64_t first = c->n;

  append_cells (c, config, clip, c->next, 0);
  c->next = largest (c, first, c->n) + 1;
}

static bool
has_sound (const Clip * clip)
{
  return clip->kind == CLIP_AUDIO || clip->kind == CLIP_AUDIO_VIDEO;
}

static int64_t
audio_start (const Clip * clip)
{
  return clip->start + (clip->kind == CLIP_AUDIO_VIDEO ? 1 : 0);
}

/* The reference's loop over the media, with its three counters.
 *
 * Without the flag a video with merged sound is not counted as a video. It is
 * placed as one all the same while another image or video is still due (and
 * then counted off, so a counter may go below zero); otherwise its sound alone
 * is, and its cells become text. With the flag and a silent video the reference
 * does one round too few; here that video is counted. */
static void
place (const Layout * l, bool use_audio_in_video, Cursor * c)
{
  int64_t images = 0, videos = 0, audios = 0;   /* still due */
  int64_t rounds, st = 0;
  size_t v = 0, a = 0;          /* next clips with cells and with sound */

  for (size_t k = 0; k < l->n_clips; k++) {
    const Clip *clip = &l->clips[k];

    images += clip->kind == CLIP_IMAGE;
    videos += clip->kind == CLIP_VIDEO
        || (clip->kind == CLIP_AUDIO_VIDEO && use_audio_in_video);
    audios += has_sound (clip);
  }
  rounds = use_audio_in_video ? (int64_t) l->n_clips : images + videos + audios;

  for (; rounds > 0; rounds--) {
    int64_t pv = INT64_MAX, pa = INT64_MAX, p;
    const Clip *clip;

    while (v < l->n_clips && (l->clips[v].kind == CLIP_AUDIO
            || l->clips[v].start < st))
      v++;
    while (a < l->n_clips && (!has_sound (&l->clips[a])
            || audio_start (&l->clips[a]) < st))
      a++;
    if ((images > 0 || videos > 0) && v < l->n_clips)
      pv = l->clips[v].start;
    if (audios > 0 && a < l->n_clips)
      pa = audio_start (&l->clips[a]);
    p = MIN (pv, pa);
    if (p == INT64_MAX)
      break;                    /* what is left is text */

    append_run (c, p - st);
    if (p == pa) {
      clip = &l->clips[a];
      append_run (c, 1);
      append_run_and_recount (c, clip->n_audio);
      append_run_and_recount (c, 1);
      st = p + clip->n_audio + 2;
      audios--;
      continue;
    }

    clip = &l->clips[v];
    append_run (c, n_markers (clip));
    if (clip->kind == CLIP_AUDIO_VIDEO) {
      append_audio_video (c, l->config, clip);
      videos--;
      audios--;
    } else {
      append_vision (c, l->config, clip);
      if (clip->kind == CLIP_IMAGE)
        images--;
      else
        videos--;
    }
    append_run_and_recount (c, n_markers (clip));
    st = clip_end (clip);
  }
  append_run (c, l->n - st);
}

bool
qomni_positions (const QomniConfig * config, const int32_t * ids, int64_t n,
    const QomniMediaSizes * media, bool use_audio_in_video, float *ret,
    float *ret_delta, GError ** error)
{
  Layout l = { config, ids, n, NULL, 0 };
  Cursor c = { {ret, ret + n, ret + 2 * n}, 0, 0 };
  g_autofree Clip *clips = NULL;
  size_t most, bytes;

  if (!qomni_size_add (media->n_images, media->n_videos, &most)
      || !qomni_size_add (most, media->n_audios, &most)
      || !qomni_size_mul (most, sizeof *clips, &bytes))
    return qomni_fail (error, QOMNI_ERROR_LIMIT, "too many clips");
  clips = g_try_malloc (MAX (bytes, 1));
  if (clips == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "%zu bytes for %zu clips",
        bytes, most);
  l.clips = clips;
  if (!read_clips (&l, media, error))
    return false;

  if (media->n_images == 0 && media->n_videos == 0)
    append_run (&c, n);
  else
    place (&l, use_audio_in_video, &c);
  *ret_delta = n == 0 ? 0 : largest (&c, 0, n) + 1 - (float) n;
  return true;
}

void
qomni_rope_table (const QomniDecoderConfig * config, const float *positions,
    int64_t stride, int64_t n, float *ret)
{
  int half = config->head_dim / 2;
  const int *section = config->mrope_section;
  bool interleaved = section[0] + section[1] + section[2] > 0;

  for (int i = 0; i < half; i++) {
    /* The exponent, the power and its inverse are float32 in the reference. */
    float exponent = (float) (2 * i) / (float) config->head_dim;
    float power = (float) pow (config->rope_theta, exponent);
    float frequency = 1.0f / power;
    const float *p = positions;

    if (interleaved && i % 3 == 1 && i < 3 * section[1])
      p += stride;
    else if (interleaved && i % 3 == 2 && i < 3 * section[2])
      p += 2 * stride;

    for (int64_t k = 0; k < n; k++) {
      float angle = p[k] * frequency;

      ret[k * 2 * half + i] = cosf (angle);
      ret[k * 2 * half + half + i] = sinf (angle);
    }
  }
}

void
qomni_merge_audio_video (const QomniConfig * config, const QomniGrid * video,
    int64_t n_audio, int32_t * ret)
{
  int64_t slice_cells = video->h * video->w;
  int64_t n_video = video->t * slice_cells;
  int64_t i = 0, j = 0;

  /* In double, unlike the positions: at exact ties the two may disagree, and
   * the reference has it so. */
  while (i < n_video || j < n_audio) {
    double time = (double) (i / slice_cells) * video->seconds_per_grid
        * config->position_id_per_seconds;

    if (i < n_video && (j == n_audio || time <= (double) j)) {
      *ret++ = config->video_pad;
      i++;
    } else {
      *ret++ = config->audio_pad;
      j++;
    }
  }
}
