/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniProbe: a table of growing arrays. Nothing in it can stop the
 * computation that is being watched: the first fault is kept and reported by
 * qomni_probe_write().
 */
#include "probe.h"

#include "checkpoint.h"

#include <string.h>

#define MAX_DIMS 4

typedef struct
{
  char *name;
  bool is_ids;
  int n_dims;
  int64_t dims[MAX_DIMS];
  void *data;
  size_t bytes, capacity;
} Entry;

struct _QomniProbe
{
  int ref_count;                /* atomic */
  GMutex lock;                  /* guards what follows; a leaf */
  GHashTable *entries;          /* name -> Entry */
  GError *error;
};

static void
entry_free (Entry * e)
{
  g_free (e->name);
  g_free (e->data);
  g_free (e);
}

QomniProbe *
qomni_probe_new (void)
{
  QomniProbe *self = g_new0 (QomniProbe, 1);

  self->ref_count = 1;
  g_mutex_init (&self->lock);
  self->entries = g_hash_table_new_full (g_str_hash, g_str_equal, NULL,
      (GDestroyNotify) entry_free);
  return self;
}

QomniProbe *
qomni_probe_ref (QomniProbe * self)
{
  g_atomic_int_inc (&self->ref_count);
  return self;
}

void
qomni_probe_unref (QomniProbe * self)
{
  if (self == NULL || !g_atomic_int_dec_and_test (&self->ref_count))
    return;
  g_hash_table_unref (self->entries);
  g_clear_error (&self->error);
  g_mutex_clear (&self->lock);
  g_free (self);
}

static bool
entry_reserve (Entry * e, size_t bytes)
{
  size_t capacity = e->capacity;
  void *data;

  if (bytes <= capacity)
    return true;
  if (!qomni_size_mul (bytes, 2, &capacity))
    return false;
  data = g_try_realloc (e->data, capacity);
  if (data == NULL)
    return false;
  e->data = data;
  e->capacity = capacity;
  return true;
}

/* Bytes of one step along the dims after `axis`, and how often that repeats. */
static bool
strides (int axis, int n_dims, const int64_t * dims, size_t elem_size,
    size_t *ret_outer, size_t *ret_inner)
{
  size_t outer = 1, inner = elem_size;

  for (int i = 0; i < n_dims; i++) {
    if (dims[i] < 0)
      return false;
    if (i < axis ? !qomni_size_mul (outer, (size_t) dims[i], &outer)
        : !qomni_size_mul (inner, (size_t) dims[i], &inner))
      return false;
  }
  *ret_outer = outer;
  *ret_inner = inner;
  return true;
}

/* [outer, old + new along the axis, …]: the old rows move apart from the last
 * one on, so that nothing is overwritten before it has moved. */
static bool
entry_append (Entry * e, int axis, const int64_t * dims, const void *data,
    size_t elem_size)
{
  size_t outer, old_inner, new_inner, add, total;

  if (!strides (axis, e->n_dims, e->dims, elem_size, &outer, &old_inner)
      || !strides (axis, e->n_dims, dims, elem_size, &outer, &new_inner)
      || !qomni_size_mul (outer, new_inner, &add)
      || !qomni_size_add (e->bytes, add, &total) || !entry_reserve (e, total))
    return false;

  if (add > 0) {
    uint8_t *p = e->data;

    for (size_t i = outer; i-- > 0;) {
      memmove (p + i * (old_inner + new_inner), p + i * old_inner, old_inner);
      memcpy (p + i * (old_inner + new_inner) + old_inner,
          (const uint8_t *) data + i * new_inner, new_inner);
    }
  }
  e->bytes = total;
  e->dims[axis] += dims[axis];
  return true;
}

