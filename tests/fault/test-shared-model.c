/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Several engines on one model at once: each says what it says alone, whatever
 * becomes of the others.
 */
#include "engine.h"
#include "scratch.h"

#define N_THREADS 3
#define N_TURNS 3

static QomniModel *
open_model (void)
{
  g_autofree char *path = fixture_path ("tiny-a");
  QomniModelOptions options = QOMNI_MODEL_OPTIONS_INIT;
  g_autoptr (GError) error = NULL;
  QomniModel *model;

  if (path == NULL)
    return NULL;
  options.n_threads = 2;
  model = qomni_model_new (path, &options, &error);
  g_assert_no_error (error);
  return model;
}

/* N_TURNS turns as one string; now and then it begins anew. */
static char *
talk (Engine * e, GRand * random)
{
  g_autoptr (GString) turn = g_string_new (NULL);
  GString *all = g_string_new (NULL);

  for (int i = 0; i < N_TURNS; i++) {
    g_autoptr (GError) error = NULL;

    g_assert_true (converse (e, turn, NULL, &error));
    g_assert_no_error (error);
    g_string_append_printf (all, "%s|", turn->str);
    if (random != NULL && g_rand_boolean (random)) {
      g_string_truncate (all, 0);
      engine_reset (e);
      i = -1;
    }
  }
  return g_string_free (all, FALSE);
}

static void *
talk_in_thread (void *data)
{
  QomniModel *model = data;
  g_autoptr (GError) error = NULL;
  g_autoptr (Engine) e = engine_new (model, &error);
  g_autoptr (GRand) random = g_rand_new_with_seed (5);

  g_assert_no_error (error);
  return talk (e, random);
}

/* The engines of a model that nobody has loaded load it themselves. */
static void
test_together (void)
{
  QomniModel *model = open_model ();
  GThread *threads[N_THREADS];
  g_autoptr (GError) error = NULL;
  g_autofree char *want = NULL;

  if (model == NULL)
    return;
  for (int i = 0; i < N_THREADS; i++)
    threads[i] = g_thread_new ("engine", talk_in_thread, model);
  g_autoptr (Engine) e = engine_new (model, &error);
  g_assert_no_error (error);
  want = talk (e, NULL);
  for (int i = 0; i < N_THREADS; i++) {
    g_autofree char *got = g_thread_join (threads[i]);

    g_assert_cmpstr (got, ==, want);
  }
  qomni_model_unref (model);
}

typedef struct
{
  GCancellable *cancellable;
  int64_t after;                /* us */
} Alarm;

static void *
ring (void *data)
{
  const Alarm *alarm = data;

  g_usleep ((gulong) alarm->after);
  g_cancellable_cancel (alarm->cancellable);
  return NULL;
}

/* At times spread over a turn and a little more. */
static void
test_cancel (void)
{
  QomniModel *model = open_model ();
  g_autoptr (GString) want = g_string_new (NULL);
  g_autoptr (GString) got = g_string_new (NULL);
  g_autoptr (GError) error = NULL;
  int64_t took;

  if (model == NULL)
    return;
  g_autoptr (Engine) e = engine_new (model, &error);
  g_assert_no_error (error);
  g_assert_true (converse (e, want, NULL, &error));
  engine_reset (e);
  took = g_get_monotonic_time ();
  g_assert_true (converse (e, want, NULL, &error));
  took = g_get_monotonic_time () - took;

  for (int i = 0; i < 40; i++) {
    g_autoptr (GCancellable) cancellable = g_cancellable_new ();
    Alarm alarm = { cancellable, took * i / 32 };
    GThread *thread;

    engine_reset (e);
    thread = g_thread_new ("alarm", ring, &alarm);
    if (!converse (e, got, cancellable, &error)) {
      g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
      g_clear_error (&error);
    }
    g_thread_join (thread);
    engine_reset (e);
    g_assert_true (converse (e, got, NULL, &error));
    g_assert_cmpstr (got->str, ==, want->str);
  }
  qomni_model_unref (model);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/shared-model/engines_do_not_disturb_each_other",
      test_together);
  g_test_add_func ("/shared-model/turn_after_a_cancelled_one_is_whole",
      test_cancel);
  return g_test_run ();
}
