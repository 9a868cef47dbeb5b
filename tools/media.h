/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Any file that GStreamer can decode, as the engine wants it: sound as 16 kHz
 * mono, pictures as RGB frames. And the other way: speech into a WAV file.
 */
#pragma once

#include "audio-encoder.h"
#include "vision-encoder.h"

G_BEGIN_DECLS

/* Pushes the sound of `path` into `encoder` and flushes it. When the file has
 * no sound: *ret_has_sound false and nothing pushed, or an error if that
 * pointer is NULL. */
bool media_push_audio (const char *path, QomniAudioEncoder * encoder,
    bool *ret_has_sound, GCancellable * cancellable, GError ** error);

/* Pushes the picture of `path` as a clip of its own and flushes it. */
bool media_push_image (const char *path, QomniVisionEncoder * encoder,
    GCancellable * cancellable, GError ** error);

/* Pushes frames of the video `path`, sampled at about `fps` by the offline rule
 * (qomni_sample_frames), as a clip and flushes it. `slice_frames` of them make
 * one temporal slice (the config's temporal_patch_size). Decodes the file twice:
 * once to count its frames. At most `max_frames` are taken. */
bool media_push_video (const char *path, double fps, int64_t max_frames,
    int slice_frames, QomniVisionEncoder * encoder, GCancellable * cancellable,
    GError ** error);

/* A mono 16-bit WAV file that grows; the header is right after _close(). */
typedef struct _MediaWav MediaWav;
MediaWav *media_wav_open (const char *path, int rate, GError ** error);
bool media_wav_write (MediaWav * self, const float *samples, size_t n,
    GError ** error);
bool media_wav_close (MediaWav * self, GError ** error);
/* Without the header: for error paths. Takes NULL. */
void media_wav_free (MediaWav * self);

G_END_DECLS
