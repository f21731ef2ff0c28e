"""The drawing of a confusion matrix: each pair that occurs at its place, strength by the true class's share."""

from __future__ import annotations

import pytest

from vicc_ray.report.confusion import LARGEST_CELL, MOST_NAMED, confusions


def test_squares_stand_where_their_classes_do() -> None:
    (drawn,) = confusions({"RGB-2": {"labels": ["a", "b"], "counts": [[3, 1], [0, 2]]}})
    assert (drawn.name, drawn.names, drawn.cell, drawn.side) == ("RGB-2", ["a", "b"], LARGEST_CELL, 2 * LARGEST_CELL)
    found = {(square.x, square.y): (square.share, square.count, square.title) for square in drawn.squares}
    assert found == {
        (0, 0): (0.75, 3, "3 of 4 videos of a taken for a"),
        (LARGEST_CELL, 0): (0.25, 1, "1 of 4 videos of a taken for b"),
        (LARGEST_CELL, LARGEST_CELL): (1.0, 2, "2 of 2 videos of b taken for b"),
    }


def test_many_classes_have_small_squares_without_names() -> None:
    many = MOST_NAMED + 1
    counts = [[int(row == column) for column in range(many)] for row in range(many)]
    (drawn,) = confusions({"R+F": {"labels": [str(i) for i in range(many)], "counts": counts}})
    assert drawn.names == [] and all(square.count is None for square in drawn.squares)
    assert drawn.cell * many == pytest.approx(drawn.side) and drawn.cell < LARGEST_CELL
