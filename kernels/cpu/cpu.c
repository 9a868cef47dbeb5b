/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * cpu: the backend that computes on the threads of this process. Its device
 * memory is ordinary memory, its streams are synchronous: an op has run when
 * it returns.
 */
#include "cpu.h"
#include "simd/simd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

/* Blocks from here on are mapped, on huge pages where the system has some:
 * zeroed when touched, and a fifth faster to read through. */
#define MAPPED_BYTES ((size_t) 8 << 20)
#define HUGE_PAGE ((size_t) 2 << 20)

/* Below this many multiply-adds waking a thread costs more than it saves. */
#define PARALLEL_COST 40000

static void *
block_map (size_t bytes)
{
  size_t page = (size_t) sysconf (_SC_PAGESIZE), size, head;
  char *raw, *data;

  if (bytes > SIZE_MAX - 2 * HUGE_PAGE)
    return NULL;
  bytes = (bytes + page - 1) & ~(page - 1);
  size = bytes + HUGE_PAGE;
  raw = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
      -1, 0);
  if (raw == MAP_FAILED)
    return NULL;

  head = -(uintptr_t) raw & (HUGE_PAGE - 1);
  data = raw + head;
  if (head > 0)
    munmap (raw, head);
  if (size - head > bytes)
    munmap (data + bytes, size - head - bytes);
#ifdef MADV_HUGEPAGE
  madvise (data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

static void *
block_new (size_t bytes)
{
  void *data;

  if (bytes >= MAPPED_BYTES)
    return block_map (bytes);
  bytes = qk_align64 (bytes > 0 ? bytes : 1);
  if (posix_memalign (&data, 64, bytes) != 0)
    return NULL;
  return memset (data, 0, bytes);
}

static void
block_free (void *data, size_t bytes)
{
  if (data == NULL)
    return;
  if (bytes >= MAPPED_BYTES) {
    size_t page = (size_t) sysconf (_SC_PAGESIZE);

    munmap (data, (bytes + page - 1) & ~(page - 1));
  } else
    free (data);
}

/* --- streams ------------------------------------------------------------ */

static QkStream *
cpu_stream_new (QkBackend * be)
{
  QkCpuStream *s = calloc (1, sizeof *s);

  if (s == NULL)
    return NULL;
  s->base.backend = be;
  s->base.ops = be->ops;
  return &s->base;
}

static void
cpu_stream_free (QkStream * stream)
{
  QkCpuStream *s = (QkCpuStream *) stream;

  if (s == NULL)
    return;
  block_free (s->scratch, s->scratch_size);
  free (s);
}

static const char *
cpu_stream_error (QkStream * stream)
{
  return ((QkCpuStream *) stream)->error;
}

int
qk_cpu_n_threads (const QkStream * s)
{
  return qk_pool_n_threads (((QkCpuBackend *) s->backend)->pool);
}

void *
qk_cpu_scratch (QkStream * stream, size_t bytes)
{
  QkCpuStream *s = (QkCpuStream *) stream;

  if (s->error != NULL)
    return NULL;
  if (bytes > s->scratch_size || s->scratch == NULL) {
    size_t grown = bytes + bytes / 4 + 4096;

    block_free (s->scratch, s->scratch_size);
    s->scratch_size = 0;
    s->scratch = grown > bytes ? block_new (grown) : NULL;
    if (s->scratch == NULL) {
      s->error = "out of memory for the scratch space of an operation";
      return NULL;
    }
    s->scratch_size = grown;
  }
  return s->scratch;
}

void
qk_cpu_parallel (QkStream * stream, QkRangeFunc func, const void *job,
    int64_t n, int64_t cost)
{
  QkCpuStream *s = (QkCpuStream *) stream;
  QkPool *pool = ((QkCpuBackend *) s->base.backend)->pool;
  int64_t grain, most;

  if (n <= 0 || s->error != NULL)
    return;
  if (cost < 1)
    cost = 1;
  if (n == 1 || qk_pool_n_threads (pool) == 1
      || (cost < PARALLEL_COST && n * cost < PARALLEL_COST)) {
    func (job, 0, n, 0);
    return;
  }

  /* A grain is worth fetching, and there are several for each thread. */
  grain = PARALLEL_COST / 4 / cost;
  most = n / (4 * qk_pool_n_threads (pool));
  if (grain > most)
    grain = most;
  qk_pool_run (pool, func, job, n, grain > 1 ? grain : 1);
}

/* --- memory ------------------------------------------------------------- */

static void *
cpu_alloc (QkBackend * be, size_t bytes)
{
  (void) be;
  return block_new (bytes);
}

static void
cpu_release (QkBackend * be, void *data, size_t bytes)
{
  (void) be;
  block_free (data, bytes);
}

static void
cpu_copy (QkStream * s, void *dst, const void *src, size_t bytes)
{
  if (bytes > 0 && cpu_stream_error (s) == NULL)
    memmove (dst, src, bytes);
}

static void
cpu_zero (QkStream * s, void *dst, size_t bytes)
{
  if (bytes > 0 && cpu_stream_error (s) == NULL)
    memset (dst, 0, bytes);
}

/* --- the backend -------------------------------------------------------- */

static int
usable_cpus (void)
{
#ifdef __linux__
  cpu_set_t set;

  if (sched_getaffinity (0, sizeof set, &set) == 0)
    return CPU_COUNT (&set);
#endif
  long n = sysconf (_SC_NPROCESSORS_ONLN);
  return n > 0 ? (int) n : 1;
}

static void
cpu_free (QkBackend * backend)
{
  QkCpuBackend *be = (QkCpuBackend *) backend;

  if (be == NULL)
    return;
  qk_pool_free (be->pool);
  free (be);
}

QkBackend *
qk_cpu_backend_new (int n_threads, QkCpuLevel level)
{
  QkCpuBackend *be = calloc (1, sizeof *be);
  QkCpuLevel probed = qk_cpu_probe ();

  if (be == NULL)
    return NULL;
  be->level = level < probed ? level : probed;
  be->pool = qk_pool_new (n_threads > 0 ? n_threads : usable_cpus ());
  if (be->pool == NULL) {
    free (be);
    return NULL;
  }

  qk_cpu_widen_c (&be->ops);
#ifdef QK_HAVE_X86
  if (be->level >= QK_CPU_AVX2)
    be->simd = &qk_simd_avx2;
  if (be->level >= QK_CPU_AVX512)
    be->simd = &qk_simd_avx512;
  if (be->simd != NULL)
    qk_cpu_widen_simd (&be->ops);
#endif

  snprintf (be->name, sizeof be->name, "cpu/%s",
      qk_cpu_level_name (be->level));
  be->base = (QkBackend) {
    .ops = &be->ops,
    .name = be->name,
    .free = cpu_free,
    .stream_new = cpu_stream_new,
    .stream_free = cpu_stream_free,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .error = cpu_stream_error,
  };
  return &be->base;
}
