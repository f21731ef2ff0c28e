#!/usr/bin/env bash
# Typer 0.29.2 folds the help of a completion at the width of the terminal, and fish takes each line for a word of its own.
#
# The answer to fish is a line a word, the word and its help with a tabulator between them. Line ends in a help text are taken out, and
# then the text is rendered by rich, which puts new ones in: at 80 columns where the shell's side has no terminal, as in a completion.
# Of an option --scale with a help of 100 characters, seen:
#
#   --scale<TAB>smoke: the whole path at trial sizes, in minutes on two cores; NAME becomes
#   NAME-smoke.
#
# so fish offers "NAME-smoke." as a word. (zsh's answer is quoted, and has the line end inside of the quotes.) TERMINAL_WIDTH, which Typer
# reads when its rendering is first imported, is a way out: with it at 10000 there is one line.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check typer==0.29.2 rich==15.0.0
cat > "$work/tool" <<'PYTHON'
import typer

app = typer.Typer()


@app.command()
def run(
    scale: str = typer.Option(
        "full", help="smoke: the whole path at trial sizes, in minutes on two cores; NAME becomes NAME-smoke, whatever it was."
    ),
) -> None:
    print(scale)


app(prog_name="tool")
PYTHON
ask() {
  env _TOOL_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS="tool --sc" "$@" \
    "$work/venv/bin/python" "$work/tool"
}
folded=$(ask | wc -l)
whole=$(ask TERMINAL_WIDTH=10000 | wc -l)
echo "lines of the answer: $folded; with TERMINAL_WIDTH=10000: $whole"
[ "$folded" -gt "$whole" ]
