"""A BERT encoder answers questions: where in the text does the answer start, where does it end? AdamW, dropout."""

import common
import torch
import torch.nn as nn
import torch.nn.functional as F
import workloads


class Layer(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.p = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.drop = nn.Dropout(dropout)

    def split(self, x):
        B, T, C = x.shape
        return x.view(B, T, self.heads, C // self.heads).transpose(1, 2)  # [B, heads, T, C / heads]

    def forward(self, x):
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        y = y.transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.drop(self.out(y)))
        return self.norm2(x + self.drop(self.down(F.gelu(self.up(x)))))


class BertForAnswers(nn.Module):
    def __init__(self, vocabulary, length, width, layers, heads, dropout):
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(vocabulary, width), nn.Embedding(length, width), nn.Embedding(2, width)
        self.norm, self.drop = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.answer = nn.Linear(width, 2)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02)

    def forward(self, words, kinds):
        x = self.words(words) + self.places(torch.arange(words.shape[1])) + self.kinds(kinds)
        x = self.drop(self.norm(x))
        for layer in self.layers:
            x = layer(x)
        start, end = self.answer(x).unbind(-1)
        return start, end


def main():
    args = common.parse(workloads.Bert, __doc__)
    rng = common.prepare(args)
    model = common.tuned(BertForAnswers(args.vocabulary, args.length, args.width, args.layers, args.heads, args.dropout), args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.01, **common.fused(args))
    batch = common.batches(workloads.Bert, args, rng)

    def step(i):
        words, kinds, first, last = batch(i)
        optimizer.zero_grad()
        with common.autocast(args):
            start, end = model(words, kinds)
            loss = (F.cross_entropy(start, first) + F.cross_entropy(end, last)) / 2
        loss.backward()
        optimizer.step()
        return loss.item()

    common.run(args, step, workloads.Bert)


if __name__ == "__main__":
    main()
