"""Converts checkpoints of upstream's code to safetensors and back."""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import convert_checkpoint as convert

STATE = {"x_embedder.proj.weight": torch.arange(6.0).view(2, 3), "pos_embed": torch.ones(1, 4, 2)}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class Conversion(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def save(self, content: object) -> Path:
        path = self.folder / "checkpoint.pt"
        torch.save(content, path)
        return path

    def test_a_repa_checkpoint_survives_a_round_trip(self) -> None:
        heads = {"projectors.0.projection_layer.0.weight": torch.ones(2)}
        ema = {name: tensor * 0.5 for name, tensor in (STATE | heads).items()}
        content = {"model": STATE | heads, "ema": ema, "opt": {"state": {}}, "steps": 7}
        content["args"] = argparse.Namespace(model="SiT-B/2", output_dir=Path("exps"))
        written = convert.import_checkpoint(self.save(content), self.folder / "out")
        self.assertEqual([path.name for path in written], ["model.safetensors", "ema.safetensors"])
        self.assertTrue(same(load_file(self.folder / "out/ema.safetensors"), ema))
        source = json.loads((self.folder / "out/source.json").read_text())
        self.assertEqual((source["steps"], source["args"]["model"], source["parameters"]["ema"]), (7, "SiT-B/2", 16))
        convert.export_checkpoint(self.folder / "out", self.folder / "back.pt", "repa")
        back = torch.load(self.folder / "back.pt", weights_only=True)
        self.assertTrue(same(back["model"], STATE | heads) and same(back["ema"], ema))

    def test_wrappers_and_older_heads_are_renamed(self) -> None:
        old = {"module._orig_mod.projectors.1.2.bias": torch.ones(1), "module.pos_embed": torch.ones(2)}
        found = convert.state_dicts({"ema": old})["ema"]
        self.assertEqual(sorted(found), ["pos_embed", "projectors.1.projection_layer.2.bias"])

    def test_a_jit_checkpoint_survives_a_round_trip(self) -> None:
        net = {f"net.{name}": tensor for name, tensor in STATE.items()}
        second = {name: tensor + 1 for name, tensor in net.items()}
        content = {"model": net, "model_ema1": net, "model_ema2": second, "optimizer": {}, "epoch": 3}
        convert.import_checkpoint(self.save(content), self.folder / "out")
        self.assertTrue(same(load_file(self.folder / "out/model.safetensors"), STATE))
        convert.export_checkpoint(self.folder / "out", self.folder / "back.pth", "jit")
        back = torch.load(self.folder / "back.pth", weights_only=True)
        self.assertTrue(same(back["model_ema1"], net) and same(back["model_ema2"], second))

    def test_repa_e_keeps_autoencoder_and_discriminator(self) -> None:
        parts = {"model": STATE, "ema": STATE, "vae": {"quant_conv.bias": torch.ones(1)}, "discriminator": STATE}
        written = convert.import_checkpoint(self.save(parts | {"steps": 1}), self.folder / "out")
        self.assertEqual(len(written), 4)
        convert.export_checkpoint(self.folder / "out", self.folder / "back.pt", "repa-e")
        self.assertEqual(set(torch.load(self.folder / "back.pt", weights_only=True)), set(parts) | {"steps"})

    def test_repa_e_files_have_their_own_head_names_and_no_lecam_state(self) -> None:
        theirs = STATE | {"projectors.0.2.bias": torch.ones(3), "bn.running_mean": torch.zeros(4)}
        parts = {"model": theirs, "ema": theirs, "vae": STATE, "discriminator": STATE, "steps": 5}
        convert.import_checkpoint(self.save(parts), self.folder / "out")
        ours = load_file(self.folder / "out/model.safetensors")
        self.assertIn("projectors.0.projection_layer.2.bias", ours)
        lecam = {"ema_real_logits_mean": torch.ones(1), "ema_fake_logits_mean": torch.ones(1)}
        save_file(STATE | lecam, self.folder / "out/discriminator.safetensors")
        convert.export_checkpoint(self.folder / "out", self.folder / "back.pt", "repa-e")
        back = torch.load(self.folder / "back.pt", weights_only=True)
        self.assertTrue(same(back["model"], theirs) and same(back["discriminator"], STATE))
        (self.folder / "out/vae.safetensors").unlink()
        with self.assertRaisesRegex(convert.ConversionError, "vae.safetensors"):
            convert.export_checkpoint(self.folder / "out", self.folder / "back.pt", "repa-e")

    def test_a_bare_state_dict_is_the_average(self) -> None:
        convert.import_checkpoint(self.save(STATE), self.folder / "out")
        self.assertTrue(same(load_file(self.folder / "out/ema.safetensors"), STATE))

    def test_numpy_numbers_and_arrays_are_accepted(self) -> None:
        content = {"ema": STATE, "steps": numpy.int64(7), "epoch": numpy.int64(1)}
        content["args"] = argparse.Namespace(lr=numpy.float64(1e-4), name=numpy.str_("a"), sizes=numpy.arange(3))
        path = self.save(content)
        convert.import_checkpoint(path, self.folder / "out")
        source = json.loads((self.folder / "out/source.json").read_text())
        self.assertEqual((source["steps"], source["args"]["lr"]), (7, "0.0001"))
        # The same file with the module names of numpy 1.
        older = self.folder / "older.pt"
        with zipfile.ZipFile(path) as source_zip, zipfile.ZipFile(older, "w") as target:
            for name in source_zip.namelist():
                data = source_zip.read(name)
                target.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        self.assertIn(b"numpy.core.multiarray", older.read_bytes())
        convert.import_checkpoint(older, self.folder / "older")
        self.assertTrue(same(load_file(self.folder / "older/ema.safetensors"), STATE))

    def test_steps_may_be_a_tensor_and_settings_a_dictionary(self) -> None:
        content = {"ema": STATE, "steps": torch.tensor(5), "args": {"lr": 1e-4}}
        convert.import_checkpoint(self.save(content), self.folder / "out")
        source = json.loads((self.folder / "out/source.json").read_text())
        self.assertEqual((source["steps"], source["args"]), (5, {"lr": "0.0001"}))

    def test_a_failed_import_changes_no_file(self) -> None:
        out = self.folder / "out"
        convert.import_checkpoint(self.save({"model": STATE, "ema": STATE}), out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        # safetensors does not support the second file's dtype.
        bad = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2, dtype=torch.complex128)}}
        with contextlib.redirect_stderr(io.StringIO()) as output:
            self.assertEqual(convert.main(["import", str(self.save(bad)), str(out)]), 1)
        self.assertIn("checkpoint.pt", output.getvalue())
        self.assertEqual({path.name: path.read_bytes() for path in out.iterdir()}, before)

    def test_the_refused_global_is_named_with_the_real_torch(self) -> None:
        path = self.save({"ema": STATE, "run": io.StringIO})
        with contextlib.redirect_stderr(io.StringIO()) as output:
            self.assertEqual(convert.main(["import", str(path), str(self.folder / "out")]), 1)
        self.assertIn("_io.StringIO", output.getvalue())

    def test_bad_files_are_named(self) -> None:
        cut = self.save({"ema": STATE})
        cut.write_bytes(cut.read_bytes()[:100])
        text = self.folder / "text.pt"
        text.write_text("nothing")
        code = self.folder / "code.pt"
        torch.save({"ema": STATE, "run": io.StringIO}, code)
        empty = self.folder / "empty.pt"
        torch.save({"steps": 1}, empty)
        for path in (cut, text, code, empty, self.folder / "missing.pt"):
            with self.subTest(path.name), contextlib.redirect_stderr(io.StringIO()) as output:
                self.assertEqual(convert.main(["import", str(path), str(self.folder / "out")]), 1)
                self.assertIn(path.name if path != empty else "not a checkpoint", output.getvalue())
        with contextlib.redirect_stderr(io.StringIO()) as output:
            self.assertEqual(convert.main(["export", str(self.folder), str(self.folder / "x.pt")]), 1)
        self.assertIn("not a checkpoint folder", output.getvalue())
        save_file(STATE, self.folder / "model.safetensors")
        (self.folder / "ema.safetensors").write_bytes(b"rubbish")
        with contextlib.redirect_stderr(io.StringIO()) as output:
            self.assertEqual(convert.main(["export", str(self.folder), str(self.folder / "x.pt")]), 1)
        self.assertIn("ema.safetensors", output.getvalue())


if __name__ == "__main__":
    unittest.main()
