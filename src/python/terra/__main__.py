"""python -m terra [--seed N] script.py args…    a PyTorch script, with `torch` meaning Terra
python -m terra [--seed N] -m module args…
python -m terra info                            versions, instruction set, topology, options"""

import importlib
import importlib.abc
import os
import pkgutil
import sys


class _Absent(importlib.abc.MetaPathFinder):
    """Says of modules below torch that they are not there, before a real torch could answer."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError(f"No module named '{name}': not in Terra's subset yet", name=name)


def alias():
    """Makes the package tree `torch` mean Terra."""
    import terra

    for found in pkgutil.walk_packages(terra.__path__, "terra."):
        if not found.name.endswith(("__main__", "._C")):
            importlib.import_module(found.name)
    for name, module in list(sys.modules.items()):
        if name == "terra" or name.startswith("terra."):
            sys.modules["torch" + name[5:]] = module
    sys.modules["safetensors.torch"] = terra.safetensors
    sys.meta_path.insert(0, _Absent())
    return terra


def _seed(torch, number):
    import random

    import numpy

    random.seed(number)
    numpy.random.seed(number & 0xFFFF_FFFF)
    torch.manual_seed(number)


def _fail(message):
    print(f"terra: {message}", file=sys.stderr)
    raise SystemExit(2)


def _run_script(path, args):
    """Runs a file as __main__, for good: what it pickles is found under that name."""
    import types

    try:
        with open(path, "rb") as f:
            source = f.read()
    except OSError as error:
        _fail(f"can't open file '{path}': {error.strerror}")
    module = types.ModuleType("__main__")
    module.__file__, module.__builtins__ = path, __builtins__
    sys.argv = [path, *args]
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    sys.modules["__main__"] = module
    exec(compile(source, path, "exec"), module.__dict__)


def main(argv):
    number = None
    while argv and argv[0].startswith("--"):
        option, _, value = argv.pop(0).partition("=")
        if option == "--help":
            print(__doc__)
            return
        if option != "--seed":
            _fail(f"unknown option {option}\n{__doc__}")
        value = value or (argv.pop(0) if argv else "")
        try:
            number = int(value)
        except ValueError:
            _fail("--seed needs a number")
    if not argv:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    if argv == ["info"]:
        import terra

        print(terra.info())
        return
    torch = alias()
    if number is not None:
        _seed(torch, number)
    if argv[0] == "-m":
        if len(argv) < 2:
            _fail("-m needs a module")
        import runpy

        sys.argv = argv[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        _run_script(argv[0], argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
