# SPDX-License-Identifier: Apache-2.0
"""The figures of a benchmark in CSV files, in the manner of timm's `results`, and the tables made of those."""

import csv
import importlib.metadata
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..utils import describe_hardware, library_versions
from .cases import DTYPES
from .exports import BATCH_SIZES


LIBRARIES = ("timm", "onnxruntime", "openvino", "executorch")
# What a processor may have for matrix products, the best one first: the name in torch, and what people call it
INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 BF16",
    "bf16": "bf16",
    "avx512_f": "AVX-512",
    "avx2": "AVX2",
}
# A column, and what it is of a row of `measure`, those with the prefix infer_ or train_ first
PREFIXED = {
    "img_size": lambda row: row["image_size"],
    "samples_per_sec": lambda row: f"{row['images_per_second']:.2f}",
    "step_time": lambda row: f"{row['milliseconds']:.3f}",
    "batch_size": lambda row: row["batch_size"],
    "gmacs": lambda row: f"{row['flops'] / 2e9:.2f}",
}
MODES = {"inference": "infer", "training": "train"}
OTHERS = {
    "param_count": lambda row: f"{row['num_parameters'] / 1e6:.2f}",
    "spread": lambda row: f"{row['spread']:.4f}",
    "limit": lambda row: f"{row['limit']:.4f}",
    "speedup_over_timm": lambda row: "" if row["speedup_over_timm"] is None else f"{row['speedup_over_timm']:.3f}",
    "peak_memory": lambda row: row["peak_memory"],
}
NAMES = ("model", "implementation", "execution", "dtype")
# What a table has in common, and what else its figures may depend on
MACHINE = ("device", "threads", "torch", "transformers", "hf_mixer")
VERSIONS = (*MACHINE[2:], *LIBRARIES, "python")
EXPORTS = ("runtime", "bytes", "dataset", "num_images", "top1")
EXPORT_TIMES = tuple(f"{name}_{size}" for name in ("step_time", "spread", "threads") for size in BATCH_SIZES)
COLUMNS = (
    *NAMES,
    *EXPORTS,
    *EXPORT_TIMES,
    *(f"{prefix}_{name}" for prefix in MODES.values() for name in PREFIXED),
    *OTHERS,
    *MACHINE[:2],
    *VERSIONS,
    "date",
)
BEGIN, END = "<!-- begin: python scripts/benchmark_tables.py -->", "<!-- end -->"


def describe_run(device: torch.device, date: str) -> dict[str, Any]:
    """Return what the figures of a run depend on: the device, the number of threads and the versions. `date` as in ISO 8601."""
    hardware = describe_hardware(device)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        instructions = [name for key, name in INSTRUCTIONS.items() if capabilities.get(key)]
        hardware = ", ".join([hardware, *instructions[:1]])
    versions = library_versions()
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"device": hardware, "threads": torch.get_num_threads(), "date": date, "versions": versions}


def make_lines(rows: Iterable[dict[str, Any]], about: dict[str, Any]) -> list[dict[str, str]]:
    """Return the lines of a CSV file for rows of [`measure`] and what [`describe_run`] says about them."""
    flat = {key: about[key] for key in ("device", "threads", "date")}
    lines = []
    for row in rows:
        prefix = MODES[row["mode"]]
        # `timm_wrapper` runs timm
        others = [name for name in LIBRARIES if not row["implementation"].startswith(name)]
        line = {
            **{name: row[name] for name in NAMES},
            **{f"{prefix}_{name}": write(row) for name, write in PREFIXED.items()},
            **{name: write(row) for name, write in OTHERS.items()},
            **flat,
            **{name: version for name, version in about["versions"].items() if name not in others},
        }
        lines.append({key: "" if value is None else str(value) for key, value in line.items()})
    return lines


