# SPDX-License-Identifier: Apache-2.0
"""
The entry point of the command `hf-mixer`. It is installed beside the package, as `hf_mixer_console`, also where the package
is installed as editable: what may change belongs into `hf_mixer/commands/__init__.py`.

`import hf_mixer` takes seconds, most of them for torch. Therefore the arguments are read, and `--help` is answered, before
the code of `hf_mixer/__init__.py` runs.
"""

import importlib.util
import sys


def main():
    spec = importlib.util.find_spec("hf_mixer")
    package = importlib.util.module_from_spec(spec)
    sys.modules["hf_mixer"] = package
    from hf_mixer.commands import read_command

    run, parsed = read_command(sys.argv[1:])
    spec.loader.exec_module(package)
    run(parsed)
