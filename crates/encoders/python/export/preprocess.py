"""Preprocessing from bytes to a network's input. The `encoders` crate does the same in Rust and is tested with it."""

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import Normalize

from .sidecar import Preprocessing


def preprocess(images: Tensor, recipe: Preprocessing, size: int) -> Tensor:
    """Converts u8 `[B, 3, H, W]` to float32 `[B, 3, size, size]`."""
    pixels = images.float()
    if recipe.scale:
        pixels = pixels / 255.0
    normalize = Normalize(recipe.mean, recipe.std)
    if recipe.order == "normalize-first":
        return _resize(normalize(pixels), recipe, size)
    return normalize(_resize(pixels, recipe, size))


def _resize(pixels: Tensor, recipe: Preprocessing, size: int) -> Tensor:
    if recipe.resize == "none":
        if pixels.shape[-2:] != (size, size):
            raise ValueError(f"images must have {size} px, found {tuple(pixels.shape[-2:])}; they are not resized")
        return pixels
    return F.interpolate(pixels, (size, size), mode=recipe.resize, antialias=recipe.antialias, align_corners=False)
