"""A talk with a model: its turns, how answers are sampled, the commands that change these, and its file."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qubic_lab.core import ChatMessage, Completion, Request, SamplingParams
from qubic_lab.errors import InputError, did_you_mean

COMMANDS = {
    "/help": "show this list",
    "/system TEXT": "set the system text, which comes before the talk; without TEXT show it",
    "/reset": "forget the talk, but not the system text",
    "/retry": "answer the last question again, with the next seed",
    "/save FILE": "save the talk as JSON",
    "/load FILE": "go on with a saved talk",
    "/seed N": "set the seed; without N show it",
    "/temperature X": "set the temperature, 0 is greedy; without X show it",
    "/stats": "show the numbers of the last answer",
    "/exit": "end, as Ctrl-D does",
}
NAMES = tuple(usage.partition(" ")[0] for usage in COMMANDS)


@dataclass(frozen=True)
class Answered:
    """The numbers of an answer; `full` says that the model's context left no room for more."""

    tokens: int
    prompt_tokens: int
    tokens_per_s: float
    ttft_ms: float
    cut: bool
    full: bool

    @classmethod
    def of(cls, done: Completion, most: int) -> "Answered":
        """Return the numbers of an answer with this limit of tokens."""
        tokens, cut = len(done.token_ids), done.finish_reason == "length"
        return cls(tokens, done.prompt_tokens, done.tokens_per_s, done.ttft_ms, cut, cut and tokens < most)


@dataclass
class Talk:
    """What was said, and how the next answer is sampled."""

    system: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    turns: list[ChatMessage] = field(default_factory=list)
    last: Answered | None = None
    file: Path | None = None
    """Where the talk was saved, or loaded from."""

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """All of the talk, the system text first."""
        return (*([ChatMessage("system", self.system)] if self.system else []), *self.turns)

    def ask(self, question: str) -> Request:
        """Add a question, and return the request with the whole talk."""
        self.turns.append(ChatMessage("user", question))
        return Request(messages=self.messages, sampling=self.sampling)

    def answered(self, text: str, numbers: Answered | None) -> None:
        """Add the answer to the last question; one that was stopped has no numbers."""
        self.turns.append(ChatMessage("assistant", text))
        self.last = numbers

    def take_back(self) -> str:
        """Remove the last question, with its answer if it has one, and return it.

        Raises:
            InputError: nothing was asked.
        """
        asked = [place for place, turn in enumerate(self.turns) if turn.role == "user"]
        if not asked:
            raise InputError("nothing was asked yet: type a question first")
        question = self.turns[asked[-1]].content
        del self.turns[asked[-1] :]
        return question

    def retry(self) -> str:
        """Take the last question back to ask it again with the next seed.

        Raises:
            InputError: nothing was asked, or the answer would be the same.
        """
        if self.sampling.temperature == 0:
            raise InputError("temperature is 0, so the answer would be the same: set another, such as /temperature 0.7")
        question = self.take_back()
        self._sample(seed=self.sampling.seed + 1)
        return question

    def command(self, line: str) -> str:
        """Carry out a command that needs no model, and return what it says.

        Raises:
            InputError: there is no such command (with a suggestion), or its value is wrong.
        """
        name, _, value = line.partition(" ")
        known: dict[str, Callable[[str], str]] = {
            "/help": self._help,
            "/system": self._system,
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/seed": self._seed,
            "/temperature": self._temperature,
            "/stats": self._stats,
        }
        if name not in known:
            raise InputError(f"unknown command {name!r}: {did_you_mean(name, NAMES)}")
        return known[name](value.strip())

    def _help(self, value: str) -> str:
        width = max(map(len, COMMANDS))
        lines = [f"{usage.ljust(width)}  {text}" for usage, text in COMMANDS.items()]
        return "\n".join([*lines, 'Ctrl-C stops an answer. A question of several lines stands between """ and """.'])

    def _system(self, value: str) -> str:
        if value:
            self.system = ChatMessage("system", value).content
        return f"system text: {self.system or 'none'}"

    def _reset(self, value: str) -> str:
        self.turns.clear()
        self.last = self.file = None
        return "the talk starts anew"

    def _seed(self, value: str) -> str:
        if value:
            self._sample(seed=_number("seed", int, value))
        return f"seed: {self.sampling.seed}"

    def _temperature(self, value: str) -> str:
        if value:
            self._sample(temperature=_number("temperature", float, value))
        return f"temperature: {self.sampling.temperature:g}"

    def _stats(self, value: str) -> str:
        if self.last is None:
            return "there is no whole answer yet"
        done = self.last
        return (
            f"{done.tokens} tokens, {done.tokens_per_s:.1f} tokens/s, the first after {done.ttft_ms:.0f} ms; "
            f"the talk before it has {done.prompt_tokens} tokens; in all {self._questions()}"
        )

    def _save(self, value: str) -> str:
        path = _path("/save", value)
        if path.exists() and path != self.file:
            raise InputError(f"{path} exists and is not of this talk: give another name")
        sampling = {"temperature": self.sampling.temperature, "seed": self.sampling.seed}
        content = {**sampling, "messages": [vars(message) for message in self.messages]}
        try:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): give another name") from error
        self.file = path
        return f"saved: {path}"

    def _load(self, value: str) -> str:
        path = _path("/load", value)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            turns = [ChatMessage(str(each["role"]), str(each["content"])) for each in content["messages"]]
            sampling = {name: content[name] for name in ("temperature", "seed") if name in content}
            self._sample(**sampling)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): give a file of /save") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no saved talk ({error}): give a file of /save") from error
        self.system = turns.pop(0).content if turns and turns[0].role == "system" else ""
        self.turns, self.last, self.file = turns, None, path
        return f"loaded: {path}, {self._questions()}"

    def _questions(self) -> str:
        count = sum(turn.role == "user" for turn in self.turns)
        return f"{count} question{'s' * (count != 1)}"

    def _sample(self, **changes: float) -> None:
        self.sampling = SamplingParams(**{**vars(self.sampling), **changes})


def _path(command: str, value: str) -> Path:
    if not value:
        raise InputError(f"{command} names no file: give one, such as {command} talk.json")
    return Path(value).expanduser()


def _number(name: str, kind: type[int] | type[float], value: str) -> int | float:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{name} is {value!r}: give a {'whole ' * (kind is int)}number") from None
