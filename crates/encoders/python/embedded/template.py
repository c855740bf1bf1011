"""Templates: the files of an encoder without the weights, and where the weights are in a package.

A TorchScript file is a ZIP archive whose records are stored uncompressed; each weight is a record of plain numbers. A
template `NAME.zip` has all other records, and `template.json`:

    records   names of all records, in order
    package   the fields of `Package`
    weights   for each other record, the position and the number of its bytes in the package's file

`NAME.toml` beside it is the encoder's sidecar. It has the SHA-256 of the complete file.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from .packages import Package, PackageError

FOLDER = Path(__file__).resolve().parent / "templates"
DESCRIPTION = "template.json"
# Smaller records are kept: they are constants, or not worth a position.
SMALLEST_WEIGHT = 128
# A larger record that is kept would be a weight that was not found.
LARGEST_CONSTANT = 256 << 10


@dataclass(frozen=True)
class Template:
    """An encoder's file without its weights."""

    records: list[str]
    package: Package
    weights: dict[str, tuple[int, int]]
    rest: dict[str, bytes]

    def complete(self, content: bytes) -> bytes:
        """Returns the TorchScript file, with the weights from the package's file `content`."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as target:
            for name in self.records:
                # A new ZipInfo is dated 1980-01-01. The system is fixed, because Python's default depends on it.
                record = zipfile.ZipInfo(name)
                record.create_system = 3
                if name in self.weights:
                    start, size = self.weights[name]
                    if start + size > len(content):
                        raise PackageError(f"{self.package.member} of {self.package} is too short")
                    target.writestr(record, content[start : start + size])
                else:
                    target.writestr(record, self.rest[name])
        return archive.getvalue()

    def write(self, path: Path) -> None:
        """Writes the template; the bytes do not depend on the machine."""
        description = {"records": self.records, "package": asdict(self.package), "weights": self.weights}
        content = {DESCRIPTION: json.dumps(description, indent=1).encode(), **self.rest}
        with zipfile.ZipFile(path, "w") as target:
            for name, data in content.items():
                target.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)


def read(path: Path) -> Template:
    """Reads a template."""
    with zipfile.ZipFile(path) as archive:
        description = json.loads(archive.read(DESCRIPTION))
        rest = {name: archive.read(name) for name in archive.namelist() if name != DESCRIPTION}
    weights = {name: (start, size) for name, (start, size) in description["weights"].items()}
    return Template(description["records"], Package(**description["package"]), weights, rest)


def split(torchscript: Path, package: Package, content: bytes) -> Template:
    """Splits a complete file into a template and positions of weights in the package's file `content`.

    Raises ValueError if a large record is not in the package, so that a template never contains weights.
    """
    records, weights, rest = [], {}, {}
    with zipfile.ZipFile(torchscript) as archive:
        for name in archive.namelist():
            records.append(name)
            data = archive.read(name)
            # Constants of the code, such as a resampled table, are not weights of the package.
            start = content.find(data) if len(data) >= SMALLEST_WEIGHT and "/data/" in name else -1
            if start >= 0:
                weights[name] = (start, len(data))
            elif len(data) > LARGEST_CONSTANT:
                raise ValueError(f"the {len(data)} bytes of {name} are not in {package.member} of {package}")
            else:
                rest[name] = data
    return Template(records, package, weights, rest)


def names(folder: Path) -> list[str]:
    """The encoders that have a template in `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.zip"))


def sha256(content: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()
