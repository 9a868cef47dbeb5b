/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomni generate: a conversation with media -> text on stdout, speech in a WAV
 * file, and for engineers every stage in a safetensors file.
 *
 *   media -> encoders -> thinker (this thread) -> text
 *                           | rows
 *                           v
 *                        talker (its own thread) -> WAV
 *
 * The Talker speaks while the Thinker writes; rows go through a queue.
 */
#include "qomni.h"

#include <gst/gst.h>
#include <string.h>

#include "conversation.h"
#include "media.h"
#include "probe.h"
#include "talker.h"
#include "thinker.h"

#define SPEECH_RATE 24000
/* The reference's cap on sampled video frames. */
#define MAX_VIDEO_FRAMES 768

typedef struct
{
  const char *model;
  char *conversation, *speech, *voice, *system, *precision, *device, *dump;
  int max_tokens, max_frames, top_k, threads;
  gint64 seed, min_pixels, max_pixels;
  double temperature, top_p, audio_block, fps;
  gboolean greedy, talker_greedy, use_audio_in_video, json;
} Options;

static void
options_clear (Options * o)
{
  g_free (o->conversation);
  g_free (o->speech);
  g_free (o->voice);
  g_free (o->system);
  g_free (o->precision);
  g_free (o->device);
  g_free (o->dump);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Options, options_clear)

/* The Talker's side of a run, owned by its thread until it is joined. */
typedef struct
{
  QomniTalker *talker;
  GAsyncQueue *rows;            /* QomniEmbeddings */
  GCancellable *cancellable;
  GThread *thread;
  MediaWav *wav;
  gint64 first_sound;           /* monotonic µs; 0: none yet */
  int64_t n_frames, n_samples;
  GError *error;
} Speech;

typedef struct
{
  const Options *options;
  QomniModel *model;
  QomniProbe *probe;            /* NULL without --dump */
  QomniAudioEncoder *audio;     /* made when the first medium asks */
  QomniVisionEncoder *vision;
  QomniThinker *thinker;
  Speech speech;
  uint64_t n_clips;

  /* monotonic µs */
  gint64 start, loaded, encoded, first_text, end;
  GString *text;
  QomniFinish finish;
} Run;

static void
run_clear (Run * r)
{
  if (r->speech.thread != NULL) {
    g_cancellable_cancel (r->speech.cancellable);
    /* Wakes a Talker that waits for rows. */
    g_async_queue_push (r->speech.rows,
        qomni_embeddings_new (QOMNI_MODALITY_THINKER, 0, 2, 1, NULL));
    g_thread_join (r->speech.thread);
  }
  media_wav_free (r->speech.wav);
  qomni_talker_free (r->speech.talker);
  g_clear_pointer (&r->speech.rows, g_async_queue_unref);
  g_clear_object (&r->speech.cancellable);
  g_clear_error (&r->speech.error);
  qomni_audio_encoder_free (r->audio);
  qomni_vision_encoder_free (r->vision);
  qomni_thinker_free (r->thinker);
  g_clear_pointer (&r->probe, qomni_probe_unref);
  g_clear_pointer (&r->model, qomni_model_unref);
  if (r->text != NULL)
    g_string_free (r->text, TRUE);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Run, run_clear)

/* --- loading ------------------------------------------------------------ */

/* Loads what the conversation will use, and nothing else. */
static bool
load (Run * r, const Conversation * conversation, GError ** error)
{
  QomniModelOptions options = QOMNI_MODEL_OPTIONS_INIT;
  QomniComponents need = QOMNI_COMPONENT_THINKER;

  options.device = r->options->device;
  options.precision = r->options->precision;
  options.n_threads = r->options->threads;
  r->model = qomni_model_ref_or_load (r->options->model, &options, error);
  if (r->model == NULL)
    return false;

  for (guint i = 0; i < conversation->messages->len; i++) {
    const Message *message = g_ptr_array_index (conversation->messages, i);

    for (guint k = 0; k < message->parts->len; k++) {
      const Part *part = g_ptr_array_index (message->parts, k);

      if (part->kind == PART_AUDIO)
        need |= QOMNI_COMPONENT_AUDIO;
      if (part->kind == PART_IMAGE || part->kind == PART_VIDEO)
        need |= QOMNI_COMPONENT_VISION;
      if (part->kind == PART_VIDEO && r->options->use_audio_in_video)
        need |= QOMNI_COMPONENT_AUDIO;
    }
  }
  if (r->options->speech != NULL)
    need |= QOMNI_COMPONENT_SPEECH;
  return qomni_model_load (r->model, need, NULL, NULL, NULL, error);
}

