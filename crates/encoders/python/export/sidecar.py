"""An encoder on disk, as the `encoders` crate reads it: `NAME.pt` (TorchScript) and `NAME.toml`.

The TorchScript takes preprocessed images, float32 `[B, 3, S, S]`, and returns the patch tokens
`[B, T, D]`, or `(patch tokens, class token [B, D])`.
"""

import glob
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Preprocessing:
    """How u8 images `[B, 3, H, W]` become the TorchScript's input."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: bool = True
    order: str = "resize-first"
    resize: str = "bilinear"
    antialias: bool = False


@dataclass(frozen=True)
class Reference:
    """Some of the tokens that the Python module gives for the images of `reference.py`."""

    patch_index: list[int] = field(default_factory=list)
    patch: list[float] = field(default_factory=list)
    class_index: list[int] = field(default_factory=list)
    class_values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sidecar:
    """What stands in `NAME.toml`, but for the checksum. What is None is left out."""

    name: str
    description: str
    weights: str
    licence: str
    grid: tuple[int, int]
    width: int
    input_size: int
    preprocessing: Preprocessing
    class_token: bool = False
    family: str | None = None
    gated: bool | None = None
    prefix_tokens: int | None = None
    params_m: float | None = None
    depth: int | None = None
    dtype: str | None = None
    resolution: int | None = None
    input_sizes: dict[str, int] | None = None
    reference: Reference | None = None

    def to_toml(self, sha256: str) -> str:
        keys = {
            "name": self.name,
            "description": self.description,
            "family": self.family,
            "weights": self.weights,
            "licence": self.licence,
            "gated": self.gated,
            "sha256": sha256,
            "grid": self.grid,
            "width": self.width,
            "class_token": self.class_token,
            "prefix_tokens": self.prefix_tokens,
            "params_m": self.params_m,
            "depth": self.depth,
            "dtype": self.dtype,
            "resolution": self.resolution,
            "input_size": self.input_size,
            "input_sizes": self.input_sizes,
        }
        pre = self.preprocessing
        preprocessing = {
            "scale": pre.scale,
            "order": pre.order,
            "resize": pre.resize,
            "antialias": pre.antialias,
            "mean": pre.mean,
            "std": pre.std,
        }
        lines = [*entries(keys), "", "[preprocessing]", *entries(preprocessing), ""]
        if self.reference is not None:
            values = {
                "patch_index": self.reference.patch_index,
                "patch": self.reference.patch,
                "class_index": self.reference.class_index,
                "class": self.reference.class_values,
            }
            lines += ["[reference]", *entries(values), ""]
        return "\n".join(lines)


def write_encoder(module: "torch.jit.ScriptModule", sidecar: Sidecar, folder: Path) -> Path:
    """Writes `NAME.pt` and `NAME.toml` into `folder` and returns the path of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sidecar.name}.pt"
    with temporary(path) as partial:
        write_torchscript(module, partial)
        digest = sha256_of(partial)
        partial.replace(path)
    write_text(path.with_suffix(".toml"), sidecar.to_toml(digest))
    return path


def write_torchscript(module: "torch.jit.ScriptModule", path: Path) -> None:
    """The archive of `torch.jit.save`, less what differs from machine to machine.

    That is the debug records, which hold the paths of the Python sources, and the serialization id,
    which is a checksum over them. The inputs of the trace are of no use to a reader. libtorch loads
    an archive without all of these. Records are stored, since zlib's output depends on its version,
    and the archive's inner folder, which torch calls after the file, is always `archive`.

    Goes from file to file a piece at a time: a model takes its memory once, and its disk twice.
    """
    import torch  # here, so that reading the catalogue needs no torch

    with temporary(path.with_name(f"{path.name}.raw")) as raw:
        torch.jit.save(module, raw)
        with zipfile.ZipFile(raw) as source, path.open("wb") as file, zipfile.ZipFile(file, "w") as target:
            for record in source.infolist():
                inner = record.filename.split("/", 1)[1]
                if inner.endswith(".debug_pkl") or inner.startswith(("traced_inputs", ".data/serialization_id")):
                    continue
                # A new ZipInfo is dated 1980-01-01.
                stripped = zipfile.ZipInfo(f"archive/{inner}")
                stripped.file_size = record.file_size
                with source.open(record) as reader, target.open(stripped, "w") as writer:
                    shutil.copyfileobj(reader, writer, COPY_BYTES)
    sync(path)


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees all of it or nothing."""
    with temporary(path) as partial:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(path)
    sync(path.parent)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` for what is not finished; whatever still has it at the end is removed.

    So is what a process left that was killed.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}*.tmp"):
        owner = leftover.name.split(".")[-2]
        if owner.isdecimal() and not _runs(int(owner)):
            leftover.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Has the system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries(values: dict[str, Any]) -> list[str]:
    """Lines of TOML; what is None is left out."""
    return [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + " }"
    # JSON's strings, booleans, finite numbers and lists are TOML's too.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
