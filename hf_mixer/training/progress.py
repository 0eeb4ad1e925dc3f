# SPDX-License-Identifier: Apache-2.0
"""What a training run prints while it is under way: a bar on a terminal, plain lines everywhere else."""

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import has_length

from ..evaluation.metrics import METRICS


# What is measured before a run tells how long it will take: so many steps, or what is done in so many seconds
STEPS_TO_JUDGE, SECONDS_TO_JUDGE = 10, 30.0
NUM_METRICS_SHOWN = 2
MAX_WIDTH = 100
BAR_FORMAT = "{l_bar}{bar}| step {n_fmt} of {total_fmt}, {remaining} left{postfix}"


def is_interactive(args) -> bool:
    """Whether someone watches the run in a terminal, and did not ask for `disable_tqdm`."""
    return not args.disable_tqdm and sys.stdout.isatty() and sys.stderr.isatty()


def console_width() -> int:
    """Return how many characters a line may have: those of the terminal, as far as lines of that length can be read."""
    return max(40, min(shutil.get_terminal_size().columns, MAX_WIDTH))


def format_duration(seconds: float) -> str:
    """Return `45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def format_number(value: float) -> str:
    """Return a number with four digits, and large ones without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def format_name(problem_type: str, name: str) -> str:
    """Return what people call a metric of `METRICS`, or a loss."""
    metric = METRICS[problem_type].get(name)
    return metric.title if metric is not None else name.replace("_", " ")


def format_value(problem_type: str, name: str, value: float) -> str:
    """Return the value of a metric of `METRICS`, or of a loss: in percent or with four digits."""
    metric = METRICS[problem_type].get(name)
    return f"{100 * value:.2f} %" if metric is not None and metric.is_share else format_number(value)


def choose_metrics(problem_type: str, metrics: Mapping[str, Any], more: str | None = None) -> list[str]:
    """Return the names of the metrics to show while training: those that sum up a model best, and one more."""
    names = [name for name in METRICS[problem_type] if name in metrics][:NUM_METRICS_SHOWN]
    if more is not None and more not in names and more in metrics and more != "loss":
        names.append(more)
    return names


class ConsoleCallback(TrainerCallback):
    """
    Print the progress of a run in the main process: a bar with the loss, the last evaluation and the time that is left,
    and a line for each evaluation. Where nobody watches, a line for every entry of the log takes the place of the bar.

    It replaces the callbacks by which `Trainer` prints dictionaries; `attach` removes them.

    Args:
        problem_type (`str`):
            The kind of the labels, whose metrics are shown.
    """

    def __init__(self, problem_type: str):
        self.problem_type = problem_type
        self.bar: tqdm | None = None
        self.evaluation_bar: tqdm | None = None
        self.shown: dict[str, str] = {}
        # The time and the number of the first step
        self.started: tuple[float, int] | None = None
        self.is_judged = False
        self.is_training = False
        self.num_batches = 0

    def attach(self, trainer) -> None:
        """Have a trainer print this way in the main process, and not at all in the others."""
        trainer.pop_callback(ProgressCallback)
        trainer.pop_callback(PrinterCallback)
        if trainer.is_world_process_zero():
            trainer.add_callback(self)

    def write(self, line: str) -> None:
        """Print a line, above the bars where there are any."""
        if self.bar is None and self.evaluation_bar is None:
            print(line, flush=True)
        else:
            tqdm.write(line)

    def close(self) -> None:
        """Take the bars away, also those of a run that was stopped."""
        for bar in (self.evaluation_bar, self.bar):
            if bar is not None:
                bar.close()
        self.bar = self.evaluation_bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_training, self.is_judged, self.started = True, False, None
        if state.global_step:
            self.write(f"Going on after step {state.global_step:,} of {state.max_steps:,}")
        if is_interactive(args):
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, bar_format=BAR_FORMAT, ncols=console_width()
            )

    def show(self) -> None:
        """Write behind the bar what is known of the run."""
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(self.shown.values()))

    def on_step_end(self, args, state, control, **kwargs):
        now, step = time.monotonic(), state.global_step
        if self.started is None:
            # Not before, because the first step is slower than the others
            self.started = (now, step)
        elif not self.is_judged:
            is_enough = step - self.started[1] >= STEPS_TO_JUDGE or now - self.started[0] > SECONDS_TO_JUDGE
            if is_enough:
                self.is_judged = True
                left = format_duration(self.seconds_left(state, *self.started))
                self.write(f"The training will take about {left}, and the evaluations besides")
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def seconds_left(self, state, started: float, first_step: int) -> float:
        """Return how long the rest will take at the speed since the end of the first step."""
        return (time.monotonic() - started) / (state.global_step - first_step) * (state.max_steps - state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self.is_training or "loss" not in (logs or {}):
            return
        self.shown["loss"] = f"loss {format_number(logs['loss'])}"
        self.show()
        if self.bar is not None:
            return
        left = ""
        if self.started is not None and self.started[1] < state.global_step < state.max_steps:
            left = f"  {format_duration(self.seconds_left(state, *self.started))} left"
        rate = f"  learning rate {logs['learning_rate']:.2g}" if "learning_rate" in logs else ""
        self.write(f"step {state.global_step:,} of {state.max_steps:,}  {self.shown['loss']}{rate}{left}")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not is_interactive(args):
            return
        total = len(eval_dataloader) if has_length(eval_dataloader) else None
        self.num_batches += 1
        if self.bar is not None:
            self.bar.set_postfix_str(f"evaluating {self.num_batches}" + (f" of {total}" if total is not None else ""))
            return
        if self.evaluation_bar is None:
            self.evaluation_bar = tqdm(
                total=total, desc="evaluating", unit="batch", leave=False, ncols=console_width()
            )
        self.evaluation_bar.update(1)

    def close_evaluation(self) -> None:
        self.num_batches = 0
        if self.evaluation_bar is not None:
            self.evaluation_bar.close()
            self.evaluation_bar = None

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.close_evaluation()
        if not self.is_training:
            return
        values = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        best = (args.metric_for_best_model or "").removeprefix("eval_")
        names = choose_metrics(self.problem_type, values, best)
        parts = [
            f"{format_name(self.problem_type, name)} {format_value(self.problem_type, name, values[name])}"
            for name in ("loss", *names)
            if name in values
        ]
        self.write(f"epoch {state.epoch or 0:.4g}: validation {', '.join(parts)}")
        if names:
            self.shown["metric"] = parts[-len(names)]
        self.show()

    def on_predict(self, args, state, control, metrics=None, **kwargs):
        self.close_evaluation()

    def on_train_end(self, args, state, control, **kwargs):
        self.close()
        self.is_training = False
