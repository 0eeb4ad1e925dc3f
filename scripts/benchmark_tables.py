# SPDX-License-Identifier: Apache-2.0
"""
Write the tables of `hf_mixer/benchmarking/README.md` anew, from the files that
`hf-mixer benchmark --results_dir scripts/benchmarks` keeps.

    python scripts/benchmark_tables.py
"""

import argparse
from pathlib import Path

from hf_mixer.benchmarking.results import update_tables
from hf_mixer.utils import one_line_errors


ROOT = Path(__file__).resolve().parent.parent


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with one_line_errors():
        update_tables(ROOT / "hf_mixer" / "benchmarking" / "README.md", ROOT / "scripts" / "benchmarks")


if __name__ == "__main__":
    main()
