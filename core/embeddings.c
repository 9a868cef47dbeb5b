/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniEmbeddings: making, sharing and checking blocks of rows.
 */
#include "embeddings.h"

#include "model-config.h"

QomniEmbeddings *
qomni_embeddings_new (QomniModality modality, int64_t n_tokens, int n_levels,
    int64_t width, GError ** error)
{
  size_t count, bytes;

  /* Without tokens (a reply that ends without speech) levels and width may be
   * 0 as well. */
  if (n_tokens < 0 || n_levels < 0 || width < 0
      || !qomni_size_mul3 ((size_t) n_tokens, (size_t) n_levels,
          (size_t) width, &count)
      || !qomni_size_mul (count, sizeof (float), &bytes)) {
    qomni_fail (error, QOMNI_ERROR_LIMIT, "embeddings of %" G_GINT64_FORMAT
        " tokens x %d levels x %" G_GINT64_FORMAT " are too large", n_tokens,
        n_levels, width);
    return NULL;
  }

  g_autoptr (QomniEmbeddings) self = g_new0 (QomniEmbeddings, 1);
  self->ref_count = 1;
  self->modality = modality;
  self->n_tokens = n_tokens;
  self->n_levels = n_levels;
  self->width = width;
  if (bytes > 0) {
    self->data = g_try_malloc0 (bytes);
    if (self->data == NULL) {
      qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for %zu bytes of "
          "embeddings", bytes);
      return NULL;
    }
  }
  return g_steal_pointer (&self);
}

QomniEmbeddings *
qomni_embeddings_ref (QomniEmbeddings * self)
{
  g_atomic_int_inc (&self->ref_count);
  return self;
}

void
qomni_embeddings_unref (QomniEmbeddings * self)
{
  if (self == NULL || !g_atomic_int_dec_and_test (&self->ref_count))
    return;
  g_free (self->data);
  g_free (self->ids);
  g_free (self->media);
  g_free (self->positions);
  g_free (self);
}

static const char *
modality_name (QomniModality modality)
{
  switch (modality) {
    case QOMNI_MODALITY_AUDIO:
      return "audio";
    case QOMNI_MODALITY_IMAGE:
      return "image";
    case QOMNI_MODALITY_VIDEO:
      return "video";
    case QOMNI_MODALITY_THINKER:
      return "thinker";
  }
  return "unknown";
}

bool
qomni_embeddings_check (const QomniEmbeddings * self,
    const QomniConfig * config, GError ** error)
{
  const char *name = modality_name (self->modality);
  int n_levels = 1;
  int64_t t = 0, h = 0, w = 0;
  size_t cells;

  switch (self->modality) {
    case QOMNI_MODALITY_AUDIO:
      if (!config->has_audio)
        return qomni_fail (error, QOMNI_ERROR_INPUT,
            "audio embeddings, but the model has no audio encoder");
      break;
    case QOMNI_MODALITY_IMAGE:
    case QOMNI_MODALITY_VIDEO:
      if (!config->has_vision)
        return qomni_fail (error, QOMNI_ERROR_INPUT,
            "%s embeddings, but the model has no vision encoder", name);
      n_levels = 1 + config->vision.n_deepstack;
      t = self->grid_t;
      h = self->grid_h;
      w = self->grid_w;
      break;
    default:
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "%s rows are not a block of an encoder", name);
  }

  if (self->n_tokens < 1)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%s embeddings of %"
        G_GINT64_FORMAT " tokens, expected at least 1", name, self->n_tokens);
  if (self->n_levels != n_levels || self->width != config->text.hidden_size)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%s embeddings have %d "
        "levels of width %" G_GINT64_FORMAT ", the model expects %d of %"
        G_GINT64_FORMAT, name, self->n_levels, self->width, n_levels,
        config->text.hidden_size);
  if (self->modality == QOMNI_MODALITY_AUDIO)
    return true;

  if (t < 1 || h < 1 || w < 1
      || !qomni_size_mul3 ((size_t) t, (size_t) h, (size_t) w, &cells)
      || cells != (size_t) self->n_tokens)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%s embeddings have %"
        G_GINT64_FORMAT " tokens, but a grid of %" G_GINT64_FORMAT " x %"
        G_GINT64_FORMAT " x %" G_GINT64_FORMAT, name, self->n_tokens, t, h, w);
  if (self->modality == QOMNI_MODALITY_IMAGE && t != 1)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "an image has %"
        G_GINT64_FORMAT " temporal slices, expected 1", t);
  /* NaN fails both comparisons. */
  if (self->modality == QOMNI_MODALITY_VIDEO
      && !(self->seconds_per_grid > 0 && self->seconds_per_grid < 1e6))
    return qomni_fail (error, QOMNI_ERROR_INPUT, "a video slice lasts %g s, "
        "expected more than 0", self->seconds_per_grid);
  return true;
}
