"""Converts checkpoints of upstream's Python code to safetensors, and back.

    python convert_checkpoint.py import 0400000.pt converted/
    python convert_checkpoint.py export runs/mine/checkpoints/step-0400000 0400000.pt --format repa

`import` reads checkpoints of REPA, iREPA, REPA-E, SiT, JiT and MeanFlow (a dictionary with `model`, `ema` and so on, or
a single state dict). It writes `model.safetensors`, `ema.safetensors`, ... and `source.json` into a folder. The tensors
have the names that `runner` reads: `runner sample converted/ema.safetensors --config CONFIG`, `runner train CONFIG
--init converted/ema.safetensors`. Optimiser states are not converted.

`export` writes a file that upstream's code loads with `load_state_dict(..., strict=True)`. In the format `repa`, heads
have the names of iREPA's code, `projectors.N.projection_layer`. In the format `repa-e` their names are `projectors.N`,
as in REPA's first checkpoints.

Needs torch and safetensors. Checkpoints are loaded with `weights_only`, so that code in them does not run.
"""

import argparse
import hashlib
import json
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

# Maps upstream's keys to the names of our files. JiT has its own keys.
FILES = {"model": "model", "ema": "ema", "ema2": "ema2", "vae": "vae", "discriminator": "discriminator"}
JIT_KEYS = {"model": "model", "model_ema1": "ema", "model_ema2": "ema2"}
FORMATS = ("repa", "repa-e", "meanflow", "sit", "jit")
# State of LeCam in our checkpoints, which upstream's checkpoints do not contain.
LECAM = ("ema_real_logits_mean", "ema_fake_logits_mean")


class ConversionError(Exception):
    """A file cannot be converted. The message is one line."""


