/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The guard in front of json-glib: what it refuses, where, and that what it
 * lets through is read as it was written.
 */
#include "json.h"

#include <sys/stat.h>
#include <unistd.h>

#include "scratch.h"

#define STRICT QOMNI_JSON_STRICT
#define HEADER (QOMNI_JSON_STRICT | QOMNI_JSON_HEADER)

typedef struct
{
  const char *text;
  size_t position;              /* that the message names */
} Bad;

static void
expect_bad (const char *text, size_t length, QomniJsonFlags flags,
    size_t position)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *where = g_strdup_printf ("doc.json: byte %zu: ", position);

  if (qomni_json_check ("doc.json", text, length, flags, &error))
    g_error ("accepted up to byte %zu: %s", length, text);
  assert_refused (&error, QOMNI_ERROR_FORMAT, where);
  g_assert_null (qomni_json_parse ("doc.json", text, length, flags, NULL));
}

static void
test_grammar (void)
{
  static const Bad bad[] = {
    {"", 0}, {"  ", 2}, {"{", 1}, {"[", 1}, {"[1", 2}, {"{\"a\"", 4},
    {"{\"a\":", 5}, {"{\"a\":1", 6}, {"{\"a\" 1}", 5}, {"{\"a\":1,}", 7},
    {"[1,]", 3}, {"[,1]", 1}, {"[1 2]", 3}, {"{,}", 1}, {"{1:2}", 1},
    {"{a:1}", 1}, {"{'a':1}", 1}, {"['a']", 1}, {"[1}", 2}, {"{\"a\":1]", 6},
    {"]", 0}, {"}", 0}, {"1 2", 2}, {"{} {}", 3}, {"{}x", 2}, {"[]]", 2},
    {"var x = {};", 0}, {"// c\n{}", 0}, {"{}/* c */", 2},
    {"nul", 0}, {"True", 0}, {"tru", 0}, {"NaN", 0}, {"[NaN]", 1},
    {"[Infinity]", 1}, {"[-Infinity]", 1}, {"undefined", 0},
    {"+1", 0}, {"-", 0}, {"-a", 0}, {"01", 1}, {"-01", 2}, {"0x10", 1},
    {".5", 0}, {"1.", 2}, {"1.e5", 2}, {"1e", 2}, {"1e+", 3}, {"1_000", 1},
    {"\"", 0}, {"\"a", 0}, {"\"\\\"", 0}, {"\"\\x41\"", 1}, {"\"\\u12\"", 1},
    {"\"\\u12g4\"", 1}, {"\"\\", 1}, {"\"a\tb\"", 2}, {"\"a\nb\"", 2},
    {"\"\\ud800\"", 1}, {"\"\\udc00\"", 1}, {"\"\\ud800\\u0041\"", 1},
    {"\"\\ud800x\"", 1}, {"\xef\xbb\xbf{}", 0},
  };

  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++) {
    expect_bad (bad[i].text, strlen (bad[i].text), QOMNI_JSON_PLAIN,
        bad[i].position);
    expect_bad (bad[i].text, strlen (bad[i].text), STRICT, bad[i].position);
  }
}

static void
test_not_utf8 (void)
{
  expect_bad ("\"a\xff\"", 4, STRICT, 2);
  expect_bad ("\"\xc0\xaf\"", 4, STRICT, 1);
  expect_bad ("\"\xed\xa0\x80\"", 5, STRICT, 1);        /* a surrogate */
  expect_bad ("{}\0", 3, STRICT, 2);
  expect_bad ("\"a\0b\"", 5, STRICT, 2);
}

static void
test_strict_only (void)
{
  static const Bad bad[] = {
    {"{\"a\":1,\"a\":2}", 7}, {"{\"a\":1,\"\\u0061\":2}", 7},
    {"[{\"a\":{\"b\":1,\"c\":2,\"b\":3}}]", 19},
    {"{\"\\ud83d\\ude00\":1,\"\xf0\x9f\x98\x80\":2}", 18},
    {"{\"\\n\":1,\"\\u000a\":2}", 8}, {"{\"/\":1,\"\\/\":2}", 7},
    {"{\"\":1,\"\":2}", 6},
    {"9223372036854775808", 0}, {"-9223372036854775809", 0},
    {"[99999999999999999999]", 1}, {"1e400", 0}, {"[-1e400]", 1},
    {"[\"a\\u0000b\"]", 3}, {"{\"a\\u0000\":1}", 3},
  };

  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++) {
    expect_bad (bad[i].text, strlen (bad[i].text), STRICT, bad[i].position);
    g_assert_true (qomni_json_check ("doc.json", bad[i].text,
            strlen (bad[i].text), QOMNI_JSON_PLAIN, NULL));
  }
}

