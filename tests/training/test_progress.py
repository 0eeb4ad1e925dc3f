from types import SimpleNamespace

import pytest

from transformers.trainer_callback import CallbackHandler, PrinterCallback, ProgressCallback

from hf_mixer.training.progress import ConsoleCallback, format_duration, format_number


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (45, "45 s"), (700, "12 min"), (12_000, "3 h 20 min")])
def test_durations_are_told_as_people_do(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.30259, "2.303"), (0.00012345, "0.0001234"), (27253.4, "27,253"), (-1.197e9, "-1,197,000,000")],
)
def test_losses_are_plain_numbers(value, text):
    assert format_number(value) == text


def test_progress_is_told_in_plain_lines_where_nobody_watches(capsys):
    args = SimpleNamespace(disable_tqdm=True, metric_for_best_model="f1_macro")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=2, epoch=None)
    console = ConsoleCallback("single_label_classification")
    console.on_train_begin(args, state, None)
    state.global_step, state.epoch = 2, 1.0
    console.on_step_end(args, state, None)
    console.on_log(args, state, None, logs={"loss": 0.123456, "learning_rate": 1e-3, "epoch": 1.0})
    metrics = {
        "eval_loss": 0.5,
        "eval_accuracy": 0.75,
        "eval_f1_macro": 0.7,
        "eval_ece": 0.1,
        "eval_recall_macro": 0.6,
    }
    console.on_evaluate(args, state, None, metrics=metrics)
    console.on_train_end(args, state, None)
    assert capsys.readouterr().out.splitlines() == [
        "step 2 of 2  loss 0.1235  learning rate 0.001",
        "epoch 1: validation loss 0.5, accuracy 75.00 %, macro F1 70.00 %",
    ]


@pytest.mark.parametrize("is_main", [True, False])
def test_only_one_of_several_processes_tells_its_progress(is_main):
    callbacks = CallbackHandler([ProgressCallback, PrinterCallback], None, None, None, None)
    trainer = SimpleNamespace(
        pop_callback=callbacks.pop_callback,
        add_callback=callbacks.add_callback,
        is_world_process_zero=lambda: is_main,
    )
    console = ConsoleCallback("regression")
    console.attach(trainer)
    assert callbacks.callbacks == [console] * is_main