/* --- speech ------------------------------------------------------------- */

static bool
speak (Speech * s, GError ** error)
{
  QomniTalkerStep step = {.state = QOMNI_TALKER_WAIT };

  do {
    g_autoptr (QomniEmbeddings) rows = g_async_queue_pop (s->rows);

    if (!qomni_go_on (s->cancellable, error)
        || !qomni_talker_push (s->talker, rows, error))
      return false;
    do {
      if (!qomni_talker_step (s->talker, &step, s->cancellable, error))
        return false;
      s->n_frames = step.n_frames;
      if (step.state != QOMNI_TALKER_SOUND || step.n_samples == 0)
        continue;
      if (s->first_sound == 0)
        s->first_sound = g_get_monotonic_time ();
      s->n_samples += (int64_t) step.n_samples;
      if (!media_wav_write (s->wav, step.samples, step.n_samples, error))
        return false;
    } while (step.state == QOMNI_TALKER_SOUND);
  } while (step.state != QOMNI_TALKER_END);
  return true;
}

static gpointer
speech_thread (gpointer data)
{
  Speech *s = data;

  speak (s, &s->error);
  return NULL;
}

static bool
start_speech (Run * r, GError ** error)
{
  const QomniConfig *config = qomni_model_config (r->model);
  const Options *o = r->options;
  QomniTalkerParams params;

  qomni_talker_params_init (&params, config);
  params.voice = o->voice;
  params.seed = (uint64_t) o->seed;
  params.probe = r->probe;
  if (o->max_frames >= 0) {
    params.max_frames = o->max_frames;
    /* A length that was asked for takes the place of the guessed one. */
    params.tail_frames = params.tail_frames_per_token = 0;
  }
  if (o->talker_greedy)
    qomni_talker_params_greedy (&params);

  r->speech.talker = qomni_talker_new (r->model, &params, NULL, error);
  if (r->speech.talker == NULL)
    return false;
  r->speech.wav = media_wav_open (o->speech, SPEECH_RATE, error);
  if (r->speech.wav == NULL)
    return false;
  r->speech.rows =
      g_async_queue_new_full ((GDestroyNotify) qomni_embeddings_unref);
  r->speech.cancellable = g_cancellable_new ();
  r->speech.thread = g_thread_try_new ("talker", speech_thread, &r->speech,
      error);
  return r->speech.thread != NULL;
}

static bool
finish_speech (Run * r, GError ** error)
{
  Speech *s = &r->speech;

  if (s->thread == NULL)
    return true;
  g_thread_join (g_steal_pointer (&s->thread));
  if (s->error != NULL) {
    g_propagate_error (error, g_steal_pointer (&s->error));
    return false;
  }
  return media_wav_close (g_steal_pointer (&s->wav), error);
}

/* --- media -------------------------------------------------------------- */

static bool
push_audio_blocks (Run * r, uint64_t clip, bool in_video, GError ** error)
{
  g_autoptr (GError) failure = NULL;
  QomniEmbeddings *block;

  while ((block = qomni_audio_encoder_pull (r->audio, NULL, &failure))) {
    bool ok;

    block->clip = clip;
    block->in_video = in_video;
    ok = qomni_thinker_push_embeddings (r->thinker, block, error);
    qomni_embeddings_unref (block);
    if (!ok)
      return false;
  }
  if (failure != NULL) {
    g_propagate_error (error, g_steal_pointer (&failure));
    return false;
  }
  return true;
}

static bool
push_vision_blocks (Run * r, uint64_t clip, GError ** error)
{
  g_autoptr (GError) failure = NULL;
  QomniEmbeddings *block;

  while ((block = qomni_vision_encoder_pull (r->vision, NULL, &failure))) {
    bool ok;

    block->clip = clip;
    ok = qomni_thinker_push_embeddings (r->thinker, block, error);
    qomni_embeddings_unref (block);
    if (!ok)
      return false;
  }
  if (failure != NULL) {
    g_propagate_error (error, g_steal_pointer (&failure));
    return false;
  }
  return true;
}

