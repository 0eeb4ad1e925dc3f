"""Muon beside the one of torch, and in a run."""

import pytest
import torch
from torch.optim import AdamW

from hf_mixer.training import MixerTrainingArguments, Muon, parameter_groups
from tests.helpers import make_trainer, same_weights


SHAPES = [(8, 24), (24, 8), (8, 24), (16, 16), (32, 4), (8,)]


def train(optimizers, parameters, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_it_is_the_muon_of_torch_and_adamw():
    def make_parameters():
        generator = torch.Generator().manual_seed(0)
        return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]

    ours, theirs = make_parameters(), make_parameters()
    settings = {"lr": 0.01, "weight_decay": 0.1}
    groups = [{"params": ours[:-1], "muon": True}, {"params": ours[-1:]}]
    train([Muon(groups, betas=(0.8, 0.9), momentum=0.9, **settings)], ours)
    muon = torch.optim.Muon(theirs[:-1], momentum=0.9, adjust_lr_fn="match_rms_adamw", **settings)
    train([muon, AdamW(theirs[-1:], betas=(0.8, 0.9), **settings)], theirs)
    torch.testing.assert_close(ours[-1], theirs[-1])
    for matrix, expected, shape in zip(ours, theirs, SHAPES):
        # All steps together move the weights by about 0.01
        assert (matrix - expected).square().mean().sqrt() < 1e-4, shape


def test_only_matrices_of_layers_are_for_muon(tmp_path):
    model = make_trainer(tmp_path).model
    groups = parameter_groups(model, 1e-3, weight_decay=0.1, layer_decay=0.5, muon=True)
    for_muon = [parameter for group in groups if group["muon"] for parameter in group["params"]]
    layers = [parameter for parameter in model.mixer.layers.parameters() if parameter.ndim == 2]
    assert {id(parameter) for parameter in for_muon} == {id(parameter) for parameter in layers}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_it_trains_and_resumes(layer_decay, tmp_path):
    def make(muon=True):
        settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "layer_decay": layer_decay}
        return make_trainer(tmp_path / "run", muon=muon, **settings)

    whole, resumed = make(), make()
    first = whole.train().metrics["train_loss"]
    assert isinstance(whole.optimizer.optimizer, Muon)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert first < make_trainer(tmp_path, learning_rate=0.0, max_steps=8).train().metrics["train_loss"]
    with pytest.raises(ValueError, match="go on with the --muon"):
        make(muon=False).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_hooks_run_once_a_step():
    AdamW([torch.zeros(1, requires_grad=True)])  # From here on, torch runs the hooks of all AdamW
    matrix, bias = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3,)))
    optimizer, steps = Muon([{"params": [matrix], "muon": True}, {"params": [bias]}]), []
    optimizer.register_step_pre_hook(lambda *_: steps.append("before"))
    optimizer.register_step_post_hook(lambda *_: steps.append("after"))

    def closure():
        optimizer.zero_grad()
        (matrix.sum() + bias.sum()).backward()

    for _ in range(2):
        optimizer.step(closure)
    assert steps == ["before", "after"] * 2
    assert torch.equal(matrix.grad, torch.ones(2, 3))


def test_regression_learns_as_well(tmp_path):
    def error(**arguments):
        trainer = make_trainer(tmp_path, problem_type="regression", muon=True, num_train_epochs=20, **arguments)
        trainer.train()
        return trainer.evaluate()["eval_mae"]

    assert error() < 0.7 * error(learning_rate=0.0)


def test_what_it_cannot_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))], "muon": True}])
    with pytest.raises(ValueError, match="leave out --optim sgd"):
        MixerTrainingArguments(str(tmp_path), muon=True, optim="sgd")
    with pytest.raises(ValueError, match=r"momentum has to be in \[0, 1\), got 5"):
        Muon([torch.nn.Parameter(torch.zeros(3))], momentum=5)
