# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trains the vision tower of qomni-nano.

    python3 see.py WORK [STEPS]  ->  WORK/see.pt

    encode(tower, [patches, …], [grid, …]) -> tokens, DeepStack levels

The tower reads patches of pictures and slices of clips and answers, in the
merged cell that holds the centre of a thing, with a sum of word vectors: its
colour, its shape, its row and its column, and where exactly the centre is along
two more vectors. Every other cell answers with the vector of <|image_pad|>. A
centre near the border of cells is shared out among them, so that sums over
cells stay right. In a slice of a clip the thing has moved between the frames;
the mean of its places counts.

All these vectors are nearly orthogonal, so what a cell says can be read off
with the pseudo-inverse of their table: `Marks` below.

The tower is trained on small pictures first, on real sizes more and more. Two
heads on the way, thrown away afterwards, tell for each patch which thing covers
it and where that has its centre: without them the first thousands of steps
would go into finding out that there are things.
"""
import math
import random
import sys

import torch
import torch.nn.functional as F

import checkpoint
import muon
import pictures
import train
import world

STEPS = 12000
RATE = 7e-4
PATCHES = 3200  # of a step
SMALL = (43000, 62000)  # pixels of the small pictures
BAND = 0.03  # of a cell: centres this near to a border are shared


class Marks:
    """The vectors that say what is seen, as rows of `table`, and how to read
    them: cells [..., 160] @ read -> how much of each is in there."""

    def __init__(self, nano):
        self.colours = slice(0, 8)
        self.shapes = slice(8, 12)
        self.rows = slice(12, 15)
        self.columns = slice(15, 18)
        self.x, self.y, self.pad = 18, 19, 20
        words = world.COLOURS + world.SHAPES + world.ROWS + world.COLUMNS
        special = ("<|object_ref_start|>", "<|object_ref_end|>",
                   "<|image_pad|>")
        self.table = torch.stack(
            [nano.word(w) for w in words]
            + [nano.words[nano.id(s)] for s in special])  # [21, 160]
        self.read = torch.linalg.pinv(self.table)  # [160, 21]

    def to(self, device):
        self.table, self.read = (t.to(device) for t in (self.table, self.read))
        return self


# --- the tower ----------------------------------------------------------------

def start(tower):
    """Weights to start from: the patch embedding as the lowest waves of a
    patch, in the mean and in the difference of its two frames."""
    c = tower.config
    gen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, m in tower.named_modules():
            if isinstance(m, torch.nn.Linear):
                scale = m.in_features ** -0.5
                if name.endswith(("attn.proj", "linear_fc2")):
                    scale *= (2 * c.depth) ** -0.5
                m.weight.copy_(scale * torch.randn(m.weight.shape,
                                                   generator=gen))
                m.bias.zero_()
        tower.pos_embed.weight.copy_(_position_table(
            int(c.num_position_embeddings ** 0.5), c.hidden_size, gen))
        tower.patch_embed.proj.bias.zero_()
        side = pictures.PATCH
        at = (torch.arange(side) + 0.5) * (math.pi / side)
        waves = sorted(((u, v) for u in range(8) for v in range(8)),
                       key=lambda w: (w[0] ** 2 + w[1] ** 2, w))
        each = c.hidden_size // 3
        still = each - 6
        w = torch.zeros_like(tower.patch_embed.proj.weight)  # [n, 3, 2, 16, 16]
        for i in range(3 * each):
            channel, k = divmod(i, each)
            u, v = waves[k if k < still else k - still]
            wave = torch.cos(u * at)[:, None] * torch.cos(v * at)
            wave *= (1 if u == v == 0 else 3) / wave.pow(2).sum()
            w[i, channel, 0] = wave / 2
            w[i, channel, 1] = wave / 2 if k < still else -wave / 2
        # mix, so that every direction of the space says something
        mix, _ = torch.linalg.qr(torch.randn(len(w), len(w), generator=gen))
        tower.patch_embed.proj.weight.copy_(
            torch.einsum("ij,jcfyx->icfyx", mix, w) * 6)


def _position_table(side, hidden, gen):
    """Smooth waves over the picture, mixed: [side * side, hidden]."""
    at = torch.linspace(-1, 1, side)
    y, x = (t.flatten() for t in torch.meshgrid(at, at, indexing="ij"))
    few = [x, y] + [f(k * math.pi / 2 * t) for k in (1, 2, 3, 4)
                    for t in (x, y) for f in (torch.sin, torch.cos)]
    few = torch.stack(few, 1)
    mix = torch.randn(few.shape[1], hidden, generator=gen)
    return 0.4 * few @ mix / few.shape[1] ** 0.5


_grids = {}


def _places(tower, h, w):
    """What depends on the grid only, in the order of the patches: indices into
    the position table [4, n], their weights [4, n, 1], cosine and sine of the
    rotary angles [n, head_dim]."""
    device = tower.pos_embed.weight.device
    key = h, w, device
    if key not in _grids:
        side = tower.num_grid_per_side
        r = torch.arange(h).view(h // 2, 1, 2, 1)
        c = torch.arange(w).view(1, w // 2, 1, 2)
        r, c = (t.expand(h // 2, w // 2, 2, 2).flatten() for t in (r, c))
        u = r * ((side - 1) / max(1, h - 1))
        v = c * ((side - 1) / max(1, w - 1))
        u0, v0 = u.long(), v.long()
        u1, v1 = (u0 + 1).clamp(max=side - 1), (v0 + 1).clamp(max=side - 1)
        fu, fv = u - u0, v - v0
        index = torch.stack([u0 * side + v0, u0 * side + v1,
                             u1 * side + v0, u1 * side + v1])
        weight = torch.stack([(1 - fu) * (1 - fv), (1 - fu) * fv,
                              fu * (1 - fv), fu * fv])
        inv = tower.rotary_pos_emb.inv_freq.cpu()
        angle = torch.cat([r[:, None] * inv, c[:, None] * inv], 1).repeat(1, 2)
        _grids[key] = [t.to(device) for t in (index, weight[:, :, None],
                                              angle.cos(), angle.sin())]
    return _grids[key]


def forward(tower, patches, h, w):
    """Slices of one grid, patches [b, n, 768 (both frames alike) or 1536] ->
    cells [b, n/4, 160], DeepStack levels, the hidden states after each block.
    The same numbers as tower.forward()."""
    index, weight, cos, sin = _places(tower, h, w)
    b, n, _ = patches.shape
    embed = tower.patch_embed.proj
    kernel = embed.weight
    if patches.shape[-1] < kernel[0].numel():
        kernel = kernel.sum(2)
    table = tower.pos_embed.weight
    x = F.linear(patches, kernel.flatten(1), embed.bias) \
        + (table[index] * weight).sum(0)
    heads = tower.config.num_heads
    hidden, levels = [], []
    for i, block in enumerate(tower.blocks):
        a = block.attn
        qkv = a.qkv(block.norm1(x)).view(b, n, 3, heads, -1)
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        one, two = qk.chunk(2, -1)
        qk = qk * cos[:, None, None] \
            + torch.cat([-two, one], -1) * sin[:, None, None]
        q, k = qk.permute(2, 0, 3, 1, 4)  # [b, heads, n, head_dim]
        with torch.autocast(x.device.type, enabled=False):
            o = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        x = x + a.proj(o.transpose(1, 2).reshape(b, n, -1))
        x = x + block.mlp(block.norm2(x))
        hidden.append(x)
        if i in tower.deepstack_visual_indexes:
            level = tower.deepstack_visual_indexes.index(i)
            levels.append(_merge(tower.merger_list[level], x, True))
    return _merge(tower.merger, x, False), levels, hidden


def _merge(merger, x, joined):
    b, n, width = x.shape
    if joined:
        x = merger.ln_q(x.view(b, n // 4, 4 * width))
    else:
        x = merger.ln_q(x).view(b, n // 4, 4 * width)
    for layer in merger.mlp:
        x = layer(x)
    return x


@torch.no_grad()
def encode(tower, patches, grids):
    """Pictures and clips, each patches [t*h*w, 1536] and (t, h, w) -> for each
    its tokens [t*h*w/4, 160], and its DeepStack levels, each like them."""
    tokens, deep = [], []
    for p, (t, h, w) in zip(patches, grids):
        p = p.to(tower.pos_embed.weight).view(t, h * w, -1)
        parts = [forward(tower, some, h, w)[:2] for some in p.split(8)]
        tokens.append(torch.cat([cells for cells, _ in parts]).flatten(0, 1))
        deep.append([torch.cat(level).flatten(0, 1)
                     for level in zip(*(levels for _, levels in parts))])
    return tokens, deep


# --- what it learns from ------------------------------------------------------

RATIOS = (1, 1, 4 / 3, 4 / 3, 16 / 9, 3 / 2, 3 / 4, 2 / 3, 9 / 16)
VIDEOS = ((640, 480), (640, 360), (480, 640), (512, 384), (480, 480),
          (800, 450), (720, 540))


def draw_still(rng, width, height, small):
    """A scene and its look; nothing in it is less than `small` pixels wide."""
    most = rng.choice((1, 3, 4, 6, 8))
    while True:
        scene = world.draw_scene(rng, most, width, height)
        if min(t.size for t in scene.things) * width >= small:
            break
    used = {t.colour for t in scene.things}
    free = [c for c in ("white", "white", "black") if c not in used]
    if free and rng.random() < 0.2:
        scene.background = rng.choice(free)
    if rng.random() < 0.01:
        scene.things = []
    return scene


def draw_pair(rng, width, height, small):
    """A scene and where its things are in two frames."""
    if rng.random() < 0.2:
        scene = draw_still(rng, width, height, small)
        places = [(t.x, t.y) for t in scene.things]
        return scene, (places, places)
    while True:
        scene = world.draw_motion(rng, width, height)
        if scene.things[0].size * width >= small:
            break
    step = 1 / rng.choice((1, 2, 2, 2, 2, 3, 4, 8)) / scene.seconds
    first = rng.uniform(0, max(0, 1 - step))
    return scene, [pictures.places_at(scene, at)
                   for at in (first, min(1, first + step))]


def share(x, y, columns, rows):
    """The cells a centre belongs to: [(row, column, part)], parts add up
    to 1."""
    parts = []
    for at, n in ((y, rows), (x, columns)):
        at = min(max(at, 0), 0.9999) * n
        i = int(at)
        low, high = at - i, i + 1 - at
        if low < BAND and i > 0:
            part = 0.5 - low / (2 * BAND)
            parts.append([(i - 1, part), (i, 1 - part)])
        elif high < BAND and i < n - 1:
            part = 0.5 - high / (2 * BAND)
            parts.append([(i, 1 - part), (i + 1, part)])
        else:
            parts.append([(i, 1.0)])
    return [(r, c, p * q) for r, p in parts[0] for c, q in parts[1]]


class Batch:
    """Pictures of one grid, drawn: frames uint8 [b, 1 or 2, 3, h, w];
    coefs [b, cells, 21] of Marks; patch [b, patches, 4]: colour (8: nothing),
    shape, x and y of the centre less those of the patch, in patches."""

    def __init__(self, rng, real, marks):
        small = 24
        what = rng.random()
        pair = rng.random() < 0.4
        if what < 0.12 and real:
            self.w, self.h = pictures.smart_resize(*rng.choice(VIDEOS),
                                                   pictures.VIDEO)
            pair = rng.random() < 0.6
        else:
            ratio = rng.choice(RATIOS)
            self.w, self.h = pictures.smart_resize(
                1000 * ratio ** 0.5, 1000 * ratio ** -0.5,
                (pictures.PICTURE if rng.random() < 0.7 else (131072, 160000))
                if real else SMALL)
        per = self.w * self.h // pictures.PATCH ** 2
        # attention costs the more the larger the picture is
        b = max(1, round(PATCHES / per * 1600 / (1200 + per)))
        frames, owners, coefs, patch = [], [], [], []
        for _ in range(b):
            scale = rng.choice((1, 1, 1, rng.uniform(0.6, 1),
                                rng.uniform(1, 1.5)))
            width = round(self.w * scale * rng.uniform(0.97, 1.03))
            height = round(self.h * scale * rng.uniform(0.97, 1.03))
            if scale == 1:
                width, height = self.w, self.h
            if pair:
                scene, places = draw_pair(rng, width, height, small * scale)
            else:
                scene = draw_still(rng, width, height, small * scale)
                places = [[(t.x, t.y) for t in scene.things]]
            look = pictures.Look(rng, scene)
            seen = []
            for p in places:
                seen.append(pictures.resize(look.frame(p), self.w, self.h))
                owners.append(self._owner(look.owner))
            frames.append(torch.stack(seen))
            middle = [tuple((a + b) / 2 for a, b in zip(p, q))
                      for p, q in zip(places[0], places[-1])]
            coefs.append(self._coefs(scene, middle, marks))
            owner = owners[-1]
            if pair:
                owner = torch.where(owner < 0, owners[-2], owner)
            patch.append(self._patch(scene, middle, owner))
        self.frames = torch.stack(frames)
        self.coefs, self.patch = torch.stack(coefs), torch.stack(patch)

    def _owner(self, owner):
        """Whose the middles of the patches are, in the order of patches."""
        height, width = owner.shape
        rows, columns = (n // pictures.PATCH for n in (self.h, self.w))
        r = ((torch.arange(rows) + 0.5) * height / rows).long()
        c = ((torch.arange(columns) + 0.5) * width / columns).long()
        return _in_order(torch.from_numpy(owner[r.numpy()[:, None], c.numpy()])
                         .long())

    def _coefs(self, scene, places, m):
        rows, columns = self.h // pictures.CELL, self.w // pictures.CELL
        ret = torch.zeros(rows, columns, 21)
        for t, (x, y) in zip(scene.things, places):
            at = world.Thing(t.shape, t.colour, x, y, t.size)
            row, column = at.place.split()
            one = torch.zeros(21)
            one[world.COLOURS.index(t.colour)] = 1
            one[8 + world.SHAPES.index(t.shape)] = 1
            one[12 + world.ROWS.index(row)] = 1
            one[15 + world.COLUMNS.index(column)] = 1
            one[m.x], one[m.y] = 2 * x - 1, 2 * y - 1
            for r, c, part in share(x, y, columns, rows):
                ret[r, c] += part * one
        ret[..., m.pad] = 1 - ret[..., m.colours].sum(-1)
        return ret.flatten(0, 1)

    def _patch(self, scene, places, owner):
        rows, columns = (n // pictures.PATCH for n in (self.h, self.w))
        table = torch.tensor(
            [[world.COLOURS.index(t.colour), world.SHAPES.index(t.shape),
              x * columns - 0.5, y * rows - 0.5]
             for t, (x, y) in zip(scene.things, places)] + [[8, 0, 0, 0]])
        ret = table[owner]  # -1: the last row
        r = torch.arange(rows)[:, None].expand(rows, columns)
        c = torch.arange(columns).expand(rows, columns)
        ret[:, 2] -= _in_order(c)
        ret[:, 3] -= _in_order(r)
        return ret


def _in_order(x):
    """[rows, columns] -> flat, the four patches of a cell beside each other."""
    h, w = x.shape
    return x.reshape(h // 2, 2, w // 2, 2).transpose(1, 2).flatten()


# --- losses -------------------------------------------------------------------

def cell_loss(cells, batch, marks, things):
    """How far the cells are off, per thing."""
    off = (cells - batch.coefs @ marks.table).pow(2).sum(-1) / 40
    part = 1 - batch.coefs[..., marks.pad]
    weight = 0.3 + 1.7 * part.clamp(0, 1)
    loss = (off * weight).sum() / things
    got = cells @ marks.read
    said = (got[..., marks.colours].sum(-1)
            + got[..., marks.shapes].sum(-1)) / 2
    loss = loss + 0.5 * F.binary_cross_entropy_with_logits(
        8 * (said - 0.5), part.clamp(0, 1), reduction="sum") / things
    main = part > 0.5
    got, want = got[main], batch.coefs[main]
    if not len(got):
        return loss
    for kind, weight in ((marks.colours, 1), (marks.shapes, 1),
                         (marks.rows, 0.5), (marks.columns, 0.5)):
        loss = loss + weight * F.cross_entropy(8 * got[:, kind],
                                               want[:, kind].argmax(1))
    place = slice(marks.x, marks.y + 1)
    return loss + 20 * F.smooth_l1_loss(got[:, place], want[:, place],
                                        beta=0.05)


def patch_loss(told, batch):
    """What the heads on the way say of each patch, [b, patches, 9 + 4 + 2]."""
    want = batch.patch
    loss = F.cross_entropy(told[..., :9].flatten(0, 1),
                           want[..., 0].long().flatten())
    on = want[..., 0] < 8
    if on.any():
        told, want = told[on], want[on]
        loss = loss + F.cross_entropy(told[:, 9:13], want[:, 1].long())
        loss = loss + F.smooth_l1_loss(told[:, 13:], want[:, 2:])
    return loss


# --- what it has learnt -------------------------------------------------------

def decode(cells, columns, marks):
    """Cells [rows * columns, 160] -> [(colour, shape, row and column)]: cells
    that speak, neighbours of one mind put together."""
    got = cells @ marks.read
    said = (got[:, marks.colours].sum(1) + got[:, marks.shapes].sum(1)) / 2
    left = {i for i in (said > 0.15).nonzero().flatten().tolist()}
    found = []
    while left:
        first = max(left, key=lambda i: said[i])
        r, c = divmod(first, columns)
        near = [i for i in left if abs(i // columns - r) <= 1
                and abs(i % columns - c) <= 1
                and (i == first or said[first] + said[i] < 1.4)]
        left.difference_update(near)
        total = got[near].sum(0)
        if said[near].sum() < 0.5:
            continue
        found.append((
            world.COLOURS[total[marks.colours].argmax()],
            world.SHAPES[total[marks.shapes].argmax()],
            world.ROWS[total[marks.rows].argmax()] + " "
            + world.COLUMNS[total[marks.columns].argmax()]))
    return found


def clear(scene):
    """Whether no centre is so near the border of two places that a pixel
    decides."""
    return all(abs(at * 3 - b) > 0.06 for t in scene.things
               for at in (t.x, t.y) for b in (1, 2))


@torch.no_grad()
def measure(tower, marks, n):
    """Parts of n pictures and n / 4 slices of clips understood without any
    mistake; mistakes of kinds and places; things lost by their size."""
    kinds = places = moved = 0
    small, lost = {}, {}
    device = marks.table.device
    for i in range(n + n // 4):
        rng = random.Random(f"held out {i}")
        if i < n:
            while True:
                scene = world.draw_scene(rng)
                if clear(scene):
                    break
            frames = [pictures.Look(rng, scene).frame()]
            bounds = pictures.PICTURE
        else:
            scene = world.draw_motion(rng, 320, 240)
            frames = pictures.clip(rng, scene)[2:4]
            bounds = pictures.VIDEO
        patches, (_, h, w) = pictures.prepare(frames, bounds)
        cells, _, _ = forward(tower, patches[None].to(device), h, w)
        found = decode(cells[0], w // 2, marks)
        want = sorted((t.colour, t.shape) for t in scene.things)
        right = sorted(f[:2] for f in found) == want
        if i >= n:
            moved += right
            continue
        kinds += right
        places += sorted(found) == sorted(
            (t.colour, t.shape, t.place) for t in scene.things)
        for t in scene.things:
            size = min(4, int(t.size * 10))
            small[size] = small.get(size, 0) + 1
            lost[size] = lost.get(size, 0) + (
                (t.colour, t.shape, t.place) not in found)
    return {"scenes": round(places / n, 4), "kinds": round(kinds / n, 4),
            "slices": round(moved / (n // 4), 4),
            "lost_by_size": {f"{10 * k}%": round(lost[k] / small[k], 4)
                             for k in sorted(small)}}


# --- the run ------------------------------------------------------------------

def optimizer(tower, heads):
    """Muon for the blocks and most of the mergers; orthogonalising the widest
    matrices of DeepStack would cost more than it gives."""
    matrices, others = [], list(heads.parameters())
    for name, p in tower.named_parameters():
        layer = name.startswith(("blocks.", "merger")) and p.dim() == 2
        wide = name.startswith("merger_list") and "mlp.0" in name
        (matrices if layer and not wide else others).append(p)
    return muon.Muon(matrices, others, RATE)


def main():
    train.prepare()
    nano = checkpoint.Nano(sys.argv[1])
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
    device = train.device()
    marks = Marks(nano).to(device)
    tower = nano.new("see")
    start(tower)
    torch.manual_seed(6)
    heads = torch.nn.ModuleList(
        [torch.nn.Linear(tower.config.hidden_size, 15) for _ in range(2)])
    with torch.no_grad():
        for merger in (tower.merger, *tower.merger_list):
            merger.mlp[2].weight.mul_(0.3)
            merger.mlp[2].bias.copy_(marks.table[marks.pad])
    nano.begin("see", tower)
    tower.to(device)
    heads.to(device)
    run = train.Run(nano, "see", {"tower": tower, "heads": heads}, steps,
                    lr=RATE, warmup=200, optimizer=optimizer(tower, heads))
    for step in run:
        rng = run.rng(step)
        batch = Batch(rng, rng.random() < 4 * (step / steps - 0.65), marks)
        patches = pictures.to_patches(batch.frames.to(device))
        batch.coefs = batch.coefs.to(device)
        batch.patch = batch.patch.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            cells, levels, hidden = forward(tower, patches,
                                            batch.h // pictures.PATCH,
                                            batch.w // pictures.PATCH)
        cells, levels = cells.float(), [c.float() for c in levels]
        things = max(1, (1 - batch.coefs[..., marks.pad]).sum().item())
        main_loss = cell_loss(cells, batch, marks, things)
        deep = sum(cell_loss(c, batch, marks, things) for c in levels)
        on_the_way = sum(patch_loss(head(x), batch)
                         for head, x in zip(heads, hidden[1:]))
        run.learn(main_loss + 0.1 * deep + 0.7 * on_the_way,
                  cells=main_loss, deep=deep, patches=on_the_way)
        if run.done % 600 == 0:
            nano.save("see", tower.state_dict())
            print(measure(tower, marks, 120), flush=True)
    nano.save("see", tower.state_dict())
    told = measure(tower, marks, 1000)
    print(told)
    train.report(nano, "see", steps=run.done, **told)


if __name__ == "__main__":
    main()
