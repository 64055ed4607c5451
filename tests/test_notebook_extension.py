"""`%load_ext qubic_lab`: answers stream into the cell, state and plans are shown, and an error is one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from qubic_lab import notebook_extension
from qubic_lab.api.client import CoordinatorClient
from qubic_lab.api.schemas import QueryResponse, Token
from qubic_lab.cli.cluster import ClusterSnapshot
from qubic_lab.cluster.coordinator import RedisTimes
from qubic_lab.errors import QubicLabError
from qubic_lab.model.recommend import Advice
from qubic_lab.pipeline import Pipeline, PipelineConfig


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """A shell with the extension; no other test has one."""
    shell = InteractiveShell.instance()
    assert shell.run_line_magic("load_ext", "qubic_lab") is None
    yield shell
    InteractiveShell.clear_instance()


def failed(ran: ExecutionResult, out: str) -> str:
    """Return the one line that a cell printed that failed."""
    assert isinstance(ran.error_in_exec, notebook_extension.MagicError)
    assert out.startswith("error: ") and out.count("\n") == 1
    return out


def test_answers_stream_and_the_model_stays_loaded_while_nothing_else_is_wanted(
    shell: InteractiveShell, one_rank: Pipeline, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    launched: list[PipelineConfig] = []
    closed: list[bool] = []

    def launch(wanted: PipelineConfig) -> Pipeline:
        launched.append(wanted)
        one_rank.configure(wanted)
        return one_rank

    monkeypatch.setattr(Pipeline, "launch", launch)
    monkeypatch.setattr(Pipeline, "close", lambda self: closed.append(True))
    cell = f"%%ask --model {tiny} --max-new-tokens 5\nWhy is the sky blue?\n"
    for _ in range(2):
        assert shell.run_cell(cell).success
    assert shell.run_cell(cell.replace("--max", "--dtype fp32 --max")).success
    whole = one_rank.generate("Why is the sky blue?", max_new_tokens=5)
    *_, last = said = capsys.readouterr().out.split(f"{tiny.name} on 1 rank: ")
    assert said[0].count("\n") >= 2 and f"{len(whole.token_ids)} tokens, " in last
    assert (len(launched), len(closed)) == (2, 1)
    assert [each.dtype for each in launched] == ["bf16", "fp32"]


def test_a_cluster_streams_too(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    whole = {"text": "two words", "token_ids": [1, 2], "finish_reason": "stop", "prompt_tokens": 3, "attempts": 1}
    times = {"ttft_ms": 1.0, "tokens_per_s": 20.0, "node_ms": 2.0, "total_ms": 3.0}
    end = QueryResponse(task_id="t", model="m", node="node-2", **whole, **times)
    asked: list[Any] = []

    def stream(client: CoordinatorClient, prompt: str, **options: Any) -> Iterator[Token | QueryResponse]:
        asked.append((client.url, prompt, options))
        yield from (Token(index=0, id=1, text="two "), Token(index=1, id=2, text="words"), end)

    monkeypatch.setattr(CoordinatorClient, "stream", stream)
    assert shell.run_cell("%%ask --url http://127.0.0.1:7000 --temperature 0.7\nsay two\n").success
    assert capsys.readouterr().out == "two words\n\nm on node-2: 2 tokens, 20.0 tokens/s\n"
    assert asked == [("http://127.0.0.1:7000", "say two", {"max_new_tokens": 128, "temperature": 0.7, "seed": 0})]


def test_an_interrupted_answer_is_cancelled_and_one_line(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    cancelled: list[bool] = []

    class Interrupted:
        def stream(self, *_: Any, **__: Any) -> "Interrupted":
            return self

        def __iter__(self) -> Iterator[str]:
            raise KeyboardInterrupt

        def cancel(self) -> None:
            cancelled.append(True)

        def close(self) -> None: ...

    monkeypatch.setattr(Pipeline, "launch", lambda wanted: Interrupted())
    assert failed(shell.run_cell("%%ask\nWhy?\n"), capsys.readouterr().out) == "error: interrupted\n"
    assert cancelled == [True]


def test_plans_are_values_that_show_themselves(shell: InteractiveShell, capsys: Any) -> None:
    ran = shell.run_cell("%plan --devices t4,t4 --goal latency")
    assert isinstance(ran.result, Advice)
    assert (ran.result.goal, len(ran.result.setup.devices)) == ("latency", 2)
    assert "Recommended: " in capsys.readouterr().out
    assert "--devices" in (shell.run_cell("%plan --help").success and capsys.readouterr().out)


def test_the_state_of_the_cluster_is_tables(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    state = ClusterSnapshot({"http://here:5000": QubicLabError("no answer")}, [], RedisTimes(0.1, 0.2, 0.3), None)
    monkeypatch.setattr(notebook_extension.cluster, "read_status", lambda: state)
    html = shell.run_cell("%cluster").result._repr_html_()
    assert all(each in html for each in ("Coordinators</caption>", "Redis</caption>", "PING ms", "no answer"))


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("%plan --devics t4", "No such option: --devics"),
        ("%plan --devices t4,x", "unknown device 'x'"),
        ("%plan --batch many", "as an integer: 'many'"),
        ("%plan --goal 'x", "close the quotation mark"),
        ("%cluster now", "%cluster takes nothing"),
        ("%%ask --model no-such-model\nWhy?\n", "no-such-model"),
        ("%%ask --url http://127.0.0.1:9\nWhy?\n", "no coordinator answers at http://127.0.0.1:9"),
        ("%%ask --url nonsense\nWhy?\n", "'nonsense' is not a coordinator's URL"),
    ],
)
def test_an_error_is_one_line(shell: InteractiveShell, capsys: Any, cell: str, said: str) -> None:
    ran = shell.run_cell(cell)
    assert said in failed(ran, capsys.readouterr().out)
