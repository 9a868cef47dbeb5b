/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * conv: convolutions, each output by its definition.
 */
#include "ref.h"

typedef struct
{
  float *y;
  const float *x;
  const QkTensor *weight;
  const float *bias;
  QkActivation act;
  int64_t h, w;                 /* of the input image */
  float *taps;                  /* [n_threads, c_in, 3, 3] */
} Conv2d;

static float
conv2d_at (const Conv2d * j, const float *taps, int64_t oy, int64_t ox)
{
  float sum = 0;

  for (int64_t c = 0; c < j->weight->dims[1]; c++) {
    const float *image = j->x + c * j->h * j->w;

    for (int64_t ky = 0; ky < 3; ky++) {
      int64_t iy = 2 * oy + ky - 1;

      for (int64_t kx = 0; kx < 3; kx++) {
        int64_t ix = 2 * ox + kx - 1;

        if (iy >= 0 && iy < j->h && ix >= 0 && ix < j->w)
          sum += taps[(c * 3 + ky) * 3 + kx] * image[iy * j->w + ix];
      }
    }
  }
  return sum;
}

static void
conv2d_channels (const void *data, int64_t first, int64_t last, int thread)
{
  const Conv2d *j = data;
  int64_t n_taps = j->weight->dims[1] * 9;
  int64_t out_h = (j->h + 1) / 2, out_w = (j->w + 1) / 2;
  float *taps = j->taps + thread * n_taps;

  for (int64_t c = first; c < last; c++) {
    QkTensor row = qk_tensor_rows (j->weight, c, 1);

    qk_to_f32 (taps, row.data, row.dtype, (size_t) n_taps);
    for (int64_t oy = 0; oy < out_h; oy++)
      for (int64_t ox = 0; ox < out_w; ox++)
        j->y[(c * out_h + oy) * out_w + ox] =
            qk_c_act (conv2d_at (j, taps, oy, ox)
            + (j->bias != NULL ? j->bias[c] : 0), j->act);
  }
}

void
qk_c_conv2d_s2 (QkStream * s, float *y, const float *x, int64_t h, int64_t w,
    const QkTensor * weight, const float *bias, QkActivation act)
{
  Conv2d job = {.y = y,.x = x,.weight = weight,.bias = bias,.act = act,
    .h = h,.w = w
  };
  int64_t n_taps = weight->dims[1] * 9;

  job.taps = qk_cpu_scratch (s, (size_t) qk_cpu_n_threads (s)
      * (size_t) n_taps * sizeof (float));
  if (job.taps != NULL)
    qk_cpu_parallel (s, conv2d_channels, &job, weight->dims[0],
        n_taps * h * w / 4);
}

typedef struct
{
  float *y;
  const float *x;
  const QkTensor *weight;
  const float *bias;
  int64_t dilation;             /* rows between two taps */
  int64_t rate;                 /* of a transposed convolution */
  bool accumulate;
} Conv1d;

static void
conv1d_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Conv1d *j = data;
  int64_t k = j->weight->dims[0], c_out = j->weight->dims[1];
  int64_t c_in = j->weight->dims[2];

  (void) thread;
  for (int64_t t = first; t < last; t++) {
    for (int64_t o = 0; o < c_out; o++) {
      float *y = j->y + t * c_out + o;
      float sum = j->bias != NULL ? j->bias[o] : 0;

      for (int64_t tap = 0; tap < k; tap++)
        sum += qk_c_dot (j->x + (t - (k - 1 - tap) * j->dilation) * c_in,
            j->weight, tap * c_out + o, c_in);
      *y = j->accumulate ? *y + sum : sum;
    }
  }
}

void
qk_c_conv1d (QkStream * s, float *y, const float *x, int64_t n,
    const QkTensor * weight, const float *bias, int64_t dilation,
    bool accumulate)
{
  Conv1d job = {.y = y,.x = x,.weight = weight,.bias = bias,
    .dilation = dilation,.accumulate = accumulate
  };

  qk_cpu_parallel (s, conv1d_rows, &job, n, qk_tensor_count (weight) / 4);
}

static void
conv1d_transposed_rows (const void *data, int64_t first, int64_t last,
    int thread)
{
  const Conv1d *j = data;
  int64_t r = j->rate, c_out = j->weight->dims[1], c_in = j->weight->dims[2];
  bool cut = j->weight->dims[0] == 2 * r;

  (void) thread;
  for (int64_t t = first; t < last; t++) {
    const float *now = j->x + t / r * c_in, *next = now + c_in;
    int64_t tap = t % r;

    for (int64_t o = 0; o < c_out; o++) {
      float sum = j->bias != NULL ? j->bias[o] : 0;

      if (cut)
        sum += qk_c_dot (next, j->weight, tap * c_out + o, c_in)
            + qk_c_dot (now, j->weight, (r + tap) * c_out + o, c_in);
      else
        sum += qk_c_dot (now, j->weight, tap * c_out + o, c_in);
      j->y[t * c_out + o] = sum;
    }
  }
}

void
qk_c_conv1d_transposed (QkStream * s, float *y, const float *x, int64_t n,
    int64_t r, const QkTensor * weight, const float *bias)
{
  Conv1d job = {.y = y,.x = x,.weight = weight,.bias = bias,.rate = r };

  qk_cpu_parallel (s, conv1d_transposed_rows, &job, n * r,
      qk_tensor_count (weight) / (4 * r));
}

typedef struct
{
  float *y;                     /* [n, c] */
  const float *x;
  const float *weight;          /* [k, c] */
  const float *bias;
  int64_t c, k;
} Depthwise;

static void
depthwise_rows (const void *data, int64_t first, int64_t last, int thread)
{
  const Depthwise *j = data;

  (void) thread;
  for (int64_t t = first; t < last; t++) {
    for (int64_t o = 0; o < j->c; o++) {
      float sum = j->bias != NULL ? j->bias[o] : 0;

      for (int64_t tap = 0; tap < j->k; tap++)
        sum += j->weight[tap * j->c + o]
            * j->x[(t - (j->k - 1 - tap)) * j->c + o];
      j->y[t * j->c + o] = sum;
    }
  }
}

void
qk_c_conv1d_depthwise (QkStream * s, float *y, const float *x, int64_t n,
    int64_t c, const float *weight, int64_t k, const float *bias)
{
  Depthwise job = {.y = y,.x = x,.weight = weight,.bias = bias,.c = c,.k = k };

  qk_cpu_parallel (s, depthwise_rows, &job, n, c * k);
}
