/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * vision-encoder: frames -> embeddings.
 *
 *   two frames [h, w, 3] -> patches of 16 x 16, each a row of 3*2*16*16 values
 *     -> linear + position table, interpolated to the grid -> [patches, width]
 *     -> transformer, rotary by row and column -> 2 x 2 patches merged
 *     -> [tokens, output_dim], and the same from some inner layers (DeepStack)
 *
 * Patches stand in the order of the tokens they will be merged into: all the
 * patches of a token, row by row, then the next token of the line. The slices
 * of a video do not see each other, so they are computed one by one, with the
 * buffers of the first for all of them.
 *
 * Rows are independent wherever patches do not look at each other, so they are
 * computed a part at a time: the wide intermediate values (pixels, FFN) exist
 * for a part only, and the work can be cancelled between parts.
 */
#include "vision-encoder.h"

#include <math.h>
#include <string.h>

#include "probe.h"
#include "workspace.h"

#define NORM_EPS 1e-6f          /* of all norms; not in the config */
#define ROPE_THETA 10000.0      /* not in the config */
#define ROWS_AT_ONCE 512        /* patches, about */

typedef struct
{
  QkTensor weight;              /* [m, k] */
  float *bias;                  /* [m] */
} Linear;

typedef struct
{
  float *weight, *bias;
} Norm;

typedef struct
{
  Norm attention_norm;          /* [width] */
  Linear qkv;                   /* [3 * width, width] */
  Linear out;                   /* [width, width] */
  Norm ffn_norm;                /* [width] */
  Linear up;                    /* [ffn, width] */
  Linear down;                  /* [width, ffn] */
} Layer;

/* Patches of a token side by side: a row of `merged` = merge_size^2 * width. */
typedef struct
{
  Norm norm;                    /* [width]; of DeepStack [merged] */
  Linear fc1;                   /* [merged, merged] */
  Linear fc2;                   /* [output_dim, merged] */
} Merger;

struct _QomniVisionTower
{
  Linear patch_embed;           /* [width, 3, frames, patch, patch] */
  float *positions;             /* host: [side, side, width] */
  Layer *layers;
  Merger merger;
  Merger *deepstack;            /* [n_deepstack] */
};

/* Frames of the clip's size, RGB. */
typedef struct
{
  uint64_t clip;
  QomniModality modality;
  int64_t index;                /* of the slice in its clip */
  int64_t height, width;
  double seconds;
  bool last;
  int n_frames;                 /* temporal_patch_size when complete */
  uint8_t data[];               /* [n_frames, height, width, 3] */
} Slice;

typedef struct
{
  int64_t min, max;
} Bounds;

struct _QomniVisionEncoder
{
  QomniModel *model;
  const QomniVisionConfig *config;
  const QomniVisionTower *tower;
  QomniProbe *probe;
  Bounds image_pixels, video_pixels;
  float levels[3][256];         /* what an 8-bit value is to the network */

  uint64_t clip;
  bool open;
  QomniModality modality;
  double seconds_per_grid;
  int64_t height, width;        /* of the open clip; 0 before its first frame */
  int64_t n_slices;             /* begun in the open clip */
  GQueue slices;                /* of Slice, the last one may be incomplete */

  QkBackend *backend;
  QkStream *stream;
  int64_t patch_width;          /* 3 * frames * patch * patch */
  int64_t merged_width;         /* merge_size^2 * width */

  /* For a grid of h x w patches; 0 x 0 before the first slice. */
  int64_t grid_h, grid_w;
  int64_t rows_at_once;         /* a multiple of merge_size^2 */
  float *patches;               /* host: [rows_at_once, patch_width] */
  float *merged;                /* host: [tokens, output_dim] */
  float *rows;                  /* host: [rows_at_once, width] */

  /* In backend memory; rows: patches of a slice. */
  QomniWorkspace work;
  float *pixels;                /* [rows_at_once, patch_width] */
  float *rope;                  /* [rows, 2, head_dim / 2] */
  float *x, *xn;                /* [rows, width] */
  float *q, *k, *v;             /* [rows, width] */
  float *ffn;                   /* [rows_at_once, ffn] */
  float *y;                     /* [tokens, output_dim] */
};

/* --- weights -------------------------------------------------------------- */

