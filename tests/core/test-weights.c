/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Claims and loading: every form lands as asked for, in every precision, on a
 * CPU and through uploads; what does not fit is told with both shapes; what
 * fails leaves nothing behind.
 */
#include "weights.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

#include "file.h"
#include "scratch.h"

/* --- a checkpoint of known numbers --------------------------------------- */

typedef struct
{
  GArray *outs;                 /* QomniTensorOut */
  GPtrArray *blocks;            /* names and data */
} Content;

static Content
content_new (void)
{
  Content c = { g_array_new (FALSE, TRUE, sizeof (QomniTensorOut)),
    g_ptr_array_new_with_free_func (g_free)
  };

  return c;
}

/* Element i of the tensor is first + i, exact in every dtype up to 256. */
static void
add (Content * c, const char *name, QkDtype dtype, int n_dims,
    const int64_t * dims, float first)
{
  QomniTensorOut out = {.name = g_strdup (name),
    .dtype = qk_dtype_name (dtype),.n_dims = n_dims
  };
  g_autofree float *values = NULL;
  size_t count = 1;
  void *data;

  for (int i = 0; i < n_dims; i++) {
    out.dims[i] = dims[i];
    count *= (size_t) dims[i];
  }
  values = g_new (float, count + 1);
  for (size_t i = 0; i < count; i++)
    values[i] = first + (float) i;
  data = g_malloc (count * 4 + 1);
  qk_from_f32 (data, values, dtype, count);
  out.data = data;
  out.bytes = count * qk_dtype_size (dtype);
  g_array_append_val (c->outs, out);
  g_ptr_array_add (c->blocks, (gpointer) out.name);
  g_ptr_array_add (c->blocks, data);
}

static QomniCheckpoint *
content_open (Content * c, const char *dir, QomniReadMode mode)
{
  g_autofree char *path = g_build_filename (dir, "model.safetensors", NULL);
  g_autoptr (GError) error = NULL;
  QomniCheckpoint *checkpoint;

  qomni_safetensors_write (path, (const QomniTensorOut *) c->outs->data,
      c->outs->len, &error);
  g_assert_no_error (error);
  checkpoint = qomni_checkpoint_open (dir, mode, &error);
  g_assert_no_error (error);
  g_array_unref (c->outs);
  g_ptr_array_unref (c->blocks);
  return checkpoint;
}

static void
expect_values (const QkTensor * t, QkDtype dtype, const float *expected,
    size_t n)
{
  g_autofree float *values = g_new (float, n + 1);

  g_assert_cmpint (t->dtype, ==, dtype);
  g_assert_cmpint (qk_tensor_count (t), ==, (int64_t) n);
  qk_to_f32 (values, t->data, t->dtype, n);
  for (size_t i = 0; i < n; i++)
    g_assert_cmpfloat (values[i], ==, expected[i]);
}

static void
expect_counting (const QkTensor * t, QkDtype dtype, float first)
{
  size_t n = (size_t) qk_tensor_count (t);
  g_autofree float *expected = g_new (float, n + 1);

  for (size_t i = 0; i < n; i++)
    expected[i] = first + (float) i;
  expect_values (t, dtype, expected, n);
}

/* --- a backend that the CPU must not write to ---------------------------- */

typedef struct
{
  QkBackend backend;
  QkStream stream;
  size_t uploaded;
  size_t live;                  /* bytes */
  size_t limit;                 /* alloc fails above it */
  size_t refused;               /* what was asked for then */
  const char *error;
} Device;

static void *
device_alloc (QkBackend * be, size_t bytes)
{
  Device *d = (Device *) be;

  if (d->live + bytes > d->limit) {
    d->refused = bytes;
    return NULL;
  }
  d->live += bytes;
  return g_malloc0 (bytes);
}

static void
device_release (QkBackend * be, void *data, size_t bytes)
{
  ((Device *) be)->live -= bytes;
  g_free (data);
}

