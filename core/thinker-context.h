/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniThinkerContext: the Thinker's network with its KV cache, as a memory of
 * layouts (timeline.h). It knows no turns: it is shown a layout, computes what
 * it does not have of it, and gives the logits after the last row.
 *
 *   qomni_thinker_context_compute (c, layout, layout->n, layout->n - 1, …);
 *   logits = qomni_thinker_context_logits (c, &error);
 *   qomni_thinker_context_append (c, id, position, &error);   and again
 */
#pragma once

#include "model.h"
#include "timeline.h"

G_BEGIN_DECLS

typedef struct _QomniThinkerContext QomniThinkerContext;

/* The model's Thinker is loaded. want_hidden: keeps rows for a Talker. With a
 * probe, every layout is computed from its first row, into the probe. */
QomniThinkerContext *qomni_thinker_context_new (QomniModel * model,
    bool want_hidden, QomniProbe * probe, GError ** error);
void qomni_thinker_context_free (QomniThinkerContext * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniThinkerContext, qomni_thinker_context_free)

/* Brings the cache to rows 0 … n-1 of the layout, of which it keeps at most the
 * first `keep`. Cancelled or failed, it holds a beginning of them. */
bool qomni_thinker_context_compute (QomniThinkerContext * self,
    const QomniLayout * layout, int64_t n, int64_t keep,
    GCancellable * cancellable, GError ** error);
/* One more row: a token at this position on all axes. */
bool qomni_thinker_context_append (QomniThinkerContext * self, int32_t id,
    float position, GError ** error);
/* [vocab] after the last row; the caller may change them. NULL and an error
 * after a fault. */
float *qomni_thinker_context_logits (QomniThinkerContext * self,
    GError ** error);
void qomni_thinker_context_forget (QomniThinkerContext * self);

/* The rows heard (layout->heard) that have not been handed over:
 * [*ret_n, 2, width], the first of them is row *ret_first of all heard. */
const float *qomni_thinker_context_heard (const QomniThinkerContext * self,
    int64_t * ret_first, int64_t * ret_n);
/* They have been, at positions [3, n]. */
void qomni_thinker_context_sent (QomniThinkerContext * self,
    const float *positions);
/* H[0] of the last row computed, [width]. */
const float *qomni_thinker_context_input (const QomniThinkerContext * self);
/* ret [n, width] = embeddings of n tokens, at most 64. */
void qomni_thinker_context_embed (QomniThinkerContext * self,
    const int32_t * ids, int64_t n, float *ret);

G_END_DECLS
