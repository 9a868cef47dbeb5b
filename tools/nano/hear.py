#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Teaches the audio tower to answer sound with the vectors of the words said.

    hear.py WORK [STEPS]    WORK/sound.* (made if missing) -> WORK/hear.pt

Thirteen times a second the tower gives a vector. It shall be the vector of a
word where a word was recognised, <|box_start|>'s where words are spoken that
are not of the world, and <|audio_pad|>'s elsewhere. Which word was said when
is found by CTC: the likelihood of a class is that of its vector under a normal
distribution around the tower's vector, so that what is likely is also what is
near. CTC takes long to find out where the words are; therefore the first steps
hear single words between silences, where that is known.

The convolutions see one second at a time, and nothing tells the layers after
them which second follows which. A word that is cut by the end of a second can
only be put together by who knows the order: later the Thinker, here a reader,
some convolutions over the tower's vectors that are thrown away in the end. What
the reader makes of the vectors is what must be right first of all; that the
vectors alone are right comes second, and that they are near those of words
third.

    encode(tower, clips)    -> for the features of every clip, its vectors
"""
import math
import random
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import sound
import train
import world
from checkpoint import Nano
from muon import Muon
from recogniser import distance

STEPS = 18000
RATE = 2e-3
SECONDS = 64  # of sound in a step
KAPPA = 0.25  # inverse variance of a vector around its class's
ALONE, PULL = 0.4, 0.3  # weights of the second and the third error
EASY = 400  # steps that hear single words at known times
WINDOW = 104  # tokens that see each other
CHUNK = 100  # frames that the convolutions see at once: 13 tokens


# --- the tower ----------------------------------------------------------------

def n_tokens(frames):
    return 13 * (frames // CHUNK) + (frames % CHUNK + 7) // 8


def _stem(tower, x):
    """[n, 128, frames] of chunks -> [n, tokens, width]"""
    x = F.gelu(tower.conv2d1(x[:, None]))
    x = F.gelu(tower.conv2d2(x))
    x = F.gelu(tower.conv2d3(x))
    x = tower.conv_out(x.permute(0, 3, 1, 2).flatten(2))
    return x + tower.positional_embedding.positional_embedding[:x.shape[1]]


def _stems(tower, clips, lengths):
    """Features of clips -> what the layers are given [n, width], clip by
    clip. Chunks are padded to a whole one; clips below one are not."""
    device = tower.conv_out.weight.device
    chunks = [-(-c.shape[1] // CHUNK) if c.shape[1] >= CHUNK else 0
              for c in clips]
    x = torch.zeros(sum(chunks), 128, CHUNK)
    at, short = 0, []
    for c, n in zip(clips, chunks):
        whole, rest = divmod(c.shape[1], CHUNK)
        if not n:
            short.append(_stem(tower, c[None].to(device))[0])
            continue
        x[at:at + whole] = (c[:, :whole * CHUNK].reshape(128, whole, CHUNK)
                            .transpose(0, 1))
        if rest:
            x[at + whole, :, :rest] = c[:, whole * CHUNK:]
        at += n
    parts = [_stem(tower, x.to(device)).flatten(0, 1)] if at else []
    x = torch.cat(parts + short)
    source, begin, begin_short = [], 0, 13 * at
    for n, length in zip(chunks, lengths):
        if n:
            source.append(torch.arange(begin, begin + length))
            begin += 13 * n
        else:
            source.append(torch.arange(begin_short, begin_short + length))
            begin_short += length
    return x.index_select(0, torch.cat(source).to(device))


def _pack(lengths):
    """Cuts clips into windows and packs those into rows of WINDOW tokens ->
    the place of every token in the rows, laid end to end; which tokens see
    which [rows, 1, WINDOW, WINDOW]."""
    room, places, owners = [], [], []
    for length in lengths:
        for begin in range(0, length, WINDOW):
            n = min(WINDOW, length - begin)
            row = next((r for r, free in enumerate(room) if free >= n), None)
            if row is None:
                row = len(room)
                room.append(WINDOW)
            at = row * WINDOW + WINDOW - room[row]
            places.append(torch.arange(at, at + n))
            owners.append(torch.full((n,), len(owners)))
            room[row] -= n
    places = torch.cat(places)
    owner = torch.full((len(room) * WINDOW,), -1)
    owner[places] = torch.cat(owners)
    owner = owner.view(-1, 1, WINDOW)
    return places, owner[:, :, :, None] == owner[:, :, None, :]


def forward(tower, clips):
    """Features [128, F] of clips -> all their vectors [n, 160], clip by clip:
    what transformers computes for every clip alone, in few operations."""
    device = tower.conv_out.weight.device
    lengths = [n_tokens(c.shape[1]) for c in clips]
    x = _stems(tower, clips, lengths)
    places, seen = (t.to(device) for t in _pack(lengths))
    x = torch.zeros(len(seen) * WINDOW, x.shape[1], device=device).index_copy(
        0, places, x).view(len(seen), WINDOW, -1)
    for layer in tower.layers:
        a, y = layer.self_attn, layer.self_attn_layer_norm(x)
        q, k, v = (p(y).unflatten(2, (a.num_heads, -1)).transpose(1, 2)
                   for p in (a.q_proj, a.k_proj, a.v_proj))
        y = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(
            ~seen, -1e4).softmax(-1).to(v.dtype) @ v
        x = x + a.out_proj(y.transpose(1, 2).flatten(2))
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    x = x.flatten(0, 1).index_select(0, places)
    return tower.proj2(F.gelu(tower.proj1(tower.ln_post(x))))


def encode(tower, clips, frames=12000):
    """Features of clips -> for every clip its vectors [tokens, 160]."""
    ret, batch, total = [], [], 0
    for i, clip in enumerate(clips):
        batch.append(clip)
        total += clip.shape[1]
        if total > frames or i + 1 == len(clips):
            with torch.no_grad():
                out = forward(tower, batch)
            ret += out.split([n_tokens(f.shape[1]) for f in batch])
            batch, total = [], 0
    return ret


def initialise(tower):
    """Variance is kept through the convolutions and added in small parts by
    the layers."""
    g = torch.Generator().manual_seed(1)
    for name, p in tower.named_parameters():
        if p.dim() == 1:
            p.data.fill_(float("norm" in name or "ln_" in name)
                         if name.endswith("weight") else 0.0)
            continue
        scale = 1 / math.sqrt(p[0].numel())
        if "conv2d" in name or "fc1" in name or "proj1" in name:
            scale *= math.sqrt(2)
        if "out_proj" in name or "fc2" in name:
            scale /= math.sqrt(2 * len(tower.layers))
        p.data.copy_(scale * torch.randn(p.shape, generator=g))
    return tower


class Reader(nn.Module):
    """Vectors of clips [clips, tokens, n] -> better ones, from eight tokens to
    either side."""

    def __init__(self, n, wide=320, kernel=9, blocks=2):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm": nn.LayerNorm(n), "up": nn.Linear(n, 2 * wide),
            "mix": nn.Conv1d(wide, wide, kernel, padding=kernel // 2,
                             groups=wide),
            "down": nn.Linear(wide, n)}) for _ in range(blocks))
        for b in self.blocks:
            nn.init.zeros_(b["down"].weight)
            nn.init.zeros_(b["down"].bias)

    def forward(self, x):
        for b in self.blocks:
            y = F.glu(b["up"](b["norm"](x)))
            y = F.gelu(b["mix"](y.transpose(1, 2))).transpose(1, 2)
            x = x + b["down"](y)
        return x


# --- classes ------------------------------------------------------------------

class Classes:
    """Class 0 is no word, class 1 an unknown one."""

    def __init__(self, nano):
        self.names = ["", sound.UNKNOWN] + list(world.WORDS)
        self.index = {w: i for i, w in enumerate(self.names)}
        self.vectors = torch.stack(
            [nano.words[nano.id("<|audio_pad|>")],
             nano.words[nano.id("<|box_start|>")]]
            + [nano.word(w) for w in world.WORDS]).to(train.device())
        self.bias = -0.5 * KAPPA * self.vectors.square().sum(1)

    def logits(self, vectors):
        return F.linear(vectors, KAPPA * self.vectors, self.bias)

    def words(self, vectors):
        """What the vectors of a clip say, runs of unknown words as one."""
        ret, last = [], 0
        for i in self.logits(vectors).argmax(1).tolist():
            if i and i != last and not (i == 1 and ret[-1:] == [self.names[1]]):
                ret.append(self.names[i])
            last = i
        return ret


# --- training -----------------------------------------------------------------

def batch(draw, rng):
    """Clips and their targets, as many as SECONDS hold."""
    clips, targets, total = [], [], 0
    while total < SECONDS * 100:
        f, t = draw(rng)
        total += f.shape[1]
        clips.append(f)
        targets.append(t)
    return clips, targets


class Words:
    """Single words of many voices, for the first steps."""

    def __init__(self, classes):
        rng = random.Random("words")
        self.classes = classes
        self.said = []  # for every class but the first, its samples
        for word in classes.names[1:]:
            self.said.append([
                sound.speak(sound.invent(rng) if word == sound.UNKNOWN
                            else word, sound.draw_voice(rng))
                for _ in range(200 if word == sound.UNKNOWN else 40)])

    def draw(self, rng):
        """Features of some words with pauses, and the class of every token: a
        word's in the last half of it."""
        parts, spans, at = [], [], 0
        for _ in range(rng.randint(1, 6)):
            pause = int(rng.uniform(0, 0.4) * sound.RATE)
            k = rng.randrange(len(self.said))
            word = rng.choice(self.said[k])
            parts += [np.zeros(pause, np.float32), word]
            at += pause + len(word)
            spans.append((k + 1, at - len(word) // 2, at))
        samples = np.concatenate(parts)
        samples = samples / abs(samples).max() * 10 ** rng.uniform(-1, 0)
        samples = sound.add_noise(rng, samples.astype(np.float32),
                                  rng.choice(sound.NOISES), rng.uniform(10, 50))
        f = sound.features(samples)
        target = torch.zeros(n_tokens(f.shape[1]), dtype=torch.long)
        for k, begin, end in spans:
            begin, end = (round(x * 13 / sound.RATE) for x in (begin, end))
            target[begin:max(begin + 1, end)] = k
        return f, target

    def error(self, tower, rng):
        clips, targets = batch(self.draw, rng)
        with torch.autocast(train.device().type, torch.bfloat16):
            logits = self.classes.logits(forward(tower, clips).float())
        return F.cross_entropy(logits, torch.cat(targets).to(logits.device))


class Examples:
    def __init__(self, clips, classes):
        self.clips, self.classes = clips, classes

    def draw(self, rng):
        """Features and classes of one clip; sometimes of two in a row."""
        i = rng.randrange(len(self.clips))
        samples = self.clips.samples(i)
        text = self.clips.said[i]["text"]
        if rng.random() < 0.12:
            i = rng.randrange(len(self.clips))
            samples = np.concatenate(
                (sound.surround(rng, samples), self.clips.samples(i)))
            text += " " + self.clips.said[i]["text"]
        f = sound.features(sound.spoil(rng, samples))
        if rng.random() < 0.5:
            f = sound.bend(rng, f)
        for _ in range(rng.randint(0, 2)):  # a little of it is not there
            at, n = rng.randrange(f.shape[1]), rng.randint(1, 12)
            f[:, at:at + n] = float(f.min())
        if rng.random() < 0.5:
            at = rng.randrange(120)
            f[at:at + rng.randint(1, 12)] = float(f.min())
        return f, [self.classes.index[w]
                   for w in sound.hear_words(text, runs=False)]


def laid_out(values, lengths):
    """[n, …] of clips end to end -> [clips, tokens, …]"""
    return nn.utils.rnn.pad_sequence(values.split(lengths), batch_first=True)


def ctc(chances, lengths, targets):
    """The CTC error per word: log chances [clips, tokens, classes], the tokens
    and the classes of every clip."""
    error = F.ctc_loss(
        chances.transpose(0, 1),
        torch.tensor(sum(targets, []), dtype=torch.long,
                     device=chances.device),
        torch.tensor(lengths), torch.tensor([len(t) for t in targets]),
        reduction="sum", zero_infinity=True)
    return error / max(1, sum(map(len, targets)))


def errors(tower, reader, classes, clips, targets):
    """The CTC error per word of what the reader reads, that of the vectors
    alone, and their squared distance, per component, to the mean of the likely,
    where there is no word and where there is one."""
    lengths = [n_tokens(c.shape[1]) for c in clips]
    with torch.autocast(train.device().type, torch.bfloat16):
        out = forward(tower, clips).float()
        read = reader(laid_out(out, lengths)).float()
    chances = classes.logits(out).log_softmax(1)
    likely = chances.detach().exp()
    far = (out - likely @ classes.vectors).square().mean(1)
    spoken = 1 - likely[:, 0]
    pull = far.mean() + (far * spoken).sum() / spoken.sum().clamp(min=1)
    return (ctc(classes.logits(read).log_softmax(2), lengths, targets),
            ctc(laid_out(chances, lengths), lengths, targets), pull / 2)


class Exam:
    """Utterances of voices that were never trained on, in two rooms."""

    def __init__(self, work, count=200):
        clips = sound.Clips(work, "sound-far")
        rng = random.Random("exam")
        self.said, self.clean, self.noisy = [], [], []
        for i in range(count):
            self.said.append(clips.said[i]["heard"])
            s = sound.surround(rng, clips.samples(i), 0.5)
            self.clean.append(sound.features(s))
            self.noisy.append(sound.features(sound.add_noise(
                rng, s, rng.choice(("white", "pink", "babble")), 10)))

    def rates(self, tower, reader, classes):
        """Word error rates of what is read; and of the utterances with words
        that are not of the world, the part where that is noticed."""
        ret = {}
        for room, clips in (("", self.clean), ("_10dB", self.noisy)):
            with torch.no_grad():
                heard = [classes.words(reader(v[None])[0])
                         for v in encode(tower, clips)]
            ret["word_error_rate" + room] = (
                sum(map(distance, self.said, heard))
                / sum(map(len, self.said)))
            strange = [h for s, h in zip(self.said, heard)
                       if sound.UNKNOWN in s]
            ret["strange_noticed" + room] = (
                sum(sound.UNKNOWN in h for h in strange) / len(strange))
        return ret


def main(work, steps=STEPS):
    train.prepare()
    train.first(lambda: sound.main(work))
    nano = train.first(lambda: Nano(work))
    steps = int(steps)
    classes = Classes(nano)
    examples = Examples(sound.Clips(work), classes)
    exam = Exam(work)
    tower = initialise(nano.new("hear"))
    nano.begin("hear", tower)
    torch.manual_seed(3)
    both = nn.ModuleDict({"tower": tower, "reader": Reader(
        classes.vectors.shape[1])}).to(train.device())
    steady = train.Steady(both)
    matrices = [p for p in both.parameters() if p.dim() == 2]
    others = [p for p in both.parameters() if p.dim() != 2]
    run = train.Run(nano, "hear", {"both": both, "steady": steady.module},
                    steps, warmup=200, lr=RATE,
                    optimizer=Muon(matrices, others, RATE))
    words = None
    for step in run:
        if step < EASY:
            words = words or Words(classes)
            run.learn(words.error(tower, run.rng(step)))
        else:
            read, alone, pull = errors(*both.values(), classes, *batch(
                examples.draw, run.rng(step)))
            run.learn(read + ALONE * alone + PULL * pull,
                      read=read, alone=alone, pull=pull)
        steady.follow(step)
        if run.done % 500 == 0 and run.done < run.steps:
            keep(nano, run, steady, exam, classes)
    keep(nano, run, steady, exam, classes)


def keep(nano, run, steady, exam, classes):
    """Saves the steady weights and tells how good they are."""
    if train.rank():
        return
    nano.save("hear", steady.module["tower"].state_dict())
    rates = exam.rates(*steady.module.values(), classes)
    print(f"hear {run.done}  " + "  ".join(
        f"{k} {v:.4f}" for k, v in rates.items()), flush=True)
    train.report(nano, "hear", steps=run.done, **rates)


if __name__ == "__main__":
    main(*sys.argv[1:])
