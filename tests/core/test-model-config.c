/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * config.json and its companions: both dialects give the same structs, and a
 * value out of its range, or at odds with its neighbours, is refused by name.
 */
#include "model-config.h"

#include "json.h"
#include "scratch.h"

/* The fixture's config as a tree to be edited. */
static JsonNode *
load_tree (void)
{
  g_autofree char *dir = fixture_path ("tiny-a");
  g_autofree char *path = NULL;
  g_autoptr (GError) error = NULL;
  JsonNode *node;

  if (dir == NULL)
    return NULL;
  path = g_build_filename (dir, "config.json", NULL);
  node = qomni_json_read_file (path, QOMNI_MAX_JSON_BYTES, QOMNI_JSON_STRICT,
      &error);
  g_assert_no_error (error);
  return node;
}

/* The object at "a.b" ("": the root). */
static JsonObject *
section (JsonNode * root, const char *path)
{
  g_auto (GStrv) parts = g_strsplit (path, ".", -1);
  JsonObject *o = json_node_get_object (root);

  for (int i = 0; parts[i] != NULL && *parts[i] != '\0'; i++)
    o = json_object_get_object_member (o, parts[i]);
  return o;
}

/* Sets a key to the JSON text `value`; NULL removes it. */
static void
edit (JsonNode * root, const char *path, const char *key, const char *value)
{
  JsonObject *o = section (root, path);

  if (value == NULL)
    json_object_remove_member (o, key);
  else
    json_object_set_member (o, key, json_from_string (value, NULL));
}

static QomniConfig *
parse (JsonNode * root, GError ** error)
{
  g_autofree char *text = json_to_string (root, FALSE);

  return qomni_config_parse ("config.json", text, strlen (text), error);
}

static void
check_tiny_a (const QomniConfig * c)
{
  g_assert_cmpstr (c->model_type, ==, "qwen3_omni_moe");
  g_assert_cmpstr (c->thinker_prefix, ==, "thinker.");
  g_assert_true (c->has_audio);
  g_assert_true (c->has_vision);
  g_assert_true (c->has_speech);

  g_assert_cmpint (c->text.vocab_size, ==, 632);
  g_assert_cmpint (c->text.hidden_size, ==, 48);
  g_assert_cmpint (c->text.n_layers, ==, 4);
  g_assert_cmpint (c->text.n_heads, ==, 4);
  g_assert_cmpint (c->text.n_kv_heads, ==, 2);
  g_assert_cmpint (c->text.head_dim, ==, 16);
  g_assert_cmpint (c->text.n_experts, ==, 8);
  g_assert_cmpint (c->text.top_k, ==, 2);
  g_assert_cmpint (c->text.moe_intermediate_size, ==, 32);
  g_assert_cmpint (c->text.shared_intermediate_size, ==, 0);
  g_assert_true (c->text.norm_top_k);
  g_assert_false (c->text.dense_layer[0]);
  g_assert_cmpfloat (c->text.rope_theta, ==, 1e6);
  g_assert_cmpint (c->text.mrope_section[0], ==, 4);
  g_assert_cmpint (c->text.mrope_section[2], ==, 2);
  g_assert_cmpint (c->text.sliding_window, ==, 0);

  g_assert_cmpint (c->audio.chunk_frames, ==, 100);
  g_assert_cmpint (c->audio.window_chunks, ==, 4);
  g_assert_cmpint (c->audio.conv_channels, ==, 8);
  g_assert_cmpint (c->vision.position_side, ==, 6);
  g_assert_cmpint (c->vision.n_deepstack, ==, 3);
  g_assert_cmpint (c->vision.deepstack_layer[2], ==, 2);

  g_assert_cmpint (c->talker.accept_layer, ==, 2);
  g_assert_cmpint (c->talker.n_groups, ==, 4);
  g_assert_cmpint (c->talker.codebook_size, ==, 128);
  g_assert_cmpint (c->talker.text.shared_intermediate_size, ==, 24);
  g_assert_cmpint (c->talker.predictor.n_layers, ==, 2);
  g_assert_cmpint (c->talker.predictor.n_experts, ==, 0);
  g_assert_true (c->talker.predictor.dense_layer[1]);
  g_assert_cmpint (c->talker.codec_eos, ==, 230);
  g_assert_cmpint (c->talker.n_voices, ==, 3);
  g_assert_cmpstr (c->talker.voices[0].name, ==, "chelsie");
  g_assert_cmpint (c->talker.voices[2].id, ==, 255);

  g_assert_cmpint (c->code2wav.pre.head_dim, ==, 8);
  g_assert_cmpint (c->code2wav.pre.sliding_window, ==, 8);
  g_assert_cmpint (c->code2wav.samples_per_frame, ==, 1920);
  g_assert_cmpint (c->code2wav.missing_samples, ==, 555);

  g_assert_cmpint (c->im_start, ==, 587);
  g_assert_cmpint (c->user_id, ==, 270);
  g_assert_cmpint (c->audio_pad, ==, 618);
  g_assert_cmpint (c->vision_end, ==, 596);
  g_assert_cmpfloat (c->position_id_per_seconds, ==, 13);
}

