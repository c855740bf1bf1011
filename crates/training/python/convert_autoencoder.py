"""Converts a KL autoencoder, such as Stable Diffusion's, to a safetensors file for `model.autoencoder.weights`.

    python convert_autoencoder.py diffusion_pytorch_model.safetensors --out pretrained/sd-vae-ft-mse.safetensors

Supported sources, as .safetensors or PyTorch files:

- diffusers' `AutoencoderKL`, with its older (`query`, `proj_attn`) and newer (`to_q`, `to_out.0`) names of attention;
- CompVis' names, which REPA, iREPA and REPA-E use: a bare state dict, one below `state_dict`, or the
  `first_stage_model` of a whole model;
- a checkpoint of REPA-E, from which it takes the autoencoder and the latents' scale and bias.

It writes float32 weights under CompVis' names, and prints the `[model.autoencoder]` section for a configuration. Scale
and bias come from `--stats` (upstream's `...-latents-stats.pt`), from a REPA-E checkpoint, or from the `config.json`
beside a diffusers file. Otherwise they are Stable Diffusion's.

Needs torch and safetensors. PyTorch files are loaded with `weights_only`, so that code in them does not run.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from convert_checkpoint import ConversionError, read_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]

# Maps diffusers' names of the parts of attention to CompVis' names.
ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "query": "q",
    "to_k": "k",
    "key": "k",
    "to_v": "v",
    "value": "v",
    "to_out.0": "proj_out",
    "proj_attn": "proj_out",
}
# Stable Diffusion's scale and bias. Other autoencoders publish theirs beside their weights.
SCALE, BIAS = [0.18215], [0.0]


@dataclass(frozen=True)
class Layout:
    """The shape of an autoencoder; see `KlConfig`."""

    latent_channels: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]

    def toml(self) -> str:
        named = next((name for name, layout in NAMED.items() if layout == self), None)
        if named:
            return f'"{named}"'
        return (
            f"{{ latent_channels = {self.latent_channels}, base_channels = {self.base_channels}, "
            f"channel_multipliers = {list(self.channel_multipliers)}, num_res_blocks = {self.num_res_blocks}, "
            f"attention_levels = {list(self.attention_levels)} }}"
        )

    def names(self) -> Iterator[str]:
        """Yields the name of every layer: the names of the weights without `.weight` and `.bias`."""
        levels = range(len(self.channel_multipliers))
        for side, stage, blocks in (("encoder", "down", 0), ("decoder", "up", 1)):
            for level in levels:
                # The input of a level's first block is the output of the previous level, in the decoder level + 1.
                channels = self._channels(level)
                inputs = self._channels(level - 1) if stage == "down" else self._channels(level + 1)
                for block in range(self.num_res_blocks + blocks):
                    yield from _residual(f"{side}.{stage}.{level}.block.{block}", block == 0 and channels != inputs)
                    if level in self.attention_levels:
                        yield from _attention(f"{side}.{stage}.{level}.attn.{block}")
                if stage == "down" and level < levels[-1]:
                    yield f"{side}.down.{level}.downsample.conv"
                if stage == "up" and level > 0:
                    yield f"{side}.up.{level}.upsample.conv"
            yield from _residual(f"{side}.mid.block_1", False)
            yield from _attention(f"{side}.mid.attn_1")
            yield from _residual(f"{side}.mid.block_2", False)
            yield from (f"{side}.{name}" for name in ("conv_in", "norm_out", "conv_out"))
        yield from ("quant_conv", "post_quant_conv")

    def _channels(self, level: int) -> int:
        """Returns a level's channels; before the first level those of `conv_in`, after the last one its own."""
        multipliers = self.channel_multipliers
        return self.base_channels * (1 if level < 0 else multipliers[min(level, len(multipliers) - 1)])


def _residual(name: str, shortcut: bool) -> Iterator[str]:
    yield from (f"{name}.{part}" for part in ("norm1", "conv1", "norm2", "conv2"))
    if shortcut:
        yield f"{name}.nin_shortcut"


def _attention(name: str) -> Iterator[str]:
    yield from (f"{name}.{part}" for part in ("norm", "q", "k", "v", "proj_out"))


NAMED = {
    "f8d4": Layout(4, 128, (1, 2, 4, 4), 2, ()),
    "f16d32": Layout(32, 128, (1, 1, 2, 2, 4), 2, (4,)),
}


@dataclass(frozen=True)
class Source:
    """The autoencoder of a file: its weights, and the scale and bias of its latents."""

    state: State
    scale: list[float]
    bias: list[float]


def read(path: Path, stats: Path | None = None) -> Source:
    """Reads the autoencoder in `path`, under CompVis' names, with scale and bias of its latents."""
    content = _load(path)
    scale, bias = SCALE, BIAS
    beside = path.with_name("config.json")
    if isinstance(content.get("vae"), Mapping):
        # REPA-E normalises latents by the running statistics of a batch norm.
        average = content.get("ema")
        if isinstance(average, Mapping) and "bn.running_var" in average:
            scale, bias = _values(average["bn.running_var"].rsqrt()), _values(average["bn.running_mean"])
        content = content["vae"]
    elif isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    elif beside.is_file() and any(".mid_block." in name for name in content):
        settings = json.loads(beside.read_text(encoding="utf-8"))
        scale = [settings.get("scaling_factor") or SCALE[0]]
        bias = [settings.get("shift_factor") or 0.0]
    if stats:
        found = read_checkpoint(stats)
        try:
            scale, bias = _values(found["latents_scale"]), _values(found["latents_bias"])
        except (KeyError, AttributeError) as error:
            missing = "no latents_scale and latents_bias: these are not statistics of latents"
            raise ConversionError(f"{stats} has {missing}") from error
    state = renamed(content)
    check(state)
    return Source(state, scale, bias)


