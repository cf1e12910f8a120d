"""A small GPT learns, letter by letter, the text that ships with Python (pydoc_data/topics.py), then writes a sample.

Runs unchanged under PyTorch (`python examples/char_gpt.py`) and under Terra (`python -m terra examples/char_gpt.py`).
"""

import argparse
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from pydoc_data import topics
from tqdm import tqdm


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def attend(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in self.qkv(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).contiguous().view(B, T, C))

    def forward(self, x):
        x = x + self.drop(self.attend(self.ln1(x)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln2(x)))))


class GPT(nn.Module):
    def __init__(self, vocabulary, context, width, layers, heads, dropout):
        super().__init__()
        self.context = context
        self.letters = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.letters(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))

    @torch.no_grad()
    def write(self, tokens, n):
        self.eval()
        for _ in range(n):
            logits = self(tokens[:, -self.context:])[:, -1]
            tokens = torch.cat([tokens, torch.multinomial(F.softmax(logits / 0.8, dim=-1), 1)], dim=1)
        self.train()
        return tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--losses", help="write each step's loss to this file")
    parser.add_argument("--state", help="write the trained model and the random generator's state to this file")
    args = parser.parse_args()

    text = "".join(topics.topics.values())
    letters = sorted(set(text))
    number = {c: i for i, c in enumerate(letters)}
    data = np.array([number[c] for c in text], dtype=np.int64)
    torch.manual_seed(args.seed)
    rng = np.random.RandomState(args.seed)
    model = GPT(len(letters), args.context, args.width, args.layers, args.heads, args.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    if hasattr(torch, "watch"):  # Terra counts how it runs the steps
        torch.watch()
    start = time.perf_counter()
    for step in (bar := tqdm(range(args.steps), unit=" steps", mininterval=0.5, disable=None)):
        at = rng.randint(0, len(data) - args.context - 1, args.batch)
        batch = np.stack([data[i:i + args.context + 1] for i in at])
        x, y = torch.from_numpy(batch[:, :-1].copy()), torch.from_numpy(batch[:, 1:].copy())
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).view(-1, len(letters)), y.view(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    seconds = time.perf_counter() - start
    if args.losses:
        np.save(args.losses, np.array(losses))
    if args.state:
        torch.save({"model": model.state_dict(), "rng": torch.get_rng_state()}, args.state)
    print(f"{args.steps} steps in {seconds:.1f} s; loss {np.mean(losses[:10]):.3f} -> {np.mean(losses[-10:]):.3f}")
    if args.sample:
        prompt = "The "
        tokens = model.write(torch.tensor([[number[c] for c in prompt]]), args.sample)
        print("".join(letters[i] for i in tokens[0].tolist()))
    if hasattr(torch, "summary"):
        print(torch.summary())


if __name__ == "__main__":
    main()
