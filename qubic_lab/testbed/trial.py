"""Requests to the cluster of a test bed while a machine is cut off and another reboots, compared with one process.

`python -m qubic_lab.testbed.trial`, on a host, reads what to ask as JSON and prints an answer a line.
"""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from qubic_lab.api.client import CoordinatorClient
from qubic_lab.errors import DeadlineError, InputError, QubicLabError
from qubic_lab.testbed.bed import Bed, command_on, cut, reboot
from qubic_lab.testbed.cluster import ClusterSpec, urls

PROMPT = "Question {}: what do {} rivers and {} bridges have in common?"
ANSWER_S, PAUSE_S = 30.0, 0.5
WITHIN_S = 300.0
"""Time limit of a request, with all its repetitions."""
Answer = dict[str, Any]


@dataclass(frozen=True)
class TrialPlan:
    """What is asked, and what happens meanwhile.

    Attributes:
        requests: number of different requests, whose starts are spread over `seconds`.
        tokens: new tokens of each.
        source: the host of the client.
        cut: a host that is cut off for `cut_s`, after a tenth of the time; empty: none.
        reboot: a host that reboots after that; empty: none.
    """

    requests: int = 200
    seconds: float = 60.0
    tokens: int = 32
    source: str = "vm-1"
    cut: str = ""
    cut_s: float = 20.0
    reboot: str = ""

    def __post_init__(self) -> None:
        if self.source == self.reboot:
            raise InputError(f"--reboot is {self.reboot}, where the client runs: choose another --source")

    def request(self, number: int) -> dict[str, Any]:
        """Return a request; every second one is sampled."""
        prompt = PROMPT.format(number, number % 7 + 2, number % 11 + 2)
        temperature = 0.8 if number % 2 else 0.0
        return {"prompt": prompt, "max_new_tokens": self.tokens, "temperature": temperature, "seed": number}


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        asked: number of requests.
        lost: requests without an answer.
        wrong: answers that differ from those of the single process, in tokens, text or log-probabilities.
        duplicated: tasks of the queue beyond one for each request, and answers that a repeated request changed.
        resumed: answers of more than one attempt.
        repeated: how often a client had to ask again.
        by_node: answers by the node that finished them.
        longest_s: time of the slowest answer.
        troubles: what clients were told, with its count.
    """

    asked: int
    lost: int
    wrong: int
    duplicated: int
    resumed: int
    repeated: int
    by_node: dict[str, int]
    longest_s: float
    troubles: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, wrong or duplicated."""
        return not (self.lost or self.wrong or self.duplicated)


def run(bed: Bed, spec: ClusterSpec, trial: TrialPlan, say: Callable[[str], None]) -> TrialResult:
    """Run a trial, and compare with a pipeline of one rank on this machine.

    Raises:
        QubicLabError: the cluster or the client does not answer at all.
    """
    say("asks a single process")
    expected = single_process(spec, trial)
    say(f"asks {trial.requests} requests from {trial.source} within {trial.seconds:g} s")
    line, environment = command_on(bed, trial.source, ["python", "-m", "qubic_lab.testbed.trial"])
    with subprocess.Popen(
        line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    ) as client:
        happening = threading.Thread(target=_disturb, args=(bed, trial, say), daemon=True)
        happening.start()
        output, _ = client.communicate(json.dumps({"urls": urls(bed), "trial": asdict(trial)}))
        happening.join()
    if client.returncode:
        raise QubicLabError(f"the client on {trial.source} failed: its output is above")
    *answers, end = map(json.loads, output.splitlines())
    return judge(expected, answers, end)


def single_process(spec: ClusterSpec, trial: TrialPlan) -> list[Answer]:
    """Return the answers of a pipeline of one rank."""
    from qubic_lab.pipeline import Pipeline, PipelineConfig

    config = PipelineConfig(str(spec.model), 1, dtype=spec.dtype, threads=spec.threads, slots=spec.slots)
    with Pipeline.launch(config) as lab, ThreadPoolExecutor(spec.slots) as pool:
        requests = [trial.request(number) for number in range(trial.requests)]
        found = list(pool.map(lambda request: lab.generate(**request, logprobs=True), requests))
    return [{"text": each.text, "token_ids": list(each.token_ids), "logprobs": list(each.logprobs)} for each in found]


