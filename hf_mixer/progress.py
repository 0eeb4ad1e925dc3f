# SPDX-License-Identifier: Apache-2.0
"""How long work shows that it goes on."""

import os
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(iterable: Iterable | None = None, **kwargs) -> tqdm:
    """Return a bar of tqdm that is shown by the first process only, and only where somebody watches a terminal."""
    return tqdm(iterable, disable=None if os.environ.get("RANK", "0") == "0" else True, **kwargs)
