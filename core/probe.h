/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniProbe collects intermediate results by name and writes them as one
 * safetensors file: how a stage is compared with the reference. Every object
 * that computes takes one, or NULL for none. Thread safe.
 */
#pragma once

#include "types.h"

G_BEGIN_DECLS

QomniProbe *qomni_probe_new (void);
QomniProbe *qomni_probe_ref (QomniProbe * self);
void qomni_probe_unref (QomniProbe * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniProbe, qomni_probe_unref)

/* Appends along `axis` to what `name` holds already; the other dims must agree.
 * n_dims <= 4. A NULL probe ignores the call. */
void qomni_probe_append (QomniProbe * self, const char *name, int axis,
    int n_dims, const int64_t * dims, const float *data);
void qomni_probe_append_ids (QomniProbe * self, const char *name,
    int axis, int n_dims, const int64_t * dims, const int64_t * data);
/* Forgets `name`, so that the next append starts anew. */
void qomni_probe_clear (QomniProbe * self, const char *name);
/* The values of `name` (f32), or NULL; valid until the next change. */
const float *qomni_probe_get (QomniProbe * self, const char *name,
    int *ret_n_dims, int64_t * ret_dims);
bool qomni_probe_write (QomniProbe * self, const char *path, GError ** error);

G_END_DECLS
