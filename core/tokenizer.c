/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * text -> ids -> text.
 *
 *   raw text -> added tokens cut out, leftmost and longest -> NFC -> words of
 *     the pre-tokenizer's pattern -> bytes -> merged by rank -> ids
 *
 * A token is kept as the bytes it stands for; the printable stand-ins that the
 * files write for bytes (GPT-2's map) are undone while loading. The pattern is
 * a splitter written by hand, since a backtracking one overflows its stack on
 * long runs, and the merges of a word come out of a heap, so every input costs
 * n log n at most. Two things of the files are read and checked, not obeyed:
 * the normaliser has to be NFC and the pattern the one that is written here.
 *
 * NFC is of GLib's Unicode version, the reference's is of an older one: ids can
 * differ where marks newer than Unicode 9 stand among others out of order.
 */

#include "tokenizer.h"

#include <string.h>

#include "json.h"

/* A text longer than this is refused. */
#define MAX_TEXT_BYTES ((size_t) 1 << 28)
/* So is a longer token; the longest published one has 128 bytes. */
#define MAX_TOKEN_BYTES 4096

#define PATTERN "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+" \
    "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

enum
{
  TOKEN_PRESENT = 1 << 0,
  TOKEN_ADDED = 1 << 1,
  TOKEN_SPECIAL = 1 << 2,       /* the rest is for added tokens */
  TOKEN_LSTRIP = 1 << 3,        /* takes the white space before it, … */
  TOKEN_RSTRIP = 1 << 4,        /* … after it */
  TOKEN_SINGLE_WORD = 1 << 5,   /* only where no word character touches it */
  TOKEN_NORMALIZED = 1 << 6,    /* looked for after NFC, not before */
};

typedef struct
{
  size_t start;                 /* in the arena */
  uint32_t length;
  uint8_t flags;
} Token;

/* left id, right id -> rank and joined id; open addressing. */
typedef struct
{
  int32_t left, right;          /* left -1: free */
  int32_t rank, joined;
} Merge;

/* Added tokens as a tree of bytes; node 0 is the root, 0 is "none". */
typedef struct
{
  int32_t child, sibling;
  int32_t id;                   /* -1: no token ends here */
  uint8_t byte;
} TrieNode;

typedef struct
{
  TrieNode *nodes;              /* NULL: no tokens */
  int32_t n;
  bool begins[256];             /* bytes that some token begins with */
} Trie;

struct _QomniTokenizer
{
  Token *tokens;                /* [n_tokens], by id */
  int32_t n_tokens;
  uint8_t *arena;               /* bytes of all tokens */
  size_t arena_used;

  int32_t *by_bytes;            /* [mask + 1] regular ids by bytes; -1: free */
  size_t by_bytes_mask;
  Merge *merges;                /* [mask + 1] */
  size_t merges_mask;
  int32_t byte_ids[256];        /* token of one byte, or -1 */

  GHashTable *added;            /* char * -> id */
  Trie raw, normalized;
};

/* Bytes and their stand-ins */

/* The byte that GPT-2's map writes as `c`, or -1: printable Latin-1 stands for
 * itself, the other 68 bytes are U+0100 and up, in order. */
static int
stand_in_byte (gunichar c)
{
  if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
    return (int) c;
  if (c < 256 || c >= 256 + 68)
    return -1;
  c -= 256;
  if (c <= 32)
    return (int) c;
  return c == 67 ? 173 : (int) c - 33 + 127;
}

/* The bytes that `text` stands for, no longer than text itself; false when a
 * character stands for none. */
static bool
undo_stand_ins (const char *text, size_t n, uint8_t * ret, size_t *ret_n)
{
  const char *end = text + n;

  *ret_n = 0;
  for (; text < end; text = g_utf8_next_char (text)) {
    int byte = stand_in_byte (g_utf8_get_char (text));

    if (byte < 0)
      return false;
    ret[(*ret_n)++] = (uint8_t) byte;
  }
  return true;
}

/* Tables */

static size_t
hash_bytes (const uint8_t * bytes, size_t n)
{
  uint64_t h = 0xcbf29ce484222325u;     /* FNV-1a */

  for (size_t i = 0; i < n; i++)
    h = (h ^ bytes[i]) * 0x100000001b3u;
  return (size_t) (h ^ (h >> 32));
}

static size_t
hash_pair (int32_t left, int32_t right)
{
  uint64_t h = ((uint64_t) (uint32_t) left << 32 | (uint32_t) right)
      * 0x9e3779b97f4a7c15u;

  return (size_t) (h ^ (h >> 29));
}

/* A power of two that leaves half the table free. */
static size_t
table_size (size_t n)
{
  size_t size = 16;

  while (size < 2 * n)
    size *= 2;
  return size;
}

/* The slot that holds these bytes, or the free one where they belong. */
static int32_t *
bytes_slot (const QomniTokenizer * self, const uint8_t * bytes, size_t n)
{
  size_t i = hash_bytes (bytes, n) & self->by_bytes_mask;

  for (;; i = (i + 1) & self->by_bytes_mask) {
    int32_t id = self->by_bytes[i];

    if (id < 0 || (self->tokens[id].length == n
            && memcmp (self->arena + self->tokens[id].start, bytes, n) == 0))
      return &self->by_bytes[i];
  }
}

static Merge *
merge_slot (const QomniTokenizer * self, int32_t left, int32_t right)
{
  size_t i = hash_pair (left, right) & self->merges_mask;

  for (;; i = (i + 1) & self->merges_mask) {
    Merge *m = &self->merges[i];

    if (m->left < 0 || (m->left == left && m->right == right))
      return m;
  }
}

static const Merge *
find_merge (const QomniTokenizer * self, int32_t left, int32_t right)
{
  const Merge *m = merge_slot (self, left, right);

  return m->left < 0 ? NULL : m;
}

/* The child of `node` for `byte`, or 0. */
static int32_t
trie_child (const Trie * t, int32_t node, uint8_t byte)
{
  int32_t child = t->nodes[node].child;

  while (child != 0 && t->nodes[child].byte != byte)
    child = t->nodes[child].sibling;
  return child;
}

static void
trie_add (Trie * t, const char *text, size_t n, int32_t id)
{
  int32_t node = 0;

  t->begins[(uint8_t) text[0]] = true;
  for (size_t i = 0; i < n; i++) {
    int32_t child = trie_child (t, node, (uint8_t) text[i]);

    if (child == 0) {
      child = t->n++;
      t->nodes[child].child = 0;
      t->nodes[child].sibling = t->nodes[node].child;
      t->nodes[child].id = -1;
      t->nodes[child].byte = (uint8_t) text[i];
      t->nodes[node].child = child;
    }
    node = child;
  }
  t->nodes[node].id = id;
}

/* The longest token that begins at `text`, or -1. */
static int32_t
trie_match (const Trie * t, const char *text, const char *end, size_t *ret_n)
{
  int32_t node = 0, ret = -1;
  const char *p = text;

  while (p < end && (node = trie_child (t, node, (uint8_t) * p)) != 0) {
    p++;
    if (t->nodes[node].id >= 0) {
      ret = t->nodes[node].id;
      *ret_n = (size_t) (p - text);
    }
  }
  return ret;
}

/* NFC. GLib's g_utf8_normalize() ends at a NUL and sorts combining marks in
 * quadratic time, so only its character data is used. */

/* Below U+0300 everything is NFC, and none of it is a combining mark. */
static bool
is_plainly_nfc (const char *text, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if ((uint8_t) text[i] >= 0xcc)
      return false;
  return true;
}

/* Sorts marks by their combining class, equal ones in the order they had. */
static void
sort_marks (gunichar * c, size_t n, gunichar * scratch)
{
  size_t first[256] = { 0, };
  size_t at = 0;

  for (size_t i = 0; i < n; i++)
    first[g_unichar_combining_class (c[i]) & 255]++;
  for (int k = 0; k < 256; k++) {
    size_t count = first[k];

    first[k] = at;
    at += count;
  }
  for (size_t i = 0; i < n; i++)
    scratch[first[g_unichar_combining_class (c[i]) & 255]++] = c[i];
  memcpy (c, scratch, n * sizeof *c);
}

static void
order_marks (gunichar * c, size_t n, gunichar * scratch)
{
  size_t i = 0;

  while (i < n) {
    size_t start = i;
    int class = 0, previous = 0;
    bool ordered = true;

    for (; i < n && (class = g_unichar_combining_class (c[i])) != 0; i++) {
      ordered &= previous <= class;
      previous = class;
    }
    if (!ordered)
      sort_marks (c + start, i - start, scratch);
    if (i == start)
      i++;
  }
}

/* Joins what can be joined; returns the new length. */
static size_t
compose (gunichar * c, size_t n)
{
  size_t starter = SIZE_MAX, n_out = 0;
  int previous = 0;             /* class of what was put out last */

  for (size_t i = 0; i < n; i++) {
    int class = g_unichar_combining_class (c[i]);
    bool near = starter != SIZE_MAX
        && (n_out == starter + 1 || previous < class);
    gunichar joined;

    if (near && g_unichar_compose (c[starter], c[i], &joined)) {
      c[starter] = joined;
      continue;
    }
    if (class == 0)
      starter = n_out;
    previous = class;
    c[n_out++] = c[i];
  }
  return n_out;
}

/* Canonical decompositions of `text`; `ret` NULL only counts them. */
static size_t
decompose (const char *text, size_t n, gunichar * ret)
{
  const char *end = text + n;
  size_t n_out = 0;

  for (; text < end; text = g_utf8_next_char (text)) {
    gunichar parts[G_UNICHAR_MAX_DECOMPOSITION_LENGTH];
    gsize n_parts = g_unichar_fully_decompose (g_utf8_get_char (text), FALSE,
        parts, G_N_ELEMENTS (parts));

    if (ret != NULL)
      memcpy (ret + n_out, parts, n_parts * sizeof *parts);
    n_out += n_parts;
  }
  return n_out;
}

/* g_free() the result; NULL when memory is short. */
static char *
nfc (const char *text, size_t n, size_t *ret_n)
{
  size_t count = decompose (text, n, NULL), bytes, n_out = 0;
  g_autofree gunichar *c = NULL;
  char *ret;

  if (!qomni_size_mul3 (count, 2, sizeof *c, &bytes))
    return NULL;
  c = g_try_malloc (MAX (bytes, 1));
  if (c == NULL)
    return NULL;
  decompose (text, n, c);
  order_marks (c, count, c + count);
  count = compose (c, count);

  for (size_t i = 0; i < count; i++)
    n_out += (size_t) g_unichar_to_utf8 (c[i], NULL);
  ret = g_try_malloc (n_out + 1);
  if (ret == NULL)
    return NULL;
  *ret_n = 0;
  for (size_t i = 0; i < count; i++)
    *ret_n += (size_t) g_unichar_to_utf8 (c[i], ret + *ret_n);
  ret[n_out] = '\0';
  return ret;
}

/* Reading the files */

/* An added token, as the files describe it. */
typedef struct
{
  char *text;
  int32_t id;
  uint8_t flags;
} Added;

/* Everything the files say, before any table is made. */
typedef struct
{
  const char *path;             /* of the directory */
  JsonNode *vocab_root, *merges_root;
  JsonObject *vocab;            /* in vocab_root */
  JsonArray *merges;            /* in vocab_root, or NULL: merges_text */
  char *merges_text;
  size_t merges_length;
  GArray *added;                /* Added */
} Source;

static void
added_clear (gpointer data)
{
  g_free (((Added *) data)->text);
}

static void
source_clear (Source * s)
{
  g_clear_pointer (&s->vocab_root, json_node_unref);
  g_clear_pointer (&s->merges_text, g_free);
  g_clear_pointer (&s->added, g_array_unref);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Source, source_clear)

static bool
file_exists (const char *dir, const char *name)
{
  g_autofree char *path = g_build_filename (dir, name, NULL);

  return g_file_test (path, G_FILE_TEST_EXISTS);
}

static JsonNode *
read_json (const char *dir, const char *name, GError ** error)
{
  g_autofree char *path = g_build_filename (dir, name, NULL);
  g_autoptr (JsonNode) root =
      qomni_json_read_file (path, QOMNI_MAX_TOKENIZER_BYTES,
      QOMNI_JSON_STRICT, error);

  if (root == NULL)
    return NULL;
  if (!JSON_NODE_HOLDS_OBJECT (root)) {
    qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s' holds no JSON object", path);
    return NULL;
  }
  return g_steal_pointer (&root);
}

/* The member `name` if it has this type, else NULL. */
static JsonNode *
member (JsonObject * object, const char *name, JsonNodeType type)
{
  JsonNode *node = json_object_get_member (object, name);

  return node != NULL && json_node_get_node_type (node) == type ? node : NULL;
}

static JsonObject *
member_object (JsonObject * object, const char *name)
{
  JsonNode *node = member (object, name, JSON_NODE_OBJECT);

  return node != NULL ? json_node_get_object (node) : NULL;
}

static JsonArray *
member_array (JsonObject * object, const char *name)
{
  JsonNode *node = member (object, name, JSON_NODE_ARRAY);

  return node != NULL ? json_node_get_array (node) : NULL;
}

static const char *
node_string (JsonNode * node)
{
  return node != NULL && json_node_get_value_type (node) == G_TYPE_STRING
      ? json_node_get_string (node) : NULL;
}

static const char *
member_string (JsonObject * object, const char *name)
{
  return node_string (member (object, name, JSON_NODE_VALUE));
}

static bool
member_true (JsonObject * object, const char *name)
{
  JsonNode *node = member (object, name, JSON_NODE_VALUE);

  return node != NULL && json_node_get_value_type (node) == G_TYPE_BOOLEAN
      && json_node_get_boolean (node);
}

static bool
check_id (JsonNode * node, const char *file, const char *text, int32_t * ret,
    GError ** error)
{
  int64_t id;

  if (node == NULL || !JSON_NODE_HOLDS_VALUE (node)
      || json_node_get_value_type (node) != G_TYPE_INT64)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "%s: the id of '%s' is not an integer", file, text);
  id = json_node_get_int (node);
  if (id < 0 || id >= QOMNI_MAX_VOCABULARY)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: the id of '%s' is %"
        G_GINT64_FORMAT ", expected 0 to %d", file, text, id,
        QOMNI_MAX_VOCABULARY - 1);
  *ret = (int32_t) id;
  return true;
}

