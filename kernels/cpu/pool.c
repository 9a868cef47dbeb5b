/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * pool: n-1 worker threads that help whoever calls qk_pool_run().
 *
 * One atomic word says all about the job at hand: its number, whether it is
 * open, and how many workers are inside. A worker enters an open job it has not
 * seen before, takes grains of it until none is left, and leaves. The caller
 * works too, then closes the job and waits for those inside only, so a worker
 * that sleeps or lost its core is never waited for. Between jobs workers spin
 * for a moment, as the next op of a step is a microsecond away, then park.
 *
 * `owner` is held while a job runs; a second caller does not wait for it but
 * runs its own job alone.
 */
#include "cpu.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#define OPEN ((uint64_t) 1 << 31)
#define INSIDE(word) ((word) & (OPEN - 1))
#define NUMBER(word) ((word) >> 32)

/* Pauses before parking: some tens of microseconds. */
#define SPINS 2000

struct _QkPool
{
  pthread_mutex_t owner;

  _Atomic uint64_t word;
  _Atomic int64_t next;         /* first unit nobody has taken */
  QkRangeFunc func;             /* these four change only while closed, empty */
  const void *job;
  int64_t n, grain;

  pthread_mutex_t lock;         /* guards parking; taken inside owner */
  pthread_cond_t wake, done;
  atomic_int n_parked;
  atomic_bool caller_parked;
  atomic_bool quit;

  int n_workers;
  struct Worker
  {
    QkPool *pool;
    pthread_t thread;
    int index;
  } workers[];
};

static inline void
pause_cpu (void)
{
#if defined (__x86_64__) || defined (__i386__)
  __builtin_ia32_pause ();
#elif defined (__aarch64__)
  __asm__ volatile ("yield");
#endif
}

static void
take_grains (QkPool * pool, int thread)
{
  int64_t first;

  while ((first = atomic_fetch_add_explicit (&pool->next, pool->grain,
              memory_order_relaxed)) < pool->n) {
    int64_t left = pool->n - first;

    pool->func (pool->job, first,
        first + (left < pool->grain ? left : pool->grain), thread);
  }
}

static bool
is_news (QkPool * pool, uint64_t seen)
{
  uint64_t word = atomic_load (&pool->word);

  return ((word & OPEN) && NUMBER (word) != seen)
      || atomic_load (&pool->quit);
}

static void
wait_for_news (QkPool * pool, uint64_t seen)
{
  for (int i = 0; i < SPINS; i++) {
    if (is_news (pool, seen))
      return;
    pause_cpu ();
  }

  pthread_mutex_lock (&pool->lock);
  atomic_fetch_add (&pool->n_parked, 1);
  while (!is_news (pool, seen))
    pthread_cond_wait (&pool->wake, &pool->lock);
  atomic_fetch_sub (&pool->n_parked, 1);
  pthread_mutex_unlock (&pool->lock);
}

static void *
worker_main (void *data)
{
  struct Worker *worker = data;
  QkPool *pool = worker->pool;
  uint64_t seen = 0;

  for (;;) {
    uint64_t word;

    wait_for_news (pool, seen);
    if (atomic_load (&pool->quit))
      return NULL;

    word = atomic_load (&pool->word);
    while ((word & OPEN) && NUMBER (word) != seen) {
      if (!atomic_compare_exchange_weak (&pool->word, &word, word + 1))
        continue;
      seen = NUMBER (word);
      take_grains (pool, worker->index);
      word = atomic_fetch_sub (&pool->word, 1) - 1;
      if (INSIDE (word) == 0 && atomic_load (&pool->caller_parked)) {
        pthread_mutex_lock (&pool->lock);
        pthread_cond_signal (&pool->done);
        pthread_mutex_unlock (&pool->lock);
      }
    }
  }
}

static void
wait_until_empty (QkPool * pool)
{
  for (int i = 0; i < SPINS; i++) {
    if (INSIDE (atomic_load (&pool->word)) == 0)
      return;
    pause_cpu ();
  }

  pthread_mutex_lock (&pool->lock);
  atomic_store (&pool->caller_parked, true);
  while (INSIDE (atomic_load (&pool->word)) != 0)
    pthread_cond_wait (&pool->done, &pool->lock);
  atomic_store (&pool->caller_parked, false);
  pthread_mutex_unlock (&pool->lock);
}

void
qk_pool_run (QkPool * pool, QkRangeFunc func, const void *job, int64_t n,
    int64_t grain)
{
  uint64_t number;

  if (pool->n_workers == 0 || pthread_mutex_trylock (&pool->owner) != 0) {
    func (job, 0, n, 0);
    return;
  }

  pool->func = func;
  pool->job = job;
  pool->n = n;
  pool->grain = grain;
  atomic_store_explicit (&pool->next, 0, memory_order_relaxed);
  number = NUMBER (atomic_load (&pool->word)) + 1;
  atomic_store (&pool->word, number << 32 | OPEN);
  if (atomic_load (&pool->n_parked) > 0) {
    pthread_mutex_lock (&pool->lock);
    pthread_cond_broadcast (&pool->wake);
    pthread_mutex_unlock (&pool->lock);
  }

  take_grains (pool, 0);
  atomic_fetch_and (&pool->word, ~OPEN);
  wait_until_empty (pool);
  pthread_mutex_unlock (&pool->owner);
}

int
qk_pool_n_threads (const QkPool * pool)
{
  return pool->n_workers + 1;
}

QkPool *
qk_pool_new (int n_threads)
{
  int n = n_threads > 1 ? n_threads - 1 : 0;
  QkPool *pool = calloc (1, sizeof *pool
      + (size_t) n * sizeof pool->workers[0]);
  sigset_t all, before;

  if (pool == NULL)
    return NULL;
  pthread_mutex_init (&pool->owner, NULL);
  pthread_mutex_init (&pool->lock, NULL);
  pthread_cond_init (&pool->wake, NULL);
  pthread_cond_init (&pool->done, NULL);

  /* The signals of the application are not for workers, except their own
   * faults. */
  sigfillset (&all);
  sigdelset (&all, SIGSEGV);
  sigdelset (&all, SIGBUS);
  sigdelset (&all, SIGILL);
  sigdelset (&all, SIGFPE);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  for (int i = 0; i < n; i++) {
    struct Worker *worker = &pool->workers[i];

    worker->pool = pool;
    worker->index = i + 1;
    if (pthread_create (&worker->thread, NULL, worker_main, worker) != 0)
      break;
    pool->n_workers = i + 1;
  }
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  return pool;
}

void
qk_pool_free (QkPool * pool)
{
  if (pool == NULL)
    return;
  pthread_mutex_lock (&pool->lock);
  atomic_store (&pool->quit, true);
  pthread_cond_broadcast (&pool->wake);
  pthread_mutex_unlock (&pool->lock);
  for (int i = 0; i < pool->n_workers; i++)
    pthread_join (pool->workers[i].thread, NULL);

  pthread_cond_destroy (&pool->done);
  pthread_cond_destroy (&pool->wake);
  pthread_mutex_destroy (&pool->lock);
  pthread_mutex_destroy (&pool->owner);
  free (pool);
}
