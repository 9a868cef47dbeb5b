/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * tokenizer.c against the Qwen2Tokenizer of transformers on strings that are
 * easily got wrong (tests/core/data/make-tokenizer.py), properties that hold
 * for any string, and files that must be refused.
 */
#include "tokenizer.h"

#include <json-glib/json-glib.h>
#include <unistd.h>

#include "scratch.h"

static char *
data_path (const char *name)
{
  return g_build_filename (g_getenv ("QOMNI_TEST_FIXTURES"), "..", "..",
      "core", "data", "tokenizer", name, NULL);
}

static QomniTokenizer *
read_tokenizer (const char *path)
{
  g_autoptr (GError) error = NULL;
  QomniTokenizer *t = qomni_tokenizer_read (path, &error);

  g_assert_no_error (error);
  return t;
}

static QomniTokenizer *
fixture (void)
{
  g_autofree char *path = data_path (NULL);

  return read_tokenizer (path);
}

/* A copy of one file of the fixture. */
static void
copy_file (const char *dir, const char *name)
{
  g_autofree char *from = data_path (NULL);
  size_t n;
  g_autofree char *data = scratch_read (from, name, &n);

  scratch_write (dir, name, data, n);
}

static int32_t *
encode (const QomniTokenizer * t, const char *text, gssize length,
    QomniEncodeFlags flags, size_t *ret_n)
{
  g_autoptr (GError) error = NULL;
  int32_t *ids = qomni_tokenizer_encode (t, text, length, flags, ret_n,
      &error);

  g_assert_no_error (error);
  g_assert_nonnull (ids);
  return ids;
}

static char *
streamed (const QomniTokenizer * t, const int32_t * ids, size_t n)
{
  g_autoptr (QomniDetokenizer) d = qomni_detokenizer_new (t);
  GString *ret = g_string_new (NULL);

  for (size_t i = 0; i < n; i++) {
    const char *piece = qomni_detokenizer_push (d, ids[i]);

    g_assert_true (g_utf8_validate (piece, -1, NULL));
    g_string_append (ret, piece);
  }
  g_string_append (ret, qomni_detokenizer_flush (d));
  g_assert_cmpstr (qomni_detokenizer_flush (d), ==, "");
  return g_string_free (ret, FALSE);
}

static void
assert_ids (const QomniTokenizer * t, const char *text,
    QomniEncodeFlags flags, JsonArray * expected)
{
  size_t n;
  g_autofree int32_t *ids = encode (t, text, -1, flags, &n);
  bool same = n == json_array_get_length (expected);

  for (size_t i = 0; same && i < n; i++)
    same = ids[i] == json_array_get_int_element (expected, (guint) i);
  if (!same) {
    g_autofree char *shown = g_strescape (text, NULL);

    g_error ("'%s' (%d) has other ids", shown, (int) flags);
  }
}

static void
assert_is_the_reference (const QomniTokenizer * t)
{
  g_autofree char *path = data_path ("cases.json");
  g_autoptr (JsonParser) parser = json_parser_new ();
  g_autoptr (GError) error = NULL;
  JsonArray *cases;

  json_parser_load_from_file (parser, path, &error);
  g_assert_no_error (error);
  cases = json_node_get_array (json_parser_get_root (parser));
  g_assert_cmpuint (json_array_get_length (cases), >=, 150);
  for (guint i = 0; i < json_array_get_length (cases); i++) {
    JsonObject *c = json_array_get_object_element (cases, i);
    const char *text = json_object_get_string_member (c, "text");
    g_autofree int32_t *ids = NULL;
    g_autofree char *decoded = NULL;
    g_autofree char *spoken = NULL;
    g_autofree char *stream = NULL;
    size_t n;

    assert_ids (t, text, QOMNI_ENCODE_PLAIN,
        json_object_get_array_member (c, "plain"));
    assert_ids (t, text, QOMNI_ENCODE_SPECIAL,
        json_object_get_array_member (c, "special"));
    ids = encode (t, text, -1, QOMNI_ENCODE_SPECIAL, &n);
    decoded = qomni_tokenizer_decode (t, ids, n, false);
    spoken = qomni_tokenizer_decode (t, ids, n, true);
    stream = streamed (t, ids, n);
    g_assert_cmpstr (decoded, ==, json_object_get_string_member (c, "decoded"));
    g_assert_cmpstr (spoken, ==, json_object_get_string_member (c, "spoken"));
    g_assert_cmpstr (stream, ==, spoken);
  }
}