static void
append (QomniProbe * self, const char *name, bool is_ids, int axis,
    int n_dims, const int64_t * dims, const void *data)
{
  size_t elem_size = is_ids ? sizeof (int64_t) : sizeof (float);
  Entry *e;

  if (self == NULL)
    return;

  g_mutex_lock (&self->lock);
  if (self->error != NULL)
    goto out;
  if (n_dims < 1 || n_dims > MAX_DIMS || axis < 0 || axis >= n_dims) {
    qomni_fail (&self->error, QOMNI_ERROR_INPUT,
        "probe '%s': axis %d of %d dims", name, axis, n_dims);
    goto out;
  }

  e = g_hash_table_lookup (self->entries, name);
  if (e == NULL) {
    e = g_new0 (Entry, 1);
    e->name = g_strdup (name);
    e->is_ids = is_ids;
    e->n_dims = n_dims;
    memcpy (e->dims, dims, (size_t) n_dims * sizeof *dims);
    e->dims[axis] = 0;
    g_hash_table_insert (self->entries, e->name, e);
  }

  bool fits = e->is_ids == is_ids && e->n_dims == n_dims;
  for (int i = 0; fits && i < n_dims; i++)
    fits = i == axis || e->dims[i] == dims[i];
  if (!fits)
    qomni_fail (&self->error, QOMNI_ERROR_INPUT,
        "probe '%s': what is appended has other dims", name);
  else if (!entry_append (e, axis, dims, data, elem_size))
    qomni_fail (&self->error, QOMNI_ERROR_MEMORY,
        "probe '%s': no memory for more than %zu bytes", name, e->bytes);

out:
  g_mutex_unlock (&self->lock);
}

void
qomni_probe_append (QomniProbe * self, const char *name, int axis, int n_dims,
    const int64_t * dims, const float *data)
{
  append (self, name, false, axis, n_dims, dims, data);
}

void
qomni_probe_append_ids (QomniProbe * self, const char *name, int axis,
    int n_dims, const int64_t * dims, const int64_t * data)
{
  append (self, name, true, axis, n_dims, dims, data);
}

void
qomni_probe_clear (QomniProbe * self, const char *name)
{
  if (self == NULL)
    return;
  g_mutex_lock (&self->lock);
  g_hash_table_remove (self->entries, name);
  g_mutex_unlock (&self->lock);
}

const float *
qomni_probe_get (QomniProbe * self, const char *name, int *ret_n_dims,
    int64_t * ret_dims)
{
  const float *data = NULL;
  const Entry *e;

  if (self == NULL)
    return NULL;
  g_mutex_lock (&self->lock);
  e = g_hash_table_lookup (self->entries, name);
  if (e != NULL && !e->is_ids) {
    data = e->data;
    if (ret_n_dims != NULL)
      *ret_n_dims = e->n_dims;
    if (ret_dims != NULL)
      memcpy (ret_dims, e->dims, (size_t) e->n_dims * sizeof *ret_dims);
  }
  g_mutex_unlock (&self->lock);
  return data;
}

static int
compare_out (const void *a, const void *b)
{
  return strcmp (((const QomniTensorOut *) a)->name,
      ((const QomniTensorOut *) b)->name);
}

bool
qomni_probe_write (QomniProbe * self, const char *path, GError ** error)
{
  g_autofree QomniTensorOut *outs = NULL;
  GHashTableIter iter;
  gpointer value;
  size_t n = 0;
  bool ok;

  g_mutex_lock (&self->lock);
  if (self->error != NULL) {
    if (error != NULL)
      *error = g_error_copy (self->error);
    g_mutex_unlock (&self->lock);
    return false;
  }

  outs = g_new0 (QomniTensorOut, g_hash_table_size (self->entries) + 1);
  g_hash_table_iter_init (&iter, self->entries);
  while (g_hash_table_iter_next (&iter, NULL, &value)) {
    const Entry *e = value;
    QomniTensorOut *out = &outs[n++];

    out->name = e->name;
    out->dtype = e->is_ids ? "I64" : "F32";
    out->n_dims = e->n_dims;
    memcpy (out->dims, e->dims, sizeof e->dims);
    out->data = e->data;
    out->bytes = e->bytes;
  }
  qsort (outs, n, sizeof *outs, compare_out);
  ok = qomni_safetensors_write (path, outs, n, error);
  g_mutex_unlock (&self->lock);
  return ok;
}
