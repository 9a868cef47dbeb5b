# SPDX-License-Identifier: LGPL-2.1-or-later
"""The published layout of a checkpoint, small: tokenizer files, config.json
and the other documents that stand beside the weights.

    write_tokenizer(out, text, ...) -> ids of the added tokens and roles
    config_v4(spec, ids)            -> config.json as a dictionary
    preprocessor(pixels)            -> preprocessor_config.json

Used by what makes checkpoints: the built-in one here, the parity fixtures in
tests/parity.
"""
import json
import random

import regex

ADDED_TOKENS = [  # (text, special), in the published order
    ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True), ("<|box_start|>", True), ("<|box_end|>", True), ("<|quad_start|>", True),
    ("<|quad_end|>", True), ("<|vision_start|>", True), ("<|vision_end|>", True), ("<|vision_pad|>", True),
    ("<|image_pad|>", True), ("<|video_pad|>", True), ("<tool_call>", False), ("</tool_call>", False),
    ("<|fim_prefix|>", False), ("<|fim_middle|>", False), ("<|fim_suffix|>", False), ("<|fim_pad|>", False),
    ("<|repo_name|>", False), ("<|file_sep|>", False), ("<tool_response>", False), ("</tool_response>", False),
    ("<think>", False), ("</think>", False), ("<|audio_start|>", True), ("<|audio_end|>", True),
    ("<tts_pad>", True), ("<tts_text_bos>", True), ("<tts_text_eod>", True), ("<tts_text_bos_single>", True),
    ("<|audio_pad|>", True),
]

PATTERN = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 byte values, in id order."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for b in keep:
        table[b] = chr(b)
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    order = keep + [b for b in range(256) if b not in keep]
    return table, order


def train_bpe(text, merges_wanted=None):
    """As many merges as wanted; without a number, until every word is one
    token."""
    table, order = byte_alphabet()
    words = {}
    for role in ("system", "user", "assistant"):  # these three must be single tokens
        words[role] = 100000
    for w in PATTERN.findall(text):
        words[w] = words.get(w, 0) + 1
    pieces = [([table[b] for b in w.encode()], n) for w, n in sorted(words.items())]
    vocab = {table[b]: i for i, b in enumerate(order)}
    merges = []
    while merges_wanted is None or len(merges) < merges_wanted:
        count = {}
        for symbols, n in pieces:
            for pair in zip(symbols, symbols[1:]):
                count[pair] = count.get(pair, 0) + n
        if not count:
            break
        best = min(count, key=lambda p: (-count[p], p))
        merges.append(best)
        joined = best[0] + best[1]
        vocab[joined] = len(vocab)
        for k, (symbols, n) in enumerate(pieces):
            out, i = [], 0
            while i < len(symbols):
                if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == best:
                    out.append(joined)
                    i += 2
                else:
                    out.append(symbols[i])
                    i += 1
            pieces[k] = (out, n)
    return vocab, merges


def write_json(path, obj, indent=2):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(obj, f, indent=indent, ensure_ascii=False)
        f.write("\n")


def write_tokenizer(out, text, merges=None, shuffled=None):
    """`shuffled`: a seed; ids in no order at all, the added tokens anywhere."""
    vocab, merges = train_bpe(text, merges)
    first = len(vocab)
    ids = {text: first + i for i, (text, _) in enumerate(ADDED_TOKENS)}
    if shuffled is not None:
        tokens = list(vocab) + list(ids)
        random.Random(shuffled).shuffle(tokens)
        vocab = {token: i for i, token in enumerate(tokens)}
        ids = {text: vocab[text] for text in ids}
    with open(f"{out}/vocab.json", "w", encoding="utf-8") as f:
        json.dump(vocab, f, ensure_ascii=False)
    with open(f"{out}/merges.txt", "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    named = {
        "image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
    }
    write_json(f"{out}/tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {
            str(ids[t]): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                          "single_word": False, "special": s} for t, s in ADDED_TOKENS},
        "additional_special_tokens": [t for t, s in ADDED_TOKENS if s and t != "<|endoftext|>"],
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "extra_special_tokens": named, **named, "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    })
    for role in ("system", "user", "assistant"):
        ids[role] = vocab[role]
    ids["size"] = first + len(ADDED_TOKENS)
    ids["added"] = sorted(ids[text] for text, _ in ADDED_TOKENS)
    return ids


