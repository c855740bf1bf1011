"""Verifies that a saved file equals its network, on any device and for any batch size."""

from pathlib import Path

import torch
from torch import Tensor

from .errors import ExportError

TOLERANCE = 1e-4
# bfloat16 has 8 bits of precision; larger differences are not rounding errors.
HALF_TOLERANCE = 0.15
BATCHES = (1, 2, 3)

Tokens = tuple[Tensor, Tensor | None]


def tokens(module: torch.nn.Module, images: Tensor) -> Tokens:
    """Returns patch tokens `[B, T, D]` and, if present, the class token `[B, D]`, in float32."""
    output = module(images)
    patch, class_token = output if isinstance(output, tuple) else (output, None)
    return patch.float(), None if class_token is None else class_token.float()


def inputs(size: int, batches: tuple[int, ...] = BATCHES) -> list[Tensor]:
    """Returns random preprocessed images `[B, 3, S, S]` for each batch size."""
    generator = torch.Generator().manual_seed(2512_10794)
    return [torch.randn(batch, 3, size, size, generator=generator) for batch in batches]


def check_shapes(found: Tokens, batch: int, count: int, width: int, class_token: bool) -> None:
    """Raises `ExportError` unless the tokens have the declared shapes and are finite."""
    patch, class_tensor = found
    if patch.shape != (batch, count, width):
        raise ExportError(f"patch tokens are {tuple(patch.shape)}, expected {(batch, count, width)}")
    if (class_tensor is not None) != class_token:
        raise ExportError(f"the network returns {'no' if class_token else 'a'} class token, unlike its declaration")
    if class_tensor is not None and class_tensor.shape != (batch, width):
        raise ExportError(f"the class token is {tuple(class_tensor.shape)}, expected {(batch, width)}")
    if not all(bool(tensor.isfinite().all()) for tensor in found if tensor is not None):
        raise ExportError("the tokens are not finite")


def check_graph(traced: torch.jit.ScriptModule) -> None:
    """Raises `ExportError` if an operation of the graph contains the device it was traced on."""
    graph = traced.inlined_graph  # this reference keeps the nodes alive
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        if str(node.output().type()) == "Device" and node.hasAttribute("value"):
            user = next((use.user for use in node.output().uses() if use.user.kind() != "prim::device"), None)
            if user is not None:
                raise ExportError(f"the traced graph is tied to the device it was traced on, by {user.kind()}")


def compare(path: Path, images: list[Tensor], expected: list[Tokens]) -> tuple[torch.jit.ScriptModule, float]:
    """Loads `path` and returns the module and its largest relative difference from `expected`."""
    loaded = torch.jit.load(path)
    largest = 0.0
    # As in Rust, run without the optimiser that rewrites a module after its first calls.
    with torch.jit.optimized_execution(False):
        for batch, wanted in zip(images, expected, strict=True):
            largest = max(largest, relative_difference(tokens(loaded, batch), wanted))
    if not largest <= TOLERANCE:
        raise ExportError(f"the saved file differs from the Python module by {largest:.1e}, more than {TOLERANCE:.0e}")
    return loaded, largest


def half_difference(loaded: torch.jit.ScriptModule, images: Tensor) -> float:
    """Casts the loaded module to bfloat16, in place, and returns its relative difference."""
    with torch.jit.optimized_execution(False):
        expected = tokens(loaded, images)
        loaded.to(torch.bfloat16)
        difference = relative_difference(tokens(loaded, images.to(torch.bfloat16)), expected, mean=True)
    if not difference <= HALF_TOLERANCE:
        raise ExportError(f"after a cast to bfloat16 the tokens differ by {difference:.1e}: the file cannot be cast")
    return difference


def relative_difference(found: Tokens, expected: Tokens, mean: bool = False) -> float:
    """Returns the largest (or root mean square) difference, relative to the root mean square of the expected values."""
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
