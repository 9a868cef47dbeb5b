/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * QomniModel and the registry of models.
 *
 *   path, options -> config, tokenizer, tensor index, backend      (new)
 *     -> component: claims -> weights -> object                    (load)
 *
 * The registry is the one process-wide table: it has an entry, but no
 * reference, for each model that is alive or being opened, so that elements
 * which name the same files and settings share the weights. The last reference
 * is dropped under the registry's lock; a look-up therefore finds either a
 * model that is alive or none.
 *
 * Each component is loaded once, by the first thread that wants it; others
 * wait for the outcome. When it was an error they get the same error, when the
 * first thread was cancelled the next one takes over.
 */
#include "model.h"

#include "file.h"
#include "json.h"
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define N_COMPONENTS 5
#define WAIT_US (20 * G_TIME_SPAN_MILLISECOND)

typedef enum
{
  UNLOADED,
  LOADING,
  LOADED,
} State;

typedef struct
{
  State state;
  unsigned n_attempts;          /* that have ended */
  GError *error;                /* of the last one; NULL if it was cancelled */
  void *object;                 /* when LOADED; read atomically */
  QomniWeights *weights;        /* its memory */
  bool has_info;
  QomniComponentInfo info;
} Component;

struct _QomniModel
{
  int ref_count;                /* atomic; see qomni_model_unref() */
  char *key;                    /* in the registry; NULL: not registered */
  char *path;
  QomniConfig *config;
  QomniTokenizer *tokenizer;
  QomniCheckpoint *checkpoint;
  QkBackend *backend;
  QomniPrecision precision;
  QomniComponents components;
  char fingerprint[17];

  GMutex lock;                  /* guards `component`; a leaf */
  GCond changed;                /* a load has ended */
  Component component[N_COMPONENTS];
};

/* --- components ---------------------------------------------------------- */

typedef struct
{
  const char *name;
  void *(*claim) (const QomniConfig * config, QomniWeights * weights);
  void (*free) (void *object);
} ComponentClass;

#define COMPONENT(Type, function) \
  static void * \
  function##_claim_ (const QomniConfig * config, QomniWeights * weights) \
  { \
    return function##_claim (config, weights); \
  } \
  static void \
  function##_free_ (void *object) \
  { \
    function##_free ((Type *) object); \
  }
COMPONENT (QomniAudioTower, qomni_audio_tower)
COMPONENT (QomniVisionTower, qomni_vision_tower)
COMPONENT (QomniThinkerWeights, qomni_thinker_weights)
COMPONENT (QomniTalkerWeights, qomni_talker_weights)
COMPONENT (QomniCode2WavWeights, qomni_code2wav_weights)

/* In the order of the bits of QomniComponents. */
static const ComponentClass classes[N_COMPONENTS] = {
  {"audio", qomni_audio_tower_claim_, qomni_audio_tower_free_},
  {"vision", qomni_vision_tower_claim_, qomni_vision_tower_free_},
  {"thinker", qomni_thinker_weights_claim_, qomni_thinker_weights_free_},
  {"talker", qomni_talker_weights_claim_, qomni_talker_weights_free_},
  {"code2wav", qomni_code2wav_weights_claim_, qomni_code2wav_weights_free_},
};

/* The index of a single component, or -1. */
static int
component_index (QomniComponents component)
{
  for (int i = 0; i < N_COMPONENTS; i++) {
    if (component == 1u << i)
      return i;
  }
  return -1;
}

const char *
qomni_component_name (QomniComponents component)
{
  int i = component_index (component);

  return i >= 0 ? classes[i].name : "unknown";
}

/* --- options ------------------------------------------------------------- */

static bool
parse_precision (const char *name, QomniPrecision * ret, GError ** error)
{
  if (name == NULL || strcmp (name, "auto") == 0)
    *ret = QOMNI_PRECISION_AUTO;
  else if (strcmp (name, "f32") == 0)
    *ret = QOMNI_PRECISION_F32;
  else if (strcmp (name, "bf16") == 0)
    *ret = QOMNI_PRECISION_BF16;
  else
    return qomni_fail (error, QOMNI_ERROR_SETTINGS, "precision '%s', expected "
        "auto, f32 or bf16", name);
  return true;
}

