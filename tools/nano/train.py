# SPDX-License-Identifier: LGPL-2.1-or-later
"""A training run that can be cut off anywhere and goes on where it was.

    run = Run(nano, "see", {"tower": tower, "heads": heads}, steps=6000)
    for step in run:
        rng = run.rng(step)             # the batch of a step depends on it only
        loss = ...
        run.learn(loss, error=error)    # backward, one step, progress, saving
    nano.save("see", tower.state_dict())

Its state lies in the work directory as <name>.run.pt and is taken up again when
the same command is given again. A run that has finished and is asked for more
steps goes on from its last weights on a new slope of the learning rate.

Under `torchrun --nproc-per-node N`, which hear.py and think.py are made for, every
process draws batches of its own and the gradients are averaged: a step then
learns from N of them.
"""
import copy
import datetime
import fcntl
import json
import math
import os
import random
import sys
import time

import torch
import torch.distributed as dist


SAVE_SECONDS, SHOW_SECONDS = 120, 20
PART = 0.004  # of the newest weights in the steady ones


def prepare():
    """One thread per run is what two cores do best with; denormals cost more
    than they tell."""
    torch.set_num_threads(int(os.environ.get("NANO_THREADS", "1")))
    torch.set_flush_denormal(True)
    if "RANK" in os.environ:
        # The first may have to make hours of speech while the others wait.
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def first(make):
    """What make() returns; where there are several processes, the first is
    done with it before the others begin."""
    ret = make() if not rank() else None
    if dist.is_initialized():
        dist.barrier()
    return make() if rank() else ret


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Run:
    def __init__(self, nano, name, modules, steps, lr, warmup=200,
                 betas=(0.9, 0.98), optimizer=None):
        self.name, self.modules = name, modules
        self.steps, self.lr, self.warmup = steps, lr, warmup
        parameters = [p for m in modules.values() for p in m.parameters()
                      if p.requires_grad]
        matrices = [p for p in parameters if p.dim() > 1]
        others = [p for p in parameters if p.dim() <= 1]
        self.parameters = parameters
        self.optimizer = optimizer or torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01},
             {"params": others, "weight_decay": 0.0}], lr=lr, betas=betas)
        self.done, self.first = 0, 0
        self.shown, self.n_shown = {}, 0
        self.path = nano.path(f"{name}.run.pt")
        if os.path.exists(self.path):
            self._restore()

    def rng(self, step):
        return random.Random(f"{self.name} {step}"
                             + (f" {rank()}" if rank() else ""))

    def rate(self, step):
        """Cosine from lr to a twentieth of it, after a linear start."""
        at = (step - self.first) / max(1, self.steps - self.first)
        start = min(1.0, (step - self.first + 1) / self.warmup)
        return self.lr * start * (0.05 + 0.95 * 0.5
                                  * (1 + math.cos(math.pi * min(1, at))))

    def __iter__(self):
        self.began = self.saved = self.told = time.monotonic()
        self.began_at = self.done
        while self.done < self.steps:
            yield self.done
        if not rank():
            self._save()

    def learn(self, loss, **shown):
        """The gradient of `loss`, then one step; `shown`: numbers to print."""
        loss.backward()
        self._share()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if torch.isfinite(norm):  # a broken batch is left out
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.done)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        for k, v in dict(loss=loss, **shown).items():
            self.shown[k] = self.shown.get(k, 0.0) + v.item()
        self.n_shown += 1
        now = time.monotonic()
        if rank():
            return
        if now - self.told > SHOW_SECONDS or self.done == self.steps:
            self._tell(now)
        if now - self.saved > SAVE_SECONDS:
            self._save()

    def _share(self):
        if not dist.is_initialized():
            return
        # What a batch did not need has no gradient here, but may elsewhere.
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None
                           else p.grad).flatten() for p in self.parameters])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, mean in zip(self.parameters, flat.split(
                [p.numel() for p in self.parameters])):
            p.grad = mean.view_as(p)

    def _tell(self, now):
        per_step = (now - self.began) / (self.done - self.began_at)
        left = per_step * (self.steps - self.done)
        means = "  ".join(f"{k} {v / self.n_shown:.4f}"
                          for k, v in self.shown.items())
        print(f"{self.name} {self.done}/{self.steps}  {means}  "
              f"{per_step * 1000:.0f} ms/step  {left / 60:.0f} min left",
              flush=True)
        self.shown, self.n_shown, self.told = {}, 0, now

    def _save(self):
        torch.save({"done": self.done, "steps": self.steps, "first": self.first,
                    "optimizer": self.optimizer.state_dict(),
                    "modules": {k: m.state_dict()
                                for k, m in self.modules.items()}},
                   self.path + ".new")
        os.replace(self.path + ".new", self.path)
        self.saved = time.monotonic()

    def _restore(self):
        state = torch.load(self.path, map_location="cpu")
        for k, m in self.modules.items():
            m.load_state_dict(state["modules"][k])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.first = state["done"], state["first"]
        if self.done >= state["steps"] and self.steps > self.done:
            self.first = self.done
        print(f"{self.name}: goes on at step {self.done}", file=sys.stderr)


class Steady:
    """The mean of a module's weights over its last few hundred steps, which is
    better than any of them."""

    def __init__(self, module):
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.pairs = list(self.module.parameters()), list(module.parameters())

    @torch.no_grad()
    def follow(self, step):
        """After step number `step` of a run, the first being 0."""
        torch._foreach_lerp_(*self.pairs, max(PART, 1 / (step + 1)))


def report(nano, name, **numbers):
    """Adds what a stage measured to report.json; others may do so, too."""
    with open(nano.path("report.json"), "a+") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.seek(0)
        told = json.loads(f.read() or "{}")
        told[name] = dict(told.get(name, {}), **numbers)
        f.truncate(0)
        json.dump(told, f, indent=2, sort_keys=True)
        f.write("\n")
