# SPDX-License-Identifier: Apache-2.0
"""
The entry point of the command `hf-mixer`. It is installed beside the package, as `hf_mixer_console`.

`import hf_mixer` takes seconds, most of them for torch. The arguments are read before that: with the package found, but not
executed, as its subpackage `commands` is imported.
"""

import importlib.util
import sys


def main() -> None:
    spec = importlib.util.find_spec("hf_mixer")
    package = importlib.util.module_from_spec(spec)
    sys.modules["hf_mixer"] = package
    from hf_mixer.commands import read_command

    run, arguments = read_command(sys.argv[1:])
    spec.loader.exec_module(package)
    run(arguments)
