"""Keys of the seed's uses: no two of them give NumPy the same words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vicc_ray.data.clips import training_sample
from vicc_ray.data.randomness import RandomUse, WeightUse, jitter_key, key, weight_seed

WORD, CONTENT = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SMALL = st.integers(0, 9)
PARTS = {
    RandomUse.ORDER: st.tuples(WORD, SMALL, SMALL),
    RandomUse.CLIPS: st.tuples(WORD, SMALL, SMALL, WORD),
    RandomUse.SUBSET: st.tuples(WORD),
    RandomUse.WINDOW: st.tuples(WORD, CONTENT | SMALL),
    RandomUse.DROPOUT: st.tuples(WORD, SMALL, WORD),
    RandomUse.SHUFFLE: st.tuples(WORD, SMALL, WORD),
}
ANY = st.one_of(*(st.tuples(st.just(use), parts) for use, parts in PARTS.items()))


def state(words: object) -> tuple[int, ...]:
    """What NumPy makes of a key."""
    return tuple(np.random.SeedSequence(words).generate_state(8).tolist())  # type: ignore[arg-type]


@given(ANY, ANY)
def test_two_keys_are_equal_only_where_their_uses_and_parts_are(one: object, other: object) -> None:
    (use, parts), (use_2, parts_2) = one, other  # type: ignore[misc]
    same = (use, parts) == (use_2, parts_2)  # type: ignore[has-type]
    assert (state(key(use, *parts)) == state(key(use_2, *parts_2))) == same  # type: ignore[has-type]


def test_numbers_are_taken_once() -> None:
    assert len({int(use) for use in RandomUse}) == len(RandomUse)
    # What was once one number: the window of a gallery video and a classifier's dropout.
    assert state(key(RandomUse.WINDOW, 0, 3)) != state(key(RandomUse.DROPOUT, 0, 3, 0))
    assert state([4, 0, 3]) == state([4, 0, 3, 0])  # NumPy's padding


@given(WORD, SMALL, SMALL, WORD, WORD, CONTENT | SMALL, SMALL)
def test_a_test_windows_colours_are_those_of_no_training_clip(
    seed: int, stage: int, epoch: int, video: int, other: int, content: int, start: int
) -> None:
    plan = training_sample(seed, stage, epoch, video, 100, clip_frames=8, stride=1)
    assert state(jitter_key(other, content, start)) not in {state(one) for one in plan.keys}


def test_weights_have_seeds_of_their_own() -> None:
    seeds = [weight_seed(use, seed, stage) for use in WeightUse for seed in range(5) for stage in range(8)]
    assert len(set(seeds)) == len(seeds)