static void
claim_linear (QomniWeights * w, Linear * l, int64_t m, int64_t k,
    const char *prefix, const char *name)
{
  qomni_weights_matrix (w, &l->weight, 2, (int64_t[]) { m, k },
      "%s%s.weight", prefix, name);
  qomni_weights_vector (w, &l->bias, m, "%s%s.bias", prefix, name);
}

static void
claim_norm (QomniWeights * w, Norm * norm, int64_t width, const char *prefix,
    const char *name)
{
  qomni_weights_vector (w, &norm->weight, width, "%s%s.weight", prefix, name);
  qomni_weights_vector (w, &norm->bias, width, "%s%s.bias", prefix, name);
}

static int64_t
merge_area (const QomniVisionConfig * c)
{
  return (int64_t) c->merge_size * c->merge_size;
}

static void
claim_merger (QomniWeights * w, Merger * m, const QomniVisionConfig * c,
    int64_t norm_width, const char *prefix)
{
  const int64_t merged = merge_area (c) * c->width;

  claim_norm (w, &m->norm, norm_width, prefix, "ln_q");
  claim_linear (w, &m->fc1, merged, merged, prefix, "mlp.0");
  claim_linear (w, &m->fc2, c->output_dim, merged, prefix, "mlp.2");
}

static void
claim_layer (QomniWeights * w, Layer * l, const QomniVisionConfig * c,
    const char *prefix)
{
  const int64_t width = c->width;

  claim_norm (w, &l->attention_norm, width, prefix, "norm1");
  claim_linear (w, &l->qkv, 3 * width, width, prefix, "attn.qkv");
  claim_linear (w, &l->out, width, width, prefix, "attn.proj");
  claim_norm (w, &l->ffn_norm, width, prefix, "norm2");
  claim_linear (w, &l->up, c->ffn, width, prefix, "mlp.linear_fc1");
  claim_linear (w, &l->down, width, c->ffn, prefix, "mlp.linear_fc2");
}

QomniVisionTower *
qomni_vision_tower_claim (const QomniConfig * config, QomniWeights * w)
{
  const QomniVisionConfig *c = &config->vision;
  QomniVisionTower *self = g_new0 (QomniVisionTower, 1);
  g_autofree char *prefix = g_strconcat (config->thinker_prefix, "visual.",
      NULL);
  g_autofree char *merger_prefix = g_strconcat (prefix, "merger.", NULL);
  const int64_t side = c->position_side;

  qomni_weights_matrix (w, &self->patch_embed.weight, 5,
      (int64_t[]) { c->width, c->in_channels, c->temporal_patch_size,
        c->patch_size, c->patch_size}, "%spatch_embed.proj.weight", prefix);
  qomni_weights_vector (w, &self->patch_embed.bias, c->width,
      "%spatch_embed.proj.bias", prefix);
  qomni_weights_host (w, &self->positions, 2,
      (int64_t[]) { side * side, c->width }, "%spos_embed.weight", prefix);
  self->layers = g_new0 (Layer, c->depth);
  for (int i = 0; i < c->depth; i++) {
    g_autofree char *layer_prefix = g_strdup_printf ("%sblocks.%d.", prefix, i);

    claim_layer (w, &self->layers[i], c, layer_prefix);
  }
  claim_merger (w, &self->merger, c, c->width, merger_prefix);
  self->deepstack = g_new0 (Merger, c->n_deepstack);
  for (int i = 0; i < c->n_deepstack; i++) {
    g_autofree char *list_prefix = g_strdup_printf ("%smerger_list.%d.",
        prefix, i);

    claim_merger (w, &self->deepstack[i], c, merge_area (c) * c->width,
        list_prefix);
  }
  return self;
}

void
qomni_vision_tower_free (QomniVisionTower * self)
{
  if (self == NULL)
    return;
  g_free (self->layers);
  g_free (self->deepstack);
  g_free (self);
}

/* --- making an encoder ---------------------------------------------------- */

/* Bounds of the area of a picture: what the caller wants, else what the
 * checkpoint says; that gives way when the caller's one bound is beyond it. */
