"""What a run says before and after it trains."""

from hf_mixer.training.command_line import DataTrainingArguments
from hf_mixer.training.summary import next_commands
from tests.helpers import make_folder


def test_the_commands_that_come_next_name_data_that_is_there_and_the_conversion(tmp_path):
    make_folder(tmp_path / "photos" / "train")
    options = DataTrainingArguments(dataset_name=str(tmp_path / "photos"), flatten_transparency="white")
    _, evaluate, _ = next_commands("outputs/photos", None, options)
    assert evaluate == "hf-mixer evaluate outputs/photos --eval_dir test_photos --flatten_transparency white"
    make_folder(tmp_path / "photos" / "test")
    _, evaluate, _ = next_commands("outputs/photos", None, options)
    assert f"--dataset_name {tmp_path / 'photos'}" in evaluate
