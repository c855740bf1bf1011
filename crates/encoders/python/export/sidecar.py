"""Writes the files of an encoder for the `encoders` crate: `NAME.pt` (TorchScript) and `NAME.toml`.

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
    """Conversion of u8 images `[B, 3, H, W]` to the input of the TorchScript module."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: bool = True
    order: str = "resize-first"
    resize: str = "bilinear"
    antialias: bool = False


@dataclass(frozen=True)
class Reference:
    """Some token values that the Python module returns for the images of `reference.py`."""

    patch_index: list[int] = field(default_factory=list)
    patch: list[float] = field(default_factory=list)
    class_index: list[int] = field(default_factory=list)
    class_values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sidecar:
    """Contents of `NAME.toml` without the checksum. Values that are None are omitted."""

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
    """Writes the archive of `torch.jit.save` without the parts that differ between machines.

    These are the debug records, which contain the paths of the Python sources, and the serialization
    id, a checksum over them. The inputs of the trace are omitted too. libtorch loads an archive
    without these parts. Records are stored uncompressed, because the output of zlib depends on its
    version. The archive's inner folder, which torch names after the file, is always `archive`.

    The archive is copied in pieces, so that a model needs memory for one copy, and disk space for two.
    """
    import torch  # imported here, so that reading the catalogue does not require torch

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
    """Writes a file atomically."""
    with temporary(path) as partial:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(path)
    sync(path.parent)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Provides a temporary path beside `path` and removes the file at the end if it still exists.

    Also removes temporary files that killed processes have left.
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
    """Flushes a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def entries(values: dict[str, Any]) -> list[str]:
    """Returns lines of TOML; values that are None are omitted."""
    return [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + " }"
    # JSON strings, booleans, finite numbers and lists are also valid TOML.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
