"""What a sweep leaves: a best experiment that loads, a table, a page that shows hostile text as text."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState
from test_tune_sweep import experiment, facts, opened

from vicc_ray.config import Experiment, load_experiment
from vicc_ray.errors import UserError
from vicc_ray.report.plots import scripts
from vicc_ray.tune.results import write_results
from vicc_ray.tune.rows import samples_spent, trial_rows
from vicc_ray.tune.space import search_of
from vicc_ray.tune.status import sweep_status
from vicc_ray.tune.sweep import Sweep
from vicc_ray.tune.trials import Measurement

SPACE = {
    "objective.temperature": {"log": [0.03, 0.3]},
    "objective.prototypes": {"choice": [8, [4, 8], {"rgb": 8, "flow": 4}]},
}
VALUES = (0.3, 0.5, 0.2, 0.7, 0.6, 0.4)


def ended(folder: Path, **search: Any) -> tuple[Experiment, Sweep]:
    """A sweep of six trials, one of them stopped early and one failed."""
    asked = experiment(folder, SPACE, scheduler="none", **search)
    sweep = opened(asked)
    sweep.folder.open(asked, "videos")
    for number, value in enumerate(VALUES):
        spec = sweep.next()
        assert spec
        sweep.add_measurement(number, Measurement(value / 2, 32))
        sweep.add_measurement(number, Measurement(value, 64))
        if number == 2:
            sweep.live[number].pruned = True
            sweep.end(number, facts(32, outcome="stopped"))
        elif number == 5:
            sweep.end(number, facts(outcome="failed", reason="<script>alert(1)</script>"))
        else:
            sweep.end(number, facts())
    return asked, sweep


def write(asked: Experiment, sweep: Sweep) -> None:
    write_results(sweep.folder, asked, search_of(asked), sweep.study, False, 16)


def test_best_yaml_is_an_experiment_with_the_best_trials_settings(tmp_path: Path) -> None:
    asked, sweep = ended(tmp_path)
    write(asked, sweep)
    best = load_experiment(sweep.folder.best_config)
    trial = sweep.study.get_trials()[3]
    assert best.objective.temperature == trial.params["objective.temperature"]
    assert best.search is None
    assert best.name == "best-0003"
    assert Path(best.runs) == sweep.folder.path
    same = {"objective": best.objective, "search": None, "name": best.name, "runs": best.runs}
    assert best == asked.model_copy(update=same)
    assert "# The best of the sweep" in sweep.folder.best_config.read_text()


def test_the_table_has_a_row_a_trial(tmp_path: Path) -> None:
    asked, sweep = ended(tmp_path)
    write(asked, sweep)
    for table in (pq.read_table(sweep.folder.parquet), csv.read_csv(sweep.folder.table)):
        assert table["trial"].to_pylist() == list(range(6))
        assert table["outcome"].to_pylist() == ["finished", "finished", "pruned", "finished", "finished", "failed"]
        assert table["value"].to_pylist() == pytest.approx(VALUES)
        assert table["device_hours"].to_pylist() == pytest.approx([20 / 3600] * 6)
        assert set(SPACE) <= set(table.column_names)
    spent, whole = samples_spent(trial_rows(search_of(asked), sweep.study))
    assert (spent, whole) == (5 * 64 + 32, 6 * 64)


def test_the_page_is_one_file_and_escapes_what_it_shows(tmp_path: Path) -> None:
    asked, sweep = ended(tmp_path)
    write(asked, sweep)
    html = sweep.folder.report.read_text()
    for title in ("Best so far", "Recall curves", "Parallel coordinates", "Slices", "Importances", "Timeline"):
        assert f"<h2>{title}</h2>" in html
    assert html.count('class="plot"') >= 6 and html.count("data-figure=") >= 6
    assert html.count("<script>") == 2 and "<script src=" not in html
    assert f"script-src {scripts().policy}" in unescape(html)
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "stopping early saved 8%" in html


def test_trials_that_were_stopped_early_are_in_the_plots(tmp_path: Path) -> None:
    """One trial came to its end, four were stopped: with Optuna's plots alone, importances would be left out."""
    asked = experiment(tmp_path, SPACE, scheduler="none")
    sweep = opened(asked)
    sweep.folder.open(asked, "videos")
    for number, value in enumerate(VALUES[:5]):
        spec = sweep.next()
        assert spec
        sweep.add_measurement(number, Measurement(value, 32))
        sweep.live[number].pruned = number > 0
        sweep.end(number, facts(32, outcome="stopped") if number else facts())
    write(asked, sweep)
    html = sweep.folder.report.read_text()
    assert "<h2>Importances</h2>" in html
    assert "Not shown" not in html
    assert html.count("of a trial that was stopped early its last measurement counts") == 3
    assert "stopped early, last measurement" in html
    assert [trial.state for trial in sweep.study.get_trials()].count(TrialState.PRUNED) == 4  # the study stays as it is


def test_a_page_of_a_sweep_that_just_began_says_what_is_missing(tmp_path: Path) -> None:
    asked = experiment(tmp_path, SPACE)
    sweep = opened(asked)
    write(asked, sweep)
    assert sweep.next()
    write(asked, sweep)
    html = sweep.folder.report.read_text()
    assert "1 unfinished" in html
    assert "Recall curves: no trial has a measurement yet" in html
    assert not sweep.folder.best_config.exists()


def test_a_search_against_cost_shows_its_front(tmp_path: Path) -> None:
    asked, sweep = ended(tmp_path, against="seconds")
    write(asked, sweep)
    html = sweep.folder.report.read_text()
    assert "<h2>Front</h2>" in html
    assert "RGB-2/R@1 against seconds" in html
    assert load_experiment(sweep.folder.best_config).name == "best-0003"


def test_status_reads_the_folder_alone(tmp_path: Path) -> None:
    asked, sweep = ended(tmp_path, budget="8 trials")
    assert sweep.next()
    sweep.folder.keep_seconds(600.0)
    found = sweep_status(asked)
    assert found["state"] == "stopped"
    assert found["trials"] == 6
    assert [row["trial"] for row in found["unfinished"]] == [6]
    assert found["best"]["trial"] == 3
    assert found["left"] == pytest.approx(200.0)  # 100 s a trial, two to go
    assert found["outcomes"] == {"finished": 4, "pruned": 1, "failed": 1}
    with sweep.folder.driven():
        assert sweep_status(asked)["state"] == "running"


def test_status_of_no_sweep_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a sweep folder"):
        sweep_status(experiment(tmp_path))


def test_a_value_of_nan_is_never_the_best(tmp_path: Path) -> None:
    asked = experiment(tmp_path, SPACE, scheduler="none", mode="min")
    sweep = opened(asked)
    for outcome in ("finished", "not finite"):
        spec = sweep.next()
        assert spec
        sweep.add_measurement(spec.number, Measurement(float("nan") if outcome == "not finite" else 0.4, 64))
        sweep.end(spec.number, facts(outcome=outcome))
    assert [trial.state for trial in sweep.study.get_trials()] == [TrialState.COMPLETE] * 2
    assert sweep.study.get_trials()[1].values == [0.4]  # as bad as the worst so far
    write(asked, sweep)
    assert load_experiment(sweep.folder.best_config).name == "best-0000"
