/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What an object that computes holds on its backend: the buffers of a step, cut
 * out of one allocation, and a stream that can be replaced after a fault.
 *
 *   const QomniBuffer buffers[] = {
 *     { &self->x, rows, width },
 *     { &self->logits, 1, vocab },
 *   };
 *   ok = qomni_workspace_alloc (&self->work, backend, buffers,
 *       G_N_ELEMENTS (buffers), "the Talker", &error);
 */
#pragma once

#include "types.h"

G_BEGIN_DECLS

typedef struct
{
  float **place;
  int64_t rows, width;
} QomniBuffer;

typedef struct
{
  QkBackend *backend;
  float *data;
  size_t bytes;
} QomniWorkspace;

/* Fills the places with buffers of rows x width zeros, each on a multiple of 64
 * bytes. All or nothing; `owner` is for the message. */
bool qomni_workspace_alloc (QomniWorkspace * self, QkBackend * backend,
    const QomniBuffer * buffers, size_t n, const char *owner, GError ** error);
/* Empty ones (all zero) as well; can be used again. */
void qomni_workspace_clear (QomniWorkspace * self);

/* After a fault, which a stream keeps saying: puts a new one in its place. What
 * the old one was asked for may not have happened. Without memory it stays, and
 * the next step fails as well. */
void qomni_stream_replace (QkBackend * backend, QkStream ** stream);

G_END_DECLS