static bool
need_audio_encoder (Run * r, GError ** error)
{
  QomniAudioEncoderParams params = {
    .block_seconds = r->options->audio_block,
    .probe = r->probe,
  };

  if (r->audio == NULL)
    r->audio = qomni_audio_encoder_new (r->model, &params, NULL, error);
  return r->audio != NULL;
}

static bool
need_vision_encoder (Run * r, GError ** error)
{
  QomniVisionEncoderParams params = {
    .min_pixels = r->options->min_pixels,
    .max_pixels = r->options->max_pixels,
    .probe = r->probe,
  };

  if (r->vision == NULL)
    r->vision = qomni_vision_encoder_new (r->model, &params, NULL, error);
  return r->vision != NULL;
}

static bool
push_part (Run * r, const Part * part, GError ** error)
{
  const Options *o = r->options;
  uint64_t clip = r->n_clips++;
  bool has_sound;

  switch (part->kind) {
    case PART_TEXT:
      return qomni_thinker_push_text (r->thinker, part->text, error);
    case PART_AUDIO:
      return need_audio_encoder (r, error)
          && media_push_audio (part->path, r->audio, NULL, NULL, error)
          && push_audio_blocks (r, clip, false, error);
    case PART_IMAGE:
      return need_vision_encoder (r, error)
          && media_push_image (part->path, r->vision, NULL, error)
          && push_vision_blocks (r, clip, error);
    case PART_VIDEO:
      if (!need_vision_encoder (r, error)
          || !media_push_video (part->path, o->fps, MAX_VIDEO_FRAMES,
              qomni_model_config (r->model)->vision.temporal_patch_size,
              r->vision, NULL, error)
          || !push_vision_blocks (r, clip, error))
        return false;
      if (!o->use_audio_in_video)
        return true;
      return need_audio_encoder (r, error)
          && media_push_audio (part->path, r->audio, &has_sound, NULL, error)
          && (!has_sound || push_audio_blocks (r, clip, true, error));
  }
  return true;
}

/* --- the conversation --------------------------------------------------- */

static bool
push_conversation (Run * r, const Conversation * conversation, guint first,
    GError ** error)
{
  GPtrArray *messages = conversation->messages;

  for (guint i = first; i < messages->len; i++) {
    const Message *message = g_ptr_array_index (messages, i);

    g_autofree char *text = message_text (message);

    /* Somebody who says nothing has said so. */
    if (message->role != QOMNI_ROLE_USER
        || (text[0] == '\0' && !message_has_media (message))) {
      if (!qomni_thinker_push_history (r->thinker, message->role, text, error))
        return false;
      continue;
    }
    for (guint k = 0; k < message->parts->len; k++)
      if (!push_part (r, g_ptr_array_index (message->parts, k), error))
        return false;
    if (i + 1 < messages->len && !qomni_thinker_close_turn (r->thinker, error))
      return false;
  }
  return qomni_thinker_end_turn (r->thinker, error);
}

static bool
make_thinker (Run * r, const Conversation * conversation, guint * ret_first,
    GError ** error)
{
  const Message *head = g_ptr_array_index (conversation->messages, 0);
  const Options *o = r->options;
  g_autofree char *system = NULL;
  QomniThinkerParams params;

  *ret_first = 0;
  if (head->role == QOMNI_ROLE_SYSTEM) {
    /* An empty one is a turn of its own: an empty prompt would be none. */
    system = message_text (head);
    *ret_first = system[0] != '\0' || o->system != NULL;
  }
  qomni_thinker_params_init (&params, qomni_model_config (r->model));
  params.seed = (uint64_t) o->seed;
  params.system_prompt = o->system != NULL ? o->system : system;
  params.use_audio_in_video = o->use_audio_in_video;
  params.want_hidden = o->speech != NULL;
  params.probe = r->probe;
  if (o->max_tokens >= 0)
    params.sampling.max_tokens = o->max_tokens;
  if (o->temperature >= 0 || o->top_k >= 0 || o->top_p >= 0)
    params.sampling.sample = true;
  if (o->temperature >= 0)
    params.sampling.temperature = o->temperature;
  if (o->top_k >= 0)
    params.sampling.top_k = o->top_k;
  if (o->top_p >= 0)
    params.sampling.top_p = o->top_p;
  if (o->greedy || params.sampling.temperature == 0)
    params.sampling.sample = false;
  r->thinker = qomni_thinker_new (r->model, &params, NULL, error);
  return r->thinker != NULL;
}

