/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Damaged and crafted checkpoints: each is refused with the right code and a
 * message that names the file and the thing, none is read past its end.
 */
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "model.h"
#include "safetensors.h"
#include "scratch.h"

#define SHARD "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

static void
expect_refused (const char *dir, QomniErrorCode code, const char *words)
{
  for (int mode = QOMNI_READ_PRIVATE; mode <= QOMNI_READ_MAPPED; mode++) {
    g_autoptr (GError) error = NULL;
    g_autoptr (QomniCheckpoint) c = qomni_checkpoint_open (dir, mode, &error);

    if (c != NULL)
      g_error ("accepted, expected '%s'", words);
    g_test_message ("%s", error->message);
    assert_refused (&error, code, words);
  }
}

/* --- headers ------------------------------------------------------------- */

typedef struct
{
  const char *header;
  size_t n_data;
  QomniErrorCode code;
  const char *words;
} Crafted;

#define T(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":[" shape \
    "],\"data_offsets\":[" offsets "]}"

static const Crafted crafted[] = {
  /* Layout. */
  {"{" A "}", 7, QOMNI_ERROR_READ, "'a' ends at byte"},
  {"{" A "}", 0, QOMNI_ERROR_READ, "truncated"},
  {"{" A "}", 9, QOMNI_ERROR_FORMAT, "its tensors end at"},
  {"{}", 1, QOMNI_ERROR_FORMAT, "its tensors end at"},
  {"{" A ",\"b\":" T ("U8", "1", "9,10") "}", 10, QOMNI_ERROR_FORMAT,
      "'b' begins at 9, expected 8: there is a hole"},
  {"{\"b\":" T ("U8", "1", "1,2") "}", 2, QOMNI_ERROR_FORMAT, "hole"},
  {"{" A ",\"b\":" T ("U8", "8", "4,12") "}", 12, QOMNI_ERROR_FORMAT,
      "'b' begins at 4, expected 8: tensors overlap"},
  {"{" A ",\"b\":" T ("F32", "2", "0,8") "}", 8, QOMNI_ERROR_FORMAT,
      "overlap"},
  {"{" A ",\"b\":" T ("U8", "0", "3,3") "}", 8, QOMNI_ERROR_FORMAT,
      "overlap"},
  {"{\"b\":" T ("U8", "1", "8,7") "}", 8, QOMNI_ERROR_FORMAT,
      "'b' ends at 7, before its begin at 8"},
  {"{\"b\":" T ("U8", "281474976710655", "0,281474976710655") "}", 8,
      QOMNI_ERROR_READ, "truncated"},

  /* Sizes. */
  {"{\"b\":" T ("F32", "3", "0,8") "}", 8, QOMNI_ERROR_FORMAT,
      "has 8 bytes of data, its shape and dtype F32 take 12"},
  {"{\"b\":" T ("F32", "", "0,8") "}", 8, QOMNI_ERROR_FORMAT, "take 4"},
  {"{\"b\":" T ("F4", "3", "0,1") "}", 1, QOMNI_ERROR_FORMAT, "dtype F4"},
  {"{\"b\":" T ("F32", "281474976710655,281474976710655", "0,8") "}", 8,
      QOMNI_ERROR_FORMAT, "does not fit 64 bits"},
  {"{\"b\":" T ("F32", "4294967296,4294967296,0", "0,0") "}", 0,
      QOMNI_ERROR_FORMAT, "does not fit 64 bits"},
  {"{\"b\":" T ("F32", "281474976710656", "0,8") "}", 8, QOMNI_ERROR_FORMAT,
      "byte"},
  {"{\"b\":" T ("F32", "18446744073709551616", "0,8") "}", 8,
      QOMNI_ERROR_FORMAT, "64 bits"},
  {"{\"b\":" T ("F32", "-2", "0,8") "}", 8, QOMNI_ERROR_FORMAT, "2^48-1"},
  {"{\"b\":" T ("F32", "2", "-8,0") "}", 8, QOMNI_ERROR_FORMAT, "2^48-1"},
  {"{\"b\":" T ("F32", "2.0", "0,8") "}", 8, QOMNI_ERROR_FORMAT,
      "dimension 0 is no size"},
  {"{\"b\":" T ("F32", "2e0", "0,8") "}", 8, QOMNI_ERROR_FORMAT, "no size"},
  {"{\"b\":" T ("F32", "\"2\"", "0,8") "}", 8, QOMNI_ERROR_FORMAT, "no size"},
  {"{\"b\":" T ("F32", "null", "0,8") "}", 8, QOMNI_ERROR_FORMAT, "no size"},
  {"{\"b\":" T ("F32", "[2]", "0,8") "}", 8, QOMNI_ERROR_FORMAT, "no size"},
  {"{\"b\":" T ("F32", "1,1,1,1,1,1,1,1,2", "0,8") "}", 8, QOMNI_ERROR_LIMIT,
      "has 9 dimensions, the limit is 8"},

  /* Entries. */
  {"{\"b\":1}", 0, QOMNI_ERROR_FORMAT, "'b' is no object"},
  {"{\"b\":null}", 0, QOMNI_ERROR_FORMAT, "'b' is no object"},
  {"{\"b\":{}}", 0, QOMNI_ERROR_FORMAT, "'b' has no dtype"},
  {"{\"b\":{\"dtype\":7}}", 0, QOMNI_ERROR_FORMAT, "no dtype"},
  {"{\"b\":" T ("F33", "2", "0,8") "}", 8, QOMNI_ERROR_FORMAT,
      "unknown dtype 'F33'"},
  {"{\"b\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0,
      QOMNI_ERROR_FORMAT, "no shape"},
  {"{\"b\":{\"dtype\":\"U8\",\"shape\":{},\"data_offsets\":[0,0]}}", 0,
      QOMNI_ERROR_FORMAT, "no shape"},
  {"{\"b\":{\"dtype\":\"U8\",\"shape\":[1]}}", 0, QOMNI_ERROR_FORMAT,
      "no two data_offsets"},
  {"{\"b\":" T ("U8", "1", "0") "}", 1, QOMNI_ERROR_FORMAT, "data_offsets"},
  {"{\"b\":" T ("U8", "1", "0,1,2") "}", 1, QOMNI_ERROR_FORMAT,
      "data_offsets"},
  {"{\"__metadata__\":[]}", 0, QOMNI_ERROR_FORMAT, "__metadata__"},
  {"{\"__metadata__\":{\"a\":1}}", 0, QOMNI_ERROR_FORMAT, "__metadata__"},

  /* Documents. */
  {"[]", 0, QOMNI_ERROR_FORMAT, "does not begin with '{'"},
  {" {}", 0, QOMNI_ERROR_FORMAT, "does not begin with '{'"},
  {"{}x", 0, QOMNI_ERROR_FORMAT, "byte 2"},
  {"{} {}", 0, QOMNI_ERROR_FORMAT, "byte 3"},
  {"{", 0, QOMNI_ERROR_FORMAT, "byte 1"},
  {"{" A "," A "}", 8, QOMNI_ERROR_FORMAT, "duplicate key"},
  {"{" A ",\"\\u0061\":" T ("U8", "0", "8,8") "}", 8, QOMNI_ERROR_FORMAT,
      "duplicate key"},
  {"{\"b\":{\"dtype\":\"U8\",\"dtype\":\"I8\"}}", 0, QOMNI_ERROR_FORMAT,
      "duplicate key"},
  {"{\"a\\u0000b\":" T ("U8", "0", "0,0") "}", 0, QOMNI_ERROR_FORMAT,
      "\\u0000"},
  {"{\"b\":NaN}", 0, QOMNI_ERROR_FORMAT, "byte 5"},
  {"{\"b\":1e400}", 0, QOMNI_ERROR_FORMAT, "byte 5"},
  {"{'b':1}", 0, QOMNI_ERROR_FORMAT, "byte 1"},
  {"{\"\xff\":1}", 0, QOMNI_ERROR_FORMAT, "byte 2: not UTF-8"},
};

