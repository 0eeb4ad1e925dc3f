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

def count_new_pages(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(count_new_pages(1), count_new_pages(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
@pytest.mark.parametrize(("setting", "is_kept"), [(None, True), ("MALLOC_TOP_PAD_", False)])
def test_memory_that_was_freed_is_used_again_unless_the_environment_decides(setting, is_kept):
    environment = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "LD_PRELOAD")}
    environment |= {setting: "0"} if setting else {}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PAGES], env=environment, capture_output=True, text=True, check=True
    )
    once, ten_times = map(int, done.stdout.split())
    assert (ten_times < 5 * once) == is_kept
