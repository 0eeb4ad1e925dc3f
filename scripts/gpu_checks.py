# SPDX-License-Identifier: Apache-2.0
"""
Check on a GPU what needs one, the most important first: tests, speed beside timm's, and training to the end.

    python scripts/gpu_checks.py outputs/gpu
    python scripts/gpu_checks.py outputs/gpu --dataset_name data/cifar10        # where there is no network
    python scripts/gpu_checks.py outputs/gpu --parts inference float8
    python scripts/gpu_checks.py outputs/gpu --tiny                             # whether the checks run, on any machine

Each part ends after its time at the latest, and the next one follows, whatever became of it. What a part prints goes to
`PART.log`, its figures or its model to the folder `PART`, and figures of speed to `benchmark-*.csv`, as in
`scripts/benchmarks`; those of float8 to such a file in the folder `float8`. A table of the parts comes last, also when it is
stopped; the exit status is 1 if one of them failed or had no time left.
"""

import argparse
import contextlib
import importlib.metadata
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
# What the parts need, by the names that pip knows
PACKAGES = ["hf_mixer", "datasets", "kornia", "pytest-xdist", "timm"]
TESTS = "-m pytest -v -n 4"
BENCHMARK = "scripts/benchmark.py --output_dir {folder}/{part} --dtypes bfloat16"
SPEED = f"{BENCHMARK} --results_dir {{folder}} --implementations hf_mixer hf_mixer_kernels timm"
TEACHER = "scripts/train_teacher.py --output_dir {folder}/{part} --dataset_name {dataset_name}"
TRAINING = (
    "scripts/train.py --output_dir {folder}/{part} --dataset_name {dataset_name} --eval_split test "
    "--teacher_model {folder}/cifar10-resnet {compilation} --report_to none"
)
ACCURACY = (
    "scripts/evaluate.py model_cards/mixer-nano-cifar10 --output_dir {folder}/{part} --dataset_name {dataset_name} "
    "--split test"
)
B16 = "--variants B/16 --batch_sizes 256"
# The seconds that a part may take, and what Python is to run. These parts run at the same time: what is compiled beside the
# tests is in Inductor's cache when its speed is measured.
TOGETHER = {
    "gpu-tests": (100, f"{TESTS} -m gpu"),
    "kernel-tests": (100, f"{TESTS} tests/kernels -m 'not gpu'"),
    **{
        f"compile-{mode}": (
            120,
            f"{BENCHMARK} {B16} --mode {mode} --executions default --rounds 1 --implementations hf_mixer {others}",
        )
        for mode, others in (("inference", "hf_mixer_kernels timm"), ("training", "timm"))
    },
}
# A case that is measured again replaces all its lines in the CSV file: these parts measure the other executions, too
PARTS = {
    **TOGETHER,
    "inference": (120, f"{SPEED} {B16} --executions eager default"),
    "training": (120, f"{SPEED} {B16} --mode training --executions eager default"),
    "cifar10-resnet": (180, TEACHER),
    "cifar10-nano": (420, f"{TRAINING} --recipe cifar10-nano"),
    "latency": (120, f"{SPEED} --variants B/16 --batch_sizes 1 --executions eager reduce-overhead"),
    # A file of its own, because it measures bfloat16 again
    "float8": (
        120,
        f"{BENCHMARK} float8 --results_dir {{folder}}/{{part}} {B16} "
        "--executions reduce-overhead --implementations hf_mixer hf_mixer_kernels",
    ),
    "float8-accuracy": (60, f"{ACCURACY} --dtype float8"),
    "sizes": (240, f"{SPEED} --variants S/16 L/16 --batch_sizes 256 --executions eager default"),
    "cifar10": (120, f"{SPEED} --variants cifar10 --batch_sizes 1024 --executions eager default"),
    "inference-tuned": (420, f"{SPEED} {B16} --executions eager default max-autotune"),
    "training-tuned": (420, f"{SPEED} {B16} --mode training --executions eager default max-autotune"),
    "cifar10-small": (600, f"{TRAINING} --recipe cifar10-small"),
}
DEFAULT = [part for part in PARTS if part not in ("training-tuned", "cifar10-small")]
# Of a log on the screen
LINES = 15
# Later arguments win
TINY = {
    TESTS: "-n 0 -k 'refused or on_a_gpu'",
    BENCHMARK: (
        "--device cpu --variants cifar10 --batch_sizes 2 --dtypes bfloat16 --executions eager --rounds 1 "
        "--implementations hf_mixer"
    ),
    TEACHER: (
        "--max_train_samples 16 --max_eval_samples 8 --per_device_train_batch_size 8 --num_train_epochs 1 "
        "--teacher_image_size 32"
    ),
    ACCURACY: "--dtype bfloat16 --max_eval_samples 16",
    TRAINING: (
        "--use_cpu true --cache_images memory --max_train_samples 64 "
        "--max_eval_samples 16 --per_device_train_batch_size 32 --max_steps 2"
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to keep the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--dataset_name", default="uoft-cs/cifar10", help="CIFAR-10 on the Hub, or a folder that holds it"
    )
    parser.add_argument("--minutes", type=float, default=12, help="for all parts together (default: 12)")
    parser.add_argument("--tiny", action="store_true", help="few tests, small models and two steps, on the CPU")
    parsed = parser.parse_args()
    if not parsed.tiny and (problem := find_problem()) is not None:
        parser.error(problem)
    return parsed


def find_problem() -> str | None:
    """Return what keeps parts from running that would only say so when their turn comes."""
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device: take a machine and a build of torch with one, or --tiny"
    for name in PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed: the parts need {', '.join(PACKAGES)}"
    return None


def make_command(part: str, parsed: argparse.Namespace) -> list[str]:
    """Return what Python is to run for a part, in the root of the clone."""
    command = PARTS[part][1]
    if parsed.tiny:
        command += " " + next(tiny for start, tiny in TINY.items() if command.startswith(start))
    dataset_name = parsed.dataset_name
    if Path(dataset_name).exists():
        dataset_name = Path(dataset_name).resolve()
    values = {
        "folder": parsed.folder.resolve(),
        "part": part,
        "dataset_name": dataset_name,
        "compilation": "--torch_compile=false" if parsed.tiny else "--torch_compile_mode=reduce-overhead",
    }
    return [word.format(**values) for word in shlex.split(command)]


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """Python with some arguments. At the end it is killed, and so is what it started."""
    # The clone goes before an installed package
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(process: subprocess.Popen, end: float, parsed: argparse.Namespace) -> str:
    """Wait until a time of the monotonic clock, or the end of all parts. Say what became of a process."""
    while (status := process.poll()) is None:
        if time.monotonic() >= min(end, parsed.end):
            return "out of time"
        time.sleep(0.1)
    return f"failed ({status})" if status else "passed"


def run_parts(parts: list[str], parsed: argparse.Namespace) -> list[tuple[str, str, float]]:
    """Run parts at the same time. Return the name, status and seconds of each."""
    start = time.monotonic()
    if start >= parsed.end:
        return [(part, "no time left", 0.0) for part in parts]
    results = []
    logs = [parsed.folder / f"{part}.log" for part in parts]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(make_command(part, parsed), log)) for part, log in zip(parts, logs)]
        for part, log, process in zip(parts, logs, processes):
            status = wait_for(process, start + PARTS[part][0], parsed)
            results.append((part, status, time.monotonic() - start))
            print(f"{part}: {status}, the end of {log}:", flush=True)
            print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:], "", sep="\n", flush=True)
    return results


def main():
    parsed = parse_arguments()
    parsed.folder.mkdir(parents=True, exist_ok=True)
    parsed.end = time.monotonic() + 60 * parsed.minutes
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(parsed, "end", 0))
    first = [part for part in parsed.parts if part in TOGETHER]
    results = run_parts(first, parsed)
    for part in parsed.parts:
        if part not in TOGETHER:
            results += run_parts([part], parsed)
    for part, status, seconds in results:
        print(f"{part:34}  {status:12}  {seconds:4.0f} s")
    sys.exit(any(status != "passed" for _, status, _ in results))


if __name__ == "__main__":
    main()