static void
ids_and_texts_are_those_of_the_reference (void)
{
  g_autoptr (QomniTokenizer) t = fixture ();

  assert_is_the_reference (t);
}

static void
one_tokenizer_json_reads_the_same (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniTokenizer) t = NULL;

  copy_file (dir, "tokenizer.json");
  t = read_tokenizer (dir);
  assert_is_the_reference (t);
}

static void
added_tokens_come_from_tokenizer_json_when_the_config_has_none (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniTokenizer) t = NULL;

  copy_file (dir, "vocab.json");
  copy_file (dir, "merges.txt");
  copy_file (dir, "tokenizer.json");
  scratch_write_text (dir, "tokenizer_config.json", "{}");
  t = read_tokenizer (dir);
  assert_is_the_reference (t);
}

static void
tokens_are_found_as_they_read (void)
{
  g_autoptr (QomniTokenizer) t = fixture ();
  int32_t start = qomni_tokenizer_id (t, "<|im_start|>");
  int32_t think = qomni_tokenizer_id (t, "<think>");

  g_assert_cmpint (start, >, 0);
  g_assert_cmpint (think, >, start);
  g_assert_cmpint (qomni_tokenizer_id (t, "user"), >=, 0);
  g_assert_cmpint (qomni_tokenizer_id (t, " the"), >=, 0);
  g_assert_cmpint (qomni_tokenizer_id (t, "\n"), >=, 0);
  g_assert_cmpint (qomni_tokenizer_id (t, "no such token"), ==, -1);
  g_assert_cmpint (qomni_tokenizer_id (t, ""), ==, -1);
  g_assert_true (qomni_tokenizer_is_special (t, start));
  g_assert_false (qomni_tokenizer_is_special (t, think));
  g_assert_false (qomni_tokenizer_is_special (t,
          qomni_tokenizer_id (t, "user")));
  g_assert_false (qomni_tokenizer_is_special (t, -1));
  g_assert_false (qomni_tokenizer_is_special (t, INT32_MAX));
  g_assert_cmpint (qomni_tokenizer_size (t), >,
      qomni_tokenizer_id (t, "<|audio_pad|>"));
}

static void
no_text_gives_no_ids_but_a_list (void)
{
  g_autoptr (QomniTokenizer) t = fixture ();
  g_autofree int32_t *ids = NULL;
  g_autofree char *text = NULL;
  size_t n = 7;

  ids = encode (t, "", -1, QOMNI_ENCODE_SPECIAL, &n);
  g_assert_cmpuint (n, ==, 0);
  text = qomni_tokenizer_decode (t, ids, 0, true);
  g_assert_cmpstr (text, ==, "");
}

static void
length_ends_the_text_before_its_nul (void)
{
  g_autoptr (QomniTokenizer) t = fixture ();
  size_t n, n_whole;
  g_autofree int32_t *ids = encode (t, "hello world", 5, 0, &n);
  g_autofree int32_t *whole = encode (t, "hello", -1, 0, &n_whole);

  g_assert_cmpmem (ids, n * sizeof *ids, whole, n_whole * sizeof *whole);
}

/* NUL is the byte 0, a starter that nothing joins with, and no letter. */
static void
nul_is_a_character_like_others (void)
{
  static const char text[] = "e\0\xcc\x81\0hello";
  g_autoptr (QomniTokenizer) t = fixture ();
  g_autofree int32_t *ids = NULL;
  g_autofree char *decoded = NULL;
  size_t n;

  ids = encode (t, text, sizeof text - 1, QOMNI_ENCODE_PLAIN, &n);
  decoded = qomni_tokenizer_decode (t, ids, n, false);
  g_assert_cmpstr (decoded, ==, "e\xef\xbf\xbd\xcc\x81\xef\xbf\xbdhello");
}

