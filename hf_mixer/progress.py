# SPDX-License-Identifier: Apache-2.0
"""How long work shows that it goes on."""

import os
from collections.abc import Iterable
from importlib.util import find_spec

from tqdm import tqdm

from transformers.utils.logging import disable_progress_bar


def progress_bar(iterable: Iterable | None = None, **kwargs) -> tqdm:
    """Return a bar of tqdm that is shown by the first process only, and only where somebody watches a terminal."""
    return tqdm(iterable, disable=None if os.environ.get("RANK", "0") == "0" else True, **kwargs)


def quiet_libraries(has_watcher: bool = False) -> None:
    """
    Have transformers show no bars for loading weights, and `datasets` none for its steps, unless somebody watches a download.
    """
    disable_progress_bar()
    if not has_watcher and find_spec("datasets") is not None:
        from datasets import disable_progress_bars

        disable_progress_bars()
