"""A photograph gets the scores in a browser that it gets in Python."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers import pipeline

from hf_mixer import MixerImageProcessorPil, load_checkpoint
from hf_mixer.deployment import export_model, image_steps, transformers_js
from hf_mixer.deployment.transformers_js import describe_browser_processor, write_transformers_js

from ..helpers import needs_export, save_classifier


pytestmark = needs_export("transformers.js")
# Bilinear and bicubic, stretched or cropped, larger and smaller crops, offsets that are rounded, one channel
SETTINGS = [
    ({"size": {"height": 24, "width": 40}}, (3, 24, 40)),
    ({"size": {"height": 24, "width": 40}, "resample": 3, "num_channels": 1}, (1, 24, 40)),
    (
        {
            "size": {"shortest_edge": 37},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 24},
            "resample": 3,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.3, 0.4, 0.5],
        },
        (3, 32, 24),
    ),
    ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 25}, (3, 25, 25)),
    ({"do_resize": False, "do_center_crop": True, "crop_size": 24, "do_normalize": False}, (3, 24, 24)),
    ({"size": {"height": 24, "width": 40}, "do_rescale": False, "do_normalize": False}, (3, 24, 40)),
]
SIZES = [
    (1, 1),
    (1, 40),
    (50, 1),
    (2, 3),
    (24, 24),
    (40, 24),
    (80, 48),
    (37, 38),
    (31, 33),
    (100, 75),
    (640, 480),
    (15, 900),
]
# A folder node_modules with @huggingface/transformers
NODE_MODULES = os.environ.get("TRANSFORMERS_JS")
# Prints the scores of an image for every label, by type
CLASSIFY = """
const [library, models, name, image] = process.argv.slice(2);
const { pipeline, env } = await import(library);
env.allowRemoteModels = false;
env.localModelPath = models;
const scores = {};
for (const dtype of ["fp32", "fp16", "q8"]) {
  const classify = await pipeline("image-classification", name, { dtype });
  scores[dtype] = await classify(image, { top_k: 3 });
}
console.log(JSON.stringify(scores));
"""


def photograph(width, height, seed=0):
    """Smooth colors with noise."""
    rng = np.random.default_rng(seed)
    colors = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(colors) + noise).clip(0, 255).astype(np.uint8))


def as_in_javascript(image, settings):
    """What transformers.js makes of an image, by its settings."""
    assert not settings["do_resize"]
    pixels = np.asarray(image, dtype=np.float32)
    if settings["do_rescale"]:
        pixels = pixels * np.float32(settings["rescale_factor"])
    if settings["do_normalize"]:
        pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return pixels.transpose(2, 0, 1)[None]


def make_identity(channels, height, width):
    """A network that returns its input."""
    from onnx import TensorProto, helper

    inputs, outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", channels, height, width])
        for name in ("pixel_values", "logits")
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["logits"])], "network", [inputs], [outputs]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, pixel_values):
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = InferenceSession(model.SerializeToString(), options)
    return [session.run(None, {"pixel_values": pixels})[0] for pixels in pixel_values]


@pytest.mark.parametrize(("settings", "shape"), SETTINGS)
def test_images_of_all_sizes_become_the_pixels_of_the_image_processor(settings, shape):
    from hf_mixer.deployment.onnx_preprocessing import add_preprocessing

    image_processor = MixerImageProcessorPil(**settings)
    browser = describe_browser_processor(image_processor)
    images = [photograph(*size) for size in SIZES]
    actual = run(
        add_preprocessing(make_identity(*shape), image_processor), [as_in_javascript(i, browser) for i in images]
    )
    expected = [image_processor(image, return_tensors="np")["pixel_values"] for image in images]
    level = 1.0 if not image_processor.do_rescale else 1 / 255
    for result, wanted in zip(actual, expected):
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-3 * level)


@pytest.mark.parametrize(("is_pillow_13", "between"), [(False, (24, 200)), (True, (30, 24))])
def test_a_tall_image_is_resized_in_the_order_of_the_version_of_pillow(monkeypatch, is_pillow_13, between):
    from hf_mixer.deployment.onnx_preprocessing import add_preprocessing

    monkeypatch.setattr(image_steps, "IS_PILLOW_13", is_pillow_13)
    image_processor = MixerImageProcessorPil(size=24)
    image = photograph(30, 200)
    pixels = as_in_javascript(image, describe_browser_processor(image_processor))
    (actual,) = run(add_preprocessing(make_identity(3, 24, 24), image_processor), [pixels])
    expected = image_processor(image.resize(between, 2), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_pixels_of_the_size_of_the_model_reach_it_untouched():
    from hf_mixer.deployment.onnx_preprocessing import add_preprocessing

    for channels in (1, 3):
        image_processor = MixerImageProcessorPil(size={"height": 24, "width": 40}, num_channels=channels)
        pixels = np.random.default_rng(0).normal(size=(2, channels, 24, 40)).astype(np.float32)
        (actual,) = run(add_preprocessing(make_identity(channels, 24, 40), image_processor), [pixels])
        assert np.array_equal(actual, pixels)


def test_several_images_go_through_at_once():
    from hf_mixer.deployment.onnx_preprocessing import add_preprocessing

    image_processor = MixerImageProcessorPil(size=24)
    browser = describe_browser_processor(image_processor)
    images = [photograph(50, 40, seed) for seed in range(3)]
    pixels = np.concatenate([as_in_javascript(image, browser) for image in images])
    (actual,) = run(add_preprocessing(make_identity(3, 24, 24), image_processor), [pixels])
    expected = image_processor(images, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_pixels_that_are_resized_and_cropped_already_need_a_model_without_preprocessing():
    import onnx_ir

    from hf_mixer.deployment.onnx_preprocessing import add_preprocessing, remove_preprocessing

    image_processor = MixerImageProcessorPil(
        size={"shortest_edge": 28}, do_center_crop=True, crop_size=24, num_channels=1
    )
    model = onnx_ir.from_proto(add_preprocessing(make_identity(1, 24, 24), image_processor))
    remove_preprocessing(model)
    pixels = image_processor(photograph(50, 40), return_tensors="np")["pixel_values"]
    assert np.array_equal(run(onnx_ir.to_proto(model), [pixels])[0], pixels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 24, "resample": 1}, "`resample` 2 .bilinear. or 3 .bicubic., got 1"),
        ({"size": {"shortest_edge": 24, "longest_edge": 40}}, "`shortest_edge` alone, got .*'longest_edge': 40"),
        ({"size": {"shortest_edge": 24}}, "24 x 24 pixels.*got .*`size=24` and `crop_size=None`"),
        ({"size": 32}, r"24 x 24 pixels.*`size=\[32, 32\]`"),
        ({"size": 24, "num_channels": 1}, "3 channels.*got `num_channels=1`"),
        ({"size": 24, "num_channels": 4}, "`num_channels` 1 or 3, got 4"),
        ({"size": 24, "do_pad": True}, "`do_pad=False`"),
    ],
)
def test_a_step_that_is_not_possible_is_refused_in_one_line(settings, message):
    from hf_mixer.deployment.onnx_preprocessing import add_preprocessing

    with pytest.raises(ValueError, match=message) as error:
        add_preprocessing(make_identity(3, 24, 24), MixerImageProcessorPil(**settings))
    assert "\n" not in str(error.value)


def test_another_image_processor_is_refused():
    from transformers import ViTImageProcessorPil

    from hf_mixer.deployment.onnx_preprocessing import add_preprocessing

    with pytest.raises(ValueError, match="Expected a MixerImageProcessor, .* got a ViTImageProcessorPil"):
        add_preprocessing(make_identity(3, 24, 24), ViTImageProcessorPil(size={"height": 24, "width": 24}))


def test_every_model_is_one_file_where_transformers_js_looks_for_it(tmp_path):
    import onnx

    network = make_identity(1, 24, 24)
    before = network.SerializeToString()
    image_processor = MixerImageProcessorPil(size=24, num_channels=1, image_mean=[0.4], image_std=[0.3])
    networks = dict.fromkeys(("float32", "float16", "int8"), network)
    write_transformers_js(tmp_path, networks, image_processor)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_quantized.onnx",
        "preprocessor_config.json",
    ]
    assert network.SerializeToString() == before
    onnx.checker.check_model(str(tmp_path / "onnx/model.onnx"), full_check=True)

    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "ViTImageProcessor"
    assert settings["image_mean"] == [0.4, 0.4, 0.4]
    assert settings["do_resize"] is False


def test_a_model_that_one_file_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_js, "LARGEST_FILE", 1000)
    with pytest.raises(ValueError, match="at most 2 GB in one file, got .* in float32"):
        write_transformers_js(tmp_path, {"float32": make_identity(3, 24, 24)}, MixerImageProcessorPil(size=24))


@pytest.mark.skipif(
    NODE_MODULES is None or shutil.which("node") is None,
    reason="needs node, and TRANSFORMERS_JS=DIR/node_modules after `npm install @huggingface/transformers` in DIR",
)
def test_transformers_js_gives_a_photograph_the_scores_of_python(tmp_path):
    folder = save_classifier(tmp_path / "model", ("cat", "dog", "owl"))
    model, image_processor = load_checkpoint(str(folder))
    export_model(str(folder), tmp_path / "browser", "transformers.js")
    photograph(90, 70).save(tmp_path / "photograph.png")
    (tmp_path / "classify.mjs").write_text(CLASSIFY)

    library = Path(NODE_MODULES, "@huggingface/transformers/dist/transformers.node.mjs")
    command = ["node", tmp_path / "classify.mjs", library, f"{tmp_path}/", "browser", tmp_path / "photograph.png"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    classifier = pipeline("image-classification", model, image_processor=image_processor)
    expected = {answer["label"]: answer["score"] for answer in classifier(str(tmp_path / "photograph.png"))}
    for dtype, tolerance in {"fp32": 1e-5, "fp16": 2e-3, "q8": 0.05}.items():
        actual = {answer["label"]: answer["score"] for answer in json.loads(result.stdout)[dtype]}
        assert actual == pytest.approx(expected, abs=tolerance)
