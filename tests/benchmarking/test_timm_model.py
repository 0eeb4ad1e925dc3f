import importlib
import sys

import pytest

from hf_mixer.benchmarking.timm_model import import_mlp_mixer


# What timm takes from torchvision on import
LIKE_TIMM = """
import torchvision.transforms as transforms
import torchvision.transforms.functional as F
from torchvision.datasets import MNIST, ImageFolder
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.functional import InterpolationMode

NAMES = {InterpolationMode.NEAREST: "nearest", InterpolationMode.BICUBIC: "bicubic"}


class Crop(transforms.RandomCrop):
    pass


class MlpMixer:
    pass
"""


def is_theirs(name: str) -> bool:
    return name.partition(".")[0] in ("timm", "torchvision")


@pytest.fixture
def timm(tmp_path, monkeypatch):
    """A package of that name; what is installed is out of sight."""
    (tmp_path / "timm" / "models").mkdir(parents=True)
    (tmp_path / "timm" / "__init__.py").touch()
    (tmp_path / "timm" / "models" / "__init__.py").touch()
    (tmp_path / "timm" / "models" / "mlp_mixer.py").write_text(LIKE_TIMM)
    monkeypatch.syspath_prepend(tmp_path)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if is_theirs(name)}
    import_mlp_mixer.cache_clear()
    yield tmp_path
    import_mlp_mixer.cache_clear()
    for name in filter(is_theirs, list(sys.modules)):
        del sys.modules[name]
    sys.modules.update(before)


def test_timm_is_imported_where_torchvision_is_missing(timm, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    mlp_mixer, reason = import_mlp_mixer()
    assert mlp_mixer.__name__ == "MlpMixer"
    assert "torchvision" in reason
    names = importlib.import_module("timm.models.mlp_mixer").NAMES
    assert sorted(names.values()) == ["bicubic", "nearest"]


def test_timm_is_imported_where_torchvision_is_broken(timm):
    (timm / "torchvision").mkdir()
    (timm / "torchvision" / "__init__.py").write_text("from . import ops\nraise RuntimeError('no\\noperator')\n")
    (timm / "torchvision" / "ops.py").touch()
    assert import_mlp_mixer()[1] == "no operator"
    # As before: what could be imported of it is there, and the rest fails as it did
    assert [name for name in sys.modules if name.startswith("torchvision")] == ["torchvision.ops"]
    with pytest.raises(RuntimeError, match="operator"):
        importlib.import_module("torchvision")


def test_a_torchvision_that_works_is_used(timm):
    (timm / "torchvision").mkdir()
    for name, text in (
        ("__init__", ""),
        ("datasets", "MNIST = ImageFolder = object"),
        ("ops/__init__", ""),
        ("ops/misc", "FrozenBatchNorm2d = object"),
        ("transforms/__init__", "RandomCrop = object"),
        ("transforms/functional", "class InterpolationMode:\n    NEAREST, BICUBIC = range(2)"),
    ):
        path = timm / "torchvision" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert import_mlp_mixer()[1] is None
    assert importlib.import_module("timm.models.mlp_mixer").NAMES == {0: "nearest", 1: "bicubic"}


def test_a_fault_of_timm_itself_is_not_hidden(timm, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (timm / "timm" / "models" / "mlp_mixer.py").write_text("import no_such_package")
    with pytest.raises(ImportError, match="no_such_package"):
        import_mlp_mixer()