static void
test_v4 (void)
{
  g_autofree char *dir = fixture_path ("tiny-a");
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (dir == NULL)
    return;
  c = qomni_config_read (dir, &error);
  g_assert_no_error (error);
  check_tiny_a (c);
  g_assert_cmpint (c->preprocessor.image_min_pixels, ==, 3136);
  g_assert_cmpint (c->preprocessor.image_max_pixels, ==, 12845056);
  g_assert_cmpint (c->preprocessor.video_min_pixels, ==, 131072);
  g_assert_cmpint (c->preprocessor.video_max_pixels, ==, 786432);
  g_assert_cmpfloat (c->preprocessor.image_std[1], ==, 0.5f);
  g_assert_false (c->thinker_sampling.sample);
  g_assert_cmpfloat (c->thinker_sampling.temperature, ==, 0);
  g_assert_cmpint (c->thinker_sampling.max_tokens, ==, 1024);
  g_assert_true (c->talker_sampling.sample);
  g_assert_cmpfloat (c->talker_sampling.temperature, ==, 0.9);
  g_assert_cmpint (c->talker_sampling.top_k, ==, 50);
  g_assert_cmpfloat (c->talker_sampling.repetition_penalty, ==, 1.05);
  g_assert_cmpint (c->talker_sampling.max_tokens, ==, 4096);
  g_assert_cmpfloat (c->predictor_sampling.top_p, ==, 0.8);
  g_assert_cmpint (c->predictor_sampling.max_tokens, ==, 3);
}

/* rope_theta and rope_scaling become rope_parameters. */
static void
to_v5 (JsonNode * root, const char *path, const char *parameters)
{
  edit (root, path, "rope_theta", NULL);
  edit (root, path, "rope_scaling", NULL);
  edit (root, path, "rope_parameters", parameters);
}

/* What transformers 5 writes for the same model. */
static void
test_v5 (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;
  const char *mrope = "{\"rope_theta\":1000000.0,\"rope_type\":\"default\","
      "\"mrope_section\":[4,2,2],\"mrope_interleaved\":true}";
  const char *plain = "{\"rope_theta\":1000000,\"rope_type\":\"default\"}";

  if (root == NULL)
    return;
  to_v5 (root, "thinker_config.text_config", mrope);
  to_v5 (root, "talker_config.text_config", mrope);
  to_v5 (root, "talker_config.code_predictor_config", plain);
  to_v5 (root, "code2wav_config",
      "{\"rope_theta\":10000.0,\"rope_type\":\"default\"}");
  edit (root, "thinker_config.vision_config", "rope_parameters",
      "{\"rope_theta\":10000.0,\"rope_type\":\"axial\"}");
  edit (root, "talker_config.text_config", "num_experts", NULL);
  edit (root, "talker_config.text_config", "num_local_experts", "6");
  edit (root, "talker_config", "model_type", "\"\"");
  edit (root, "code2wav_config", "model_type", "\"\"");
  c = parse (root, &error);
  g_assert_no_error (error);
  check_tiny_a (c);
  g_assert_cmpint (c->talker.text.n_experts, ==, 6);
  g_assert_cmpfloat (c->talker.predictor.rope_theta, ==, 1e6);
  g_assert_cmpfloat (c->code2wav.pre.rope_theta, ==, 1e4);
}

