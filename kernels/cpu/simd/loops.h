/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * loops: the inner loops of one instruction set, as text. The including file
 * has defined the vector type V of VN floats and the v_… functions on it, and
 *
 *   TILE_ROWS, TILE_VECS   the register tile of `tile`
 *   DOT_MOST               rows of x that `dot` takes at once
 *   DOT_ROWS               rows of weights it reads side by side
 *   LOOPS_TABLE            name of the QkSimd to define
 *
 * Arrays of V with constant bounds live in registers once the loops over them
 * are unrolled.
 */
#include "simd.h"

#include <math.h>

#if defined (__clang__)
#define UNROLL _Pragma ("clang loop unroll(full)")
#else
#define UNROLL _Pragma ("GCC unroll 16")
#endif
#define INLINE static inline __attribute__ ((always_inline))

#define EACH_VECTOR(i, n) (int64_t i = 0; i < (n); i += VN)

INLINE V
v_get (const float *p, int64_t left)
{
  return left >= VN ? v_load (p) : v_load_n (p, (int) left);
}

INLINE void
v_put (float *p, V v, int64_t left)
{
  if (left >= VN)
    v_store (p, v);
  else
    v_store_n (p, v, (int) left);
}

INLINE V
w_load (const void *w, int64_t at, QkDtype dtype)
{
  switch (dtype) {
    case QK_BF16:
      return v_load_bf16 ((const uint16_t *) w + at);
    case QK_F16:
      return v_load_f16 ((const uint16_t *) w + at);
    default:
      return v_load ((const float *) w + at);
  }
}

INLINE V
w_load_n (const void *w, int64_t at, int n, QkDtype dtype)
{
  switch (dtype) {
    case QK_BF16:
      return v_load_bf16_n ((const uint16_t *) w + at, n);
    case QK_F16:
      return v_load_f16_n ((const uint16_t *) w + at, n);
    default:
      return v_load_n ((const float *) w + at, n);
  }
}

INLINE int64_t
w_size (QkDtype dtype)
{
  return dtype == QK_F32 ? 4 : 2;
}

/* --- functions ---------------------------------------------------------- */

/* Polynomials are Chebyshev interpolations, each within 2e-7 of its function.
 * v_min and v_max return their second operand when one is a NaN. */

/* e^x = 2^n e^r, |r| <= ln 2 / 2. The bounds are beyond overflow to infinity
 * and underflow to zero. */
INLINE V
v_exp (V x)
{
  V n, r, p;

  x = v_min (v_set1 (89.0f), v_max (v_set1 (-104.0f), x));
  n = v_round (v_mul (x, v_set1 (1.44269504f)));
  r = v_fnma (n, v_set1 (0.693147182f), x);
  r = v_fnma (n, v_set1 (-1.904654212e-09f), r);
  p = v_fma (v_set1 (0.00139262679f), r, v_set1 (0.00836324692f));
  p = v_fma (p, r, v_set1 (0.0416665524f));
  p = v_fma (p, r, v_set1 (0.166665763f));
  p = v_fma (p, r, v_set1 (0.5f));
  p = v_add (v_fma (p, v_mul (r, r), r), v_set1 (1.0f));
  return v_ldexp (p, n);
}

INLINE V
v_silu (V x)
{
  V e = v_exp (v_sub (v_set1 (0.0f), x));

  return v_div (x, v_add (v_set1 (1.0f), e));
}

/* x Phi (x), with 2 Phi (-|x|) = erfc (t) = e^(-t^2) u P(u), t = |x| / sqrt 2,
 * u = 1 / (1 + t/2). */
