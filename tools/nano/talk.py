# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trains the Talker and its code predictor, part "talk".

    python3 tools/nano/talk.py WORK [STEPS]

In: the vectors of a reply's tokens, one a frame, after what the user said and
the name of a voice. Out: the four codes of every frame (see vocoder.py), then
the end. The reply's text is spoken word by word whatever was said before; the
user's part is there so that it learns to be deaf to it, with noise in place of
the states of the Thinker at sounds and pictures.

What has to be learned: the token being spoken stands as many positions back as
the lag says, the next one stands one nearer. Two heads of the first layer start
out looking there (the vectors of the lags are made of the waves that rotary
positions turn by, so that a linear map makes a query of them); everything else
starts at random, and all of it is trained.

The codes of a text are given, so it is the logits at the right history that
count: the share of texts with all codes right, and the chance that sampling
gives just those, follow from them without generating.
"""
import random
import sys

import torch
import torch.nn.functional as F

import train
import world
from checkpoint import TEMPERATURE, Nano
from vocoder import BOOK, Codec

PENALTY = 1.05  # on what was said before, at its default


# --- what it reads ------------------------------------------------------------

class Prompter:
    """Draws what the Talker is given before and while it speaks."""

    def __init__(self, nano, codec):
        self.codec, self.id = codec, nano.id
        self.encode = nano.tokenizer.encode
        c = nano.config.talker_config
        self.eos = c.codec_eos_token_id
        self.names = [c.speaker_id[v] for v in codec.voices]
        self.before = [c.codec_nothink_id, c.codec_think_bos_id,
                       c.codec_think_eos_id]
        self.pad, self.bos = c.codec_pad_id, c.codec_bos_id
        self.tokens = range(nano.id("<|endoftext|>"))

    def reply(self, rng):
        what = rng.random()
        if what < 0.80:
            text = world.draw_answer(rng)
        elif what < 0.90:
            word = rng.choice(world.WORDS)
            text = " ".join([word] * rng.randint(2, 8))
        elif what < 0.97:
            text = " ".join(rng.choice(world.WORDS + list(world.LETTERS))
                            for _ in range(rng.randint(1, 25)))
        else:
            return [rng.choice(self.tokens) for _ in range(rng.randint(1, 20))]
        return self.encode(text)

    def media(self, rng):
        """Something heard or seen: its tokens, -1 where a state of the Thinker
        stands; for each the three positions, from 0; how far positions go."""
        if rng.random() < 0.6:
            n = rng.randint(3, 60)
            ids = [self.id("<|audio_start|>"), *[-1] * n,
                   self.id("<|audio_end|>")]
            return ids, [(i, i, i) for i in range(n + 2)], n + 2
        t = rng.choice((1, 1, 2, 3))
        rows, columns = rng.randint(2, 11), rng.randint(2, 11)
        if t > 1:
            rows, columns = min(rows, 6), min(columns, 6)
        step = rng.choice((6.5, 13, 26))
        at = [(0, 0, 0)] + [
            (1 + i * step, 1 + r, 1 + c) for i in range(t)
            for r in range(rows) for c in range(columns)]
        end = 1 + max(max(p) for p in at)
        at.append((end, end, end))
        return ([self.id("<|vision_start|>"), *[-1] * (t * rows * columns),
                 self.id("<|vision_end|>")], at, end + 1)

    def user(self, rng):
        """A user's turn: ids, positions from 0, how far they go."""
        parts = [self.encode("<|im_start|>user\n")]
        if rng.random() < 0.2:
            parts.append(self.media(rng))
            if rng.random() < 0.5:
                parts.append(self.encode(world.draw_question(rng)))
        else:
            parts.append(self.encode(world.draw_utterance(rng)))
        parts.append(self.encode("<|im_end|>\n"))
        ids, at, end = [], [], 0
        for part in parts:
            if isinstance(part, tuple):
                more, places, length = part
            else:
                more, length = part, len(part)
                places = [(i, i, i) for i in range(length)]
            ids += more
            at += [tuple(end + p for p in place) for place in places]
            end += length
        return ids, at, end

    def draw(self, rng):
        """-> text ids [l], positions [l][3], codes fed [l][4] (-1: none), the
        position of the first answer, codes [4, t]."""
        ids, at, end = [], [], 0
        for _ in range(1 if rng.random() < 0.85 else 2):
            more, places, length = self.user(rng)
            ids += more
            at += [tuple(end + p for p in place) for place in places]
            end += length
        reply = self.reply(rng)
        voice = rng.randrange(len(self.names))
        codes = self.codec.speak(reply, voice)
        n = codes.shape[1]
        pad, eod = self.id("<tts_pad>"), self.id("<tts_text_eod>")
        header = self.encode("<|im_start|>assistant\n")
        first = len(ids) + 8
        trailing = reply[1:] + [eod] + [pad] * n
        fed = [[-1] * 4 for _ in range(len(ids) + 3)]
        fed += [[c, -1, -1, -1] for c in
                (*self.before, self.names[voice], self.pad, self.bos)]
        ids += header + [pad] * 4 + [self.id("<tts_text_bos>"), reply[0]]
        ids += trailing[:n]
        fed += codes.T.tolist()
        at += [(end + i,) * 3 for i in range(9 + n)]
        return ids, at, fed, first, codes

    def batch(self, rng, n):
        """n of nearly one length, padded on the right."""
        drawn = sorted((self.draw(rng) for _ in range(4 * n)),
                       key=lambda d: len(d[0]))
        start = rng.randint(0, len(drawn) - n)
        drawn = drawn[start:start + n]
        most = max(len(d[0]) for d in drawn)
        ids = torch.zeros(n, most, dtype=torch.long)
        at = torch.zeros(3, n, most)
        fed = torch.full((n, most, 4), -1, dtype=torch.long)
        frames = max(d[4].shape[1] for d in drawn) + 1
        goal = torch.full((n, frames, 4), -1, dtype=torch.long)
        first = torch.tensor([d[3] for d in drawn])
        for i, (text, places, code, _, codes) in enumerate(drawn):
            ids[i, :len(text)] = torch.tensor(text)
            at[:, i, :len(text)] = torch.tensor(places).T.float()
            fed[i, :len(text)] = torch.tensor(code)
            goal[i, :codes.shape[1]] = codes.T
            goal[i, codes.shape[1], 0] = BOOK  # the end
        return ids, at, fed, first, goal