/* A Thinker saved on its own: its config is the root. */
static void
test_thinker_alone (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (JsonNode) thinker = NULL;
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  thinker = json_object_dup_member (json_node_get_object (root),
      "thinker_config");
  c = parse (thinker, &error);
  g_assert_no_error (error);
  g_assert_cmpstr (c->thinker_prefix, ==, "");
  g_assert_true (c->has_audio);
  g_assert_false (c->has_speech);
  g_assert_cmpint (c->text.n_layers, ==, 4);
  /* For the tokenizer to say. */
  g_assert_cmpint (c->im_start, ==, -1);
  g_assert_cmpint (c->user_id, ==, 270);
}

static void
test_parts_left_out (void)
{
  static const char *const keys[] = { "talker_config", "code2wav_config" };
  g_autoptr (GError) error = NULL;

  for (size_t i = 0; i < G_N_ELEMENTS (keys); i++) {
    g_autoptr (JsonNode) root = load_tree ();
    g_autoptr (QomniConfig) c = NULL;

    if (root == NULL)
      return;
    edit (root, "", keys[i], i == 0 ? NULL : "null");
    c = parse (root, &error);
    g_assert_no_error (error);
    g_assert_false (c->has_speech);
    g_assert_true (c->has_audio);
  }
  {
    g_autoptr (JsonNode) root = load_tree ();
    g_autoptr (QomniConfig) c = NULL;

    edit (root, "", "enable_audio_output", "false");
    edit (root, "thinker_config", "audio_config", NULL);
    edit (root, "thinker_config", "vision_config", NULL);
    c = parse (root, &error);
    g_assert_no_error (error);
    g_assert_false (c->has_speech);
    g_assert_false (c->has_audio);
    g_assert_false (c->has_vision);
  }
}

static void
test_absent_keys (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  edit (root, "thinker_config", "position_id_per_seconds", NULL);
  edit (root, "thinker_config.text_config", "norm_topk_prob", NULL);
  edit (root, "thinker_config.text_config", "rope_theta", NULL);
  edit (root, "talker_config.text_config", "rope_theta", NULL);
  edit (root, "talker_config.code_predictor_config", "rope_theta", NULL);
  edit (root, "code2wav_config", "rope_theta", NULL);
  edit (root, "code2wav_config", "sliding_window", NULL);
  edit (root, "code2wav_config", "upsample_rates", NULL);
  edit (root, "thinker_config.audio_config", "n_window", NULL);
  edit (root, "thinker_config.audio_config", "n_window_infer", NULL);
  edit (root, "thinker_config.text_config", "head_dim", NULL);
  edit (root, "thinker_config.text_config", "rope_scaling", NULL);
  edit (root, "", "im_end_token_id", NULL);
  c = parse (root, &error);
  g_assert_no_error (error);
  g_assert_cmpfloat (c->position_id_per_seconds, ==, 13);
  g_assert_true (c->text.norm_top_k);
  g_assert_cmpfloat (c->text.rope_theta, ==, 1e6);
  g_assert_cmpfloat (c->talker.text.rope_theta, ==, 1e4);
  g_assert_cmpfloat (c->talker.predictor.rope_theta, ==, 1e4);
  g_assert_cmpfloat (c->code2wav.pre.rope_theta, ==, 1e4);
  g_assert_cmpint (c->code2wav.pre.sliding_window, ==, 72);
  g_assert_cmpint (c->code2wav.samples_per_frame, ==, 1920);
  g_assert_cmpint (c->audio.window_chunks, ==, 8);
  g_assert_cmpint (c->text.head_dim, ==, 12);   /* hidden / heads */
  g_assert_cmpint (c->text.mrope_section[0], ==, 24);
  g_assert_cmpint (c->text.mrope_section[1], ==, 20);
  g_assert_cmpint (c->im_end, ==, -1);
}

/* The last levels then have no layer to be added to, and a Talker may listen
 * to the last layer of all. */
static void
test_more_levels_than_layers (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  edit (root, "thinker_config.text_config", "num_hidden_layers", "2");
  edit (root, "talker_config", "accept_hidden_layer", "2");
  c = parse (root, &error);
  g_assert_no_error (error);
  g_assert_cmpint (c->text.n_layers, ==, 2);
  g_assert_cmpint (c->vision.n_deepstack, ==, 3);
  g_assert_cmpint (c->vision.deepstack_layer[2], ==, 2);
  g_assert_cmpint (c->talker.accept_layer, ==, 2);
}