static QkStream *
device_stream_new (QkBackend * be)
{
  return &((Device *) be)->stream;
}

static void
device_stream_free (QkStream * s)
{
}

static void
device_upload (QkStream * s, void *dst, const void *src, size_t bytes)
{
  ((Device *) s->backend)->uploaded += bytes;
  memcpy (dst, src, bytes);
}

static const char *
device_error (QkStream * s)
{
  return ((Device *) s->backend)->error;
}

static void
device_init (Device * d)
{
  *d = (Device) {
    .backend = {.name = "test",.alloc = device_alloc,
        .release = device_release,.stream_new = device_stream_new,
        .stream_free = device_stream_free,.upload = device_upload,
        .error = device_error},
    .limit = SIZE_MAX,
  };
  d->stream.backend = &d->backend;
}

/* --- forms --------------------------------------------------------------- */

static const char *const names[] = { "f32", "bf16", "f16" };

static void
add_all_forms (Content * c)
{
  for (int d = 0; d < QK_N_DTYPES; d++) {
    g_autofree char *matrix = g_strconcat (names[d], ".matrix", NULL);
    g_autofree char *vector = g_strconcat (names[d], ".vector", NULL);
    g_autofree char *cube = g_strconcat (names[d], ".cube", NULL);
    g_autofree char *five = g_strconcat (names[d], ".five", NULL);

    add (c, matrix, d, 2, (int64_t[]) { 3, 5 }, 1);
    add (c, vector, d, 1, (int64_t[]) { 7 }, 20);
    add (c, cube, d, 3, (int64_t[]) { 2, 3, 4 }, 0);
    add (c, five, d, 5, (int64_t[]) { 2, 3, 2, 2, 2 }, 0);
  }
}

