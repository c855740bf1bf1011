"""Compares the readers of data sets with `datasets` and `webdataset` on many small images.

    python3 -m venv VENV && VENV/bin/pip install datasets pillow pyarrow webdataset
    VENV/bin/python benches/compare/reader.py FOLDER [--images N] [--reads N]

Writes the same images in each format into FOLDER (12 GB for the default number), unless it has them already, runs each
reader in a process of its own, and prints a table in Markdown. Each reader runs twice: the second run shows what a
cache saves. The images are read in random order on one thread. `webdataset` reads in the order of the files and
shuffles in a buffer.
"""

import argparse
import functools
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SHARDS = 260
CLASSES = 1000
DISTINCT = 300


@functools.cache
def jpegs():
    """Distinct JPEGs of 32 x 32 pixels with at most 1,000 bytes."""
    from PIL import Image

    generator = random.Random(0)
    files = []
    while len(files) < DISTINCT:
        image = Image.frombytes("RGB", (8, 8), generator.randbytes(192)).resize((32, 32), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=75)
        if file.tell() <= 1000:
            files.append(file.getvalue())
    return files


def rows(shard, images):
    """The indices of the samples of a shard."""
    return range(shard * images // SHARDS, (shard + 1) * images // SHARDS)


def write_shard(folder, shard, images):
    """Writes the samples of a shard in each format."""
    import datasets
    import pyarrow.parquet

    files = jpegs()
    indices = rows(shard, images)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"class {i}" for i in range(CLASSES)])}
    )
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": files[i % DISTINCT], "path": f"{i:07}.jpg"} for i in indices],
            "label": [i % CLASSES for i in indices],
        },
        features=features,
    )
    name = f"train-{shard:05}-of-{SHARDS:05}"
    table.to_parquet(folder / "parquet" / "data" / f"{name}.parquet")
    pyarrow.parquet.write_table(
        table.data.table, folder / "snappy" / "data" / f"{name}.parquet", row_group_size=100, compression="snappy"
    )
    with tarfile.open(folder / "tar" / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in indices:
            for extension, content in ("cls", str(i % CLASSES).encode()), ("jpg", files[i % DISTINCT]):
                member = tarfile.TarInfo(f"{i:07}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for i in indices:
        (folder / "images" / f"{i % CLASSES:04}" / f"{i:07}.jpg").write_bytes(files[i % DISTINCT])


def write(folder, images):
    if (folder / "complete").exists():
        return
    for name in "parquet/data", "snappy/data", "tar", "cache":
        (folder / name).mkdir(parents=True, exist_ok=True)
    for label in range(CLASSES):
        (folder / "images" / f"{label:04}").mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_shard, *zip(*((folder, shard, images) for shard in range(SHARDS)), strict=True)))
    (folder / "complete").touch()


def open_parquet(folder, name):
    import datasets

    files = str(folder / name / "data" / "*.parquet")
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    return len(data), lambda index: data[index]["image"].convert("RGB")


def open_images(folder):
    """As `torchvision.datasets.ImageFolder`: walks the folders and decodes with Pillow."""
    from PIL import Image

    samples = []
    for label, name in enumerate(sorted(entry.name for entry in os.scandir(folder / "images") if entry.is_dir())):
        for root, _, names in sorted(os.walk(folder / "images" / name)):
            samples += [(os.path.join(root, name), label) for name in sorted(names) if name.endswith(".jpg")]

    def read(index):
        with Image.open(samples[index][0]) as image:
            return image.convert("RGB")

    return len(samples), read


def open_tar(folder):
    import webdataset

    files = sorted(str(path) for path in (folder / "tar").iterdir())
    stream = webdataset.WebDataset(files, shardshuffle=len(files)).shuffle(5000).decode("pil").to_tuple("jpg", "cls")
    samples = iter(stream)
    next(samples)
    return None, lambda _: next(samples)


READERS = {
    "datasets": lambda folder: open_parquet(folder, "parquet"),
    "folder": open_images,
    "webdataset": open_tar,
}


def measure(folder, reader, reads):
    """Runs a Python reader in this process."""

    def mib():
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    before, start = mib(), time.perf_counter()
    count, read = READERS[reader](folder)
    seconds, opened = time.perf_counter() - start, mib()
    order = random.Random(0).sample(range(count), reads) if count else range(reads)
    start = time.perf_counter()
    for index in order:
        read(index).load() if count else read(index)
    rate = reads / (time.perf_counter() - start)
    print(json.dumps({"open_s": seconds, "mib": [before, opened, mib()], "images_per_s": rate}))


def run(command):
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder, reads = arguments.folder, arguments.reads
    if arguments.reader:
        measure(folder, arguments.reader, reads)
        return
    write(folder, arguments.images)
    subprocess.run(["cargo", "build", "--release", "-p", "data", "--example", "reader"], check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    # What an earlier run has left would make the first opening a second one.
    (folder / "images" / ".irepa-index").unlink(missing_ok=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    ours = [target / "release" / "examples" / "reader"]
    theirs = [sys.executable, __file__, folder, "--reads", str(reads), "--reader"]
    cases = [
        ("Parquet, `datasets` 5", "ours", [*ours, folder / "parquet", "train", str(reads)]),
        ("Parquet, `datasets` 5", "`datasets`", [*theirs, "datasets"]),
        ("Parquet, Snappy, 100 rows per group", "ours", [*ours, folder / "snappy", "train", str(reads)]),
        ("tar", "ours", [*ours, folder / "tar", "train", str(reads)]),
        ("tar", "`webdataset`", [*theirs, "webdataset"]),
        ("image files", "ours", [*ours, folder / "images", "", str(reads)]),
        ("image files", "`os.walk` and Pillow", [*theirs, "folder"]),
    ]
    print("| format | reader | opening, s (first, second) | memory, MiB (opened, at the end) | images per s |")
    print("| --- | --- | --- | --- | --- |")
    for form, reader, command in cases:
        first, second = run(command), run(command)
        before, opened, end = second["mib"]
        seconds = f"{first['open_s']:.2f}, {second['open_s']:.2f}"
        print(
            f"| {form} | {reader} | {seconds} | {opened - before:.0f}, {end - before:.0f} "
            f"| {second['images_per_s']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
