"""Exports the Inception-v3 network for FID: that of 2015-12-05, which differs from torchvision's.

The network has torchvision's layers and names with TensorFlow's pooling: average pooling excludes the padding, and the
last block uses max pooling. The exported module takes bytes and includes all preprocessing. It returns the features
for FID, sFID and the Inception score:

    pool     [B, 2048]  mean over the last feature map
    spatial  [B, 2023]  the first 7 channels of `mixed_6/conv`, 17 x 17, channels last, as the evaluator of ADM flattens
    logits   [B, 1008]  without the bias, as ADM and torch-fidelity take them
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import build, sources
from .errors import ExportError
from .reference import STRIDE, fixture_images, reference_images
from .sidecar import entries, sha256_of, sync, temporary, write_text, write_torchscript
from .verify import TOLERANCE, check_graph

if TYPE_CHECKING:
    from .exporter import Options

SIDE = 299
POOL, SPATIAL_CHANNELS, SPATIAL_SIDE, CLASSES = 2048, 7, 17, 1008
REFERENCE_SIDE = 80  # differs from SIDE, so that the resizing is checked too
REFERENCE_VALUES = 64
CALIBRATION_SEED = 1512
WEIGHTS = (
    "weights-inception-2015-12-05-6726825d.pth of github.com/toshas/torch-fidelity (release v0.2.0), or "
    "pt_inception-2015-12-05-6726825d.pth of github.com/mseitzer/pytorch-fid (release fid_weights)"
)
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Flavour:
    """Variant of the preprocessing from bytes to the network's input."""

    name: str
    tensorflow: bool
    description: str


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("inception", True, "Inception-v3 for FID, resized as TensorFlow 1 does: ADM, torch-fidelity"),
        Flavour("inception-pytorch-fid", False, "Inception-v3 for FID, resized and scaled as pytorch-fid does"),
    )
}

# The branches of a block before the pooling branch: sequences of layers; a tuple of two layers shares its input.
BRANCHES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "InceptionA": (
        ("branch1x1",),
        ("branch5x5_1", "branch5x5_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    ),
    "InceptionC": (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
    ),
    "InceptionE": (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
    ),
}


class Block(nn.Module):
    """A block of torchvision's Inception-v3 with TensorFlow's pooling in its last branch."""

    def __init__(self, block: nn.Module, maximum: bool = False) -> None:
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        self.branches = BRANCHES[type(block).__name__]
        self.maximum = maximum

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, tuple):
                    y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
                else:
                    y = self.get_submodule(step)(y)
            outputs.append(y)
        if self.maximum:
            pooled = functional.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*outputs, self.branch_pool(pooled)], 1)


class Network(nn.Module):
    """Maps inputs `[B, 3, 299, 299]`, about -1..1, to pooled features, spatial features and logits."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        network = inception_v3(weights=None, num_classes=CLASSES, aux_logits=False, init_weights=False)
        for name, block in network.named_children():
            if type(block).__name__ in BRANCHES:
                setattr(network, name, Block(block, maximum=name == "Mixed_7c"))
        network.dropout = nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spatial = x
        pool = x
        for name, layer in self.network.named_children():
            if name == "Mixed_6d":
                spatial = layer.branch1x1(x)[:, :SPATIAL_CHANNELS]
            if name == "avgpool":
                pool = layer(x).flatten(1)
                break
            x = layer(x)
        logits = pool @ self.network.fc.weight.T
        return pool, spatial.permute(0, 2, 3, 1).flatten(1), logits


class Inception(nn.Module):
    """Maps images u8 `[B, 3, H, W]` to the outputs of `Network`. Scripted, because the size of the images varies."""

    def __init__(self, network: nn.Module, tensorflow: bool) -> None:
        super().__init__()
        self.network = network
        self.tensorflow = tensorflow

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = images.to(torch.float32)
        if self.tensorflow:
            x = resize_like_tensorflow(x, 299)
            x = (x - 128.0) / 128.0
        else:
            x = x / 255.0
            x = functional.interpolate(x, size=[299, 299], mode="bilinear", align_corners=False)
            x = 2.0 * x - 1.0
        return self.network(x)


def resize_like_tensorflow(x: Tensor, side: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear`: pixel i of the output lies at i * in / out of the input, no antialiasing."""
    height = x.size(2)
    width = x.size(3)
    place = torch.arange(side, device=x.device, dtype=torch.float32)

    columns = place * (width / side)
    left = columns.to(torch.int64)
    share = columns - left.to(torch.float32)
    at_left = x.index_select(3, left)
    at_right = x.index_select(3, (left + 1).clamp(max=width - 1))
    x = at_left + (at_right - at_left) * share

    rows = place * (height / side)
    top = rows.to(torch.int64)
    share = (rows - top.to(torch.float32)).unsqueeze(1)
    at_top = x.index_select(2, top)
    at_bottom = x.index_select(2, (top + 1).clamp(max=height - 1))
    return at_top + (at_bottom - at_top) * share


