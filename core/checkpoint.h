/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Named tensors out of files. A checkpoint knows nothing of the model: it
 * lists what is there, and reads or maps it. The first reader is a Hugging
 * Face directory (model.safetensors, or model.safetensors.index.json with
 * shards); others come behind the same calls.
 *
 *   g_autoptr (QomniCheckpoint) c =
 *       qomni_checkpoint_open (path, QOMNI_READ_PRIVATE, &error);
 *   const QomniTensorInfo *t =
 *       qomni_checkpoint_find (c, "thinker.lm_head.weight");
 *   ok = qomni_checkpoint_read (c, t, buffer, &error);
 *
 * Everything about the files is validated on opening, before any tensor is
 * touched: header bounds, strict JSON, shapes against offsets, no overlap, no
 * hole, file length. Immutable afterwards and safe to use from many threads.
 */
#pragma once

#include "types.h"

G_BEGIN_DECLS

#define QOMNI_TENSOR_MAX_DIMS 8

typedef enum
{
  QOMNI_READ_PRIVATE,           /* read into memory of our own (default) */
  QOMNI_READ_MAPPED,            /* map the files: they must not change */
} QomniReadMode;

/* A dtype of the file format, of which only some can be weights. */
typedef struct
{
  const char *name;             /* "BF16", as the file says */
  size_t bits;
  bool is_weight;               /* F32, BF16, F16 */
  QkDtype dtype;                /* when is_weight */
} QomniFileDtype;

typedef struct
{
  const char *name;
  const QomniFileDtype *dtype;
  int n_dims;
  int64_t dims[QOMNI_TENSOR_MAX_DIMS];
  uint32_t shard;
  uint64_t offset;              /* in the shard file */
  uint64_t bytes;
} QomniTensorInfo;

QomniCheckpoint *qomni_checkpoint_open (const char *path, QomniReadMode mode,
    GError ** error);
/* The same, reading through `io` (see file.h), which is copied. */
struct _QomniFileIo;
QomniCheckpoint *qomni_checkpoint_open_with_io (const char *path,
    QomniReadMode mode, const struct _QomniFileIo *io, GError ** error);
QomniCheckpoint *qomni_checkpoint_ref (QomniCheckpoint * self);
void qomni_checkpoint_unref (QomniCheckpoint * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniCheckpoint, qomni_checkpoint_unref)

/* Where the files of a checkpoint are: `path` itself, or the snapshot that
 * refs/main names when `path` is a `models--…` directory of the Hugging Face
 * cache. An error for anything that is no directory. g_free(). */
char *qomni_checkpoint_resolve (const char *path, GError ** error);

/* The directory, as given. */
const char *qomni_checkpoint_path (const QomniCheckpoint * self);
/* The same, resolved. */
const char *qomni_checkpoint_directory (const QomniCheckpoint * self);
size_t qomni_checkpoint_n_tensors (const QomniCheckpoint * self);
size_t qomni_checkpoint_n_shards (const QomniCheckpoint * self);
/* Tensors in the order of shard and offset; i < n_tensors. */
const QomniTensorInfo *qomni_checkpoint_nth (const QomniCheckpoint * self,
    size_t i);
/* NULL when there is none of that name. */
const QomniTensorInfo *qomni_checkpoint_find (const QomniCheckpoint * self,
    const char *name);
/* Whether any tensor name begins with `prefix`. */
bool qomni_checkpoint_has_prefix (const QomniCheckpoint * self,
    const char *prefix);
const char *qomni_checkpoint_shard_name (const QomniCheckpoint * self,
    uint32_t shard);

/* Copies `bytes` bytes from `offset` of the tensor. */
bool qomni_checkpoint_read_part (QomniCheckpoint * self,
    const QomniTensorInfo * tensor, uint64_t offset, void *dst, size_t bytes,
    GError ** error);
bool qomni_checkpoint_read (QomniCheckpoint * self,
    const QomniTensorInfo * tensor, void *dst, GError ** error);
/* The tensor's bytes in the mapped file; NULL when the files are not mapped or
 * the data is not aligned to its element size. Lives as long as `self`. */
const void *qomni_checkpoint_map (QomniCheckpoint * self,
    const QomniTensorInfo * tensor);

/* Writes one safetensors file: a temporary beside it, then a rename. */
typedef struct
{
  const char *name;
  const char *dtype;            /* "F32", "I64", … */
  int n_dims;
  int64_t dims[QOMNI_TENSOR_MAX_DIMS];
  const void *data;
  size_t bytes;
} QomniTensorOut;
bool qomni_safetensors_write (const char *path, const QomniTensorOut * tensors,
    size_t n, GError ** error);

G_END_DECLS
