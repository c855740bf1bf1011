"""Makes the small encoders of the Rust tests: two that load, one that fails late, and seven that must be refused.

    python crates/encoders/python/make_test_encoders.py

The files go to `crates/encoders/tests/data/broken`, and tiny stand-ins for the network of FID, one sound and one
whose features depend on the batch, to `crates/encoders/tests/data/inception`. Each sidecar is valid and its checksum right:
what is wrong with an encoder shows only when it is run.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export import inception
from export.sidecar import Preprocessing, Sidecar, sha256_of, write_encoder, write_text, write_torchscript

FOLDER = Path(__file__).resolve().parents[1] / "tests/data/broken"
INCEPTION = FOLDER.parent / "inception"
GRID = (4, 4)
WIDTH = 8
INPUT_SIZE = 16


class PatchMeans(nn.Module):
    """Patches of 4x4: channel d of a token is (d + 1) times the patch's mean of colour d mod 3."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("colour", torch.arange(WIDTH) % 3)
        self.register_buffer("gain", torch.arange(1, WIDTH + 1).float())

    def forward(self, images: Tensor) -> Tensor:
        means = F.avg_pool2d(images, 4).index_select(1, self.colour)  # [B, 8, 4, 4]
        return means.flatten(2).transpose(1, 2) * self.gain


class Good(nn.Module):
    """`(patch tokens [B, 16, 8], class token [B, 8])`; the class token is the patches' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.patches(images)
        return tokens, tokens.mean(1)


class WrongShape(nn.Module):
    """`[B, 4, 8]`, whatever the sidecar says."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros([images.size(0), 4, 8])


class NanTokens(nn.Module):
    """Tokens of the right shape, none of them a number."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()
        self.nan = math.nan

    def forward(self, images: Tensor) -> Tensor:
        return torch.full_like(self.patches(images), self.nan)


class OutOfMemory(nn.Module):
    """As PatchMeans, but once, at the sixth call after it was loaded, memory runs out."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 6:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.patches(images)


class DropoutOn(nn.Module):
    """As PatchMeans with a tenth of the numbers dropped, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(self.patches(images), 0.1, training=True)


class BatchStatistics(nn.Module):
    """As PatchMeans, normalised with the statistics of the batch, as a batch norm left in training mode does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images)
        return F.batch_norm(tokens.transpose(1, 2), None, None, training=True).transpose(1, 2)


class TiedToCpu(nn.Module):
    """As PatchMeans plus a constant of the images' device, which tracing makes the device it was traced on."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images) + torch.ones([WIDTH], device=images.device)


class TiedToCuda(nn.Module):
    """As PatchMeans plus a constant on one device."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images) + torch.ones([8], device="cuda:0")


class NotAnEncoder(nn.Module):
    """Takes no images at all."""

    def forward(self, left: int, right: int) -> int:
        return left + right


class TinyInception(nn.Module):
    """Means over parts of the image, of any size: pool [B, 12], spatial [B, 9], logits [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("classes", torch.linspace(-3, 3, 60).view(12, 5).sin())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = images.to(torch.float32) / 255.0
        pool = F.adaptive_avg_pool2d(x, [2, 2]).flatten(1)
        spatial = F.adaptive_avg_pool2d(x[:, :1], [3, 3]).flatten(1)
        return pool, spatial, 8.0 * (pool @ self.classes)


class BatchInception(nn.Module):
    """As TinyInception, plus the largest features of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inception = TinyInception()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pool, spatial, logits = self.inception(images)
        return pool + pool.amax(0), spatial, logits


def write_inception(module: nn.Module, name: str, description: str) -> None:
    module.eval()
    path = INCEPTION / f"{name}.pt"
    INCEPTION.mkdir(exist_ok=True)
    write_torchscript(torch.jit.script(module), path)
    flavour = inception.Flavour(name, True, description)
    write_text(path.with_suffix(".toml"), inception.describe(flavour, "none", sha256_of(path), module))
    print(f"{path}: {path.stat().st_size} bytes")


def sidecar(name: str, description: str, **changes: object) -> Sidecar:
    fields = {
        "name": name,
        "description": description,
        "weights": "none",
        "licence": "MIT OR Apache-2.0",
        "grid": GRID,
        "width": WIDTH,
        "input_size": INPUT_SIZE,
        "preprocessing": Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    }
    return Sidecar(**(fields | changes))


def compiled(module: nn.Module) -> torch.jit.ScriptModule:
    """Scripted, but for the module whose fault is that of tracing."""
    if isinstance(module, TiedToCpu):
        return torch.jit.trace(module, torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE))
    return torch.jit.script(module)


def main() -> None:
    encoders = [
        (Good(), sidecar("good", "Patch means and their mean", class_token=True)),
        (PatchMeans(), sidecar("good_patch_only", "Patch means")),
        (
            WrongShape(),
            sidecar(
                "wrong_shape",
                "Returns [B, 4, 8]",
                grid=(16, 16),
                width=112,
                input_size=256,
            ),
        ),
        (NanTokens(), sidecar("nan_tokens", "Returns tokens that are NaN")),
        (OutOfMemory(), sidecar("out_of_memory", "Runs out of memory at the sixth call")),
        (NotAnEncoder(), sidecar("not_an_encoder", "Takes two integers")),
        (DropoutOn(), sidecar("dropout_on", "Drops numbers in evaluation mode")),
        (BatchStatistics(), sidecar("batch_statistics", "Normalises over the batch")),
        (TiedToCpu(), sidecar("tied_to_cpu", "Makes a constant on the CPU")),
        (TiedToCuda(), sidecar("tied_to_cuda", "Makes a constant on a CUDA device")),
    ]
    for module, description in encoders:
        path = write_encoder(compiled(module.eval()), description, FOLDER)
        print(f"{path}: {path.stat().st_size} bytes")
    write_inception(TinyInception(), "inception", "Means over parts of an image")
    write_inception(BatchInception(), "batch", "Adds the largest features of the batch")


if __name__ == "__main__":
    main()
