/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * gemm: activations times weights.
 *
 * Few rows go by `dot`: a unit of work is some columns of y, that is rows of
 * weights, and all rows of x. Many rows go by register tiles: a unit is a panel
 * of tile_cols columns of y over some hundred rows. Its weights are unpacked to
 * f32 [k][tile_cols] once, in groups that stay in the second cache, and every
 * tile of rows goes over the group:
 *
 *   x [rows, c_in] ──────────┐
 *   w ── pack ── b [k][cols] ┴─ tile ── y [rows, cols] ── bias, activation
 *
 * The sum of an output runs over taps and channels in an order that depends on
 * the shape of the weights, and on which way is taken, only.
 */
#include "simd.h"

#include <string.h>

/* Columns that a unit computes by `dot`. */
#define FEW_COLS 64

/* Channels that one call of `tile` sums: a tile of x stays in the first cache,
 * and the error of a sum is that of the blocks, not of the whole. */
#define BLOCK 512
/* Rows a unit covers where there are enough: packing costs a few percent. */
#define UNIT_ROWS 480
/* Most floats of a group of unpacked weights: 512 KiB, and at least one
 * block. */
#define GROUP_FLOATS ((int64_t) 128 << 10)

typedef struct
{
  const QkGemm *g;
  const QkSimd *simd;
  const float *x;               /* as g->x, at a better stride */
  int64_t ldx;
  int64_t n_panels, n_cuts;
  int64_t blocks_per_tap, n_blocks, blocks_per_group;
  float *b;                     /* [n_threads, thread_floats] */
  int64_t thread_floats;
  float *copy;
  int64_t copy_first;
} Job;

static int64_t
div_up (int64_t a, int64_t b)
{
  return (a + b - 1) / b;
}

/* --- few rows ----------------------------------------------------------- */

typedef struct
{
  const QkGemm *g;
  const QkSimd *simd;
  int64_t unit;                 /* columns, at most FEW_COLS */
} FewJob;

static void
few_units (const void *data, int64_t first, int64_t last, int thread)
{
  const FewJob *j = data;
  const QkGemm *g = j->g;
  const float *x[QK_FEW_ROWS];
  float sums[QK_FEW_ROWS * FEW_COLS], part[QK_FEW_ROWS * FEW_COLS];

  (void) thread;
  for (int64_t u = first; u < last; u++) {
    int64_t col = u * j->unit;
    int64_t cols = g->m - col < j->unit ? g->m - col : j->unit;

    for (int64_t tap = 0; tap < g->n_taps; tap++) {
      size_t at = (size_t) ((tap * g->m + col) * g->c_in);

      for (int64_t i = 0; i < g->n; i++)
        x[i] = g->x + (i + g->first_offset + tap * g->offset_step) * g->c_in;
      j->simd->dot[g->dtype] (tap == 0 ? sums : part, FEW_COLS, x, g->n,
          (const char *) g->w + at * qk_dtype_size (g->dtype), cols, g->c_in);
      for (int64_t i = 0; i < g->n && tap > 0; i++)
        j->simd->add (sums + i * FEW_COLS, part + i * FEW_COLS, cols);
    }
    for (int64_t i = 0; i < g->n; i++) {
      for (int64_t c = col, n; c < col + cols; c += n) {
        int64_t at = c % g->n_bias;

        n = col + cols - c < g->n_bias - at ? col + cols - c
            : g->n_bias - at;
        j->simd->finish (g->y + i * g->m + c, sums + i * FEW_COLS + (c - col),
            g->bias != NULL ? g->bias + at : NULL, n, g->act, g->accumulate);
      }
    }
  }
}

void
qk_simd_gemm_few (QkStream * s, const QkGemm * g)
{
  FewJob job = {.g = g,.simd = qk_simd (s),.unit = FEW_COLS };

  while (job.unit > 8 && job.unit * 4 * qk_cpu_n_threads (s) > g->m)
    job.unit /= 2;
  if (g->n > 0)
    qk_cpu_parallel (s, few_units, &job, div_up (g->m, job.unit),
        g->n * g->n_taps * g->c_in * job.unit / 16);
}

