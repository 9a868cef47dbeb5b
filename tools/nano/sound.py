#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What qomni-nano learns to hear from: spoken utterances, spoilt utterances,
and the features of both.

    sound.py WORK           WORK/sound.i16, .json and WORK/sound-far.i16, .json

    draw_voice(rng)         -> Voice, any; with held_out one never trained on
    speak(text, voice)      -> samples, 16 kHz, float32
    spoil(rng, samples)     -> the same utterance in a worse room
    features(samples)       -> [128, F], what WhisperFeatureExtractor makes
    bend(rng, features)     -> the same said by somebody else
    Clips(work)             -> the utterances that the command left, clean

The voices are espeak-ng's (its English accents and its variants at many rates
and pitches) and those of flite, Festival and SVOX Pico, which are built from
recordings: whoever has only heard espeak-ng and flite takes every third word of
Pico's wrongly. One flite voice, the British one of Pico and a fifth of the
variants are held out: what is heard of those was never trained on. Clean
utterances are made once, spoilt ones are made of them again and again.
"""
import ctypes
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import numpy as np
import scipy.fft
import soundfile
import soxr
import torch
import ttspico

import world

RATE = 16000
UTTERANCES, FAR_UTTERANCES = 57000, 600
SHARD = 1000  # utterances made at a time

ACCENTS = ("en-us en en-gb-scotland en-gb-x-rp en-gb-x-gbclan "
           "en-gb-x-gbcwmd en-029 en-us-nyc").split()
VARIANTS = """
Alex Alicia Andrea Andy Denis Diogo Gene Gene2 Henrique Hugo Lee Marco Michael
Mr_serious Nguyen RicishayMax RicishayMax2 adam antonio aunty benjamin boris
caleb david ed edward f1 f3 f4 grandma gustave iven iven2 iven4 kaukovalta klatt
klatt2 klatt4 linda m1 m2 m4 m5 m6 m8 marcelo max michel miguel norbert pablo
pedro robert shelby steph steph3 travis victor zac
""".split()
ODD_VARIANTS = """
AnxiousAndy Demonic Storm Tweaky UniRobot anikaRobot announcer croak fast
klatt5 klatt6 robosoft robosoft2 robosoft4 robosoft5 whisper whisperf
""".split()
FAR_VARIANTS = """
Annie Jacky Mario Mike RicishayMax3 anika belinda edward2 f2 f5 grandpa iven3
john klatt3 m3 m7 paul quincy rob sandro steph2
""".split()
FLITE, FAR_FLITE = ("cmu_us_kal16", "cmu_us_rms", "cmu_us_slt"), "cmu_us_awb"
FESTIVAL = "cmu_us_slt_arctic_hts", "ked_diphone"
PICO, FAR_PICO = "en-US", "en-GB"

# Words that are not of the world but sound like one that is. "to" does only
# where nothing follows it.
HOMOPHONES = {"too": "two", "their": "there", "no": "know", "write": "right",
              "wear": "where", "won": "one", "eye": "i", "sea": "see",
              "oh": "zero"}
UNKNOWN = "?"

FASTEST = 6  # words per second that anybody says


# --- words --------------------------------------------------------------------

def hear_words(text, runs=True):
    """The words that can be heard in a text: those of the world, and "?" for
    others: one for every run of them, or for every one."""
    ret = []
    for word in text.split():
        word = HOMOPHONES.get(word, word)
        if word not in world.WORDS:
            word = UNKNOWN
        if not runs or word != UNKNOWN or ret[-1:] != [UNKNOWN]:
            ret.append(word)
    return ret


def as_said(rng, text):
    """Digits in a row as people say them: "four oh seven"."""
    words = text.split()
    if rng.random() < 0.4:
        for k, w in enumerate(words):
            if w == "zero" and any(n in world.DIGITS + ["oh"] for n in
                                   words[max(0, k - 1):k] + words[k + 1:k + 2]):
                words[k] = "oh"
    return " ".join(words)


def invent(rng):
    """A word that nobody knows, of two or three syllables."""
    first = "b bl br d dr f fl g gr h j k kl l m n p pl r s sk sm st t tr v w z"
    return "".join(rng.choice(first.split())
                   + rng.choice("a e i o u ai ee oo ow".split())
                   + rng.choice(("", "", "l", "m", "n", "p", "s", "t", "k"))
                   for _ in range(rng.randint(2, 3)))


def _draw_refusal(rng):
    """A question with words that are not of the world and can be told from
    those that are."""
    while True:
        text = world.draw_exchange(rng, "refuse").question
        if text not in world.STRANGE_SENTENCES:
            text = " ".join(invent(rng) if w in world.STRANGE
                            and rng.random() < 0.2 else w for w in text.split())
            if "to" in text.split():
                continue
        if UNKNOWN in hear_words(text):
            return text


def draw_hard(rng):
    """(kind, text, answer) of words that no sentence helps to guess."""
    what = rng.random()
    words = " ".join(rng.choice(world.WORDS) for _ in range(rng.randint(1, 8)))
    if what < 0.4:
        words = " ".join(words.split()[:6])
        return "repeat", "repeat after me " + words, words
    if what < 0.5:
        e = world.draw_exchange(rng, "spell")
        return e.kind, e.question, e.answer
    if what < 0.65:
        words = " ".join(rng.choice(world.DIGITS)
                         for _ in range(rng.randint(1, 8)))
    return "say", words, ""


def draw_said(rng):
    """(kind, text, answer): an exchange's, with its answer; "ask", about a
    picture; "say", any words."""
    what = rng.random()
    if what < 0.30:
        return draw_hard(rng)
    if what < 0.60:
        e = world.draw_exchange(rng, rng.choices(
            ("sum", "switch", "repeat", "spell"), (4, 4, 2, 1))[0])
        return e.kind, e.question, e.answer
    if what < 0.70:
        return "refuse", _draw_refusal(rng), world.REFUSAL
    if what < 0.77:
        return "ask", world.question_about_sight(rng), ""
    return "say", world.draw_utterance(rng), ""


# --- voices -------------------------------------------------------------------

@dataclass
class Voice:
    engine: str  # one of _ENGINES
    name: str  # with espeak's variant
    rate: int = 175  # words per minute
    pitch: int = 50  # 0…99
    range: int = 50  # of the pitch, 0…99
    volume: int = 90
    warp: float = 1.0  # speed and pitch together, of the finished sound


def draw_voice(rng, held_out=False):
    far = held_out
    engine = rng.choices(
        ("espeak", "flite", "pico", "festival"),
        (0.7, 0.2, 0.1, 0) if far else (0.6, 0.18, 0.12, 0.1))[0]
    if engine != "espeak":
        name = {"flite": FAR_FLITE if far else rng.choice(FLITE),
                "pico": FAR_PICO if far else PICO,
                "festival": rng.choice(FESTIVAL)}[engine]
        return Voice(engine, name, rate=rng.randint(130, 225),
                     pitch=50 if far else rng.randint(15, 90),
                     warp=math.exp(rng.uniform(-0.03, 0.03) if far
                                   else rng.uniform(-0.17, 0.17)))
    variants = FAR_VARIANTS if far else VARIANTS
    if not far and rng.random() < 0.06:
        variants = ODD_VARIANTS
    rate = (rng.choice((rng.randint(110, 120), rng.randint(150, 190),
                        rng.randint(230, 245))) if far
            else round(rng.triangular(110, 260, 170)))
    variant = rng.choice(variants).replace("_", " ")
    return Voice("espeak", f"{rng.choice(ACCENTS)}+{variant}", rate=rate,
                 pitch=rng.randint(25, 80) if far else rng.randint(15, 90),
                 range=rng.randint(20, 80), volume=rng.randint(60, 100))


class _Espeak:
    RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4

    def __init__(self):
        self.lib = ctypes.CDLL("libespeak-ng.so.1")
        self.hz = self.lib.espeak_Initialize(2, 0, None, 0)  # synchronous
        if self.hz <= 0:
            raise RuntimeError("espeak-ng does not start")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int,
                                ctypes.c_void_p)
        self.callback = kind(self._take)
        self.lib.espeak_SetSynthCallback(self.callback)
        self.name, self.parts = None, []

    def _take(self, samples, n, events):
        if samples and n > 0:
            self.parts.append(ctypes.string_at(samples, 2 * n))
        return 0

    def speak(self, text, voice):
        if voice.name != self.name:
            if self.lib.espeak_SetVoiceByName(voice.name.encode()):
                raise RuntimeError(f"espeak-ng has no voice {voice.name}")
            self.name = voice.name
        for what, value in (
                (self.RATE, voice.rate), (self.VOLUME, voice.volume),
                (self.PITCH, voice.pitch), (self.RANGE, voice.range)):
            self.lib.espeak_SetParameter(what, value, 0)
        said = text.encode() + b"\0"
        self.parts = []
        self.lib.espeak_Synth(said, len(said), 0, 1, 0, 1, None, None)
        return np.frombuffer(b"".join(self.parts), np.int16), self.hz


class _Flite:
    class Wave(ctypes.Structure):
        _fields_ = [("type", ctypes.c_char_p), ("hz", ctypes.c_int),
                    ("length", ctypes.c_int), ("channels", ctypes.c_int),
                    ("samples", ctypes.POINTER(ctypes.c_short))]

    def __init__(self):
        self.lib = ctypes.CDLL("libflite.so.1", ctypes.RTLD_GLOBAL)
        self.lib.flite_init()
        for name in ("usenglish", "cmulex"):
            ctypes.CDLL(f"libflite_{name}.so.1", ctypes.RTLD_GLOBAL)
        self.lib.flite_text_to_wave.argtypes = (ctypes.c_char_p,
                                                ctypes.c_void_p)
        self.lib.flite_text_to_wave.restype = ctypes.POINTER(self.Wave)
        self.lib.delete_wave.argtypes = (ctypes.POINTER(self.Wave),)
        self.lib.flite_feat_set_float.argtypes = (
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float)
        self.voices = {}

    def speak(self, text, voice):
        if voice.name not in self.voices:
            register = getattr(ctypes.CDLL(f"libflite_{voice.name}.so.1"),
                               f"register_{voice.name}")
            register.restype, register.argtypes = (ctypes.c_void_p,
                                                   (ctypes.c_void_p,))
            self.voices[voice.name] = register(None)
        made = self.voices[voice.name]
        # The second member of the voice is where its settings lie.
        settings = ctypes.cast(made, ctypes.POINTER(ctypes.c_void_p))[1]
        self.lib.flite_feat_set_float(settings, b"duration_stretch",
                                      170 / voice.rate)
        wave = self.lib.flite_text_to_wave(text.encode(), made)
        w = wave.contents
        samples = np.ctypeslib.as_array(w.samples, (w.length,)).copy()
        hz = w.hz
        self.lib.delete_wave(wave)
        return samples, hz


class _Pico:
    def __init__(self):
        self.voices = {}

    def speak(self, text, voice):
        if voice.name not in self.voices:
            self.voices[voice.name] = ttspico.TtsEngine(voice.name)
        engine = self.voices[voice.name]
        engine.rate = round(100 * voice.rate / 170)
        engine.pitch = round(60 + 0.8 * voice.pitch)
        return np.frombuffer(engine.speak(text), np.int16), 16000


class _Festival:
    """A process that is told what to say; its first answer takes longest. The
    rate does nothing to voices that are statistical models."""

    def __init__(self):
        self.process = subprocess.Popen(
            ["festival", "--pipe"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def speak(self, text, voice):
        with tempfile.NamedTemporaryFile(suffix=".wav") as f:
            self.process.stdin.write(
                f"(voice_{voice.name})\n"
                f"(Parameter.set 'Duration_Stretch {170 / voice.rate:.3f})\n"
                f'(utt.save.wave (utt.synth (Utterance Text "{text}"))'
                f" \"{f.name}\" 'riff)\n"
                '(format t "said\\n")\n(fflush nil)\n')
            self.process.stdin.flush()
            while "said" not in (line := self.process.stdout.readline()):
                if not line:
                    raise RuntimeError(f"festival cannot say {text}")
            return soundfile.read(f.name, dtype="int16")


_ENGINES = {"espeak": _Espeak, "flite": _Flite, "pico": _Pico,
            "festival": _Festival}
_engines = {}  # that have started


def trim(samples):
    """Without the silence around it, but for a breath."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    if not len(loud):
        return samples
    return samples[max(0, loud[0] - 320):loud[-1] + 800]


