/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * TM-RoPE: where each token of a prompt stands in time, row and column, and
 * the rotation tables made of that.
 */
#pragma once

#include "model-config.h"

G_BEGIN_DECLS

typedef struct
{
  int64_t t, h, w;              /* merged cells */
  double seconds_per_grid;      /* videos only */
} QomniGrid;

/* The media that the placeholders in a list of ids stand for, each kind in
 * prompt order. */
typedef struct
{
  const QomniGrid *images, *videos;
  const int64_t *audios;        /* tokens of each clip */
  size_t n_images, n_videos, n_audios;
} QomniMediaSizes;

/* Position ids of `n` ids: ret [3, n] (t, h, w). ret_delta: a token decoded at
 * index s stands at s + delta on all axes. Follows get_rope_index() of the
 * reference, float32 arithmetic included. Fails when ids and media disagree; a
 * marker without a placeholder after it, or a placeholder outside of markers,
 * is text. Without use_audio_in_video a video with merged sound is placed as
 * the reference does it for the Talker. */
bool qomni_positions (const QomniConfig * config, const int32_t * ids,
    int64_t n, const QomniMediaSizes * media, bool use_audio_in_video,
    float *ret, float *ret_delta, GError ** error);

/* Rotation table of n rows: ret [n, 2, head_dim/2], cosines then sines, from
 * positions [3, n] with row stride `stride` (positions[axis * stride + i]).
 * Interleaved M-RoPE when the config has sections, else axis 0 alone. */
void qomni_rope_table (const QomniDecoderConfig * config,
    const float *positions, int64_t stride, int64_t n, float *ret);

/* The order of tokens of a video with its sound, merged by time:
 * ret [video->t * h * w + n_audio] placeholder ids. The grid is one that
 * qomni_positions() would take. */
void qomni_merge_audio_video (const QomniConfig * config,
    const QomniGrid * video, int64_t n_audio, int32_t * ret);

G_END_DECLS
