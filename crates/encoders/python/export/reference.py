"""Images and token values with which Rust compares a file with the Python module."""

import math

import torch
from torch import Tensor

from .sidecar import Reference

STRIDE = 104_729  # prime, so that the positions are spread over images, tokens and channels
PATCH_VALUES = 256
CLASS_VALUES = 64


def reference_images(resolution: int) -> Tensor:
    """Returns u8 `[2, 3, R, R]`: ramps and curves from an integer formula, the same in every language."""
    b = torch.arange(2).view(2, 1, 1, 1)
    c = torch.arange(3).view(1, 3, 1, 1)
    y = torch.arange(resolution).view(1, 1, resolution, 1)
    x = torch.arange(resolution).view(1, 1, 1, resolution)
    value = x * (3 + b) + y * (5 + 2 * b) + 40 * c + ((x * y) >> 5) + ((x * x + 3 * y * y) >> 7)
    return (value & 255).to(torch.uint8)


def reference(patch: Tensor, class_token: Tensor | None) -> Reference:
    """Returns values of patch tokens `[2, T, D]` and class token `[2, D]` at fixed positions of the flat tensors."""
    patch_index, patch_values = _sample(patch, PATCH_VALUES)
    if class_token is None:
        return Reference(patch_index, patch_values)
    return Reference(patch_index, patch_values, *_sample(class_token, CLASS_VALUES))


def _sample(tensor: Tensor, count: int) -> tuple[list[int], list[float]]:
    flat = tensor.reshape(-1)
    index = [(i * STRIDE) % flat.numel() for i in range(count)]
    # Nine digits represent every float32 exactly.
    return index, [float(f"{value:.9g}") for value in flat[index].tolist()]


def fixture_images(count: int, resolution: int, seed: int) -> Tensor:
    """Returns u8 `[count, 3, R, R]`: noise, waves, and waves with noise, in turn."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.linspace(0, 1, resolution)
    images = []
    for i in range(count):
        noise = torch.rand(3, resolution, resolution, generator=generator)
        phase, across, down = (torch.rand(3, 1, 1, generator=generator) for _ in range(3))
        turns = phase + 3 * across * position.view(1, 1, -1) + 3 * down * position.view(1, -1, 1)
        waves = 0.5 + 0.5 * torch.sin(2 * math.pi * turns)
        share = (1.0, 0.0, 0.15)[i % 3]
        images.append(share * noise + (1 - share) * waves)
    return (torch.stack(images) * 255).round().to(torch.uint8)
