# SPDX-License-Identifier: LGPL-2.1-or-later
"""The optimizer Muon for the matrices of layers, together with AdamW for what
else there is to learn; for train.Run(optimizer=…).
"""
import torch


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for the matrices of the layers, AdamW (by its
    own class) for the rest: half as many steps as AdamW alone for a tenth more
    work each. One learning rate does for both."""

    def __init__(self, matrices, others, lr, momentum=0.95, decay=0.01):
        super().__init__([{"params": matrices}], {"lr": lr})
        self.momentum, self.decay = momentum, decay
        self.adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98),
                                      weight_decay=0.0)
        self.param_groups += self.adam.param_groups

    def state_dict(self):
        return {"adam": self.adam.state_dict(),
                "momentum": [self.state.get(p, {}).get("momentum")
                             for p in self.param_groups[0]["params"]]}

    def load_state_dict(self, state):
        self.adam.load_state_dict(state["adam"])
        self.param_groups[1:] = self.adam.param_groups
        for p, m in zip(self.param_groups[0]["params"], state["momentum"]):
            if m is not None:
                self.state[p]["momentum"] = m.to(p.device)

    @torch.no_grad()
    def step(self):
        self.adam.step()
        lr = self.param_groups[0]["lr"]
        alike = {}
        for p in self.param_groups[0]["params"]:
            if p.grad is None:
                continue
            m = self.state[p].setdefault("momentum", torch.zeros_like(p))
            m.mul_(self.momentum).add_(p.grad)
            wanted = p.grad + self.momentum * m
            alike.setdefault(p.shape[-2:], []).append((p, wanted))
        for shape, some in alike.items():
            u = torch.cat([w.view(-1, *shape) for _, w in some])
            u = orthogonal(u.bfloat16()).float()
            u *= 0.6 * max(shape) ** 0.5
            u = u.split([w.numel() // shape.numel() for _, w in some])
            for (p, _), change in zip(some, u):
                p.mul_(1 - lr * self.decay).sub_(change.view_as(p), alpha=lr)


def orthogonal(x):
    """[n, rows, columns], each made nearly orthogonal: five steps of
    Newton-Schulz with the coefficients of Jordan's Muon (2024)."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.transpose(1, 2) if tall else x
