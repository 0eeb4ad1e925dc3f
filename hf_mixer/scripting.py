# Copyright 2026 The hf_mixer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What the scripts share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with exit code 1 and one line on standard error where the user's input is refused."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