/* Unpacking weights pays from some number of rows on. It costs the less the
 * shorter they are, as `dot` has to add up a vector for every output. */
static bool
is_few (const QkGemm * g)
{
  return g->n <= (g->c_in >= 512 ? QK_FEW_ROWS : g->c_in >= 128 ? 16 : 8);
}

/* --- many rows ---------------------------------------------------------- */

/* Rows first … last-1 of the panel, over the blocks of one group. */
static void
multiply_group (const Job * j, const float *b, int64_t panel, int64_t first,
    int64_t last, int64_t block0, int64_t block1)
{
  const QkGemm *g = j->g;
  int64_t col = panel * j->simd->tile_cols;
  int cols = (int) (g->m - col < j->simd->tile_cols ? g->m - col
      : j->simd->tile_cols);
  int64_t n_tiles = div_up (last - first, j->simd->tile_rows);

  for (int64_t i = 0; i < n_tiles; i++) {
    /* Tiles of nearly the same height, not a low one at the end. */
    int64_t row = first + (last - first) * i / n_tiles;
    int64_t end = first + (last - first) * (i + 1) / n_tiles;
    float *y = g->y + row * g->m + col;
    const float *part = b;

    for (int64_t block = block0; block < block1; block++) {
      int64_t tap = block / j->blocks_per_tap;
      int64_t c = block % j->blocks_per_tap * BLOCK;
      int64_t k = g->c_in - c < BLOCK ? g->c_in - c : BLOCK;
      int64_t from = row + g->first_offset + tap * g->offset_step;

      j->simd->tile (y, g->m, j->x + from * j->ldx + c, j->ldx, part,
          j->simd->tile_cols, k, (int) (end - row), cols,
          block > 0 || g->accumulate);
      part += k * j->simd->tile_cols;
    }
  }
}

static void
finish_panel (const Job * j, int64_t panel, int64_t first, int64_t last)
{
  const QkGemm *g = j->g;
  int64_t col = panel * j->simd->tile_cols;
  int64_t end = col + j->simd->tile_cols < g->m ?
      col + j->simd->tile_cols : g->m;

  if (g->bias == NULL && g->act == QK_ACT_NONE)
    return;
  for (int64_t row = first; row < last; row++) {
    for (int64_t c = col; c < end;) {
      float *y = g->y + row * g->m + c;
      int64_t n = end - c;
      const float *bias = NULL;

      if (g->bias != NULL) {
        int64_t at = c % g->n_bias;

        bias = g->bias + at;
        if (n > g->n_bias - at)
          n = g->n_bias - at;
      }
      j->simd->finish (y, y, bias, n, g->act, false);
      c += n;
    }
  }
}

static void
gemm_units (const void *data, int64_t first_unit, int64_t last_unit,
    int thread)
{
  const Job *j = data;
  const QkGemm *g = j->g;
  float *b = j->b + thread * j->thread_floats;

  for (int64_t u = first_unit; u < last_unit; u++) {
    int64_t panel = u % j->n_panels, cut = u / j->n_panels;
    int64_t first = g->n * cut / j->n_cuts;
    int64_t last = g->n * (cut + 1) / j->n_cuts;
    int64_t col = panel * j->simd->tile_cols;

    for (int64_t block0 = 0; block0 < j->n_blocks;
        block0 += j->blocks_per_group) {
      int64_t block1 = block0 + j->blocks_per_group;
      float *part = b;

      if (block1 > j->n_blocks)
        block1 = j->n_blocks;
      for (int64_t block = block0; block < block1; block++) {
        int64_t tap = block / j->blocks_per_tap;
        int64_t c = block % j->blocks_per_tap * BLOCK;
        int64_t k = g->c_in - c < BLOCK ? g->c_in - c : BLOCK;
        int64_t at = (tap * g->m + col) * g->c_in + c;

        j->simd->pack[g->dtype] (part, (const char *) g->w
            + (size_t) at * qk_dtype_size (g->dtype), g->c_in,
            g->m - col < j->simd->tile_cols ? g->m - col : j->simd->tile_cols,
            k);
        part += k * j->simd->tile_cols;
      }
      multiply_group (j, b, panel, first, last, block0, block1);
    }
    finish_panel (j, panel, first, last);
  }
}

