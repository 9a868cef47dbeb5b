/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Claims are a plan: which tensor of the file, in which form, to which place.
 * Loading walks the plan in file order and puts every tensor into one block of
 * backend memory (tables for the CPU into one block of host memory), each at
 * a multiple of 64 bytes:
 *
 *   file bytes -> [to f32 -> to bf16] -> [permuted] -> block
 *
 * in pieces of at most PIECE bytes, so that a load can be cancelled within a
 * large tensor. A backend whose memory the CPU can address is read into
 * directly; any other gets uploads from a staging buffer. When the files are
 * mapped, a CPU backend uses tensors that need no change where they lie.
 */
#include "weights.h"

#include <string.h>

#define ALIGNMENT 64
#define PIECE ((size_t) 8 << 20)

typedef enum
{
  WHOLE,                        /* the tensor as it is */
  PERMUTED,
  ROWS,
} Form;

typedef struct
{
  const QomniTensorInfo *info;
  Form form;
  QkDtype dtype;                /* in memory */
  bool on_host;
  uint64_t count, bytes;        /* elements and bytes in memory */
  size_t offset;                /* in the block; unused for a mapped tensor */
  const void *mapped;

  int perm[3];                  /* PERMUTED */
  int32_t *rows;                /* ROWS */
  int64_t n_rows;

  /* Where the result goes: a view, a bare pointer, or the views of experts. */
  int n_dims;
  int64_t dims[QK_MAX_DIMS];
  QkTensor *ret_tensor;
  float **ret_floats;
  QkTensor *ret_expert[2];      /* gate and up, or down; [n_experts] */
} Claim;

struct _QomniWeights
{
  QomniCheckpoint *checkpoint;
  QkBackend *backend;
  QomniPrecision precision;
  bool host_addressable;        /* the CPU may touch the backend's memory */
  GArray *claims;
  GHashTable *counted;          /* infos that n_parameters includes */
  GError *error;                /* the first one */
  uint64_t bytes, n_parameters;
  const QomniFileDtype *dtype;
  bool mixed;

  void *block, *host_block;     /* after the load */
  size_t block_bytes;
};

static void
clear_claim (Claim * c)
{
  g_free (c->rows);
}

QomniWeights *
qomni_weights_new (QomniCheckpoint * checkpoint, QkBackend * backend)
{
  QomniWeights *self = g_new0 (QomniWeights, 1);

  self->checkpoint = qomni_checkpoint_ref (checkpoint);
  self->backend = backend;
  self->host_addressable = strncmp (backend->name, "cpu", 3) == 0;
  self->claims = g_array_new (FALSE, TRUE, sizeof (Claim));
  g_array_set_clear_func (self->claims, (GDestroyNotify) clear_claim);
  self->counted = g_hash_table_new (NULL, NULL);
  return self;
}

void
qomni_weights_free (QomniWeights * self)
{
  if (self == NULL)
    return;
  if (self->block != NULL)
    self->backend->release (self->backend, self->block, self->block_bytes);
  g_free (self->host_block);
  g_array_unref (self->claims);
  g_hash_table_unref (self->counted);
  g_clear_error (&self->error);
  qomni_checkpoint_unref (self->checkpoint);
  g_free (self);
}

void
qomni_weights_set_precision (QomniWeights * self, QomniPrecision precision)
{
  self->precision = precision;
}

void
qomni_weights_fail (QomniWeights * self, GError * error)
{
  if (self->error == NULL)
    self->error = error;
  else
    g_error_free (error);
}

bool
qomni_weights_check (const QomniWeights * self, GError ** error)
{
  if (self->error == NULL)
    return true;
  g_propagate_error (error, g_error_copy (self->error));
  return false;
}

uint64_t
qomni_weights_bytes (const QomniWeights * self)
{
  return self->bytes;
}

size_t
qomni_weights_n_tensors (const QomniWeights * self)
{
  return g_hash_table_size (self->counted);
}

uint64_t
qomni_weights_n_parameters (const QomniWeights * self)
{
  return self->n_parameters;
}

