"""Converts autoencoders of all supported formats to the names that the runner reads."""

import contextlib
import io
import json
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import convert_autoencoder as convert

# Two levels with attention in the lower one cover every kind of weight.
LAYOUT = convert.Layout(2, 8, (1, 2), 1, (1,))
# Maps our names of some weights to diffusers' names, copied from its `AutoencoderKL`.
DIFFUSERS = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down.0.block.0.norm1": "encoder.down_blocks.0.resnets.0.norm1",
    "encoder.down.0.downsample.conv": "encoder.down_blocks.0.downsamplers.0.conv",
    "encoder.down.1.block.0.nin_shortcut": "encoder.down_blocks.1.resnets.0.conv_shortcut",
    "encoder.down.1.attn.0.norm": "encoder.down_blocks.1.attentions.0.group_norm",
    "encoder.down.1.attn.0.q": "encoder.down_blocks.1.attentions.0.to_q",
    "encoder.mid.block_1.conv1": "encoder.mid_block.resnets.0.conv1",
    "encoder.mid.attn_1.norm": "encoder.mid_block.attentions.0.group_norm",
    "encoder.mid.attn_1.k": "encoder.mid_block.attentions.0.to_k",
    "encoder.mid.attn_1.proj_out": "encoder.mid_block.attentions.0.to_out.0",
    "encoder.mid.block_2.conv2": "encoder.mid_block.resnets.1.conv2",
    "encoder.norm_out": "encoder.conv_norm_out",
    "decoder.up.1.block.0.conv1": "decoder.up_blocks.0.resnets.0.conv1",
    "decoder.up.1.attn.1.v": "decoder.up_blocks.0.attentions.1.to_v",
    "decoder.up.1.upsample.conv": "decoder.up_blocks.0.upsamplers.0.conv",
    "decoder.up.0.block.0.nin_shortcut": "decoder.up_blocks.1.resnets.0.conv_shortcut",
    "decoder.up.0.block.1.norm2": "decoder.up_blocks.1.resnets.1.norm2",
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def to_diffusers(name: str, old: bool) -> str:
    """Returns diffusers' name of a weight. The table above has examples."""
    levels = len(LAYOUT.channel_multipliers)
    part = name.split(".")
    if part[1:2] == ["down"]:
        part[1] = "down_blocks"
    if part[1:2] == ["up"]:
        part[1:3] = ["up_blocks", str(levels - 1 - int(part[2]))]
    if part[1:2] == ["mid"]:
        kind, number = part[2].split("_")
        part[1:3] = ["mid_block", {"block": "resnets", "attn": "attentions"}[kind], str(int(number) - 1)]
    words = {"block": "resnets", "attn": "attentions", "norm_out": "conv_norm_out", "nin_shortcut": "conv_shortcut"}
    words |= {"downsample": "downsamplers.0", "upsample": "upsamplers.0"}
    if "attn" in name:
        words |= {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    found = ".".join(words.get(word, word) for word in part)
    if old:
        for newer, older in OLD.items():
            found = found.replace(f".{newer}", f".{older}")
    return found


def shape(name: str) -> tuple[int, ...]:
    """Returns a shape with the kernel's side and the channels from which the layout is determined."""
    if name == "quant_conv":
        return (4, 4, 1, 1)
    if name.endswith((".q", ".k", ".v", ".proj_out", "nin_shortcut", "quant_conv")):
        return (16, 16, 1, 1)
    out = 8 if name == "encoder.conv_in" or name.startswith("encoder.down.0") else 16
    return (out,) if "norm" in name else (out, 4, 3, 3)


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in LAYOUT.names():
        size = shape(name)
        state[f"{name}.weight"] = torch.randn(size, generator=generator)
        state[f"{name}.bias"] = torch.randn(size[:1], generator=generator)
    return state


def as_diffusers(state: dict[str, Tensor], old: bool = False, linear: bool = True) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        stem, part = name.rsplit(".", 1)
        theirs = f"{to_diffusers(stem, old)}.{part}"
        attention = ".attentions." in theirs and tensor.dim() == 4
        found[theirs] = tensor[:, :, 0, 0].contiguous() if attention and linear else tensor
    return found


class Autoencoders(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.weights = weights()

    def convert(self, source: Path, *options: str) -> dict:
        """Converts, compares the weights, and returns the printed settings."""
        target = self.folder / "out/vae.safetensors"
        with contextlib.redirect_stdout(io.StringIO()) as output:
            self.assertEqual(convert.main([str(source), "--out", str(target), *options]), 0)
        found = load_file(target)
        self.assertEqual(found.keys(), self.weights.keys())
        for name, tensor in self.weights.items():
            self.assertTrue(torch.equal(found[name], tensor), name)
        printed = tomllib.loads(output.getvalue())["model"]["autoencoder"]
        self.assertEqual(printed["weights"], str(target))
        return printed

    def save(self, content: object, name: str = "vae.pt") -> Path:
        path = self.folder / name
        torch.save(content, path)
        return path

    def test_renaming_to_diffusers_agrees_with_the_table(self) -> None:
        for ours, theirs in DIFFUSERS.items():
            self.assertIn(ours, set(LAYOUT.names()))
            self.assertEqual(to_diffusers(ours, old=False), theirs)

    def test_old_and_new_diffusers_files(self) -> None:
        path = self.folder / "diffusion_pytorch_model.safetensors"
        for old, linear in ((False, True), (True, True), (True, False)):
            with self.subTest(old=old, linear=linear):
                content = as_diffusers(self.weights, old, linear)
                save_file(content, path)
                self.convert(path)
                self.convert(self.save(content, "diffusion_pytorch_model.bin"))

    def test_scale_and_bias_come_from_the_config_beside_a_diffusers_file(self) -> None:
        path = self.folder / "diffusion_pytorch_model.safetensors"
        save_file(as_diffusers(self.weights), path)
        self.assertEqual(self.convert(path)["scale"], 0.18215)
        settings = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
        (self.folder / "config.json").write_text(json.dumps(settings))
        printed = self.convert(path)
        self.assertEqual((printed["scale"], printed["bias"]), (0.3611, 0.1159))

    def test_compvis_files_bare_nested_and_in_a_whole_model(self) -> None:
        loss = {"loss.discriminator.main.0.weight": torch.ones(1)}
        whole = {f"first_stage_model.{name}": tensor for name, tensor in (self.weights | loss).items()}
        whole["model.diffusion_model.encoder.conv_in.weight"] = torch.ones(1)
        self.convert(self.save(self.weights))
        self.convert(self.save({"state_dict": self.weights | loss, "global_step": 1}, "vae.ckpt"))
        self.convert(self.save({"state_dict": whole}))
        self.convert(self.save({f"module.{name}": tensor for name, tensor in self.weights.items()}))

    def test_half_precision_becomes_float32(self) -> None:
        half = {name: tensor.half() for name, tensor in self.weights.items()}
        self.weights = {name: tensor.float() for name, tensor in half.items()}
        self.convert(self.save(half))

    def test_a_repa_e_checkpoint_contains_scale_and_bias(self) -> None:
        ema = {"bn.running_mean": torch.tensor([0.5, -1.0]), "bn.running_var": torch.tensor([4.0, 0.25])}
        printed = self.convert(self.save({"vae": self.weights, "ema": ema, "steps": 3}))
        self.assertEqual((printed["scale"], printed["bias"]), ([0.5, 2.0], [0.5, -1.0]))

    def test_a_file_of_statistics_overrides_scale_and_bias(self) -> None:
        stats = {"latents_scale": torch.full((1, 4, 1, 1), 0.18215), "latents_bias": torch.zeros(1, 4, 1, 1)}
        path = self.save(stats, "stats.pt")
        printed = self.convert(self.save(self.weights), "--stats", str(path))
        self.assertEqual((printed["scale"], printed["bias"]), (0.18215, 0.0))

    def test_layouts_are_printed_by_name_or_as_a_table(self) -> None:
        self.assertEqual(convert.layout_of(self.weights), LAYOUT)
        printed = self.convert(self.save(self.weights))
        self.assertEqual(printed["layout"]["channel_multipliers"], [1, 2])
        self.assertEqual(convert.NAMED["f8d4"].toml(), '"f8d4"')
        # The numbers of tensors in the published files.
        counts = {name: 2 * len(list(layout.names())) for name, layout in convert.NAMED.items()}
        self.assertEqual(counts, {"f8d4": 248, "f16d32": 342})

    def test_bad_files_are_named(self) -> None:
        lacking = dict(self.weights)
        del lacking["decoder.mid.attn_1.q.bias"]
        more = self.weights | {"encoder.down.0.block.0.conv3.weight": torch.ones(1)}
        cut = self.folder / "cut.safetensors"
        save_file(self.weights, cut)
        cut.write_bytes(cut.read_bytes()[:1000])
        good = self.save(self.weights, "good.pt")
        cases = (
            ([self.save(lacking, "lacking.pt")], "decoder.mid.attn_1.q.bias"),
            ([self.save(more, "more.pt")], "encoder.down.0.block.0.conv3.weight"),
            ([self.save({"a": torch.ones(1)}, "other.pt")], "not an autoencoder"),
            ([self.save({"encoder.weight": torch.ones(1)}, "odd.pt")], "not a KL autoencoder"),
            ([self.save({"state_dict": self.weights, "run": io.StringIO}, "code.pt")], "more than tensors"),
            ([cut], "not a complete safetensors file"),
            ([self.folder / "missing.safetensors"], "does not exist"),
            ([good, "--stats", good], "not statistics of latents"),
        )
        for (source, *options), words in cases:
            with self.subTest(source.name), contextlib.redirect_stderr(io.StringIO()) as output:
                target = self.folder / "x.safetensors"
                self.assertEqual(convert.main([str(source), "--out", str(target), *map(str, options)]), 1)
                self.assertIn(words, output.getvalue())
                self.assertIn(source.name, output.getvalue())
                self.assertFalse(target.exists())


if __name__ == "__main__":
    unittest.main()
