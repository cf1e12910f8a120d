"""einsum: operands are brought to (batch, kept, summed) form two at a time and multiplied by bmm."""


def _parse(equation, operands):
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum(): more subscripts than operands or the reverse: {equation}")
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    dots = 0
    for term, x in zip(terms, operands):
        if "..." in term:
            dots = max(dots, x.ndim - len(term) + 3)
    ellipsis = "".join(free[:dots])
    out = []
    for term, x in zip(terms, operands):
        if "..." in term:
            k = x.ndim - len(term) + 3
            term = term.replace("...", ellipsis[dots - k:])
        if len(term) != x.ndim:
            raise RuntimeError(f"einsum(): the number of subscripts in the equation ({len(term)}) does not match the number of "
                               f"dimensions ({x.ndim}) for an operand")
        out.append(term)
    if arrow:
        right = right.replace("...", ellipsis)
    else:
        letters = "".join(out)
        right = ellipsis + "".join(sorted(c for c in set(letters) - set(ellipsis) if letters.count(c) == 1))
    return out, right


def _diagonals(x, term):
    for c in sorted(set(term)):
        while term.count(c) > 1:
            i = term.index(c)
            j = term.index(c, i + 1)
            x = x.diagonal(0, i, j)
            term = term[:i] + term[i + 1:j] + term[j + 1:] + c
    return x, term


def _sum_out(x, term, keep):
    gone = [i for i, c in enumerate(term) if c not in keep]
    return (x.sum(gone), "".join(c for c in term if c in keep)) if gone else (x, term)


def _pair(a, ta, b, tb, keep):
    a, ta = _sum_out(a, ta, set(keep) | set(tb))
    b, tb = _sum_out(b, tb, set(keep) | set(ta))
    batch = [c for c in ta if c in tb and c in keep]
    summed = [c for c in ta if c in tb and c not in keep]
    only_a, only_b = [c for c in ta if c not in tb], [c for c in tb if c not in ta]
    size = {}
    for t, x in ((ta, a), (tb, b)):
        for c, n in zip(t, x.shape):
            size[c] = max(size.get(c, 1), n)

    def product(letters):
        n = 1
        for c in letters:
            n *= size[c]
        return n

    def arrange(x, t, order):
        x = x.permute([t.index(c) for c in order])
        return x.expand([size[c] for c in order])

    left = arrange(a, ta, batch + only_a + summed).reshape(product(batch), product(only_a), product(summed))
    right = arrange(b, tb, batch + summed + only_b).reshape(product(batch), product(summed), product(only_b))
    out = left.bmm(right) if summed else left * right
    term = batch + only_a + only_b
    return out.reshape([size[c] for c in term]), "".join(term)


def einsum(equation, operands):
    terms, right = _parse(equation, operands)
    items = [_diagonals(x, t) for x, t in zip(operands, terms)]
    x, term = items[0]
    for i, (y, ty) in enumerate(items[1:], 1):
        keep = set(right).union(*[t for _, t in items[i + 1:]]) if items[i + 1:] else set(right)
        x, term = _pair(x, term, y, ty, keep)
    x, term = _sum_out(x, term, right)
    return x.permute([term.index(c) for c in right]) if term != right else x