INLINE V
v_gelu (V x)
{
  V t = v_mul (v_abs (x), v_set1 (0.707106781f));
  V u = v_div (v_set1 (1.0f), v_fma (t, v_set1 (0.5f), v_set1 (1.0f)));
  V p, tail;

  p = v_fma (v_set1 (-0.060782481f), u, v_set1 (0.292559564f));
  p = v_fma (p, u, v_set1 (-0.502851725f));
  p = v_fma (p, u, v_set1 (0.294839263f));
  p = v_fma (p, u, v_set1 (-0.0373101197f));
  p = v_fma (p, u, v_set1 (0.206805125f));
  p = v_fma (p, u, v_set1 (0.242171347f));
  p = v_fma (p, u, v_set1 (0.282488167f));
  p = v_fma (p, u, v_set1 (0.282080829f));
  tail = v_exp (v_mul (v_mul (x, x), v_set1 (-0.5f)));
  tail = v_mul (v_mul (tail, u), v_mul (p, v_set1 (0.5f)));
  return v_mul (x, v_select_gt (x, v_set1 (0.0f),
          v_sub (v_set1 (1.0f), tail), tail));
}

/* x/2 (1 + tanh z) = x / (1 + e^(-2z)), z = sqrt (2/pi) (x + 0.044715 x^3) */
INLINE V
v_gelu_tanh (V x)
{
  V z = v_fma (v_mul (v_mul (x, x), v_set1 (0.044715f)), x, x);
  V e = v_exp (v_mul (z, v_set1 (-1.59576912f)));

  return v_div (x, v_add (v_set1 (1.0f), e));
}

INLINE V
v_act (V x, QkActivation act)
{
  switch (act) {
    case QK_ACT_GELU:
      return v_gelu (x);
    case QK_ACT_GELU_TANH:
      return v_gelu_tanh (x);
    case QK_ACT_SILU:
      return v_silu (x);
    default:
      return x;
  }
}

/* Beyond this the three parts of pi no longer give the remainder to f32. */
#define SINE_MOST 1e5f

/* sin^2 x for |x| <= SINE_MOST: the sign of the half turn does not matter, so
 * x is reduced by multiples of pi. */
INLINE V
v_sine_squared (V x)
{
  V n = v_round (v_mul (x, v_set1 (0.318309886f)));
  V r = v_fnma (n, v_set1 (3.14159274f), x);
  V q, p;

  r = v_fnma (n, v_set1 (-8.74227766e-08f), r);
  r = v_fnma (n, v_set1 (-3.43024902e-15f), r);
  q = v_mul (r, r);
  p = v_fma (v_set1 (-2.40782825e-08f), q, v_set1 (2.753638e-06f));
  p = v_fma (p, q, v_set1 (-0.000198410853f));
  p = v_fma (p, q, v_set1 (0.00833333284f));
  p = v_fma (p, q, v_set1 (-0.166666672f));
  p = v_fma (v_mul (p, q), r, r);
  return v_mul (p, p);
}

/* --- dot ---------------------------------------------------------------- */

/* R rows of weights, `step` rows apart, times N rows of x. R streams are read
 * side by side, each going on in the next call where it ended in this one; the
 * prefetchers of the CPU follow them. Rows of weights tend to be powers of two
 * apart, so that all streams and x share a set of the first cache: more than
 * four would push each other out. */
INLINE void
dot_block (const int R, const int N, const QkDtype dtype, float *out,
    int64_t ld, const float *const *x, const char *w, int64_t step, int64_t k)
{
  const char *row[DOT_ROWS];
  V acc[DOT_ROWS][DOT_MOST];
  int64_t t = 0;

  UNROLL for (int r = 0; r < R; r++) {
    row[r] = w + r * step * k * w_size (dtype);
    UNROLL for (int i = 0; i < N; i++)
      acc[r][i] = v_set1 (0.0f);
  }

  for (; t + VN <= k; t += VN) {
    UNROLL for (int r = 0; r < R; r++) {
      V wv = w_load (row[r], t, dtype);

      UNROLL for (int i = 0; i < N; i++)
        acc[r][i] = v_fma (wv, v_load (x[i] + t), acc[r][i]);
    }
  }
  if (t < k) {
    int left = (int) (k - t);

    UNROLL for (int r = 0; r < R; r++) {
      V wv = w_load_n (row[r], t, left, dtype);

      UNROLL for (int i = 0; i < N; i++)
        acc[r][i] = v_fma (wv, v_load_n (x[i] + t, left), acc[r][i]);
    }
  }

  UNROLL for (int r = 0; r < R; r++) {
    UNROLL for (int i = 0; i < N; i++)
      out[i * ld + r * step] = v_sum (acc[r][i]);
  }
}