/* A window is of whole chunks of 100 frames. */
static void
test_audio_windows (void)
{
  static const struct
  {
    const char *frames;
    int chunks;
  } windows[] = { {"100", 1}, {"199", 1}, {"250", 2}, {"800", 8}, {"899", 8} };

  for (size_t i = 0; i < G_N_ELEMENTS (windows); i++) {
    g_autoptr (JsonNode) root = load_tree ();
    g_autoptr (GError) error = NULL;
    g_autoptr (QomniConfig) c = NULL;

    if (root == NULL)
      return;
    edit (root, "thinker_config.audio_config", "n_window_infer",
        windows[i].frames);
    c = parse (root, &error);
    g_assert_no_error (error);
    g_assert_cmpint (c->audio.window_chunks, ==, windows[i].chunks);
  }
}

/* Whatever hidden_size and heads are, which would make 8 here. */
static void
test_predictor_heads (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  edit (root, "talker_config.code_predictor_config", "head_dim", NULL);
  c = parse (root, &error);
  g_assert_no_error (error);
  g_assert_cmpint (c->talker.predictor.head_dim, ==, 128);
}

static void
test_dense_layers (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  edit (root, "thinker_config.text_config", "decoder_sparse_step", "2");
  edit (root, "thinker_config.text_config", "mlp_only_layers", "[3]");
  c = parse (root, &error);
  g_assert_no_error (error);
  g_assert_true (c->text.dense_layer[0]);
  g_assert_false (c->text.dense_layer[1]);
  g_assert_true (c->text.dense_layer[2]);
  g_assert_true (c->text.dense_layer[3]);
}

/* As the reference builds them, whatever those keys say. */
static void
test_talker_layers (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  edit (root, "talker_config.text_config", "decoder_sparse_step", "2");
  edit (root, "talker_config.text_config", "mlp_only_layers", "[1]");
  edit (root, "thinker_config.text_config", "shared_expert_intermediate_size",
      "24");
  c = parse (root, &error);
  g_assert_no_error (error);
  for (int i = 0; i < c->talker.text.n_layers; i++)
    g_assert_false (c->talker.text.dense_layer[i]);
  g_assert_cmpint (c->talker.text.shared_intermediate_size, ==, 24);
  g_assert_cmpint (c->text.shared_intermediate_size, ==, 0);
}

static void
test_no_experts (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  edit (root, "thinker_config.text_config", "num_experts", "0");
  c = parse (root, &error);
  g_assert_no_error (error);
  for (int i = 0; i < c->text.n_layers; i++)
    g_assert_true (c->text.dense_layer[i]);
}

static void
test_windows (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = NULL;

  if (root == NULL)
    return;
  edit (root, "thinker_config.text_config", "sliding_window", "77");
  edit (root, "talker_config.text_config", "sliding_window", "77");
  edit (root, "talker_config.code_predictor_config", "sliding_window", "77");
  c = parse (root, &error);
  g_assert_no_error (error);
  g_assert_cmpint (c->text.sliding_window, ==, 0);
  g_assert_cmpint (c->talker.text.sliding_window, ==, 0);
  g_assert_cmpint (c->talker.predictor.sliding_window, ==, 0);
  g_assert_cmpint (c->code2wav.pre.sliding_window, ==, 8);
}

/* One edit each; the message names the key. */
typedef struct
{
  const char *path, *key, *value;
  QomniErrorCode code;
} Mutation;

#define T "thinker_config"
#define TT "thinker_config.text_config"
#define TA "thinker_config.audio_config"
#define TV "thinker_config.vision_config"
#define K "talker_config"
#define KT "talker_config.text_config"
#define KP "talker_config.code_predictor_config"
#define W "code2wav_config"
#define BAD QOMNI_ERROR_FORMAT
#define OTHER QOMNI_ERROR_UNSUPPORTED

