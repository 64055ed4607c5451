"""`qubic-lab oracle score…` and `train-sentiment`: score stored texts, judge models by labelled files, adapt one."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, print_table, progress_bar, require, split_list
from qubic_lab.errors import InputError, ModelError

if TYPE_CHECKING:
    from qubic_lab.oracle.sentiment.evaluation import ModelComparison
    from qubic_lab.oracle.sentiment.labelled import Columns, LabelledTexts
    from qubic_lab.oracle.sentiment.scores import SentimentModel, SentimentScore

PACKAGES = ("vaderSentiment", "pyarrow", "sklearn")
ALL = "all"
BATCH = 64

TextColumn = Annotated[str | None, Option(metavar="COLUMN", help="Column of the texts.", show_default="by name")]
LabelColumn = Annotated[str | None, Option(metavar="COLUMN", help="Column of the labels.", show_default="by name")]
LabelMap = Annotated[
    list[str] | None,
    Option("--map", metavar="THEIRS=OURS", help="A label's meaning: positive, neutral, negative, skip."),
]
Where = Annotated[list[str] | None, Option(metavar="COLUMN=VALUE", help="Use only these rows; repeatable.")]
Group = Annotated[
    str | None, Option(metavar="COLUMN", help="Equal values mark variants of a text.", show_default="none")
]


def score_file(
    file: Annotated[Path, Argument(metavar="FILE", help="CSV, JSON lines or Parquet, optionally compressed.")],
    text: TextColumn = None,
    label: LabelColumn = None,
    mapping: LabelMap = None,
    model: Annotated[
        str, Option(help="all, or some of default, vader, crypto-lexicon, finbert, finbert:FOLDER.")
    ] = ALL,
    where: Where = None,
    group: Group = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Evaluate sentiment models on labelled texts.

    The baseline always predicts the most frequent label.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.oracle.sentiment.evaluation import BASELINES, compare, verdict
    from qubic_lab.oracle.sentiment.labelled import read_labelled

    labelled = read_labelled(file, read_columns(text, label, mapping, where, group))
    models, notes = _models(model, labelled.labels)
    scores = {each.name: _scored(each, labelled.texts) for each in models}
    found = compare(labelled.labels, scores, labelled.groups, seed)
    verdicts = {each.model: verdict(found, each.model) for each in found.evaluations if each.model not in BASELINES}
    if json:
        of_file = {"file": labelled.file, "rows": labelled.rows, "left_out": labelled.left_out}
        print_json({**of_file, **asdict(found), "verdicts": verdicts, "notes": notes})
        return
    _show(labelled, found)
    for line in verdicts.values():
        typer.echo(line)
    note(*notes)


def train_sentiment(
    labels: Annotated[Path, Option(metavar="FILE", help="Your labelled texts: CSV, JSON lines or Parquet.")],
    output: Annotated[Path, Option(metavar="FILE", help="Write the adapted head to it.")] = Path("sentiment-head.json"),
    text: TextColumn = None,
    label: LabelColumn = None,
    mapping: LabelMap = None,
    where: Where = None,
    group: Group = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Adapt the default sentiment model to your own labels.

    Shows what that gains on texts held out of the training. Three hundred labels or more are worth it.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.model.embeddings import Embedder
    from qubic_lab.oracle.sentiment.adapt import AFTER, adapt
    from qubic_lab.oracle.sentiment.evaluation import verdict
    from qubic_lab.oracle.sentiment.labelled import read_labelled
    from qubic_lab.oracle.sentiment.models import read_head
    from qubic_lab.oracle.sentiment.train import write_head

    labelled = read_labelled(labels, read_columns(text, label, mapping, where, group))
    if not output.parent.is_dir():
        raise InputError(f"{output.parent} is no folder: give --output a place in an existing one")
    found = adapt(read_head(), labelled, labels, Embedder(), seed)
    write_head(found.head, output)
    said = f"{verdict(found.comparison, AFTER)}, each by a head that did not see it"
    if json:
        of_file = {"file": labelled.file, "rows": labelled.rows, "left_out": labelled.left_out}
        print_json({**of_file, **asdict(found.comparison), "verdict": said, "output": str(output)})
        return
    _show(labelled, found.comparison)
    typer.echo(said)
    typer.echo(
        f"{output} is written; the default model uses it where QUBIC_LAB_SENTIMENT_HEAD={output.resolve()} is set"
    )


def score(
    model: Annotated[str, Option(help="default, vader, crypto-lexicon, finbert or finbert:FOLDER.")] = "default",
    coin: Annotated[str | None, Option(help="Score only texts about it, by id or symbol.", show_default="all")] = None,
    json: options.Json = False,
) -> None:
    """Score new texts in the database with a sentiment model.

    Texts that this version of the model has already scored are left out.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.model.coins import COINS, find_coin
    from qubic_lab.oracle.sentiment.models import make_model
    from qubic_lab.oracle.sentiment.scores import score_stored
    from qubic_lab.oracle.store.text_store import TextStore

    coins = list(COINS) if coin is None else [find_coin(coin).id]
    chosen = make_model(model)
    store = TextStore(open_database())
    with progress_bar() as show:
        results = [
            score_stored(store, chosen, each, progress=lambda done, total, each=each: show(each, done, total))  # type: ignore[misc]
            for each in coins
        ]
    some = [each for each in results if each.texts or coin is not None]
    if json:
        counts = {each.coin: {"texts": each.texts, "scored": each.scored, "before": each.before} for each in some}
        print_json({"model": chosen.name, "version": chosen.version, "coins": counts})
        return
    if not some:
        note("there are no texts yet: run `qubic-lab oracle collect`, or `qubic-lab oracle demo`")
        return
    rows = [(each.coin, str(each.texts), str(each.scored), str(each.before)) for each in some]
    print_table(("coin", "texts", "scored now", "before"), rows)
    note(f"by {some[0].key}")