/* A later file may repeat what an earlier one said of the same id and text;
 * the contradictions are found when the tables are made. */
static bool
add_added (Source * s, const char *file, const char *text, int32_t id,
    uint8_t flags, GError ** error)
{
  Added added = { NULL, id, flags | TOKEN_PRESENT | TOKEN_ADDED };

  if (text == NULL || *text == '\0' || strlen (text) > MAX_TOKEN_BYTES)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "%s: added token %d has no text of 1 to %d bytes", file, id,
        MAX_TOKEN_BYTES);
  if (s->added->len >= QOMNI_MAX_VOCABULARY)
    return qomni_fail (error, QOMNI_ERROR_LIMIT,
        "%s: more than %d added tokens", file, QOMNI_MAX_VOCABULARY);
  added.text = g_strdup (text);
  g_array_append_val (s->added, added);
  return true;
}

static uint8_t
added_flags (JsonObject * token)
{
  return (member_true (token, "special") ? TOKEN_SPECIAL : 0)
      | (member_true (token, "lstrip") ? TOKEN_LSTRIP : 0)
      | (member_true (token, "rstrip") ? TOKEN_RSTRIP : 0)
      | (member_true (token, "single_word") ? TOKEN_SINGLE_WORD : 0)
      | (member_true (token, "normalized") ? TOKEN_NORMALIZED : 0);
}

