"""Resamples learned position tables to another grid, as upstream does for each family."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Mode and antialias of the interpolation for each value of `table` in catalogue.toml.
# bicubic-antialiased   timm's resample_abs_pos_embed, which upstream applies once when loading
# bicubic               transformers' Dinov2, in its forward pass
# bilinear              the forward passes of Perception Encoder and RADIO
RULES = {
    "bicubic-antialiased": ("bicubic", True),
    "bicubic": ("bicubic", False),
    "bilinear": ("bilinear", False),
}


def resample(table: Tensor, grid: int, prefix: int, rule: str) -> Tensor:
    """Resamples `[1, prefix + G*G, D]` to float32 `[1, prefix + grid*grid, D]`; the prefix rows are unchanged.

    A table that already has this grid is not resampled.
    """
    table = table.float()
    side = grid_of(table, prefix)
    if side == grid:
        return table
    mode, antialias = RULES[rule]
    rows, patches = table[:, :prefix], table[:, prefix:]
    image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, G, G]
    image = F.interpolate(image, (grid, grid), mode=mode, antialias=antialias, align_corners=False)
    patches = image.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)
    return torch.cat([rows, patches], dim=1)


def resample_by_way_of(table: Tensor, grids: list[int], prefix: int, rule: str) -> Tensor:
    """Resamples to each grid in turn; the result differs from resampling once to the last grid."""
    for grid in grids:
        table = resample(table, grid, prefix, rule)
    return table


def grid_of(table: Tensor, prefix: int) -> int:
    """Returns the side of the square grid of a table `[1, prefix + G*G, D]`."""
    patches = table.shape[1] - prefix
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"a position table of {table.shape[1]} rows is not a square grid after {prefix} prefix rows")
    return side
