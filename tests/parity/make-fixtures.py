#!/usr/bin/env python3
"""Makes the parity fixtures: small random Qwen3-Omni checkpoints in the published layout, conversations
with media, and what the Hugging Face reference (transformers 5.23.0, CPU, float32) makes of them.

    make-fixtures.py OUT_DIR [--only MODEL[,MODEL]] [--case NAME[,NAME]] [--no-models]

See README.md beside this file for what every fixture covers and for the pinned versions.
"""

import argparse, base64, json, math, os, subprocess, sys, tempfile, time, zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import soundfile
import torch
import torchvision
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    WhisperFeatureExtractor,
)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/nano"))
from layout import ADDED_TOKENS, byte_alphabet, config_v4, preprocessor, write_json, write_tokenizer

PINNED = {"torch": "2.11.0", "torchvision": "0.26.0", "transformers": "5.23.0"}
torch.set_num_threads(1)
torch.set_grad_enabled(False)

TEXT_MARGIN = 3e-3  # smallest accepted (top1 - top2) / std(logits) of a greedy text step
CODE_MARGIN = 1e-3  # the same for every codec step, residual groups included
TRIES = 24          # wordings tried per case before the best one is taken

# ----------------------------------------------------------------------------------------------------------
# tokenizer: a small byte-level BPE trained on a few lines written here
# ----------------------------------------------------------------------------------------------------------

TRAINING_TEXT = """
What do you see in the picture? What do you hear in the recording? Please describe the video in one short sentence.
The quick brown fox jumps over the lazy dog, and then it sleeps under the old tree. This is a small test of the
tokenizer; it isn't meant to be good, it's meant to be there. We'll listen, they've looked, I'm sure you'd agree.
A bird sings while the rain is falling on the roof. Someone is speaking slowly about the weather in the morning.
Was siehst du auf dem Bild, und was hörst du in der Aufnahme? Bitte beschreibe es kurz. Schöne Grüße aus München!
Que voyez-vous sur l'image ? Décrivez la vidéo en une phrase, s'il vous plaît. ¿Qué oyes en la grabación? Mañana será otro día.
Что ты видишь на картинке? Опиши видео одним предложением. Привет, мир! Это небольшая проверка.
你看到了什么？请用一句话描述这个视频。你好，世界！今天天气很好。我听到一个人在说话。
何が見えますか？動画を一文で説明してください。こんにちは、世界。今日は天気がいいですね。
무엇이 보이나요? 비디오를 한 문장으로 설명해 주세요. 안녕하세요.
ماذا ترى في الصورة؟ صف الفيديو في جملة واحدة. مرحبا بالعالم.
מה אתה רואה בתמונה? שלום עולם.
चित्र में आप क्या देखते हैं? नमस्ते दुनिया।
int main(void) { return printf("hello, world\\n"); }  for (i = 0; i < n; i++) sum += a[i];   if (x == NULL) return -1;
def f(x):    return x * 2  # twice        print(f(21))
😀 👍 🎉 3.14159 + 2.71828 = 5.85987; 100% of 2048.
"""

# ----------------------------------------------------------------------------------------------------------
# checkpoints
# ----------------------------------------------------------------------------------------------------------

MODELS = {
    "tiny-a": {  # published dialect, one file, bf16
        "seed": 11, "merges": 330, "dialect": "v4", "dtype": "bf16", "shards": 1, "eos_gain": 0.1, "codec_eos_gain": 0.1,
        "text": dict(hidden=48, layers=4, heads=4, kv=2, head_dim=16, inter=64, moe_inter=32, experts=8, topk=2,
                     mrope=[4, 2, 2], theta=1000000, mlp_only=[], sparse_step=1, norm_topk=True),
        "audio": dict(layers=2, heads=4, ffn=64, d_model=32, n_window=50, infer=400, ds=8),
        "vision": dict(depth=4, hidden=32, heads=2, inter=48, npos=36, deepstack=[0, 1, 2]),
        "talker": dict(accept=2, groups=4, hidden=32, layers=3, heads=4, kv=2, head_dim=16, inter=40, moe_inter=16,
                       experts=6, topk=2, shared=24, vocab=1152, mrope=[4, 2, 2], theta=1000000, norm_topk=True,
                       ids=dict(pad=100, bos=101, eos=102, nothink=107, think_bos=108, think_eos=109),
                       speakers=dict(chelsie=125, ethan=126, aiden=127)),
        "predictor": dict(layers=2, heads=4, kv=2, head_dim=16, inter=48, theta=1000000),
        "code2wav": dict(codebook=128, hidden=32, layers=2, heads=4, kv=4, inter=48, window=8, decoder=32, theta=10000),
        "pixels": (3136, 12845056),
    },
    "tiny-b": {  # as save_pretrained writes it: v5 dialect, three shards, f32; 16 code groups; a dense thinker layer
        "seed": 22, "merges": 400, "dialect": "v5", "dtype": "f32", "shards": 3, "eos_gain": 1.2, "codec_eos_gain": 1.15,
        "text": dict(hidden=40, layers=3, heads=4, kv=1, head_dim=24, inter=56, moe_inter=20, experts=5, topk=3,
                     mrope=[4, 4, 4], theta=500000, mlp_only=[1], sparse_step=1, norm_topk=True),
        "audio": dict(layers=3, heads=2, ffn=40, d_model=24, n_window=50, infer=800, ds=6),
        "vision": dict(depth=5, hidden=24, heads=3, inter=40, npos=49, deepstack=[1, 3]),
        "talker": dict(accept=1, groups=16, hidden=24, layers=2, heads=6, kv=2, head_dim=12, inter=32, moe_inter=12,
                       experts=7, topk=3, shared=20, vocab=1088, mrope=[2, 2, 2], theta=100000, norm_topk=True,
                       ids=dict(pad=70, bos=71, eos=64, nothink=75, think_bos=76, think_eos=77),
                       speakers=dict(chelsie=80, ethan=81, vivian=82)),
        "predictor": dict(layers=3, heads=4, kv=1, head_dim=8, inter=36, theta=50000),
        "code2wav": dict(codebook=64, hidden=24, layers=3, heads=3, kv=3, inter=32, window=5, decoder=48, theta=10000),
        "pixels": (1024, 1048576),
    },
    "tiny-c": {  # fused experts, bf16 with an f16 vocoder, two shards, sparse step 2, un-normalised talker routing
        "seed": 33, "merges": 280, "dialect": "v4", "dtype": "bf16", "f16": ("code2wav.", "talker.code_predictor."),
        "shards": 2, "fused": True, "eos_gain": 0.1, "codec_eos_gain": 0.1, "raw_head": True,
        "text": dict(hidden=64, layers=5, heads=8, kv=4, head_dim=12, inter=48, moe_inter=16, experts=6, topk=1,
                     mrope=[3, 1, 2], theta=10000, mlp_only=[], sparse_step=2, norm_topk=True),
        "audio": dict(layers=1, heads=4, ffn=48, d_model=32, n_window=50, infer=200, ds=10),
        "vision": dict(depth=3, hidden=32, heads=4, inter=32, npos=16, deepstack=[0, 2]),
        "talker": dict(accept=4, groups=7, hidden=40, layers=2, heads=5, kv=1, head_dim=16, inter=48, moe_inter=16,
                       experts=5, topk=2, shared=12, vocab=1124, mrope=[2, 3, 3], theta=1000000, norm_topk=False,
                       ids=dict(pad=110, bos=111, eos=105, nothink=112, think_bos=113, think_eos=114),
                       speakers=dict(ethan=120, chelsie=121, aiden=122)),
        "predictor": dict(layers=1, heads=2, kv=2, head_dim=16, inter=40, theta=1000000),
        "code2wav": dict(codebook=100, hidden=32, layers=2, heads=4, kv=2, inter=40, window=12, decoder=32, theta=20000),
        "pixels": (3136, 262144),
    },
    "tiny-thinking": {  # text only
        "seed": 44, "merges": 360, "dialect": "v4", "dtype": "bf16", "shards": 1, "eos_gain": 1.25,
        "text": dict(hidden=56, layers=6, heads=7, kv=7, head_dim=16, inter=40, moe_inter=24, experts=9, topk=4,
                     mrope=[4, 2, 2], theta=1000000, mlp_only=[0, 4], sparse_step=1, norm_topk=False),
        "audio": dict(layers=2, heads=2, ffn=32, d_model=16, n_window=50, infer=100, ds=4),
        "vision": dict(depth=4, hidden=16, heads=1, inter=24, npos=25, deepstack=[0, 1, 3]),
        "pixels": (3136, 12845056), "thinking": True,
    },
    "tiny-odd": {  # what a checkpoint may also be: see write_odd
        "seed": 66, "merges": 200, "dialect": "v4", "dtype": "bf16", "shards": 1, "fused": True, "odd": True,
        "eos_gain": 0.1, "codec_eos_gain": 0.1,
        "text": dict(hidden=40, layers=2, heads=5, kv=1, head_dim=16, inter=48, moe_inter=24, experts=7, topk=3,
                     mrope=[5, 2, 1], theta=200000, mlp_only=[], sparse_step=1, norm_topk=False),
        "audio": dict(layers=2, heads=3, ffn=40, d_model=24, n_window=50, infer=250, ds=6),
        "vision": dict(depth=5, hidden=24, heads=2, inter=32, npos=9, deepstack=[0, 2, 3]),
        "talker": dict(accept=2, groups=3, hidden=32, layers=2, heads=4, kv=4, head_dim=12, inter=32, moe_inter=12,
                       experts=4, topk=3, shared=16, vocab=1096, mrope=[3, 2, 1], theta=50000, norm_topk=True,
                       ids=dict(pad=90, bos=83, eos=77, nothink=91, think_bos=80, think_eos=95),
                       speakers=dict(aiden=130, ethan=99)),
        "predictor": dict(layers=2, heads=3, kv=3, head_dim=10, inter=28, theta=10000),
        "code2wav": dict(codebook=72, hidden=24, layers=1, heads=2, kv=1, inter=32, window=6, decoder=24, theta=5000,
                         ratios=[3, 2], rates=[2]),
        "pixels": (1024, 262144),
    },
}

