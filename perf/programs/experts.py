"""A mixture of small networks, which don't hang on each other: short instructions in parallel branches. AdamW."""

import common
import torch
import torch.nn as nn
import torch.nn.functional as F
from workloads import Experts


class Mixture(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.experts = nn.ModuleList(self.expert(args) for _ in range(args.experts))
        self.gates = nn.Parameter(torch.zeros(args.experts))

    @staticmethod
    def expert(args):
        parts = []
        for _ in range(args.layers):
            parts += [nn.Linear(args.width, args.width), nn.GELU()]
        return nn.Sequential(*parts[:-1])

    def forward(self, x):
        shares = F.softmax(self.gates, 0)
        return sum(shares[i] * expert(x) for i, expert in enumerate(self.experts))


def main():
    args = common.parse(Experts, __doc__)
    rng = common.prepare(args)
    model = common.tuned(Mixture(args), args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **common.fused(args))
    batch = common.batches(Experts, args, rng)

    def step(i):
        x, y = batch(i)
        optimizer.zero_grad()
        with common.autocast(args):
            loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    common.run(args, step, Experts)


if __name__ == "__main__":
    main()
