"""From bytes to a network's input, in Python: what the `encoders` crate does again in Rust, and is tested with."""

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import Normalize

from .sidecar import Preprocessing


def preprocess(images: Tensor, recipe: Preprocessing, size: int) -> Tensor:
    """u8 `[B, 3, H, W]` to float32 `[B, 3, size, size]`."""
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
            raise ValueError(f"images of {tuple(pixels.shape[-2:])} px where {size} is needed and nothing is resized")
        return pixels
    return F.interpolate(pixels, (size, size), mode=recipe.resize, antialias=recipe.antialias, align_corners=False)
