import pickle

import pytest

from hf_mixer.training import MixerTrainingArguments
from tests.helpers import make_trainer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_images": "disk"}, "cache_images has to be one of none, memory, device, got 'disk'"),
        (
            {"cache_images": "device", "dataloader_num_workers": 2},
            "cache_images device needs no dataloader_num_workers, got 2",
        ),
        ({"dataloader_num_workers": -2}, "dataloader_num_workers has to be at least -1, got -2"),
        ({"ema_decay": 1.0}, r"ema_decay has to be in \(0, 1\), got 1.0"),
        ({"label_smoothing_factor": 1.0}, r"label_smoothing has to be in \[0, 1\), got 1.0"),
        ({"horizontal_flip": 2.0}, r"`horizontal_flip` has to be in \[0, 1\], got 2.0"),
        (
            {"per_device_train_batch_size": 64, "dataloader_drop_last": True},
            "45 images are fewer than one batch of 64",
        ),
    ],
)
def test_bad_arguments_name_the_value(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **arguments).train()


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
