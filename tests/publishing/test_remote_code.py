"""Whether what goes up runs where hf_mixer is missing."""

import json

import pytest

from hf_mixer import MixerConfig, MixerForMaskedImageModeling, MixerModel, load_checkpoint
from hf_mixer.publishing import remote_code
from hf_mixer.publishing.release import prepare_release
from hf_mixer.publishing.remote_code import check_remote_code
from tests.new_processes import run_without_package


@pytest.fixture(autouse=True)
def forked(monkeypatch, tmp_path):
    """Let the program of the new interpreter, in which the models of `test_model_folders` are tried, run in a fork."""

    def predict(folder, task):
        program = f"import runpy; runpy.run_path({remote_code.__file__!r}, run_name='__main__')"
        return json.loads(run_without_package(program, task, folder, folder=tmp_path)[0].splitlines()[-1])

    monkeypatch.setattr(remote_code, "predict_without_package", predict)


def test_code_that_predicts_something_else_is_refused(folder, release):
    options = {"problem_type": "multi_label_classification", "label_thresholds": [0.5, 0.25, 0.75]}
    MixerConfig.from_pretrained(folder, **options).save_pretrained(folder)
    code = (folder / "layers_mixer.py").read_text()
    changed = code.replace("self.drop_path(hidden_states) + residual", "self.drop_path(hidden_states) - residual")
    assert changed != code
    (folder / "layers_mixer.py").write_text(changed)
    prepare_release(folder, release, "alice/mixer", trust_code=True)
    with pytest.raises(ValueError, match="logits differ"):
        check_remote_code(folder, release)


@pytest.mark.parametrize("model_class", [MixerModel, MixerForMaskedImageModeling])
def test_models_without_classifier_run_without_the_package(model_class, folder, release, publish):
    load_checkpoint(folder, model_class)[0].save_pretrained(folder)
    prepare_release(folder, release, "alice/mixer")
    check_remote_code(folder, release, "image-feature-extraction")
    assert 'extractor = pipeline("image-feature-extraction", "alice/mixer"' in publish("alice/mixer")
    assert "leave out --with" in publish("alice/mixer", "--with", "handler", refused=True)
