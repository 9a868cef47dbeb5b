/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A whole safetensors file in memory. Every tensor of an accepted file lies in
 * it, one behind the other, and its bytes are those of its shape.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "safetensors.h"

typedef struct
{
  const uint8_t *data;
  size_t size;
} Block;

static ssize_t
read_block (void *user_data, int fd, void *dst, size_t bytes, uint64_t offset)
{
  const Block *b = user_data;
  size_t n;

  if (offset >= b->size)
    return 0;
  n = MIN (bytes, b->size - (size_t) offset);
  memcpy (dst, b->data + offset, n);
  return (ssize_t) n;
}

static void
check (const QomniSafetensors * st, uint64_t size)
{
  uint64_t at = st->n > 0 ? st->tensors[0].offset : size;

  for (size_t i = 0; i < st->n; i++) {
    const QomniTensorInfo *t = &st->tensors[i];
    uint64_t bits = t->dtype->bits;

    for (int k = 0; k < t->n_dims; k++)
      bits *= (uint64_t) t->dims[k];
    if (t->offset != at || t->offset < 8 || bits != 8 * t->bytes
        || strlen (t->name) > QOMNI_MAX_TENSOR_NAME)
      abort ();
    at += t->bytes;
  }
  if (at != size)
    abort ();
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  Block block = { data, size };
  QomniFileIo io = { read_block, &block };
  g_auto (QomniSafetensors) st = { NULL, 0, NULL };
  g_autoptr (GError) error = NULL;
  bool ok;

  if (size > 1 << 16)
    return 0;
  ok = qomni_safetensors_read (&io, -1, "fuzz", size, &st, &error);
  if (ok != (error == NULL))
    abort ();
  if (ok)
    check (&st, size);
  return 0;
}
