/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * workspace: step buffers and streams on a backend.
 */
#include "workspace.h"

#define ALIGNMENT 64

static bool
add_buffer (size_t *total, const QomniBuffer * b)
{
  size_t bytes;

  return b->rows >= 0 && b->width >= 0
      && qomni_size_mul3 ((size_t) b->rows, (size_t) b->width, sizeof (float),
      &bytes)
      && qomni_size_add (bytes, ALIGNMENT - 1, &bytes)
      && qomni_size_add (*total, bytes & ~(size_t) (ALIGNMENT - 1), total);
}

bool
qomni_workspace_alloc (QomniWorkspace * self, QkBackend * backend,
    const QomniBuffer * buffers, size_t n, const char *owner, GError ** error)
{
  size_t total = 0, at = 0;

  for (size_t i = 0; i < n; i++)
    if (!add_buffer (&total, &buffers[i]))
      return qomni_fail (error, QOMNI_ERROR_LIMIT,
          "the buffers of %s exceed the address space: one has %"
          G_GINT64_FORMAT " rows of %" G_GINT64_FORMAT, owner,
          buffers[i].rows, buffers[i].width);

  self->data = backend->alloc (backend, total);
  if (self->data == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for %zu bytes of buffers of %s", total, owner);
  self->backend = backend;
  self->bytes = total;
  for (size_t i = 0; i < n; i++) {
    *buffers[i].place = self->data + at / sizeof (float);
    add_buffer (&at, &buffers[i]);
  }
  return true;
}

void
qomni_workspace_clear (QomniWorkspace * self)
{
  if (self->data != NULL)
    self->backend->release (self->backend, self->data, self->bytes);
  *self = (QomniWorkspace) { 0 };
}

void
qomni_stream_replace (QkBackend * backend, QkStream ** stream)
{
  QkStream *fresh = backend->stream_new (backend);

  if (fresh == NULL)
    return;
  backend->stream_free (*stream);
  *stream = fresh;
}
