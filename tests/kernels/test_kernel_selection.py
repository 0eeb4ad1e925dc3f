"""The fused operators are used where they apply and are faster, and nowhere else."""

import pytest
import torch
from torch.autograd import forward_ad

from transformers.utils import is_triton_available

from hf_mixer import kernels
from hf_mixer.kernels import use_kernels
from hf_mixer.layers_mixer import MixerLayer


if not is_triton_available():
    pytest.skip("needs triton", allow_module_level=True)

from hf_mixer.kernels import channel_mixing, selection

from .test_kernels import (
    DEVICE,
    DTYPE,
    OPERATORS,
    assert_near,
    count_operators,
    gradients_of,
    images,
    interpreted,
    make_model,
)
from .test_modeling import ENABLE_CHECKPOINTING


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (dict(hidden_act="relu"), (0, 0)),
        (dict(image_size=17, patch_size=1), (0, 2)),
        (dict(hidden_size=27), (2, 0)),
        (dict(channel_mlp_dim=15), (2, 0)),
    ],
)
def test_steps_aside_for_other_networks(overrides, expected):
    model = use_kernels(make_model(**overrides))
    pixel_values = torch.randn(2, 3, model.config.image_size, model.config.image_size).to(DEVICE, DTYPE)
    assert count_operators(model, pixel_values) == expected


def test_steps_aside_for_devices_that_do_not_move_tiles(monkeypatch):
    model = use_kernels(make_model())
    monkeypatch.setattr(channel_mixing, "moves_tiles", lambda device: False)
    assert count_operators(model, images()) == (2, 0)


def test_steps_aside_for_an_empty_batch():
    model = use_kernels(make_model())
    assert model(images()[:0]).logits.shape == (0, 3)
    assert count_operators(model, images()[:0]) == (0, 0)


def test_steps_aside_for_dropout_in_training():
    model = use_kernels(make_model(dropout=0.1))
    assert count_operators(model, images()) == (2, 2)
    assert count_operators(model.train(), images()) == (0, 0)


@pytest.mark.parametrize(("axis", "expected"), [("token", (1, 2)), ("channel", (2, 1))])
def test_steps_aside_for_hooks_and_adapters(axis, expected):
    peft = pytest.importorskip("peft", reason="needs peft")
    model = make_model()
    norm, mlp = kernels.norm_and_mlp(axis, model.mixer.layers[0])
    for module in (norm, mlp, mlp.fc1, mlp.activation_fn, mlp.fc2):
        use_kernels(model)
        seen = []
        handle = module.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023
        assert count_operators(model, images()) == expected
        assert seen
        handle.remove()
    assert count_operators(model, images()) == (2, 2)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=rf".*layers\.0\.{axis}_mixing\.fc1"))
    assert count_operators(lora, images()) == expected


def replace_mlp(layer):
    class Doubled(type(layer.channel_mixing)):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    layer.channel_mixing.__class__ = Doubled


def replace_whole_mlp(layer):
    layer.channel_mixing = torch.nn.Identity()


def replace_dropout(layer):
    layer.channel_mixing.dropout = torch.nn.Identity()


def replace_linear(layer):
    layer.channel_mixing.fc1 = torch.nn.Sequential(layer.channel_mixing.fc1)


def sample_dropout(layer):
    """As for Monte Carlo dropout: the network is not training, its dropout is."""
    layer.channel_mixing.dropout.p = 0.5
    layer.channel_mixing.dropout.train()


@pytest.mark.parametrize("change", [replace_mlp, replace_whole_mlp, replace_dropout, replace_linear, sample_dropout])
def test_steps_aside_for_changed_layers(change):
    model, reference = use_kernels(make_model()), use_kernels(make_model(), enabled=False)
    for each in (model, reference):
        change(each.mixer.layers[0])
    assert count_operators(model, images()) == (2, 1)
    for each in (model, reference):
        torch.manual_seed(0)
        each.logits = each(images()).logits
    assert_near(model.logits, reference.logits)


def test_stochastic_depth_follows_its_own_mode():
    model, reference = (make_model(drop_path_rate=0.9) for _ in range(2))
    use_kernels(model)
    for each in (model, reference):
        each.mixer.layers[1].drop_path.train()
        torch.manual_seed(0)
        each.logits = each(images().repeat(4, 1, 1, 1)).logits
    assert_near(model.logits, reference.logits)
    assert not torch.equal(model.logits[:2], model.logits[2:4])