const char *
qomni_weights_dtype (const QomniWeights * self)
{
  return self->mixed ? "mixed" : self->dtype != NULL ? self->dtype->name : "";
}

/* --- claiming ------------------------------------------------------------ */

static char *
dims_str (int n_dims, const int64_t * dims)
{
  GString *s = g_string_new ("[");

  for (int i = 0; i < n_dims; i++)
    g_string_append_printf (s, "%s%" G_GINT64_FORMAT, i > 0 ? ", " : "",
        dims[i]);
  g_string_append_c (s, ']');
  return g_string_free (s, FALSE);
}

static bool
same_dims (const QomniTensorInfo * t, int n_dims, const int64_t * dims)
{
  return t->n_dims == n_dims
      && (n_dims == 0
      || memcmp (t->dims, dims, (size_t) n_dims * sizeof *dims) == 0);
}

static void
fail_shape (QomniWeights * self, const QomniTensorInfo * t, int n_dims,
    const int64_t * dims)
{
  g_autofree char *have = dims_str (t->n_dims, t->dims);
  g_autofree char *want = dims_str (n_dims, dims);

  qomni_fail (&self->error, QOMNI_ERROR_FORMAT, "tensor '%s' in '%s/%s' is %s "
      "%s, expected %s %s", t->name,
      qomni_checkpoint_directory (self->checkpoint),
      qomni_checkpoint_shard_name (self->checkpoint, t->shard), t->dtype->name,
      have, t->dtype->is_weight ? t->dtype->name : "F32, BF16 or F16", want);
}

/* The tensor of that name and shape; NULL, with the error latched, when there
 * is none or an earlier claim has failed. */
static const QomniTensorInfo *
find (QomniWeights * self, const char *name, int n_dims, const int64_t * dims)
{
  const QomniTensorInfo *t;

  if (self->error != NULL)
    return NULL;
  t = qomni_checkpoint_find (self->checkpoint, name);
  if (t == NULL) {
    g_autofree char *want = dims_str (n_dims, dims);

    qomni_fail (&self->error, QOMNI_ERROR_FORMAT, "no tensor '%s' in '%s', "
        "expected one of %s", name,
        qomni_checkpoint_directory (self->checkpoint), want);
    return NULL;
  }
  if (!t->dtype->is_weight || !same_dims (t, n_dims, dims)) {
    fail_shape (self, t, n_dims, dims);
    return NULL;
  }
  return t;
}

static QkDtype
matrix_dtype (const QomniWeights * self, const QomniTensorInfo * t)
{
  switch (self->precision) {
    case QOMNI_PRECISION_F32:
      return QK_F32;
    case QOMNI_PRECISION_BF16:
      return QK_BF16;
    default:
      return t->dtype->dtype;
  }
}

static uint64_t
count_of (const QomniTensorInfo * t)
{
  return t->bytes / (t->dtype->bits / 8);
}

static void
count_tensor (QomniWeights * self, const QomniTensorInfo * t)
{
  if (!g_hash_table_add (self->counted, (gpointer) t))
    return;
  self->n_parameters += count_of (t);
  if (self->dtype != NULL && self->dtype != t->dtype)
    self->mixed = true;
  self->dtype = t->dtype;
}

/* Adds a claim whose info, form, dtype, count and places are set. */
static void
add (QomniWeights * self, Claim * c)
{
  uint64_t size = qk_dtype_size (c->dtype);

  if (__builtin_mul_overflow (c->count, size, &c->bytes)
      || __builtin_add_overflow (self->bytes, c->bytes, &self->bytes)) {
    qomni_fail (&self->error, QOMNI_ERROR_MEMORY, "tensor '%s': the size of "
        "the weights does not fit 64 bits", c->info->name);
    clear_claim (c);
    return;
  }
  if (c->form != ROWS)
    count_tensor (self, c->info);
  g_array_append_val (self->claims, *c);
}