/* Loads every form from every dtype and compares. */
static void
check_forms (QomniCheckpoint * checkpoint, QkBackend * backend,
    QomniPrecision precision, bool on_device, const Device * device)
{
  static const QkDtype kept[3][QK_N_DTYPES] = {
    [QOMNI_PRECISION_AUTO] = {QK_F32, QK_BF16, QK_F16},
    [QOMNI_PRECISION_F32] = {QK_F32, QK_F32, QK_F32},
    [QOMNI_PRECISION_BF16] = {QK_BF16, QK_BF16, QK_BF16},
  };
  /* [2, 3, 4] as axes 2, 0, 1, then as axes 0, 2, 1. */
  static const float turned[24] = { 0, 4, 8, 12, 16, 20, 1, 5, 9, 13, 17, 21,
    2, 6, 10, 14, 18, 22, 3, 7, 11, 15, 19, 23
  };
  static const float slabs[24] = { 0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11,
    12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23
  };
  static const float picked[10] = { 11, 12, 13, 14, 15, 1, 2, 3, 4, 5 };
  g_autoptr (QomniWeights) w = qomni_weights_new (checkpoint, backend);
  g_autoptr (GError) error = NULL;
  QkTensor matrix[3], five[3], cube_a[3], cube_b[3];
  float *vector[3], *rows[3], *host[3];
  bool ok;

  qomni_weights_set_precision (w, precision);
  for (int d = 0; d < QK_N_DTYPES; d++) {
    qomni_weights_matrix (w, &matrix[d], 2, (int64_t[]) { 3, 5 }, "%s.matrix",
        names[d]);
    qomni_weights_matrix (w, &five[d], 5, (int64_t[]) { 2, 3, 2, 2, 2 },
        "%s.five", names[d]);
    qomni_weights_vector (w, &vector[d], 7, "%s.vector", names[d]);
    qomni_weights_permuted (w, &cube_a[d], (int64_t[]) { 2, 3, 4 },
        (int[]) { 2, 0, 1 }, true, "%s.cube", names[d]);
    qomni_weights_permuted (w, &cube_b[d], (int64_t[]) { 2, 3, 4 },
        (int[]) { 0, 2, 1 }, false, "%s.cube", names[d]);
    qomni_weights_rows (w, &rows[d], (int64_t[]) { 3, 5 },
        (int32_t[]) { 2, 0 }, 2, "%s.matrix", names[d]);
    qomni_weights_host (w, &host[d], 1, (int64_t[]) { 7 }, "%s.vector",
        names[d]);
  }
  g_assert_true (qomni_weights_has (w, "%s.cube", "bf16"));
  g_assert_false (qomni_weights_has (w, "%s.cube", "f64"));
  ok = qomni_weights_load (w, NULL, NULL, NULL, &error);
  g_assert_no_error (error);
  g_assert_true (ok);

  /* Each tensor once, whatever was claimed of it. */
  g_assert_cmpuint (qomni_weights_n_tensors (w), ==, 12);
  g_assert_cmpuint (qomni_weights_n_parameters (w), ==, 3 * (15 + 7 + 24 + 48));
  g_assert_cmpstr (qomni_weights_dtype (w), ==, "mixed");

  for (int d = 0; d < QK_N_DTYPES; d++) {
    QkDtype dtype = kept[precision][d];
    QkTensor t = {.dtype = QK_F32,.n_dims = 1,.dims = {7} };

    expect_counting (&matrix[d], dtype, 1);
    g_assert_cmpint (matrix[d].n_dims, ==, 2);
    g_assert_cmpint (matrix[d].dims[1], ==, 5);
    expect_counting (&five[d], dtype, 0);
    g_assert_cmpint (five[d].n_dims, ==, 4);
    g_assert_cmpint (five[d].dims[3], ==, 4);
    expect_values (&cube_a[d], QK_F32, turned, 24);
    g_assert_cmpint (cube_a[d].dims[0], ==, 4);
    g_assert_cmpint (cube_a[d].dims[1], ==, 2);
    g_assert_cmpint (cube_a[d].dims[2], ==, 3);
    expect_values (&cube_b[d], dtype, slabs, 24);
    g_assert_cmpint (cube_b[d].dims[1], ==, 4);
    t.data = vector[d];
    expect_counting (&t, QK_F32, 20);
    t.data = host[d];
    expect_counting (&t, QK_F32, 20);
    t.data = rows[d];
    t.dims[0] = 10;
    expect_values (&t, QK_F32, picked, 10);
    if (qomni_checkpoint_map (checkpoint, qomni_checkpoint_nth (checkpoint,
                0)) == NULL)
      g_assert_cmpint ((uintptr_t) matrix[d].data % (on_device ? 16 : 64), ==,
          0);
  }
  /* All but the host tables went through uploads. */
  if (on_device)
    g_assert_cmpuint (device->uploaded, ==,
        qomni_weights_bytes (w) - 3 * 7 * sizeof (float));
}

static void
test_forms (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  QkBackend *cpu = qk_cpu_backend_new (1, QK_CPU_C);
  g_autoptr (QomniCheckpoint) c = NULL;

  add_all_forms (&content);
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);
  for (int p = QOMNI_PRECISION_AUTO; p <= QOMNI_PRECISION_BF16; p++)
    check_forms (c, cpu, p, false, NULL);
  cpu->free (cpu);
}

static void
test_forms_mapped (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  QkBackend *cpu = qk_cpu_backend_new (1, QK_CPU_C);
  g_autoptr (QomniCheckpoint) c = NULL;

  add_all_forms (&content);
  c = content_open (&content, dir, QOMNI_READ_MAPPED);
  for (int p = QOMNI_PRECISION_AUTO; p <= QOMNI_PRECISION_BF16; p++)
    check_forms (c, cpu, p, false, NULL);

  g_autoptr (QomniWeights) w = qomni_weights_new (c, cpu);
  QkTensor t;

  qomni_weights_matrix (w, &t, 2, (int64_t[]) { 3, 5 }, "bf16.matrix");
  g_assert_true (qomni_weights_load (w, NULL, NULL, NULL, NULL));
  g_assert_true (t.data == qomni_checkpoint_map (c, qomni_checkpoint_find (c,
              "bf16.matrix")));
  g_clear_pointer (&w, qomni_weights_free);
  cpu->free (cpu);
}