def draw(name, shape, seed):
    """Weights that make every part of the model move the result."""
    g = torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))
    n = torch.randn(shape, generator=g, dtype=torch.float32)
    leaf = name.rsplit(".", 1)[-1]
    if "q_norm" in name or "k_norm" in name:
        return 1.6 + 0.1 * n
    if leaf == "bias":
        return 0.1 * n
    if leaf in ("alpha", "beta"):
        return 0.3 * n
    if leaf in ("scale", "gamma"):
        return 0.5 + 0.1 * n
    if len(shape) == 1:  # norms
        return 1 + 0.2 * n
    if "code_embedding" in name:
        return 1.5 * n
    if "embed_tokens" in name or "codec_embedding" in name:
        return n
    if "pos_embed" in name:
        return 0.7 * n
    fan = shape[1]
    for k in shape[2:]:
        fan *= k
    if "dwconv" in name:
        fan = shape[2]
    elif name.startswith("code2wav.upsample") and len(shape) == 3:  # transposed, stride = kernel
        fan = shape[0]
    elif name.startswith("code2wav.decoder") and ".block.1." in name:  # transposed, two taps meet
        fan = 2 * shape[0]
    elif "experts.gate_up_proj" in name or "experts.down_proj" in name:
        fan = shape[2]
    gain = 1.0
    if name.endswith("mlp.gate.weight") or "lm_head" in name or "codec_head" in name:
        gain = 2.0
    if "conv2d" in name:
        gain = 1.6
    if name.endswith("o_proj.weight") and not name.startswith("code2wav"):
        gain = 1.5
    if "down_proj" in name and not name.startswith("code2wav"):
        gain = 3.0
    if name.startswith("code2wav.decoder"):  # keep the activations near 1, where SnakeBeta bends
        if ".conv2." in name:
            gain = 0.4
        elif ".block.1." in name:
            gain = 0.6
    return gain * n / math.sqrt(fan)


