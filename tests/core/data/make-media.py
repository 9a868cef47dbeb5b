#!/usr/bin/env python3
"""Makes sounds.safetensors and pictures.safetensors: what WhisperFeatureExtractor and torchvision make of small
sounds and pictures. Versions as in tests/parity (transformers 5.23.0, torch 2.11.0, torchvision 0.26.0).

    make-media.py FIXTURES_DIR        (tests/parity/fixtures: three of its pictures, two of its models)

  sounds    <name>.samples [n] f32          <name>.features [128, frames] f32
            unpadded.embeddings [2, width]: tiny-a's of unpadded.samples, whose last token would differ were the
            clip padded to a whole chunk
  pictures  <name>.in [h, w, channels] u8   <name>.out [h', w', 3] u8
            <name>.in alone: a picture of the parity fixtures, decoded
            large.embeddings [3, width]: tiny-c's tokens 0, 200 and 319 of large_picture()
"""

import os, sys

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers import Qwen2VLImageProcessor, Qwen3OmniMoeForConditionalGeneration, WhisperFeatureExtractor

torch.set_num_threads(1)
torch.set_grad_enabled(False)
here = os.path.dirname(os.path.abspath(__file__))
random = np.random.RandomState(7)


def thinker(path):
    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval().thinker.model


def sounds(fixtures):
    extractor = WhisperFeatureExtractor(feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400)
    t = np.arange(4000)
    signals = {
        "shortest": random.randn(201) * 0.1,
        "reflected": random.randn(3 * 160 + 7) * 0.1,
        "tone-and-silence": 0.4 * np.sin(2 * np.pi * 1234.5 / 16000 * t) * (t % 1500 < 700),
        "click-behind-the-last-frame": np.where(t[: 10 * 160 + 150] == 10 * 160 + 149, 0.9, 0.001 * random.randn(1750)),
        "pcm": np.round(random.randn(2400) * 3000) / 32768,
        "unpadded": random.randn(9 * 160 + 20) * 0.1,
    }
    out = {}
    for name, x in signals.items():
        x = x.astype(np.float32)
        got = extractor(x, sampling_rate=16000, padding=True, truncation=False, return_attention_mask=True, return_tensors="np")
        assert got["input_features"].shape[-1] == int(got["attention_mask"].sum()) == len(x) // 160
        out[f"{name}.samples"] = x
        out[f"{name}.features"] = np.ascontiguousarray(got["input_features"][0])
    features = torch.from_numpy(out["unpadded.features"])
    tower = thinker(f"{fixtures}/tiny-a").audio_tower
    out["unpadded.embeddings"] = tower(features, feature_lens=torch.tensor([features.shape[1]])).last_hidden_state.numpy()
    save_file(out, f"{here}/sounds.safetensors")


def to_rgb(a):
    """As qwen-omni-utils does it: alpha on white."""
    if a.shape[2] == 1:
        return np.repeat(a, 3, axis=2)
    if a.shape[2] == 4:
        image = Image.fromarray(a, "RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        return np.array(white)
    return a


def large_picture():
    y, x, c = np.indices((512, 640, 3))
    return (x * x // 7 + y * 13 + x * y // 50 + c * 80).astype(np.uint8)


def pictures(fixtures):
    out = {}
    for w, h, channels, to_w, to_h in [
        (1, 1, 3, 64, 64), (1, 40, 3, 4, 32), (90, 1, 3, 64, 2), (33, 20, 4, 32, 32), (20, 33, 1, 20, 32),
        (64, 21, 3, 64, 32), (21, 64, 4, 32, 64), (16, 16, 4, 16, 16), (300, 12, 3, 32, 8),
    ]:
        a = random.randint(0, 256, (h, w, channels)).astype(np.uint8)
        a[: h // 2, : w // 2, :3] = 255 * (np.indices((h // 2, w // 2)).sum(0) % 2)[..., None]  # overshoots
        rgb = torch.from_numpy(to_rgb(a).copy()).permute(2, 0, 1)
        b = functional.resize(rgb, [to_h, to_w], interpolation=InterpolationMode.BICUBIC, antialias=True)
        name = f"{w}x{h}x{channels}"
        out[f"{name}.in"] = a
        out[f"{name}.out"] = b.permute(1, 2, 0).contiguous().numpy()
    for name in ("i51x37", "irgba", "igray"):
        a = np.array(Image.open(f"{fixtures}/media/{name}.png"))
        out[f"{name}.in"] = a if a.ndim == 3 else a[..., None].copy()
    visual = thinker(f"{fixtures}/tiny-c").visual
    processor = Qwen2VLImageProcessor.from_pretrained(f"{fixtures}/tiny-c")
    x = processor(images=[Image.fromarray(large_picture())], size={"shortest_edge": 1024, "longest_edge": 1 << 20}, return_tensors="pt")
    assert x["image_grid_thw"].tolist() == [[1, 32, 40]]
    y = visual(x["pixel_values"], x["image_grid_thw"])
    out["large.embeddings"] = np.ascontiguousarray(y.pooler_output[[0, 200, 319]].numpy())
    save_file(out, f"{here}/pictures.safetensors")


sounds(sys.argv[1])
pictures(sys.argv[1])
