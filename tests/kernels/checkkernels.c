/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkkernels: holds the ops of one CPU level against a reference.
 *
 *   checkkernels --level c|avx2|avx512 [--only OP] [--bench [--threads N]]
 *
 * The plain C level is held against loops in double (naive.c), every other
 * level against plain C. Each case has awkward sizes and is run
 *
 *   - with inputs and outputs that touch unreadable pages on one side or the
 *     other and are aligned to nothing but their elements, and a guard band
 *     around the output;
 *   - on 1, 2, 3 and 5 threads, which must agree to the last bit;
 *   - with a NaN planted in an input, which must reach the same outputs as in
 *     the reference and no others.
 *
 * Tolerances, for values of unit size: a sum of k products may differ by
 * 6 eps (1 + sqrt (k) / 4), as rounding errors add up like a random walk;
 * one evaluation of a function by 1e-6 of the larger of its value and its
 * argument. eps is 2^-23.
 *
 * Exits with 77 where the CPU lacks the level.
 */
#include "naive.h"
#include "bench.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int n_passed, n_failed;
static const char *only;
static char current[200] = "setup";

static const int thread_counts[] = { 1, 2, 3, 5 };

enum
{ N_THREAD_COUNTS = 4 };

static const QkOps *ref;
static QkStream *ref_stream;
static QkBackend *backends[N_THREAD_COUNTS];
static QkStream *streams[N_THREAD_COUNTS];

static void
verdict (bool ok, const char *format, ...)
{
  va_list args;

  if (ok) {
    n_passed++;
    return;
  }
  n_failed++;
  if (n_failed > 50)
    return;
  printf ("FAILED %s: ", current);
  va_start (args, format);
  vprintf (format, args);
  va_end (args);
  putchar ('\n');
}

static void
on_fault (int sig)
{
  static const char text[] = "FAILED, memory beyond an array touched: ";
  size_t n = strlen (current);

  (void) sig;
  if (write (1, text, sizeof text - 1) < 0 || write (1, current, n) < 0
      || write (1, "\n", 1) < 0)
    _exit (2);
  _exit (1);
}

/* --- numbers ------------------------------------------------------------ */

static uint64_t random_state = 88172645463325252u;

