"""Files of texts, NewsAPI's own among them, are read right, or refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest import newsapi
from qubic_lab.oracle.ingest.text_files import TextFile, TextOptions, import_texts, read_texts
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import iso, read_iso
from qubic_lab.oracle.store.text_store import TextStore

NOW = read_iso("2026-11-24T12:00:00Z")


def test_texts_from_files(tmp_path: Path, sqlite: Engine) -> None:
    file = tmp_path / "news.csv"
    file.write_text(
        "headline,summary,link,published_at,source\n"
        '"Bitcoin <b>rises</b>","Up, again.",https://example.com/1,2022-01-01T10:00:00Z,Courier\n'
        "Nothing here,Of note.,https://example.com/2,2022-01-01T12:00:00+01:00,Courier\n"
        '"Bitcoin <b>rises</b>","Up, again.",https://example.com/1,2022-01-01T10:00:00Z,Courier\n'
    )
    found = read_texts(file, TextOptions("archive"), NOW)
    assert [(text.title, text.coins, text.publisher) for text in found.texts] == [
        ("Bitcoin rises", ("bitcoin",), "Courier"),
        ("Nothing here", (), "Courier"),
    ]
    assert [iso(text.published_us or 0) for text in found.texts] == ["2022-01-01T10:00:00Z", "2022-01-01T11:00:00Z"]
    assert len(found.notes) == 2
    store = TextStore(sqlite)
    done = import_texts(store, file, TextOptions("archive"))
    assert (done.added, done.rows, done.coins) == (2, 3, {"bitcoin": 1})
    json.dumps(to_plain(done))
    assert import_texts(store, file, TextOptions("archive")).added == 0
    with pytest.raises(InputError, match="invented sample texts"):
        import_texts(store, file, TextOptions("sample"))


def read_posts(folder: Path, *changes: dict[str, Any], **options: Any) -> TextFile:
    """Return what is read from a file of posts, each with its changes to a good one."""
    good = {"id": "a", "text": "to the moon", "published": "2022-01-01T10:00:00Z", "coins": ["BTC", "eth"], "likes": 3}
    file = folder / "posts.jsonl"
    file.write_text("".join(json.dumps(good | each) + "\n" for each in changes))
    return read_texts(file, TextOptions(**options), NOW)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"published": "2022-01-01 10:00"}, "posts.jsonl:2: time '2022-01-01 10:00' has no zone"),
        ({"published": None}, "posts.jsonl:2: time None cannot be read (it is empty)"),
        ({"published": "2031-01-01T00:00:00Z"}, "2: published 2031-01-01T00:00:00Z, which is still to come"),
        ({"text": " "}, "posts.jsonl:2: neither title nor body"),
        ({"kind": "letter"}, "posts.jsonl:2: kind 'letter' of text"),
        ({"likes": "many"}, "posts.jsonl:2: score 'many' is no number"),
        ({"id": "a"}, "posts.jsonl:1: has the id 'a'"),
        ({"language": "the language of the fjords"}, "posts.jsonl:2: language is longer than 16 characters"),
    ],
)
def test_bad_texts_are_refused_by_line(tmp_path: Path, line: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as caught:
        read_posts(tmp_path, {}, {"id": "b", "text": "down", **line}, kind="social")
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_coins_of_texts_are_those_of_the_file_or_of_their_words(tmp_path: Path) -> None:
    (text,) = read_posts(tmp_path, {}, kind="social").texts
    assert (text.coins, text.score, text.kind, text.external_id) == (("bitcoin", "ethereum"), 3, "social", "a")
    found = read_posts(tmp_path, {"coins": "WUFF;$btc"}, {"id": "b", "text": "Ethereum soars", "coins": None})
    assert [each.coins for each in found.texts] == [("bitcoin",), ("ethereum",)]
    assert found.notes == ("unknown coins left out: WUFF",)


# NewsAPI's own files

ARTICLE = {
    "source": {"id": None, "name": "Coin Paper"},
    "author": "Ann",
    "title": "Bitcoin climbs",
    "description": "The largest coin rose.",
    "url": "https://paper.example/a",
    "urlToImage": None,
    "publishedAt": "2022-01-01T10:00:00Z",
    "content": "It rose by a tenth, and more is… [+2380 chars]",
}
OTHERS = [
    ARTICLE | {"url": "https://paper.example/b", "title": "Crypto winter", "description": "", "content": None},
    ARTICLE | {"url": "https://paper.example/c", "title": "Will it rain?", "description": None, "content": None},
    ARTICLE | {"title": "Bitcoin climbs again"},
    ARTICLE | {"url": "https://paper.example/d", "publishedAt": "2022-01-01T10:00:00"},
    ARTICLE | {"url": "https://removed.com", "title": "[Removed]"},
    ARTICLE | {"url": None},
]


def write_articles(folder: Path, name: str) -> Path:
    """Write the articles as the body of a response, as a list, as lines, or as pandas writes them to CSV."""
    articles, file = [ARTICLE, *OTHERS], folder / name
    if name == "body.json":
        file.write_text(json.dumps({"status": "ok", "totalResults": 7, "articles": articles}))
    elif name == "list.json":
        file.write_text(json.dumps(articles))
    elif name == "lines.jsonl":
        file.write_text("".join(json.dumps(each) + "\n" for each in articles))
    else:
        pd.DataFrame(articles).to_csv(file)
    return file


@pytest.mark.parametrize("name", ["body.json", "list.json", "lines.jsonl", "pandas.csv"])
def test_articles_are_read_as_the_collector_reads_them(name: str, tmp_path: Path) -> None:
    found = read_texts(write_articles(tmp_path, name), TextOptions(), NOW)
    (collected,), _ = newsapi.parse_articles([ARTICLE], "file")
    assert found.texts[0] == collected
    assert (collected.publisher, collected.cut_characters) == ("Coin Paper", 2380)
    assert collected.body == "The largest coin rose.\nIt rose by a tenth, and more is"
    assert [text.title for text in found.texts] == ["Bitcoin climbs", "Crypto winter", "Will it rain?"]
    assert [re.sub("^.*: (its|article)", r"\1", note) for note in found.notes] == [
        "its time has no zone, or is none: it is left out",
        "article 'Bitcoin climbs' at '' has no address or no words: it is left out",
        "1 article(s) left out that have the address of an earlier one",
        f"2 of 3 text(s) name none of the {len(COINS)} known coins, so no coin shows them: "
        "1 speak of crypto in general, 1 of something else",
    ]


def test_an_error_in_place_of_articles_is_told(tmp_path: Path) -> None:
    for content, why in (
        ({"status": "error", "code": "apiKeyInvalid", "message": "Your API key is invalid."}, "key is invalid"),
        ({"status": "ok", "totalResults": 0, "articles": []}, "there are no rows"),
        ([ARTICLE | {"publishedAt": None}], "none of 1 articles has words and a time"),
    ):
        (tmp_path / "body.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=why):
            read_texts(tmp_path / "body.json", TextOptions(), NOW)


def test_the_mark_of_a_cut_text_is_taken_off_and_a_publisher_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text(
        "title,content,published,source\n"
        "Bitcoin climbs,It rose by a tenth… [+99 chars],2022-01-01T10:00:00Z,\"{'id': None, 'name': 'Coin Paper'}\"\n"
    )
    (text,) = read_texts(tmp_path / "some.csv", TextOptions(), NOW).texts
    assert (text.body, text.cut_characters, text.publisher) == ("It rose by a tenth", 99, "Coin Paper")
