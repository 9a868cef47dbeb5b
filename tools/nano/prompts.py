# SPDX-License-Identifier: LGPL-2.1-or-later
"""A conversation of the world as the Thinker gets it.

    turns = [([Picture(4, 4, ...), "what do you see"], "one red circle"), ...]
    page = Prompts(nano).lay(turns, system="repeat the words")

gives the ids of the whole conversation, the three positions of every token and
which tokens are to be learnt: the answers and the <|im_end|> after each. Media
stand for themselves by their sizes; where their features go follows from the
ids, row after row, as in the engine. The layout is the published one: the
expanded placeholders, TM-RoPE with 13 positions a second, the sound of a video
merged into its pictures by time.
"""
from dataclasses import dataclass, field
import re

import numpy as np

PER_SECOND = 13  # positions, and audio tokens


@dataclass
class Sound:
    tokens: int
    rows: object = None  # what features() of whoever made it understands
    words: list = field(default_factory=list)  # that can be heard in it


@dataclass
class Picture:
    height: int  # in merged cells
    width: int
    rows: object = None

    @property
    def tokens(self):
        return self.height * self.width


@dataclass
class Video:
    slices: int
    height: int
    width: int
    seconds: float  # of a slice
    rows: object = None
    sound: Sound = None  # its own, used with it

    @property
    def tokens(self):
        return self.slices * self.height * self.width


@dataclass
class Page:
    ids: np.ndarray  # [n]
    learn: np.ndarray  # [n] bool: the token is part of an answer
    places: np.ndarray  # [3, n] float32: time, height, width
    sounds: list = field(default_factory=list)  # in the order of their tokens
    sights: list = field(default_factory=list)


def video_times(frames, fps, wanted=2.0):
    """Indices of the frames that are looked at, an even number of them, and
    the seconds a slice of two then takes."""
    n = min(max(frames / fps * wanted, 4), 768, frames)
    n = max(2, int(n / 2) * 2)
    index = np.linspace(0, frames - 1, n).round().astype(int)
    return index, 2 / (n / frames * fps)


class Prompts:
    def __init__(self, nano):
        self.tokenizer, self.cache = nano.tokenizer, {}
        self.id = {k: nano.id(v) for k, v in dict(
            start="<|im_start|>", end="<|im_end|>", sound="<|audio_pad|>",
            hear="<|audio_start|>", heard="<|audio_end|>",
            picture="<|image_pad|>", video="<|video_pad|>",
            see="<|vision_start|>", seen="<|vision_end|>").items()}
        start = self.id["start"]
        self.newline = self.encode("\n")
        self.opening = {role: [start] + self.tokenizer.encode(role + "\n")
                        for role in ("system", "user", "assistant")}
        self.closing = [self.id["end"]] + self.newline

    def encode(self, text):
        """As the tokenizer does; no token of it goes past a space."""
        ids = []
        for piece in re.findall(r" ?[^ ]+| ", text):
            if piece not in self.cache:
                self.cache[piece] = self.tokenizer.encode(piece)
            ids += self.cache[piece]
        return ids

    def lay(self, turns, system=None):
        """`turns`: (parts of the question, answer) each; without an answer the
        last ends where it would start."""
        ids, learn, places = [], [], []
        page = Page(None, None, None)
        sight = any(isinstance(p, (Picture, Video))
                    for parts, _ in turns for p in parts)
        at = 0  # the next position

        def text(more, learnt=False):
            nonlocal at
            ids.extend(more)
            learn.extend([learnt] * len(more))
            if sight:
                places.append(np.broadcast_to(
                    at + np.arange(len(more), dtype=np.float32),
                    (3, len(more))))
                at += len(more)

        def body(more, where):  # of a medium; where: [3, n], absolute
            ids.extend(more)
            learn.extend([False] * len(more))
            places.append(where.astype(np.float32))

        i = self.id
        if system is not None:
            text(self.opening["system"] + self.encode(system) + self.closing)
        for parts, answer in turns:
            text(self.opening["user"])
            for part in parts:
                if isinstance(part, str):
                    text(self.encode(part))
                elif isinstance(part, Sound):
                    text([i["hear"]] + [i["sound"]] * part.tokens
                         + [i["heard"]])
                    page.sounds.append(part)
                else:
                    page.sights.append(part)
                    sound = getattr(part, "sound", None)
                    text([i["see"]] + ([i["hear"]] if sound else []))
                    if sound:
                        page.sounds.append(sound)
                        more, where, at = self._merge(part, at)
                        body(more, where)
                    else:
                        where = at + cells(part)
                        kind = "video" if isinstance(part, Video) else "picture"
                        body([i[kind]] * part.tokens, where)
                        at = float(where.max()) + 1
                    text(([i["heard"]] if sound else []) + [i["seen"]])
            text(self.closing + self.opening["assistant"])
            if answer is not None:
                text(self.encode(answer) + [i["end"]], learnt=True)
                text(self.newline)
        page.ids = np.array(ids, dtype=np.int64)
        page.learn = np.array(learn)
        page.places = (np.concatenate(places, 1) if sight else np.broadcast_to(
            np.arange(len(ids), dtype=np.float32), (3, len(ids))))
        return page

    def _merge(self, video, at):
        """Pictures and sound of a video by time, a slice before the sound that
        starts with it. The positions after it follow the part that is left
        over at the end: so does the reference."""
        v = cells(video)  # [3, n]
        a = np.arange(video.sound.tokens, dtype=np.float32)
        # A stable sort puts a cell before the sound of the same time.
        order = np.argsort(np.concatenate((v[0], a)), kind="stable")
        where = np.concatenate((v, np.broadcast_to(a, (3, len(a)))), 1)[:, order]
        is_sound = order >= v.shape[1]
        ids = np.where(is_sound, self.id["sound"], self.id["video"]).tolist()
        left = len(ids) - int(np.argmin(is_sound[::-1] == is_sound[-1]))
        return ids, at + where, float(at + where[:, left:].max()) + 1


def cells(sight):
    """Positions of the cells of a picture or video, from 0: [3, n]."""
    if isinstance(sight, Video):
        step = np.float32(sight.seconds)
        t = np.arange(sight.slices, dtype=np.float32) * step * PER_SECOND
    else:
        t = np.zeros(1, dtype=np.float32)
    n = (len(t), sight.height, sight.width)
    h = np.arange(sight.height, dtype=np.float32)
    w = np.arange(sight.width, dtype=np.float32)
    return np.stack([np.broadcast_to(x, n).reshape(-1) for x in
                     (t[:, None, None], h[:, None], w)])
