# SPDX-License-Identifier: Apache-2.0
"""Files of packages from the npm registry, pinned by their checksums."""

import base64
import hashlib
import os
import shutil
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import cached_assets_path
from huggingface_hub.constants import is_offline_mode

from ..utils import written_whole


REGISTRY = "https://registry.npmjs.org"
# As npm itself names it; it also reads the name in capitals
REGISTRY_VARIABLE = "npm_config_registry"
TIMEOUT = 60  # seconds without an answer


@dataclass(frozen=True)
class NpmPackage:
    """
    One version of a package on npm.

    Args:
        name (`str`), version (`str`):
            As in `npm install name@version`.
        license (`str`):
            As its `package.json` names it.
        sha512 (`str`):
            The checksum of its archive, in base64, as `npm view name@version dist.integrity` prints it after `sha512-`.
        files (`tuple[str, ...]`):
            The files that are taken from it, as paths in the package.
    """

    name: str
    version: str
    license: str
    sha512: str
    files: tuple[str, ...]

    @property
    def url(self) -> str:
        registry = os.environ.get(REGISTRY_VARIABLE) or os.environ.get(REGISTRY_VARIABLE.upper()) or REGISTRY
        return f"{registry.rstrip('/')}/{self.name}/-/{self.name.split('/')[-1]}-{self.version}.tgz"

    @property
    def path(self) -> Path:
        """Where its archive is kept, in the cache of `huggingface_hub`."""
        return cached_assets_path("hf_mixer", "npm") / self.url.split("/")[-1]

    def check(self, path: Path, source: str | Path) -> None:
        """Refuse an archive at `path`, from `source`, that is another one than the pinned."""
        checksum = hashlib.sha512(path.read_bytes()).digest()
        if base64.b64encode(checksum).decode() != self.sha512:
            raise ValueError(
                f"{source} is not {self.name} {self.version}, or is damaged: its SHA-512 checksum is another one. Remove "
                f"{self.path} if it is there, and see that {REGISTRY_VARIABLE} names a registry that you trust"
            )

    def download(self) -> Path:
        """
        Return the path of its archive, which is downloaded unless it is in the cache.

        Raises:
            `ValueError`: it cannot be downloaded, or has another checksum.
        """
        path, url = self.path, self.url
        if path.is_file():
            self.check(path, path)
            return path
        if is_offline_mode():
            raise ValueError(f"{url} is needed, and HF_HUB_OFFLINE is set: unset it, or put the file there as {path}")
        with written_whole(path) as unfinished:
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT) as response, unfinished.open("wb") as file:
                    shutil.copyfileobj(response, file)
            except OSError as error:
                raise ValueError(
                    f"cannot download {url} ({error}): connect to the network, set {REGISTRY_VARIABLE} to a mirror, or put "
                    f"the file there as {path}"
                ) from error
            self.check(unfinished, url)
        return path

    def copy_files(self, directory: Path) -> None:
        """Copy its files into an existing directory, without their folders; see `download` for the errors."""
        with tarfile.open(self.download()) as archive:
            for name in self.files:
                # npm puts everything into this folder
                content = archive.extractfile(f"package/{name}")
                with content, (directory / Path(name).name).open("wb") as file:  # type: ignore[union-attr]
                    shutil.copyfileobj(content, file)  # type: ignore[arg-type]
