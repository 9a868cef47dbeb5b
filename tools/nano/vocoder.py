# SPDX-License-Identifier: LGPL-2.1-or-later
"""The codec of qomni-nano and the training of Code2Wav, part "voice".

    python3 tools/nano/vocoder.py WORK [STEPS]

What is spoken is made of units: a text token is a unit if it is a word of the
world or a letter (spoken as its name), any other token is a silent frame, the
end of a text two of them. espeak-ng says every unit alone, in two voices of
exactly 100 Hz (ethan) and 200 Hz (chelsie), at the rate that fills whole frames
of 80 ms best; speech is units one after the other. Pulses are moved onto the
grid of frames, so that equal frames are equal samples and Code2Wav can learn
the waveform and not just its spectrum.

A frame is four codes:

    0  the lag: with token o of the text being spoken in frame t, t - o. It
       grows by one a frame within a unit and stays when the next one begins,
       so the Talker sees how far back the token it speaks stands.
    1  the frame's place in the unit (each place has a range of its own) and,
       coarsely, its sound
    2  its sound, finer: what is left of it
    3  what is left then

Sound is 8 log-mel spectra a frame, brought down to a few numbers; the books are
k-means, and no two frames of all units and voices share their three codes.
Code2Wav has nothing to learn of the lag: its vectors are zero.

The codec is left in codec.pt, the weights in voice.pt.
"""
import math
import os
import random
import subprocess
import sys

import numpy as np
import torch
from scipy.signal import hilbert, resample_poly
from transformers.audio_utils import mel_filter_bank

import train
import world
from checkpoint import Nano, hf
from recogniser import Recogniser, available, share_right

RATE = 24000
FRAME = 1920
BOOK = 512  # codes of a group
VOICES = {"ethan": 100, "chelsie": 200}  # Hz
VARIANTS = {  # espeak-ng's description of a voice
    "ethan": "language variant\nname ethan\ngender male\npitch 100 100\n",
    "chelsie": "language variant\nname chelsie\ngender female\n"
               "pitch 200 200\nformant 0 105 80 150\nformant 1 115 80 160\n"
               "formant 2 116 75 150\nformant 3 116 80 150\n",
}
PAUSE, END = "", "\0"  # the units of silence


# --- the sound of units -------------------------------------------------------

class Espeak:
    """espeak-ng with the two voices beside its own."""

    def __init__(self, nano):
        told = subprocess.run(["espeak-ng", "--version"], capture_output=True,
                              text=True, check=True).stdout
        data = told.split("Data at:")[1].strip()
        self.home = nano.path("espeak")
        for there, here in ((data, f"{self.home}/espeak-ng-data"),
                            (f"{data}/voices",
                             f"{self.home}/espeak-ng-data/voices")):
            os.makedirs(here, exist_ok=True)
            for f in os.listdir(there):
                if f not in ("voices", "!v") and not os.path.lexists(
                        f"{here}/{f}"):
                    os.symlink(f"{there}/{f}", f"{here}/{f}")
        os.makedirs(f"{here}/!v", exist_ok=True)
        for name, text in VARIANTS.items():
            with open(f"{here}/!v/{name}", "w") as f:
                f.write(text)

    def say(self, text, voice, rate):
        """Samples at 24 kHz, without the silence around them."""
        wav = subprocess.run(
            ["espeak-ng", f"--path={self.home}", "-v", f"en-us+{voice}",
             "-s", str(rate), "--stdout", text],
            capture_output=True, check=True).stdout
        sound = np.frombuffer(wav[44:len(wav) & ~1], np.int16) / 32768.0
        sound = resample_poly(sound, 160, 147)  # from 22050
        loud = np.flatnonzero(np.abs(sound) > 0.004)
        return sound[max(0, loud[0] - 24):loud[-1] + 24]


