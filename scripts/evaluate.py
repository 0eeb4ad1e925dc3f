# SPDX-License-Identifier: Apache-2.0
"""The command `hf-mixer evaluate`, for `accelerate launch`, `torchrun` and jobs that take a file."""

from hf_mixer.commands.evaluate import main


if __name__ == "__main__":
    main()
