"""The rest of Ray Data's scheduling loop, without Ray: it lasts until a block is wanted. With Ray: `test_notice_cluster`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.data import DataContext, Dataset

from vicc_ray.cluster import ray_private
from vicc_ray.cluster.stream import PaceScheduling, iterate_blocks


class _Dataset:
    """Blocks with a scheduling loop of which the callback alone is there."""

    def __init__(self) -> None:
        self.context, self.pace = DataContext(), PaceScheduling()
        self.wanted: list[bool] = []

    def iterator(self) -> _Dataset:
        return self

    def iter_batches(self, **_: Any) -> Iterator[dict[str, Any]]:
        self.pace.before_execution_starts(SimpleNamespace(_data_context=self.context))
        for number in range(3):
            self.wanted.append(self.pace.wanted is not None and self.pace.wanted.is_set())
            yield {"unit": number}


@pytest.fixture
def pace() -> PaceScheduling:
    """A callback that has seen more quick rounds than it goes on after."""
    pace = PaceScheduling()
    pace.wanted = threading.Event()
    pace.quick = pace.QUICK_ROUNDS
    return pace


def _seconds(pace: PaceScheduling) -> float:
    began = time.monotonic()
    pace.on_execution_step(None)
    return time.monotonic() - began


def test_the_loop_rests_until_a_block_is_wanted(pace: PaceScheduling) -> None:
    assert pace.wanted
    threading.Timer(0.3, pace.wanted.set).start()
    assert 0.25 < _seconds(pace) < pace.MOST_SECONDS
    assert _seconds(pace) < 0.2  # one is still wanted


def test_the_loop_goes_on_after_a_round_that_waited_for_a_decoder(pace: PaceScheduling) -> None:
    pace.rested = time.monotonic() - 2 * pace.WAITED
    assert _seconds(pace) < 0.2
    assert pace.quick == 0


def test_the_loop_looks_again_where_nothing_is_wanted_for_long(
    pace: PaceScheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decode actor that died has to be replaced."""
    monkeypatch.setattr(PaceScheduling, "MOST_SECONDS", 0.3)
    assert 0.25 < _seconds(pace) < 2


def test_a_dataset_without_a_reader_of_ours_is_not_held_up() -> None:
    pace = PaceScheduling()
    pace.before_execution_starts(SimpleNamespace(_data_context=DataContext()))
    pace.quick = pace.QUICK_ROUNDS
    assert pace.wanted is None
    assert _seconds(pace) < 0.2
    assert ray_private.data_setting(SimpleNamespace(), PaceScheduling.NAME) is None


def test_a_block_is_wanted_from_the_request_until_it_is_there() -> None:
    dataset = _Dataset()
    blocks = iterate_blocks(cast(Dataset, dataset))
    assert [next(blocks)["unit"], next(blocks)["unit"]] == [0, 1]
    assert dataset.pace.wanted
    assert not dataset.pace.wanted.is_set()  # the second is being trained on
    assert [block["unit"] for block in blocks] == [2]
    assert dataset.wanted == [True] * 3
    assert dataset.pace.wanted.is_set()  # nothing holds the loop's end up
    assert not PaceScheduling.WANTED
