/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * matmul: a product with one tap, see gemm.c.
 */
#include "simd.h"

void
qk_simd_matmul (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * w, const float *bias, QkActivation act, bool accumulate)
{
  QkGemm gemm = {.y = y,.x = x,.n = n,.m = w->dims[0],.c_in = w->dims[1],
    .n_taps = 1,.w = w->data,.dtype = w->dtype,.bias = bias,
    .n_bias = w->dims[0],.act = act,.accumulate = accumulate
  };

  qk_simd_gemm (s, &gemm);
}
