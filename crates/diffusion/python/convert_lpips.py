"""Writes the safetensors file of LPIPS weights that `diffusion::repa_e::Lpips::load` reads.

    python crates/diffusion/python/convert_lpips.py --out lpips.safetensors

Downloads VGG16's ImageNet weights (torchvision) and the linear heads of LPIPS
(richzhang/PerceptualSimilarity, BSD licence), or reads them from `--vgg` and `--heads`. Needs torch and
safetensors.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
HEADS_URL = "https://heibox.uni-heidelberg.de/f/607503859c864bc1b30b/?dl=1"
HEADS_MD5 = "d507d7349b931f0638a25a48a722f98a"

# Positions of the convolutions in torchvision's `vgg16().features`, per slice.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def convert(vgg: dict[str, Tensor], heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Builds the state dict of upstream's LPIPS module from torchvision's VGG16 and the heads of LPIPS."""
    state = {
        "scaling_layer.shift": torch.tensor(SHIFT).view(1, 3, 1, 1),
        "scaling_layer.scale": torch.tensor(SCALE).view(1, 3, 1, 1),
    }
    for number, positions in enumerate(SLICES):
        for position in positions:
            for part in ("weight", "bias"):
                name = f"net.slice{number + 1}.{position}.{part}"
                state[name] = vgg[f"features.{position}.{part}"]
        name = f"lin{number}.model.1.weight"
        state[name] = heads[name]
    return {name: tensor.contiguous().float() for name, tensor in state.items()}


def fetch(url: str) -> Path:
    """Downloads a file to torch's cache, unless it is there already."""
    name = "lpips_vgg.pth" if url == HEADS_URL else url.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--vgg", type=Path, help="path of torchvision's vgg16-397923af.pth")
    parser.add_argument("--heads", type=Path, help="path of vgg.pth of LPIPS, version 0.1")
    args = parser.parse_args()

    heads = args.heads or fetch(HEADS_URL)
    if hashlib.md5(heads.read_bytes()).hexdigest() != HEADS_MD5:
        parser.error(f"{heads} is not the vgg.pth of LPIPS: its MD5 is not {HEADS_MD5}")
    vgg = args.vgg or fetch(VGG_URL)
    state = convert(
        torch.load(vgg, map_location="cpu", weights_only=True),
        torch.load(heads, map_location="cpu", weights_only=True),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out)
    print(f"{args.out}: {len(state)} tensors")


if __name__ == "__main__":
    main()
