# SPDX-License-Identifier: Apache-2.0
"""
Measure how fast Mixers run here, beside timm's and beside what the device can do.

    hf-mixer benchmark                                                   # B/16, inference, batch 8
    hf-mixer benchmark --variants S/16 B/16 --dtypes float32 bfloat16 --batch_sizes 1 8
    hf-mixer benchmark --mode training --executions eager default
    hf-mixer benchmark --suite cpu --variants B/16                       # of a fixed set, what there is for B/16
    hf-mixer benchmark --suite cpu --results_dir scripts/benchmarks      # all of it, and keep the figures of this machine
    hf-mixer benchmark --suite exports --model outputs/photos --dataset_name me/photos     # every format and type
    hf-mixer benchmark --preprocessing                                   # images per second before the model

Everything in a table was timed in one run, in rounds in which each takes its turn. `% of limit` is the time that the
matrix products need at the rate measured for them in the same rounds (or, for small batches, that the weights need to
be read) over the time taken. `vs timm` is the median over the rounds, both executed alike; ONNX Runtime and OpenVINO
have one way to execute hf_mixer's model, which is beside timm's eager one. Tables go to the screen, all figures to
`benchmark.json` and `benchmark.csv` and a picture to `benchmark.png` in --output_dir, after every case.

`--suite exports` exports a model to every format and type, int8 calibrated on 300 images of the split `train`, and measures
size, top-1 on the split `test` and time, beside the model in PyTorch, on the CPU. The figures go to a CSV file.
"""

import argparse
import datetime
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


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
# The suite that measures one trained model
EXPORTS = "exports"
# Arguments that mean nothing where no model runs
MODEL_ARGUMENTS = ("suite", "batch_sizes", "dtypes", "mode", "executions", "implementations", "device", "results_dir")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", help="a fixed set of cases: cpu or exports")
    parser.add_argument("--model", metavar="FOLDER", help="the model whose exports are measured")
    parser.add_argument("--dataset_name", help="its data, on the Hub or in a local folder (default: no top-1)")
    parser.add_argument("--variants", nargs="+", help="sizes of the network (default: B/16, or all of a suite)")
    parser.add_argument("--batch_sizes", nargs="+", type=int, help="images per step (default: 8)")
    parser.add_argument(
        "--dtypes", nargs="+", help="float32, bfloat16, float16, int8 or float8, of the weights (default: float32)"
    )
    parser.add_argument("--mode", choices=["inference", "training"], help="what a step is (default: inference)")
    parser.add_argument(
        "--executions",
        nargs="+",
        help="eager, freezing (compiled with constant weights, on a CPU), or modes of torch.compile (default: eager)",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        help="hf_mixer, hf_mixer_kernels, timm, timm_wrapper, onnxruntime or openvino (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds (default: 10)")
    parser.add_argument("--device", help="device to run on (default: an accelerator if there is one)")
    parser.add_argument("--output_dir", default="outputs/benchmark", help="default: outputs/benchmark")
    parser.add_argument(
        "--results_dir",
        help="also keep the figures here, in a CSV file for this machine and mode, such as in scripts/benchmarks",
    )
    parser.add_argument(
        "--preprocessing",
        action="store_true",
        help="measure the image processors instead, for the size of one variant",
    )
    parsed = parser.parse_args(arguments)
    hide_broken_torchvision()
    return parsed