static void
test_crafted_headers (void)
{
  for (size_t i = 0; i < G_N_ELEMENTS (crafted); i++) {
    g_autoptr (Scratch) dir = scratch_new ();

    scratch_write_shard (dir, SHARD, crafted[i].header, crafted[i].n_data);
    expect_refused (dir, crafted[i].code, crafted[i].words);
    expect_refused (dir, crafted[i].code, SHARD);
  }
}

static void
test_header_lengths (void)
{
  static const struct
  {
    uint64_t length;
    QomniErrorCode code;
    const char *words;
  } cases[] = {
    {0, QOMNI_ERROR_FORMAT, "the header is empty"},
    {3, QOMNI_ERROR_READ, "3 bytes, the file has 10 in all"},
    {100000000, QOMNI_ERROR_READ, "the file has 10 in all"},
    {100000001, QOMNI_ERROR_LIMIT, "the limit is 100000000"},
    {UINT64_C (1) << 63, QOMNI_ERROR_LIMIT, "9223372036854775808"},
    {UINT64_MAX, QOMNI_ERROR_LIMIT, "18446744073709551615"},
    {UINT64_MAX - 7, QOMNI_ERROR_LIMIT, "18446744073709551608"},
  };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autoptr (Scratch) dir = scratch_new ();
    uint64_t length = GUINT64_TO_LE (cases[i].length);
    char file[10] = "        {}";

    memcpy (file, &length, sizeof length);
    scratch_write (dir, SHARD, file, sizeof file);
    expect_refused (dir, cases[i].code, cases[i].words);
  }
}