static void
text_that_is_not_utf8_is_refused_with_the_place (void)
{
  static const struct
  {
    const char *text;
    const char *words;
  } cases[] = {
    {"ab\xff", "at byte 2"}, {"\x80", "at byte 0"}, {"a\xc3", "at byte 1"},
    {"\xc0\xaf", "at byte 0"}, {"x\xed\xa0\x80", "at byte 1"},
    {"\xf4\x90\x80\x80", "at byte 0"}, {"\xe2\x82", "at byte 0"},
  };
  g_autoptr (QomniTokenizer) t = fixture ();
  g_autoptr (GError) error = NULL;
  size_t n;

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_assert_null (qomni_tokenizer_encode (t, cases[i].text, -1, 0, &n,
            &error));
    assert_refused (&error, QOMNI_ERROR_INPUT, cases[i].words);
  }
  g_assert_null (qomni_tokenizer_encode (t, "a\0\0b\xff", 5, 0, &n, &error));
  assert_refused (&error, QOMNI_ERROR_INPUT, "at byte 4");
}

/* The ids of single bytes, 0 excepted. */
static void
byte_ids (const QomniTokenizer * t, const char *bytes, GArray * ret)
{
  g_array_set_size (ret, 0);
  for (; *bytes != '\0'; bytes++) {
    char one[2] = { *bytes, '\0' };
    int32_t id = qomni_tokenizer_id (t, one);

    g_assert_cmpint (id, >=, 0);
    g_array_append_val (ret, id);
  }
}

#define R "\xef\xbf\xbd"

/* Expected: bytes (…).decode (errors="replace"). */
static void
broken_utf8_is_replaced_as_python_does (void)
{
  static const char *const cases[][2] = {
    {"a\xff" "b", "a" R "b"},
    {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},
    {"\xf0\x9f\x98" "A", R "A"},
    {"\xf0\x9f\x98", R},
    {"\xf0", R},
    {"\xe2\x82\xac\xe2\x82", "\xe2\x82\xac" R},
    {"\xf0\x9f\xe2\x82\xac", R "\xe2\x82\xac"},
    {"\xe0\x80\x80", R R R},
    {"\xed\xa0\x80", R R R},
    {"\xed\x9f\xbf", "\xed\x9f\xbf"},
    {"\xf4\x90\x80\x80", R R R R},
    {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
    {"\xf0\x8f\xbf\xbf", R R R R},
    {"\xf5\x80\xc0\xaf\xc1\x80", R R R R R R},
    {"\x80\x80\xbf", R R R},
    {"\xc3\xc3\xa9", R "\xc3\xa9"},
    {"\xe1\x80\xe1\x80\xe1\x80\x80", R R "\xe1\x80\x80"},
    {"\xf1\x80\x80\xf1\x80\x80\x80\xf1", R "\xf1\x80\x80\x80" R},
    {"\xfe\xff", R R},
  };
  g_autoptr (QomniTokenizer) t = fixture ();
  g_autoptr (GArray) ids = g_array_new (FALSE, FALSE, sizeof (int32_t));

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autofree char *decoded = NULL;
    g_autofree char *stream = NULL;

    byte_ids (t, cases[i][0], ids);
    decoded = qomni_tokenizer_decode (t, (int32_t *) (void *) ids->data,
        ids->len, true);
    stream = streamed (t, (int32_t *) (void *) ids->data, ids->len);
    g_assert_cmpstr (decoded, ==, cases[i][1]);
    g_assert_cmpstr (stream, ==, cases[i][1]);
  }
}

static void
a_split_code_point_is_held_back (void)
{
  g_autoptr (QomniTokenizer) t = fixture ();
  g_autoptr (QomniDetokenizer) d = qomni_detokenizer_new (t);
  g_autoptr (GArray) ids = g_array_new (FALSE, FALSE, sizeof (int32_t));
  int32_t end = qomni_tokenizer_id (t, "<|im_end|>");

  byte_ids (t, "\xf0\x9f\x98\x80\xe2", ids);
  for (guint i = 0; i < 3; i++) {
    g_assert_cmpstr (qomni_detokenizer_push (d, g_array_index (ids, int32_t,
                i)), ==, "");
    /* A special token and ids without a token say nothing, not even "end". */
    g_assert_cmpstr (qomni_detokenizer_push (d, end), ==, "");
    g_assert_cmpstr (qomni_detokenizer_push (d, -1), ==, "");
    g_assert_cmpstr (qomni_detokenizer_push (d, 1 << 20), ==, "");
  }
  g_assert_cmpstr (qomni_detokenizer_push (d, g_array_index (ids, int32_t,
              3)), ==, "\xf0\x9f\x98\x80");
  g_assert_cmpstr (qomni_detokenizer_push (d, g_array_index (ids, int32_t,
              4)), ==, "");
  g_assert_cmpstr (qomni_detokenizer_flush (d), ==, R);
  g_assert_cmpstr (qomni_detokenizer_push (d, qomni_tokenizer_id (t, "user")),
      ==, "user");
}

