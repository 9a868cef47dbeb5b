/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * simd: the inner loops that exist once per instruction set, and the ops built
 * on them.
 *
 *   QkOps     matmul, attention, moe …        simd/matmul.c, …: shapes, threads
 *   QkSimd    dot, pack, tile, softmax …      simd/avx2.c, …: vectors
 *
 * The loops of all instruction sets are the same text, simd/loops.h, compiled
 * over the vectors that each defines. A partial vector is read and written
 * under a mask, so a value does not depend on where in a vector it stood and
 * nothing outside the arrays is touched.
 *
 * Two ways through a matrix product: `dot` walks rows of weights as they lie in
 * memory and is bound by reading them, for few rows of x; `tile` multiplies a
 * block of x by a panel of weights that `pack` has turned into
 * [k][tile_cols] f32, and is bound by arithmetic.
 */
#pragma once

#include "../cpu.h"

struct _QkSimd
{
  /* out[i * ld + r] = w[r] . x[i], r < rows, i < n; w is [rows, k], dense. */
  void (*dot[QK_N_DTYPES]) (float *out, int64_t ld, const float *const *x,
      int64_t n, const void *w, int64_t rows, int64_t k);

  int tile_rows, tile_cols;
  /* b[t][r] = w[r][t], t < k, from rows of w that are ldw apart; b has
   * tile_cols columns, those from `rows` on are zero. */
  void (*pack[QK_N_DTYPES]) (float *b, const void *w, int64_t ldw,
      int64_t rows, int64_t k);
  /* y[rows, cols] = a[rows, k] b[k, cols], or += when `add`;
   * rows <= tile_rows, cols <= tile_cols. */
  void (*tile) (float *y, int64_t ldy, const float *a, int64_t lda,
      const float *b, int64_t ldb, int64_t k, int rows, int cols, bool add);

  /* y = act (t + bias), or y += that; bias may be NULL, y may be t. */
  void (*finish) (float *y, const float *t, const float *bias, int64_t n,
      QkActivation act, bool accumulate);
  /* The same with one bias for all. */
  void (*finish_row) (float *y, float bias, int64_t n, QkActivation act);

  /* One step of a running softmax over n more scores: s becomes
   * e^(s * scale - max), max and sum are brought up to date, and the factor
   * for what was summed before is returned. max starts at -inf, sum at 0. */
  float (*softmax) (float *s, int64_t n, float scale, float *max, float *sum);

  bool (*is_finite) (const float *x, int64_t n);

  void (*rms_norm) (float *y, const float *x, int64_t d, const float *w,
      float eps);
  void (*layer_norm) (float *y, const float *x, int64_t d, const float *w,
      const float *b, float eps);
  /* a, b = a cos - b sin, b cos + a sin */
  void (*rotate) (float *a, float *b, const float *cosines, const float *sines,
      int64_t n);

  void (*silu_mul) (float *y, const float *up, int64_t n);
  void (*add) (float *y, const float *x, int64_t n);
  void (*scale) (float *y, float factor, int64_t n);
  void (*clamp) (float *y, float lo, float hi, int64_t n);
  /* y += w x */
  void (*mul_add) (float *y, const float *x, const float *w, int64_t n);
  /* y += factor x */
  void (*axpy) (float *y, const float *x, float factor, int64_t n);
  void (*snake) (float *y, const float *x, const float *a, const float *b,
      int64_t n);
  void (*to_f32[QK_N_DTYPES]) (float *y, const void *w, int64_t n);
};

extern const QkSimd qk_simd_avx2, qk_simd_avx512;

static inline const QkSimd *
qk_simd (const QkStream * s)
{
  return ((const QkCpuBackend *) s->backend)->simd;
}

/* Rows of each tile when n rows are cut into tiles of nearly one height, rather
 * than into full ones and a low, slow one at the end. */
static inline int
qk_tile_height (int64_t n, int tile_rows)
{
  int64_t n_tiles = (n + tile_rows - 1) / tile_rows;

  return n_tiles > 0 ? (int) ((n + n_tiles - 1) / n_tiles) : 1;
}

/* Rows of activations for `tile`: their distance must not be a large power of
 * two, or a dozen of them compete for one set of the first cache. */
static inline bool
qk_is_bad_stride (int64_t floats)
{
  return floats % 512 == 0;
}

/* y[n, m] = act (sum over the taps of x[row + offset] w[tap]^T + bias): a
 * matrix product is the case of one tap, a convolution over time has several.
 * Offsets of taps are first_offset + tap * offset_step rows of x. */
typedef struct
{
  float *y;
  const float *x;
  int64_t n, m, c_in;
  int64_t n_taps, first_offset, offset_step;
  const void *w;                /* [n_taps, m, c_in] */
  QkDtype dtype;
  const float *bias;            /* [n_bias], repeated to m */
  int64_t n_bias;
  QkActivation act;
  bool accumulate;
} QkGemm;

void qk_simd_gemm (QkStream * s, const QkGemm * g);

/* The same for at most QK_FEW_ROWS rows: needs no scratch memory, and a row's
 * result does not depend on how many there are. */
#define QK_FEW_ROWS 48
void qk_simd_gemm_few (QkStream * s, const QkGemm * g);

void qk_simd_matmul (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * w, const float *bias, QkActivation act, bool accumulate);
void qk_simd_conv1d (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * weight, const float *bias, int64_t dilation,
    bool accumulate);
void qk_simd_conv1d_transposed (QkStream * s, float *y, const float *x,
    int64_t n, int64_t r, const QkTensor * weight, const float *bias);
void qk_simd_conv1d_depthwise (QkStream * s, float *y, const float *x,
    int64_t n, int64_t c, const float *weight, int64_t k, const float *bias);
void qk_simd_conv2d_s2 (QkStream * s, float *y, const float *x, int64_t h,
    int64_t w, const QkTensor * weight, const float *bias, QkActivation act);
void qk_simd_attention (QkStream * s, float *out, const float *q,
    const float *k, const float *v, const QkAttention * a);
void qk_simd_moe (QkStream * s, float *y, const float *x, int64_t n,
    const QkMoe * moe, int32_t * ret_experts);
