"""What is trained, whatever it runs under: each program's options, its batches, the floating-point operations of its step's products
(forward, and as much again for each of the two derivatives)."""

import numpy as np


class MLP:
    def options(p):
        p.add_argument("--batch", type=int, default=16)
        p.add_argument("--width", type=int, default=64)
        p.add_argument("--layers", type=int, default=3)
        p.set_defaults(steps=2000, warmup=200)

    def batch(args, rng):
        shape = args.batch, args.width
        return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)

    def flop(args):
        return 2 * args.batch * args.width**2 * (3 * args.layers - 1)


class Experts:
    def options(p):
        MLP.options(p)
        p.add_argument("--experts", type=int, default=8)
        p.set_defaults(batch=64, width=256, steps=500, warmup=50)

    batch = MLP.batch

    def flop(args):
        return args.experts * MLP.flop(args)


class GPT2:
    def options(p):
        p.add_argument("--batch", type=int, default=4)
        p.add_argument("--length", type=int, default=256)
        p.add_argument("--width", type=int, default=512)
        p.add_argument("--layers", type=int, default=6)
        p.add_argument("--heads", type=int, default=8)
        p.add_argument("--vocabulary", type=int, default=16384)
        p.add_argument("--dropout", type=float, default=0.0)
        p.add_argument("--small", action="store_true", help="two layers, 128 wide, on 4x64 of 512 words")

    def settle(args):
        if args.small:
            args.batch, args.length, args.width, args.layers, args.heads, args.vocabulary = 4, 64, 128, 2, 4, 512

    def batch(args, rng):
        return (rng.randint(0, args.vocabulary, (args.batch, args.length + 1)),)

    def flop(args):
        """Each position attends to those before it only."""
        w = args.width
        return 3 * args.batch * args.length * (args.layers * (2 * 12 * w * w + 2 * args.length * w) + 2 * w * args.vocabulary)


class Bert:
    def options(p):
        p.add_argument("--batch", type=int, default=8)
        p.add_argument("--length", type=int, default=128)
        p.add_argument("--width", type=int, default=768)
        p.add_argument("--layers", type=int, default=6)
        p.add_argument("--heads", type=int, default=12)
        p.add_argument("--vocabulary", type=int, default=30522)
        p.add_argument("--dropout", type=float, default=0.1)

    def batch(args, rng):
        """Words, their kinds, where the answer starts and ends."""
        shape = args.batch, args.length
        return (rng.randint(0, args.vocabulary, shape), rng.randint(0, 2, shape), rng.randint(0, args.length, args.batch),
                rng.randint(0, args.length, args.batch))

    def flop(args):
        w = args.width
        return 3 * args.batch * args.length * (args.layers * (2 * 12 * w * w + 2 * 2 * args.length * w) + 2 * 2 * w)


class ResNet:
    def options(p):
        p.add_argument("--depth", type=int, choices=[18, 50], default=50)
        p.add_argument("--batch", type=int, default=8)
        p.add_argument("--size", type=int, default=128)
        p.add_argument("--classes", type=int, default=1000)

    def batch(args, rng):
        return (rng.standard_normal((args.batch, 3, args.size, args.size)).astype(np.float32), rng.randint(0, args.classes, args.batch))

    def blocks(depth):
        """(channels in, width, channels out, stride) of each."""
        n, expansion = 64, 1 if depth == 18 else 4
        for i, count in enumerate((2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)):
            for j in range(count):
                yield n, 64 << i, (64 << i) * expansion, 2 if i and j == 0 else 1
                n = (64 << i) * expansion

    def convs(depth, n_in, width, n_out, stride):
        """(channels in, out, kernel, stride) of a block's chain, then of its shortcut if that has one."""
        if depth == 18:
            chain = [(n_in, width, 3, stride), (width, width, 3, 1)]
        else:
            chain = [(n_in, width, 1, 1), (width, width, 3, stride), (width, n_out, 1, 1)]
        return chain, [(n_in, n_out, 1, stride)] if stride != 1 or n_in != n_out else []

    def flop(args):
        """No derivative for the images."""
        def of(convs, h):
            total = 0
            for n_in, n_out, kernel, stride in convs:
                h = -(-h // stride)
                total += 2 * n_in * n_out * kernel**2 * h * h
            return total, h

        stem, h = of([(3, 64, 7, 2)], args.size)
        h, total, n = -(-h // 2), 2 * stem, 64
        for n_in, width, n, stride in ResNet.blocks(args.depth):
            chain, shortcut = ResNet.convs(args.depth, n_in, width, n, stride)
            total += 3 * of(shortcut, h)[0]
            flop, h = of(chain, h)
            total += 3 * flop
        return args.batch * (total + 3 * 2 * n * args.classes)
