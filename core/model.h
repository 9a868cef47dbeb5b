/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniModel: one checkpoint on one device. Immutable to its users, reference
 * counted, thread safe; components are loaded on first use, each once.
 *
 *   g_autoptr (QomniModel) m = qomni_model_ref_or_load (path, NULL, &error);
 *   qomni_model_load (m, QOMNI_COMPONENT_THINKER, NULL, NULL, NULL, &error);
 */
#pragma once

#include "model-config.h"
#include "weights.h"

G_BEGIN_DECLS

typedef enum
{
  QOMNI_COMPONENT_AUDIO = 1 << 0,
  QOMNI_COMPONENT_VISION = 1 << 1,
  QOMNI_COMPONENT_THINKER = 1 << 2,
  QOMNI_COMPONENT_TALKER = 1 << 3,      /* with the code predictor */
  QOMNI_COMPONENT_CODE2WAV = 1 << 4,
  QOMNI_COMPONENT_SPEECH = QOMNI_COMPONENT_TALKER | QOMNI_COMPONENT_CODE2WAV,
} QomniComponents;

typedef struct
{
  const char *device;           /* NULL or "auto", "cpu"; "cuda[:n]" */
  const char *precision;        /* NULL or "auto" (as stored), "f32", "bf16" */
  int n_threads;                /* 0: as many as the process may run on */
  QkCpuLevel cpu_level;         /* QK_CPU_BEST; a lower one for tests */
  QomniReadMode read_mode;
  const char *engine_id;        /* NULL: "" ; different ids never share */
} QomniModelOptions;
#define QOMNI_MODEL_OPTIONS_INIT { .cpu_level = QK_CPU_BEST }

/* Opens what small files can tell: config, tokenizer, tensor index, presence
 * and sizes of the shards. No weights yet. `options` may be NULL. */
QomniModel *qomni_model_new (const char *path,
    const QomniModelOptions * options, GError ** error);
/* The model of the same files and settings that somebody in this process
 * already holds, else a new one. Keyed by canonical path, file identity
 * and all of the options. */
QomniModel *qomni_model_ref_or_load (const char *path,
    const QomniModelOptions * options, GError ** error);
QomniModel *qomni_model_ref (QomniModel * self);
void qomni_model_unref (QomniModel * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniModel, qomni_model_unref)

/* $QOMNI_MODEL, else the built-in checkpoint qomni-nano; NULL when there is
 * none. It is looked for where it was installed, or in $QOMNI_MODELS_DIR, which
 * `meson devenv` sets to the one of the source tree. g_free(). ret_builtin may
 * be NULL. */
char *qomni_model_default_path (bool * ret_builtin);

/* Loads what is not loaded yet of `components` and waits for what another
 * thread is loading. An error leaves the component unloaded and may be tried
 * again. */
bool qomni_model_load (QomniModel * self, QomniComponents components,
    QomniProgressFunc progress, void *user_data, GCancellable * cancellable,
    GError ** error);
/* Which ones the checkpoint has, and which ones are loaded. */
QomniComponents qomni_model_components (const QomniModel * self);
QomniComponents qomni_model_loaded (QomniModel * self);
/* Bytes, tensors and parameters that `component` (one of them) will take,
 * whether loaded or not; 0 when the checkpoint lacks it. */
typedef struct
{
  uint64_t bytes, n_parameters;
  size_t n_tensors;
  const char *dtype;            /* "BF16"; "mixed" */
} QomniComponentInfo;
bool qomni_model_component_info (QomniModel * self, QomniComponents component,
    QomniComponentInfo * ret, GError ** error);
const char *qomni_component_name (QomniComponents component);

const char *qomni_model_path (const QomniModel * self);
const QomniConfig *qomni_model_config (const QomniModel * self);
const QomniTokenizer *qomni_model_tokenizer (const QomniModel * self);
QomniCheckpoint *qomni_model_checkpoint (const QomniModel * self);
QkBackend *qomni_model_backend (const QomniModel * self);
/* 16 hex digits over config.json and one small tensor of each encoder: equal
 * for two copies of a checkpoint, different for two trained encoders. */
const char *qomni_model_fingerprint (const QomniModel * self);

/* NULL unless loaded. They live as long as the model. */
const QomniAudioTower *qomni_model_audio (const QomniModel * self);
const QomniVisionTower *qomni_model_vision (const QomniModel * self);
const QomniThinkerWeights *qomni_model_thinker (const QomniModel * self);
const QomniTalkerWeights *qomni_model_talker (const QomniModel * self);
const QomniCode2WavWeights *qomni_model_code2wav (const QomniModel * self);

/* --- what a component offers to the model (in the file that computes it) --
 *
 * _claim() allocates the component and claims its tensors, as in weights.h;
 * it never fails by itself (errors stay in `weights`). Config sizes are
 * already checked. _free() takes NULL, and a component that was only claimed;
 * it does not free `weights`, which the model owns and frees afterwards. */
QomniAudioTower *qomni_audio_tower_claim (const QomniConfig * config,
    QomniWeights * weights);
void qomni_audio_tower_free (QomniAudioTower * self);
QomniVisionTower *qomni_vision_tower_claim (const QomniConfig * config,
    QomniWeights * weights);
void qomni_vision_tower_free (QomniVisionTower * self);
QomniThinkerWeights *qomni_thinker_weights_claim (const QomniConfig * config,
    QomniWeights * weights);
void qomni_thinker_weights_free (QomniThinkerWeights * self);
QomniTalkerWeights *qomni_talker_weights_claim (const QomniConfig * config,
    QomniWeights * weights);
void qomni_talker_weights_free (QomniTalkerWeights * self);
QomniCode2WavWeights *qomni_code2wav_weights_claim (const QomniConfig * config,
    QomniWeights * weights);
void qomni_code2wav_weights_free (QomniCode2WavWeights * self);

G_END_DECLS
