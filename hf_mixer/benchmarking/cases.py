# SPDX-License-Identifier: Apache-2.0
"""What can be measured: the implementations, the cases, and the fixed sets of them."""

from dataclasses import dataclass

import torch

from transformers.utils import is_torchao_available, is_triton_available

from ..configuration_mixer import MixerConfig
from ..deployment.formats import missing_reason
from ..kernels import cpu
from ..kernels.gpu import HOPPER
from ..low_precision import QUANTIZED, has_float8, int8_problem
from ..modeling_mixer import MixerForImageClassification
from .exported import RUNTIMES
from .timm_model import import_mlp_mixer


DTYPES = ("float32", "bfloat16", "float16", *QUANTIZED)
# What can be measured, and the types that it has
IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "hf_mixer": DTYPES,
    "hf_mixer_kernels": ("bfloat16", "float16"),
    "timm": ("float32", "bfloat16", "float16"),
    "timm_wrapper": ("float32", "bfloat16", "float16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
# "eager", compiled with the weights as constants, or a mode of `torch.compile`
EXECUTIONS = ("eager", "freezing", "default", "reduce-overhead", "max-autotune")
# The one execution of a model that runs elsewhere than in torch
EXPORTED = "exported"


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
            One of `DTYPES`. `"int8"` and `"float8"` are what [`~low_precision.quantize`] makes of a model of float32 on
            the CPU, of bfloat16 elsewhere.
        training (`bool`, *optional*, defaults to `False`):
            Forward and backward pass and a step of fused AdamW, instead of the forward pass alone.
        executions (`tuple[str]`, *optional*, defaults to `("eager",)`):
            Some of `EXECUTIONS`. `"freezing"` is for inference.

    Raises:
        `ValueError`: a frozen model is to be trained.
    """

    variant: str
    batch_size: int
    dtype: str
    training: bool = False
    executions: tuple[str, ...] = ("eager",)

    def __post_init__(self):
        if self.training and "freezing" in self.executions:
            others = ", ".join(name for name in EXECUTIONS if name != "freezing")
            raise ValueError(f"freezing makes constants of the weights, which training changes: choose from {others}")

    @property
    def mode(self) -> str:
        return "training" if self.training else "inference"

    @property
    def title(self) -> str:
        return f"{self.variant} {self.mode} {self.dtype} batch {self.batch_size}"

    @property
    def model_name(self) -> str:
        """The name that timm gives or would give to the architecture, such as `mixer_b16_224`."""
        return f"mixer_{self.variant.lower().replace('/', '')}_{self.config().image_size}"

    def executions_of(self, implementation: str) -> tuple[str, ...]:
        """Return the executions that an implementation is measured in."""
        return (EXPORTED,) if implementation in RUNTIMES else self.executions

    def config(self) -> MixerConfig:
        return MixerConfig.from_variant(self.variant, num_labels=10 if self.variant == "cifar10" else 1000)

    def weight_dtype(self, device: torch.device) -> torch.dtype:
        if self.dtype in QUANTIZED:
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        return getattr(torch, self.dtype)

    def num_parameters(self) -> int:
        with torch.device("meta"):
            return MixerForImageClassification(self.config()).num_parameters()

    def weight_traffic(self, device: torch.device) -> int:
        """
        Bytes of weights that a step moves at least. In training they are read twice and written once as gradients,
        then AdamW reads weights, gradients and two moments and writes back all but the gradients.
        """
        bytes_per_weight = 1 if self.dtype in QUANTIZED else self.weight_dtype(device).itemsize
        return self.num_parameters() * bytes_per_weight * (10 if self.training else 1)


EAGER_AND_FROZEN = ("eager", "freezing")
SUITES = {
    "cpu": [
        *(Case("B/16", 8, dtype, executions=("eager", "default", "freezing")) for dtype in ("float32", "bfloat16")),
        Case("B/16", 8, "int8", executions=("freezing",)),
        *(
            Case(variant, batch_size, dtype, executions=EAGER_AND_FROZEN)
            for variant in ("S/16", "L/16")
            for batch_size in (1, 8)
            for dtype in ("float32", "bfloat16")
        ),
        *(Case("B/16", 8, dtype, training=True) for dtype in ("float32", "bfloat16")),
    ],
}


def unsupported_reason(case: Case, implementation: str, device: torch.device) -> str | None:
    """Say why an implementation cannot take part in a case, or return `None` where it can."""
    dtypes = IMPLEMENTATIONS[implementation]
    if case.dtype not in dtypes:
        return f"{case.dtype} is not among its types, {', '.join(dtypes)}"
    if case.training and case.dtype in QUANTIZED:
        return f"{case.dtype} is for inference"
    if implementation in RUNTIMES:
        return _exported_reason(case, implementation, device)
    if implementation.startswith("timm"):
        return _timm_reason(case, implementation)
    if implementation == "hf_mixer_kernels":
        return _kernels_reason(case, device)
    if case.dtype == "float8":
        if not has_float8(device):
            return "float8 needs a GPU of compute capability 9.0 (Hopper)"
        return None if is_triton_available() else "Triton is not installed"
    if case.dtype == "int8":
        return (
            int8_problem(case.config().hidden_size, device) if is_torchao_available() else "torchao is not installed"
        )
    return None


def _exported_reason(case: Case, implementation: str, device: torch.device) -> str | None:
    if case.training:
        return "an exported model is for inference"
    if device.type != "cpu":
        return f"exported models are measured on the CPU, not on {device}"
    return missing_reason(RUNTIMES[implementation], case.dtype)


def _kernels_reason(case: Case, device: torch.device) -> str | None:
    if device.type == "cpu":
        if case.dtype != "bfloat16" or not cpu.has_matrix_units():
            return "on a processor the kernels are for bfloat16, and need matrix units (AMX)"
        if case.batch_size < torch.get_num_threads():
            return "on a processor the kernels are for batches of at least as many images as there are threads"
        return None
    if case.training:
        return "on a GPU the kernels are for inference"
    if device.type != "cuda":
        return "the kernels need a CUDA device, or a processor with matrix units (AMX)"
    if torch.cuda.get_device_capability(device)[0] != HOPPER:
        return "the kernels are for GPUs of compute capability 9.0 (Hopper)"
    return None


def _timm_reason(case: Case, implementation: str) -> str | None:
    try:
        _, missing_torchvision = import_mlp_mixer()
    except ImportError as error:
        return str(error)
    if implementation == "timm_wrapper":
        if missing_torchvision is not None:
            return f"transformers needs a timm that finds torchvision: {missing_torchvision}"
        if case.variant in ("H/14", "cifar10"):
            return f"timm has no model of the size of {case.variant}"
    return None
