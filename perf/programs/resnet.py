"""ResNet-18 or ResNet-50 on random images: SGD with momentum."""

import common
import torch
import torch.nn as nn
import torch.nn.functional as F
import workloads


def conv(n_in, n_out, size, stride=1):
    return nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, n_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.down = None
        if stride != 1 or n_in != width:
            self.down = nn.Sequential(conv(n_in, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.down is None else self.down(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, n_in, width, stride):
        super().__init__()
        n_out = 4 * width
        self.conv1, self.bn1 = conv(n_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, n_out, 1), nn.BatchNorm2d(n_out)
        self.down = None
        if stride != 1 or n_in != n_out:
            self.down = nn.Sequential(conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    def __init__(self, block, counts, classes):
        super().__init__()
        self.stem, self.bn = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        layers, n = [], 64
        for i, count in enumerate(counts):
            for j in range(count):
                layers.append(block(n, 64 << i, 2 if i and j == 0 else 1))
                n = (64 << i) * block.expansion
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(n, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, 1)
        x = F.adaptive_avg_pool2d(self.layers(x), 1)
        return self.head(torch.flatten(x, 1))


def main():
    args = common.parse(workloads.ResNet, __doc__)
    rng = common.prepare(args)
    net = ResNet(*((Basic, (2, 2, 2, 2)) if args.depth == 18 else (Bottleneck, (3, 4, 6, 3))), args.classes)
    model = common.tuned(net, args)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, **common.fused(args))
    batch = common.batches(workloads.ResNet, args, rng)

    def step(i):
        x, y = batch(i)
        if args.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with common.autocast(args):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    common.run(args, step, workloads.ResNet)


if __name__ == "__main__":
    main()
