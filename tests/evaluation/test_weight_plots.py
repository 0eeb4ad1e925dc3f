import numpy as np

from hf_mixer.evaluation.weight_plots import pair_units, save_filters, save_token_mixing


def test_filters_are_sorted_by_norm_and_rescaled(tmp_path):
    filters = np.zeros((3, 3, 2, 2))
    filters[0, 0] = [[0, 1], [0, 0]]  # one red pixel
    filters[2] = [[[-10, 30]] * 2] * 3  # half black, half white
    mosaic = save_filters(tmp_path / "filters.png", filters, count=2).axes[0].images[0].get_array()
    scale, gap = 22, 3
    first, second = mosaic[: 2 * scale, : 2 * scale], mosaic[: 2 * scale, 2 * scale + gap : 4 * scale + gap]
    assert (first[:, :scale] == 0).all()
    assert (first[:, scale:] == 1).all()
    assert (second[:scale, scale:] == [1, 0, 0]).all()
    assert (second[scale:] == 0).all()
    assert (mosaic[: 2 * scale, 2 * scale : 2 * scale + gap] == 1).all()


def test_filters_of_one_channel_are_grey(tmp_path):
    filters = np.random.default_rng(0).normal(size=(4, 1, 3, 3))
    mosaic = save_filters(tmp_path / "filters.png", filters).axes[0].images[0].get_array()
    assert np.ptp(np.asarray(mosaic), axis=2).max() == 0


def wave(frequency, sign):
    return sign * np.cos(2 * np.pi * frequency * np.arange(8) / 8) * np.ones((8, 1))


def test_units_of_opposing_phase_are_paired_from_low_to_high_frequency():
    units = np.stack([wave(3, 1), wave(1, 1), wave(2, -1), wave(1, -1), wave(3, -1), wave(2, 1)])
    order = pair_units(units)
    assert [set(order[start : start + 2]) for start in (0, 2, 4)] == [{1, 3}, {2, 5}, {0, 4}]
    assert sorted(pair_units(units[:5])) == [0, 1, 2, 3, 4]
    assert pair_units(np.zeros((1, 1, 1))) == [0]


def test_token_mixing_lays_units_out_on_the_grid(tmp_path):
    units = np.zeros((3, 2, 4))
    units[1] = [[0, 0, 0, 5], [0, 0, 0, 0]]
    (axes,) = save_token_mixing(tmp_path / "units.png", [units], count=1).axes
    mosaic = axes.images[0].get_array()
    scale = 45 // 4
    assert mosaic[0, 3 * scale] == 1
    assert mosaic[: 2 * scale, : 4 * scale].sum() == scale * scale
    assert axes.get_title() == "Layer 1: 1 of 3 units"