static void
set_dims (Claim * c, int n_dims, const int64_t * dims)
{
  c->n_dims = MIN (n_dims, QK_MAX_DIMS);
  for (int i = 0; i < c->n_dims; i++)
    c->dims[i] = dims[i];
  for (int i = QK_MAX_DIMS; i < n_dims; i++)
    c->dims[QK_MAX_DIMS - 1] *= dims[i];        /* <= the tensor's count */
}

static Claim
claim_whole (const QomniTensorInfo * t, QkDtype dtype)
{
  return (Claim) {
  .info = t,.form = WHOLE,.dtype = dtype,.count = count_of (t)};
}

#define FORMAT_NAME(format) \
  g_autofree char *name = NULL; \
  { \
    va_list args; \
    va_start (args, format); \
    name = g_strdup_vprintf (format, args); \
    va_end (args); \
  }

void
qomni_weights_matrix (QomniWeights * self, QkTensor * ret, int n_dims,
    const int64_t * dims, const char *name_format, ...)
{
  FORMAT_NAME (name_format);
  const QomniTensorInfo *t = find (self, name, n_dims, dims);
  Claim c;

  if (t == NULL)
    return;
  c = claim_whole (t, matrix_dtype (self, t));
  c.ret_tensor = ret;
  set_dims (&c, n_dims, dims);
  add (self, &c);
}

void
qomni_weights_vector (QomniWeights * self, float **ret, int64_t n,
    const char *name_format, ...)
{
  FORMAT_NAME (name_format);
  const QomniTensorInfo *t = find (self, name, 1, &n);
  Claim c;

  if (t == NULL)
    return;
  c = claim_whole (t, QK_F32);
  c.ret_floats = ret;
  add (self, &c);
}

void
qomni_weights_host (QomniWeights * self, float **ret, int n_dims,
    const int64_t * dims, const char *name_format, ...)
{
  FORMAT_NAME (name_format);
  const QomniTensorInfo *t = find (self, name, n_dims, dims);
  Claim c;

  if (t == NULL)
    return;
  c = claim_whole (t, QK_F32);
  c.on_host = true;
  c.ret_floats = ret;
  add (self, &c);
}

static void
claim_permuted (QomniWeights * self, const QomniTensorInfo * t,
    const int perm[3], bool as_f32, QkTensor * ret, QkTensor * ret_expert0,
    QkTensor * ret_expert1)
{
  Claim c = claim_whole (t, as_f32 ? QK_F32 : matrix_dtype (self, t));

  c.form = PERMUTED;
  c.n_dims = 3;
  for (int i = 0; i < 3; i++) {
    c.perm[i] = perm[i];
    c.dims[i] = t->dims[perm[i]];
  }
  c.ret_tensor = ret;
  c.ret_expert[0] = ret_expert0;
  c.ret_expert[1] = ret_expert1;
  add (self, &c);
}

void
qomni_weights_permuted (QomniWeights * self, QkTensor * ret,
    const int64_t dims[3], const int perm[3], bool as_f32,
    const char *name_format, ...)
{
  FORMAT_NAME (name_format);
  const QomniTensorInfo *t = find (self, name, 3, dims);

  if (t != NULL)
    claim_permuted (self, t, perm, as_f32, ret, NULL, NULL);
}

void
qomni_weights_rows (QomniWeights * self, float **ret, const int64_t dims[2],
    const int32_t * rows, int64_t n, const char *name_format, ...)
{
  FORMAT_NAME (name_format);
  const QomniTensorInfo *t = find (self, name, 2, dims);
  Claim c;

  if (t == NULL)
    return;
  for (int64_t i = 0; i < n; i++) {
    if (rows[i] < 0 || rows[i] >= dims[0]) {
      qomni_fail (&self->error, QOMNI_ERROR_FORMAT, "row %d of tensor '%s', "
          "which has %" G_GINT64_FORMAT " rows", rows[i], name, dims[0]);
      return;
    }
  }
  c = (Claim) {.info = t,.form = ROWS,.dtype = QK_F32,
    .count = (uint64_t) n * (uint64_t) dims[1],.n_rows = n
  };
  c.rows = g_memdup2 (rows, (size_t) n * sizeof *rows);
  c.ret_floats = ret;
  add (self, &c);
}

