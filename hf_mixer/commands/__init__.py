# SPDX-License-Identifier: Apache-2.0
"""
The subcommands of `hf-mixer`, a module each, imported only when it is called.

Every module has `parse_arguments(arguments=None)`, which ends the program after `--help`, `run(parsed)`, which takes what
that returned, and `main(arguments=None)`, which does both. What takes long to import, torch above all, is imported in `run`.
"""

import importlib
import importlib.metadata
import sys


COMMANDS = {
    "train": "train or fine-tune a Mixer on labelled images",
    "predict": "classify images",
    "evaluate": "measure a classifier on labelled images",
    "convert": "convert checkpoints of Google, timm or Edifice, and back",
    "export": "write a program for ONNX Runtime, OpenVINO, ExecuTorch or the browser",
    "publish": "put a trained model on the Hub",
    "demo": "show a trained model in the browser, or export it as a Space",
    "benchmark": "measure how fast Mixers run on this machine",
}
USAGE = """usage: hf-mixer COMMAND ...

MLP-Mixer for the Hugging Face ecosystem. `hf-mixer COMMAND --help` says more,
`hf-mixer --version` which release this is.

commands:"""


def read_command(arguments: list[str]):
    """
    Read the command line of `hf-mixer`.

    Returns:
        `tuple`: the function to run, and what to call it with.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
        for command, summary in COMMANDS.items():
            print(f"  {command:<10} {summary}")
        sys.exit(0 if arguments else 2)
    if name == "--version":
        print(f"hf_mixer {importlib.metadata.version('hf_mixer')}")
        sys.exit()
    if name not in COMMANDS:
        sys.exit(f"error: hf-mixer has no command {name!r}: expected one of {', '.join(COMMANDS)}")
    # argparse and HfArgumentParser name the program after this
    sys.argv = [f"hf-mixer {name}", *arguments[1:]]
    module = importlib.import_module(f"{__name__}.{name}")
    return module.run, module.parse_arguments(arguments[1:])
