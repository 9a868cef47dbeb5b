/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A conversation in the chat format of the model's users:
 *
 *   [{"role": "user", "content": [
 *       {"type": "audio", "audio": "q.wav"},
 *       {"type": "text", "text": "What is said?"}]}]
 *
 * `content` may be a string; `path` is accepted for any medium; relative paths
 * are relative to the file.
 */
#pragma once

#include "prompt.h"

G_BEGIN_DECLS

typedef enum
{
  PART_TEXT,
  PART_AUDIO,
  PART_IMAGE,
  PART_VIDEO,
} PartKind;

typedef struct
{
  PartKind kind;
  char *text;                   /* TEXT */
  char *path;                   /* the others */
} Part;

typedef struct
{
  QomniRole role;
  GPtrArray *parts;             /* Part */
} Message;

typedef struct
{
  GPtrArray *messages;          /* Message */
} Conversation;

Conversation *conversation_read (const char *path, GError ** error);
void conversation_free (Conversation * self);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Conversation, conversation_free)

/* All text of a message, joined. g_free(). */
char *message_text (const Message * self);
bool message_has_media (const Message * self);

G_END_DECLS