static bool
check_device (const char *name, GError ** error)
{
  if (name == NULL || strcmp (name, "auto") == 0 || strcmp (name, "cpu") == 0)
    return true;
  if (strcmp (name, "cuda") == 0 || g_str_has_prefix (name, "cuda:"))
    return qomni_fail (error, QOMNI_ERROR_DEVICE, "device '%s': this build has "
        "no CUDA backend", name);
  return qomni_fail (error, QOMNI_ERROR_SETTINGS, "device '%s', expected auto, "
      "cpu or cuda[:N]", name);
}

static bool
check_options (const QomniModelOptions * o, QomniPrecision * ret_precision,
    GError ** error)
{
  if (o->n_threads < 0 || o->n_threads > 4096)
    return qomni_fail (error, QOMNI_ERROR_SETTINGS, "%d threads, expected "
        "0 to 4096", o->n_threads);
  return check_device (o->device, error)
      && parse_precision (o->precision, ret_precision, error);
}

/* --- opening ------------------------------------------------------------- */

/* Token ids that config.json left out, by their spelling. */
static bool
complete_ids (QomniModel * self, GError ** error)
{
  QomniConfig *c = self->config;
  const struct
  {
    int32_t *id;
    const char *token;
    bool needed;
  } ids[] = {
    {&c->im_start, "<|im_start|>", true},
    {&c->im_end, "<|im_end|>", true},
    {&c->system_id, "system", true},
    {&c->user_id, "user", true},
    {&c->assistant_id, "assistant", true},
    {&c->tts_pad, "<tts_pad>", c->has_speech},
    {&c->tts_bos, "<tts_text_bos>", c->has_speech},
    {&c->tts_eos, "<tts_text_eod>", c->has_speech},
    {&c->audio_pad, "<|audio_pad|>", c->has_audio},
    {&c->audio_start, "<|audio_start|>", c->has_audio},
    {&c->audio_end, "<|audio_end|>", c->has_audio},
    {&c->image_pad, "<|image_pad|>", c->has_vision},
    {&c->video_pad, "<|video_pad|>", c->has_vision},
    {&c->vision_start, "<|vision_start|>", c->has_vision},
    {&c->vision_end, "<|vision_end|>", c->has_vision},
  };

  if (qomni_tokenizer_size (self->tokenizer) > c->text.vocab_size)
    return qomni_fail (error, QOMNI_ERROR_FORMAT, "the tokenizer of '%s' has "
        "ids up to %d, the vocab_size of config.json is %" G_GINT64_FORMAT,
        self->path, qomni_tokenizer_size (self->tokenizer) - 1,
        c->text.vocab_size);
  for (size_t i = 0; i < G_N_ELEMENTS (ids); i++) {
    if (*ids[i].id >= 0)
      continue;
    *ids[i].id = qomni_tokenizer_id (self->tokenizer, ids[i].token);
    if (*ids[i].id < 0 && ids[i].needed)
      return qomni_fail (error, QOMNI_ERROR_FORMAT, "neither config.json nor "
          "the tokenizer of '%s' has an id for '%s'", self->path,
          ids[i].token);
  }
  return true;
}

static bool
has_tensors (const QomniModel * self, const char *prefix, const char *part)
{
  g_autofree char *name = g_strconcat (prefix, part, NULL);

  return qomni_checkpoint_has_prefix (self->checkpoint, name);
}

static QomniComponents
find_components (const QomniModel * self)
{
  const QomniConfig *c = self->config;
  const char *thinker = c->thinker_prefix;
  QomniComponents found = 0;

  if (has_tensors (self, thinker, "model."))
    found |= QOMNI_COMPONENT_THINKER;
  if (c->has_audio && has_tensors (self, thinker, "audio_tower."))
    found |= QOMNI_COMPONENT_AUDIO;
  if (c->has_vision && has_tensors (self, thinker, "visual."))
    found |= QOMNI_COMPONENT_VISION;
  /* Codes without a vocoder, or a vocoder without codes, are no speech. */
  if (c->has_speech && has_tensors (self, "talker.", "")
      && has_tensors (self, "code2wav.", ""))
    found |= QOMNI_COMPONENT_SPEECH;
  return found;
}