INLINE void
dot_rows (const int N, const QkDtype dtype, float *out, int64_t ld,
    const float *const *x, const char *w, int64_t rows, int64_t k)
{
  const int64_t step = rows / DOT_ROWS;

  for (int64_t r = 0; r < step; r++)
    dot_block (DOT_ROWS, N, dtype, out + r, ld, x,
        w + r * k * w_size (dtype), step, k);
  for (int64_t r = step * DOT_ROWS; r < rows; r++)
    dot_block (1, N, dtype, out + r, ld, x, w + r * k * w_size (dtype), 0, k);
}

INLINE void
dot_any (const QkDtype dtype, float *out, int64_t ld, const float *const *x,
    int64_t n, const void *w, int64_t rows, int64_t k)
{
  while (n > 0) {
    /* Few large groups of the same size rather than a small last one. */
    int64_t groups = (n + DOT_MOST - 1) / DOT_MOST;
    int64_t now = (n + groups - 1) / groups;

    switch (now) {
      case 1:
        dot_rows (1, dtype, out, ld, x, w, rows, k);
        break;
      case 2:
        dot_rows (2, dtype, out, ld, x, w, rows, k);
        break;
#if DOT_MOST > 3
      case 3:
        dot_rows (3, dtype, out, ld, x, w, rows, k);
        break;
      case 4:
        dot_rows (4, dtype, out, ld, x, w, rows, k);
        break;
      case 5:
        dot_rows (5, dtype, out, ld, x, w, rows, k);
        break;
#endif
      default:
        dot_rows (DOT_MOST, dtype, out, ld, x, w, rows, k);
    }
    n -= now;
    x += now;
    out += now * ld;
  }
}

static void
dot_f32 (float *out, int64_t ld, const float *const *x, int64_t n,
    const void *w, int64_t rows, int64_t k)
{
  dot_any (QK_F32, out, ld, x, n, w, rows, k);
}

static void
dot_bf16 (float *out, int64_t ld, const float *const *x, int64_t n,
    const void *w, int64_t rows, int64_t k)
{
  dot_any (QK_BF16, out, ld, x, n, w, rows, k);
}

static void
dot_f16 (float *out, int64_t ld, const float *const *x, int64_t n,
    const void *w, int64_t rows, int64_t k)
{
  dot_any (QK_F16, out, ld, x, n, w, rows, k);
}

/* --- pack and tile ------------------------------------------------------ */

#define TILE_COLS (TILE_VECS * VN)

INLINE void
pack_any (const QkDtype dtype, float *b, const void *w, int64_t ldw,
    int64_t rows, int64_t k)
{
  for (int64_t t = 0; t < k; t += VN) {
    int left = (int) (k - t < VN ? k - t : VN);

    for (int64_t c = 0; c < TILE_COLS; c += VN) {
      float *to = b + t * TILE_COLS + c;
      V v[VN];

      if (left == VN && c + VN <= rows) {
        UNROLL for (int r = 0; r < VN; r++)
          v[r] = w_load (w, (c + r) * ldw + t, dtype);
        v_transpose (v);
        UNROLL for (int i = 0; i < VN; i++)
          v_store (to + i * TILE_COLS, v[i]);
        continue;
      }
      UNROLL for (int r = 0; r < VN; r++)
        v[r] = c + r < rows ? w_load_n (w, (c + r) * ldw + t, left, dtype)
            : v_set1 (0.0f);
      v_transpose (v);
      UNROLL for (int i = 0; i < VN; i++)
        if (i < left)
          v_store (to + i * TILE_COLS, v[i]);
    }
  }
}