static void
any_ids_stream_as_they_decode (void)
{
  g_autoptr (QomniTokenizer) t = fixture ();
  g_autoptr (GRand) rand = g_rand_new_with_seed (3);

  for (int i = 0; i < 2000; i++) {
    int32_t ids[40];
    size_t n = (size_t) g_rand_int_range (rand, 0, 40);
    g_autofree char *decoded = NULL;
    g_autofree char *stream = NULL;

    for (size_t k = 0; k < n; k++)
      ids[k] = g_rand_int_range (rand, -3, qomni_tokenizer_size (t) + 3);
    decoded = qomni_tokenizer_decode (t, ids, n, true);
    stream = streamed (t, ids, n);
    g_assert_cmpstr (stream, ==, decoded);
    g_assert_true (g_utf8_validate (decoded, -1, NULL));
  }
}

/* Strings out of nasty pieces: decoding gives the normalised text back, markers
 * are control only when asked for, and no byte is lost on the way. */
static void
any_text_comes_back_normalised (void)
{
  static const char *const pieces[] = {
    "a", "B", "hello", "user", " ", "  ", "\n", "\r", "\r\n", "\t", "'s",
    "'LL", "'", "\xc5\xbf", "1", "23", "\xc2\xbd", ".", "!!", "_", "-",
    "\xc2\xa0", "\xe3\x80\x80", "\xe2\x80\xa8", "\xc2\x85", "e\xcc\x81",
    "\xcc\x81", "\xcc\xa3", "\xcc\xa7", "\xe1\x84\x92", "\xe1\x85\xa1",
    "\xe1\x86\xab", "\xed\x95\x9c", "\xe4\xbd\xa0", "\xd8\xb3\xd9\x8e\xd9\x91",
    "\xf0\x9f\x91\xa9\xe2\x80\x8d", "\xf0\x9f\x98\x80", "\xef\xac\xac",
    "\xe2\x84\xa6", "\xe0\xa5\x98", "\xee\x80\x80", "\xf4\x8f\xbf\xbf",
    "<think>", "<tool", "<|im_start|>", "<|im_end|>", "<|", "|>", "<",
    "\xef\xbb\xbf", "\x01", "\x7f", "<|audio_pad|>",
  };
  g_autoptr (QomniTokenizer) t = fixture ();
  g_autoptr (GRand) rand = g_rand_new_with_seed (9);

  for (int i = 0; i < 3000; i++) {
    g_autoptr (GString) text = g_string_new (NULL);
    g_autofree char *normal = NULL;
    g_autofree char *plain = NULL;
    g_autofree int32_t *ids = NULL;
    int count = g_rand_int_range (rand, 0, 24);
    size_t n;

    while (count-- > 0)
      g_string_append (text, pieces[g_rand_int_range (rand, 0,
                  G_N_ELEMENTS (pieces))]);
    ids = encode (t, text->str, (gssize) text->len, QOMNI_ENCODE_PLAIN, &n);
    for (size_t k = 0; k < n; k++) {
      g_assert_cmpint (ids[k], >=, 0);
      g_assert_cmpint (ids[k], <, qomni_tokenizer_size (t));
      g_assert_false (qomni_tokenizer_is_special (t, ids[k]));
    }
    plain = qomni_tokenizer_decode (t, ids, n, true);
    normal = g_utf8_normalize (text->str, -1, G_NORMALIZE_NFC);
    /* A mark after a token that was cut out joins nothing in it, and has not
     * to: compare what both are once more normalised. */
    if (strcmp (plain, normal) != 0) {
      g_autofree char *again = g_utf8_normalize (plain, -1, G_NORMALIZE_NFC);

      g_assert_cmpstr (again, ==, normal);
    }
  }
}