def read_columns(
    text: str | None,
    label: str | None,
    mapping: Sequence[str] | None,
    where: Sequence[str] | None = None,
    group: str | None = None,
) -> "Columns":
    """Return how to read labelled files, as options say it; an InputError if an option is not a pair."""
    from qubic_lab.oracle.sentiment.labelled import Columns

    return Columns(text, label, _pairs("--map", mapping), _pairs("--where", where), group)


def _pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Return the pairs of KEY=VALUE options; one option may have several, separated by commas."""
    found: dict[str, str] = {}
    for pair in (each for text in given or () for each in (split_list(option, text) if option == "--map" else (text,))):
        key, equals, value = pair.rpartition("=") if option == "--map" else pair.partition("=")
        if not (key and equals):
            example = "0=negative" if option == "--map" else "split=test"
            raise InputError(f"{option} is {pair!r}: give a pair with =, such as {example}")
        found[key.strip()] = value.strip()
    return found


def _models(names: str, labels: Sequence[str]) -> tuple[list["SentimentModel"], list[str]]:
    """Return the models by name with the baselines first, and notes about those that are left out."""
    from qubic_lab.oracle.sentiment.models import FINBERT, MODELS, FinBert, majority_of, make_model

    majority = majority_of(labels)
    asked = list(MODELS) if names == ALL else list(split_list("--model", names))
    wanted = dict.fromkeys(name for name in ("vader", *asked) if name != "majority")
    models: list[SentimentModel] = [majority]
    notes: list[str] = []
    for name in wanted:
        if name == "finbert" and names == ALL:  # nobody asked for a download, so it must be on this machine
            finbert = FinBert(local=True)
            try:
                finbert.load()
            except ModelError:
                notes.append(f"finbert is left out: {FINBERT} is not on this machine; --model finbert fetches it")
                continue
            models.append(finbert)
        else:
            models.append(make_model(name))
    names_of = [each.name for each in models]
    if len(set(names_of)) < len(names_of):
        twice = next(each for each in names_of if names_of.count(each) > 1)
        raise InputError(f"--model {names} names {twice!r} twice: give each model once, by a name of its own")
    return models, notes


def _scored(model: "SentimentModel", texts: Sequence[str]) -> list["SentimentScore"]:
    found: list[SentimentScore] = []
    with progress_bar() as show:
        for start in range(0, len(texts), BATCH):
            found += model.score(texts[start : start + BATCH])
            show(model.name, len(found), len(texts))
    return found


def _show(labelled: "LabelledTexts", found: "ModelComparison") -> None:
    """Print the comparison as tables."""
    from qubic_lab.bench.result import interval_text
    from qubic_lab.oracle.sentiment.scores import LABELS

    left_out = ", ".join(f"{count} {why}" for why, count in labelled.left_out.items() if count) or "none"
    typer.echo(f"{labelled.file}: {found.n} of {labelled.rows} texts are evaluated; left out: {left_out}\n")
    rows = [
        (
            each.model,
            *(
                interval_text(measure.value, measure.low, measure.high, ".3f")
                for measure in (each.accuracy, each.macro_f1)
            ),
            f"{each.calibration_error:.3f} (by chance up to {each.calibration_luck:.3f})",
        )
        for each in found.evaluations
    ]
    print_table(("model", "accuracy (95 % interval)", "macro-F1 (95 % interval)", "calibration error"), rows)
    for each in found.evaluations:
        typer.echo("")
        confusion = [(label, *map(str, row)) for label, row in zip(LABELS, each.confusion, strict=True)]
        print_table((f"{each.model}: true (rows), predicted (columns)", *LABELS), confusion)
    typer.echo("")
