"""Downloads and reads published checkpoints."""

import errno
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from .catalogue import Entry
from .errors import ExportError

HUB = "https://huggingface.co"
LOG_IN = "then log in with `hf auth login` (or set HF_TOKEN) and run this again"
# Hosts that could not be reached. They are not tried again, because that takes half a minute per encoder.
_unreachable: set[str] = set()


def download(entry: Entry) -> tuple[list[Path], str]:
    """Downloads the first available source of `entry`; returns its files and its description."""
    sources = entry.build["sources"]
    if not sources:
        raise ExportError(f"no public download: {entry.build['manual']}, and pass it with --weights FILE")
    refusals = []
    for source in sources:
        try:
            if "hub" in source:
                return _from_hub(source["hub"], source["file"]), f"HF {source['hub']}"
            return [_from_url(source["url"])], source["url"]
        except ExportError as error:
            refusals.append(str(error))
    raise ExportError("; ".join(dict.fromkeys(refusals)))


def _from_hub(repository: str, file: str) -> list[Path]:
    from huggingface_hub import errors, hf_hub_download

    def get(name: str) -> Path:
        return Path(hf_hub_download(repository, name, local_files_only=HUB in _unreachable))

    try:
        try:
            return [get(file)]
        except errors.RemoteEntryNotFoundError:
            # Large models are split into several files, which an index lists.
            index = json.loads(get(f"{file}.index.json").read_text(encoding="utf-8"))
            return [get(name) for name in sorted(set(index["weight_map"].values()))]
    except errors.GatedRepoError as error:
        raise ExportError(
            f"access to {repository} must be requested: accept the licence on {HUB}/{repository}, {LOG_IN}"
        ) from error
    except (errors.RemoteEntryNotFoundError, KeyError, ValueError) as error:
        raise ExportError(f"{HUB}/{repository} has no {file}") from error
    except errors.RepositoryNotFoundError as error:
        raise ExportError(
            f"{HUB}/{repository} does not exist or is not public: request access there, {LOG_IN}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        _unreachable.add(HUB)
        raise ExportError(f"{HUB} cannot be reached, and {repository} is not in the download cache") from error
    except Exception as error:
        raise _network_error(f"{HUB}/{repository}", error) from error


def _from_url(url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except Exception as error:
        raise _network_error(url, error) from error
    return path


def _network_error(where: str, error: Exception) -> ExportError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ExportError(f"no space left on the disk for the download from {where}")
    reason = str(error).strip().splitlines()
    return ExportError(f"cannot download from {where}: {reason[0] if reason else type(error).__name__}")


def read(paths: list[Path]) -> dict[str, Any]:
    """Returns the contents of a checkpoint's files. If the format allows it, tensors are memory-mapped."""
    out: dict[str, Any] = {}
    for path in paths:
        out.update(_read(path))
    return out


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExportError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ExportError(f"{path} is not a complete safetensors file: {error}") from error
    zipped = zipfile.is_zipfile(path)
    if zipped and _is_torchscript(path):
        # OpenAI publishes CLIP in this format.
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        what = "contains more than tensors, or is not a PyTorch checkpoint"
        raise ExportError(f"{path} {what}: {_first_line(error)}") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ExportError(f"{path} is not a complete PyTorch checkpoint: {_first_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise ExportError(f"{path} contains a {type(checkpoint).__name__}, not a dictionary of tensors")
    return checkpoint


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
