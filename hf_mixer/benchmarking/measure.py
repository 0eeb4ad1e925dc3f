# SPDX-License-Identifier: Apache-2.0
"""Measure how fast Mixers run, beside others and beside what the device can do."""

import gc
import io
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from transformers import PreTrainedModel
from transformers.utils import is_torchvision_available

from ..compilation import compile_for_inference
from ..configuration_mixer import to_pair
from ..flops import estimate_flops
from ..image_processing_mixer import MixerImageProcessor
from ..image_processing_pil_mixer import MixerImageProcessorPil
from ..kernels import use_kernels
from ..low_precision import QUANTIZED, quantize
from ..modeling_mixer import MixerForImageClassification
from .cases import EXPORTED, Case, unsupported_reason
from .exported import RUNTIMES, run_exported
from .timing import spread, time_interleaved
from .timm_model import import_mlp_mixer


Step = Callable[[], Any]
# A case, an implementation and an execution
Key = tuple[Case, str, str]
# A case, and "matmul" or "copy"
LimitKey = tuple[Case, str]


def build_case_model(case: Case, implementation: str, device: torch.device) -> nn.Module:
    """Build a model of torch with random weights for a case that the implementation takes part in."""
    config = case.config()
    model: Any
    if implementation == "timm":
        mlp_mixer: Any = import_mlp_mixer()[0]
        # timm's ratios, 0.5 and 4, are those of every variant
        model = mlp_mixer(
            num_classes=config.num_labels,
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_blocks=config.num_hidden_layers,
            embed_dim=config.hidden_size,
        )
    elif implementation == "timm_wrapper":
        # Importing it imports timm
        from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

        wrapper = TimmWrapperConfig(architecture=case.model_name, num_labels=config.num_labels)
        model = TimmWrapperForImageClassification(wrapper)
    else:
        model = MixerForImageClassification(config)
    if implementation in RUNTIMES:
        return model.eval()  # in float32: the export brings it into the type of the case
    model = model.to(device, case.weight_dtype(device))
    if case.dtype in QUANTIZED:
        model = quantize(model, case.dtype)
    if implementation == "hf_mixer_kernels":
        use_kernels(model)
    return model.train(case.training)


def prepare_model(case: Case, model: nn.Module, implementation: str, execution: str) -> Callable[[torch.Tensor], Any]:
    """Return a function of the pixels for an execution, whose result is the logits or has them as `logits`."""
    if implementation in RUNTIMES:
        return run_exported(cast(PreTrainedModel, model), implementation, case.dtype)
    if execution == "eager":
        return model
    if execution == "freezing" and implementation == "hf_mixer":
        return compile_for_inference(cast(PreTrainedModel, model), case.batch_size)
    if execution == "freezing":
        # The option keeps Dynamo from taking what it compiled for another execution, see `make_step` for the rest
        return torch.compile(model, options={"freezing": True}, fullgraph=True)
    return torch.compile(model, mode=execution, fullgraph=True)