bool
qomni_weights_has (const QomniWeights * self, const char *name_format, ...)
{
  FORMAT_NAME (name_format);
  return qomni_checkpoint_find (self->checkpoint, name) != NULL;
}

/* --- experts ------------------------------------------------------------- */

static void
claim_expert (QomniWeights * self, QkTensor * ret, int64_t rows, int64_t cols,
    const char *prefix, int64_t e, const char *which)
{
  qomni_weights_matrix (self, ret, 2, (int64_t[]) {rows, cols}, "%s.%"
      G_GINT64_FORMAT ".%s.weight", prefix, e, which);
}

/* [n, a, b], or [n, b, a] when `transposed`, as n matrices [a, b]. */
static void
claim_fused (QomniWeights * self, const QomniTensorInfo * t, bool transposed,
    QkTensor * ret0, QkTensor * ret1)
{
  if (transposed) {
    claim_permuted (self, t, (int[]) {0, 2, 1}, false, NULL, ret0, ret1);
  } else {
    Claim c = claim_whole (t, matrix_dtype (self, t));

    set_dims (&c, 3, t->dims);
    c.ret_expert[0] = ret0;
    c.ret_expert[1] = ret1;
    add (self, &c);
  }
}

/* Where width is 2 inner (or inner), one of the two tensors fits both
 * layouts; the other one then decides for the pair. */
static void
claim_fused_experts (QomniWeights * self, QkTensor * gate, QkTensor * up,
    QkTensor * down, int64_t n, int64_t width, int64_t inner,
    const char *prefix)
{
  const int64_t gate_up_dims[2][3] = {
    {n, 2 * inner, width}, {n, width, 2 * inner}
  };
  const int64_t down_dims[2][3] = { {n, width, inner}, {n, inner, width} };
  g_autofree char *gate_up_name = g_strconcat (prefix, ".gate_up_proj", NULL);
  g_autofree char *down_name = g_strconcat (prefix, ".down_proj", NULL);
  const QomniTensorInfo *gu, *d;
  bool transposed;

  gu = qomni_checkpoint_find (self->checkpoint, gate_up_name);
  d = qomni_checkpoint_find (self->checkpoint, down_name);
  transposed = gu != NULL && d != NULL
      && same_dims (gu, 3, gate_up_dims[1]) && same_dims (d, 3, down_dims[1])
      && !(same_dims (gu, 3, gate_up_dims[0])
      && same_dims (d, 3, down_dims[0]));

  gu = find (self, gate_up_name, 3, gate_up_dims[transposed]);
  d = find (self, down_name, 3, down_dims[transposed]);
  if (gu == NULL || d == NULL)
    return;
  claim_fused (self, gu, transposed, gate, up);
  claim_fused (self, d, transposed, down, NULL);
}

void
qomni_weights_experts (QomniWeights * self, QkTensor * gate, QkTensor * up,
    QkTensor * down, int64_t n, int64_t width, int64_t inner,
    const char *prefix_format, ...)
{
  FORMAT_NAME (prefix_format);

  if (self->error != NULL)
    return;
  if (qomni_weights_has (self, "%s.gate_up_proj", name)) {
    claim_fused_experts (self, gate, up, down, n, width, inner, name);
    return;
  }
  for (int64_t e = 0; e < n && self->error == NULL; e++) {
    claim_expert (self, &gate[e], inner, width, name, e, "gate_proj");
    claim_expert (self, &up[e], inner, width, name, e, "up_proj");
    claim_expert (self, &down[e], width, inner, name, e, "down_proj");
  }
}

/* --- loading ------------------------------------------------------------- */

