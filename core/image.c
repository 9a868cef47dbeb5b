/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image: what happens to a picture before it is cut into patches: the target
 * size, the resize, and which frames of a file are looked at.
 *
 *   8-bit picture [h, w, 1 | 3 | 4] -> RGB, alpha on white
 *     -> horizontal pass [h, w', 3] -> vertical pass [h', w', 3]
 *
 * The resize repeats torchvision's antialiased bicubic on 8-bit data to the
 * last bit: weights in double, rounded to 16 bits with a common shift per axis,
 * sums in 32 bits, and each pass rounded to 8 bits. An axis that keeps its
 * length is not touched.
 */
#include "vision-encoder.h"

#include <math.h>
#include <string.h>

/* Where rounding decides: halves to the even neighbour, as Python has it. */
static double
round_half_even (double x)
{
  return nearbyint (x);
}

bool
qomni_smart_resize (int64_t height, int64_t width, int64_t factor,
    int64_t min_pixels, int64_t max_pixels, int64_t *ret_height,
    int64_t *ret_width, GError **error)
{
  double f = (double) factor;
  double h, w;

  if (height < 1 || width < 1 || height > QOMNI_MAX_IMAGE_SIDE
      || width > QOMNI_MAX_IMAGE_SIDE)
    return qomni_fail (error, QOMNI_ERROR_LIMIT,
        "a picture of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT " pixels: sides "
        "may be 1 to %d", width, height, QOMNI_MAX_IMAGE_SIDE);
  if ((double) MAX (height, width) / (double) MIN (height, width) > 200)
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "a picture of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT " pixels: one "
        "side may be at most 200 times the other", width, height);

  h = round_half_even ((double) height / f) * f;
  w = round_half_even ((double) width / f) * f;
  if (h * w > (double) max_pixels) {
    double shrink = sqrt ((double) (height * width) / (double) max_pixels);

    h = fmax (f, floor ((double) height / shrink / f) * f);
    w = fmax (f, floor ((double) width / shrink / f) * f);
  } else if (h * w < (double) min_pixels) {
    double grow = sqrt ((double) min_pixels / (double) (height * width));

    h = ceil ((double) height * grow / f) * f;
    w = ceil ((double) width * grow / f) * f;
  }
  if (h > QOMNI_MAX_IMAGE_SIDE || w > QOMNI_MAX_IMAGE_SIDE)
    return qomni_fail (error, QOMNI_ERROR_LIMIT,
        "a picture of %" G_GINT64_FORMAT "x%" G_GINT64_FORMAT " pixels would "
        "be resized to %.0fx%.0f: sides may be up to %d", width, height, w, h,
        QOMNI_MAX_IMAGE_SIDE);
  *ret_height = (int64_t) h;
  *ret_width = (int64_t) w;
  return true;
}

/* --- resize ------------------------------------------------------------- */

/* How one axis of n_in pixels becomes n_out: output i is the sum of n[i] inputs
 * from first[i] on, by weights [i * n_max], shifted right. */
typedef struct
{
  int n_in, n_out, n_max;
  int *first, *n;
  int16_t *weights;
  int shift;
} Axis;

static void
axis_clear (Axis * a)
{
  g_free (a->first);
  g_free (a->n);
  g_free (a->weights);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Axis, axis_clear)

/* Keys' cubic with a = -1/2, as Pillow and antialiased torchvision have it. */
static double
cubic (double x)
{
  const double a = -0.5;

  x = fabs (x);
  if (x < 1)
    return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2)
    return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/* The weights of output i, summing to 1; returns the largest, or 0. */
static double
output_weights (Axis * a, int i, double *weights /* [n_max] */ )
{
  double scale = (double) a->n_in / a->n_out;
  double support = scale >= 1 ? 2 * scale : 2;
  double narrow = scale >= 1 ? 1 / scale : 1;
  double centre = scale * (i + 0.5);
  double sum = 0, largest = 0;

  a->first[i] = MAX ((int) (centre - support + 0.5), 0);
  a->n[i] = MIN ((int) (centre + support + 0.5), a->n_in) - a->first[i];
  a->n[i] = CLAMP (a->n[i], 0, a->n_max);
  for (int j = 0; j < a->n[i]; j++) {
    weights[j] = cubic ((j + a->first[i] - centre + 0.5) * narrow);
    sum += weights[j];
  }
  for (int j = 0; j < a->n[i]; j++) {
    if (sum != 0)
      weights[j] /= sum;
    largest = fmax (largest, weights[j]);
  }
  return largest;
}

