# SPDX-License-Identifier: Apache-2.0
"""Measure how fast Mixers run, beside others and beside what the device can do."""

import gc
import io
import itertools
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
from transformers.utils import is_timm_available, is_torchao_available, is_torchvision_available

from ..configuration_mixer import MixerConfig, to_pair
from ..flops import estimate_flops
from ..image_processing_mixer import MixerImageProcessor
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..low_precision import QUANTIZED, has_float8, quantize
from ..modeling_mixer import MixerForImageClassification
from .timing import spread, time_interleaved


IMPLEMENTATIONS = ("hf_mixer", "hf_mixer_without_kernels", "timm", "timm_wrapper")
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
        Bytes of weights that a step moves at least. In training they are read twice and written once as gradients, then
        AdamW reads weights, gradients and two moments and writes back all but the gradients.
        """
        with torch.device("meta"):
            num_weights = MixerForImageClassification(self.config()).num_parameters()
        bytes_per_weight = 1 if self.dtype in QUANTIZED else self.weight_dtype(device).itemsize
        return num_weights * bytes_per_weight * (10 if self.training else 1)


def why_not(case: Case, implementation: str, device: torch.device) -> str | None:
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
    if implementation == "hf_mixer_without_kernels" and device.type != "cuda":
        return "it has kernels on CUDA only"
    if implementation.startswith("timm"):
        if not is_timm_available():
            return "timm is not installed"
        try:
            import timm  # noqa: F401
        except (ImportError, RuntimeError) as error:
            return f"timm does not import: {error}"
    if implementation == "timm_wrapper" and case.variant in ("H/14", "cifar10"):
        return f"timm has no model of the size of {case.variant}"
    return None


def build_model(case: Case, implementation: str, device: torch.device) -> nn.Module:
    """
    Build a model with random weights.

    Args:
        case ([`Case`]):
            The case, whose `variant` and `dtype` are used.
        implementation (`str`):
            One of `IMPLEMENTATIONS`, for which [`why_not`] has no objection.
        device (`torch.device`):
            Where to put it.
    """
    config = case.config()
    model: Any
    if implementation == "timm":
        from timm.models.mlp_mixer import MlpMixer

        # timm's ratios, 0.5 and 4, are those of every variant
        model = MlpMixer(
            num_classes=config.num_labels,
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_blocks=config.num_hidden_layers,
            embed_dim=config.hidden_size,
        )
    elif implementation == "timm_wrapper":
        name = f"mixer_{case.variant.lower().replace('/', '')}_{config.image_size}"
        wrapper = TimmWrapperConfig(architecture=name, num_labels=config.num_labels)
        model = TimmWrapperForImageClassification(wrapper)
    else:
        model = MixerForImageClassification(config)
    model = model.to(device, case.weight_dtype(device))
    if case.dtype in QUANTIZED:
        model = quantize(model, case.dtype)
    if implementation == "hf_mixer_without_kernels":
        from ..kernels import use_kernels

        use_kernels(model, enabled=False)
    return model.train(case.training)


def make_step(case: Case, model: nn.Module, execution: str, device: torch.device) -> Callable[[], Any]:
    """Return a function that does one inference or training step on random images."""
    config = case.config()
    shape = (case.batch_size, config.num_channels, *to_pair(config.image_size))
    pixel_values = torch.randn(shape, device=device, dtype=case.weight_dtype(device))
    run = model if execution == "eager" else torch.compile(model, mode=execution, fullgraph=True)

    def logits():
        outputs = run(pixel_values)
        return outputs if torch.is_tensor(outputs) else outputs.logits

    if not case.training:
        return torch.inference_mode()(logits)

    labels = torch.randint(config.num_labels, (case.batch_size,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        nn.functional.cross_entropy(logits().float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def device_limits(case: Case, device: torch.device) -> dict[str, tuple[Callable[[], Any], float]]:
    """
    Return what to time for the device's own limits, and how much work each does.

    Returns:
        `dict[str, tuple[Callable, float]]`: `"matmul"`, the two products of a channel-mixing MLP, with its operations
        (on at least 2048 tokens, so that a small batch is compared with what the device can do), and `"copy"`, a copy
        between buffers larger than a cache, with the bytes that it reads and writes.
    """
    config, dtype = case.config(), case.weight_dtype(device)
    rows, inner, outer = max(case.batch_size * config.num_patches, 2048), config.hidden_size, config.channel_mlp_dim
    wide, narrow = (torch.randn(rows, width, device=device, dtype=dtype) for width in (outer, inner))
    down, up = (torch.randn(shape, device=device, dtype=dtype) for shape in ((inner, outer), (outer, inner)))
    products = [(narrow, up.t()), (wide, down.t())]
    multiply: Callable = torch.mm
    if case.dtype == "int8":
        products = [(left.to(torch.int8), right.to(torch.int8)) for left, right in products]
        multiply = torch._int_mm
    elif case.dtype == "float8":
        one = torch.ones((), device=device)
        products = [(left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)) for left, right in products]

        def multiply(left, right):
            return torch._scaled_mm(left, right, one, one, out_dtype=dtype, use_fast_accum=True)  # as torchao does

    source = torch.ones(2**28 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def matmul():
        for left, right in products:
            multiply(left, right)

    return {"matmul": (matmul, 4.0 * rows * inner * outer), "copy": (lambda: target.copy_(source), 2.0 * len(source))}


def measure(
    cases: Sequence[Case],
    implementations: Sequence[str],
    rounds: int,
    device: torch.device,
    progress: Callable[[str], Any] = lambda text: None,
) -> list[dict[str, Any]]:
    """
    Measure some cases in the same rounds.

    Args:
        cases (`Sequence[Case]`):
            What to measure. All models are in memory at the same time.
        implementations (`Sequence[str]`):
            Some of `IMPLEMENTATIONS`. What cannot take part is left out, see [`why_not`]; what fails is left out with a
            warning.
        rounds (`int`):
            Number of interleaved rounds; times are medians over them.
        device (`torch.device`):
            Where to measure.
        progress (`Callable[[str], Any]`, *optional*):
            Is told what is being done.

    Returns:
        `list[dict]`: One row per case, implementation and execution: the fields of the case, `milliseconds` per step,
        `images_per_second`, `spread` (interquartile range over median), `limit` (the share of the device's measured
        limit: the time that matrix products or weights need at least over the time taken), `speedup_over_timm` (in the
        same type and execution; both are medians over the rounds), `peak_memory` in bytes (CUDA without graphs: weights,
        gradients, optimizer and activations), `matmul_rate` in operations per second and `copy_rate` in bytes per second.
    """
    torch._dynamo.reset()
    limits: dict[Case, dict[str, tuple[Callable[[], Any], float]]] = {}
    steps: dict[tuple[Case, str, str], Callable[[], Any]] = {}
    memory: dict[tuple[Case, str, str], int] = {}
    with torch._dynamo.config.patch(recompile_limit=64):  # one for each model, all of the same class
        for case, implementation in itertools.product(cases, implementations):
            if why_not(case, implementation, device) is not None:
                continue
            if case not in limits:
                limits[case] = device_limits(case, device)
                steps |= {(case, name, ""): step for name, (step, _) in limits[case].items()}
            for execution in case.executions:
                progress(f"{case.title}: {implementation} {execution}, warming up")
                before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
                step: Callable[[], Any] | None = None
                try:
                    step = make_step(case, build_model(case, implementation, device), execution, device)
                    for _ in range(3):
                        step()
                    # A CUDA graph has taken its memory before
                    if device.type == "cuda" and execution in ("eager", "default"):
                        torch.cuda.reset_peak_memory_stats(device)
                        step()
                        memory[case, implementation, execution] = torch.cuda.max_memory_allocated(device) - before
                # Whatever a compiler or a rival may raise: the others are still measured
                except Exception as error:
                    message = f"{case.title}: {implementation} {execution} fails and is left out: {error!r}"
                    warnings.warn(message, stacklevel=2)
                else:
                    steps[case, implementation, execution] = step
                step = None  # what failed leaves the memory to the others
                if device.type == "cuda":
                    gc.collect()
                    torch.cuda.empty_cache()

        if not any(execution for _, _, execution in steps):
            return []
        times: dict[tuple[Case, str, str], list[float]] = {key: [] for key in steps}
        for index, seconds in enumerate(time_interleaved(steps, rounds, device)):
            progress(f"{cases[0].title}: round {index + 1} of {rounds}")
            for key, value in seconds.items():
                times[key].append(value)

    rows = []
    for case in limits:
        rates = {name: work / statistics.median(times[case, name, ""]) for name, (_, work) in limits[case].items()}
        flops, traffic = estimate_flops(case.config(), case.training) * case.batch_size, case.weight_traffic(device)
        matmul_work, copy_work = (limits[case][name][1] for name in ("matmul", "copy"))
        # The seconds that a step takes at least, at the rates of each round
        fastest = [
            max(flops / matmul_work * matmul, traffic / copy_work * copy)
            for matmul, copy in zip(times[case, "matmul", ""], times[case, "copy", ""])
        ]
        for key in [key for key in steps if key[0] == case and key[2]]:
            median, timm = statistics.median(times[key]), times.get((case, "timm", key[2]))
            rows.append(
                {
                    "variant": case.variant,
                    "batch_size": case.batch_size,
                    "dtype": case.dtype,
                    "mode": case.mode,
                    "implementation": key[1],
                    "execution": key[2],
                    "milliseconds": 1000 * median,
                    "images_per_second": case.batch_size / median,
                    "spread": spread(times[key]),
                    "limit": statistics.median(a / b for a, b in zip(fastest, times[key])),
                    "speedup_over_timm": timm and statistics.median(a / b for a, b in zip(timm, times[key])),
                    "peak_memory": memory.get(key),
                    "matmul_rate": rates["matmul"],
                    "copy_rate": rates["copy"],
                }
            )
    return rows


def measure_preprocessing(image_size: int, rounds: int) -> list[dict[str, Any]]:
    """
    Measure how many photographs per second are decoded and prepared, per image processor and number of threads.

    Args:
        image_size (`int`):
            Size that the model takes, in pixels.
        rounds (`int`):
            Number of interleaved rounds, each with 64 images.

    Returns:
        `list[dict]`: One row per processor (the torchvision one only where torchvision is installed) and number of
        threads: `processor`, `threads`, `images_per_second` and `spread`.
    """
    # As many pixels as ImageNet has on average, in JPEG; smooth, as a photograph is
    pixels = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    processors = {"pil": MixerImageProcessorPil(size=image_size)}
    if is_torchvision_available():
        processors["torchvision"] = MixerImageProcessor(size=image_size)

    def step(processor, threads: int) -> Callable[[], Any]:
        pool = ThreadPoolExecutor(threads)

        def prepare(_):
            return processor(Image.open(io.BytesIO(file.getvalue())), return_tensors="pt")

        return lambda: list(pool.map(prepare, range(64)))

    threads = sorted({1, 2, os.cpu_count() or 1})
    steps = {(name, count): step(processor, count) for name, processor in processors.items() for count in threads}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for seconds in time_interleaved(steps, rounds, torch.device("cpu")):
        for key, value in seconds.items():
            times[key].append(value)
    return [
        {
            "processor": name,
            "threads": count,
            "images_per_second": 64 / statistics.median(times[name, count]),
            "spread": spread(times[name, count]),
        }
        for name, count in steps
    ]
