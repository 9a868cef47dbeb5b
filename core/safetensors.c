/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * safetensors: u64 little-endian length N, N bytes of JSON, data.
 *
 *   { "name": { "dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12] },
 *     … }
 *
 * Order of the checks, all of them before any tensor is touched: the length
 * against its cap and the file, UTF-8 and JSON (json.c), every entry by itself
 * (element count x size, checked, is end - begin), then all of them sorted and
 * walked from 0 to the end of the file: no hole, no overlap, nothing after the
 * last. So each byte of the file belongs to one thing, and the sum of what the
 * tensors claim cannot exceed the file.
 */
#include "safetensors.h"

#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const QomniFileDtype dtypes[] = {
  {"F32", 32, true, QK_F32},
  {"BF16", 16, true, QK_BF16},
  {"F16", 16, true, QK_F16},
  {"F64", 64, false, QK_F32},
  {"I64", 64, false, QK_F32},
  {"I32", 32, false, QK_F32},
  {"I16", 16, false, QK_F32},
  {"I8", 8, false, QK_F32},
  {"U64", 64, false, QK_F32},
  {"U32", 32, false, QK_F32},
  {"U16", 16, false, QK_F32},
  {"U8", 8, false, QK_F32},
  {"BOOL", 8, false, QK_F32},
  {"C64", 64, false, QK_F32},
  {"F8_E4M3", 8, false, QK_F32},
  {"F8_E5M2", 8, false, QK_F32},
  {"F8_E8M0", 8, false, QK_F32},
  {"F8_E4M3FNUZ", 8, false, QK_F32},
  {"F8_E5M2FNUZ", 8, false, QK_F32},
  {"F6_E2M3", 6, false, QK_F32},
  {"F6_E3M2", 6, false, QK_F32},
  {"F4", 4, false, QK_F32},
};

const QomniFileDtype *
qomni_file_dtype (const char *name)
{
  for (size_t i = 0; i < G_N_ELEMENTS (dtypes); i++) {
    if (strcmp (dtypes[i].name, name) == 0)
      return &dtypes[i];
  }
  return NULL;
}

void
qomni_safetensors_clear (QomniSafetensors * self)
{
  g_clear_pointer (&self->tensors, g_free);
  g_clear_pointer (&self->names, g_free);
  self->n = 0;
}

static bool
get_integer (JsonNode * node, int64_t *ret)
{
  if (node == NULL || !JSON_NODE_HOLDS_VALUE (node)
      || json_node_get_value_type (node) != G_TYPE_INT64)
    return false;
  *ret = json_node_get_int (node);
  return *ret >= 0;
}

static JsonArray *
get_array (JsonObject * object, const char *key)
{
  JsonNode *node = json_object_get_member (object, key);

  return node != NULL && JSON_NODE_HOLDS_ARRAY (node)
      ? json_node_get_array (node) : NULL;
}

static const char *
get_string (JsonNode * node)
{
  if (node == NULL || !JSON_NODE_HOLDS_VALUE (node)
      || json_node_get_value_type (node) != G_TYPE_STRING)
    return NULL;
  return json_node_get_string (node);
}

static bool
check_metadata (const char *name, JsonNode * node, GError ** error)
{
  JsonObjectIter iter;
  JsonNode *value;

  if (!JSON_NODE_HOLDS_OBJECT (node))
    return qomni_fail (error, QOMNI_ERROR_FORMAT,
        "%s: __metadata__ is no object", name);
  json_object_iter_init (&iter, json_node_get_object (node));
  while (json_object_iter_next (&iter, NULL, &value)) {
    if (get_string (value) == NULL)
      return qomni_fail (error, QOMNI_ERROR_FORMAT,
          "%s: a value of __metadata__ is no string", name);
  }
  return true;
}