static void
test_limits (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (GString) header = g_string_new ("{\"");

  /* A name of 1025 bytes, with a character across the cut of the message. */
  for (int i = 0; i < 41; i++)
    g_string_append_c (header, 'n');
  for (int i = 0; i < 492; i++)
    g_string_append (header, "\xc3\xa4");
  g_string_append (header, "\":" T ("U8", "0", "0,0") "}");
  scratch_write_shard (dir, SHARD, header->str, 0);
  expect_refused (dir, QOMNI_ERROR_LIMIT, "has 1025 bytes, the limit is 1024");

  /* One tensor too many. */
  g_string_assign (header, "{");
  for (int i = 0; i <= QOMNI_MAX_TENSORS; i++)
    g_string_append_printf (header, "%s\"%x\":" T ("U8", "0", "0,0"),
        i > 0 ? "," : "", i);
  g_string_append_c (header, '}');
  scratch_write_shard (dir, SHARD, header->str, 0);
  expect_refused (dir, QOMNI_ERROR_LIMIT, "the limit is 262144");
}

static void
test_every_truncation (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *file = NULL;
  size_t n;

  scratch_write_shard (dir, SHARD, "{" A ",\"b\":" T ("I8", "5", "8,13") "}",
      13);
  file = scratch_read (dir, SHARD, &n);
  for (size_t cut = 0; cut < n; cut++) {
    scratch_write (dir, SHARD, file, cut);
    expect_refused (dir, QOMNI_ERROR_READ, SHARD);
  }
}

/* In the header as in the data, of a real one. */
static void
test_truncated_model (void)
{
  static const size_t cuts[] = { 0, 1, 7, 8, 9, 1000, 61151, 61152, 61153 };
  g_autofree char *path = fixture_path ("tiny-a");
  g_autoptr (Scratch) dir = NULL;
  g_autofree char *file = NULL;
  g_autoptr (GError) error = NULL;
  size_t n;

  if (path == NULL)
    return;
  dir = scratch_new ();
  scratch_copy (path, dir);
  file = scratch_read (path, SHARD, &n);
  for (size_t i = 0; i < G_N_ELEMENTS (cuts) + 2; i++) {
    size_t cut = i < G_N_ELEMENTS (cuts) ? cuts[i]
        : i == G_N_ELEMENTS (cuts) ? n / 2 : n - 1;

    g_assert_cmpuint (cut, <, n);
    scratch_write (dir, SHARD, file, cut);
    g_assert_null (qomni_model_ref_or_load (dir, NULL, &error));
    assert_refused (&error, QOMNI_ERROR_READ, SHARD);
  }
  scratch_write (dir, SHARD, file, n);
  qomni_model_unref (qomni_model_ref_or_load (dir, NULL, &error));
  g_assert_no_error (error);
}

