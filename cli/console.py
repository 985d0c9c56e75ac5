"""The one console of the command line, and how an error is shown."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def show_error(text: str) -> None:
    """Print an error's first sentence in red, its details beneath, to standard error."""
    first, _, rest = text.partition("\n")
    errors.print(f"[bold red]error:[/] {_plain(first)}", soft_wrap=True)
    if rest:
        errors.print(_plain(rest), soft_wrap=True)


def show_warning(text: str) -> None:
    """Print a warning to standard error, unless this process keeps quiet for another rank."""
    if not console.quiet:
        errors.print(f"[yellow]warning:[/] {_plain(text)}", soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