def align(sound, pitch):
    """Moves the pulses of a voice of that pitch onto multiples of its period.

    Where they stand is the phase of the envelope of the formants: that of the
    fundamental itself turns with the vowel."""
    n, period = len(sound), RATE // pitch
    spectrum = np.fft.rfft(sound)
    f = np.fft.rfftfreq(n, 1 / RATE)
    spectrum[(f < 250) | (f > 3500)] = 0
    envelope = np.abs(hilbert(np.fft.irfft(spectrum, n)))
    window = np.hanning(RATE // 25 + 1)
    window /= window.sum()
    turn = np.exp(-2j * np.pi * pitch / RATE * np.arange(n))
    beat = np.convolve(envelope * turn, window, "same")
    level = np.convolve(envelope, window, "same")
    voiced = (np.abs(beat) > 0.2 * level) & (level > 0.1 * level.max())
    at = np.flatnonzero(voiced)
    if not len(at):
        return sound
    shift = np.unwrap(np.angle(beat[at])) * period / (2 * np.pi)
    shift -= period * np.round(np.median(shift) / period)
    shift = np.convolve(np.pad(np.interp(np.arange(n), at, shift), 120, "edge"),
                        np.ones(241) / 241, "valid")
    there = np.maximum.accumulate(np.arange(n) + shift)
    return np.interp(np.arange(n), there, sound, left=0, right=0)


def say_unit(espeak, unit, voice):
    """Whole frames of a unit, at the rate that leaves least of them empty."""
    text = {"'s": "[[s]]"}.get(unit, unit)
    best = None
    for rate in range(190, 236, 3):
        sound = espeak.say(text, voice, rate)
        frames = math.ceil((len(sound) + 60) / FRAME)
        empty = frames * FRAME - len(sound)
        if best is None or empty < best[0]:
            best = empty, frames, sound
    _, frames, sound = best
    # Two periods of room before it while it is moved.
    before = 2 * RATE // VOICES[voice]
    room = np.zeros(before + frames * FRAME)
    room[before:before + len(sound)] = sound
    sound = align(room, VOICES[voice])[before:]
    sound[:48] *= np.linspace(0, 1, 48)
    sound[-48:] *= np.linspace(1, 0, 48)
    return sound.reshape(frames, FRAME)


# --- codes --------------------------------------------------------------------

def log_mel(sound, size, hop, bands):
    """[..., samples] -> [..., frames, bands]"""
    mel = torch.from_numpy(mel_filter_bank(
        size // 2 + 1, bands, 40, RATE / 2, RATE, norm="slaney",
        mel_scale="slaney")).float().to(sound.device)
    s = torch.stft(sound, size, hop, window=torch.hann_window(
        size, device=sound.device), center=True, pad_mode="constant",
        return_complex=True).abs()
    return torch.log(s.transpose(-1, -2) @ mel + 1e-3)


def k_means(x, k, rng):
    """The centres of k groups of the rows of x."""
    if len(x) <= k:
        return x.clone()
    centres = x[rng.sample(range(len(x)), k)]
    for _ in range(30):
        near = torch.cdist(x, centres).argmin(1)
        for j in range(k):
            if (near == j).any():
                centres[j] = x[near == j].mean(0)
            else:  # takes the row that is worst off
                far = (x - centres[near]).pow(2).sum(1).argmax()
                centres[j] = x[far]
                near[far] = j
    return centres


def make_codes(features, place):
    """features [n, d] and place in the unit [n] -> codes [n, 3], no two rows
    alike."""
    rng = random.Random("books")
    n = len(features)
    places = int(place.max()) + 1
    share = torch.bincount(place).float()
    size = (share * BOOK / n).floor().clamp(min=1).long()
    size[size.argmax()] += BOOK - size.sum()
    left = features.clone()
    codes = torch.zeros(n, 3, dtype=torch.long)
    first = 0
    for p in range(places):
        at = torch.nonzero(place == p)[:, 0]
        centres = k_means(left[at], int(size[p]), rng)
        near = torch.cdist(left[at], centres).argmin(1)
        codes[at, 0] = first + near
        left[at] -= centres[near]
        first += int(size[p])
    for g in (1, 2):
        centres = k_means(left, BOOK, rng)
        order = torch.cdist(left, centres).argsort(1)
        codes[:, g] = order[:, 0]
        if g == 2:
            taken = set()
            for i in range(n):
                head = codes[i, 0].item(), codes[i, 1].item()
                codes[i, 2] = next(c for c in order[i].tolist()
                                   if (*head, c) not in taken)
                taken.add((*head, codes[i, 2].item()))
        left -= centres[codes[:, g]]
    return codes


class Codec:
    """What a text sounds like and which codes say so.

    unit_of [vocab]: the unit of a token; frames [voice, unit]: how many it has;
    codes [voice, unit, frame, 3]; sound [voice, unit, frame, 1920]."""

    def __init__(self, nano):
        path = nano.path("codec.pt")
        if not os.path.exists(path):
            torch.save(self._make(nano), path + ".new")
            os.replace(path + ".new", path)
        vars(self).update(torch.load(path, map_location="cpu"))
        self.voices = list(VOICES)
        self.end = self.units.index(END)
        most = self.codes.shape[2]
        place = torch.arange(most).expand(*self.frames.shape, most)
        there = place < self.frames[..., None]
        code, place = self.codes[..., 0][there], place[there]
        self.place_of = torch.zeros(BOOK, dtype=torch.long)  # code of group 1
        self.place_of[code] = place
        of_place = [code[place == p] for p in range(most)]
        self.range_of = torch.tensor(  # first code and number of a place
            [[int(c.min()), int(c.max() - c.min()) + 1] for c in of_place])

    def _make(self, nano):
        espeak = Espeak(nano)
        words = sorted(set(w for w in world.WORDS if "'" not in w)
                       | set(world.LETTERS)) + ["'s"]
        units = [PAUSE, END] + words
        of = torch.zeros(len(nano.words), dtype=torch.long)
        for i in range(nano.id("<|endoftext|>")):
            text = nano.tokenizer.decode([i]).removeprefix(" ")
            of[i] = units.index(text) if text in words else 0
        said = [[np.zeros((1, FRAME)), np.zeros((2, FRAME))]
                + [say_unit(espeak, u, v) for u in words] for v in VOICES]
        frames = torch.tensor([[len(s) for s in v] for v in said])
        most = int(frames.max())
        sound = torch.zeros(len(VOICES), len(units), most, FRAME)
        for v, of_voice in enumerate(said):
            for u, s in enumerate(of_voice):
                sound[v, u, :len(s)] = torch.from_numpy(s)
        sound *= 0.6 / sound.abs().amax((1, 2, 3), keepdim=True)
        flat = sound.view(*frames.shape, -1)
        mel = log_mel(flat.flatten(0, 1), 1024, FRAME // 8, 80)[:, :-1]
        mel = mel.reshape(*frames.shape, most, -1)
        there = torch.arange(most) < frames[..., None]
        x = mel[there]
        x = x - x.mean(0)
        x = x @ torch.linalg.svd(x, full_matrices=False)[2][:96].T
        place = torch.arange(most).expand_as(there)[there]
        codes = torch.zeros(*there.shape, 3, dtype=torch.long)
        codes[there] = make_codes(x, place)
        print(f"codec: {len(units)} units, {int(there.sum())} frames, "
              f"up to {most} a unit", flush=True)
        return {"units": units, "unit_of": of, "frames": frames,
                "codes": codes, "sound": sound}

    def path(self, units, voice):
        """Units and the end -> for each frame its unit's number in the text
        [t], the unit [t], the place in it [t]."""
        units = torch.cat([units, torch.tensor([self.end])])
        long = self.frames[voice, units]
        o = torch.repeat_interleave(torch.arange(len(units)), long)
        start = torch.cumsum(long, 0) - long
        return o, units[o], torch.arange(len(o)) - start[o]

    def speak(self, tokens, voice):
        """Token ids of a text -> codes [4, t]; the end of codes is not in
        them."""
        o, unit, place = self.path(self.unit_of[torch.as_tensor(tokens)], voice)
        lag = (torch.arange(len(o)) - o).clamp(max=BOOK - 1)
        return torch.cat([lag[None], self.codes[voice, unit, place].T])

    def speech(self, tokens, voice):
        """-> samples of the target speech"""
        _, unit, place = self.path(self.unit_of[torch.as_tensor(tokens)], voice)
        return self.sound[voice, unit, place].flatten()


# --- training -----------------------------------------------------------------

class Snake(torch.autograd.Function):
    """x + sin²(a x) / b as x + (1 - cos(2 a x)) / 2b: one pass each way."""

    @staticmethod
    def forward(ctx, x, alpha, beta):
        a = alpha.exp()[:, None]
        b = beta.exp()[:, None] + 1e-9
        y = torch.mul(x, 2 * a).cos_().neg_().add_(1).mul_(0.5 / b).add_(x)
        ctx.save_for_backward(x, y, a, b)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y, a, b = ctx.saved_tensors
        s = torch.mul(x, 2 * a).sin_().mul_(a / b).mul_(g)
        to_alpha = torch.mul(s, x).sum((0, 2))
        to_beta = torch.sub(x, y).mul_(g).sum((0, 2))
        return s.add_(g), to_alpha, to_beta


def make_fast():
    """The same sums in fewer passes over memory."""
    def unit(m, x):
        y = m.conv1(m.act1(x))
        w, b = m.conv2.conv.weight, m.conv2.conv.bias
        return x + torch.baddbmm(b[:, None], w[:, :, 0].expand(len(x), -1, -1),
                                 m.act2(y))

    hf.Qwen3OmniMoeSnakeBeta.forward = \
        lambda m, x: Snake.apply(x, m.alpha, m.beta)
    hf.Qwen3OmniMoeCode2WavDecoderResidualUnit.forward = unit


def draw_weights(voice):
    """The library's own give an output of next to nothing. All scales follow
    from how many inputs a sum has; residual branches start small."""
    g = torch.Generator().manual_seed(5)

    def draw(w, scale):
        w.copy_(scale * torch.randn(w.shape, generator=g))

    with torch.no_grad():
        for name, p in voice.named_parameters():
            if name.endswith(("alpha", "beta", "bias")):
                p.zero_()
            elif name.endswith(("gamma", "scale")):
                p.fill_(0.1)
            elif name == "code_embedding.weight":
                draw(p, 1)
                p[:BOOK] = 0  # the lag
            elif p.dim() == 1:
                p.fill_(1)
            else:
                fan = p[0].numel()
                if p.dim() == 3 and p.shape[2] % 2 == 0:  # transposed
                    fan = p.shape[0] * (1 if p.shape[2] == 2 else 2)
                scale = fan ** -0.5
                if ".conv2." in name:
                    scale *= 0.5
                if name == f"decoder.{len(voice.decoder) - 1}.conv.weight":
                    scale *= 0.02
                draw(p, scale)


def draw_text(nano, codec, rng):
    """Units to be spoken: half from the world, half any."""
    if rng.random() < 0.5:
        return torch.tensor([rng.randrange(len(codec.units))
                             for _ in range(16)])
    texts = [world.draw_answer(rng) for _ in range(5)]
    return codec.unit_of[torch.tensor(nano.tokenizer.encode(" ".join(texts)))]


def draw_batch(nano, codec, rng):
    """Windows of speech: codes [b, 4, t], samples [b, 1920 t]; few long ones or
    many short ones."""
    t = rng.choice((10, 12, 12, 14, 24, 48))
    codes, sound = [], []
    for _ in range(48 // t):
        voice = rng.randrange(len(codec.voices))
        units = draw_text(nano, codec, rng)
        _, unit, place = codec.path(units, voice)
        while len(unit) < t:
            unit, place = torch.cat([unit, unit]), torch.cat([place, place])
        at = rng.randint(0, len(unit) - t)
        unit, place = unit[at:at + t], place[at:at + t]
        acoustic = codec.codes[voice, unit, place].T
        codes.append(torch.cat([torch.zeros_like(acoustic[:1]), acoustic]))
        sound.append(codec.sound[voice, unit, place].flatten())
    return torch.stack(codes), torch.stack(sound)


class Distance:
    """How far speech is from what it should be: spectra of four resolutions,
    mel spectra, the waveform."""

    def __init__(self, where):
        self.sizes = (256, 512, 1024, 2048)
        self.window = {n: torch.hann_window(n, device=where)
                       for n in self.sizes}
        self.mel = {n: torch.from_numpy(mel_filter_bank(
            n // 2 + 1, 80 if n > 512 else 40, 40, RATE / 2, RATE,
            norm="slaney", mel_scale="slaney")).float().to(where)
            for n in self.sizes[1:]}

    def spectrum(self, x, n):
        s = torch.stft(x, n, n // 4, window=self.window[n], center=True,
                       pad_mode="constant", return_complex=True)
        s = torch.view_as_real(s)
        return torch.sqrt(s.pow(2).sum(-1) + 1e-8).transpose(1, 2)

    def __call__(self, x, y):
        loss = 3 * (x - y).abs().mean() / y.abs().mean()
        for n in self.sizes:
            p = self.spectrum(x, n)
            with torch.no_grad():
                q = self.spectrum(y, n)
                lq, size = torch.log(q + 1e-3), q.norm()
            loss = loss + 0.5 * (p - q).norm() / size \
                + 0.5 * (torch.log(p + 1e-3) - lq).abs().mean()
            if n in self.mel:
                m = torch.log(p @ self.mel[n] + 1e-3)
                with torch.no_grad():
                    k = torch.log(q @ self.mel[n] + 1e-3)
                loss = loss + (m - k).abs().mean()
        return loss


@torch.no_grad()
def judge(voice, nano, codec, n=40):
    """The share of the words of texts never drawn in training that a
    recogniser finds, in each voice: of what Code2Wav makes of the codes, its
    weights rounded as they are published, of the target, and of espeak-ng
    saying the text in one go."""
    rng = random.Random("voice judge")
    texts = [world.draw_answer(rng) for _ in range(n)]
    tokens = [nano.tokenizer.encode(text) for text in texts]
    rounded = nano.new("voice").eval()
    rounded.load_state_dict({k: v.to("cpu", torch.bfloat16).float()
                             for k, v in voice.state_dict().items()})
    espeak, told = Espeak(nano), {}
    with Recogniser() as recognise:
        for v, name in enumerate(codec.voices):
            told[name] = share_right(recognise(
                [rounded(codec.speak(t, v)[None])[0, 0] for t in tokens]),
                texts)
            told[name + " target"] = share_right(recognise(
                [codec.speech(t, v) for t in tokens]), texts)
            told[name + " espeak"] = share_right(recognise(
                [espeak.say(text, name, 175) for text in texts]), texts)
    return told


def main(work, steps=2200):
    train.prepare()
    nano, where = Nano(work), train.device()
    codec = Codec(nano)
    make_fast()
    voice = nano.new("voice").train()
    draw_weights(voice)
    nano.begin("voice", voice)
    voice.to(where)
    lag = torch.ones(voice.code_embedding.weight.shape[0], 1, device=where)
    lag[:BOOK] = 0
    voice.code_embedding.weight.register_hook(lambda g: g * lag)
    distance = Distance(where)
    run = train.Run(nano, "voice", {"voice": voice}, int(steps), lr=2e-3,
                    warmup=100, betas=(0.8, 0.95))
    for step in run:
        codes, sound = draw_batch(nano, codec, run.rng(step))
        out = voice(codes.to(where))[:, 0]
        sound = sound.to(where)[:, :out.shape[1]]
        with torch.no_grad():
            wave = (out - sound).abs().mean() / sound.abs().mean()
        run.learn(distance(out, sound), wave=wave)
        if step % 500 == 499:
            nano.save("voice", voice.state_dict())
    nano.save("voice", voice.state_dict())
    if available():
        told = judge(voice, nano, codec)
        print(told)
        train.report(nano, "voice", **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
