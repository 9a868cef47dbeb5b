/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Draws a token from logits, in the order of the reference's processors:
 * repetition penalty, suppressed ids, temperature, top-k, top-p, multinomial;
 * argmax after the first two when greedy (ties to the lower id). Seeded: the
 * same seed draws the same tokens on every machine. Ids drawn count as seen.
 */
#pragma once

#include "model-config.h"

G_BEGIN_DECLS

typedef struct _QomniSampler QomniSampler;

QomniSampler *qomni_sampler_new (const QomniSampling * sampling, uint64_t seed,
    int64_t vocab_size, GError ** error);
void qomni_sampler_free (QomniSampler * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniSampler, qomni_sampler_free)

/* Ids first … last may never be drawn, but `except` may (-1: none). */
void qomni_sampler_suppress (QomniSampler * self, int32_t first, int32_t last,
    int32_t except);
/* Takes effect with the next draw. A value that qomni_sampler_new() would
 * refuse counts as off (temperature: greedy). */
void qomni_sampler_set (QomniSampler * self, const QomniSampling * sampling);
/* Forgets the ids seen (the repetition penalty's memory). */
void qomni_sampler_reset (QomniSampler * self);
/* Ids of the prompt count as seen (the Thinker's repetition penalty). */
void qomni_sampler_seen (QomniSampler * self, const int32_t * ids, size_t n);
/* -1 and an error when a logit is NaN or +inf, or none is left to draw.
 * `logits` [vocab_size] is changed. */
int32_t qomni_sampler_draw (QomniSampler * self, float *logits,
    GError ** error);

G_END_DECLS