static void
pack_f32 (float *b, const void *w, int64_t ldw, int64_t rows, int64_t k)
{
  pack_any (QK_F32, b, w, ldw, rows, k);
}

static void
pack_bf16 (float *b, const void *w, int64_t ldw, int64_t rows, int64_t k)
{
  pack_any (QK_BF16, b, w, ldw, rows, k);
}

static void
pack_f16 (float *b, const void *w, int64_t ldw, int64_t rows, int64_t k)
{
  pack_any (QK_F16, b, w, ldw, rows, k);
}

INLINE V
tile_get (const float *p, int j, const bool whole, int cols)
{
  if (whole || cols >= (j + 1) * VN)
    return v_load (p + j * VN);
  return cols > j * VN ? v_load_n (p + j * VN, cols - j * VN)
      : v_set1 (0.0f);
}

INLINE void
tile_put (float *p, V v, int j, const bool whole, int cols)
{
  if (whole || cols >= (j + 1) * VN)
    v_store (p + j * VN, v);
  else if (cols > j * VN)
    v_store_n (p + j * VN, v, cols - j * VN);
}

INLINE void
tile_block (const int R, const bool whole, float *y, int64_t ldy,
    const float *a, int64_t lda, const float *b, int64_t ldb, int64_t k,
    int cols, bool add)
{
  V acc[TILE_ROWS][TILE_VECS];

  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int j = 0; j < TILE_VECS; j++)
      acc[i][j] = v_set1 (0.0f);
  }
  for (int64_t t = 0; t < k; t++) {
    V bv[TILE_VECS];

    UNROLL for (int j = 0; j < TILE_VECS; j++)
      bv[j] = tile_get (b, j, whole, cols);
    UNROLL for (int i = 0; i < R; i++) {
      V av = v_set1 (a[i * lda + t]);

      UNROLL for (int j = 0; j < TILE_VECS; j++)
        acc[i][j] = v_fma (av, bv[j], acc[i][j]);
    }
    b += ldb;
  }
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int j = 0; j < TILE_VECS; j++) {
      float *to = y + i * ldy;

      if (add)
        acc[i][j] = v_add (tile_get (to, j, whole, cols), acc[i][j]);
      tile_put (to, acc[i][j], j, whole, cols);
    }
  }
}

static void
tile (float *y, int64_t ldy, const float *a, int64_t lda, const float *b,
    int64_t ldb, int64_t k, int rows, int cols, bool add)
{
  switch (cols == TILE_COLS ? rows : -rows) {
#define TILE_CASE(R)                                                    \
    case R:                                                             \
      tile_block (R, true, y, ldy, a, lda, b, ldb, k, cols, add);       \
      break;                                                            \
    case -R:                                                            \
      tile_block (R, false, y, ldy, a, lda, b, ldb, k, cols, add);      \
      break;
      TILE_CASE (1)
      TILE_CASE (2)
      TILE_CASE (3)
      TILE_CASE (4)
      TILE_CASE (5)
      TILE_CASE (6)
#if TILE_ROWS > 6
      TILE_CASE (7)
      TILE_CASE (8)
      TILE_CASE (9)
      TILE_CASE (10)
      TILE_CASE (11)
      TILE_CASE (12)
#endif
  }
}

/* --- rows --------------------------------------------------------------- */

INLINE void
finish_any (float *y, const float *t, const float *bias, int64_t n,
    const QkActivation act, bool accumulate)
{
  for EACH_VECTOR (i, n) {
    V v = v_get (t + i, n - i);

    if (bias != NULL)
      v = v_add (v, v_get (bias + i, n - i));
    v = v_act (v, act);
    if (accumulate)
      v = v_add (v_get (y + i, n - i), v);
    v_put (y + i, v, n - i);
  }
}

