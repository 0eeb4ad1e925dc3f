"""Whether what goes up runs where hf_mixer is missing."""

import pytest

from hf_mixer import MixerConfig
from hf_mixer.publishing.release import prepare_release
from hf_mixer.publishing.remote_code import check_remote_code


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