static void
test_header_integers (void)
{
  expect_bad ("[-1]", 4, HEADER, 1);
  expect_bad ("[281474976710656]", 17, HEADER, 1);
  g_assert_true (qomni_json_check ("h", "[281474976710655,0]", 19, HEADER,
          NULL));
  g_assert_true (qomni_json_check ("h", "[281474976710656,-1]", 20, STRICT,
          NULL));
}

/* Equal keys are found among many, and only in the same object. */
static void
test_keys_of_objects (void)
{
  g_autoptr (GString) s = g_string_new ("[{\"x\":{\"k0\":1}},{");
  size_t position;

  for (int i = 0; i < 5000; i++)
    g_string_append_printf (s, "\"k%d\":{\"x\":1,\"y\":2},", i);
  g_string_append (s, "\"last\":0}]");
  g_assert_true (qomni_json_check ("doc.json", s->str, s->len, STRICT, NULL));

  position = s->len - strlen ("\"last\":0}]");
  g_string_truncate (s, position);
  g_string_append (s, "\"k17\":0}]");
  expect_bad (s->str, s->len, STRICT, position);
}

static void
test_nesting (void)
{
  for (int deep = 63; deep <= 66; deep++) {
    g_autoptr (GString) s = g_string_new (NULL);
    g_autoptr (GError) error = NULL;
    bool ok;

    for (int i = 0; i < deep; i++)
      g_string_append (s, i % 2 == 0 ? "[" : "{\"a\":");
    g_string_append (s, "1");
    for (int i = deep; i-- > 0;)
      g_string_append (s, i % 2 == 0 ? "]" : "}");
    ok = qomni_json_check ("doc.json", s->str, s->len, STRICT, &error);
    g_assert_cmpint (ok, ==, deep <= 64);
    if (!ok)
      assert_refused (&error, QOMNI_ERROR_FORMAT, "deeper than 64");
  }
}

static void
test_nesting_of_a_million (void)
{
  const size_t n = 1000000;
  g_autofree char *text = g_malloc (n);

  memset (text, '[', n);
  g_assert_null (qomni_json_parse ("doc.json", text, n, QOMNI_JSON_PLAIN,
          NULL));
}

static void
test_too_many_values (void)
{
  const size_t n = 2 * (size_t) QOMNI_MAX_JSON_VALUES + 1;
  g_autofree char *text = g_malloc (n);
  g_autoptr (GError) error = NULL;

  /* [1,1,…,1] of exactly the limit, then of one more. */
  for (size_t i = 0; i < n; i++)
    text[i] = i % 2 == 0 ? ',' : '1';
  text[0] = '[';
  text[n - 3] = ']';
  text[n - 2] = ' ';
  text[n - 1] = ' ';
  g_assert_true (qomni_json_check ("doc.json", text, n - 2, STRICT, NULL));
  text[n - 3] = ',';
  text[n - 2] = '1';
  text[n - 1] = ']';
  g_assert_false (qomni_json_check ("doc.json", text, n, STRICT, &error));
  assert_refused (&error, QOMNI_ERROR_LIMIT, "4000000 values");
}

static void
test_legal_oddities (void)
{
  static const char text[] = "  {\"}\\\"{\":[\"]\",\"\\/\\b\\f\\n\\r\\t\\\\\"],"
      " \"\":{}, \"e\":[], \"\xc3\xa4\\u00e4\":\"\\ud83d\\ude00\", \"n\":null,"
      "\"b\":[true,false],"
      "\"i\":[9223372036854775807,-9223372036854775808,-0,0],"
      "\"d\":[1.5,-2E3,1e-400,1E+2,0.1e1]}\r\n\t ";
  g_autoptr (GError) error = NULL;
  g_autoptr (JsonNode) node = NULL;
  JsonObject *o;
  JsonArray *a;

  node = qomni_json_parse ("doc.json", text, sizeof text - 1, STRICT, &error);
  g_assert_no_error (error);
  o = json_node_get_object (node);
  a = json_object_get_array_member (o, "}\"{");
  g_assert_cmpstr (json_array_get_string_element (a, 0), ==, "]");
  g_assert_cmpstr (json_array_get_string_element (a, 1), ==,
      "/\b\f\n\r\t\\");
  g_assert_true (json_object_has_member (o, ""));
  g_assert_cmpstr (json_object_get_string_member (o, "\xc3\xa4\xc3\xa4"), ==,
      "\xf0\x9f\x98\x80");
  a = json_object_get_array_member (o, "i");
  g_assert_cmpint (json_array_get_int_element (a, 0), ==, INT64_MAX);
  g_assert_cmpint (json_array_get_int_element (a, 1), ==, INT64_MIN);
  g_assert_cmpint (json_array_get_int_element (a, 2), ==, 0);
  a = json_object_get_array_member (o, "d");
  g_assert_cmpfloat (json_array_get_double_element (a, 0), ==, 1.5);
  g_assert_cmpfloat (json_array_get_double_element (a, 1), ==, -2000);
  g_assert_cmpfloat (json_array_get_double_element (a, 2), ==, 0);
  g_assert_cmpfloat (json_array_get_double_element (a, 3), ==, 100);
  g_assert_cmpfloat (json_array_get_double_element (a, 4), ==, 1);
}

