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
"""
import json
import math
import os
import random
import sys
import time

import torch


def prepare(threads=None):
    """One thread per run is what two cores do best with; denormals cost more
    than they tell."""
    torch.set_num_threads(threads or int(os.environ.get("NANO_THREADS", "1")))
    torch.set_flush_denormal(True)


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Run:
    def __init__(self, nano, name, modules, steps, lr=1e-3, warmup=200,
                 betas=(0.9, 0.98), decay=0.01, clip=1.0, parameters=None,
                 optimizer=None, save_seconds=120, show_seconds=20):
        self.nano, self.name, self.modules = nano, name, modules
        self.steps, self.lr, self.warmup, self.clip = steps, lr, warmup, clip
        self.save_seconds, self.show_seconds = save_seconds, show_seconds
        parameters = parameters or [
            p for m in modules.values() for p in m.parameters()
            if p.requires_grad]
        matrices = [p for p in parameters if p.dim() > 1]
        others = [p for p in parameters if p.dim() <= 1]
        self.parameters = parameters
        self.optimizer = optimizer or torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay},
             {"params": others, "weight_decay": 0.0}], lr=lr, betas=betas)
        self.done, self.first = 0, 0
        self.shown, self.n_shown = {}, 0
        self.path = nano.path(f"{name}.run.pt")
        if os.path.exists(self.path):
            self._restore()

    def rng(self, step):
        return random.Random(f"{self.name} {step}")

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
        self._save()

    def learn(self, loss, **shown):
        """The gradient of `loss`, then one step; `shown`: numbers to print."""
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if torch.isfinite(norm):  # a broken batch is left out
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.done)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        for k, v in dict(loss=loss.detach(), **shown).items():
            self.shown[k] = self.shown.get(k, 0.0) + float(v)
        self.n_shown += 1
        now = time.monotonic()
        if now - self.told > self.show_seconds or self.done == self.steps:
            self._tell(now)
        if now - self.saved > self.save_seconds:
            self._save()

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
        state = torch.load(self.path)
        for k, m in self.modules.items():
            m.load_state_dict(state["modules"][k])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.first = state["done"], state["first"]
        if self.done >= state["steps"] and self.steps > self.done:
            self.first = self.done
        print(f"{self.name}: goes on at step {self.done}", file=sys.stderr)


def report(nano, name, **numbers):
    """Adds what a stage measured to report.json."""
    path = nano.path("report.json")
    told = json.load(open(path)) if os.path.exists(path) else {}
    told[name] = dict(told.get(name, {}), **numbers)
    with open(path + ".new", "w") as f:
        json.dump(told, f, indent=2, sort_keys=True)
        f.write("\n")
    os.replace(path + ".new", path)
