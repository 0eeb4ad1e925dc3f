# SPDX-License-Identifier: Apache-2.0
"""What all operators written in Triton share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import triton


# Triton interprets kernels on the CPU where the environment says TRITON_INTERPRET=1, as the tests do
INTERPRETED = triton.knobs.runtime.interpret
# The interpreter's products of narrower types are wrong, and float32 on a GPU would be without its matrix units
DTYPES = (torch.float32,) if INTERPRETED else (torch.bfloat16, torch.float16)


# Triton's autotuner keeps the arguments of a launch in the kernel, and autograd has a thread for each GPU
_LAUNCHING = threading.RLock()


@contextmanager
def launching_on(x: torch.Tensor) -> Iterator[None]:
    """Triton launches on the current device, which may be another one than that of the tensors; one launch at a time."""
    with _LAUNCHING, torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        yield


def contiguous(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The kernels read vectors element after element, and the tokens row after row."""
    return [tensor.contiguous() for tensor in tensors]


def register_operator(
    name: str,
    forward: Callable,
    backward: Callable,
    fake_forward: Callable,
    fake_backward: Callable,
    save_for_backward: Callable,
    call_backward: Callable,
) -> None:
    """
    Make `torch.ops.hf_mixer.<name>` and `torch.ops.hf_mixer.<name>_backward` of functions whose annotations give the
    types. The fake ones return tensors of the right shapes and types; the last two connect the operators in autograd.
    """
    # A second copy of a module finds the operators of the first; to register them again would take them away from it
    if hasattr(torch.ops.hf_mixer, name):
        return
    torch.library.custom_op(f"hf_mixer::{name}_backward", backward, mutates_args=()).register_fake(fake_backward)
    operator = torch.library.custom_op(f"hf_mixer::{name}", forward, mutates_args=())
    operator.register_fake(fake_forward)
    operator.register_autograd(call_backward, setup_context=save_for_backward)
