import tempfile
import unittest
import warnings
from pathlib import Path

import torch
from export import verify
from export.errors import ExportError
from torch import Tensor, nn


class Means(nn.Module):
    """`[B, 3, S, S]` to `[B, 3, S]`."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(-1)


class OnOneDevice(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(-1) + torch.ones(images.shape[-1], device=images.device)


class ForTwoImages(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(2, 3, -1, images.shape[-1]).mean(-1)


def trace(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(module.eval(), torch.zeros(2, 3, 4, 4), check_trace=False)


class Verify(unittest.TestCase):
    def saved(self, module: nn.Module) -> Path:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        path = Path(scratch.name) / "a.pt"
        torch.jit.save(trace(module), path)
        return path

    def test_the_same_network_passes_at_every_batch(self) -> None:
        images = verify.inputs(4)
        self.assertEqual([batch.shape[0] for batch in images], [1, 2, 3])
        loaded, difference = verify.compare(self.saved(Means()), images, [verify.tokens(Means(), i) for i in images])
        self.assertEqual(difference, 0.0)
        self.assertLess(verify.half_difference(loaded, images[0]), 0.02)

    def test_another_network_is_refused(self) -> None:
        images = verify.inputs(4)
        expected = [(verify.tokens(Means(), batch)[0] * 1.001, None) for batch in images]
        with self.assertRaisesRegex(ExportError, "differs from the Python module"):
            verify.compare(self.saved(Means()), images, expected)

    def test_a_frozen_batch_is_refused(self) -> None:
        images = verify.inputs(4)
        with self.assertRaises((ExportError, RuntimeError)):
            verify.compare(self.saved(ForTwoImages()), images, [verify.tokens(Means(), i) for i in images])

    def test_a_frozen_device_is_refused(self) -> None:
        verify.check_graph(trace(Means()))
        with self.assertRaisesRegex(ExportError, "tied to the device"):
            verify.check_graph(trace(OnOneDevice()))

    def test_tokens_of_another_shape_or_not_finite_are_refused(self) -> None:
        good = (torch.zeros(2, 4, 8), torch.zeros(2, 8))
        verify.check_shapes(good, 2, 4, 8, class_token=True)
        broken = [
            (torch.zeros(2, 5, 8), torch.zeros(2, 8)),
            (torch.zeros(2, 4, 8), None),
            (torch.zeros(2, 4, 8), torch.zeros(2, 9)),
            (torch.full((2, 4, 8), float("nan")), torch.zeros(2, 8)),
        ]
        for found in broken:
            with self.assertRaises(ExportError):
                verify.check_shapes(found, 2, 4, 8, class_token=True)

    def test_the_difference_is_relative_to_the_size_of_the_values(self) -> None:
        ones = torch.ones(1, 2, 2)
        self.assertAlmostEqual(verify.relative_difference((ones * 100.1, None), (ones * 100, None)), 1e-3, places=5)
        self.assertEqual(verify.relative_difference((ones, ones), (ones, None)), float("inf"))


if __name__ == "__main__":
    unittest.main()