def judge(expected: Sequence[Answer], answers: Sequence[Answer], end: dict[str, Any]) -> TrialResult:
    """Return the result: `answers` are by number, `end` has what the queue counted and what repetitions changed."""
    by_number = {each["number"]: each for each in answers if "text" in each}
    wrong = sum(
        any(answer[what] != expected[number][what] for what in ("text", "token_ids", "logprobs"))
        for number, answer in by_number.items()
    )
    return TrialResult(
        asked=len(expected),
        lost=len(expected) - len(by_number),
        wrong=wrong,
        duplicated=max(0, end["submitted"] - len(expected)) + max(0, end["completed"] - len(expected)) + end["changed"],
        resumed=sum(each["attempts"] > 1 for each in by_number.values()),
        repeated=sum(each["tries"] - 1 for each in answers),
        by_node=dict(Counter(each["node"] for each in by_number.values())),
        longest_s=max((each["seconds"] for each in answers), default=0.0),
        troubles=dict(Counter(trouble for each in answers for trouble in each["troubles"])),
    )


def _disturb(bed: Bed, trial: TrialPlan, say: Callable[[str], None]) -> None:
    """Cut a host off and reboot another while requests run."""
    time.sleep(trial.seconds / 10)
    if trial.cut:
        say(f"cuts off {trial.cut} for {trial.cut_s:g} s")
        with cut(bed, trial.cut):
            time.sleep(trial.cut_s)
        time.sleep(trial.seconds / 10)
    if trial.reboot:
        say(f"reboots {trial.reboot}")
        reboot(bed, trial.reboot)


def ask(url: str, others: Sequence[str], key: str, request: dict[str, Any]) -> Answer:
    """Ask until an answer comes, at one coordinator after the other with the same key."""
    started_s, troubles = time.monotonic(), list[str]()
    places = [url, *others]
    while time.monotonic() - started_s < WITHIN_S:
        try:
            with CoordinatorClient(places[len(troubles) % len(places)], answer_s=ANSWER_S) as client:
                found = client.ask(**request, key=key, logprobs=True, deadline_s=WITHIN_S)
            kept = found.model_dump(include={"text", "token_ids", "logprobs", "node", "attempts", "task_id"})
            return {**kept, "tries": len(troubles) + 1, "troubles": troubles, "seconds": time.monotonic() - started_s}
        except (InputError, DeadlineError) as error:
            troubles.append(str(error))
            break
        except QubicLabError as error:
            troubles.append(str(error))
            time.sleep(PAUSE_S)
    return {"tries": len(troubles), "troubles": troubles, "seconds": time.monotonic() - started_s}


def _counts(places: Sequence[str]) -> dict[str, int]:
    for url in places:
        try:
            with CoordinatorClient(url, answer_s=ANSWER_S) as client:
                tasks = client.status().tasks
                return {"submitted": tasks.submitted, "completed": tasks.completed}
        except QubicLabError as error:
            last = error
    raise last


def main() -> None:
    """Ask what stdin says; the last line says what the queue counted, and which repetition changed an answer."""
    asked = json.load(sys.stdin)
    trial, places = TrialPlan(**asked["trial"]), asked["urls"]
    before = _counts(places)
    started_s, run_id = time.monotonic(), f"{time.time():.3f}"

    def one(number: int) -> Answer:
        time.sleep(max(0.0, started_s + number * trial.seconds / trial.requests - time.monotonic()))
        turned = [*places[number % len(places) :], *places[: number % len(places)]]
        return {"number": number, **ask(turned[0], turned[1:], f"{run_id}-{number}", trial.request(number))}

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(trial.requests)))
        # A repeated request gets the first answer, from whichever coordinator.
        again = list(pool.map(lambda n: ask(places[-1], places[:-1], f"{run_id}-{n}", trial.request(n)), range(10)))
    changed = sum(one.get("task_id") != two.get("task_id") for one, two in zip(answers, again, strict=False))
    after = _counts(places)
    for answer in answers:
        print(json.dumps(answer))
    print(json.dumps({"changed": changed, **{name: after[name] - before[name] for name in after}}))


if __name__ == "__main__":
    main()
