/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * cpu: what the files of the CPU backend share.
 *
 * An op is a function of the QkOps table. It asks once for its scratch memory
 * with qk_cpu_scratch(), then hands ranges of its outputs to the threads with
 * qk_cpu_parallel(). An output is computed whole by one thread and in one
 * order, so neither the number of threads nor the cut changes a result.
 */
#pragma once

#include "../qk.h"

#include <pthread.h>

typedef struct _QkPool QkPool;
typedef struct _QkSimd QkSimd;

/* Units first … last-1 of a job; `thread` is below the number of threads and
 * belongs to the caller for the time of the call. */
typedef void (*QkRangeFunc) (const void *job, int64_t first, int64_t last,
    int thread);

/* `n_threads` counts the calling thread; the pool may end up smaller. */
QkPool *qk_pool_new (int n_threads);
void qk_pool_free (QkPool * pool);
int qk_pool_n_threads (const QkPool * pool);
/* Runs the units 0 … n-1, `grain` at a time, on all threads, or here alone
 * while the pool serves another caller. Returns when all are done. */
void qk_pool_run (QkPool * pool, QkRangeFunc func, const void *job, int64_t n,
    int64_t grain);

typedef struct
{
  QkBackend base;
  QkOps ops;
  QkPool *pool;
  const QkSimd *simd;           /* what the widened ops are built on */
  QkCpuLevel level;
  char name[32];
} QkCpuBackend;

typedef struct
{
  QkStream base;
  char *scratch;
  size_t scratch_size;
  const char *error;
} QkCpuStream;

int qk_cpu_n_threads (const QkStream * s);
/* `bytes` of 64-byte aligned memory, valid until the next call. NULL when
 * there is none: the stream has an error from then on and the op returns. */
void *qk_cpu_scratch (QkStream * s, size_t bytes);
/* As qk_pool_run(); `cost` is the work of one unit in multiply-adds or so, and
 * little work stays on the calling thread. Does nothing on a failed stream. */
void qk_cpu_parallel (QkStream * s, QkRangeFunc func, const void *job,
    int64_t n, int64_t cost);

static inline size_t
qk_align64 (size_t bytes)
{
  return (bytes + 63) & ~(size_t) 63;
}

/* Fills in the plain C ops, which are all of them. */
void qk_cpu_widen_c (QkOps * ops);
/* Replaces those that gain from vectors. */
void qk_cpu_widen_simd (QkOps * ops);
