"""Creates the small encoders of the Rust tests: two valid ones, one that fails late, and seven that must be refused.

    python crates/encoders/python/make_test_encoders.py

The encoders are written to `crates/encoders/tests/data/broken`. Two tiny stand-ins for the network of FID, one of
which must be refused, are written to `crates/encoders/tests/data/inception`. Each sidecar is valid and has the correct
checksum, so that the fault of an encoder appears only when it is loaded or run.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from export import inception
from export.sidecar import Preprocessing, Sidecar, sha256_of, write_encoder, write_text, write_torchscript
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parents[1] / "tests/data/broken"
INCEPTION = FOLDER.parent / "inception"
GRID = (4, 4)
WIDTH = 8
INPUT_SIZE = 16


class PatchMeans(nn.Module):
    """Tokens of 4x4 patches: channel d is (d + 1) times the patch's mean of colour d mod 3."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("colour", torch.arange(WIDTH) % 3)
        self.register_buffer("gain", torch.arange(1, WIDTH + 1).float())

    def forward(self, images: Tensor) -> Tensor:
        means = F.avg_pool2d(images, 4).index_select(1, self.colour)  # [B, 8, 4, 4]
        return means.flatten(2).transpose(1, 2) * self.gain


class Good(nn.Module):
    """`(patch tokens [B, 16, 8], class token [B, 8])`; the class token is the mean of the patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.patches(images)
        return tokens, tokens.mean(1)


class WrongShape(nn.Module):
    """Returns `[B, 4, 8]`, which differs from the sidecar."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros([images.size(0), 4, 8])


class NanTokens(nn.Module):
    """Returns tokens of the correct shape that are all NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()
        self.nan = math.nan

    def forward(self, images: Tensor) -> Tensor:
        return torch.full_like(self.patches(images), self.nan)


class OutOfMemory(nn.Module):
    """PatchMeans, except that the sixth call after loading runs out of memory."""

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
    """PatchMeans with a dropout of 0.1 that is also active in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(self.patches(images), 0.1, training=True)


class BatchStatistics(nn.Module):
    """PatchMeans normalised with the statistics of the batch, like a batch norm in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images)
        return F.batch_norm(tokens.transpose(1, 2), None, None, training=True).transpose(1, 2)


class TiedToCpu(nn.Module):
    """PatchMeans plus a constant on the images' device, which tracing fixes to the device of the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images) + torch.ones([WIDTH], device=images.device)


class TiedToCuda(nn.Module):
    """PatchMeans plus a constant on a fixed device."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchMeans()

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images) + torch.ones([8], device="cuda:0")


class NotAnEncoder(nn.Module):
    """Takes two integers instead of images."""

    def forward(self, left: int, right: int) -> int:
        return left + right


class TinyInception(nn.Module):
    """Means over parts of images of any size: pool [B, 12], spatial [B, 9], logits [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("classes", torch.linspace(-3, 3, 60).view(12, 5).sin())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = images.to(torch.float32) / 255.0
        pool = F.adaptive_avg_pool2d(x, [2, 2]).flatten(1)
        spatial = F.adaptive_avg_pool2d(x[:, :1], [3, 3]).flatten(1)
        return pool, spatial, 8.0 * (pool @ self.classes)


class BatchInception(nn.Module):
    """TinyInception plus the largest features of the batch."""

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
    """Scripts a module, or traces the one whose fault is caused by tracing."""
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
