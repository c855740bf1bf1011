"""Whether a saved file is the network it was made from, on any device and for any batch."""

from pathlib import Path

import torch
from torch import Tensor

from .errors import ExportError

TOLERANCE = 1e-4
# bfloat16 keeps 8 bits; more than this is no rounding.
HALF_TOLERANCE = 0.15
BATCHES = (1, 2, 3)

Tokens = tuple[Tensor, Tensor | None]


def tokens(module: torch.nn.Module, images: Tensor) -> Tokens:
    """Patch tokens `[B, T, D]` and class token `[B, D]`, where there is one, in float32."""
    output = module(images)
    patch, class_token = output if isinstance(output, tuple) else (output, None)
    return patch.float(), None if class_token is None else class_token.float()


def inputs(size: int, batches: tuple[int, ...] = BATCHES) -> list[Tensor]:
    """Random preprocessed images `[B, 3, S, S]` of each batch size."""
    generator = torch.Generator().manual_seed(2512_10794)
    return [torch.randn(batch, 3, size, size, generator=generator) for batch in batches]


def check_shapes(found: Tokens, batch: int, count: int, width: int, class_token: bool) -> None:
    """Raises unless the tokens are what the catalogue says, and finite."""
    patch, class_tensor = found
    if patch.shape != (batch, count, width):
        raise ExportError(f"patch tokens are {tuple(patch.shape)}, expected {(batch, count, width)}")
    if (class_tensor is not None) != class_token:
        raise ExportError(f"there is {'no' if class_token else 'a'} class token, the catalogue says otherwise")
    if class_tensor is not None and class_tensor.shape != (batch, width):
        raise ExportError(f"the class token is {tuple(class_tensor.shape)}, expected {(batch, width)}")
    if not all(bool(tensor.isfinite().all()) for tensor in found if tensor is not None):
        raise ExportError("the tokens are not finite")


def check_graph(traced: torch.jit.ScriptModule) -> None:
    """Raises if an operation of the graph carries the device it was traced on."""
    graph = traced.inlined_graph  # its nodes live as long as this name
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        if str(node.output().type()) == "Device" and node.hasAttribute("value"):
            user = next((use.user for use in node.output().uses() if use.user.kind() != "prim::device"), None)
            if user is not None:
                raise ExportError(f"the traced graph is tied to the device it was made on, by {user.kind()}")


def compare(path: Path, images: list[Tensor], expected: list[Tokens]) -> tuple[torch.jit.ScriptModule, float]:
    """Loads `path` and returns it with its largest relative difference from `expected`."""
    loaded = torch.jit.load(path)
    largest = 0.0
    # As the Rust side runs it: without the optimiser that rewrites a module after its first calls.
    with torch.jit.optimized_execution(False):
        for batch, wanted in zip(images, expected, strict=True):
            largest = max(largest, relative_difference(tokens(loaded, batch), wanted))
    if not largest <= TOLERANCE:
        raise ExportError(f"the saved file differs from the Python module by {largest:.1e}, more than {TOLERANCE:.0e}")
    return loaded, largest


def half_difference(loaded: torch.jit.ScriptModule, images: Tensor, expected: Tokens) -> float:
    """Relative difference of the loaded file cast to bfloat16, which is spoilt by that."""
    loaded.to(torch.bfloat16)
    with torch.jit.optimized_execution(False):
        difference = relative_difference(tokens(loaded, images.to(torch.bfloat16)), expected, mean=True)
    if not difference <= HALF_TOLERANCE:
        raise ExportError(f"cast to bfloat16, the file differs from float32 by {difference:.1e}: it cannot be cast")
    return difference


def relative_difference(found: Tokens, expected: Tokens, mean: bool = False) -> float:
    """Largest (or root mean square) difference over the root mean square of the expected values."""
    largest = 0.0
    for left, right in zip(found, expected, strict=True):
        if left is None or right is None:
            if left is not right:
                return float("inf")
            continue
        if left.shape != right.shape:
            return float("inf")
        difference = (left - right).abs()
        size = difference.square().mean().sqrt() if mean else difference.max()
        largest = max(largest, (size / right.square().mean().sqrt()).item())
    return largest
