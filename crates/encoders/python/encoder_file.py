"""An encoder on disk, as the `encoders` crate reads it: `NAME.pt` (TorchScript) and `NAME.toml`.

The TorchScript takes preprocessed images, float32 `[B, 3, S, S]`, and returns the patch tokens
`[B, T, D]`, or `(patch tokens, class token [B, D])`.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch


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
class Sidecar:
    """What stands in `NAME.toml`, but for the checksum."""

    name: str
    description: str
    weights: str
    licence: str
    grid: tuple[int, int]
    width: int
    input_size: int
    preprocessing: Preprocessing
    class_token: bool = False

    def to_toml(self, sha256: str) -> str:
        pre = self.preprocessing
        return "\n".join(
            [
                _entry("name", self.name),
                _entry("description", self.description),
                _entry("weights", self.weights),
                _entry("licence", self.licence),
                _entry("sha256", sha256),
                _entry("grid", self.grid),
                _entry("width", self.width),
                _entry("class_token", self.class_token),
                _entry("input_size", self.input_size),
                "",
                "[preprocessing]",
                _entry("scale", pre.scale),
                _entry("order", pre.order),
                _entry("resize", pre.resize),
                _entry("antialias", pre.antialias),
                _entry("mean", pre.mean),
                _entry("std", pre.std),
                "",
            ]
        )


def write_encoder(module: torch.jit.ScriptModule, sidecar: Sidecar, folder: Path) -> Path:
    """Writes `NAME.pt` and `NAME.toml` into `folder` and returns the path of the former."""
    content = _torchscript_bytes(module)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sidecar.name}.pt"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    path.with_suffix(".toml").write_text(sidecar.to_toml(digest), encoding="utf-8")
    return path


def _torchscript_bytes(module: torch.jit.ScriptModule) -> bytes:
    """The archive of `torch.jit.save`, less what differs from machine to machine.

    That is the debug records, which hold the paths of the Python sources, and the serialization id,
    which is a checksum over them. The inputs of the trace are of no use to a reader. libtorch loads
    an archive without all of these. Records are stored, since zlib's output depends on its version.
    """
    saved = io.BytesIO()
    torch.jit.save(module, saved)
    stripped = io.BytesIO()
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(stripped, "w") as target:
        for record in source.namelist():
            inner = record.split("/", 1)[1]
            if inner.endswith(".debug_pkl") or inner.startswith(("traced_inputs", ".data/")):
                continue
            # A new ZipInfo is dated 1980-01-01.
            target.writestr(zipfile.ZipInfo(record), source.read(record))
    return stripped.getvalue()


def _entry(key: str, value: str | bool | int | tuple) -> str:
    # JSON's strings, booleans, numbers and lists are TOML's too.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"
