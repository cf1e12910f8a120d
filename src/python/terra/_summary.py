"""What a run was made of: counts kept step by step from watch() on, and their account, summary()."""

from . import _C

_KEYS = ("iterations_traced", "iterations_coexecuted", "ops", "ops_from_plans", "instructions", "ops_covered", "bytes_elided",
         "side_exits", "skeleton_ops", "skeleton_ns")

_steps = None     # per optimizer step since watch(): (partial, counters after it); None: nobody watches
partial = False   # the batch at hand is an epoch's last, smaller one; the DataLoader says so


def watch():
    """Counts step by step from here on, for summary(). A few microseconds per optimizer step."""
    global _steps
    _C._stats_reset()
    _steps = [(False, _counters())]


def step():
    """An outermost optimizer step has ended."""
    if _steps is not None:
        _steps.append((partial, _counters()))


def _counters():
    s = _C.stats()
    return tuple(s[k] for k in _KEYS)


def placement():
    """Each executor's threads and cores, a line each."""
    return "\n".join(line for line in _C.info().splitlines() if line.startswith("executor") or line == "unpinned")


def _sum(steps):
    return dict(zip(_KEYS, map(sum, zip(*steps)))) if steps else dict.fromkeys(_KEYS, 0)


def _account(title, steps):
    s = _sum(steps)
    if not steps:
        return f"  {title:<18}none"
    share = 100 * s["ops_from_plans"] / max(1, s["ops"])
    return f"  {title:<18}{len(steps)} steps, {share:.1f} % of {s['ops'] // len(steps)} operators per step from plans"


def summary():
    """An account of the run, as text: iterations traced and co-executed; what came from plans in steady state, which begins
    behind the last full batch that was traced (an epoch's smaller last batches are counted apart); operators per instruction;
    bytes that fusion never wrote; side exits; the time of an operator's dispatch; executors and their cores.

    Steps are counted from watch() on, or else only totals are known."""
    now = _C.stats()
    lines = [f"  iterations        {now['iterations_traced']} traced, {now['iterations_coexecuted']} co-executed, "
             f"{now['side_exits']} side exits"]
    if _steps is not None and len(_steps) > 1:
        each = [tuple(b - a for a, b in zip(before, after)) for (_, before), (_, after) in zip(_steps, _steps[1:])]
        marked = list(zip([p for p, _ in _steps[1:]], each))
        first = max((i + 1 for i, (p, d) in enumerate(marked) if not p and d[0]), default=0)
        full = [d for p, d in marked[first:] if not p]
        lines.append(_account("steady state", full) + f", from step {first + 1} on" * bool(full))
        if any(p for p, _ in marked):
            lines.append(_account("last batches", [d for p, d in marked if p]) + ", the smaller ones of all epochs")
        s = _sum(full) if full else now
        n = max(1, len(full))
    else:
        s, n = now, max(1, now["iterations_traced"] + now["iterations_coexecuted"])
        lines.append(f"  operators         {now['ops']}, {100 * now['ops_from_plans'] / max(1, now['ops']):.1f} % from plans")
    if s["instructions"]:
        lines.append(f"  instructions      {s['ops_covered'] / s['instructions']:.2f} operators each; "
                     f"{s['bytes_elided'] / n / 2**10:.1f} KiB per step never written")
    if s["skeleton_ops"]:
        lines.append(f"  skeleton          {s['skeleton_ns'] / s['skeleton_ops']:.0f} ns per operator, sampled")
    lines += [f"  {'executors' if i == 0 else '':<18}{line}" for i, line in enumerate(placement().splitlines())]
    return "\n".join(lines)
