# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sounds, pictures and videos of the Thinker's lessons, as the towers give
them.

    Imitated(nano)              what towers should give, of the word vectors
    Recorded(nano, pool, rate)  what the trained towers give, of a pool, for
                                the part `rate` of what is asked for; the rest
                                imitated
    pool(nano, name)            -> utterances and drawings through the towers
    features(nano, media, g)    -> the rows of all these

Both kinds offer the same: sound(rng, text), picture(rng) and video(rng); and
words of which there are recordings: an exchange, spoken(rng, kind) or
follow(rng, c), or an utterance(rng).
"""
from dataclasses import dataclass
import hashlib
import os
import random

import numpy as np
import torch

import hear
import pictures
import prompts
import see
import sound
import world
from prompts import Picture, Sound, Video

LEVELS = 2  # of DeepStack
PER_SECOND = prompts.PER_SECOND
# Every sentence is recorded twice, in another room and by another throat.
POOLS = {"sound": dict(sounds=114000, silences=500, pictures=12000,
                       videos=2000),
         "sound-far": dict(sounds=560, silences=40, pictures=200, videos=60)}
SPOILT = {"sound": (0, 0.5, 1, 1), "sound-far": (0,)}
NUMBERS = {world.say(n): n for n in range(-world.LARGEST, world.LARGEST + 1)}


@dataclass
class Sketch:
    """Features as sums of weighted word vectors: row, token id, weight."""
    n: int
    rows: list
    ids: list
    weights: list
    noise: float
    deep: float = 1.0  # how much of it the DeepStack levels carry


class Imitated:
    def __init__(self, nano):
        self.tokenizer = nano.tokenizer
        self.blank = nano.id("<|audio_pad|>")
        self.strange = nano.id("<|box_start|>")
        self.empty = nano.id("<|image_pad|>")
        self.x, self.y = (nano.id(f"<|object_ref_{e}|>")
                          for e in ("start", "end"))
        self.said = {}

    def _word(self, w):
        if w not in self.said:
            self.said[w] = (self.tokenizer.encode(" " + w)
                            if w in world.WORDS else [self.strange])
        return self.said[w]

    # --- sounds ---------------------------------------------------------------

    def spoken(self, rng, kind):
        return world.draw_exchange(rng, kind)

    def follow(self, rng, c):
        """A question that goes on from c; None where there is no recording
        of one."""
        op, d = rng.choice(("plus", "minus")), rng.randint(0, 50)
        return going_on(c, op, world.say(d))

    def utterance(self, rng):
        if rng.random() < 0.4:
            return sound.draw_hard(rng)[1]
        return world.draw_utterance(rng)

    def sound(self, rng, text, least=0):
        """Somebody says the text, in `least` tokens or more. A word is heard
        in one token or two, weakly at times, and nothing in the others."""
        made = Sketch(0, [], [], [], rng.choice((0.02, 0.08, 0.15, 0.22)))
        n = rng.randint(0, 10)
        gap = rng.choice((1, 2, 3))  # a slow speaker leaves more
        strength = rng.uniform(0.7, 1.1)
        peaks = {}  # token: (word, weight)
        before = None
        for w in sound.hear_words(text):
            n += rng.randint(0, gap) + (w == before)
            long = 2 if rng.random() < 0.4 else 1
            for k in range(n, n + long):
                weak = rng.random() < 0.12
                peaks[k] = w, strength * (rng.uniform(0.4, 0.7) if weak
                                          else rng.uniform(0.8, 1.1))
            n += long + rng.randint(0, gap + min(3, len(w) // 3))
            before = w
        made.n = max(n + rng.randint(0, 8), least, 2)
        for k in range(made.n):
            rest = rng.uniform(0.8, 1.1)
            if k in peaks:
                w, weight = peaks[k]
                for i in self._word(w):
                    made.rows.append(k)
                    made.ids.append(i)
                    made.weights.append(weight)
                rest = max(0.0, 1 - weight) * rng.uniform(0.5, 1)
            made.rows.append(k)
            made.ids.append(self.blank)
            made.weights.append(rest)
        return Sound(made.n, made, sound.hear_words(text))

    # --- sights ---------------------------------------------------------------

    def _cell(self, made, rng, sight, first, thing, x, y):
        """A thing with its centre at x, y, in the cell that holds it; near a
        border the next one has a part of it. `first`: the row of the slice's
        first cell."""
        ids = [self._word(w)[0] for w in (
            thing.colour, thing.shape, world.ROWS[min(2, int(y * 3))],
            world.COLUMNS[min(2, int(x * 3))])] + [self.x, self.y]
        weights = [1, 1, 1, 1, 2 * x - 1, 2 * y - 1]
        for r, p in shared(rng, y, sight.height):
            for c, q in shared(rng, x, sight.width):
                scale = p * q * rng.uniform(0.75, 1.1)
                k = first + r * sight.width + c
                made.taken[k] = made.taken.get(k, 0) + p * q
                made.rows += [k] * 6
                made.ids += ids
                made.weights += [scale * w for w in weights]

    def _sketch(self, rng, n):
        made = Sketch(n, [], [], [], rng.choice((0.02, 0.08, 0.15, 0.2)),
                      rng.choice((0.0, rng.uniform(0.3, 1), 1.0, 1.0)))
        made.taken, made.scale = {}, rng.uniform(0.8, 1.1)
        return made

    def _rest(self, made):
        for k in range(made.n):
            left = 1 - made.taken.get(k, 0)
            if left > 0:
                made.rows.append(k)
                made.ids.append(self.empty)
                made.weights.append(left * made.scale)
        return made

    def picture(self, rng):
        """A scene and its picture."""
        scene = world.draw_scene(rng)
        grid = pictures.merged_grid(scene.width, scene.height)
        if rng.random() < 0.5:  # small ones teach the same for less
            grid = [max(3, g // 2) for g in grid]
        sight = Picture(*grid)
        made = self._sketch(rng, sight.tokens)
        for t in scene.things:
            self._cell(made, rng, sight, 0, t, t.x, t.y)
        sight.rows = self._rest(made)
        return scene, sight

    def video(self, rng):
        """A scene with a motion and its video, without sound."""
        scene = world.draw_motion(rng)
        at, seconds = sampled(rng, scene)
        grid = pictures.merged_grid(scene.width, scene.height, pictures.VIDEO)
        if rng.random() < 0.8:
            by = rng.choice((2, 2, 3))
            grid = [max(3, g // by) for g in grid]
        sight = Video(len(at) // 2, *grid, seconds)
        made = self._sketch(rng, sight.tokens)
        blur = rng.uniform(0, 0.03)
        for k in range(sight.slices):
            x, y = (min(0.999, max(0, p + rng.gauss(0, blur))) for p in
                    world.place_at(scene, (at[2 * k] + at[2 * k + 1]) / 2))
            self._cell(made, rng, sight, k * sight.height * sight.width,
                       scene.things[0], x, y)
        sight.rows = self._rest(made)
        return scene, sight


def going_on(c, op, said):
    """The exchange "and plus three" after a sum that came to c; None if it
    leaves the world."""
    e = c + NUMBERS[said] * (1 if op == "plus" else -1)
    if abs(e) > world.LARGEST:
        return None
    return world.Exchange("follow", f"and {op} {said}",
                          f"{world.say(c)} {op} {said} is {world.say(e)}")


def shared(rng, at, n):
    """Which of n cells in a row a centre belongs to, and how much of it."""
    at = min(max(at, 0), 0.9999) * n
    k, band = int(at), rng.uniform(0.01, 0.06)
    for other, off in ((k - 1, at - k), (k + 1, k + 1 - at)):
        if off < band and 0 <= other < n:
            part = 0.5 - off / (2 * band)
            return (other, part), (k, 1 - part)
    return ((k, 1.0),)


def sampled(rng, scene):
    """When the frames that are looked at were taken, as parts of the time, and
    the seconds of a slice of two."""
    fps = rng.choice((8, 10, 12, 15, 25, 30))
    total = round(scene.seconds * fps)
    index, seconds = prompts.video_times(total, fps)
    return index / max(1, total - 1), seconds


def features(nano, media, g, deep=False):
    """Rows of all media after each other, [n, hidden], and with `deep` those
    of the DeepStack levels, [levels, n, hidden]."""
    n = sum(m.tokens for m in media)
    rows, ids, weights, noise, share = [], [], [], [], []
    real, at = [], 0
    for m in media:
        made = m.rows
        if isinstance(made, Sketch):
            rows.append(np.array(made.rows) + at)
            ids += made.ids
            weights += made.weights
            noise.append(np.full(made.n, made.noise, np.float32))
            share.append(np.full(made.n, made.deep, np.float32))
        else:
            real.append((at, made))
            noise.append(np.zeros(m.tokens, np.float32))
            share.append(np.zeros(m.tokens, np.float32))
        at += m.tokens
    x = torch.zeros(n, nano.words.shape[1])
    if rows:
        x.index_add_(0, torch.from_numpy(np.concatenate(rows)),
                     nano.words[ids] * torch.tensor(
                         weights, dtype=torch.float32)[:, None])
    noise = torch.from_numpy(np.concatenate(noise))[:, None]
    levels = None
    if deep:
        share = torch.from_numpy(np.concatenate(share))[:, None]
        levels = torch.stack([
            share * (x + (0.1 + noise) * torch.randn(x.shape, generator=g))
            for _ in range(LEVELS)])
    x += noise * torch.randn(x.shape, generator=g)
    for at, made in real:  # [tokens, hidden] or [1 + levels, tokens, hidden]
        m = made.shape[-2]
        x[at:at + m] = made if made.dim() == 2 else made[0]
        if deep:
            levels[:, at:at + m] = made[1:]
    return x, levels


# --- through the towers -------------------------------------------------------

class Recorded(Imitated):
    """Media of a pool for the part `rate` of what is asked for."""

    def __init__(self, nano, pool, rate):
        super().__init__(nano)
        self.pool, self.rate = pool, rate
        self.texts, self.kinds = {}, {}
        for s in pool["sounds"]:
            self.texts.setdefault(s["text"], []).append(s)
            self.kinds.setdefault(s["kind"], []).append(s)
            if s["kind"] != "none" and sound.UNKNOWN not in s["heard"]:
                self.kinds.setdefault("known", []).append(s)
            words = s["text"].split(" ", 2)
            if (words[:2] in (["and", "plus"], ["and", "minus"])
                    and NUMBERS.get(words[-1], -1) in range(51)):
                self.kinds.setdefault("follow", []).append(s)

    def spoken(self, rng, kind):
        if kind not in self.kinds or rng.random() > self.rate:
            return super().spoken(rng, kind)
        s = rng.choice(self.kinds[kind])
        return world.Exchange(kind, s["text"], s["answer"])

    def follow(self, rng, c):
        if rng.random() > self.rate:
            return super().follow(rng, c)
        _, op, said = rng.choice(self.kinds["follow"])["text"].split(" ", 2)
        return going_on(c, op, said)

    def utterance(self, rng):
        if rng.random() > self.rate:
            return super().utterance(rng)
        return rng.choice(self.kinds["known"])["text"]

    def sound(self, rng, text, least=0):
        if text not in self.texts or rng.random() > max(self.rate, 0.9):
            return super().sound(rng, text, least)
        s = rng.choice(self.texts[text])
        return Sound(len(s["rows"]), s["rows"], s["heard"])

    def picture(self, rng):
        if rng.random() > self.rate:
            return super().picture(rng)
        p = rng.choice(self.pool["pictures"])
        return p["scene"], Picture(*p["grid"][1:], p["rows"])

    def video(self, rng):
        if rng.random() > self.rate:
            return super().video(rng)
        p = rng.choice(self.pool["videos"])
        return p["scene"], Video(*p["grid"], p["seconds"], p["rows"])


def pool(nano, name):
    """{"sounds", "pictures", "videos"} of the towers there are, kept in a file
    until a tower or a number changes. `name` is that of the recordings, too:
    what is named sound-far are voices and pictures that nothing is trained on.
    """
    path, n = nano.path(f"pool-{name}.pt"), POOLS[name]
    made = torch.load(path, weights_only=False) if os.path.exists(path) else {}
    heard = [_mark(nano.path("hear.pt")), n["sounds"], n["silences"]]
    seen = [_mark(nano.path("see.pt")), n["pictures"], n["videos"]]
    if made.get("heard") != heard:
        made["sounds"] = _record(nano, name, n["sounds"], n["silences"])
        made["heard"] = heard
        _keep(made, path)
    if made.get("seen") != seen:
        made["pictures"] = _draw(nano, name, "picture", n["pictures"])
        made["videos"] = _draw(nano, name, "video", n["videos"])
        made["seen"] = seen
        _keep(made, path)
    return made


def _keep(made, path):
    torch.save(made, path + ".new")
    os.replace(path + ".new", path)


def _mark(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def _record(nano, name, count, silences):
    tower = nano.new("hear")
    tower.load_state_dict(nano.load("hear"))
    tower.eval()
    clips = sound.Clips(nano.work, name)
    order = list(range(len(clips)))
    random.Random(name).shuffle(order)
    made = []
    for first in range(0, count + silences, 200):
        some, found = [], []
        for k in range(first, min(first + 200, count + silences)):
            rng = random.Random(f"{name} {k}")
            if k < silences:
                said = dict(kind="none", text="", answer="", heard=[])
                g = np.random.default_rng(k)
                x = g.standard_normal(int(sound.RATE * rng.uniform(0.3, 5)))
                x *= rng.choice((1e-4, 1e-3, 0.01))
                kind = rng.choice(sound.NOISES[:-1])
                x = sound.add_noise(rng, x, kind, rng.uniform(-20, 10))
                x = (x / max(1, np.abs(x).max())).astype(np.float32)
                if rng.random() < 0.1:
                    x[:] = 0
            else:
                i = order[(k - silences) % len(order)]
                said = {key: clips.said[i][key]
                        for key in ("kind", "text", "answer", "heard")}
                most = rng.choice(SPOILT[name])
                x = sound.spoil(rng, clips.samples(i), most)
                if said["kind"] == "ask" and rng.random() < 0.3:
                    x = np.pad(x, (0, int(sound.RATE * rng.uniform(0, 3))))
            f = sound.features(x)
            if k >= silences and rng.random() < 0.5 * most:
                f = sound.bend(rng, f)
            some.append(said)
            found.append(f)
        for said, rows in zip(some, hear.encode(tower, found)):
            made.append(dict(said, rows=rows.bfloat16().clone()))
        print(f"{name}: {len(made)} sounds", flush=True)
    return made


def _draw(nano, name, kind, count):
    tower = nano.new("see")
    tower.load_state_dict(nano.load("see"))
    tower.eval()
    made = []
    for k in range(count):
        rng = random.Random(f"{name} {kind} {k}")
        seconds = 0.0
        if kind == "picture":
            scene = world.draw_scene(rng)
            frames = [pictures.Look(rng, scene).frame()]
        else:
            scene = world.draw_motion(rng)
            at, seconds = sampled(rng, scene)
            look = pictures.Look(rng, scene)
            frames = [look.frame(pictures.places_at(scene, t)) for t in at]
        patches, (t, h, w) = pictures.prepare(
            frames, pictures.PICTURE if kind == "picture" else pictures.VIDEO)
        (cells,), (deep,) = see.encode(tower, [patches], [(t, h, w)])
        made.append(dict(scene=scene, seconds=seconds, grid=(t, h // 2, w // 2),
                         rows=torch.stack([cells, *deep]).bfloat16()))
        if k % 200 == 199:
            print(f"{name}: {len(made)} {kind}s", flush=True)
    return made
