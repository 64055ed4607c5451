"""A talk with a model: its commands, its file, a terminal and a pipe."""

import asyncio
import fcntl
import io
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clusters import WITHIN_S, serving
from commands import Run
from models import tiny_model
from words import Words, text_of

from qubic_lab.api.access import ApiToken, hash_token
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.serve import create_app
from qubic_lab.cli import chat
from qubic_lab.cli.console import print_pieces
from qubic_lab.cli.talk import COMMANDS, Answered, Talk
from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError, RankError

NUMBERS = Answered(tokens=3, prompt_tokens=20, tokens_per_s=25.0, ttft_ms=180.0, cut=False, full=False)
ROOT = Path(__file__).parent.parent


def said(talk: Talk) -> list[str]:
    return [f"{message.role}: {message.content}" for message in talk.messages]


def one_turn(**options: object) -> Talk:
    talk = Talk(**options)
    talk.ask("Who?")
    talk.answered("Me.", NUMBERS)
    return talk


def test_each_question_goes_with_the_whole_talk() -> None:
    talk = one_turn(system="Be brief.")
    request = talk.ask("Why?")
    assert request == Request(messages=talk.messages)
    assert said(talk) == ["system: Be brief.", "user: Who?", "assistant: Me.", "user: Why?"]


def test_a_retry_asks_the_same_with_the_next_seed() -> None:
    talk = one_turn(sampling=SamplingParams(temperature=0.7, seed=4))
    assert talk.retry() == "Who?"
    assert (said(talk), talk.sampling.seed) == ([], 5)
    with pytest.raises(InputError, match="nothing was asked yet"):
        talk.retry()
    with pytest.raises(InputError, match="temperature is 0, so the answer would be the same: set another"):
        one_turn().retry()


def test_commands_change_the_talk_and_say_so() -> None:
    talk = one_turn()
    assert talk.command("/system Be brief.") == talk.command("/system") == "system text: Be brief."
    assert talk.command("/seed 7") == "seed: 7"
    assert talk.command("/temperature 0.5") == "temperature: 0.5"
    assert talk.ask("Why?").sampling == SamplingParams(temperature=0.5, seed=7)
    assert talk.command("/stats").startswith(
        "3 tokens, 25.0 tokens/s, the first after 180 ms; the talk before it has 20"
    )
    assert talk.command("/reset") == "the talk starts anew"
    assert said(talk) == ["system: Be brief."]
    assert talk.command("/stats") == "there is no whole answer yet"
    assert all(usage in talk.command("/help") for usage in COMMANDS)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/resett", r"unknown command '/resett': did you mean '/reset'\?"),
        ("/bye", "unknown command '/bye': known: .*/exit"),
        ("/seed many", "seed is 'many': give a whole number"),
        ("/seed -1", "seed is -1: it must be between 0"),
        ("/temperature hot", "temperature is 'hot': give a number"),
        ("/temperature nan", "temperature is nan: it must be between 0"),
        ("/save", "/save names no file: give one, such as /save talk.json"),
        ("/save nowhere/talk.json", "cannot be written .No such file or directory.: give another name"),
        ("/load nowhere.json", "cannot be read .No such file or directory.: give a file of /save"),
        ("/load broken.json", "broken.json is no saved talk"),
        ("/load list.json", "list.json is no saved talk"),
        ("/load role.json", "role.json is no saved talk .unknown role 'usr': did you mean 'user'"),
    ],
)
def test_a_wrong_command_says_what_is_right(
    line: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"broken": "{", "list": "[1]", "role": '{"messages": [{"role": "usr", "content": ""}]}'}.items():
        Path(f"{name}.json").write_text(text)
    talk = one_turn()
    with pytest.raises(InputError, match=problem):
        talk.command(line)
    assert said(talk) == ["user: Who?", "assistant: Me."]


def test_a_saved_talk_is_loaded_and_no_other_file_is_replaced(tmp_path: Path) -> None:
    talk = one_turn(system="Be brief.", sampling=SamplingParams(temperature=0.7, seed=4))
    file = tmp_path / "talk.json"
    for _ in range(2):
        assert talk.command(f"/save {file}") == f"saved: {file}"
    loaded = Talk()
    assert loaded.command(f"/load {file}") == f"loaded: {file}, 1 question"
    assert (said(loaded), loaded.sampling) == (said(talk), talk.sampling)
    assert json.loads(file.read_text())["messages"][0] == {"role": "system", "content": "Be brief."}
    with pytest.raises(InputError, match=r"talk\.json exists and is not of this talk: give another name"):
        one_turn().command(f"/save {file}")
    loaded.ask("Why?")
    loaded.command(f"/save {file}")
    assert len(json.loads(file.read_text())["messages"]) == 4