static double
encode_seconds (const QomniTokenizer * t, const char *unit, size_t bytes)
{
  g_autoptr (GString) text = g_string_sized_new (bytes);
  g_autofree int32_t *ids = NULL;
  gint64 start;
  size_t n;

  while (text->len < bytes)
    g_string_append (text, unit);
  start = g_get_monotonic_time ();
  ids = encode (t, text->str, (gssize) text->len, QOMNI_ENCODE_SPECIAL, &n);
  g_assert_cmpuint (n, >, 0);
  return (double) (g_get_monotonic_time () - start) / 1e6;
}

/* Four times the text takes about four times as long; twelve leaves room for a
 * busy machine, and a quadratic step would take sixteen. */
static void
long_runs_of_one_class_take_linear_time (void)
{
  static const char *const units[] = {
    "a", " ", "1", "!", "\n", "\xcc\x81", "\xcc\x81\xcc\xa3",
    "\xef\xbd\xb1", "ab", " \n", "<|im_start|", "'s", "e\xcc\x81",
    "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8",
  };
  g_autoptr (QomniTokenizer) t = fixture ();

  for (size_t i = 0; i < G_N_ELEMENTS (units); i++) {
    double ratio = 0;

    for (int attempt = 0; attempt < 5; attempt++) {
      double small = encode_seconds (t, units[i], 256 << 10);
      double large = encode_seconds (t, units[i], 1 << 20);

      ratio = large / MAX (small, 1e-4);
      if (ratio < 12)
        break;
    }
    g_assert_cmpfloat (ratio, <, 12);
  }
}

/* A tokenizer small enough to write down */

#define VOCAB "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,\"\xc4\xa0\":5}"
#define MERGES "#version: 0.2\na b\nab c\n"

#define TOKENIZER_JSON(merges) \
  "{\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true}]," \
  "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Split\"," \
  "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}" \
  "\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|" \
  "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}}," \
  "\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB ",\"merges\":" merges "}}"

static void
write_small (const char *dir, const char *vocab, const char *merges)
{
  scratch_write_text (dir, "vocab.json", vocab);
  scratch_write_text (dir, "merges.txt", merges);
}

static void
assert_small (const char *dir)
{
  static const int32_t expected[] = { 3, 4, 5, 4, 1 };
  g_autoptr (QomniTokenizer) t = read_tokenizer (dir);
  size_t n;
  g_autofree int32_t *ids = encode (t, "ababc abcb", -1, 0, &n);

  g_assert_cmpmem (ids, n * sizeof *ids, expected, sizeof expected);
}

static void
merges_may_be_written_in_any_of_the_known_ways (void)
{
  static const char *const texts[] = {
    MERGES, "a b\nab c", "a b\r\nab c\r\n", "#version: 0.2\r\na b\nab c\n\n\n",
  };
  g_autoptr (Scratch) dir = scratch_new ();

  for (size_t i = 0; i < G_N_ELEMENTS (texts); i++) {
    write_small (dir, VOCAB, texts[i]);
    assert_small (dir);
  }
  for (int pairs = 0; pairs < 2; pairs++) {
    g_autoptr (Scratch) other = scratch_new ();

    scratch_write_text (other, "tokenizer.json", pairs
        ? TOKENIZER_JSON ("[[\"a\",\"b\"],[\"ab\",\"c\"]]")
        : TOKENIZER_JSON ("[\"a b\",\"ab c\"]"));
    assert_small (other);
  }
}

/* After the first two letters have been joined, the request for the second and
 * the third is out of date; obeying it would lose the last merge. */
static void
a_request_for_a_merged_symbol_is_dropped (void)
{
  static const int32_t expected[] = { 3, 5 };
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniTokenizer) t = NULL;
  g_autofree int32_t *ids = NULL;
  size_t n;

  write_small (dir, "{\"a\":0,\"b\":1,\"c\":2,\"aa\":3,\"bc\":4,\"abc\":5}",
      "a a\nb c\na bc\n");
  t = read_tokenizer (dir);
  ids = encode (t, "aaabc", -1, 0, &n);
  g_assert_cmpmem (ids, n * sizeof *ids, expected, sizeof expected);
}

static void
a_vocabulary_without_merges_is_bytes (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniTokenizer) t = NULL;
  g_autofree int32_t *ids = NULL;
  size_t n;

  write_small (dir, VOCAB, "#version: 0.2\n");
  t = read_tokenizer (dir);
  ids = encode (t, "abc", -1, 0, &n);
  g_assert_cmpuint (n, ==, 3);
}

