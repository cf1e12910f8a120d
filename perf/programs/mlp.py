"""Three layers of 64 on batches of 16: nearly all overhead. AdamW."""

import common
import torch
import torch.nn as nn
import torch.nn.functional as F
from workloads import MLP


def main():
    args = common.parse(MLP, __doc__)
    rng = common.prepare(args)
    parts = []
    for _ in range(args.layers):
        parts += [nn.Linear(args.width, args.width), nn.ReLU()]
    model = common.tuned(nn.Sequential(*parts[:-1]), args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **common.fused(args))
    batch = common.batches(MLP, args, rng)

    def step(i):
        x, y = batch(i)
        optimizer.zero_grad()
        with common.autocast(args):
            loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    common.run(args, step, MLP)


if __name__ == "__main__":
    main()