static bool
reply (Run * r, GError ** error)
{
  bool done;

  do {
    QomniThinkerStep step;

    if (!qomni_thinker_step (r->thinker, &step, NULL, error))
      return false;
    if (step.text != NULL && *step.text != '\0') {
      if (r->first_text == 0)
        r->first_text = g_get_monotonic_time ();
      g_string_append (r->text, step.text);
      if (!r->options->json) {
        fputs (step.text, stdout);
        fflush (stdout);
      }
    }
    for (int i = 0; i < step.n_hidden; i++)
      g_async_queue_push (r->speech.rows,
          qomni_embeddings_ref (step.hidden[i]));
    r->finish = step.finish;
    done = step.done;
    qomni_thinker_step_clear (&step);
  } while (!done);
  if (!r->options->json)
    putchar ('\n');
  return true;
}

static void
add_seconds (JsonBuilder * b, const char *name, const Run * r, gint64 time)
{
  json_builder_set_member_name (b, name);
  if (time == 0)
    json_builder_add_null_value (b);
  else
    json_builder_add_double_value (b, (double) (time - r->start) / 1e6);
}

static void
print_json (const Run * r)
{
  g_autoptr (JsonBuilder) b = json_builder_new ();

  json_builder_begin_object (b);
  json_builder_set_member_name (b, "text");
  json_builder_add_string_value (b, r->text->str);
  json_builder_set_member_name (b, "finish_reason");
  json_builder_add_string_value (b, qomni_finish_name (r->finish));
  json_builder_set_member_name (b, "prompt_tokens");
  json_builder_add_int_value (b, qomni_thinker_prompt_tokens (r->thinker));
  json_builder_set_member_name (b, "tokens");
  json_builder_add_int_value (b, qomni_thinker_reply_tokens (r->thinker));
  json_builder_set_member_name (b, "frames");
  json_builder_add_int_value (b, r->speech.n_frames);
  json_builder_set_member_name (b, "speech_seconds");
  json_builder_add_double_value (b,
      (double) r->speech.n_samples / SPEECH_RATE);
  json_builder_set_member_name (b, "timings");
  json_builder_begin_object (b);
  add_seconds (b, "load", r, r->loaded);
  json_builder_set_member_name (b, "encode");
  json_builder_add_double_value (b, (double) (r->encoded - r->loaded) / 1e6);
  add_seconds (b, "first_text", r, r->first_text);
  add_seconds (b, "first_sound", r, r->speech.first_sound);
  add_seconds (b, "total", r, r->end);
  json_builder_end_object (b);
  json_builder_end_object (b);
  command_print_json (b);
}

static bool
generate (const Options * o, GError ** error)
{
  g_auto (Run) r = { 0 };
  g_autoptr (Conversation) conversation = NULL;
  guint first;

  r.options = o;
  r.text = g_string_new (NULL);
  r.start = g_get_monotonic_time ();
  conversation = conversation_read (o->conversation, error);
  if (conversation == NULL || !load (&r, conversation, error))
    return false;
  if (o->dump != NULL)
    r.probe = qomni_probe_new ();
  r.loaded = g_get_monotonic_time ();

  if (!make_thinker (&r, conversation, &first, error)
      || (o->speech != NULL && !start_speech (&r, error))
      || !push_conversation (&r, conversation, first, error))
    return false;
  r.encoded = g_get_monotonic_time ();
  if (!reply (&r, error) || !finish_speech (&r, error))
    return false;
  r.end = g_get_monotonic_time ();

  if (o->dump != NULL && !qomni_probe_write (r.probe, o->dump, error))
    return false;
  if (o->json)
    print_json (&r);
  return true;
}

static bool
check_options (const Options * o)
{
  const char *wrong = NULL;

  if (o->conversation == NULL)
    wrong = "--conversation FILE is needed";
  else if (o->fps <= 0)
    wrong = "--fps must be above 0";
  else if (o->audio_block != 0 && (o->audio_block < 1 || o->audio_block > 8))
    wrong = "--audio-block must be 1 to 8 seconds";
  else if (o->min_pixels < 0 || o->max_pixels < 0)
    wrong = "--min-pixels and --max-pixels must not be negative";
  else if (o->threads < 0)
    wrong = "--threads must not be negative";
  else if (o->max_tokens == 0)
    wrong = "--max-tokens must be at least 1";
  else if (o->max_frames == 0)
    wrong = "--max-frames must be at least 1";
  if (wrong != NULL)
    fprintf (stderr, "qomni generate: %s\n", wrong);
  return wrong == NULL;
}

