"""Exports one encoder: builds the network, loads weights, traces, saves, verifies and describes it."""

import gc
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from . import build, checkpoints, sources, verify
from .catalogue import Entry
from .errors import ExportError
from .preprocess import preprocess
from .reference import fixture_images, reference, reference_images
from .sidecar import Reference, Sidecar, sha256_of, sync, temporary, write_text, write_torchscript

# Largest network that is tested in bfloat16; without hardware support, larger ones are slow.
HALF_PARAMS_M = 400.0
# Side of the part of the images on which a convolutional network is tested in bfloat16, in pixels.
HALF_CORNER = 64
FIXTURE_SEED = 27


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    out: Path
    resolution: int = 256
    seed: int | None = None  # of random weights; None for public weights
    depth: int | None = None
    weights: Path | None = None
    fixtures: bool = False
    force: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of one export."""

    status: str  # "written" or "kept"
    size: int  # bytes of the TorchScript file
    difference: float | None = None
    half: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Source of the weights: files (none for random weights) and the description in the sidecar."""

    files: list[Path]
    description: str


def check(entry: Entry, options: Options) -> None:
    """Raises `ExportError` if upstream does not support this resolution."""
    if options.resolution not in entry.resolutions:
        allowed = " or ".join(map(str, entry.resolutions))
        raise ExportError(f"upstream runs {entry.name} at {allowed} px only, not at {options.resolution}")


def kept(entry: Entry, options: Options) -> Outcome | None:
    """Returns the outcome if the files are up to date, else None."""
    path, fixtures = _paths(entry, options)
    if options.force or not _up_to_date(path, fixtures, entry, options):
        return None
    return Outcome("kept", path.stat().st_size)


def checkpoint(entry: Entry, options: Options) -> Checkpoint:
    """Finds the weights and downloads them if necessary."""
    if options.seed is not None:
        return Checkpoint([], _random(options.seed))
    if options.weights is not None:
        if not options.weights.is_file():
            raise ExportError(f"{options.weights} does not exist")
        description = f"file {options.weights.name}, SHA-256 {sha256_of(options.weights)}"
        return Checkpoint([options.weights], description)
    return Checkpoint(*sources.download(entry))


def half_images(entry: Entry, images: Tensor) -> Tensor:
    """The images that the network is tested with in bfloat16.

    A processor without bfloat16 needs a minute and a half for the convolutions of VGG-16. It takes images of any
    size, so that a corner is enough to test the cast.
    """
    return images[..., :HALF_CORNER, :HALF_CORNER] if "torchvision" in entry.build else images


@torch.no_grad()
def export(entry: Entry, options: Options, weights: Checkpoint) -> Outcome:
    """Writes `NAME.pt`, `NAME.toml` and, if requested, `NAME.fixtures.safetensors` into `options.out`.

    The bytes depend on earlier traces in the same process, because TorchScript numbers the classes of a process.
    """
    path, fixtures = _paths(entry, options)
    options.out.mkdir(parents=True, exist_ok=True)
    _fixtures_of(path).unlink(missing_ok=True)  # they belong to other weights

    encoder = build.build(entry, options.resolution, options.depth)
    if options.seed is not None:
        build.randomise(encoder, options.seed)
    else:
        published = sources.read(weights.files)
        checkpoints.load(encoder.network, entry, options.resolution, published)
        if isinstance(encoder, build.Normalised):
            encoder.take_statistics(checkpoints.input_statistics(published))
        del published
    facts = {"params_m": build.params_m(encoder), "depth": build.depth_of(encoder)}
    size = entry.input_at(options.resolution)
    images = verify.inputs(size)
    expected = [verify.tokens(encoder, batch) for batch in images]
    for batch, found in zip(images, expected, strict=True):
        verify.check_shapes(
            found, batch.shape[0], entry.grid_at(options.resolution) ** 2, entry.width, entry.class_token
        )
    values = _reference(encoder, entry, options.resolution)
    if fixtures is not None:
        _write_fixtures(fixtures, encoder, entry, options.resolution)

    traced = trace(encoder, size)
    with temporary(path) as partial:
        write_torchscript(traced, partial)
        # Free this copy, so that only one copy of the weights is in memory at any time.
        del traced, encoder
        gc.collect()
        loaded, difference = verify.compare(partial, images, expected)
        half = None
        if facts["params_m"] <= HALF_PARAMS_M:
            half = verify.half_difference(loaded, half_images(entry, images[0]))
        del loaded
        digest = sha256_of(partial)
        partial.replace(path)
    sync(options.out)
    write_text(path.with_suffix(".toml"), _sidecar(entry, options, weights.description, values, facts).to_toml(digest))
    return Outcome("written", path.stat().st_size, difference, half)