def write_csv(path: Path, lines: Sequence[dict[str, str]]) -> None:
    """Write a CSV file with the columns that the lines have."""
    columns = [name for name in COLUMNS if any(name in line for line in lines)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def read_csv(path: Path) -> list[dict[str, str]]:
    """
    Read what [`write_csv`] wrote.

    Raises:
        `ValueError`: the file has no columns of a benchmark.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {*NAMES, *OTHERS, *MACHINE, "date"} <= lines[0].keys():
        raise ValueError(f"{path} holds no results of a benchmark: remove it, or write it with --results_dir")
    return lines


def _prefix(line: dict[str, str]) -> str:
    return next(prefix for prefix in MODES.values() if line.get(f"{prefix}_step_time"))


def _case(line: dict[str, str]) -> tuple[str, ...]:
    """What was measured together: a model in a type, with a batch size and a number of threads."""
    return line["model"], line["dtype"], line[f"{_prefix(line)}_batch_size"], line["threads"]


def _size(line: dict[str, str]) -> tuple[float, int, int, int]:
    batch_size = int(line[f"{_prefix(line)}_batch_size"])
    return float(line["param_count"]), batch_size, DTYPES.index(line["dtype"]), int(line["threads"])


def file_name(line: dict[str, str]) -> str:
    """Return the name of the file for a machine and mode, such as `benchmark-infer-pt213-amd_epyc_2_cores_avx2.csv`."""
    return f"benchmark-{_prefix(line)}-{_machine(line)}.csv"


def _machine(line: dict[str, str]) -> str:
    torch_version = "".join(line["torch"].split(".")[:2])
    machine = re.sub(r"\((r|tm)\)", "", line["device"].lower())
    return f"pt{torch_version}-{'_'.join(re.findall('[a-z0-9]+', machine))}"


def keep_results(folder: Path, lines: Iterable[dict[str, str]]) -> None:
    """
    Put lines into the files of their machine and mode. A case that was measured before, is replaced as a whole, so that
    all lines of it are of one run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, group in itertools.groupby(sorted(lines, key=file_name), file_name):
        new, path = list(group), folder / name
        cases = {_case(line) for line in new}
        old = [line for line in read_csv(path) if _case(line) not in cases] if path.exists() else []
        write_csv(path, sorted(old + new, key=_size))


def keep_exports(folder: Path, rows: Iterable[dict[str, Any]], model: str, dataset: str | None, about: dict) -> Path:
    """
    Write rows of [`measure_exports`] into the file of their model and machine, in place of an earlier run's, and return it.
    `model` and `dataset` are their names for people, and `about` is what [`describe_run`] says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = {key: about[key] for key in ("device", "threads", "date")} | about["versions"]
    lines = []
    for row in rows:
        line = {"model": model, "dataset": dataset, **row, **flat}
        line |= {name: f"{row[name]:.4g}" for name in EXPORT_TIMES}
        lines.append({key: "" if value is None else str(value) for key, value in line.items()})
    path = folder / f"exports-{re.sub('[^a-z0-9]+', '_', model.lower())}-{_machine(lines[0])}.csv"
    write_csv(path, lines)
    return path


def _share(value: str) -> str:
    return f"{100 * float(value):.0f} %"


# Heading, column, and how it is written
TABLE: dict[str, tuple[str, Callable[[str], str]]] = {
    "model": ("model", str),
    "dtype": ("dtype", str),
    "batch": ("batch_size", str),
    "implementation": ("implementation", str),
    "execution": ("execution", str),
    "ms": ("step_time", lambda value: f"{float(value):,.1f}"),
    "images/s": ("samples_per_sec", lambda value: f"{float(value):,.1f}"),
    "spread": ("spread", _share),
    "of the limit": ("limit", _share),
    "beside timm": ("speedup_over_timm", lambda value: f"{float(value):.2f} x" if value else ""),
}


# The columns of a table of exports, for figures as they are measured and as they stand in a CSV file
EXPORT_TABLE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "runs in": ("runtime", str),
    "type": ("dtype", str),
    "size": ("bytes", lambda value: f"{int(value) / 1e6:.1f} MB"),
    "top-1": ("top1", lambda value: "" if value in (None, "") else f"{100 * float(value):.2f} %"),
    **{f"ms, batch {size}": (f"step_time_{size}", lambda value: f"{float(value):,.2f}") for size in BATCH_SIZES},
}


def make_tables(folder: Path) -> str:
    """
    Return a table in Markdown for every file of results in a folder, number of threads and release of the packages; those
    of exports come last.

    Raises:
        `ValueError`: there are none, or one of them holds something else.
    """
    parts = []
    for path in sorted(folder.glob("benchmark-*.csv")):
        lines = read_csv(path)
        machine = operator.itemgetter(*MACHINE)
        # `sorted` keeps the order of those that are alike
        for _, group in itertools.groupby(sorted(lines, key=machine), machine):
            parts.append(_make_table(list(group)))
    if not parts:
        raise ValueError(
            f"{folder} has no benchmark-*.csv: make them with `hf-mixer benchmark --results_dir {folder}`"
        )
    return "\n\n".join([*parts, *(make_export_table(path) for path in sorted(folder.glob("exports-*.csv")))])


def _make_table(lines: list[dict[str, str]]) -> str:
    prefix = _prefix(lines[0])
    mode = {short: mode for mode, short in MODES.items()}[prefix]
    table = [list(TABLE), ["---"] * len(TABLE)]
    for line in lines:
        values = [(line.get(f"{prefix}_{name}", line.get(name, "")), write) for name, write in TABLE.values()]
        table.append([write(value) for value, write in values])
    return _under_head(mode.capitalize(), lines, table)


def make_export_table(path: Path) -> str:
    """
    Return the table in Markdown for a file of [`keep_exports`].

    Raises:
        `ValueError`: it holds something else.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {"model", *EXPORTS, *EXPORT_TIMES, *MACHINE, "date"} <= lines[0].keys():
        raise ValueError(f"{path} holds no results of exports: remove it, or write it with --suite exports")
    table = [list(EXPORT_TABLE), ["---"] * len(EXPORT_TABLE)]
    for line in lines:
        table.append([write(line[name]) for name, write in EXPORT_TABLE.values()])
    first = lines[0]
    measured = f", top-1 on {int(first['num_images']):,} images of {first['dataset']}" if first["dataset"] else ""
    return _under_head(f"Exports of {first['model']}{measured},", lines, table)


def _under_head(subject: str, lines: list[dict[str, str]], table: list[list[str]]) -> str:
    """Return a table in Markdown under a line that says what was measured where, and with which versions."""
    said = {
        name: " and ".join(sorted({line[name] for line in lines if line.get(name)})) for name in (*VERSIONS, "date")
    }
    versions = ", ".join(f"{name} {said[name]}" for name in VERSIONS if said[name])
    first = lines[0]
    head = f"{subject} on {first['device']}, with {first['threads']} threads ({versions}; {said['date']}):"
    return "\n".join([head, "", *(f"| {' | '.join(cells)} |" for cells in table)])


def update_tables(document: Path, folder: Path) -> None:
    """
    Write the tables of a folder of results between the marks in a document.

    Raises:
        `ValueError`: the document has no marks, or the folder no results.
    """
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no place for the tables: write the lines {BEGIN} and {END} there")
    document.write_text(f"{before}{BEGIN}\n\n{make_tables(folder)}\n\n{END}{after}", encoding="utf-8")