/* Fills dtype, dims, offset (from the begin of the data) and bytes. */
static bool
parse_entry (const char *file, const char *name, JsonNode * node,
    QomniTensorInfo * ret, GError ** error)
{
  JsonObject *object;
  JsonArray *shape, *offsets;
  const char *dtype;
  uint64_t bits;
  int64_t begin, end;

  if (!JSON_NODE_HOLDS_OBJECT (node))
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' is no "
        "object", file, name);
  object = json_node_get_object (node);

  dtype = get_string (json_object_get_member (object, "dtype"));
  if (dtype == NULL)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' has no "
        "dtype", file, name);
  ret->dtype = qomni_file_dtype (dtype);
  if (ret->dtype == NULL) {
    g_autofree char *text = qomni_excerpt (dtype, 40);

    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' has the "
        "unknown dtype '%s'", file, name, text);
  }

  shape = get_array (object, "shape");
  if (shape == NULL)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' has no "
        "shape", file, name);
  if (json_array_get_length (shape) > QOMNI_TENSOR_MAX_DIMS)
    return qomni_fail (error, QOMNI_ERROR_LIMIT, "%s: tensor '%s' has %u "
        "dimensions, the limit is %d", file, name,
        json_array_get_length (shape), QOMNI_TENSOR_MAX_DIMS);
  ret->n_dims = (int) json_array_get_length (shape);
  bits = ret->dtype->bits;
  for (int i = 0; i < ret->n_dims; i++) {
    if (!get_integer (json_array_get_element (shape, (guint) i),
            &ret->dims[i]))
      return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s': "
          "dimension %d is no size", file, name, i);
    if (__builtin_mul_overflow (bits, (uint64_t) ret->dims[i], &bits))
      return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s': the "
          "product of its dimensions does not fit 64 bits", file, name);
  }

  offsets = get_array (object, "data_offsets");
  if (offsets == NULL || json_array_get_length (offsets) != 2
      || !get_integer (json_array_get_element (offsets, 0), &begin)
      || !get_integer (json_array_get_element (offsets, 1), &end))
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' has no two "
        "data_offsets", file, name);
  if (end < begin)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' ends at %"
        G_GINT64_FORMAT ", before its begin at %" G_GINT64_FORMAT, file, name,
        end, begin);
  if (bits % 8 != 0 || bits / 8 != (uint64_t) (end - begin))
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' has %"
        G_GINT64_FORMAT " bytes of data, its shape and dtype %s take %"
        G_GUINT64_FORMAT, file, name, end - begin, dtype, bits / 8);
  ret->offset = (uint64_t) begin;
  ret->bytes = (uint64_t) (end - begin);
  return true;
}

static int
compare_offsets (const void *a, const void *b)
{
  const QomniTensorInfo *ta = a, *tb = b;

  if (ta->offset != tb->offset)
    return ta->offset < tb->offset ? -1 : 1;
  if (ta->bytes != tb->bytes)
    return ta->bytes < tb->bytes ? -1 : 1;
  return strcmp (ta->name, tb->name);
}

static bool
parse_entries (const char *file, JsonObject * root, QomniSafetensors * st,
    GError ** error)
{
  size_t n_names = 0, name_bytes = 0;
  JsonObjectIter iter;
  const char *name;
  JsonNode *node;
  char *names;

  json_object_iter_init (&iter, root);
  while (json_object_iter_next (&iter, &name, NULL)) {
    if (strlen (name) > QOMNI_MAX_TENSOR_NAME) {
      g_autofree char *text = qomni_excerpt (name, 40);

      return qomni_fail (error, QOMNI_ERROR_LIMIT, "%s: tensor name '%s' has "
          "%zu bytes, the limit is %d", file, text, strlen (name),
          QOMNI_MAX_TENSOR_NAME);
    }
    name_bytes += strlen (name) + 1;
    n_names++;
  }
  if (n_names > QOMNI_MAX_TENSORS)
    return qomni_fail (error, QOMNI_ERROR_LIMIT, "%s: %zu tensors, the limit "
        "is %d", file, n_names, QOMNI_MAX_TENSORS);

  st->tensors = g_try_new0 (QomniTensorInfo, n_names + 1);
  st->names = names = g_try_malloc (name_bytes + 1);
  if (st->tensors == NULL || st->names == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "%s: no memory for the list "
        "of %zu tensors", file, n_names);

  json_object_iter_init (&iter, root);
  while (json_object_iter_next (&iter, &name, &node)) {
    if (strcmp (name, "__metadata__") == 0) {
      if (!check_metadata (file, node, error))
        return false;
      continue;
    }
    if (!parse_entry (file, name, node, &st->tensors[st->n], error))
      return false;
    st->tensors[st->n++].name = strcpy (names, name);
    names += strlen (name) + 1;
  }
  return true;
}