def safe_globals() -> list[Any]:
    """Returns the types that checkpoints hold besides tensors: the scripts' arguments, numpy's numbers and arrays."""
    known: list[Any] = [argparse.Namespace, pathlib.PosixPath]
    # The name in Python 3.13.
    known.append((pathlib.PosixPath, "pathlib._local.PosixPath"))
    try:
        import numpy
    except ImportError:
        return known
    multiarray = getattr(numpy, "_core", None) or numpy.core
    for function in ("scalar", "_reconstruct"):
        # The module names of numpy 2 and 1, since either may have written the file.
        for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
            known.append((getattr(multiarray.multiarray, function), f"{module}.{function}"))
    known += [numpy.dtype, numpy.ndarray]
    known += {type(numpy.dtype(code)) for code in numpy.typecodes["AllInteger"] + "?efdFDSU"}
    return known


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint of upstream's code, without running code in it."""
    if not path.is_file():
        raise ConversionError(f"{path} does not exist")
    try:
        with torch.serialization.safe_globals(safe_globals()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(f"{path} {_refused(error)}") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ConversionError(f"{path} is not a complete PyTorch checkpoint: {_first_line(error)}") from error
    if not isinstance(found, dict):
        raise ConversionError(f"{path} holds a {type(found).__name__} instead of a dictionary")
    return found


def _refused(error: Exception) -> str:
    """Returns why `weights_only` refused a file. PyTorch's message begins with advice and ends with the cause."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text)
    if named:
        return (
            f"holds more than tensors and settings: {named[1]}, which could run code and is not loaded. Load the file "
            "in the environment that wrote it, keep only the state dicts, and save them again"
        )
    cause = text.split("WeightsUnpickler error:")[-1]
    return f"holds more than tensors and settings, or is damaged: {_first_line(cause)}"


def _first_line(error: Exception | str) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def state_dicts(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Returns the contents of our files, by their names without extension. A bare state dict becomes `ema`."""
    keys = JIT_KEYS if "model_ema1" in checkpoint else FILES
    found = {ours: checkpoint[key] for key, ours in keys.items() if isinstance(checkpoint.get(key), Mapping)}
    if not found:
        tensors = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
        if not tensors:
            keys_text = ", ".join(keys)
            raise ConversionError(f"no weights under {keys_text}, and no tensors at the top level: not a checkpoint")
        found = {"ema": tensors}
    return {name: renamed(state) for name, state in found.items()}


def renamed(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Removes the wrappers' prefixes from names, and renames heads of older checkpoints to their newer names."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        ours = re.sub(r"^(module\.|_orig_mod\.|net\.)+", "", name)
        ours = re.sub(r"^(projectors\.\d+\.)(\d+\.)", r"\1projection_layer.\2", ours)
        if ours in out:
            raise ConversionError(f"two tensors would have the name {ours}")
        out[ours] = tensor.detach().contiguous()
    return out


def with_older_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames MLP heads to the names of REPA and REPA-E, `projectors.N.{0,2,4}`; the inverse of `renamed`."""
    return {re.sub(r"^(projectors\.\d+\.)projection_layer\.(\d+\.)", r"\1\2", key): state[key] for key in state}


def settings_of(checkpoint: Mapping[str, Any]) -> dict[str, str] | None:
    """Returns the scripts' arguments, which are a namespace or a dictionary, as text."""
    found = checkpoint.get("args")
    if isinstance(found, argparse.Namespace):
        found = vars(found)
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, Mapping) else None


def steps_of(checkpoint: Mapping[str, Any]) -> int | None:
    """Returns the number of steps done, or the epoch, from a number of Python, numpy or torch."""
    try:
        return int(checkpoint.get("steps", checkpoint.get("epoch")))
    except (TypeError, ValueError, RuntimeError):
        return None


def import_checkpoint(path: Path, folder: Path) -> list[Path]:
    """Writes the state dicts of `path` into `folder`, all of them or none. Returns the files."""
    checkpoint = read_checkpoint(path)
    states = state_dicts(checkpoint)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = {
        "file": path.name,
        "sha256": digest,
        "steps": steps_of(checkpoint),
        "args": settings_of(checkpoint),
        "parameters": {name: sum(tensor.numel() for tensor in state.values()) for name, state in states.items()},
    }
    described = json.dumps(source, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    partial = {folder / f"{name}.safetensors": folder / f".{name}.partial" for name in states}
    source_partial = folder / ".source.partial"
    try:
        for state, file in zip(states.values(), partial.values(), strict=True):
            # safetensors refuses tensors that share memory.
            save_file({key: tensor.clone() for key, tensor in state.items()}, file)
        source_partial.write_text(described, encoding="utf-8")
        for target, file in partial.items():
            file.replace(target)
        source_partial.replace(folder / "source.json")
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        # The format does not support the dtype or layout.
        message = f"{path} holds tensors that safetensors does not support: {_first_line(error)}"
        raise ConversionError(message) from error
    finally:
        for file in (*partial.values(), source_partial):
            file.unlink(missing_ok=True)
    return list(partial)


def _steps_of_manifest(path: Path) -> int:
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} is not the manifest of a checkpoint: {_first_line(error)}") from error


def export_checkpoint(folder: Path, target: Path, layout: str) -> None:
    """Writes a checkpoint folder of `runner` as a checkpoint of upstream's code."""
    states = {}
    for name in FILES:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            try:
                states[name] = load_file(path)
            except SafetensorError as error:
                raise ConversionError(f"{path} is not a complete safetensors file: {error}") from error
    if "model" not in states or "ema" not in states:
        raise ConversionError(f"{folder} has no model.safetensors and ema.safetensors: not a checkpoint folder")
    steps = _steps_of_manifest(folder / "manifest.json")
    if layout == "jit":
        prefixed = {name: {f"net.{key}": tensor for key, tensor in state.items()} for name, state in states.items()}
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
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="convert upstream's .pt or .pth file to safetensors")
    importing.add_argument("checkpoint", type=Path)
    importing.add_argument("folder", type=Path)
    exporting = commands.add_parser("export", help="convert a checkpoint folder to upstream's .pt or .pth file")
    exporting.add_argument("folder", type=Path, help="RUN/checkpoints/step-N")
    exporting.add_argument("target", type=Path)
    exporting.add_argument("--format", choices=FORMATS, default="repa", help="format of the file; default: repa")
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
