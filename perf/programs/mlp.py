"""Three layers of 64 on batches of 16: nearly all overhead. AdamW."""

import common
import torch
import torch.nn as nn
import torch.nn.functional as F
from workloads import MLP


def layers(args, activation):
    parts = []
    for _ in range(args.layers):
        parts += [nn.Linear(args.width, args.width), activation()]
    return nn.Sequential(*parts[:-1])


def train(workload, doc, net):
    args = common.parse(workload, doc)
    rng = common.prepare(args)
    model = common.tuned(net(args), args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **common.fused(args))
    batch = common.batches(workload, args, rng)

    def step(i):
        x, y = batch(i)
        optimizer.zero_grad()
        with common.autocast(args):
            loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    common.run(args, step, workload)


if __name__ == "__main__":
    train(MLP, __doc__, lambda args: layers(args, nn.ReLU))
