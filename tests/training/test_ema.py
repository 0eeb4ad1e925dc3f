"""The moving average of the weights."""

import torch
from safetensors.torch import load_file

from transformers import TrainerCallback

from hf_mixer import MixerForImageClassification
from tests.helpers import AUGMENTED, make_trainer, same_weights


def test_checkpoints_and_the_final_folder_hold_the_average_of_the_weights(tmp_path):
    trainer = make_trainer(tmp_path, **AUGMENTED, max_steps=8, save_strategy="steps", save_steps=8)
    trainer.train()
    trainer.save_model()
    checkpoint = tmp_path / "checkpoint-8"
    weights = trainer.model.state_dict()
    assert same_weights(load_file(tmp_path / "model.safetensors"), weights)
    assert same_weights(load_file(checkpoint / "model.safetensors"), weights)
    trained = load_file(checkpoint / "trained_weights.safetensors")
    assert trained.keys() == weights.keys()
    assert not any(torch.equal(trained[name], weights[name]) for name in weights)
    # It loads like any model
    MixerForImageClassification.from_pretrained(checkpoint)


def test_the_average_is_that_of_all_weights_since_the_start(tmp_path):
    history = []

    class Remember(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            history.append(model.classifier.weight.detach().clone())

    trainer = make_trainer(tmp_path, ema_decay=0.6, max_steps=12, callbacks=[Remember()])
    # The last step's weights are in the average alone; before it they are those that the step began with
    trainer.train()
    history.append(trainer.ema.average.classifier.weight)
    expected = history[0]
    for step, weights in enumerate(history[1:], 1):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(trainer.model.classifier.weight, expected)


def test_a_checkpoint_that_another_callback_asks_for_holds_the_average(tmp_path):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 3

    def train(folder, callbacks, **arguments):
        trainer = make_trainer(folder, ema_decay=0.5, max_steps=3, **arguments)
        for callback in callbacks:
            trainer.add_callback(callback)  # after the average's own
        trainer.train()
        names = ("model.safetensors", "trained_weights.safetensors")
        return [load_file(folder / "checkpoint-3" / name) for name in names]

    asked = train(tmp_path / "asked", [Save()])
    usual = train(tmp_path / "usual", [], save_strategy="steps", save_steps=3)
    assert all(map(same_weights, asked, usual))