static void
finish (float *y, const float *t, const float *bias, int64_t n,
    QkActivation act, bool accumulate)
{
  switch (act) {
    case QK_ACT_GELU:
      finish_any (y, t, bias, n, QK_ACT_GELU, accumulate);
      break;
    case QK_ACT_GELU_TANH:
      finish_any (y, t, bias, n, QK_ACT_GELU_TANH, accumulate);
      break;
    case QK_ACT_SILU:
      finish_any (y, t, bias, n, QK_ACT_SILU, accumulate);
      break;
    default:
      finish_any (y, t, bias, n, QK_ACT_NONE, accumulate);
  }
}

static void
finish_row (float *y, float bias, int64_t n, QkActivation act)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_act (v_add (v_get (y + i, n - i), v_set1 (bias)), act),
        n - i);
}

static float
softmax (float *s, int64_t n, float scale, float *max, float *sum)
{
  V vs = v_set1 (scale), vmax = v_set1 (-INFINITY), total = v_set1 (0.0f);
  float old = *max, best, base, factor;

  for EACH_VECTOR (i, n) {
    int64_t left = n - i;
    V v = v_mul (v_get (s + i, left), vs);

    v_put (s + i, v, left);
    if (left < VN)
      v = v_first_n (v, v_set1 (-INFINITY), (int) left);
    vmax = v_max (v, vmax);
  }
  best = v_most (vmax);
  if (!(best > old))
    best = old;
  /* Nothing but -inf so far: its exponentials are 0, not those of a NaN. */
  base = best == -INFINITY ? 0 : best;

  for EACH_VECTOR (i, n) {
    int64_t left = n - i;
    V v = v_exp (v_sub (v_get (s + i, left), v_set1 (base)));

    v_put (s + i, v, left);
    if (left < VN)
      v = v_first_n (v, v_set1 (0.0f), (int) left);
    total = v_add (total, v);
  }
  factor = old == best ? 1 : v_first (v_exp (v_set1 (old - base)));
  *max = best;
  *sum = *sum * factor + v_sum (total);
  return factor;
}

/* Infinities and NaNs times zero are NaNs. */
static bool
is_finite (const float *x, int64_t n)
{
  V sum = v_set1 (0.0f);

  for EACH_VECTOR (i, n)
    sum = v_fma (v_get (x + i, n - i), v_set1 (0.0f), sum);
  return v_sum (sum) == 0;
}

/* Blocks of 512 are summed in f32, the blocks in double. */
#define SUM_BLOCK 512

INLINE double
sum_of (const float *x, int64_t d, const bool square, float mean)
{
  double sum = 0;

  for (int64_t e = 0; e < d; e += SUM_BLOCK) {
    int64_t n = d - e < SUM_BLOCK ? d - e : SUM_BLOCK;
    V part = v_set1 (0.0f);

    for EACH_VECTOR (i, n) {
      V v = v_get (x + e + i, n - i);

      if (square) {
        v = v_sub (v, v_set1 (mean));
        if (n - i < VN)
          v = v_first_n (v, v_set1 (0.0f), (int) (n - i));
        part = v_fma (v, v, part);
      } else
        part = v_add (part, v);
    }
    sum += (double) v_sum (part);
  }
  return sum;
}

static void
rms_norm (float *y, const float *x, int64_t d, const float *w, float eps)
{
  double mean = sum_of (x, d, true, 0) / (double) d;
  V scale = v_set1 ((float) (1 / sqrt (mean + (double) eps)));

  for EACH_VECTOR (i, d)
    v_put (y + i, v_mul (v_get (w + i, d - i),
            v_mul (v_get (x + i, d - i), scale)), d - i);
}

static void
layer_norm (float *y, const float *x, int64_t d, const float *w,
    const float *b, float eps)
{
  float mean = (float) (sum_of (x, d, false, 0) / (double) d);
  double var = sum_of (x, d, true, mean) / (double) d;
  V scale = v_set1 ((float) (1 / sqrt (var + (double) eps)));

  for EACH_VECTOR (i, d) {
    V v = v_mul (v_sub (v_get (x + i, d - i), v_set1 (mean)), scale);

    v_put (y + i, v_fma (v, v_get (w + i, d - i), v_get (b + i, d - i)),
        d - i);
  }
}