static bool
add_tensor (QomniModel * self, GChecksum * sum, const char *name,
    GError ** error)
{
  g_autofree char *full = g_strconcat (self->config->thinker_prefix, name,
      NULL);
  const QomniTensorInfo *t = qomni_checkpoint_find (self->checkpoint, full);
  g_autofree uint8_t *data = NULL;

  if (t == NULL || t->bytes == 0 || t->bytes > 1 << 20)
    return true;
  data = g_try_malloc ((size_t) t->bytes);
  if (data == NULL)
    return qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for the %"
        G_GUINT64_FORMAT " bytes of '%s'", t->bytes, full);
  if (!qomni_checkpoint_read (self->checkpoint, t, data, error))
    return false;
  g_checksum_update (sum, (const guchar *) name, (gssize) strlen (name));
  g_checksum_update (sum, data, (gssize) t->bytes);
  return true;
}

static bool
make_fingerprint (QomniModel * self, GError ** error)
{
  g_autoptr (GChecksum) sum = g_checksum_new (G_CHECKSUM_SHA256);
  g_autofree char *path = NULL;
  g_autofree char *data = NULL;
  size_t length;

  path = g_build_filename (qomni_checkpoint_directory (self->checkpoint),
      "config.json", NULL);
  data = qomni_read_file (path, QOMNI_MAX_JSON_BYTES, &length, error);
  if (data == NULL)
    return false;
  g_checksum_update (sum, (const guchar *) data, (gssize) length);
  if (!add_tensor (self, sum, "audio_tower.ln_post.weight", error)
      || !add_tensor (self, sum, "audio_tower.proj2.bias", error)
      || !add_tensor (self, sum, "visual.merger.ln_q.weight", error)
      || !add_tensor (self, sum, "visual.merger.mlp.2.bias", error))
    return false;
  g_strlcpy (self->fingerprint, g_checksum_get_string (sum),
      sizeof self->fingerprint);
  return true;
}

QomniModel *
qomni_model_new (const char *path, const QomniModelOptions * options,
    GError ** error)
{
  static const QomniModelOptions defaults = QOMNI_MODEL_OPTIONS_INIT;
  const QomniModelOptions *o = options != NULL ? options : &defaults;
  g_autoptr (QomniModel) self = g_new0 (QomniModel, 1);
  const char *directory;

  self->ref_count = 1;
  g_mutex_init (&self->lock);
  g_cond_init (&self->changed);
  self->path = g_strdup (path);
  if (!check_options (o, &self->precision, error))
    return NULL;

  /* The config first: "not a model of ours" says more than a missing file. */
  self->config = qomni_config_read (path, error);
  if (self->config == NULL)
    return NULL;
  self->checkpoint = qomni_checkpoint_open (path, o->read_mode, error);
  if (self->checkpoint == NULL)
    return NULL;
  directory = qomni_checkpoint_directory (self->checkpoint);
  self->tokenizer = qomni_tokenizer_read (directory, error);
  if (self->tokenizer == NULL || !complete_ids (self, error)
      || !make_fingerprint (self, error))
    return NULL;
  self->components = find_components (self);

  self->backend = qk_cpu_backend_new (o->n_threads, o->cpu_level);
  if (self->backend == NULL) {
    qomni_fail (error, QOMNI_ERROR_MEMORY, "no memory for the CPU backend");
    return NULL;
  }
  return g_steal_pointer (&self);
}

static void
model_free (QomniModel * self)
{
  for (int i = 0; i < N_COMPONENTS; i++) {
    Component *c = &self->component[i];

    if (c->object != NULL)
      classes[i].free (c->object);
    qomni_weights_free (c->weights);
    g_clear_error (&c->error);
  }
  if (self->backend != NULL)
    self->backend->free (self->backend);
  qomni_tokenizer_free (self->tokenizer);
  qomni_checkpoint_unref (self->checkpoint);
  qomni_config_free (self->config);
  g_cond_clear (&self->changed);
  g_mutex_clear (&self->lock);
  g_free (self->path);
  g_free (self->key);
  g_free (self);
}

/* --- the registry -------------------------------------------------------- */

/* registry_lock guards all of this; no lock is taken inside. Keys belong to
 * the models; a key whose value is NULL is being opened and belongs to the
 * thread that opens it. */
static GMutex registry_lock;
static GCond registry_changed;
static GHashTable *registry;    /* key -> QomniModel, no reference */

QomniModel *
qomni_model_ref (QomniModel * self)
{
  g_atomic_int_inc (&self->ref_count);
  return self;
}

