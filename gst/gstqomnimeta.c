/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniEmbeddings <-> GstBuffer.
 *
 *   payload                     f32 [n-tokens, levels, width], packed
 *   GstQomniEmbeddingsMeta      kind, sizes, clip, times, grid; for rows of the
 *                               Thinker also ids [n] i32, media [n] u8 and
 *                               positions [3, n-positions] f32 as GBytes
 *
 * A buffer may come from a recording or from another program, so reading one
 * trusts nothing: every field must be there with its type, and every product
 * is checked against the bytes that are really present before a copy is made.
 */
#include "gstqomnimeta.h"

#include <math.h>
#include <string.h>

static const gchar *const kind_names[] = {
  [QOMNI_MODALITY_AUDIO] = "audio",
  [QOMNI_MODALITY_IMAGE] = "image",
  [QOMNI_MODALITY_VIDEO] = "video",
  [QOMNI_MODALITY_THINKER] = "thinker",
};

static const gchar *const rows_names[] = {
  [QOMNI_ROWS_PROMPT] = "prompt",
  [QOMNI_ROWS_HEADER] = "header",
  [QOMNI_ROWS_REPLY] = "reply",
  [QOMNI_ROWS_END] = "end",
};

const gchar *
gst_qomni_modality_name (QomniModality modality)
{
  switch (modality) {
    case QOMNI_MODALITY_AUDIO:
      return "audio";
    case QOMNI_MODALITY_IMAGE:
    case QOMNI_MODALITY_VIDEO:
      return "vision";
    case QOMNI_MODALITY_THINKER:
      break;
  }
  return "thinker";
}

const GstMetaInfo *
gst_qomni_embeddings_meta_get_info (void)
{
  static gsize info = 0;
  static const gchar *tags[] = { NULL };

  if (g_once_init_enter (&info)) {
    const GstMetaInfo *meta =
        gst_meta_register_custom (GST_QOMNI_EMBEDDINGS_META_NAME, tags, NULL,
        NULL, NULL);
    g_once_init_leave (&info, (gsize) meta);
  }
  return (const GstMetaInfo *) info;
}

const GstMetaInfo *
gst_qomni_text_meta_get_info (void)
{
  static gsize info = 0;
  static const gchar *tags[] = { NULL };

  if (g_once_init_enter (&info)) {
    const GstMetaInfo *meta =
        gst_meta_register_custom (GST_QOMNI_TEXT_META_NAME, tags, NULL, NULL,
        NULL);
    g_once_init_leave (&info, (gsize) meta);
  }
  return (const GstMetaInfo *) info;
}

/* --- to a buffer ---------------------------------------------------------- */

static void
set_bytes (GstStructure * s, const gchar * field, const void *data, gsize size)
{
  g_autoptr (GBytes) bytes = NULL;

  if (data == NULL)
    return;
  bytes = g_bytes_new (data, size);
  gst_structure_set (s, field, G_TYPE_BYTES, bytes, NULL);
}