def speak(text, voice):
    if voice.engine not in _engines:
        _engines[voice.engine] = _ENGINES[voice.engine]()
    samples, hz = _engines[voice.engine].speak(text, voice)
    samples = soxr.resample(samples.astype(np.float32) / 32768,
                            hz * voice.warp, RATE, quality="MQ")
    return trim(samples.astype(np.float32))


def speak_apart(rng, text, voice):
    """Word for word, with pauses of any length."""
    longest = rng.choice((0.1, 0.3, 0.9))
    parts = []
    for word in text.split():
        parts += [speak(word, voice),
                  np.zeros(int(rng.uniform(0, longest) * RATE), np.float32)]
    return np.concatenate(parts[:-1])


# --- spoiling -----------------------------------------------------------------

_noises = {}


def _noise(kind):
    """A minute of a noise, of level 1, made once."""
    if kind in _noises:
        return _noises[kind]
    n = 1 << 20
    g = np.random.default_rng(len(kind))
    if kind == "babble":
        rng = random.Random("babble")
        ret = np.zeros(n)
        for k in range(160):
            said = speak(world.draw_utterance(rng) if k % 2
                         else _draw_refusal(rng), draw_voice(rng))
            at = rng.randrange(n - len(said)) if len(said) < n else 0
            ret[at:at + len(said)] += said * rng.uniform(0.3, 1)
    elif kind == "hum":
        t = np.arange(n) / RATE
        ret = sum(np.sin(2 * np.pi * 50 * h * t + g.uniform(0, 7))
                  * g.uniform(0.1, 1) / h for h in range(1, 12))
        ret = ret + 0.05 * g.standard_normal(n)
    else:
        shape = np.fft.rfft(g.standard_normal(n))
        f = np.maximum(20, np.fft.rfftfreq(n, 1 / RATE))
        shape *= f ** {"white": 0, "pink": -0.5, "brown": -1}[kind]
        ret = np.fft.irfft(shape)
    ret = (ret / np.sqrt(np.mean(ret ** 2))).astype(np.float32)
    return _noises.setdefault(kind, ret)


