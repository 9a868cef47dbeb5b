/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * half: one 16-bit float to or from f32. Rounding is to nearest even, a NaN
 * stays a NaN, subnormals are kept.
 */
#pragma once

#include <stdint.h>
#include <string.h>

static inline float
qk_bits_to_f32 (uint32_t bits)
{
  float f;

  memcpy (&f, &bits, sizeof f);
  return f;
}

static inline uint32_t
qk_f32_to_bits (float f)
{
  uint32_t bits;

  memcpy (&bits, &f, sizeof bits);
  return bits;
}

static inline float
qk_bf16_to_f32 (uint16_t h)
{
  return qk_bits_to_f32 ((uint32_t) h << 16);
}

static inline uint16_t
qk_f32_to_bf16 (float f)
{
  uint32_t bits = qk_f32_to_bits (f);

  if ((bits & 0x7fffffff) > 0x7f800000)
    return (uint16_t) (bits >> 16 | 0x40);
  return (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Exponent and mantissa are moved into place and scaled by 2^112, the
 * difference of the exponent biases: exact, for subnormals too. */
static inline float
qk_f16_to_f32 (uint16_t h)
{
  uint32_t sign = (uint32_t) (h & 0x8000) << 16;
  uint32_t rest = (uint32_t) (h & 0x7fff) << 13;
  uint32_t finite = qk_f32_to_bits (qk_bits_to_f32 (rest) * 0x1p112f);

  return qk_bits_to_f32 (sign
      | (rest >= 0x0f800000 ? (rest | 0x7f800000) : finite));
}

static inline uint16_t
qk_f32_to_f16 (float f)
{
  uint32_t bits = qk_f32_to_bits (f);
  uint32_t sign = bits >> 16 & 0x8000;

  bits &= 0x7fffffff;
  if (bits > 0x7f800000)
    return (uint16_t) (sign | 0x7e00 | (bits >> 13 & 0x3ff));
  if (bits >= 0x477ff000)       /* 65520 and more round to infinity */
    return (uint16_t) (sign | 0x7c00);
  if (bits < 0x38800000)        /* below 2^-14: units of 2^-24 */
    return (uint16_t) (sign
        | (qk_f32_to_bits (qk_bits_to_f32 (bits) + 0.5f) - 0x3f000000));
  bits += 0xfff + (bits >> 13 & 1);
  return (uint16_t) (sign | (bits - 0x38000000) >> 13);
}