/* --- the directory ------------------------------------------------------- */

static void
write_index (const char *dir, const char *weight_map)
{
  g_autofree char *text = g_strdup_printf ("{\"weight_map\":%s}", weight_map);

  scratch_write_text (dir, INDEX, text);
}

static void
test_index (void)
{
  static const struct
  {
    const char *map;
    QomniErrorCode code;
    const char *words;
  } cases[] = {
    {"{\"a\":\"one\",\"x\":\"three\"}", QOMNI_ERROR_NOT_FOUND, "/three"},
    {"{\"a\":\"one\",\"x\":\"one\"}", QOMNI_ERROR_FORMAT,
        "lists tensor 'x' in 'one', which does not have it"},
    {"{\"a\":\"two\",\"b\":\"one\"}", QOMNI_ERROR_FORMAT, "but it is in"},
    {"{\"a\":\"one\",\"c\":\"again\"}", QOMNI_ERROR_FORMAT,
        "tensor 'a' is both in 'again' and in 'one'"},
    {"{\"a\":\"../one\"}", QOMNI_ERROR_FORMAT, "'../one'"},
    {"{\"a\":\"/etc/passwd\"}", QOMNI_ERROR_FORMAT, "'/etc/passwd'"},
    {"{\"a\":\"..\"}", QOMNI_ERROR_FORMAT, "'..'"},
    {"{\"a\":\"\"}", QOMNI_ERROR_FORMAT, "expected the name of a file"},
    {"{\"a\":7}", QOMNI_ERROR_FORMAT, "expected the name of a file"},
    {"{\"a\":null}", QOMNI_ERROR_FORMAT, "expected the name of a file"},
    {"{\"a\":\"fifo\"}", QOMNI_ERROR_OPEN, "a FIFO"},
    {"{\"a\":\"directory\"}", QOMNI_ERROR_OPEN, "a directory"},
    {"{\"a\":\"loop\"}", QOMNI_ERROR_OPEN, "/loop"},
    {"{\"a\":\"dangling\"}", QOMNI_ERROR_NOT_FOUND, "/dangling"},
    {"{\"a\":\"empty\"}", QOMNI_ERROR_READ, "/empty"},
    {"{}", QOMNI_ERROR_FORMAT, "lists no tensors"},
    {"[]", QOMNI_ERROR_FORMAT, "has no weight_map"},
    {"{\"a\":\"one\",\"a\":\"two\"}", QOMNI_ERROR_FORMAT, "duplicate key"},
  };
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *fifo = g_build_filename (dir, "fifo", NULL);
  g_autofree char *directory = g_build_filename (dir, "directory", NULL);
  g_autofree char *loop = g_build_filename (dir, "loop", NULL);
  g_autofree char *dangling = g_build_filename (dir, "dangling", NULL);

  scratch_write_shard (dir, "one", "{" A "}", 8);
  scratch_write_shard (dir, "again", "{" A ",\"c\":" T ("U8", "1", "8,9") "}",
      9);
  scratch_write_shard (dir, "two", "{\"b\":" T ("U8", "1", "0,1") "}", 1);
  scratch_write (dir, "empty", "", 0);
  g_assert_cmpint (mkfifo (fifo, 0600), ==, 0);
  g_assert_cmpint (g_mkdir (directory, 0700), ==, 0);
  g_assert_cmpint (symlink ("loop", loop), ==, 0);
  g_assert_cmpint (symlink ("nowhere", dangling), ==, 0);

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    write_index (dir, cases[i].map);
    expect_refused (dir, cases[i].code, cases[i].words);
  }
  scratch_write_text (dir, INDEX, "{");
  expect_refused (dir, QOMNI_ERROR_FORMAT, INDEX);
  scratch_write_text (dir, INDEX, "7");
  expect_refused (dir, QOMNI_ERROR_FORMAT, "has no weight_map");
  scratch_write_text (dir, INDEX, "{\"metadata\":{}}");
  expect_refused (dir, QOMNI_ERROR_FORMAT, "has no weight_map");

  write_index (dir, "{\"a\":\"one\",\"b\":\"two\"}");
  qomni_checkpoint_unref (qomni_checkpoint_open (dir, QOMNI_READ_PRIVATE,
          NULL));
}