static void
a_byte_without_a_token_is_an_error (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniTokenizer) t = NULL;
  g_autoptr (GError) error = NULL;
  size_t n;

  write_small (dir, VOCAB, MERGES);
  t = read_tokenizer (dir);
  g_assert_null (qomni_tokenizer_encode (t, "abz", -1, 0, &n, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "no token for byte 0x7a");
}

static void
tokens_only_in_added_tokens_json_are_special (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniTokenizer) t = NULL;

  write_small (dir, VOCAB, MERGES);
  scratch_write_text (dir, "tokenizer_config.json",
      "{\"added_tokens_decoder\":{\"6\":{\"content\":\"<x>\"}}}");
  scratch_write_text (dir, "added_tokens.json", "{\"<x>\":6,\"<y>\":9}");
  t = read_tokenizer (dir);
  g_assert_cmpint (qomni_tokenizer_size (t), ==, 10);
  g_assert_cmpint (qomni_tokenizer_id (t, "<x>"), ==, 6);
  g_assert_cmpint (qomni_tokenizer_id (t, "<y>"), ==, 9);
  g_assert_false (qomni_tokenizer_is_special (t, 6));
  g_assert_true (qomni_tokenizer_is_special (t, 9));
}

static void
an_added_token_may_be_in_the_vocabulary_too (void)
{
  static const int32_t expected[] = { 4, 3, 4 };
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (QomniTokenizer) t = NULL;
  g_autofree int32_t *ids = NULL;
  size_t n;

  write_small (dir, "{\"a\":0,\"b\":1,\"c\":2,\"<s>\":3,\"ab\":4}", "a b\n");
  scratch_write_text (dir, "tokenizer_config.json", "{\"added_tokens_decoder\":"
      "{\"3\":{\"content\":\"<s>\",\"special\":true}}}");
  t = read_tokenizer (dir);
  g_assert_true (qomni_tokenizer_is_special (t, 3));
  ids = encode (t, "ab<s>ab", -1, QOMNI_ENCODE_SPECIAL, &n);
  g_assert_cmpmem (ids, n * sizeof *ids, expected, sizeof expected);
}