/* tokenizer_config.json: {"added_tokens_decoder": {"151643": {…}, …}} */
static bool
read_added_decoder (Source * s, JsonObject * config, GError ** error)
{
  static const char file[] = "tokenizer_config.json";
  JsonObject *decoder = member_object (config, "added_tokens_decoder");
  JsonObjectIter iter;
  const char *key;
  JsonNode *node;

  if (decoder == NULL)
    return true;
  json_object_iter_init_ordered (&iter, decoder);
  while (json_object_iter_next_ordered (&iter, &key, &node)) {
    guint64 id;

    if (!g_ascii_string_to_unsigned (key, 10, 0, QOMNI_MAX_VOCABULARY - 1,
            &id, NULL))
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "%s: added token id '%s', expected 0 to %d", file, key,
          QOMNI_MAX_VOCABULARY - 1);
    if (!JSON_NODE_HOLDS_OBJECT (node))
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "%s: added token '%s' is not an object", file, key);
    if (!add_added (s, file, member_string (json_node_get_object (node),
                "content"), (int32_t) id,
            added_flags (json_node_get_object (node)), error))
      return false;
  }
  return true;
}

/* added_tokens.json: {"<|im_start|>": 151644, …}. It has no flags; what only it
 * names is special, so that a text cannot spell it. */
static bool
read_added_map (Source * s, JsonObject * map, GError ** error)
{
  static const char file[] = "added_tokens.json";
  g_autoptr (GHashTable) known = g_hash_table_new (NULL, NULL);
  JsonObjectIter iter;
  const char *text;
  JsonNode *node;

  for (guint i = 0; i < s->added->len; i++)
    g_hash_table_add (known,
        GINT_TO_POINTER (g_array_index (s->added, Added, i).id));
  json_object_iter_init_ordered (&iter, map);
  while (json_object_iter_next_ordered (&iter, &text, &node)) {
    int32_t id;

    if (!check_id (node, file, text, &id, error))
      return false;
    if (!g_hash_table_contains (known, GINT_TO_POINTER (id))
        && !add_added (s, file, text, id, TOKEN_SPECIAL, error))
      return false;
  }
  return true;
}

/* tokenizer.json: {"added_tokens": [{"id": 151643, …}, …]} */
static bool
read_added_list (Source * s, JsonObject * root, GError ** error)
{
  static const char file[] = "tokenizer.json";
  JsonArray *list = member_array (root, "added_tokens");
  guint n = list != NULL ? json_array_get_length (list) : 0;

  for (guint i = 0; i < n; i++) {
    JsonNode *node = json_array_get_element (list, i);
    JsonObject *token;
    const char *text;
    int32_t id;

    if (!JSON_NODE_HOLDS_OBJECT (node))
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "%s: added token %u is not an object", file, i);
    token = json_node_get_object (node);
    text = member_string (token, "content");
    if (!check_id (json_object_get_member (token, "id"), file,
            text != NULL ? text : "", &id, error)
        || !add_added (s, file, text, id, added_flags (token), error))
      return false;
  }
  return true;
}

/* The pattern of the first Split in a tokenizer.json, or NULL. */
static const char *
split_pattern (JsonObject * pre)
{
  JsonArray *steps = member_array (pre, "pretokenizers");
  JsonObject *pattern = member_object (pre, "pattern");
  const char *ret = NULL;

  if (pattern != NULL)
    return member_string (pattern, "Regex");
  for (guint i = 0; steps != NULL && i < json_array_get_length (steps); i++) {
    JsonNode *node = json_array_get_element (steps, i);

    if (ret == NULL && JSON_NODE_HOLDS_OBJECT (node)
        && (pattern = member_object (json_node_get_object (node),
                "pattern")) != NULL)
      ret = member_string (pattern, "Regex");
  }
  return ret;
}

/* Whether a tokenizer.json describes what this file does. */
static bool
check_pipeline (JsonObject * root, JsonObject * model, GError ** error)
{
  JsonObject *normalizer = member_object (root, "normalizer");
  JsonObject *pre = member_object (root, "pre_tokenizer");
  const char *type = member_string (model, "type");
  const char *pattern = pre != NULL ? split_pattern (pre) : NULL;

  if (type != NULL && strcmp (type, "BPE") != 0)
    return qomni_fail (error, QOMNI_ERROR_UNSUPPORTED,
        "tokenizer.json: the model is '%s', expected 'BPE'", type);
  if (member_true (model, "byte_fallback")
      || member_true (model, "ignore_merges"))
    return qomni_fail (error, QOMNI_ERROR_UNSUPPORTED,
        "tokenizer.json: byte_fallback or ignore_merges is set");
  type = normalizer != NULL ? member_string (normalizer, "type") : NULL;
  if (type == NULL || strcmp (type, "NFC") != 0)
    return qomni_fail (error, QOMNI_ERROR_UNSUPPORTED,
        "tokenizer.json: the normalizer is '%s', expected 'NFC'",
        type != NULL ? type : "none");
  if (pattern == NULL || strcmp (pattern, PATTERN) != 0)
    return qomni_fail (error, QOMNI_ERROR_UNSUPPORTED,
        "tokenizer.json: the pre-tokenizer splits at '%s', expected '%s'",
        pattern != NULL ? pattern : "nothing", PATTERN);
  return true;
}

static bool
read_tokenizer_json (Source * s, GError ** error)
{
  JsonObject *root, *model;

  s->vocab_root = read_json (s->path, "tokenizer.json", error);
  if (s->vocab_root == NULL)
    return false;
  root = json_node_get_object (s->vocab_root);
  model = member_object (root, "model");
  if (model == NULL)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "tokenizer.json: no object 'model'");
  s->vocab = member_object (model, "vocab");
  s->merges = member_array (model, "merges");
  if (s->vocab == NULL || s->merges == NULL)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "tokenizer.json: the model lacks an object 'vocab' or an array "
        "'merges'");
  return check_pipeline (root, model, error)
      && read_added_list (s, root, error);
}

