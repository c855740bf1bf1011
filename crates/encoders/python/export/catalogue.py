"""Reads `catalogue.toml`, the properties of all encoders, which the `encoders` crate reads too."""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError
from .sidecar import Preprocessing

CATALOGUE = Path(__file__).resolve().parents[2] / "catalogue.toml"


@dataclass(frozen=True)
class Entry:
    """One encoder. The fields are those of `catalogue.toml`, which documents them."""

    name: str
    study: bool
    family: str
    paper: str
    params_m: float
    width: int
    depth: int
    patch_size: int
    prefix_tokens: int
    class_token: bool
    input_size: int
    resolutions: tuple[int, ...]
    preprocessing: Preprocessing
    weights: str
    licence: str
    gated: bool
    build: dict[str, Any]
    note: str = ""

    def grid_at(self, resolution: int) -> int:
        """Returns the side of the token grid for images of `resolution` px."""
        return self.input_at(resolution) // self.patch_size

    def input_at(self, resolution: int) -> int:
        """Returns the side of the network's input for images of `resolution` px."""
        return self.input_size * resolution // 256

    def file_stem(self, resolution: int) -> str:
        """Returns the name of the files without extension."""
        return self.name if resolution == 256 else f"{self.name}@{resolution}"


def load(path: Path = CATALOGUE) -> dict[str, Entry]:
    """Returns all encoders by name, in the order of the file."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    recipes = {
        name: Preprocessing(**(recipe | {"mean": tuple(recipe["mean"]), "std": tuple(recipe["std"])}))
        for name, recipe in table["preprocessing"].items()
    }
    entries = (
        Entry(
            **(
                fields
                | {"preprocessing": recipes[fields["preprocessing"]], "resolutions": tuple(fields["resolutions"])}
            )
        )
        for fields in table["encoder"]
    )
    return {entry.name: entry for entry in entries}


def select(entries: dict[str, Entry], names: Iterable[str]) -> list[Entry]:
    """Returns the entries of `names` without duplicates. A name may be several names separated by commas."""
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    for name in wanted:
        if name not in entries:
            raise UsageError(f"no encoder is called {name!r}; {_nearest(name, entries)}")
    return [entries[name] for name in dict.fromkeys(wanted)]


def _nearest(name: str, entries: dict[str, Entry]) -> str:
    by_lower = {known.lower(): known for known in entries}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    if not near:
        return "`python -m export --list` shows all names"
    return "the nearest names are " + ", ".join(by_lower[known] for known in near)