static void
bad_files_are_refused (void)
{
  static const struct
  {
    const char *file, *text;    /* replaces or joins the good ones */
    QomniErrorCode code;
    const char *words;
  } cases[] = {
    {"vocab.json", "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3}", QOMNI_ERROR_FORMAT,
        "merges.txt line 3: 'abc' is not in the vocabulary"},
    {"vocab.json", "{\"a\":0,\"b\":1,\"abc\":2,\"ab\":3}", QOMNI_ERROR_FORMAT,
        "merges.txt line 3: 'c' is not in the vocabulary"},
    {"vocab.json", "{\"a\":0,\"b\":-1}", QOMNI_ERROR_FORMAT, "'b' is -1"},
    {"vocab.json", "{\"a\":0,\"b\":2097152}", QOMNI_ERROR_FORMAT,
        "'b' is 2097152"},
    {"vocab.json", "{\"a\":0,\"b\":1.5}", QOMNI_ERROR_FORMAT,
        "'b' is not an integer"},
    {"vocab.json", "{\"a\":0,\"b\":\"1\"}", QOMNI_ERROR_FORMAT,
        "'b' is not an integer"},
    {"vocab.json", "{\"a\":0,\"b\":null}", QOMNI_ERROR_FORMAT,
        "'b' is not an integer"},
    {"vocab.json", "{\"a\":0,\"b\":[1]}", QOMNI_ERROR_FORMAT,
        "'b' is not an integer"},
    {"vocab.json", "{\"a\":0,\"b\":0}", QOMNI_ERROR_FORMAT,
        "another token have id 0"},
    {"vocab.json", "{\"a\":0,\"a\":1}", QOMNI_ERROR_FORMAT, "vocab.json"},
    {"vocab.json", "{\"a\":0,\"b\":2}", QOMNI_ERROR_FORMAT,
        "no token has id 1"},
    {"vocab.json", "{\"a\":0,\"\":1}", QOMNI_ERROR_FORMAT, "no text"},
    {"vocab.json", "{}", QOMNI_ERROR_FORMAT, "0 tokens"},
    {"vocab.json", "[]", QOMNI_ERROR_FORMAT, "no JSON object"},
    {"vocab.json", "{\"\xff\":0}", QOMNI_ERROR_FORMAT, "vocab.json"},
    {"vocab.json", "{\"a\":0", QOMNI_ERROR_FORMAT, "vocab.json"},
    {"merges.txt", "a b\nab\n", QOMNI_ERROR_FORMAT, "line 2: 'ab', expected"},
    {"merges.txt", "a b\n\nab c\n", QOMNI_ERROR_FORMAT, "line 2: '', expected"},
    {"merges.txt", "a b c\n", QOMNI_ERROR_FORMAT, "line 1: 'b c' is not"},
    {"merges.txt", "a b\na b\n", QOMNI_ERROR_FORMAT, "line 2: 'a b' is there"},
    {"merges.txt", " b\n", QOMNI_ERROR_FORMAT, "line 1: '' is not"},
    {"merges.txt", "a \n", QOMNI_ERROR_FORMAT, "line 1: '' is not"},
    {"merges.txt", "a \xff\n", QOMNI_ERROR_FORMAT, "is not UTF-8"},
    {"merges.txt", "c b\n", QOMNI_ERROR_FORMAT, "line 1: 'cb' is not"},
    {"tokenizer_config.json", "[]", QOMNI_ERROR_FORMAT, "no JSON object"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"-1\":{\"content\":"
          "\"<s>\"}}}", QOMNI_ERROR_FORMAT, "id '-1'"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"2097152\":"
          "{\"content\":\"<s>\"}}}", QOMNI_ERROR_FORMAT, "id '2097152'"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"7x\":{\"content\":"
          "\"<s>\"}}}", QOMNI_ERROR_FORMAT, "id '7x'"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"7\":\"<s>\"}}",
        QOMNI_ERROR_FORMAT, "'7' is not an object"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"7\":{}}}",
        QOMNI_ERROR_FORMAT, "7 has no text"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"7\":{\"content\":"
          "\"\"}}}", QOMNI_ERROR_FORMAT, "7 has no text"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"2\":{\"content\":"
          "\"<s>\"}}}", QOMNI_ERROR_FORMAT, "of the vocabulary have id 2"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"7\":{\"content\":"
          "\"ab\"}}}", QOMNI_ERROR_FORMAT, "ids 7 and, in the vocabulary, 3"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"7\":{\"content\":"
          "\"<s>\"},\"8\":{\"content\":\"<s>\"}}}", QOMNI_ERROR_FORMAT,
        "'<s>' has ids 7 and 8"},
    {"added_tokens.json", "{\"<s>\":7,\"<t>\":7}", QOMNI_ERROR_FORMAT,
        "another one have id 7"},
    {"added_tokens.json", "{\"<s>\":-7}", QOMNI_ERROR_FORMAT, "'<s>' is -7"},
  };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autoptr (Scratch) dir = scratch_new ();
    g_autoptr (GError) error = NULL;

    write_small (dir, VOCAB, MERGES);
    scratch_write_text (dir, cases[i].file, cases[i].text);
    g_assert_null (qomni_tokenizer_read (dir, &error));
    assert_refused (&error, cases[i].code, cases[i].words);
  }
}

