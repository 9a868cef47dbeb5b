#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes positions.json, what get_rope_index() of transformers 5.23 says of random prompts, and rope.json, a few rows
of the rotation tables that its rotary embeddings make.

    cd tests/core/data && python make-positions.py

A prompt is a string with one character per id:
    .  text      [ ]  vision_start, vision_end      ( )  audio_start, audio_end
    i v a  image_pad, video_pad, audio_pad
A grid is [t, h, w] in merged cells, a video has its seconds per slice as a fourth number.
Positions are runs [n, t, h, w]: n ids, each one further than the one before on all three axes.
`flag` is use_audio_in_video. Without it a prompt may still hold videos with their sound merged in: that is how the
Talker's positions are made.
"""
import json
import random
import types

import numpy as np
import torch
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import (
    Qwen3OmniMoeProcessor,
    _get_feat_extract_output_lengths,
)

torch.set_num_threads(1)
CLASS = modeling.Qwen3OmniMoePreTrainedModelForConditionalGeneration
IDS = {"[": 1, "]": 2, "(": 3, ")": 4, "i": 5, "v": 6, "a": 7, ".": 8}
MERGE = 2

config = types.SimpleNamespace(
    image_token_id=IDS["i"], video_token_id=IDS["v"], audio_token_id=IDS["a"], vision_start_token_id=IDS["["],
    audio_start_token_id=IDS["("], position_id_per_seconds=13, audio_config=types.SimpleNamespace(n_window=50))
model = types.SimpleNamespace(spatial_merge_size=MERGE, config=config)
model.get_llm_pos_ids_for_vision = types.MethodType(CLASS.get_llm_pos_ids_for_vision, model)

merger = types.SimpleNamespace(
    audio_bos_token="(", audio_eos_token=")", audio_token="a", video_token="v",
    video_processor=types.SimpleNamespace(merge_size=MERGE))


def patches(grid):
    return [grid[0], grid[1] * MERGE, grid[2] * MERGE]


def merged(video, n_audio):
    return Qwen3OmniMoeProcessor.replace_video_with_audio_token(
        merger, {"video_grid_thw": np.array([patches(video)]), "video_second_per_grid": [video[3]]}, 0,
        {"num_audio_tokens": [n_audio]}, 0, position_id_per_seconds=13.0)


def reference(case, frames):
    grids = lambda key: torch.tensor([patches(g) for g in case[key]]) if case[key] else None
    ids = torch.tensor([[IDS[c] for c in case["ids"]]])
    positions, delta = CLASS.get_rope_index(
        model, ids, grids("images"), grids("videos"), torch.ones_like(ids), case["flag"],
        torch.tensor(frames) if frames else None,
        torch.tensor([v[3] for v in case["videos"]]) if case["videos"] else None)
    return positions[:, 0].float().numpy(), float(delta.flatten()[0])


def number(x):
    x = np.float32(x)
    return int(x) if x == int(x) else float(str(x))


def runs(positions):
    out = []
    for t, h, w in positions.T:
        if out:
            n, *first = out[-1]
            if all(np.float32(f + np.float32(n)) == x for f, x in zip(first, (t, h, w))):
                out[-1][0] += 1
                continue
        out.append([1, t, h, w])
    return [[n] + [number(x) for x in first] for n, *first in out]


def build(parts, flag):
    case = {"flag": flag, "images": [], "videos": [], "audios": []}
    frames, text = [], ""
    for kind, *rest in parts:
        if kind == "text":
            text += "." * rest[0]
            continue
        if kind in ("audio", "both"):
            frames.append(rest[-1])
            case["audios"].append(int(_get_feat_extract_output_lengths(rest[-1])))
        if kind == "audio":
            text += "(" + "a" * case["audios"][-1] + ")"
        elif kind == "image":
            case["images"].append(rest[0])
            text += "[" + "i" * int(np.prod(rest[0])) + "]"
        elif kind == "video":
            case["videos"].append(rest[0])
            text += "[" + "v" * int(np.prod(rest[0][:3])) + "]"
        else:
            case["videos"].append(rest[0])
            text += "[" + merged(rest[0], case["audios"][-1]) + "]"
    case["ids"] = text
    positions, delta = reference(case, frames)
    case["positions"], case["delta"] = runs(positions), number(delta)
    return case


FPS = [2, 2, 2, 1, 12, 24, 25, 30, 7, 29.97, 0.5, 1.7, 3, 5.5]
rng = random.Random(20261121)


def some_parts(mode):
    parts = []
    for _ in range(rng.randint(1, 6)):
        kind = rng.choice(["text", "text", "audio", "image", "both" if mode == "flag" else "video"]
                          + (["both", "both"] if mode == "talker" else []))
        if kind == "text":
            parts.append(("text", rng.randint(1, 9)))
        elif kind == "audio":
            parts.append(("audio", rng.randint(1, 260)))
        elif kind == "image":
            parts.append(("image", [1, rng.randint(1, 4), rng.randint(1, 4)]))
        else:
            video = [rng.randint(1, 5), rng.randint(1, 3), rng.randint(1, 5), 2 / rng.choice(FPS)]
            if rng.random() < 0.2:  # one cell a slice and many slices: where roundings show
                video[:3] = [rng.randint(6, 30), 1, 1]
            if kind == "both":
                parts.append(("both", video, rng.randint(1, 300)))
            else:
                parts.append(("video", video))
    if rng.random() < 0.9:
        parts.insert(0, ("text", rng.randint(1, 6)))
    if rng.random() < 0.9:
        parts.append(("text", rng.randint(1, 12)))
    return parts


cases = [
    build([("text", 3), ("both", [79, 1, 1, 2 / 12], 1317), ("text", 5)], True),  # ids and positions differ at ties
    build([("text", 3), ("both", [1, 4, 9, 1.0], 8), ("text", 5)], True),  # audio ends first, wide frame
    build([("text", 3), ("both", [1, 4, 9, 1.0], 100), ("text", 5)], True),  # the frame's columns are passed over
    build([("text", 3), ("both", [2, 1, 1, 1.0], 200), ("text", 5)], True),
    build([("text", 3), ("both", [10, 1, 1, 2 / 13], 200), ("text", 5)], True),  # 14.000000000000002 in double
    # roundings of float32 after sound that starts between the integers
    *(build([("text", n)] * (n > 0) + [("video", [t, 1, 1, 2 / fps]), ("audio", frames), ("text", 5)], False)
      for n, fps, t, frames in ((6, 24, 6, 380), (0, 12, 5, 400), (0, 29.97, 2, 460), (1, 29.97, 7, 410))),
]
refused = 0
for mode, flag, count in (("plain", False, 80), ("flag", True, 80), ("talker", False, 80)):
    while count > 0:
        try:
            case = build(some_parts(mode), flag)
        except (IndexError, ValueError, RuntimeError):  # the counters ran out before the media did
            refused += 1
            continue
        if len(case["ids"]) < 400:
            cases.append(case)
            count -= 1



def rope(theta, head_dim, section, positions):
    config = types.SimpleNamespace(
        rope_parameters={"rope_type": "default", "rope_theta": theta, "mrope_section": section},
        max_position_embeddings=65536, head_dim=head_dim)
    table = modeling.Qwen3OmniMoeThinkerTextRotaryEmbedding(config)
    cos, sin = table(torch.zeros(1), torch.tensor(positions, dtype=torch.float32)[:, None])
    return {"theta": theta, "head_dim": head_dim, "section": section, "positions": positions,
            "cos": [number(x) for x in cos[0, :, : head_dim // 2].flatten()],
            "sin": [number(x) for x in sin[0, :, : head_dim // 2].flatten()]}


ROWS = [[0, 1, 7.166667, 100, 4097, 30011], [0, 2, 5, 103, 4099, 30012], [0, 3, 9, 101, 4096.5, 30017]]
tables = [rope(1e6, 128, [24, 20, 20], ROWS), rope(1e6, 16, [4, 2, 2], ROWS), rope(1e6, 32, [6, 5, 5], ROWS),
          rope(1e4, 64, [32, 0, 0], [[0, 1, 2, 50, 7999, 40000]] * 3)]

for name, rows in (("positions.json", cases), ("rope.json", tables)):
    with open(name, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]\n")
print(f"{len(cases)} prompts, {refused} more that the reference refuses")
