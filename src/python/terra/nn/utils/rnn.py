"""Sequences of different lengths."""

from ..._creation import full


def pad_sequence(sequences, batch_first=False, padding_value=0.0, padding_side="right"):
    """One tensor of all sequences, padded to the longest."""
    longest = max(s.shape[0] for s in sequences)
    rest = tuple(sequences[0].shape[1:])
    shape = (len(sequences), longest, *rest) if batch_first else (longest, len(sequences), *rest)
    out = full(shape, padding_value, dtype=sequences[0].dtype)
    for i, s in enumerate(sequences):
        at = slice(0, s.shape[0]) if padding_side == "right" else slice(longest - s.shape[0], longest)
        out[(i, at) if batch_first else (at, i)] = s
    return out
