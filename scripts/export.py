# SPDX-License-Identifier: Apache-2.0
"""The command `hf-mixer export`, for `accelerate launch`, `torchrun` and jobs that take a file."""

from hf_mixer.commands.export import main


if __name__ == "__main__":
    main()
