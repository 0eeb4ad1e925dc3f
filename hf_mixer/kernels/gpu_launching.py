# SPDX-License-Identifier: Apache-2.0
"""What all kernels share: the types that they take, and where they are launched."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton


# Triton interprets kernels on the CPU where the environment says TRITON_INTERPRET=1, as the tests do
INTERPRETED = triton.knobs.runtime.interpret
# The interpreter multiplies narrower types wrongly, and float32 on a GPU would go without its matrix units
DTYPES = (torch.float32,) if INTERPRETED else (torch.bfloat16, torch.float16)


def launching_on(x: torch.Tensor) -> AbstractContextManager:
    """Launch on the device of `x`, where Triton takes the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
