/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * avx512: vectors of 16 floats under masks; needs F, BW, DQ and VL.
 */
#include <immintrin.h>
#include <stdint.h>

typedef __m512 V;

#define VN 16
#define TILE_ROWS 12            /* 24 sums, 2 weights, 1 activation of 32 */
#define TILE_VECS 2
#define DOT_MOST 6
#define DOT_ROWS 4
#define LOOPS_TABLE qk_simd_avx512

#define v_set1 _mm512_set1_ps
#define v_load _mm512_loadu_ps
#define v_store _mm512_storeu_ps
#define v_add _mm512_add_ps
#define v_sub _mm512_sub_ps
#define v_mul _mm512_mul_ps
#define v_div _mm512_div_ps
#define v_fma _mm512_fmadd_ps
#define v_fnma _mm512_fnmadd_ps
#define v_min _mm512_min_ps
#define v_max _mm512_max_ps
#define v_abs _mm512_abs_ps
#define v_sum _mm512_reduce_add_ps
#define v_most _mm512_reduce_max_ps
#define v_first _mm512_cvtss_f32
#define v_ldexp _mm512_scalef_ps
#define v_round(v) _mm512_roundscale_ps (v, _MM_FROUND_TO_NEAREST_INT)

static inline __mmask16
first_n (int n)
{
  return (__mmask16) ((1u << n) - 1);
}

static inline V
v_load_n (const float *p, int n)
{
  return _mm512_maskz_loadu_ps (first_n (n), p);
}

static inline void
v_store_n (float *p, V v, int n)
{
  _mm512_mask_storeu_ps (p, first_n (n), v);
}

static inline V
bf16_to_v (__m256i h)
{
  return _mm512_castsi512_ps (_mm512_slli_epi32 (_mm512_cvtepu16_epi32 (h),
          16));
}

static inline V
v_load_bf16 (const uint16_t * p)
{
  return bf16_to_v (_mm256_loadu_si256 ((const __m256i *) p));
}

static inline V
v_load_bf16_n (const uint16_t * p, int n)
{
  return bf16_to_v (_mm256_maskz_loadu_epi16 (first_n (n), p));
}

static inline V
v_load_f16 (const uint16_t * p)
{
  return _mm512_cvtph_ps (_mm256_loadu_si256 ((const __m256i *) p));
}

static inline V
v_load_f16_n (const uint16_t * p, int n)
{
  return _mm512_cvtph_ps (_mm256_maskz_loadu_epi16 (first_n (n), p));
}

/* The first n of a, then those of b. */
static inline V
v_first_n (V a, V b, int n)
{
  return _mm512_mask_mov_ps (b, first_n (n), a);
}

static inline V
v_select_gt (V a, V b, V yes, V no)
{
  return _mm512_mask_mov_ps (no, _mm512_cmp_ps_mask (a, b, _CMP_GT_OQ), yes);
}

static inline int
v_all_le (V a, V b)
{
  return _mm512_cmp_ps_mask (a, b, _CMP_LE_OQ) == 0xffff;
}

/* v[r][c] becomes v[c][r]. */
static inline __attribute__ ((always_inline)) void
v_transpose (V * v)
{
  V t[16];

#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps (v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps (v[i], v[i + 1]);
  }
#define PD(x) _mm512_castps_pd (x)
#define PS(x) _mm512_castpd_ps (x)
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    v[i] = PS (_mm512_unpacklo_pd (PD (t[i]), PD (t[i + 2])));
    v[i + 1] = PS (_mm512_unpackhi_pd (PD (t[i]), PD (t[i + 2])));
    v[i + 2] = PS (_mm512_unpacklo_pd (PD (t[i + 1]), PD (t[i + 3])));
    v[i + 3] = PS (_mm512_unpackhi_pd (PD (t[i + 1]), PD (t[i + 3])));
  }
#undef PD
#undef PS
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4 (v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4 (v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4 (v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4 (v[i + 8], v[i + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 8; i++) {
    v[i] = _mm512_shuffle_f32x4 (t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_f32x4 (t[i], t[i + 8], 0xdd);
  }
}

#include "loops.h"