static bool
choose_bounds (Bounds * ret, int64_t low, int64_t high,
    const QomniVisionEncoderParams * params, GError ** error)
{
  if (params->min_pixels < 0 || params->max_pixels < 0)
    return qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "%" G_GINT64_FORMAT " to %" G_GINT64_FORMAT " pixels: the bounds of "
        "pictures may not be negative", params->min_pixels, params->max_pixels);
  if (params->min_pixels > 0 && params->max_pixels > 0
      && params->min_pixels > params->max_pixels)
    return qomni_fail (error, QOMNI_ERROR_SETTINGS,
        "pictures of at least %" G_GINT64_FORMAT " and at most %"
        G_GINT64_FORMAT " pixels", params->min_pixels, params->max_pixels);

  ret->min = params->min_pixels > 0 ? params->min_pixels : low;
  ret->max = params->max_pixels > 0 ? params->max_pixels : high;
  if (params->min_pixels > 0)
    ret->max = MAX (ret->min, ret->max);
  else
    ret->min = MIN (ret->min, ret->max);
  return true;
}

QomniVisionEncoder *
qomni_vision_encoder_new (QomniModel * model,
    const QomniVisionEncoderParams * params, GCancellable * cancellable,
    GError ** error)
{
  static const QomniVisionEncoderParams defaults = { 0 };
  g_autoptr (QomniVisionEncoder) self = NULL;
  const QomniPreprocessorConfig *p;
  const QomniVisionConfig *c;

  if (params == NULL)
    params = &defaults;
  if (!qomni_model_load (model, QOMNI_COMPONENT_VISION, NULL, NULL,
          cancellable, error))
    return NULL;
  self = g_new0 (QomniVisionEncoder, 1);
  self->model = qomni_model_ref (model);
  self->config = c = &qomni_model_config (model)->vision;
  self->tower = qomni_model_vision (model);
  if (params->probe != NULL)
    self->probe = qomni_probe_ref (params->probe);
  g_queue_init (&self->slices);
  if (c->in_channels != 3) {
    qomni_fail (error, QOMNI_ERROR_UNSUPPORTED,
        "the vision encoder takes pictures of %d channels, only 3 are known",
        c->in_channels);
    return NULL;
  }
  p = &qomni_model_config (model)->preprocessor;
  if (!choose_bounds (&self->image_pixels, p->image_min_pixels,
          p->image_max_pixels, params, error)
      || !choose_bounds (&self->video_pixels, p->video_min_pixels,
          p->video_max_pixels, params, error))
    return NULL;
  self->patch_width = (int64_t) c->in_channels * c->temporal_patch_size
      * c->patch_size * c->patch_size;
  self->merged_width = merge_area (c) * c->width;

  /* (v / 255 - mean) / std, in the reference's order of operations. */
  for (int channel = 0; channel < 3; channel++) {
    float mean = p->image_mean[channel] * 255;
    float std = p->image_std[channel] * 255;

    for (int v = 0; v < 256; v++)
      self->levels[channel][v] = ((float) v - mean) / std;
  }

  self->backend = qomni_model_backend (model);
  self->stream = self->backend->stream_new (self->backend);
  if (self->stream == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for a stream of work");
    return NULL;
  }
  return g_steal_pointer (&self);
}

static void
free_buffers (QomniVisionEncoder * self)
{
  qomni_workspace_clear (&self->work);
  g_clear_pointer (&self->patches, g_free);
  g_clear_pointer (&self->rows, g_free);
  g_clear_pointer (&self->merged, g_free);
  self->grid_h = self->grid_w = 0;
}

void
qomni_vision_encoder_free (QomniVisionEncoder * self)
{
  if (self == NULL)
    return;
  g_queue_clear_full (&self->slices, g_free);
  free_buffers (self);
  if (self->stream != NULL)
    self->backend->stream_free (self->stream);
  qomni_probe_unref (self->probe);
  qomni_model_unref (self->model);
  g_free (self);
}

/* --- frames to slices ----------------------------------------------------- */

bool
qomni_vision_encoder_begin (QomniVisionEncoder * self, QomniModality modality,
    double seconds_per_grid, GError ** error)
{
  if (self->open)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a clip began before the one before it was flushed");
  if (modality != QOMNI_MODALITY_IMAGE && modality != QOMNI_MODALITY_VIDEO)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a clip of pictures is an image or a video");
  if (modality == QOMNI_MODALITY_VIDEO
      && !(seconds_per_grid > 0 && isfinite (seconds_per_grid)))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a video whose slices last %g s: wanted more than 0", seconds_per_grid);
  self->open = true;
  self->modality = modality;
  self->seconds_per_grid = seconds_per_grid;
  self->height = self->width = 0;
  self->n_slices = 0;
  return true;
}

