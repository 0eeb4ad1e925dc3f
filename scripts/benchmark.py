# SPDX-License-Identifier: Apache-2.0
"""The command `hf-mixer benchmark`, for `accelerate launch`, `torchrun` and jobs that take a file."""

import runpy
from pathlib import Path


COMMAND = Path(__file__).resolve().parent.parent / "hf_mixer" / "commands" / "benchmark.py"


if __name__ == "__main__":
    # Importing anything of hf_mixer imports transformers
    runpy.run_path(str(COMMAND))["hide_broken_torchvision"]()
    from hf_mixer.commands.benchmark import main

    main()