static void
test_too_many_shards (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (GString) map = g_string_new ("{");

  for (int i = 0; i <= QOMNI_MAX_SHARDS; i++)
    g_string_append_printf (map, "%s\"t%d\":\"s%d\"", i > 0 ? "," : "", i, i);
  g_string_append_c (map, '}');
  write_index (dir, map->str);
  expect_refused (dir, QOMNI_ERROR_LIMIT, "more than 1024 shards");
}

static void
test_large_index (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, INDEX, NULL);

  scratch_write_text (dir, INDEX, "{}");
  g_assert_cmpint (truncate (path, QOMNI_MAX_JSON_BYTES + 1), ==, 0);
  expect_refused (dir, QOMNI_ERROR_LIMIT, "the limit is 16777216");
}

static void
test_no_model (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *file = g_build_filename (dir, "README.md", NULL);
  g_autofree char *below = g_build_filename (dir, "README.md", "x", NULL);
  g_autofree char *shard = g_build_filename (dir, "x.safetensors", NULL);

  expect_refused ("/nonexistent/dir", QOMNI_ERROR_NOT_FOUND, "/nonexistent");
  expect_refused ("", QOMNI_ERROR_NOT_FOUND, "no path");
  expect_refused (dir, QOMNI_ERROR_NOT_FOUND, "has neither");
  scratch_write_text (dir, "README.md", "hello");
  expect_refused (file, QOMNI_ERROR_UNSUPPORTED, "is no directory");
  expect_refused (below, QOMNI_ERROR_NOT_FOUND, "README.md/x");
  scratch_write_text (dir, "x.safetensors", "");
  expect_refused (shard, QOMNI_ERROR_UNSUPPORTED, "one safetensors file");
  scratch_write_text (dir, "pytorch_model.bin", "");
  expect_refused (dir, QOMNI_ERROR_UNSUPPORTED, "pytorch_model.bin");
}

static void
test_no_descriptors (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (GError) error = NULL;
  struct rlimit before, none;
  QomniCheckpoint *c;

  scratch_write_shard (dir, SHARD, "{" A "}", 8);
  getrlimit (RLIMIT_NOFILE, &before);
  none = before;
  none.rlim_cur = 0;
  g_assert_cmpint (setrlimit (RLIMIT_NOFILE, &none), ==, 0);
  c = qomni_checkpoint_open (dir, QOMNI_READ_PRIVATE, &error);
  setrlimit (RLIMIT_NOFILE, &before);
  g_assert_null (c);
  assert_refused (&error, QOMNI_ERROR_OPEN, SHARD);
}

static void
test_no_permission (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, SHARD, NULL);

  if (geteuid () == 0) {
    g_test_skip ("root may read everything");
    return;
  }
  scratch_write_shard (dir, SHARD, "{" A "}", 8);
  g_chmod (path, 0);
  expect_refused (dir, QOMNI_ERROR_OPEN, SHARD);
}

/* --- single bits --------------------------------------------------------- */

static const QomniTensorInfo *
find (const QomniSafetensors * st, const QomniTensorInfo * wanted)
{
  for (size_t i = 0; i < st->n; i++) {
    if (strcmp (st->tensors[i].name, wanted->name) == 0)
      return &st->tensors[i];
  }
  return NULL;
}

/* With one bit flipped a header is refused, or describes each tensor that
 * still has its name as before. */
