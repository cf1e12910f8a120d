#!/usr/bin/env python3
"""Reads the includes: a room may include terra/*.h, itself, and rooms to its right (python, tracer, graph, exec)."""

import pathlib
import re
import sys

ROOMS = ["python", "tracer", "graph", "exec"]
FOREIGN = {"Python.h": "python", "dnnl": "exec", "hwloc": "exec", "omp.h": "exec", "sleef": "exec", "jemalloc": "exec"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def target_room(root, source, kind, name):
    """The room that an include reaches into, or None for terra/*.h and system headers."""
    for prefix, room in FOREIGN.items():
        if name.startswith((prefix, "oneapi/" + prefix)):
            return room if prefix == "Python.h" else f"{room} (library)"
    if name.startswith("terra/") or kind == "<":
        return None
    for candidate in (source.parent / name, root / "src" / name):
        if candidate.exists():
            parts = candidate.resolve().relative_to(root / "src").parts
            return parts[0]
    return f"nowhere ({name})"


def violations(root):
    for source in sorted([*root.glob("src/**/*.[ch]"), *root.glob("src/**/*.inc"), *root.glob("src/**/*.def")]):
        room = source.relative_to(root / "src").parts[0]
        for number, line in enumerate(source.read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            if not found:
                continue
            target = target_room(root, source, *found.groups())
            if target is None:
                continue
            if target.endswith("(library)"):
                allowed = target.split()[0] == room
            else:
                allowed = target in ROOMS and room in ROOMS and ROOMS.index(target) >= ROOMS.index(room)
            if not allowed:
                yield f"{source.relative_to(root)}:{number}: room '{room}' may not include {found.group(2)} ({target})"


def public_headers(root):
    """terra/*.h must stand without any room and without the libraries behind them."""
    for source in sorted(root.glob("include/terra/*")):
        for number, line in enumerate(source.read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            if found and (found.group(2).startswith(tuple(FOREIGN)) or found.group(2).startswith(tuple(f"{r}/" for r in ROOMS))):
                yield f"{source.relative_to(root)}:{number}: a public header may not include {found.group(2)}"


def main():
    root = pathlib.Path(__file__).resolve().parents[1]
    problems = [*violations(root), *public_headers(root)]
    print("\n".join(problems) if problems else "layering: no room looks up")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
