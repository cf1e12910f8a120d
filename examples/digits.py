"""Learns scikit-learn's handwritten digits (1,797 images of 8x8) with a small convolutional network.

    python -m terra examples/digits.py      under Terra
    python examples/digits.py               under PyTorch: the same losses"""

import argparse
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm


class Net(nn.Module):
    def __init__(self, p=0.25):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.drop = nn.Dropout(p)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.max_pool2d(x, 2)
        x = self.drop(torch.flatten(x, 1))
        x = self.drop(F.relu(self.fc1(x)))
        return self.fc2(x)


def load():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    right = total = 0
    for x, y in loader:
        right += (model(x).argmax(1) == y).sum().item()
        total += len(y)
    return right / total


def summary():
    """What Terra did; nothing under PyTorch."""
    stats = getattr(torch, "stats", None)
    if stats is None:
        return
    s = stats()
    share = 100 * s["ops_from_plans"] / max(s["ops"], 1)
    print(f"iterations: {s['iterations_traced']} traced, {s['iterations_coexecuted']} co-executed")
    print(f"ops: {s['ops']}, {share:.2f} % from plans, {s['ops_covered'] / max(s['instructions'], 1):.2f} per instruction")
    print(f"elided: {s['bytes_elided'] / 2**20:.1f} MiB; side exits: {s['side_exits']}; "
          f"skeleton: {s['skeleton_ns'] / max(s['skeleton_ops'], 1):.0f} ns/op; "
          f"executors: {s['executors']} with {s['threads']} threads")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--losses", action="store_true", help="print every loss, for comparisons")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, test = load()
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
    began = time.perf_counter()
    with tqdm(total=args.epochs * len(loader), disable=not sys.stderr.isatty() and args.losses) as bar:
        for epoch in range(args.epochs):
            model.train()
            for step, (x, y) in enumerate(loader):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                bar.update()
                if args.losses:
                    print(f"{loss.item():.7g}")
                elif step % 20 == 0:
                    bar.set_postfix(epoch=epoch + 1, loss=f"{loss.item():.4f}")
            schedule.step()
    seconds = time.perf_counter() - began
    print(f"test accuracy {100 * accuracy(model, DataLoader(test, batch_size=180)):.2f} % after {seconds:.1f} s of training")
    summary()


if __name__ == "__main__":
    main()