static const Mutation mutations[] = {
  {"", "model_type", NULL, BAD},
  {"", "model_type", "7", BAD},
  {"", "model_type", "\"llama\"", OTHER},
  {"", "model_type", "\"qwen2_5_omni\"", OTHER},
  {"", "model_type", "\"qwen3_omni_moe_thinker\"", OTHER},
  {"", "thinker_config", "[]", BAD},
  {"", "talker_config", "3", BAD},
  {"", "enable_audio_output", "\"yes\"", BAD},
  {"", "im_start_token_id", "632", BAD},
  {"", "im_start_token_id", "-1", BAD},
  {"", "tts_eos_token_id", "1.5", BAD},
  {T, "text_config", NULL, BAD},
  {T, "text_config", "\"x\"", BAD},
  {T, "position_id_per_seconds", "0", BAD},
  {T, "position_id_per_seconds", "\"13\"", BAD},
  {T, "audio_token_id", "151675", BAD},

  {TT, "vocab_size", NULL, BAD},
  {TT, "vocab_size", "0", BAD},
  {TT, "vocab_size", "2097153", BAD},
  {TT, "hidden_size", NULL, BAD},
  {TT, "hidden_size", "0", BAD},
  {TT, "hidden_size", "65537", BAD},
  {TT, "hidden_size", "\"48\"", BAD},
  {TT, "hidden_size", "[48]", BAD},
  {TT, "hidden_size", "true", BAD},
  {TT, "num_hidden_layers", NULL, BAD},
  {TT, "num_hidden_layers", "null", BAD},
  {TT, "num_hidden_layers", "0", BAD},
  {TT, "num_hidden_layers", "-4", BAD},
  {TT, "num_hidden_layers", "513", BAD},
  {TT, "num_hidden_layers", "2147483648", BAD},
  {TT, "num_hidden_layers", "4.0", BAD},
  {TT, "num_attention_heads", NULL, BAD},
  {TT, "num_attention_heads", "1025", BAD},
  {TT, "num_key_value_heads", "3", BAD},
  {TT, "num_key_value_heads", "0", BAD},
  {TT, "num_key_value_heads", "8", BAD},
  {TT, "head_dim", "15", BAD},
  {TT, "head_dim", "0", BAD},
  {TT, "intermediate_size", "-1", BAD},
  {TT, "num_experts", "-1", BAD},
  {TT, "num_experts", "4097", BAD},
  {TT, "num_experts_per_tok", "9", BAD},
  {TT, "num_experts_per_tok", "0", BAD},
  {TT, "moe_intermediate_size", "65537", BAD},
  {TT, "norm_topk_prob", "1", BAD},
  {TT, "decoder_sparse_step", "0", BAD},
  {TT, "mlp_only_layers", "[4]", BAD},
  {TT, "mlp_only_layers", "[\"0\"]", BAD},
  {TT, "mlp_only_layers", "0", BAD},
  {TT, "rms_norm_eps", "-1e-6", BAD},
  {TT, "rms_norm_eps", "\"small\"", BAD},
  {TT, "rope_theta", "0", BAD},
  {TT, "rope_scaling", "[]", BAD},
  {W, "sliding_window", "-1", BAD},
  {TT, "attention_bias", "true", OTHER},
  {TT, "hidden_act", "\"gelu\"", OTHER},
  {TT ".rope_scaling", "mrope_section", "[4,2,3]", BAD},
  {TT ".rope_scaling", "mrope_section", "[4,4]", BAD},
  {TT ".rope_scaling", "mrope_section", "[4,2,1,1]", BAD},
  {TT ".rope_scaling", "mrope_section", "[10,-1,-1]", BAD},
  {TT ".rope_scaling", "rope_type", "\"yarn\"", OTHER},

  {TA, "d_model", NULL, BAD},
  {TA, "d_model", "33", BAD},
  {TA, "encoder_attention_heads", "3", BAD},
  {TA, "encoder_layers", "0", BAD},
  {TA, "output_dim", "47", BAD},
  {TA, "n_window", "100", OTHER},
  {TA, "n_window_infer", "0", BAD},
  {TA, "n_window_infer", "99", BAD},
  {TA, "num_mel_bins", "0", BAD},
  {TA, "activation_function", "\"relu\"", OTHER},

  {TV, "depth", "513", BAD},
  {TV, "num_heads", "3", BAD},
  {TV, "num_heads", "32", BAD},
  {TV, "out_hidden_size", "32", BAD},
  {TV, "num_position_embeddings", "37", BAD},
  {TV, "num_position_embeddings", "0", BAD},
  {TV, "deepstack_visual_indexes", "[0,1,4]", BAD},
  {TV, "deepstack_visual_indexes", "[1,0]", BAD},
  {TV, "deepstack_visual_indexes", "[1,1]", BAD},
  {TV, "deepstack_visual_indexes", NULL, BAD},
  {TV, "in_channels", "4", BAD},
  {TV, "patch_size", "0", BAD},
  {TV, "spatial_merge_size", "0", BAD},

  {K, "text_config", NULL, BAD},
  {K, "code_predictor_config", NULL, BAD},
  {K, "accept_hidden_layer", "5", BAD},
  {K, "accept_hidden_layer", NULL, BAD},
  {K, "thinker_hidden_size", "32", BAD},
  {K, "num_code_groups", "1", BAD},
  {K, "codec_pad_id", "1152", BAD},
  {K, "codec_eos_token_id", NULL, BAD},
  {K, "codec_think_eos_id", "-1", BAD},
  {K, "speaker_id", "[1]", BAD},
  {K ".speaker_id", "ethan", "1152", BAD},
  {K ".speaker_id", "ethan", "\"254\"", BAD},
  {KT, "num_experts", "0", BAD},
  {KT, "num_experts_per_tok", "7", BAD},
  {KT, "vocab_size", "1153", BAD},
  {KP, "vocab_size", "2000", BAD},
  {KT, "shared_expert_intermediate_size", "-24", BAD},
  {KP, "num_code_groups", "5", BAD},
  {KP, "hidden_size", "64", BAD},
  {KP, "layer_types", "[\"full_attention\",\"sliding_attention\"]", OTHER},

  {W, "head_dim", "7", BAD},
  {W, "sliding_window", "0", BAD},
  {W, "codebook_size", "64", BAD},
  {W, "num_quantizers", "3", BAD},
  {W, "decoder_dim", "15", BAD},
  {W, "upsample_rates", "[]", BAD},
  {W, "upsample_rates", "[8,0]", BAD},
  {W, "upsample_rates", "[2,2,2,2,2,2,2,2,2]", BAD},
  {W, "upsample_rates", "[64,64,64,64,64]", BAD},
  {W, "upsampling_ratios", "2", BAD},
};

