/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * cpuid: what the machine can execute and the operating system lets us use.
 * A wide register counts only when XCR0 says that it survives a task switch.
 */
#include "../qk.h"

const char *
qk_cpu_level_name (QkCpuLevel level)
{
  switch (level) {
    case QK_CPU_C:
      return "c";
    case QK_CPU_AVX2:
      return "avx2";
    case QK_CPU_AVX512:
      return "avx512";
    case QK_CPU_AVX512_VNNI:
      return "avx512-vnni";
    default:
      return "best";
  }
}

#ifdef QK_HAVE_X86
#include <cpuid.h>

enum
{
  /* FMA, OSXSAVE, AVX, F16C */
  LEAF1_ECX = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29,
  LEAF7_EBX_AVX2 = 1u << 5,
  LEAF7_EBX_AVX512 = 1u << 16 | 1u << 17 | 1u << 30,    /* F, DQ, BW */
  LEAF7_ECX_VNNI = 1u << 11,
  XCR0_YMM = 1u << 1 | 1u << 2, /* SSE, AVX state */
  XCR0_ZMM = 7u << 5,           /* opmask, upper ZMM, ZMM16-31 */
};

#define LEAF7_EBX_AVX512VL (1u << 31)

static unsigned
xcr0 (void)
{
  unsigned eax, edx;

  __asm__ volatile ("xgetbv":"=a" (eax), "=d" (edx):"c" (0));
  return eax;
}

QkCpuLevel
qk_cpu_probe (void)
{
  unsigned a, b, c, d, os;

  if (!__get_cpuid (1, &a, &b, &c, &d) || (c & LEAF1_ECX) != LEAF1_ECX)
    return QK_CPU_C;
  os = xcr0 ();
  if ((os & XCR0_YMM) != XCR0_YMM
      || !__get_cpuid_count (7, 0, &a, &b, &c, &d)
      || !(b & LEAF7_EBX_AVX2))
    return QK_CPU_C;
  if ((os & XCR0_ZMM) != XCR0_ZMM
      || (b & LEAF7_EBX_AVX512) != LEAF7_EBX_AVX512
      || !(b & LEAF7_EBX_AVX512VL))
    return QK_CPU_AVX2;
  return c & LEAF7_ECX_VNNI ? QK_CPU_AVX512_VNNI : QK_CPU_AVX512;
}

#else

QkCpuLevel
qk_cpu_probe (void)
{
  return QK_CPU_C;
}

#endif
