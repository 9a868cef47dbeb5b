/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * conv: convolutions as matrix products. Over time each tap is a product with
 * x shifted by some rows; over an image the 3x3 neighbourhoods of a panel of
 * pixels are laid out as the [k][tile_cols] operand and the weights are the
 * rows, so that y comes out channels first.
 */
#include "simd.h"

void
qk_simd_conv1d (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * weight, const float *bias, int64_t dilation,
    bool accumulate)
{
  int64_t k = weight->dims[0], m = weight->dims[1];
  QkGemm gemm = {.y = y,.x = x,.n = n,.m = m,.c_in = weight->dims[2],
    .n_taps = k,.first_offset = -(k - 1) * dilation,.offset_step = dilation,
    .w = weight->data,.dtype = weight->dtype,.bias = bias,.n_bias = m,
    .accumulate = accumulate
  };

  qk_simd_gemm (s, &gemm);
}

/* The r outputs of a row of x lie side by side, so they are r * c_out columns
 * of one row of y: tap 0 meets row m+1, tap 1 row m. */
void
qk_simd_conv1d_transposed (QkStream * s, float *y, const float *x, int64_t n,
    int64_t r, const QkTensor * weight, const float *bias)
{
  int64_t c_out = weight->dims[1];
  bool cut = weight->dims[0] == 2 * r;
  QkGemm gemm = {.y = y,.x = x,.n = n,.m = r * c_out,
    .c_in = weight->dims[2],.n_taps = cut ? 2 : 1,
    .first_offset = cut ? 1 : 0,.offset_step = -1,.w = weight->data,
    .dtype = weight->dtype,.bias = bias,.n_bias = c_out
  };

  qk_simd_gemm (s, &gemm);
}

typedef struct
{
  float *y;                     /* [n, c] */
  const float *x;
  const float *weight;          /* [k, c] */
  const float *bias;
  int64_t c, k;
  const QkSimd *simd;
} Depthwise;

static void
depthwise_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Depthwise *j = data;

  (void) thread;
  for (int64_t t = first; t < last; t++) {
    float *y = j->y + t * j->c;

    for (int64_t e = 0; e < j->c; e++)
      y[e] = j->bias != NULL ? j->bias[e] : 0;
    for (int64_t tap = 0; tap < j->k; tap++)
      j->simd->mul_add (y, j->x + (t - (j->k - 1 - tap)) * j->c,
          j->weight + tap * j->c, j->c);
  }
}

void
qk_simd_conv1d_depthwise (QkStream * s, float *y, const float *x, int64_t n,
    int64_t c, const float *weight, int64_t k, const float *bias)
{
  Depthwise job = {.y = y,.x = x,.weight = weight,.bias = bias,.c = c,.k = k,
    .simd = qk_simd (s)
  };

  qk_cpu_parallel (s, depthwise_rows, &job, n, c * k / 4);
}

/* --- images ------------------------------------------------------------- */

/* Channels of the image laid out at a time. */
#define BLOCK_CHANNELS 96
#define MOST_COLS 64

typedef struct
{
  float *y;                     /* [c_out, out_h * out_w] */
  const float *x;               /* [c_in, h, w] */
  const float *weight;          /* [c_out, ldw >= c_in * 9] */
  const QkTensor *raw;
  const float *bias;
  QkActivation act;
  int64_t h, w, out_h, out_w, ldw;
  float *wide;                  /* weight while it is being converted */
  float *b;                     /* [n_threads, BLOCK_CHANNELS * 9, cols] */
  const QkSimd *simd;
} Conv2d;