static void
test_forms_uploaded (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  g_autoptr (QomniCheckpoint) c = NULL;
  Device device;

  add_all_forms (&content);
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);
  for (int p = QOMNI_PRECISION_AUTO; p <= QOMNI_PRECISION_BF16; p++) {
    device_init (&device);
    check_forms (c, &device.backend, p, true, &device);
    g_assert_cmpuint (device.live, ==, 0);
  }
}

static void
test_rounding (void)
{
  /* Halfway cases go to the even neighbour; a NaN and an infinity stay. */
  static const float in[6] = { 1.00390625f, 1.01171875f, 1.00390637f, 3e38f,
    INFINITY, NAN
  };
  static const uint16_t out[5] = { 0x3f80, 0x3f82, 0x3f81, 0x7f62, 0x7f80 };
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, "model.safetensors", NULL);
  const QomniTensorOut t = { "x", "F32", 1, {6}, in, sizeof in };
  QkBackend *cpu = qk_cpu_backend_new (1, QK_CPU_C);
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (QomniWeights) w = NULL;
  QkTensor x;

  g_assert_true (qomni_safetensors_write (path, &t, 1, NULL));
  c = qomni_checkpoint_open (dir, QOMNI_READ_PRIVATE, NULL);
  w = qomni_weights_new (c, cpu);
  qomni_weights_set_precision (w, QOMNI_PRECISION_BF16);
  qomni_weights_matrix (w, &x, 1, (int64_t[]) { 6 }, "x");
  g_assert_true (qomni_weights_load (w, NULL, NULL, NULL, NULL));
  for (int i = 0; i < 5; i++)
    g_assert_cmphex (((uint16_t *) x.data)[i], ==, out[i]);
  g_assert_cmphex (((uint16_t *) x.data)[5] & 0x7fff, >, 0x7f80);
  g_clear_pointer (&w, qomni_weights_free);
  cpu->free (cpu);
}

/* Larger than a piece, so that runs are joined. */
static void
test_large (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, "model.safetensors", NULL);
  const size_t n = 5000001;
  g_autofree uint16_t *data = g_new (uint16_t, n);
  const QomniTensorOut t = { "x", "BF16", 1, {(int64_t) n}, data, 2 * n };
  g_autoptr (QomniCheckpoint) c = NULL;
  QkBackend *cpu = qk_cpu_backend_new (1, QK_CPU_C);
  Device device;

  for (size_t i = 0; i < n; i++)
    data[i] = (uint16_t) (i * 7 % 0x7f80);
  g_assert_true (qomni_safetensors_write (path, &t, 1, NULL));
  c = qomni_checkpoint_open (dir, QOMNI_READ_PRIVATE, NULL);
  device_init (&device);
  for (int k = 0; k < 4; k++) {
    g_autoptr (QomniWeights) w = qomni_weights_new (c,
        k % 2 == 0 ? cpu : &device.backend);
    QkTensor x;

    qomni_weights_set_precision (w, k < 2 ? QOMNI_PRECISION_AUTO
        : QOMNI_PRECISION_F32);
    qomni_weights_matrix (w, &x, 1, (int64_t[]) { (int64_t) n }, "x");
    g_assert_true (qomni_weights_load (w, NULL, NULL, NULL, NULL));
    for (size_t i = 0; i < n; i++) {
      uint32_t bits = k < 2 ? (uint32_t) ((uint16_t *) x.data)[i] << 16
          : ((uint32_t *) x.data)[i];

      if (bits != (uint32_t) data[i] << 16)
        g_error ("element %zu of case %d", i, k);
    }
  }
  cpu->free (cpu);
}

/* --- experts ------------------------------------------------------------- */

#define N 3