def hide_broken_torchvision() -> None:
    """
    Let transformers do without a torchvision that was built for another torch. It imports torchvision wherever it is
    installed (5.24), and cannot be imported itself where that fails. To be called before transformers is imported.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    # A RuntimeError, an OSError or an AttributeError
    except Exception as error:
        print(f"torchvision cannot be imported, all runs without it: {' '.join(str(error).split())}", file=sys.stderr)
        # Whoever imports it or looks for it, is told that it is not installed
        sys.modules["torchvision"] = None  # type: ignore[assignment]


def check_arguments(parsed: argparse.Namespace) -> None:
    from ..benchmarking.cases import DTYPES, EXECUTIONS, IMPLEMENTATIONS, SUITES
    from ..configuration_mixer import VARIANTS

    for name, values, choices in (
        ("suite", [parsed.suite] if parsed.suite else None, (*SUITES, EXPORTS)),
        ("variants", parsed.variants, VARIANTS),
        ("dtypes", parsed.dtypes, DTYPES),
        ("executions", parsed.executions, EXECUTIONS),
        ("implementations", parsed.implementations, IMPLEMENTATIONS),
    ):
        unknown = [value for value in values or [] if value not in choices]
        if unknown:
            raise ValueError(f"--{name} knows no {unknown[0]!r}: choose from {', '.join(choices)}")
    if min(parsed.batch_sizes or [1]) < 1:
        raise ValueError(f"--batch_sizes have to be at least 1, got {parsed.batch_sizes}")
    if parsed.rounds < 1:
        raise ValueError(f"--rounds has to be at least 1, got {parsed.rounds}")
    if (parsed.suite == EXPORTS) != (parsed.model is not None):
        raise ValueError("--suite exports and --model FOLDER go together: give both, or none")
    if parsed.dataset_name is not None and parsed.model is None:
        raise ValueError("--dataset_name is the data of --model: give both, or leave it out")
    if parsed.preprocessing:
        given = [f"--{name}" for name in MODEL_ARGUMENTS if getattr(parsed, name) is not None]
        if given:
            raise ValueError(f"--preprocessing runs no model: leave out {', '.join(given)}")
        if len(parsed.variants or []) > 1:
            raise ValueError(f"--preprocessing is for the image size of one variant, got {' '.join(parsed.variants)}")


def choose_cases(parsed: argparse.Namespace) -> list:
    """Return the cases of a suite, or one for every combination of the arguments."""
    from ..benchmarking.cases import SUITES, Case

    if parsed.suite is None:
        return [
            Case(variant, batch_size, dtype, parsed.mode == "training", tuple(parsed.executions or ["eager"]))
            for variant, batch_size, dtype in itertools.product(
                parsed.variants or ["B/16"], parsed.batch_sizes or [8], parsed.dtypes or ["float32"]
            )
        ]
    names = ["batch_sizes", "dtypes", "mode", "executions"]
    if parsed.suite == EXPORTS:
        names += ["variants", "implementations", "device"]
    given = [f"--{name}" for name in names if getattr(parsed, name) is not None]
    if given:
        raise ValueError(f"--suite {parsed.suite} says what to measure: leave out {', '.join(given)}")
    if parsed.suite == EXPORTS:
        return []
    cases = [case for case in SUITES[parsed.suite] if parsed.variants is None or case.variant in parsed.variants]
    if not cases:
        raise ValueError(f"--suite {parsed.suite} has nothing for --variants {' '.join(parsed.variants)}")
    return cases


def format_table(rows: list[dict], columns: dict) -> str:
    """Return aligned columns, without those that are empty."""
    table = []
    for heading, (key, write) in columns.items():
        cells = [write(row[key]) for row in rows]
        if any(cells):
            width = max(len(cell) for cell in [heading, *cells])
            table.append([cell.rjust(width) for cell in [heading, *cells]])
    return "\n".join("  ".join(line) for line in zip(*table))


def say_who_takes_part(cases: list, implementations: Sequence[str], device) -> None:
    """Print what is left out and why, and what is measured otherwise than one would think."""
    from ..benchmarking.cases import unsupported_reason
    from ..benchmarking.timm_model import import_mlp_mixer

    reasons = dict.fromkeys(
        (name, unsupported_reason(case, name, device)) for case in cases for name in implementations
    )
    for name, reason in reasons:
        if reason is not None:
            print(f"left out: {name}: {reason}", file=sys.stderr)
    if ("timm", None) in reasons:
        _, missing_torchvision = import_mlp_mixer()
        if missing_torchvision is not None:
            print(
                f"timm: imported without torchvision, which its Mixer does not use: {missing_torchvision}",
                file=sys.stderr,
            )


def save_rows(rows: list[dict], about: dict, folder: Path) -> None:
    """Write the files of --output_dir."""
    from ..benchmarking.plots import save_speed_bars
    from ..benchmarking.results import make_lines, write_csv

    (folder / "benchmark.json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    write_csv(folder / "benchmark.csv", make_lines(rows, about))
    save_speed_bars(folder / "benchmark.png", rows)


def run_cases(parsed: argparse.Namespace, cases: list, device, about: dict) -> None:
    """Measure every case, and save what is known after each."""
    from tqdm import tqdm

    from ..benchmarking.cases import IMPLEMENTATIONS, unsupported_reason
    from ..benchmarking.measure import measure
    from ..benchmarking.results import keep_results, make_lines

    implementations = parsed.implementations or list(IMPLEMENTATIONS)
    say_who_takes_part(cases, implementations, device)
    rows: list[dict] = []
    # Types side by side, so that the ratio between them comes from the same rounds as well
    groups = itertools.groupby(cases, lambda case: (case.variant, case.batch_size, case.mode))
    with tqdm([list(group) for _, group in groups], "Measuring", disable=None) as progress:
        for group in progress:
            new = measure(group, implementations, parsed.rounds, device, progress.set_postfix_str)
            if not new:
                continue
            rows += new
            save_rows(rows, about, Path(parsed.output_dir))
            if parsed.results_dir is not None:
                keep_results(Path(parsed.results_dir), make_lines(new, about))
            for dtype, matmul, copy in dict.fromkeys(
                (row["dtype"], row["matmul_rate"], row["copy_rate"]) for row in new
            ):
                rates = f"{matmul / 1e12:.3g} TFLOP/s, copy {copy / 1e9:.3g} GB/s"
                tqdm.write(f"{group[0].variant}: matrix products of {dtype} {rates}")
            tqdm.write(format_table(new, COLUMNS) + "\n")
            sys.stdout.flush()
    num_steps = sum(
        len(case.executions_of(implementation))
        for case in cases
        for implementation in implementations
        if unsupported_reason(case, implementation, device) is None
    )
    if not num_steps:
        raise ValueError("none of the implementations can take part here, see above")
    if len(rows) < num_steps:
        missing = f"{num_steps - len(rows)} of {num_steps} could not be measured, see the warnings above"
        raise ValueError(f"{missing}: the others are in {parsed.output_dir}")


def load_data(parsed: argparse.Namespace) -> tuple:
    """Return the images to evaluate on and those to calibrate with, chosen as by the other commands."""
    from . import evaluate, export

    options = [parsed.model, "--dataset_name", parsed.dataset_name]
    evaluation = evaluate.parse_arguments(options)
    config = evaluate.load_model(evaluation)[0].config
    dataset = evaluate.prepare_images(evaluation, config, *evaluate.load_images(evaluation))
    calibration = export.parse_arguments([*options, parsed.output_dir, "--format", "onnx"])
    return dataset, list(export.read_calibration_images(calibration))


def run_exports(parsed: argparse.Namespace, about: dict) -> None:
    """Measure the exports of one model, and write the figures."""
    from tqdm import tqdm

    from ..benchmarking.exports import measure_exports
    from ..benchmarking.results import EXPORT_TABLE, keep_exports
    from ..progress import quiet_libraries

    quiet_libraries()
    dataset, calibration_images = (None, None) if parsed.dataset_name is None else load_data(parsed)
    with tqdm(desc="Measuring", bar_format="{desc}: {elapsed} {postfix}", disable=None) as progress:
        rows = measure_exports(parsed.model, parsed.rounds, dataset, calibration_images, progress.set_postfix_str)
    print(format_table(rows, EXPORT_TABLE))
    name = Path(parsed.dataset_name).name if parsed.dataset_name else None
    for folder in dict.fromkeys([parsed.output_dir, parsed.results_dir or parsed.output_dir]):
        keep_exports(Path(folder), rows, Path(parsed.model).name, name, about)


def run(parsed: argparse.Namespace) -> None:
    from ..benchmarking.measure import measure_preprocessing
    from ..benchmarking.results import describe_run
    from ..utils import check_device, one_line_errors

    with one_line_errors():
        check_arguments(parsed)
        cases, device = choose_cases(parsed), check_device("cpu" if parsed.suite == EXPORTS else parsed.device)
        if device.type != "cpu" and any("freezing" in case.executions for case in cases):
            raise ValueError(
                f"freezing is for the CPU, and {device} was chosen: add --device cpu, or take another one"
            )
        about = describe_run(device, datetime.date.today().isoformat())
        print(about["device"], *(f"{name} {version}" for name, version in about["versions"].items()), sep="  ")
        if parsed.preprocessing:
            rows = measure_preprocessing(cases[0].config().image_size, parsed.rounds)
            print(format_table(rows, PREPROCESSING_COLUMNS))
        elif parsed.suite == EXPORTS:
            run_exports(parsed, about)
        else:
            os.makedirs(parsed.output_dir, exist_ok=True)
            run_cases(parsed, cases, device, about)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
