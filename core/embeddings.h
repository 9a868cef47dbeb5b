/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniEmbeddings: what travels between the encoders, the Thinker and the
 * Talker. n tokens x levels x width of f32 in host memory, packed in that
 * order, with what is needed to place them. Immutable once made, reference
 * counted.
 */
#pragma once

#include "types.h"

G_BEGIN_DECLS

typedef enum
{
  QOMNI_MODALITY_AUDIO,         /* 1 level */
  QOMNI_MODALITY_IMAGE,         /* 1 + DeepStack levels */
  QOMNI_MODALITY_VIDEO,         /* likewise; one or more temporal slices */
  QOMNI_MODALITY_THINKER,       /* 2 levels: input row, accept-layer row */
} QomniModality;

/* Rows from the Thinker to the Talker (QOMNI_MODALITY_THINKER). One turn is
 * PROMPT, HEADER, REPLY …, END; a turn without speech is END alone. */
typedef enum
{
  /* Rows of the user segments, in order. They replace the Talker's prompt from
   * row `first_row` on. ids, media and positions are set. */
  QOMNI_ROWS_PROMPT,
  /* The three rows of `<|im_start|>assistant\n`. positions is [3, 9] for the
   * nine rows the Talker appends, position_delta is what decoding adds. */
  QOMNI_ROWS_HEADER,
  QOMNI_ROWS_REPLY,             /* generated tokens, in order */
  QOMNI_ROWS_END,               /* no rows: the reply is complete */
} QomniRowsKind;

struct _QomniEmbeddings
{
  int ref_count;                /* atomic */
  QomniModality modality;
  int64_t n_tokens;
  int n_levels;
  int64_t width;
  float *data;                  /* [n_tokens, n_levels, width] */

  uint64_t clip;                /* blocks of one clip share it */
  bool last;                    /* no block of this clip follows */
  bool in_video;                /* AUDIO: the sound of the video `clip` */
  int64_t start, duration;      /* media time, ns */

  /* IMAGE, VIDEO: in merged cells; n_tokens = t * h * w. */
  int64_t grid_t, grid_h, grid_w;
  double seconds_per_grid;      /* VIDEO: time of one temporal slice */

  /* THINKER */
  QomniRowsKind rows_kind;
  uint64_t turn;
  int64_t first_row;
  float position_delta;
  int32_t *ids;                 /* [n_tokens] or NULL */
  uint8_t *media;               /* [n_tokens] or NULL; 1: a media position */
  int64_t n_positions;
  float *positions;             /* [3, n_positions] or NULL */
};

/* Zeroed data; NULL and an error when memory is short or a size overflows. */
QomniEmbeddings *qomni_embeddings_new (QomniModality modality,
    int64_t n_tokens, int n_levels, int64_t width, GError ** error);
QomniEmbeddings *qomni_embeddings_ref (QomniEmbeddings * self);
void qomni_embeddings_unref (QomniEmbeddings * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniEmbeddings, qomni_embeddings_unref)

/* Whether an encoder block fits the model's Thinker: levels, width, grid. */
bool qomni_embeddings_check (const QomniEmbeddings * self,
    const QomniConfig * config, GError ** error);

G_END_DECLS