static void
test_header_bits (void)
{
  static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},"
      "\"l.0.w\":" T ("BF16", "2,3", "0,12") ",\"l.1.w\":" T ("F32", "4",
      "12,28") ",\"s\":" T ("I8", "", "28,29") "}   ";
  const size_t length = sizeof header - 1;
  g_auto (QomniSafetensors) good = { NULL, 0, NULL };
  int n_accepted = 0;

  g_assert_true (qomni_safetensors_parse ("h", header, length,
          8 + length + 29, &good, NULL));
  g_assert_cmpuint (good.n, ==, 3);
  for (size_t bit = 0; bit < 8 * length; bit++) {
    /* A block of its own, so that a sanitizer sees a read behind it. */
    g_autofree char *flipped = g_memdup2 (header, length);
    g_auto (QomniSafetensors) st = { NULL, 0, NULL };
    g_autoptr (GError) error = NULL;

    flipped[bit / 8] ^= (char) (1 << bit % 8);
    if (!qomni_safetensors_parse ("h", flipped, length, 8 + length + 29, &st,
            &error)) {
      g_assert_nonnull (error);
      continue;
    }
    g_assert_no_error (error);
    n_accepted++;
    for (size_t i = 0; i < good.n; i++) {
      const QomniTensorInfo *t = find (&st, &good.tensors[i]);

      if (t == NULL)
        continue;
      g_assert_true (t->dtype == good.tensors[i].dtype);
      g_assert_cmpint (t->n_dims, ==, good.tensors[i].n_dims);
      g_assert_cmpmem (t->dims, sizeof t->dims, good.tensors[i].dims,
          sizeof t->dims);
      g_assert_cmpuint (t->offset, ==, good.tensors[i].offset);
    }
  }
  /* Names and metadata only. */
  g_assert_cmpint (n_accepted, >, 10);
  g_assert_cmpint (n_accepted, <, 200);
}

static void
check_decoder (const QomniDecoderConfig * d)
{
  g_assert_true (d->hidden_size >= 1 && d->hidden_size <= QOMNI_MAX_WIDTH);
  g_assert_true (d->n_layers >= 1 && d->n_layers <= QOMNI_MAX_LAYERS);
  g_assert_true (d->n_heads >= 1 && d->n_heads <= QOMNI_MAX_HEADS);
  g_assert_true (d->n_kv_heads >= 1 && d->n_heads % d->n_kv_heads == 0);
  g_assert_true (d->head_dim >= 2 && d->head_dim % 2 == 0);
  g_assert_true (d->vocab_size >= 1
      && d->vocab_size <= (int64_t) 256 * QOMNI_MAX_VOCABULARY);
  g_assert_true (d->n_experts >= 0 && d->n_experts <= QOMNI_MAX_EXPERTS);
  g_assert_true (d->top_k >= 0 && d->top_k <= d->n_experts);
  for (int i = 0; i < 3; i++)
    g_assert_true (d->mrope_section[i] >= 0 && d->mrope_section[i] <= 4096);
}

/* What the rest of the engine takes for granted. */
static void
check_config (const QomniConfig * c)
{
  const QomniTalkerConfig *t = &c->talker;

  check_decoder (&c->text);
  if (c->has_audio) {
    g_assert_cmpint (c->audio.output_dim, ==, c->text.hidden_size);
    g_assert_cmpint (c->audio.width % c->audio.n_heads, ==, 0);
    g_assert_cmpint (c->audio.window_chunks, >=, 1);
  }
  if (c->has_vision) {
    g_assert_cmpint (c->vision.output_dim, ==, c->text.hidden_size);
    g_assert_cmpint (c->vision.width % (4 * c->vision.n_heads), ==, 0);
    for (int i = 0; i < c->vision.n_deepstack; i++)
      g_assert_cmpint (c->vision.deepstack_layer[i], <, c->vision.depth);
  }
  g_assert_cmpint (c->audio_pad, <, c->text.vocab_size);
  g_assert_cmpint (c->im_start, <, c->text.vocab_size);
  if (!c->has_speech)
    return;
  check_decoder (&t->text);
  check_decoder (&t->predictor);
  check_decoder (&c->code2wav.pre);
  g_assert_cmpint (t->accept_layer, <=, c->text.n_layers);
  g_assert_cmpint (t->codec_eos, <, t->text.vocab_size);
  for (int i = 0; i < t->n_voices; i++)
    g_assert_cmpint (t->voices[i].id, <, t->text.vocab_size);
  g_assert_cmpint (c->code2wav.n_quantizers, ==, t->n_groups);
  g_assert_cmpint (c->code2wav.codebook_size, ==, t->codebook_size);
  g_assert_cmpint (c->code2wav.samples_per_frame, <=, 1 << 20);
}

