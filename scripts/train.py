# SPDX-License-Identifier: Apache-2.0
# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_mixer[train]", "trackio"]
#
# [tool.uv.sources]
# hf_mixer = { path = "..", editable = true }
#
# [tool.hf-jobs]
# secrets = ["HF_TOKEN"]
# volumes = ["dist:/wheels"]
# env = { UV_NO_SOURCES = "1", UV_FIND_LINKS = "/wheels" }
# ///
"""
The command `hf-mixer train`, for `accelerate launch`, `torchrun` and jobs that take a file.

In a clone, `uv run scripts/train.py --output_dir outputs/digits` installs what it needs and trains. On the hardware of Hugging
Face, where the package comes along as a wheel:

    uv build --wheel
    hf jobs uv run --flavor a10g-small scripts/train.py --dataset_name uoft-cs/cifar10 --output_dir outputs/cifar10 \
        --push_to_hub true --report_to trackio
"""

from hf_mixer.commands.train import main


if __name__ == "__main__":
    main()