void
qomni_model_unref (QomniModel * self)
{
  bool last;

  if (self == NULL)
    return;
  /* Not the last one: no lock needed. */
  for (;;) {
    int n = g_atomic_int_get (&self->ref_count);

    if (n == 1)
      break;
    if (g_atomic_int_compare_and_exchange (&self->ref_count, n, n - 1))
      return;
  }

  g_mutex_lock (&registry_lock);
  last = g_atomic_int_dec_and_test (&self->ref_count);
  if (last && self->key != NULL) {
    g_hash_table_remove (registry, self->key);
    if (g_hash_table_size (registry) == 0)
      g_clear_pointer (&registry, g_hash_table_unref);
  }
  g_mutex_unlock (&registry_lock);
  if (last)
    model_free (self);
}

static int
compare_strings (const void *a, const void *b)
{
  return strcmp (*(char *const *) a, *(char *const *) b);
}

/* Which files these are: name, device, inode, size and time of every JSON file
 * and shard, so that a checkpoint that was replaced is another model. */
static void
append_identity (GString * key, const char *directory)
{
  g_autoptr (GDir) dir = g_dir_open (directory, 0, NULL);
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    if (g_str_has_suffix (name, ".json") || g_str_has_suffix (name, ".txt")
        || g_str_has_suffix (name, ".safetensors"))
      g_ptr_array_add (names, g_strdup (name));
  }
  if (names->len > 0)
    qsort (names->pdata, names->len, sizeof *names->pdata, compare_strings);
  for (guint i = 0; i < names->len; i++) {
    g_autofree char *path = g_build_filename (directory, names->pdata[i],
        NULL);
    struct stat st;

    if (stat (path, &st) == 0)
      g_string_append_printf (key, "\n%s %llx %llx %llx %llx.%lx",
          (char *) names->pdata[i], (unsigned long long) st.st_dev,
          (unsigned long long) st.st_ino, (unsigned long long) st.st_size,
          (unsigned long long) st.st_mtim.tv_sec,
          (unsigned long) st.st_mtim.tv_nsec);
  }
}

static char *
make_key (const char *path, const QomniModelOptions * o, GError ** error)
{
  g_autofree char *directory = NULL;
  g_autofree char *canonical = NULL;
  char *resolved;
  QomniPrecision precision;
  GString *key;

  if (!check_options (o, &precision, error))
    return NULL;
  directory = qomni_checkpoint_resolve (path, error);
  if (directory == NULL)
    return NULL;
  resolved = realpath (directory, NULL);
  canonical = g_strdup (resolved != NULL ? resolved : directory);
  free (resolved);

  key = g_string_new (canonical);
  /* Every device that check_options() lets through is the CPU. */
  g_string_append_printf (key, "\ncpu %d %d %d %d '%s'", precision,
      o->n_threads, o->cpu_level, o->read_mode,
      o->engine_id != NULL ? o->engine_id : "");
  append_identity (key, canonical);
  return g_string_free (key, FALSE);
}

QomniModel *
qomni_model_ref_or_load (const char *path, const QomniModelOptions * options,
    GError ** error)
{
  static const QomniModelOptions defaults = QOMNI_MODEL_OPTIONS_INIT;
  g_autofree char *key = NULL;
  gpointer value;
  QomniModel *model;

  if (options == NULL)
    options = &defaults;
  key = make_key (path, options, error);
  if (key == NULL)
    return NULL;

  g_mutex_lock (&registry_lock);
  if (registry == NULL)
    registry = g_hash_table_new (g_str_hash, g_str_equal);
  while (g_hash_table_lookup_extended (registry, key, NULL, &value)) {
    if (value != NULL) {
      model = qomni_model_ref (value);
      g_mutex_unlock (&registry_lock);
      return model;
    }
    g_cond_wait (&registry_changed, &registry_lock);
    /* The table may be gone with its last entry. */
    if (registry == NULL)
      registry = g_hash_table_new (g_str_hash, g_str_equal);
  }
  g_hash_table_insert (registry, key, NULL);
  g_mutex_unlock (&registry_lock);

  model = qomni_model_new (path, options, error);

  g_mutex_lock (&registry_lock);
  g_hash_table_remove (registry, key);
  if (model != NULL) {
    model->key = g_steal_pointer (&key);
    g_hash_table_insert (registry, model->key, model);
  } else if (g_hash_table_size (registry) == 0) {
    g_clear_pointer (&registry, g_hash_table_unref);
  }
  g_cond_broadcast (&registry_changed);
  g_mutex_unlock (&registry_lock);
  return model;
}

