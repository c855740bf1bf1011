"""Command line for networks that evaluate samples but are not encoders: Inception-v3 for FID."""

import argparse
import sys
from pathlib import Path

NAMES = ("inception", "inception-pytorch-fid")
ENCODER_OPTIONS = ("all", "depth", "fixtures")


def main(arguments: argparse.Namespace) -> int:
    """Exports the named networks and returns the exit code, as for encoders."""
    problem = _usage(arguments)
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    try:
        import torch

        from . import exporter, inception
        from .isolated import reason
    except ImportError as error:
        print(f"error: the package {error.name} is missing: see requirements.txt", file=sys.stderr)
        return 1
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seed = arguments.seed if arguments.random_weights else None
    options = exporter.Options(out=Path(arguments.out), seed=seed, weights=arguments.weights)
    failed = False
    for name in arguments.names:
        try:
            size, difference = inception.export(name, options)
        except Exception as error:
            if arguments.traceback:
                raise
            print(f"error: {name}: {reason(error)}", file=sys.stderr)
            failed = True
        else:
            print(f"{options.out / name}.pt  {size / 2**20:.1f} MiB  difference {difference:.1e}")
    return int(failed)


def _usage(arguments: argparse.Namespace) -> str | None:
    """Describes the error in the command line; None if it is valid."""
    others = [name for name in arguments.names if name not in NAMES]
    if others:
        return f"{', '.join(others)}: encoders must be exported by a separate command"
    for option in ENCODER_OPTIONS:
        if getattr(arguments, option):
            return f"--{option} applies to encoders, not to {' and '.join(NAMES)}"
    if arguments.weights is not None and arguments.random_weights:
        return "--weights and --random-weights exclude each other"
    if arguments.seed < 0:
        return "--seed must not be negative"
    return None