static void
copy_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Job *j = data;
  int64_t c_in = j->g->c_in;

  (void) thread;
  for (int64_t i = first; i < last; i++)
    memcpy (j->copy + i * j->ldx, j->g->x + (j->copy_first + i) * c_in,
        (size_t) c_in * sizeof (float));
}

void
qk_simd_gemm (QkStream * s, const QkGemm * g)
{
  const QkSimd *simd = qk_simd (s);
  Job job = {.g = g,.simd = simd,.x = g->x,.ldx = g->c_in };
  int64_t threads = qk_cpu_n_threads (s), block_floats, reach, n_rows = 0;
  size_t b_bytes, copy_bytes = 0;
  char *scratch;

  if (g->n <= 0 || g->m <= 0)
    return;
  if (is_few (g) || g->c_in == 0) {
    /* A product of no terms is zero, which tiles would leave out. */
    for (int64_t i = 0; i < g->n; i += QK_FEW_ROWS) {
      QkGemm few = *g;

      few.x = g->x + i * g->c_in;
      few.y = g->y + i * g->m;
      few.n = g->n - i < QK_FEW_ROWS ? g->n - i : QK_FEW_ROWS;
      qk_simd_gemm_few (s, &few);
    }
    return;
  }

  job.blocks_per_tap = div_up (g->c_in, BLOCK);
  job.n_blocks = job.blocks_per_tap * g->n_taps;
  block_floats = (g->c_in < BLOCK ? g->c_in : BLOCK) * simd->tile_cols;
  job.blocks_per_group = GROUP_FLOATS / block_floats;
  if (job.blocks_per_group < 1)
    job.blocks_per_group = 1;
  if (job.blocks_per_group > job.n_blocks)
    job.blocks_per_group = job.n_blocks;
  job.thread_floats = block_floats * job.blocks_per_group;

  job.n_panels = div_up (g->m, simd->tile_cols);
  job.n_cuts = div_up (g->n, UNIT_ROWS);
  if (job.n_panels * job.n_cuts < 4 * threads) {
    /* Few panels: shorter ones, but not so short that packing dominates. */
    int64_t cuts = div_up (4 * threads, job.n_panels), most = g->n / 96;

    if (cuts > most)
      cuts = most;
    if (cuts > job.n_cuts)
      job.n_cuts = cuts;
  }

  b_bytes = qk_align64 ((size_t) (threads * job.thread_floats)
      * sizeof (float));
  reach = g->first_offset + (g->n_taps - 1) * g->offset_step;
  if (qk_is_bad_stride (g->c_in)) {
    int64_t low = reach < g->first_offset ? reach : g->first_offset;
    int64_t high = reach < g->first_offset ? g->first_offset : reach;

    job.ldx = g->c_in + 16;
    job.copy_first = low;
    n_rows = g->n + high - low;
    copy_bytes = (size_t) (n_rows * job.ldx) * sizeof (float);
  }
  scratch = qk_cpu_scratch (s, b_bytes + copy_bytes);
  if (scratch == NULL)
    return;
  job.b = (float *) scratch;
  if (n_rows > 0) {
    job.copy = (float *) (scratch + b_bytes);
    job.x = job.copy - job.copy_first * job.ldx;
    qk_cpu_parallel (s, copy_rows, &job, n_rows, g->c_in / 2);
  }
  qk_cpu_parallel (s, gemm_units, &job, job.n_panels * job.n_cuts,
      g->n / job.n_cuts * g->n_taps * g->c_in);
}
