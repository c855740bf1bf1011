import unittest

import torch
import torch.nn.functional as F
from export import tables
from timm.layers import resample_abs_pos_embed


def table(grid: int, prefix: int) -> torch.Tensor:
    return torch.randn(1, prefix + grid * grid, 8, generator=torch.Generator().manual_seed(grid))


class Tables(unittest.TestCase):
    def test_bicubic_antialiased_is_the_function_that_upstream_calls(self) -> None:
        for prefix, native, grid in ((1, 37, 16), (1, 14, 32), (0, 16, 32)):
            expected = resample_abs_pos_embed(table(native, prefix), [grid, grid], num_prefix_tokens=prefix)
            found = tables.resample(table(native, prefix), grid, prefix, "bicubic-antialiased")
            torch.testing.assert_close(found, expected, rtol=0, atol=0)

    def test_the_other_rules_are_plain_interpolation(self) -> None:
        image = table(14, 0).reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
        for rule in ("bicubic", "bilinear"):
            expected = F.interpolate(image, (16, 16), mode=rule).flatten(2).transpose(1, 2)
            torch.testing.assert_close(tables.resample(table(14, 0), 16, 0, rule), expected, rtol=0, atol=0)

    def test_prefix_rows_are_unchanged(self) -> None:
        found = tables.resample(table(24, 1), 16, 1, "bilinear")
        self.assertTrue(torch.equal(found[:, 0], table(24, 1)[:, 0]))

    def test_a_table_of_the_requested_grid_is_unchanged(self) -> None:
        self.assertTrue(torch.equal(tables.resample(table(16, 1), 16, 1, "bicubic-antialiased"), table(16, 1)))

    def test_resampling_twice_differs_from_resampling_once(self) -> None:
        twice = tables.resample_by_way_of(table(14, 1), [16, 32], 1, "bicubic-antialiased")
        once = tables.resample(table(14, 1), 32, 1, "bicubic-antialiased")
        self.assertGreater((twice - once).abs().max().item(), 1e-3)

    def test_half_precision_is_resampled_in_float32(self) -> None:
        half = table(14, 0).half()
        found = tables.resample(half, 16, 0, "bilinear")
        torch.testing.assert_close(found, tables.resample(half.float(), 16, 0, "bilinear"), rtol=0, atol=0)

    def test_a_table_that_is_not_square_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "not a square grid"):
            tables.grid_of(torch.zeros(1, 10, 4), 0)


if __name__ == "__main__":
    unittest.main()
