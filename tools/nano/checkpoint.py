# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shape of qomni-nano, its parts while they are trained, its files.

Everything a training stage leaves lies in a work directory:

    checkpoint/   config.json, the tokenizer, preprocessor_config.json, …
    words.pt      the table of word vectors, drawn once, never trained
    <part>.pt     the weights of a part, by the names inside that part

The parts are trained apart from each other because they meet in the word
vectors: the towers learn to answer with the vectors of the words that are said
or seen, the Thinker reads and the Talker speaks those same vectors.
"""
import filecmp
import json
import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from safetensors.torch import load_file, save_file
from transformers import (Qwen2Tokenizer, Qwen3OmniMoeConfig,
                          Qwen3OmniMoeForConditionalGeneration)
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as hf

import layout
import world

SPEC = {
    "dialect": "v4", "dtype": "bf16", "pixels": (100352, 131072),
    "text": dict(hidden=160, layers=4, heads=6, kv=2, head_dim=32, inter=96, moe_inter=96, experts=8, topk=2,
                 mrope=[6, 5, 5], theta=10000, mlp_only=[], sparse_step=1, norm_topk=True),
    "audio": dict(layers=4, heads=4, ffn=384, d_model=128, n_window=50, infer=800, ds=32),
    "vision": dict(depth=4, hidden=96, heads=4, inter=256, npos=576, deepstack=[1, 2]),
    "talker": dict(accept=2, groups=4, hidden=128, layers=2, heads=4, kv=2, head_dim=32, inter=128, moe_inter=64,
                   experts=4, topk=2, shared=128, vocab=1536, mrope=[6, 5, 5], theta=10000, norm_topk=True,
                   ids=dict(pad=0, bos=1, eos=2, nothink=3, think_bos=4, think_eos=5),
                   speakers=dict(chelsie=8, ethan=9)),
    "predictor": dict(layers=2, heads=4, kv=2, head_dim=32, inter=192, theta=10000),
    "code2wav": dict(codebook=512, hidden=128, layers=2, heads=4, kv=4, inter=384, window=36, decoder=192,
                     theta=10000),
}

TEMPERATURE = 0.5  # of the Talker, where nobody asks for another
WORD_SCALE = 0.5  # standard deviation of the components of a word vector


def spoken_text():
    """What the tokenizer is made of: every word alone and after a space."""
    words = world.WORDS + list(world.LETTERS)
    return "\n".join(words) + "\n" + "".join(" " + w for w in words)


class Nano:
    """The work directory, made when it is not there."""

    def __init__(self, work):
        self.work = work
        self.files = os.path.join(work, "checkpoint")
        if not os.path.exists(self.path("words.pt")):
            self._make()
        self.raw = json.load(open(f"{self.files}/config.json"))
        self.config = Qwen3OmniMoeConfig.from_dict(self.raw)
        self.tokenizer = Qwen2Tokenizer.from_pretrained(self.files)
        self.words = self.load("words")  # [vocab, hidden]
        self.id = self.tokenizer.convert_tokens_to_ids

    def path(self, name):
        return os.path.join(self.work, name)

    def _make(self):
        os.makedirs(self.files, exist_ok=True)
        ids = layout.write_tokenizer(self.files, spoken_text())
        raw = layout.config_v4(SPEC, ids)
        layout.write_json(f"{self.files}/config.json", raw)
        layout.write_json(f"{self.files}/preprocessor_config.json",
                          layout.preprocessor(SPEC["pixels"]))
        layout.write_json(f"{self.files}/generation_config.json", {
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "talker_max_new_tokens": 4096, "talker_repetition_penalty": 1.05,
            "talker_temperature": TEMPERATURE, "talker_top_k": 50,
            "talker_top_p": 1.0})
        text = raw["thinker_config"]["text_config"]
        g = torch.Generator().manual_seed(2026)
        table = WORD_SCALE * torch.randn(text["vocab_size"],
                                         text["hidden_size"], generator=g)
        # A word at the start of a text is nearly the word after a space.
        tokenizer = Qwen2Tokenizer.from_pretrained(self.files)
        for w in world.WORDS + list(world.LETTERS):
            first, later = (tokenizer.encode(p + w) for p in ("", " "))
            if len(first) == len(later) == 1:
                table[first[0]] = 0.9 * table[later[0]] + 0.436 * table[first[0]]
        torch.save(table, self.path("words.pt"))

    def word(self, w):
        """The vectors of a word in the middle of a text, added up: one token
        but for "what's"."""
        return self.words[self.tokenizer.encode(" " + w)].sum(0)

    # --- parts ----------------------------------------------------------------

    def new(self, part):
        """"hear": the audio tower, "see": the vision tower, "think" (before:
        "imitate"): the Thinker, "talk": the Talker with its code predictor,
        "voice": Code2Wav; in float32, with weights that are not worth
        keeping."""
        c = self.config
        if part == "hear":
            return hf.Qwen3OmniMoeAudioEncoder._from_config(
                c.thinker_config.audio_config, dtype=torch.float32)
        if part == "see":
            return hf.Qwen3OmniMoeVisionEncoder._from_config(
                c.thinker_config.vision_config, dtype=torch.float32)
        if part == "think":
            return hf.Qwen3OmniMoeThinkerForConditionalGeneration._from_config(
                c.thinker_config, dtype=torch.float32)
        if part == "talk":
            return hf.Qwen3OmniMoeTalkerForConditionalGeneration._from_config(
                c.talker_config, dtype=torch.float32)
        return hf.Qwen3OmniMoeCode2Wav._from_config(
            c.code2wav_config, dtype=torch.float32)

    def save(self, part, state):
        """Tensors by their names in the part; the file is replaced whole."""
        path = self.path(f"{part}.pt")
        torch.save({k: v.detach().clone() for k, v in state.items()},
                   path + ".new")
        os.replace(path + ".new", path)

    def load(self, part):
        """On the CPU, wherever it was trained."""
        return torch.load(self.path(f"{part}.pt"), map_location="cpu")

    def begin(self, part, module):
        """Gives a part that a stage is about to train the weights it was left
        with, if it was; a run's own state, if there is one, comes after."""
        if os.path.exists(self.path(f"{part}.pt")):
            module.load_state_dict(self.load(part), strict=False)

    def adopt(self, model):
        """Takes the word vectors, every part and what was measured from a
        checkpoint of this world, to train it further where its work directory
        is lost. The codec is not in there: where the espeak-ng it is made with
        is another one, the voices do not fit and must be trained again."""
        for f in ("vocab.json", "merges.txt"):
            if not filecmp.cmp(f"{model}/{f}", f"{self.files}/{f}", False):
                sys.exit(f"{model}/{f} is of another world than world.py's")
        shutil.copyfile(f"{model}/report.json", self.path("report.json"))
        m = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            model, dtype=torch.float32)
        parts = m.thinker.model
        self.words = m.thinker.get_input_embeddings().weight.detach().clone()
        torch.save(self.words, self.path("words.pt"))
        self.save("hear", parts.audio_tower.state_dict())
        self.save("see", parts.visual.state_dict())
        self.save("think", {
            k: v for k, v in m.thinker.state_dict().items()
            if k.startswith(("model.language_model.", "lm_head."))})
        self.save("talk", m.talker.state_dict())
        self.save("voice", m.code2wav.state_dict())

    # --- files ----------------------------------------------------------------

    def assemble(self):
        """The whole model in float32."""
        torch.manual_seed(0)
        model = Qwen3OmniMoeForConditionalGeneration._from_config(
            self.config, dtype=torch.float32).eval()
        parts = model.thinker.model
        module = {"hear": parts.audio_tower, "see": parts.visual,
                  "think": model.thinker, "talk": model.talker,
                  "voice": model.code2wav}
        missing = [part for part in module
                   if not os.path.exists(self.path(f"{part}.pt"))]
        if missing:
            sys.exit("not trained: " + ", ".join(missing))
        with torch.no_grad():
            model.thinker.get_input_embeddings().weight.copy_(self.words)
            for part, m in module.items():
                left = m.load_state_dict(self.load(part), strict=False)
                assert not left.unexpected_keys, left.unexpected_keys
                if part != "think":
                    assert not left.missing_keys, left.missing_keys
        return model

    def export(self, out):
        """Writes the checkpoint as it is published: bf16, one file. Returns the
        number of its parameters."""
        model = self.assemble()
        os.makedirs(out, exist_ok=True)
        tmp = self.path("saved")
        shutil.rmtree(tmp, ignore_errors=True)
        model.save_pretrained(tmp)
        tensors = {}
        for f in sorted(os.listdir(tmp)):
            if f.endswith(".safetensors"):
                tensors.update(load_file(f"{tmp}/{f}"))
        shutil.rmtree(tmp)
        tensors = {k: tensors[k].to(torch.bfloat16).contiguous()
                   for k in sorted(tensors)}
        save_file(tensors, f"{out}/model.safetensors",
                  metadata={"format": "pt"})
        os.chmod(f"{out}/model.safetensors", 0o644)
        for f in os.listdir(self.files):
            shutil.copyfile(f"{self.files}/{f}", f"{out}/{f}")
        return sum(t.numel() for t in tensors.values())
