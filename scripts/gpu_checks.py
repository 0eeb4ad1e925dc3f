# SPDX-License-Identifier: Apache-2.0
"""
Check on a GPU what needs one, the most important first: tests, speed beside timm's, and training to the end.

    python scripts/gpu_checks.py outputs/gpu
    python scripts/gpu_checks.py outputs/gpu --dataset_name data/cifar10        # where there is no network
    python scripts/gpu_checks.py outputs/gpu --parts inference float8
    python scripts/gpu_checks.py outputs/gpu --tiny                             # whether the checks run, on any machine

Each part ends after its time at the latest, and the next one follows, whatever became of it. What a part prints goes to
`PART.log`, its figures or its model to the folder `PART`, and all figures of speed to `benchmark-*.csv`, as in
`scripts/benchmarks`. A table of the parts comes last; the exit status is 1 if one of them failed or had no time left.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
TESTS = "-m pytest -q -n 4"
SPEED = (
    "scripts/benchmark.py --output_dir {folder}/{part} --results_dir {folder} "
    "--implementations hf_mixer hf_mixer_kernels timm --dtypes bfloat16"
)
TRAINING = "scripts/train.py --output_dir {folder}/{part} --dataset_name {dataset_name} --torch_compile true"
# Some repeat executions of others: a case that is measured again replaces all its lines in the CSV file
B16 = f"{SPEED} --variants B/16 --batch_sizes 256"
# The seconds that a part may take, and what Python is to run
PARTS = {
    "gpu-tests": (60, f"{TESTS} -m gpu"),
    "kernel-tests": (60, f"{TESTS} tests/kernels"),
    "inference": (120, f"{B16} --executions eager default"),
    "training": (180, f"{B16} --mode training --executions eager default"),
    "cifar10-nano": (300, f"{TRAINING} --recipe cifar10-nano"),
    "inference-tuned": (240, f"{B16} --executions eager default max-autotune"),
    "latency": (90, f"{SPEED} --variants B/16 --batch_sizes 1 --executions eager reduce-overhead"),
    "float8": (120, f"{B16} --dtypes float8 --executions default max-autotune"),
    "sizes": (180, f"{SPEED} --variants S/16 L/16 --batch_sizes 256 --executions eager default"),
    "cifar10": (90, f"{SPEED} --variants cifar10 --batch_sizes 1024 --executions eager default"),
    "training-tuned": (300, f"{B16} --mode training --executions eager default max-autotune-no-cudagraphs"),
    "cifar10-small": (600, f"{TRAINING} --recipe cifar10-small"),
}
DEFAULT = [part for part in PARTS if part != "cifar10-small"]
# Of a log on the screen
LINES = 15
# Later arguments win
TINY = {
    TESTS: "-k 'gpu or refused'",
    SPEED: "--device cpu --variants cifar10 --batch_sizes 2 --dtypes bfloat16 --executions eager --rounds 1",
    TRAINING: (
        "--torch_compile false --use_cpu true --cache_images memory --report_to none --max_train_samples 64 "
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
    return parser.parse_args()


def make_command(part: str, parsed: argparse.Namespace) -> list[str]:
    """Return what Python is to run for a part."""
    command = PARTS[part][1]
    if parsed.tiny:
        command += " " + next(tiny for start, tiny in TINY.items() if command.startswith(start))
    values = {"folder": parsed.folder.resolve(), "part": part, "dataset_name": parsed.dataset_name}
    return [word.format(**values) for word in shlex.split(command)]


def run_python(command: list[str], seconds: float, log: Path) -> str:
    """Run Python in the root of the clone, and say what became of it. Nothing that it started outlives it."""
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
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"failed ({status})" if status else "passed"


def main():
    parsed = parse_arguments()
    parsed.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * parsed.minutes
    summary = []
    for part in parsed.parts:
        start, log = time.monotonic(), parsed.folder / f"{part}.log"
        limit = min(PARTS[part][0], end - start)
        if limit <= 0:
            summary.append((part, "no time left", 0.0, ""))
            continue
        print(f"{part}: {limit:.0f} seconds at most", flush=True)
        status = run_python(make_command(part, parsed), limit, log)
        summary.append((part, status, time.monotonic() - start, str(log)))
        print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:], "", sep="\n", flush=True)
    for part, status, seconds, log in summary:
        print(f"{part:15}  {status:12}  {seconds:4.0f} s  {log}")
    sys.exit(any(status != "passed" for _, status, _, _ in summary))


if __name__ == "__main__":
    main()
