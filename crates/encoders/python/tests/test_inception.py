"""Inception-v3 for FID: its own properties and, if installed, a comparison with the packages that define it."""

import contextlib
import importlib.util
import io
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

import torch
from export import __main__ as command
from export import inception, measures
from export.errors import ExportError
from export.exporter import Options
from export.reference import fixture_images, reference_images
from export.sidecar import sha256_of

TENSORFLOW, PYTORCH_FID = (inception.FLAVOURS[name] for name in measures.NAMES)


def installed(package: str) -> bool:
    """Returns whether a package is installed; otherwise reports the skipped tests on stderr."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"skipped: {package}, with which Inception is compared, is not installed", file=sys.stderr)
    return found


class Networks(unittest.TestCase):
    scratch: tempfile.TemporaryDirectory
    weights: Path
    module: inception.Inception

    @classmethod
    def setUpClass(cls) -> None:
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        cls.weights = Path(cls.scratch.name) / "weights.pth"
        cls.module = inception.make(TENSORFLOW, 0, None)
        torch.save(cls.module.network.network.state_dict(), cls.weights)

    def close(self, found: torch.Tensor, wanted: torch.Tensor) -> None:
        self.assertEqual(found.shape, wanted.shape)
        difference = (found - wanted).abs().max() / wanted.abs().max()
        self.assertLess(difference.item(), 1e-6)

    @torch.no_grad()
    def test_features_equal_torch_fidelity(self) -> None:
        if not installed("torch_fidelity"):
            self.skipTest("torch_fidelity is not installed")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        theirs = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(self.weights)
        )
        for side in (64, 299, 320):
            images = fixture_images(3, side, side)
            pool, _, logits = self.module(images)
            wanted = theirs(images)
            self.close(pool, wanted[0])
            self.close(logits, wanted[1])
        self.assertGreater(pool.std(0).mean().item(), 0.05)  # otherwise equality would be meaningless

    @torch.no_grad()
    def test_features_equal_pytorch_fid(self) -> None:
        if not installed("pytorch_fid"):
            self.skipTest("pytorch_fid is not installed")
        from pytorch_fid import inception as package

        state = torch.load(self.weights, weights_only=True)
        with mock.patch.object(package, "load_state_dict_from_url", lambda *_, **__: state):
            theirs = package.InceptionV3([3]).eval()
        ours = inception.make(PYTORCH_FID, None, state)
        for side in (64, 299, 320):
            images = fixture_images(3, side, side)
            self.close(ours(images)[0], theirs(images.float() / 255)[0].flatten(1))

    @torch.no_grad()
    def test_spatial_features_are_the_first_channels_of_mixed_6_conv_channels_last(self) -> None:
        seen = []
        block = self.module.network.network.Mixed_6d
        with block.branch1x1.register_forward_hook(lambda *call: seen.append(call[2])):
            _, spatial, _ = self.module(fixture_images(2, 64, 1))
        feature_map = spatial.view(2, 17, 17, 7)
        # Once for the spatial features, once in the block itself.
        for found in seen:
            torch.testing.assert_close(feature_map, found[:, :7].permute(0, 2, 3, 1), rtol=0, atol=0)

    def test_resizing_of_tensorflow_aligns_the_first_corner(self) -> None:
        ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
        row = inception.resize_like_tensorflow(ramp, 8)[0, 0, 0]
        self.assertEqual(row.tolist(), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0])
        same = torch.rand(1, 3, 299, 299)
        self.assertTrue(torch.equal(inception.resize_like_tensorflow(same, 299), same))

    def test_the_file_matches_its_sidecar(self) -> None:
        folder = Path(self.scratch.name) / "out"
        size, difference = inception.export("inception", Options(out=folder, weights=self.weights))
        path = folder / "inception.pt"
        found = tomllib.loads(path.with_suffix(".toml").read_text())
        self.assertEqual((size, found["sha256"]), (path.stat().st_size, sha256_of(path)))
        self.assertLess(difference, 1e-6)
        self.assertEqual((found["pool"], found["spatial"], found["logits"]), (2048, 2023, 1008))
        self.assertIn(sha256_of(self.weights), found["weights"])
        reference = found["reference"]
        with torch.no_grad():
            outputs = torch.jit.load(path)(reference_images(reference["side"]))
        for name, tensor in zip(("pool", "spatial", "logits"), outputs, strict=True):
            values = tensor.reshape(-1)[reference[f"{name}_index"]]
            torch.testing.assert_close(values, torch.tensor(reference[name]), rtol=1e-5, atol=1e-6)

    def test_other_checkpoints_are_refused_with_the_reason(self) -> None:
        network = inception.Network()
        state = dict(self.module.network.network.state_dict())
        older = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        inception.load(network, older)
        less = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
        with self.assertRaisesRegex(ExportError, r"1 names missing, 0 unexpected \(fc.bias\).*torch-fidelity"):
            inception.load(network, less)
        with self.assertRaisesRegex(ExportError, "1 unexpected"):
            inception.load(network, state | {"AuxLogits.fc.bias": torch.zeros(1)})
        with self.assertRaisesRegex(ExportError, r"fc.weight is \(1000, 2048\), expected \(1008, 2048\)"):
            inception.load(network, state | {"fc.weight": torch.zeros(1000, 2048)})

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        again = inception.make(PYTORCH_FID, 0, None).network.state_dict()
        for name, tensor in self.module.network.state_dict().items():
            self.assertTrue(torch.equal(tensor, again[name]), name)


class CommandLine(unittest.TestCase):
    def run_command(self, *arguments: str) -> tuple[int, str]:
        output = io.StringIO()
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            code = command.main(list(arguments))
        return code, output.getvalue()

    def test_weights_are_required(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            code, output = self.run_command("inception", "--out", folder)
            self.assertEqual((code, list(Path(folder).iterdir())), (1, []))
            self.assertIn("--weights FILE", output)
            code, output = self.run_command("inception", "--out", folder, "--weights", "none.pth")
            self.assertEqual(code, 1)
            self.assertIn("none.pth does not exist", output)

    def test_options_of_encoders_are_refused(self) -> None:
        for arguments, expected in (
            (("inception", "vgg"), "vgg: encoders must be exported by a separate command"),
            (("inception", "--depth", "2", "--random-weights"), "--depth applies to encoders"),
            (("inception", "--random-weights", "--weights", "x"), "exclude each other"),
            (("inception", "--random-weights", "--seed", "-1"), "negative"),
        ):
            code, output = self.run_command(*arguments)
            self.assertEqual(code, 2)
            self.assertIn(expected, output)
