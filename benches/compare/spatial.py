"""Upstream's spatial metrics of the tokens that the Rust side wrote, and their differences from Rust's."""

import json
import os
import subprocess
import sys

import numpy as np
import torch

NAMES = ["lds", "cds", "srss", "rmsc"]
# Absolute tolerances of the golden tests; the relative tolerance is 1e-5 for all.
TOLERANCES = {"lds": 2e-6, "cds": 5e-7, "srss": 2e-6, "rmsc": 2e-6}


def inputs():
    folder = os.environ["INPUTS"]
    tokens = np.fromfile(os.path.join(folder, "tokens.f32"), "<f4").reshape(-1, 256, 768)
    masks = np.fromfile(os.path.join(folder, "masks.u8"), np.uint8).reshape(-1, 256)
    return torch.from_numpy(tokens), torch.from_numpy(masks).bool()


def metrics(checkout):
    sys.path.insert(0, checkout)
    from metrics.spatial_metrics import compute_spatial_metrics

    tokens, masks = inputs()
    return lambda: compute_spatial_metrics(tokens, masks)


def values(checkout):
    (found,) = metrics(checkout)().values()
    return torch.stack([found[name]["per_image"] for name in NAMES], 1).tolist()


def differences(commands, environment):
    """Prints the largest difference between Rust and upstream over the images, for each metric."""
    output = [
        subprocess.run(
            [*commands[name], "values", "spatial"], env=environment, stdout=subprocess.PIPE, check=True, text=True
        ).stdout
        for name in ["Rust", "upstream"]
    ]
    ours, theirs = (np.array(json.loads(text)) for text in output)
    print(
        "\n| metric | mean | largest difference | largest share of the goldens' tolerance |\n| --- | --- | --- | --- |"
    )
    for column, name in enumerate(NAMES):
        a, b = ours[:, column], theirs[:, column]
        assert (np.isnan(a) == np.isnan(b)).all(), f"{name}: not computed for the same images"
        error = np.abs(a - b)
        share = error / (TOLERANCES[name] + 1e-5 * np.abs(b))
        print(f"| {name} | {np.nanmean(b):.6f} | {np.nanmax(error):.1e} | {np.nanmax(share):.2f} |")