GstBuffer *
gst_qomni_embeddings_to_buffer (QomniEmbeddings * e)
{
  GstBuffer *buffer = gst_buffer_new ();
  gsize size = (gsize) e->n_tokens * e->n_levels * e->width * sizeof (float);
  GstStructure *s;

  gst_qomni_embeddings_meta_get_info ();

  if (size > 0)
    gst_buffer_append_memory (buffer,
        gst_memory_new_wrapped (GST_MEMORY_FLAG_READONLY, e->data, size, 0,
            size, qomni_embeddings_ref (e),
            (GDestroyNotify) qomni_embeddings_unref));

  s = gst_custom_meta_get_structure (gst_buffer_add_custom_meta (buffer,
          GST_QOMNI_EMBEDDINGS_META_NAME));
  gst_structure_set (s, "kind", G_TYPE_STRING, kind_names[e->modality],
      "n-tokens", G_TYPE_INT64, e->n_tokens,
      "levels", G_TYPE_INT, e->n_levels,
      "width", G_TYPE_INT64, e->width,
      "clip", G_TYPE_UINT64, e->clip,
      "last", G_TYPE_BOOLEAN, e->last,
      "in-video", G_TYPE_BOOLEAN, e->in_video,
      "start", G_TYPE_INT64, e->start,
      "duration", G_TYPE_INT64, e->duration, NULL);

  if (e->modality == QOMNI_MODALITY_IMAGE
      || e->modality == QOMNI_MODALITY_VIDEO)
    gst_structure_set (s, "grid-t", G_TYPE_INT64, e->grid_t,
        "grid-h", G_TYPE_INT64, e->grid_h,
        "grid-w", G_TYPE_INT64, e->grid_w,
        "seconds-per-grid", G_TYPE_DOUBLE, e->seconds_per_grid, NULL);

  if (e->modality == QOMNI_MODALITY_THINKER) {
    gst_structure_set (s, "rows", G_TYPE_STRING, rows_names[e->rows_kind],
        "turn", G_TYPE_UINT64, e->turn,
        "first-row", G_TYPE_INT64, e->first_row,
        "position-delta", G_TYPE_DOUBLE, (gdouble) e->position_delta,
        "n-positions", G_TYPE_INT64, e->n_positions, NULL);
    set_bytes (s, "ids", e->ids, e->n_tokens * sizeof (int32_t));
    set_bytes (s, "media", e->media, e->n_tokens);
    set_bytes (s, "positions", e->positions,
        3 * e->n_positions * sizeof (float));
  }

  GST_BUFFER_OFFSET (buffer) = 0;
  GST_BUFFER_OFFSET_END (buffer) = e->n_tokens;
  return buffer;
}

/* --- from a buffer -------------------------------------------------------- */

static gboolean
refuse (GError ** error, const gchar * field)
{
  return qomni_fail (error, QOMNI_ERROR_FORMAT,
      "embeddings buffer: '%s' is missing, of another type or out of range",
      field);
}

static gboolean
get_int64 (const GstStructure * s, const gchar * field, gint64 min, gint64 max,
    int64_t * ret, GError ** error)
{
  gint64 value;

  if (!gst_structure_get_int64 (s, field, &value) || value < min || value > max)
    return refuse (error, field);
  *ret = value;
  return TRUE;
}

static gboolean
get_double (const GstStructure * s, const gchar * field, gdouble * ret,
    GError ** error)
{
  if (!gst_structure_get_double (s, field, ret) || !isfinite (*ret))
    return refuse (error, field);
  return TRUE;
}

static gboolean
get_boolean (const GstStructure * s, const gchar * field, bool *ret,
    GError ** error)
{
  gboolean value;

  if (!gst_structure_get_boolean (s, field, &value))
    return refuse (error, field);
  *ret = value;
  return TRUE;
}

static gboolean
get_name (const GstStructure * s, const gchar * field,
    const gchar * const *names, guint n_names, guint * ret, GError ** error)
{
  const gchar *value = gst_structure_get_string (s, field);

  for (guint i = 0; value != NULL && i < n_names; i++) {
    if (strcmp (value, names[i]) == 0) {
      *ret = i;
      return TRUE;
    }
  }
  return refuse (error, field);
}

/* A copy of the bytes in `field`, exactly n elements of `size`; *ret is NULL
 * when the field is absent. */
static gboolean
take_bytes (const GstStructure * s, const gchar * field, int64_t n,
    size_t size, void **ret, GError ** error)
{
  const GValue *value = gst_structure_get_value (s, field);
  g_autofree void *copy = NULL;
  const void *data;
  size_t want;
  gsize have;

  *ret = NULL;
  if (value == NULL)
    return TRUE;
  if (!G_VALUE_HOLDS (value, G_TYPE_BYTES)
      || g_value_get_boxed (value) == NULL
      || !qomni_size_mul ((size_t) n, size, &want))
    return refuse (error, field);
  data = g_bytes_get_data (g_value_get_boxed (value), &have);
  if (have != want)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "embeddings buffer: '%s' has %" G_GSIZE_FORMAT " bytes, expected %"
        G_GSIZE_FORMAT, field, have, want);
  copy = g_try_malloc (MAX (want, 1));
  if (copy == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "%" G_GSIZE_FORMAT " bytes for '%s'", want, field);
  if (want > 0)
    memcpy (copy, data, want);
  *ret = g_steal_pointer (&copy);
  return TRUE;
}

