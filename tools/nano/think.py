# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trains the Thinker's language model.

    think.py WORK                   on imitated towers -> imitate.pt
    think.py WORK real [STEPS]      goes on, mostly on real ones -> think.pt

It reads word vectors (never trained), sums of them where something is seen, and
writes the answers of the world. A step takes conversations of all kinds; they
are sorted by length and laid side by side in a few groups, so that everything
but the attention runs over one flat list of tokens. The forward pass uses the
reference's own weights and equals its forward pass; only what an answer needs is
computed in the last layer.

A word that is cut by the end of a second reaches the Thinker in two halves,
because the audio tower does not know how seconds follow each other. Therefore
an ear, thrown away afterwards, must find the words said, by CTC, in what half
of the layers have made of the sound.
"""
import random
import sys

import numpy as np
import torch
import torch.nn.functional as F

import hear
import lessons
import media
import prompts
import train
import world
from checkpoint import Nano
from muon import Muon

BALANCE = 2e-3  # weight of the load balancing loss
TOKENS = 4000  # of a step
STEPS = {"imitated": 3000, "real": 12000}
KINDS = {"typed": 12, "spoken": 22, "transcribe": 38, "picture": 25, "video": 5}
EAR = 2  # layers before the ear
HEARD = 0.1  # weight of the error of the ear
RATE = {"imitated": 2.5e-3, "real": 1.4e-3}


class Norm(torch.autograd.Function):
    """RMSNorm over the last axis, in float32, to `dtype`."""

    @staticmethod
    def forward(ctx, x, w, eps, dtype):
        x = x.float()
        r = (x.square().mean(-1, keepdim=True) + eps).rsqrt_()
        n = x * r
        ctx.save_for_backward(n, r, w)
        return (n * w).to(dtype)

    @staticmethod
    def backward(ctx, g):
        n, r, w = ctx.saved_tensors
        g = g.float()
        gn = g * n
        gw = gn.flatten(0, -1 - w.dim()).sum(0)
        g = g * w
        gn *= w
        g -= n * gn.mean(-1, keepdim=True)
        return g.mul_(r), gw, None, None


class Turn(torch.autograd.Function):
    """Rotary positions: x [tokens, heads, 2, half], cos and sin [tokens, half].
    """

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return Turn.turned(x, cos[:, None], sin[:, None])

    @staticmethod
    def backward(ctx, g):
        cos, sin = ctx.saved_tensors
        return Turn.turned(g, cos[:, None], -sin[:, None]), None, None

    @staticmethod
    def turned(x, cos, sin):
        a, b = x.unbind(2)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        torch.sub(a * cos, b * sin, out=y[:, :, 0])
        torch.add(b * cos, a * sin, out=y[:, :, 1])
        return y


class Experts(torch.autograd.Function):
    """The chosen experts of every token: x [n, hidden], chosen and share
    [n, k]. Tokens are sorted by expert, so that each takes one product."""

    @staticmethod
    def forward(ctx, x, chosen, share, gate_up, down):
        n, k = chosen.shape
        experts = gate_up.shape[0]
        chosen = chosen.flatten()
        order = chosen.argsort()
        ends = torch.bincount(chosen, minlength=experts).cumsum(0).tolist()
        spans = [(e, a, b) for e, (a, b) in enumerate(zip([0] + ends, ends))
                 if b > a]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
        xs = x[order // k]
        h = x.new_empty(n * k, gate_up.shape[1])
        for e, a, b in spans:
            torch.mm(xs[a:b], gate_up[e].t(), out=h[a:b])
        gate, up = h.chunk(2, 1)
        s = gate.sigmoid()
        mid = gate * s * up
        y = x.new_empty(n * k, x.shape[1])
        for e, a, b in spans:
            torch.mm(mid[a:b], down[e].t(), out=y[a:b])
        out = torch.bmm(share.to(x.dtype)[:, None],
                        y[back].view(n, k, -1)).squeeze(1)
        ctx.save_for_backward(order, back, share, xs, h, s, mid, y, gate_up,
                              down)
        ctx.spans = spans
        return out

    @staticmethod
    def backward(ctx, g):
        (order, back, share, xs, h, s, mid, y, gate_up, down
         ) = ctx.saved_tensors
        n, k = share.shape
        g = g[order // k]
        g_share = (g * y).sum(1, dtype=torch.float32)[back].view(n, k)
        g = g * share.flatten()[order].to(g.dtype)[:, None]
        g_mid = torch.empty_like(mid)
        g_down = torch.zeros(down.shape, device=g.device)
        for e, a, b in ctx.spans:
            torch.mm(g[a:b], down[e], out=g_mid[a:b])
            g_down[e] = g[a:b].t() @ mid[a:b]
        gate, up = h.chunk(2, 1)
        g_h = torch.empty_like(h)
        g_gate, g_up = g_h.chunk(2, 1)
        g_mid *= s
        torch.mul(g_mid, gate, out=g_up)
        g_mid *= up
        torch.mul(g_mid, 1 + gate * (1 - s), out=g_gate)
        g_xs = torch.empty_like(xs)
        g_gate_up = torch.zeros(gate_up.shape, device=g.device)
        for e, a, b in ctx.spans:
            torch.mm(g_h[a:b], gate_up[e], out=g_xs[a:b])
            g_gate_up[e] = g_h[a:b].t() @ xs[a:b]
        g_x = g_xs[back].view(n, k, -1).sum(1)
        return g_x, None, g_share, g_gate_up, g_down


class Linear(torch.autograd.Function):
    """x [n, in] in its type, the weight [out, in] kept in float32."""

    @staticmethod
    def forward(ctx, x, w):
        w = w.to(x.dtype)
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, (g.t() @ x).float()


class Batch:
    """Conversations as one flat list of tokens, in groups of equal length."""

    def __init__(self, nano, pages, g):
        pages = sorted(pages, key=lambda p: len(p.ids))
        self.groups = []  # (conversations, length)
        first = 0
        for k in range(1, len(pages) + 1):
            longest = len(pages[k - 1].ids)
            if k == len(pages) or (len(pages[k].ids)
                                   > 1.12 * len(pages[first].ids) + 6):
                self.groups.append((k - first, longest))
                first = k
        total = sum(b * n for b, n in self.groups)
        ids = np.zeros(total, np.int64)
        learn = np.zeros(total, bool)
        places = np.zeros((3, total), np.float32)
        at, k = 0, 0
        for b, n in self.groups:
            for page in pages[k:k + b]:
                m = len(page.ids)
                ids[at:at + m] = page.ids
                learn[at:at + m] = page.learn
                places[:, at:at + m] = page.places
                at += n
            k += b
        rows = np.flatnonzero(learn) - 1
        device = train.device()
        self.rows = torch.from_numpy(rows).to(device)
        self.labels = torch.from_numpy(ids[rows + 1]).to(device)
        self.places = torch.from_numpy(places).to(device)
        x = nano.words[torch.from_numpy(ids)]
        sounds = [s for p in pages for s in p.sounds]
        sights = [s for p in pages for s in p.sights]
        self.sounds, self.heard = sounds, None
        self.seen = self.deep = None
        if sounds:
            heard = torch.from_numpy(np.flatnonzero(
                ids == nano.id("<|audio_pad|>")))
            x[heard] = media.features(nano, sounds, g)[0]
            self.heard = heard.to(device)
        if sights:
            seen = torch.from_numpy(np.flatnonzero(
                (ids == nano.id("<|image_pad|>"))
                | (ids == nano.id("<|video_pad|>"))))
            x[seen], deep = media.features(nano, sights, g, deep=True)
            self.seen, self.deep = seen.to(device), deep.to(device)
        self.x = x.to(device)


class Mind:
    """The language model of the Thinker."""

    def __init__(self, nano, parts, dtype=torch.float32):
        """With the weights of the last of `parts` that there is."""
        self.nano, self.dtype = nano, dtype
        torch.manual_seed(7)
        thinker = nano.new("think").to(train.device())
        self.thinker = thinker
        self.language, self.head = thinker.model.language_model, thinker.lm_head
        c = self.config = self.language.config
        self.language.embed_tokens.weight.requires_grad_(False)
        with torch.no_grad():
            self.language.embed_tokens.weight.copy_(nano.words)
            # A word that is merely passed on is nearly written already.
            self.head.weight.copy_(0.06 * nano.words)
            for layer in self.language.layers:
                a, m = layer.self_attn, layer.mlp
                for w in (a.q_proj.weight, a.k_proj.weight, a.v_proj.weight,
                          m.experts.gate_up_proj):
                    w.normal_(0, w.shape[-1] ** -0.5)
                for w in (a.o_proj.weight, m.experts.down_proj):
                    w.normal_(0, (2 * c.num_hidden_layers
                                  * w.shape[-1]) ** -0.5)
        for part in parts:
            nano.begin(part, thinker)
        half = c.head_dim // 2
        theta = c.rope_parameters["rope_theta"]
        _, h, w = c.rope_parameters["mrope_section"]
        self.speed = theta ** (-torch.arange(half) / half).to(train.device())
        self.axis = torch.zeros(half, dtype=torch.long)
        self.axis[1:3 * h:3], self.axis[2:3 * w:3] = 1, 2

    def optimizer(self, lr, ear):
        layers = self.language.layers
        matrices = [p for name, p in layers.named_parameters()
                    if p.dim() > 1 and "gate.weight" not in name]
        others = [p for p in layers.parameters() if p.dim() == 1]
        others += [m.mlp.gate.weight for m in layers]
        others += [self.language.norm.weight, self.head.weight]
        others += ear.parameters()
        return Muon(matrices, others, lr)

    def modules(self):
        return torch.nn.ModuleDict({"language": self.language,
                                    "head": self.head})

    def state(self):
        state = {f"model.language_model.{k}": v
                 for k, v in self.language.state_dict().items()}
        state["lm_head.weight"] = self.head.weight
        return state

    def forward(self, batch):
        """Logits at batch.rows, the load balancing loss and what the ear is
        given."""
        c, dtype, eps = self.config, self.dtype, self.config.rms_norm_eps
        heads, kv, size = (c.num_attention_heads, c.num_key_value_heads,
                           c.head_dim)
        angle = batch.places[self.axis].t() * self.speed  # [tokens, size / 2]
        cos, sin = angle.cos(), angle.sin()
        x, balance, heard = batch.x, 0.0, None
        last = len(self.language.layers) - 1
        for k, layer in enumerate(self.language.layers):
            if k == EAR and batch.heard is not None:
                heard = x[batch.heard]
            a, m = layer.self_attn, layer.mlp
            n = Norm.apply(x, layer.input_layernorm.weight, eps, dtype)
            qkv = Linear.apply(n, torch.cat((
                a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)))
            qk, v = qkv.split(((heads + kv) * size, kv * size), 1)
            w = torch.cat((a.q_norm.weight.expand(heads, -1),
                           a.k_norm.weight.expand(kv, -1)))
            qk = Norm.apply(qk.unflatten(1, (-1, size)), w, eps, torch.float32)
            qk = Turn.apply(qk.unflatten(2, (2, -1)), cos, sin).flatten(2)
            mixed = self._attend(batch.groups, qk, v).to(dtype)
            if k == last:  # only what is read of it
                mixed, x = mixed[batch.rows], x[batch.rows]
            x = x + Linear.apply(mixed, a.o_proj.weight)
            n = Norm.apply(x, layer.post_attention_layernorm.weight, eps, dtype)
            scores = F.linear(n.float(), m.gate.weight)
            top, chosen = scores.topk(c.num_experts_per_tok)
            share = top.softmax(1)
            x = x + Experts.apply(n, chosen, share, m.experts.gate_up_proj,
                                  m.experts.down_proj)
            load = torch.bincount(chosen.flatten(),
                                  minlength=c.num_experts) / len(x)
            balance = balance + c.num_experts * (
                load * scores.softmax(1).mean(0)).sum()
            if batch.seen is not None and k < len(batch.deep):
                x = x.index_add(0, batch.seen, batch.deep[k])
        n = Norm.apply(x, self.language.norm.weight, eps, dtype)
        return Linear.apply(n, self.head.weight).float(), balance, heard

    def _attend(self, groups, qk, v):
        """In float32: what one core does fastest."""
        c = self.config
        heads, kv = c.num_attention_heads, c.num_key_value_heads
        out, sizes = [], [b * n for b, n in groups]
        for (b, n), qk, v in zip(groups, qk.split(sizes), v.split(sizes)):
            qk = qk.view(b, n, -1, c.head_dim).transpose(1, 2)
            v = v.float().view(b, n, kv, c.head_dim).transpose(1, 2)
            q, key = qk[:, :heads], qk[:, heads:]
            key, v = (t.repeat_interleave(heads // kv, 1) for t in (key, v))
            out.append(F.scaled_dot_product_attention(
                q, key, v, is_causal=True).transpose(1, 2).reshape(b * n, -1))
        return torch.cat(out)


class Ear(torch.nn.Module):
    def __init__(self, nano):
        super().__init__()
        self.classes = hear.Classes(nano)
        n = self.classes.vectors.shape
        self.norm = torch.nn.LayerNorm(n[1])
        self.read = torch.nn.Linear(*n[::-1])
        with torch.no_grad():
            self.read.weight.copy_(hear.KAPPA * self.classes.vectors)
            self.read.bias.zero_()

    def error(self, batch, heard):
        """By CTC, per word."""
        if heard is None:
            return torch.zeros(())
        lengths = [s.tokens for s in batch.sounds]
        chances = self.read(self.norm(heard)).log_softmax(1)
        return hear.ctc(
            hear.laid_out(chances, lengths), lengths,
            [[self.classes.index[w] for w in s.words] for s in batch.sounds])


def draw_batch(nano, teacher, layout, rng, tokens):
    """Conversations of so many tokens in all."""
    pages, n = [], 0
    while n < tokens:
        pages.append(layout.lay(*teacher.draw(rng)))
        n += len(pages[-1].ids)
    g = torch.Generator().manual_seed(rng.getrandbits(40))
    return Batch(nano, pages, g)


@torch.no_grad()
def marks(mind, batch):
    """For every answer of a batch (right, ids wanted, ids written instead):
    whether greedy decoding would write it just so, which is whether every token
    is the likeliest after the right ones before it."""
    logits, *_ = mind.forward(batch)
    got, want = logits.argmax(1).tolist(), batch.labels.tolist()
    rows = batch.rows.cpu().numpy()
    first = np.flatnonzero(np.diff(rows, prepend=-9) != 1).tolist()
    return [(got[a:b] == want[a:b], want[a:b], got[a:b])
            for a, b in zip(first, first[1:] + [len(rows)])]


def examine(mind, pages, tokens=8000):
    """The share of right answers in pages, and some wrong ones."""
    pages = sorted(pages, key=lambda p: len(p.ids))
    g = torch.Generator().manual_seed(1)
    found, some, n = [], [], 0
    for k, page in enumerate(pages):
        some.append(page)
        n += len(page.ids)
        if n > tokens or k == len(pages) - 1:
            found += marks(mind, Batch(mind.nano, some, g))
            some, n = [], 0
    text = mind.nano.tokenizer.decode
    wrong = [f"{text(want)} -> {text(got)}" for right, want, got in found
             if not right]
    return 1 - len(wrong) / len(found), wrong[::1 + len(wrong) // 4]


def every_sum(layout):
    """Each sum of the world asked once."""
    pages = []
    for op, most in (("plus", 50), ("minus", 50), ("times", 12)):
        for a in range(most + 1):
            for b in range(most + 1):
                c = {"plus": a + b, "minus": a - b, "times": a * b}[op]
                said = f"{world.say(a)} {op} {world.say(b)}"
                pages.append(layout.lay([(
                    [f"what is {said}"], f"{said} is {world.say(c)}")]))
    return pages


def report(nano, part, mind, teacher, layout, count):
    """What is answered rightly of each kind, with some of the rest."""
    rng = random.Random("exam")
    pages = {kind: [layout.lay(*teacher.draw(rng, kind))
                    for _ in range(count)] for kind in KINDS}
    told = {}
    for kind, pages in dict(sums=every_sum(layout), **pages).items():
        told[kind], wrong = examine(mind, pages)
        print(f"{kind} {told[kind]:.4f}", *wrong, sep="\n    ", flush=True)
    train.report(nano, part, **told)


def main(work, stage="imitated", steps=0):
    train.prepare()
    nano = train.first(lambda: Nano(work))
    parts = ["imitate", "think"][:1 + (stage == "real")]
    mind = Mind(nano, parts, torch.bfloat16)
    layout = prompts.Prompts(nano)
    teacher = examiner = lessons.Lessons(media.Imitated(nano), KINDS)
    if stage == "real":
        teacher, examiner = (lessons.Lessons(media.Recorded(
            nano, train.first(lambda: media.pool(nano, name)), rate), KINDS)
            for name, rate in (("sound", 0.8), ("sound-far", 1.0)))
    ear = Ear(nano).to(train.device())
    steady = train.Steady(mind.modules())
    run = train.Run(nano, f"think-{stage}", {
        "mind": mind.modules(), "ear": ear, "steady": steady.module},
        int(steps) or STEPS[stage], warmup=60, lr=RATE[stage],
        optimizer=mind.optimizer(RATE[stage], ear))
    for step in run:
        batch = draw_batch(nano, teacher, layout, run.rng(step), TOKENS)
        logits, balance, heard = mind.forward(batch)
        loss = F.cross_entropy(logits, batch.labels)
        missed = ear.error(batch, heard)
        right = logits.detach().argmax(1) == batch.labels
        run.learn(loss + BALANCE * balance + HEARD * missed, words=loss,
                  heard=missed, right=right.float().mean())
        steady.follow(step)
        if run.done % 400 == 0 and run.done < run.steps:
            keep(nano, parts[-1], mind, steady, examiner, layout, 60)
    keep(nano, parts[-1], mind, steady, examiner, layout, 400)


def keep(nano, part, mind, steady, examiner, layout, count):
    """Saves the steady weights and tells how good they are."""
    if train.rank():
        return
    late = mind.modules().state_dict()
    late = {k: v.clone() for k, v in late.items()}
    mind.modules().load_state_dict(steady.module.state_dict())
    nano.save(part, mind.state())
    report(nano, part, mind, examiner, layout, count)
    mind.modules().load_state_dict(late)


if __name__ == "__main__":
    main(*sys.argv[1:])