char *
qomni_model_default_path (bool *ret_builtin)
{
  const char *path = g_getenv ("QOMNI_MODEL");
  const char *directory;
  g_autofree char *builtin = NULL;

  if (ret_builtin != NULL)
    *ret_builtin = false;
  if (path != NULL && *path != '\0')
    return g_strdup (path);

  directory = g_getenv ("QOMNI_MODELS_DIR");
  if (directory == NULL || *directory == '\0')
    directory = QOMNI_MODEL_DIR;
  builtin = g_build_filename (directory, "qomni-nano", NULL);
  if (!qomni_file_exists (builtin, "config.json"))
    return NULL;
  if (ret_builtin != NULL)
    *ret_builtin = true;
  return g_steal_pointer (&builtin);
}

/* --- loading ------------------------------------------------------------- */

static QomniWeights *
weights_new (QomniModel * self)
{
  QomniWeights *w = qomni_weights_new (self->checkpoint, self->backend);

  qomni_weights_set_precision (w, self->precision);
  return w;
}

static QomniComponentInfo
weights_info (const QomniWeights * w)
{
  return (QomniComponentInfo) {
    .bytes = qomni_weights_bytes (w),
    .n_parameters = qomni_weights_n_parameters (w),
    .n_tensors = qomni_weights_n_tensors (w),
    .dtype = qomni_weights_dtype (w),
  };
}

bool
qomni_model_component_info (QomniModel * self, QomniComponents component,
    QomniComponentInfo * ret, GError ** error)
{
  static const QomniComponentInfo none = {.dtype = "" };
  int index = component_index (component);
  g_autoptr (QomniWeights) weights = NULL;
  Component *c;
  bool known;
  void *object;

  if (index < 0)
    return qomni_fail (error, QOMNI_ERROR_INPUT, "0x%x is not one component",
        (unsigned) component);
  if ((self->components & component) == 0) {
    *ret = none;
    return true;
  }
  c = &self->component[index];

  g_mutex_lock (&self->lock);
  known = c->has_info;
  if (known)
    *ret = c->info;
  g_mutex_unlock (&self->lock);
  if (known)
    return true;

  /* Claims without a load. */
  weights = weights_new (self);
  object = classes[index].claim (self->config, weights);
  classes[index].free (object);
  if (!qomni_weights_check (weights, error))
    return false;
  *ret = weights_info (weights);

  g_mutex_lock (&self->lock);
  c->info = *ret;
  c->has_info = true;
  g_mutex_unlock (&self->lock);
  return true;
}

/* Adds up the progress of several components. */
typedef struct
{
  QomniProgressFunc func;
  void *user_data;
  uint64_t before, total;       /* bytes: of earlier components, of all */
} Progress;

static void
report (uint64_t done, uint64_t total, void *user_data)
{
  const Progress *p = user_data;

  if (p->func != NULL)
    p->func (p->before + done, p->total, p->user_data);
}

/* Loads one component; the caller has set its state to LOADING. */
static bool
load_now (QomniModel * self, int index, Progress * progress,
    GCancellable * cancellable, GError ** error)
{
  Component *c = &self->component[index];
  g_autoptr (QomniWeights) weights = weights_new (self);
  g_autoptr (GError) reason = NULL;
  void *object = classes[index].claim (self->config, weights);
  bool ok;

  if (object == NULL)
    qomni_weights_fail (weights, g_error_new (QOMNI_ERROR, QOMNI_ERROR_MEMORY,
            "no memory for the %s component", classes[index].name));
  ok = qomni_weights_load (weights, report, progress, cancellable, &reason);
  if (!ok)
    classes[index].free (object);

  g_mutex_lock (&self->lock);
  c->n_attempts++;
  g_clear_error (&c->error);
  if (ok) {
    c->info = weights_info (weights);
    c->has_info = true;
    c->weights = g_steal_pointer (&weights);
    g_atomic_pointer_set (&c->object, object);
    c->state = LOADED;
  } else {
    c->state = UNLOADED;
    if (!g_error_matches (reason, G_IO_ERROR, G_IO_ERROR_CANCELLED))
      c->error = g_error_copy (reason);
  }
  g_cond_broadcast (&self->changed);
  g_mutex_unlock (&self->lock);

  if (!ok)
    g_propagate_error (error, g_steal_pointer (&reason));
  return ok;
}

