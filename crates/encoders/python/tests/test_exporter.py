"""Complete exports of small networks, and the command line."""

import contextlib
import dataclasses
import errno
import io
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

import torch
from export import __main__ as command
from export import build, catalogue, checkpoints, exporter, sources
from export.errors import ExportError
from export.exporter import Options
from export.isolated import reason
from export.preprocess import preprocess
from export.reference import reference_images
from export.sidecar import sha256_of
from safetensors.torch import load_file, save_file

ENTRIES = catalogue.load()
DINO = ENTRIES["dino-vit-b"]


def export(entry: catalogue.Entry, options: Options) -> exporter.Outcome:
    exporter.check(entry, options)
    return exporter.kept(entry, options) or exporter.export(entry, options, exporter.checkpoint(entry, options))


class Scratch(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)


class Exports(Scratch):
    def options(self, **changes: object) -> Options:
        return Options(**({"out": self.folder, "seed": 0, "depth": 1} | changes))

    def test_the_files_match_the_sidecar(self) -> None:
        outcome = export(DINO, self.options(fixtures=True))
        self.assertEqual((outcome.status, outcome.difference), ("written", 0.0))
        path = self.folder / "dino-vit-b.pt"
        found = tomllib.loads(path.with_suffix(".toml").read_text())
        self.assertEqual(found["sha256"], sha256_of(path))
        self.assertEqual((found["depth"], found["weights"], found["grid"]), (1, "random, seed 0", [16, 16]))
        with torch.no_grad():
            patch, class_token = torch.jit.load(path)(preprocess(reference_images(256), DINO.preprocessing, 256))
        reference = found["reference"]
        for tensor, key in ((patch, "patch"), (class_token, "class")):
            expected = torch.tensor(reference[key])
            torch.testing.assert_close(tensor.reshape(-1)[reference[f"{key}_index"]], expected, rtol=1e-4, atol=1e-5)
        fixtures = load_file(self.folder / "dino-vit-b.fixtures.safetensors")
        self.assertEqual(fixtures["patch_5"].shape, (5, 256, 768))
        self.assertEqual((fixtures["images_1"].dtype, fixtures["class_1"].shape), (torch.uint8, (1, 768)))

    def test_a_file_is_kept_while_it_matches_the_options(self) -> None:
        export(DINO, self.options())
        self.assertEqual(export(DINO, self.options()).status, "kept")
        for changes in ({"seed": 1}, {"seed": 0, "depth": 2}, {"force": True}):
            self.assertEqual(export(DINO, self.options(**changes)).status, "written", changes)
        (self.folder / "dino-vit-b.pt").write_bytes(b"cut short")
        self.assertEqual(export(DINO, self.options()).status, "written")

    def test_fixtures_of_other_weights_are_removed(self) -> None:
        fixtures = self.folder / "dino-vit-b.fixtures.safetensors"
        export(DINO, self.options(fixtures=True))
        self.assertTrue(fixtures.exists())
        export(DINO, self.options(seed=1))
        self.assertFalse(fixtures.exists())

    def test_weights_of_a_file(self) -> None:
        entry = dataclasses.replace(DINO, depth=1)
        encoder = build.build(DINO, depth=1)
        build.randomise(encoder, 4)
        state = dict(encoder.network.state_dict()) | {"pos_embed": torch.randn(1, 197, 768)}
        checkpoint = self.folder / "dino.safetensors"
        save_file(state, checkpoint)
        with mock.patch.object(exporter.build, "build", lambda *_: build_one(DINO)):
            outcome = export(entry, Options(self.folder / "out", weights=checkpoint))
            self.assertEqual(outcome.status, "written")
            self.assertEqual(export(entry, Options(self.folder / "out", weights=checkpoint)).status, "kept")
        weights = tomllib.loads((self.folder / "out/dino-vit-b.toml").read_text())["weights"]
        self.assertEqual(weights, f"file dino.safetensors, SHA-256 {sha256_of(checkpoint)}")

    def test_resolutions_that_upstream_does_not_run_are_refused(self) -> None:
        with self.assertRaisesRegex(ExportError, "at 256 px only"):
            export(ENTRIES["siglip-vit-b"], self.options(resolution=512))

    def test_a_failed_check_leaves_no_file(self) -> None:
        with mock.patch.object(exporter.verify, "TOLERANCE", -1.0), self.assertRaises(ExportError):
            export(DINO, self.options())
        self.assertEqual(list(self.folder.iterdir()), [])


