import contextlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from hf_mixer import MixerImageProcessorPil
from hf_mixer.training.augmentation import BatchAugmentation, normalize_pixels, resampling_matrices, sample_boxes
from hf_mixer.training.auto_augment import NUM_MAGNITUDES, OPERATIONS, SIGNED, AutoAugment, jitter_colors
from hf_mixer.training.mixing import MixupCutmix


# Pixels come out as they went in
RAW = dict(mean=0, std=1, rescale_factor=1)
# A right program fails one test in a thousand seeds, and the seeds here are fixed.
LEVEL = 1e-3


def augment(images, labels=None, seed=0, image_size=None, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    augmentation = BatchAugmentation(image_size or tuple(images.shape[-2:]), **{**RAW, **kwargs}, generator=generator)
    before = images.clone()
    batch = augmentation({"pixel_values": images} if labels is None else {"pixel_values": images, "labels": labels})
    # A comparison would wait for the GPU
    assert images.is_cuda or torch.equal(images, before)
    return batch


def coordinates(batch_size, size, step=1):
    """Images whose channels are 1 + row, 1 + column (times `step`) and noise."""
    axis = torch.arange(size, dtype=torch.uint8) * step + 1
    noise = torch.randint(256, (size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = torch.stack([axis[:, None].expand(size, size), axis.expand(size, size), noise])
    return image.expand(batch_size, -1, -1, -1)


def photographs(batch_size, height, width, channels=3):
    """Smooth images of low contrast, and noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (batch_size, 6, 6, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC)) for image in coarse])
    images[::3] = rng.integers(256, size=images[::3].shape, dtype=np.uint8)
    return torch.from_numpy(images[..., :channels]).permute(0, 3, 1, 2).contiguous()


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def from_pil(image):
    return torch.from_numpy(np.atleast_3d(np.asarray(image)).copy()).permute(2, 0, 1)


def test_normalization_is_the_image_processors():
    images = photographs(4, 20, 24)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = MixerImageProcessorPil(image_mean=mean, image_std=std, do_resize=False)
    expected = processor([to_pil(image) for image in images], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize_pixels(images, mean, std), expected, rtol=0, atol=1e-6)
    plain = BatchAugmentation((20, 24), mean, std)({"pixel_values": images, "labels": torch.arange(4), "ids": "abcd"})
    torch.testing.assert_close(plain["pixel_values"], expected, rtol=0, atol=1e-6)
    assert torch.equal(plain["labels"], torch.arange(4))
    assert plain["ids"] == "abcd"


def test_padded_crops_are_uniform_over_all_offsets():
    images = coordinates(5000, 8)
    crops = augment(images, crop_padding=2)["pixel_values"]
    # The pixel in the middle is never padding, and says where it was
    tops, lefts = (crops[:, :2, 4, 4] - 1 - 4 + 2).long().unbind(1)
    assert stats.chisquare(torch.bincount(tops * 5 + lefts, minlength=25)).pvalue > LEVEL
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2)).float()
    for crop, top, left in zip(crops[:100], tops, lefts):
        assert torch.equal(crop, padded[:, top : top + 8, left : left + 8])


def test_crops_without_padding_cut_larger_images():
    crops = augment(coordinates(2000, 10), image_size=(8, 9))["pixel_values"]
    assert crops.shape == (2000, 3, 8, 9)
    corners = (crops[:, :2, 0, 0] - 1).long()
    assert stats.chisquare(torch.bincount(corners[:, 0] * 2 + corners[:, 1], minlength=6)).pvalue > LEVEL


def test_flips_mirror_the_drawn_share():
    images = coordinates(2000, 6)
    out = augment(images, horizontal_flip=0.3)["pixel_values"]
    flipped = out[:, 1, 0, 0] == 6
    assert stats.binomtest(int(flipped.sum()), 2000, 0.3).pvalue > LEVEL
    assert torch.equal(out[flipped], images[flipped].flip(-1).float())
    assert torch.equal(out[~flipped], images[~flipped].float())


def test_boxes_have_the_distribution_of_torchvision():
    boxes = sample_boxes(4000, 300, 200, (0.08, 0.4), (3 / 4, 4 / 3), np.random.default_rng(0))
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert stats.kstest(height * width / 60000, stats.uniform(0.08, 0.32).cdf).pvalue > LEVEL
    log_ratio = np.log(4 / 3)
    assert stats.kstest(np.log(width / height), stats.uniform(-log_ratio, 2 * log_ratio).cdf).pvalue > LEVEL
    for start, free in ((boxes[:, 0], 300 - height), (boxes[:, 1], 200 - width)):
        assert ((start >= 0) & (start <= free)).all()
        assert stats.kstest((start + 0.5) / (free + 1), "uniform").pvalue > LEVEL


def test_resized_crops_cover_the_drawn_area():
    out = augment(coordinates(2000, 64, step=3), image_size=16, random_resized_crop=True, scale=(0.1, 0.5))
    # The distance between the outermost of 16 pixels tells the size of the box
    rows, columns = out["pixel_values"][:, 0, :, 8], out["pixel_values"][:, 1, 8]
    area = (rows[:, -1] - rows[:, 0]) * (columns[:, -1] - columns[:, 0]) / (3 * 15 / 16 * 64) ** 2
    assert abs(area.mean() - 0.3) < 0.01
    assert area.min() == pytest.approx(0.1, abs=0.01)
    assert area.max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("box", [(0, 0, 40, 50), (3, 10, 40, 21), (39, 0, 40, 50), (0, 3, 9, 49)])
@pytest.mark.parametrize("size", [(12, 16), (64, 90)])
def test_resampling_is_pillows(box, size):
    image = photographs(2, 40, 50)[1]
    top, left, bottom, right = box
    rows, columns = (
        resampling_matrices(torch.tensor([start]), torch.tensor([end]), old, new)[0]
        for start, end, old, new in ((top, bottom, 40, size[0]), (left, right, 50, size[1]))
    )
    expected = from_pil(to_pil(image).crop((left, top, right, bottom)).resize(size[::-1], Image.BILINEAR))
    assert ((rows @ image.float() @ columns.T) - expected).abs().max() <= 1.01


def test_resized_crop_where_no_box_fits_is_the_central_one():
    images = photographs(2, 20, 90)
    out = augment(images, image_size=10, random_resized_crop=True, scale=(0.9, 1.0))["pixel_values"]
    expected = from_pil(to_pil(images[1]).crop((31, 0, 58, 20)).resize((10, 10), Image.BILINEAR))
    assert (out[1] - expected).abs().max() <= 1


def test_erasing_sets_boxes_to_the_mean_pixel():
    images = torch.full((4000, 1, 48, 40), 255, dtype=torch.uint8)
    out = augment(images, mean=0.25, std=0.5, rescale_factor=1 / 255, random_erasing=0.4)["pixel_values"][:, 0]
    assert set(out.unique().tolist()) == {0.0, 1.5}
    erased = out == 0
    is_erased = erased.any((1, 2))
    assert stats.binomtest(int(is_erased.sum()), 4000, 0.4).pvalue > LEVEL
    erased = erased[is_erased]
    height, width = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(erased.sum((1, 2)), height * width)
    share = height * width / (48 * 40)
    assert share.min() == pytest.approx(0.02, abs=0.005)
    assert share.max() == pytest.approx(1 / 3, abs=0.01)
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)


def mix_many(repeats, size, **kwargs):
    """
    Return images, targets, and each sample's own share, of many mixed batches of 200 samples, each of a class of its own,
    whose number is the value of its pixels.
    """
    labels = torch.arange(200)
    images = labels.byte().view(-1, 1, 1, 1).expand(-1, 3, size, size)
    mixed = [augment(images, labels, seed, num_labels=200, **kwargs) for seed in range(repeats)]
    pixel_values, targets = (torch.cat([batch[name] for batch in mixed]) for name in ("pixel_values", "labels"))
    return pixel_values, targets, targets[torch.arange(len(targets)), labels.repeat(repeats)]


@pytest.mark.parametrize("alpha", [0.5, 0.8, 2.0])
def test_mixup_lambdas_follow_the_beta_distribution(alpha):
    pixel_values, targets, own = mix_many(20, 1, mixup_alpha=alpha)
    has_partner = (targets > 0).sum(1) == 2
    assert has_partner.float().mean() > 0.9
    # A weight below the precision of float32 next to 1 looks like no partner
    assert stats.kstest(own[has_partner], stats.beta(alpha, alpha).cdf).pvalue > LEVEL
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    # No sample is the partner of two others
    assert (targets > 0).view(20, 200, 200).sum(1).max() == 2
    torch.testing.assert_close(pixel_values.mean((1, 2, 3)), targets @ torch.arange(200.0), rtol=1e-5, atol=1e-4)


def test_cutmix_targets_are_the_pasted_area():
    pixel_values, targets, own = mix_many(10, 64, cutmix_alpha=1.0)
    labels = torch.arange(200).repeat(10)
    replaced = pixel_values[:, 0] != labels[:, None, None]
    torch.testing.assert_close(replaced.float().mean((1, 2)), 1 - own, rtol=0, atol=1e-6)
    height, width = replaced.any(2).sum(1), replaced.any(1).sum(1)
    assert torch.equal(replaced.sum((1, 2)), height * width)
    partner = (targets * (1 - torch.nn.functional.one_hot(labels, 200))).argmax(1)
    assert torch.equal(pixel_values[:, 0][replaced], partner[:, None, None].expand_as(replaced)[replaced].float())
    # A square of side r, where r^2 is uniform, covers (r - r^2 / 4)^2 on average: 1/2 - 1/5 + 1/48 over all r.
    assert (1 - own).mean() == pytest.approx(0.3208, abs=0.02)


def test_cutmix_centers_are_uniform():
    # lam is 1/2 here, hence the side of the box is 22 pixels of 32, and the ends tell the center
    boxes = MixupCutmix(2, cutmix_alpha=1e9).sample(6400, 32, 32, np.random.default_rng(0))["box"]
    for start, end in ((boxes[:, 0], boxes[:, 2]), (boxes[:, 1], boxes[:, 3])):
        center = np.where(end < 32, end - 11, start + 11)
        assert np.array_equal(start, np.maximum(center - 11, 0))
        assert stats.chisquare(np.bincount(center, minlength=32)).pvalue > LEVEL


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_numbers_are_mixed_like_the_pixels_and_by_the_same_draws_as_classes(problem_type):
    images, classes = photographs(32, 16, 16), torch.arange(32) % 3
    numbers = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.5, 0.0]])
    settings = dict(mixup_alpha=0.8, cutmix_alpha=0.0 if problem_type == "regression" else 1.0, mixup_prob=0.7)
    of_classes = augment(images, classes, num_labels=3, **settings)
    of_numbers = augment(images, numbers[classes], num_labels=2, problem_type=problem_type, **settings)
    assert torch.equal(of_numbers["pixel_values"], of_classes["pixel_values"])
    torch.testing.assert_close(of_numbers["labels"], of_classes["labels"] @ numbers)


def test_mixing_probabilities():
    kwargs = dict(mixup_alpha=1.0, cutmix_alpha=1.0, mixup_prob=0.6, mixup_switch_prob=0.25)
    pixel_values, _, own = mix_many(20, 16, **kwargs)
    is_cutmix = pixel_values.amin((1, 2, 3)) < pixel_values.amax((1, 2, 3))
    is_mixup = ~is_cutmix & (own < 1)
    # Some are their own partners, and some boxes of CutMix are empty or cover all
    assert is_mixup.float().mean() == pytest.approx(0.6 * 0.75, abs=0.03)
    assert is_cutmix.float().mean() == pytest.approx(0.6 * 0.25, abs=0.02)


def test_operations_are_drawn_uniformly_for_each_sample():
    policy = AutoAugment("randaugment", num_ops=2, magnitude=12)
    operations, magnitudes = policy.sample(20000, 32, 48, np.random.default_rng(0))
    pairs = np.bincount(operations[0] * len(OPERATIONS) + operations[1], minlength=len(OPERATIONS) ** 2)
    assert stats.chisquare(pairs).pvalue > LEVEL
    # The values of torchvision's RandAugment at magnitude 12 for images of 48 x 32
    expected = [0, 0.12, 0.12, 8, 5, 12, 0.36, 0.36, 0.36, 0.36, 6, 153, 0, 0]
    np.testing.assert_allclose(np.abs(magnitudes), np.array(expected)[operations], atol=1e-9)
    signed = SIGNED[operations]
    assert stats.binomtest(int((magnitudes[signed] < 0).sum()), int(signed.sum()), 0.5).pvalue > LEVEL
    assert (magnitudes[~signed] >= 0).all()


def test_trivial_augment_draws_the_magnitude_as_well():
    operations, magnitudes = AutoAugment("trivialaugment").sample(20000, 32, 32, np.random.default_rng(0))
    assert operations.shape == (1, 20000)
    rotations = np.abs(magnitudes[operations == OPERATIONS.index("rotate")])
    steps = np.round(rotations / 4.5).astype(int)
    np.testing.assert_allclose(rotations, steps * 4.5)
    assert stats.chisquare(np.bincount(steps, minlength=NUM_MAGNITUDES)).pvalue > LEVEL


def pillow_operation(image, name, magnitude):
    """What RandAugment and TrivialAugment mean by an operation, with Pillow."""
    enhancers = {"brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}
    affine = {
        "shear_x": (1, magnitude, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, magnitude, 1, 0),
        "translate_x": (1, 0, -magnitude, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -magnitude),
    }
    if name in enhancers:
        return getattr(ImageEnhance, enhancers[name])(image).enhance(1 + magnitude)
    if name in affine:
        return image.transform(image.size, Image.AFFINE, affine[name], Image.NEAREST)
    return {
        "identity": lambda: image,
        "rotate": lambda: image.rotate(magnitude, Image.NEAREST),
        "posterize": lambda: ImageOps.posterize(image, int(magnitude)),
        "solarize": lambda: ImageOps.solarize(image, magnitude),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_operations_are_pillows(policy, channels):
    images = photographs(300, 24, 30, channels)
    images[7] = 90
    auto_augment = AutoAugment(policy, num_ops=1, magnitude=17)
    (operations,), (magnitudes,) = auto_augment.sample(300, 24, 30, np.random.default_rng(0))
    out = auto_augment(images, np.random.default_rng(0))
    assert set(operations) == set(range(len(OPERATIONS)))
    for image, operation, magnitude, result in zip(images, operations, magnitudes, out):
        name = OPERATIONS[operation]
        expected = from_pil(pillow_operation(to_pil(image), name, magnitude))
        is_close = (result.int() - expected.int()).abs() <= 1
        # Points just between two pixels may go either way: a diagonal of them in a rotation by 45 degrees
        assert is_close.float().mean() >= (0.95 if name in ("rotate", "shear_x", "shear_y") else 1), (name, magnitude)


def test_every_sample_goes_through_its_own_operations_in_turn():
    images = photographs(200, 24, 30)
    auto_augment = AutoAugment("randaugment", num_ops=3, magnitude=10)
    operations, magnitudes = auto_augment.sample(200, 24, 30, np.random.default_rng(0))
    out = auto_augment(images, np.random.default_rng(0))
    errors = []
    for index, image in enumerate(images):
        expected = to_pil(image)
        for operation, magnitude in zip(operations[:, index], magnitudes[:, index]):
            expected = pillow_operation(expected, OPERATIONS[operation], magnitude)
        errors.append((out[index].int() - from_pil(expected).int()).abs().float().mean())
    # Rounding by one level may grow in the next operation
    assert np.median(errors) < 1
    assert np.mean(errors) < 2


def test_color_jitter_has_uniform_factors_and_pillows_operations():
    # Contrast and saturation leave a grey area as it is
    grey = augment(torch.full((2000, 3, 4, 4), 150, dtype=torch.uint8), color_jitter=0.4)["pixel_values"]
    assert stats.kstest(grey[:, 0, 0, 0] / 150, stats.uniform(0.6, 0.8).cdf).pvalue > LEVEL
    images = photographs(20, 24, 30)
    factors = torch.from_numpy(np.random.default_rng(0).uniform(0.6, 1.4, (3, 20)).astype(np.float32))
    for image, out, (brightness, contrast, saturation) in zip(images, jitter_colors(images, factors), factors.T):
        expected = ImageEnhance.Brightness(to_pil(image)).enhance(float(brightness))
        expected = ImageEnhance.Contrast(expected).enhance(float(contrast))
        expected = ImageEnhance.Color(expected).enhance(float(saturation))
        assert (out.int() - from_pil(expected).int()).abs().max() <= 3


EVERYTHING = dict(
    random_resized_crop=True,
    horizontal_flip=0.5,
    auto_augment="randaugment",
    color_jitter=0.4,
    random_erasing=0.25,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    num_labels=10,
)


@pytest.mark.parametrize(
    "settings",
    [EVERYTHING, {**EVERYTHING, "random_resized_crop": False, "auto_augment": "trivialaugment", "crop_padding": 4}],
)
def test_nothing_waits_for_the_device(settings, monkeypatch):
    # Tensors without values, which nobody can look at, on a device of their own. It has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    images = torch.empty(64, 3, 16, 16, dtype=torch.uint8, device="meta")
    batch = BatchAugmentation(16, 0.5, 0.5, **settings)(
        {"pixel_values": images, "labels": torch.empty(64, dtype=torch.long, device="meta")}
    )
    assert {name: (tuple(value.shape), value.device.type) for name, value in batch.items()} == {
        "pixel_values": ((64, 3, 16, 16), "meta"),
        "labels": ((64, 10), "meta"),
    }


def test_a_seed_fixes_everything():
    images, labels = photographs(12, 16, 16), torch.arange(12) % 10
    first, again, other = (augment(images, labels, seed, mean=0.5, **EVERYTHING) for seed in (3, 3, 4))
    for name in ("pixel_values", "labels"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    augmentation = BatchAugmentation(16, **RAW, **EVERYTHING)
    batch = {"pixel_values": images, "labels": labels}
    torch.manual_seed(5)
    runs = [augmentation(batch)["pixel_values"] for _ in range(2)]
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation(batch)["pixel_values"], runs[0])
    assert torch.equal(augmentation(batch)["pixel_values"], runs[1])
    assert not torch.equal(runs[0], runs[1])


@pytest.mark.gpu
def test_a_gpu_gives_the_same_without_waiting():
    images, labels = photographs(64, 16, 16), torch.arange(64) % 10
    on_cpu = augment(images, labels, **EVERYTHING)
    images, labels = images.cuda(), labels.cuda()
    augment(images, labels, **EVERYTHING)
    try:
        torch.cuda.set_sync_debug_mode("error")
        on_gpu = augment(images, labels, **EVERYTHING)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_gpu["labels"].cpu(), on_cpu["labels"])
    # A level that is rounded the other way may grow in the next operation
    assert (on_gpu["pixel_values"].cpu() - on_cpu["pixel_values"]).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(image_size=0), "`image_size`.* 0"),
        (dict(crop_padding=-1), "`crop_padding`.* -1"),
        (dict(crop_padding=4, random_resized_crop=True), "`random_resized_crop` takes no `crop_padding`, got 4"),
        (dict(scale=(0.5, 0.1)), r"`scale`.* \(0.5, 0.1\)"),
        (dict(ratio=(0, 1)), r"`ratio`.* \(0, 1\)"),
        (dict(horizontal_flip=1.5), "`horizontal_flip`.* 1.5"),
        (dict(random_erasing=-0.1), "`random_erasing`.* -0.1"),
        (dict(color_jitter=2), "`color_jitter`.* 2"),
        (dict(auto_augment="rand-m9"), "`auto_augment`.*'randaugment', 'trivialaugment' or None, got 'rand-m9'"),
        (dict(auto_augment="randaugment", randaugment_num_ops=0), "`randaugment_num_ops`.* 0"),
        (dict(auto_augment="randaugment", randaugment_magnitude=31), "`randaugment_magnitude`.* 31"),
        (dict(mixup_alpha=-1, num_labels=3), "`mixup_alpha`.* -1"),
        (dict(cutmix_alpha=float("nan"), num_labels=3), "`cutmix_alpha`.* nan"),
        (dict(mixup_alpha=1), "`num_labels`, got None"),
        (dict(mixup_alpha=1, num_labels=3, mixup_prob=2), "`mixup_prob`.* 2"),
        (dict(mixup_alpha=1, num_labels=3, mixup_switch_prob=-1), "`mixup_switch_prob`.* -1"),
        (dict(mixup_alpha=1, num_labels=1), "`num_labels` of at least 2, got 1"),
        (dict(cutmix_alpha=1, num_labels=1, problem_type="regression"), "`cutmix_alpha` does not go with regression"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation(**{"image_size": 16, **RAW, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "batch", "message"),
    [
        ({}, dict(pixel_values=torch.zeros(2, 3, 16, 16)), "uint8 .*got torch.float32"),
        ({}, dict(pixel_values=torch.zeros(3, 16, 16).byte()), r"of shape \(3, 16, 16\)"),
        (dict(crop_padding=1), dict(pixel_values=torch.zeros(2, 3, 13, 16).byte()), "13 x 16 pixels, padded by 1"),
        (dict(color_jitter=0.1), dict(pixel_values=torch.zeros(2, 4, 16, 16).byte()), "1 or 3 channels, got 4"),
        (
            dict(mean=[0, 0, 0]),
            dict(pixel_values=torch.zeros(2, 1, 16, 16).byte()),
            "`mean` needs one value, .*1 channels, got",
        ),
        (dict(mixup_alpha=1), dict(pixel_values=torch.zeros(2, 3, 16, 16).byte()), "need `labels`.* pixel_values"),
        (
            dict(mixup_alpha=1),
            dict(pixel_values=torch.zeros(2, 3, 16, 16).byte(), labels=torch.eye(2)),
            r"one integer label .*float32 of shape \(2, 2\)",
        ),
        (
            dict(mixup_alpha=1, problem_type="multi_label_classification"),
            dict(pixel_values=torch.zeros(2, 3, 16, 16).byte(), labels=torch.tensor([0, 1])),
            r"2 floats as labels for each of 2 samples, got torch.int64 of shape \(2,\)",
        ),
    ],
)
def test_batches_that_do_not_fit(kwargs, batch, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation(16, num_labels=2, **{**RAW, **kwargs})(batch)