/* Also turns offsets into positions in the file. */
static bool
check_layout (const char *file, QomniSafetensors * st, uint64_t data_start,
    uint64_t file_size, GError ** error)
{
  uint64_t data_bytes = file_size - data_start, at = 0;

  qsort (st->tensors, st->n, sizeof *st->tensors, compare_offsets);
  for (size_t i = 0; i < st->n; i++) {
    QomniTensorInfo *t = &st->tensors[i];

    if (t->offset != at)
      return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: tensor '%s' begins at "
          "%" G_GUINT64_FORMAT ", expected %" G_GUINT64_FORMAT ": %s", file,
          t->name, t->offset, at,
          t->offset > at ? "there is a hole" : "tensors overlap");
    at += t->bytes;             /* both below 2^48 */
    if (at > data_bytes)
      return qomni_fail (error, QOMNI_ERROR_READ, "%s: tensor '%s' ends at "
          "byte %" G_GUINT64_FORMAT " of the file, which has %" G_GUINT64_FORMAT
          " bytes: it is truncated", file, t->name, data_start + at,
          file_size);
    t->offset += data_start;
  }
  if (at != data_bytes)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s has %" G_GUINT64_FORMAT
        " bytes, its tensors end at %" G_GUINT64_FORMAT, file, file_size,
        data_start + at);
  return true;
}

bool
qomni_safetensors_parse (const char *name, const char *json, size_t length,
    uint64_t file_size, QomniSafetensors * ret, GError ** error)
{
  g_auto (QomniSafetensors) st = { NULL, 0, NULL };
  JsonNode *root;
  bool ok;

  if (length == 0 || json[0] != '{')
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: the header does not "
        "begin with '{'", name);
  root = qomni_json_parse (name, json, length,
      QOMNI_JSON_STRICT | QOMNI_JSON_HEADER, error);
  if (root == NULL)
    return false;
  ok = parse_entries (name, json_node_get_object (root), &st, error);
  json_node_unref (root);       /* ten times the size of the header */
  if (!ok || !check_layout (name, &st, 8 + (uint64_t) length, file_size, error))
    return false;
  *ret = st;
  st = (QomniSafetensors) { NULL, 0, NULL };
  return true;
}

bool
qomni_safetensors_read (const QomniFileIo * io, int fd, const char *name,
    uint64_t file_size, QomniSafetensors * ret, GError ** error)
{
  g_autofree char *json = NULL;
  uint64_t length;

  if (file_size < 8)
    return qomni_fail (error, QOMNI_ERROR_READ, "%s has %" G_GUINT64_FORMAT
        " bytes, a safetensors file has at least 8", name, file_size);
  if (!qomni_file_read_at (io, fd, name, &length, 8, 0, error))
    return false;
  length = GUINT64_FROM_LE (length);
  if (length == 0)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "%s: the header is empty",
        name);
  if (length > QOMNI_MAX_HEADER_BYTES)
    return qomni_fail (error, QOMNI_ERROR_LIMIT, "%s: the header says it has %"
        G_GUINT64_FORMAT " bytes, the limit is %d", name, length,
        QOMNI_MAX_HEADER_BYTES);
  if (length > file_size - 8)
    return qomni_fail (error, QOMNI_ERROR_READ, "%s: the header says it has %"
        G_GUINT64_FORMAT " bytes, the file has %" G_GUINT64_FORMAT " in all",
        name, length, file_size);
  json = g_try_malloc ((size_t) length);
  if (json == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "%s: no memory for the %"
        G_GUINT64_FORMAT " bytes of the header", name, length);
  return qomni_file_read_at (io, fd, name, json, (size_t) length, 8, error)
      && qomni_safetensors_parse (name, json, (size_t) length, file_size, ret,
      error);
}

/* --- writing ------------------------------------------------------------- */

static void
append_json_string (GString * s, const char *text)
{
  g_string_append_c (s, '"');
  for (const char *p = text; *p != '\0'; p++) {
    if (*p == '"' || *p == '\\')
      g_string_append_c (s, '\\');
    if ((unsigned char) *p < 0x20)
      g_string_append_printf (s, "\\u%04x", (unsigned) *p);
    else
      g_string_append_c (s, *p);
  }
  g_string_append_c (s, '"');
}