def build_one(entry: catalogue.Entry, original=build.build) -> build.Encoder:
    return original(entry, 256, 1)


class Networks(unittest.TestCase):
    def test_periods_of_dinov3_are_rounded(self) -> None:
        rope = build.build(ENTRIES["dinov3-vit-b16"], depth=1).network.rope
        self.assertTrue(torch.equal(rope.periods, rope.periods.bfloat16().float()))
        self.assertEqual(rope.get_embed([16, 16]).shape[0], 256)

    def test_random_weights_follow_seed_and_name_and_leave_nothing_at_zero(self) -> None:
        first, second = (build.build(DINO, depth=depth) for depth in (1, 2))
        for encoder in (first, second):
            build.randomise(encoder, 9)
        for (name, left), right in zip(first.named_parameters(), first.parameters(), strict=True):
            self.assertTrue(torch.equal(left, second.get_parameter(name)), name)
            self.assertGreater(right.abs().mean().item(), 1e-3, name)

    def test_every_stage_keeps_a_block(self) -> None:
        blocks = build.build(ENTRIES["sam2-vit-s"], depth=2).network.blocks
        self.assertEqual(len(blocks), 7)
        self.assertEqual([block.window_size for block in blocks].count((0, 0)), 1)

    def test_radio_normalises_its_input(self) -> None:
        encoder = build.build(ENTRIES["cradio-vit-b"], depth=1)
        build.randomise(encoder, 0)
        grey = encoder.mean.expand(1, 3, 256, 256)
        with torch.no_grad():
            self.assertTrue(torch.equal(encoder(grey), encoder.network.forward_features(torch.zeros_like(grey))[:, 8:]))

    def test_radio_takes_the_statistics_of_its_file(self) -> None:
        encoder = build.build(ENTRIES["cradio-vit-b"], depth=1)
        before = encoder.std.clone()
        rounded = {"radio_model.input_conditioner.norm_mean": torch.tensor([[[0.5]], [[0.25]], [[0.125]]]).half()}
        encoder.take_statistics(checkpoints.input_statistics(rounded))
        self.assertEqual(encoder.mean.flatten().tolist(), [0.5, 0.25, 0.125])
        self.assertTrue(torch.equal(encoder.std, before))
        with self.assertRaisesRegex(ExportError, "1 values, not 3"):
            encoder.take_statistics({"mean": torch.zeros(1)})