int
command_generate (int argc, char **argv)
{
  g_auto (Options) o = {
    .max_tokens = -1,.max_frames = -1,.top_k = -1,
    .temperature = -1,.top_p = -1,.fps = 2,
  };
  const GOptionEntry entries[] = {
    {"conversation", 0, 0, G_OPTION_ARG_FILENAME, &o.conversation,
        "The conversation to answer", "FILE.json"},
    {"max-tokens", 0, 0, G_OPTION_ARG_INT, &o.max_tokens,
        "At most N tokens of text (default: 1024)", "N"},
    {"greedy", 0, 0, G_OPTION_ARG_NONE, &o.greedy,
        "Always the likeliest token (the default unless one of the three "
          "below is given)", NULL},
    {"temperature", 0, 0, G_OPTION_ARG_DOUBLE, &o.temperature,
        "Sample text at this temperature", "T"},
    {"top-k", 0, 0, G_OPTION_ARG_INT, &o.top_k,
        "Sample among the K likeliest tokens", "K"},
    {"top-p", 0, 0, G_OPTION_ARG_DOUBLE, &o.top_p,
        "Sample among the tokens that make up probability P", "P"},
    {"seed", 0, 0, G_OPTION_ARG_INT64, &o.seed, "Seed of all sampling", "N"},
    {"system", 0, 0, G_OPTION_ARG_STRING, &o.system,
        "System prompt (instead of the conversation's)", "TEXT"},
    {"speech", 0, 0, G_OPTION_ARG_FILENAME, &o.speech,
        "Speak the answer into this file", "OUT.wav"},
    {"voice", 0, 0, G_OPTION_ARG_STRING, &o.voice,
        "One of the checkpoint's voices (see qomni info)", "NAME"},
    {"talker-greedy", 0, 0, G_OPTION_ARG_NONE, &o.talker_greedy,
        "Always the likeliest codes", NULL},
    {"max-frames", 0, 0, G_OPTION_ARG_INT, &o.max_frames,
        "At most N frames of speech, 80 ms each (default: 4096)", "N"},
    {"use-audio-in-video", 0, 0, G_OPTION_ARG_NONE, &o.use_audio_in_video,
        "Hear the sound of videos too", NULL},
    {"fps", 0, 0, G_OPTION_ARG_DOUBLE, &o.fps,
        "Frames per second to look at (default: 2)", "F"},
    {"min-pixels", 0, 0, G_OPTION_ARG_INT64, &o.min_pixels,
        "Smaller pictures are enlarged to this", "N"},
    {"max-pixels", 0, 0, G_OPTION_ARG_INT64, &o.max_pixels,
        "Larger pictures are reduced to this", "N"},
    {"audio-block", 0, 0, G_OPTION_ARG_DOUBLE, &o.audio_block,
        "Seconds of sound that attend to each other, 1 to 8 (default: 8)",
        "S"},
    {"precision", 0, 0, G_OPTION_ARG_STRING, &o.precision,
        "auto (as stored), f32 or bf16", "P"},
    {"device", 0, 0, G_OPTION_ARG_STRING, &o.device, "auto or cpu", "D"},
    {"threads", 0, 0, G_OPTION_ARG_INT, &o.threads,
        "Threads of the CPU (default: all)", "N"},
    {"dump", 0, 0, G_OPTION_ARG_FILENAME, &o.dump,
        "Write the stages of the computation", "FILE.safetensors"},
    {"json", 0, 0, G_OPTION_ARG_NONE, &o.json,
        "One JSON object instead of running text", NULL},
    G_OPTION_ENTRY_NULL
  };
  g_autoptr (GError) error = NULL;

  if (!command_parse (&argc, &argv, entries,
          "Answers a conversation with sounds, pictures and videos.",
          &o.model) || !check_options (&o))
    return STATUS_USAGE;
  gst_init (NULL, NULL);
  if (!generate (&o, &error))
    return command_fail (error);
  return STATUS_OK;
}