def corrupt(fed, first, codec, rng):
    """Puts wrong acoustic codes into what it is said to have spoken; the place
    in the unit can still be read."""
    g = torch.Generator().manual_seed(rng.getrandbits(40))
    b, l, _ = fed.shape
    what = torch.rand(b, l, generator=g)
    frame = (torch.arange(l) > first[:, None])
    any_code = torch.randint(BOOK, (b, l), generator=g)
    fed = fed.clone()
    for group, low, high in ((2, 0, 0.02), (3, 0.02, 0.05)):
        hit = frame & (fed[..., group] >= 0) & (what >= low) & (what < high)
        fed[..., group][hit] = any_code[hit]
    hit = frame & (fed[..., 1] >= 0) & (what >= 0.05) & (what < 0.07)
    place = codec.place_of[fed[..., 1][hit]]
    start, size = codec.range_of[place].unbind(-1)
    fed[..., 1][hit] = start + any_code[hit] % size
    return fed


# --- the model, many texts at once --------------------------------------------

def norm(m, x):
    return F.rms_norm(x, x.shape[-1:], m.weight, m.variance_epsilon)


def turn(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def attend(m, x, cos, sin):
    """Causal attention; cos, sin [b or 1, 1, l, head]."""
    b, l, _ = x.shape
    heads = lambda y: y.view(b, l, -1, m.head_dim)
    q = turn(norm(m.q_norm, heads(m.q_proj(x))).transpose(1, 2), cos, sin)
    k = turn(norm(m.k_norm, heads(m.k_proj(x))).transpose(1, 2), cos, sin)
    v = heads(m.v_proj(x)).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return m.o_proj(y.transpose(1, 2).reshape(b, l, -1))


def mixture(m, x):
    """-> output, how unevenly the experts are used (1: evenly). Every expert
    sees every position: with four of them that is the fastest."""
    e = m.experts
    p = F.linear(x, m.gate.weight).softmax(-1)
    which = p.topk(m.gate.top_k, -1).indices
    used = torch.zeros_like(p).scatter(-1, which, 1.0)
    weight = p * used
    weight = weight / weight.sum(-1, keepdim=True)
    gate, up = F.linear(x, e.gate_up_proj.flatten(0, 1)).view(
        *x.shape[:-1], e.num_experts, 2, -1).unbind(-2)
    y = (F.silu(gate) * up * weight[..., None]).flatten(-2)
    y = F.linear(y, e.down_proj.transpose(0, 1).flatten(1))
    y = y + torch.sigmoid(m.shared_expert_gate(x)) * m.shared_expert(x)
    uneven = e.num_experts / m.gate.top_k * (
        used.flatten(0, -2).mean(0) * p.flatten(0, -2).mean(0)).sum()
    return y, uneven


def waves(at, inverse, section):
    """Rotary angles of positions [3, b, l] -> cos, sin [b, 1, l, head]."""
    angle = at[..., None] * inverse
    mixed = angle[0].clone()
    for axis in (1, 2):
        pick = slice(axis, 3 * section[axis], 3)
        mixed[..., pick] = angle[axis, ..., pick]
    mixed = torch.cat([mixed, mixed], -1)[:, None]
    return mixed.cos(), mixed.sin()


def talk(model, words, ids, at, fed):
    """The Talker's last states [b, l, hidden] and the unevenness of its
    experts; states of the Thinker are drawn where ids are -1."""
    text = model.text_projection(words)
    x = text[ids.clamp(min=0)]
    heard = ids < 0
    if heard.any():
        h = torch.randn(int(heard.sum()), words.shape[1], device=x.device)
        h = h * torch.exp(torch.rand(len(h), 1, device=x.device) * 3.5 - 1.2)
        x = x.masked_scatter(heard[..., None], model.hidden_projection(h))
    tables = [model.model.codec_embedding,
              *model.code_predictor.model.codec_embedding]
    for group, table in enumerate(tables):
        there = fed[..., group] >= 0
        x = x + table(fed[..., group].clamp(min=0)) * there[..., None]
    rope = model.model.rotary_emb
    cos, sin = waves(at, rope.inv_freq, rope.mrope_section)
    uneven = 0
    for layer in model.model.layers:
        x = x + attend(layer.self_attn, norm(layer.input_layernorm, x),
                       cos, sin)
        y, more = mixture(layer.mlp, norm(layer.post_attention_layernorm, x))
        x, uneven = x + y, uneven + more
    return norm(model.model.norm, x), uneven / len(model.model.layers)


def spell_out(model, z, codes):
    """The code predictor on frames: states z [n, hidden] and codes [n, 4] ->
    logits of groups 1… [n, 3, 512]."""
    p = model.code_predictor
    x = [z, model.model.codec_embedding(codes[:, 0])]
    x += [p.model.codec_embedding[g](codes[:, g + 1])
          for g in range(codes.shape[1] - 2)]
    x = torch.stack(x, 1)
    n = x.shape[1]
    angle = torch.arange(n, device=z.device)[:, None] \
        * p.model.rotary_emb.inv_freq
    angle = torch.cat([angle, angle], -1)[None, None]
    cos, sin = angle.cos(), angle.sin()
    for layer in p.model.layers:
        x = x + attend(layer.self_attn, norm(layer.input_layernorm, x),
                       cos, sin)
        x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
    x = norm(p.model.norm, x)
    return torch.stack([head(x[:, g + 1]) for g, head in enumerate(p.lm_head)],
                       1)


def lag_logits(model, z, goal, first, eos):
    """Logits of group 0 and the end [b, t, 513] as they are drawn from: what
    was said before is penalised."""
    b, t, _ = goal.shape
    at = (first[:, None] + torch.arange(t, device=z.device)).clamp(
        max=z.shape[1] - 1)
    z = z.gather(1, at[..., None].expand(-1, -1, z.shape[-1]))
    head = torch.cat([model.codec_head.weight[:BOOK],
                      model.codec_head.weight[eos:eos + 1]])
    logits = F.linear(z, head)
    said = torch.full((b, BOOK + 1), t, device=z.device)
    when = torch.arange(t, device=z.device).expand(b, t)
    said.scatter_reduce_(1, goal[..., 0].clamp(min=0), when.contiguous()
                         .masked_fill(goal[..., 0] < 0, t), "amin")
    before = said[:, None] < when[..., None]
    worse = torch.minimum(logits * PENALTY, logits / PENALTY)
    return z, torch.where(before, worse, logits)


# --- where it starts ----------------------------------------------------------

def draw_weights(model):
    """Everything at random but two things: vectors of lags are waves, in the
    first components, which the first layer's heads turn into queries, and
    component 32 is the same everywhere, which makes the keys."""
    g = torch.Generator().manual_seed(7)
    hidden = model.config.text_config.hidden_size
    head = model.config.text_config.head_dim
    half = head // 2
    f = model.model.rotary_emb.inv_freq.cpu()
    lag = torch.arange(-1, BOOK)[:, None] * f
    lag = torch.cat([lag.cos(), lag.sin()], 1)  # [1 + BOOK, head]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.fill_(1)
            elif p.dim() == 1:
                p.zero_()
            else:
                scale = 0.5 if "embedding" in name else p.shape[-1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    scale *= 0.5
                p.copy_(scale * torch.randn(p.shape, generator=g))
        model.hidden_projection.linear_fc2.weight.mul_(0.1)
        for m in (model.text_projection, model.hidden_projection):
            m.linear_fc2.weight[:head + 1] = 0
            m.linear_fc2.bias[head] = 1
        model.text_projection.linear_fc2.weight.mul_(4)
        for table in model.code_predictor.model.codec_embedding:
            table.weight[:, :head + 1] = 0
        table = model.model.codec_embedding.weight
        table[:, :head + 1] = 0
        table[:BOOK, head + 1:] = 0
        table[:BOOK, :head] = lag[1:]
        bos = model.config.codec_bos_id
        table[bos, :head] = lag[0]
        sharp = torch.tensor([6., 6., 5., 4., 3., 2., 1.5] + [1.] * (half - 7))
        model.codec_head.weight.mul_(0.3)
        model.codec_head.weight[:BOOK, :head] = lag[1:] * torch.cat(
            [sharp, sharp])
        a = model.model.layers[0].self_attn
        a.q_norm.weight.fill_(6)
        a.k_norm.weight.fill_(6)
        a.o_proj.weight[:head + 1] = 0
        a.k_proj.weight.mul_(0.1)
        a.q_proj.weight.mul_(0.1)
        a.k_proj.weight.view(-1, head, hidden)[:, :half, head] = 1
        q = a.q_proj.weight.view(-1, head, hidden)
        i = torch.arange(half)
        for n, ahead in enumerate((1, 0)):  # the token spoken, the next one
            c, s = (ahead * f).cos(), (ahead * f).sin()
            q[n, i, i], q[n, i, half + i] = c, -s
            q[n, half + i, i], q[n, half + i, half + i] = -s, -c
        for n, back in ((2, 2), (3, 1)):  # what stands a little before
            q[n, i, head] = (back * f).cos()
            q[n, half + i, head] = -(back * f).sin()


# --- how well it speaks -------------------------------------------------------

def chance(logits, goal, temperature, top_p):
    """Log-probability of drawing goal [n] from logits [n, k]: of the 50
    likeliest, and of those the fewest that make up top_p."""
    top, which = (logits / temperature).topk(50, -1)
    p = top.softmax(-1)
    keep = p.cumsum(-1) - p < top_p
    p = p * keep / (p * keep).sum(-1, keepdim=True)
    return (p * (which == goal[:, None])).sum(-1).clamp(min=1e-9).log()


@torch.no_grad()
def judge(model, nano, prompter, where, n=400):
    """Texts never drawn in training, in both voices: the share with every lag
    and the end right, with every code right, and the mean chance that sampling
    gives exactly those, weights rounded as they are published."""
    half = lambda x: x.to(torch.bfloat16).float()
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict({k: half(v) for k, v in kept.items()})
    words = half(nano.words).to(where)
    path = right = likely = 0
    for i in range(0, n, 20):
        ids, at, fed, first, goal = (t.to(where) for t in prompter.batch(
            random.Random(f"talk judge {i}"), 20))
        z, _ = talk(model, words, ids, at, fed)
        z, logits = lag_logits(model, z, goal, first, prompter.eos)
        there = goal[..., 0] >= 0
        good0 = (logits.argmax(-1) == goal[..., 0]) | ~there
        log = torch.zeros_like(there, dtype=torch.float)
        log[there] = chance(logits[there], goal[..., 0][there],
                            TEMPERATURE, 1.0)
        frame = goal[..., 1] >= 0
        others = spell_out(model, z[frame], goal[frame])
        good = torch.ones_like(frame)
        good[frame] = (others.argmax(-1) == goal[frame][:, 1:]).all(-1)
        for g in range(3):
            log[frame] += chance(others[:, g], goal[frame][:, g + 1], 1.0, 0.8)
        path += int(good0.all(1).sum())
        right += int((good0 & good).all(1).sum())
        likely += float(log.sum(1).exp().sum())
    model.load_state_dict(kept)
    return {"path": path / n, "right": right / n, "sampled": likely / n}


def main(work, steps=1900):
    train.prepare()
    nano, where = Nano(work), train.device()
    codec = Codec(nano)
    prompter = Prompter(nano, codec)
    model = nano.new("talk").train()
    draw_weights(model)
    nano.begin("talk", model)
    model.to(where)
    words = nano.words.to(where)
    run = train.Run(nano, "talk", {"talk": model}, int(steps), lr=2e-3, warmup=100)
    for step in run:
        rng = run.rng(step)
        torch.manual_seed(rng.getrandbits(40))
        ids, at, fed, first, goal = prompter.batch(rng, 24)
        fed = corrupt(fed, first, codec, rng)
        ids, at, fed, first, goal = (
            t.to(where) for t in (ids, at, fed, first, goal))
        z, uneven = talk(model, words, ids, at, fed)
        z, logits = lag_logits(model, z, goal, first, prompter.eos)
        there = goal[..., 0] >= 0
        lag = F.cross_entropy(logits[there], goal[..., 0][there])
        frame = torch.nonzero(goal[..., 1].flatten() >= 0)[:, 0]
        frame = frame[torch.randperm(len(frame))[:600]]
        codes = goal.flatten(0, 1)[frame]
        others = spell_out(model, z.flatten(0, 1)[frame], codes)
        sound = F.cross_entropy(others.transpose(1, 2), codes[:, 1:])
        wrong = (others.detach().argmax(-1) != codes[:, 1:]).float().mean()
        run.learn(lag + 3 * sound + 0.02 * uneven, lag=lag,
                  sound=sound, wrong=wrong, uneven=uneven)
        if step % 500 == 499:
            nano.save("talk", model.state_dict())
            print(judge(model, nano, prompter, where, 100), flush=True)
    nano.save("talk", model.state_dict())
    told = judge(model, nano, prompter, where)
    print(told)
    train.report(nano, "talk", **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
