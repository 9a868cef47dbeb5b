/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The guard in front of json-glib, which recurses as deep as the document
 * says, keeps the last of two equal keys, wraps large integers, reads 1e400 as
 * infinity, cuts strings at \u0000 and takes JavaScript for JSON. The guard is
 * one loop over the bytes with a stack of QOMNI_MAX_JSON_DEPTH brackets; what
 * it lets through, json-glib reads as it is written. The only memory it takes
 * is the set of keys of each open object: positions of the keys in the
 * document, compared after unescaping.
 */
#include "json.h"

#include <math.h>
#include <string.h>

#define MAX_NUMBER 1024         /* characters of one number */
#define MAX_HEADER_INTEGER ((INT64_C (1) << 48) - 1)

typedef struct
{
  size_t start;                 /* of the key, after its quote */
  uint32_t hash;
  uint32_t generation;          /* of the object that has the key */
} Key;

/* Open addressing; objects of one depth reuse it one after another, entries of
 * earlier generations count as empty. */
typedef struct
{
  Key *keys;
  size_t size, n;               /* size is 0 or a power of 2, n <= size / 2 */
  uint32_t generation;
} KeySet;

typedef struct
{
  const char *name;
  const char *data;
  size_t length, pos;
  QomniJsonFlags flags;
  size_t n_values;
  size_t depth;
  bool is_object[QOMNI_MAX_JSON_DEPTH];
  KeySet keys[QOMNI_MAX_JSON_DEPTH];
  GError **error;
} Scan;

static bool
malformed (Scan * s, size_t pos, const char *what)
{
  return qomni_fail (s->error, QOMNI_ERROR_FORMAT, "%s: byte %zu: %s",
      s->name, pos, what);
}

static bool
is_strict (const Scan * s)
{
  return (s->flags & (QOMNI_JSON_STRICT | QOMNI_JSON_HEADER)) != 0;
}

/* The byte at the position, or -1 at the end. */
static int
peek (const Scan * s)
{
  return s->pos < s->length ? (unsigned char) s->data[s->pos] : -1;
}

static void
skip_space (Scan * s)
{
  int c;

  while ((c = peek (s)) == ' ' || c == '\t' || c == '\n' || c == '\r')
    s->pos++;
}

static bool
skip_digits (Scan * s)
{
  size_t start = s->pos;

  while (g_ascii_isdigit (peek (s)))
    s->pos++;
  return s->pos > start;
}

static uint32_t
hex4 (const char *p)
{
  uint32_t v = 0;

  for (int i = 0; i < 4; i++)
    v = v << 4 | (uint32_t) g_ascii_xdigit_value (p[i]);
  return v;
}

static bool
scan_hex4 (Scan * s, uint32_t *ret)
{
  if (s->length - s->pos < 4)
    return false;
  for (size_t i = 0; i < 4; i++) {
    if (!g_ascii_isxdigit (s->data[s->pos + i]))
      return false;
  }
  *ret = hex4 (s->data + s->pos);
  s->pos += 4;
  return true;
}

/* After the `\`. A lone surrogate has no UTF-8 and is refused. */
static bool
scan_escape (Scan * s)
{
  size_t start = s->pos - 1;
  uint32_t unit, low;
  int c = peek (s);

  s->pos++;
  if (c != 'u') {
    if (c < 1 || strchr ("\"\\/bfnrt", c) == NULL)
      return malformed (s, start, "unknown escape in a string");
    return true;
  }
  if (!scan_hex4 (s, &unit))
    return malformed (s, start, "\\u without four hex digits");
  if (unit == 0 && is_strict (s))
    return malformed (s, start, "\\u0000 in a string");
  if (unit < 0xd800 || unit > 0xdfff)
    return true;
  if (unit > 0xdbff || s->length - s->pos < 2
      || memcmp (s->data + s->pos, "\\u", 2) != 0)
    return malformed (s, start, "surrogate without its partner");
  s->pos += 2;
  if (!scan_hex4 (s, &low) || low < 0xdc00 || low > 0xdfff)
    return malformed (s, start, "surrogate without its partner");
  return true;
}

/* At the opening quote; ends after the closing one. */
static bool
scan_string (Scan * s)
{
  size_t start = s->pos++;

  for (;;) {
    int c = peek (s);

    if (c < 0)
      return malformed (s, start, "string without an end");
    if (c < 0x20)
      return malformed (s, s->pos, "control character in a string");
    s->pos++;
    if (c == '"')
      return true;
    if (c == '\\' && !scan_escape (s))
      return false;
  }
}

static bool
check_integer (Scan * s, size_t start)
{
  bool negative = s->data[start] == '-';
  uint64_t limit = negative ? UINT64_C (1) << 63 : INT64_MAX;
  uint64_t v = 0;

  for (size_t i = start + negative; i < s->pos; i++) {
    uint64_t digit = (uint64_t) (s->data[i] - '0');

    if (v > (limit - digit) / 10)
      return malformed (s, start, "integer outside 64 bits");
    v = v * 10 + digit;
  }
  if ((s->flags & QOMNI_JSON_HEADER)
      && ((negative && v > 0) || v > MAX_HEADER_INTEGER))
    return malformed (s, start, "integer outside 0 to 2^48-1");
  return true;
}

