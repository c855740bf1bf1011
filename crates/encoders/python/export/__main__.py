"""The command line: `python -m export NAME... --out pretrained/`."""

import argparse
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from . import catalogue, measures
from .catalogue import Entry
from .errors import ExportError, UsageError

if TYPE_CHECKING:
    from .exporter import Outcome

EPILOG = """examples:
  python -m export dinov2-vit-b                        public weights; writes pretrained/dinov2-vit-b.{pt,toml}
  python -m export dinov2-vit-b,pe-vit-b --resolution 512
  python -m export --all                               continues after a failure; repeat it to export what is missing
  python -m export --all --random-weights --depth 2    the real networks with fewer blocks, without download, for tests
  python -m export mocov3-vit-l --weights vitl.pth.tar
  python -m export inception --weights weights-inception-2015-12-05-6726825d.pth   the network of FID
"""
REQUIREMENTS = "pip install -r crates/encoders/python/requirements.txt"


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m export",
        description="Exports frozen vision encoders as TorchScript files, each with a sidecar.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("names", nargs="*", metavar="NAME", help="upstream's names, separated by spaces or commas")
    out.add_argument("--all", action="store_true", help="export every encoder of the catalogue")
    out.add_argument("--list", action="store_true", help="print the names and exit")
    out.add_argument("--out", type=Path, default=Path("pretrained"), metavar="DIR", help="default: pretrained")
    out.add_argument("--resolution", type=int, default=256, choices=(256, 512), help="side of the images in pixels")
    out.add_argument("--weights", type=Path, metavar="FILE", help="local checkpoint, for one NAME")
    out.add_argument("--random-weights", action="store_true", help="use random instead of public weights")
    out.add_argument("--seed", type=int, default=0, help="seed of the random weights; default: 0")
    out.add_argument("--depth", type=int, metavar="N", help="number of blocks (per stage); needs --random-weights")
    out.add_argument("--fixtures", action="store_true", help="also write NAME.fixtures.safetensors for tests")
    out.add_argument("--force", action="store_true", help="export again even if the file is up to date")
    out.add_argument("--threads", type=int, metavar="N", help="number of torch threads; default: chosen by torch")
    out.add_argument("--traceback", action="store_true", help="print the traceback of errors")
    return out


def selection(arguments: argparse.Namespace) -> list[Entry]:
    """Returns the encoders that the command line names; raises `UsageError` if it is invalid."""
    entries = catalogue.load()
    if arguments.all and arguments.names:
        raise UsageError("--all takes no names")
    chosen = list(entries.values()) if arguments.all else catalogue.select(entries, arguments.names)
    if not chosen:
        raise UsageError("give the names of encoders, or --all; --list shows the names")
    if arguments.depth is not None and not arguments.random_weights:
        raise UsageError("--depth needs --random-weights: published weights have the full depth")
    if arguments.depth is not None and arguments.depth < 1:
        raise UsageError("--depth must be at least 1")
    if arguments.seed < 0:
        raise UsageError("--seed must not be negative")
    if arguments.weights is not None:
        if arguments.random_weights:
            raise UsageError("--weights and --random-weights exclude each other")
        if len(chosen) > 1:
            raise UsageError("--weights is the checkpoint of one encoder; give exactly one name")
    if arguments.depth is not None:
        for entry in chosen:
            if entry.depth < arguments.depth and "torchvision" not in entry.build:
                raise UsageError(f"{entry.name} has {entry.depth} blocks, not {arguments.depth}")
    if len(chosen) == 1 and arguments.resolution not in chosen[0].resolutions:
        raise UsageError(f"upstream runs {chosen[0].name} at {chosen[0].resolutions[0]} px only")
    return chosen


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.list:
        print("\n".join(catalogue.load()))
        return 0
    if any(name in measures.NAMES for name in arguments.names):
        return measures.main(arguments)
    try:
        chosen = selection(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        from . import exporter
        from .isolated import export_isolated, reason
    except ImportError as error:
        print(f"error: the package {error.name} is missing: {REQUIREMENTS}", file=sys.stderr)
        return 1
    options = exporter.Options(
        out=arguments.out,
        resolution=arguments.resolution,
        seed=arguments.seed if arguments.random_weights else None,
        depth=arguments.depth,
        weights=arguments.weights,
        fixtures=arguments.fixtures,
        force=arguments.force,
    )
    rows = []
    for position, entry in enumerate(chosen, 1):
        print(f"[{position}/{len(chosen)}] {entry.name}", file=sys.stderr, flush=True)
        if arguments.depth is not None and "torchvision" in entry.build:
            print(f"    {entry.name} has no blocks: --depth has no effect", file=sys.stderr)
        start = time.perf_counter()
        try:
            exporter.check(entry, options)
            outcome = exporter.kept(entry, options)
            if outcome is None:
                weights = exporter.checkpoint(entry, options)
                outcome = export_isolated(entry, options, weights, arguments.threads, arguments.traceback)
            row = described(outcome)
        except KeyboardInterrupt:
            print("interrupted; written files are kept and skipped when this command is repeated", file=sys.stderr)
            return 130
        except Exception as error:
            if arguments.traceback and not isinstance(error, ExportError):
                traceback.print_exc()
            row = {"status": "failed", "reason": reason(error)}
            print(f"    {row['reason']}", file=sys.stderr)
        rows.append({"name": entry.name, "seconds": f"{time.perf_counter() - start:.1f}"} | row)
    print(table(rows))
    return int(any(row["status"] == "failed" for row in rows))


def described(outcome: "Outcome") -> dict[str, str]:
    """Returns the table columns with the outcome of an export."""
    row = {"status": outcome.status, "size": f"{outcome.size / 2**20:.1f} MiB"}
    if outcome.difference is not None:
        row["difference"] = f"{outcome.difference:.1e}"
    if outcome.half is not None:
        row["bfloat16"] = f"{outcome.half:.1e}"
    return row


def table(rows: list[dict[str, str]]) -> str:
    """Formats the outcomes, one per line; `difference` and `bfloat16` are relative to the Python module in float32."""
    columns = ("name", "status", "size", "seconds", "difference", "bfloat16", "reason")
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    widths = {column: max(len(line.get(column, "")) for line in lines) for column in columns}
    return "\n".join(
        "  ".join(line.get(column, "").ljust(width) for column, width in widths.items()).rstrip() for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