def test_a_lost_answer_keeps_the_talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def answers(request: Request) -> Generator[str | Answered, None, None]:
        if request.messages[-1].content == "fail":
            yield "half"
            raise RankError("rank 1 was lost")
        yield "Me."
        yield NUMBERS

    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\nfail\n/exit\nnever asked\n"))
    chat.converse(talk := Talk(), answers)
    assert said(talk) == ["user: Who?", "assistant: Me."]
    out, err = capsys.readouterr()
    assert (out, "error: rank 1 was lost" in err) == ("Me.\nhalf\n", True)


def test_a_question_of_several_lines_and_one_that_is_stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(request: Request) -> Generator[str | Answered, None, None]:
        if request.messages[-1].content == "stop":
            raise KeyboardInterrupt
        yield "Me."
        yield NUMBERS

    monkeypatch.setattr(sys, "stdin", io.StringIO('"""Who\nare you?"""\nstop\n"""\nand\n"""\n'))
    chat.converse(talk := Talk(), answers)
    assert said(talk) == ["user: Who\nare you?", "assistant: Me.", "user: and", "assistant: Me."]


class Terminal:
    """A pseudo terminal with a command in it; what is awaited may be anywhere after what was awaited before."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._master = master
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def await_(self, text: str, again: str = "") -> str:
        """Return what came up to and with `text`, or anything if it is empty; type `again` while nothing comes."""
        until_s = time.monotonic() + WITHIN_S
        while text not in self._unread or not self._unread:
            assert time.monotonic() < until_s, f"no {text!r} in {self._unread!r}"
            if not select.select([self._master], [], [], 1)[0]:
                self.type(again)
                continue
            try:
                self._unread += os.read(self._master, 65_536).decode(errors="replace")
            except OSError:  # its other end is closed
                raise AssertionError(f"ended without {text!r}: {self._unread!r}") from None
        before, text, self._unread = self._unread.partition(text) if text else (self._unread, "", "")
        return before + text


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[Terminal]:
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C goes to whom the terminal belongs
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", **environment},
    ) as process:
        os.close(slave)
        try:
            yield Terminal(master, process)
        finally:
            process.kill()
            os.close(master)


@pytest.mark.anyio
async def test_a_talk_with_a_server(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_settings: Callable[..., None]
) -> None:
    replica, metrics, key = Words(), PipelineMetrics(), "a key of the test"
    answerer = PipelineAnswerer(replica, metrics)
    app = create_app(answerer, metrics, lambda: [ApiToken("key", hash_token(key))])
    lines = ["Who?", "/stats", "/seed 8", "Why?", "/temperature 3", "Why?", f"/save {tmp_path}/talk.json", "/exit"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", typed := io.StringIO("\n".join(lines)))
    monkeypatch.setattr(typed, "isatty", lambda: True)
    async with answerer.running(), serving(app) as server:
        url = f"{server.base_url}/v1"
        refused = (await asyncio.to_thread(here, f"chat --url {url}")).failed(1)
        set_settings(api_key=key)
        unknown = (await asyncio.to_thread(here, f"chat --url {url} --model wrds")).failed(2)
        ended = await asyncio.to_thread(here, f"chat --url {url} --system 'Be brief.' --seed 7")
    assert "token" in refused or "key" in refused
    assert "unknown model 'wrds': did you mean 'words'?" in unknown
    assert (ended.status, ended.out) == (0, f"{text_of(7)}\n{text_of(8)}\n")
    assert ended.err.startswith(f"words at {server.base_url}; /help")
    assert "20 tokens, " in ended.err and "the talk before it has" in ended.err
    assert "error: temperature" in ended.err, "what the server refuses is told, and the talk goes on"
    roles = [[message.role for message in asked.messages] for asked in replica.asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 5


@pytest.mark.dist
def test_a_talk_in_a_terminal(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "long", max_position_embeddings=50_000)
    asked = ("chat", "--model", str(model), "--threads", "1", "--temperature", "0", "--max-new-tokens", "49000")
    with terminal("-m", "qubic_lab.cli.main", *asked, XDG_STATE_HOME=str(tmp_path / "state")) as screen:
        screen.await_("long, 1 rank, bf16; /help lists the commands, Ctrl-D ends")
        screen.await_(">>> ")
        screen.type("/sede 3\r")
        screen.await_("error: unknown command '/sede': did you mean '/seed'?")
        screen.await_(">>> ")
        screen.type("Why?\r")
        screen.await_("Why?\r\n")
        for _ in range(9):  # the first may be what the prompt leaves, which would take Ctrl-C as a key
            screen.await_("")
        screen.type("\x03")
        screen.await_("(stopped)")
        screen.await_(">>> ")
        screen.type("\x03")  # lost if it comes before the prompt reads keys
        screen.await_("(Ctrl-D or /exit ends)", again="\x03")
        screen.await_(">>> ")
        screen.type(f"/save {tmp_path}/talk.json\r")
        screen.await_("saved: ")
        screen.await_(">>> ")
        screen.type("\x1b[A\x1b[A\x1b[A\r")  # three lines up: the first, which was wrong
        screen.await_("error: unknown command '/sede'")
        screen.await_(">>> ")
        screen.process.send_signal(signal.SIGTERM)  # ends the talk, and is no Ctrl-C
        screen.await_("error: terminated")
        assert screen.process.wait(WITHIN_S) == 143
    roles = [message["role"] for message in json.loads((tmp_path / "talk.json").read_text())["messages"]]
    assert roles == ["user", "assistant"], "what came before Ctrl-C is kept"
    history = tmp_path / "state" / "qubic-lab" / "chat_history"
    assert (history.stat().st_mode & 0o777, history.read_text().splitlines()[1]) == (0o600, "Why?")


def test_a_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    code = "from qubic_lab.cli.console import print_pieces; print_pieces(['a\\x1b]0;title\\x07', '\\tb\\n', 'c\\x9b'])"
    with terminal("-c", code) as screen:
        assert screen.await_("c\N{REPLACEMENT CHARACTER}") == (
            "a\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}\tb\r\nc\N{REPLACEMENT CHARACTER}"
        )


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_turns_styles_and_progress_off(no_color: str) -> None:
    code = "from qubic_lab.cli.console import *\nwith progress_bar() as show: show('done', 1, 2)\nnote('said')"
    with terminal("-c", code, TERM="xterm", NO_COLOR=no_color) as screen:
        shown = screen.await_("said")
        assert (shown == "said") == bool(no_color)
        assert ("\x1b" in shown) != bool(no_color)


def test_a_pipe_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_pieces(["a\x1b", "b"]) == "a\x1bb"
    assert capsys.readouterr().out == "a\x1bb\n"


def pipe_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b" \n", "chat", "nothing was asked: pipe a question in"),
        (b"caf\xe9", "chat", "not UTF-8 text"),
        (b"Why?", "chat --temperature -1", "temperature is -1.0"),
        (b"Why?", "chat --url http://127.0.0.1:1 --ranks 2", "leave out --ranks"),
        (b"Why?", "chat --model smollm3", "did you mean 'smollm2'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    content: bytes, line: str, problem: str, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_in(monkeypatch, content)
    assert problem in here(line).failed(2)


def test_a_piped_question_is_answered_as_generate_answers_it(
    here: Run, shared_ranks: None, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_in(monkeypatch, b"\xef\xbb\xbftwo\nlines\n")
    ended = here(f"chat --model {tiny} --ranks 2 --temperature 0 --max-new-tokens 9")
    [answer] = here(f"generate --model {tiny} --ranks 2 --max-new-tokens 9 --json --prompt 'two\nlines'").json[
        "completions"
    ]
    assert (ended.status, ended.out) == (0, answer["text"] + "\n")


def test_a_talk_that_fills_the_context_says_how_to_go_on(
    shared_ranks: None, tiny: Path, here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    lines = iter(["x" * 600, "x" * 490, "/exit"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(chat, "_input", lambda prompt: next(lines))
    ended = here(f"chat --model {tiny} --temperature 0 --max-new-tokens 600")
    full = "/reset starts anew, after /save FILE if the talk shall be kept"
    assert ended.status == 0
    assert f"the model's context is 512: {full}" in ended.err
    assert f"the model's context is full: {full}" in ended.err