def rope(theta, mrope):
    if mrope:
        scaling = {"interleaved": True, "mrope_section": mrope, "rope_type": "default", "type": "default"}
    else:
        scaling = None
    return {"rope_theta": theta, "rope_scaling": scaling}


def config_v4(spec, tok):
    """config.json the way the published repositories have it."""
    t, a, v = spec["text"], spec["audio"], spec["vision"]
    vocab = (tok["size"] + 7) // 8 * 8 + 8
    media = {
        "audio_token_id": tok["<|audio_pad|>"], "image_token_id": tok["<|image_pad|>"],
        "video_token_id": tok["<|video_pad|>"], "audio_start_token_id": tok["<|audio_start|>"],
        "audio_end_token_id": tok["<|audio_end|>"], "vision_start_token_id": tok["<|vision_start|>"],
        "vision_end_token_id": tok["<|vision_end|>"], "position_id_per_seconds": 13, "seconds_per_chunk": 2,
    }
    dtype = {"bf16": "bfloat16", "f32": "float32"}[spec["dtype"]]
    config = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "assistant_token_id": tok["assistant"], "system_token_id": tok["system"], "user_token_id": tok["user"],
        "dtype" if spec["dialect"] == "v5" else "torch_dtype": dtype,
        "enable_audio_output": "talker" in spec,
        "im_start_token_id": tok["<|im_start|>"], "im_end_token_id": tok["<|im_end|>"],
        "tts_pad_token_id": tok["<tts_pad>"], "tts_bos_token_id": tok["<tts_text_bos>"],
        "tts_eos_token_id": tok["<tts_text_eod>"],
        "model_type": "qwen3_omni_moe", "transformers_version": "4.57.0.dev0",
        "thinker_config": {
            "model_type": "qwen3_omni_moe_thinker", "architectures": ["Qwen3OmniMoeThinkerForConditionalGeneration"],
            **media, "user_token_id": tok["user"], "initializer_range": 0.02, "tie_word_embeddings": False,
            "audio_config": {
                "model_type": "qwen3_omni_moe_audio_encoder", "activation_function": "gelu", "activation_dropout": 0,
                "attention_dropout": 0, "dropout": 0, "num_mel_bins": 128, "encoder_layers": a["layers"],
                "num_hidden_layers": a["layers"], "encoder_attention_heads": a["heads"], "encoder_ffn_dim": a["ffn"],
                "d_model": a["d_model"], "n_window": a["n_window"], "n_window_infer": a["infer"],
                "conv_chunksize": 500, "downsample_hidden_size": a["ds"], "max_source_positions": 1500,
                "output_dim": t["hidden"], "scale_embedding": False, "initializer_range": 0.02,
            },
            "vision_config": {
                "model_type": "qwen3_omni_moe_vision_encoder", "apply_vit_abs_pos_embed": True, "depth": v["depth"],
                "hidden_size": v["hidden"], "num_heads": v["heads"], "intermediate_size": v["inter"],
                "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "in_chans": 3, "image_size": 768,
                "patch_size": 16, "spatial_patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2,
                "tokens_per_second": 2, "out_hidden_size": t["hidden"], "num_position_embeddings": v["npos"],
                "deepstack_visual_indexes": v["deepstack"], "initializer_range": 0.02,
            },
            "text_config": {
                "model_type": "qwen3_omni_moe_text", "attention_bias": False, "attention_dropout": 0.0,
                "vocab_size": vocab, "hidden_size": t["hidden"], "num_hidden_layers": t["layers"],
                "num_attention_heads": t["heads"], "num_key_value_heads": t["kv"], "head_dim": t["head_dim"],
                "intermediate_size": t["inter"], "moe_intermediate_size": t["moe_inter"],
                "num_experts": t["experts"], "num_experts_per_tok": t["topk"], "norm_topk_prob": t["norm_topk"],
                "decoder_sparse_step": t["sparse_step"], "mlp_only_layers": t["mlp_only"],
                "shared_expert_intermediate_size": 0, "hidden_act": "silu", "rms_norm_eps": 1e-6,
                **rope(t["theta"], t["mrope"]), "max_position_embeddings": 65536, "sliding_window": None,
                "use_qk_norm": True, "use_sliding_window": False, "use_cache": True, "tie_word_embeddings": False,
                "initializer_range": 0.02,
            },
        },
    }
    if "talker" not in spec:
        return config
    k, p, c = spec["talker"], spec["predictor"], spec["code2wav"]
    base = k["vocab"] - 1024
    config["talker_config"] = {
        "model_type": "qwen3_omni_moe_talker", "accept_hidden_layer": k["accept"], "thinker_hidden_size": t["hidden"],
        "num_code_groups": k["groups"], **media, "spatial_merge_size": 2,
        **{f"codec_{n}_id": base + k["ids"][n] for n in ("pad", "bos", "nothink", "think_bos", "think_eos")},
        "codec_eos_token_id": base + k["ids"]["eos"],
        "speaker_id": {n: base + i for n, i in k["speakers"].items()},
        "text_config": {
            "model_type": "qwen3_omni_moe_talker_text", "attention_bias": False, "attention_dropout": 0,
            "vocab_size": k["vocab"], "hidden_size": k["hidden"], "num_hidden_layers": k["layers"],
            "num_attention_heads": k["heads"], "num_key_value_heads": k["kv"], "head_dim": k["head_dim"],
            "intermediate_size": k["inter"], "moe_intermediate_size": k["moe_inter"], "num_experts": k["experts"],
            "num_experts_per_tok": k["topk"], "norm_topk_prob": k["norm_topk"],
            "shared_expert_intermediate_size": k["shared"], "decoder_sparse_step": 1, "mlp_only_layers": [],
            "hidden_act": "silu", "rms_norm_eps": 1e-6, **rope(k["theta"], k["mrope"]),
            "max_position_embeddings": 65536, "sliding_window": None, "use_cache": True,
            "tie_word_embeddings": False, "initializer_range": 0.02,
        },
        "code_predictor_config": {
            "model_type": "qwen3_omni_moe_talker_code_predictor", "attention_bias": False, "attention_dropout": 0,
            "vocab_size": c["codebook"], "hidden_size": k["hidden"], "intermediate_size": p["inter"],
            "num_hidden_layers": p["layers"], "num_attention_heads": p["heads"], "num_key_value_heads": p["kv"],
            "head_dim": p["head_dim"], "num_code_groups": k["groups"], "hidden_act": "silu", "rms_norm_eps": 1e-6,
            **rope(p["theta"], None), "layer_types": ["full_attention"] * p["layers"], "max_position_embeddings": 32768,
            "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False, "use_cache": True,
            "tie_word_embeddings": False, "initializer_range": 0.02,
        },
    }
    config["code2wav_config"] = {
        "model_type": "qwen3_omni_moe_code2wav", "attention_bias": False, "attention_dropout": 0,
        "codebook_dim": 16, "codebook_size": c["codebook"], "num_quantizers": k["groups"],
        "num_semantic_quantizers": 1, "semantic_codebook_size": 4096, "vector_quantization_hidden_dimension": 16,
        "hidden_size": c["hidden"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv"], "intermediate_size": c["inter"], "sliding_window": c["window"],
        "rope_theta": c["theta"], "rms_norm_eps": 1e-5, "hidden_act": "silu", "layer_scale_initial_scale": 0.01,
        "upsampling_ratios": c.get("ratios", [2, 2]), "upsample_rates": c.get("rates", [8, 5, 4, 3]),
        "decoder_dim": c["decoder"],
        "max_position_embeddings": 8000,
    }
    return config


def preprocessor(pixels):
    low, high = pixels
    return {
        "dither": 0.0, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128, "hop_length": 160,
        "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "Qwen2VLImageProcessor", "image_std": [0.5, 0.5, 0.5],
        "max_pixels": high, "merge_size": 2, "min_pixels": low, "n_fft": 400, "n_samples": 4800000,
        "nb_max_frames": 30000, "padding_side": "right", "padding_value": 0.0, "patch_size": 16,
        "processor_class": "Qwen3OmniMoeProcessor", "return_attention_mask": True, "sampling_rate": 16000,
        "temporal_patch_size": 2,
    }
