"""How many threads compute, from what the machine and the model are."""

import joblib
import pytest
import torch

from hf_mixer import MixerConfig
from hf_mixer.threads import available_cores, limit_threads, useful_threads


DIGITS = MixerConfig(
    image_size=16,
    patch_size=8,
    num_channels=1,
    hidden_size=128,
    num_hidden_layers=2,
    token_mlp_dim=32,
    channel_mlp_dim=256,
)
NANO = MixerConfig.from_variant("cifar10", hidden_size=128, num_hidden_layers=8, token_mlp_dim=64, channel_mlp_dim=256)
B16 = MixerConfig.from_variant("B/16")


@pytest.fixture
def machine(monkeypatch):
    """Return what stands for a machine without settings of the user, and the list of the numbers of threads set there."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    chosen: list[int] = []

    def have(physical_cores: int, usable_cores: int, num_processes: int | None = None) -> list[int]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: physical_cores)
        monkeypatch.setattr(torch, "set_num_threads", chosen.append)
        monkeypatch.setattr(joblib, "cpu_count", lambda: usable_cores)
        if num_processes is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
        return chosen

    return have


@pytest.mark.parametrize(
    ("physical_cores", "usable_cores", "num_processes", "threads"),
    [
        (2, 2, None, 2),
        (32, 64, None, 32),  # two hardware threads per core
        (64, 64, None, 64),
        (64, 4, None, 4),  # a container with four cores
        (16, 16, 4, 4),
        (2, 2, 8, 1),
    ],
)
def test_a_large_model_gets_all_cores_that_the_process_has(
    machine, physical_cores, usable_cores, num_processes, threads
):
    chosen = machine(physical_cores, usable_cores, num_processes)
    limit_threads()
    limit_threads(B16, batch_size=32)
    assert chosen == [threads, threads]


@pytest.mark.parametrize("cores", [2, 8, 64])
def test_the_digits_are_learned_on_one_thread(machine, cores):
    chosen = machine(cores, cores)
    limit_threads(DIGITS, batch_size=64)
    assert chosen == [1]


def test_threads_grow_with_the_work_of_a_layer():
    assert useful_threads(DIGITS, 1) == useful_threads(NANO, 1) == 1
    assert 8 < useful_threads(NANO, 128) < 64 < useful_threads(B16, 8)
    assert useful_threads(NANO, 256) >= 2 * useful_threads(NANO, 128)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_the_user_sets_stays(machine, monkeypatch, name):
    chosen = machine(64, 4)
    monkeypatch.setenv(name, "16")
    limit_threads(DIGITS, batch_size=64)
    assert chosen == []


def test_processes_on_a_machine_share_its_cores(machine, monkeypatch):
    machine(64, 64)
    assert available_cores() == 64
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert available_cores() == 8
