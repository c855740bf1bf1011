"""Builds the networks of the catalogue and wraps them in the interface of an encoder file."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .catalogue import Entry
from .errors import ExportError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Encoder(nn.Module):
    """Wraps `network` to return tokens: maps images `[B, 3, S, S]` to `[B, T, D]` or `([B, T, D], [B, D])`."""

    def __init__(self, network: nn.Module, prefix_tokens: int, class_token: bool) -> None:
        super().__init__()
        self.network = network
        self.prefix_tokens = prefix_tokens
        self.class_token = class_token

    def tokens(self, images: Tensor) -> Tensor:
        """Returns prefix and patch tokens, `[B, P + T, D]`."""
        return self.network.forward_features(images)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        tokens = self.tokens(images)
        patch = tokens[:, self.prefix_tokens :] if self.prefix_tokens else tokens
        return (patch, tokens[:, 0]) if self.class_token else patch


class Normalised(Encoder):
    """An encoder that takes pixels in 0..1 and normalises them itself, as RADIO does."""

    def __init__(self, network: nn.Module, prefix_tokens: int, class_token: bool) -> None:
        super().__init__(network, prefix_tokens, class_token)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1))

    def take_statistics(self, found: dict[str, Tensor]) -> None:
        """Uses the `mean` and `std` of a checkpoint, if present; they may be rounded."""
        for name, values in found.items():
            if values.numel() != 3:
                raise ExportError(f"the checkpoint's {name} of the input has {values.numel()} values, not 3")
            getattr(self, name).copy_(values.float().view(3, 1, 1))

    def tokens(self, images: Tensor) -> Tensor:
        return self.network.forward_features((images - self.mean) / self.std)


class ChannelsLast(Encoder):
    """A network whose features are `[B, H, W, D]`."""

    def tokens(self, images: Tensor) -> Tensor:
        return self.network.forward_features(images).flatten(1, 2)


class Convolutions(Encoder):
    """A stack of layers with features `[B, D, H, W]`."""

    def tokens(self, images: Tensor) -> Tensor:
        return self.network(images).flatten(2).transpose(1, 2)


def build(entry: Entry, resolution: int = 256, depth: int | None = None) -> Encoder:
    """Builds the encoder of `entry` for images of `resolution` px, with arbitrary weights, in evaluation mode.

    `depth` limits the number of blocks, or the number of blocks per stage for a network with stages.
    """
    options = entry.build
    if "torchvision" in options:
        network, wrapper = _torchvision(options), Convolutions
    elif "stages" in options:
        network, wrapper = _hiera(options, depth), ChannelsLast
    else:
        network = _transformer(entry, resolution, depth)
        wrapper = Normalised if options.get("normalise") == "clip" else Encoder
    encoder = wrapper(network, entry.prefix_tokens, entry.class_token)
    return encoder.eval().requires_grad_(False)


def depth_of(encoder: Encoder) -> int:
    """Returns the number of blocks, or the number of convolutions for a network without blocks."""
    blocks = getattr(encoder.network, "blocks", None)
    if blocks is not None:
        return len(blocks)
    return sum(isinstance(layer, nn.Conv2d) for layer in encoder.modules())


def params_m(encoder: nn.Module) -> float:
    """Returns the number of parameters in millions."""
    return round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 2)


def _torchvision(options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    return getattr(models, options["torchvision"])(weights=None).features[: options["layers"]]


def _hiera(options: dict[str, Any], depth: int | None) -> nn.Module:
    extra: dict[str, Any] = {}
    if depth is not None:
        stages = tuple(min(depth, blocks) for blocks in options["stages"])
        # As in the full network, the last block before the last stage attends globally.
        extra = {"stages": stages, "global_att_blocks": (sum(stages[:3]) - 1,)}
    network = _timm(options["timm"], num_classes=0, **extra)
    network.head = nn.Identity()  # its norm is applied after the tokens
    return network


def _transformer(entry: Entry, resolution: int, depth: int | None) -> nn.Module:
    options = entry.build
    grid = entry.grid_at(resolution)
    extra: dict[str, Any] = {} if depth is None else {"depth": depth}
    if options.get("rope") == "grid":
        extra["ref_feat_shape"] = (grid, grid)
    depth_of_catalogue = {"depth": entry.depth} if "embed_dim" in options.get("kwargs", {}) else {}
    network = _timm(
        options["timm"],
        img_size=entry.input_at(resolution),
        num_classes=0,
        **(options.get("kwargs", {}) | depth_of_catalogue | extra),
    )
    if options.get("rope") == "dinov3":
        round_periods(network, grid)
    return network


def round_periods(network: nn.Module, grid: int) -> None:
    """Rounds the periods of DINOv3's rotary embedding to bfloat16, as the released models store them."""
    network.rope.periods = network.rope.periods.to(torch.bfloat16).float()
    network.rope._cache_embed([grid, grid])


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=False, **options)
    except RuntimeError as error:
        if "Unknown model" in str(error):
            raise ExportError(f"timm {timm.__version__} has no {name}: install requirements.txt") from error
        raise


@torch.no_grad()
def randomise(encoder: nn.Module, seed: int) -> None:
    """Sets random weights that reveal mistakes: no bias, token or table is zero, and no scale is close to zero.

    The weights depend only on the seed and the tensor's name, not on the order in which the network is built.
    """
    for name, parameter in encoder.named_parameters():
        generator = torch.Generator().manual_seed(_seed_of(name, seed))
        parameter.normal_(generator=generator)
        if parameter.ndim == 1:
            scale = name.endswith((".gamma", "gamma_1", "gamma_2")) or _is_norm_weight(encoder, name)
            parameter.mul_(0.1).add_(1.0 if scale else 0.0)
        elif name.endswith(("_token", "pos_embed", "pos_embed_window")):
            parameter.mul_(0.5)
        else:
            parameter.mul_(1.0 / math.sqrt(parameter[0].numel()))


def _seed_of(name: str, seed: int) -> int:
    value = seed
    for byte in name.encode():
        value = (value * 1_000_003 + byte + 1) % (1 << 62)
    return value


def _is_norm_weight(encoder: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(encoder.get_submodule(owner), nn.LayerNorm | nn.BatchNorm2d)
