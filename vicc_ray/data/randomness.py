"""What the seed of an experiment is used for: one number a use, so that no two uses draw the same numbers.

Draws depend on a key alone: the use, the seed and what is drawn for. NumPy makes 32-bit words of a key and pads short ones with
zeros, so keys of one use have one length and differ in a word that is not padding; the number of the use comes first. (Training
clips are augmented under keys without one, which later uses must not equal: see `jitter_key`.) Data sets that
`data.synthetic` makes have a seed of their own.
"""

from __future__ import annotations

from enum import IntEnum

Key = tuple[int, ...]
SEEDS = 2**32  # a seed is one word


class RandomUse(IntEnum):
    """The first word of a key."""

    ORDER = 1  # of an epoch's videos: (seed, stage, epoch)
    CLIPS = 2  # windows and chains of a sample: (seed, stage, epoch, video)
    SUBSET = 3  # the monitor's videos: (seed)
    WINDOW = 4  # the one window of a gallery video, as published: (seed, video's content)
    TEST_JITTER = 5  # colours of a test window, as published: (seed, video's content, first frame)
    DROPOUT = 6  # of a classifier's step: (seed, stage, step)
    SHUFFLE = 7  # of a batch over the workers, as published: (seed, stage, step)
    SHORT = 8  # where a short clip begins: (seed, stage, epoch, video, number)
    BOUND = 9  # videos and frames whose motion sets flow.bound: (0), as the bound is a fact of the data


class WeightUse(IntEnum):
    """What is initialised from `weight_seed`."""

    ENCODER = 0
    OBJECTIVE = 1
    CLASSIFIER = 2


def key(use: RandomUse, *parts: int) -> list[int]:
    """The key of a draw, for `numpy.random.default_rng`; parts are whole numbers from 0 up."""
    return [int(use), *parts]


def jitter_key(seed: int, video: int, start: int) -> Key:
    """The key of a test window's colours, for the generator of augmentation.

    Keys of training clips end with the number of the clip, 0 or 1 (short ones: from 8 on), and this one with the number of its use.
    """
    return (int(RandomUse.TEST_JITTER), seed, video, start, int(RandomUse.TEST_JITTER))


def weight_seed(use: WeightUse, seed: int, stage: int) -> int:
    """A seed for torch's generator: of an encoder, an objective or a classifier's head of a stage."""
    return (seed * 1000 + stage) * 10 + int(use)
