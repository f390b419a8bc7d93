"""What the commands share: settings as flags, answers as text, tables or JSON, progress."""

from __future__ import annotations

import inspect
import json
import sys
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from creditledger.ops.config import PREFIX, Config, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.message import Message
    from rich.progress import Progress

REFUSED, USAGE = 1, 2

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Excel = Annotated[
    str | None,
    typer.Option(
        "--excel",
        metavar="point|comma",
        help="A CSV that Excel opens as it is, by the decimal mark of its region.",
    ),
]
Customer = Annotated[str | None, typer.Option("--customer", metavar="ID", help="The customer.")]


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, which takes `config` first, a flag for each of these settings."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapper(**given: Any) -> None:
            from creditledger.ops import log

            config = load({name: given.pop(name) for name in names})
            # What serves says what it does; a command that ends speaks for itself.
            level = config.log_level if "log_level" in names else "warning"
            log.configure(level, config.log_format)
            command(config, **given)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        flags = [_flag(name) for name in names]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *flags)]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # typer reads it
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _flag(name: str) -> inspect.Parameter:
    """A setting as an option. Its text is checked by `load`, which names it in its complaint."""
    setting = Config.model_fields[name]
    kind = bool | None if setting.annotation is bool else str | None
    default = "" if setting.default in {None, False} else f" Default: {setting.default}."
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{setting.description}{default} Or {PREFIX}{name.upper()}.",
        rich_help_panel="Settings",
        show_default=False,
        metavar=None if kind == bool | None else "VALUE",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def livemode_of(mode: str | None) -> bool | None:
    """What `--mode` says: live or test."""
    if mode is None:
        return None
    if mode not in {"live", "test"}:
        raise typer.BadParameter("must be live or test")
    return mode == "live"


def say(text: str) -> None:
    """A line on standard output."""
    print(text, flush=True)


def print_json(value: Mapping[str, object]) -> None:
    """The answer for programs."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def plain(message: Message) -> dict[str, Any]:
    """A message as its JSON over REST."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, always_print_fields_with_no_presence=True)


def complain(sentence: str) -> None:
    """A sentence on standard error."""
    print(f"creditledger: {sentence}", file=sys.stderr, flush=True)


def fail(sentence: str, code: int = REFUSED) -> NoReturn:
    """End the command: the sentence on standard error, and an exit code."""
    complain(sentence)
    raise SystemExit(code) from None


def print_table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Rows for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*names)
    for row in rows:
        # Other people's words: they must neither style the table nor speak to the terminal.
        table.add_row(*(_printable(cell) for cell in row))
    # Off a terminal nothing is cut: a table that is piped is wanted whole.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, markup=False, emoji=False)
    console.print(table, crop=False)


def _printable(cell: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in cell)


def progress_bar() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def progress_task(progress: Progress, name: str) -> Callable[[int, int], None]:
    """A line of the bar; what is returned takes how much is done, and of how much."""
    task = progress.add_task(name, total=None)
    return lambda done, of: progress.update(task, completed=done, total=of)