def test_sizes_that_do_not_fit_are_an_error():
    layer = use_kernels(make_model()).mixer.layers[0]
    for shape in ((2, 20, 24), (2, 16, 32), (2, 16, 8)):
        with pytest.raises(RuntimeError):
            layer(torch.randn(shape, device=DEVICE, dtype=DTYPE))


@interpreted
def test_steps_aside_for_transforms():
    model, reference = use_kernels(make_model()), use_kernels(make_model(), enabled=False)
    tangent = torch.randn_like(images())
    derivatives = [
        torch.func.jvp(lambda pixel_values: each(pixel_values).logits, (images(),), (tangent,))[1]  # noqa: B023
        for each in (model, reference)
    ]
    torch.testing.assert_close(*derivatives)
    with forward_ad.dual_level(), torch.no_grad():
        dual = model(forward_ad.make_dual(images(), tangent)).logits
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, derivatives[0])
    gradients = [
        torch.func.grad(lambda pixel_values: each(pixel_values).logits.sum())(images())  # noqa: B023
        for each in (model, reference)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("enabled", [None, True])
def test_subclasses_may_call_the_layer_they_extend(enabled):
    class Louder(MixerLayer):
        def mix_tokens(self, hidden_states):
            return 2 * super().mix_tokens(hidden_states)

    model, expected = make_model(), make_model()
    model.mixer.layers[1].__class__ = Louder
    use_kernels(model, enabled)
    hidden_states = torch.randn(2, 16, 24, device=DEVICE, dtype=DTYPE)
    own = kernels.OWN["token"](expected.mixer.layers[1], hidden_states)
    assert_near(model.mixer.layers[1].mix_tokens(hidden_states), 2 * own)
    assert count_operators(model, images()) == ((2, 2) if enabled else (0, 0))


def test_steps_aside_for_global_hooks():
    model, seen = use_kernels(make_model()), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        assert count_operators(model, images()) == (0, 0)
    finally:
        handle.remove()
    assert seen.count(torch.nn.Linear) == 9
    assert count_operators(model, images()) == (2, 2)


KIND = ("cpu", torch.float32, torch.float32, None, 2, 16, 24, 12, False)


@interpreted
@pytest.mark.parametrize("axis", kernels.AXES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("seconds", "expected"), [(0.5, True), (0.99, False), (2.0, False)])
def test_kernels_are_chosen_where_they_are_faster(monkeypatch, axis, training, seconds, expected):
    monkeypatch.setattr(
        selection, "time_interleaved", lambda steps, *_, **__: [{"own": 1.0, "fused": seconds} for _ in range(3)]
    )
    state = torch.get_rng_state()
    assert selection.is_faster(kernels.mix, axis, *KIND, training) is expected
    assert torch.equal(torch.get_rng_state(), state)


@interpreted
@pytest.mark.parametrize("axis", kernels.AXES)
def test_kernels_that_fail_or_compute_something_else_are_left_out(monkeypatch, caplog, axis):
    monkeypatch.setattr(
        selection, "time_interleaved", lambda steps, *_, **__: [{"own": 1.0, "fused": 0.1} for _ in range(3)]
    )

    def fail(axis, layer, hidden_states):
        raise RuntimeError("out of registers")

    def forget_the_residual(axis, layer, hidden_states):
        return kernels.mix(axis, layer, hidden_states) - hidden_states

    for fused, message in ((fail, "out of registers"), (forget_the_residual, "the results would differ by")):
        assert selection.is_faster(fused, axis, *KIND, False) is False
        assert message in caplog.text


@interpreted
@pytest.mark.parametrize(("faster", "expected"), [((), (0, 0)), (("token",), (2, 0)), (("channel",), (0, 2))])
def test_models_of_the_package_choose_by_themselves(monkeypatch, faster, expected):
    asked, graphs = [], []

    def is_faster(fused, axis, *kind):
        asked.append((axis, *kind))
        torch.randn(2).sum().item()  # of a real tensor, also while a graph is captured
        return axis in faster

    def keep_graph(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    monkeypatch.setattr(kernels, "is_on_gpu", lambda hidden_states: True)
    monkeypatch.setattr(selection, "is_faster", is_faster)
    monkeypatch.setattr(selection, "ANSWERS", {})
    model = make_model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=keep_graph)
    own = use_kernels(make_model(), enabled=False)(images()).logits
    for each in (model, compiled):
        torch.testing.assert_close(each(images()).logits, own)
    assert set(asked) == {
        (axis, "cpu", torch.float32, torch.float32, None, 1, 16, 24, mlp_dim, False, True)
        for axis, mlp_dim in (("token", 12), ("channel", 8))
    }
    assert count_operators(model, images()) == expected
    assert tuple(graphs[0].count(f"torch.ops.hf_mixer.{axis}_mixing") for axis in kernels.AXES) == expected
    # What is exported is for other machines
    program = torch.export.export(model, (), {"pixel_values": images()})
    assert not set(OPERATORS) & {str(node.target) for node in program.graph.nodes}


@interpreted
def test_many_large_images_are_measured_as_fewer(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "is_on_gpu", lambda hidden_states: True)
    monkeypatch.setattr(selection, "is_faster", lambda fused, axis, *kind: bool(asked.append((axis, *kind[4:6]))))
    monkeypatch.setattr(selection, "ANSWERS", {})
    layer = make_model().mixer.layers[0]
    for num_patches in (16, 256, 1024, 65536):
        layer.mix_channels(torch.zeros(8, num_patches, 24))
    assert asked == [("channel", 1024, 16), ("channel", 64, 256), ("channel", 16, 1024), ("channel", 1, 65536)]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_measuring_does_not_disturb_gradient_checkpointing(monkeypatch, use_reentrant):
    monkeypatch.setattr(kernels, "is_on_gpu", lambda hidden_states: True)
    monkeypatch.setattr(
        selection, "time_interleaved", lambda steps, *_, **__: [{"own": 1.0, "fused": 0.1} for _ in range(3)]
    )
    monkeypatch.setattr(selection, "ANSWERS", {})
    model, reference = make_model().train(), use_kernels(make_model(), enabled=False).train()
    getattr(model, ENABLE_CHECKPOINTING)({"use_reentrant": use_reentrant})
    for each in (model, reference):
        each(images(), labels=torch.tensor([0, 1], device=DEVICE)).loss.backward()
    # Both axes were measured and taken; a measurement that fails says no
    assert {axis for axis, *_ in selection.ANSWERS} == set(kernels.AXES)
    assert all(selection.ANSWERS.values())
    assert_near(gradients_of(model), gradients_of(reference))


@interpreted
def test_while_a_cuda_graph_is_captured_only_what_is_known_counts(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "is_on_gpu", lambda hidden_states: True)
    monkeypatch.setattr(selection, "is_faster", lambda fused, axis, *kind: asked.append(axis) or True)
    monkeypatch.setattr(selection, "ANSWERS", {})
    model = make_model()
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_available", lambda: True)
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert count_operators(model, images()) == (0, 0)
        assert not asked
    assert count_operators(model, images()) == (2, 2)
    assert len(asked) == 2
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_available", lambda: True)
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert count_operators(model, images()) == (2, 2)
    assert len(asked) == 2


@interpreted
def test_a_lone_layer_compiles_with_dynamic_sizes(monkeypatch):
    monkeypatch.setattr(kernels, "is_on_gpu", lambda hidden_states: True)
    monkeypatch.setattr(selection, "is_faster", lambda fused, axis, *kind: True)
    monkeypatch.setattr(selection, "ANSWERS", {})
    layer = make_model().mixer.layers[0]
    torch._dynamo.reset()
    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend="eager")
    for batch_size in (2, 3, 9):
        hidden_states = torch.randn(batch_size, 16, 24)
        torch.testing.assert_close(compiled(hidden_states), layer(hidden_states))


def test_layers_that_fsdp_made_anew_are_found():
    model = make_model()
    layer = model.mixer.layers[0]
    layer.__class__ = type("FSDPMixerLayer", (type(layer),), {})
    assert count_operators(use_kernels(model), images()) == (2, 2)


def test_on_a_cpu_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(selection, "is_faster", None)
    assert count_operators(make_model().to("cpu", torch.float32), images().to("cpu", torch.float32)) == (0, 0)