/* What the reading of one load needs: two staging buffers. */
typedef struct
{
  QomniWeights *w;
  QkStream *stream;             /* NULL when host_addressable */
  void *raw;                    /* [raw_bytes] as in the file */
  void *cooked;                 /* [cooked_bytes] converted or permuted */
  size_t raw_bytes, cooked_bytes;
  float *floats;                /* [PIECE / 4] on the way to bf16 */
  GCancellable *cancellable;
} Loader;

static bool
grow (void **buffer, size_t *have, uint64_t want, GError ** error)
{
  if (want <= *have)
    return true;
  g_free (*buffer);
  *have = 0;
  *buffer = want <= SIZE_MAX ? g_try_malloc ((size_t) want) : NULL;
  if (*buffer == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for a buffer of %"
        G_GUINT64_FORMAT " bytes to read weights through", want);
  *have = (size_t) want;
  return true;
}

/* n elements; both buffers hold PIECE bytes at least when dtypes differ. */
static bool
convert (Loader * l, void *dst, QkDtype to, const void *src, QkDtype from,
    size_t n, GError ** error)
{
  size_t piece = PIECE / sizeof (float);

  if (to == from) {
    memcpy (dst, src, n * qk_dtype_size (to));
    return true;
  }
  if (to != QK_F32 && l->floats == NULL) {
    l->floats = g_try_malloc (PIECE);
    if (l->floats == NULL)
      return qomni_fail (error, QOMNI_ERROR_MEMORY,
          "no memory for a buffer of %zu bytes to convert weights in", PIECE);
  }
  for (size_t i = 0; i < n; i += piece) {
    size_t m = MIN (piece, n - i);
    const uint8_t *s = (const uint8_t *) src + i * qk_dtype_size (from);
    uint8_t *d = (uint8_t *) dst + i * qk_dtype_size (to);

    if (to == QK_F32) {
      qk_to_f32 ((float *) d, s, from, m);
    } else {
      qk_to_f32 (l->floats, s, from, m);
      qk_from_f32 (d, l->floats, to, m);
    }
  }
  return true;
}

static uint8_t *
place (const QomniWeights * self, const Claim * c)
{
  if (c->mapped != NULL)
    return (uint8_t *) c->mapped;
  return (uint8_t *) (c->on_host ? self->host_block : self->block) + c->offset;
}

static bool
is_direct (const Loader * l, const Claim * c)
{
  return c->on_host || l->w->host_addressable;
}

/* `n` elements from element `first` of the tensor, in its order, to `dst` in
 * the place of the claim. */
static bool
load_run (Loader * l, const Claim * c, uint64_t first, uint64_t n,
    uint8_t *dst, GError ** error)
{
  QkDtype from = c->info->dtype->dtype;
  size_t from_size = qk_dtype_size (from), to_size = qk_dtype_size (c->dtype);
  bool plain = from == c->dtype;

  while (n > 0) {
    size_t m = (size_t) MIN (n, PIECE / sizeof (float));
    void *out = is_direct (l, c) ? (void *) dst : l->cooked;
    void *in = plain ? out : l->raw;

    if (!qomni_go_on (l->cancellable, error)
        || !qomni_checkpoint_read_part (l->w->checkpoint, c->info,
            first * from_size, in, m * from_size, error))
      return false;
    if (!plain && !convert (l, out, c->dtype, in, from, m, error))
      return false;
    if (out != dst)
      l->w->backend->upload (l->stream, dst, out, m * to_size);
    first += m;
    n -= m;
    dst += m * to_size;
  }
  return true;
}

#define PERMUTE(Type) \
  for (int64_t i = 0; i < d[0]; i++) \
    for (int64_t j = 0; j < d[1]; j++) \
      for (int64_t k = 0; k < d[2]; k++) \
        ((Type *) dst)[(i * d[1] + j) * d[2] + k] = \
            ((const Type *) src)[i * s[0] + j * s[1] + k * s[2]];

/* dst [d0, d1, d2] from elements s0, s1, s2 apart. */
static void
permute (void *dst, const void *src, const int64_t d[3], const int64_t s[3],
    size_t size)
{
  if (size == 4) {
    PERMUTE (uint32_t);
  } else {
    PERMUTE (uint16_t);
  }
}