/* b[(c, ky, kx)][p] for channels c0 … c1-1 and `cols` pixels from `first`. */
static void
lay_out_pixels (const Conv2d * j, float *b, int64_t c0, int64_t c1,
    int64_t first, int cols)
{
  int tile_cols = j->simd->tile_cols;
  int64_t at[9][MOST_COLS];     /* in the image, -1 outside */

  for (int p = 0; p < cols; p++) {
    int64_t iy = 2 * ((first + p) / j->out_w) - 1;
    int64_t ix = 2 * ((first + p) % j->out_w) - 1;

    for (int tap = 0; tap < 9; tap++) {
      int64_t ty = iy + tap / 3, tx = ix + tap % 3;
      bool inside = ty >= 0 && ty < j->h && tx >= 0 && tx < j->w;

      at[tap][p] = inside ? ty * j->w + tx : -1;
    }
  }
  for (int64_t c = c0; c < c1; c++) {
    const float *image = j->x + c * j->h * j->w;

    for (int tap = 0; tap < 9; tap++) {
      for (int p = 0; p < cols; p++)
        b[p] = at[tap][p] >= 0 ? image[at[tap][p]] : 0;
      b += tile_cols;
    }
  }
}

static void
conv2d_panels (const void *data, int64_t first, int64_t last, int thread)
{
  const Conv2d *j = data;
  const QkSimd *simd = j->simd;
  int64_t c_out = j->raw->dims[0], c_in = j->raw->dims[1];
  int64_t pixels = j->out_h * j->out_w;
  float *b = j->b + thread * BLOCK_CHANNELS * 9 * simd->tile_cols;

  for (int64_t u = first; u < last; u++) {
    int64_t p = u * simd->tile_cols;
    int cols = (int) (pixels - p < simd->tile_cols ? pixels - p
        : simd->tile_cols);

    for (int64_t c = 0; c < c_in; c += BLOCK_CHANNELS) {
      int64_t end = c + BLOCK_CHANNELS < c_in ? c + BLOCK_CHANNELS : c_in;

      lay_out_pixels (j, b, c, end, p, cols);
      for (int64_t o = 0; o < c_out; o += simd->tile_rows) {
        int rows = (int) (c_out - o < simd->tile_rows ? c_out - o
            : simd->tile_rows);

        simd->tile (j->y + o * pixels + p, pixels,
            j->weight + o * j->ldw + c * 9, j->ldw, b, simd->tile_cols,
            (end - c) * 9, rows, cols, c > 0);
      }
    }
    for (int64_t o = 0; o < c_out; o++)
      simd->finish_row (j->y + o * pixels + p,
          j->bias != NULL ? j->bias[o] : 0, cols, j->act);
  }
}

static void
convert_weight (const void *data, int64_t first, int64_t last, int thread)
{
  const Conv2d *j = data;
  int64_t k = j->raw->dims[1] * 9;

  (void) thread;
  for (int64_t o = first; o < last; o++) {
    QkTensor row = qk_tensor_rows (j->raw, o, 1);

    j->simd->to_f32[row.dtype] (j->wide + o * j->ldw, row.data, k);
  }
}

void
qk_simd_conv2d_s2 (QkStream * s, float *y, const float *x, int64_t h,
    int64_t w, const QkTensor * weight, const float *bias, QkActivation act)
{
  const QkSimd *simd = qk_simd (s);
  int64_t c_out = weight->dims[0], k = weight->dims[1] * 9;
  Conv2d job = {.y = y,.x = x,.weight = weight->data,.raw = weight,
    .bias = bias,.act = act,.h = h,.w = w,.out_h = (h + 1) / 2,
    .out_w = (w + 1) / 2,.ldw = k,.simd = simd
  };
  size_t b_bytes, wide_bytes = 0;
  char *scratch;

  b_bytes = qk_align64 ((size_t) (qk_cpu_n_threads (s) * BLOCK_CHANNELS * 9
          * simd->tile_cols) * sizeof (float));
  if (weight->dtype != QK_F32 || qk_is_bad_stride (k)) {
    job.ldw = qk_is_bad_stride (k) ? k + 16 : k;
    wide_bytes = (size_t) (c_out * job.ldw) * sizeof (float);
  }
  scratch = qk_cpu_scratch (s, b_bytes + wide_bytes);
  if (scratch == NULL)
    return;
  job.b = (float *) scratch;
  if (wide_bytes > 0) {
    job.weight = job.wide = (float *) (scratch + b_bytes);
    qk_cpu_parallel (s, convert_weight, &job, c_out, k / 4);
  }
  qk_cpu_parallel (s, conv2d_panels, &job,
      (job.out_h * job.out_w + simd->tile_cols - 1) / simd->tile_cols,
      c_out * k);
}