def _load(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    if not path.is_file():
        raise ConversionError(f"{path} does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConversionError(f"{path} is not a complete safetensors file: {error}") from error


def _values(tensor: Tensor) -> list[float]:
    """Returns one number per channel, or a single number if all are equal."""
    values = [_shortest(value) for value in tensor.detach().flatten().float().tolist()]
    return values[:1] if len(set(values)) == 1 else values


def _shortest(value: float) -> float:
    """Returns the shortest decimal number that rounds to the same float32."""
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((short for short in decimals if torch.tensor(short).item() == value), value)


def renamed(content: Mapping[str, Any]) -> State:
    """Returns the autoencoder's tensors in float32, under CompVis' names, without others such as those of a loss."""
    tensors = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in content.items()}
    whole = {name: value for name, value in tensors.items() if name.startswith("first_stage_model.")}
    if whole:
        tensors = {name.removeprefix("first_stage_model."): value for name, value in whole.items()}
    blocks = [int(found[1]) for name in tensors if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", name))]
    state: State = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not re.match(r"(encoder|decoder|quant_conv|post_quant_conv)\.", name):
            continue
        ours = _from_diffusers(name, last=max(blocks)) if blocks else name
        if ours in state:
            raise ConversionError(f"two tensors would have the name {ours}")
        state[ours] = _as_convolution(ours, value.detach().float()).contiguous()
    if not state:
        raise ConversionError("it has no tensors of an encoder and a decoder: it is not an autoencoder")
    return state


def _from_diffusers(name: str, last: int) -> str:
    """Returns CompVis' name of a weight. Diffusers counts the decoder's levels from the coarsest."""
    name = re.sub(r"\bdown_blocks\.", "down.", name)
    name = re.sub(r"\bup_blocks\.(\d+)\.", lambda found: f"up.{last - int(found[1])}.", name)
    name = re.sub(r"\b(down|up)samplers\.0\.", r"\1sample.", name)
    name = re.sub(r"\bmid_block\.resnets\.(\d+)\.", lambda found: f"mid.block_{int(found[1]) + 1}.", name)
    name = re.sub(r"\bmid_block\.attentions\.(\d+)\.", lambda found: f"mid.attn_{int(found[1]) + 1}.", name)
    name = name.replace(".resnets.", ".block.").replace(".attentions.", ".attn.")
    name = name.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
    attention = re.match(r"(.*\.(?:attn\.\d+|attn_1))\.(.+)\.(weight|bias)$", name)
    if attention and attention[2] in ATTENTION:
        name = f"{attention[1]}.{ATTENTION[attention[2]]}.{attention[3]}"
    return name


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    """Reshapes attention's projections to 1x1 convolutions; in diffusers they are linear layers."""
    linear = re.search(r"\.(attn\.\d+|attn_1)\.(q|k|v|proj_out)\.weight$", name) and tensor.dim() == 2
    return tensor[:, :, None, None] if linear else tensor


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Determines the layout from names and shapes."""
    try:
        base = state["encoder.conv_in.weight"].shape[0]
        quant = state["quant_conv.weight"].shape[0]
        down = [found for name in state if (found := re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.", name))]
        levels = range(1 + max(int(found[1]) for found in down))
        channels = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in levels]
    except (KeyError, ValueError) as error:
        raise ConversionError(f"it has no {error}: it is not a KL autoencoder like Stable Diffusion's") from error
    return Layout(
        latent_channels=quant // 2,
        base_channels=base,
        channel_multipliers=tuple(count // base for count in channels),
        num_res_blocks=1 + max(int(found[2]) for found in down),
        attention_levels=tuple(level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in state),
    )


def check(state: Mapping[str, Tensor]) -> None:
    """Checks that `state` has exactly the weights of its layout."""
    expected = {f"{name}.{part}" for name in layout_of(state).names() for part in ("weight", "bias")}
    for what, names in (("lacks", expected - state.keys()), ("has unknown", state.keys() - expected)):
        if names:
            shown = ", ".join(sorted(names)[:8])
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise ConversionError(f"it {what} weights: {shown}{more}")


def section(source: Source, weights: Path) -> str:
    """Returns the section of a configuration that uses the file."""

    def numbers(values: list[float]) -> str:
        return str(values[0]) if len(values) == 1 else str(values)

    return "\n".join(
        (
            "[model.autoencoder]",
            'kind = "kl"',
            f"layout = {layout_of(source.state).toml()}",
            f"weights = {json.dumps(str(weights))}",
            f"scale = {numbers(source.scale)}",
            f"bias = {numbers(source.bias)}",
        )
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a .safetensors, .bin, .pt or .ckpt file")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--stats", type=Path, help="upstream's file of latent statistics")
    arguments = parser.parse_args(argv)
    try:
        try:
            source = read(arguments.source, arguments.stats)
        except ConversionError as error:
            # Errors of reading already name the file.
            names_file = str(arguments.source) in str(error) or str(arguments.stats) in str(error)
            raise error if names_file else ConversionError(f"{arguments.source}: {error}") from error
        target = arguments.out
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            save_file(source.state, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except (ConversionError, OSError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(section(source, target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
