#!/usr/bin/env python3
"""Makes code2wav-odd/: a vocoder with other stages than the published ones (one upsample stage of ratio 3,
blocks of rates 2, 5 and 1, fewer key/value heads, a window of 3) and its waveform by transformers 5.23.0.

    make-code2wav-odd.py TINY_A_DIR OUT_DIR

Only config.json and the code2wav tensors are written; the test takes the other files from the parity
fixture tiny-a, whose config this one changes.
"""

import json, math, os, sys

import torch
from safetensors.torch import save_file
from transformers import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

torch.set_num_threads(1)
torch.set_grad_enabled(False)
FRAMES = 11


def main(source, out):
    raw = json.load(open(f"{source}/config.json"))
    raw["code2wav_config"].update(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20,
        sliding_window=3, upsampling_ratios=[3], upsample_rates=[2, 5, 1], decoder_dim=16)
    config = Qwen3OmniMoeConfig.from_dict(json.loads(json.dumps(raw))).code2wav_config
    model = Qwen3OmniMoeCode2Wav._from_config(config, dtype=torch.float32).eval()
    g = torch.Generator().manual_seed(3)
    state = {}
    for name, t in sorted(model.state_dict().items()):
        n = torch.randn(t.shape, generator=g)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "bias":
            n *= 0.1
        elif leaf in ("alpha", "beta"):
            n *= 0.3
        elif leaf in ("scale", "gamma"):
            n = 0.5 + 0.1 * n
        elif t.dim() == 1:
            n = 1 + 0.2 * n
        elif "embedding" in name:
            n *= 2  # the mean over the groups comes out near 1
        else:
            fan = t[0].numel()
            if name.startswith("upsample") and "0.conv" in name:
                fan = t.shape[0]
            elif ".block.1." in name:
                fan = 2 * t.shape[0]
            n *= (0.7 if name.startswith("decoder") else 1) / math.sqrt(fan)  # keeps the snakes' arguments near 1
        if name.startswith("decoder.5"):
            n *= 0.7  # stay within -1 … 1, but not always
        state[name] = n.to(torch.bfloat16)
    model.load_state_dict({k: v.float() for k, v in state.items()})
    codes = torch.randint(0, config.codebook_size, (1, config.num_quantizers, FRAMES), generator=g)
    wave = model(codes).reshape(-1)
    print(len(wave), "samples, rms", float(wave.pow(2).mean().sqrt()), "clipped", int((wave.abs() == 1).sum()))
    os.makedirs(out, exist_ok=True)
    with open(f"{out}/config.json", "w") as f:
        json.dump(raw, f, indent=1)
        f.write("\n")
    tensors = {f"code2wav.{k}": v.contiguous() for k, v in state.items()}
    tensors["talker.model.norm.weight"] = torch.ones(1)  # speech parts count only together
    save_file(tensors, f"{out}/model.safetensors", metadata={"format": "pt"})
    save_file({"codes": codes[0], "waveform": wave}, f"{out}/stages.safetensors")
    for name in ("model", "stages"):
        os.chmod(f"{out}/{name}.safetensors", 0o644)


main(*sys.argv[1:])
