"""Tests each conversion with a checkpoint in the publisher's format, created from a network with random weights."""

import re
import unittest

import torch
from export import build, catalogue, checkpoints, tables
from export.errors import ExportError
from torch import Tensor

State = dict[str, Tensor]
ENTRIES = catalogue.load()


def network(name: str, seed: int | None = None, resolution: int = 256) -> torch.nn.Module:
    encoder = build.build(ENTRIES[name], resolution, depth=1)
    if seed is not None:
        build.randomise(encoder, seed)
    return encoder.network


def native_table(entry: catalogue.Entry, prefix: int) -> Tensor:
    """Returns a position table of the published size."""
    grid = entry.build["table_grids"][0]
    return torch.randn(1, prefix + grid * grid, entry.width, generator=torch.Generator().manual_seed(1))


def renamed(state: State, *renames: tuple[str, str]) -> State:
    out = {}
    for name, tensor in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def split(state: State, name: str, parts: tuple[str, ...]) -> State:
    """Splits the layers called `name` into `parts`."""
    out: State = {}
    for key, tensor in state.items():
        if f".{name}." in key:
            pieces = tensor.chunk(len(parts))
            out |= {key.replace(name, part): piece for part, piece in zip(parts, pieces, strict=True)}
        else:
            out[key] = tensor
    return out


JUNK = torch.zeros(3)


