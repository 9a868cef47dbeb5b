/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * avx2: vectors of 8 floats; needs AVX2, FMA and F16C.
 */
#include <immintrin.h>
#include <stdint.h>

typedef __m256 V;

#define VN 8
#define TILE_ROWS 6             /* 12 sums, 2 weights, 1 activation of 16 */
#define TILE_VECS 2
#define DOT_MOST 3
#define DOT_ROWS 4
#define LOOPS_TABLE qk_simd_avx2

#define v_set1 _mm256_set1_ps
#define v_load _mm256_loadu_ps
#define v_store _mm256_storeu_ps
#define v_add _mm256_add_ps
#define v_sub _mm256_sub_ps
#define v_mul _mm256_mul_ps
#define v_div _mm256_div_ps
#define v_fma _mm256_fmadd_ps
#define v_fnma _mm256_fnmadd_ps
#define v_min _mm256_min_ps
#define v_max _mm256_max_ps
#define v_first _mm256_cvtss_f32
#define v_round(v) \
  _mm256_round_ps (v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

static inline __m256i
first_n (int n)
{
  return _mm256_cmpgt_epi32 (_mm256_set1_epi32 (n),
      _mm256_setr_epi32 (0, 1, 2, 3, 4, 5, 6, 7));
}

static inline V
v_load_n (const float *p, int n)
{
  return _mm256_maskload_ps (p, first_n (n));
}

static inline void
v_store_n (float *p, V v, int n)
{
  _mm256_maskstore_ps (p, first_n (n), v);
}

/* There are no masked loads of 16-bit values. */
static inline __m128i
load_half_n (const uint16_t * p, int n)
{
  uint16_t copy[8] = { 0 };

  for (int i = 0; i < n; i++)
    copy[i] = p[i];
  return _mm_loadu_si128 ((const __m128i *) copy);
}

static inline V
bf16_to_v (__m128i h)
{
  return _mm256_castsi256_ps (_mm256_slli_epi32 (_mm256_cvtepu16_epi32 (h),
          16));
}

static inline V
v_load_bf16 (const uint16_t * p)
{
  return bf16_to_v (_mm_loadu_si128 ((const __m128i *) p));
}

static inline V
v_load_bf16_n (const uint16_t * p, int n)
{
  return bf16_to_v (load_half_n (p, n));
}

static inline V
v_load_f16 (const uint16_t * p)
{
  return _mm256_cvtph_ps (_mm_loadu_si128 ((const __m128i *) p));
}

static inline V
v_load_f16_n (const uint16_t * p, int n)
{
  return _mm256_cvtph_ps (load_half_n (p, n));
}

/* The first n of a, then those of b. */
static inline V
v_first_n (V a, V b, int n)
{
  return _mm256_blendv_ps (b, a, _mm256_castsi256_ps (first_n (n)));
}

static inline V
v_select_gt (V a, V b, V yes, V no)
{
  return _mm256_blendv_ps (no, yes, _mm256_cmp_ps (a, b, _CMP_GT_OQ));
}

static inline int
v_all_le (V a, V b)
{
  return _mm256_movemask_ps (_mm256_cmp_ps (a, b, _CMP_LE_OQ)) == 0xff;
}

static inline V
v_abs (V v)
{
  return _mm256_andnot_ps (_mm256_set1_ps (-0.0f), v);
}

static inline float
v_sum (V v)
{
  __m128 s = _mm_add_ps (_mm256_castps256_ps128 (v),
      _mm256_extractf128_ps (v, 1));

  s = _mm_add_ps (s, _mm_movehl_ps (s, s));
  return _mm_cvtss_f32 (_mm_add_ss (s, _mm_movehdup_ps (s)));
}

static inline float
v_most (V v)
{
  __m128 s = _mm_max_ps (_mm256_castps256_ps128 (v),
      _mm256_extractf128_ps (v, 1));

  s = _mm_max_ps (s, _mm_movehl_ps (s, s));
  return _mm_cvtss_f32 (_mm_max_ss (s, _mm_movehdup_ps (s)));
}

/* v 2^n for whole n, in two halves as 2^n itself may be out of range. */
static inline V
v_ldexp (V v, V n)
{
  __m256i whole = _mm256_cvtps_epi32 (n), half = _mm256_srai_epi32 (whole, 1);
  __m256i rest = _mm256_sub_epi32 (whole, half), bias = _mm256_set1_epi32 (127);

  half = _mm256_slli_epi32 (_mm256_add_epi32 (half, bias), 23);
  rest = _mm256_slli_epi32 (_mm256_add_epi32 (rest, bias), 23);
  return _mm256_mul_ps (_mm256_mul_ps (v, _mm256_castsi256_ps (half)),
      _mm256_castsi256_ps (rest));
}

/* v[r][c] becomes v[c][r]. */
static inline __attribute__ ((always_inline)) void
v_transpose (V * v)
{
  V t[8];

#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps (v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps (v[i], v[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
    v[i] = _mm256_shuffle_ps (t[i], t[i + 2], 0x44);
    v[i + 1] = _mm256_shuffle_ps (t[i], t[i + 2], 0xee);
    v[i + 2] = _mm256_shuffle_ps (t[i + 1], t[i + 3], 0x44);
    v[i + 3] = _mm256_shuffle_ps (t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps (v[i], v[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps (v[i], v[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    v[i] = t[i];
}

#include "loops.h"
