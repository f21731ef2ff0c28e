"""What README and docs say is so: commands parse, settings exist, code compiles, links lead somewhere, everything is documented."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import vicc_ray
from vicc_ray.cli import app
from vicc_ray.config import experiment_with, make_experiment
from vicc_ray.config.published import experiment_file
from vicc_ray.config.settings import sections, settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]
GROUP: Any = typer.main.get_command(app)
SETTINGS = {one.path for one in settings()}
SECTIONS = "|".join(path for path, _ in sections() if path and "." not in path)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
# Words that stand for something of the reader's.
PLACEHOLDERS = {"EXPERIMENT", "EXPERIMENT.yaml", "EXP", "EXP.yaml", "my_sweep.yaml", "extras.yaml"}


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page that are in one of the languages."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text_of(page), re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def shell_lines(page: Path) -> list[str]:
    """Command lines of the page's shell blocks, continued lines joined, without comments."""
    joined = "\n".join(blocks(page, "sh", "bash")).replace("\\\n", " ")
    return [line for line in (re.sub(r"\s+#\s.*", "", line).strip() for line in joined.splitlines()) if line]


def verb_lines(page: Path) -> list[str]:
    return [line for line in shell_lines(page) if line.startswith("vicc ")]


def inline_code(page: Path) -> list[str]:
    """Text between backticks outside of blocks."""
    outside = re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]


def command_of(words: list[str]) -> tuple[Any, str, list[str]]:
    """The command of a line's words after `vicc`, its full name, and the words that are left for it."""
    command, name, rest = GROUP, "vicc", list(words)
    while getattr(command, "commands", None) and rest and rest[0] in command.commands:
        name, command = f"{name} {rest[0]}", command.commands[rest.pop(0)]
    return command, name, rest


def overrides_in(words: list[str]) -> list[str]:
    return [after for word, after in pairwise(words) if word == "--set"]


def test_the_pages_are_there() -> None:
    assert len(PAGES) > 25 and sum(len(verb_lines(page)) for page in PAGES) > 60


@every_page
def test_every_command_line_parses(page: Path) -> None:
    for line in verb_lines(page):
        words = shlex.split(line)[1:]
        command, name, rest = command_of(words)
        if words[0] in {option for one in GROUP.params for option in one.opts}:
            continue  # vicc --version and the like, which end at once
        assert command is not GROUP, f"{page.name}: {line}: no such verb"
        command.make_context(name, rest)  # raises for an unknown option, a missing argument, a value of the wrong kind


@every_page
def test_every_setting_of_a_command_line_is_taken(page: Path) -> None:
    for line in verb_lines(page):
        words = shlex.split(line)[1:]
        overrides = overrides_in(words)
        if not overrides:
            continue
        known = [
            word
            for word in words[1:2]
            if word not in PLACEHOLDERS and words[0] in ("train", "tune", "preview", "submit")
        ]
        file = ROOT / experiment_file(known[0]) if known else None
        experiment_with(file, overrides)  # raises UserError with the name of the setting