def make_step(case: Case, model: nn.Module, implementation: str, execution: str, device: torch.device) -> Step:
    """Return a function that does one inference or training step on random images."""
    config = case.config()
    shape = (case.batch_size, config.num_channels, *to_pair(config.image_size))
    dtype = torch.float32 if execution == EXPORTED else case.weight_dtype(device)
    pixel_values = torch.randn(shape, device=device, dtype=dtype)
    run = prepare_model(case, model, implementation, execution)

    def logits():
        outputs = run(pixel_values)
        return outputs if torch.is_tensor(outputs) else outputs.logits

    if execution == "freezing":
        # Inductor makes constants of the weights in what is compiled meanwhile, but not in inference mode. torch 2.13 has
        # no public way: its option of `torch.compile` comes too late, after the graph was made.
        step = torch.no_grad()(logits)
        with torch._inductor.config.patch(freezing=True):
            step()
        return step
    if not case.training:
        return torch.inference_mode()(logits)

    labels = torch.randint(config.num_labels, (case.batch_size,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def training_step():
        nn.functional.cross_entropy(logits().float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return training_step


def device_limits(case: Case, device: torch.device) -> dict[LimitKey, tuple[Step, float]]:
    """
    Return what to time for the device's own limits, and how much work each does: the two products of a channel-mixing
    MLP, with its operations (on at least 2048 tokens, so that a small batch is compared with what the device can do),
    and a copy between buffers larger than a cache, with the bytes that it reads and writes.
    """
    config, dtype = case.config(), case.weight_dtype(device)
    rows, inner, outer = max(case.batch_size * config.num_patches, 2048), config.hidden_size, config.channel_mlp_dim
    operand_dtype = {"int8": torch.int8, "float8": torch.float8_e4m3fn}.get(case.dtype, dtype)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype).to(operand_dtype)

    products = [(random(rows, inner), random(outer, inner).t()), (random(rows, outer), random(inner, outer).t())]
    multiply: Callable = torch.mm
    # torch 2.13 has no public products of 8 bits that return what these do
    if case.dtype == "int8":
        multiply = torch._int_mm
    elif case.dtype == "float8":
        one = torch.ones((), device=device)
        multiply = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=True)
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def matmul():
        for left, right in products:
            multiply(left, right)

    return {
        (case, "matmul"): (matmul, 4.0 * rows * inner * outer),
        (case, "copy"): (lambda: target.copy_(source), 2.0 * len(source)),
    }


def warm_up(case: Case, implementation: str, execution: str, device: torch.device) -> tuple[Step, int | None]:
    """Build a step and run it. Return it with its peak memory in bytes, or `None` where that is unknown."""
    # A CUDA graph takes its memory before the step runs
    has_peak = device.type == "cuda" and execution in ("eager", "default")
    before = torch.cuda.memory_allocated(device) if has_peak else 0
    step = make_step(case, build_case_model(case, implementation, device), implementation, execution, device)
    for _ in range(3):
        step()
    if not has_peak:
        return step, None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return step, torch.cuda.max_memory_allocated(device) - before


def prepare_runs(
    case: Case, implementations: Sequence[str], device: torch.device, progress: Callable[[str], Any]
) -> dict[Key, tuple[Step, int | None]]:
    """Return what [`warm_up`] does for each implementation and execution that takes part in a case."""
    runs = {}
    for implementation in implementations:
        if unsupported_reason(case, implementation, device) is not None:
            continue
        for execution in case.executions_of(implementation):
            progress(f"{case.title}: {implementation} {execution}, warming up")
            try:
                runs[case, implementation, execution] = warm_up(case, implementation, execution, device)
            # A compiler or another library may raise anything; the others are still measured
            except Exception as error:
                message = f"{case.title}: {implementation} {execution} fails and is left out: {error!r}"
                warnings.warn(message, stacklevel=3)
            if device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
    return runs


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
            Some of `IMPLEMENTATIONS`. What cannot take part is left out, see [`~cases.unsupported_reason`]; what fails
            is left out with a warning.
        rounds (`int`):
            Number of interleaved rounds; times are medians over them.
        device (`torch.device`):
            Where to measure.
        progress (`Callable[[str], Any]`, *optional*):
            Is told what is being done.

    Returns:
        `list[dict]`: One row per case, implementation and execution: the fields of the case, `model`, `image_size`,
        `num_parameters` and `flops` (operations of the forward pass on one image), `milliseconds` per step,
        `images_per_second`, `spread` (interquartile range over median), `limit` (the share of the device's measured
        limit: the time that matrix products or weights need at least over the time taken), `speedup_over_timm` (in the
        same type and execution, over timm's eager model for an exported one; both are medians over the rounds),
        `peak_memory` in bytes (CUDA without graphs: weights, gradients, optimizer and activations), `matmul_rate` in
        operations per second and `copy_rate` in bytes per second.
    """
    torch.compiler.reset()
    runs: dict[Key, tuple[Step, int | None]] = {}
    limits: dict[LimitKey, tuple[Step, float]] = {}
    with torch._dynamo.config.patch(recompile_limit=64):  # one for each model, all of the same class
        for case in cases:
            of_case = prepare_runs(case, implementations, device, progress)
            if of_case:
                runs |= of_case
                limits |= device_limits(case, device)
        if not runs:
            return []
        steps: dict[Any, Step] = {key: step for key, (step, _) in (*runs.items(), *limits.items())}
        times = time_interleaved(steps, rounds, device, lambda text: progress(f"{cases[0].title}: {text}"))
    return [{**make_row(key, times, limits, device), "peak_memory": memory} for key, (_, memory) in runs.items()]


def make_row(
    key: Key, times: dict[Any, list[float]], limits: dict[LimitKey, tuple[Step, float]], device: torch.device
) -> dict[str, Any]:
    """Return the row of [`measure`] for one key, without the memory."""
    case, implementation, execution = key
    seconds, matmul, copy = times[key], times[case, "matmul"], times[case, "copy"]
    (_, matmul_work), (_, copy_work) = limits[case, "matmul"], limits[case, "copy"]
    matmul_share = case.batch_size * estimate_flops(case.config(), case.training) / matmul_work
    copy_share = case.weight_traffic(device) / copy_work
    # The seconds that the step takes at least, at the rates of each round
    fastest = [max(matmul_share * a, copy_share * b) for a, b in zip(matmul, copy)]
    timm = times.get((case, "timm", "eager" if execution == EXPORTED else execution))
    return {
        "model": case.model_name,
        "variant": case.variant,
        "batch_size": case.batch_size,
        "dtype": case.dtype,
        "mode": case.mode,
        "implementation": implementation,
        "execution": execution,
        "image_size": case.config().image_size,
        "num_parameters": case.num_parameters(),
        "flops": estimate_flops(case.config()),
        "milliseconds": 1000 * statistics.median(seconds),
        "images_per_second": case.batch_size / statistics.median(seconds),
        "spread": spread(seconds),
        "limit": statistics.median(a / b for a, b in zip(fastest, seconds)),
        "speedup_over_timm": timm and statistics.median(a / b for a, b in zip(timm, seconds)),
        "matmul_rate": matmul_work / statistics.median(matmul),
        "copy_rate": copy_work / statistics.median(copy),
    }


def measure_preprocessing(image_size: int, rounds: int) -> list[dict[str, Any]]:
    """
    Measure how many photographs per second are decoded and prepared, per image processor and number of threads.

    Args:
        image_size (`int`):
            Size that the model takes, in pixels.
        rounds (`int`):
            Number of interleaved rounds, each with 64 images.

    Returns:
        `list[dict]`: One row per installed processor and number of threads: `processor`, `threads`,
        `images_per_second` and `spread`.
    """
    # As many pixels as ImageNet has on average, in JPEG; smooth, as a photograph is
    pixels = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    processors = {"pil": MixerImageProcessorPil(size=image_size)}
    if is_torchvision_available():
        processors["torchvision"] = MixerImageProcessor(size=image_size)

    def make_preparation(processor, threads: int) -> Step:
        def prepare(_):
            return processor(Image.open(io.BytesIO(file.getvalue())), return_tensors="pt")

        pool = ThreadPoolExecutor(threads)
        return lambda: list(pool.map(prepare, range(64)))

    steps = {
        (name, threads): make_preparation(processor, threads)
        for name, processor in processors.items()
        for threads in sorted({1, 2, os.cpu_count() or 1})
    }
    times = time_interleaved(steps, rounds, torch.device("cpu"))
    return [
        {
            "processor": name,
            "threads": threads,
            "images_per_second": 64 / statistics.median(seconds),
            "spread": spread(seconds),
        }
        for (name, threads), seconds in times.items()
    ]