static bool
read_vocab_and_merges (Source * s, GError ** error)
{
  g_autofree char *path = g_build_filename (s->path, "merges.txt", NULL);

  s->vocab_root = read_json (s->path, "vocab.json", error);
  if (s->vocab_root == NULL)
    return false;
  s->vocab = json_node_get_object (s->vocab_root);
  s->merges_text = qomni_read_file (path, QOMNI_MAX_TOKENIZER_BYTES,
      &s->merges_length, error);
  if (s->merges_text == NULL)
    return false;
  if (!g_utf8_validate_len (s->merges_text, s->merges_length, NULL))
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s' is not UTF-8", path);
  return true;
}

static bool
read_added_files (Source * s, bool have_list, GError ** error)
{
  g_autoptr (JsonNode) config = NULL;
  g_autoptr (JsonNode) map = NULL;
  g_autoptr (JsonNode) list = NULL;

  if (file_exists (s->path, "tokenizer_config.json")) {
    config = read_json (s->path, "tokenizer_config.json", error);
    if (config == NULL
        || !read_added_decoder (s, json_node_get_object (config), error))
      return false;
  }
  if (s->added->len == 0 && !have_list
      && file_exists (s->path, "tokenizer.json")) {
    list = read_json (s->path, "tokenizer.json", error);
    if (list == NULL
        || !read_added_list (s, json_node_get_object (list), error))
      return false;
  }
  if (file_exists (s->path, "added_tokens.json")) {
    map = read_json (s->path, "added_tokens.json", error);
    if (map == NULL || !read_added_map (s, json_node_get_object (map), error))
      return false;
  }
  return true;
}

static bool
read_source (Source * s, GError ** error)
{
  bool split = file_exists (s->path, "vocab.json");

  if (!split && !file_exists (s->path, "tokenizer.json"))
    return qomni_fail (error, QOMNI_ERROR_NOT_FOUND,
        "'%s' has neither vocab.json with merges.txt nor tokenizer.json",
        s->path);
  if (split && !file_exists (s->path, "merges.txt")
      && file_exists (s->path, "tokenizer.json"))
    split = false;
  if (!(split ? read_vocab_and_merges (s, error)
          : read_tokenizer_json (s, error)))
    return false;
  return read_added_files (s, !split, error);
}

/* Making the tables */

/* Room for all tokens: the ids' range and the bytes of their texts. */
static bool
make_room (QomniTokenizer * self, const Source * s, GError ** error)
{
  size_t n_bytes = 0, n_regular = 0, size;
  int32_t last = -1;
  JsonObjectIter iter;
  const char *text;
  JsonNode *node;

  json_object_iter_init_ordered (&iter, s->vocab);
  while (json_object_iter_next_ordered (&iter, &text, &node)) {
    int32_t id;

    if (!check_id (node, "vocabulary", text, &id, error))
      return false;
    if (*text == '\0' || strlen (text) > 2 * MAX_TOKEN_BYTES)
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "vocabulary: token %d has no text of 1 to %d bytes", id,
          MAX_TOKEN_BYTES);
    last = MAX (last, id);
    n_bytes += strlen (text);
    n_regular++;
  }
  for (guint i = 0; i < s->added->len; i++) {
    const Added *a = &g_array_index (s->added, Added, i);

    last = MAX (last, a->id);
    n_bytes += strlen (a->text);
  }
  if (n_regular == 0 || n_regular > QOMNI_MAX_VOCABULARY)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "vocabulary: %zu tokens, expected 1 to %d", n_regular,
        QOMNI_MAX_VOCABULARY);

  self->n_tokens = last + 1;
  size = table_size (n_regular);
  self->by_bytes_mask = size - 1;
  self->tokens = g_try_new0 (Token, (size_t) self->n_tokens);
  self->arena = g_try_malloc (MAX (n_bytes, 1));
  self->by_bytes = g_try_new (int32_t, size);
  if (self->tokens == NULL || self->arena == NULL || self->by_bytes == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for a vocabulary of %zu tokens", n_regular);
  for (size_t i = 0; i < size; i++)
    self->by_bytes[i] = -1;
  return true;
}

/* Stores the bytes that `text` stands for, or text itself when it is not made
 * of stand-ins. Returns whether it is. */
static bool
store_token (QomniTokenizer * self, int32_t id, const char *text,
    uint8_t flags)
{
  Token *t = &self->tokens[id];
  size_t n = strlen (text), length;
  bool mapped;

  t->start = self->arena_used;
  t->flags = flags;
  mapped = undo_stand_ins (text, n, self->arena + t->start, &length);
  if (!mapped) {
    memcpy (self->arena + t->start, text, n);
    length = n;
  }
  t->length = (uint32_t) length;
  self->arena_used += length;
  return mapped;
}

static bool
fill_vocabulary (QomniTokenizer * self, JsonObject * vocab, GError ** error)
{
  JsonObjectIter iter;
  const char *text;
  JsonNode *node;

  json_object_iter_init_ordered (&iter, vocab);
  while (json_object_iter_next_ordered (&iter, &text, &node)) {
    int32_t id = (int32_t) json_node_get_int (node);
    const Token *t = &self->tokens[id];

    if (t->flags != 0)
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "vocabulary: '%s' and another token have id %d", text, id);
    /* No merge leads to a token that is not made of stand-ins: it can be read,
     * but not written. */
    if (store_token (self, id, text, TOKEN_PRESENT))
      *bytes_slot (self, self->arena + t->start, t->length) = id;
  }

  for (int byte = 0; byte < 256; byte++) {
    uint8_t b = (uint8_t) byte;

    self->byte_ids[byte] = *bytes_slot (self, &b, 1);
  }
  return true;
}

/* Added tokens may lie anywhere, but a hole below a regular id means that the
 * vocabulary lost a line. */
static bool
check_dense (const QomniTokenizer * self, GError ** error)
{
  int32_t last = self->n_tokens - 1;

  while (last > 0 && (self->tokens[last].flags & TOKEN_ADDED
          || self->tokens[last].flags == 0))
    last--;
  for (int32_t id = 0; id < last; id++)
    if (self->tokens[id].flags == 0)
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "vocabulary: no token has id %d, although ids up to %d do", id, last);
  return true;
}

static bool
fill_added (QomniTokenizer * self, const Source * s, GError ** error)
{
  for (guint i = 0; i < s->added->len; i++) {
    const Added *a = &g_array_index (s->added, Added, i);
    Token *t = &self->tokens[a->id];
    JsonNode *twin;
    gpointer known;

    if (g_hash_table_lookup_extended (self->added, a->text, NULL, &known)) {
      if (GPOINTER_TO_INT (known) != a->id)
        return qomni_fail (error, QOMNI_ERROR_FORMAT,
            "added token '%s' has ids %d and %d", a->text,
            GPOINTER_TO_INT (known), a->id);
      continue;                 /* said before, by the file that counts more */
    }
    if (t->flags & TOKEN_ADDED)
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "added token '%s' and another one have id %d", a->text, a->id);
    twin = json_object_get_member (s->vocab, a->text);
    if (twin != NULL && json_node_get_int (twin) != a->id)
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "added token '%s' has ids %d and, in the vocabulary, %d", a->text,
          a->id, (int) json_node_get_int (twin));
    if (twin == NULL && (t->flags & TOKEN_PRESENT))
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "added token '%s' and a token of the vocabulary have id %d",
          a->text, a->id);
    if (twin == NULL)
      store_token (self, a->id, a->text, a->flags);
    else
      t->flags = a->flags;
    g_hash_table_insert (self->added, g_strdup (a->text),
        GINT_TO_POINTER (a->id));
  }
  return true;
}

