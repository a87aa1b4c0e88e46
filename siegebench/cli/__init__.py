"""The command line. Results go to stdout, progress to stderr; heavy imports are inside the commands.

Exit codes: 0 success; 1 a cell failed, a control was not caught or a certificate was broken; 2 bad usage or
configuration; 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from siegebench import __version__
from siegebench.cli import (
    checking,
    complete,
    dryrun,
    evaluating,
    importing,
    listing,
    rechecking,
    scanning,
    showing,
    soundness,
    submitting,
)
from siegebench.cli import wandb as tracking
from siegebench.cli.options import DEFAULT_STORE, Json, StorePath
from siegebench.errors import ConfigError, SiegeError, did_you_mean

app = typer.Typer(
    name="siegebench",
    help="How robust is this model, really, and which defense survives an honest attack?",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("list")(listing.list_)
app.command()(showing.show)
app.command()(checking.new)
app.command()(checking.check)
app.command()(scanning.scan)
app.command()(evaluating.evaluate)
app.command()(soundness.soundness)
app.add_typer(tracking.app)
app.command("import")(importing.import_)
app.add_typer(submitting.app)
app.command()(rechecking.recheck)
INTERRUPTED = 130
ALL = "all"  # value of --save-images without a number


class How(StrEnum):
    """Executors."""

    serial = "serial"
    local = "local"
    ray = "ray"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def run(
    suite: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a bundled suite (see `list suites`).", autocompletion=complete.suites
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a value, e.g. boards.0.seeds=[0,1]."),
    ] = None,
    store: StorePath = DEFAULT_STORE,
    executor: Annotated[
        How, typer.Option(help="serial: this process; local: one process per slot; ray: a Ray cluster.")
    ] = How.local,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Cells at once; default: one per core, or what the cluster has room for.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop a cell that takes longer, and write it as an error.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, such as auto; without it Ray starts on this machine.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="Share of a GPU for each worker of the ray executor.")] = 0.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch per process; default: cores divided by slots.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    batch: Annotated[
        int, typer.Option(min=1, help="Largest number of images per pass; halved when memory runs out.")
    ] = 256,
    dtype: Annotated[str, typer.Option(help="float32, or float64 for checks of exactness.")] = "float32",
    page: Annotated[Path | None, typer.Option(help="File of the HTML page; default: STORE/SUITE.html.")] = None,
    wandb: Annotated[str | None, typer.Option(help="Show the run and its results in W&B: offline or online.")] = None,
    wandb_project: tracking.Project = "siegebench",
    wandb_entity: tracking.Entity = None,
    wandb_runs: tracking.OneRun = tracking.Runs.per_suite,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells; compute nothing.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Compute all cells again; the old rows move to STORE/history.")
    ] = False,
    keep_stale: Annotated[
        bool, typer.Option("--keep-stale", help="Use rows that other code of their entries has made.")
    ] = False,
    save_images: Annotated[
        str | None,
        typer.Option(
            metavar="[=N]", help="Keep the adversarial images of each attack beside its row, at most N; default: all."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="KEY", help="Compute only the cell whose key begins with KEY, see `show KEY`.")
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Print a breakdown of the time to stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Compute the cells of a suite that are not stored yet, and print the ranked tables.

    A row is stale if the code of one of its entries has changed since; it is computed again.
    """
    to_wandb = tracking.target(wandb, store, wandb_project, wandb_entity)
    most = _most_images(save_images)
    _check_folder(store)
    if page is not None and page.is_dir():
        raise ConfigError(f"--page {page}: is a folder; expected a file")
    from siegebench.config import load_suite
    from siegebench.progress import Progress
    from siegebench.progress import timing as where_time_went

    with Progress() as progress:
        progress.say("checking the suite, its data and its models")
        wanted = load_suite(suite, set_ or [])
        from siegebench import records
        from siegebench.api import run as run_suite
        from siegebench.executors import executor as engine_of
        from siegebench.plan import plan
        from siegebench.store import Store
        from siegebench.titles import titles
        from siegebench.workspace import Settings, Workspace

        settings = Settings(
            root=str(store), device=device, batch=batch, dtype=dtype, threads=threads, save_images=most,
            keep_stale=keep_stale,
        )  # fmt: skip
        Workspace(settings)  # raises for an unknown device or dtype before anything else
        engine = engine_of(executor.value, slots, limit, address, gpus)
        planned = plan(wanted)
        dryrun.limit(planned, only)
        at_once = 1 if executor is How.serial else slots or os.cpu_count() or 1
        shown = titles(planned.cells)
        if not dry_run:
            _say_stale(planned.cells, store, keep_stale)
            progress.begin(planned.cells, at_once, shown, Store(store))
            keys = [cell.key for cell in planned.cells]
            record = records.keep(Store(store), wanted.suite, wanted.origin["set"], keys) if only is None else None
            with tracking.Watch(to_wandb, wandb_runs, record, planned.cells, progress) as watch:
                outcome = run_suite(wanted, settings, how=engine, again=again, planned=planned, report=watch.step)
    if dry_run:
        dryrun.show(planned, [board.track for board in wanted.boards], shown, settings, at_once, again, as_json)
        return
    from siegebench import published
    from siegebench.files import write_atomic
    from siegebench.leaderboard import export, rank, tables
    from siegebench.reporting import report as render
    from siegebench.reuse import marked

    target, text = page or store / f"{wanted.suite}.html", ""
    if only is None or page is not None:  # the page of the whole suite is not replaced by that of one cell
        text = render(outcome.results, "html", store=store)
        write_atomic(target, text.encode())
    rows = marked(outcome.results)
    boards, uncaught = rank.boards(rows, published.read(store)), rank.uncaught_controls(rows)
    if as_json:
        print(export.as_json(boards))
    else:
        tables.show(boards, tables.stdout())
        if target.exists():
            print(f"page: {target}")
    watch.write(boards, rows, text)
    for line in where_time_went(outcome.results) if timing else ():
        _say(line)
    for message in uncaught:
        _say(f"control not caught: {message}")
    broken = rank.broken_certificates(rows)
    for message in broken:
        _say(f"certificate broken: {message}")
    failed = [r for r in outcome.results if r.status == "error"]
    for result in failed:
        error, title = result.error or {}, shown.get(result.cell.key, result.cell.title)
        _say(f"failed: {title}: {error.get('type')}: {_first_line(error.get('message'))}")
    if failed:
        _say(f"details of the first: siegebench show {failed[0].cell.key[:16]} --store {store}")
    _say(_summary(outcome.ended))
    if outcome.failed or uncaught or broken:
        raise typer.Exit(1)


