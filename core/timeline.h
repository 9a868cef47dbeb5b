/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniTimeline: what was said in a conversation, turn by turn and part by
 * part, and where each of its tokens stands. It computes nothing itself: it
 * lays the turns out as ids, positions and rows of media, as often as wanted,
 * and the Thinker compares that with what it has computed already.
 *
 *   qomni_timeline_push_embeddings (t, block, &error);
 *   l = qomni_timeline_layout (t, QOMNI_LAYOUT_SO_FAR, &error);   for prefill
 *   qomni_timeline_close (t, &error);
 *   l = qomni_timeline_layout (t, QOMNI_LAYOUT_PROMPT, &error);   to answer
 *   qomni_timeline_push_reply (t, ids, n);
 */
#pragma once

#include "embeddings.h"
#include "prompt.h"

G_BEGIN_DECLS

typedef struct _QomniTimeline QomniTimeline;

/* The embedding that stands in for a placeholder. */
typedef struct
{
  const QomniEmbeddings *block; /* NULL: an ordinary token */
  uint64_t serial;              /* of the block; 0: none; never used twice */
  int64_t row;                  /* within the block */
} QomniMediaRow;

/* Positions are [3, n]: time, row, column. Blocks live as long as the timeline
 * does not drop their turn. */
typedef struct
{
  int64_t n;
  int64_t n_final;              /* ids that more parts will not change */
  int32_t *ids;                 /* [n] */
  QomniMediaRow *media;         /* [n] */
  bool *heard;                  /* [n] in a user's segment, for the Talker */
  float *positions;             /* [3, n] */
  float delta;                  /* a token drawn at index s stands at s + delta */

  /* QOMNI_LAYOUT_SPOKEN: the Talker's own sequence, the rows heard and the nine
   * that it adds itself. */
  int64_t n_heard;
  float *talker_positions;      /* [3, n_heard + 9] or NULL */
  float talker_delta;
} QomniLayout;
#define QOMNI_TALKER_OWN_ROWS 9

typedef enum
{
  QOMNI_LAYOUT_SO_FAR,          /* closed turns and the open one */
  QOMNI_LAYOUT_PROMPT,          /* closed turns and the header of a reply */
  QOMNI_LAYOUT_SPOKEN,          /* likewise, with positions for the Talker */
} QomniLayoutKind;

QomniTimeline *qomni_timeline_new (const QomniConfig * config,
    const QomniTokenizer * tokenizer, bool use_audio_in_video);
void qomni_timeline_free (QomniTimeline * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniTimeline, qomni_timeline_free)
/* Forgets everything; a system prompt, unless NULL, becomes the first turn. */
void qomni_timeline_clear (QomniTimeline * self, const char *system_prompt);

/* Into the open user turn, which begins with its first part. See thinker.h for
 * which blocks make one part. */
bool qomni_timeline_push_text (QomniTimeline * self, const char *text,
    GError ** error);
bool qomni_timeline_push_embeddings (QomniTimeline * self,
    QomniEmbeddings * block, GError ** error);
bool qomni_timeline_is_open (const QomniTimeline * self);
/* Ends the open turn; it stays open when one of its parts is empty. */
bool qomni_timeline_close (QomniTimeline * self, GError ** error);
void qomni_timeline_drop_open (QomniTimeline * self);

/* Whole turns; not while one is open. */
bool qomni_timeline_push_turn (QomniTimeline * self, QomniRole role,
    const char *text, GError ** error);
/* A reply, by its ids. Ids that would be read as chat layout or media are left
 * out: history is text. */
void qomni_timeline_push_reply (QomniTimeline * self, const int32_t * ids,
    size_t n);
/* Whether something has been said since the last reply. */
bool qomni_timeline_wants_reply (const QomniTimeline * self);
bool qomni_timeline_is_empty (const QomniTimeline * self);
/* Takes back the last closed turn. */
void qomni_timeline_drop_last (QomniTimeline * self);

QomniLayout *qomni_timeline_layout (QomniTimeline * self,
    QomniLayoutKind kind, GError ** error);
void qomni_layout_free (QomniLayout * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (QomniLayout, qomni_layout_free)

G_END_DECLS