def write_checkpoint(out, name, spec):
    os.makedirs(out, exist_ok=True)
    tok = write_tokenizer(out, TRAINING_TEXT, spec["merges"], spec["seed"] if spec.get("odd") else None)
    raw = config_v4(spec, tok)
    config = Qwen3OmniMoeConfig.from_dict(json.loads(json.dumps(raw)))
    with tempfile.TemporaryDirectory() as tmp:
        torch.manual_seed(0)
        Qwen3OmniMoeForConditionalGeneration(config).save_pretrained(tmp)
        shapes = {}
        for f in sorted(os.listdir(tmp)):
            if f.endswith(".safetensors"):
                with safe_open(f"{tmp}/{f}", "pt") as s:
                    shapes.update({k: tuple(s.get_slice(k).get_shape()) for k in s.keys()})
        saved_config = json.load(open(f"{tmp}/config.json"))

    tensors = {k: draw(k, s, spec["seed"]) for k, s in shapes.items()}
    head = tensors["thinker.lm_head.weight"]
    if not spec.get("raw_head"):  # keep greedy text readable: torn characters, unused rows and markers are rare
        table, order = byte_alphabet()
        back = {c: b for b, c in table.items()}
        with open(f"{out}/vocab.json", encoding="utf-8") as f:
            for token, i in json.load(f).items():
                try:
                    assert bytes(back[c] for c in token).decode().isprintable()
                except (UnicodeDecodeError, AssertionError):
                    head[i] *= 0.4
        head[tok["size"]:] *= 0.1
    head[tok["added"]] *= 0.1
    head[tok["<|im_end|>"]] *= 10 * spec["eos_gain"]
    if not spec.get("raw_head"):
        head[tok["<think>"]] *= 9
    if "talker" in spec:
        eos = raw["talker_config"]["codec_eos_token_id"]
        tensors["talker.codec_head.weight"][eos] *= spec["codec_eos_gain"]

    dtypes = {"bf16": torch.bfloat16, "f32": torch.float32}

    def dtype_of(k):
        return torch.float16 if k.startswith(spec.get("f16", ("\0",))) else dtypes[spec["dtype"]]

    tensors = {k: t.to(dtype_of(k)) for k, t in tensors.items()}
    if "talker" in spec:  # loudness: scale the last convolution by a power of two to reach an rms of about 0.1-0.2
        from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav
        vocoder = Qwen3OmniMoeCode2Wav._from_config(config.code2wav_config, dtype=torch.float32).eval()
        state = {k[len("code2wav."):]: t.float() for k, t in tensors.items() if k.startswith("code2wav.")}
        missing, unexpected = vocoder.load_state_dict(state, strict=False)
        assert not missing and not unexpected, (missing, unexpected)
        g = torch.Generator().manual_seed(5)
        codes = torch.randint(0, spec["code2wav"]["codebook"], (1, spec["talker"]["groups"], 40), generator=g)
        wave = []
        vocoder.decoder[-1].register_forward_hook(lambda m, i, o: wave.append(o))
        vocoder(codes)
        scale = 2.0 ** round(math.log2(0.12 / float(wave[0].pow(2).mean().sqrt())))
        last = f"code2wav.decoder.{len(config.code2wav_config.upsample_rates) + 2}.conv.weight"
        tensors[last] = (tensors[last].float() * scale).to(tensors[last].dtype)
        tensors[last.replace("weight", "bias")].fill_(0.0625)

    if spec.get("fused"):
        fused = {}
        for k in list(tensors):
            if ".mlp.experts." in k and k.endswith(".gate_proj.weight"):
                stem, rest = k.split(".experts.")
                e = int(rest.split(".")[0])
                fused.setdefault(stem, []).append(e)
        for stem, experts in fused.items():
            gu, down = [], []
            for e in range(len(experts)):
                q = f"{stem}.experts.{e}"
                gu.append(torch.cat([tensors.pop(f"{q}.gate_proj.weight"), tensors.pop(f"{q}.up_proj.weight")]))
                down.append(tensors.pop(f"{q}.down_proj.weight"))
            tensors[f"{stem}.experts.gate_up_proj"] = torch.stack(gu)
            tensors[f"{stem}.experts.down_proj"] = torch.stack(down)

    keys = sorted(tensors)
    total = sum(tensors[k].numel() * tensors[k].element_size() for k in keys)
    if spec["shards"] == 1:
        save_file({k: tensors[k].contiguous() for k in keys}, f"{out}/model.safetensors", metadata={"format": "pt"})
    else:
        n, weight_map, at = spec["shards"], {}, 0
        parts = [{} for _ in range(n)]
        for k in keys:  # cut by bytes, whatever the component
            parts[min(n - 1, at * n // total)][k] = tensors[k].contiguous()
            at += tensors[k].numel() * tensors[k].element_size()
        for i, part in enumerate(parts):
            f = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
            save_file(part, f"{out}/{f}", metadata={"format": "pt"})
            weight_map.update({k: f for k in part})
        meta = {"total_size": total}
        if spec["dialect"] == "v5":
            meta = {"total_parameters": sum(t.numel() for t in tensors.values()), "total_size": total}
        write_json(f"{out}/model.safetensors.index.json", {"metadata": meta, "weight_map": dict(sorted(weight_map.items()))}, 1)

    write_json(f"{out}/config.json", saved_config if spec["dialect"] == "v5" else raw)
    pre = preprocessor(spec["pixels"])
    if spec.get("thinking"):
        pre.update(chunk_length=30, n_samples=480000, nb_max_frames=3000)
    write_json(f"{out}/preprocessor_config.json", pre)
    generation = {"eos_token_id": [tok["<|im_end|>"], tok["<|endoftext|>"]], "pad_token_id": tok["<|endoftext|>"]}
    if spec.get("thinking"):
        generation.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    else:
        generation.update(talker_max_new_tokens=4096, talker_repetition_penalty=1.05, talker_temperature=0.9,
                          talker_top_k=50, talker_top_p=1.0)
    write_json(f"{out}/generation_config.json", generation)
    for f in os.listdir(out):
        if f.endswith(".safetensors"):
            os.chmod(f"{out}/{f}", 0o644)
    print(f"{name}: {len(keys)} tensors, {total / 1e6:.2f} MB", flush=True)


def write_odd(out, plain):
    """The checkpoint `plain` once more, as the reference cannot or need not read it: fused experts lie transposed, as
    transformers 4.57.1 wrote them, the tokenizer is one file, and only that file knows the ids of its tokens."""
    os.makedirs(out, exist_ok=True)
    with safe_open(f"{plain}/model.safetensors", "pt") as s:
        tensors = {k: s.get_tensor(k) for k in sorted(s.keys())}
    for k, t in tensors.items():
        if k.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            assert t.shape[1] != t.shape[2], f"{k}: a square cannot be told from its transpose"
            tensors[k] = t.transpose(1, 2).contiguous()
    save_file(tensors, f"{out}/model.safetensors", metadata={"format": "pt"})
    os.chmod(f"{out}/model.safetensors", 0o644)
    config = json.load(open(f"{plain}/config.json"))
    for section in (config, config["thinker_config"], config["talker_config"]):
        for k in [k for k in section if k.endswith("_token_id") and not k.startswith("codec_")]:
            del section[k]
    write_json(f"{out}/config.json", config)
    for name in ("preprocessor_config.json", "generation_config.json"):
        write_json(f"{out}/{name}", json.load(open(f"{plain}/{name}")))
    Qwen2Tokenizer.from_pretrained(plain).backend_tokenizer.save(f"{out}/tokenizer.json")


# ----------------------------------------------------------------------------------------------------------
# media
# ----------------------------------------------------------------------------------------------------------

RATE = 16000


def sound(seconds, seed):
    """A few gliding voices with breaks and some noise, s16."""
    n = seconds if isinstance(seconds, int) and seconds > 400 else int(round(seconds * RATE))
    r = np.random.RandomState(seed)
    t = np.arange(n) / RATE
    x = np.zeros(n)
    for k in range(4):
        f0, f1 = r.uniform(90, 2500, 2)
        glide = f0 + (f1 - f0) * 0.5 * (1 + np.sin(2 * np.pi * r.uniform(0.2, 1.5) * t + r.uniform(0, 6)))
        loud = np.clip(np.sin(2 * np.pi * r.uniform(0.4, 3) * t + r.uniform(0, 6)), 0, 1) ** 0.5
        x += r.uniform(0.05, 0.2) * loud * np.sin(2 * np.pi * np.cumsum(glide) / RATE)
    x += 0.004 * r.randn(n)
    # coarse steps keep the files small once compressed, the longer the coarser
    step = 64 if n < 3 * RATE else 1024
    return (np.clip(np.round(x * 32768 / step), -32768 // step, 32767 // step) * step).astype(np.int16)


def picture(w, h, seed, channels=3):
    r = np.random.RandomState(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    out = np.zeros((h, w, channels))
    for c in range(channels):
        a, b, p = r.uniform(-0.2, 0.2, 3)
        out[..., c] = 128 + 90 * np.sin(a * x + b * y + 6 * p)
    for _ in range(6):
        x0, y0 = r.randint(0, w), r.randint(0, h)
        x1, y1 = x0 + r.randint(2, max(3, w // 2)), y0 + r.randint(2, max(3, h // 2))
        out[y0:y1, x0:x1] = r.randint(0, 256, channels)
    return np.clip(np.round(out), 0, 255).astype(np.uint8)


def frames(n, w, h, seed):
    r = np.random.RandomState(seed)
    base = picture(w, h, seed)
    colours = r.randint(0, 256, (3, 3))
    out = []
    for i in range(n):
        f = np.roll(base, (i, 2 * i), (0, 1)).copy()
        for k in range(3):
            x0, y0 = (i * (k + 2) + 7 * k) % w, (i * (3 - k) + 11 * k) % h
            f[y0:y0 + 9, x0:x0 + 13] = (colours[k] + 5 * i) % 256
        out.append(f)
    return np.stack(out)


SOUNDS = {  # seconds, or samples when above 400
    "s071": 0.71, "s100": 1.0, "s101": 1.01, "s140": 16000 * 1 + 6400 + 75, "s800": 8.0, "s930": 9.3, "s1600": 16.0,
    "s3100": 31.0, "s250": 2.5, "s260": 2.6,
}
IMAGES = {  # width, height, kind
    "i64x64": (64, 64, "RGB"), "i51x37": (51, 37, "RGB"), "i20x700": (20, 700, "RGB"), "irgba": (70, 45, "RGBA"),
    "igray": (60, 90, "L"), "i96x64": (96, 64, "RGB"), "i150x110": (150, 110, "RGB"),
}
VIDEOS = {  # frames, width, height, fps, sound seconds, container
    "v10av": (21, 64, 48, (10, 1), 2.1, "avi-png"),
    "v8": (17, 64, 48, (8, 1), None, "mkv"),
    "v12av": (37, 48, 64, (12, 1), 2.6, "mkv"),
    "v2997": (91, 40, 32, (30000, 1001), None, "avi"),
    "v2997av": (61, 32, 32, (30000, 1001), 2.3, "avi"),
    "v10": (41, 64, 64, (10, 1), None, "mkv"),
    "v1": (1, 64, 48, (10, 1), None, "avi"),
    "v3": (3, 64, 48, (10, 1), None, "avi"),
}


def launch(*args):
    subprocess.run(["gst-launch-1.0", "-q", *args], check=True, timeout=120)


class Media:
    """Every medium lies in OUT/media once; what the reference is fed is kept here."""

    def __init__(self, out):
        self.dir = f"{out}/media"
        self.made = {}
        os.makedirs(self.dir, exist_ok=True)

    def get(self, name):
        if name not in self.made:
            kind = "sound" if name in SOUNDS else "image" if name in IMAGES else "video"
            self.made[name] = getattr(self, kind)(name)
        return self.made[name]

    def sound(self, name):
        pcm = sound(SOUNDS[name], zlib.crc32(name.encode()) & 0xFFFF)
        path = f"{self.dir}/{name}.wav"
        soundfile.write(path, pcm, RATE, subtype="PCM_16")
        return {"kind": "audio", "file": f"{name}.wav", "pcm": pcm.astype(np.float32) / 32768}

    def image(self, name):
        w, h, mode = IMAGES[name]
        seed = zlib.crc32(name.encode()) & 0xFFFF
        a = picture(w, h, seed, {"RGB": 3, "RGBA": 4, "L": 1}[mode])
        img = Image.fromarray(a[..., 0] if mode == "L" else a, mode)
        img.save(f"{self.dir}/{name}.png", optimize=True)
        if mode == "RGBA":  # composited on white, as qwen-omni-utils does
            white = Image.new("RGB", img.size, (255, 255, 255))
            white.paste(img, mask=img.split()[3])
            rgb = white
        else:
            rgb = img.convert("RGB")
        return {"kind": "image", "file": f"{name}.png", "image": rgb}

    def video(self, name):
        n, w, h, fps, seconds, container = VIDEOS[name]
        seed = zlib.crc32(name.encode()) & 0xFFFF
        f = frames(n, w, h, seed)
        path = f"{self.dir}/{name}.{container[:3]}"
        pcm = sound(seconds, seed) if seconds else None
        with tempfile.TemporaryDirectory() as tmp:
            for i in range(n):
                Image.fromarray(f[i]).save(f"{tmp}/f-{i:05d}.png", optimize=True)
            source = ["multifilesrc", f"location={tmp}/f-%05d.png", "index=0", f"caps=image/png,framerate={fps[0]}/{fps[1]}"]
            source += ["!", "pngdec", "!", "videoconvert", "!", "video/x-raw,format=" + ("BGR" if container == "avi" else "RGB")]
            if container == "avi-png":
                source += ["!", "pngenc", "compression-level=9"]
            mux = {"mkv": "matroskamux", "avi": "avimux"}[container[:3]]
            tail = []
            if pcm is not None:
                soundfile.write(f"{tmp}/a.wav", pcm, RATE, subtype="PCM_16")
                tail = ["filesrc", f"location={tmp}/a.wav", "!", "wavparse", "!", "queue", "!", "m."]
            if not os.path.exists(path):  # Matroska files carry a random id: an old one that still decodes right is kept
                launch(*source, "!", "queue", "!", "m.", mux, "name=m", "!", "filesink", f"location={path}", *tail)
            # the file must decode to exactly what the reference is fed
            launch("filesrc", f"location={path}", "!", "decodebin", "name=d", "d.", "!", "queue", "!", "videoconvert", "!",
                   f"video/x-raw,format=RGB,framerate={fps[0]}/{fps[1]}", "!", "filesink", f"location={tmp}/out.rgb",
                   *(["d.", "!", "queue", "!", "audioconvert", "!", "audio/x-raw,format=S16LE,rate=16000,channels=1",
                      "!", "filesink", f"location={tmp}/out.pcm"] if pcm is not None else []))
            stride = (3 * w + 3) // 4 * 4
            got = np.fromfile(f"{tmp}/out.rgb", np.uint8).reshape(-1, h, stride)[:, :, :3 * w].reshape(-1, h, w, 3)
            assert got.shape == f.shape and (got == f).all(), f"{path} does not decode to its frames"
            if pcm is not None:
                heard = np.fromfile(f"{tmp}/out.pcm", np.int16)
                assert heard.shape == pcm.shape and (heard == pcm).all(), f"{path} does not decode to its sound"
        return {"kind": "video", "file": os.path.basename(path), "frames": f, "fps": fps[0] / fps[1],
                "rate": f"{fps[0]}/{fps[1]}",
                "pcm": None if pcm is None else pcm.astype(np.float32) / 32768}


def sample_video(total, video_fps, fps):
    """qwen-omni-utils: which frames of a clip are looked at, and the rate they really have."""
    if total == 1:
        return [0], fps
    n = total / video_fps * fps
    n = min(min(max(n, 4), min(768, total) // 2 * 2), total)
    n = int(n // 2 * 2)
    index = torch.linspace(0, total - 1, n).round().long().tolist()
    return index, n / total * video_fps


# ----------------------------------------------------------------------------------------------------------
# the reference, with its pieces taken apart
# ----------------------------------------------------------------------------------------------------------


class Reference:
    def __init__(self, path, spec):
        self.path, self.spec = path, spec
        self.model, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[problem], (problem, info[problem])
        self.model.eval()
        self.config = self.model.config
        self.tokenizer = Qwen2Tokenizer.from_pretrained(path)
        self.extractor = WhisperFeatureExtractor.from_pretrained(path)
        self.images = Qwen2VLImageProcessor.from_pretrained(path)
        self.videos = Qwen2VLVideoProcessor.from_pretrained(path)
        self.processor = Qwen3OmniMoeProcessor(self.images, self.videos, self.extractor, self.tokenizer)
        m = self.model
        if m.has_talker:  # P15: the shared position code reads an audio_config that the talker's config lacks
            m.talker.config.audio_config = m.config.thinker_config.audio_config
            assert m.code2wav.config.rope_parameters["rope_theta"] == spec["code2wav"]["theta"]
            assert m.talker.config.text_config.rope_parameters["rope_theta"] == spec["talker"]["theta"]
            assert m.talker.config.text_config.rope_parameters["mrope_section"] == spec["talker"]["mrope"]
            assert m.talker.config.code_predictor_config.rope_parameters["rope_theta"] == spec["predictor"]["theta"]
        text_rope = m.config.thinker_config.text_config.rope_parameters
        assert text_rope["rope_theta"] == spec["text"]["theta"] and text_rope["mrope_section"] == spec["text"]["mrope"]
        self.seen = {}
        self._tap()

    def _tap(self):
        m, seen = self.model, self.seen

        def audio_features(input_features, feature_attention_mask=None, audio_feature_lengths=None, **kw):
            rows = []  # every clip through the tower alone
            for x, mask in zip(input_features, feature_attention_mask):
                n = int(mask.sum())
                rows.append(m.thinker.model.audio_tower(x[:, :n], feature_lens=torch.tensor([n])).last_hidden_state)
            seen["audio.embeddings"] = torch.cat(rows)
            return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=seen["audio.embeddings"])

        m.thinker.model.get_audio_features = audio_features

        def language(module, args, kw):
            if "position_ids" not in seen:
                p = kw["position_ids"]
                seen["position_ids"] = p[1:, 0].float() if p.shape[0] == 4 else p[:, 0].float()
                seen["thinker.inputs_embeds"] = kw["inputs_embeds"][0].clone()

        m.thinker.model.language_model.register_forward_pre_hook(language, with_kwargs=True)

        def tap(owner, name, key, **extra):
            inner = getattr(owner, name)

            def call(*args, **kw):
                kw.update(extra)
                result = inner(*args, **kw)
                seen.setdefault(key, []).append((args, kw, result))
                return result

            setattr(owner, name, call)

        tap(m.thinker, "generate", "thinker")
        if m.has_talker:
            tap(m.talker, "generate", "talker")
            tap(m.talker.code_predictor, "generate", "predictor", output_logits=True)
            tap(m.code2wav, "chunked_decode", "vocoder")

            def talker(module, args, kw):
                if "talker.position_ids" not in seen:
                    p = kw["position_ids"]
                    seen["talker.position_ids"] = p[1:, 0].float() if p.shape[0] == 4 else p[:, 0].float()

            m.talker.model.register_forward_pre_hook(talker, with_kwargs=True)

    def prepare(self, conversation, media, options):
        """ids and tensors of a conversation, every medium processed alone, in prompt order."""
        use_av = options.get("use-audio-in-video", False)
        fps = options.get("fps", 2.0)
        low, high = self.spec["pixels"]
        bounds = {"shortest_edge": options.get("min-pixels", low), "longest_edge": options.get("max-pixels", high)}
        # frames have bounds of their own, unless the options give some for everything
        frame_bounds = {"shortest_edge": options.get("min-pixels", 128 * 32 * 32),
                        "longest_edge": options.get("max-pixels", 768 * 32 * 32)}
        tok = self.tokenizer
        text, visuals, audios, av = "", [], [], False
        turns = list(conversation)
        if "system" in options:
            turns = [{"role": "system", "content": options["system"]}] + turns
        for turn in turns:
            text += f"<|im_start|>{turn['role']}\n"
            parts = turn["content"]
            for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
                if part["type"] == "text":
                    text += part["text"]
                    continue
                item = media.get(part["name"])
                if part["type"] == "audio":
                    a = self.audio(item["pcm"])
                    audios.append(a)
                    text += tok.audio_bos_token + self.processor.replace_audio_token(a, 0) + tok.audio_eos_token
                elif part["type"] == "image":
                    v = self.images(images=[item["image"]], size=bounds, return_tensors="pt")
                    visuals.append(("image", v["pixel_values"], v["image_grid_thw"], None))
                    text += tok.vision_bos_token + self.processor.replace_image_token(v, 0) + tok.vision_eos_token
                else:
                    index, rate = sample_video(len(item["frames"]), item["fps"], fps)
                    chosen = torch.from_numpy(item["frames"][index]).permute(0, 3, 1, 2)
                    v = self.videos(videos=[chosen], size=frame_bounds, do_sample_frames=False, return_tensors="pt")
                    v["video_second_per_grid"] = [self.videos.temporal_patch_size / rate]
                    visuals.append(("video", v["pixel_values_videos"], v["video_grid_thw"], v["video_second_per_grid"][0]))
                    has_sound = use_av and item["pcm"] is not None
                    if has_sound:
                        av = True
                        a = self.audio(item["pcm"])
                        audios.append(a)
                    else:
                        a = None
                    text += tok.vision_bos_token + self.processor.replace_video_token(
                        v, 0, processed_audio=a, video_to_audio_indices=[0 if has_sound else None],
                        load_audio_from_video=use_av, position_id_per_seconds=self.processor.position_id_per_seconds,
                    ) + tok.vision_eos_token
            text += "<|im_end|>\n"
        text += "<|im_start|>assistant\n"
        ids = tok(text, return_tensors="pt")["input_ids"]
        kw = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_audio_in_video": av}
        for kind, pixel_key, grid_key in (("image", "pixel_values", "image_grid_thw"),
                                          ("video", "pixel_values_videos", "video_grid_thw")):
            mine = [v for v in visuals if v[0] == kind]
            if mine:
                kw[pixel_key] = torch.cat([v[1] for v in mine])
                kw[grid_key] = torch.cat([v[2] for v in mine])
                if kind == "video":
                    kw["video_second_per_grid"] = torch.tensor([v[3] for v in mine])
        if audios:
            longest = max(a["input_features"].shape[-1] for a in audios)
            kw["input_features"] = torch.cat([torch.nn.functional.pad(a["input_features"], (0, longest - a["input_features"].shape[-1])) for a in audios])
            kw["feature_attention_mask"] = torch.cat([torch.nn.functional.pad(a["feature_attention_mask"], (0, longest - a["feature_attention_mask"].shape[-1])) for a in audios])
        return text, kw, visuals, audios

    def audio(self, pcm):
        a, _ = self.processor._process_audio([pcm], sampling_rate=RATE, padding=True, truncation=False,
                                             return_attention_mask=True, return_tensors="pt")
        assert a["input_features"].shape[-1] == int(a["feature_attention_mask"].sum()) == len(pcm) // 160
        return a

    def run(self, conversation, media, options):
        self.seen.clear()
        seen, m = self.seen, self.model
        speech = options.get("speech", False)
        text, kw, visuals, audios = self.prepare(conversation, media, options)
        limit = options["max-frames"] + 1 if speech else 1
        m.generate(
            **kw, return_audio=speech, speaker=options.get("voice", "Ethan"),
            thinker_max_new_tokens=options["max-tokens"], thinker_do_sample=False,
            thinker_eos_token_id=self.config.im_end_token_id, thinker_output_logits=True,
            thinker_return_dict_in_generate=True, thinker_output_hidden_states=True,
            talker_do_sample=False, talker_max_new_tokens=limit, talker_output_logits=True, talker_output_scores=True)
        thought = seen["thinker"][0][2]
        n = kw["input_ids"].shape[1]
        out_ids = thought.sequences[0, n:]
        s = {"input_ids": kw["input_ids"][0], "position_ids": seen["position_ids"],
             "thinker.inputs_embeds": seen["thinker.inputs_embeds"], "output_ids": out_ids,
             "thinker.logits": thought.logits[0][0]}
        hidden = thought.hidden_states[0]
        layers = {0, len(hidden) - 1}
        if m.has_talker:
            layers.add(self.config.talker_config.accept_hidden_layer)
        for layer in sorted(layers):
            s[f"thinker.hidden.{layer}"] = hidden[layer][0]
        if audios:
            s["audio.features"] = torch.cat([a["input_features"][0] for a in audios], dim=1)
            s["audio.embeddings"] = seen["audio.embeddings"]
        if visuals:
            s["vision.pixels"] = torch.cat([v[1] for v in visuals])
            outs = [m.thinker.model.visual(v[1], grid_thw=v[2]) for v in visuals]
            s["vision.embeddings"] = torch.cat([o.pooler_output for o in outs])
            for k in range(len(outs[0].deepstack_features)):
                s[f"vision.deepstack.{k}"] = torch.cat([o.deepstack_features[k] for o in outs])
            c = self.config.thinker_config
            ids = kw["input_ids"][0]
            mask = (ids == c.image_token_id) | (ids == c.video_token_id)
            assert torch.allclose(s["thinker.inputs_embeds"][mask], s["vision.embeddings"], atol=1e-5)
        margins = {"text": margin(thought.logits)}
        counts = {"prompt": n, "tokens": len(out_ids), "distinct": len(set(out_ids.tolist())),
                  "ended": bool(out_ids[-1] == self.config.im_end_token_id)}
        if speech:
            spoken = seen["talker"][0]
            s["talker.inputs_embeds"] = spoken[1]["inputs_embeds"][0]
            s["talker.position_ids"] = seen["talker.position_ids"]
            s["talker.logits"] = torch.cat(spoken[2].logits)
            codes, wave = seen["vocoder"][0][0][0][0], seen["vocoder"][0][2]
            s["codes"], s["waveform"] = codes, wave.reshape(-1)
            steps = [r[2].logits for r in seen["predictor"]]
            margins["codes"] = min([margin(spoken[2].scores)] + [margin(x) for x in steps])
            w = s["waveform"]
            counts.update(frames=codes.shape[1], codec_ended=codes.shape[1] < options["max-frames"], distinct_codes=len(set(codes[0].tolist())),
                          rms=round(float(w.pow(2).mean().sqrt()), 4), peak=round(float(w.abs().max()), 4))
        reply = self.tokenizer.decode(out_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return s, reply, margins, counts, text


def margin(rows):
    """Smallest distance of the two best logits of any step, in standard deviations of the allowed logits."""
    worst = math.inf
    for row in rows:
        x = row.reshape(-1)
        x = x[torch.isfinite(x)]
        top = x.topk(2).values
        worst = min(worst, float((top[0] - top[1]) / x.std()))
    return worst


# ----------------------------------------------------------------------------------------------------------
# cases
# ----------------------------------------------------------------------------------------------------------

WORDINGS = ["", " Please.", " Be brief.", " In one sentence.", " Now.", " Thanks!", " Tell me more.", " Really?",
            " And why?", " Slowly.", " In German.", " 你好。", " Look again.", " Listen.",
            " Was it good?", " Say it twice.", " Hello!", " Why not?", " I see.", " Start with the end.", " 1 2 3",
            " And then?", " (x)", " Schöne Grüße!"]


def T(text):
    return {"type": "text", "text": text}


def A(name):
    return {"type": "audio", "name": name}


def I(name):
    return {"type": "image", "name": name}


def V(name):
    return {"type": "video", "name": name}


SMALL = {"min-pixels": 1024, "max-pixels": 16384}
ALL = "all"                                                     # store every stage
STAGES = ("input_ids", "position_ids", "audio.features", "audio.embeddings", "vision.pixels", "vision.embeddings",
          "vision.deepstack", "thinker.inputs_embeds", "thinker.hidden", "thinker.logits", "output_ids",
          "talker.inputs_embeds", "talker.logits", "codes", "waveform")
LEAN = ("input_ids", "position_ids", "audio.embeddings", "vision.embeddings", "thinker.inputs_embeds",
        "thinker.logits", "output_ids", "talker.inputs_embeds", "codes", "waveform")
BRIEF = ("input_ids", "position_ids", "audio.embeddings", "thinker.logits", "output_ids", "codes")


QUIET = tuple(x for x in STAGES if x != "talker.logits")


def case(turns, store=ALL, want=None, **options):
    """turns: content of a user turn, or a list of (role, content); want: which wording will do, beyond wide margins."""
    if not (isinstance(turns, list) and turns and isinstance(turns[0], tuple)):
        turns = [("user", turns)]
    options = {k.replace("_", "-"): v for k, v in options.items()}
    options.setdefault("max-tokens", 64)
    options.setdefault("speech", False)
    return {"turns": turns, "options": options, "store": STAGES if store == ALL else store, "want": want}


def ends(counts):
    return counts["ended"]


def ends_twice(counts):
    return counts["ended"] and counts["codec_ended"] and counts["frames"] > 5


def forty(counts):
    return counts["frames"] == 40


def speech(turns, store=ALL, max_tokens=24, max_frames=40, **options):
    return case(turns, store, max_tokens=max_tokens, max_frames=max_frames, speech=True, **options)


HISTORY = [
    ("user", "Hello, who is there?"), ("assistant", "Someone who sees and hears."), ("user", [I("i51x37"), T("What is it?")]),
    ("assistant", "A small picture."), ("user", [A("s071"), T("And this?{v}")]),
]

CASES = {
    "tiny-a": {
        "text": speech("What do you see?{v}", QUIET, max_tokens=64),
        "audio-1.01s": speech([A("s101"), T("What do you hear?{v}")], max_frames=12),
        "image-odd": speech([I("i51x37"), T("Describe the picture.{v}")], max_frames=12),
        "video-sound": speech([V("v10av"), T("Describe the video.{v}")], use_audio_in_video=True, **SMALL),
        "system": case([("system", "You are a small test. Answer slowly."), ("user", "What is the weather?{v}")]),
        "audio-0.71s": case([A("s071"), T("{v}")], max_tokens=16),
        "audio-8s": case([T("Listen: "), A("s800"), T("What was it?{v}")], max_tokens=16),
        "audio-16s": case([A("s1600"), T("What was it?{v}")], BRIEF, max_tokens=16),
        "image-and-audio": speech([I("i64x64"), A("s101"), T("Do they fit?{v}")], LEAN),
        "two-and-two": speech([T("First "), I("i64x64"), T(" then "), A("s071"), T(" then "), I("i51x37"), T(" and last "),
                               A("s101"), T(".{v}")], LEAN, max_frames=10),
        "three-turns": speech(HISTORY, LEAN, max_frames=10),
        "video-29.97fps": case([V("v2997"), T("What moves?{v}")], max_tokens=16, **SMALL),
        "video-sound-off": speech([V("v10av"), T("What moves?{v}")], LEAN, max_frames=10, **SMALL),
        "video-silent-flag-on": case([V("v8"), T("What moves?{v}")], LEAN, max_tokens=16, use_audio_in_video=True, **SMALL),
    },
    "tiny-b": {
        "text": speech("Who is speaking?{v}", LEAN, max_tokens=64, want=ends_twice),
        "audio-1s": speech([A("s100"), T("What do you hear?{v}")], LEAN, want=forty),
        "audio-9.3s": case([A("s930"), T("And now?{v}")], LEAN, max_tokens=64),
        "audio-31s": case([A("s3100"), T("And now?{v}")], BRIEF, max_tokens=16),
        "image-extreme": case([I("i20x700"), T("How long is it?{v}")], LEAN, max_tokens=64),
        "image-rgba": case([I("irgba"), T("Describe it.{v}")], max_tokens=16),
        "image-and-audio": speech([A("s071"), I("irgba"), T("Do they fit?{v}")], LEAN, want=forty),
        "video-8fps": case([V("v8"), T("What moves?{v}")], max_tokens=16, **SMALL),
        "video-sound": speech([V("v12av"), T("What happens?{v}")], want=forty, use_audio_in_video=True, **SMALL),
        "video-image-audio": speech([V("v12av"), I("i51x37"), T("and"), A("s101"), T("Which?{v}")], LEAN, max_frames=10, **SMALL),
        "three-turns": speech([("user", [V("v3"), T("What is it?")]), ("assistant", "A clip."), ("user", "How long?"),
                               ("assistant", "Short."), ("user", [A("s100"), T("And this?{v}")])], LEAN, max_frames=10, **SMALL),
        "video-default-bounds": case([V("v8"), T("What moves?{v}")], ("input_ids", "position_ids", "thinker.logits", "output_ids"),
                                     max_tokens=8),
    },
    "tiny-c": {
        "text": speech("Tell me a story.{v}", QUIET, max_tokens=64, system="Speak slowly.", voice="aiden"),
        "audio-40-frames-left": speech([A("s140"), T("What do you hear?{v}")], LEAN, max_frames=12),
        "image-gray": case([I("igray"), T("Describe it.{v}")], max_tokens=64),
        "image-shrunk": case([I("i150x110"), T("Describe it.{v}")], LEAN, max_tokens=16, min_pixels=1024, max_pixels=8000),
        "image-and-audio": speech([I("igray"), T("and"), A("s140"), T("Do they fit?{v}")], LEAN, voice="Chelsie"),
        "video-29.97fps-sound": speech([V("v2997av"), T("What happens?{v}")], QUIET, use_audio_in_video=True, **SMALL),
        "everything": speech([I("i64x64"), T("then"), V("v10av"), T("then"), A("s071"), T("then"), V("v2997av"), T("Which?{v}")],
                             LEAN, max_frames=10, use_audio_in_video=True, **SMALL),
        "video-4fps": case([V("v8"), T("What moves?{v}")], LEAN, max_tokens=16, fps=4.0, **SMALL),
        "two-clips": speech([V("v8"), T("or"), V("v12av"), T("Which is longer?{v}")], LEAN, max_frames=10, **SMALL),
    },
    "tiny-thinking": {
        "text": case("Why is the sky blue?{v}", want=ends),
        "audio-2.5s": case([A("s250"), T("What do you hear?{v}")]),
        "audio-31s": case([A("s3100"), T("What do you hear?{v}")], BRIEF, max_tokens=16),
        "image-wide": case([I("i96x64"), T("Describe it.{v}")], max_tokens=16),
        "video-10fps": case([V("v10"), T("What moves?{v}")], LEAN, max_tokens=16, **SMALL),
        "video-one-frame": case([V("v1"), T("What is it?{v}")], LEAN, max_tokens=16, **SMALL),
        "everything": case([V("v10av"), I("i96x64"), T("and"), A("s071"), T("and"), I("i51x37"), T("Which?{v}")], LEAN,
                           use_audio_in_video=True, **SMALL),
        "three-turns": case(HISTORY, LEAN),
    },
    "tiny-odd": {
        "empty-turn": case([("user", ""), ("assistant", "You said nothing."), ("user", "Was it so?{v}")]),
        "image": speech([I("i51x37"), T("Describe the picture.{v}")], want=forty),
        "audio-and-video-sound": case([A("s260"), T("and"), V("v12av"), T("Do they fit?{v}")], max_tokens=16,
                                      use_audio_in_video=True, **SMALL),
    },
}


def write_case(out, ref, media, name, c):
    best = None
    for wording in WORDINGS[:TRIES]:
        turns = [{"role": r, "content": t.replace("{v}", wording) if isinstance(t, str) else
                  [dict(p, text=p["text"].replace("{v}", wording)) if p["type"] == "text" else p for p in t]}
                 for r, t in c["turns"]]
        result = ref.run(turns, media, c["options"])
        margins = result[2]
        counts = result[3]
        score = min(margins["text"] / TEXT_MARGIN, margins.get("codes", math.inf) / CODE_MARGIN,
                    3 * counts["distinct"] / counts["tokens"], 4 * counts.get("distinct_codes", 99) / counts.get("frames", 1))
        if c["want"] and not c["want"](counts):
            score /= 1000
        if best is None or score > best[0]:
            best = (score, turns, result)
        if score >= 1:
            break
    score, turns, (stages, reply, margins, counts, prompt) = best
    os.makedirs(out, exist_ok=True)
    shown = []
    for turn in turns:
        content = turn["content"]
        if not isinstance(content, str):
            content = [{"type": p["type"], p["type"]: "../../../media/" + media.get(p["name"])["file"]} if "name" in p else p
                       for p in content]
        shown.append({"role": turn["role"], "content": content})
    write_json(f"{out}/conversation.json", shown)
    kept = {}
    for k, t in stages.items():
        if k not in c["store"] and k.rsplit(".", 1)[0] not in c["store"]:
            continue
        kept[k] = (t.long() if k in ("input_ids", "output_ids", "codes") else t.float()).contiguous().clone()
    save_file(kept, f"{out}/stages.safetensors")
    os.chmod(f"{out}/stages.safetensors", 0o644)
    write_json(f"{out}/expected.json", {
        "options": c["options"], "text": reply, "output_ids": stages["output_ids"].tolist(), "margins": margins,
        "counts": counts, "stages": sorted(kept),
    })
    flag = "" if score >= 1 else "  <-- near tie"
    print(f"  {name}: {counts} text {margins['text']:.1e} codes {margins.get('codes', 0):.1e} {reply[:40]!r}{flag}", flush=True)


# ----------------------------------------------------------------------------------------------------------
# tokenizer
# ----------------------------------------------------------------------------------------------------------

STRINGS = [
    "", " ", "  ", "   a", "a   ", "a  b", "\n", "\n\n", " \n", "\n ", "a\nb", "a\r\nb", "a\r\n\r\n  b", "\r", "\t", "a\tb\t\tc", "\t\n \t\n",
    "hello", "Hello, world!", " hello", "HELLO", "hello world hello", "system", "user", "assistant", " user", "users", "systemuserassistant",
    "It's", "it'S", "IT'S", "they're we'll I'd you've I'm can't", "THEY'RE WE'LL I'D YOU'VE I'M CAN'T", "'s't're've'm'll'd", "a'sb", "x's", "'",
    "''", "'sé", "'\u017f", "it'\u017f", "a'\u017fb", "'\u017f\u017f", "don\u2019t", "'lL", "'Re",
    "3.14159", "1234567890", "0000000000000000000000", "12 34  56", "a1b2c3", "1a", "½ Ⅷ ١", "½Ⅷ١", "٠١٢٣٤٥٦٧٨٩", "²³", "①②③", "१२३", "x²", "Ⅷth",
    "foo_bar __init__", "a+b==c;", "i++ --j", "!!!", "!!!\n", "!!!\r\n\r\n", " !!!\n\n x", "...\n...", "#include <stdio.h>\n", "$x = @y;", "a/b\\c",
    "int main(void) {\n    return printf(\"hello, world\\n\");\n}\n", "def f(x):\n\treturn x * 2  # twice\n\n\nprint(f(21))\n",
    "if (a&&b||!c) { x <<= 2; }", "<html><body class=\"x\">&amp;</body></html>", "{\"key\": [1, 2.5, null]}", "SELECT * FROM t WHERE a <> 'b';",
    "你好，世界！", "今天天气很好。", "你看到了什么？请用一句话描述这个视频。", "你 好", "，。！？、", "こんにちは、世界。", "カタカナ ｶﾀｶﾅ", "무엇이 보이나요?", "안녕하세요", "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "שלום עולם", "שָׁלוֹם", "नमस्ते दुनिया", "क्षत्रिय", "हिन्दी", "สวัสดีชาวโลก", "ພາສາລາວ", "தமிழ்", "ქართული", "Ελληνικά",
    "Привет, мир!", "Ёлка ёж", "Việt Nam", "Grüße aus München", "naïve café", "nai\u0308ve cafe\u0301", "e\u0301", "\u0301", "a\u0301\u0323", "a\u0323\u0301", "\u212b \u00c5 A\u030a", "\u2126 \u03a9",
    "ﬁ ﬂ", "İstanbul ıI", "ẞ ß SS", "Å", "\u0344", "\u0958", "\uf900", "\u2f800", "q\u0307\u0323", "q\u0323\u0307",
    "😀", "😀👍🎉", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇯🇵", "❤️", "☎️ ☎", "a😀b", " 😀 ", "1️⃣", "\U0001f9d1\u200d\U0001f4bb code",
    "\u00a0", "a\u00a0b", "\u2003\u2003a", "a\u200bb", "\ufeffa", "a\u2028b", "a\u2029b", "\u3000全角　空白", "\u0085", "a\u0085b", "\u000b\u000c", "\u180e", "\u00ad", "\u202eabc\u202c",
    "\x01\x02\x1f", "\x7f", "\ufffd", "\uffff", "\U0010ffff", "\ue000",
    " " * 17 + "x", "x" + " " * 33, " " * 64, "\n" * 9, " \n \n  \n", "    indented\n        more\n", "a" * 70, "ab" * 40, "." * 50, "-" * 81, "9" * 65, "=" * 16 + "\n", "哈" * 30, "😀" * 12,
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>", "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end|", "|im_end|>", "<|IM_END|>", "<|im_end |>",
    "<|audio_start|><|audio_pad|><|audio_pad|><|audio_end|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>", "<tts_pad><tts_text_bos><tts_text_eod><tts_text_bos_single>",
    "<tts_text_bos_singles>", "<think>\nhm\n</think>\n\nyes", "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "<tool_response>x</tool_response>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<|endoftext|>", "x<|endoftext|>y", "<|repo_name|>r<|file_sep|>f", "e<think>\u0301", "'<|im_end|>s", "<think", "<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2)<|box_end|>", "<|quad_start|><|quad_end|><|vision_pad|><|fim_pad|>",
    "Mixed 文字 with Кириллица, עברית, العربية, हिन्दी, 日本語 and 한국어 — 100% \"done\"…", "«guillemets» „quotes“ ‹x›", "€5 £3 ¥7 ₹9", "∑∫√∞≠≤≥", "→←↑↓", "x̂ȳz̃", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
]


def encodings(tok):
    from tokenizers import Tokenizer
    bare = json.loads(tok._tokenizer.to_str())
    bare["added_tokens"] = []
    bare = Tokenizer.from_str(json.dumps(bare))
    return [{"text": s, "ids": tok.encode(s, add_special_tokens=False),
             "ids_split_special": tok.encode(s, add_special_tokens=False, split_special_tokens=True),
             "ids_plain": bare.encode(s, add_special_tokens=False).ids,
             } for s in STRINGS]


def decodings(tok, count, seed):
    r = np.random.RandomState(seed)
    out = []
    for i in range(count):
        ids = [int(x) for x in r.randint(0, len(tok), r.randint(1, 14))]
        if "\0" in tok.decode(ids):  # a C string cannot hold it: the engine gives U+FFFD
            continue
        out.append({"ids": ids, "text": tok.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
                    "text_skip_special": tok.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)})
    return out


def dump_lines(path, head, key, rows):
    """One row a line: readable diffs, small files."""
    with open(path, "w", encoding="utf-8") as f:
        f.write("{\n")
        for k, v in head.items():
            f.write(f"{json.dumps(k)}: {json.dumps(v)},\n")
        f.write(f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]}\n")


def write_tokenizer_fixtures(out):
    os.makedirs(f"{out}/tokenizer", exist_ok=True)
    for name, spec in MODELS.items():
        if spec.get("odd"):
            continue
        tok = Qwen2Tokenizer.from_pretrained(f"{out}/{name}")
        rows = encodings(tok)
        for r in rows:  # what went in must come out, up to NFC
            import unicodedata
            if "<" not in r["text"]:
                assert tok.decode(r["ids"]) == unicodedata.normalize("NFC", r["text"]), r
        dump_lines(f"{out}/tokenizer/{name}-encode.json", {"model": name}, "strings", rows)
        dump_lines(f"{out}/tokenizer/{name}-decode.json", {"model": name}, "rows", decodings(tok, 80, 7))


def write_published_tokenizer(out, tiktoken_file, vocab_dir):
    """Expected ids for the published vocabulary; the vocabulary itself is not kept here."""
    import hashlib
    table, order = byte_alphabet()
    blob = open(tiktoken_file, "rb").read()
    ranks = {}
    for line in blob.splitlines():
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda x: x[1]):
        if len(token) == 1:
            continue
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # the merge that makes a token joins what the earlier ones leave of it
            best = min(((ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))))
            assert best[0] < rank, token
            parts[best[1]: best[1] + 2] = [parts[best[1]] + parts[best[1] + 1]]
        merges.append(tuple("".join(table[b] for b in p) for p in parts))
    vocab = {"".join(table[b] for b in t): r for t, r in ranks.items()}
    with tempfile.TemporaryDirectory() as tmp:
        target = vocab_dir or tmp
        os.makedirs(target, exist_ok=True)
        first = len(vocab)
        with open(f"{target}/vocab.json", "w", encoding="utf-8") as f:
            json.dump(vocab, f, ensure_ascii=False)
        with open(f"{target}/merges.txt", "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        write_json(f"{target}/tokenizer_config.json", {
            "added_tokens_decoder": {str(first + i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                                     "single_word": False, "special": s} for i, (t, s) in enumerate(ADDED_TOKENS)},
            "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
            "errors": "replace", "tokenizer_class": "Qwen2Tokenizer"})
        tok = Qwen2Tokenizer.from_pretrained(target)
        assert tok.encode("system") == [8948] and tok.encode("<|audio_pad|>") == [151675]
        os.makedirs(f"{out}/tokenizer", exist_ok=True)
        head = {"source_sha256": hashlib.sha256(blob).hexdigest(), "regular_tokens": first}
        dump_lines(f"{out}/tokenizer/published-encode.json", head, "strings", encodings(tok))
        dump_lines(f"{out}/tokenizer/published-decode.json", head, "rows", decodings(tok, 80, 8))


# ----------------------------------------------------------------------------------------------------------
# positions, sizes, resampling
# ----------------------------------------------------------------------------------------------------------


def plain(t):
    return [int(x) if float(x).is_integer() else float(x) for x in t.tolist()]


def write_positions(out, ref):
    c = ref.config
    t = c.thinker_config
    r = np.random.RandomState(99)
    fps_choices = [2.0, 1.8823529411764706, 26 / 158 * 12.0, 4 / 21 * 10.0, 6 / 91 * (30000 / 1001), 1.0, 3.5, 0.7]
    im_start, im_end, newline = c.im_start_token_id, c.im_end_token_id, 198
    rows = []

    def words(n):
        return [int(x) for x in r.randint(0, 250, n)]

    wanted = [("audio",), ("image",), ("video",), ("av",), ("av", "av"), ("audio", "av"), ("av", "audio"), ("image", "av"), ("av", "image"),
              ("audio", "audio"), ("image", "image"), ("video", "video"), ("video", "image", "audio"), ()]
    errors = 0
    while len(rows) < 90:
        flag = bool(r.randint(2))
        if len(rows) < len(wanted):
            kinds = wanted[len(rows)]
            flag = "av" in kinds
        else:
            kinds = [("audio", "image", "av" if flag else "video")[r.randint(3)] for _ in range(r.randint(0, 5))]
        turns = 1 + r.randint(3)
        ids, items, talker_ids, layout = [], {"image": [], "video": [], "spg": [], "audio": []}, [], []
        if r.randint(3) == 0:
            system = [im_start, c.system_token_id, newline] + words(r.randint(1, 6)) + [im_end, newline]
            ids += system
            layout.append({"text": system})
        kinds = list(kinds)
        for turn in range(turns):
            last = turn == turns - 1
            mine = [kinds.pop(0) for _ in range(len(kinds) if last else min(len(kinds), r.randint(0, 3)))]
            user = [im_start, c.user_token_id, newline]
            layout.append({"text": list(user)})
            for kind in mine:
                if r.randint(2):
                    w = words(r.randint(1, 5))
                    user += w
                    layout.append({"text": w})
                grid = [1 if kind == "image" else int(r.randint(1, 5)), 2 * int(r.randint(1, 5)), 2 * int(r.randint(1, 6))]
                if kind == "image" or kind == "video":
                    n = grid[0] * grid[1] * grid[2] // 4
                    pad = t.image_token_id if kind == "image" else t.video_token_id
                    user += [t.vision_start_token_id] + [pad] * n + [t.vision_end_token_id]
                frames_heard = int(r.randint(1, 420))
                fps = fps_choices[r.randint(len(fps_choices))]
                spg = 2 / fps
                if kind == "image":
                    items["image"].append(grid)
                    layout.append({"image": grid})
                elif kind == "video":
                    items["video"].append(grid)
                    items["spg"].append(spg)
                    layout.append({"video": grid, "second_per_grid": spg})
                elif kind == "audio":
                    n = int(transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe._get_feat_extract_output_lengths(torch.tensor(frames_heard), 50))
                    items["audio"].append(frames_heard)
                    user += [t.audio_start_token_id] + [t.audio_token_id] * n + [t.audio_end_token_id]
                    layout.append({"audio": frames_heard})
                else:
                    if len(rows) == 3 or r.randint(8) == 0:  # the tie where ids and positions may disagree: 158 frames at 12/s
                        spg, frames_heard, grid = 2 / (26 / 158 * 12.0), 1316, [13, 2, 4]
                    n = transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe._get_feat_extract_output_lengths(torch.tensor([frames_heard]), 50)
                    merged = ref.processor.replace_video_with_audio_token(
                        {"video_grid_thw": torch.tensor([grid]), "video_second_per_grid": [spg]}, 0, {"num_audio_tokens": n}, 0,
                        position_id_per_seconds=13.0)
                    items["audio"].append(frames_heard)
                    items["video"].append(grid)
                    items["spg"].append(spg)
                    user += [t.vision_start_token_id] + ref.tokenizer.encode(merged) + [t.vision_end_token_id]
                    layout.append({"video": grid, "second_per_grid": spg, "audio": frames_heard})
            tail = words(r.randint(0, 6)) + [im_end, newline]
            user += tail
            layout.append({"text": tail})
            ids += user
            talker_ids += user
            reply = [im_start, c.assistant_token_id, newline] + ([] if last else words(r.randint(1, 5)) + [im_end, newline])
            ids += reply
            layout.append({"text": reply})
        talker_ids += [c.tts_pad_token_id] * 9
        kw = dict(image_grid_thw=torch.tensor(items["image"]) if items["image"] else None,
                  video_grid_thw=torch.tensor(items["video"]) if items["video"] else None,
                  audio_seqlens=torch.tensor(items["audio"]) if items["audio"] else None,
                  second_per_grids=torch.tensor(items["spg"]) if items["spg"] else None)
        has_av = any("video" in x and "audio" in x for x in layout)
        flag = flag and has_av
        try:
            ids_t = torch.tensor([ids])
            p, delta = ref.model.thinker.get_rope_index(ids_t, attention_mask=torch.ones_like(ids_t), use_audio_in_video=flag, **kw)
            talker_t = torch.tensor([talker_ids])
            q, talker_delta = ref.model.talker.get_rope_index(talker_t, attention_mask=torch.ones_like(talker_t), use_audio_in_video=False, **kw)
        except (ValueError, RuntimeError, IndexError):
            errors += 1
            continue
        rows.append({"layout": layout, "use_audio_in_video": flag, "ids": ids, "positions": [plain(p[a, 0].float()) for a in range(3)],
                     "delta": plain(delta.float().reshape(-1))[0], "talker_ids": talker_ids,
                     "talker_positions": [plain(q[a, 0].float()) for a in range(3)],
                     "talker_delta": plain(talker_delta.float().reshape(-1))[0]})
    tokens = {"im_start": im_start, "im_end": im_end, "system": c.system_token_id, "user": c.user_token_id, "assistant": c.assistant_token_id,
              "tts_pad": c.tts_pad_token_id, "audio": t.audio_token_id, "image": t.image_token_id, "video": t.video_token_id,
              "vision_start": t.vision_start_token_id, "vision_end": t.vision_end_token_id,
              "audio_start": t.audio_start_token_id, "audio_end": t.audio_end_token_id}
    dump_lines(f"{out}/positions.json", {"model": "tiny-a", "tokens": tokens, "position_id_per_seconds": 13, "spatial_merge_size": 2}, "rows", rows)
    print(f"positions: {len(rows)} layouts, {errors} that the reference itself cannot place")


def write_resize(out):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
    r = np.random.RandomState(3)
    cases = [(48, 48), (80, 80), (31, 31), (20, 4000), (20, 4001), (1, 200), (1, 201), (32, 32), (16, 16), (1, 1), (64, 64), (700, 20), (1080, 1920),
             (2160, 3840), (10000, 10000), (33, 63), (112, 144), (47, 49), (15, 17), (6400, 32), (4320, 7680)]
    bounds = [(3136, 12845056), (131072, 786432), (1024, 16384), (1024, 1048576), (262144, 262144), (784, 802816)]
    rows = []
    sizes = [(h, w, b) for h, w in cases for b in bounds]
    sizes += [(int(r.randint(1, 3000)), int(r.randint(1, 3000)), bounds[r.randint(len(bounds))]) for _ in range(150)]
    for h, w, (low, high) in sizes:
        try:
            got = list(smart_resize(h, w, factor=32, min_pixels=low, max_pixels=high))
        except ValueError:
            got = None
        rows.append({"height": h, "width": w, "min_pixels": low, "max_pixels": high, "resized": got})
    dump_lines(f"{out}/resize.json", {"factor": 32}, "rows", rows)


def write_bicubic(out, ref):
    from transformers.image_utils import SizeDict
    os.makedirs(f"{out}/bicubic", exist_ok=True)
    rows = []
    r = np.random.RandomState(21)
    for k, (w, h, low, high) in enumerate([(51, 37, 3136, 1 << 20), (97, 130, 1024, 8000), (20, 70, 3136, 1 << 20), (64, 40, 1024, 1 << 20), (300, 7, 1024, 1 << 20)]):
        a = r.randint(0, 256, (h, w, 3)).astype(np.uint8) if k % 2 == 0 else picture(w, h, k)
        a[: h // 3, : w // 3] = 255 * (np.indices((h // 3, w // 3)).sum(0) % 2)[..., None]  # overshoots on purpose
        x = torch.from_numpy(a).permute(2, 0, 1)[None]
        y = ref.images.resize(x, SizeDict(shortest_edge=low, longest_edge=high), ref.images.resample, 32)
        assert y.dtype == torch.uint8
        b = y[0].permute(1, 2, 0).contiguous().numpy()
        a.tofile(f"{out}/bicubic/{k}-in.rgb")
        b.tofile(f"{out}/bicubic/{k}-out.rgb")
        rows.append({"input": f"{k}-in.rgb", "width": w, "height": h, "min_pixels": low, "max_pixels": high,
                     "output": f"{k}-out.rgb", "out_width": b.shape[1], "out_height": b.shape[0]})
    write_json(f"{out}/bicubic/index.json", rows)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--only")
    ap.add_argument("--case")
    ap.add_argument("--no-models", action="store_true", help="keep the checkpoints that are there")
    ap.add_argument("--tables", action="store_true", help="only the tokenizer, position, size and resampling tables")
    ap.add_argument("--tiktoken", help="the published ranks (qwen.tiktoken): also write the expected ids for them")
    ap.add_argument("--vocab-out", help="with --tiktoken: leave the recovered vocab.json and merges.txt there")
    args = ap.parse_args()
    for lib, version in PINNED.items():
        have = sys.modules[lib].__version__.split("+")[0]
        if have != version:
            sys.exit(f"{lib} {version} is needed, {have} is installed")
    media = Media(args.out)
    if args.tiktoken:
        write_published_tokenizer(args.out, args.tiktoken, args.vocab_out)
        return
    for name, spec in MODELS.items():
        if args.only and name not in args.only.split(","):
            continue
        path = f"{args.out}/{name}"
        if args.tables:
            break
        started = time.time()
        if spec.get("odd"):  # the reference reads the plain form
            with tempfile.TemporaryDirectory() as plain:
                write_checkpoint(plain, name, spec)
                if not args.no_models:
                    write_odd(path, plain)
                ref = Reference(plain, spec)
        else:
            if not args.no_models:
                write_checkpoint(path, name, spec)
            ref = Reference(path, spec)
        for cname, c in CASES.get(name, {}).items():
            if args.case and cname not in args.case.split(","):
                continue
            write_case(f"{path}/cases/{cname}", ref, media, cname, c)
        print(f"{name}: {time.time() - started:.0f} s", flush=True)
    if args.tables or not (args.only or args.case):
        write_tokenizer_fixtures(args.out)
        ref = Reference(f"{args.out}/tiny-a", MODELS["tiny-a"])
        write_positions(args.out, ref)
        write_resize(args.out)
        write_bicubic(args.out, ref)


if __name__ == "__main__":
    main()
