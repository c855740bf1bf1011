"""Exports of a network that is not in the catalogue."""

import contextlib
import tempfile
import tomllib
import unittest
from pathlib import Path

import torch
from export.errors import ExportError
from export.own import export_network
from export.preprocess import preprocess
from export.reference import reference_images
from export.sidecar import Preprocessing, sha256_of
from torch import Tensor, nn

RECIPE = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Patches(nn.Module):
    """Returns `prefix` tokens, which are the mean of the patch tokens, and then 4 x 4 patch tokens."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 8, 8)
        self.prefix = prefix

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True)] * self.prefix + [tokens], dim=1)


class Own(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def test_the_files_describe_the_network(self) -> None:
        network = Patches(2)
        path = export_network("mine", network, 32, RECIPE, prefix_tokens=2, class_token=True, out=self.folder)
        sidecar = tomllib.loads(path.with_suffix(".toml").read_text())
        self.assertEqual((sidecar["grid"], sidecar["width"], sidecar["class_token"]), ([4, 4], 6, True))
        self.assertEqual(sidecar["sha256"], sha256_of(path))
        with torch.no_grad():
            images = preprocess(reference_images(256), RECIPE, 32)
            patch, class_token = torch.jit.load(path)(images)
            torch.testing.assert_close(patch, network(images)[:, 2:])
            torch.testing.assert_close(class_token, network(images)[:, 0])
        expected = torch.tensor(sidecar["reference"]["patch"])
        torch.testing.assert_close(patch.reshape(-1)[sidecar["reference"]["patch_index"]], expected)

    def test_invalid_networks_are_refused_and_leave_no_file(self) -> None:
        for name, network, prefix, class_token, words in (
            ("mine", Patches(1), 0, False, "prefix_tokens"),
            ("mine", Patches(0), 0, True, "prefix token"),
            ("mine", nn.Flatten(), 0, False, "B, T, D"),
            ("mine,yours", Patches(0), 0, False, "letters, digits"),
        ):
            with self.subTest(words), self.assertRaisesRegex(ExportError, words):
                export_network(name, network, 32, RECIPE, prefix, class_token, out=self.folder)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_the_documented_example_works_and_has_ten_lines(self) -> None:
        page = (Path(__file__).resolve().parents[4] / "docs/adding-an-encoder.md").read_text(encoding="utf-8")
        example = page.split("```python\n")[1].split("```")[0]
        self.assertLessEqual(len(example.strip().splitlines()), 10)
        # Replaces the download.
        code = example.replace("pretrained=True", "pretrained=False, depth=1")
        self.assertNotEqual(code, example)
        with contextlib.chdir(self.folder):
            exec(compile(code, "adding-an-encoder.md", "exec"), {})
        sidecar = tomllib.loads((self.folder / "pretrained/my-vit-s.toml").read_text())
        self.assertEqual((sidecar["grid"], sidecar["width"]), ([16, 16], 384))
