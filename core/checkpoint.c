/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The Hugging Face directory: either model.safetensors, or
 * model.safetensors.index.json, whose weight_map names the shard of each
 * tensor.
 *
 *   directory -> index -> shards (opened, header checked) -> one list of
 *     tensors in the order of shard and offset + a hash table of their names
 *
 * Shards stay open: what was checked is what is read, whatever happens to the
 * names in the directory.
 */
#include "checkpoint.h"

#include "file.h"
#include "json.h"
#include "safetensors.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

typedef struct
{
  char *name;                   /* in the directory */
  char *path;
  int fd;
  uint64_t size;
  const uint8_t *map;           /* QOMNI_READ_MAPPED only */
  QomniSafetensors header;      /* keeps the names; tensors are moved out */
} Shard;

struct _QomniCheckpoint
{
  int ref_count;                /* atomic */
  char *path, *directory;
  QomniReadMode mode;
  QomniFileIo io;
  bool has_io;
  Shard *shards;
  size_t n_shards;
  QomniTensorInfo *tensors;
  size_t n_tensors;
  GHashTable *by_name;          /* name -> QomniTensorInfo */
};

/* --- which directory ----------------------------------------------------- */

/* A file name that stays in its directory. */
static bool
is_plain_name (const char *name)
{
  size_t n = strlen (name);

  return n > 0 && n <= 255 && strchr (name, '/') == NULL
      && strcmp (name, ".") != 0 && strcmp (name, "..") != 0;
}

static bool
is_directory (const char *path)
{
  struct stat st;

  return stat (path, &st) == 0 && S_ISDIR (st.st_mode);
}

/* models--owner--name/{refs/main, snapshots/<commit>/…} */
static char *
resolve_cache (const char *path, GError ** error)
{
  g_autofree char *ref = g_build_filename (path, "refs", "main", NULL);
  g_autofree char *commit = NULL;
  g_autofree char *directory = NULL;
  size_t length;

  commit = qomni_read_file (ref, 256, &length, error);
  if (commit == NULL) {
    g_prefix_error (error, "'%s' is a cache of snapshots: ", path);
    return NULL;
  }
  g_strstrip (commit);
  if (!is_plain_name (commit)) {
    qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s' does not name a snapshot",
        ref);
    return NULL;
  }
  directory = g_build_filename (path, "snapshots", commit, NULL);
  if (!is_directory (directory)) {
    qomni_fail (error, QOMNI_ERROR_NOT_FOUND, "'%s' names the snapshot '%s', "
        "which is not there", ref, commit);
    return NULL;
  }
  return g_steal_pointer (&directory);
}

char *
qomni_checkpoint_resolve (const char *path, GError ** error)
{
  g_autofree char *snapshots = NULL;
  struct stat st;

  if (path == NULL || *path == '\0') {
    qomni_fail (error, QOMNI_ERROR_NOT_FOUND, "no path to a model given");
    return NULL;
  }
  if (stat (path, &st) < 0) {
    int e = errno;

    qomni_fail (error, qomni_file_error_code (e), "cannot open the model '%s': "
        "%s", path, g_strerror (e));
    return NULL;
  }
  if (!S_ISDIR (st.st_mode)) {
    qomni_fail (error, QOMNI_ERROR_UNSUPPORTED, "'%s' is %s, expected a "
        "directory with config.json and " SINGLE, path,
        g_str_has_suffix (path, ".gguf") ? "a GGUF file, which is not supported"
        : g_str_has_suffix (path, ".safetensors") ? "one safetensors file"
        : "no directory");
    return NULL;
  }

  snapshots = g_build_filename (path, "snapshots", NULL);
  if (!qomni_file_exists (path, "config.json")
      && !qomni_file_exists (path, SINGLE) && is_directory (snapshots))
    return resolve_cache (path, error);
  return g_strdup (path);
}

/* --- shards -------------------------------------------------------------- */

static bool
map_shard (Shard * shard, GError ** error)
{
  void *map;

  if (shard->size > SIZE_MAX)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "'%s' has %" G_GUINT64_FORMAT
        " bytes, too many to map", shard->path, shard->size);
  map = mmap (NULL, (size_t) shard->size, PROT_READ, MAP_SHARED, shard->fd, 0);
  if (map == MAP_FAILED)
    return qomni_fail (error, QOMNI_ERROR_OPEN, "cannot map the %"
        G_GUINT64_FORMAT " bytes of '%s': %s", shard->size, shard->path,
        g_strerror (errno));
  shard->map = map;
  return true;
}