static bool
fill_trie (QomniTokenizer * self, Trie * t, uint8_t wanted, GError ** error)
{
  size_t n_bytes = 0, size;
  GHashTableIter iter;
  gpointer text, id;

  g_hash_table_iter_init (&iter, self->added);
  while (g_hash_table_iter_next (&iter, &text, &id))
    if ((self->tokens[GPOINTER_TO_INT (id)].flags & TOKEN_NORMALIZED) == wanted)
      n_bytes += 3 * strlen (text);     /* what NFC can make of it */
  if (n_bytes == 0)
    return true;
  if (n_bytes >= INT32_MAX || !qomni_size_mul (n_bytes + 1, sizeof *t->nodes,
          &size) || (t->nodes = g_try_malloc (size)) == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY,
        "no memory for added tokens of %zu bytes", n_bytes);
  t->nodes[0] = (TrieNode) { 0, 0, -1, 0 };
  t->n = 1;

  g_hash_table_iter_init (&iter, self->added);
  while (g_hash_table_iter_next (&iter, &text, &id)) {
    g_autofree char *normal = NULL;
    size_t n = strlen (text);

    if ((self->tokens[GPOINTER_TO_INT (id)].flags & TOKEN_NORMALIZED) != wanted)
      continue;
    if (wanted) {
      normal = nfc (text, n, &n);
      if (normal == NULL)
        return qomni_fail (error, QOMNI_ERROR_MEMORY,
            "no memory for added token '%s'", (char *) text);
    }
    trie_add (t, normal != NULL ? normal : text, n, GPOINTER_TO_INT (id));
  }
  return true;
}

/* The regular token that `text` [n] writes, or -1. */
static int32_t
find_text (const QomniTokenizer * self, const char *text, size_t n,
    uint8_t * bytes /* [n] */ , size_t *ret_n)
{
  if (n == 0 || !undo_stand_ins (text, n, bytes, ret_n))
    return -1;
  return *bytes_slot (self, bytes, *ret_n);
}

/* One line of the merges. */
typedef struct
{
  const char *left, *right;
  size_t n_left, n_right;
  int32_t rank;
  const char *where;            /* for the message: "merges.txt line", 12 */
  unsigned number;
} MergeLine;

static bool
unknown_part (const MergeLine * line, const char *part, size_t n,
    GError ** error)
{
  return qomni_fail (error, QOMNI_ERROR_FORMAT,
      "%s %u: '%.*s' is not in the vocabulary", line->where, line->number,
      (int) n, part);
}

static bool
add_merge (QomniTokenizer * self, const MergeLine * line, GError ** error)
{
  uint8_t bytes[4 * MAX_TOKEN_BYTES];
  size_t a = 0, b = 0;
  int32_t left = -1, right = -1, joined;
  Merge *slot;

  if (line->n_left <= 2 * MAX_TOKEN_BYTES)
    left = find_text (self, line->left, line->n_left, bytes, &a);
  if (left < 0)
    return unknown_part (line, line->left, line->n_left, error);
  if (line->n_right <= 2 * MAX_TOKEN_BYTES)
    right = find_text (self, line->right, line->n_right, bytes + a, &b);
  if (right < 0)
    return unknown_part (line, line->right, line->n_right, error);
  joined = *bytes_slot (self, bytes, a + b);
  if (joined < 0)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "%s %u: '%.*s%.*s' is not in the vocabulary", line->where,
        line->number, (int) line->n_left, line->left, (int) line->n_right,
        line->right);

  slot = merge_slot (self, left, right);
  if (slot->left >= 0)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "%s %u: '%.*s %.*s' is there twice", line->where, line->number,
        (int) line->n_left, line->left, (int) line->n_right, line->right);
  *slot = (Merge) { left, right, line->rank, joined };
  return true;
}

/* `text` is "left right". */
static bool
add_merge_text (QomniTokenizer * self, MergeLine * line, const char *text,
    size_t n, GError ** error)
{
  const char *space = memchr (text, ' ', n);

  if (space == NULL)
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "%s %u: '%.*s', expected two tokens", line->where, line->number,
        (int) MIN (n, 80), text);
  line->left = text;
  line->n_left = (size_t) (space - text);
  line->right = space + 1;
  line->n_right = n - line->n_left - 1;
  return add_merge (self, line, error);
}

static bool
make_merges_room (QomniTokenizer * self, size_t n, GError ** error)
{
  size_t size = table_size (n);

  self->merges_mask = size - 1;
  self->merges = g_try_new (Merge, size);
  if (self->merges == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for %zu merges",
        n);
  for (size_t i = 0; i < size; i++)
    self->merges[i].left = -1;
  return true;
}

/* merges.txt; the line "#version: 0.2" and empty ones at the end are none. */
static bool
fill_merges_text (QomniTokenizer * self, const char *text, size_t n,
    GError ** error)
{
  const char *end, *p;
  MergeLine line = {.where = "merges.txt line" };
  size_t n_lines = 1;

  while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
    n--;
  end = text + n;
  for (p = text; p < end; p++)
    n_lines += *p == '\n';
  if (!make_merges_room (self, n_lines, error))
    return false;

  for (p = text; p < end;) {
    const char *newline = memchr (p, '\n', (size_t) (end - p));
    const char *stop = newline != NULL ? newline : end;
    size_t length = (size_t) (stop - p);

    line.number++;
    if (length > 0 && p[length - 1] == '\r')
      length--;
    if (!g_str_has_prefix (p, "#version")) {
      if (!add_merge_text (self, &line, p, length, error))
        return false;
      line.rank++;
    }
    p = newline != NULL ? newline + 1 : end;
  }
  return true;
}

/* model.merges of a tokenizer.json: "left right" or ["left", "right"]. */
static bool
fill_merges_array (QomniTokenizer * self, JsonArray * merges, GError ** error)
{
  MergeLine line = {.where = "tokenizer.json merge" };
  guint n = json_array_get_length (merges);

  if (!make_merges_room (self, n, error))
    return false;
  for (guint i = 0; i < n; i++) {
    JsonNode *node = json_array_get_element (merges, i);
    const char *text = NULL;
    JsonArray *pair;

    line.rank = (int32_t) i;
    line.number = i;
    if (JSON_NODE_HOLDS_VALUE (node) && (text = node_string (node)) != NULL) {
      if (!add_merge_text (self, &line, text, strlen (text), error))
        return false;
      continue;
    }
    pair = JSON_NODE_HOLDS_ARRAY (node) ? json_node_get_array (node) : NULL;
    if (pair == NULL || json_array_get_length (pair) != 2
        || !JSON_NODE_HOLDS_VALUE (json_array_get_element (pair, 0))
        || !JSON_NODE_HOLDS_VALUE (json_array_get_element (pair, 1))
        || (line.left = node_string (json_array_get_element (pair, 0))) == NULL
        || (line.right = node_string (json_array_get_element (pair,
                    1))) == NULL)
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "%s %u: expected two tokens", line.where, line.number);
    line.n_left = strlen (line.left);
    line.n_right = strlen (line.right);
    if (!add_merge (self, &line, error))
      return false;
  }
  return true;
}

