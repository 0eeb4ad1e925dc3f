import pickle

import pytest

from hf_mixer.training import MixerTrainingArguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_images": "disk"}, "--cache_images has to be one of none, memory, device, got 'disk'"),
        (
            {"cache_images": "device", "dataloader_num_workers": 2},
            "--cache_images device needs no --dataloader_num_workers, got 2",
        ),
        ({"dataloader_num_workers": -2}, "--dataloader_num_workers has to be at least -1, got -2"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size has to be a positive integer, got 0"),
        ({"learning_rate": -1e-3}, "--learning_rate has to be a number of at least 0, got -0.001"),
        ({"learning_rate": float("nan")}, "--learning_rate has to be a number of at least 0, got nan"),
        ({"num_train_epochs": -1}, "--num_train_epochs has to be a positive number, got -1: give it, or --max_steps"),
        ({"max_steps": 0}, "--max_steps has to be -1 or a positive integer, got 0"),
        ({"layer_decay": 1.5}, r"--layer_decay has to be in \(0, 1\], got 1.5"),
        ({"ema_decay": 1.0}, r"--ema_decay has to be in \(0, 1\), got 1.0"),
        ({"label_smoothing_factor": 1.0}, r"--label_smoothing_factor has to be in \[0, 1\), got 1.0"),
        ({"horizontal_flip": 2.0}, r"`horizontal_flip` has to be in \[0, 1\], got 2.0"),
        ({"optim": "adam9"}, "--optim has to be one of adamw_torch, .*, got 'adam9'"),
        ({"class_weights": "inverse"}, "--class_weights has to be one of none, balanced, got 'inverse'"),
        ({"label_threshold": "high"}, r"--label_threshold has to be a probability in \[0, 1\] or best_f1, got 'high'"),
        ({"early_stopping_patience": 3}, "--early_stopping_patience needs evaluations .* give --eval_strategy epoch"),
        (
            {"early_stopping_patience": 3, "eval_strategy": "epoch", "save_strategy": "no"},
            "--early_stopping_patience needs --save_strategy epoch, like --eval_strategy, or best, got no",
        ),
    ],
)
def test_values_that_no_run_can_have_are_refused_before_it(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        MixerTrainingArguments(str(tmp_path), **arguments)
    assert "\n" not in str(error.value)


def test_the_number_of_epochs_does_not_matter_where_the_steps_are_given(tmp_path):
    assert MixerTrainingArguments(str(tmp_path), num_train_epochs=0, max_steps=3).max_steps == 3


def test_early_stopping_saves_whenever_it_evaluates_and_ends_with_the_best_model(tmp_path):
    arguments = {"early_stopping_patience": 2}
    args = MixerTrainingArguments(str(tmp_path), eval_strategy="epoch", **arguments)
    assert (args.save_strategy, args.load_best_model_at_end) == ("epoch", True)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    args = MixerTrainingArguments(str(tmp_path), eval_strategy="steps", eval_steps=7, **arguments)
    assert (args.save_strategy, args.save_steps) == ("steps", 7)


@pytest.mark.parametrize(
    ("metric", "is_better"),
    [("loss", False), ("eval_loss", False), ("mae", False), ("ece", False), ("eval_r2", True), ("f1_macro", True)],
)
def test_whether_a_greater_metric_is_better_is_known(metric, is_better, tmp_path):
    assert MixerTrainingArguments(str(tmp_path), metric_for_best_model=metric).greater_is_better is is_better
    args = MixerTrainingArguments(str(tmp_path), metric_for_best_model=metric, greater_is_better=True)
    assert args.greater_is_better


def test_the_token_stays_out_of_the_saved_arguments(tmp_path):
    args = MixerTrainingArguments(str(tmp_path), hub_token="hf_secret")
    assert args.hub_token == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(args)


def test_images_that_are_decoded_need_no_workers(tmp_path):
    assert MixerTrainingArguments(str(tmp_path), cache_images="memory").dataloader_num_workers == 0
    args = MixerTrainingArguments(str(tmp_path))
    assert args.dataloader_num_workers >= 1
    assert args.dataloader_persistent_workers
    assert MixerTrainingArguments(str(tmp_path), dataloader_num_workers=0).dataloader_num_workers == 0