static bool
open_shard (QomniCheckpoint * self, Shard * shard, GError ** error)
{
  const QomniFileIo *io = self->has_io ? &self->io : NULL;

  shard->path = g_build_filename (self->directory, shard->name, NULL);
  shard->fd = qomni_file_open (shard->path, &shard->size, error);
  return shard->fd >= 0
      && qomni_safetensors_read (io, shard->fd, shard->path, shard->size,
      &shard->header, error)
      && (self->mode != QOMNI_READ_MAPPED || map_shard (shard, error));
}

static void
close_shard (Shard * shard)
{
  if (shard->map != NULL)
    munmap ((void *) shard->map, (size_t) shard->size);
  if (shard->fd >= 0)
    close (shard->fd);
  qomni_safetensors_clear (&shard->header);
  g_free (shard->name);
  g_free (shard->path);
}

static int
compare_names (const void *a, const void *b)
{
  return strcmp (*(char *const *) a, *(char *const *) b);
}

/* Takes over the n names. */
static void
set_shards (QomniCheckpoint * self, char **names, size_t n)
{
  qsort (names, n, sizeof *names, compare_names);
  self->shards = g_new0 (Shard, n);
  self->n_shards = n;
  for (size_t i = 0; i < n; i++) {
    self->shards[i].name = names[i];
    self->shards[i].fd = -1;
  }
}

/* --- the index ----------------------------------------------------------- */

/* The names of the shards that a weight_map names. */
static bool
list_shards (QomniCheckpoint * self, const char *index, JsonObject * map,
    GError ** error)
{
  g_autoptr (GHashTable) seen = g_hash_table_new (g_str_hash, g_str_equal);
  g_autoptr (GPtrArray) names = g_ptr_array_new ();
  JsonObjectIter iter;
  const char *tensor;
  JsonNode *node;

  if (json_object_get_size (map) > QOMNI_MAX_TENSORS)
    return qomni_fail (error, QOMNI_ERROR_LIMIT, "'%s' lists %u tensors, the "
        "limit is %d", index, json_object_get_size (map), QOMNI_MAX_TENSORS);

  json_object_iter_init (&iter, map);
  while (json_object_iter_next (&iter, &tensor, &node)) {
    const char *shard = NULL;

    if (JSON_NODE_HOLDS_VALUE (node)
        && json_node_get_value_type (node) == G_TYPE_STRING)
      shard = json_node_get_string (node);
    if (shard == NULL || !is_plain_name (shard)) {
      g_autofree char *name = qomni_excerpt (tensor, 200);
      g_autofree char *file = qomni_excerpt (shard != NULL ? shard : "", 200);

      return qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s': the shard of tensor "
          "'%s' is '%s', expected the name of a file in the directory", index,
          name, file);
    }
    if (g_hash_table_add (seen, (gpointer) shard))
      g_ptr_array_add (names, (gpointer) shard);
    if (names->len > QOMNI_MAX_SHARDS)
      return qomni_fail (error, QOMNI_ERROR_LIMIT, "'%s' names more than %d "
          "shards", index, QOMNI_MAX_SHARDS);
  }
  if (names->len == 0)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s' lists no tensors",
        index);

  for (guint i = 0; i < names->len; i++)
    names->pdata[i] = g_strdup (names->pdata[i]);
  set_shards (self, (char **) names->pdata, names->len);
  return true;
}

static JsonObject *
weight_map (JsonNode * root)
{
  JsonNode *node;

  if (!JSON_NODE_HOLDS_OBJECT (root))
    return NULL;
  node = json_object_get_member (json_node_get_object (root), "weight_map");
  return node != NULL && JSON_NODE_HOLDS_OBJECT (node)
      ? json_node_get_object (node) : NULL;
}