/* gate, up [inner, width] and down [width, inner] of expert e, as numbers. */
static void
expect_experts (const QkTensor * gate, const QkTensor * up,
    const QkTensor * down, QkDtype dtype, int64_t width, int64_t inner)
{
  size_t n = (size_t) (width * inner);

  for (int e = 0; e < N; e++) {
    g_assert_cmpint (gate[e].dims[0], ==, inner);
    g_assert_cmpint (up[e].dims[1], ==, width);
    g_assert_cmpint (down[e].dims[0], ==, width);
    expect_counting (&gate[e], dtype, (float) (2 * e * (int) n));
    expect_counting (&up[e], dtype, (float) ((2 * e + 1) * (int) n));
    expect_counting (&down[e], dtype, (float) (e * (int) n));
  }
}

static void
load_experts (Content * content, QomniPrecision precision, QkDtype dtype,
    int64_t width, int64_t inner, size_t n_tensors)
{
  g_autoptr (Scratch) dir = scratch_new ();
  QkBackend *cpu = qk_cpu_backend_new (1, QK_CPU_C);
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (GError) error = NULL;
  QkTensor gate[N], up[N], down[N];
  QomniWeights *w;

  c = content_open (content, dir, QOMNI_READ_PRIVATE);
  w = qomni_weights_new (c, cpu);
  qomni_weights_set_precision (w, precision);
  qomni_weights_experts (w, gate, up, down, N, width, inner, "l.%d.experts",
      5);
  qomni_weights_load (w, NULL, NULL, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpuint (qomni_weights_n_tensors (w), ==, n_tensors);
  g_assert_cmpuint (qomni_weights_n_parameters (w), ==,
      (uint64_t) (3 * N * width * inner));
  g_assert_cmpstr (qomni_weights_dtype (w), ==, "F32");
  expect_experts (gate, up, down, dtype, width, inner);
  qomni_weights_free (w);
  cpu->free (cpu);
}

static void
test_experts_one_by_one (void)
{
  const int64_t width = 4, inner = 3;
  Content content = content_new ();

  for (int e = 0; e < N; e++) {
    g_autofree char *g = g_strdup_printf ("l.5.experts.%d.gate_proj.weight", e);
    g_autofree char *u = g_strdup_printf ("l.5.experts.%d.up_proj.weight", e);
    g_autofree char *d = g_strdup_printf ("l.5.experts.%d.down_proj.weight", e);

    add (&content, g, QK_F32, 2, (int64_t[]) { inner, width },
        (float) (2 * e * 12));
    add (&content, u, QK_F32, 2, (int64_t[]) { inner, width },
        (float) ((2 * e + 1) * 12));
    add (&content, d, QK_F32, 2, (int64_t[]) { width, inner },
        (float) (e * 12));
  }
  load_experts (&content, QOMNI_PRECISION_AUTO, QK_F32, width, inner, 9);
}

/* [a, b, c] -> [a, c, b] */
static void
add_transposed (Content * content, const char *name, int64_t a, int64_t b,
    int64_t c)
{
  QomniTensorOut *out;
  float *data;

  add (content, name, QK_F32, 3, (int64_t[]) { a, c, b }, 0);
  out = &g_array_index (content->outs, QomniTensorOut, content->outs->len - 1);
  data = (float *) out->data;
  for (int64_t i = 0; i < a; i++)
    for (int64_t j = 0; j < b; j++)
      for (int64_t k = 0; k < c; k++)
        data[(i * c + k) * b + j] = (float) ((i * b + j) * c + k);
}

static void
test_experts_fused (void)
{
  /* The last two fit both layouts in one of their tensors. */
  static const int64_t sizes[][2] = { {4, 3}, {6, 3}, {3, 3} };

  for (size_t i = 0; i < G_N_ELEMENTS (sizes); i++) {
    int64_t width = sizes[i][0], inner = sizes[i][1];

    for (int precision = QOMNI_PRECISION_AUTO;
        precision <= QOMNI_PRECISION_BF16; precision++) {
      QkDtype dtype = precision == QOMNI_PRECISION_BF16 ? QK_BF16 : QK_F32;
      Content plain = content_new ();
      Content turned = content_new ();

      add (&plain, "l.5.experts.gate_up_proj", QK_F32, 3,
          (int64_t[]) { N, 2 * inner, width }, 0);
      add (&plain, "l.5.experts.down_proj", QK_F32, 3,
          (int64_t[]) { N, width, inner }, 0);
      load_experts (&plain, precision, dtype, width, inner, 2);

      add_transposed (&turned, "l.5.experts.gate_up_proj", N, 2 * inner,
          width);
      add_transposed (&turned, "l.5.experts.down_proj", N, width, inner);
      load_experts (&turned, precision, dtype, width, inner, 2);
    }
  }
}

static void
test_experts_misfit (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  QkBackend *cpu = qk_cpu_backend_new (1, QK_CPU_C);
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (QomniWeights) w = NULL;
  g_autoptr (GError) error = NULL;
  QkTensor gate[N], up[N], down[N];

  /* One of the pair transposed. */
  add (&content, "x.gate_up_proj", QK_F32, 3, (int64_t[]) { N, 4, 6 }, 0);
  add (&content, "x.down_proj", QK_F32, 3, (int64_t[]) { N, 4, 3 }, 0);
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);
  w = qomni_weights_new (c, cpu);
  qomni_weights_experts (w, gate, up, down, N, 4, 3, "x");
  g_assert_false (qomni_weights_load (w, NULL, NULL, NULL, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT,
      "'x.gate_up_proj' in '");
  g_clear_pointer (&w, qomni_weights_free);
  w = qomni_weights_new (c, cpu);
  qomni_weights_experts (w, gate, up, down, N, 4, 3, "y");
  g_assert_false (qomni_weights_load (w, NULL, NULL, NULL, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT,
      "no tensor 'y.0.gate_proj.weight'");
  g_clear_pointer (&w, qomni_weights_free);
  cpu->free (cpu);
}

/* --- refusals ------------------------------------------------------------ */

static void
test_misfits (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  QkBackend *cpu = qk_cpu_backend_new (1, QK_CPU_C);
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (GError) error = NULL;
  const int64_t ids[2] = { 1, 2 };
  const QomniTensorOut integers = { "ids", "I64", 1, {2}, ids, sizeof ids };
  QkTensor t = {.data = &t };
  float *floats = NULL;

  add (&content, "m", QK_BF16, 2, (int64_t[]) { 2, 3 }, 0);
  g_array_append_val (content.outs, integers);
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);

#define EXPECT(claim, words) \
  { \
    g_autoptr (QomniWeights) w = qomni_weights_new (c, cpu); \
    claim; \
    g_assert_false (qomni_weights_check (w, NULL)); \
    g_assert_false (qomni_weights_load (w, NULL, NULL, NULL, &error)); \
    assert_refused (&error, QOMNI_ERROR_FORMAT, words); \
  }

  EXPECT (qomni_weights_matrix (w, &t, 2, (int64_t[]) {3, 2}, "m"),
      "/model.safetensors' is BF16 [2, 3], expected BF16 [3, 2]");
  EXPECT (qomni_weights_matrix (w, &t, 1, (int64_t[]) {6}, "m"),
      "[2, 3], expected BF16 [6]");
  EXPECT (qomni_weights_matrix (w, &t, 2, (int64_t[]) {2, 3}, "n"),
      "no tensor 'n' in '");
  EXPECT (qomni_weights_vector (w, &floats, 2, "ids"),
      "is I64 [2], expected F32, BF16 or F16 [2]");
  EXPECT (qomni_weights_rows (w, &floats, (int64_t[]) {2, 3},
          (int32_t[]) {2}, 1, "m"), "row 2 of tensor 'm', which has 2 rows");
  EXPECT (qomni_weights_rows (w, &floats, (int64_t[]) {2, 3},
          (int32_t[]) {-1}, 1, "m"), "row -1");
  /* The first one is kept. */
  EXPECT (qomni_weights_vector (w, &floats, 2, "first");
      qomni_weights_vector (w, &floats, 2, "second"), "'first'");
  EXPECT (qomni_weights_fail (w, g_error_new (QOMNI_ERROR, QOMNI_ERROR_FORMAT,
              "own words"));
      qomni_weights_vector (w, &floats, 2, "second"), "own words");
#undef EXPECT
  /* Nothing was filled in. */
  g_assert_true (t.data == &t);
  g_assert_null (floats);
  cpu->free (cpu);
}

static void
test_no_memory (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (QomniWeights) w = NULL;
  g_autoptr (GError) error = NULL;
  g_autofree char *wanted = NULL;
  QkTensor t = { 0 };
  Device device;

  add (&content, "m", QK_BF16, 2, (int64_t[]) { 20, 30 }, 0);
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);
  device_init (&device);
  device.limit = 100;
  w = qomni_weights_new (c, &device.backend);
  qomni_weights_matrix (w, &t, 2, (int64_t[]) { 20, 30 }, "m");
  g_assert_cmpuint (qomni_weights_bytes (w), ==, 1200);
  g_assert_false (qomni_weights_load (w, NULL, NULL, NULL, &error));
  g_assert_cmpuint (device.refused, >=, 1200);
  wanted = g_strdup_printf ("%zu bytes", device.refused);
  assert_refused (&error, QOMNI_ERROR_MEMORY, wanted);
  g_assert_null (t.data);
}

