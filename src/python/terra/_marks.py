"""Where iterations end, as far as Python knows: an outermost optimizer step, a batch handed out, a backward."""

from . import _C, _summary

_depth = 0


class step:
    """Around an optimizer's step(). Inside (in a closure) nothing marks."""

    def __enter__(self):
        global _depth
        _depth += 1

    def __exit__(self, kind, *exc):
        global _depth
        _depth -= 1
        if _depth == 0 and kind is None:
            _C._mark_optimizer_step()
            _summary.step()


def backward():
    if _depth == 0:
        _C._mark_backward()


def dataloader(partial):
    _summary.partial = partial
    if _depth == 0:
        _C._mark_dataloader()
