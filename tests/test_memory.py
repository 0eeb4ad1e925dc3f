# SPDX-License-Identifier: Apache-2.0
import os
import platform
import subprocess
import sys

import pytest

from hf_mixer.memory import SETTINGS


COUNT_PAGES = """
import resource
import torch
from hf_mixer.memory import keep_freed_memory

keep_freed_memory()
for _ in range(5):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
@pytest.mark.parametrize(("setting", "is_kept"), [(None, True), ("MALLOC_TOP_PAD_", False)])
def test_memory_that_was_freed_is_used_again_unless_the_environment_decides(setting, is_kept):
    environment = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "LD_PRELOAD")}
    environment |= {setting: "0"} if setting else {}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PAGES], env=environment, capture_output=True, text=True, check=True
    )
    # A tensor of 64 MiB has 16,384 pages of 4 KiB, or 32 of 2 MiB
    assert (int(done.stdout) < 100) == is_kept
