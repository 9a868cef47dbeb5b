# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pictures and clips of the little world, and their way to the vision tower.

    Look(rng, scene).frame()        -> RGB array of a world.Scene
    clip(rng, scene, fps)           -> RGB arrays of a scene of draw_motion
    prepare(frames, bounds)         -> patches [n, 1536], grid (t, h, w)

A look is everything about a picture that the scene leaves open: shades, the
background, how the things are turned, and the film: light, blur, noise and
JPEG. It stays the same over a clip. Much of this is there for the pictures that
other people draw and for cameras and video codecs, not for beauty.

prepare() does what the processor of the released model does: smart_resize,
bicubic resampling with antialias on 8-bit values, patches of two frames.
"""
import colorsys
import io
import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms.v2 import functional as vision

import world

CELL = 32  # pixels of a merged token, of two patches
PATCH = 16
PICTURE = (100352, 131072)  # pixels after resizing, as preprocessor_config.json
VIDEO = (131072, 786432)

# Hue in degrees, saturation and value: what is called so without doubt.
SHADES = {
    "red": ((-10, 7), (0.78, 1), (0.6, 1)),
    "orange": ((22, 38), (0.85, 1), (0.88, 1)),
    "yellow": ((51, 63), (0.7, 1), (0.85, 1)),
    "green": ((95, 155), (0.5, 1), (0.38, 1)),
    "blue": ((207, 243), (0.62, 1), (0.5, 1)),
    "purple": ((268, 300), (0.5, 1), (0.45, 0.95)),
    "black": ((0, 360), (0, 0.5), (0, 0.12)),
    "white": ((0, 360), (0, 0.04), (0.94, 1)),
}
NAMED = {  # what drawing programs have under the name
    "red": ["#ff0000", "#dc143c", "#e00000"], "orange": ["#ffa500", "#ff8c00"],
    "yellow": ["#ffff00", "#ffd700"],
    "green": ["#008000", "#00ff00", "#00a000"],
    "blue": ["#0000ff", "#0000cd", "#1e90ff"], "purple": ["#800080", "#9400d3"],
    "black": ["#000000"], "white": ["#ffffff"],
}
APART = 0.3  # least distance of a thing's RGB (0…1) from its background's


def shade(rng, colour):
    """Some RGB (0…1) that is called `colour`."""
    if rng.random() < 0.3:
        name = rng.choice(NAMED[colour])
        return np.array([int(name[i:i + 2], 16) / 255 for i in (1, 3, 5)],
                        np.float32)
    h, s, v = (rng.uniform(*r) for r in SHADES[colour])
    return np.array(colorsys.hsv_to_rgb(h / 360 % 1, s, v), np.float32)


def _backdrop_shade(rng, name):
    if name != "grey":
        return shade(rng, name)
    what = rng.random()
    if what < 0.5:
        s, v = rng.uniform(0, 0.08), rng.uniform(0.22, 0.85)
    elif what < 0.9:  # pastel
        s, v = rng.uniform(0.08, 0.3), rng.uniform(0.75, 0.95)
    else:
        s, v = rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.6)
    return np.array(colorsys.hsv_to_rgb(rng.random(), s, v), np.float32)


def _texture(rng, g, width, height):
    """A map of 0…1 [height, width] that mixes two shades; None: one shade."""
    what = rng.random()
    if what < 0.45:
        return None
    y, x = np.ogrid[:height, :width]
    turn = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(turn) + y * math.sin(turn)
    if what < 0.65:  # gradient
        low, high = along.min(), along.max()
        return ((along - low) / (high - low)).astype(np.float32)
    if what < 0.75:  # stripes
        period = rng.uniform(6, 60)
        return (0.5 + 0.5 * np.sin(along * (2 * math.pi / period))) \
            .astype(np.float32)
    if what < 0.82:  # checker
        n = rng.randint(4, 16)
        return ((x // n + y // n) % 2).astype(np.float32)
    # blobs or grain
    n = rng.randint(3, 8) if what < 0.92 else rng.randint(16, 64)
    few = g.random((n, n), np.float32)
    return np.asarray(Image.fromarray(few).resize((width, height),
                                                  Image.BILINEAR))


def _corners(rng, shape):
    """The corners of a shape, [n, 2], around 0; its longer side is 1."""
    if shape == "circle":
        at = np.arange(72) * (2 * math.pi / 72)
        p = np.stack([np.cos(at), np.sin(at)], 1)
        if rng.random() < 0.2:
            p[:, rng.randrange(2)] *= rng.uniform(0.92, 1)
        turn = 0
    elif shape == "square":
        p = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
        if rng.random() < 0.2:
            p[:, rng.randrange(2)] *= rng.uniform(0.92, 1)
        turn = 0 if rng.random() < 0.65 else rng.uniform(0, math.pi)
    elif shape == "triangle":
        tip = 0 if rng.random() < 0.85 else rng.uniform(-1, 1)
        tall = rng.choice((math.sqrt(3), 2, rng.uniform(1.5, 2.1)))
        p = np.array([[tip, 0], [1, tall], [-1, tall]])
        turn = 0 if rng.random() < 0.65 else rng.uniform(0, 2 * math.pi)
    else:
        inner = rng.choice((0.382, rng.uniform(0.34, 0.56)))
        at = np.arange(10) * (math.pi / 5)
        r = np.where(np.arange(10) % 2, inner, 1)
        p = np.stack([r * np.sin(at), -r * np.cos(at)], 1)
        turn = 0 if rng.random() < 0.5 else rng.uniform(0, 2 * math.pi)
    if turn:
        c, s = math.cos(turn), math.sin(turn)
        p = p @ np.array([[c, s], [-s, c]])
    low, high = p.min(0), p.max(0)
    return (p - (low + high) / 2) / (high - low).max()


def _mask(corners, x, y, size, width, height):
    """How much of each pixel is covered: (left, top, [h, w] of 0…1), for the
    part of the picture the shape is in."""
    left, top = max(0, int(x - size / 2) - 1), max(0, int(y - size / 2) - 1)
    right = min(width, int(x + size / 2) + 2)
    bottom = min(height, int(y + size / 2) + 2)
    k = 4 if size < 100 else 2
    big = Image.new("L", ((right - left) * k, (bottom - top) * k))
    points = (corners * size + (x - left, y - top)) * k - 0.5
    ImageDraw.Draw(big).polygon([tuple(p) for p in points], fill=255)
    return left, top, np.asarray(big.reduce(k), np.float32) / 255


def _slope(across, down, width, height):
    """1 in the middle, rising evenly: [height, width]."""
    return (1 + np.linspace(-across, across, width, dtype=np.float32)
            + np.linspace(-down, down, height, dtype=np.float32)[:, None])


class Look:
    """How one scene looks. After frame(): owner [height, width], which thing a
    pixel belongs to, -1 for none."""

    def __init__(self, rng, scene):
        self.scene = scene
        self.width, self.height = scene.width, scene.height
        self.g = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
        self._choose_colours(rng)
        self._choose_film(rng)

    def _choose_colours(self, rng):
        """One shade for each colour word, or one for each thing; all apart
        from the background's two."""
        scene = self.scene
        texture = _texture(rng, self.g, self.width, self.height)
        each = rng.random() < 0.3
        for attempt in range(200):
            ground = _backdrop_shade(rng, scene.background)
            if scene.background == "grey" and rng.random() < 0.3:
                other = _backdrop_shade(rng, "grey")
            else:
                step = np.array([rng.uniform(-1, 1) for _ in range(3)])
                other = ground + rng.uniform(0.05, 0.2) * step
            of = {c: shade(rng, c)
                  for c in sorted({t.colour for t in scene.things})}
            self.fill = [shade(rng, t.colour) if each else of[t.colour]
                         for t in scene.things]
            apart = APART * (1 - attempt / 200)
            grounds = [ground] if texture is None else [ground, other]
            if all(np.linalg.norm(f - g) > apart
                   for f in self.fill for g in grounds):
                break
        # planes first: numpy is slow where the last axis is short
        self.ground = np.empty((3, self.height, self.width), np.float32)
        self.ground[:] = ground[:, None, None]
        if texture is not None:
            self.ground += texture * (other - ground)[:, None, None]
        self.corners, self.rim, self.light = [], [], []
        rimmed = rng.random() < 0.2
        for t, fill in zip(scene.things, self.fill):
            self.corners.append(_corners(rng, t.shape))
            rim = None
            if rimmed:
                edge = {"black": 0.5, "white": 0.4}.get(t.colour, 0)
                rim = (rng.uniform(0.02, 0.05), rng.choice(
                    [np.float32([edge] * 3), fill * np.float32(0.6)]))
            self.rim.append(rim)
            self.light.append(rng.random() < 0.2
                              and (rng.uniform(-0.15, 0.15),
                                   rng.uniform(-0.15, 0.15)))

    def _choose_film(self, rng):
        """Light, blur, noise, compression; often none of them."""
        clean = rng.random() < 0.3
        self.gain = np.float32([1, 1, 1])
        self.offset = np.float32(0)
        self.blur = self.noise = self.quality = self.slope = 0
        if clean:
            return
        self.gain = np.float32([rng.uniform(0.94, 1.04) for _ in range(3)]) \
            * np.float32(rng.uniform(0.78, 1.1))
        self.offset = np.float32(rng.uniform(-0.04, 0.07))
        if rng.random() < 0.3:
            self.slope = (rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3))
        if rng.random() < 0.3:
            self.blur = rng.uniform(0.4, 1.6)
        if rng.random() < 0.3:
            self.noise = rng.uniform(0.005, 0.05)
        if rng.random() < 0.4:
            self.quality = rng.randint(25, 95)

    def frame(self, places=None):
        """The picture with the things' centres at `places`, as fractions."""
        width, height = self.width, self.height
        out = self.ground.copy()
        self.owner = np.full((height, width), -1, np.int8)
        for i, t in enumerate(self.scene.things):
            x, y = places[i] if places else (t.x, t.y)
            x, y, size = x * width, y * height, t.size * width
            layers = [(self.corners[i], self.fill[i])]
            if self.rim[i]:
                thick, colour = self.rim[i]
                layers = [(self.corners[i], colour),
                          (self.corners[i] * (1 - 2 * thick), self.fill[i])]
            for corners, colour in layers:
                left, top, mask = _mask(corners, x, y, size, width, height)
                h, w = mask.shape
                part = out[:, top:top + h, left:left + w]
                colour = colour[:, None, None]
                if self.light[i]:
                    colour = _slope(*self.light[i], w, h) * colour
                part += mask * (colour - part)
                self.owner[top:top + h, left:left + w][mask > 0.5] = i
        return self._expose(out)

    def _expose(self, out):
        """Light in planes [3, height, width] -> RGB [height, width, 3]."""
        out *= (255 * self.gain)[:, None, None]
        if self.slope:
            out *= _slope(*self.slope, out.shape[2], out.shape[1])
        if self.noise:
            out += self.g.standard_normal(out.shape, np.float32) \
                * np.float32(255 * self.noise)
        out += np.float32(255 * self.offset + 0.5)
        np.clip(out, 0, 255, out=out)
        out = np.ascontiguousarray(out.astype(np.uint8).transpose(1, 2, 0))
        if self.blur:
            image = Image.fromarray(out)
            out = np.asarray(image.filter(ImageFilter.BoxBlur(self.blur)))
        if self.quality:
            buffer = io.BytesIO()
            Image.fromarray(out).save(buffer, "JPEG", quality=self.quality)
            out = np.asarray(Image.open(buffer))
        return out