static void
test_scalar_roots (void)
{
  static const char *const good[] = { "1", "\"a\"", "true", "null", "[]",
    "{}"
  };

  for (size_t i = 0; i < G_N_ELEMENTS (good); i++)
    g_assert_true (qomni_json_check ("d", good[i], strlen (good[i]), STRICT,
            NULL));
}

/* The block ends where the document does, so that a sanitizer sees a read
 * behind it. */
static void
test_every_prefix (void)
{
  static const char text[] =
      "{\"a\\u00e4\":[1.5e3,true,null,\"\\ud83d\\ude00\"],\"b\":{\"c\":-12}}";

  for (size_t n = 0; n < sizeof text - 1; n++) {
    g_autofree char *block = g_memdup2 (text, n);

    g_assert_false (qomni_json_check ("doc.json", block != NULL ? block : "",
            n, STRICT, NULL));
  }
}

static void
test_file_over_its_limit (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *path = g_build_filename (dir, "a.json", NULL);
  g_autoptr (GError) error = NULL;
  g_autoptr (JsonNode) node = NULL;

  scratch_write_text (dir, "a.json", "[1, 2]");
  node = qomni_json_read_file (path, 6, STRICT, &error);
  g_assert_no_error (error);
  g_assert_nonnull (node);
  g_assert_null (qomni_json_read_file (path, 5, STRICT, &error));
  assert_refused (&error, QOMNI_ERROR_LIMIT, "6 bytes, the limit is 5");
}

static void
test_not_a_file (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autofree char *missing = g_build_filename (dir, "none.json", NULL);
  g_autofree char *fifo = g_build_filename (dir, "fifo.json", NULL);
  g_autofree char *loop = g_build_filename (dir, "loop.json", NULL);
  g_autoptr (GError) error = NULL;

  g_assert_null (qomni_read_file (missing, 100, NULL, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "none.json");
  g_assert_null (qomni_read_file (dir, 100, NULL, &error));
  assert_refused (&error, QOMNI_ERROR_OPEN, "a directory");
  g_assert_cmpint (mkfifo (fifo, 0600), ==, 0);
  g_assert_null (qomni_read_file (fifo, 100, NULL, &error));
  assert_refused (&error, QOMNI_ERROR_OPEN, "a FIFO");
  g_assert_cmpint (symlink ("loop.json", loop), ==, 0);
  g_assert_null (qomni_read_file (loop, 100, NULL, &error));
  assert_refused (&error, QOMNI_ERROR_OPEN, "loop.json");
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/json/bad_grammar_is_refused_at_its_byte", test_grammar);
  g_test_add_func ("/json/bytes_that_are_not_utf8_are_refused", test_not_utf8);
  g_test_add_func ("/json/strict_refuses_what_json_glib_misreads",
      test_strict_only);
  g_test_add_func ("/json/header_integers_have_48_bits",
      test_header_integers);
  g_test_add_func ("/json/duplicates_are_found_per_object",
      test_keys_of_objects);
  g_test_add_func ("/json/nesting_stops_at_64", test_nesting);
  g_test_add_func ("/json/a_million_brackets_are_refused",
      test_nesting_of_a_million);
  g_test_add_func ("/json/values_are_counted", test_too_many_values);
  g_test_add_func ("/json/legal_oddities_are_read_as_written",
      test_legal_oddities);
  g_test_add_func ("/json/scalars_are_documents", test_scalar_roots);
  g_test_add_func ("/json/no_prefix_is_a_document", test_every_prefix);
  g_test_add_func ("/json/file_over_its_limit_is_refused",
      test_file_over_its_limit);
  g_test_add_func ("/json/only_regular_files_are_read", test_not_a_file);
  return g_test_run ();
}
