# SPDX-License-Identifier: Apache-2.0
"""How large, exact and fast the exports of one model are, beside the model in PyTorch."""

import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image

from transformers import PreTrainedModel

from ..checkpoints import load_checkpoint
from ..compilation import compile_for_inference
from ..configuration_mixer import to_pair
from ..data.images import ImageTransform
from ..deployment import export_model, load_exported
from ..deployment.formats import DTYPES, FORMATS
from ..evaluation.evaluate import predict_dataset
from ..threads import useful_threads
from .timing import spread, time_interleaved


BATCH_SIZES = (1, 32)
PYTORCH_DTYPES = ("float32", "bfloat16")
# Those of transformers.js are the programs of ONNX
RUN_HERE = [name for name in FORMATS if name != "transformers.js"]


@dataclass(frozen=True)
class Contender:
    """
    One way to run the model.

    Args:
        runtime (`str`), dtype (`str`):
            What computes, and in which type.
        num_bytes (`int`):
            The size of the weights, or of the program.
        models (`dict[int, PreTrainedModel]`):
            The model for each of `BATCH_SIZES`.
    """

    runtime: str
    dtype: str
    num_bytes: int
    models: dict[int, PreTrainedModel]


def measure_exports(
    source: str,
    rounds: int,
    dataset: Dataset | None = None,
    calibration_images: Sequence[Image.Image] | None = None,
    progress: Callable[[str], Any] = lambda text: None,
) -> list[dict[str, Any]]:
    """
    Export a model to every format and type that can be used here, and measure all of them and the model in PyTorch, eager and
    compiled, on the CPU, in the same rounds.

    Args:
        source (`str`):
            Anything that [`load_checkpoint`] takes.
        rounds (`int`):
            Number of interleaved rounds; times are medians over them.
        dataset (`Dataset`, *optional*):
            Columns `image` (undecoded) and `label`, a class of the model, for the accuracy.
        calibration_images (`Sequence[PIL.Image.Image]`, *optional*):
            Images to calibrate int8 with.
        progress (`Callable[[str], Any]`, *optional*):
            Is told what is being done.

    Returns:
        `list[dict]`: one row for each: `runtime`, `dtype`, `bytes` of the weights or of the program, `top1` and `num_images`
        (`None` without a data set), and for each of `BATCH_SIZES` `step_time_N` in milliseconds, `spread_N` (interquartile
        range over median) and `threads_N`: as many as torch has, and have enough to do. ExecuTorch takes all cores. What
        fails is left out with a warning.
    """
    model, image_processor = load_checkpoint(source, dtype="float32")
    before = torch.get_num_threads()
    threads = {size: min(before, useful_threads(model.config, size)) for size in BATCH_SIZES}
    contenders = [
        *pytorch_contenders(source, threads, progress),
        *exported_contenders(source, threads, calibration_images, progress),
    ]
    top1s: list[float | None] = [None] * len(contenders)
    if dataset is not None:
        images = dataset.with_transform(ImageTransform(image_processor))
        for index, contender in enumerate(contenders):
            progress(f"top-1 of {contender.runtime}, {contender.dtype}")
            top1s[index] = measure_top1(contender, images)
    steps: dict[Any, Callable[[], Any]] = {
        (index, size): prepare_step(contender.models[size], size, threads[size])
        for index, contender in enumerate(contenders)
        for size in BATCH_SIZES
    }
    times = time_interleaved(steps, rounds, torch.device("cpu"), progress)
    torch.set_num_threads(before)
    return [
        {
            "runtime": contender.runtime,
            "dtype": contender.dtype,
            "bytes": contender.num_bytes,
            "top1": top1s[index],
            "num_images": None if dataset is None else len(dataset),
            **{f"step_time_{size}": 1000 * statistics.median(times[index, size]) for size in BATCH_SIZES},
            **{f"spread_{size}": spread(times[index, size]) for size in BATCH_SIZES},
            **{f"threads_{size}": threads[size] for size in BATCH_SIZES},
        }
        for index, contender in enumerate(contenders)
    ]


def measure_top1(contender: Contender, images: Dataset) -> float:
    """Return the share of the images whose class the model finds."""
    scores = predict_dataset(contender.models[BATCH_SIZES[-1]], images, Accelerator(cpu=True))
    return float((scores["predictions"] == scores["labels"]).mean())


def prepare_step(model: PreTrainedModel, batch_size: int, num_threads: int) -> Callable[[], Any]:
    """Return a function that runs a model on noise, and has been run before."""
    config = model.config
    pixel_values = torch.randn(batch_size, config.num_channels, *to_pair(config.image_size)).to(model.dtype)

    @torch.inference_mode()
    def step() -> None:
        torch.set_num_threads(num_threads)
        model(pixel_values)

    for _ in range(3):
        step()
    return step


def pytorch_contenders(source: str, threads: dict[int, int], progress: Callable[[str], Any]) -> Iterator[Contender]:
    """Load the model in each type of PyTorch, and compile it."""
    for dtype in PYTORCH_DTYPES:
        model = load_checkpoint(source, dtype=dtype)[0].eval()
        num_bytes = sum(parameter.nbytes for parameter in model.parameters())
        yield Contender("PyTorch, eager", dtype, num_bytes, dict.fromkeys(BATCH_SIZES, model))
        progress(f"compiling in {dtype}")
        compiled = {}
        for size in BATCH_SIZES:
            torch.set_num_threads(threads[size])
            # In place
            compiled[size] = compile_for_inference(load_checkpoint(source, dtype=dtype)[0].eval(), size)
        yield Contender("PyTorch, compiled", dtype, num_bytes, compiled)


def exported_contenders(
    source: str,
    threads: dict[int, int],
    calibration_images: Sequence[Image.Image] | None,
    progress: Callable[[str], Any],
) -> Iterator[Contender]:
    """Export the model to every format and type, and load what was exported."""
    with tempfile.TemporaryDirectory() as folder:
        for format, dtype in itertools.product(RUN_HERE, DTYPES):
            runtime = "PyTorch, exported" if format == "torch" else FORMATS[format].runtime
            progress(f"exporting for {runtime} in {dtype}")
            destination = Path(folder, format, dtype)
            try:
                images = calibration_images if dtype == "int8" else None
                export_model(source, destination, format, dtype, calibration_images=images)
                models = {
                    size: load_exported(destination, num_threads=threads[size], trust_remote_code=True)[0]
                    for size in BATCH_SIZES
                }
            # An exporter or a quantizer may raise anything; the others are still measured
            except Exception as error:
                warnings.warn(f"{runtime} in {dtype} is left out: {error}", stacklevel=3)
                continue
            num_bytes = sum(path.stat().st_size for path in models[BATCH_SIZES[0]].files)
            yield Contender(runtime, dtype, num_bytes, models)
