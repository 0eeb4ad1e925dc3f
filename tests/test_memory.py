# SPDX-License-Identifier: Apache-2.0
import os
import platform
import subprocess
import sys

import pytest

from hf_mixer.memory import SETTINGS
from tests.helpers import ROOT


# Without the import of the package, which takes long
COUNT_PAGES = """
import os
import resource
import runpy
import sys
import torch

keep_freed_memory = runpy.run_path("hf_mixer/memory.py")["keep_freed_memory"]

def count_new_pages(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for setting in sys.argv[1:]:
    if os.fork() == 0:
        os.environ[setting] = "0"
        keep_freed_memory()
        print(count_new_pages(10), count_new_pages(10), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told so")
def test_memory_that_was_freed_is_used_again_unless_the_environment_decides():
    environment = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "LD_PRELOAD")}
    command = [sys.executable, "-c", COUNT_PAGES, "ANOTHER_SETTING", "MALLOC_TOP_PAD_"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [again < first / 5 for first, again in counts] == [True, False]
