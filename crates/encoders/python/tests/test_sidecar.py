import dataclasses
import os
import tempfile
import tomllib
import unittest
import zipfile
from pathlib import Path

import torch
from export.sidecar import (
    Preprocessing,
    Reference,
    Sidecar,
    sha256_of,
    temporary,
    write_encoder,
    write_text,
    write_torchscript,
)
from torch import nn

SIDECAR = Sidecar(
    name="small",
    description='with "quotes" and é',
    weights="none",
    licence="MIT",
    grid=(4, 4),
    width=8,
    input_size=16,
    preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        nn.init.ones_(self.layer.weight)
        nn.init.ones_(self.layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def traced() -> torch.jit.ScriptModule:
    torch._C._jit_clear_class_registry()
    torch.jit._state._clear_class_state()
    return torch.jit.trace(Small().eval(), torch.zeros(2, 3))


class Sidecars(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def test_missing_values_are_omitted(self) -> None:
        found = tomllib.loads(SIDECAR.to_toml("00"))
        keys = "name description weights licence sha256 grid width class_token input_size preprocessing"
        self.assertEqual(list(found), keys.split())
        self.assertEqual(found["description"], SIDECAR.description)

    def test_a_full_sidecar_is_valid_toml_with_the_agreed_keys(self) -> None:
        full = dataclasses.replace(
            SIDECAR,
            family="Small",
            gated=False,
            prefix_tokens=1,
            params_m=0.01,
            depth=1,
            dtype="float32",
            resolution=256,
            input_sizes={"256": 16, "512": 32},
            reference=Reference([0, 1], [0.5, -1e-12], [], []),
        )
        found = tomllib.loads(full.to_toml("00"))
        keys = (
            "name description family weights licence gated sha256 grid width class_token prefix_tokens params_m depth "
            "dtype resolution input_size input_sizes preprocessing reference"
        )
        self.assertEqual(list(found), keys.split())
        self.assertEqual(found["input_sizes"], {"256": 16, "512": 32})
        self.assertEqual(found["reference"]["patch"], [0.5, -1e-12])
        self.assertEqual(list(found["reference"]), ["patch_index", "patch", "class_index", "class"])

    def test_values_that_toml_does_not_have_are_refused(self) -> None:
        broken = dataclasses.replace(SIDECAR, reference=Reference([0], [float("nan")]))
        with self.assertRaises(ValueError):
            broken.to_toml("00")

    def test_the_written_file_loads_and_has_its_checksum(self) -> None:
        path = write_encoder(traced(), SIDECAR, self.folder)
        loaded = torch.jit.load(path)
        self.assertTrue(torch.equal(loaded(torch.ones(5, 3)), torch.full((5, 3), 4.0)))
        self.assertEqual(tomllib.loads(path.with_suffix(".toml").read_text())["sha256"], sha256_of(path))
        self.assertEqual(sorted(found.name for found in self.folder.iterdir()), ["small.pt", "small.toml"])

    def test_bytes_do_not_depend_on_the_files_name(self) -> None:
        for name in ("a.pt", "another.pt"):
            write_torchscript(traced(), self.folder / name)
        self.assertEqual((self.folder / "a.pt").read_bytes(), (self.folder / "another.pt").read_bytes())

    def test_records_are_stored_without_paths_of_this_machine(self) -> None:
        path = self.folder / "a.pt"
        write_torchscript(traced(), path)
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
        self.assertTrue(all(record.compress_type == zipfile.ZIP_STORED for record in records))
        self.assertFalse([record.filename for record in records if record.filename.endswith(".debug_pkl")])
        self.assertNotIn(__file__.encode(), path.read_bytes())

    def test_a_failure_leaves_no_file(self) -> None:
        with self.assertRaises(OSError), temporary(self.folder / "a.pt") as partial:
            partial.write_bytes(b"half")
            raise OSError("disk full")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_temporary_files_of_a_killed_process_are_removed(self) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        left = self.folder / f".a.toml.{child}.tmp"
        left.write_text("half")
        write_text(self.folder / "a.toml", "whole")
        self.assertEqual([found.name for found in self.folder.iterdir()], ["a.toml"])


if __name__ == "__main__":
    unittest.main()