static void
test_backend_fault (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (GError) error = NULL;
  QkTensor t = { 0 };
  Device device;

  add (&content, "m", QK_BF16, 2, (int64_t[]) { 2, 3 }, 0);
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);
  device_init (&device);
  device.error = "the bus is on fire";
  {
    g_autoptr (QomniWeights) w = qomni_weights_new (c, &device.backend);

    qomni_weights_matrix (w, &t, 2, (int64_t[]) { 2, 3 }, "m");
    g_assert_false (qomni_weights_load (w, NULL, NULL, NULL, &error));
    assert_refused (&error, QOMNI_ERROR_BACKEND, "on fire");
    g_assert_null (t.data);
  }
  g_assert_cmpuint (device.live, ==, 0);
}

/* --- progress, cancelling, reading errors -------------------------------- */

typedef struct
{
  GCancellable *cancellable;
  int cancel_after;             /* tensors */
  int n;
  uint64_t done, total;
} Watch;

static void
watch (uint64_t done, uint64_t total, void *user_data)
{
  Watch *p = user_data;

  g_assert_cmpuint (done, >, p->done);
  p->done = done;
  p->total = total;
  if (++p->n == p->cancel_after)
    g_cancellable_cancel (p->cancellable);
}

static void
test_progress_and_cancel (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  g_autoptr (QomniCheckpoint) c = NULL;
  QkTensor t[5];

  for (int i = 0; i < 5; i++) {
    g_autofree char *name = g_strdup_printf ("m%d", i);

    add (&content, name, QK_F32, 2, (int64_t[]) { 4, 5 }, 0);
  }
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);

  for (int after = 0; after <= 6; after++) {
    Watch p = {.cancellable = g_cancellable_new (),.cancel_after = after };
    g_autoptr (GError) error = NULL;
    Device device;
    QomniWeights *w;
    bool ok;

    device_init (&device);
    w = qomni_weights_new (c, &device.backend);
    memset (t, 0, sizeof t);
    for (int i = 0; i < 5; i++)
      qomni_weights_matrix (w, &t[i], 2, (int64_t[]) { 4, 5 }, "m%d", i);
    ok = qomni_weights_load (w, watch, &p, p.cancellable, &error);
    /* Cancelled with the last tensor is too late. */
    if (after >= 1 && after <= 4) {
      g_assert_false (ok);
      g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
      g_assert_cmpint (p.n, ==, after);
      for (int i = 0; i < 5; i++)
        g_assert_null (t[i].data);
    } else {
      g_assert_true (ok);
      g_assert_cmpint (p.n, ==, 5);
      g_assert_cmpuint (p.done, ==, 400);
      g_assert_cmpuint (p.total, ==, 400);
    }
    qomni_weights_free (w);
    g_assert_cmpuint (device.live, ==, 0);
    g_object_unref (p.cancellable);
  }
}

