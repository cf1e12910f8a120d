"""A convolutional network (convolution, batch norm, dropout) learns scikit-learn's handwritten digits.

The network is smooth (GELU, average pooling, no bias that batch norm would cancel), so that its course is a matter of the
seed and not of the last bit: with ReLU and max pooling, one rounding decides where a gradient goes, and two machines, or two
orders of summation, part by a percent within 100 steps.

Runs unchanged under PyTorch (`python examples/digits.py`) and under Terra (`python -m terra examples/digits.py`).
"""

import argparse
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm


class Net(nn.Module):
    def __init__(self, width=32, dropout=0.25):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.drop = nn.Dropout(dropout)
        self.fc1 = nn.Linear(2 * width * 16, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = F.gelu(self.bn1(self.conv1(x)))
        x = F.avg_pool2d(F.gelu(self.bn2(self.conv2(x))), 2)
        x = self.drop(torch.flatten(x, 1))
        return self.fc2(self.drop(torch.tanh(self.fc1(x))))


def load(test_share=0.2):
    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(images))
    images = (images[order] / 8.0 - 1.0).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = labels[order].astype(np.int64)
    n_test = int(len(images) * test_share)
    to = torch.from_numpy
    return (TensorDataset(to(images[n_test:]), to(labels[n_test:])), TensorDataset(to(images[:n_test]), to(labels[:n_test])))


def accuracy(model, loader):
    model.eval()
    right = total = 0
    with torch.no_grad():
        for x, y in loader:
            right += (model(x).argmax(1) == y).sum().item()
            total += len(y)
    model.train()
    return right / total


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps (0: all epochs)")
    parser.add_argument("--losses", help="write each step's loss to this file")
    parser.add_argument("--state", help="write the trained model and the random generator's state to this file")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, test = load()
    loader = DataLoader(train, batch_size=args.batch, shuffle=True)
    test_loader = DataLoader(test, batch_size=len(test))
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=1e-2)
    losses = []
    if hasattr(torch, "watch"):  # Terra counts how it runs the steps
        torch.watch()
    start = time.perf_counter()
    with tqdm(total=args.epochs * len(loader), unit=" steps", mininterval=0.5, disable=None) as bar:
        for epoch in range(args.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                bar.update()
                bar.set_postfix(epoch=epoch + 1, loss=f"{losses[-1]:.4f}", refresh=False)
                if args.steps and len(losses) == args.steps:
                    break
            if args.steps and len(losses) == args.steps:
                break
    seconds = time.perf_counter() - start
    rng_state = torch.get_rng_state()
    reached = accuracy(model, test_loader)
    if args.losses:
        np.save(args.losses, np.array(losses))
    if args.state:
        torch.save({"model": model.state_dict(), "rng": rng_state}, args.state)
    print(f"{len(losses)} steps in {seconds:.1f} s; test accuracy {100 * reached:.2f} %")
    if hasattr(torch, "summary"):
        print(torch.summary())


if __name__ == "__main__":
    main()