QomniTokenizer *
qomni_tokenizer_read (const char *path, GError ** error)
{
  g_auto (Source) s = {.path = path };
  g_autoptr (QomniTokenizer) self = g_new0 (QomniTokenizer, 1);

  s.added = g_array_new (FALSE, FALSE, sizeof (Added));
  g_array_set_clear_func (s.added, added_clear);
  self->added = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  if (!read_source (&s, error)
      || !make_room (self, &s, error)
      || !fill_vocabulary (self, s.vocab, error)
      || !fill_added (self, &s, error)
      || !check_dense (self, error)
      || !fill_trie (self, &self->raw, 0, error)
      || !fill_trie (self, &self->normalized, TOKEN_NORMALIZED, error)
      || !(s.merges != NULL ? fill_merges_array (self, s.merges, error)
          : fill_merges_text (self, s.merges_text, s.merges_length, error))) {
    g_prefix_error (error, "'%s': ", path);
    return NULL;
  }
  return g_steal_pointer (&self);
}

void
qomni_tokenizer_free (QomniTokenizer * self)
{
  if (self == NULL)
    return;
  g_free (self->tokens);
  g_free (self->arena);
  g_free (self->by_bytes);
  g_free (self->merges);
  g_free (self->raw.nodes);
  g_free (self->normalized.nodes);
  g_clear_pointer (&self->added, g_hash_table_unref);
  g_free (self);
}

int32_t
qomni_tokenizer_id (const QomniTokenizer * self, const char *token)
{
  gpointer id;

  if (g_hash_table_lookup_extended (self->added, token, NULL, &id))
    return GPOINTER_TO_INT (id);
  return *bytes_slot (self, (const uint8_t *) token, strlen (token));
}

int32_t
qomni_tokenizer_size (const QomniTokenizer * self)
{
  return self->n_tokens;
}

static const Token *
token_of (const QomniTokenizer * self, int32_t id)
{
  if (id < 0 || id >= self->n_tokens || self->tokens[id].flags == 0)
    return NULL;
  return &self->tokens[id];
}

bool
qomni_tokenizer_is_special (const QomniTokenizer * self, int32_t id)
{
  const Token *t = token_of (self, id);

  return t != NULL && (t->flags & TOKEN_SPECIAL);
}

/* Splitting into words */

typedef enum
{
  CLASS_END,
  CLASS_LETTER,                 /* \p{L} */
  CLASS_NUMBER,                 /* \p{N} */
  CLASS_NEWLINE,                /* [\r\n], also white space */
  CLASS_SPACE,                  /* the rest of \s */
  CLASS_OTHER,                  /* [^\s\p{L}\p{N}]: marks, too */
} CharClass;

/* Letters and numbers of Unicode 15.1 and 16. The reference's pattern knows
 * them; with this table the words do not depend on how old GLib is. */
static const gunichar new_letters[][2] = {
  {0x1c89, 0x1c8a}, {0xa7cb, 0xa7cd}, {0xa7da, 0xa7dc}, {0x105c0, 0x105f3},
  {0x10d4a, 0x10d65}, {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4},
  {0x11380, 0x11389}, {0x1138b, 0x1138b}, {0x1138e, 0x1138e},
  {0x11390, 0x113b5}, {0x113b7, 0x113b7}, {0x113d1, 0x113d1},
  {0x113d3, 0x113d3}, {0x11bc0, 0x11be0}, {0x13460, 0x143fa},
  {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff},
  {0x1e5d0, 0x1e5ed}, {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d},
};

static const gunichar new_numbers[][2] = {
  {0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9},
  {0x16130, 0x16139}, {0x16d70, 0x16d79}, {0x1ccf0, 0x1ccf9},
  {0x1e5f1, 0x1e5fa},
};

static bool
in_ranges (gunichar c, const gunichar (*ranges)[2], size_t n)
{
  for (size_t i = 0; i < n; i++)
    if (c >= ranges[i][0] && c <= ranges[i][1])
      return true;
  return false;
}

static CharClass
class_of (gunichar c)
{
  /* Unicode's White_Space, which is not what g_unichar_isspace() tells. */
  if (c == '\r' || c == '\n')
    return CLASS_NEWLINE;
  if (c == ' ' || (c >= 9 && c <= 13) || c == 0x85 || c == 0xa0 || c == 0x1680
      || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029
      || c == 0x202f || c == 0x205f || c == 0x3000)
    return CLASS_SPACE;

  switch (g_unichar_type (c)) {
    case G_UNICODE_LOWERCASE_LETTER:
    case G_UNICODE_MODIFIER_LETTER:
    case G_UNICODE_OTHER_LETTER:
    case G_UNICODE_TITLECASE_LETTER:
    case G_UNICODE_UPPERCASE_LETTER:
      return CLASS_LETTER;
    case G_UNICODE_DECIMAL_NUMBER:
    case G_UNICODE_LETTER_NUMBER:
    case G_UNICODE_OTHER_NUMBER:
      return CLASS_NUMBER;
    case G_UNICODE_UNASSIGNED:
      if (in_ranges (c, new_letters, G_N_ELEMENTS (new_letters)))
        return CLASS_LETTER;
      if (in_ranges (c, new_numbers, G_N_ELEMENTS (new_numbers)))
        return CLASS_NUMBER;
      return CLASS_OTHER;
    default:
      return CLASS_OTHER;
  }
}

static CharClass
class_at (const char *p, const char *end)
{
  return p < end ? class_of (g_utf8_get_char (p)) : CLASS_END;
}

static const char *
skip_class (const char *p, const char *end, CharClass class)
{
  while (class_at (p, end) == class)
    p = g_utf8_next_char (p);
  return p;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d) at `p`, or NULL. */
static const char *
skip_contraction (const char *p, const char *end)
{
  char first, second;

  if (*p != '\'' || end - p < 2)
    return NULL;
  if (end - p >= 3 && memcmp (p + 1, "\xc5\xbf", 2) == 0)
    return p + 3;               /* U+017F, a long s, folds to s */
  first = g_ascii_tolower (p[1]);
  if (first == 's' || first == 't' || first == 'm' || first == 'd')
    return p + 2;
  second = end - p >= 3 ? g_ascii_tolower (p[2]) : '\0';
  if (((first == 'r' || first == 'v') && second == 'e')
      || (first == 'l' && second == 'l'))
    return p + 3;
  return NULL;
}

