"""The networks whose weights are inside packages, truncated where their tokens are taken.

Weights keep the layout of their package, so that the bytes in an encoder's file are those of the package.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tokens(grid: Tensor) -> Tensor:
    """Maps features `[B, D, h, w]` to tokens `[B, h w, D]`."""
    return grid.flatten(2).transpose(1, 2).contiguous()


class Truncated(nn.Module):
    """The first layers of a network of PyTorch."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return tokens(self.layers(images))


class KerasConvolution(nn.Module):
    """A convolution with ReLU and TensorFlow's padding "same"; the kernel is `[rows, columns, in, out]`."""

    def __init__(self, kernel: Tensor, bias: Tensor, stride: int = 1) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)
        self.bias = nn.Parameter(bias)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.permute(3, 2, 0, 1)
        if self.stride == 1:
            return F.relu(F.conv2d(x, kernel, self.bias, padding=kernel.shape[-1] // 2))
        # For even sides, "same" pads only after the last row and column.
        return F.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), kernel, self.bias, stride=self.stride))


class Fire(nn.Module):
    """SqueezeNet's block: a squeeze, and two expansions side by side."""

    def __init__(self, squeeze: nn.Module, narrow: nn.Module, wide: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.narrow, self.wide = squeeze, narrow, wide

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.narrow(x), self.wide(x)], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 up to the end of `fire{last}`; takes RGB and passes BGR on."""

    def __init__(self, weights: dict[str, tuple[Tensor, Tensor]], last: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [KerasConvolution(*weights["conv1"], stride=2), nn.MaxPool2d(3, 2)]
        for number in range(2, last + 1):
            if number in (4, 6):
                layers.append(nn.MaxPool2d(3, 2))
            parts = ("squeeze1x1", "expand1x1", "expand3x3")
            layers.append(Fire(*(KerasConvolution(*weights[f"fire{number}/{part}"]) for part in parts)))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return tokens(self.layers(images.flip(1)))


class Vgg(nn.Module):
    """The first blocks of VGG-16, with a pooling between two blocks; takes RGB and passes BGR on."""

    def __init__(self, blocks: list[list[tuple[Tensor, Tensor]]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in blocks:
            if layers:
                layers.append(nn.MaxPool2d(2, 2))
            layers += [KerasConvolution(kernel, bias) for kernel, bias in block]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return tokens(self.layers(images.flip(1)))


class VitLayer(nn.Module):
    """A block of DINOv2's layout: attention and MLP, each after a norm, with a learned scale; matrices `[in, out]`."""

    NAMES = ("query", "key", "value", "dense", "fc1", "fc2")

    def __init__(self, weights: dict[str, Tensor], heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(value))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ getattr(self, f"{name}_weight") + getattr(self, f"{name}_bias")

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return F.layer_norm(x, (x.shape[-1],), weight, bias, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm("norm1", x)
        q, k, v = (self.linear(name, y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in self.NAMES[:3])
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.scale1 * self.linear("dense", mixed)
        return x + self.scale2 * self.linear("fc2", F.gelu(self.linear("fc1", self.norm("norm2", x))))


class Vit(nn.Module):
    """A vision transformer of DINOv2's layout up to one of its blocks, with its final norm; class token first."""

    def __init__(self, weights: dict[str, Tensor], layers: list[VitLayer], side: int) -> None:
        super().__init__()
        for name in ("projection", "projection_bias", "cls", "norm_weight", "norm_bias"):
            self.register_parameter(name, nn.Parameter(weights[name]))
        table = weights["positions"]  # [1, N, D], without the class token's
        old = round(table.shape[1] ** 0.5)
        grid = table.unflatten(1, (old, old)).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
        first = weights["class_position"]
        self.register_buffer("positions", torch.cat([first, resized.flatten(2).transpose(1, 2)], 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        size = self.projection.shape[-1]
        patches = tokens(F.conv2d(images, self.projection, self.projection_bias, stride=size))
        first = self.cls.expand(images.shape[0], -1, -1)
        x = self.layers(torch.cat([first, patches], 1) + self.positions)
        return F.layer_norm(x, (x.shape[-1],), self.norm_weight, self.norm_bias, 1e-6)