/* One slab after another when the outermost axis stays where it is. */
static bool
load_permuted (Loader * l, const Claim * c, uint8_t *dst, GError ** error)
{
  const QomniTensorInfo *t = c->info;
  QkDtype from = t->dtype->dtype;
  size_t from_size = qk_dtype_size (from), to_size = qk_dtype_size (c->dtype);
  const int64_t strides[3] = { t->dims[1] * t->dims[2], t->dims[2], 1 };
  int64_t n_slabs = c->perm[0] == 0 ? t->dims[0] : 1;
  int64_t d[3], s[3];
  uint64_t slab;

  if (c->count == 0)
    return true;
  for (int i = 0; i < 3; i++) {
    d[i] = c->dims[i];
    s[i] = strides[c->perm[i]];
  }
  d[0] = c->perm[0] == 0 ? 1 : d[0];
  slab = c->count / (uint64_t) n_slabs;

  for (int64_t i = 0; i < n_slabs; i++) {
    void *out = dst + (uint64_t) i * slab * to_size;

    if (!grow (&l->raw, &l->raw_bytes, slab * from_size, error)
        || !grow (&l->cooked, &l->cooked_bytes, 2 * slab * sizeof (float),
            error)
        || !qomni_go_on (l->cancellable, error)
        || !qomni_checkpoint_read_part (l->w->checkpoint, t,
            (uint64_t) i * slab * from_size, l->raw,
            (size_t) (slab * from_size), error))
      return false;
    /* First converted, into one half, then permuted into the other. */
    uint8_t *half = (uint8_t *) l->cooked + slab * sizeof (float);
    if (!convert (l, half, c->dtype, l->raw, from, (size_t) slab, error))
      return false;
    if (is_direct (l, c)) {
      permute (out, half, d, s, to_size);
    } else {
      permute (l->cooked, half, d, s, to_size);
      l->w->backend->upload (l->stream, out, l->cooked,
          (size_t) (slab * to_size));
    }
  }
  return true;
}

static bool
load_claim (Loader * l, const Claim * c, GError ** error)
{
  uint8_t *dst = place (l->w, c);
  uint64_t width;

  if (!grow (&l->raw, &l->raw_bytes, PIECE, error)
      || !grow (&l->cooked, &l->cooked_bytes, PIECE, error))
    return false;
  switch (c->form) {
    case WHOLE:
      return load_run (l, c, 0, c->count, dst, error);
    case PERMUTED:
      return load_permuted (l, c, dst, error);
    case ROWS:
      width = (uint64_t) c->info->dims[1];
      for (int64_t i = 0; i < c->n_rows; i++) {
        if (!load_run (l, c, (uint64_t) c->rows[i] * width, width,
                dst + (uint64_t) i * width * sizeof (float), error))
          return false;
      }
      return true;
  }
  return true;
}

/* Gives every claim its offset and allocates the blocks. */
static bool
allocate (QomniWeights * self, GError ** error)
{
  size_t sizes[2] = { 0, 0 };   /* backend, host */

  for (guint i = 0; i < self->claims->len; i++) {
    Claim *c = &g_array_index (self->claims, Claim, i);
    size_t *size = &sizes[c->on_host], padded;

    if (self->host_addressable && c->form == WHOLE && !c->on_host
        && c->dtype == c->info->dtype->dtype)
      c->mapped = qomni_checkpoint_map (self->checkpoint, c->info);
    if (c->mapped != NULL)
      continue;
    c->offset = *size;
    if (c->bytes > SIZE_MAX
        || !qomni_size_add ((size_t) c->bytes, ALIGNMENT - 1, &padded)
        || !qomni_size_add (*size, padded & ~(size_t) (ALIGNMENT - 1), size))
      return qomni_fail (error, QOMNI_ERROR_MEMORY, "%" G_GUINT64_FORMAT
          " bytes of weights do not fit the address space", self->bytes);
  }

  if (sizes[0] > 0) {
    self->block = self->backend->alloc (self->backend, sizes[0]);
    self->block_bytes = sizes[0];
    if (self->block == NULL)
      return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory on %s for %zu "
          "bytes of weights", self->backend->name, sizes[0]);
  }
  if (sizes[1] > 0) {
    self->host_block = g_try_malloc (sizes[1]);
    if (self->host_block == NULL)
      return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for %zu bytes "
          "of tables", sizes[1]);
  }
  return true;
}