/* One list of all tensors; a name may stand in one shard only. */
static bool
merge_shards (QomniCheckpoint * self, GError ** error)
{
  size_t n = 0;

  for (size_t i = 0; i < self->n_shards; i++)
    n += self->shards[i].header.n;
  if (n > QOMNI_MAX_TENSORS)
    return qomni_fail (error, QOMNI_ERROR_LIMIT, "'%s' has %zu tensors, the "
        "limit is %d", self->directory, n, QOMNI_MAX_TENSORS);
  self->tensors = g_try_new (QomniTensorInfo, n + 1);
  if (self->tensors == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for the list of "
        "%zu tensors", n);

  for (size_t i = 0; i < self->n_shards; i++) {
    QomniSafetensors *header = &self->shards[i].header;

    for (size_t k = 0; k < header->n; k++) {
      QomniTensorInfo *t = &self->tensors[self->n_tensors++];
      const QomniTensorInfo *other;

      *t = header->tensors[k];
      t->shard = (uint32_t) i;
      other = g_hash_table_lookup (self->by_name, t->name);
      if (other != NULL)
        return qomni_fail (error, QOMNI_ERROR_FORMAT, "tensor '%s' is both in "
            "'%s' and in '%s'", t->name, self->shards[other->shard].name,
            self->shards[i].name);
      g_hash_table_insert (self->by_name, (gpointer) t->name, t);
    }
    g_clear_pointer (&header->tensors, g_free);
  }
  return true;
}

/* Every tensor of the index is in the shard it names. Tensors that the index
 * leaves out are listed all the same. */
static bool
check_index (QomniCheckpoint * self, const char *index, JsonObject * map,
    GError ** error)
{
  JsonObjectIter iter;
  const char *name;
  JsonNode *node;

  json_object_iter_init (&iter, map);
  while (json_object_iter_next (&iter, &name, &node)) {
    const QomniTensorInfo *t = qomni_checkpoint_find (self, name);
    const char *shard = json_node_get_string (node);

    if (t == NULL) {
      g_autofree char *text = qomni_excerpt (name, 200);

      return qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s' lists tensor '%s' in "
          "'%s', which does not have it", index, text, shard);
    }
    if (strcmp (self->shards[t->shard].name, shard) != 0)
      return qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s' lists tensor '%s' in "
          "'%s', but it is in '%s'", index, name, shard,
          self->shards[t->shard].name);
  }
  return true;
}

static bool
open_shards (QomniCheckpoint * self, GError ** error)
{
  for (size_t i = 0; i < self->n_shards; i++) {
    if (!open_shard (self, &self->shards[i], error))
      return false;
  }
  return merge_shards (self, error);
}

static bool
open_index (QomniCheckpoint * self, GError ** error)
{
  g_autofree char *path = g_build_filename (self->directory, INDEX, NULL);
  g_autoptr (JsonNode) root = NULL;
  JsonObject *map;

  root = qomni_json_read_file (path, QOMNI_MAX_JSON_BYTES, QOMNI_JSON_STRICT,
      error);
  if (root == NULL)
    return false;
  map = weight_map (root);
  if (map == NULL)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "'%s' has no weight_map",
        path);
  return list_shards (self, path, map, error) && open_shards (self, error)
      && check_index (self, path, map, error);
}

static bool
open_single (QomniCheckpoint * self, GError ** error)
{
  char *name = g_strdup (SINGLE);

  set_shards (self, &name, 1);
  return open_shards (self, error);
}

static bool
fail_without_model (const char *directory, GError ** error)
{
  g_autoptr (GDir) dir = g_dir_open (directory, 0, NULL);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    if (g_str_has_suffix (name, ".gguf") || g_str_has_suffix (name, ".bin")
        || g_str_has_suffix (name, ".pt"))
      return qomni_fail (error, QOMNI_ERROR_UNSUPPORTED, "'%s' has '%s', "
          "expected " SINGLE " or " INDEX, directory, name);
  }
  return qomni_fail (error, QOMNI_ERROR_NOT_FOUND, "'%s' has neither " SINGLE
      " nor " INDEX, directory);
}

/* --- public -------------------------------------------------------------- */

