# SPDX-License-Identifier: LGPL-2.1-or-later
"""What words were spoken, heard by somebody else's ears: pocketsphinx.

    with Recogniser() as recognise:
        words = recognise([samples, …], rate)   # a list of words for each clip
    share = share_right(words, texts)           # of words, 0…1

Judges the speech of qomni-nano, in training and in the acceptance test. It
knows the words of the world and how often one follows another in what is
answered there, nothing of the voices. Needs the command pocketsphinx_batch and
its model of American English (Debian: pocketsphinx, pocketsphinx-en-us).
"""
import collections
import math
import os
import random
import shutil
import subprocess
import tempfile

import numpy as np
from scipy.signal import resample_poly

import world

MODEL = "/usr/share/pocketsphinx/model/en-us"
RATE = 16000
# How espeak-ng says some words of which the dictionary knows another way.
ALSO = {"four": "F OW R", "for": "F OW R", "fourteen": "F OW R T IY N",
        "forty": "F OW R T IY", "door": "D OW R", "orange": "AA R AH N JH"}
NOISE = 100  # of 32768, under every clip: perfect silence confuses it
DISCOUNT = 0.5  # taken off every count of two words


def available():
    return bool(shutil.which("pocketsphinx_batch")) and os.path.isdir(MODEL)


def language_model(sentences, words):
    """Bigrams with absolute discounting, as the lines of an ARPA file."""
    alone = collections.Counter(words)  # every word once at least
    pairs = collections.Counter()
    for sentence in sentences:
        said = ["<s>", *sentence.split(), "</s>"]
        alone.update(said[1:])
        pairs.update(zip(said, said[1:]))
    total = sum(alone.values())
    first, kinds = collections.Counter(), collections.Counter()
    for (a, _), n in pairs.items():
        first[a] += n
        kinds[a] += 1
    p = {w: n / total for w, n in alone.items()}
    known = collections.Counter()  # the part of p that pairs account for
    for a, b in pairs:
        known[a] += p[b]

    def back_off(a):
        if not first[a]:
            return 1.0
        return DISCOUNT * kinds[a] / first[a] / max(1e-6, 1 - known[a])

    def line(value, *rest):
        return " ".join([f"{math.log10(value):.4f}", *rest])

    lines = ["\\data\\", f"ngram 1={len(alone) + 1}", f"ngram 2={len(pairs)}",
             "", "\\1-grams:"]
    lines.append(f"-99 <s> {math.log10(back_off('<s>')):.4f}")
    for w in sorted(alone):
        lines.append(line(p[w], w, f"{math.log10(back_off(w)):.4f}"))
    lines += ["", "\\2-grams:"]
    for (a, b), n in sorted(pairs.items()):
        lines.append(line((n - DISCOUNT) / first[a], a, b))
    return lines + ["", "\\end\\"]


class Recogniser:
    def __init__(self, sentences=20000):
        self.home = tempfile.mkdtemp(prefix="nano-recogniser-")
        words = sorted({*world.WORDS, *world.LETTERS})
        with open(f"{MODEL}/cmudict-en-us.dict") as f:
            known = [line for line in f
                     if line.split()[0].split("(")[0] in words]
        with open(f"{self.home}/words.dict", "w") as f:
            f.write("a EY\n")  # as a letter: so it is spoken
            f.writelines(line for line in known if line.split()[0][:2] not in
                         ("a", "a("))
            f.writelines(f"{w}(9) {said}\n" for w, said in ALSO.items())
        rng = random.Random("recogniser")
        with open(f"{self.home}/words.lm", "w") as f:
            f.write("\n".join(language_model(
                (world.draw_answer(rng) for _ in range(sentences)),
                words)) + "\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.home)

    def __call__(self, clips, rate=24000):
        """Clips of samples in -1…1 -> for each the list of its words."""
        noise = np.random.RandomState(1)
        names = [f"{i:05d}" for i in range(len(clips))]
        for name, clip in zip(names, clips):
            clip = np.asarray(clip, dtype=np.float64)
            common = math.gcd(RATE, rate)
            clip = resample_poly(clip, RATE // common, rate // common)
            clip = np.pad(clip, RATE // 4)
            clip = clip * 32767 + noise.uniform(-NOISE, NOISE, len(clip))
            np.clip(clip, -32768, 32767).astype(np.int16).tofile(
                f"{self.home}/{name}.raw")
        with open(f"{self.home}/clips", "w") as f:
            f.write("\n".join(names) + "\n")
        subprocess.run(
            ["pocketsphinx_batch", "-hmm", f"{MODEL}/en-us",
             "-dict", f"{self.home}/words.dict", "-lm", f"{self.home}/words.lm",
             "-ctl", f"{self.home}/clips", "-cepdir", self.home,
             "-cepext", ".raw", "-adcin", "yes", "-samprate", str(RATE),
             "-remove_noise", "no", "-hyp", f"{self.home}/heard"],
            check=True, capture_output=True)
        heard = {}
        with open(f"{self.home}/heard") as f:
            for line in f:  # words (name score)
                said, of = line.rsplit("(", 1)
                heard[of.split()[0]] = [w.split("(")[0] for w in said.split()]
        for name in names:
            os.unlink(f"{self.home}/{name}.raw")
        return [heard.get(name, []) for name in names]


def distance(a, b):
    """The fewest words put in, left out or changed that make a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(
                row[j] + 1, row[j + 1] + 1, last + (x != y))
    return row[-1]


def share_right(heard, texts):
    """The share of the words of texts that were heard, less those put in."""
    wrong = sum(distance(h, t.split()) for h, t in zip(heard, texts))
    return 1 - wrong / sum(len(t.split()) for t in texts)