def load(network: Network, checkpoint: Mapping[str, Any]) -> None:
    """Loads all weights of the file of torch-fidelity or pytorch-fid."""
    wanted = network.network.state_dict()
    found = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    counters = [name for name in wanted if name.endswith("num_batches_tracked")]
    for name in counters:  # older files do not contain these unused values
        found.setdefault(name, wanted[name])
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    if missing or unexpected:
        names = ", ".join((missing + unexpected)[:3])
        raise ExportError(
            f"the checkpoint is not the FID's Inception: {len(missing)} names missing, {len(unexpected)} unexpected "
            f"({names}); use the file {WEIGHTS}"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            shapes = f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            raise ExportError(f"the checkpoint is not the FID's Inception: {shapes}")
    network.network.load_state_dict(found, strict=True)


@torch.no_grad()
def randomise(network: Network, seed: int) -> None:
    """Sets random weights, normalised layer by layer so that the features vary between images like trained ones."""
    build.randomise(network.network, seed)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # use the statistics of the single batch below
        norm.train()
    images = fixture_images(4, SIDE, CALIBRATION_SEED)
    network((images.float() - 128.0) / 128.0)
    for norm in norms:
        norm.eval()


@torch.no_grad()
def make(flavour: Flavour, seed: int | None, checkpoint: Mapping[str, Any] | None) -> Inception:
    """Builds the network with weights, in evaluation mode."""
    network = Network().eval().requires_grad_(False)
    if checkpoint is not None:
        load(network, checkpoint)
    else:
        randomise(network, seed or 0)
    return Inception(network, flavour.tensorflow).eval()


@torch.no_grad()
def script(inception: Inception) -> torch.jit.ScriptModule:
    """Creates the TorchScript module for any number of images of any size, on any device."""
    traced = torch.jit.trace(inception.network, torch.zeros(2, 3, SIDE, SIDE), check_trace=False)
    check_graph(traced)
    return torch.jit.script(Inception(traced, inception.tensorflow).eval())


@torch.no_grad()
def export(name: str, options: "Options") -> tuple[int, float]:
    """Writes `NAME.pt` and `NAME.toml`; returns the size of the former and its largest relative difference."""
    flavour = FLAVOURS[name]
    if options.seed is None and options.weights is None:
        raise ExportError(f"give the weights with --weights FILE: {WEIGHTS}")
    if options.weights is not None:
        checkpoint = sources.read([options.weights])
        weights = f"file {options.weights.name}, SHA-256 {sha256_of(options.weights)}"
    else:
        checkpoint, weights = None, f"random, seed {options.seed}"
    inception = make(flavour, options.seed, checkpoint)
    module = script(inception)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.pt"
    with temporary(path) as partial:
        write_torchscript(module, partial)
        difference = compare(partial, inception)
        digest = sha256_of(partial)
        partial.replace(path)
    sync(options.out)
    write_text(path.with_suffix(".toml"), describe(flavour, weights, digest, inception))
    return path.stat().st_size, difference


def compare(path: Path, inception: Inception) -> float:
    """Returns the largest relative difference of a file from the module, over several image and batch sizes."""
    loaded = torch.jit.load(path)
    largest = 0.0
    with torch.jit.optimized_execution(False):
        for count, side in ((1, 64), (3, SIDE), (2, 320)):
            images = fixture_images(count, side, count)
            for found, wanted in zip(loaded(images), inception(images), strict=True):
                scale = wanted.square().mean().sqrt()
                largest = max(largest, ((found - wanted).abs().max() / scale).item())
    if not largest <= TOLERANCE:
        raise ExportError(f"the saved file differs from the Python module by {largest:.1e}, more than {TOLERANCE:.0e}")
    return largest


@torch.no_grad()
def describe(flavour: Flavour, weights: str, digest: str, inception: nn.Module) -> str:
    """Returns the sidecar: the properties of the file and some values with which Rust checks it."""
    names = ("pool", "spatial", "logits")
    outputs = dict(zip(names, inception(reference_images(REFERENCE_SIDE)), strict=True))
    keys = {
        "name": flavour.name,
        "description": flavour.description,
        "weights": weights,
        "licence": LICENCE,
        "sha256": digest,
        **{name: outputs[name].shape[1] for name in names},
    }
    values: dict[str, Any] = {"side": REFERENCE_SIDE}
    for name, tensor in outputs.items():
        flat = tensor.reshape(-1)
        index = [(i * STRIDE) % flat.numel() for i in range(REFERENCE_VALUES)]
        values[f"{name}_index"] = index
        values[name] = [float(f"{value:.9g}") for value in flat[index].tolist()]
    return "\n".join([*entries(keys), "", "[reference]", *entries(values), ""])