static bool
scan_number (Scan * s)
{
  size_t start = s->pos;
  bool is_integer = true;
  char text[MAX_NUMBER + 1];
  int c;

  if (peek (s) == '-')
    s->pos++;
  if (peek (s) == '0')
    s->pos++;
  else if (!skip_digits (s))
    return malformed (s, start, "expected a value");
  if (peek (s) == '.') {
    is_integer = false;
    s->pos++;
    if (!skip_digits (s))
      return malformed (s, s->pos, "expected a digit");
  }
  if ((c = peek (s)) == 'e' || c == 'E') {
    is_integer = false;
    s->pos++;
    if ((c = peek (s)) == '+' || c == '-')
      s->pos++;
    if (!skip_digits (s))
      return malformed (s, s->pos, "expected a digit");
  }

  if (!is_strict (s))
    return true;
  if (is_integer)
    return check_integer (s, start);
  if (s->pos - start > MAX_NUMBER)
    return malformed (s, start, "number of more than 1024 characters");
  memcpy (text, s->data + start, s->pos - start);
  text[s->pos - start] = '\0';
  if (!isfinite (g_ascii_strtod (text, NULL)))
    return malformed (s, start, "number outside the range of a double");
  return true;
}

static bool
scan_literal (Scan * s, const char *word)
{
  size_t n = strlen (word);

  if (s->length - s->pos < n || memcmp (s->data + s->pos, word, n) != 0)
    return malformed (s, s->pos, "expected a value");
  s->pos += n;
  return true;
}

/* The bytes that a string of the document (already checked) stands for. */
typedef struct
{
  const char *p;
  char utf8[6];
  int n, i;
} Unescape;

/* The next byte, or -1 at the closing quote. */
static int
unescape_next (Unescape * u)
{
  uint32_t c;

  if (u->i < u->n)
    return (unsigned char) u->utf8[u->i++];
  if (*u->p == '"')
    return -1;
  if (*u->p != '\\')
    return (unsigned char) *u->p++;

  u->p += 2;
  switch (u->p[-1]) {
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    case 'u':
      break;
    default:
      return (unsigned char) u->p[-1];
  }
  c = hex4 (u->p);
  u->p += 4;
  if (c >= 0xd800 && c <= 0xdbff) {
    c = 0x10000 + ((c - 0xd800) << 10) + (hex4 (u->p + 2) - 0xdc00);
    u->p += 6;
  }
  u->n = g_unichar_to_utf8 (c, u->utf8);
  u->i = 1;
  return (unsigned char) u->utf8[0];
}

static uint32_t
key_hash (const char *p)
{
  Unescape u = {.p = p };
  uint64_t h = UINT64_C (0xcbf29ce484222325);
  int c;

  while ((c = unescape_next (&u)) >= 0)
    h = (h ^ (uint64_t) c) * UINT64_C (0x100000001b3);
  return (uint32_t) (h ^ h >> 32);
}

static bool
key_equal (const char *a, const char *b)
{
  Unescape ua = {.p = a }, ub = {.p = b };
  int ca, cb;

  do {
    ca = unescape_next (&ua);
    cb = unescape_next (&ub);
  } while (ca == cb && ca >= 0);
  return ca == cb;
}

/* The place of the key: where it is, or where it would go. */
static Key *
key_set_find (const KeySet * set, const char *data, size_t start,
    uint32_t hash)
{
  size_t i = hash & (set->size - 1);

  for (;; i = (i + 1) & (set->size - 1)) {
    Key *k = &set->keys[i];

    if (k->generation != set->generation
        || (k->hash == hash && key_equal (data + k->start, data + start)))
      return k;
  }
}

static bool
key_set_grow (KeySet * set, const char *data)
{
  KeySet bigger = { NULL, set->size > 0 ? 2 * set->size : 16, set->n,
    set->generation
  };

  bigger.keys = g_try_new0 (Key, bigger.size);
  if (bigger.keys == NULL)
    return false;
  for (size_t i = 0; i < set->size; i++) {
    const Key *k = &set->keys[i];

    if (k->generation == set->generation)
      *key_set_find (&bigger, data, k->start, k->hash) = *k;
  }
  g_free (set->keys);
  *set = bigger;
  return true;
}

/* At the opening quote of a key; ends after the colon. */
static bool
scan_key (Scan * s)
{
  size_t start = s->pos;

  if (peek (s) != '"')
    return malformed (s, s->pos, "expected a key");
  if (!scan_string (s))
    return false;

  if (is_strict (s)) {
    KeySet *set = &s->keys[s->depth - 1];
    uint32_t hash = key_hash (s->data + start + 1);
    Key *k;

    if (2 * (set->n + 1) > set->size && !key_set_grow (set, s->data))
      return qomni_fail (s->error, QOMNI_ERROR_MEMORY,
          "%s: no memory to compare %zu keys", s->name, set->n);
    k = key_set_find (set, s->data, start + 1, hash);
    if (k->generation == set->generation)
      return malformed (s, start, "duplicate key");
    *k = (Key) { start + 1, hash, set->generation };
    set->n++;
  }

  skip_space (s);
  if (peek (s) != ':')
    return malformed (s, s->pos, "expected ':'");
  s->pos++;
  return true;
}

