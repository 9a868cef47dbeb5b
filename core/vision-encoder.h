/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniVisionEncoder: RGB frames -> embeddings with a grid and DeepStack
 * levels. A still image is one frame; a video is a clip of frames that were
 * sampled by the caller, two of which make one temporal slice.
 *
 *   v = qomni_vision_encoder_new (model, NULL, NULL, &error);
 *   qomni_vision_encoder_begin (v, QOMNI_MODALITY_VIDEO, 1.0, &error);
 *   qomni_vision_encoder_push (v, &frame, &error);        …
 *   qomni_vision_encoder_flush (v, &error);
 *   while ((e = qomni_vision_encoder_pull (v, NULL, &error)) != NULL) …
 */
#pragma once

#include "embeddings.h"
#include "model.h"

G_BEGIN_DECLS

/* 8-bit picture in host memory; rows `stride` bytes apart. Alpha is
 * composited on white. */
typedef struct
{
  const uint8_t *data;
  int width, height;
  size_t stride;
  int n_channels;               /* 1 grey, 3 RGB, 4 RGBA */
} QomniImage;

typedef struct
{
  int64_t min_pixels, max_pixels;       /* 0: as the preprocessor config says */
  QomniProbe *probe;            /* vision.pixels, .embeddings, .deepstack.<k> */
} QomniVisionEncoderParams;

QomniVisionEncoder *qomni_vision_encoder_new (QomniModel * model,
    const QomniVisionEncoderParams * params, GCancellable * cancellable,
    GError ** error);
void qomni_vision_encoder_free (QomniVisionEncoder * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniVisionEncoder, qomni_vision_encoder_free)

/* Begins a clip: IMAGE or VIDEO, with the time of one slice (two sampled
 * frames, seconds). The first frame decides the size of all. */
bool qomni_vision_encoder_begin (QomniVisionEncoder * self,
    QomniModality modality, double seconds_per_grid, GError ** error);
/* Frames of another size than the first are resized to the same grid. */
bool qomni_vision_encoder_push (QomniVisionEncoder * self,
    const QomniImage * frame, GError ** error);
/* Ends the clip; a lone frame is paired with itself. A clip without frames
 * gives no slice. */
bool qomni_vision_encoder_flush (QomniVisionEncoder * self, GError ** error);
/* The next slice (an image: its one slice), or NULL: without an error there is
 * none yet. A slice can be pulled as soon as its frames were pushed; `last` is
 * true when the clip had been flushed by then and no other slice follows. */
QomniEmbeddings *qomni_vision_encoder_pull (QomniVisionEncoder * self,
    GCancellable * cancellable, GError ** error);
/* Forgets the open clip and what was not pulled. */
void qomni_vision_encoder_reset (QomniVisionEncoder * self);

/* Target size of an image, the reference's smart_resize. `factor` is
 * patch_size * merge_size. Fails for sides < 1 or > QOMNI_MAX_IMAGE_SIDE,
 * before or after, and for aspect ratios above 200. */
bool qomni_smart_resize (int64_t height, int64_t width, int64_t factor,
    int64_t min_pixels, int64_t max_pixels, int64_t * ret_height,
    int64_t * ret_width, GError ** error);
/* Antialiased bicubic on 8-bit RGB, bit-exact with torchvision: dst is
 * [dst_height, dst_width, 3], packed; all sides at least 1. Fails only without
 * memory. */
bool qomni_resize_bicubic (const QomniImage * src, uint8_t * dst,
    int dst_width, int dst_height, GError ** error);
/* Frames to take of a file of `total` frames at `video_fps`, for `fps` wanted:
 * an even number between 4 and min (max_frames, total), at round (linspace
 * (0, total-1, n)); of 2 or 3 frames two are taken, of one that one. A file of
 * unknown rate (0) is taken to have the wanted one. indices is g_free()d by
 * the caller; ret_fps is the rate they amount to. 0 without frames or without
 * memory. */
size_t qomni_sample_frames (int64_t total, double video_fps, double fps,
    int64_t max_frames, int64_t ** ret_indices, double *ret_fps);

G_END_DECLS