static void
test_config_bits (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  g_autofree char *text = NULL;
  g_autoptr (JsonNode) node = NULL;
  g_autofree char *compact = NULL;
  size_t length;
  int n_accepted = 0;

  if (path == NULL)
    return;
  text = scratch_read (path, "config.json", NULL);
  node = json_from_string (text, NULL);
  compact = json_to_string (node, FALSE);
  length = strlen (compact);

  for (size_t bit = 0; bit < 8 * length; bit++) {
    g_autofree char *flipped = g_memdup2 (compact, length);
    g_autoptr (GError) error = NULL;
    g_autoptr (QomniConfig) c = NULL;

    flipped[bit / 8] ^= (char) (1 << bit % 8);
    c = qomni_config_parse ("config.json", flipped, length, &error);
    g_assert_true ((c == NULL) == (error != NULL));
    if (c != NULL) {
      check_config (c);
      n_accepted++;
    }
  }
  g_assert_cmpint (n_accepted, >, 100);
}

/* A flipped bit of the index of two shards. */
static void
test_index_bits (void)
{
  static const char index[] = "{\"metadata\":{\"total_size\":9},"
      "\"weight_map\":{\"a\":\"s1\",\"b\":\"s2\"}}";
  g_autoptr (Scratch) dir = scratch_new ();

  scratch_write_shard (dir, "s1", "{" A "}", 8);
  scratch_write_shard (dir, "s2", "{\"b\":" T ("U8", "1", "0,1") "}", 1);
  for (size_t bit = 0; bit < 8 * (sizeof index - 1); bit++) {
    g_autoptr (GError) error = NULL;
    g_autoptr (QomniCheckpoint) c = NULL;
    char flipped[sizeof index];

    memcpy (flipped, index, sizeof index);
    flipped[bit / 8] ^= (char) (1 << bit % 8);
    scratch_write (dir, INDEX, flipped, sizeof index - 1);
    c = qomni_checkpoint_open (dir, QOMNI_READ_PRIVATE, &error);
    if (c == NULL) {
      g_assert_nonnull (error);
      continue;
    }
    g_assert_nonnull (qomni_checkpoint_find (c, "a"));
    g_assert_nonnull (qomni_checkpoint_find (c, "b"));
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/bad-checkpoint/crafted_headers_are_refused",
      test_crafted_headers);
  g_test_add_func ("/bad-checkpoint/header_lengths_are_checked_first",
      test_header_lengths);
  g_test_add_func ("/bad-checkpoint/limits_are_named", test_limits);
  g_test_add_func ("/bad-checkpoint/every_truncation_is_refused",
      test_every_truncation);
  g_test_add_func ("/bad-checkpoint/truncated_model_names_its_shard",
      test_truncated_model);
  g_test_add_func ("/bad-checkpoint/bad_index_is_refused", test_index);
  g_test_add_func ("/bad-checkpoint/shards_are_counted",
      test_too_many_shards);
  g_test_add_func ("/bad-checkpoint/large_index_is_refused",
      test_large_index);
  g_test_add_func ("/bad-checkpoint/no_model_is_told_from_another_format",
      test_no_model);
  g_test_add_func ("/bad-checkpoint/no_descriptors_is_an_error",
      test_no_descriptors);
  g_test_add_func ("/bad-checkpoint/no_permission_is_an_error",
      test_no_permission);
  g_test_add_func ("/bad-checkpoint/header_bits_refuse_or_change_nothing",
      test_header_bits);
  g_test_add_func ("/bad-checkpoint/config_bits_refuse_or_stay_in_range",
      test_config_bits);
  g_test_add_func ("/bad-checkpoint/index_bits_refuse_or_change_nothing",
      test_index_bits);
  return g_test_run ();
}