QomniCheckpoint *
qomni_checkpoint_open_with_io (const char *path, QomniReadMode mode,
    const QomniFileIo * io, GError ** error)
{
  g_autoptr (QomniCheckpoint) self = g_new0 (QomniCheckpoint, 1);
  bool ok;

  self->ref_count = 1;
  self->path = g_strdup (path);
  self->mode = mode;
  if (io != NULL) {
    self->io = *io;
    self->has_io = true;
  }
  self->by_name = g_hash_table_new (g_str_hash, g_str_equal);
  self->directory = qomni_checkpoint_resolve (path, error);
  if (self->directory == NULL)
    return NULL;

  if (qomni_file_exists (self->directory, SINGLE))
    ok = open_single (self, error);
  else if (qomni_file_exists (self->directory, INDEX))
    ok = open_index (self, error);
  else
    ok = fail_without_model (self->directory, error);
  return ok ? g_steal_pointer (&self) : NULL;
}

QomniCheckpoint *
qomni_checkpoint_open (const char *path, QomniReadMode mode, GError ** error)
{
  return qomni_checkpoint_open_with_io (path, mode, NULL, error);
}

QomniCheckpoint *
qomni_checkpoint_ref (QomniCheckpoint * self)
{
  g_atomic_int_inc (&self->ref_count);
  return self;
}

void
qomni_checkpoint_unref (QomniCheckpoint * self)
{
  if (self == NULL || !g_atomic_int_dec_and_test (&self->ref_count))
    return;
  for (size_t i = 0; i < self->n_shards; i++)
    close_shard (&self->shards[i]);
  g_free (self->shards);
  g_free (self->tensors);
  g_hash_table_unref (self->by_name);
  g_free (self->path);
  g_free (self->directory);
  g_free (self);
}

const char *
qomni_checkpoint_path (const QomniCheckpoint * self)
{
  return self->path;
}

const char *
qomni_checkpoint_directory (const QomniCheckpoint * self)
{
  return self->directory;
}

size_t
qomni_checkpoint_n_tensors (const QomniCheckpoint * self)
{
  return self->n_tensors;
}

size_t
qomni_checkpoint_n_shards (const QomniCheckpoint * self)
{
  return self->n_shards;
}

const QomniTensorInfo *
qomni_checkpoint_nth (const QomniCheckpoint * self, size_t i)
{
  return i < self->n_tensors ? &self->tensors[i] : NULL;
}

const QomniTensorInfo *
qomni_checkpoint_find (const QomniCheckpoint * self, const char *name)
{
  return g_hash_table_lookup (self->by_name, name);
}

bool
qomni_checkpoint_has_prefix (const QomniCheckpoint * self, const char *prefix)
{
  for (size_t i = 0; i < self->n_tensors; i++) {
    if (g_str_has_prefix (self->tensors[i].name, prefix))
      return true;
  }
  return false;
}

const char *
qomni_checkpoint_shard_name (const QomniCheckpoint * self, uint32_t shard)
{
  return shard < self->n_shards ? self->shards[shard].name : NULL;
}

bool
qomni_checkpoint_read_part (QomniCheckpoint * self,
    const QomniTensorInfo * tensor, uint64_t offset, void *dst, size_t bytes,
    GError ** error)
{
  const Shard *shard = &self->shards[tensor->shard];

  if (offset > tensor->bytes || bytes > tensor->bytes - offset)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "%zu bytes at %"
        G_GUINT64_FORMAT " of tensor '%s', which has %" G_GUINT64_FORMAT,
        bytes, offset, tensor->name, tensor->bytes);
  if (!qomni_file_read_at (self->has_io ? &self->io : NULL, shard->fd,
          shard->path, dst, bytes, tensor->offset + offset, error)) {
    g_prefix_error (error, "tensor '%s': ", tensor->name);
    return false;
  }
  return true;
}

bool
qomni_checkpoint_read (QomniCheckpoint * self, const QomniTensorInfo * tensor,
    void *dst, GError ** error)
{
  if (tensor->bytes > SIZE_MAX)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "tensor '%s' has %"
        G_GUINT64_FORMAT " bytes", tensor->name, tensor->bytes);
  return qomni_checkpoint_read_part (self, tensor, 0, dst,
      (size_t) tensor->bytes, error);
}

const void *
qomni_checkpoint_map (QomniCheckpoint * self, const QomniTensorInfo * tensor)
{
  const Shard *shard = &self->shards[tensor->shard];
  const uint8_t *p;

  if (shard->map == NULL)
    return NULL;
  p = shard->map + tensor->offset;
  return (uintptr_t) p % MAX (tensor->dtype->bits / 8, 1) == 0 ? p : NULL;
}
