"""Converts checkpoints of upstream's Python to safetensors, and back.

    python convert_checkpoint.py import 0400000.pt converted/
    python convert_checkpoint.py export runs/mine/checkpoints/step-0400000 0400000.pt --format repa

`import` reads what REPA, iREPA, REPA-E, SiT, JiT and MeanFlow save (a dictionary with `model`, `ema` and so on, or one
state dict) and writes `model.safetensors`, `ema.safetensors`, ... and `source.json` into a folder. Their tensors have
the names that `runner` reads: `runner sample converted/ema.safetensors --config CONFIG`, `runner train CONFIG --init
converted/ema.safetensors`. Optimiser states are left out.

`export` writes a file that upstream's code loads with `load_state_dict(..., strict=True)`. `repa` has the heads of iREPA's
code, `projectors.N.projection_layer`; REPA-E's are called `projectors.N`, as those of REPA's first checkpoints.

Needs torch and safetensors. Checkpoints are loaded with `weights_only`: code in them is not run.
"""

import argparse
import hashlib
import json
import os
import pathlib
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

# Upstream's key of each of our files; JiT has other keys than the rest.
FILES = {"model": "model", "ema": "ema", "ema2": "ema2", "vae": "vae", "discriminator": "discriminator"}
JIT_KEYS = {"model": "model", "model_ema1": "ema", "model_ema2": "ema2"}
FORMATS = ("repa", "repa-e", "meanflow", "sit", "jit")
# Our state of LeCam, which upstream's checkpoints leave out.
LECAM = ("ema_real_logits_mean", "ema_fake_logits_mean")


class ConversionError(Exception):
    """What is wrong with a file, as one line for people."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of upstream's, without running code in it."""
    if not path.is_file():
        raise ConversionError(f"{path} does not exist")
    try:
        # What the scripts' own arguments are made of.
        with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(f"{path} holds more than tensors and settings: {_first_line(error)}") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ConversionError(f"{path} is no whole PyTorch checkpoint: {_first_line(error)}") from error
    if not isinstance(found, dict):
        raise ConversionError(f"{path} holds a {type(found).__name__}, no dictionary")
    return found


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def state_dicts(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Our files' contents, by name without extension. A bare state dict becomes `ema`."""
    keys = JIT_KEYS if "model_ema1" in checkpoint else FILES
    found = {ours: checkpoint[key] for key, ours in keys.items() if isinstance(checkpoint.get(key), Mapping)}
    if not found:
        tensors = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
        if not tensors:
            raise ConversionError(f"no weights under {', '.join(keys)}, and no tensors at the top: not a checkpoint")
        found = {"ema": tensors}
    return {name: renamed(state) for name, state in found.items()}


def renamed(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without what wrappers put before names; heads of older checkpoints under their newer names."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        ours = re.sub(r"^(module\.|_orig_mod\.|net\.)+", "", name)
        ours = re.sub(r"^(projectors\.\d+\.)(\d+\.)", r"\1projection_layer.\2", ours)
        if ours in out:
            raise ConversionError(f"two tensors would be called {ours}")
        out[ours] = tensor.detach().contiguous()
    return out


def with_older_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MLP heads under the names of REPA and REPA-E, `projectors.N.{0,2,4}`; the inverse of `renamed`."""
    return {re.sub(r"^(projectors\.\d+\.)projection_layer\.(\d+\.)", r"\1\2", key): state[key] for key in state}


def import_checkpoint(path: Path, folder: Path) -> list[Path]:
    """Writes the state dicts of `path` into `folder`; returns the files."""
    checkpoint = read_checkpoint(path)
    states = state_dicts(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, state in states.items():
        target = folder / f"{name}.safetensors"
        partial = folder / f".{name}.partial"
        # Tensors that share memory cannot be in one file as they are.
        save_file({key: tensor.clone() for key, tensor in state.items()}, partial)
        partial.replace(target)
        written.append(target)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = checkpoint.get("args")
    source = {
        "file": path.name,
        "sha256": digest,
        "steps": checkpoint.get("steps", checkpoint.get("epoch")),
        "args": {key: str(value) for key, value in vars(settings).items()} if settings is not None else None,
        "parameters": {name: sum(tensor.numel() for tensor in state.values()) for name, state in states.items()},
    }
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    return written


def export_checkpoint(folder: Path, target: Path, layout: str) -> None:
    """Writes the checkpoint folder of `runner` as upstream saves one."""
    states = {}
    for name in FILES:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            try:
                states[name] = load_file(path)
            except SafetensorError as error:
                raise ConversionError(f"{path} is no whole safetensors file: {error}") from error
    if "model" not in states or "ema" not in states:
        raise ConversionError(f"{folder} has no model.safetensors and ema.safetensors: not a checkpoint folder")
    manifest = folder / "manifest.json"
    steps = json.loads(manifest.read_text(encoding="utf-8"))["step"] if manifest.is_file() else 0
    if layout == "jit":
        prefixed = {
            name: {f"net.{key}": tensor for key, tensor in state.items()} for name, state in states.items()
        }
        second = prefixed.get("ema2", prefixed["ema"])
        content = {"model": prefixed["model"], "model_ema1": prefixed["ema"], "model_ema2": second, "epoch": 0}
    elif layout == "repa-e":
        missing = [name for name in ("vae", "discriminator") if name not in states]
        if missing:
            raise ConversionError(f"{folder} has no {missing[0]}.safetensors: not a checkpoint of REPA-E")
        states["discriminator"] = {key: value for key, value in states["discriminator"].items() if key not in LECAM}
        content = {name: with_older_heads(state) for name, state in states.items()} | {"steps": steps}
    else:
        content = {**states, "steps": steps}
    partial = target.with_name(f".{target.name}.partial")
    try:
        torch.save(content, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="from upstream's .pt or .pth")
    importing.add_argument("checkpoint", type=Path)
    importing.add_argument("folder", type=Path)
    exporting = commands.add_parser("export", help="to upstream's .pt or .pth")
    exporting.add_argument("folder", type=Path, help="RUN/checkpoints/step-N")
    exporting.add_argument("target", type=Path)
    exporting.add_argument("--format", choices=FORMATS, default="repa", help="whose; default: repa")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "import":
            for path in import_checkpoint(arguments.checkpoint, arguments.folder):
                print(path)
        else:
            export_checkpoint(arguments.folder, arguments.target, arguments.format)
            print(arguments.target)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
