"""Scores of texts that are in the database: computed once for each version of a model, read back for an index."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.sentiment.index import ScoredText, Weighting
from qubic_lab.oracle.sentiment.scores import SentimentModel, model_key
from qubic_lab.oracle.sentiment.text_score import WEIGHTS, TextWeights, score_texts
from qubic_lab.oracle.store.text_reader import ScoreColumns, StoredText, TextReader
from qubic_lab.oracle.store.text_store import Score, TextStore

FIRST_US, LAST_US = 0, 1 << 61
PREFERRED = ("default", "finbert", "crypto-lexicon", "vader")
"""Models whose scores make the index, the first choice first; others follow by name."""
BASELINE = "majority"
"""A model that gives every text the same score, so an index of its scores would say nothing."""
NO_SCORES = "no model has scored these texts: qubic-lab oracle score does"
NO_TEXTS = "there are no texts"
BATCH = 64
"""Texts that are scored and written together: what an interrupted run has lost at most."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scoring:
    """What became of a coin's texts: how many there are, scored now, and scored before."""

    coin: str
    key: str
    texts: int
    scored: int
    before: int


def score_key(model: SentimentModel, weights: TextWeights = WEIGHTS) -> str:
    """Return what a model's scores of whole texts are kept under: its version, and weights that are not the usual."""
    return f"{model_key(model)}{weights.suffix()}"[:128]


def score_stored(
    store: TextStore,
    model: SentimentModel,
    coin: str,
    start_us: int = FIRST_US,
    end_us: int = LAST_US,
    *,
    weights: TextWeights = WEIGHTS,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Scoring:
    """Score a coin's texts that this version of the model has not scored yet, and keep the scores.

    Each batch is kept when it is done, the newest texts first: an interrupted run goes on where it ended, and a
    second one finds nothing to do. Repetitions of other texts are not scored.

    Args:
        store: the texts.
        model: what scores them.
        coin: its id.
        start_us: first time of publication.
        end_us: time of publication before which texts are taken.
        weights: of headline and body.
        batch: texts that are scored and kept together.
        progress: is told how many of the texts that lack a score are done, and how many they are.

    Raises:
        InputError: an empty range, or a batch below 1.
    """
    check_at_least("batch", batch, 1)
    key = score_key(model, weights)
    texts = store.read(coin, start_us, end_us)
    known = {int(id) for id in store.scores(coin, start_us, end_us, key).news_id}
    missing = [text for text in reversed(texts) if text.id not in known]
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        store.add_scores(_scores(model, some, key, weights))
        if progress is not None:
            progress(start + len(some), len(missing))
    return Scoring(coin, key, len(texts), len(missing), len(texts) - len(missing))


def _scores(model: SentimentModel, texts: list[StoredText], key: str, weights: TextWeights) -> list[Score]:
    scored = zip(texts, score_texts(model, texts, weights), strict=True)
    return [Score(text.id, key, each.score, max(each.whole.probabilities), each.details()) for text, each in scored]


def read_scored(texts: TextReader, key: str, coin: str, start_us: int, end_us: int) -> list[ScoredText]:
    """Return a coin's texts of a range with their scores under a key.

    A text counts from when its score was known here, too. Texts without a score are left out. Each is in its newest
    version, and an index does not have the text before that version was known: for an index of the past, give a reader
    of what was known then.

    Raises:
        InputError: an empty range.
    """
    scores = texts.scores(coin, start_us, end_us, key)
    by_text = {
        int(id): (float(score), int(known))
        for id, score, known in zip(scores.news_id, scores.score, scores.known_us, strict=True)
    }
    return [
        ScoredText(
            id=text.id,
            key=f"{text.source} {text.external_id}",
            source=text.source,
            title=text.title or text.body[:120],
            at_us=text.at_us,
            known_us=max(text.known_us, by_text[text.id][1]),
            score=by_text[text.id][0],
            duplicate_of=text.duplicate_of,
        )
        for text in texts.read(coin, start_us, end_us)
        if text.id in by_text
    ]


def choose_model(scores: Mapping[str, ScoreColumns]) -> str | None:
    """Return the model whose scores make the index: by preference, then by how many it has, then the newest."""

    def rank(key: str) -> tuple[int, int, int, str]:
        name = _model_name(key)
        place = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
        return place, -len(scores[key]), -int(scores[key].known_us.max()), key

    return min((key for key in scores if _model_name(key) != BASELINE), key=rank, default=None)


def scored_texts(texts: TextReader, scores: ScoreColumns, weighting: Weighting) -> list[ScoredText]:
    """Return the texts that have these scores, without titles; with sources only where sources weigh differently."""
    sources = texts.sources(scores.news_id.tolist()) if weighting.source_weights else {}
    columns = (scores.news_id, scores.at_us, scores.known_us, scores.score)
    return [
        ScoredText(
            id=id, key=str(id), source=sources.get(id, ""), title="", at_us=at_us, known_us=known_us, score=score
        )
        for id, at_us, known_us, score in zip(*(each.tolist() for each in columns), strict=True)
    ]


def _model_name(key: str) -> str:
    return key.partition("@")[0].partition(":")[0]
