#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The acceptance test: puts the held-out conversations to our engine.

    judge.py WORK MODEL [--qomni PATH] [--equal N] [--listen N]

Every conversation goes through `qomni generate` as a user would run it; what is
answered is compared with what heldout.py expects. Some of the speech is heard
by a recogniser that knows nothing of the model, spoken with the likeliest codes
and as it is spoken by default, with drawn ones. Some conversations, and all of
the tests in the tree, are also put to transformers, whose text and codes must
be the engine's in f32. Prints a table of what was measured, what must be
reached and what is aimed for; adds it to report.json; exits with 3 when
something falls short.
"""
import argparse
import collections
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

import heldout
import world
from checkpoint import SPEC, Nano
from nano import FALLS_SHORT
from recogniser import Recogniser, distance, share_right
from train import report
from vocoder import RATE, Codec

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(os.path.dirname(HERE))
SMALL = f"{TREE}/tests/nano"
MAX_TOKENS = 128
MAX_FRAMES = 1000  # nothing here takes 80 s to say: it must stop by itself
QUIET = 0.03  # of the loudest 10 ms: less is silence
MAX_TAIL = 0.5  # seconds of silence after the last word


# --- the engine ---------------------------------------------------------------

class Engine:
    def __init__(self, qomni, model, scratch):
        self.qomni, self.model, self.scratch = qomni, model, scratch

    def answer(self, case, *more):
        """What `qomni generate --json` says, and the samples it speaks."""
        wav = f"{self.scratch}/speech.wav"
        command = [self.qomni, "generate", self.model, "--greedy", "--json",
                   "--conversation", path_of(case, case["conversation"]),
                   "--max-tokens", str(MAX_TOKENS), *more]
        if case["hears-video"]:
            command.append("--use-audio-in-video")
        if case["voice"]:
            command += ["--speech", wav, "--voice", case["voice"],
                        "--max-frames", str(MAX_FRAMES)]
        done = subprocess.run(command, capture_output=True, text=True,
                              timeout=300)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        said = json.loads(done.stdout)
        if case["voice"]:
            said["speech"] = soundfile.read(wav, dtype="float32")[0]
        return said


def read_cases(directory):
    cases = json.load(open(f"{directory}/expected.json"))
    return [dict(c, directory=directory) for c in cases]


def path_of(case, name):
    return os.path.join(case["directory"], name)


def tail(samples):
    """Seconds after the last sound that can be heard."""
    step = RATE // 100
    n = len(samples) // step
    loud = np.sqrt((samples[:n * step].reshape(n, step) ** 2).mean(1))
    heard = np.flatnonzero(loud > QUIET * loud.max())
    return (n - 1 - heard[-1]) / 100 if len(heard) else np.inf


# --- scores -------------------------------------------------------------------

def share(values):
    values = list(values)
    return sum(values) / len(values)


def understood(cases, *kinds):
    return share(c["said"]["text"] == c["answer"] for c in cases
                 if c["kind"] in kinds)


def word_errors(cases, kind):
    mine = [c for c in cases if c["kind"] == kind]
    wrong = sum(distance(c["said"]["text"].split(), c["answer"].split())
                for c in mine)
    return wrong / sum(len(c["answer"].split()) for c in mine)


def ends(said):
    return said["frames"] < MAX_FRAMES and tail(said["speech"]) <= MAX_TAIL


def listen(cases, nano, engine):
    """What the recogniser gets right of the speech the voices learnt from, of
    the likeliest codes, of drawn ones; and how many of the last end."""
    codec = Codec(nano)
    texts, original, likeliest, drawn, ended = [], [], [], [], []
    for i, c in enumerate(cases):
        if not c["said"]["text"].split():
            continue
        texts.append(c["said"]["text"])
        original.append(codec.speech(nano.tokenizer.encode(texts[-1]),
                                     codec.voices.index(c["voice"])).numpy())
        likeliest.append(c["said"]["speech"])
        said = engine.answer(c, "--seed", str(i))
        drawn.append(said["speech"])
        ended.append(ends(said))
    with Recogniser() as recognise:
        shares = [share_right(recognise(clips, RATE), texts)
                  for clips in (original, likeliest, drawn)]
    return *shares, share(ended)


# --- transformers -------------------------------------------------------------

class Decoded:
    """Media as GStreamer decodes them, in the form the reference takes."""

    def __init__(self, scratch):
        self.scratch = scratch

    def launch(self, path, *chain):
        subprocess.run(("gst-launch-1.0", "-q", "filesrc", f"location={path}",
                        "!", "decodebin", "name=d", "d.", "!", "queue", "!",
                        *chain), check=True, timeout=120)

    def sound(self, path):
        raw = f"{self.scratch}/sound.raw"
        self.launch(path, "audioconvert", "!", "audioresample", "!",
                    "audio/x-raw,format=F32LE,rate=16000,channels=1", "!",
                    "filesink", f"location={raw}")
        return np.fromfile(raw, np.float32)

    def frames(self, path):
        with tempfile.TemporaryDirectory(dir=self.scratch) as tmp:
            self.launch(path, "videoconvert", "dither=none", "!",
                        "video/x-raw,format=RGB", "!", "pngenc",
                        "compression-level=1", "!", "multifilesink",
                        f"location={tmp}/%05d.png")
            return [Image.open(f"{tmp}/{f}").convert("RGB")
                    for f in sorted(os.listdir(tmp))]

    def get(self, name):
        """`name`: (kind, path, whether the sound of a video counts)"""
        kind, path, hears = name
        if kind == "audio":
            return {"pcm": self.sound(path)}
        frames = self.frames(path)
        if kind == "image":
            return {"image": frames[0]}
        return {"frames": np.stack([np.asarray(f) for f in frames]),
                "fps": heldout.FPS, "pcm": self.sound(path) if hears else None}


def load_reference(model):
    spec = importlib.util.spec_from_file_location(
        "make_fixtures", f"{TREE}/tests/parity/make-fixtures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Reference(model, SPEC)


def referable(case):
    """The conversation in the form the reference takes."""
    messages = json.load(open(path_of(case, case["conversation"])))
    for message in messages:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            kind = part["type"]
            if kind != "text":
                part["name"] = (kind, path_of(case, part[kind]),
                                case["hears-video"])
    return messages


def equal(cases, engine):
    """How many answers agree with transformers, token by token and code by
    code."""
    warnings.filterwarnings("ignore", module="transformers")
    reference = load_reference(engine.model)
    media = Decoded(engine.scratch)
    dump = f"{engine.scratch}/stages.safetensors"
    same = 0
    for case in cases:
        engine.answer(case, "--talker-greedy", "--precision", "f32",
                      "--dump", dump)
        ours = load_file(dump)
        theirs, _, margins, _, _ = reference.run(
            referable(case), media,
            {"speech": True, "voice": case["voice"], "max-tokens": MAX_TOKENS,
             "max-frames": MAX_FRAMES,
             "use-audio-in-video": case["hears-video"]})
        different = [k for k in ("output_ids", "codes")
                     if not torch.equal(ours[k], theirs[k].long())]
        same += not different
        if different:
            print(f"{case['conversation']}: {' and '.join(different)} not as "
                  f"in transformers (margins {margins})", flush=True)
    return same / len(cases)


def choose(cases, n):
    """n that speak, of all kinds in turn."""
    kinds = collections.defaultdict(list)
    for c in cases:
        if c["voice"]:
            kinds[c["kind"]].append(c)
    ret = []
    while len(ret) < n and any(kinds.values()):
        ret += [mine.pop(0) for mine in kinds.values() if mine]
    return ret[:n]


# --- the table ----------------------------------------------------------------

class Table:
    def __init__(self):
        self.rows = []

    def most(self, name, what, value, must, aim):
        """The more the better."""
        self.rows.append((name, what, value, must, aim, bool(value >= must)))

    def least(self, name, what, value, must, aim):
        self.rows.append((name, what, value, must, aim, bool(value <= must)))

    def print(self):
        print(f"\n{'':58} {'measured':>9} {'must':>7} {'aim':>7}")
        for _, what, value, must, aim, met in self.rows:
            print(f"{what:58} {value:9.4f} {must:7.3f} {aim:7.3f}"
                  f"{'' if met else '  NOT MET'}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("model")
    parser.add_argument("--qomni", default=f"{TREE}/build/tools/qomni")
    parser.add_argument("--equal", metavar="N", type=int, default=60)
    parser.add_argument("--listen", metavar="N", type=int, default=160)
    args = parser.parse_args()
    nano = Nano(args.work)
    cases = read_cases(nano.path("heldout"))
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(args.qomni, args.model, scratch)
        for case in cases:
            case["said"] = engine.answer(case, "--talker-greedy")
            if case["said"]["text"] != case["answer"]:
                print(f"{case['conversation']}: {case['said']['text']!r}, not "
                      f"{case['answer']!r}", flush=True)
        original, likeliest, drawn, drawn_end = listen(
            choose(cases, args.listen), nano, engine)
        compared = choose(cases, args.equal) + read_cases(SMALL)
        alike = equal(compared, engine)

    t = Table()
    t.least("wer", "words of clean voices taken wrongly",
            word_errors(cases, "transcribe"), 0.05, 0.01)
    t.least("wer_10db", "the same, 10 dB above noise",
            word_errors(cases, "transcribe-noisy"), 0.15, 0.05)
    t.most("spoken", "spoken sums, switches, follow-ups answered right",
           understood(cases, "sum", "switch", "follow"), 0.90, 0.99)
    t.most("echoed", "spoken words repeated and spelt",
           understood(cases, "repeat", "spell"), 0.90, 0.99)
    t.most("typed", "typed questions answered right",
           understood(cases, "typed", "typed-follow"), 0.90, 0.99)
    t.most("sight", "pictures and videos, asked by text or shown alone",
           understood(cases, "image", "image-alone", "video", "video-alone"),
           0.93, 0.995)
    t.most("sight_voice", "pictures and videos, asked by a voice",
           understood(cases, "image-voice", "video-voice", "video-own-voice"),
           0.88, 0.98)
    t.most("refused", "what is not of its world refused",
           understood(cases, "refuse", "typed-refuse", "no-speech"), 0.90, 0.99)
    t.most("not_refused", "what is of its world not refused",
           share(c["said"]["text"] != world.REFUSAL for c in cases
                 if c["answer"] != world.REFUSAL), 0.90, 0.99)
    t.most("intelligible", "spoken words recognised, of those of the "
           "original voices", likeliest / original, 0.85, 0.97)
    t.most("intelligible_drawn", "the same, with drawn codes",
           drawn / original, 0.85, 0.97)
    spoken = [c for c in cases if c["voice"]]
    t.most("ends", f"speech that ends within {MAX_TAIL} s of its last word",
           share(ends(c["said"]) for c in spoken), 1, 1)
    t.most("ends_drawn", "the same, with drawn codes", drawn_end, 0.97, 1)
    t.most("equal", "answers equal to transformers', tokens and codes", alike,
           1, 1)
    turns = [c["said"] for c in spoken if not c["kind"].startswith("typed")]
    t.least("real_time", "seconds a turn takes, per second of its speech",
            statistics.median((s["timings"]["total"] - s["timings"]["load"])
                              / s["speech_seconds"] for s in turns), 0.5, 0.15)
    t.print()
    print("A turn takes the time from the loaded model to the last sample, "
          "hearing and\nseeing included; the median. The recogniser gets "
          f"{original:.3f} of the original.")
    kinds = {kind: understood(cases, kind) for kind in heldout.KINDS}
    for kind, right in kinds.items():
        print(f"{kind:20} {right:.3f}")
    report(nano, "judge", original=original, kinds=kinds, cases=len(cases),
           listened=len(choose(cases, args.listen)), compared=len(compared),
           table=[dict(zip(("name", "what", "value", "must", "aim", "met"), row))
                  for row in t.rows])
    if not all(row[-1] for row in t.rows):
        sys.exit(FALLS_SHORT)


if __name__ == "__main__":
    main()
