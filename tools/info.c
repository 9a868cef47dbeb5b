/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qomni info: what a checkpoint holds and what it will need.
 */
#include "qomni.h"

static const QomniComponents all_components[] = {
  QOMNI_COMPONENT_AUDIO, QOMNI_COMPONENT_VISION, QOMNI_COMPONENT_THINKER,
  QOMNI_COMPONENT_TALKER, QOMNI_COMPONENT_CODE2WAV,
};

typedef struct
{
  bool present[G_N_ELEMENTS (all_components)];
  QomniComponentInfo component[G_N_ELEMENTS (all_components)];
  uint64_t bytes, parameters;
  /* Key-value cache of 8192 tokens of context, f32. */
  uint64_t context_bytes;
} Info;

#define CONTEXT_TOKENS 8192

static bool
collect (QomniModel * model, Info * ret, GError ** error)
{
  const QomniConfig *config = qomni_model_config (model);
  QomniComponents has = qomni_model_components (model);

  for (size_t i = 0; i < G_N_ELEMENTS (all_components); i++) {
    ret->present[i] = (has & all_components[i]) != 0;
    if (!ret->present[i])
      continue;
    if (!qomni_model_component_info (model, all_components[i],
            &ret->component[i], error))
      return false;
    ret->bytes += ret->component[i].bytes;
    ret->parameters += ret->component[i].n_parameters;
  }
  ret->context_bytes = (uint64_t) CONTEXT_TOKENS * 2
      * (uint64_t) config->text.n_layers * (uint64_t) config->text.n_kv_heads
      * (uint64_t) config->text.head_dim * sizeof (float);
  return true;
}

static void
print_json (QomniModel * model, const Info * info)
{
  const QomniConfig *config = qomni_model_config (model);
  QomniCheckpoint *checkpoint = qomni_model_checkpoint (model);
  g_autoptr (JsonBuilder) b = json_builder_new ();

  json_builder_begin_object (b);
  json_builder_set_member_name (b, "path");
  json_builder_add_string_value (b, qomni_model_path (model));
  json_builder_set_member_name (b, "format");
  json_builder_add_string_value (b, "safetensors");
  json_builder_set_member_name (b, "model_type");
  json_builder_add_string_value (b, config->model_type);
  json_builder_set_member_name (b, "fingerprint");
  json_builder_add_string_value (b, qomni_model_fingerprint (model));
  json_builder_set_member_name (b, "shards");
  json_builder_add_int_value (b,
      (gint64) qomni_checkpoint_n_shards (checkpoint));
  json_builder_set_member_name (b, "tensors");
  json_builder_add_int_value (b,
      (gint64) qomni_checkpoint_n_tensors (checkpoint));
  json_builder_set_member_name (b, "parameters");
  json_builder_add_int_value (b, (gint64) info->parameters);
  json_builder_set_member_name (b, "bytes");
  json_builder_add_int_value (b, (gint64) info->bytes);
  json_builder_set_member_name (b, "context_bytes");
  json_builder_add_int_value (b, (gint64) info->context_bytes);
  json_builder_set_member_name (b, "components");
  json_builder_begin_object (b);
  for (size_t i = 0; i < G_N_ELEMENTS (all_components); i++) {
    const QomniComponentInfo *c = &info->component[i];

    if (!info->present[i])
      continue;
    json_builder_set_member_name (b, qomni_component_name (all_components[i]));
    json_builder_begin_object (b);
    json_builder_set_member_name (b, "precision");
    json_builder_add_string_value (b, c->dtype);
    json_builder_set_member_name (b, "tensors");
    json_builder_add_int_value (b, (gint64) c->n_tensors);
    json_builder_set_member_name (b, "parameters");
    json_builder_add_int_value (b, (gint64) c->n_parameters);
    json_builder_set_member_name (b, "bytes");
    json_builder_add_int_value (b, (gint64) c->bytes);
    json_builder_end_object (b);
  }
  json_builder_end_object (b);
  json_builder_set_member_name (b, "voices");
  json_builder_begin_array (b);
  for (int i = 0; i < config->talker.n_voices; i++)
    json_builder_add_string_value (b, config->talker.voices[i].name);
  json_builder_end_array (b);
  json_builder_end_object (b);
  command_print_json (b);
}

static void
print_text (QomniModel * model, const Info * info)
{
  const QomniConfig *config = qomni_model_config (model);
  QomniCheckpoint *checkpoint = qomni_model_checkpoint (model);
  g_autofree char *total = g_format_size_full (info->bytes,
      G_FORMAT_SIZE_IEC_UNITS);
  g_autofree char *context = g_format_size_full (info->context_bytes,
      G_FORMAT_SIZE_IEC_UNITS);

  printf ("%s\n", qomni_model_path (model));
  printf ("  model        %s, fingerprint %s\n", config->model_type,
      qomni_model_fingerprint (model));
  printf ("  format       safetensors, %zu file%s, %zu tensors\n",
      qomni_checkpoint_n_shards (checkpoint),
      qomni_checkpoint_n_shards (checkpoint) == 1 ? "" : "s",
      qomni_checkpoint_n_tensors (checkpoint));
  for (size_t i = 0; i < G_N_ELEMENTS (all_components); i++) {
    const QomniComponentInfo *c = &info->component[i];
    const char *name = qomni_component_name (all_components[i]);

    if (info->present[i]) {
      g_autofree char *size = g_format_size_full (c->bytes,
          G_FORMAT_SIZE_IEC_UNITS);

      printf ("  %-12s %s, %zu tensors, %" G_GUINT64_FORMAT
          " parameters, %s\n", name, c->dtype, c->n_tensors,
          c->n_parameters, size);
    } else {
      printf ("  %-12s not in this checkpoint\n", name);
    }
  }
  printf ("  voices      ");
  for (int i = 0; i < config->talker.n_voices; i++)
    printf (" %s", config->talker.voices[i].name);
  printf ("%s\n", config->talker.n_voices == 0 ? " none" : "");
  printf ("  memory       %s of weights for everything, %s for a context of "
      "%d tokens\n", total, context, CONTEXT_TOKENS);
}

int
command_info (int argc, char **argv)
{
  gboolean json = FALSE;
  const GOptionEntry entries[] = {
    {"json", 0, 0, G_OPTION_ARG_NONE, &json, "One JSON object on one line",
        NULL},
    G_OPTION_ENTRY_NULL
  };
  g_autoptr (QomniModel) model = NULL;
  g_autoptr (GError) error = NULL;
  const char *path;
  Info info = { 0 };

  if (!command_parse (&argc, &argv, entries,
          "Format, components, precision, sizes and voices of a checkpoint.",
          &path))
    return STATUS_USAGE;
  model = qomni_model_ref_or_load (path, NULL, &error);
  if (model == NULL || !collect (model, &info, &error))
    return command_fail (error);
  if (json)
    print_json (model, &info);
  else
    print_text (model, &info);
  return STATUS_OK;
}