NOISES = ("white", "pink", "brown", "hum", "babble")


def add_noise(rng, samples, kind, decibels):
    """A noise that many decibels below what is said."""
    bank = _noise(kind)
    at = rng.randrange(len(bank) - len(samples))
    power = np.mean(np.square(samples[np.abs(samples) > 1e-4]))
    if not power > 0:
        return samples
    return samples + (bank[at:at + len(samples)]
                      * np.float32(np.sqrt(power) * 10 ** (-decibels / 20)))


def _filtered(rng, samples, g):
    """Through a room, a slanted spectrum, a narrow band: all of them at once,
    as one product of spectra."""
    room = rng.random() < 0.5
    tail = int(RATE * rng.uniform(0.05, 0.5)) if room else 0
    n = scipy.fft.next_fast_len(len(samples) + tail, real=True)
    spectrum = scipy.fft.rfft(samples, n)
    f = np.linspace(0, RATE / 2, len(spectrum), dtype=np.float32)
    if room:
        echo = g.standard_normal(tail, np.float32) * np.exp(
            np.linspace(0, -6.9, tail, dtype=np.float32))
        echo *= np.float32(rng.uniform(0.1, 0.9)
                           / math.sqrt(np.sum(echo ** 2)))
        echo[0] = 1
        spectrum *= scipy.fft.rfft(echo, n)
    if rng.random() < 0.5:
        tilt = rng.uniform(-0.5, 0.5)
        spectrum *= ((f + 200) / 1000) ** np.float32(tilt)
    if rng.random() < 0.4:
        low, high = rng.uniform(50, 400), rng.uniform(2800, 7000)
        spectrum /= 1 + (np.float32(low) / (f + 1)) ** 4
        spectrum /= 1 + (f / np.float32(high)) ** 12
    return scipy.fft.irfft(spectrum, n)[:len(samples) + tail // 2]


def _telephoned(samples):
    """As 8 bits a sample, 8000 a second."""
    s = soxr.resample(samples, RATE, RATE // 2, quality="LQ")
    s = np.clip(s, -1, 1)
    s = np.sign(s) * np.log1p(255 * np.abs(s)) / math.log(256)
    s = np.round(s * 127) / 127
    s = np.sign(s) * (256 ** np.abs(s) - 1) / 255
    return soxr.resample(s.astype(np.float32), RATE // 2, RATE, quality="LQ")


def surround(rng, samples, most=1.5):
    """With silence before and after it, mostly little."""
    before, after = (int(RATE * most * rng.random() ** 2) for _ in range(2))
    return np.pad(samples, (before, after))


def spoil(rng, samples, most=1.0):
    """A clean utterance as a microphone might have it. `most` below 1 spoils
    less often."""
    g = np.random.default_rng(rng.getrandbits(63))
    samples = np.asarray(samples, np.float32)
    if rng.random() < 0.3 * most:
        samples = soxr.resample(samples, RATE * rng.uniform(0.88, 1.14), RATE,
                                quality="LQ")
    samples = surround(rng, samples)
    samples = samples / max(1e-3, float(np.abs(samples).max()))
    if rng.random() < 0.4 * most:
        samples = _filtered(rng, samples, g)
    if rng.random() < 0.75 * most:
        kind = rng.choice(NOISES)
        least = 5 if kind == "babble" else 0
        samples = add_noise(rng, samples, kind, rng.uniform(
            least, rng.choice((18, 40))))
    if rng.random() < 0.05 * most:  # clicks
        at = g.integers(0, len(samples), rng.randint(1, 12))
        samples[at] += g.uniform(-1, 1, len(at)).astype(np.float32)
    if rng.random() < 0.1 * most:
        samples = _telephoned(samples)
    gain = 10 ** (rng.uniform(-30, 3) / 20) / max(1.0, np.abs(samples).max())
    if rng.random() < 0.05 * most:
        samples = samples + np.float32(rng.uniform(-0.1, 0.1))
    return np.round(np.clip(samples * np.float32(gain), -1, 1)
                    * 32767) / np.float32(32768)


# --- features -----------------------------------------------------------------

def _mel_corners():
    """In Hz, [130], equally far from each other on Slaney's scale."""
    mel = np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 130)
    return np.where(mel < 15, 200 * mel / 3,
                    1000 * np.exp((mel - 15) * math.log(6.4) / 27))


def _mel_filters():
    """[201, 128]: triangles of equal area."""
    hz = _mel_corners()
    f = np.arange(201)[:, None] * 40.0
    up = (f - hz[:-2]) / (hz[1:-1] - hz[:-2])
    down = (hz[2:] - f) / (hz[2:] - hz[1:-1])
    return np.maximum(0, np.minimum(up, down)) * 2 / (hz[2:] - hz[:-2])


_CENTRES = _mel_corners()[1:-1]
_MEL = torch.from_numpy(_mel_filters().T.copy()).float()  # [128, 201]
_WINDOW = torch.hann_window(400)


def features(samples):
    """[128, ⌊L/160⌋] of one clip of more than 200 samples."""
    with torch.no_grad():
        s = torch.as_tensor(np.ascontiguousarray(samples, np.float32))
        s = torch.stft(s, 400, 160, window=_WINDOW, center=True,
                       return_complex=True)[:, :-1]
        s = _MEL @ (s.real.square() + s.imag.square())
        s = s.clamp_(min=1e-10).log10_()
        return s.clamp_(min=float(s.max()) - 8).add_(4).mul_(0.25)


def bend(rng, features):
    """As somebody larger or smaller would say it, faster or slower: features
    [128, F] stretched along both axes."""
    high = np.interp(_CENTRES * math.exp(rng.uniform(-0.13, 0.13)), _CENTRES,
                     np.arange(128))
    n = features.shape[1]
    late = np.linspace(0, n - 1, max(2, round(
        n * math.exp(rng.uniform(-0.2, 0.2)))))
    for at in (high, late):  # between two neighbours along the first axis
        first = torch.from_numpy(at.astype(np.int64)).clamp(
            max=len(features) - 2)
        part = torch.from_numpy(at).float()[:, None] - first[:, None]
        features = torch.lerp(features[first], features[first + 1], part).t()
    return features.contiguous()


# --- clean utterances ---------------------------------------------------------

class Clips:
    """The utterances of a file: said[i] is a dictionary of kind, text, answer,
    heard (a list of words), voice, start and length."""

    def __init__(self, work, name="sound"):
        path = os.path.join(work, name)
        self.said = [s for s in json.load(open(path + ".json"))
                     if len(s["text"].split()) * RATE < FASTEST * s["length"]]
        self.data = np.memmap(path + ".i16", np.int16, "r")

    def __len__(self):
        return len(self.said)

    def samples(self, i):
        s = self.said[i]
        return (self.data[s["start"]:s["start"] + s["length"]]
                .astype(np.float32) / 32768)


def _make_shard(job):
    path, name, k, n = job
    part = f"{path}.{k}"
    if os.path.exists(part + ".json"):  # made before all was cut off
        return json.load(open(part + ".json"))
    said, start = [], 0
    with open(part, "wb") as f:
        for i in range(k * SHARD, min(n, (k + 1) * SHARD)):
            rng = random.Random(f"{name} {i}")
            voice = draw_voice(rng, held_out=name == "sound-far")
            kind, text, answer = draw_said(rng)
            words = as_said(rng, text)
            apart = len(words.split()) > 1 and "to" not in words.split() \
                and rng.random() < 0.12
            samples = (speak_apart(rng, words, voice) if apart
                       else speak(words, voice))
            samples = np.clip(np.round(samples * 32767), -32768, 32767)
            samples.astype(np.int16).tofile(f)
            said.append(dict(kind=kind, text=text, answer=answer,
                             heard=hear_words(text), voice=voice.name,
                             start=start, length=len(samples)))
            start += len(samples)
    _write_json(part + ".json", said)
    return said


def _write_json(path, value):
    with open(path + ".new", "w") as f:
        json.dump(value, f)
    os.replace(path + ".new", path)


def make(work, name, n):
    path = os.path.join(work, name)
    os.makedirs(work, exist_ok=True)
    jobs = [(path, name, k, n) for k in range((n + SHARD - 1) // SHARD)]
    said, start = [], 0
    with multiprocessing.Pool(os.cpu_count()) as pool, \
            open(path + ".i16.new", "wb") as out:
        for k, part in enumerate(pool.imap(_make_shard, jobs)):
            with open(f"{path}.{k}", "rb") as f:
                out.write(f.read())
            for s in part:
                said.append(dict(s, start=start + s["start"]))
            start += sum(s["length"] for s in part)
            print(f"{name} {len(said)}/{n}  {start / RATE / 3600:.1f} h",
                  flush=True)
    os.replace(path + ".i16.new", path + ".i16")
    _write_json(path + ".json", said)
    for _, _, k, _ in jobs:
        os.remove(f"{path}.{k}")
        os.remove(f"{path}.{k}.json")


def main(work):
    for name, n in (("sound-far", FAR_UTTERANCES), ("sound", UTTERANCES)):
        if not os.path.exists(os.path.join(work, name + ".json")):
            make(work, name, n)


if __name__ == "__main__":
    main(*sys.argv[1:])
