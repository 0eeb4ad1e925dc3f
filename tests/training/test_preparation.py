from types import SimpleNamespace

import pytest

from hf_mixer.training import MixerTrainingArguments
from hf_mixer.training.command_line import DataTrainingArguments
from hf_mixer.training.preparation import fit_to_labels, set_stream_length


@pytest.mark.parametrize(
    ("num_examples", "arguments", "expected"),
    [
        (1000, dict(num_train_epochs=3, save_strategy="epoch"), (47, "steps", 16)),
        (1000, dict(max_steps=5, save_strategy="epoch"), (5, "steps", 16)),
        (None, dict(max_steps=5, save_strategy="steps", save_steps=2), (5, "steps", 2)),
        (None, dict(max_steps=5, save_strategy="epoch"), "give --save_strategy steps --save_steps N"),
        (None, dict(save_strategy="no"), "give --max_steps"),
    ],
)
def test_epochs_of_a_stream_are_steps(num_examples, arguments, expected, tmp_path):
    splits = {"train": SimpleNamespace(num_examples=num_examples)} if num_examples else None
    dataset = {"train": SimpleNamespace(info=SimpleNamespace(splits=splits))}
    args = MixerTrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, gradient_accumulation_steps=4, report_to="none", **arguments
    )
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            set_stream_length(dataset, args, None)
    else:
        set_stream_length(dataset, args, None)
        assert (args.max_steps, args.save_strategy, args.save_steps) == expected


@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [
        ("single_label_classification", ("accuracy", 0.1, 1.0)),
        ("multi_label_classification", ("mean_average_precision", 0.1, 1.0)),
        ("regression", ("r2", 0.0, 0.0)),
    ],
)
def test_a_recipe_gives_way_where_it_does_not_fit_the_labels(problem_type, expected, tmp_path):
    def settings(data_args):
        args = MixerTrainingArguments(
            str(tmp_path),
            label_smoothing_factor=0.1,
            cutmix_alpha=1.0,
            eval_strategy="epoch",
            metric_for_best_model="accuracy",
            report_to="none",
        )
        fit_to_labels(data_args, args, problem_type)
        return args.metric_for_best_model, args.label_smoothing_factor, args.cutmix_alpha

    assert settings(DataTrainingArguments()) == expected
    # What the command line says stays
    data_args = DataTrainingArguments()
    data_args.given = frozenset({"metric_for_best_model", "label_smoothing_factor", "cutmix_alpha"})
    assert settings(data_args) == ("accuracy", 0.1, 1.0)
