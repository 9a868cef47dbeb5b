/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Brings the tensors of one component into a backend's memory. A component
 * first claims everything by name and shape; each claim names the place that
 * will receive it. The first claim that does not fit is kept as the error, so
 * the claims read like a table:
 *
 *   qomni_weights_matrix (w, &l->wq, 2, (int64_t[]){ 4096, 2048 },
 *       "%s.layers.%d.self_attn.q_proj.weight", prefix, i);
 *
 * Then qomni_weights_load() allocates, reads and fills the places. The
 * memory belongs to the QomniWeights, which the model keeps for as long as the
 * component; a component never frees it.
 */
#pragma once

#include "checkpoint.h"

G_BEGIN_DECLS

/* Told after each tensor: bytes so far of all of the component. */
typedef void (*QomniProgressFunc) (uint64_t done, uint64_t total,
    void *user_data);

QomniWeights *qomni_weights_new (QomniCheckpoint * checkpoint,
    QkBackend * backend);
void qomni_weights_free (QomniWeights * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniWeights, qomni_weights_free)

/* In which dtype matrices are kept: as stored (the default), all f32, or all
 * bf16 (rounded to nearest even). Call before the first claim. Vectors, rows
 * and host tables are f32 whatever the precision. */
typedef enum
{
  QOMNI_PRECISION_AUTO,
  QOMNI_PRECISION_F32,
  QOMNI_PRECISION_BF16,
} QomniPrecision;
void qomni_weights_set_precision (QomniWeights * self,
    QomniPrecision precision);

/* A tensor of exactly these dims, in the dtype of the file or of the precision.
 * Of more than QK_MAX_DIMS dims, the last ones become one: five dims give
 * [a, b, c, d * e]. `ret` must stay valid until the load. */
void qomni_weights_matrix (QomniWeights * self, QkTensor * ret, int n_dims,
    const int64_t * dims, const char *name_format, ...) G_GNUC_PRINTF (5, 6);
/* A vector [n], converted to f32 (norm weights, biases, scales). */
void qomni_weights_vector (QomniWeights * self, float **ret, int64_t n,
    const char *name_format, ...) G_GNUC_PRINTF (4, 5);
/* A tensor of file shape dims[3] laid out as its permutation: axis i of the
 * result is axis perm[i] of the file. f32 when `as_f32`, else as a matrix. */
void qomni_weights_permuted (QomniWeights * self, QkTensor * ret,
    const int64_t dims[3], const int perm[3], bool as_f32,
    const char *name_format, ...) G_GNUC_PRINTF (6, 7);
/* Rows `rows[n]` of a matrix dims[2], converted to f32: ret is [n, dims[1]]. */
void qomni_weights_rows (QomniWeights * self, float **ret,
    const int64_t dims[2], const int32_t * rows, int64_t n,
    const char *name_format, ...) G_GNUC_PRINTF (6, 7);
/* A tensor converted to f32 in host memory (tables the CPU interpolates). */
void qomni_weights_host (QomniWeights * self, float **ret, int n_dims,
    const int64_t * dims, const char *name_format, ...) G_GNUC_PRINTF (5, 6);
/* The experts of one layer, whatever their layout in the file: one by one
 * (`<prefix>.<e>.gate_proj.weight` …), fused (`<prefix>.gate_up_proj`
 * [n, 2 inner, width] and `<prefix>.down_proj` [n, width, inner]) or fused and
 * transposed. gate, up, down [n] are filled with views. */
void qomni_weights_experts (QomniWeights * self, QkTensor * gate,
    QkTensor * up, QkTensor * down, int64_t n, int64_t width, int64_t inner,
    const char *prefix_format, ...) G_GNUC_PRINTF (8, 9);
/* Notes an error of the caller's own, unless there is one already. */
void qomni_weights_fail (QomniWeights * self, GError * error);

/* Whether the checkpoint has a tensor of that name (for optional parts). */
bool qomni_weights_has (const QomniWeights * self, const char *name_format, ...)
    G_GNUC_PRINTF (2, 3);

/* Bytes the claims take once loaded. Tensors and parameters are those of the
 * file, each once; tensors of which only rows are wanted do not count. */
uint64_t qomni_weights_bytes (const QomniWeights * self);
size_t qomni_weights_n_tensors (const QomniWeights * self);
uint64_t qomni_weights_n_parameters (const QomniWeights * self);
/* The dtype they have in the file, "mixed" for several, "" for none. */
const char *qomni_weights_dtype (const QomniWeights * self);
/* false with a copy of the latched error when there is one. */
bool qomni_weights_check (const QomniWeights * self, GError ** error);

/* All or nothing: the places are filled when everything has been read.
 * Cancellable between tensors and within large ones. Once per object. */
bool qomni_weights_load (QomniWeights * self, QomniProgressFunc progress,
    void *user_data, GCancellable * cancellable, GError ** error);

G_END_DECLS
