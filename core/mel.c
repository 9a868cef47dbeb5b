/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mel: samples -> log-mel frames.
 *
 *   400 samples around 160 t, Hann window -> |DFT|^2 [201] -> triangles [n_mel]
 *     -> log10, at least -10
 *
 * The window of frame t is centred on sample 160 t, so the first frames look
 * before the beginning and the last one up to 40 samples behind the end; there
 * the clip is reflected (x[-i] = x[i], x[L-1+i] = x[L-1-i]). The frame centred
 * on the end or the last 159 samples before it is dropped by the reference and
 * never made here: a clip of L samples has floor (L / 160) frames.
 *
 * All is done in double: the floor of the log is 80 dB under the loudest bin,
 * where a float transform would leave its own noise.
 */
#include "mel.h"

#include <math.h>
#include <string.h>

#define N_FFT 400
#define N_BINS (N_FFT / 2 + 1)
#define HALF (N_FFT / 2)

/* The transform is one step of Cooley-Tukey: 16 DFTs of the 25 samples
 * n1 + 16 n2, then sums of 16. */
#define N1 16
#define N2 25
#define N2_HALF (N2 / 2 + 1)

/* Samples kept: enough for one window, with room to push in larger steps. */
#define CAPACITY 4096

struct _QomniMel
{
  int n_mel;
  double window[N_FFT];
  double cosine[N_FFT], sine[N_FFT];    /* of 2 pi k / 400 */

  int *first_bin, *n_bins;      /* [n_mel] */
  double *triangles;            /* [n_mel][n_bins[m]], one after the other */

  float samples[CAPACITY];      /* from sample `first` of the clip on */
  int64_t first, n_kept;
  int64_t n_heard;              /* samples of the clip */
  int64_t n_total;              /* the same with padding */
  int64_t n_frames;             /* frames fetched */
  bool flushed;
};

/* Slaney's scale: linear below 1 kHz, logarithmic above. */
static double
mel_to_hz (double mel)
{
  if (mel < 15)
    return mel * 200 / 3;
  return 1000 * exp ((mel - 15) * log (6.4) / 27);
}

static double
hz_to_mel (double hz)
{
  if (hz < 1000)
    return hz * 3 / 200;
  return 15 + log (hz / 1000) * 27 / log (6.4);
}

/* Weight of `bin` in the triangle between three neighbouring centres (Hz); all
 * triangles have the same area. */
static double
triangle (const double centre[3], int bin)
{
  double hz = (double) bin * QOMNI_SAMPLE_RATE / N_FFT;
  double up = (hz - centre[0]) / (centre[1] - centre[0]);
  double down = (centre[2] - hz) / (centre[2] - centre[1]);

  return fmax (0, fmin (up, down)) * 2 / (centre[2] - centre[0]);
}

/* Fills in the triangles; returns how many weights they have in all. Counts
 * only, when `triangles` is NULL yet. */
static size_t
make_triangles (QomniMel * self)
{
  double top = hz_to_mel (QOMNI_SAMPLE_RATE / 2.0);
  size_t n = 0;

  for (int m = 0; m < self->n_mel; m++) {
    double centre[3];

    for (int i = 0; i < 3; i++)
      centre[i] = mel_to_hz (top * (m + i) / (self->n_mel + 1));
    self->first_bin[m] = 0;
    self->n_bins[m] = 0;
    for (int bin = 0; bin < N_BINS; bin++) {
      double weight = triangle (centre, bin);

      if (weight <= 0)
        continue;
      if (self->n_bins[m]++ == 0)
        self->first_bin[m] = bin;
      if (self->triangles != NULL)
        self->triangles[n] = weight;
      n++;
    }
  }
  return n;
}

QomniMel *
qomni_mel_new (int n_mel)
{
  g_autoptr (QomniMel) self = g_try_new0 (QomniMel, 1);

  if (self == NULL)
    return NULL;
  self->n_mel = n_mel;
  for (int i = 0; i < N_FFT; i++) {
    self->cosine[i] = cos (2 * M_PI * i / N_FFT);
    self->sine[i] = sin (2 * M_PI * i / N_FFT);
    self->window[i] = 0.5 - 0.5 * self->cosine[i];
  }
  self->first_bin = g_try_new0 (int, n_mel);
  self->n_bins = g_try_new0 (int, n_mel);
  if (self->first_bin == NULL || self->n_bins == NULL)
    return NULL;
  self->triangles = g_try_new0 (double, make_triangles (self) + 1);
  if (self->triangles == NULL)
    return NULL;
  make_triangles (self);
  return g_steal_pointer (&self);
}

void
qomni_mel_free (QomniMel * self)
{
  if (self == NULL)
    return;
  g_free (self->first_bin);
  g_free (self->n_bins);
  g_free (self->triangles);
  g_free (self);
}