static ssize_t
broken_read_at (void *user_data, int fd, void *dst, size_t bytes,
    uint64_t offset)
{
  if (*(bool *) user_data) {
    errno = EIO;
    return -1;
  }
  return pread (fd, dst, bytes, (off_t) offset);
}

static void
test_read_error (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  bool broken = false;
  QomniFileIo io = { broken_read_at, &broken };
  g_autoptr (QomniCheckpoint) c = NULL;
  g_autoptr (GError) error = NULL;
  QkTensor t = { 0 };
  Device device;

  add (&content, "m", QK_BF16, 2, (int64_t[]) { 2, 3 }, 0);
  qomni_checkpoint_unref (content_open (&content, dir, QOMNI_READ_PRIVATE));
  c = qomni_checkpoint_open_with_io (dir, QOMNI_READ_PRIVATE, &io, &error);
  g_assert_no_error (error);
  broken = true;
  device_init (&device);
  {
    g_autoptr (QomniWeights) w = qomni_weights_new (c, &device.backend);

    qomni_weights_matrix (w, &t, 2, (int64_t[]) { 2, 3 }, "m");
    g_assert_false (qomni_weights_load (w, NULL, NULL, NULL, &error));
    assert_refused (&error, QOMNI_ERROR_READ, "tensor 'm': cannot read '");
    g_assert_null (t.data);
  }
  g_assert_cmpuint (device.live, ==, 0);
}