static bool
open_bracket (Scan * s, bool is_object)
{
  if (s->depth == QOMNI_MAX_JSON_DEPTH)
    return qomni_fail (s->error, QOMNI_ERROR_FORMAT,
        "%s: byte %zu: nested deeper than %d", s->name, s->pos,
        QOMNI_MAX_JSON_DEPTH);
  s->is_object[s->depth] = is_object;
  s->keys[s->depth].generation++;
  s->keys[s->depth].n = 0;
  s->depth++;
  s->pos++;
  return true;
}

static bool
close_bracket (Scan * s)
{
  s->depth--;
  s->pos++;
  return true;
}

static bool
scan_scalar (Scan * s)
{
  switch (peek (s)) {
    case '"':
      return scan_string (s);
    case 't':
      return scan_literal (s, "true");
    case 'f':
      return scan_literal (s, "false");
    case 'n':
      return scan_literal (s, "null");
    case -1:
      return malformed (s, s->pos, "the document ends where a value should be");
    default:
      return scan_number (s);
  }
}

static bool
scan_document (Scan * s)
{
  enum
  {
    VALUE, VALUE_OR_END, KEY, KEY_OR_END, AFTER_VALUE
  } state = VALUE;

  for (;;) {
    int c;

    skip_space (s);
    c = peek (s);
    switch (state) {
      case VALUE_OR_END:
        if (c == ']') {
          close_bracket (s);
          state = AFTER_VALUE;
          break;
        }
        /* fall through */
      case VALUE:
        if (++s->n_values > QOMNI_MAX_JSON_VALUES)
          return qomni_fail (s->error, QOMNI_ERROR_LIMIT,
              "%s: byte %zu: more than %d values", s->name, s->pos,
              QOMNI_MAX_JSON_VALUES);
        if (c == '{' || c == '[') {
          if (!open_bracket (s, c == '{'))
            return false;
          state = c == '{' ? KEY_OR_END : VALUE_OR_END;
        } else {
          if (!scan_scalar (s))
            return false;
          state = AFTER_VALUE;
        }
        break;
      case KEY_OR_END:
        if (c == '}') {
          close_bracket (s);
          state = AFTER_VALUE;
          break;
        }
        /* fall through */
      case KEY:
        if (!scan_key (s))
          return false;
        state = VALUE;
        break;
      case AFTER_VALUE:
        if (s->depth == 0)
          return c < 0 || malformed (s, s->pos, "text after the document");
        if (c == ',') {
          s->pos++;
          state = s->is_object[s->depth - 1] ? KEY : VALUE;
        } else if (c == (s->is_object[s->depth - 1] ? '}' : ']')) {
          close_bracket (s);
        } else if (c < 0) {
          return malformed (s, s->pos, "the document ends inside a bracket");
        } else {
          return malformed (s, s->pos, s->is_object[s->depth - 1]
              ? "expected ',' or '}'" : "expected ',' or ']'");
        }
        break;
    }
  }
}

bool
qomni_json_check (const char *name, const char *data, size_t length,
    QomniJsonFlags flags, GError ** error)
{
  g_autofree Scan *s = g_new0 (Scan, 1);
  const char *end;
  bool ok;

  s->name = name;
  s->data = data;
  s->length = length;
  s->flags = flags;
  s->error = error;

  if (length > 0 && !g_utf8_validate_len (data, length, &end))
    return malformed (s, (size_t) (end - data), "not UTF-8 text");
  ok = scan_document (s);
  for (size_t i = 0; i < QOMNI_MAX_JSON_DEPTH; i++)
    g_free (s->keys[i].keys);
  return ok;
}

JsonNode *
qomni_json_parse (const char *name, const char *data, size_t length,
    QomniJsonFlags flags, GError ** error)
{
  g_autoptr (JsonParser) parser = NULL;
  g_autoptr (GError) reason = NULL;
  JsonNode *root;

  if (!qomni_json_check (name, data, length, flags, error))
    return NULL;

  parser = json_parser_new ();
  if (!json_parser_load_from_data (parser, data, (gssize) length, &reason)) {
    qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: %s", name, reason->message);
    return NULL;
  }
  root = json_parser_steal_root (parser);
  if (root == NULL)
    qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: no JSON document", name);
  return root;
}

JsonNode *
qomni_json_read_file (const char *path, size_t max_bytes,
    QomniJsonFlags flags, GError ** error)
{
  g_autofree char *data = NULL;
  size_t length;

  data = qomni_read_file (path, max_bytes, &length, error);
  if (data == NULL)
    return NULL;
  return qomni_json_parse (path, data, length, flags, error);
}