static void
a_tokenizer_json_of_another_kind_is_refused (void)
{
  static const char good[] = TOKENIZER_JSON ("[\"a b\",\"ab c\"]");
  static const struct
  {
    const char *from, *to;
    QomniErrorCode code;
    const char *words;
  } cases[] = {
    {"\"NFC\"", "\"NFKC\"", QOMNI_ERROR_UNSUPPORTED, "normalizer is 'NFKC'"},
    {"\"normalizer\"", "\"n\"", QOMNI_ERROR_UNSUPPORTED,
        "normalizer is 'none'"},
    {"\"BPE\"", "\"Unigram\"", QOMNI_ERROR_UNSUPPORTED, "model is 'Unigram'"},
    {"\\\\p{N}| ", "\\\\p{N}{1,3}| ", QOMNI_ERROR_UNSUPPORTED,
        "pre-tokenizer splits at"},
    {"\"pre_tokenizer\"", "\"p\"", QOMNI_ERROR_UNSUPPORTED,
        "splits at 'nothing'"},
    {"\"vocab\"", "\"v\"", QOMNI_ERROR_FORMAT, "lacks an object 'vocab'"},
    {"\"merges\"", "\"m\"", QOMNI_ERROR_FORMAT, "lacks an object 'vocab'"},
    {"\"model\"", "\"m\"", QOMNI_ERROR_FORMAT, "no object 'model'"},
    {"\"type\":\"BPE\"", "\"byte_fallback\":true", QOMNI_ERROR_UNSUPPORTED,
        "byte_fallback"},
    {"\"ab c\"", "[\"ab\"]", QOMNI_ERROR_FORMAT, "merge 1: expected two"},
    {"\"ab c\"", "[\"ab\",1]", QOMNI_ERROR_FORMAT, "merge 1: expected two"},
    {"\"ab c\"", "[[],\"c\"]", QOMNI_ERROR_FORMAT, "merge 1: expected two"},
    {"\"ab c\"", "7", QOMNI_ERROR_FORMAT, "merge 1: expected two"},
    {"\"ab c\"", "[\"ab\",\"\"]", QOMNI_ERROR_FORMAT, "merge 1: '' is not"},
    {"\"id\":6", "\"id\":null", QOMNI_ERROR_FORMAT, "is not an integer"},
    {"{\"id\":6,", "7,{", QOMNI_ERROR_FORMAT, "added token 0 is not"},
  };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autoptr (Scratch) dir = scratch_new ();
    g_autoptr (GString) text = g_string_new (good);
    g_autoptr (GError) error = NULL;

    g_assert_cmpuint (g_string_replace (text, cases[i].from, cases[i].to, 1),
        ==, 1);
    scratch_write_text (dir, "tokenizer.json", text->str);
    g_assert_null (qomni_tokenizer_read (dir, &error));
    assert_refused (&error, cases[i].code, cases[i].words);
  }
}

static void
missing_files_are_named (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (GError) error = NULL;

  g_assert_null (qomni_tokenizer_read (dir, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "neither vocab.json");
  scratch_write_text (dir, "vocab.json", VOCAB);
  g_assert_null (qomni_tokenizer_read (dir, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "merges.txt");
}

static void
a_file_over_the_limit_is_refused (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, "merges.txt", NULL);
  g_autoptr (GError) error = NULL;

  write_small (dir, VOCAB, MERGES);
  g_assert_cmpint (truncate (path, 100000000), ==, 0);
  g_assert_null (qomni_tokenizer_read (dir, &error));
  assert_refused (&error, QOMNI_ERROR_LIMIT, "merges.txt");
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
#define CLAIM(name) g_test_add_func ("/tokenizer/" #name, name)
  CLAIM (ids_and_texts_are_those_of_the_reference);
  CLAIM (one_tokenizer_json_reads_the_same);
  CLAIM (added_tokens_come_from_tokenizer_json_when_the_config_has_none);
  CLAIM (tokens_are_found_as_they_read);
  CLAIM (no_text_gives_no_ids_but_a_list);
  CLAIM (length_ends_the_text_before_its_nul);
  CLAIM (nul_is_a_character_like_others);
  CLAIM (text_that_is_not_utf8_is_refused_with_the_place);
  CLAIM (broken_utf8_is_replaced_as_python_does);
  CLAIM (a_split_code_point_is_held_back);
  CLAIM (any_ids_stream_as_they_decode);
  CLAIM (any_text_comes_back_normalised);
  CLAIM (long_runs_of_one_class_take_linear_time);
  CLAIM (merges_may_be_written_in_any_of_the_known_ways);
  CLAIM (a_request_for_a_merged_symbol_is_dropped);
  CLAIM (a_vocabulary_without_merges_is_bytes);
  CLAIM (a_byte_without_a_token_is_an_error);
  CLAIM (tokens_only_in_added_tokens_json_are_special);
  CLAIM (an_added_token_may_be_in_the_vocabulary_too);
  CLAIM (bad_files_are_refused);
  CLAIM (a_tokenizer_json_of_another_kind_is_refused);
  CLAIM (missing_files_are_named);
  CLAIM (a_file_over_the_limit_is_refused);
  return g_test_run ();
}
