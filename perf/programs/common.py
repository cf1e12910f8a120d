"""What the programs here share beyond record.py: tuning, the torch that they run under.

A program gives a step, that is: feed a batch, forward, backward, optimizer, loss.item(). `torch` is PyTorch or Terra; the tuning
options are what one would try on PyTorch. Of them Terra heeds the precision."""

import contextlib

import numpy as np
import record
import torch


def options(p):
    p.add_argument("--precision", choices=["highest", "high", "medium"], help="torch.set_float32_matmul_precision")
    p.add_argument("--fused", action="store_true", help="PyTorch's fused optimizer")
    p.add_argument("--channels-last", action="store_true", help="images and convolutions with channels last")
    p.add_argument("--compile", action="store_true", help="torch.compile the model")
    p.add_argument("--weights", help="write the parameters that training begins with to this file, for perf/peers")


def parse(workload, doc):
    return record.parse(workload, doc, options)


def prepare(args):
    """Before the model is made."""
    torch.manual_seed(args.seed)
    if args.precision:
        torch.set_float32_matmul_precision(args.precision)
    return np.random.RandomState(args.seed)


def tuned(model, args):
    """The model as the options want it."""
    if args.weights:
        np.savez(args.weights, **{name: p.detach().numpy() for name, p in model.named_parameters()})
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if args.compile else model


def fused(args):
    """Keyword arguments for an optimizer."""
    return {"fused": True} if args.fused else {}


def autocast(args):
    """What forward and loss run in."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if args.dtype == "bf16" else contextlib.nullcontext()


def batches(workload, args, rng):
    made = record.pool(lambda: workload.batch(args, rng))
    return lambda i: tuple(torch.from_numpy(a) for a in made(i))


def run(args, step, workload):
    if torch.__name__ == "terra":
        about = [line for line in torch.info().splitlines()[1:] if line and not line.startswith("TERRA_")]  # kernels, executors
        ran_with = {"terra": torch.__version__, "about": about}
        return record.run(args, step, workload.flop(args), "terra", ran_with, lambda: torch.stats()["iterations_coexecuted"] > 0)
    ran_with = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    return record.run(args, step, workload.flop(args), "torch " + torch.__version__, ran_with, lambda: args.compile)