/* End of the word at `p` < `end`; the alternatives of PATTERN in its order. */
static const char *
word_end (const char *p, const char *end)
{
  CharClass class = class_at (p, end);
  const char *second = g_utf8_next_char (p), *q, *last;
  const char *after_newline = NULL;

  if ((q = skip_contraction (p, end)) != NULL)
    return q;

  /* [^\r\n\p{L}\p{N}]?\p{L}+ */
  if (class == CLASS_LETTER)
    return skip_class (second, end, CLASS_LETTER);
  if ((class == CLASS_OTHER || class == CLASS_SPACE)
      && class_at (second, end) == CLASS_LETTER)
    return skip_class (second, end, CLASS_LETTER);

  if (class == CLASS_NUMBER)
    return second;

  /* ` ?[^\s\p{L}\p{N}]+[\r\n]*` */
  q = *p == ' ' ? second : p;
  if (class_at (q, end) == CLASS_OTHER)
    return skip_class (skip_class (q, end, CLASS_OTHER), end, CLASS_NEWLINE);

  /* White space: to its last line break, or all but the last character, which
   * may belong to what follows. */
  for (q = last = p;; q = g_utf8_next_char (q)) {
    class = class_at (q, end);
    if (class != CLASS_SPACE && class != CLASS_NEWLINE)
      break;
    last = q;
    if (class == CLASS_NEWLINE)
      after_newline = q + 1;
  }
  if (after_newline != NULL)
    return after_newline;
  return q == end || last == p ? q : last;
}

/* Encoding */

/* A piece of the word that is being merged; they form a list. */
typedef struct
{
  int32_t id;
  int32_t previous, next;       /* -1: none */
  bool merged;                  /* into the one before it */
} Symbol;

/* "Join the symbol at `at` with its next"; may be out of date. */
typedef struct
{
  int32_t rank, at, joined;
} Join;

typedef struct
{
  const QomniTokenizer *tokenizer;
  bool special;
  GError **error;

  int32_t *ids;
  size_t n_ids, ids_room;

  Symbol *symbols;              /* [room] */
  Join *joins;                  /* [2 * room], a heap */
  size_t room, n_joins;
} Encoder;

static bool
emit (Encoder * e, int32_t id)
{
  if (e->n_ids == e->ids_room) {
    size_t room = MAX (64, 2 * e->ids_room);
    int32_t *ids = g_try_renew (int32_t, e->ids, room);

    if (ids == NULL)
      return qomni_fail (e->error, QOMNI_ERROR_MEMORY, "no memory for %zu ids",
          room);
    e->ids = ids;
    e->ids_room = room;
  }
  e->ids[e->n_ids++] = id;
  return true;
}

static bool
reserve_word (Encoder * e, size_t n)
{
  size_t room = MAX (64, e->room);

  if (n <= e->room)
    return true;
  while (room < n)
    room *= 2;
  g_clear_pointer (&e->symbols, g_free);
  g_clear_pointer (&e->joins, g_free);
  e->room = 0;
  e->symbols = g_try_new (Symbol, room);
  e->joins = g_try_new (Join, 2 * room);
  if (e->symbols == NULL || e->joins == NULL)
    return qomni_fail (e->error, QOMNI_ERROR_MEMORY,
        "no memory for a word of %zu bytes", n);
  e->room = room;
  return true;
}

