# SPDX-License-Identifier: Apache-2.0
"""What can be measured: the implementations, the cases, and the fixed sets of them."""

from dataclasses import dataclass

import torch

from transformers.utils import is_torchao_available

from ..configuration_mixer import MixerConfig
from ..low_precision import QUANTIZED, has_float8
from ..modeling_mixer import MixerForImageClassification


IMPLEMENTATIONS = ("hf_mixer", "hf_mixer_kernels", "timm", "timm_wrapper")
DTYPES = ("float32", "bfloat16", "float16", *QUANTIZED)
# "eager", or a mode of `torch.compile`
EXECUTIONS = ("eager", "default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Case:
    """
    A step to measure.

    Args:
        variant (`str`):
            A variant of `MixerConfig.from_variant`.
        batch_size (`int`):
            Images per step.
        dtype (`str`):
            One of `DTYPES`. `"int8"` and `"float8"` quantize weights and activations of the linear layers through
            torchao; the rest is float32 on the CPU, bfloat16 elsewhere.
        training (`bool`, *optional*, defaults to `False`):
            Forward and backward pass and a step of fused AdamW, instead of the forward pass alone.
        executions (`tuple[str]`, *optional*, defaults to `("eager",)`):
            Some of `EXECUTIONS`.
    """

    variant: str
    batch_size: int
    dtype: str
    training: bool = False
    executions: tuple[str, ...] = ("eager",)

    @property
    def mode(self) -> str:
        return "training" if self.training else "inference"

    @property
    def title(self) -> str:
        return f"{self.variant} {self.mode} {self.dtype} batch {self.batch_size}"

    def config(self) -> MixerConfig:
        return MixerConfig.from_variant(self.variant, num_labels=10 if self.variant == "cifar10" else 1000)

    def weight_dtype(self, device: torch.device) -> torch.dtype:
        if self.dtype in QUANTIZED:
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        return getattr(torch, self.dtype)

    def weight_traffic(self, device: torch.device) -> int:
        """
        Bytes of weights that a step moves at least. In training they are read twice and written once as gradients,
        then AdamW reads weights, gradients and two moments and writes back all but the gradients.
        """
        with torch.device("meta"):
            num_weights = MixerForImageClassification(self.config()).num_parameters()
        bytes_per_weight = 1 if self.dtype in QUANTIZED else self.weight_dtype(device).itemsize
        return num_weights * bytes_per_weight * (10 if self.training else 1)


EAGER_AND_DEFAULT, EAGER_AND_AUTOTUNED = ("eager", "default"), ("eager", "max-autotune")
SUITES = {
    "cpu": [
        *(Case("B/16", 8, dtype, executions=EAGER_AND_DEFAULT) for dtype in ("float32", "bfloat16", "int8")),
        *(Case("B/16", 8, dtype, training=True) for dtype in ("float32", "bfloat16")),
    ],
    "gpu-inference": [
        Case("B/16", 256, "bfloat16", executions=EAGER_AND_AUTOTUNED),
        Case("B/16", 256, "float8", executions=("max-autotune",)),
        Case("B/16", 1, "bfloat16", executions=("eager", "reduce-overhead", "max-autotune")),
        *(Case(variant, 256, "bfloat16", executions=EAGER_AND_AUTOTUNED) for variant in ("S/16", "L/16", "H/14")),
        Case("cifar10", 1024, "bfloat16", executions=EAGER_AND_AUTOTUNED),
    ],
    "gpu-training": [
        *(Case(variant, 256, "bfloat16", True, EAGER_AND_DEFAULT) for variant in ("B/16", "S/16", "L/16")),
        Case("cifar10", 1024, "bfloat16", True, EAGER_AND_DEFAULT),
    ],
}
SUITES["gpu"] = SUITES["gpu-inference"] + SUITES["gpu-training"]


def unsupported_reason(case: Case, implementation: str, device: torch.device) -> str | None:
    """Say why an implementation cannot take part in a case, or return `None` where it can."""
    quantized = case.dtype in QUANTIZED
    if quantized and implementation != "hf_mixer":
        return f"{case.dtype} is measured for hf_mixer only"
    if quantized and case.training:
        return f"{case.dtype} is for inference"
    if quantized and not is_torchao_available():
        return "torchao is not installed"
    if case.dtype == "float8" and not has_float8(device):
        return "float8 needs a GPU of compute capability 8.9 (Ada, Hopper) or higher"
    if implementation == "hf_mixer_kernels" and device.type != "cuda":
        return "the kernels need a CUDA device"
    if implementation == "hf_mixer_kernels" and case.dtype == "float32":
        return "the kernels compute in bfloat16 or float16"
    if implementation.startswith("timm"):
        try:
            import timm  # noqa: F401
        except (ImportError, RuntimeError) as error:
            return f"timm cannot be imported: {error}"
    if implementation == "timm_wrapper" and case.variant in ("H/14", "cifar10"):
        return f"timm has no model of the size of {case.variant}"
    return None
