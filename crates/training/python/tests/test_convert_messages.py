"""The converter's messages for checkpoints that it cannot read, tested with a stub instead of torch."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CRATE = Path(__file__).resolve().parents[2]
CASE = CRATE / "tests/data/cases/18-numpy-scalar"


class Messages(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.out = Path(scratch.name) / "out"

    def convert(self, case: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"CASE": case, "PYTHONPATH": str(CASE / "stub"), "PYTHONDONTWRITEBYTECODE": "1"}
        program = CRATE / "python/convert_checkpoint.py"
        command = [sys.executable, str(program), "import", str(CASE / "x.pt"), str(self.out)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def test_the_global_that_was_refused_is_named(self) -> None:
        done = self.convert("numpy")
        self.assertEqual(done.returncode, 1, done.stderr)
        for words in ("x.pt", "numpy._core.multiarray.scalar", "save them again"):
            self.assertIn(words, done.stderr)
        # One line, without the advice to trust the file.
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertNotIn("two options", done.stderr)
        self.assertFalse(self.out.exists())

    def test_settings_and_steps_of_other_types_are_accepted(self) -> None:
        for case, args in (("dict", {"lr": "0.0001"}), ("tensorstep", None)):
            with self.subTest(case):
                done = self.convert(case)
                self.assertEqual(done.returncode, 0, done.stderr)
                source = json.loads((self.out / "source.json").read_text())
                self.assertEqual(source["args"], args)
                self.assertEqual(
                    {path.name for path in self.out.iterdir()}, {"model.safetensors", "ema.safetensors", "source.json"}
                )


if __name__ == "__main__":
    unittest.main()