void
qomni_mel_reset (QomniMel * self)
{
  self->first = self->n_kept = 0;
  self->n_heard = self->n_total = 0;
  self->n_frames = 0;
  self->flushed = false;
}

int64_t
qomni_mel_n_samples (const QomniMel * self)
{
  return self->n_heard;
}

/* Forgets what lies before the window of the next frame: nothing as long as the
 * window is reflected at the beginning. */
static void
drop_old_samples (QomniMel * self)
{
  int64_t needed = self->n_frames * QOMNI_MEL_HOP - HALF;
  int64_t n;

  if (needed <= self->first)
    return;
  n = MIN (needed - self->first, self->n_kept);
  memmove (self->samples, self->samples + n,
      (size_t) (self->n_kept - n) * sizeof (float));
  self->first += n;
  self->n_kept -= n;
}

size_t
qomni_mel_push (QomniMel * self, const float *samples, size_t n)
{
  drop_old_samples (self);
  n = MIN (n, (size_t) (CAPACITY - self->n_kept));
  for (size_t i = 0; i < n; i++)
    self->samples[self->n_kept++] = isfinite (samples[i]) ? samples[i] : 0;
  self->n_heard += (int64_t) n;
  self->n_total += (int64_t) n;
  return n;
}

void
qomni_mel_flush (QomniMel * self)
{
  /* Only the first 200 samples are kept by then: they fit. */
  if (!self->flushed && self->n_total > 0 && self->n_total <= HALF) {
    memset (self->samples + self->n_kept, 0,
        (size_t) (QOMNI_MEL_SHORTEST - self->n_total) * sizeof (float));
    self->n_kept = self->n_total = QOMNI_MEL_SHORTEST;
  }
  self->flushed = true;
}

/* In 400ths of a turn; the step is below a turn. */
static int
next_angle (int angle, int step)
{
  angle += step;
  return angle < N_FFT ? angle : angle - N_FFT;
}

/* The power of the windowed samples in the bins 0 … 200. */
static void
power_spectrum (const QomniMel * self, const double *x /* [400] */ ,
    double *power /* [201] */ )
{
  double re[N1][N2], im[N1][N2];

  /* The inner inputs are real, so bins above 12 mirror those below. */
  for (int n1 = 0; n1 < N1; n1++) {
    for (int k = 0; k < N2_HALF; k++) {
      double a = 0, b = 0;

      for (int n2 = 0, angle = 0; n2 < N2; n2++) {
        a += x[n1 + N1 * n2] * self->cosine[angle];
        b -= x[n1 + N1 * n2] * self->sine[angle];
        angle = next_angle (angle, N1 * k);
      }
      re[n1][k] = a;
      im[n1][k] = b;
      if (k > 0) {
        re[n1][N2 - k] = a;
        im[n1][N2 - k] = -b;
      }
    }
  }
  for (int k = 0; k < N_BINS; k++) {
    double a = 0, b = 0;
    int inner = k % N2;

    for (int n1 = 0, angle = 0; n1 < N1; n1++) {
      double c = self->cosine[angle], s = self->sine[angle];

      a += c * re[n1][inner] + s * im[n1][inner];
      b += c * im[n1][inner] - s * re[n1][inner];
      angle = next_angle (angle, k);
    }
    power[k] = a * a + b * b;
  }
}

static bool
next_is_finished (const QomniMel * self)
{
  int64_t centre = self->n_frames * QOMNI_MEL_HOP;

  if (self->flushed)
    return self->n_frames < self->n_total / QOMNI_MEL_HOP;
  /* The first window is reflected about sample 0 and reads sample 200 too. */
  if (self->n_frames == 0)
    return self->n_total > HALF;
  return self->n_total >= centre + HALF;
}

bool
qomni_mel_next (QomniMel * self, float *ret_frame)
{
  int64_t start = self->n_frames * QOMNI_MEL_HOP - HALF;
  const double *weight = self->triangles;
  double x[N_FFT], power[N_BINS];

  if (!next_is_finished (self))
    return false;

  for (int i = 0; i < N_FFT; i++) {
    int64_t at = start + i;

    if (at < 0)
      at = -at;
    if (at >= self->n_total)
      at = 2 * (self->n_total - 1) - at;
    x[i] = self->window[i] * (double) self->samples[at - self->first];
  }
  power_spectrum (self, x, power);
  for (int m = 0; m < self->n_mel; m++) {
    double sum = 0;

    for (int j = 0; j < self->n_bins[m]; j++)
      sum += *weight++ * power[self->first_bin[m] + j];
    ret_frame[m] = (float) log10 (fmax (sum, 1e-10));
  }
  self->n_frames++;
  return true;
}

void
qomni_mel_normalize (float *values, size_t n, float max)
{
  float lowest = max - 8;

  for (size_t i = 0; i < n; i++)
    values[i] = (fmaxf (values[i], lowest) + 4) / 4;
}
