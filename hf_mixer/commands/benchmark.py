# SPDX-License-Identifier: Apache-2.0
"""
Measure how fast Mixers run here, beside timm's and beside what the device can do.

    python scripts/benchmark.py                                              # B/16, inference, batch 8
    python scripts/benchmark.py --variants S/16 B/16 --dtypes float32 bfloat16 --batch_sizes 1 8
    python scripts/benchmark.py --mode training --executions eager default
    python scripts/benchmark.py --suite gpu                                  # a fixed set for a GPU, another for a CPU
    python scripts/benchmark.py --suite gpu-inference --variants B/16        # a part of it
    python scripts/benchmark.py --preprocessing                              # images per second before the model

Everything in a table was timed in one run, in rounds in which each takes its turn. `% of limit` is the time that the
matrix products need at the rate measured for them in the same rounds (or, for small batches, that the weights need to be
read) over the time taken. `vs timm` is the median over the rounds, both executed alike. Tables go to the screen,
all figures to `benchmark.json` and a picture to `benchmark.png` in --output_dir, after every case.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from ..benchmarking.measure import DTYPES, EXECUTIONS, IMPLEMENTATIONS, Case, measure, measure_preprocessing, why_not
from ..benchmarking.plots import save_speed_bars
from ..configuration_mixer import VARIANTS
from ..utils import describe_hardware, library_versions, one_line_errors


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
# Heading, key in a row, and how it is written
COLUMNS = {
    "variant": ("variant", str),
    "mode": ("mode", str),
    "dtype": ("dtype", str),
    "batch": ("batch_size", str),
    "implementation": ("implementation", str),
    "execution": ("execution", str),
    "ms": ("milliseconds", "{:.2f}".format),
    "images/s": ("images_per_second", lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"),
    "spread": ("spread", "{:.1%}".format),
    "% of limit": ("limit", "{:.1%}".format),
    "vs timm": ("speedup_over_timm", lambda value: "" if value is None else f"{value:.2f}x"),
    "memory": ("peak_memory", lambda value: "" if value is None else f"{value / 2**30:.2f} GiB"),
}
PREPROCESSING_COLUMNS = {
    "processor": ("processor", str),
    "threads": ("threads", str),
    "images/s": COLUMNS["images/s"],
    "spread": COLUMNS["spread"],
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), help="a fixed set of cases, or of those its --variants")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), help="sizes of the network (default: B/16, or all of a suite)"
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, help="images per step (default: 8)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="types of the weights (default: float32)")
    parser.add_argument("--mode", choices=["inference", "training"], help="what a step is (default: inference)")
    parser.add_argument("--executions", nargs="+", choices=EXECUTIONS, help="eager, or modes of torch.compile")
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS, help="default: all"
    )
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds (default: 10)")
    parser.add_argument("--device", help="device to run on (default: an accelerator if there is one)")
    parser.add_argument("--output_dir", default="outputs/benchmark", help="default: outputs/benchmark")
    parser.add_argument("--preprocessing", action="store_true", help="measure the image processors instead")
    return parser.parse_args(arguments)


def choose_cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases of a suite, or one for every combination of the arguments."""
    names = ("batch_sizes", "dtypes", "mode", "executions")
    given = [f"--{name}" for name in names if getattr(arguments, name) is not None]
    if arguments.suite is not None:
        if given:
            raise ValueError(f"--suite {arguments.suite} says what to measure: leave out {', '.join(given)}")
        cases = SUITES[arguments.suite]
        if arguments.variants is not None:
            cases = [case for case in cases if case.variant in arguments.variants]
        if not cases:
            raise ValueError(f"--suite {arguments.suite} has nothing for --variants {' '.join(arguments.variants)}")
        return cases
    if min(arguments.batch_sizes or [8]) < 1:
        raise ValueError(f"--batch_sizes have to be at least 1, got {arguments.batch_sizes}")
    return [
        Case(variant, batch_size, dtype, arguments.mode == "training", tuple(arguments.executions or ["eager"]))
        for variant, batch_size, dtype in itertools.product(
            arguments.variants or ["B/16"], arguments.batch_sizes or [8], arguments.dtypes or ["float32"]
        )
    ]


def format_table(rows: list[dict], columns: dict) -> str:
    """Return aligned columns, without those that are empty."""
    cells = {head: [write(row[key]) for row in rows] for head, (key, write) in columns.items()}
    cells = {head: values for head, values in cells.items() if any(values)}
    widths = {head: max(len(head), *map(len, values)) for head, values in cells.items()}
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths.values()))
        for line in [list(cells), *zip(*cells.values())]
    )


def run_cases(cases: list[Case], arguments: argparse.Namespace, device: torch.device, about: dict) -> None:
    """Measure every case, and save what is known after each."""
    folder = Path(arguments.output_dir)
    rows: list[dict] = []
    left_out = dict.fromkeys(
        f"left out: {implementation}: {reason}"
        for case, implementation in itertools.product(cases, arguments.implementations)
        if (reason := why_not(case, implementation, device))
    )
    print(*left_out, sep="\n", file=sys.stderr)
    # Types side by side, so that the ratio between them comes from the same rounds as well
    groups = [
        list(group) for _, group in itertools.groupby(cases, lambda case: (case.variant, case.batch_size, case.mode))
    ]
    with tqdm(groups, "Measuring") as progress:
        for group in progress:
            new = measure(group, arguments.implementations, arguments.rounds, device, progress.set_postfix_str)
            rows += new
            (folder / "benchmark.json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
            save_speed_bars(folder / "benchmark.png", rows)
            for rates in dict.fromkeys((row["dtype"], row["matmul_rate"], row["copy_rate"]) for row in new):
                about_rates = f"{rates[1] / 1e12:.3g} TFLOP/s, copy {rates[2] / 1e9:.3g} GB/s"
                tqdm.write(f"{group[0].variant}: matrix products of {rates[0]} {about_rates}")
            if new:
                tqdm.write(format_table(new, COLUMNS) + "\n")
                sys.stdout.flush()
    if not rows:
        raise ValueError("none of the implementations can take part here, see above")


def run(arguments: argparse.Namespace) -> None:
    with one_line_errors():
        cases = choose_cases(arguments)
        if arguments.rounds < 1:
            raise ValueError(f"--rounds has to be at least 1, got {arguments.rounds}")
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = torch.device(arguments.device or accelerator or "cpu")
        if device.type != "cpu" and (accelerator is None or device.type != accelerator.type):
            raise ValueError(f"there is no {device.type} here, only {accelerator or 'the CPU'}")
        os.makedirs(arguments.output_dir, exist_ok=True)
        about = {
            "device": describe_hardware(device),
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
        }
        print(about["device"], *(f"{name} {version}" for name, version in about["versions"].items()), sep="  ")
        if arguments.preprocessing:
            rows = measure_preprocessing(cases[0].config().image_size, arguments.rounds)
            print(format_table(rows, PREPROCESSING_COLUMNS))
        else:
            run_cases(cases, arguments, device, about)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