static void
fill_experts (const Claim * c, uint8_t *data)
{
  int n_parts = c->ret_expert[1] != NULL ? 2 : 1;
  int64_t rows = c->dims[1] / n_parts, cols = c->dims[2];
  size_t bytes = (size_t) (rows * cols) * qk_dtype_size (c->dtype);

  for (int64_t e = 0; e < c->dims[0]; e++) {
    for (int part = 0; part < n_parts; part++) {
      c->ret_expert[part][e] = (QkTensor) {
        data + (size_t) (e * n_parts + part) * bytes, c->dtype, 2,
        {rows, cols}
      };
    }
  }
}

static void
fill_places (QomniWeights * self)
{
  for (guint i = 0; i < self->claims->len; i++) {
    const Claim *c = &g_array_index (self->claims, Claim, i);
    uint8_t *data = place (self, c);

    if (c->ret_floats != NULL)
      *c->ret_floats = (float *) data;
    if (c->ret_expert[0] != NULL)
      fill_experts (c, data);
    if (c->ret_tensor != NULL) {
      QkTensor t = {.data = data,.dtype = c->dtype,.n_dims = c->n_dims };

      memcpy (t.dims, c->dims, sizeof t.dims);
      *c->ret_tensor = t;
    }
  }
}

static int
compare_claims (const void *a, const void *b)
{
  const QomniTensorInfo *ta = (*(Claim * const *) a)->info;
  const QomniTensorInfo *tb = (*(Claim * const *) b)->info;

  if (ta->shard != tb->shard)
    return ta->shard < tb->shard ? -1 : 1;
  return ta->offset < tb->offset ? -1 : ta->offset > tb->offset;
}

static bool
load_all (Loader * l, QomniProgressFunc progress, void *user_data,
    GError ** error)
{
  QomniWeights *self = l->w;
  guint n = self->claims->len;
  g_autofree const Claim **order = g_new (const Claim *, n + 1);
  uint64_t done = 0;

  for (guint i = 0; i < n; i++)
    order[i] = &g_array_index (self->claims, Claim, i);
  qsort (order, n, sizeof *order, compare_claims);

  for (guint i = 0; i < n; i++) {
    if (!qomni_go_on (l->cancellable, error))
      return false;
    if (order[i]->mapped == NULL && !load_claim (l, order[i], error))
      return false;
    done += order[i]->bytes;
    if (progress != NULL)
      progress (done, self->bytes, user_data);
  }
  if (l->stream != NULL && self->backend->error (l->stream) != NULL)
    return qomni_fail (error, QOMNI_ERROR_BACKEND, "uploading weights: %s",
        self->backend->error (l->stream));
  return true;
}

bool
qomni_weights_load (QomniWeights * self, QomniProgressFunc progress,
    void *user_data, GCancellable * cancellable, GError ** error)
{
  Loader l = {.w = self,.cancellable = cancellable };
  bool ok;

  if (!qomni_weights_check (self, error) || !qomni_go_on (cancellable, error)
      || !allocate (self, error))
    return false;
  if (!self->host_addressable) {
    l.stream = self->backend->stream_new (self->backend);
    if (l.stream == NULL)
      return qomni_fail (error, QOMNI_ERROR_MEMORY,
          "no memory for a stream on %s", self->backend->name);
  }
  ok = load_all (&l, progress, user_data, error);
  if (ok)
    fill_places (self);
  if (l.stream != NULL)
    self->backend->stream_free (l.stream);
  g_free (l.raw);
  g_free (l.cooked);
  g_free (l.floats);
  return ok;
}
