"""`import hf_mixer` registers classes. It changes nothing that belongs to others, and loads no more than the network."""

import ast
import importlib
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

from tests.new_processes import in_new_process


PACKAGE = Path(__file__).parent.parent / "hf_mixer"
LOADED = {
    PACKAGE / "__init__.py",
    PACKAGE / "compilation.py",
    PACKAGE / "hub_errors.py",
    PACKAGE / "utils.py",
    *PACKAGE.glob("*_mixer.py"),
    *PACKAGE.glob("checkpoints/*.py"),
}
LIBRARIES = {"PIL", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"}
# The tables behind the Auto classes, and the one in which `Trainer` looks up the task of a model
REGISTRIES = {
    "CONFIG_MAPPING",
    "IMAGE_PROCESSOR_MAPPING",
    "MODEL_FOR_BACKBONE_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING",
    "MODEL_MAPPING",
    "_model_mapping",
}


def contents(value) -> dict:
    """What a table of names or of registered classes holds."""
    if type(value).__module__.startswith("transformers.models.auto."):
        return dict(vars(value).get("_extra_content", {}))
    return dict(value) if type(value) in (dict, OrderedDict) else {}


def snapshot() -> dict[tuple[str, ...], tuple]:
    """Everything in the modules of the libraries, and in their classes, by its path."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in LIBRARIES and isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                found[module_name, name] = value, contents(value)
                if isinstance(value, type) and value.__module__ == module_name:
                    for attribute, member in list(vars(value).items()):
                        found[module_name, name, attribute] = member, contents(member)
    return found


def changes(before: dict, after: dict) -> set[str]:
    """The names of what is another object, or holds other objects, and of what a class has in addition."""
    names = set()
    for path, (value, table) in after.items():
        if path in before:
            old_value, old_table = before[path]
            same_table = table.keys() == old_table.keys() and all(table[key] is old_table[key] for key in table)
            if value is not old_value or not same_table:
                names.add(path[-1])
        elif len(path) == 3:
            names.add(path[-1])
    # Python adds these to a class at the first look at them
    return names - {"__annotations__"}


def import_and_meddle():
    """
    Import the package after the libraries that it imports, then patch one of these.

    Returns:
        `tuple`: the libraries, the modules that the import loaded, what it changed, and what the patch changed.
    """
    libraries = set()
    for file in LOADED:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0):
                exec(compile(ast.Module([node], []), file, "exec"), {})
                name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                libraries.add(name.partition(".")[0])
    before, modules = snapshot(), set(sys.modules)
    importlib.import_module("hf_mixer")
    after, loaded = snapshot(), set(sys.modules) - modules

    linear = sys.modules["torch"].nn.Linear
    linear.forward, linear.greeting = linear.reset_parameters, print
    return libraries - sys.stdlib_module_names, loaded, changes(before, after), changes(after, snapshot())


def test_import_registers_and_does_nothing_else():
    libraries, loaded, changed, patched = in_new_process(import_and_meddle)
    assert changed == REGISTRIES
    assert libraries == LIBRARIES
    names = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in LOADED}
    assert loaded == {name.removesuffix(".__init__") for name in names}
    # Had the import patched anything, this test would have seen it
    assert patched == {"forward", "greeting"}
