"""A small GPT learns, character by character, the text that ships with Python (pydoc_data/topics.py), and writes some.

    python -m terra examples/char_gpt.py      under Terra
    python examples/char_gpt.py               under PyTorch: the same losses"""

import argparse
import pydoc_data.topics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm


class Block(nn.Module):
    def __init__(self, width, heads, p):
        super().__init__()
        self.heads, self.p = heads, p
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(p)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(c, dim=2)
        q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(b, t, c)))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    def __init__(self, vocabulary, width=96, heads=4, layers=3, context=64, p=0.1):
        super().__init__()
        self.context = context
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads, p) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(self.start)

    def start(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def write(self, tokens, count, temperature=0.8):
        self.eval()
        for _ in range(count):
            logits = self(tokens[:, -self.context:])[:, -1] / temperature
            tokens = torch.cat([tokens, torch.multinomial(F.softmax(logits, dim=-1), 1)], dim=1)
        return tokens


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
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=300, help="characters to write at the end")
    parser.add_argument("--losses", action="store_true", help="print every loss, for comparisons")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    text = "\n\n".join(pydoc_data.topics.topics.values())
    letters = sorted(set(text))
    number = {c: i for i, c in enumerate(letters)}
    data = torch.tensor([number[c] for c in text], dtype=torch.int64)
    model = GPT(len(letters))
    context = model.context
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    began = time.perf_counter()
    with tqdm(total=args.steps, disable=not sys.stderr.isatty() and args.losses) as bar:
        for step in range(args.steps):
            starts = torch.randint(len(data) - context - 1, (args.batch_size,)).tolist()
            x = torch.stack([data[i:i + context] for i in starts])
            y = torch.stack([data[i + 1:i + 1 + context] for i in starts])
            loss = F.cross_entropy(model(x).view(-1, len(letters)), y.view(-1))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update()
            if args.losses:
                print(f"{loss.item():.7g}")
            elif step % 20 == 0 or step == args.steps - 1:
                bar.set_postfix(loss=f"{loss.item():.4f}")
    print(f"loss {loss.item():.4f} after {args.steps} steps, {time.perf_counter() - began:.1f} s")
    if args.sample:
        tokens = model.write(torch.tensor([[number["T"]]]), args.sample)
        print("-" * 80)
        print("".join(letters[i] for i in tokens[0].tolist()))
        print("-" * 80)
    summary()


if __name__ == "__main__":
    main()