static void
test_mutations (void)
{
  for (size_t i = 0; i < G_N_ELEMENTS (mutations); i++) {
    const Mutation *m = &mutations[i];
    g_autoptr (JsonNode) root = load_tree ();
    g_autoptr (GError) error = NULL;
    g_autoptr (QomniConfig) c = NULL;

    if (root == NULL)
      return;
    edit (root, m->path, m->key, m->value);
    c = parse (root, &error);
    if (c != NULL)
      g_error ("accepted: %s.%s = %s", m->path, m->key, m->value);
    if (!g_str_has_prefix (error->message, "config.json: ")
        || strstr (error->message, m->key) == NULL
        || error->code != (int) m->code)
      g_error ("%s.%s = %s: code %d, '%s'", m->path, m->key, m->value,
          error->code, error->message);
  }
}

static void
test_message (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;

  if (root == NULL)
    return;
  edit (root, TT, "num_hidden_layers", "2147483648");
  g_assert_null (parse (root, &error));
  g_assert_cmpstr (error->message, ==, "config.json: "
      "thinker_config.text_config.num_hidden_layers is 2147483648, expected "
      "1 to 512");
}

static void
test_not_an_object (void)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (qomni_config_parse ("config.json", "[1]", 3, &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "no object");
  g_assert_null (qomni_config_parse ("config.json", "{\"a\":1,\"a\":1}", 13,
          &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "byte 7");
}

/* A directory with the fixture's config.json and one more file. */
static QomniConfig *
read_with (const char *name, const char *text, GError ** error)
{
  g_autofree char *from = fixture_path ("tiny-a");
  g_autoptr (Scratch) dir = NULL;
  g_autofree char *config = NULL;
  size_t n;

  if (from == NULL)
    return NULL;
  dir = scratch_new ();
  config = scratch_read (from, "config.json", &n);
  scratch_write (dir, "config.json", config, n);
  if (name != NULL)
    scratch_write_text (dir, name, text);
  return qomni_config_read (dir, error);
}

static void
test_companions_are_optional (void)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (QomniConfig) c = read_with (NULL, NULL, &error);

  g_assert_no_error (error);
  if (c == NULL)
    return;
  check_tiny_a (c);
  g_assert_cmpint (c->preprocessor.image_max_pixels, ==, 12845056);
}