static void
test_empty (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  Content content = content_new ();
  g_autoptr (QomniCheckpoint) c = NULL;
  Device device;

  add (&content, "m", QK_BF16, 2, (int64_t[]) { 2, 3 }, 0);
  c = content_open (&content, dir, QOMNI_READ_PRIVATE);
  device_init (&device);
  {
    g_autoptr (QomniWeights) w = qomni_weights_new (c, &device.backend);

    g_assert_cmpuint (qomni_weights_bytes (w), ==, 0);
    g_assert_cmpstr (qomni_weights_dtype (w), ==, "");
    g_assert_true (qomni_weights_load (w, NULL, NULL, NULL, NULL));
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/weights/every_form_lands_as_claimed", test_forms);
  g_test_add_func ("/weights/mapped_forms_are_the_same", test_forms_mapped);
  g_test_add_func ("/weights/uploaded_forms_are_the_same",
      test_forms_uploaded);
  g_test_add_func ("/weights/bf16_rounds_to_nearest_even", test_rounding);
  g_test_add_func ("/weights/pieces_of_large_tensors_join", test_large);
  g_test_add_func ("/weights/experts_load_one_by_one",
      test_experts_one_by_one);
  g_test_add_func ("/weights/experts_load_fused_and_transposed",
      test_experts_fused);
  g_test_add_func ("/weights/experts_of_mixed_layout_are_refused",
      test_experts_misfit);
  g_test_add_func ("/weights/misfits_name_both_shapes", test_misfits);
  g_test_add_func ("/weights/no_memory_names_the_bytes", test_no_memory);
  g_test_add_func ("/weights/backend_fault_fails_the_load",
      test_backend_fault);
  g_test_add_func ("/weights/cancel_stops_between_tensors",
      test_progress_and_cancel);
  g_test_add_func ("/weights/read_error_names_the_tensor", test_read_error);
  g_test_add_func ("/weights/no_claims_load_nothing", test_empty);
  return g_test_run ();
}