static bool
check_frame (const QomniImage * f, GError ** error)
{
  if (f->n_channels != 1 && f->n_channels != 3 && f->n_channels != 4)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a picture of %d channels: wanted 1, 3 or 4", f->n_channels);
  if (f->width < 1 || f->height < 1 || f->width > QOMNI_MAX_IMAGE_SIDE
      || f->height > QOMNI_MAX_IMAGE_SIDE)
    return qomni_fail (error, QOMNI_ERROR_LIMIT,
        "a picture of %dx%d pixels: sides may be 1 to %d", f->width, f->height,
        QOMNI_MAX_IMAGE_SIDE);
  if (f->data == NULL
      || f->stride < (size_t) f->width * (size_t) f->n_channels)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a picture of %dx%d pixels with %d channels and rows of only %zu bytes",
        f->width, f->height, f->n_channels, f->data == NULL ? 0 : f->stride);
  return true;
}

static Slice *
slice_new (const QomniVisionEncoder * self, int64_t height, int64_t width,
    GError ** error)
{
  size_t bytes;
  Slice *s = NULL;

  if (qomni_size_mul3 ((size_t) height, (size_t) width,
          3 * (size_t) self->config->temporal_patch_size, &bytes)
      && qomni_size_add (bytes, sizeof (Slice), &bytes))
    s = g_try_malloc (bytes);
  if (s == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for frames of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT,
        width, height);
    return NULL;
  }
  s->clip = self->clip;
  s->modality = self->modality;
  s->index = self->n_slices;
  s->height = height;
  s->width = width;
  s->seconds = self->seconds_per_grid;
  s->last = false;
  s->n_frames = 0;
  return s;
}

static uint8_t *
slice_frame (Slice * s, int i)
{
  return s->data + (size_t) i * (size_t) s->height * (size_t) s->width * 3;
}

/* Repeats the last frame until the slice is complete. */
static void
complete (const QomniVisionEncoder * self, Slice * s)
{
  while (s->n_frames < self->config->temporal_patch_size) {
    memcpy (slice_frame (s, s->n_frames), slice_frame (s, s->n_frames - 1),
        (size_t) s->height * (size_t) s->width * 3);
    s->n_frames++;
  }
}

/* The slice that waits for a frame, or NULL. */
static Slice *
incomplete_slice (QomniVisionEncoder * self)
{
  Slice *s = g_queue_peek_tail (&self->slices);

  return s != NULL && s->n_frames < self->config->temporal_patch_size ? s
      : NULL;
}

bool
qomni_vision_encoder_push (QomniVisionEncoder * self,
    const QomniImage * frame, GError ** error)
{
  const QomniVisionConfig *c = self->config;
  bool image = self->modality == QOMNI_MODALITY_IMAGE;
  int64_t height = self->height, width = self->width;
  g_autofree Slice *new_slice = NULL;
  Slice *s;

  if (!self->open)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "a frame outside a clip");
  if (image && self->n_slices > 0)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a second frame in a clip that is an image");
  if (!check_frame (frame, error))
    return false;
  if (height == 0 && !qomni_smart_resize (frame->height, frame->width,
          (int64_t) c->patch_size * c->merge_size,
          image ? self->image_pixels.min : self->video_pixels.min,
          image ? self->image_pixels.max : self->video_pixels.max,
          &height, &width, error))
    return false;

  s = incomplete_slice (self);
  if (s == NULL) {
    s = new_slice = slice_new (self, height, width, error);
    if (s == NULL)
      return false;
  }
  if (!qomni_resize_bicubic (frame, slice_frame (s, s->n_frames), (int) width,
          (int) height, error))
    return false;

  s->n_frames++;
  self->height = height;
  self->width = width;
  if (new_slice != NULL) {
    g_queue_push_tail (&self->slices, g_steal_pointer (&new_slice));
    self->n_slices++;
  }
  if (image) {
    complete (self, s);
    s->last = true;
  }
  return true;
}