static uint64_t
random_bits (void)
{
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static int64_t
random_below (int64_t n)
{
  return (int64_t) (random_bits () % (uint64_t) n);
}

/* Close to normal, of unit variance. */
static float
random_normal (void)
{
  double sum = 0;

  for (int i = 0; i < 6; i++)
    sum += (double) (random_bits () >> 40) / (1 << 24) - 0.5;
  return (float) (sum * 1.41421356);
}

static double
tol_dot (int64_t k)
{
  return 6 * (double) FLT_EPSILON * (1 + sqrt ((double) k) / 4);
}

/* --- arrays between unreadable pages ------------------------------------ */

#define BAND 0xa5

typedef struct
{
  char *map;
  size_t map_size;
  char *inside;
  size_t inside_size;
  char *data;
  size_t size;
} Array;

static Array arrays[64];
static int n_arrays;

/* The end (or the beginning, now and then) of the array is the end of
 * readable memory; the rest of the pages holds the guard band. */
static void *
array_new (size_t size)
{
  size_t page = (size_t) sysconf (_SC_PAGESIZE);
  Array *a = &arrays[n_arrays++];

  if (n_arrays > 64)
    abort ();
  a->size = size;
  a->inside_size = (size + 256 + page - 1) & ~(page - 1);
  a->map_size = a->inside_size + 2 * page;
  a->map = mmap (NULL, a->map_size, PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (a->map == MAP_FAILED)
    abort ();
  mprotect (a->map, page, PROT_NONE);
  mprotect (a->map + page + a->inside_size, page, PROT_NONE);
  a->inside = a->map + page;
  memset (a->inside, BAND, a->inside_size);
  a->data = random_below (4) == 0 ? a->inside
      : a->inside + a->inside_size - size;
  return a->data;
}

static bool
bands_are_whole (void)
{
  for (int i = 0; i < n_arrays; i++) {
    const Array *a = &arrays[i];

    for (char *p = a->inside; p < a->inside + a->inside_size; p++)
      if ((p < a->data || p >= a->data + a->size)
          && (unsigned char) *p != BAND)
        return false;
  }
  return true;
}

static void
arrays_free (void)
{
  while (n_arrays > 0) {
    n_arrays--;
    munmap (arrays[n_arrays].map, arrays[n_arrays].map_size);
  }
}

static float *
floats (int64_t n)
{
  return array_new ((size_t) n * sizeof (float));
}

static float *
normals (int64_t n, double scale)
{
  float *p = floats (n);

  for (int64_t i = 0; i < n; i++)
    p[i] = random_normal () * (float) scale;
  return p;
}

/* Weights of unit rows: products with normals have unit size. */
static QkTensor
weights (QkDtype dtype, int n_dims, int64_t d0, int64_t d1, int64_t d2,
    int64_t d3, int64_t sum_length)
{
  QkTensor w = {.dtype = dtype,.n_dims = n_dims,.dims = {d0, d1, d2, d3} };
  int64_t n = qk_tensor_count (&w);
  float scale = 1 / sqrtf ((float) (sum_length > 0 ? sum_length : 1));
  char *p = array_new ((size_t) n * qk_dtype_size (dtype));

  for (int64_t i = 0; i < n; i++) {
    float value = random_normal () * scale;

    qk_from_f32 (p + (size_t) i * qk_dtype_size (dtype), &value, dtype, 1);
  }
  w.data = p;
  return w;
}

/* --- a case ------------------------------------------------------------- */

typedef struct _Case Case;

struct _Case
{
  void (*call) (const Case * c, const QkOps * ops, QkStream * s, float *y);
  int64_t n_out;
  bool fills;                   /* y is not read: it starts as NaN */
  double tol;                   /* for outputs of unit size */
  float *poison;                /* array that a NaN is planted in */
  int64_t n_poison;

  float *x, *x2, *x3;
  const float *a, *b;
  QkTensor w;
  const int32_t *rows;
  int64_t n, d, k;
  int n_heads, head_dim;
  float lo, hi;
  QkActivation act;
  bool accumulate;
  QkAttention attention;
  QkMoe moe;
  int32_t *experts;
};

static void
compare (const float *want, const float *got, int64_t n, double tol)
{
  for (int64_t i = 0; i < n; i++) {
    double size = fabs ((double) want[i]), far;

    if (isnan (want[i]) || isnan (got[i])) {
      if (isnan (want[i]) && isnan (got[i]))
        continue;
      verdict (false, "[%lld] is %g, expected %g", (long long) i,
          (double) got[i], (double) want[i]);
      return;
    }
    if (isinf (want[i]) && want[i] == got[i])
      continue;
    far = fabs ((double) got[i] - (double) want[i]);
    if (!(far <= tol * (size > 1 ? size : 1))) {
      verdict (false,
          "[%lld] is %.9g, expected %.9g, off by %.2g, allowed %.2g",
          (long long) i, (double) got[i], (double) want[i], far, tol);
      return;
    }
  }
  verdict (true, "");
}

static void
run_case (const Case * c, const char *format, ...)
{
  size_t bytes = (size_t) c->n_out * sizeof (float);
  float *start = malloc (bytes + 1), *one = malloc (bytes + 1);
  float *want = floats (c->n_out), *got = floats (c->n_out);
  va_list args;

  va_start (args, format);
  vsnprintf (current, sizeof current, format, args);
  va_end (args);

  for (int64_t i = 0; i < c->n_out; i++)
    start[i] = c->fills ? NAN : random_normal ();
  for (int planted = 0; planted < (c->n_poison > 0 ? 2 : 1); planted++) {
    float before = 0;
    int64_t at = 0;

    if (planted) {
      at = random_below (c->n_poison);
      before = c->poison[at];
      c->poison[at] = NAN;
    }
    memcpy (want, start, bytes);
    c->call (c, ref, ref_stream, want);
    for (int t = 0; t < N_THREAD_COUNTS; t++) {
      memcpy (got, start, bytes);
      c->call (c, streams[t]->ops, streams[t], got);
      if (t == 0) {
        compare (want, got, c->n_out, c->tol);
        memcpy (one, got, bytes);
      } else
        verdict (memcmp (one, got, bytes) == 0, "%d threads differ from one",
            thread_counts[t]);
    }
    if (planted)
      c->poison[at] = before;
  }
  verdict (bands_are_whole (), "guard band overwritten");
  free (start);
  free (one);
  arrays_free ();
}

static const int64_t sizes[] = { 0, 1, 7, 15, 16, 17, 31, 33, 127, 253 };

#define N_OF(array) ((int) (sizeof (array) / sizeof ((array)[0])))

static bool
wanted (const char *op)
{
  return only == NULL || strcmp (only, op) == 0;
}

/* --- the ops ------------------------------------------------------------ */

static void
call_matmul (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->matmul (s, y, c->x, c->n, &c->w, c->a, c->act, c->accumulate);
}

static void
check_one_matmul (int64_t n, int64_t m, int64_t k, QkDtype dtype, int mode)
{
  Case c = {.call = call_matmul,.n_out = n * m,.tol = tol_dot (k),
    .n = n,.act = mode < 4 ? (QkActivation) mode : QK_ACT_NONE,
    .accumulate = mode == 4
  };

  c.fills = !c.accumulate;
  c.x = normals (n * k, 1);
  c.w = weights (dtype, 2, m, k, 0, 0, k);
  if (random_below (3) > 0)
    c.a = normals (m, 1);
  c.poison = c.x;
  c.n_poison = n * k;
  run_case (&c, "matmul %lldx%lldx%lld %s mode %d%s", (long long) n,
      (long long) m, (long long) k, qk_dtype_name (dtype), mode,
      c.a != NULL ? " bias" : "");
}

static void
check_matmul (void)
{
  static const int64_t ns[] = { 0, 1, 2, 3, 4, 5, 7, 12, 15, 16, 17, 25, 33,
    127
  };

  if (!wanted ("matmul"))
    return;
  for (int dtype = 0; dtype < QK_N_DTYPES; dtype++) {
    int mode = 0;

    for (int n = 0; n < N_OF (ns); n++)
      for (int m = 0; m < N_OF (sizes); m++)
        for (int j = 0; j < 3; j++)
          check_one_matmul (ns[n], sizes[m],
              sizes[(m + n + 3 * j) % N_OF (sizes)], (QkDtype) dtype,
              mode++ % 5);
    /* Longer than one block, and than one group, of unpacked weights; rows a
     * power of two apart; enough work for all threads. */
    check_one_matmul (1, 517, 2048, (QkDtype) dtype, 0);
    check_one_matmul (9, 131, 1500, (QkDtype) dtype, 2);
    check_one_matmul (100, 253, 1500, (QkDtype) dtype, 1);
    check_one_matmul (37, 70, 5000, (QkDtype) dtype, 4);
    check_one_matmul (50, 33, 2048, (QkDtype) dtype, 3);
    check_one_matmul (600, 64, 512, (QkDtype) dtype, 4);
  }
}

static void
call_rms_norm (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->rms_norm (s, y, c->x != NULL ? c->x : y, c->n, c->d, c->a, 1e-6f);
}

static void
call_layer_norm (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->layer_norm (s, y, c->x != NULL ? c->x : y, c->n, c->d, c->a, c->b,
      1e-5f);
}

static void
check_norms (void)
{
  static const int64_t ds[] = { 1, 7, 15, 16, 17, 31, 33, 127, 253, 2048,
    2600
  };

  for (int which = 0; which < 2; which++) {
    const char *name = which == 0 ? "rms_norm" : "layer_norm";

    if (!wanted (name))
      continue;
    for (int n = 0; n < N_OF (sizes); n++) {
      for (int d = 0; d < N_OF (ds); d++) {
        Case c = {.call = which == 0 ? call_rms_norm : call_layer_norm,
          .n = sizes[n],.d = ds[d],.n_out = sizes[n] * ds[d],.tol = 2e-6
        };

        if ((n + d) % 2 == 0) {
          c.x = c.poison = normals (c.n_out, 3);
          c.n_poison = c.n_out;
          c.fills = true;
        }
        c.a = normals (c.d, 1);
        c.b = normals (c.d, 1);
        /* A mean well away from zero. */
        for (int64_t i = 0; c.x != NULL && i < c.n_out; i++)
          c.x[i] += 5;
        /* One value is its own mean: what is left is rounding. */
        if (which == 1 && c.d == 1)
          c.tol = 1e-3;
        run_case (&c, "%s %lldx%lld%s", name, (long long) c.n,
            (long long) c.d, c.x != NULL ? "" : " in place");
      }
    }
  }
}

static void
call_rope (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->rope (s, y, c->x, c->n, c->n_heads, c->head_dim);
}

static void
check_rope (void)
{
  static const int dims[] = { 2, 8, 30, 32, 34, 64, 72, 128, 250 };

  if (!wanted ("rope"))
    return;
  for (int n = 0; n < N_OF (sizes); n++) {
    for (int d = 0; d < N_OF (dims); d++) {
      Case c = {.call = call_rope,.n = sizes[n],.n_heads = 1 + (n + d) % 5,
        .head_dim = dims[d],.tol = 1e-6
      };

      c.n_out = c.n * c.n_heads * c.head_dim;
      c.x = c.poison = normals (c.n * c.head_dim, 1);
      c.n_poison = c.n * c.head_dim;
      run_case (&c, "rope %lldx%dx%d", (long long) c.n, c.n_heads,
          c.head_dim);
    }
  }
}

static void
call_attention (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->attention (s, y, c->x, c->x2, c->x3, &c->attention);
}

static void
check_one_attention (int64_t n_q, int64_t n_kv, int n_heads, int n_kv_heads,
    int head_dim, bool causal, int64_t first, int64_t window, int poison)
{
  Case c = {.call = call_attention,.fills = true,
    .tol = 4e-6 + tol_dot (head_dim),
    .attention = {.n_q = n_q,.n_kv = n_kv,.n_heads = n_heads,
          .n_kv_heads = n_kv_heads,.head_dim = head_dim,
          .scale = 1 / sqrtf ((float) head_dim),.causal = causal,
        .first = first,.window = window}
  };

  c.n_out = n_q * n_heads * head_dim;
  c.x = normals (c.n_out, 2);
  c.x2 = normals (n_kv * n_kv_heads * head_dim, 1);
  c.x3 = normals (n_kv * n_kv_heads * head_dim, 1);
  c.poison = poison == 0 ? c.x : poison == 1 ? c.x2 : c.x3;
  c.n_poison = poison == 0 ? c.n_out : n_kv * n_kv_heads * head_dim;
  run_case (&c, "attention %lldx%lld heads %d/%d dim %d%s first %lld "
      "window %lld", (long long) n_q, (long long) n_kv, n_heads, n_kv_heads,
      head_dim, causal ? " causal" : "", (long long) first,
      (long long) window);
}

static void
check_attention (void)
{
  static const int64_t n_qs[] = { 0, 1, 2, 7, 13, 33, 104 };
  static const int64_t n_kvs[] = { 0, 1, 7, 16, 63, 64, 65, 127, 253 };
  static const int dims[] = { 4, 64, 72, 128, 33 };
  static const int heads[][2] = { {1, 1}, {4, 1}, {8, 2}, {3, 3}, {32, 4} };
  int i = 0;

  if (!wanted ("attention"))
    return;
  for (int q = 0; q < N_OF (n_qs); q++) {
    for (int kv = 0; kv < N_OF (n_kvs); kv++) {
      for (int mode = 0; mode < 4; mode++, i++) {
        int64_t n_q = n_qs[q], n_kv = n_kvs[kv];
        int64_t first = n_kv >= n_q ? n_kv - n_q : 0;

        check_one_attention (n_q, n_kv, heads[i % 5][0], heads[i % 5][1],
            dims[(i / 3) % 5], mode > 0, mode == 3 ? first / 2 : first,
            mode >= 2 ? 1 + random_below (80) : 0, i % 3);
      }
    }
  }
  check_one_attention (1, 1500, 32, 4, 128, true, 1499, 0, 1);
  check_one_attention (300, 300, 16, 16, 64, true, 0, 72, 2);
  check_one_attention (150, 400, 8, 2, 128, true, 250, 0, 2);

  /* Scores far apart, where exponentials vanish. */
  Case c = {.call = call_attention,.fills = true,.n_out = 5 * 64,
    .tol = 1e-4,.attention = {.n_q = 5,.n_kv = 200,.n_heads = 1,
          .n_kv_heads = 1,.head_dim = 64,.scale = 1}
  };
  c.x = normals (5 * 64, 8);
  c.x2 = normals (200 * 64, 8);
  c.x3 = normals (200 * 64, 1);
  run_case (&c, "attention with large scores");

  /* Scores so low that their exponentials vanish unless the largest is taken
   * away first. */
  c.x = normals (5 * 64, 1);
  c.x2 = normals (200 * 64, 1);
  c.x3 = normals (200 * 64, 1);
  for (i = 0; i < 5 * 64; i++)
    c.x[i] += 4;
  for (i = 0; i < 200 * 64; i++)
    c.x2[i] -= 4;
  run_case (&c, "attention with low scores");
}

static void
call_moe (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  int64_t n = c->n * c->moe.top_k;
  int32_t *experts = calloc ((size_t) n + 1, sizeof *experts);

  ops->moe (s, y, c->x, c->n, &c->moe, experts);
  if (ops == ref)
    memcpy (c->experts, experts, (size_t) n * sizeof *experts);
  else if (c->n_poison == 0)
    verdict (memcmp (c->experts, experts, (size_t) n * sizeof *experts) == 0,
        "other experts chosen");
  free (experts);
}

static void
check_one_moe (int64_t n, int n_experts, int top_k, int64_t width,
    int64_t inner, int64_t shared_inner, QkDtype dtype, bool norm,
    bool ties, bool poison)
{
  Case c = {.call = call_moe,.n = n,.n_out = n * width,
    .tol = 8 * tol_dot (width > inner ? width : inner),
    .moe = {.n_experts = n_experts,.top_k = top_k,.norm_top_k = norm}
  };
  QkTensor *experts = malloc (3 * (size_t) n_experts * sizeof *experts);

  c.x = normals (n * width, 1);
  /* Logits far enough apart that rounding does not decide. */
  c.moe.router = weights (QK_F32, 2, n_experts, width, 0, 0, width);
  for (int64_t i = 0; i < n_experts * width; i++)
    ((float *) c.moe.router.data)[i] *= ties ? 0 : 3;
  for (int i = 0; i < 3; i++) {
    QkTensor all = i < 2 ? weights (dtype, 3, n_experts, inner, width, 0,
        width) : weights (dtype, 3, n_experts, width, inner, 0, inner);

    for (int e = 0; e < n_experts; e++) {
      QkTensor one = qk_tensor_rows (&all, e, 1);

      experts[i * n_experts + e] = (QkTensor) {
        .data = one.data,.dtype = dtype,.n_dims = 2,
        .dims = {all.dims[1], all.dims[2]}
      };
    }
  }
  c.moe.gate = experts;
  c.moe.up = experts + n_experts;
  c.moe.down = experts + 2 * n_experts;
  if (shared_inner > 0) {
    c.moe.shared_gate = weights (dtype, 2, shared_inner, width, 0, 0, width);
    c.moe.shared_up = weights (dtype, 2, shared_inner, width, 0, 0, width);
    c.moe.shared_down =
        weights (dtype, 2, width, shared_inner, 0, 0, shared_inner);
    c.moe.shared_scale = weights (dtype, 2, 1, width, 0, 0, width);
  }
  c.experts = malloc (((size_t) (n * top_k) + 1) * sizeof *c.experts);
  if (poison) {
    c.poison = c.x;
    c.n_poison = n * width;
  }
  run_case (&c, "moe %lld tokens %d/%d experts %lldx%lld shared %lld %s%s%s",
      (long long) n, top_k, n_experts, (long long) width, (long long) inner,
      (long long) shared_inner, qk_dtype_name (dtype), norm ? " norm" : "",
      ties ? " ties" : "");
  free (c.experts);
  free (experts);
}

static void
check_moe (void)
{
  static const int64_t ns[] = { 0, 1, 2, 5, 17, 64 };

  if (!wanted ("moe"))
    return;
  for (int dtype = 0; dtype < QK_N_DTYPES; dtype++) {
    for (int n = 0; n < N_OF (ns); n++) {
      QkDtype d = (QkDtype) dtype;

      check_one_moe (ns[n], 8, 2, 33, 17, 0, d, true, false, false);
      check_one_moe (ns[n], 16, 8, 64, 48, 0, d, true, false, true);
      check_one_moe (ns[n], 5, 5, 31, 7, 40, d, false, false, false);
      check_one_moe (ns[n], 12, 3, 127, 70, 33, d, true, true, false);
      check_one_moe (ns[n], 1, 1, 15, 1, 1, d, false, false, true);
    }
  }
  check_one_moe (100, 4, 2, 250, 130, 0, QK_BF16, true, false, false);
  check_one_moe (1100, 6, 2, 24, 8, 8, QK_F32, true, false, false);
}

static void
call_silu_mul (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->silu_mul (s, y, c->x, c->n);
}

static void
call_activate (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  memcpy (y, c->x, (size_t) c->n * sizeof (float));
  ops->activate (s, y, c->n, c->act);
}

static void
call_add (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->add (s, y, c->x, c->n);
}

static void
call_scale (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  memcpy (y, c->x, (size_t) c->n * sizeof (float));
  ops->scale (s, y, c->hi, c->n);
}

static void
call_clamp (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  memcpy (y, c->x, (size_t) c->n * sizeof (float));
  ops->clamp (s, y, c->lo, c->hi, c->n);
}

/* Values where functions end: signs, infinities, over- and underflow. */
static void
put_extremes (float *x, int64_t n)
{
  static const float extremes[] = { 0, -0.0f, 1e-38f, -1e-42f, 88.8f, -88.8f,
    103.5f, -104.5f, 13, -13, 1e30f, -1e30f, INFINITY, FLT_MAX
  };

  for (int i = 0; i < N_OF (extremes) && i < n; i++)
    x[n - 1 - i] = extremes[i];
}

static void
check_elementwise (void)
{
  static const struct
  {
    const char *name;
    void (*call) (const Case * c, const QkOps * ops, QkStream * s, float *y);
    QkActivation act;
  } ops[] = {
    {"silu_mul", call_silu_mul, QK_ACT_NONE},
    {"add", call_add, QK_ACT_NONE},
    {"scale", call_scale, QK_ACT_NONE},
    {"clamp", call_clamp, QK_ACT_NONE},
    {"activate", call_activate, QK_ACT_NONE},
    {"activate", call_activate, QK_ACT_GELU},
    {"activate", call_activate, QK_ACT_GELU_TANH},
    {"activate", call_activate, QK_ACT_SILU},
  };
  static const int64_t ns[] = { 0, 1, 7, 15, 16, 17, 31, 33, 127, 253, 70001 };

  for (int op = 0; op < N_OF (ops); op++) {
    if (!wanted (ops[op].name))
      continue;
    for (int n = 0; n < N_OF (ns); n++) {
      Case c = {.call = ops[op].call,.act = ops[op].act,.n = ns[n],
        .n_out = ns[n],.tol = 1e-6,.lo = -0.5f,.hi = 1.25f
      };

      c.x = c.poison = normals (c.n, 4);
      c.n_poison = c.n;
      if (c.call != call_silu_mul)
        put_extremes (c.x, c.n);
      run_case (&c, "%s %d n %lld", ops[op].name, ops[op].act,
          (long long) c.n);
    }
  }
}

static void
call_add_scaled (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->add_scaled (s, y, c->x, c->n, c->d, c->a);
}

static void
call_snake (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  if (c->accumulate)
    ops->snake (s, y, y, c->n, c->d, c->a, c->b);
  else
    ops->snake (s, y, c->x, c->n, c->d, c->a, c->b);
}

static void
check_channels (void)
{
  for (int n = 0; n < N_OF (sizes); n++) {
    for (int d = 1; d < N_OF (sizes); d++) {
      for (int which = 0; which < 2; which++) {
        Case c = {.call = which == 0 ? call_add_scaled : call_snake,
          .n = sizes[n],.d = sizes[d],.n_out = sizes[n] * sizes[d],
          .tol = 1e-6,.fills = which == 1
        };
        float *a = normals (c.d, 1);

        if (!wanted (which == 0 ? "add_scaled" : "snake"))
          continue;
        /* Angles up to 1e4 and more, some out of all range. */
        for (int64_t i = 0; which == 1 && i < c.d; i++)
          a[i] = fabsf (a[i]) * (i % 3 == 0 ? 3000 : i % 3 == 1 ? 50 : 1);
        c.a = a;
        c.b = normals (c.d, 1);
        c.x = c.poison = normals (c.n_out, 2);
        c.n_poison = c.n_out;
        if (which == 1) {
          c.tol = 2e-6;
          c.accumulate = (n + d) % 2 == 0;
          c.fills = !c.accumulate;
          if (c.accumulate)
            c.n_poison = 0;
          if (c.n_out > 20) {
            c.x[1] = 1e30f;
            c.x[2] = INFINITY;
            c.x[3] = 3e5f;
          }
        }
        run_case (&c, "%s %lldx%lld", which == 0 ? "add_scaled" : "snake",
            (long long) c.n, (long long) c.d);
      }
    }
  }
}

static void
call_embed (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->embed (s, y, &c->w, c->rows, c->n, c->accumulate);
}

static void
call_scatter_rows (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->scatter_rows (s, y, c->x, c->d, c->rows, c->n, c->accumulate);
}

static void
check_rows (void)
{
  for (int i = 0; i < 3 * 2 * N_OF (sizes); i++) {
    int64_t n = sizes[i % N_OF (sizes)];
    int64_t d = sizes[1 + (i * 7) % (N_OF (sizes) - 1)];
    int32_t *rows = array_new ((size_t) n * sizeof *rows);
    Case c = {.call = call_embed,.n = n,.d = d,.n_out = n * d,.rows = rows,
      .accumulate = i % 2 == 0,.tol = 1e-6
    };

    if (!wanted ("embed"))
      continue;
    c.fills = !c.accumulate;
    c.w = weights ((QkDtype) (i % 3), 2, 11, d, 0, 0, 1);
    for (int64_t r = 0; r < n; r++)
      rows[r] = (int32_t) random_below (11);
    run_case (&c, "embed %lldx%lld %s", (long long) n, (long long) d,
        qk_dtype_name (c.w.dtype));
  }
  for (int i = 0; i < 2 * N_OF (sizes); i++) {
    int64_t n = sizes[i % N_OF (sizes)];
    int64_t d = sizes[1 + (i * 7) % (N_OF (sizes) - 1)];
    int32_t *rows = array_new ((size_t) n * sizeof *rows);
    Case c = {.call = call_scatter_rows,.n = n,.d = d,.n_out = 2 * n * d,
      .rows = rows,.accumulate = i % 2 == 0,.tol = 1e-6
    };

    if (!wanted ("scatter_rows"))
      continue;
    c.x = c.poison = normals (n * d, 1);
    c.n_poison = n * d;
    for (int64_t r = 0; r < n; r++)
      rows[r] = (int32_t) (2 * (n - 1 - r) + r % 2);
    run_case (&c, "scatter_rows %lldx%lld", (long long) n, (long long) d);
  }
}

static void
call_conv2d (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->conv2d_s2 (s, y, c->x, c->n, c->d, &c->w, c->a, c->act);
}

static void
check_conv2d (void)
{
  static const int64_t images[][2] = { {0, 4}, {1, 1}, {2, 3}, {7, 16},
  {16, 7}, {33, 31}, {128, 100}
  };
  static const int64_t channels[][2] = { {1, 1}, {1, 15}, {3, 13}, {17, 33},
  {100, 30}
  };
  int i = 0;

  if (!wanted ("conv2d_s2"))
    return;
  for (int im = 0; im < N_OF (images); im++) {
    for (int ch = 0; ch < N_OF (channels); ch++, i++) {
      int64_t c_in = channels[ch][0], c_out = channels[ch][1];
      Case c = {.call = call_conv2d,.n = images[im][0],.d = images[im][1],
        .act = (QkActivation) (i % 4),.fills = true,
        .tol = tol_dot (9 * c_in)
      };

      c.n_out = c_out * ((c.n + 1) / 2) * ((c.d + 1) / 2);
      c.x = c.poison = normals (c_in * c.n * c.d, 1);
      c.n_poison = c_in * c.n * c.d;
      c.w = weights ((QkDtype) (i % 3), 4, c_out, c_in, 3, 3, 9 * c_in);
      c.a = i % 2 == 0 ? normals (c_out, 1) : NULL;
      run_case (&c, "conv2d_s2 %lldx%lld channels %lld to %lld %s act %d",
          (long long) c.n, (long long) c.d, (long long) c_in,
          (long long) c_out, qk_dtype_name (c.w.dtype), c.act);
    }
  }
}

static void
call_conv1d (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->conv1d (s, y, c->x, c->n, &c->w, c->a, c->d, c->accumulate);
}

static void
check_one_conv1d (int64_t n, int64_t k, int64_t dilation, int64_t c_in,
    int64_t c_out, QkDtype dtype, bool accumulate)
{
  Case c = {.call = call_conv1d,.n = n,.d = dilation,.n_out = n * c_out,
    .accumulate = accumulate,.fills = !accumulate,.tol = tol_dot (k * c_in)
  };
  int64_t history = (k - 1) * dilation;

  c.poison = normals ((history + n) * c_in, 1);
  c.n_poison = (history + n) * c_in;
  c.x = c.poison + history * c_in;
  c.w = weights (dtype, 3, k, c_out, c_in, 0, k * c_in);
  c.a = n % 2 == 0 ? normals (c_out, 1) : NULL;
  run_case (&c, "conv1d n %lld k %lld dilation %lld %lld to %lld %s%s",
      (long long) n, (long long) k, (long long) dilation, (long long) c_in,
      (long long) c_out, qk_dtype_name (dtype), accumulate ? " add" : "");
}

static void
check_conv1d (void)
{
  static const int64_t shapes[][3] = { {1, 1, 1}, {7, 1, 33}, {7, 3, 17},
  {7, 9, 96}, {2, 5, 15}, {1, 1, 127}
  };
  static const int64_t outs[] = { 1, 7, 16, 31, 33, 96 };
  int i = 0;

  if (!wanted ("conv1d"))
    return;
  for (int n = 0; n < N_OF (sizes); n++)
    for (int k = 0; k < N_OF (shapes); k++, i++)
      check_one_conv1d (sizes[n], shapes[k][0], shapes[k][1], shapes[k][2],
          outs[(n + k) % N_OF (outs)], (QkDtype) (i % 3), i % 2 == 0);
  check_one_conv1d (1000, 7, 3, 96, 96, QK_F32, false);
  check_one_conv1d (65, 7, 1, 1024, 40, QK_BF16, false);
  check_one_conv1d (30, 3, 2, 1536, 20, QK_F16, true);
}

static void
call_depthwise (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->conv1d_depthwise (s, y, c->x, c->n, c->d, c->a, c->k, c->b);
}

static void
check_depthwise (void)
{
  if (!wanted ("conv1d_depthwise"))
    return;
  for (int n = 0; n < N_OF (sizes); n++) {
    for (int d = 0; d < N_OF (sizes); d++) {
      int64_t k = d % 2 == 0 ? 7 : 1 + n % 4;
      Case c = {.call = call_depthwise,.n = sizes[n],.d = sizes[d],.k = k,
        .n_out = sizes[n] * sizes[d],.fills = true,.tol = 2e-6
      };

      c.n_poison = (k - 1 + c.n) * c.d;
      c.poison = normals (c.n_poison, 1);
      c.x = c.poison + (k - 1) * c.d;
      c.a = normals (k * c.d, 0.4);
      c.b = n % 2 == 0 ? normals (c.d, 1) : NULL;
      run_case (&c, "conv1d_depthwise n %lld c %lld k %lld", (long long) c.n,
          (long long) c.d, (long long) k);
    }
  }
}

static void
call_transposed (const Case * c, const QkOps * ops, QkStream * s, float *y)
{
  ops->conv1d_transposed (s, y, c->x, c->n, c->k, &c->w, c->a);
}

static void
check_transposed (void)
{
  static const int64_t rates[] = { 1, 2, 3, 5, 8 };
  static const int64_t channels[][2] = { {1, 1}, {17, 5}, {33, 31}, {96, 16},
  {512, 20}
  };
  static const int64_t ns[] = { 0, 1, 2, 7, 17, 33, 127 };
  int i = 0;

  if (!wanted ("conv1d_transposed"))
    return;
  for (int n = 0; n < N_OF (ns); n++) {
    for (int r = 0; r < N_OF (rates); r++) {
      for (int cut = 0; cut < 2; cut++, i++) {
        int64_t c_in = channels[i % N_OF (channels)][0];
        int64_t c_out = channels[i % N_OF (channels)][1];
        Case c = {.call = call_transposed,.n = ns[n],.k = rates[r],
          .n_out = ns[n] * rates[r] * c_out,.fills = true,
          .tol = tol_dot (2 * c_in)
        };

        c.n_poison = (ns[n] + (cut ? 1 : 0)) * c_in;
        c.x = c.poison = normals (c.n_poison, 1);
        c.w = weights ((QkDtype) (i % 3), 3, (cut ? 2 : 1) * rates[r], c_out,
            c_in, 0, 2 * c_in);
        c.a = i % 4 < 2 ? normals (c_out, 1) : NULL;
        run_case (&c, "conv1d_transposed n %lld rate %lld%s %lld to %lld %s",
            (long long) c.n, (long long) c.k, cut ? " cut" : "",
            (long long) c_in, (long long) c_out, qk_dtype_name (c.w.dtype));
      }
    }
  }
}

/* --- what is not an op -------------------------------------------------- */

static float
half_at (uint32_t bits, QkDtype dtype)
{
  uint16_t half = (uint16_t) bits;
  float f;

  qk_to_f32 (&f, &half, dtype, 1);
  return f;
}

static uint16_t
half_of (double value, QkDtype dtype)
{
  float f = (float) value;
  uint16_t half;

  qk_from_f32 (&half, &f, dtype, 1);
  return half;
}

static double
exact_half (uint32_t bits, QkDtype dtype)
{
  int mantissa_bits = dtype == QK_F16 ? 10 : 7;
  int bias = dtype == QK_F16 ? 15 : 127;
  int e = (int) (bits >> mantissa_bits) & (dtype == QK_F16 ? 31 : 255);
  double mantissa = (double) (bits & ((1u << mantissa_bits) - 1));
  double value = e == 0 ? ldexp (mantissa, 1 - bias - mantissa_bits)
      : ldexp (mantissa + ldexp (1, mantissa_bits), e - bias - mantissa_bits);

  return bits & 0x8000 ? -value : value;
}

static void
check_halves_convert_exactly (void)
{
  if (!wanted ("halves"))
    return;
  for (int d = 1; d < QK_N_DTYPES; d++) {
    QkDtype dtype = (QkDtype) d;
    uint32_t infinity = dtype == QK_F16 ? 0x7c00 : 0x7f80;
    bool ok = true, nans = true, ties = true;

    snprintf (current, sizeof current, "halves %s", qk_dtype_name (dtype));
    for (uint32_t h = 0; h < 0x10000; h++) {
      float f = half_at (h, dtype);

      if ((h & 0x7fff) > infinity) {
        nans &= isnan (f) && isnan (half_at (half_of ((double) f, dtype),
                dtype));
        continue;
      }
      if ((h & 0x7fff) < infinity)
        ok &= (double) f == exact_half (h, dtype);
      else
        ok &= isinf (f);
      ok &= half_of ((double) f, dtype) == h;
    }
    for (uint32_t h = 0; h < infinity - 1; h++) {
      double low = exact_half (h, dtype), high = exact_half (h + 1, dtype);
      double mid = (low + high) / 2;

      ties &= half_of (mid, dtype) == (h % 2 == 0 ? h : h + 1);
      ties &= half_of (-mid, dtype) == ((h % 2 == 0 ? h : h + 1) | 0x8000);
      if ((double) (float) (mid + (high - low) / 64) > mid)
        ties &= half_of (mid + (high - low) / 64, dtype) == h + 1;
    }
    verdict (ok, "a value changed");
    verdict (nans, "a NaN was lost");
    verdict (ties, "not rounded to nearest even");
    verdict (half_of (1e39, dtype) == infinity, "no infinity");
    verdict (half_of (65519.9, QK_F16) == 0x7bff
        && half_of (65520, QK_F16) == 0x7c00, "f16 overflow");
  }
}

static void
check_memory_is_zeroed_and_aligned (QkBackend * be)
{
  static const size_t bytes[] = { 0, 1, 100, 4096, (size_t) 9 << 20 };

  snprintf (current, sizeof current, "alloc");
  for (int i = 0; i < N_OF (bytes); i++) {
    char *p = be->alloc (be, bytes[i]);
    bool zero = true;

    verdict (p != NULL && (uintptr_t) p % 64 == 0, "%zu bytes at %p",
        bytes[i], (void *) p);
    for (size_t b = 0; p != NULL && b < bytes[i]; b++)
      zero &= p[b] == 0;
    verdict (zero, "%zu bytes not zeroed", bytes[i]);
    be->release (be, p, bytes[i]);
  }
  be->release (be, NULL, 0);
  verdict (be->alloc (be, SIZE_MAX / 2) == NULL, "endless memory");
}

static void
check_shortage_is_latched (QkBackend * be)
{
  QkStream *s = be->stream_new (be);
  float x[4] = { 1, 1, 1, 1 }, y[4] = { 0 };
  QkTensor w = {.data = x,.dtype = QK_F32,.n_dims = 2,.dims = {1, 4} };
  QkTensor huge = {.data = x,.dtype = QK_F32,.n_dims = 2,
    .dims = {(int64_t) 1 << 50, 4}
  };
  QkMoe moe = {.n_experts = 1,.top_k = 1,.router = w,.gate = &huge,
    .up = &huge,.down = &huge
  };

  snprintf (current, sizeof current, "shortage");
  verdict (s->backend == be && qk_stream_backend (s) == be, "no backend");
  verdict (be->error (s) == NULL, "an error before anything ran");
  s->ops->moe (s, y, x, 1, &moe, NULL);
  verdict (be->error (s) != NULL, "no error");
  s->ops->matmul (s, y, x, 1, &w, NULL, QK_ACT_NONE, false);
  verdict (y[0] == 0, "an op ran on a failed stream");
  be->stream_free (s);
  be->stream_free (NULL);
}

typedef struct
{
  QkStream *s;
  const float *x;
  const QkTensor *w;
  const float *want;
  bool ok;
} Player;

enum
{ PLAY_N = 20, PLAY_M = 200, PLAY_K = 300, PLAY_ROUNDS = 200 };

static void *
play (void *data)
{
  Player *p = data;
  static const QkAttention a = {.n_q = PLAY_N,.n_kv = PLAY_N,.n_heads = 4,
    .n_kv_heads = 2,.head_dim = 50,.scale = 0.1f,.causal = true
  };
  float *y = calloc (2 * PLAY_N * PLAY_M, sizeof *y);

  p->ok = true;
  for (int i = 0; i < PLAY_ROUNDS; i++) {
    p->s->ops->matmul (p->s, y, p->x, PLAY_N, p->w, NULL, QK_ACT_SILU, false);
    p->s->ops->attention (p->s, y + PLAY_N * PLAY_M, y, y, y, &a);
    p->ok &= memcmp (y, p->want, 2 * PLAY_N * PLAY_M * sizeof *y) == 0;
  }
  free (y);
  return NULL;
}

static void
check_two_streams_at_once (QkCpuLevel level)
{
  QkBackend *be = qk_cpu_backend_new (3, level);
  float *want = calloc (2 * PLAY_N * PLAY_M, sizeof *want);
  static const QkAttention a = {.n_q = PLAY_N,.n_kv = PLAY_N,.n_heads = 4,
    .n_kv_heads = 2,.head_dim = 50,.scale = 0.1f,.causal = true
  };
  Player players[3];
  pthread_t threads[3];
  float *x = normals (PLAY_N * PLAY_K, 1);
  QkTensor w = weights (QK_BF16, 2, PLAY_M, PLAY_K, 0, 0, PLAY_K);

  snprintf (current, sizeof current, "two streams");
  streams[0]->ops->matmul (streams[0], want, x, PLAY_N, &w, NULL, QK_ACT_SILU,
      false);
  streams[0]->ops->attention (streams[0], want + PLAY_N * PLAY_M, want, want,
      want, &a);
  for (int i = 0; i < 3; i++) {
    players[i] = (Player) {
    .s = be->stream_new (be),.x = x,.w = &w,.want = want};
    pthread_create (&threads[i], NULL, play, &players[i]);
  }
  for (int i = 0; i < 3; i++) {
    pthread_join (threads[i], NULL);
    verdict (players[i].ok, "stream %d computed something else", i);
    be->stream_free (players[i].s);
  }
  be->free (be);
  free (want);
  arrays_free ();
}

static void
check_masked_cpu_stays_below_its_level (void)
{
  snprintf (current, sizeof current, "masked CPU");
  for (int level = QK_CPU_C; level <= (int) qk_cpu_probe (); level++) {
    QkBackend *be = qk_cpu_backend_new (1, (QkCpuLevel) level);
    QkBackend *plain = qk_cpu_backend_new (1, QK_CPU_C);
    char name[40];

    snprintf (name, sizeof name, "cpu/%s",
        qk_cpu_level_name ((QkCpuLevel) level));
    verdict (strcmp (be->name, name) == 0, "'%s' is not '%s'", be->name, name);
    verdict ((be->ops->matmul == plain->ops->matmul) == (level == QK_CPU_C),
        "level %d has the wrong matmul", level);
    be->free (be);
    plain->free (plain);
  }
  QkBackend *best = qk_cpu_backend_new (0, QK_CPU_BEST);
  verdict (strcmp (best->name + 4, qk_cpu_level_name (qk_cpu_probe ())) == 0,
      "best is '%s'", best->name);
  best->free (best);
}

int
main (int argc, char **argv)
{
  QkCpuLevel level = qk_cpu_probe ();
  QkBackend *ref_backend = qk_cpu_backend_new (1, QK_CPU_C);
  bool bench = false;
  int n_bench_threads = 0;

  for (int i = 1; i < argc; i++) {
    if (strcmp (argv[i], "--bench") == 0)
      bench = true;
    else if (strcmp (argv[i], "--threads") == 0 && i + 1 < argc)
      n_bench_threads = atoi (argv[++i]);
    else if (strcmp (argv[i], "--only") == 0 && i + 1 < argc)
      only = argv[++i];
    else if (strcmp (argv[i], "--level") == 0 && i + 1 < argc) {
      const char *name = argv[++i];
      int l = QK_CPU_C;

      while (l <= QK_CPU_AVX512_VNNI
          && strcmp (name, qk_cpu_level_name ((QkCpuLevel) l)) != 0)
        l++;
      if (l > QK_CPU_AVX512_VNNI) {
        fprintf (stderr, "no level '%s'\n", name);
        return 2;
      }
      if (l > (int) qk_cpu_probe ()) {
        printf ("skipped: this CPU offers %s, not %s\n",
            qk_cpu_level_name (qk_cpu_probe ()), name);
        return 77;
      }
      level = (QkCpuLevel) l;
    } else {
      fprintf (stderr, "usage: %s [--level c|avx2|avx512] [--only OP] "
          "[--bench [--threads N]]\n", argv[0]);
      return 2;
    }
  }
  if (bench)
    return bench_run (level, n_bench_threads, only);

  signal (SIGSEGV, on_fault);
  signal (SIGBUS, on_fault);
  ref_stream = ref_backend->stream_new (ref_backend);
  ref = level == QK_CPU_C ? &naive_ops : ref_backend->ops;
  for (int t = 0; t < N_THREAD_COUNTS; t++) {
    backends[t] = qk_cpu_backend_new (thread_counts[t], level);
    streams[t] = backends[t]->stream_new (backends[t]);
  }

  check_halves_convert_exactly ();
  check_matmul ();
  check_norms ();
  check_rope ();
  check_attention ();
  check_moe ();
  check_elementwise ();
  check_channels ();
  check_rows ();
  check_conv2d ();
  check_conv1d ();
  check_depthwise ();
  check_transposed ();
  if (only == NULL) {
    check_memory_is_zeroed_and_aligned (backends[0]);
    check_shortage_is_latched (backends[1]);
    check_two_streams_at_once (level);
    check_masked_cpu_stays_below_its_level ();
  }

  for (int t = 0; t < N_THREAD_COUNTS; t++) {
    snprintf (current, sizeof current, "end");
    verdict (backends[t]->error (streams[t]) == NULL, "a stream failed");
    backends[t]->stream_free (streams[t]);
    backends[t]->free (backends[t]);
  }
  ref_backend->stream_free (ref_stream);
  ref_backend->free (ref_backend);
  printf ("%s: %d passed, %d failed\n", qk_cpu_level_name (level), n_passed,
      n_failed);
  return n_failed > 0;
}
