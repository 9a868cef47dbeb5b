/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qk: the arithmetic of the engine on two pages.
 *
 * A QkBackend is a device (its memory and its threads); it is immutable once
 * made and shared by everything that runs on that device. A QkStream is one
 * line of work on it: ops queued on a stream run in order, its scratch memory
 * is its own, and a fault is latched there and read once per step with
 * qk_stream_error(). A stream is used by one thread at a time; several streams
 * of one backend may work at once.
 *
 * Activations are f32, weights are f32, bf16 or f16 as the checkpoint stores
 * them; sums are kept in f32. A tensor is dense and row-major, the last
 * dimension varies fastest. A matrix of activations is [n rows, width].
 *
 * Model code touches tensor memory only through qk_upload(), qk_download() and
 * the ops, so the same code drives a device whose memory the CPU cannot read.
 * Ops never fail and never allocate tensors: the caller has checked the shapes
 * when it claimed the weights. Results do not depend on the number of threads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QK_MAX_DIMS 4

typedef enum
{
  QK_F32,
  QK_BF16,
  QK_F16,
  QK_N_DTYPES,
} QkDtype;

/* A view of `dims[0] * … * dims[n_dims - 1]` elements; owns nothing. */
typedef struct
{
  void *data;
  QkDtype dtype;
  int n_dims;
  int64_t dims[QK_MAX_DIMS];
} QkTensor;

typedef enum
{
  QK_ACT_NONE,
  QK_ACT_GELU,                  /* x/2 (1 + erf (x / sqrt 2)) */
  QK_ACT_GELU_TANH,             /* the tanh approximation */
  QK_ACT_SILU,                  /* x / (1 + e^-x) */
} QkActivation;

typedef struct _QkBackend QkBackend;
typedef struct _QkStream QkStream;

/* Scaled dot-product attention of n_q query rows over n_kv key/value rows,
 * grouped: query head h reads kv head h / (n_heads / n_kv_heads).
 * Query row i stands at key position `first + i`. With `causal` it sees the
 * keys 0 … first + i, with window > 0 only the last `window` of those. Without
 * `causal` every query sees every key. */
typedef struct
{
  int64_t n_q, n_kv;
  int n_heads, n_kv_heads, head_dim;
  float scale;
  bool causal;
  int64_t first;
  int64_t window;
} QkAttention;

/* Mixture of SwiGLU experts. Each of gate, up [n_experts] is a matrix
 * [inner, width], down [n_experts] is [width, inner].
 *   p = softmax (router x), the top_k largest win, their p is divided by its
 *   sum when norm_top_k; y = sum p_e down_e (silu (gate_e x) * up_e x)
 *   + sigmoid (shared_scale x) * shared_down (silu (shared_gate x) * shared_up x)
 * Ties go to the lower expert index. The shared expert is absent when
 * shared_gate.data is NULL. */
typedef struct
{
  int n_experts, top_k;
  bool norm_top_k;
  QkTensor router;              /* [n_experts, width] */
  const QkTensor *gate, *up, *down;
  QkTensor shared_gate, shared_up, shared_down;
  QkTensor shared_scale;        /* [1, width] */
} QkMoe;

/* One function per operation. x, y are f32; vectors (norm weights, biases,
 * snake constants) are f32 as well; `w` may be any dtype. Sizes may be 0. */