def dinov2_transformers(state: State, prefix: str = "") -> State:
    state = renamed(
        state,
        (r"^cls_token", "embeddings.cls_token"),
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^norm\.", "layernorm."),
        (r"^blocks", "encoder.layer"),
        (r"\.attn\.proj", ".attention.output.dense"),
        (r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1"),
        (r"\.mlp\.fc1", ".mlp.weights_in"),
        (r"\.mlp\.fc2", ".mlp.weights_out"),
    )
    parts = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
    state = split(state, "attn.qkv", parts) | {"embeddings.mask_token": JUNK}
    return {prefix + name: tensor for name, tensor in state.items()}


def open_clip(state: State) -> State:
    state = renamed(
        state,
        (r"^patch_embed\.proj", "conv1"),
        (r"^cls_token", "class_embedding"),
        (r"^pos_embed", "positional_embedding"),
        (r"^norm_pre", "ln_pre"),
        (r"^blocks", "transformer.resblocks"),
        (r"\.norm(\d)", r".ln_\1"),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj", ".attn.out_proj"),
        (r"\.gamma_(\d)", r".ls_\1.gamma"),
        (r"\.mlp\.fc1", ".mlp.c_fc"),
        (r"\.mlp\.fc2", ".mlp.c_proj"),
    )
    state["positional_embedding"] = state["positional_embedding"][0]
    if "class_embedding" in state:
        state["class_embedding"] = state["class_embedding"].flatten()
    return state | {"proj": JUNK}


def siglip_transformers(state: State) -> State:
    state = renamed(
        state,
        (r"^patch_embed\.proj", "embeddings.patch_embedding"),
        (r"^pos_embed", "embeddings.position_embedding.weight"),
        (r"^norm\.", "post_layernorm."),
        (r"^blocks", "encoder.layers"),
        (r"\.norm(\d)", r".layer_norm\1"),
        (r"\.attn\.proj", ".self_attn.out_proj"),
    )
    state["embeddings.position_embedding.weight"] = state["embeddings.position_embedding.weight"][0]
    state = split(state, "attn.qkv", tuple(f"self_attn.{part}_proj" for part in "qkv"))
    text = {"text_model.embeddings.position_embedding.weight": JUNK, "logit_scale": JUNK}
    return text | {f"vision_model.{name}": tensor for name, tensor in (state | {"head.probe": JUNK}).items()}


def radio(state: State) -> State:
    state = renamed(state, (r"\.gamma$", ".grandma"))
    state["patch_generator.embedder.weight"] = state.pop("patch_embed.proj.weight").flatten(1)
    state["patch_generator.pos_embed"] = state.pop("pos_embed")
    state["patch_generator.cls_token.token"] = torch.cat([state.pop("cls_token"), state.pop("reg_token")], 1)[0]
    del state["patch_embed.proj.bias"]
    outside = {"radio_model.input_conditioner.norm_mean": JUNK, "radio_model.summary_idxs": JUNK}
    return outside | {f"radio_model.model.{name}": tensor for name, tensor in state.items()}


class RoundTrips(unittest.TestCase):
    """Network -> publisher's format -> `checkpoints.load` -> the same tensors."""

    def check(self, name: str, publish, resolution: int = 256) -> None:
        entry = ENTRIES[name]
        source = network(name, seed=3, resolution=resolution)
        state = {key: tensor.clone() for key, tensor in source.state_dict().items()}
        expected = dict(state)
        if "table" in entry.build:
            prefix = state["pos_embed"].shape[1] - entry.grid_at(resolution) ** 2
            state["pos_embed"] = native_table(entry, prefix)
            through = [*entry.build["table_grids"][1:], entry.grid_at(resolution)]
            expected["pos_embed"] = tables.resample_by_way_of(state["pos_embed"], through, prefix, entry.build["table"])
        if entry.build["checkpoint"] == "cradio":
            expected["patch_embed.proj.bias"] = torch.zeros_like(expected["patch_embed.proj.bias"])
        target = network(name, resolution=resolution)
        checkpoints.load(target, entry, resolution, publish(state))
        found = target.state_dict()
        self.assertEqual(set(found), set(expected))
        for key, tensor in expected.items():
            self.assertTrue(torch.equal(found[key], tensor), key)

    def test_names_of_timm(self) -> None:
        for name in ("dino-vit-b", "dinov2-vit-b", "dinov3-vit-b16", "pe-vit-b", "siglip-vit-b"):
            with self.subTest(name):
                self.check(name, lambda state: state | {"head.weight": JUNK})

    def test_dinov2_of_meta(self) -> None:
        self.check("dinov2-vit-b", lambda state: state | {"mask_token": JUNK})

    def test_dinov2_at_512(self) -> None:
        self.check("dinov2-vit-b", lambda state: state, resolution=512)

    def test_webssl_of_meta_with_blocks_in_chunks(self) -> None:
        self.check(
            "webssl-vit-dino300m_full2b_224",
            lambda state: {"model": renamed(state, (r"^blocks\.", "blocks.0."), ("fc1", "w12"), ("fc2", "w3"))},
        )

    def test_webssl_of_transformers(self) -> None:
        self.check("webssl-vit-dino300m_full2b_224", dinov2_transformers)
        self.check("webssl-vit-dino300m_full2b_224", lambda state: dinov2_transformers(state, "dinov2."), 512)

    def test_dinov3_of_meta(self) -> None:
        def publish(state: State) -> State:
            out = renamed(state, (r"reg_token", "storage_tokens"), (r"gamma_(\d)", r"ls\1.gamma"))
            query, value = out.pop("blocks.0.attn.q_bias"), out.pop("blocks.0.attn.v_bias")
            out["blocks.0.attn.qkv.bias"] = torch.cat([query, torch.ones_like(query), value])
            out["blocks.0.attn.qkv.bias_mask"] = JUNK
            return out | {"rope_embed.periods": JUNK, "mask_token": JUNK}

        self.check("dinov3-vit-b16", publish)

    def test_mae_of_meta_is_used_without_its_norm(self) -> None:
        self.check("mae-vit-l", lambda state: {"model": state | {"norm.weight": JUNK, "norm.bias": JUNK}})

    def test_jepa_takes_the_encoder(self) -> None:
        def publish(state: State) -> dict[str, object]:
            encoder = {f"module.{name}": tensor for name, tensor in state.items()}
            return {"target_encoder": {"module.norm.weight": JUNK}, "encoder": encoder, "epoch": 300}

        self.check("jepa-vit-h", publish)

    def test_mocov3_takes_the_base_encoder(self) -> None:
        def publish(state: State) -> dict[str, object]:
            base = {f"module.base_encoder.{name}": tensor for name, tensor in state.items()}
            other = {"module.base_encoder.head.0.weight": JUNK, "module.momentum_encoder.cls_token": JUNK}
            return {"epoch": 300, "state_dict": base | other}

        self.check("mocov3-vit-b", publish)
        self.check("mocov3-vit-b", publish, resolution=512)

    def test_clip_of_openai(self) -> None:
        self.check(
            "clip-vit-L",
            lambda state: (
                {f"visual.{k}": v for k, v in open_clip(state).items()}
                | {"visual.ln_post.weight": JUNK, "positional_embedding": JUNK, "transformer.resblocks.0.x": JUNK}
            ),
        )

    def test_pe_of_meta(self) -> None:
        self.check("pe-vit-b", lambda state: {f"visual.{k}": v for k, v in open_clip(state).items()} | {"x": JUNK})
        self.check("langpe-vit-l", open_clip)
        self.check("pe-vit-b", lambda state: open_clip(state) | {"attn_pool.probe": JUNK}, resolution=512)

    def test_cradio_of_nvidia(self) -> None:
        self.check("cradio-vit-b", radio)

    def test_siglip_of_google(self) -> None:
        self.check("siglip-vit-b", siglip_transformers)

    def test_sam2_of_meta(self) -> None:
        def publish(state: State) -> dict[str, object]:
            out = renamed(state, (r"mlp\.fc1", "mlp.layers.0"), (r"mlp\.fc2", "mlp.layers.1"))
            trunk = {f"image_encoder.trunk.{name}": tensor for name, tensor in out.items()}
            return {"model": trunk | {"image_encoder.neck.convs.0.weight": JUNK}}

        self.check("sam2-vit-s", publish)

    def test_vgg_of_torchvision(self) -> None:
        self.check("vgg", lambda state: {f"features.{k}": v for k, v in state.items()} | {"features.24.weight": JUNK})


class Conversions(unittest.TestCase):
    def test_misnamed_layers_of_mocov3_l_are_repaired(self) -> None:
        wrong = ["13.norm13.weight", "13.mlp.fc13.bias", "14.norm14.weight", "14.mlp.fc14.bias", "14.norm1.weight"]
        found = checkpoints.mocov3({f"module.base_encoder.blocks.{name}": JUNK for name in wrong})
        right = ["13.norm1.weight", "13.mlp.fc1.bias", "14.norm2.weight", "14.mlp.fc2.bias", "14.norm1.weight"]
        self.assertEqual(list(found), [f"blocks.{name}" for name in right])

    def test_swiglu_of_dinov3(self) -> None:
        found = checkpoints.dinov3({"storage_tokens": JUNK} | {f"blocks.3.mlp.w{i}.weight": JUNK for i in (1, 2, 3)})
        layers = [f"blocks.3.mlp.{layer}.weight" for layer in ("fc1_g", "fc1_x", "fc2")]
        self.assertEqual(list(found), ["reg_token", *layers])

    def test_gate_and_up_projection_are_one_layer(self) -> None:
        first, second = torch.zeros(2, 3), torch.ones(2, 3)
        found = checkpoints.dinov2(
            {
                "embeddings.cls_token": JUNK,
                "encoder.layer.0.mlp.up_proj.weight": second,
                "encoder.layer.0.mlp.gate_proj.weight": first,
            }
        )
        self.assertTrue(torch.equal(found["blocks.0.mlp.fc1.weight"], torch.cat([first, second])))

    def test_query_without_key_is_refused(self) -> None:
        with self.assertRaisesRegex(ExportError, "has only q_proj"):
            checkpoints.siglip(
                {
                    "embeddings.patch_embedding.weight": JUNK,
                    "embeddings.position_embedding.weight": JUNK,
                    "encoder.layers.0.self_attn.q_proj.bias": JUNK,
                }
            )

    def test_radio_without_scales_has_scale_one(self) -> None:
        found = checkpoints.cradio(
            {
                "base_model.patch_generator.pos_embed": JUNK,
                "base_model.patch_generator.embedder.weight": torch.zeros(4, 3 * 16 * 16),
                "base_model.patch_generator.cls_token.token": torch.zeros(8, 4),
                "base_model.blocks.0.norm1.weight": torch.zeros(4),
            }
        )
        self.assertTrue(torch.equal(found["blocks.0.ls2.gamma"], torch.ones(4)))

    def test_radio_that_normalises_its_tokens_is_refused(self) -> None:
        table = {"radio_model.model.patch_generator.pos_embed": JUNK}
        for name in ("radio_model.feature_normalizer.mean", "_feature_normalizer.tx"):
            with self.subTest(name), self.assertRaisesRegex(ExportError, f"normalises its patch tokens .{name}"):
                checkpoints.cradio(table | {name: JUNK})


class Strictness(unittest.TestCase):
    def setUp(self) -> None:
        self.entry = ENTRIES["dino-vit-b"]
        self.network = network("dino-vit-b")
        self.state = dict(self.network.state_dict()) | {"pos_embed": native_table(self.entry, 1)}

    def load(self) -> None:
        checkpoints.load(self.network, self.entry, 256, self.state)

    def test_a_missing_tensor_is_named(self) -> None:
        del self.state["norm.bias"]
        with self.assertRaisesRegex(ExportError, r"1 missing \(norm.bias\)"):
            self.load()

    def test_an_unexplained_tensor_is_named(self) -> None:
        self.state["blocks.1.norm1.weight"] = JUNK
        with self.assertRaisesRegex(ExportError, r"1 unexpected \(blocks.1.norm1.weight\)"):
            self.load()

    def test_another_shape_is_named(self) -> None:
        self.state["norm.bias"] = JUNK
        with self.assertRaisesRegex(ExportError, r"norm.bias is \(3,\), expected \(768,\)"):
            self.load()

    def test_a_checkpoint_of_another_family_is_refused(self) -> None:
        self.entry = ENTRIES["cradio-vit-b"]
        with self.assertRaisesRegex(ExportError, "not one of cradio-vit-b: 2 missing"):
            self.load_without_table()

    def load_without_table(self) -> None:
        state = {name: tensor for name, tensor in self.state.items() if name not in ("pos_embed", "cls_token")}
        checkpoints.load(self.network, self.entry, 256, state)

    def test_a_table_that_was_resampled_before_is_refused(self) -> None:
        self.state["pos_embed"] = torch.zeros(1, 257, 768)
        with self.assertRaisesRegex(ExportError, "16x16, that of dino-vit-b is 14x14"):
            self.load()


if __name__ == "__main__":
    unittest.main()
