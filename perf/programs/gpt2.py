"""A GPT-2 predicts the next of random words: causal attention, AdamW."""

import common
import torch
import torch.nn as nn
import torch.nn.functional as F
import workloads


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.p = heads, dropout
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def attend(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in self.qkv(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))

    def forward(self, x):
        x = x + self.drop(self.attend(self.ln1(x)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh")))


class GPT2(nn.Module):
    def __init__(self, vocabulary, length, width, layers, heads, dropout):
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02)

    def forward(self, words):
        x = self.drop(self.words(words) + self.places(torch.arange(words.shape[1])))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def main():
    args = common.parse(workloads.GPT2, __doc__)
    rng = common.prepare(args)
    model = common.tuned(GPT2(args.vocabulary, args.length, args.width, args.layers, args.heads, args.dropout), args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1, **common.fused(args))
    batch = common.batches(workloads.GPT2, args, rng)

    def step(i):
        (words,) = batch(i)
        optimizer.zero_grad()
        with common.autocast(args):
            loss = F.cross_entropy(model(words[:, :-1]).reshape(-1, args.vocabulary), words[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.item()

    common.run(args, step, workloads.GPT2)


if __name__ == "__main__":
    main()
