"""What `vicc --help` shows: the verbs by task, each with the first sentence of its help."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

# The tasks in the order in which a person meets them; a verb names its own as `rich_help_panel`.
START, VIDEOS, TRAINING = "First steps", "Videos", "Training"
RUNS, RESULTS, ARCHIVES = "Runs", "Results", "Archives of vectors"
EXCHANGE, MEASURING = "Exchange", "Measuring"
TASKS = (START, VIDEOS, TRAINING, RUNS, RESULTS, ARCHIVES, EXCHANGE, MEASURING)
OTHER = "More"


class Verbs(TyperGroup):
    """A group of commands whose help lists them by task. (The base class does so in boxes only, which no log can use.)"""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A section a task, in the order of TASKS; nothing is cut off."""
        tasks: dict[str, list[tuple[str, str]]] = {task: [] for task in TASKS}
        for name in self.list_commands(ctx):
            verb = self.get_command(ctx, name)
            if verb is not None and not verb.hidden:
                task = getattr(verb, "rich_help_panel", None)
                tasks.setdefault(task if isinstance(task, str) else OTHER, []).append(
                    (name, _sentence(verb.help or ""))
                )
        for task, rows in tasks.items():
            if rows:
                with formatter.section(task):
                    formatter.write_dl(rows)


def _sentence(text: str) -> str:
    """The first sentence of a help text."""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
