#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the conversations of the acceptance test, by voices, with pictures, noise
and sentences to be refused that no training has, and the answers that are right.

    heldout.py WORK               the large set, into WORK/heldout; with
                                  --seed WORD another one like it: one whose
                                  answers were looked at judges no more
    heldout.py WORK --smoke DIR   the small one of the tree's tests, into DIR

A set is a directory of conversations as `qomni generate` reads them, the media
they name, and expected.json, a list of

    conversation   the file
    kind           what it asks for: see KINDS
    answer         what must be answered, word by word
    voice          in which voice the answer is to be spoken, or null
    hears-video    whether the sound of its video is part of it

The media are real files: WAV, FLAC, Ogg, PNG, JPEG, WebM, Matroska.
"""
import argparse
import json
import os
import random
import re
import subprocess
import tempfile

import numpy as np
import soundfile
from PIL import Image

import pictures
import sound
import world
from checkpoint import SPEC

RATE = 16000
FPS = 10  # of the films
NOISE_DB = 10  # the speech above the noise
VOICES = sorted(SPEC["talker"]["speakers"])

# Sentences to be refused; none is in world.STRANGE_SENTENCES.
STRANGE = """
how tall is the eiffel tower
recommend a film about dinosaurs
what is the population of brazil
buy seven tickets to vienna
my bicycle has a flat tyre
who painted the mona lisa
how many legs has a spider
add tomatoes to the shopping list
is there life on jupiter
describe the taste of cinnamon
when does the pharmacy close
book a flight to barcelona
why do penguins waddle
tell me about quantum physics
what is twelve modulo five
mow the lawn please
explain how engines work
where did i put the umbrella
translate butterfly into german
what does a plumber earn
turn on the dishwasher
lock the cellar
what colour is the dragon
how many elephants are there
where is the pyramid
switch the aquarium pump off
sort these numbers
name three european capitals
how heavy is an anvil
did the postman ring
knit a scarf for grandfather
is chess difficult
calculate the area of a hexagon
what is the cube root of eight
feed the hamster
open the refrigerator
set an alarm for noon
how long does spaghetti boil
which mushrooms are poisonous
hum a melody
""".strip().split("\n")

# kind: (how many in the large set, in the small one)
KINDS = {
    "typed": (160, 3), "typed-follow": (60, 1), "typed-refuse": (40, 1),
    "sum": (120, 2), "switch": (80, 1), "follow": (80, 1),
    "repeat": (40, 1), "spell": (30, 1),
    "refuse": (60, 1), "no-speech": (20, 1),
    "transcribe": (400, 2), "transcribe-noisy": (400, 1),
    "image": (120, 2), "image-alone": (30, 1), "image-voice": (80, 2),
    "video": (40, 1), "video-alone": (20, 0), "video-voice": (30, 0),
    "video-own-voice": (40, 2),
}


def text(words):
    return {"type": "text", "text": words}


def hiss(rng, n):
    """White or pink noise of standard deviation 1."""
    g = np.random.default_rng(rng.getrandbits(32))
    x = np.fft.rfft(g.standard_normal(n))
    if rng.random() < 0.5:
        x /= np.sqrt(np.maximum(np.arange(len(x)), 1))
    x = np.fft.irfft(x, n)
    return x / x.std()


def babble(rng, n):
    """Eight people who talk at the same time, of standard deviation 1."""
    x = np.zeros(n)
    for _ in range(8):
        said = sound.speak(world.draw_utterance(rng),
                           sound.draw_voice(rng, held_out=True))
        x += np.roll(np.resize(said, n), rng.randrange(n)) / said.std()
    return x / x.std()


def grainy(frame):
    """Whether a lossless file of it would be large."""
    return (frame[:, 1:] != frame[:, :-1]).mean() > 0.2


class Book:
    """A set while it is written."""

    def __init__(self, path, small):
        self.path, self.small, self.expected = path, small, []
        os.makedirs(path, exist_ok=True)
        for f in os.listdir(path):  # of a set that was there before
            if re.fullmatch(rf"({'|'.join(KINDS)})-[0-9-]+\.\w+", f):
                os.remove(f"{path}/{f}")

    def write(self, rng, kind, number):
        self.rng, self.kind = rng, kind
        self.number, self.name, self.n_media = number, f"{kind}-{number}", 0
        self.hears_video = False
        messages, answer = getattr(self, kind.replace("-", "_"))(rng)
        with open(f"{self.path}/{self.name}.json", "w") as f:
            json.dump(messages, f, indent=1)
            f.write("\n")
        # In the small set everything speaks, in the large one a third.
        spoken = self.small or len(self.expected) % 3 == 0
        self.expected.append({
            "conversation": f"{self.name}.json", "kind": kind, "answer": answer,
            "voice": VOICES[number % len(VOICES)] if spoken else None,
            "hears-video": self.hears_video})

    def close(self):
        with open(f"{self.path}/expected.json", "w") as f:
            f.write("[\n " + ",\n ".join(map(json.dumps, self.expected))
                    + "\n]\n")

    # --- media ----------------------------------------------------------------

    def file(self, extension):
        self.n_media += 1
        more = "" if self.n_media == 1 else f"-{self.n_media}"
        return f"{self.name}{more}.{extension}"

    def store(self, samples):
        extension = "wav"
        if self.small:
            extension = "flac" if len(self.expected) % 4 == 0 else "ogg"
        name = self.file(extension)
        soundfile.write(f"{self.path}/{name}", samples, RATE)
        return {"type": "audio", "audio": name}

    def speech(self, words, noisy=False):
        """Samples of a voice that no training hears, the loudest at 0.5."""
        rng = self.rng
        x = sound.speak(sound.as_said(rng, words),
                        sound.draw_voice(rng, held_out=True))
        level = x.std() * 10 ** (-NOISE_DB / 20)
        x = np.pad(x, [int(RATE * rng.uniform(0.1, 0.4)) for _ in range(2)])
        if noisy:
            x = x + level * rng.choice((hiss, babble))(rng, len(x))
        return 0.5 * x / np.abs(x).max()

    def say(self, words, noisy=False):
        return self.store(self.speech(words, noisy))

    def show(self, scene):
        frame = pictures.Look(self.rng, scene).frame()
        extension = self.rng.choice(("png", "jpg"))
        if self.small and grainy(frame):
            extension = "jpg"
        name = self.file(extension)
        Image.fromarray(frame).save(f"{self.path}/{name}")
        return {"type": "image", "image": name}

    def film(self, scene, words=None):
        """The scene's motion as WebM or Matroska; somebody says `words`."""
        name = self.file("webm" if self.small
                         else self.rng.choice(("webm", "mkv")))
        rate = 80000 if self.small else 400000
        codec = {"webm": ("vp8enc", "deadline=1", f"target-bitrate={rate}",
                          "!", "queue", "!", "webmmux"),
                 "mkv": ("jpegenc", "quality=90", "!", "queue", "!",
                         "matroskamux")}[name.rsplit(".")[-1]]
        with tempfile.TemporaryDirectory() as tmp:
            frames = np.stack(pictures.clip(self.rng, scene, FPS))
            frames.tofile(f"{tmp}/frames")
            _, height, width, _ = frames.shape
            voice = ()
            if words is not None:
                soundfile.write(f"{tmp}/voice.wav", self.speech(words), RATE)
                voice = ("filesrc", f"location={tmp}/voice.wav", "!",
                         "wavparse", "!", "audioconvert", "!", "vorbisenc",
                         "!", "queue", "!", "mux.")
            subprocess.run(
                ("gst-launch-1.0", "-q", "filesrc", f"location={tmp}/frames",
                 "!", "rawvideoparse", "format=rgb", f"width={width}",
                 f"height={height}", f"framerate={FPS}/1", "!", "videoconvert",
                 "!", *codec, "name=mux", "!", "filesink",
                 f"location={self.path}/{name}", *voice),
                check=True, timeout=600)
        return {"type": "video", "video": name}

    # --- kinds: messages and the answer ---------------------------------------

    def typed(self, rng):
        e = world.draw_exchange(rng, rng.choice(
            ("sum", "sum", "switch", "repeat", "spell")))
        q = e.question
        if rng.random() < 0.2:  # as people type
            q = q[0].upper() + q[1:]
            q += "?" if e.kind == "sum" else "."
        return [{"role": "user", "content": q}], e.answer

    def dialogue(self, rng, content):
        while True:
            exchanges = world.draw_dialogue(rng)
            if exchanges[-1].kind == "follow":
                break
        messages = []
        for e in exchanges:
            messages += [{"role": "user", "content": content(e.question)},
                         {"role": "assistant", "content": e.answer}]
        return messages[:-1], exchanges[-1].answer

    def typed_follow(self, rng):
        return self.dialogue(rng, str)

    def typed_refuse(self, rng):
        q = STRANGE[self.number % len(STRANGE)]
        return [{"role": "user", "content": q}], world.REFUSAL

    def spoken(self, words, answer, *more, noisy=False):
        content = [self.say(words, noisy), *more]
        return [{"role": "user", "content": content}], answer

    def exchange(self, rng):
        e = world.draw_exchange(rng, self.kind)
        return self.spoken(e.question, e.answer)

    sum = switch = repeat = spell = exchange

    def follow(self, rng):
        return self.dialogue(rng, lambda q: [self.say(q)])

    def refuse(self, rng):
        return self.spoken(STRANGE[self.number % len(STRANGE)], world.REFUSAL)

    def no_speech(self, rng):
        n = int(RATE * rng.uniform(1, 3))
        x = hiss(rng, n) * rng.choice((0, 0.003, 0.05))
        return [{"role": "user", "content": [self.store(x)]}], world.REFUSAL

    def transcribe(self, rng, noisy=False):
        words = world.draw_utterance(rng)
        return self.spoken(words, words, text("transcribe"), noisy=noisy)

    def transcribe_noisy(self, rng):
        return self.transcribe(rng, noisy=True)

    def asked(self, medium, answer, *more):
        return [{"role": "user", "content": [medium, *more]}], answer

    def scene(self, rng):
        size = dict(width=320, height=240) if self.small else {}
        return world.draw_scene(rng, **size)

    def image(self, rng):
        scene = self.scene(rng)
        e = world.ask_scene(rng, scene)
        return self.asked(self.show(scene), e.answer, text(e.question))

    def image_alone(self, rng):
        scene = self.scene(rng)
        return self.asked(self.show(scene), world.describe(scene))

    def image_voice(self, rng):
        scene = self.scene(rng)
        e = world.ask_scene(rng, scene)
        return self.asked(self.show(scene), e.answer, self.say(e.question))

    def motion(self, rng):
        size = (320, 240) if self.small else (rng.randrange(224, 481, 4), None)
        return world.draw_motion(rng, *size)

    def video(self, rng):
        scene = self.motion(rng)
        e = world.ask_motion(rng, scene)
        return self.asked(self.film(scene), e.answer, text(e.question))

    def video_alone(self, rng):
        scene = self.motion(rng)
        return self.asked(self.film(scene), world.happens(scene))

    def video_voice(self, rng):
        scene = self.motion(rng)
        e = world.ask_motion(rng, scene)
        return self.asked(self.film(scene), e.answer, self.say(e.question))

    def video_own_voice(self, rng):
        scene = self.motion(rng)
        e = world.ask_motion(rng, scene)
        self.hears_video = True
        return self.asked(self.film(scene, e.question), e.answer)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("--smoke", metavar="DIR")
    parser.add_argument("--seed", metavar="WORD", default="heldout 4")
    args = parser.parse_args()
    assert not any(world.is_of_the_world(s) for s in STRANGE)
    small = args.smoke is not None
    book = Book(args.smoke or os.path.join(args.work, "heldout"), small)
    for kind, counts in KINDS.items():
        for i in range(counts[small]):
            seed = f"{'smoke' if small else args.seed} {kind} {i}"
            book.write(random.Random(seed), kind, i + 1)
        print(f"{kind}: {counts[small]}", flush=True)
    book.close()


if __name__ == "__main__":
    main()
