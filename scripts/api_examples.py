"""Record the examples of the HTTP interface from a running coordinator, for `qubic_lab/api/examples.json`.

    qubic-lab oracle demo
    qubic-lab cluster up --nodes 2
    python scripts/api_examples.py --url http://127.0.0.1:5000

Each operation is asked once, with the request below; the answer is kept with its lists shortened. A test checks that
every operation has an example and that each fits its schema.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from qubic_lab.api.document import operations_of, read_examples

FILE = Path(__file__).parents[1] / "qubic_lab" / "api" / "examples.json"
QUESTION = "Why is the sky blue?"
COIN = {"coin": "bitcoin"}
MESSAGES = [{"role": "user", "content": QUESTION}]
LISTED, CHARACTERS = 2, 600
"""Of an answer: the most items of a list, and the most characters of a text that is not JSON."""

REQUESTS: dict[str, dict[str, Any]] = {
    "POST /api/ai/query": {"body": {"prompt": QUESTION, "max_new_tokens": 24}},
    "POST /api/ai/single_query": {
        "body": {"prompt": QUESTION, "max_new_tokens": 24, "logprobs": True},
        "parameters": {"idempotency-key": "question-17"},
    },
    "POST /api/ai/consensus_query": {"body": {"prompt": "What is 7 plus 5?", "nodes": 2, "max_new_tokens": 24}},
    "POST /api/ai/analyze": {
        "body": {"question": "What is 7 plus 5?", "answers": ["It is 12.", "The answer is 12.", "11"]}
    },
    "GET /api/consensus/history": {"parameters": {"limit": 2}},
    "GET /api/consensus/conflicts": {"parameters": {"limit": 2}},
    "POST /api/consensus/history/{vote_id}/reference": {"body": {"answer": "12"}},
    "GET /api/oracle/sentiment": {"parameters": COIN | {"window": "7d"}},
    "GET /api/oracle/price_analysis": {"parameters": COIN | {"frame": "1h"}},
    "GET /api/oracle/risk": {"parameters": COIN | {"frame": "1d"}},
    "GET /api/oracle/market_overview": {"parameters": {"coins": "bitcoin"}},
    "GET /api/oracle/prices": {"parameters": COIN | {"limit": 2}},
    "GET /api/oracle/texts": {"parameters": COIN | {"limit": 2}},
    "POST /v1/responses": {"body": {"model": "smollm2", "input": QUESTION, "max_output_tokens": 16}},
    "POST /v1/embeddings": {"body": {"model": "all-MiniLM-L6-v2", "input": ["Why is the sky blue?", "12"]}},
    "GET /v1/models/{name}": {"parameters": {"name": "smollm2"}},
    "POST /v1/chat/completions": {"body": {"model": "smollm2", "messages": MESSAGES, "max_completion_tokens": 16}},
    "POST /v1/completions": {"body": {"model": "smollm2", "prompt": "The sky is", "max_tokens": 4, "logprobs": 1}},
    "GET /api/oracle/alerts": {"parameters": {"limit": 2}},
}
"""What an operation is asked with, if it needs anything beyond `places`."""
STREAMED = (
    *("POST /api/ai/query", "POST /api/ai/single_query"),
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses"),
)
"""Operations that also answer with events, if `stream` is in the body."""


def record(url: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Return the examples of some operations of a coordinator, or of all."""
    with httpx2.Client(base_url=url, timeout=300.0, trust_env=False) as client:
        places = find_places(client)
        operations = dict(operations_of(client.get("/openapi.json").json()))
        names = wanted or sorted(operations)
        return {name: ask(client, name, REQUESTS.get(name, {}), places) for name in names}


def find_places(client: httpx2.Client) -> dict[str, str]:
    """Return values for the parameters of paths: a node, a task that has ended, and a vote."""
    task = client.post("/api/ai/query", json={"prompt": QUESTION, "max_new_tokens": 8}).json()
    vote = client.post("/api/ai/consensus_query", json={"prompt": QUESTION, "max_new_tokens": 8, "mode": "consensus"})
    return {"name": task["node"], "task_id": task["task_id"], "vote_id": vote.json()["vote_id"]}


def ask(client: httpx2.Client, name: str, request: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """Return the example of one operation: what it was asked with, and its answers by content type."""
    method, path = name.split()
    known = request.get("parameters", {})
    named = {each: known.get(each, places.get(each)) for each in re.findall(r"{(\w+)", path)}
    headers = {each: value for each, value in known.items() if "-" in each}
    query = {each: value for each, value in known.items() if each not in headers | named}
    kept = {"parameters": known | named} if known | named else {}
    kept |= {"body": request["body"]} if "body" in request else {}
    bodies = [request.get("body")] + ([request["body"] | {"stream": True}] if name in STREAMED else [])
    where, answers = path.replace(":path", "").format(**named), {}
    for body in bodies:
        answer = client.request(method, where, params=query, headers=headers, json=body)
        answer.raise_for_status()
        if answer.content:
            kind = answer.headers["content-type"].partition(";")[0]
            answers[kind] = shortened(answer.json()) if kind == "application/json" else cut(answer.text)
        headers = {}  # a key belongs to one body
    return kept | {"answers": answers}


def shortened(value: Any) -> Any:
    """Return an answer with shorter lists."""
    if isinstance(value, dict):
        return {name: shortened(each) for name, each in value.items()}
    return [shortened(each) for each in value[:LISTED]] if isinstance(value, list) else value


def cut(text: str) -> str:
    """Return the beginning of a text, in whole lines."""
    return text if len(text) <= CHARACTERS else text[: text.rfind("\n", 0, CHARACTERS) + 1] + "…\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="of the coordinator")
    parser.add_argument("names", nargs="*", metavar="NAME", help='operations, such as "GET /health"; by default all')
    arguments = parser.parse_args()
    new = record(arguments.url, arguments.names)
    found = dict(sorted(((dict(read_examples()) if arguments.names else {}) | new).items()))
    lines = [f"{json.dumps(name)}: {json.dumps(each, ensure_ascii=False)}" for name, each in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(new)} of {len(found)} examples in {FILE} are new")


if __name__ == "__main__":
    main()
