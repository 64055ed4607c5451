"""`qubic-lab run`, `report` and `runs …`: run the studies of an experiment file, make the week's page, look at runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, duration_text, note, print_json, print_table, require, stderr
from qubic_lab.errors import QubicLabError, check_at_least

if TYPE_CHECKING:
    from qubic_lab.runs.batch import Watcher
    from qubic_lab.runs.one_run import RunOutcome
    from qubic_lab.runs.shared_store import SharedStore

LAB_MODULES = ("babel", "ipykernel", "jinja2", "matplotlib", "nbconvert", "pandas", "papermill", "pyarrow")
"""Packages that these commands need beyond the core install, by their import names."""

Run = Annotated[str, Argument(help="Name of a run, such as concurrency/1a2b3c, or the beginning of its key.")]
Study = Annotated[str | None, Option(help="Only runs of this study.", show_default="all")]
Since = Annotated[str | None, Option(help="Only runs since this week or day, such as 2026-W48.", show_default="all")]


def run(
    file: Annotated[Path, Argument(help="A week's or a study's file, such as experiments/weekly.yaml.")],
    full: Annotated[bool, Option("--full", help="Run the full form of each study.")] = False,
    jobs: Annotated[int, Option(help="Notebooks to run at once; those that measure time run alone.")] = 1,
    dask: Annotated[
        str | None, Option(metavar="ADDRESS", help="Run on this Dask cluster, such as tls://head:8786; needs --store.")
    ] = None,
    store: Annotated[
        str | None, Option(metavar="URL", help="Share finished runs there: a folder, s3://… or gs://….")
    ] = None,
    json: options.Json = False,
) -> None:
    """Run the notebooks of an experiment file.

    Notebooks whose inputs have not changed are not run again. Prints the folders of the runs.
    """
    require(*LAB_MODULES)
    from qubic_lab.runs.batch import run_batch
    from qubic_lab.runs.experiment import load

    week = load(file)
    shared = _open_store(store)
    require(*(["distributed"] if dask else []), extra="dask")
    with _display() as watcher:
        outcomes = run_batch(week, full=full, watcher=watcher, jobs=jobs, store=shared, dask=dask)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if json:
        rows = [{"study": each.run.study.name, "folder": str(each.folder)} | _ending(each) for each in outcomes]
        print_json({"title": week.title, "runs": rows})
    else:
        for outcome in outcomes:
            if outcome not in failed:
                typer.echo(outcome.folder)
    if failed:
        raise QubicLabError(
            f"{week.title}: {len(failed)} of {len(outcomes)} runs failed: see executed.ipynb in {failed[0].folder}"
            f"{' and the others named above' if len(failed) > 1 else ''}"
        )


def _ending(outcome: "RunOutcome") -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in ("reused", "seconds", "error")}


def _open_store(url: str | None) -> "SharedStore | None":
    if url is None:
        return None
    require("fsspec", extra="dask")
    from qubic_lab.runs.shared_store import SharedStore

    return SharedStore(url)


def report(
    week: Annotated[str | None, Option(help="ISO week, such as 2026-W48.", show_default="the latest with runs")] = None,
    publish: Annotated[
        str | None, Option(metavar="URL", help="Copy the page to a folder or bucket, such as s3://pages/lab.")
    ] = None,
    announce: Annotated[
        str | None, Option(metavar="URL", help="Post the verdicts there.", show_default="QUBIC_LAB_ANNOUNCE_WEBHOOK")
    ] = None,
    lang: Annotated[str, Option(metavar="LANGUAGE", help="Of the page: en or zh-TW.")] = "en",
    compare: Annotated[str | None, Option(metavar="WEEK", help="Compare with this week, not the latest.")] = None,
    pdf: Annotated[bool, Option("--pdf", help="Write the page as a PDF, too.")] = False,
    serve: Annotated[bool, Option("--serve", help="Show all pages on this machine until Ctrl-C.")] = False,
    port: Annotated[int, Option(help="Port of --serve; 0: any free one.")] = 8090,
    json: options.Json = False,
) -> None:
    """Write the page of a week from its runs, and print its path.

    With --serve it is written again whenever a run has ended, and a browser that shows it loads it again.

    With --publish it prints the address of the copy, too. If that or the announcement fails, the page is written all
    the same.
    """
    require(*LAB_MODULES)
    from qubic_lab.runs import publish as sharing
    from qubic_lab.runs.report import build_page
    from qubic_lab.runs.week_report import KEPT, read_week

    webhook = sharing.announcer(announce)
    page = build_page(week, lang, compare)
    written = {"page": str(page)}
    if not json:
        typer.echo(page)
    if pdf:
        require("typst")
        from qubic_lab.runs.pdf import write_pdf

        written["pdf"] = str(write_pdf(page.parent, lang))
        if not json:
            typer.echo(written["pdf"])
    if publish is not None:
        require("fsspec")
        written["published"] = sharing.publish(page, publish)
        if not json:
            typer.echo(written["published"])
    kept = read_week(page.parent / KEPT)
    told = sharing.message(kept, written.get("published", str(page)))
    if webhook is not None:
        sharing.announce(told, webhook)
    if json:
        print_json({**told, **written})
    if serve:
        from qubic_lab.runs.serve import serve_reports

        serve_reports(port, lambda: build_page(week, lang, compare), note)


def list_runs(study: Study = None, since: Since = None, json: options.Json = False) -> None:
    """Print the runs that are kept, oldest first."""
    from qubic_lab.runs.kept import kept_runs

    runs = kept_runs(study, since)
    if json:
        print_json({"runs": [{"name": each.name, **vars(each.manifest)} for each in runs]})
        return
    rows = [
        (each.name, each.manifest.started_utc[:16], duration_text(each.manifest.seconds), each.manifest.error or "done")
        for each in runs
    ]
    print_table(("run", "began (UTC)", "took", "ended"), rows)


def show(run: Run, json: options.Json = False) -> None:
    """Print what is known of a run.

    Parameters, circumstances, single values of its results, and medians of its measures.
    """
    from qubic_lab.runs.kept import facts, find_run

    found = find_run(run)
    known = {"folder": str(found.folder), **facts(found)}
    if json:
        print_json(known)
    else:
        print_table(("what", "value"), [(name, str(value)) for name, value in known.items()])


def diff(one: Run, other: Run, json: options.Json = False) -> None:
    """Print what two runs do not share."""
    from qubic_lab.runs.kept import differences, facts, find_run

    found = find_run(one), find_run(other)
    _print_differences(differences(facts(found[0]), facts(found[1])), (found[0].name, found[1].name), json)


def rerun(run: Run, json: options.Json = False) -> None:
    """Make a run again, and print what is different.

    It is made as the project is now, and takes the place of the run if nothing that decides it has changed.
    """
    require(*LAB_MODULES)
    from qubic_lab.runs.batch import run_again
    from qubic_lab.runs.kept import KeptRun, differences, facts, find_run
    from qubic_lab.runs.store import read_manifest

    found = find_run(run)
    before = facts(found)
    with _display() as watcher:
        outcome = run_again(found.manifest, watcher)
    if outcome.error is not None:
        raise QubicLabError(f"{found.name}: {outcome.error}; kept in {outcome.folder}")
    after = KeptRun(outcome.folder, read_manifest(outcome.folder))
    _print_differences(differences(before, facts(after)), ("before", "now"), json)


def gc(
    weeks: Annotated[int, Option(help="Weeks to keep, this one included.")] = 8,
    dry_run: Annotated[bool, Option("--dry-run", help="Only print what would be deleted.")] = False,
) -> None:
    """Delete old runs, and print their folders.

    Old are those that were neither made nor used in the last weeks. The last full runs of each study are kept, as pages
    show them beside quick ones.
    """
    from qubic_lab.runs.kept import old_runs
    from qubic_lab.runs.store import delete, turn_to_run, utc_now

    check_at_least("weeks", weeks, 1)
    with turn_to_run():
        old = old_runs(weeks, utc_now())
        size = sum(file.stat().st_size for each in old for file in each.folder.rglob("*"))
        for each in old:
            typer.echo(each.folder)
            if not dry_run:
                delete(each.folder)
    note(f"{len(old)} runs, {size / 2**20:.0f} MiB{': not deleted' if dry_run else ' deleted'}")


def _print_differences(found: dict[str, tuple[Any, Any]], names: tuple[str, str], json: bool) -> None:
    if json:
        print_json({name: list(values) for name, values in found.items()})
    else:
        print_table(("what", *names), [(name, *map(str, values)) for name, values in found.items()])


@contextmanager
def _display() -> "Iterator[Watcher]":
    """Show the progress of a batch on stderr: what runs and the time left, on a terminal; a line for each run."""
    from qubic_lab.runs.progress import BatchProgress

    class Display(BatchProgress):
        def wait(self) -> None:
            note("another qubic-lab is running a notebook here: waiting for it to end")

        def end(self, outcome: "RunOutcome") -> None:
            super().end(outcome)
            stderr().print(f"{self.label(outcome.run)}: {_in_words(outcome)}", markup=False, soft_wrap=True)

    display = Display()
    if not stderr().is_terminal:
        yield display
        return
    from rich.live import Live

    with Live(display, console=stderr(), transient=True, refresh_per_second=2):
        yield display


def _in_words(outcome: "RunOutcome") -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}; kept in {outcome.folder}"
    return "reused: nothing has changed" if outcome.reused else f"done in {outcome.seconds:.0f} s"


COMMANDS: Commands = {
    "list": (list_runs, "--study concurrency"),
    "show": (show, "concurrency/1a2b3c"),
    "diff": (diff, "1a2b3c 4d5e6f"),
    "rerun": (rerun, "1a2b3c"),
    "gc": (gc, "--weeks 8 --dry-run"),
}
