/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The header of one safetensors file: 8 bytes of length, then JSON that says
 * where in the rest of the file each tensor lies. Only checkpoint.c and tests
 * use this.
 */
#pragma once

#include "checkpoint.h"
#include "file.h"

G_BEGIN_DECLS

typedef struct
{
  QomniTensorInfo *tensors;     /* in the order of their offsets */
  size_t n;
  char *names;                  /* the memory of tensors[].name */
} QomniSafetensors;
void qomni_safetensors_clear (QomniSafetensors * self);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (QomniSafetensors, qomni_safetensors_clear)

/* Reads the header of an open file of `file_size` bytes. `name` is for the
 * messages. */
bool qomni_safetensors_read (const QomniFileIo * io, int fd, const char *name,
    uint64_t file_size, QomniSafetensors * ret, GError ** error);
/* The JSON part, for a file of `file_size` bytes in all. */
bool qomni_safetensors_parse (const char *name, const char *json,
    size_t length, uint64_t file_size, QomniSafetensors * ret,
    GError ** error);
/* NULL for a name that the format does not have. */
const QomniFileDtype *qomni_file_dtype (const char *name);

G_END_DECLS
