/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * config.json, preprocessor_config.json and generation_config.json as plain
 * structs, every value checked against its range and against its neighbours.
 * Reads the dialects of transformers 4 (rope_theta, rope_scaling) and 5
 * (rope_parameters), and a Thinker saved on its own (its config at the root,
 * names without the `thinker.` prefix).
 */
#pragma once

#include "types.h"

G_BEGIN_DECLS

/* A stack of decoder layers: Thinker, Talker, code predictor, Code2Wav. */
typedef struct
{
  int64_t vocab_size, hidden_size;
  int n_layers, n_heads, n_kv_heads, head_dim;
  int64_t intermediate_size;    /* dense layers (Talker: its projections) */
  int n_experts, top_k;         /* 0: every layer is dense */
  int64_t moe_intermediate_size, shared_intermediate_size;      /* 0: none */
  bool norm_top_k;
  int decoder_sparse_step;
  bool dense_layer[QOMNI_MAX_LAYERS];   /* true: SwiGLU instead of experts */
  double rope_theta;
  int mrope_section[3];         /* t, h, w; sums to head_dim / 2; 0,0,0: 1-D */
  double rms_norm_eps;
  int64_t sliding_window;       /* keys a query sees, itself included; 0: all */
} QomniDecoderConfig;

typedef struct
{
  int n_mel, n_layers, n_heads;
  int64_t width, ffn, output_dim, conv_channels;
  int chunk_frames;             /* 2 n_window: mel frames of one conv chunk */
  int window_chunks;            /* conv chunks of one attention window */
} QomniAudioConfig;

typedef struct
{
  int depth, n_heads;
  int64_t width, ffn, output_dim;
  int in_channels, patch_size, temporal_patch_size, merge_size;
  int position_side;            /* sqrt (num_position_embeddings) */
  int n_deepstack;
  int deepstack_layer[QOMNI_MAX_LAYERS];
} QomniVisionConfig;

typedef struct
{
  char *name;                   /* lower case, as in the file */
  int32_t id;
} QomniVoice;

typedef struct
{
  QomniDecoderConfig text, predictor;
  int accept_layer;
  int64_t thinker_width;
  int n_groups;
  int64_t codebook_size;        /* of the residual groups (predictor vocab) */
  int32_t codec_pad, codec_bos, codec_eos;
  int32_t codec_nothink, codec_think_bos, codec_think_eos;
  int n_voices;
  QomniVoice *voices;           /* in the order of the file */
} QomniTalkerConfig;

typedef struct
{
  QomniDecoderConfig pre;       /* the pre-transformer */
  int64_t codebook_size;
  int n_quantizers;
  int n_upsample, n_blocks;     /* 2 and 4 in the published model */
  int upsample_ratio[8], upsample_rate[8];
  int64_t decoder_dim;
  int64_t samples_per_frame;    /* product of all of them: 1920 */
  int64_t missing_samples;      /* what the trimmed stages eat: 555 */
} QomniCode2WavConfig;

typedef struct
{
  int64_t image_min_pixels, image_max_pixels;
  int64_t video_min_pixels, video_max_pixels;
  float image_mean[3], image_std[3];
  int sampling_rate, n_fft, hop_length; /* 16000, 400, 160; refused otherwise */
} QomniPreprocessorConfig;

/* Sampling defaults. temperature 0 means greedy. */
typedef struct
{
  bool sample;
  double temperature, top_p, repetition_penalty;
  int top_k;
  int max_tokens;
} QomniSampling;

struct _QomniConfig
{
  char *model_type;             /* "qwen3_omni_moe" */
  char *thinker_prefix;         /* "thinker." or "" */
  bool has_audio, has_vision, has_speech;       /* what the config describes */

  QomniDecoderConfig text;
  QomniAudioConfig audio;
  QomniVisionConfig vision;
  QomniTalkerConfig talker;
  QomniCode2WavConfig code2wav;
  QomniPreprocessorConfig preprocessor;

  double position_id_per_seconds;       /* 13 */
  int32_t im_start, im_end;
  int32_t system_id, user_id, assistant_id;
  int32_t tts_pad, tts_bos, tts_eos;
  int32_t audio_pad, audio_start, audio_end;
  int32_t image_pad, video_pad, vision_start, vision_end;

  QomniSampling thinker_sampling;       /* greedy, 1024 tokens */
  QomniSampling talker_sampling;        /* 0.9, top-k 50, penalty 1.05, 4096 */
  QomniSampling predictor_sampling;     /* 1.0, top-k 50, top-p 0.8 */
};

/* Reads the JSON files of a checkpoint directory. Token ids that config.json
 * does not have are -1; qomni_model_new() takes them from the tokenizer. */
QomniConfig *qomni_config_read (const char *path, GError ** error);
/* The text of a config.json, with the defaults for all the other files. */
QomniConfig *qomni_config_parse (const char *name, const char *json,
    size_t length, GError ** error);
void qomni_config_free (QomniConfig * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniConfig, qomni_config_free)

/* The voice of that name, any case; NULL name: "ethan", or the first one when
 * there is no ethan. An unknown name is an error that lists the voices. */
const QomniVoice *qomni_config_voice (const QomniConfig * self,
    const char *name, GError ** error);

G_END_DECLS