def _first_line(text: Any) -> str:
    lines = str(text or "").strip().splitlines() or [""]
    return "".join(c if c.isprintable() else "?" for c in lines[0][:200])


def _summary(ended: Mapping[str, int]) -> str:
    """`12 cells: 9 computed, 2 stored before, 1 failed`"""
    words = {
        "ok": "computed", "cached": "stored before", "not_applicable": "not applicable",
        "error": "failed", "crashed": "failed with their worker",
    }  # fmt: skip
    told = ", ".join(f"{ended[status]} {word}" for status, word in words.items() if ended.get(status))
    return f"{sum(ended.values())} cells: {told or 'nothing to do'}"


def _most_images(value: str | None) -> int | None:
    """The number after --save-images: 0 for all, None without the option."""
    if value is None or value == ALL:
        return None if value is None else 0
    if not value.isdecimal() or int(value) == 0:
        raise ConfigError(f"--save-images={value}: expected a whole number above 0, or nothing for all images")
    return int(value)


def _check_folder(store: Path) -> None:
    """Refuse a store that is not writable, before anything is computed."""
    there = next(p for p in (store.absolute(), *store.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ConfigError(f"--store {store}: {there} is a file; expected a folder")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"--store {store}: {there} cannot be written")


def _say_stale(cells: list[Any], store: Path, kept: bool) -> None:
    """Say which rows were made by other code, and what happens to them."""
    from siegebench.reuse import stale
    from siegebench.store import Store

    found = stale(cells, Store(store))
    if found:
        entries = ", ".join(sorted({entry for changed in found.values() for entry in changed}))
        then = "kept" if kept else "computed again (--keep-stale keeps them)"
        _say(f"{len(found)} stored rows were made by other code of {entries}: {then}")


@app.command()
def report(
    store: StorePath = DEFAULT_STORE,
    format_: Annotated[
        str,
        typer.Option("--format", help="table, html, md, csv, json, lm_eval or png.", autocompletion=complete.formats),
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to a file instead of stdout.")] = None,
    submissions: Annotated[
        Path | None, typer.Option(help="Folder of submissions whose rows are shown too, with their status.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank the stored rows; as terminal tables or as a file."""
    from siegebench import published
    from siegebench.files import write_atomic
    from siegebench.leaderboard import rank, tables
    from siegebench.reporting import report as render
    from siegebench.reporting import stored

    chosen = "json" if as_json else format_
    if chosen not in complete.FORMATS:
        raise ConfigError(f"unknown format {chosen!r}. {did_you_mean(chosen, complete.FORMATS)}")
    if chosen == "table" and out is None:
        tables.show(rank.boards(stored(store, submissions), published.read(store)), tables.stdout())
    elif chosen == "png":
        from siegebench import screenshot

        if out is None:
            raise ConfigError("--format png: expected a file to write to, such as --out board.png")
        screenshot.take(render(store, "html", submissions=submissions), out)
        _say(f"wrote {out}")
    else:
        text = render(store, "md" if chosen == "table" else chosen, submissions=submissions)
        if out is None:
            print(text)
        else:
            write_atomic(out, text.encode())
            _say(f"wrote {out}")
            if as_json:
                print(json.dumps({"wrote": str(out)}))


@app.command()
def doctor(
    store: StorePath = DEFAULT_STORE,
    data: Annotated[
        str | None,
        typer.Option(metavar="SET", help="Print the labels of a data set: a name, or '{name: image_folder, ...}'."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print versions, device, disk, data and extras, to include in a bug report; or the labels of a data set."""
    from siegebench.doctor import data_lines, examine, examine_data

    if data is not None:
        said = examine_data(data)
        print(listing.as_text(said) if as_json else "\n".join(data_lines(said)))
        return
    found = examine(store)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for section, values in found.items():
        print(section)
        for key, value in values.items():
            print(f"  {key}: {value}")


def _refuse(kind: str, message: str) -> None:
    """One line on stderr; with --json also a document on stdout, because nothing else was printed there."""
    _say(message)
    if "--json" in sys.argv[1:]:
        print(listing.as_text({"error": {"type": kind, "message": message}}))


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    try:
        # typer has no options with an optional value
        words = [f"{word}={ALL}" if word == "--save-images" else word for word in sys.argv[1:]]
        code = app(words, standalone_mode=False)
        sys.stdout.flush()
    except SiegeError as error:
        _refuse(type(error).__name__, str(error))
        code = 2
    except BrokenPipeError:  # `siegebench list attacks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR):
            raise
        _refuse(type(error).__name__, f"{error.filename or 'disk'}: {error.strerror}; finished rows are kept")
        code = 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's usage errors, whatever their class is
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "siegebench"
        said = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
        _refuse("UsageError", f"{command}: {said}. See `{command} --help`.")
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer converts Ctrl-C to this code
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore a second Ctrl-C during the message
        _refuse("Interrupted", "interrupted; finished rows are kept, run the same command again to continue")
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
