"""Converts the tensors of a published checkpoint to the state dict of the network that `build.py` creates.

Each conversion is a function of names and tensors only. It unwraps and renames tensors and drops those that the tokens
do not depend on; comments state the reason. Any other missing or unexpected tensor is an error in `load`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import tables
from .catalogue import Entry
from .errors import ExportError

State = dict[str, Tensor]
Renames = Iterable[tuple[str, str]]  # regular expression, replacement


def load(network: nn.Module, entry: Entry, resolution: int, checkpoint: Mapping[str, Any]) -> None:
    """Loads a checkpoint in the format of the publisher or of timm into `network`; every tensor must match."""
    try:
        state = CONVERSIONS[entry.build["checkpoint"]](checkpoint)
    except KeyError as error:
        raise ExportError(f"the checkpoint is not one of {entry.name}: no {error.args[0]}") from error
    grids = entry.build.get("table_grids")
    if grids and "pos_embed" in state:
        state["pos_embed"] = _resampled(state["pos_embed"], network, entry, resolution)
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    if missing or unexpected:
        found = "; ".join(
            _some(what, names) for what, names in (("missing", missing), ("unexpected", unexpected)) if names
        )
        raise ExportError(f"the checkpoint is not one of {entry.name}: {found}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ExportError(
                f"the checkpoint is not one of {entry.name}: {name} is {tuple(state[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    network.load_state_dict(state, strict=True)


def _resampled(table: Tensor, network: nn.Module, entry: Entry, resolution: int) -> Tensor:
    native, *through = entry.build["table_grids"]
    grid = entry.grid_at(resolution)
    prefix = network.pos_embed.shape[1] - grid * grid
    try:
        found = tables.grid_of(table, prefix)
    except ValueError as error:
        raise ExportError(f"the checkpoint is not one of {entry.name}: {error}") from error
    if found != native:
        raise ExportError(
            f"the checkpoint's position table is {found}x{found}, that of {entry.name} is {native}x{native}: "
            "a table that was resampled before gives other tokens; use the publisher's file"
        )
    return tables.resample_by_way_of(table, [*through, grid], prefix, entry.build["table"])


def _some(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({shown})"


def vit(checkpoint: Mapping[str, Any]) -> State:
    """A vision transformer with timm's names, among them DINO's."""
    return _dropped(_tensors(checkpoint), r"head\.")  # only for pretraining


def dinov2(checkpoint: Mapping[str, Any]) -> State:
    """DINOv2 with Meta's, timm's or transformers' names."""
    state = _tensors(checkpoint)
    if any(name.endswith("embeddings.cls_token") for name in state):
        return _dinov2_transformers(state)
    state = _dropped(state, r"head\.", r"mask_token$")  # only for pretraining
    return _renamed(state, [(r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")])


def webssl(checkpoint: Mapping[str, Any]) -> State:
    """Web-SSL DINO: like DINOv2, but Meta's files store the blocks in chunks, `blocks.CHUNK.INDEX.*`.

    The index counts the blocks of all chunks. The padding of shorter chunks has no tensors.
    """
    return _renamed(dinov2(checkpoint), [(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")])


def _dinov2_transformers(state: State) -> State:
    state = _stripped(state, "embeddings.cls_token")
    state = _renamed(
        _dropped(state, r"embeddings\.mask_token$"),  # only for pretraining
        [
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^encoder\.layer\.", "blocks."),
            (r"^layernorm\.", "norm."),
            (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1_proj."),
            (r"\.attention\.query_proj\.", ".attention.q_proj."),
            (r"\.attention\.key_proj\.", ".attention.k_proj."),
            (r"\.attention\.value_proj\.", ".attention.v_proj."),
            (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
        ],
    )
    state = _joined(state, r"\.attention\.({part})\.", ("q_proj", "k_proj", "v_proj"), ".attn.qkv.")
    return _joined(state, r"\.mlp\.({part})\.", ("gate_proj", "up_proj"), ".mlp.fc1.")


def dinov3(checkpoint: Mapping[str, Any]) -> State:
    """DINOv3 with Meta's or timm's names."""
    # The rotary periods are recomputed and rounded. The mask of the bias only states that the key has none. The other
    # tensors are only for pretraining.
    state = _dropped(_tensors(checkpoint), r"head\.", r"mask_token$", r"rope", r".*\.bias_mask$", r"local_cls_norm\.")
    if "storage_tokens" not in state:
        return state
    renamed = _renamed(
        state,
        [
            (r"^storage_tokens$", "reg_token"),
            (r"\.ls([12])\.gamma$", r".gamma_\1"),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ],
    )
    out: State = {}
    for name, tensor in renamed.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            out[name.replace("qkv.bias", "q_bias")] = query
            out[name.replace("qkv.bias", "v_bias")] = value
        else:
            out[name] = tensor
    return out


def mae(checkpoint: Mapping[str, Any]) -> State:
    """MAE. The file contains the last norm, but upstream takes the tokens before it."""
    return _dropped(_tensors(checkpoint), r"head\.", r"norm\.", r"fc_norm\.", r"mask_token$", r"decoder_")


def jepa(checkpoint: Mapping[str, Any]) -> State:
    """I-JEPA: the `encoder`, not the `target_encoder`, of a training checkpoint; or a checkpoint with timm's names."""
    state = _tensors(checkpoint.get("encoder", checkpoint))
    return _dropped(_renamed(state, [(r"^module\.", "")]), r"head\.")


def mocov3(checkpoint: Mapping[str, Any]) -> State:
    """MoCo v3: the base encoder, not the momentum encoder, of a training checkpoint.

    The public ViT-L file has four misnamed layers.
    """
    state = _tensors(checkpoint)
    prefix = "module.base_encoder."
    if any(name.startswith(prefix) for name in state):
        state = _part(state, prefix)
    state = _renamed(
        state,
        [
            (r"^blocks\.13\.norm13\.", "blocks.13.norm1."),
            (r"^blocks\.13\.mlp\.fc13\.", "blocks.13.mlp.fc1."),
            (r"^blocks\.14\.norm14\.", "blocks.14.norm2."),
            (r"^blocks\.14\.mlp\.fc14\.", "blocks.14.mlp.fc2."),
        ],
    )
    return _dropped(state, r"head\.", r"fc\.")  # the projection head, only for pretraining


def clip(checkpoint: Mapping[str, Any]) -> State:
    """CLIP's image tower with OpenAI's or timm's names. Its last norm and projection are applied after the tokens."""
    state = _tensors(checkpoint)
    if "visual.class_embedding" in state:
        state = _open_clip_names(_part(state, "visual."))
    return _dropped(state, r"norm\.", r"proj$", r"head\.")


def pe(checkpoint: Mapping[str, Any]) -> State:
    """Perception Encoder with Meta's or timm's names. Last norm, pooling and projection are applied later."""
    state = _renamed(_tensors(checkpoint), [(r"^module\.", "")])
    if any(name.startswith("visual.") for name in state):
        state = _part(state, "visual.")
    if "conv1.weight" in state:
        state = _renamed(_open_clip_names(state), [(r"\.ls_([12])\.gamma$", r".gamma_\1")])
    # The rotary frequencies are recomputed.
    return _dropped(state, r"norm\.", r"fc_norm\.", r"proj$", r"head\.", r"attn_pool\.", r"rope\.")


def _open_clip_names(state: State) -> State:
    state = _renamed(
        state,
        [
            (r"^conv1\.", "patch_embed.proj."),
            (r"^class_embedding$", "cls_token"),
            (r"^positional_embedding$", "pos_embed"),
            (r"^ln_pre\.", "norm_pre."),
            (r"^ln_post\.", "norm."),
            (r"^transformer\.resblocks\.", "blocks."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        ],
    )
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    if state["pos_embed"].ndim == 2:
        state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    return state


def cradio(checkpoint: Mapping[str, Any]) -> State:
    """C-RADIOv3 with NVIDIA's or timm's names."""
    state = _tensors(checkpoint)
    table = next((name for name in state if name.endswith("patch_generator.pos_embed")), None)
    if table is None:
        return _dropped(state, r"head\.")
    normaliser = next((name for name in state if re.search(r"(^|\.)_?feature_normalizer\.", name)), None)
    if normaliser is not None:
        raise ExportError(f"the checkpoint normalises its patch tokens ({normaliser}), the network does not")
    prefix = table.removesuffix("patch_generator.pos_embed")
    # Dropped outside of the backbone: the input's normalisation (see `build.Normalised`) and the teachers' heads.
    state = _part(state, prefix)
    patches = state.pop("patch_generator.embedder.weight")  # [D, 3 * P * P]
    tokens = state.pop("patch_generator.cls_token.token")  # [8, D]
    side = round((patches.shape[1] // 3) ** 0.5)
    out = {
        "patch_embed.proj.weight": patches.reshape(-1, 3, side, side),
        "patch_embed.proj.bias": patches.new_zeros(patches.shape[0]),
        "pos_embed": state.pop("patch_generator.pos_embed"),
        "cls_token": tokens[None, :1],
        "reg_token": tokens[None, 1:],
    }
    # The published files name the scales `grandma`, which prevents other loaders from renaming them; transformers uses
    # other names.
    renames = [(r"\.grandma$", ".gamma"), (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma")]
    blocks = _dropped(_renamed(state, renames), r"head\.", r"patch_generator\.video_embedder\.")
    if not any(name.endswith(".ls1.gamma") for name in blocks):
        # In a file without scales, all scales are one.
        for name in [name for name in blocks if name.endswith(".norm1.weight")]:
            block, width = name.removesuffix("norm1.weight"), blocks[name].shape
            blocks |= {f"{block}ls{i}.gamma": blocks[name].new_ones(width) for i in (1, 2)}
    return out | blocks


def input_statistics(checkpoint: Mapping[str, Any]) -> State:
    """Returns `mean` and `std` with which C-RADIOv3's file normalises the input, if present in the file."""
    names = {"input_conditioner.norm_mean": "mean", "input_conditioner.norm_std": "std"}
    return {
        short: tensor
        for name, tensor in _tensors(checkpoint).items()
        for ending, short in names.items()
        if name.endswith(ending)
    }


def siglip(checkpoint: Mapping[str, Any]) -> State:
    """SigLIP's and SigLIP 2's image tower with Google's (transformers') or timm's names, without pooling."""
    state = _tensors(checkpoint)
    if any(name.endswith("embeddings.patch_embedding.weight") for name in state):
        state = _siglip_transformers(state)
    return _dropped(state, r"head\.", r"attn_pool\.")


def _siglip_transformers(state: State) -> State:
    state = _renamed(
        # The text tower also has position embeddings; only images have patches.
        _stripped(state, "embeddings.patch_embedding.weight"),
        [
            (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^encoder\.layers\.", "blocks."),
            (r"^post_layernorm\.", "norm."),
            (r"\.layer_norm([12])\.", r".norm\1."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
        ],
    )
    state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    return _joined(state, r"\.self_attn\.({part})\.", ("q_proj", "k_proj", "v_proj"), ".attn.qkv.")


def sam2(checkpoint: Mapping[str, Any]) -> State:
    """SAM 2's image trunk with Meta's or timm's names."""
    state = _tensors(checkpoint)
    prefix = "image_encoder.trunk."
    if any(name.startswith(prefix) for name in state):
        state = _part(state, prefix)
    state = _renamed(state, [(r"\.mlp\.layers\.0\.", ".mlp.fc1."), (r"\.mlp\.layers\.1\.", ".mlp.fc2.")])
    return _dropped(state, r"head\.")


def vgg(checkpoint: Mapping[str, Any]) -> State:
    """torchvision's VGG-16, up to the fourth pooling."""
    state = _renamed(_tensors(checkpoint), [(r"^features\.", "")])
    return {name: tensor for name, tensor in state.items() if re.match(r"(\d|1\d|2[0-3])\.", name)}


CONVERSIONS: dict[str, Callable[[Mapping[str, Any]], State]] = {
    function.__name__: function
    for function in (vit, dinov2, webssl, dinov3, mae, jepa, mocov3, clip, pe, cradio, siglip, sam2, vgg)
}


def _tensors(checkpoint: Mapping[str, Any]) -> State:
    """Returns the tensors of a checkpoint without the dictionaries in which training scripts wrap them."""
    for key in ("model", "state_dict", "weights", "teacher"):
        if isinstance(checkpoint.get(key), Mapping):
            return _tensors(checkpoint[key])
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def _part(state: State, prefix: str) -> State:
    """Returns the tensors whose names start with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _stripped(state: State, landmark: str) -> State:
    """Removes the prefix that precedes `landmark` in a name, and drops the tensors without this prefix."""
    return _part(state, next(name for name in state if name.endswith(landmark)).removesuffix(landmark))


def _renamed(state: State, renames: Renames) -> State:
    out = {}
    for name, tensor in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def _dropped(state: State, *patterns: str) -> State:
    """Drops the tensors whose names start with a match of one of `patterns`."""
    drop = re.compile("|".join(patterns))
    return {name: tensor for name, tensor in state.items() if not drop.match(name)}


def _joined(state: State, pattern: str, parts: tuple[str, ...], joint: str) -> State:
    """Concatenates the layers `parts` of each block into one layer named `joint`."""
    find = re.compile(pattern.format(part="|".join(parts)))
    found: dict[str, State] = {}
    out: State = {}
    for name, tensor in state.items():
        match = find.search(name)
        if match:
            found.setdefault(find.sub(joint, name), {})[match.group(1)] = tensor
        else:
            out[name] = tensor
    for name, pieces in found.items():
        if len(pieces) != len(parts):
            raise ExportError(f"the checkpoint has only {', '.join(sorted(pieces))} of {', '.join(parts)} for {name}")
        out[name] = torch.cat([pieces[part] for part in parts])
    return out
