/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * conversation: a JSON file -> messages and their parts.
 */
#include "conversation.h"

#include <string.h>

#include "json.h"

static void
part_free (Part * part)
{
  g_free (part->text);
  g_free (part->path);
  g_free (part);
}

static void
message_free (Message * message)
{
  g_ptr_array_unref (message->parts);
  g_free (message);
}

void
conversation_free (Conversation * self)
{
  if (self == NULL)
    return;
  g_ptr_array_unref (self->messages);
  g_free (self);
}

static const char *
string_member (JsonObject * object, const char *name)
{
  JsonNode *node = json_object_get_member (object, name);

  if (node == NULL || !JSON_NODE_HOLDS_VALUE (node)
      || json_node_get_value_type (node) != G_TYPE_STRING)
    return NULL;
  return json_node_get_string (node);
}

static Part *
part_new (PartKind kind, const char *text, const char *path,
    const char *directory)
{
  Part *part = g_new0 (Part, 1);

  part->kind = kind;
  part->text = g_strdup (text);
  if (path != NULL && g_str_has_prefix (path, "file://"))
    path += strlen ("file://");
  if (path != NULL)
    part->path = g_path_is_absolute (path) ? g_strdup (path)
        : g_build_filename (directory, path, NULL);
  return part;
}

static bool
read_part (Message * message, JsonNode * node, const char *where,
    const char *directory, GError ** error)
{
  static const char *const kinds[] = { "text", "audio", "image", "video" };
  JsonObject *object;
  const char *type, *value;

  if (!JSON_NODE_HOLDS_OBJECT (node))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%s: a part is %s, wanted an object", where,
        json_node_type_name (node));
  object = json_node_get_object (node);
  type = string_member (object, "type");
  for (guint kind = 0; type != NULL && kind < G_N_ELEMENTS (kinds); kind++) {
    if (strcmp (type, kinds[kind]) != 0)
      continue;
    value = string_member (object, kinds[kind]);
    if (value == NULL && kind != PART_TEXT)
      value = string_member (object, "path");
    if (value == NULL)
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "%s: a part of type '%s' has no string '%s'", where, type,
          kinds[kind]);
    g_ptr_array_add (message->parts, part_new (kind,
            kind == PART_TEXT ? value : NULL,
            kind == PART_TEXT ? NULL : value, directory));
    return true;
  }
  return qomni_fail (error, QOMNI_ERROR_INPUT,
      "%s: a part has type '%s', wanted text, audio, image or video", where,
      type == NULL ? "(none)" : type);
}

static bool
read_message (Conversation * self, JsonNode * node, const char *where,
    const char *directory, GError ** error)
{
  static const char *const roles[] = { "system", "user", "assistant" };
  Message *message = g_new0 (Message, 1);
  JsonObject *object;
  JsonNode *content;
  const char *role = NULL;
  guint r = 0;

  message->parts = g_ptr_array_new_with_free_func ((GDestroyNotify) part_free);
  g_ptr_array_add (self->messages, message);
  if (!JSON_NODE_HOLDS_OBJECT (node))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%s is %s, wanted an object with role and content", where,
        json_node_type_name (node));
  object = json_node_get_object (node);
  role = string_member (object, "role");
  while (role != NULL && r < G_N_ELEMENTS (roles)
      && strcmp (role, roles[r]) != 0)
    r++;
  if (role == NULL || r == G_N_ELEMENTS (roles))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%s has role '%s', wanted system, user or assistant", where,
        role == NULL ? "(none)" : role);
  message->role = (QomniRole) r;

  content = json_object_get_member (object, "content");
  if (content != NULL && JSON_NODE_HOLDS_VALUE (content)
      && json_node_get_value_type (content) == G_TYPE_STRING) {
    g_ptr_array_add (message->parts,
        part_new (PART_TEXT, json_node_get_string (content), NULL, NULL));
    return true;
  }
  if (content == NULL || !JSON_NODE_HOLDS_ARRAY (content))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%s has no content, wanted a string or a list of parts", where);

  JsonArray *parts = json_node_get_array (content);
  for (guint i = 0; i < json_array_get_length (parts); i++)
    if (!read_part (message, json_array_get_element (parts, i), where,
            directory, error))
      return false;
  if (message->role != QOMNI_ROLE_USER && message_has_media (message))
    return qomni_fail (error, QOMNI_ERROR_INPUT,
        "%s has media in the role '%s', which only a user may show", where,
        role);
  return true;
}

Conversation *
conversation_read (const char *path, GError ** error)
{
  g_autoptr (Conversation) self = g_new0 (Conversation, 1);
  g_autoptr (JsonNode) root = NULL;
  g_autofree char *directory = g_path_get_dirname (path);

  self->messages =
      g_ptr_array_new_with_free_func ((GDestroyNotify) message_free);
  root = qomni_json_read_file (path, QOMNI_MAX_JSON_BYTES, QOMNI_JSON_PLAIN,
      error);
  if (root == NULL)
    return NULL;
  if (!JSON_NODE_HOLDS_ARRAY (root)) {
    qomni_fail (error, QOMNI_ERROR_INPUT,
        "'%s' is %s, wanted a list of messages", path,
        json_node_type_name (root));
    return NULL;
  }

  JsonArray *messages = json_node_get_array (root);
  for (guint i = 0; i < json_array_get_length (messages); i++) {
    g_autofree char *where = g_strdup_printf ("'%s', message %u", path, i + 1);

    if (!read_message (self, json_array_get_element (messages, i), where,
            directory, error))
      return NULL;
  }
  if (self->messages->len == 0) {
    qomni_fail (error, QOMNI_ERROR_INPUT, "'%s' has no messages", path);
    return NULL;
  }
  return g_steal_pointer (&self);
}

char *
message_text (const Message * self)
{
  GString *text = g_string_new (NULL);

  for (guint i = 0; i < self->parts->len; i++) {
    const Part *part = g_ptr_array_index (self->parts, i);

    if (part->kind == PART_TEXT)
      g_string_append (text, part->text);
  }
  return g_string_free (text, FALSE);
}

bool
message_has_media (const Message * self)
{
  for (guint i = 0; i < self->parts->len; i++)
    if (((const Part *) g_ptr_array_index (self->parts, i))->kind != PART_TEXT)
      return true;
  return false;
}
