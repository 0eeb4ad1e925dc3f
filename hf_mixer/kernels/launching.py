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
"""What all kernels in Triton share when they are launched."""

from contextlib import nullcontext

import torch
import triton


# Triton interprets kernels on the CPU where the environment says TRITON_INTERPRET=1, as the tests do
INTERPRETED = triton.knobs.runtime.interpret
# The interpreter's products of narrower types are wrong, and float32 on a GPU would be without its matrix units
DTYPES = (torch.float32,) if INTERPRETED else (torch.bfloat16, torch.float16)


def device_of(x: torch.Tensor):
    """Triton launches on the current device, which may be another one than that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