static gboolean
read_rows (QomniEmbeddings * e, const GstStructure * s, GError ** error)
{
  void *ids, *media, *positions;
  gdouble delta;
  guint rows;
  guint64 turn;

  if (!get_name (s, "rows", rows_names, G_N_ELEMENTS (rows_names), &rows, error)
      || !get_int64 (s, "first-row", 0, G_MAXINT32, &e->first_row, error)
      || !get_double (s, "position-delta", &delta, error)
      || !get_int64 (s, "n-positions", 0, G_MAXINT32, &e->n_positions, error))
    return FALSE;
  if (!gst_structure_get_uint64 (s, "turn", &turn))
    return refuse (error, "turn");
  e->rows_kind = rows;
  e->turn = turn;
  e->position_delta = (float) delta;

  if (!take_bytes (s, "ids", e->n_tokens, sizeof (int32_t), &ids, error))
    return FALSE;
  e->ids = ids;
  if (!take_bytes (s, "media", e->n_tokens, 1, &media, error))
    return FALSE;
  e->media = media;
  if (!take_bytes (s, "positions", 3 * e->n_positions, sizeof (float),
          &positions, error))
    return FALSE;
  e->positions = positions;

  for (int64_t i = 0; e->ids != NULL && i < e->n_tokens; i++)
    if (e->ids[i] < 0 || e->ids[i] >= QOMNI_MAX_VOCABULARY)
      return refuse (error, "ids");
  for (int64_t i = 0; e->media != NULL && i < e->n_tokens; i++)
    if (e->media[i] > 1)
      return refuse (error, "media");
  for (int64_t i = 0; e->positions != NULL && i < 3 * e->n_positions; i++)
    if (!isfinite (e->positions[i]))
      return refuse (error, "positions");
  if (e->positions == NULL && e->n_positions != 0)
    return refuse (error, "positions");
  return TRUE;
}

static gboolean
read_grid (QomniEmbeddings * e, const GstStructure * s, GError ** error)
{
  const gint64 max = G_MAXINT32;
  size_t cells;

  if (!get_int64 (s, "grid-t", 1, max, &e->grid_t, error)
      || !get_int64 (s, "grid-h", 1, max, &e->grid_h, error)
      || !get_int64 (s, "grid-w", 1, max, &e->grid_w, error)
      || !get_double (s, "seconds-per-grid", &e->seconds_per_grid, error))
    return FALSE;
  if (e->seconds_per_grid < 0)
    return refuse (error, "seconds-per-grid");
  if (!qomni_size_mul3 (e->grid_t, e->grid_h, e->grid_w, &cells)
      || cells != (size_t) e->n_tokens)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "embeddings buffer: a grid of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT
        "x%" G_GINT64_FORMAT " with %" G_GINT64_FORMAT " tokens",
        (gint64) e->grid_t, (gint64) e->grid_h, (gint64) e->grid_w,
        (gint64) e->n_tokens);
  return TRUE;
}

