"""Exports a network that is not in the catalogue. See docs/adding-an-encoder.md for an example."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from . import build, tables, verify
from .errors import ExportError
from .exporter import trace
from .preprocess import preprocess
from .reference import reference, reference_images
from .sidecar import Preprocessing, Sidecar, sha256_of, sync, temporary, write_text, write_torchscript


class _Called(nn.Module):
    """A network that returns tokens when it is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward_features(self, images: Tensor) -> Tensor:
        return self.network(images)


@torch.no_grad()
def export_network(
    name: str,
    network: nn.Module,
    input_size: int,
    preprocessing: Preprocessing,
    prefix_tokens: int = 0,
    class_token: bool = False,
    description: str = "",
    weights: str = "",
    licence: str = "",
    out: Path | str = "pretrained",
) -> Path:
    """Writes `out/NAME.pt` and `out/NAME.toml`, verified, and returns the former.

    `network.forward_features`, or `network` itself if it has no such method, takes preprocessed images `[B, 3, S, S]`
    with S the `input_size`. It returns tokens `[B, prefix_tokens + T, D]`, prefix tokens first, then the patch tokens
    of a square grid in row-major order. With `class_token`, the first prefix token is the class token.

    Raises ExportError if the tokens have another shape, or if the saved file does not return the network's tokens for
    every batch size.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ExportError(f"{name!r} is not a valid encoder name: use letters, digits, and . _ - only")
    if class_token and prefix_tokens < 1:
        raise ExportError("a class token is a prefix token: prefix_tokens must be at least 1")
    inner = network if hasattr(network, "forward_features") else _Called(network)
    encoder = build.Encoder(inner, prefix_tokens, class_token).eval().requires_grad_(False)
    images = verify.inputs(input_size)
    expected = [verify.tokens(encoder, batch) for batch in images]
    patch = expected[0][0]
    if patch.ndim != 3:
        raise ExportError(f"tokens must be [B, T, D], found {tuple(patch.shape)}")
    try:
        side = tables.grid_of(patch, 0)
    except ValueError as error:
        raise ExportError(f"{patch.shape[1]} patch tokens are not a square grid; is prefix_tokens correct?") from error
    for batch, found in zip(images, expected, strict=True):
        verify.check_shapes(found, batch.shape[0], side * side, patch.shape[2], class_token)

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    with temporary(path) as partial:
        write_torchscript(trace(encoder, input_size), partial)
        verify.compare(partial, images, expected)
        digest = sha256_of(partial)
        partial.replace(path)
    sync(folder)
    pixels = preprocess(reference_images(256), preprocessing, input_size)
    sidecar = Sidecar(
        name=name,
        description=description,
        weights=weights,
        licence=licence,
        grid=(side, side),
        width=patch.shape[2],
        input_size=input_size,
        preprocessing=preprocessing,
        class_token=class_token,
        prefix_tokens=prefix_tokens,
        params_m=build.params_m(encoder),
        dtype="float32",
        reference=reference(*verify.tokens(encoder, pixels)),
    )
    write_text(path.with_suffix(".toml"), sidecar.to_toml(digest))
    return path
