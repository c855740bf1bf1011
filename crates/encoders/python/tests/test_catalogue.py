import unittest

import torch
from export import build, catalogue
from export.checkpoints import CONVERSIONS
from export.errors import UsageError
from export.tables import RULES


class Catalogue(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.entries = catalogue.load()

    def test_has_the_study_and_eleven_more(self) -> None:
        self.assertEqual(len(self.entries), 38)
        self.assertEqual([entry.study for entry in self.entries.values()], [True] * 27 + [False] * 11)

    def test_every_network_of_timm_has_the_size_that_is_stated(self) -> None:
        for entry in self.entries.values():
            with self.subTest(entry.name), torch.device("meta"):
                encoder = build.build(entry)
                self.assertAlmostEqual(build.params_m(encoder), entry.params_m, delta=0.011)
                self.assertEqual(build.depth_of(encoder), entry.depth)

    def test_grids_are_one_token_for_16_pixels_of_the_image(self) -> None:
        for entry in self.entries.values():
            for resolution in entry.resolutions:
                self.assertEqual(entry.grid_at(resolution), resolution // 16, entry.name)

    def test_rules_that_it_names_exist(self) -> None:
        for entry in self.entries.values():
            self.assertIn(entry.build["checkpoint"], CONVERSIONS)
            self.assertIn(entry.build.get("table", "bilinear"), RULES)
            self.assertIn(entry.preprocessing.order, ("resize-first", "normalize-first"))
            self.assertIn(entry.preprocessing.resize, ("none", "bilinear", "bicubic"))
            self.assertTrue(entry.build["sources"] or entry.build["manual"])

    def test_only_upstreams_fixed_encoders_are_refused_at_512(self) -> None:
        fixed = {name for name, entry in self.entries.items() if 512 not in entry.resolutions}
        self.assertEqual({name.split("-")[0] for name in fixed}, {"mae", "siglip", "siglip2"})

    def test_a_comma_separates_names_and_repetitions_are_dropped(self) -> None:
        chosen = catalogue.select(self.entries, ["dino-vit-b, vgg", "vgg"])
        self.assertEqual([entry.name for entry in chosen], ["dino-vit-b", "vgg"])

    def test_an_unknown_name_is_an_error_with_the_nearest(self) -> None:
        with self.assertRaisesRegex(UsageError, r"'clip-vit-l'.*clip-vit-L"):
            catalogue.select(self.entries, ["clip-vit-l"])

    def test_files_at_512_have_their_own_name(self) -> None:
        entry = self.entries["dinov2-vit-b"]
        self.assertEqual((entry.file_stem(256), entry.file_stem(512)), ("dinov2-vit-b", "dinov2-vit-b@512"))


if __name__ == "__main__":
    unittest.main()