bool
qomni_vision_encoder_flush (QomniVisionEncoder * self, GError ** error)
{
  Slice *s = g_queue_peek_tail (&self->slices);

  if (!self->open)
    return true;
  if (s != NULL && s->clip == self->clip) {
    complete (self, s);
    s->last = true;
  }
  if (self->n_slices > 0)
    self->clip++;
  self->open = false;
  return true;
}

void
qomni_vision_encoder_reset (QomniVisionEncoder * self)
{
  g_queue_clear_full (&self->slices, g_free);
  if (self->open && self->n_slices > 0)
    self->clip++;
  self->open = false;
}

/* --- what depends on the grid --------------------------------------------- */

/* Row and column of patch i. */
static void
patch_at (const QomniVisionEncoder * self, int64_t i, int64_t * ret_row,
    int64_t * ret_column)
{
  const int64_t m = self->config->merge_size;
  int64_t token = i / (m * m), within = i % (m * m);
  int64_t tokens_across = self->grid_w / m;

  *ret_row = token / tokens_across * m + within / m;
  *ret_column = token % tokens_across * m + within % m;
}

/* Angles of the patches: the first half of a row turns with the patch's row,
 * the second with its column. */
static bool
upload_rope (QomniVisionEncoder * self, GError ** error)
{
  const int head_dim = (int) (self->config->width / self->config->n_heads);
  const int half = head_dim / 2, quarter = head_dim / 4;
  const int64_t n = self->grid_h * self->grid_w;
  g_autofree float *frequency = g_new (float, quarter + 1);
  g_autofree float *table = NULL;

  /* The buffers, of which it is the smallest, were allocated with checks. */
  table = g_try_malloc ((size_t) n * (size_t) head_dim * sizeof (float));
  if (table == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for the positions of %" G_GINT64_FORMAT " patches", n);
  for (int k = 0; k < quarter; k++)
    frequency[k] = (float) pow (ROPE_THETA, -2.0 * k / half);
  for (int64_t i = 0; i < n; i++) {
    float *cosines = table + i * head_dim, *sines = cosines + half;
    int64_t row, column;

    patch_at (self, i, &row, &column);
    for (int k = 0; k < half; k++) {
      float angle = (float) (k < quarter ? row : column)
          * frequency[k % quarter];

      cosines[k] = cosf (angle);
      sines[k] = sinf (angle);
    }
  }
  self->backend->upload (self->stream, self->rope, table,
      (size_t) n * (size_t) head_dim * sizeof (float));
  return true;
}

/* Gets ready for slices of grid_h x grid_w patches. After an error the next
 * call begins anew, for the grid is still 0 x 0. */
static bool
prepare_grid (QomniVisionEncoder * self, int64_t grid_h, int64_t grid_w,
    GError ** error)
{
  const QomniVisionConfig *c = self->config;
  const int64_t n = grid_h * grid_w, area = merge_area (c);
  const int64_t part = MIN (n, (ROWS_AT_ONCE + area - 1) / area * area);
  const QomniBuffer on_host[] = {
    {&self->patches, part, self->patch_width},
    {&self->rows, part, c->width},
    {&self->merged, n / area, c->output_dim},
  };
  const QomniBuffer buffers[] = {
    {&self->pixels, part, self->patch_width},
    {&self->rope, n, c->width / c->n_heads},
    {&self->x, n, c->width},
    {&self->xn, n, c->width},
    {&self->q, n, c->width},
    {&self->k, n, c->width},
    {&self->v, n, c->width},
    {&self->ffn, part, c->ffn},
    {&self->y, n / area, c->output_dim},
  };

  if (self->grid_h == grid_h && self->grid_w == grid_w)
    return true;
  free_buffers (self);
  for (size_t i = 0; i < G_N_ELEMENTS (on_host); i++) {
    size_t bytes;

    if (!qomni_size_mul3 ((size_t) on_host[i].rows, (size_t) on_host[i].width,
            sizeof (float), &bytes)
        || (*on_host[i].place = g_try_malloc (bytes)) == NULL) {
      qomni_fail (error, QOMNI_ERROR_MEMORY,
          "no memory for a picture of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT
          " patches", grid_w, grid_h);
      free_buffers (self);
      return false;
    }
  }
  if (!qomni_workspace_alloc (&self->work, self->backend, buffers,
          G_N_ELEMENTS (buffers), "the vision encoder", error)) {
    g_prefix_error (error, "a picture of %" G_GINT64_FORMAT "x%"
        G_GINT64_FORMAT " patches: ", grid_w, grid_h);
    free_buffers (self);
    return false;
  }
  self->rows_at_once = part;
  self->grid_h = grid_h;
  self->grid_w = grid_w;
  if (!upload_rope (self, error)) {
    free_buffers (self);
    return false;
  }
  return true;
}

/* Patches first … first+n-1 of a slice, to self->patches. */
static void
fill_patches (QomniVisionEncoder * self, Slice * s, int64_t first, int64_t n)
{
  const QomniVisionConfig *c = self->config;
  float *dst = self->patches;

  for (int64_t i = first; i < first + n; i++) {
    int64_t row, column;

    patch_at (self, i, &row, &column);
    for (int channel = 0; channel < c->in_channels; channel++) {
      for (int frame = 0; frame < c->temporal_patch_size; frame++) {
        const uint8_t *src = slice_frame (s, frame) + channel
            + (row * c->patch_size * s->width + column * c->patch_size) * 3;

        for (int y = 0; y < c->patch_size; y++, src += s->width * 3) {
          for (int x = 0; x < c->patch_size; x++)
            *dst++ = self->levels[channel][src[3 * x]];
        }
      }
    }
  }
}

/* Where coordinate i of n falls into the position table: between entries
 * `low` and `high`, `part` of the way. The ends meet the ends. */
typedef struct
{
  int64_t low, high;
  float part;
} Tap;

static Tap
tap_at (int64_t i, int64_t n, int64_t side)
{
  float u = (float) i * (float) (side - 1) / (float) MAX (n - 1, 1);
  Tap tap = {.low = (int64_t) u };

  tap.high = MIN (tap.low + 1, side - 1);
  tap.part = u - (float) tap.low;
  return tap;
}

/* The position embeddings of the same patches, to self->rows. */
static void
fill_positions (QomniVisionEncoder * self, int64_t first, int64_t n)
{
  const int64_t side = self->config->position_side;
  const int64_t width = self->config->width;
  const float *table = self->tower->positions;
  float *dst = self->rows;

  for (int64_t i = first; i < first + n; i++, dst += width) {
    int64_t row, column;
    Tap u, v;
    const float *e00, *e01, *e10, *e11;

    patch_at (self, i, &row, &column);
    u = tap_at (row, self->grid_h, side);
    v = tap_at (column, self->grid_w, side);
    e00 = table + (u.low * side + v.low) * width;
    e01 = table + (u.low * side + v.high) * width;
    e10 = table + (u.high * side + v.low) * width;
    e11 = table + (u.high * side + v.high) * width;
    for (int64_t j = 0; j < width; j++)
      dst[j] = (1 - u.part) * (1 - v.part) * e00[j]
          + (1 - u.part) * v.part * e01[j]
          + u.part * (1 - v.part) * e10[j] + u.part * v.part * e11[j];
  }
}

/* --- slices to embeddings ------------------------------------------------- */

static void
linear (QomniVisionEncoder * self, float *y, const float *x, int64_t n,
    const Linear * l, QkActivation act, bool accumulate)
{
  self->stream->ops->matmul (self->stream, y, x, n, &l->weight, l->bias, act,
      accumulate);
}

static void
norm (QomniVisionEncoder * self, float *y, const float *x, int64_t n,
    int64_t width, const Norm * norm)
{
  self->stream->ops->layer_norm (self->stream, y, x, n, width, norm->weight,
      norm->bias, NORM_EPS);
}

/* x [n, width] = positions + patch_embed (pixels), a part at a time. */
static bool
embed_patches (QomniVisionEncoder * self, Slice * s, GCancellable * cancellable,
    GError ** error)
{
  const int64_t width = self->config->width;
  const int64_t total = self->grid_h * self->grid_w;
  Linear embed = self->tower->patch_embed;

  embed.weight.n_dims = 2;
  embed.weight.dims[1] = self->patch_width;
  for (int64_t first = 0; first < total; first += self->rows_at_once) {
    int64_t n = MIN (self->rows_at_once, total - first);

    if (!qomni_go_on (cancellable, error))
      return false;
    fill_positions (self, first, n);
    self->backend->upload (self->stream, self->x + first * width, self->rows,
        (size_t) (n * width) * sizeof (float));
    fill_patches (self, s, first, n);
    self->backend->upload (self->stream, self->pixels, self->patches,
        (size_t) (n * self->patch_width) * sizeof (float));
    linear (self, self->x + first * width, self->pixels, n, &embed,
        QK_ACT_NONE, true);
  }
  return true;
}

/* Keys and values of all rows come first; from there on every row goes its own
 * way. Cancellable between parts, for a layer of a large picture takes long. */
static bool
layer_forward (QomniVisionEncoder * self, const Layer * l,
    GCancellable * cancellable, GError ** error)
{
  const QomniVisionConfig *c = self->config;
  const QkOps *ops = self->stream->ops;
  const int64_t n = self->grid_h * self->grid_w, width = c->width;
  const int head_dim = (int) (width / c->n_heads);
  float *const qkv[] = { self->q, self->k, self->v };
  QkAttention attention = {
    .n_kv = n,
    .n_heads = c->n_heads, .n_kv_heads = c->n_heads, .head_dim = head_dim,
    .scale = 1 / sqrtf ((float) head_dim),
  };

  for (int64_t at = 0; at < n; at += self->rows_at_once) {
    int64_t rows = MIN (self->rows_at_once, n - at);
    float *xn = self->xn + at * width;

    if (!qomni_go_on (cancellable, error))
      return false;
    norm (self, xn, self->x + at * width, rows, width, &l->attention_norm);
    for (int i = 0; i < 3; i++) {
      const Linear part = {
        qk_tensor_rows (&l->qkv.weight, i * width, width),
        l->qkv.bias + i * width
      };

      linear (self, qkv[i] + at * width, xn, rows, &part, QK_ACT_NONE, false);
    }
  }
  ops->rope (self->stream, self->q, self->rope, n, c->n_heads, head_dim);
  ops->rope (self->stream, self->k, self->rope, n, c->n_heads, head_dim);

  for (int64_t at = 0; at < n; at += self->rows_at_once) {
    int64_t rows = MIN (self->rows_at_once, n - at);
    float *x = self->x + at * width, *xn = self->xn + at * width;

    if (!qomni_go_on (cancellable, error))
      return false;
    attention.n_q = rows;
    ops->attention (self->stream, xn, self->q + at * width, self->k, self->v,
        &attention);
    linear (self, x, xn, rows, &l->out, QK_ACT_NONE, true);
    norm (self, xn, x, rows, width, &l->ffn_norm);
    linear (self, self->ffn, xn, rows, &l->up, QK_ACT_GELU_TANH, false);
    linear (self, x, self->ffn, rows, &l->down, QK_ACT_NONE, true);
  }
  return true;
}

/* Merges x into level `level` of the embeddings; q is free for it. */
static void
merge (QomniVisionEncoder * self, const Merger * m, int64_t norm_width,
    QomniEmbeddings * e, int level)
{
  const int64_t tokens = e->n_tokens;
  const int64_t n = tokens * self->merged_width / norm_width;

  norm (self, self->xn, self->x, n, norm_width, &m->norm);
  linear (self, self->q, self->xn, tokens, &m->fc1, QK_ACT_GELU, false);
  linear (self, self->y, self->q, tokens, &m->fc2, QK_ACT_NONE, false);
  self->backend->download (self->stream, self->merged, self->y,
      (size_t) (tokens * e->width) * sizeof (float));
  for (int64_t i = 0; i < tokens; i++)
    memcpy (e->data + (i * e->n_levels + level) * e->width,
        self->merged + i * e->width, (size_t) e->width * sizeof (float));
}

static bool
forward (QomniVisionEncoder * self, Slice * s, QomniEmbeddings * e,
    GCancellable * cancellable, GError ** error)
{
  const QomniVisionConfig *c = self->config;
  const QomniVisionTower *tower = self->tower;

  if (!embed_patches (self, s, cancellable, error))
    return false;
  for (int i = 0; i < c->depth; i++) {
    if (!layer_forward (self, &tower->layers[i], cancellable, error))
      return false;
    for (int k = 0; k < c->n_deepstack; k++) {
      if (c->deepstack_layer[k] == i)
        merge (self, &tower->deepstack[k], self->merged_width, e, 1 + k);
    }
  }
  merge (self, &tower->merger, c->width, e, 0);
  return true;
}

/* Faults of the backend and values that are no numbers. After a fault the slice
 * may be tried again, on a new stream and with buffers filled anew. */
static bool
check_result (QomniVisionEncoder * self, const Slice * s,
    const QomniEmbeddings * e, GError ** error)
{
  const char *fault = self->backend->error (self->stream);

  if (fault != NULL) {
    qomni_fail (error, QOMNI_ERROR_BACKEND, "vision encoder: %s", fault);
    qomni_stream_replace (self->backend, &self->stream);
    free_buffers (self);
    return false;
  }
  for (int64_t i = 0; i < e->n_tokens * e->n_levels * e->width; i++) {
    int level = (int) (i / e->width % e->n_levels);

    if (isfinite (e->data[i]))
      continue;
    if (level > 0)
      return qomni_fail (error, QOMNI_ERROR_NUMERIC, "vision encoder: "
          "non-finite values in DeepStack level %d of slice %" G_GINT64_FORMAT,
          level - 1, s->index);
    return qomni_fail (error, QOMNI_ERROR_NUMERIC, "vision encoder: non-finite "
        "values in the embeddings of slice %" G_GINT64_FORMAT, s->index);
  }
  return true;
}

static void
probe_slice (QomniVisionEncoder * self, Slice * s, const QomniEmbeddings * e)
{
  const int64_t total = self->grid_h * self->grid_w;

  if (self->probe == NULL)
    return;
  for (int64_t first = 0; first < total; first += self->rows_at_once) {
    int64_t n = MIN (self->rows_at_once, total - first);

    fill_patches (self, s, first, n);
    qomni_probe_append (self->probe, "vision.pixels", 0, 2,
        (int64_t[]) { n, self->patch_width }, self->patches);
  }
  for (int level = 0; level < e->n_levels; level++) {
    g_autofree char *name = level == 0 ? g_strdup ("vision.embeddings")
        : g_strdup_printf ("vision.deepstack.%d", level - 1);

    for (int64_t i = 0; i < e->n_tokens; i++)
      memcpy (self->merged + i * e->width,
          e->data + (i * e->n_levels + level) * e->width,
          (size_t) e->width * sizeof (float));
    qomni_probe_append (self->probe, name, 0, 2,
        (int64_t[]) { e->n_tokens, e->width }, self->merged);
  }
}

static int64_t
seconds_to_ns (double seconds)
{
  return seconds < 9e9 ? (int64_t) (seconds * 1e9) : INT64_MAX;
}

QomniEmbeddings *
qomni_vision_encoder_pull (QomniVisionEncoder * self,
    GCancellable * cancellable, GError ** error)
{
  const QomniVisionConfig *c = self->config;
  Slice *s = g_queue_peek_head (&self->slices);
  g_autoptr (QomniEmbeddings) e = NULL;

  if (s == NULL || s->n_frames < c->temporal_patch_size)
    return NULL;
  if (!prepare_grid (self, s->height / c->patch_size, s->width / c->patch_size,
          error))
    return NULL;
  e = qomni_embeddings_new (s->modality,
      self->grid_h * self->grid_w / merge_area (c), 1 + c->n_deepstack,
      c->output_dim, error);
  if (e == NULL || !forward (self, s, e, cancellable, error)
      || !check_result (self, s, e, error))
    return NULL;

  e->clip = s->clip;
  e->last = s->last;
  e->grid_t = 1;
  e->grid_h = self->grid_h / c->merge_size;
  e->grid_w = self->grid_w / c->merge_size;
  e->seconds_per_grid = s->seconds;
  if (s->modality == QOMNI_MODALITY_VIDEO) {
    e->start = seconds_to_ns ((double) s->index * s->seconds);
    e->duration = seconds_to_ns (s->seconds);
  }
  probe_slice (self, s, e);
  g_free (g_queue_pop_head (&self->slices));
  return g_steal_pointer (&e);
}