class Sources(Scratch):
    def test_a_checkpoint_with_code_in_it_is_not_run(self) -> None:
        path = self.folder / "a.pth"
        torch.save({"model": Path("x")}, path)
        with self.assertRaisesRegex(ExportError, "contains more than tensors"):
            sources.read([path])

    def test_a_file_cut_short_is_refused(self) -> None:
        for name in ("a.safetensors", "a.pth"):
            path = self.folder / name
            path.write_bytes(b"PK\x03\x04 and no more")
            with self.assertRaises(ExportError):
                sources.read([path])

    def test_several_files_are_one_checkpoint(self) -> None:
        for name in "ab":
            save_file({name: torch.zeros(2)}, self.folder / f"{name}.safetensors")
        self.assertEqual(set(sources.read(sorted(self.folder.iterdir()))), {"a", "b"})

    def test_a_torchscript_archive_is_read_too(self) -> None:
        path = self.folder / "clip.pt"
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        self.assertEqual(set(sources.read([path])), {"weight", "bias"})

    def test_without_a_source_the_error_says_how_to_get_the_file(self) -> None:
        with self.assertRaisesRegex(ExportError, "vitl.pth.tar.*--weights"):
            sources.download(ENTRIES["mocov3-vit-l"])

    def test_a_gated_repository_has_its_own_error(self) -> None:
        from huggingface_hub import errors

        refusal = errors.GatedRepoError.__new__(errors.GatedRepoError)
        with (
            mock.patch("huggingface_hub.hf_hub_download", side_effect=refusal),
            self.assertRaisesRegex(ExportError, "accept the licence on https://huggingface.co/timm/.*hf auth login"),
        ):
            sources.download(DINO)

    def test_the_next_source_is_tried(self) -> None:
        with (
            mock.patch.object(sources, "_from_hub", side_effect=ExportError("gone")),
            mock.patch.object(sources, "_from_url", return_value=Path("mae.pth")),
        ):
            self.assertEqual(sources.download(ENTRIES["mae-vit-l"])[0], [Path("mae.pth")])


class CommandLine(Scratch):
    def run_main(self, *arguments: str) -> tuple[int, str, str]:
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = command.main([*arguments, "--out", str(self.folder)])
        return code, out.getvalue(), error.getvalue()

    def test_invalid_usage_exits_with_2_and_a_reason(self) -> None:
        wrong = {
            ("dinov2-vit-x",): "nearest names are dinov2-vit-",
            (): "give the names",
            ("vgg", "--depth", "2"): "needs --random-weights",
            ("vgg,dino-vit-b", "--weights", "x.pt"): "one encoder",
            ("vgg", "--weights", "x.pt", "--random-weights"): "exclude each other",
            ("--all", "vgg"): "takes no names",
            ("dino-vit-b", "--random-weights", "--depth", "13"): "has 12 blocks",
            ("mae-vit-l", "--resolution", "512"): "at 256 px only",
        }
        for arguments, message in wrong.items():
            code, _, error = self.run_main(*arguments)
            self.assertEqual(code, 2, arguments)
            self.assertIn(message, error)

    def test_continues_after_a_failure_and_exits_with_1(self) -> None:
        outcomes = [ExportError("gated"), exporter.Outcome("written", 3 << 20, 0.0, 1e-3)]
        with mock.patch("export.isolated.export_isolated", side_effect=outcomes):
            code, out, _ = self.run_main("vgg,dino-vit-b", "--random-weights")
        self.assertEqual(code, 1)
        lines = out.splitlines()
        self.assertEqual(lines[0].split()[:3], ["name", "status", "size"])
        self.assertTrue(lines[1].startswith("vgg ") and lines[1].endswith("gated"))
        self.assertEqual(lines[2].split()[:4], ["dino-vit-b", "written", "3.0", "MiB"])

    def test_bytes_do_not_depend_on_what_is_exported_before(self) -> None:
        digests = []
        for names in ("dino-vit-b", "dinov3-vit-b16,dino-vit-b"):
            code, *_ = self.run_main(names, "--random-weights", "--depth", "1", "--force")
            self.assertEqual(code, 0)
            digests.append(sha256_of(self.folder / "dino-vit-b.pt"))
        self.assertEqual(*digests)

    def test_reasons_are_one_line(self) -> None:
        self.assertIn("no space left", reason(OSError(errno.ENOSPC, "full")))
        self.assertIn("package timm is missing: pip install", reason(ModuleNotFoundError("no", name="timm")))
        self.assertIn("not enough memory", reason(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
        self.assertEqual(reason(RuntimeError("two\nlines")), "RuntimeError: two lines")

    def test_lists_the_names(self) -> None:
        code, out, _ = self.run_main("--list")
        self.assertEqual((code, out.split()), (0, list(ENTRIES)))


if __name__ == "__main__":
    unittest.main()