static bool
sooner (const Join * a, const Join * b)
{
  return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

/* Asks for the symbol at `at` and its next to be joined, if a merge does. */
static void
push_join (Encoder * e, int32_t at)
{
  const Symbol *s = &e->symbols[at];
  const Merge *m;
  size_t i = e->n_joins;
  Join join;

  if (s->next < 0)
    return;
  m = find_merge (e->tokenizer, s->id, e->symbols[s->next].id);
  if (m == NULL)
    return;
  join = (Join) { m->rank, at, m->joined };
  e->n_joins++;
  for (; i > 0 && sooner (&join, &e->joins[(i - 1) / 2]); i = (i - 1) / 2)
    e->joins[i] = e->joins[(i - 1) / 2];
  e->joins[i] = join;
}

static Join
pop_join (Encoder * e)
{
  Join ret = e->joins[0], last = e->joins[--e->n_joins];
  size_t i = 0;

  for (;;) {
    size_t child = 2 * i + 1;

    if (child >= e->n_joins)
      break;
    if (child + 1 < e->n_joins
        && sooner (&e->joins[child + 1], &e->joins[child]))
      child++;
    if (!sooner (&e->joins[child], &last))
      break;
    e->joins[i] = e->joins[child];
    i = child;
  }
  e->joins[i] = last;
  return ret;
}

/* Joins by rank, leftmost first, until no merge is left. Each join takes one
 * request from the heap and makes two at most, so 2 n is room enough. */
static void
merge_word (Encoder * e)
{
  while (e->n_joins > 0) {
    Join join = pop_join (e);
    Symbol *s = &e->symbols[join.at], *right;
    const Merge *m;

    if (s->merged || s->next < 0)
      continue;
    right = &e->symbols[s->next];
    /* Out of date, unless what stands there now joins to the same. */
    m = find_merge (e->tokenizer, s->id, right->id);
    if (m == NULL || m->joined != join.joined)
      continue;

    right->merged = true;
    s->id = join.joined;
    s->next = right->next;
    if (s->next >= 0)
      e->symbols[s->next].previous = join.at;
    if (s->previous >= 0)
      push_join (e, s->previous);
    push_join (e, join.at);
  }
}

static bool
encode_word (Encoder * e, const char *word, size_t n)
{
  int32_t last = (int32_t) n - 1;

  if (!reserve_word (e, n))
    return false;
  for (int32_t i = 0; i <= last; i++) {
    uint8_t byte = (uint8_t) word[i];

    if (e->tokenizer->byte_ids[byte] < 0)
      return qomni_fail (e->error, QOMNI_ERROR_FORMAT,
          "the vocabulary has no token for byte 0x%02x", byte);
    e->symbols[i] = (Symbol) { e->tokenizer->byte_ids[byte], i - 1,
        i < last ? i + 1 : -1, false };
  }
  e->n_joins = 0;
  for (int32_t i = 0; i < last; i++)
    push_join (e, i);
  merge_word (e);
  for (int32_t i = 0; i >= 0; i = e->symbols[i].next)
    if (!emit (e, e->symbols[i].id))
      return false;
  return true;
}

static bool
encode_words (Encoder * e, const char *text, size_t n)
{
  const char *end = text + n;

  while (text < end) {
    const char *stop = word_end (text, end);

    if (!encode_word (e, text, (size_t) (stop - text)))
      return false;
    text = stop;
  }
  return true;
}

typedef bool (*EncodePiece) (Encoder * e, const char *text, size_t n);

/* \w, as far as it matters next to a token of whole words. */
static bool
is_word_char (const char *p)
{
  gunichar c = g_utf8_get_char (p);

  switch (g_unichar_type (c)) {
    case G_UNICODE_DECIMAL_NUMBER:
    case G_UNICODE_LETTER_NUMBER:
    case G_UNICODE_CONNECT_PUNCTUATION:
      return true;
    default:
      return class_of (c) == CLASS_LETTER || g_unichar_ismark (c)
          || c == 0x200c || c == 0x200d;
  }
}

static bool
is_space (const char *p)
{
  CharClass class = class_of (g_utf8_get_char (p));

  return class == CLASS_SPACE || class == CLASS_NEWLINE;
}

/* Cuts the tokens of `trie` out and gives what is between to `encode`. A
 * special token that is not wanted is passed over whole, as text. */
static bool
cut_added (Encoder * e, const Trie * trie, const char *text, size_t n,
    EncodePiece encode)
{
  const char *end = text + n, *piece = text, *p = text;

  while (trie->nodes != NULL && p < end) {
    const char *start = p, *stop;
    size_t length = 0;
    int32_t id = -1;
    uint8_t flags;

    if (trie->begins[(uint8_t) * p])
      id = trie_match (trie, p, end, &length);
    if (id < 0) {
      p++;
      continue;
    }
    p = stop = start + length;
    flags = e->tokenizer->tokens[id].flags;
    if ((flags & TOKEN_SPECIAL) && !e->special)
      continue;
    if ((flags & TOKEN_SINGLE_WORD)
        && ((start > text && is_word_char (g_utf8_prev_char (start)))
            || (stop < end && is_word_char (stop))))
      continue;
    if (flags & TOKEN_LSTRIP)
      while (start > piece && is_space (g_utf8_prev_char (start)))
        start = g_utf8_prev_char (start);
    if (flags & TOKEN_RSTRIP)
      while (stop < end && is_space (stop))
        stop = g_utf8_next_char (stop);
    if (!encode (e, piece, (size_t) (start - piece)) || !emit (e, id))
      return false;
    piece = p = stop;
  }
  return encode (e, piece, (size_t) (end - piece));
}

/* A piece of the raw text that has no added token in it. */
static bool
encode_raw (Encoder * e, const char *text, size_t n)
{
  const Trie *trie = &e->tokenizer->normalized;
  g_autofree char *normal = NULL;

  if (is_plainly_nfc (text, n))
    return cut_added (e, trie, text, n, encode_words);
  normal = nfc (text, n, &n);
  if (normal == NULL)
    return qomni_fail (e->error, QOMNI_ERROR_MEMORY,
        "no memory to normalise a text of %zu bytes", n);
  return cut_added (e, trie, normal, n, encode_words);
}

/* UTF-8, NUL included. */
static bool
check_text (const char *text, size_t n, GError ** error)
{
  const char *end = text + n, *p = text;

  while (!g_utf8_validate_len (p, (size_t) (end - p), &p)) {
    if (*p != '\0')
      return qomni_fail (error, QOMNI_ERROR_INPUT,
          "the text is not UTF-8 at byte %zu", (size_t) (p - text));
    p++;
  }
  return true;
}

int32_t *
qomni_tokenizer_encode (const QomniTokenizer * self, const char *text,
    gssize length, QomniEncodeFlags flags, size_t *ret_n, GError ** error)
{
  Encoder e = {
    .tokenizer = self,
    .special = (flags & QOMNI_ENCODE_SPECIAL) != 0,
    .error = error,
  };
  size_t n = length < 0 ? strlen (text) : (size_t) length;
  bool ok;

  if (n > MAX_TEXT_BYTES) {
    qomni_fail (error, QOMNI_ERROR_LIMIT, "a text of %zu bytes, at most %zu",
        n, MAX_TEXT_BYTES);
    return NULL;
  }
  if (!check_text (text, n, error))
    return NULL;
  ok = cut_added (&e, &self->raw, text, n, encode_raw);
  if (ok && e.ids == NULL)
    e.ids = g_new (int32_t, 1);
  g_free (e.symbols);
  g_free (e.joins);
  if (!ok) {
    g_free (e.ids);
    return NULL;
  }
  *ret_n = e.n_ids;
  return e.ids;
}

/* Decoding */

/* Bytes of a code point that is not whole yet. */
typedef struct
{
  uint8_t bytes[4];
  int n;
} Partial;

static int
sequence_length (uint8_t lead)
{
  if (lead < 0x80)
    return 1;
  if (lead >= 0xc2 && lead <= 0xdf)
    return 2;
  if (lead >= 0xe0 && lead <= 0xef)
    return 3;
  if (lead >= 0xf0 && lead <= 0xf4)
    return 4;
  return 0;
}

/* Whether `byte` may follow the n > 0 bytes that are there. */
static bool
continues (const Partial * p, uint8_t byte)
{
  uint8_t low = 0x80, high = 0xbf;

  if (p->n == 1) {
    switch (p->bytes[0]) {
      case 0xe0:
        low = 0xa0;             /* not overlong */
        break;
      case 0xed:
        high = 0x9f;            /* not a surrogate */
        break;
      case 0xf0:
        low = 0x90;
        break;
      case 0xf4:
        high = 0x8f;            /* not above U+10FFFF */
        break;
      default:
        break;
    }
  }
  return byte >= low && byte <= high;
}

/* Puts out U+FFFD for a begun code point that does not go on: one for each
 * longest part that could have begun one, as Python counts them. */
static void
give_up (Partial * p, GString * ret)
{
  if (p->n > 0)
    g_string_append (ret, "\xef\xbf\xbd");
  p->n = 0;
}

static void
take_byte (Partial * p, uint8_t byte, GString * ret)
{
  if (p->n > 0 && !continues (p, byte))
    give_up (p, ret);
  p->bytes[p->n++] = byte;
  if (p->n == 1 && (byte == 0 || sequence_length (byte) == 0))
    give_up (p, ret);           /* also NUL, which a C string cannot hold */
  else if (p->n == sequence_length (p->bytes[0])) {
    g_string_append_len (ret, (const char *) p->bytes, p->n);
    p->n = 0;
  }
}

static void
take_id (const QomniTokenizer * self, Partial * p, int32_t id,
    bool skip_special, GString * ret)
{
  const Token *t = token_of (self, id);

  if (t == NULL || (skip_special && (t->flags & TOKEN_SPECIAL)))
    return;
  for (size_t i = 0; i < t->length; i++)
    take_byte (p, self->arena[t->start + i], ret);
}

char *
qomni_tokenizer_decode (const QomniTokenizer * self, const int32_t * ids,
    size_t n, bool skip_special)
{
  GString *ret = g_string_new (NULL);
  Partial partial = { {0}, 0 };

  for (size_t i = 0; i < n; i++)
    take_id (self, &partial, ids[i], skip_special, ret);
  give_up (&partial, ret);
  return g_string_free (ret, FALSE);
}

struct _QomniDetokenizer
{
  const QomniTokenizer *tokenizer;
  Partial partial;
  GString *text;                /* of the last call */
};

QomniDetokenizer *
qomni_detokenizer_new (const QomniTokenizer * tokenizer)
{
  QomniDetokenizer *self = g_new0 (QomniDetokenizer, 1);

  self->tokenizer = tokenizer;
  self->text = g_string_new (NULL);
  return self;
}

void
qomni_detokenizer_free (QomniDetokenizer * self)
{
  if (self == NULL)
    return;
  g_string_free (self->text, TRUE);
  g_free (self);
}

const char *
qomni_detokenizer_push (QomniDetokenizer * self, int32_t id)
{
  g_string_truncate (self->text, 0);
  take_id (self->tokenizer, &self->partial, id, true, self->text);
  return self->text->str;
}

const char *
qomni_detokenizer_flush (QomniDetokenizer * self)
{
  g_string_truncate (self->text, 0);
  give_up (&self->partial, self->text);
  return self->text->str;
}
