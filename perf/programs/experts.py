"""A mixture of small networks, which don't hang on each other: short instructions in parallel branches. AdamW."""

import mlp
import torch
import torch.nn as nn
import torch.nn.functional as F
from workloads import Experts


class Mixture(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.experts = nn.ModuleList(mlp.layers(args, nn.GELU) for _ in range(args.experts))
        self.gates = nn.Parameter(torch.zeros(args.experts))

    def forward(self, x):
        shares = F.softmax(self.gates, 0)
        return sum(shares[i] * expert(x) for i, expert in enumerate(self.experts))


if __name__ == "__main__":
    mlp.train(Experts, __doc__, Mixture)
