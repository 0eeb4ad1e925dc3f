"""A small classifier, a photo and the Space made of them, for the tests of this room."""

import shutil

import pytest
from PIL import Image

from hf_mixer.demo.space import export_space
from tests.helpers import save_classifier
from tests.publishing.conftest import hub  # noqa: F401


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    overrides = {"image_size": 32, "patch_size": 2, "initializer_range": 1.0}
    folder = save_classifier(tmp_path_factory.mktemp("demo") / "my-mixer", ["cat", "dog", "owl"], **overrides)
    for leftover in ("optimizer.pt", "training_args.bin", ".env"):
        (folder / leftover).write_text("not for the Hub")
    return folder


@pytest.fixture(scope="session")
def photo(folder):
    path = folder.parent / "photo.JPG"
    Image.radial_gradient("L").convert("RGB").resize((80, 60)).save(path)
    return path


@pytest.fixture(scope="session")
def cifar(folder):
    """The folder of a model of three kinds of CIFAR-10 images, whose card names a license."""
    copy = shutil.copytree(folder, folder.parent / "cifar")
    (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    (copy / "training_run.json").write_text('{"dataset": {"name": "uoft-cs/cifar10"}}')
    return copy


@pytest.fixture(scope="session")
def space(folder, photo):
    export_space(folder.parent / "space", folder, examples=[photo])
    return folder.parent / "space"