typedef struct
{
  /* y[n,m] = act (x[n,k] w[m,k]^T + bias[m]), or y += that when `accumulate`
   * (act is then NONE). bias may be NULL. y must not alias x. */
  void (*matmul) (QkStream * s, float *y, const float *x, int64_t n,
      const QkTensor * w, const float *bias, QkActivation act, bool accumulate);

  /* y[n,d] = w * x / sqrt (mean (x^2) + eps); y may be x. */
  void (*rms_norm) (QkStream * s, float *y, const float *x, int64_t n,
      int64_t d, const float *w, float eps);
  /* y[n,d] = (x - mean) / sqrt (var + eps) * w + b; y may be x. */
  void (*layer_norm) (QkStream * s, float *y, const float *x, int64_t n,
      int64_t d, const float *w, const float *b, float eps);

  /* Rotates x[n, n_heads, head_dim] in place, pairs (i, i + head_dim/2):
   * table is [n, 2, head_dim/2], cosines then sines of each row's angles. */
  void (*rope) (QkStream * s, float *x, const float *table, int64_t n,
      int n_heads, int head_dim);

  /* out[n_q, n_heads*head_dim] from q of that shape, k and v
   * [n_kv, n_kv_heads*head_dim]. out must not alias the inputs. */
  void (*attention) (QkStream * s, float *out, const float *q, const float *k,
      const float *v, const QkAttention * a);

  /* y[n,width] += MoE (x[n,width]); y must not alias x. When not NULL,
   * ret_experts[n, top_k] receives the chosen experts (for tests). */
  void (*moe) (QkStream * s, float *y, const float *x, int64_t n,
      const QkMoe * moe, int32_t * ret_experts);

  /* Elementwise on n values, in place on y. */
  void (*silu_mul) (QkStream * s, float *y, const float *up, int64_t n);  /* y = silu (y) * up */
  void (*activate) (QkStream * s, float *y, int64_t n, QkActivation act);
  void (*add) (QkStream * s, float *y, const float *x, int64_t n);      /* y += x */
  void (*scale) (QkStream * s, float *y, float factor, int64_t n);      /* y *= factor */
  void (*clamp) (QkStream * s, float *y, float lo, float hi, int64_t n);
  /* y[n,d] += w[d] * x[n,d] */
  void (*add_scaled) (QkStream * s, float *y, const float *x, int64_t n,
      int64_t d, const float *w);

  /* y[n,d] (+)= table[ids[i]], ids in host memory, each within the table. */
  void (*embed) (QkStream * s, float *y, const QkTensor * table,
      const int32_t * ids, int64_t n, bool accumulate);
  /* y[rows[i], :] (+)= x[i, :], rows in host memory, all different. */
  void (*scatter_rows) (QkStream * s, float *y, const float *x, int64_t d,
      const int32_t * rows, int64_t n, bool accumulate);

  /* 2-D convolution 3x3, stride 2, zero padding 1, then act:
   * x [c_in, h, w] -> y [c_out, (h+1)/2, (w+1)/2]; weight [c_out, c_in, 3, 3]. */
  void (*conv2d_s2) (QkStream * s, float *y, const float *x, int64_t h,
      int64_t w, const QkTensor * weight, const float *bias, QkActivation act);

  /* Causal 1-D convolution over time, channels last: row t of y [n, c_out]
   * reads rows t, t-d, …, t-(k-1)d of x, where x points at the row of t = 0 and
   * (k-1)*d rows of history stand before it. weight is [k, c_out, c_in], tap
   * k-1 meets row t. */
  void (*conv1d) (QkStream * s, float *y, const float *x, int64_t n,
      const QkTensor * weight, const float *bias, int64_t dilation,
      bool accumulate);
  /* The same for one filter per channel: weight [k, c] f32. */
  void (*conv1d_depthwise) (QkStream * s, float *y, const float *x, int64_t n,
      int64_t c, const float *weight, int64_t k, const float *bias);
  /* Transposed convolution of kernel 2r, stride r, its first and last r outputs
   * cut: x [n+1, c_in] -> y [n*r, c_out], block m reads rows m and m+1:
   * y[m*r+j] = bias + W[j] x[m+1] + W[r+j] x[m]; weight [2r, c_out, c_in].
   * With kernel r (weight [r, c_out, c_in]) nothing is cut and x is [n, c_in]:
   * y[m*r+j] = bias + W[j] x[m]. */
  void (*conv1d_transposed) (QkStream * s, float *y, const float *x, int64_t n,
      int64_t r, const QkTensor * weight, const float *bias);
  /* y = x + sin^2 (x a_c) b_c per channel c of [n, c]; a = e^alpha,
   * b = 1 / (e^beta + 1e-9). y may be x. */
  void (*snake) (QkStream * s, float *y, const float *x, int64_t n, int64_t c,
      const float *a, const float *b);
} QkOps;

struct _QkBackend
{
  const QkOps *ops;
  const char *name;             /* "cpu/avx512", … */

  void (*free) (QkBackend * be);
  QkStream *(*stream_new) (QkBackend * be);     /* NULL without memory */
  void (*stream_free) (QkStream * s);

  /* Device memory, 64-byte aligned, zeroed; NULL when there is none left. */
  void *(*alloc) (QkBackend * be, size_t bytes);
  void (*release) (QkBackend * be, void *data, size_t bytes);

  /* Ordered with the ops of the stream; upload and download return when the
   * host memory may be reused or read. copy may overlap (memmove). */
  void (*upload) (QkStream * s, void *dst, const void *src, size_t bytes);
  void (*download) (QkStream * s, void *dst, const void *src, size_t bytes);
  void (*copy) (QkStream * s, void *dst, const void *src, size_t bytes);
  void (*zero) (QkStream * s, void *dst, size_t bytes);

  /* NULL, or what went wrong on this stream since it was made. */
  const char *(*error) (QkStream * s);
};

/* --- the CPU ------------------------------------------------------------ */

/* Instruction sets, each including the ones before it. */
typedef enum
{
  QK_CPU_C,
  QK_CPU_AVX2,                  /* AVX2, FMA, F16C */
  QK_CPU_AVX512,                /* F, BW, DQ, VL */
  QK_CPU_AVX512_VNNI,
  QK_CPU_BEST = 255,
} QkCpuLevel;

/* What this machine and its operating system offer. */
QkCpuLevel qk_cpu_probe (void);
const char *qk_cpu_level_name (QkCpuLevel level);

/* A backend on `n_threads` threads (0: as many as the process may run on) that
 * uses no instruction set above `level` or above the probed one. When two
 * streams work at once, the second runs on its own calling thread. NULL when
 * memory is short. */
QkBackend *qk_cpu_backend_new (int n_threads, QkCpuLevel level);

/* --- shorthands --------------------------------------------------------- */

size_t qk_dtype_size (QkDtype dtype);
const char *qk_dtype_name (QkDtype dtype);      /* "F32", "BF16", … */
int64_t qk_tensor_count (const QkTensor * t);
/* Rows first … first+n-1 along the outermost dimension. */
QkTensor qk_tensor_rows (const QkTensor * t, int64_t first, int64_t n);

/* Converts n weights on the host; src may be any dtype. */
void qk_to_f32 (float *dst, const void *src, QkDtype dtype, size_t n);
void qk_from_f32 (void *dst, const float *src, QkDtype dtype, size_t n);

QkBackend *qk_stream_backend (const QkStream * s);
/* The first member of every backend's stream. */
struct _QkStream
{
  QkBackend *backend;
  const QkOps *ops;
};

#ifdef __cplusplus
}
#endif
