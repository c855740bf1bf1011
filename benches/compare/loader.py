"""Batches of cropped JPEGs in Python, by Pillow with ADM's crop, upstream's crop function or torchvision's crop."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

BATCH, SIDE = 32, 256


def adm_crop(image):
    """Halves the image while it stays large enough, resizes and crops it, like `data::center_crop`."""
    while min(image.size) >= 2 * SIDE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIDE / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def cropped(crop):
    return lambda image: torch.from_numpy(np.array(crop(image)).transpose(2, 0, 1))


def transform(case, checkout):
    if case == "loader_torchvision":
        from torchvision import transforms

        return transforms.Compose([transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.PILToTensor()])
    if checkout:
        sys.path.insert(0, os.path.join(checkout, "jit"))
        from util.crop import center_crop_arr

        return cropped(lambda image: center_crop_arr(image, SIDE))
    return cropped(adm_crop)


def batches(case, checkout):
    files = sorted(Path(os.environ["INPUTS"], "jpegs").iterdir())
    prepare = transform(case, checkout)
    order = iter(())

    def run():
        nonlocal order
        images = []
        while len(images) < BATCH:
            path = next(order, None)
            if path is None:
                order = iter(files)
                continue
            with Image.open(path) as image:
                images.append(prepare(image.convert("RGB")))
        return torch.stack(images)

    return run