static bool
append_entry (GString * s, const QomniTensorOut * t, uint64_t *offset,
    GError ** error)
{
  const QomniFileDtype *dtype = qomni_file_dtype (t->dtype);
  uint64_t bits;

  if (dtype == NULL || t->n_dims < 0 || t->n_dims > QOMNI_TENSOR_MAX_DIMS)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "tensor '%s': dtype '%s' with "
        "%d dimensions cannot be written", t->name, t->dtype, t->n_dims);
  bits = dtype->bits;
  for (int i = 0; i < t->n_dims; i++) {
    if (t->dims[i] < 0
        || __builtin_mul_overflow (bits, (uint64_t) t->dims[i], &bits))
      return qomni_fail (error, QOMNI_ERROR_INPUT, "tensor '%s': dimension %d "
          "is %" G_GINT64_FORMAT, t->name, i, t->dims[i]);
  }
  if (bits % 8 != 0 || bits / 8 != t->bytes)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "tensor '%s' has %zu bytes, "
        "its shape takes %" G_GUINT64_FORMAT, t->name, t->bytes, bits / 8);

  if (s->len > 1)
    g_string_append_c (s, ',');
  append_json_string (s, t->name);
  g_string_append_printf (s, ":{\"dtype\":\"%s\",\"shape\":[", dtype->name);
  for (int i = 0; i < t->n_dims; i++)
    g_string_append_printf (s, "%s%" G_GINT64_FORMAT, i > 0 ? "," : "",
        t->dims[i]);
  g_string_append_printf (s, "],\"data_offsets\":[%" G_GUINT64_FORMAT ",%"
      G_GUINT64_FORMAT "]}", *offset, *offset + t->bytes);
  *offset += t->bytes;
  return true;
}

static bool
write_all (int fd, const void *data, size_t bytes)
{
  const char *p = data;

  while (bytes > 0) {
    ssize_t n = write (fd, p, bytes);

    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return false;
    p += n;
    bytes -= (size_t) n;
  }
  return true;
}

/* Wide elements come first, so that all of them are aligned in the file. */
static const size_t widths[] = { 64, 32, 16, 8, 6, 4 };

static bool
write_file (int fd, const GString * header, const QomniTensorOut * tensors,
    size_t n)
{
  uint64_t length = GUINT64_TO_LE ((uint64_t) header->len);

  if (!write_all (fd, &length, sizeof length)
      || !write_all (fd, header->str, header->len))
    return false;
  for (size_t w = 0; w < G_N_ELEMENTS (widths); w++) {
    for (size_t i = 0; i < n; i++) {
      if (qomni_file_dtype (tensors[i].dtype)->bits == widths[w]
          && !write_all (fd, tensors[i].data, tensors[i].bytes))
        return false;
    }
  }
  return fsync (fd) == 0;
}

bool
qomni_safetensors_write (const char *path, const QomniTensorOut * tensors,
    size_t n, GError ** error)
{
  g_autoptr (GString) header = g_string_new ("{");
  g_autofree char *temporary = NULL;
  uint64_t offset = 0;
  bool ok;
  int fd;

  for (size_t i = 0; i < n; i++) {
    if (qomni_file_dtype (tensors[i].dtype) == NULL)
      return qomni_fail (error, QOMNI_ERROR_INPUT, "tensor '%s': dtype '%s' "
          "cannot be written", tensors[i].name, tensors[i].dtype);
  }
  for (size_t w = 0; w < G_N_ELEMENTS (widths); w++) {
    for (size_t i = 0; i < n; i++) {
      if (qomni_file_dtype (tensors[i].dtype)->bits == widths[w]
          && !append_entry (header, &tensors[i], &offset, error))
        return false;
    }
  }
  g_string_append_c (header, '}');
  while (header->len % 8 != 0)
    g_string_append_c (header, ' ');

  temporary = g_strdup_printf ("%s.%08x.tmp", path, g_random_int ());
  fd = open (temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0)
    return qomni_fail (error, qomni_file_error_code (errno),
        "cannot create '%s': %s", temporary, g_strerror (errno));
  errno = 0;
  ok = write_file (fd, header, tensors, n);
  if (close (fd) < 0)
    ok = false;
  if (ok && rename (temporary, path) < 0)
    ok = false;
  if (!ok) {
    qomni_fail (error, QOMNI_ERROR_OPEN, "cannot write '%s': %s", path,
        g_strerror (errno));
    unlink (temporary);
  }
  return ok;
}