def trace(encoder: build.Encoder, size: int) -> torch.jit.ScriptModule:
    """Traces an encoder for inputs `[B, 3, size, size]` with any `B`, on any device."""
    with warnings.catch_warnings():
        # Checks of the input's size become constants, because the size is fixed. Batch sizes are compared later.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(encoder, torch.zeros(2, 3, size, size), check_trace=False)
    verify.check_graph(traced)
    return traced


def _paths(entry: Entry, options: Options) -> tuple[Path, Path | None]:
    """Returns the paths of the TorchScript file and, if requested, of the fixtures."""
    path = options.out / f"{entry.file_stem(options.resolution)}.pt"
    return path, _fixtures_of(path) if options.fixtures else None


def _fixtures_of(path: Path) -> Path:
    return path.with_suffix(".fixtures.safetensors")


def _random(seed: int) -> str:
    return f"random, seed {seed}"


def _up_to_date(path: Path, fixtures: Path | None, entry: Entry, options: Options) -> bool:
    """Returns whether the files exist, are complete, and match these options and the catalogue."""
    sidecar = path.with_suffix(".toml")
    if not (path.is_file() and sidecar.is_file()) or (fixtures is not None and not fixtures.is_file()):
        return False
    try:
        found = tomllib.loads(sidecar.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False
    weights = found.get("weights", "")
    if options.seed is not None:
        same_weights = weights == _random(options.seed)
    elif options.weights is not None:
        same_weights = options.weights.is_file() and weights.endswith(sha256_of(options.weights))
    else:
        same_weights = not weights.startswith(("random,", "file "))
    if not same_weights or found.get("depth") != _depth(entry, options.depth):
        return False
    recipe = tomllib.loads(_sidecar(entry, options, weights, Reference(), {}).to_toml(""))
    unchanged = ("name", "grid", "width", "class_token", "prefix_tokens", "input_size", "input_sizes", "preprocessing")
    return all(found.get(key) == recipe[key] for key in unchanged) and found.get("sha256") == sha256_of(path)


def _depth(entry: Entry, depth: int | None) -> int:
    """Returns the value of `build.depth_of` for the encoder with `depth`."""
    if depth is None or "torchvision" in entry.build:
        return entry.depth
    if "stages" in entry.build:
        return sum(min(depth, blocks) for blocks in entry.build["stages"])
    return depth


def _reference(encoder: build.Encoder, entry: Entry, resolution: int) -> Reference:
    images = preprocess(reference_images(resolution), entry.preprocessing, entry.input_at(resolution))
    return reference(*verify.tokens(encoder, images))


def _write_fixtures(path: Path, encoder: build.Encoder, entry: Entry, resolution: int) -> None:
    content: dict[str, Tensor] = {}
    for count in (1, 5):
        images = fixture_images(count, resolution, FIXTURE_SEED + count)
        pixels = preprocess(images, entry.preprocessing, entry.input_at(resolution))
        patch, class_token = verify.tokens(encoder, pixels)
        content |= {f"images_{count}": images, f"patch_{count}": patch.contiguous()}
        if class_token is not None:
            content[f"class_{count}"] = class_token.contiguous()
        if count == 5:
            content["input_5"] = pixels.contiguous()
    with temporary(path) as partial:
        partial.write_bytes(save(content))
        sync(partial)
        partial.replace(path)


def _sidecar(entry: Entry, options: Options, weights: str, values: Reference, facts: dict) -> Sidecar:
    grid = entry.grid_at(options.resolution)
    return Sidecar(
        name=entry.name,
        description=f"{entry.family} ({entry.paper}), patch tokens of {options.resolution}-px images",
        family=entry.family,
        weights=weights,
        licence=entry.licence,
        gated=entry.gated,
        grid=(grid, grid),
        width=entry.width,
        class_token=entry.class_token,
        prefix_tokens=entry.prefix_tokens,
        dtype="float32",
        resolution=options.resolution,
        input_size=entry.input_at(options.resolution),
        input_sizes={str(resolution): entry.input_at(resolution) for resolution in entry.resolutions},
        preprocessing=entry.preprocessing,
        reference=values,
        **facts,
    )
