"""Three layers of 64 on batches of 16: nearly all overhead. AdamW."""

import common
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.set_defaults(steps=2000, warmup=200)
    args = parser.parse_args()
    rng = common.prepare(args)
    parts = []
    for _ in range(args.layers):
        parts += [nn.Linear(args.width, args.width), nn.ReLU()]
    model = common.tuned(nn.Sequential(*parts[:-1]), args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **common.fused(args))
    shape = args.batch, args.width
    batch = common.pool(lambda: (rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)))

    def step(i):
        x, y = batch(i)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    common.run(args, step, 2 * args.batch * args.width**2 * (3 * args.layers - 1))


if __name__ == "__main__":
    main()
