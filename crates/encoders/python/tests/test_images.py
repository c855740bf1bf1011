"""Reference images, fixtures and preprocessing."""

import dataclasses
import unittest

import torch
import torch.nn.functional as F
from export import catalogue
from export.preprocess import preprocess
from export.reference import fixture_images, reference, reference_images


class References(unittest.TestCase):
    def test_images_follow_the_formula(self) -> None:
        images = reference_images(256)
        self.assertEqual((images.shape, images.dtype), ((2, 3, 256, 256), torch.uint8))
        for b, c, y, x in ((0, 0, 0, 0), (1, 2, 255, 254), (0, 1, 17, 200), (1, 0, 128, 3)):
            value = x * (3 + b) + y * (5 + 2 * b) + 40 * c + ((x * y) >> 5) + ((x * x + 3 * y * y) >> 7)
            self.assertEqual(images[b, c, y, x].item(), value & 255)

    def test_values_are_at_the_stated_places_and_keep_their_bits(self) -> None:
        patch = torch.randn(2, 256, 48, generator=torch.Generator().manual_seed(0))
        found = reference(patch, patch[:, 0])
        self.assertEqual((len(found.patch_index), len(found.class_index)), (256, 64))
        self.assertEqual(found.patch_index[3], 3 * 104729 % patch.numel())
        self.assertTrue(torch.equal(torch.tensor(found.patch), patch.reshape(-1)[found.patch_index]))
        self.assertTrue(torch.equal(torch.tensor(found.class_values), patch[:, 0].reshape(-1)[found.class_index]))

    def test_without_a_class_token_its_lists_are_empty(self) -> None:
        found = reference(torch.zeros(2, 4, 8), None)
        self.assertEqual((found.class_index, found.class_values), ([], []))

    def test_fixture_images_follow_the_seed(self) -> None:
        self.assertTrue(torch.equal(fixture_images(3, 32, 1), fixture_images(3, 32, 1)))
        self.assertFalse(torch.equal(fixture_images(3, 32, 1), fixture_images(3, 32, 2)))


class Preprocess(unittest.TestCase):
    def setUp(self) -> None:
        self.entries = catalogue.load()
        self.images = fixture_images(2, 256, 5)

    def test_the_formula_of_the_families(self) -> None:
        unit = self.images.float() / 255
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        expected = {
            "dinov2-vit-b": F.interpolate((unit - mean) / std, 224, mode="bicubic"),
            "mae-vit-l": (unit - mean) / std,
            "pe-vit-l": F.interpolate(unit, (224, 224), mode="bilinear") * 2 - 1,
            "cradio-vit-b": unit,
            "sam2-vit-s": (F.interpolate(unit, 512, mode="bicubic") - mean) / std,
            "vgg": (unit - mean) / std,
        }
        for name, pixels in expected.items():
            entry = self.entries[name]
            found = preprocess(self.images, entry.preprocessing, entry.input_at(256))
            torch.testing.assert_close(found, pixels, rtol=0, atol=1e-5, msg=name)

    def test_dinov3_is_antialiased_where_the_size_changes(self) -> None:
        recipe = self.entries["dinov3-vit-b16"].preprocessing
        self.assertTrue(recipe.antialias)
        plain = dataclasses.replace(recipe, antialias=False)
        difference = preprocess(self.images, recipe, 128) - preprocess(self.images, plain, 128)
        self.assertGreater(difference.abs().max().item(), 0.1)

    def test_an_encoder_that_does_not_resize_refuses_other_sizes(self) -> None:
        with self.assertRaisesRegex(ValueError, "they are not resized"):
            preprocess(self.images, self.entries["mae-vit-l"].preprocessing, 224)


if __name__ == "__main__":
    unittest.main()