@every_page
def test_every_inline_command_and_setting_is_known(page: Path) -> None:
    """`vicc embed ... --every 5`, `objective.epsilon`, `flow.source=store`: in running text and in tables."""
    for code in inline_code(page):
        if code.startswith("vicc "):
            words = re.findall(r"[^\s'\"]+", code)[1:]
            if words[0].isupper() or words[0].startswith("-"):  # `vicc VERB --help`, `vicc --version`
                continue
            command, name, rest = command_of(words)
            assert command is not GROUP, f"{page.name}: `{code}`: no such verb"
            options = {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            asked = {word.partition("=")[0] for word in rest if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
            assert asked <= options | {"--help"}, f"{page.name}: `{code}`: {name} has no {asked - options}"
        named = re.fullmatch(rf"(?:--set )?((?:{SECTIONS})(?:\.[a-z_]+)+)(\s*[:=].*)?", code)
        if named and not code.endswith((".py", ".md", ".yaml", ".parquet", ".json", ".csv")):
            path = named[1]
            if (ROOT / "vicc_ray" / "/".join(path.split(".")[:2])).with_suffix(".py").exists():  # `data.clips.permuted`
                continue
            assert path in SETTINGS or path.rpartition(".")[0] in SETTINGS, f"{page.name}: `{code}` is not a setting"


@every_page
def test_every_experiment_in_yaml_is_taken(page: Path) -> None:
    if page.name == "extending.md":  # names of a package that is not installed here; tests/test_outside.py
        return
    for block in blocks(page, "yaml"):
        tree = yaml.safe_load(block)
        tree.pop("extends", None)
        make_experiment(tree, page.name)


@every_page
def test_python_compiles_and_its_names_are_there(page: Path) -> None:
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vicc_ray":
                assert node.attr in dir(vicc_ray), f"{page.name}: vicc_ray.{node.attr}"


def slug(heading: str) -> str:
    """GitHub's name of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    outside = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return frozenset(slug(heading) for heading in re.findall(r"^#+ (.*)$", outside, re.MULTILINE))


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    outside = re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", outside):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.exists(), f"{page.name}: {target}"
        if anchor and aim.suffix == ".md":
            assert anchor in anchors(aim), f"{page.name}: {target}: the headings are {sorted(anchors(aim))}"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for page in PAGES:
        for block in re.findall(r"^```{toctree}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
            listed |= {(page.parent / line).resolve() for line in block.splitlines() if not line.startswith(":")}
    pages = {page.with_suffix("").resolve() for page in PAGES if page.parent != ROOT} - {(DOCS / "index").resolve()}
    assert pages - listed == set()
    assert {path for path in listed if not path.with_suffix(".md").exists()} == {(DOCS / "tutorial").resolve()}


@pytest.fixture(scope="module")
def made() -> Any:
    """The module that makes the reference from the code."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("reference_pages", DOCS / "reference_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_in_the_reference(made: Any) -> None:
    page = made.settings_page()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows.keys() == SETTINGS
    assert rows["optim.lr"].startswith(
        "`0.6` | `0.6` | learning rate at the start of a stage's cosine.<br>*number, above 0*"
    )
    assert rows["flow.algorithm"].startswith("`dis` | `tvl1` |")
    assert rows["train.workers"].split(" | ")[1] == "-"  # nothing was published about it


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for inner, child in command.commands.items():
        yield f"{name} {inner}", child
        if hasattr(child, "commands"):
            yield from walk(child, f"{name} {inner}")


def test_every_verb_and_option_is_in_the_reference_with_help(made: Any) -> None:
    page = made.commands_page()
    parts = dict(re.findall(r"^##+ (vicc [\w -]+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    verbs = dict(walk(GROUP, "vicc"))
    assert parts.keys() == verbs.keys() and len(verbs) > 20
    for name, verb in verbs.items():
        assert verb.help and f"```sh\n{name}" in parts[name], name
        for parameter in verb.params:
            if parameter.name != "help" and not parameter.hidden:
                assert parameter.help, f"{name}: {parameter.name}"
                shown = (
                    parameter.opts[0]
                    if parameter.param_type_name == "option"
                    else parameter.metavar or parameter.name.upper()
                )
                assert f"`{shown}`" in parts[name], f"{name}: {shown}"


def test_every_public_name_is_in_the_reference_with_its_arguments() -> None:
    from vicc_ray import api

    page = text_of(DOCS / "reference" / "api.md")
    assert set(api.__all__) <= set(vicc_ray.__all__)
    for name in vicc_ray.__all__:
        assert re.search(rf"^\.\. (auto|py:)\w+:: (vicc_ray\.)?{name}$", page, re.MULTILINE), name
        found = getattr(vicc_ray, name)
        if name == "__version__":
            continue
        assert found.__doc__, name
        if inspect.isfunction(found):
            for parameter in inspect.signature(found).parameters:
                assert re.search(rf"\b{parameter}\b", found.__doc__), f"{name}: {parameter} is not described"
        else:
            for member, value in vars(found).items():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    assert inspect.getdoc(value), f"{name}.{member}"


def test_the_contracts_of_extensions_are_in_the_reference() -> None:
    page = text_of(DOCS / "reference" / "api.md")
    for contract in re.findall(r"^\| [\w ]+ \| `(vicc_ray[\w.]+)` \|", text_of(DOCS / "extending.md"), re.MULTILINE):
        assert f".. autoclass:: {contract}\n" in page, contract


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load(text_of(DOCS / "CITATION.cff"))["version"] == version
    assert version in text_of(DOCS / "CHANGELOG.md")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repo["rev"] for repo in hooks if repo["repo"].endswith("ruff-pre-commit"))
    assert f"\nruff=={ruff.removeprefix('v')} " in (ROOT / "requirements.lock").read_text()


def test_the_readme_is_short_and_says_what_was_not_measured() -> None:
    readme = text_of(ROOT / "README.md")
    assert len(readme.splitlines()) <= 75
    assert "No published number was reproduced" in readme and "GPU" in readme


def test_the_make_targets_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        lines = [line.split()[1] for line in shell_lines(page) if line.startswith("make ")]
        named = [code.split()[1] for code in inline_code(page) if re.match(r"make [a-z-]+", code)]
        assert {*lines, *named} <= targets, page.name
