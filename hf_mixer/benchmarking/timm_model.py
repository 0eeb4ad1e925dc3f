# SPDX-License-Identifier: Apache-2.0
"""timm's Mixer, also where timm cannot be imported because torchvision cannot."""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from torch import nn


class _AnyName(type):
    """The type of classes without content, which have any attribute: another such class."""

    def __getattr__(cls, name: str) -> "_AnyName":
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _StandIn(ModuleType):
    """A module that has any name."""

    def __getattr__(self, name: str) -> _AnyName:
        return getattr(_AnyName("StandIn", (), {}), name)


class _TorchvisionStandIns(MetaPathFinder, Loader):
    """Finds a stand-in for torchvision and for every module in it."""

    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self, is_package=True) if _is_torchvision(fullname) else None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def _is_torchvision(name: str) -> bool:
    return name.partition(".")[0] == "torchvision"


@contextmanager
def torchvision_stood_in() -> Iterator[None]:
    """Let modules import any name from torchvision. Afterwards it is again what it was before, missing or broken."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_torchvision(name)}
    finder = _TorchvisionStandIns()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in filter(_is_torchvision, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(before)


@functools.cache
def import_mlp_mixer() -> tuple[type[nn.Module], str | None]:
    """
    Return timm's `MlpMixer`, and `None`, or else why timm was imported without torchvision.

    timm imports torchvision for its data and for a norm. Its Mixer takes nothing from there, so it is the same network
    without.

    Raises:
        `ImportError`: timm is not installed.
    """
    name = "timm.models.mlp_mixer"
    if importlib.util.find_spec("timm") is None:
        raise ImportError("timm is not installed: pip install timm")
    try:
        return importlib.import_module(name).MlpMixer, None
    except ModuleNotFoundError as error:
        reason = f"there is no {error.name}"
    # A torchvision that was built for another torch raises a RuntimeError, an OSError or an AttributeError
    except Exception as error:
        reason = " ".join(str(error).split())
    with torchvision_stood_in():
        return importlib.import_module(name).MlpMixer, reason