QomniEmbeddings *
gst_qomni_embeddings_from_buffer (GstBuffer * buffer, GError ** error)
{
  g_autoptr (QomniEmbeddings) e = NULL;
  GstCustomMeta *meta;
  const GstStructure *s;
  gsize have = gst_buffer_get_size (buffer);
  int64_t n_tokens = 0, width = 0;
  size_t rows, want;
  guint modality;
  gint levels;

  gst_qomni_embeddings_meta_get_info ();
  meta = gst_buffer_get_custom_meta (buffer, GST_QOMNI_EMBEDDINGS_META_NAME);
  if (meta == NULL) {
    qomni_fail (error, QOMNI_ERROR_FORMAT, "embeddings buffer without a %s",
        GST_QOMNI_EMBEDDINGS_META_NAME);
    return NULL;
  }
  s = gst_custom_meta_get_structure (meta);

  if (!get_name (s, "kind", kind_names, G_N_ELEMENTS (kind_names), &modality,
          error)
      || !get_int64 (s, "n-tokens", 0, G_MAXINT32, &n_tokens, error)
      || !get_int64 (s, "width", 1, QOMNI_MAX_WIDTH, &width, error))
    return NULL;
  if (!gst_structure_get_int (s, "levels", &levels) || levels < 1
      || levels > QOMNI_MAX_LAYERS) {
    refuse (error, "levels");
    return NULL;
  }
  if (!qomni_size_mul3 (n_tokens, levels, width, &rows)
      || !qomni_size_mul (rows, sizeof (float), &want) || want != have) {
    qomni_fail (error, QOMNI_ERROR_FORMAT, "embeddings buffer: %"
        G_GSIZE_FORMAT " bytes, but %" G_GINT64_FORMAT " tokens of %d x %"
        G_GINT64_FORMAT " f32", have, (gint64) n_tokens, levels,
        (gint64) width);
    return NULL;
  }

  e = qomni_embeddings_new (modality, n_tokens, levels, width, error);
  if (e == NULL)
    return NULL;
  if (have > 0 && gst_buffer_extract (buffer, 0, e->data, have) != have) {
    qomni_fail (error, QOMNI_ERROR_FORMAT,
        "embeddings buffer: the memory cannot be read");
    return NULL;
  }

  if (!gst_structure_get_uint64 (s, "clip", &e->clip)) {
    refuse (error, "clip");
    return NULL;
  }
  if (!get_boolean (s, "last", &e->last, error)
      || !get_boolean (s, "in-video", &e->in_video, error)
      || !get_int64 (s, "start", G_MININT64, G_MAXINT64, &e->start, error)
      || !get_int64 (s, "duration", 0, G_MAXINT64, &e->duration, error))
    return NULL;

  switch (e->modality) {
    case QOMNI_MODALITY_AUDIO:
      break;
    case QOMNI_MODALITY_IMAGE:
    case QOMNI_MODALITY_VIDEO:
      if (!read_grid (e, s, error))
        return NULL;
      break;
    case QOMNI_MODALITY_THINKER:
      if (!read_rows (e, s, error))
        return NULL;
      break;
  }
  return g_steal_pointer (&e);
}

/* --- turn ids and text ---------------------------------------------------- */

void
gst_qomni_embeddings_buffer_set_turn_id (GstBuffer * buffer, guint64 turn_id)
{
  GstCustomMeta *meta;

  gst_qomni_embeddings_meta_get_info ();
  meta = gst_buffer_get_custom_meta (buffer, GST_QOMNI_EMBEDDINGS_META_NAME);
  if (meta != NULL)
    gst_structure_set (gst_custom_meta_get_structure (meta), "turn-id",
        G_TYPE_UINT64, turn_id, NULL);
}

guint64
gst_qomni_embeddings_buffer_get_turn_id (GstBuffer * buffer)
{
  GstCustomMeta *meta;
  guint64 turn_id = 0;

  gst_qomni_embeddings_meta_get_info ();
  meta = gst_buffer_get_custom_meta (buffer, GST_QOMNI_EMBEDDINGS_META_NAME);
  if (meta != NULL)
    gst_structure_get_uint64 (gst_custom_meta_get_structure (meta), "turn-id",
        &turn_id);
  return turn_id;
}

void
gst_qomni_text_buffer_add_meta (GstBuffer * buffer, guint64 turn_id,
    gboolean final, const gchar * role)
{
  GstCustomMeta *meta;

  gst_qomni_text_meta_get_info ();
  meta = gst_buffer_add_custom_meta (buffer, GST_QOMNI_TEXT_META_NAME);
  gst_structure_set (gst_custom_meta_get_structure (meta),
      "turn-id", G_TYPE_UINT64, turn_id, "final", G_TYPE_BOOLEAN, final,
      "role", G_TYPE_STRING, role, NULL);
}

gboolean
gst_qomni_text_buffer_parse_meta (GstBuffer * buffer, guint64 * turn_id,
    gboolean * final, const gchar ** role)
{
  GstCustomMeta *meta;
  const GstStructure *s;
  guint64 id;
  gboolean last;

  gst_qomni_text_meta_get_info ();
  meta = gst_buffer_get_custom_meta (buffer, GST_QOMNI_TEXT_META_NAME);
  if (meta == NULL)
    return FALSE;
  s = gst_custom_meta_get_structure (meta);
  if (!gst_structure_get_uint64 (s, "turn-id", &id)
      || !gst_structure_get_boolean (s, "final", &last))
    return FALSE;
  if (turn_id != NULL)
    *turn_id = id;
  if (final != NULL)
    *final = last;
  if (role != NULL)
    *role = gst_structure_get_string (s, "role");
  return TRUE;
}