def places_at(scene, at):
    """Where the things are after the part `at` of the time."""
    return [world.place_at(scene, at)]


def clip(rng, scene, fps=2.0):
    """The frames of a moving scene at `fps`, an even number of them."""
    look = Look(rng, scene)
    n = max(2, round(scene.seconds * fps) // 2 * 2)
    return [look.frame(places_at(scene, i / (n - 1))) for i in range(n)]


# --- the way to the tower -----------------------------------------------------

def smart_resize(width, height, bounds):
    """The size a picture is resized to: whole cells, pixels within bounds."""
    low, high = bounds
    w, h = round(width / CELL) * CELL, round(height / CELL) * CELL
    if w * h > high:
        b = math.sqrt(width * height / high)
        w = max(CELL, math.floor(width / b / CELL) * CELL)
        h = max(CELL, math.floor(height / b / CELL) * CELL)
    elif w * h < low:
        b = math.sqrt(low / (width * height))
        w = math.ceil(width * b / CELL) * CELL
        h = math.ceil(height * b / CELL) * CELL
    return w, h


def merged_grid(width, height, bounds=PICTURE):
    """Rows and columns of the cells a picture becomes."""
    w, h = smart_resize(width, height, bounds)
    return h // CELL, w // CELL


def resize(picture, width, height):
    """RGB array -> uint8 tensor [3, height, width]."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if x.shape[1:] == (height, width):
        return x
    return vision.resize(x, [height, width],
                         vision.InterpolationMode.BICUBIC, antialias=True)


def to_patches(frames):
    """uint8 [n, f, 3, h, w], f frames a slice -> [n, patches, 3*f*16*16], a
    merged token's four patches beside each other."""
    n, f, _, h, w = frames.shape
    x = frames.view(n, f, 3, h // CELL, 2, PATCH, w // CELL, 2, PATCH)
    # -> n, rows, columns, 2, 2, 3, f, 16, 16
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    x = x.reshape(n, h * w // PATCH ** 2, -1)
    return x.float().div_(127.5).sub_(1)


def prepare(frames, bounds=PICTURE):
    """A picture (list of one) or the frames of a clip -> patches [n, 1536],
    grid (t, h, w) in patches."""
    w, h = smart_resize(frames[0].shape[1], frames[0].shape[0], bounds)
    x = torch.stack([resize(f, w, h) for f in frames])
    if len(x) % 2:
        x = torch.cat([x, x[-1:]])
    patches = to_patches(x.view(-1, 2, 3, h, w))
    return (patches.reshape(-1, patches.shape[-1]),
            (len(x) // 2, h // PATCH, w // PATCH))
