/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qk: what is the same on every device: sizes, names, views and the conversion
 * of weights between f32, bf16 and f16 on the host.
 */
#include "qk.h"

#include "half.h"

#include <string.h>

size_t
qk_dtype_size (QkDtype dtype)
{
  return dtype == QK_F32 ? 4 : 2;
}

const char *
qk_dtype_name (QkDtype dtype)
{
  switch (dtype) {
    case QK_F32:
      return "F32";
    case QK_BF16:
      return "BF16";
    case QK_F16:
      return "F16";
    default:
      return "?";
  }
}

int64_t
qk_tensor_count (const QkTensor * t)
{
  int64_t n = 1;

  for (int i = 0; i < t->n_dims; i++)
    n *= t->dims[i];
  return n;
}

QkTensor
qk_tensor_rows (const QkTensor * t, int64_t first, int64_t n)
{
  QkTensor view = *t;
  int64_t row = 1;

  for (int i = 1; i < t->n_dims; i++)
    row *= t->dims[i];
  view.data = (char *) t->data
      + (size_t) (first * row) * qk_dtype_size (t->dtype);
  view.dims[0] = n;
  return view;
}

void
qk_to_f32 (float *dst, const void *src, QkDtype dtype, size_t n)
{
  const uint16_t *half = src;

  switch (dtype) {
    case QK_BF16:
      for (size_t i = 0; i < n; i++)
        dst[i] = qk_bf16_to_f32 (half[i]);
      break;
    case QK_F16:
      for (size_t i = 0; i < n; i++)
        dst[i] = qk_f16_to_f32 (half[i]);
      break;
    default:
      if (n > 0)
        memcpy (dst, src, n * sizeof (float));
  }
}

void
qk_from_f32 (void *dst, const float *src, QkDtype dtype, size_t n)
{
  uint16_t *half = dst;

  switch (dtype) {
    case QK_BF16:
      for (size_t i = 0; i < n; i++)
        half[i] = qk_f32_to_bf16 (src[i]);
      break;
    case QK_F16:
      for (size_t i = 0; i < n; i++)
        half[i] = qk_f32_to_f16 (src[i]);
      break;
    default:
      if (n > 0)
        memcpy (dst, src, n * sizeof (float));
  }
}

QkBackend *
qk_stream_backend (const QkStream * s)
{
  return s->backend;
}