static void
test_preprocessor (void)
{
  g_autoptr (GError) error = NULL;
  const char *image = "preprocessor_config.json";
  const char *video = "video_preprocessor_config.json";

  {
    g_autoptr (QomniConfig) c = read_with (image, "{\"size\":{"
        "\"shortest_edge\":1024,\"longest_edge\":4096},\"image_mean\":"
        "[0,0.25,1],\"image_std\":[1,2,3.5],\"hop_length\":160}", &error);

    g_assert_no_error (error);
    if (c == NULL)
      return;
    g_assert_cmpint (c->preprocessor.image_min_pixels, ==, 1024);
    g_assert_cmpint (c->preprocessor.image_max_pixels, ==, 4096);
    g_assert_cmpint (c->preprocessor.video_max_pixels, ==, 786432);
    g_assert_cmpfloat (c->preprocessor.image_mean[1], ==, 0.25f);
    g_assert_cmpfloat (c->preprocessor.image_std[2], ==, 3.5f);
  }
  {
    g_autoptr (QomniConfig) c = read_with (video,
        "{\"min_pixels\":5000,\"max_pixels\":6000}", &error);

    g_assert_no_error (error);
    g_assert_cmpint (c->preprocessor.video_min_pixels, ==, 5000);
    g_assert_cmpint (c->preprocessor.video_max_pixels, ==, 6000);
    g_assert_cmpint (c->preprocessor.image_min_pixels, ==, 3136);
  }
  g_assert_null (read_with (image, "{\"min_pixels\":20,\"max_pixels\":10}",
          &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "max_pixels");
  g_assert_null (read_with (image, "{\"image_std\":[0.5,0,0.5]}", &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "image_std");
  g_assert_null (read_with (image, "{\"image_mean\":[0.5]}", &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "image_mean");
  g_assert_null (read_with (image, "{\"sampling_rate\":8000}", &error));
  assert_refused (&error, QOMNI_ERROR_UNSUPPORTED, "sampling_rate is 8000");
  g_assert_null (read_with (image, "{\"feature_size\":80}", &error));
  assert_refused (&error, QOMNI_ERROR_UNSUPPORTED, "feature_size");
  g_assert_null (read_with (video, "{\"patch_size\":14}", &error));
  assert_refused (&error, QOMNI_ERROR_UNSUPPORTED, "patch_size");
  g_assert_null (read_with (video, "{", &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, video);
}

static void
test_generation (void)
{
  const char *name = "generation_config.json";
  g_autoptr (GError) error = NULL;

  {
    /* What has no prefix is not handed on. */
    g_autoptr (QomniConfig) c = read_with (name, "{\"do_sample\":true,"
        "\"temperature\":0.6,\"top_k\":20,\"max_new_tokens\":5,"
        "\"talker_temperature\":0.7,\"talker_max_new_tokens\":99,"
        "\"talker_top_k\":7,\"talker_top_p\":0.5,"
        "\"talker_repetition_penalty\":1.2}", &error);

    g_assert_no_error (error);
    if (c == NULL)
      return;
    g_assert_false (c->thinker_sampling.sample);
    g_assert_cmpfloat (c->thinker_sampling.temperature, ==, 0);
    g_assert_cmpint (c->thinker_sampling.max_tokens, ==, 1024);
    g_assert_cmpfloat (c->talker_sampling.temperature, ==, 0.7);
    g_assert_cmpfloat (c->talker_sampling.top_p, ==, 0.5);
    g_assert_cmpfloat (c->talker_sampling.repetition_penalty, ==, 1.2);
    g_assert_cmpint (c->talker_sampling.top_k, ==, 7);
    g_assert_cmpint (c->talker_sampling.max_tokens, ==, 99);
  }
  {
    g_autoptr (QomniConfig) c = read_with (name,
        "{\"thinker_do_sample\":true,\"talker_do_sample\":false}", &error);

    g_assert_no_error (error);
    g_assert_true (c->thinker_sampling.sample);
    g_assert_cmpfloat (c->thinker_sampling.temperature, ==, 1);
    g_assert_cmpint (c->thinker_sampling.top_k, ==, 50);
    g_assert_false (c->talker_sampling.sample);
    g_assert_cmpfloat (c->talker_sampling.temperature, ==, 0);
    g_assert_false (c->predictor_sampling.sample);
  }
  g_assert_null (read_with (name, "{\"thinker_temperature\":-1}", &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "thinker_temperature");
  g_assert_null (read_with (name, "{\"talker_top_p\":1.5}", &error));
  assert_refused (&error, QOMNI_ERROR_FORMAT, "talker_top_p");
}

static void
test_voices (void)
{
  g_autoptr (JsonNode) root = load_tree ();
  g_autoptr (GError) error = NULL;

  if (root == NULL)
    return;
  {
    g_autoptr (QomniConfig) c = parse (root, &error);

    g_assert_cmpint (qomni_config_voice (c, "Aiden", NULL)->id, ==, 255);
    g_assert_cmpint (qomni_config_voice (c, NULL, NULL)->id, ==, 254);
    g_assert_null (qomni_config_voice (c, "bob", &error));
    assert_refused (&error, QOMNI_ERROR_SETTINGS, "chelsie, ethan, aiden");
    g_assert_null (qomni_config_voice (c, "\xff", &error));
    g_clear_error (&error);
  }
  edit (root, K, "speaker_id", "{\"Zoe\":9,\"Bob\":8}");
  {
    g_autoptr (QomniConfig) c = parse (root, &error);

    g_assert_cmpint (qomni_config_voice (c, NULL, NULL)->id, ==, 9);
    g_assert_cmpint (qomni_config_voice (c, "BOB", NULL)->id, ==, 8);
  }
  edit (root, K, "speaker_id", NULL);
  {
    g_autoptr (QomniConfig) c = parse (root, &error);

    g_assert_no_error (error);
    g_assert_null (qomni_config_voice (c, NULL, &error));
    assert_refused (&error, QOMNI_ERROR_SETTINGS, "no voices");
  }
}

static void
test_no_config (void)
{
  g_autoptr (Scratch) dir = scratch_new ();
  g_autoptr (GError) error = NULL;

  g_assert_null (qomni_config_read (dir, &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "config.json");
  g_assert_null (qomni_config_read ("/nonexistent/model", &error));
  assert_refused (&error, QOMNI_ERROR_NOT_FOUND, "/nonexistent/model");
}

/* Whichever fixture directories there are. */
static void
test_all_fixtures (void)
{
  const char *root = g_getenv ("QOMNI_TEST_FIXTURES");
  g_autoptr (GDir) dir = root != NULL ? g_dir_open (root, 0, NULL) : NULL;
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL) {
    g_autofree char *path = g_build_filename (root, name, NULL);
    g_autofree char *file = g_build_filename (path, "config.json", NULL);
    g_autoptr (GError) error = NULL;
    g_autoptr (QomniConfig) c = NULL;

    if (!g_file_test (file, G_FILE_TEST_EXISTS))
      continue;
    c = qomni_config_read (path, &error);
    g_assert_no_error (error);
  }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/config/dialect_of_transformers_4_is_read", test_v4);
  g_test_add_func ("/config/dialect_of_transformers_5_is_the_same", test_v5);
  g_test_add_func ("/config/thinker_alone_is_read", test_thinker_alone);
  g_test_add_func ("/config/parts_may_be_left_out", test_parts_left_out);
  g_test_add_func ("/config/absent_keys_have_documented_values",
      test_absent_keys);
  g_test_add_func ("/config/deepstack_may_have_more_levels_than_layers",
      test_more_levels_than_layers);
  g_test_add_func ("/config/audio_window_is_floored_to_chunks",
      test_audio_windows);
  g_test_add_func ("/config/predictor_heads_are_128_wide_unless_said",
      test_predictor_heads);
  g_test_add_func ("/config/dense_layers_follow_step_and_list",
      test_dense_layers);
  g_test_add_func ("/config/talker_layers_all_have_experts",
      test_talker_layers);
  g_test_add_func ("/config/thinker_without_experts_is_dense",
      test_no_experts);
  g_test_add_func ("/config/only_code2wav_has_a_window", test_windows);
  g_test_add_func ("/config/every_bad_value_is_refused_by_name",
      test_mutations);
  g_test_add_func ("/config/message_has_file_key_value_and_range",
      test_message);
  g_test_add_func ("/config/other_documents_are_refused", test_not_an_object);
  g_test_add_func ("/config/companion_files_are_optional",
      test_companions_are_optional);
  g_test_add_func ("/config/preprocessor_bounds_are_read", test_preprocessor);
  g_test_add_func ("/config/only_prefixed_sampling_keys_count",
      test_generation);
  g_test_add_func ("/config/voices_are_found_in_any_case", test_voices);
  g_test_add_func ("/config/missing_config_is_not_found", test_no_config);
  g_test_add_func ("/config/all_fixtures_are_read", test_all_fixtures);
  return g_test_run ();
}
