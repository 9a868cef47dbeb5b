/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * bench: the ops at the shapes of the model, as a share of what the machine
 * can do at that moment: multiply-adds from registers, and reading memory in
 * eight streams. Weights rotate through more memory than the caches hold where
 * the model would do so. Each op and its limit alternate; the median of five
 * is printed.
 */
#include "bench.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef QK_HAVE_X86
#include <immintrin.h>
#endif

#define ROUNDS 5
#define POOL_BYTES ((size_t) 768 << 20)
#define MOST_THREADS 64

static int n_threads;
static QkBackend *be;
static QkStream *s;
static char *pool;              /* weights of every dtype, small numbers */
static size_t pool_at;
static volatile float sink;

/* One thread is timed by what it got of the CPU, so that neighbours count for
 * less; several by the clock on the wall. */
static double
now (void)
{
  struct timespec t;

  clock_gettime (n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC,
      &t);
  return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

/* --- limits ------------------------------------------------------------- */

#define FMA_ROUNDS 2000000
#define FMA_CHAINS 12

#ifdef QK_HAVE_X86
__attribute__ ((target ("avx512f")))
static float
multiply_512 (void)
{
  __m512 sums[FMA_CHAINS], a = _mm512_set1_ps (0.5f);

  for (int c = 0; c < FMA_CHAINS; c++)
    sums[c] = _mm512_set1_ps ((float) c);
  for (int i = 0; i < FMA_ROUNDS; i++)
#pragma GCC unroll 12
    for (int c = 0; c < FMA_CHAINS; c++)
      sums[c] = _mm512_fmadd_ps (sums[c], a, a);
  for (int c = 1; c < FMA_CHAINS; c++)
    sums[0] = _mm512_add_ps (sums[0], sums[c]);
  return _mm512_cvtss_f32 (sums[0]);
}

__attribute__ ((target ("avx2,fma")))
static float
multiply_256 (void)
{
  __m256 sums[FMA_CHAINS], a = _mm256_set1_ps (0.5f);

  for (int c = 0; c < FMA_CHAINS; c++)
    sums[c] = _mm256_set1_ps ((float) c);
  for (int i = 0; i < FMA_ROUNDS; i++)
#pragma GCC unroll 12
    for (int c = 0; c < FMA_CHAINS; c++)
      sums[c] = _mm256_fmadd_ps (sums[c], a, a);
  for (int c = 1; c < FMA_CHAINS; c++)
    sums[0] = _mm256_add_ps (sums[0], sums[c]);
  return _mm256_cvtss_f32 (sums[0]);
}
#endif

static int fma_lanes;

static void *
multiply_thread (void *data)
{
  (void) data;
#ifdef QK_HAVE_X86
  if (fma_lanes == 16)
    sink = multiply_512 ();
  else if (fma_lanes == 8)
    sink = multiply_256 ();
#endif
  return NULL;
}

#define READ_BYTES ((size_t) 256 << 20)

static void *
read_thread (void *data)
{
  size_t part = READ_BYTES / (size_t) n_threads / 512 * 512;
  const char *from = pool + (size_t) (intptr_t) data * part;
  size_t stream = part / 8;
  uint64_t sum = 0;

  for (size_t i = 0; i + 64 <= stream; i += 64) {
    for (size_t r = 0; r < 8; r++) {
      uint64_t word;

      __builtin_prefetch (from + r * stream + i + 1024, 0, 3);
      memcpy (&word, from + r * stream + i, sizeof word);
      sum += word;
    }
  }
  sink = (float) sum;
  return NULL;
}

static double
time_threads (void *(*main_func) (void *))
{
  pthread_t threads[MOST_THREADS];
  double start = now ();

  if (n_threads == 1) {
    main_func ((void *) 0);
    return now () - start;
  }
  for (int i = 0; i < n_threads; i++)
    pthread_create (&threads[i], NULL, main_func, (void *) (intptr_t) i);
  for (int i = 0; i < n_threads; i++)
    pthread_join (threads[i], NULL);
  return now () - start;
}

/* GFLOP/s */
static double
fma_limit (void)
{
  if (fma_lanes == 0)
    return NAN;
  return 2e-9 * FMA_ROUNDS * FMA_CHAINS * fma_lanes * n_threads
      / time_threads (multiply_thread);
}

/* GB/s */
static double
read_limit (void)
{
  return 1e-9 * (double) READ_BYTES / time_threads (read_thread);
}

/* --- ops ---------------------------------------------------------------- */

typedef struct _Bench Bench;
struct _Bench
{
  void (*run) (const Bench * b);
  float *y, *x, *x2, *x3;
  int64_t n, m, k, c;
  QkDtype dtype;
  QkAttention attention;
  int n_experts, top_k;
  QkActivation act;
};

static QkTensor
take_weights (QkDtype dtype, int n_dims, int64_t d0, int64_t d1, int64_t d2,
    int64_t d3)
{
  QkTensor w = {.dtype = dtype,.n_dims = n_dims,.dims = {d0, d1, d2, d3} };
  size_t bytes = (size_t) qk_tensor_count (&w) * qk_dtype_size (dtype);

  bytes = (bytes + 4095) & ~(size_t) 4095;
  if (pool_at + bytes > POOL_BYTES)
    pool_at = 0;
  w.data = pool + pool_at;
  pool_at += bytes;
  return w;
}

static void
run_matmul (const Bench * b)
{
  QkTensor w = take_weights (b->dtype, 2, b->m, b->k, 0, 0);

  s->ops->matmul (s, b->y, b->x, b->n, &w, NULL, b->act, false);
}

static void
run_conv1d (const Bench * b)
{
  QkTensor w = take_weights (b->dtype, 3, b->k, b->m, b->c, 0);

  s->ops->conv1d (s, b->y, b->x + 100 * b->c, b->n, &w, NULL, 1, false);
}

static void
run_transposed (const Bench * b)
{
  QkTensor w = take_weights (b->dtype, 3, 2 * b->k, b->m, b->c, 0);

  s->ops->conv1d_transposed (s, b->y, b->x, b->n, b->k, &w, NULL);
}

static void
run_conv2d (const Bench * b)
{
  QkTensor w = take_weights (b->dtype, 4, b->m, b->c, 3, 3);

  s->ops->conv2d_s2 (s, b->y, b->x, b->n, b->k, &w, NULL, QK_ACT_GELU);
}

static void
run_depthwise (const Bench * b)
{
  s->ops->conv1d_depthwise (s, b->y, b->x + 100 * b->c, b->n, b->c, b->x2,
      b->k, NULL);
}

static void
run_attention (const Bench * b)
{
  s->ops->attention (s, b->y, b->x, b->x2, b->x3, &b->attention);
}

static void
run_moe (const Bench * b)
{
  QkTensor experts[3][128];
  QkMoe moe = {.n_experts = b->n_experts,.top_k = b->top_k,
    .norm_top_k = true,.gate = experts[0],.up = experts[1],
    .down = experts[2]
  };

  /* A router that spreads random tokens; experts rotate with the pool, all of
   * those of a layer are more than it holds. */
  moe.router = (QkTensor) {
  .data = b->x3,.dtype = QK_F32,.n_dims = 2,.dims = {
  b->n_experts, b->k}};
  for (int e = 0; e < b->n_experts; e++)
    for (int i = 0; i < 3; i++)
      experts[i][e] = take_weights (b->dtype, 2, i < 2 ? b->m : b->k,
          i < 2 ? b->k : b->m, 0, 0);
  s->ops->moe (s, b->y, b->x, b->n, &moe, NULL);
}

static void
run_rms_norm (const Bench * b)
{
  s->ops->rms_norm (s, b->y, b->x, b->n, b->c, b->x2, 1e-6f);
}

static void
run_layer_norm (const Bench * b)
{
  s->ops->layer_norm (s, b->y, b->x, b->n, b->c, b->x2, b->x2, 1e-6f);
}

static void
run_rope (const Bench * b)
{
  s->ops->rope (s, b->y, b->x2, b->n, 32, 128);
}

static void
run_snake (const Bench * b)
{
  s->ops->snake (s, b->y, b->x, b->n, b->c, b->x2, b->x2);
}

static void
run_activate (const Bench * b)
{
  memcpy (b->y, b->x, 4 * (size_t) b->n);
  s->ops->activate (s, b->y, b->n, b->act);
}

static void
run_silu_mul (const Bench * b)
{
  s->ops->silu_mul (s, b->y, b->x, b->n);
}

static void
run_add (const Bench * b)
{
  s->ops->add (s, b->y, b->x, b->n);
}

static int
by_value (const void *a, const void *b)
{
  double x = *(const double *) a, y = *(const double *) b;

  return x < y ? -1 : x > y;
}

static double
median (double *values)
{
  qsort (values, ROUNDS, sizeof *values, by_value);
  return values[ROUNDS / 2];
}

typedef enum
{ BOUND_FLOPS, BOUND_BYTES, BOUND_ITEMS } Bound;

/* `work` is flops, bytes or items per run. */
static void
measure (const char *name, const Bench * b, Bound bound, double work,
    const char *only)
{
  double speeds[ROUNDS], limits[ROUNDS], ratios[ROUNDS], start, took;
  int runs = 1;

  if (only != NULL && strncmp (name, only, strlen (only)) != 0)
    return;
  b->run (b);
  start = now ();
  b->run (b);
  took = now () - start;
  if (took < 0.1)
    runs = (int) (0.1 / took) + 1;
  for (int i = 0; i < ROUNDS; i++) {
    limits[i] = bound == BOUND_FLOPS ? fma_limit ()
        : bound == BOUND_BYTES ? read_limit () : 1;
    start = now ();
    for (int r = 0; r < runs; r++)
      b->run (b);
    took = (now () - start) / runs;
    speeds[i] = 1e-9 * work / took;
    ratios[i] = speeds[i] / limits[i];
  }
  took = 1e-3 * work / median (speeds);
  switch (bound) {
    case BOUND_FLOPS:
      printf ("%-36s %10.1f us %8.1f GFLOP/s of %6.1f  %5.1f %%\n", name, took,
          median (speeds), median (limits), 100 * median (ratios));
      break;
    case BOUND_BYTES:
      printf ("%-36s %10.1f us %8.1f GB/s    of %6.1f  %5.1f %%\n", name, took,
          median (speeds), median (limits), 100 * median (ratios));
      break;
    default:
      printf ("%-36s %10.1f us %8.2f G/s\n", name, took, median (speeds));
  }
  fflush (stdout);
}

static void
bench_matmul (Bench * b, int64_t n, int64_t m, int64_t k, QkDtype dtype,
    const char *only)
{
  char name[80];
  double bytes = (double) m * (double) k * (double) qk_dtype_size (dtype);

  b->run = run_matmul;
  b->n = n;
  b->m = m;
  b->k = k;
  b->dtype = dtype;
  snprintf (name, sizeof name, "matmul %s [%lld]x%lld->%lld",
      qk_dtype_name (dtype), (long long) n, (long long) k, (long long) m);
  if (n <= 4)
    measure (name, b, BOUND_BYTES, bytes, only);
  else
    measure (name, b, BOUND_FLOPS, 2.0 * (double) (n * m * k), only);
}

static void
bench_conv1d (Bench * b, int64_t n, int64_t c_in, int64_t c_out, int64_t k,
    const char *only)
{
  char name[80];

  b->run = run_conv1d;
  b->n = n;
  b->c = c_in;
  b->m = c_out;
  b->k = k;
  b->dtype = QK_F32;
  snprintf (name, sizeof name, "conv1d %lld->%lld k%lld n=%lld",
      (long long) c_in, (long long) c_out, (long long) k, (long long) n);
  measure (name, b, BOUND_FLOPS, 2.0 * (double) (n * c_in * c_out * k), only);
}

static void
bench_attention (Bench * b, int64_t n_q, int64_t n_kv, int n_heads,
    int n_kv_heads, int dim, bool causal, int64_t window, const char *only)
{
  char name[80];
  double seen = 0;

  b->run = run_attention;
  b->attention = (QkAttention) {
  .n_q = n_q,.n_kv = n_kv,.n_heads = n_heads,.n_kv_heads = n_kv_heads,
        .head_dim = dim,.scale = 0.1f,.causal = causal,.first = n_kv - n_q,
        .window = window};
  for (int64_t i = 0; i < n_q; i++) {
    int64_t keys = causal ? n_kv - n_q + i + 1 : n_kv;

    seen += (double) (window > 0 && keys > window ? window : keys);
  }
  snprintf (name, sizeof name, "attention %lldx%lld %d/%dx%d%s",
      (long long) n_q, (long long) n_kv, n_heads, n_kv_heads, dim,
      window > 0 ? " window" : causal ? " causal" : "");
  if (n_q == 1)
    measure (name, b, BOUND_BYTES, 8.0 * (double) (n_kv * n_kv_heads * dim),
        only);
  else
    measure (name, b, BOUND_FLOPS, 4 * seen * n_heads * dim, only);
}

static void
bench_moe (Bench * b, int64_t n, int n_experts, int top_k, int64_t width,
    int64_t inner, const char *only)
{
  char name[80];

  b->run = run_moe;
  b->n = n;
  b->n_experts = n_experts;
  b->top_k = top_k;
  b->k = width;
  b->m = inner;
  b->dtype = QK_BF16;
  snprintf (name, sizeof name, "moe BF16 n=%lld %d/%d %lldx%lld",
      (long long) n, top_k, n_experts, (long long) width, (long long) inner);
  if (n == 1)
    measure (name, b, BOUND_BYTES, 6.0 * (double) (top_k * width * inner),
        only);
  else
    measure (name, b, BOUND_FLOPS, 6.0 * (double) (n * top_k * width * inner),
        only);
}

static void
bench_all (Bench * b, const char *only)
{
  static const int64_t rows[] = { 1, 2, 4, 8, 12, 16, 32, 128, 512 };

  for (int i = 0; i < (int) (sizeof rows / sizeof rows[0]); i++) {
    bench_matmul (b, rows[i], 4096, 2048, QK_BF16, only);
    bench_matmul (b, rows[i], 768, 2048, QK_BF16, only);
  }
  for (int64_t n = 1; n <= 128; n *= 128) {
    bench_matmul (b, n, 2048, 768, QK_BF16, only);
    bench_matmul (b, n, 4096, 2048, QK_F16, only);
    bench_matmul (b, n, 4096, 2048, QK_F32, only);
  }
  bench_matmul (b, 104, 5120, 1280, QK_BF16, only);
  bench_matmul (b, 1, 151936, 2048, QK_BF16, only);

  bench_conv1d (b, 15360, 192, 192, 7, only);
  bench_conv1d (b, 15360, 192, 192, 1, only);
  bench_conv1d (b, 46080, 96, 96, 7, only);
  bench_conv1d (b, 128, 768, 768, 7, only);
  bench_conv1d (b, 32, 768, 768, 7, only);
  bench_conv1d (b, 16, 1024, 1536, 7, only);
  b->run = run_transposed;
  b->n = 16;
  b->c = 1536;
  b->m = 768;
  b->k = 8;
  measure ("conv1d_transposed 1536->768 r8 n=16", b, BOUND_FLOPS,
      4.0 * 16 * 8 * 1536 * 768, only);
  b->run = run_conv2d;
  b->n = 64;
  b->k = 50;
  b->c = b->m = 480;
  measure ("conv2d_s2 480->480 64x50", b, BOUND_FLOPS,
      2.0 * 32 * 25 * 480 * 480 * 9, only);
  b->run = run_depthwise;
  b->n = 16;
  b->c = 1024;
  b->k = 7;
  measure ("conv1d_depthwise 1024 k7 n=16", b, BOUND_ITEMS, 16 * 1024, only);

  bench_attention (b, 1, 512, 32, 4, 128, true, 0, only);
  bench_attention (b, 1, 4096, 32, 4, 128, true, 0, only);
  bench_attention (b, 128, 128, 32, 4, 128, true, 0, only);
  bench_attention (b, 512, 512, 32, 4, 128, true, 0, only);
  bench_attention (b, 104, 104, 20, 20, 64, false, 0, only);
  bench_attention (b, 880, 880, 16, 16, 72, false, 0, only);
  bench_attention (b, 8, 80, 16, 16, 64, true, 72, only);

  bench_moe (b, 1, 128, 8, 2048, 768, only);
  bench_moe (b, 1, 128, 6, 1024, 384, only);
  bench_moe (b, 16, 32, 8, 2048, 768, only);
  bench_moe (b, 128, 64, 8, 2048, 768, only);
  bench_moe (b, 512, 64, 8, 2048, 768, only);

  b->c = 2048;
  b->n = 128;
  b->run = run_rms_norm;
  measure ("rms_norm 128x2048", b, BOUND_ITEMS, 128 * 2048, only);
  b->run = run_layer_norm;
  measure ("layer_norm 128x2048", b, BOUND_ITEMS, 128 * 2048, only);
  b->run = run_rope;
  measure ("rope 128x32x128", b, BOUND_ITEMS, 128 * 32 * 128, only);
  b->run = run_snake;
  b->n = 1920;
  b->c = 96;
  measure ("snake 1920x96", b, BOUND_ITEMS, 1920 * 96, only);
  b->n = 1 << 18;
  b->run = run_silu_mul;
  measure ("silu_mul 2^18", b, BOUND_ITEMS, 1 << 18, only);
  b->run = run_add;
  measure ("add 2^18", b, BOUND_ITEMS, 1 << 18, only);
  b->run = run_activate;
  b->act = QK_ACT_GELU;
  measure ("activate gelu 2^18", b, BOUND_ITEMS, 1 << 18, only);
  b->act = QK_ACT_GELU_TANH;
  measure ("activate gelu_tanh 2^18", b, BOUND_ITEMS, 1 << 18, only);
}

static float *
take_floats (int64_t n)
{
  float *p = be->alloc (be, (size_t) n * sizeof *p);

  for (int64_t i = 0; i < n; i++)
    p[i] = (float) (i * 7919 % 1009 - 504) / 504;
  return p;
}

int
bench_run (QkCpuLevel level, int threads, const char *only)
{
  const int64_t n = (int64_t) 8 << 20;
  Bench b = { 0 };
  cpu_set_t set;

  if (threads == 0 && sched_getaffinity (0, sizeof set, &set) == 0)
    threads = CPU_COUNT (&set);
  n_threads = threads < MOST_THREADS ? threads : MOST_THREADS;
  fma_lanes = level >= QK_CPU_AVX512 ? 16 : level == QK_CPU_AVX2 ? 8 : 0;
  be = qk_cpu_backend_new (n_threads, level);
  s = be->stream_new (be);
  pool = be->alloc (be, POOL_BYTES);
  for (size_t i = 0; i < POOL_BYTES / 2; i += 2) {
    /* Halves near 2^-3 in either format, and as pairs small f32. */
    ((uint16_t *) pool)[i] = (uint16_t) (0x3000 + i % 251);
    ((uint16_t *) pool)[i + 1] = (uint16_t) (0xb000 + i % 241);
  }
  b.y = take_floats (n);
  b.x = take_floats (n);
  b.x2 = take_floats (n);
  b.x3 = take_floats (n);

  printf ("%s, %d threads: %.1f GFLOP/s, %.1f GB/s\n", be->name, n_threads,
      fma_limit (), read_limit ());
  bench_all (&b, only);

  be->release (be, b.x3, (size_t) n * 4);
  be->release (be, b.x2, (size_t) n * 4);
  be->release (be, b.x, (size_t) n * 4);
  be->release (be, b.y, (size_t) n * 4);
  be->release (be, pool, POOL_BYTES);
  be->stream_free (s);
  be->free (be);
  return 0;
}
