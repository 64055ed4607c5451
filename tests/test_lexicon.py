"""The crypto lexicon finds phrases, rules and negations as its README says; VADER's words fill the gaps."""

import pytest
import yaml

from qubic_lab.oracle.sentiment.lexicon import LEXICON_FILE, NEGATED, crypto_lexicon, vader_compounds
from qubic_lab.oracle.sentiment.models import LexiconModel, WordScale, make_model


def compound(text: str) -> float:
    return crypto_lexicon().read(text).compound


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("no rug pull", 1),
        ("rug pull", -1),
        ("short squeeze sends the coin higher", 1),
        ("long squeeze", -1),
        ("Team burns 5 million tokens of the supply", 1),
        ("burned again, my money is gone", -1),
        ("the nightly data dump", 0),
        ("dumping on holders", -1),
        ("shorts liquidated", 1),
        ("longs liquidated", -1),
        ("killer app", 1),
        ("dead cat bounce", -1),
        ("denies hack", 1),
        ("aggressive accumulation", 1),
        ("sick gains", 1),
        ("crushes resistance", 1),
        ("free fall", -1),
        ("free fall ends", 1),
        ("token burn", 1),
        ("kill switch", 0),
        ("hard fork", 0),
        ("ALL-TIME HIGH", 1),
        ("all‑time low", -1),
        ("Wallet with quotes “” and ’", 0),
        ("to the moon 🚀🚀", 1),
        ("🩸", -1),
        ("⚠️", -1),
        ("#rekt", -1),
        ("qubic epoch 181", 0),
        ("not bullish", -1),
        ("isn’t a scam", 1),
        ("", 0),
        ("?!…", 0),
    ],
)
def test_what_a_text_says(text: str, sign: int) -> None:
    assert (compound(text) > 0) - (compound(text) < 0) == sign, (text, crypto_lexicon().read(text))


@pytest.mark.parametrize(
    ("text", "words", "because"),
    [
        ("There was no rug pull today", "no rug pull", "phrase"),  # its negator does not count a second time
        ("the free fall ends", "free fall ends", "phrase"),  # the longest one
        ("never in all bullish", "bullish", "word, negated"),
        ("never in all those bullish", "bullish", "word"),  # more than three words away
        ("not now. bullish", "bullish", "word"),
        ("not now, bullish", "bullish", "word"),  # another part of the sentence
        ("support holds", "support holds", "phrase"),
        ("support was held", "support", "rule: support that holds"),
        ("support. It held", "support", "word"),
        ("a terrible day", "terrible", "general lexicon"),
    ],
)
def test_the_first_hit_and_its_reason(text: str, words: str, because: str) -> None:
    hit = crypto_lexicon().read(text).hits[0]
    assert (hit.words, hit.because) == (words, because)


def compound_sum(text: str) -> float:
    reading = crypto_lexicon().read(text)
    return reading.positive - reading.negative


def test_negators_boosters_and_diminishers_change_a_valence() -> None:
    good, bad = compound_sum("bullish"), compound_sum("bearish")
    assert compound_sum("not bullish") == pytest.approx(NEGATED * good)
    assert compound_sum("very bullish") == pytest.approx(good + 0.293)
    assert compound_sum("very bearish") == pytest.approx(bad - 0.293)
    assert compound_sum("slightly bullish") == pytest.approx(good - 0.293)
    assert compound_sum("very now bullish") == pytest.approx(good + 0.293 * 0.95)
    first, second = crypto_lexicon().read("very bullish surge").hits
    assert (first.counted, second.counted) == (pytest.approx(first.valence + 0.293), second.valence)


def test_but_capitals_and_exclamation_marks_change_the_compound() -> None:
    assert compound("bullish but bearish") < compound("bullish and bearish") < compound("bearish but bullish")
    assert compound("this is BULLISH news") > compound("this is bullish news")
    assert compound("THIS IS BULLISH NEWS") == compound("this is bullish news")
    assert compound("bullish!!") > compound("bullish!") > compound("bullish")
    assert compound("bullish!!!!!!!!") == compound("bullish!!!!")
    assert -1 <= compound("scam " * 200) < -0.99 and 0.99 < compound("moon " * 200) <= 1


def test_every_entry_of_the_file_is_found_by_itself() -> None:
    content = yaml.safe_load(LEXICON_FILE.read_text("utf-8"))
    for section in ("words", "phrases", "emoji", "hashtags"):
        for key, valence in content[section].items():
            hits = crypto_lexicon().read(f"x {key} y").hits
            assert [hit.valence for hit in hits] == ([valence] if valence else []), key


def test_vader_is_the_package_s_own_with_its_thresholds() -> None:
    texts = ["a great success", "a terrible loss", "a table", "This is not good."]
    for model in (make_model("vader"), LexiconModel("vader", WordScale(0.05, 3.0, 0.1))):
        labels = [each.label for each in model.score(texts)]
        assert labels == ["positive", "negative", "neutral", "negative"]


def test_the_lexicon_s_model_knows_what_vader_does_not() -> None:
    texts = ["No rug pull", "Short squeeze", "Exit scam"]
    assert [each.label for each in make_model("crypto-lexicon").score(texts)] == ["positive", "positive", "negative"]
    assert [each.label for each in make_model("vader").score(texts)] != ["positive", "positive", "negative"]
    assert vader_compounds(["shares"])[0] > 0 == compound("shares")  # our entries replace those of VADER


def test_scores_rise_with_the_compound_and_versions_follow_the_scale() -> None:
    texts = ["exit scam", "bearish", "a table", "ath", "ath moon"]
    scores = [each.score for each in make_model("crypto-lexicon").score(texts)]
    assert scores == sorted(scores) and scores[2] == 0
    one, other = (LexiconModel("crypto-lexicon", WordScale(threshold, 3, 0.1)) for threshold in (0.1, 0.2))
    assert one.version != other.version