/* Waits while another thread loads. true: the lock is held, and the component
 * is LOADED or this thread's to load. */
static bool
wait_for_turn (QomniModel * self, Component * c, GCancellable * cancellable,
    GError ** error)
{
  g_mutex_lock (&self->lock);
  while (c->state == LOADING) {
    unsigned attempt = c->n_attempts;

    while (c->n_attempts == attempt) {
      /* The cancellable may belong to anybody, so it is looked at rather than
       * connected to. */
      g_cond_wait_until (&self->changed, &self->lock,
          g_get_monotonic_time () + WAIT_US);
      if (!qomni_go_on (cancellable, error)) {
        g_mutex_unlock (&self->lock);
        return false;
      }
    }
    if (c->state == UNLOADED && c->error != NULL) {
      g_propagate_error (error, g_error_copy (c->error));
      g_mutex_unlock (&self->lock);
      return false;
    }
  }
  return true;
}

static bool
load_component (QomniModel * self, int index, Progress * progress,
    GCancellable * cancellable, GError ** error)
{
  Component *c = &self->component[index];

  if (!wait_for_turn (self, c, cancellable, error))
    return false;
  if (c->state == LOADED) {
    g_mutex_unlock (&self->lock);
    return true;
  }
  c->state = LOADING;
  g_mutex_unlock (&self->lock);
  return load_now (self, index, progress, cancellable, error);
}

bool
qomni_model_load (QomniModel * self, QomniComponents components,
    QomniProgressFunc progress, void *user_data, GCancellable * cancellable,
    GError ** error)
{
  QomniComponents missing = components & ~qomni_model_loaded (self);
  Progress p = {.func = progress,.user_data = user_data };
  QomniComponentInfo info[N_COMPONENTS];

  for (int i = 0; i < N_COMPONENTS; i++) {
    if ((missing & 1u << i) == 0)
      continue;
    if ((self->components & 1u << i) == 0)
      return qomni_fail (error, QOMNI_ERROR_SETTINGS, "the model '%s' has no "
          "%s component", self->path, classes[i].name);
    if (!qomni_model_component_info (self, 1u << i, &info[i], error))
      return false;
    p.total += info[i].bytes;
  }
  for (int i = 0; i < N_COMPONENTS; i++) {
    if ((missing & 1u << i) == 0)
      continue;
    if (!load_component (self, i, &p, cancellable, error))
      return false;
    p.before += info[i].bytes;
  }
  return true;
}

/* --- what it has --------------------------------------------------------- */

QomniComponents
qomni_model_components (const QomniModel * self)
{
  return self->components;
}

static void *
loaded_object (const QomniModel * self, int index)
{
  /* The macro wants a pointer to something it could write to. */
  void *const *object = &self->component[index].object;

  return g_atomic_pointer_get ((void **) object);
}

QomniComponents
qomni_model_loaded (QomniModel * self)
{
  QomniComponents loaded = 0;

  for (int i = 0; i < N_COMPONENTS; i++) {
    if (loaded_object (self, i) != NULL)
      loaded |= 1u << i;
  }
  return loaded;
}

const char *
qomni_model_path (const QomniModel * self)
{
  return self->path;
}

const QomniConfig *
qomni_model_config (const QomniModel * self)
{
  return self->config;
}

const QomniTokenizer *
qomni_model_tokenizer (const QomniModel * self)
{
  return self->tokenizer;
}

QomniCheckpoint *
qomni_model_checkpoint (const QomniModel * self)
{
  return self->checkpoint;
}

QkBackend *
qomni_model_backend (const QomniModel * self)
{
  return self->backend;
}

const char *
qomni_model_fingerprint (const QomniModel * self)
{
  return self->fingerprint;
}

const QomniAudioTower *
qomni_model_audio (const QomniModel * self)
{
  return loaded_object (self, 0);
}

const QomniVisionTower *
qomni_model_vision (const QomniModel * self)
{
  return loaded_object (self, 1);
}

const QomniThinkerWeights *
qomni_model_thinker (const QomniModel * self)
{
  return loaded_object (self, 2);
}

const QomniTalkerWeights *
qomni_model_talker (const QomniModel * self)
{
  return loaded_object (self, 3);
}

const QomniCode2WavWeights *
qomni_model_code2wav (const QomniModel * self)
{
  return loaded_object (self, 4);
}
