"""Computes FID with torch-fidelity and with pytorch-fid, for random weights and random images, as a reference for ours.

    pip install torch-fidelity pytorch-fid scipy
    PYTHONPATH=crates/encoders/python python crates/encoders/python/compare_fid.py FOLDER

Writes FOLDER/real and FOLDER/fake (1,000 images of 64 px each) and FOLDER/pretrained with the exported networks, and
prints the results of both packages. `runner evaluate FOLDER/fake --reference FOLDER/real` with
IREPA_ENCODERS=FOLDER/pretrained computes ours.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from export import inception
from export.exporter import Options
from export.reference import fixture_images
from PIL import Image

SIDE = 64
SETS = {"real": 1, "fake": 2}


def make_images(folder: Path, count: int) -> None:
    for name, seed in SETS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        images = fixture_images(count, SIDE, seed)
        if name == "fake":
            images = (images.float() * 0.8 + 30).to(torch.uint8)
        for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(folder / name / f"{index:06}.png")


def torch_fidelity(folder: Path, weights: Path) -> dict[str, float]:
    import torch_fidelity as package

    found = package.calculate_metrics(
        input1=str(folder / "fake"),
        input2=str(folder / "real"),
        cuda=False,
        fid=True,
        isc=True,
        isc_splits=1,
        kid=False,
        prc=True,
        prc_neighborhood=3,
        feature_extractor="inception-v3-compat",  # also for precision and recall
        feature_extractor_weights_path=str(weights),
        batch_size=20,
        cache=False,
        verbose=False,
    )
    return {key: float(value) for key, value in found.items()}


def pytorch_fid(folder: Path, weights: Path) -> float:
    from pytorch_fid import fid_score
    from pytorch_fid import inception as package

    state = torch.load(weights, weights_only=True)
    with mock.patch.object(package, "load_state_dict_from_url", lambda *_, **__: state):
        paths = [str(folder / name) for name in SETS]
        return float(np.real(fid_score.calculate_fid_given_paths(paths, 20, "cpu", 2048, num_workers=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="number of images per set; default: 1000")
    arguments = parser.parse_args()
    make_images(arguments.folder, arguments.count)
    pretrained = arguments.folder / "pretrained"
    for name in inception.FLAVOURS:
        inception.export(name, Options(out=pretrained, seed=0))
    weights = pretrained / "weights.pth"
    torch.save(inception.make(inception.FLAVOURS["inception"], 0, None).network.network.state_dict(), weights)
    with torch.no_grad():
        print(json.dumps({"torch-fidelity": torch_fidelity(arguments.folder, weights)}, indent=1), flush=True)
        print(json.dumps({"pytorch-fid": pytorch_fid(arguments.folder, weights)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