static bool
axis_init (Axis * a, int n_in, int n_out, GError ** error)
{
  g_autofree double *weights = NULL;
  double scale = (double) n_in / n_out;
  double largest = 0;
  size_t n;

  a->n_in = n_in;
  a->n_out = n_out;
  a->n_max = (int) ceil (scale >= 1 ? 2 * scale : 2) * 2 + 1;
  a->first = g_try_new (int, n_out);
  a->n = g_try_new (int, n_out);
  if (qomni_size_mul ((size_t) n_out, (size_t) a->n_max, &n)) {
    weights = g_try_new (double, n);
    a->weights = g_try_new0 (int16_t, n);
  }
  if (a->first == NULL || a->n == NULL || weights == NULL || a->weights == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory to resize from %d to %d pixels", n_in, n_out);

  for (int i = 0; i < n_out; i++)
    largest = fmax (largest, output_weights (a, i, weights
            + (size_t) i * (size_t) a->n_max));

  /* As many fractional bits as the largest weight leaves in 16. */
  while (a->shift < 22
      && (int) (0.5 + largest * (1 << (a->shift + 1))) < (1 << 15))
    a->shift++;
  for (int i = 0; i < n_out; i++) {
    size_t row = (size_t) i * (size_t) a->n_max;

    for (int j = 0; j < a->n[i]; j++) {
      double w = weights[row + (size_t) j] * (1 << a->shift);

      a->weights[row + (size_t) j] = (int16_t) (w < 0 ? w - 0.5 : w + 0.5);
    }
  }
  return true;
}

/* One output pixel from pixels `step` bytes apart. */
static void
resample_pixel (const Axis * a, int i, uint8_t * dst, const uint8_t * src,
    size_t step)
{
  const int16_t *w = a->weights + (size_t) i * (size_t) a->n_max;
  int32_t sum[3];

  sum[0] = sum[1] = sum[2] = a->shift > 0 ? 1 << (a->shift - 1) : 0;
  src += (size_t) a->first[i] * step;
  for (int j = 0; j < a->n[i]; j++, src += step) {
    for (int c = 0; c < 3; c++)
      sum[c] += w[j] * src[c];
  }
  for (int c = 0; c < 3; c++)
    dst[c] = (uint8_t) CLAMP (sum[c] >> a->shift, 0, 255);
}

/* x * y / 255, rounded as Pillow does it, for sums of two products. */
static uint8_t
over_255 (unsigned product)
{
  product += 128;
  return (uint8_t) (((product >> 8) + product) >> 8);
}

static void
row_to_rgb (uint8_t * dst, const QomniImage * image, int y)
{
  const uint8_t *src = image->data + (size_t) y * image->stride;

  if (image->n_channels == 3) {
    memcpy (dst, src, (size_t) image->width * 3);
    return;
  }
  for (int x = 0; x < image->width; x++, dst += 3, src += image->n_channels) {
    for (int c = 0; c < 3; c++) {
      if (image->n_channels == 1)
        dst[c] = src[0];
      else
        dst[c] = over_255 (255u * (255u - src[3]) + (unsigned) src[c] * src[3]);
    }
  }
}

bool
qomni_resize_bicubic (const QomniImage * src, uint8_t * dst, int dst_width,
    int dst_height, GError ** error)
{
  g_auto (Axis) across = { 0 }, down = { 0 };
  g_autofree uint8_t *row = NULL, *between = NULL;
  size_t row_bytes = (size_t) dst_width * 3, bytes;
  bool resize_width = src->width != dst_width;
  bool resize_height = src->height != dst_height;
  uint8_t *to = dst;

  if (resize_width && !axis_init (&across, src->width, dst_width, error))
    return false;
  if (resize_height && !axis_init (&down, src->height, dst_height, error))
    return false;
  if (!qomni_size_mul (row_bytes, (size_t) src->height, &bytes)
      || (row = g_try_malloc ((size_t) src->width * 3)) == NULL
      || (resize_height && (to = between = g_try_malloc (bytes)) == NULL))
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory to resize a picture of %dx%d pixels to %dx%d", src->width,
        src->height, dst_width, dst_height);

  for (int y = 0; y < src->height; y++, to += row_bytes) {
    row_to_rgb (resize_width ? row : to, src, y);
    for (int x = 0; resize_width && x < dst_width; x++)
      resample_pixel (&across, x, to + (size_t) x * 3, row, 3);
  }
  for (int y = 0; resize_height && y < dst_height; y++) {
    for (int x = 0; x < dst_width; x++)
      resample_pixel (&down, y, dst + (size_t) y * row_bytes + (size_t) x * 3,
          between + (size_t) x * 3, row_bytes);
  }
  return true;
}

/* --- frames of a file ----------------------------------------------------- */

/* Value i of n from 0 to `end`, as torch.linspace has it: a step in float, and
 * both halves counted from their own end, rounded once. In a file of some ten
 * thousand frames the step's error picks other frames than exact arithmetic. */
static float
linspace (int64_t end, int64_t n, int64_t i)
{
  double step = (float) end / (float) (n - 1);

  if (i < n / 2)
    return (float) (step * (double) i);
  return (float) ((double) end - step * (double) (n - 1 - i));
}

size_t
qomni_sample_frames (int64_t total, double video_fps, double fps,
    int64_t max_frames, int64_t ** ret_indices, double *ret_fps)
{
  int64_t most = MIN (max_frames, total) / 2 * 2;
  double wanted;
  int64_t n;

  if (!(video_fps > 0 && isfinite (video_fps)))
    video_fps = fps;
  wanted = (double) total / video_fps * fps;
  *ret_indices = NULL;
  *ret_fps = fps;
  if (total < 1 || max_frames < 1)
    return 0;
  if (total == 1 || most == 0) {
    *ret_indices = g_new0 (int64_t, 1);
    return 1;
  }

  if (!(wanted > 4))            /* nor is NaN */
    wanted = 4;
  n = (int64_t) fmin (wanted, (double) most) / 2 * 2;
  *ret_indices = g_try_new (int64_t, n);
  if (*ret_indices == NULL)
    return 0;
  for (int64_t i = 0; i < n; i++)
    (*ret_indices)[i] = (int64_t) round_half_even (linspace (total - 1, n, i));
  *ret_fps = (double) n / (double) total * video_fps;
  return (size_t) n;
}