static void
rotate (float *a, float *b, const float *cosines, const float *sines,
    int64_t n)
{
  for EACH_VECTOR (i, n) {
    int64_t left = n - i;
    V re = v_get (a + i, left), im = v_get (b + i, left);
    V c = v_get (cosines + i, left), s = v_get (sines + i, left);

    v_put (a + i, v_fnma (im, s, v_mul (re, c)), left);
    v_put (b + i, v_fma (re, s, v_mul (im, c)), left);
  }
}

static void
silu_mul (float *y, const float *up, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_mul (v_silu (v_get (y + i, n - i)),
            v_get (up + i, n - i)), n - i);
}

static void
add (float *y, const float *x, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_add (v_get (y + i, n - i), v_get (x + i, n - i)), n - i);
}

static void
scale (float *y, float factor, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_mul (v_get (y + i, n - i), v_set1 (factor)), n - i);
}

static void
clamp (float *y, float lo, float hi, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_min (v_set1 (hi), v_max (v_set1 (lo),
                v_get (y + i, n - i))), n - i);
}

static void
mul_add (float *y, const float *x, const float *w, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_fma (v_get (w + i, n - i), v_get (x + i, n - i),
            v_get (y + i, n - i)), n - i);
}

static void
axpy (float *y, const float *x, float factor, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_fma (v_set1 (factor), v_get (x + i, n - i),
            v_get (y + i, n - i)), n - i);
}

/* Angles out of the range of the polynomial, infinities and NaNs among them,
 * go through the C library. */
static void __attribute__ ((noinline))
snake_far (float *squares, const float *angles, int64_t n)
{
  for (int64_t l = 0; l < n; l++) {
    float sine;

    if (fabsf (angles[l]) <= SINE_MOST)
      continue;
    sine = sinf (angles[l]);
    squares[l] = sine * sine;
  }
}

static void
snake (float *y, const float *x, const float *a, const float *b, int64_t n)
{
  for EACH_VECTOR (i, n) {
    int64_t left = n - i;
    V v = v_get (x + i, left), angle = v_mul (v, v_get (a + i, left));
    V square = v_sine_squared (angle);

    if (v_all_le (v_abs (angle), v_set1 (SINE_MOST)) == 0) {
      float angles[VN], squares[VN];

      v_store (angles, angle);
      v_store (squares, square);
      snake_far (squares, angles, VN);
      square = v_load (squares);
    }
    v_put (y + i, v_fma (square, v_get (b + i, left), v), left);
  }
}

static void
bf16_to_f32 (float *y, const void *w, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, n - i >= VN ? w_load (w, i, QK_BF16)
        : w_load_n (w, i, (int) (n - i), QK_BF16), n - i);
}

static void
f16_to_f32 (float *y, const void *w, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, n - i >= VN ? w_load (w, i, QK_F16)
        : w_load_n (w, i, (int) (n - i), QK_F16), n - i);
}

static void
f32_to_f32 (float *y, const void *w, int64_t n)
{
  for EACH_VECTOR (i, n)
    v_put (y + i, v_get ((const float *) w + i, n - i), n - i);
}

const QkSimd LOOPS_TABLE = {
  .dot = {dot_f32, dot_bf16, dot_f16},
  .tile_rows = TILE_ROWS,
  .tile_cols = TILE_COLS,
  .pack = {pack_f32, pack_bf16, pack_f16},
  .tile = tile,
  .finish = finish,
  .finish_row = finish_row,
  .softmax = softmax,
  .is_finite = is_finite,
  .rms_norm = rms_norm,
  .layer_norm = layer_norm,
  .rotate = rotate,
  .silu_mul = silu_mul,
  .add = add,
  .scale = scale,
  .clamp = clamp,
  .mul_add = mul_add,
  .axpy = axpy,
  .snake = snake,
  .to_f32 = {f32_to_f32, bf16_to_f32, f16_to_f32},
};
