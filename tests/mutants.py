"""Planted defects, and the search for each: `python tests/mutants.py [NAME …]` prints which seed finds which.

Each mutant is the project with one text of one file replaced, in a folder of links to the rest. Those of the scripts
are sought by random steps of a queue and a registry (`queue_steps.py`), those of the dispatcher by simulated clusters.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

ROOT = Path(__file__).resolve().parents[1]
SEEDS, STEPS = 400, 400
"""Of the search by random steps."""
WORLDS, HOURS = 12, 0.02
"""Of the search by clusters: seeds and virtual hours."""


@dataclass(frozen=True)
class Mutant:
    """A defect: in `file` of the package, `old`, which stands there once, is `new`."""

    name: str
    file: str
    old: str
    new: str

    @property
    def in_cluster(self) -> bool:
        """Whether it takes a whole cluster to find it."""
        return not self.file.startswith(("cluster/lua", "cluster/tasks", "cluster/registry"))


@dataclass(frozen=True)
class Found:
    """What a search has shown: the seed that found the defect, or None, what it saw, and the CPU time in seconds."""

    seed: int | None
    what: str
    cpu_s: float


_TASKS, _NODES = "cluster/lua/tasks", "cluster/lua/registry"
_DISPATCHER = "cluster/dispatcher.py"
MUTANTS = (
    Mutant("lease ends 1 ms early", f"{_TASKS}/reclaim.lua", "'-inf', '(' .. now))", "'-inf', now))"),
    Mutant(
        "fencing token not compared",
        f"{_TASKS}/common.lua",
        " and found[2] == token then\n    return true",
        " then\n    return true",
    ),
    Mutant(
        "state not compared",
        f"{_TASKS}/common.lua",
        "found[1] == 'processing' and found[2] == token",
        "found[2] == token",
    ),
    Mutant("try counted twice", f"{_TASKS}/take.lua", "'tries', 1)", "'tries', 2)"),
    Mutant("end without its check", f"{_TASKS}/finish.lua", "if not holds(id, token) then\n  return 0\nend\n", ""),
    Mutant("renewal without its check", f"{_TASKS}/renew.lua", "if not holds(id, token) then\n  return 0\nend\n", ""),
    Mutant("return without its check", f"{_TASKS}/put_back.lua", "if not holds(id, token) then\n  return 0\nend\n", ""),
    Mutant(
        "progress without its check", f"{_TASKS}/progress.lua", "if not holds(id, token) then\n  return 0\nend\n", ""
    ),
    Mutant("repeated progress added twice", f"{_TASKS}/common.lua", "if start == known and items > 0", "if items > 0"),
    Mutant(
        "progress does not renew",
        f"{_TASKS}/progress.lua",
        "redis.call('ZADD', key('leases'), now + limits.lease_ms, id)\n",
        "",
    ),
    Mutant(
        "items not counted", f"{_TASKS}/common.lua", "    redis.call('HINCRBY', key('task', id), 'items', items)\n", ""
    ),
    Mutant("wall clock in place of monotonic", "cluster/lua/base.lua", "(last[2] or redis_ms) + passed", "redis_ms"),
    Mutant(
        "steps of the clock count in full",
        "cluster/lua/base.lua",
        "math.min(redis_ms - (last[1] or redis_ms), limits.most_step_ms)",
        "redis_ms - (last[1] or redis_ms)",
    ),
    Mutant(
        "clock goes backward",
        "cluster/lua/base.lua",
        "math.max(0, math.min(redis_ms - (last[1] or redis_ms), limits.most_step_ms))",
        "math.min(redis_ms - (last[1] or redis_ms), limits.most_step_ms)",
    ),
    Mutant(
        "a repeated end is refused",
        f"{_TASKS}/finish.lua",
        "if found[1] == state and found[2] == token then\n",
        "if false then\n",
    ),
    Mutant(
        "what is put back goes to the end",
        f"{_TASKS}/common.lua",
        "redis.call('ZADD', key('again', priority), found[4], id)",
        "redis.call('ZADD', key('again', priority), -found[4], id)",
    ),
    Mutant("one try more", f"{_TASKS}/common.lua", ">= limits.most_tries", "> limits.most_tries"),
    Mutant(
        "who comes back reclaims at once",
        f"{_TASKS}/reclaim.lua",
        "if back and now - back < limits.hold_ms then",
        "if false then",
    ),
    Mutant("silence not noted", f"{_TASKS}/common.lua", "    redis.call('HSET', key('back'), consumer, now)\n", ""),
    Mutant("consumers lost too early", f"{_TASKS}/reclaim.lua", "now - limits.gone_ms", "now - limits.silent_ms"),
    Mutant("ended leases stay held", f"{_TASKS}/common.lua", "    redis.call('SREM', key('held', consumer), id)\n", ""),
    Mutant("lost wake-up at submission", f"{_TASKS}/submit.lua", "wake(id)\n", ""),
    Mutant("lost wake-up at return", f"{_TASKS}/common.lua", "found[4], id)\n  wake(id)\n", "found[4], id)\n"),
    Mutant(
        "payload of a key not compared", f"{_TASKS}/submit.lua", "known == digest and 'known' or 'differs'", "'known'"
    ),
    Mutant("key not kept", f"{_TASKS}/submit.lua", "redis.call('SET', key('key', idempotency_key), id)\n", ""),
    Mutant(
        "one waits too many", f"{_TASKS}/submit.lua", "waiting >= limits.most_waiting", "waiting > limits.most_waiting"
    ),
    Mutant(
        "what has ended is cancelled",
        f"{_TASKS}/cancel.lua",
        "(state == 'pending' or state == 'processing') and",
        "state and",
    ),
    Mutant(
        "cancelled tasks are tried again",
        f"{_TASKS}/common.lua",
        "  redis.call('ZREM', key('again', priority), id)\n",
        "",
    ),
    Mutant("ended tasks stay in the stream", f"{_TASKS}/common.lua", "    redis.call('XDEL', stream, entry)\n", ""),
    Mutant("every lease has the same token", f"{_TASKS}/take.lua", "redis.call('INCR', key('token'))", "1"),
    Mutant("low before high", f"{_TASKS}/common.lua", "{'high', 'normal', 'low'}", "{'low', 'normal', 'high'}"),
    Mutant("refused writes look done", "cluster/tasks.py", "if not written:", "if written is None:"),
    Mutant(
        "anybody may take a node's name",
        f"{_NODES}/register.lua",
        "(found[1] ~= owner or found[5] ~= identity)",
        "found[1] ~= owner",
    ),
    Mutant(
        "a restarted node keeps its session",
        f"{_NODES}/register.lua",
        "if alive and found[3] == address then",
        "if alive then",
    ),
    Mutant("sessions not compared", f"{_NODES}/common.lua", "found == session and 'ok' or 'other'", "'ok'"),
    Mutant("nodes removed too early", f"{_NODES}/list.lua", "now - limits.removed_ms", "now - limits.removed_ms / 2"),
    Mutant("draining forgotten at registration", f"{_NODES}/register.lua", "found[4] or '0'", "'0'"),
    Mutant("an ended session may beat", "cluster/registry.py", 'if found == b"other":', 'if found == b"never":'),
    Mutant("last tokens not written with the end", _DISPATCHER, "lease, result, *rest)", "lease, result)"),
    Mutant("tokens written not counted", _DISPATCHER, "            self._written += len(items)\n", ""),
    Mutant("next try begins anew", _DISPATCHER, " if lease.attempt > 1 else []", " if lease.attempt > 9 else []"),
    Mutant(
        "next node does not know the tokens",
        _DISPATCHER,
        "request_of(lease.payload, items)",
        "request_of(lease.payload, [])",
    ),
    Mutant("ended requests still counted", _DISPATCHER, "            self._fleet.end(node.id, tokens)\n", ""),
    Mutant(
        "lost nodes end tasks", _DISPATCHER, "failed.failure is not Failure.TASK, failed.code", "False, failed.code"
    ),
    Mutant("nobody reclaims", _DISPATCHER, "self._queue.reclaim, self.name", "self._queue.beat, self.name"),
    Mutant("followers read again", "cluster/coordinator.py", "                    after = progress.after\n", ""),
    Mutant("resumed streams begin anew", "api/responses.py", "if len(items) > after:", "if items:"),
    Mutant(
        "one request above the slots",
        "cluster/fleet.py",
        "not kept and requests < member",
        "not kept and requests <= member",
    ),
    Mutant("nodes forget their requests", "cluster/fleet.py", "self._members.get(record.id) or _Member", "_Member"),
)


def search(mutant: Mutant) -> Found:
    """Make a mutant and look for it, in a process of its own."""
    package = ROOT / "qubic_lab"
    text = (package / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} has it {text.count(mutant.old)} times"
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "qubic_lab"
        copytree(package, copied, copy_function=os.symlink)
        (copied / mutant.file).unlink()
        (copied / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, __file__, "--search", "cluster" if mutant.in_cluster else "steps"]
        places = os.pathsep.join((folder, str(ROOT / "tests")))
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the search for {mutant.name!r} failed: {done.stderr[-2_000:]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def find(where: str) -> tuple[int | None, str]:
    """Return the first seed that finds a defect of the package that is imported here, and what it saw."""
    if where == "steps":
        import pytest
        from queue_steps import violation_of

        with pytest.MonkeyPatch.context() as patch:
            for seed in range(SEEDS):
                if what := violation_of(seed, STEPS, patch):
                    return seed, what
        return None, ""
    from qubic_lab.simulation.faults import plan_faults
    from qubic_lab.simulation.world import COORDINATORS, NODES, World

    plans = {seed: plan_faults(seed, HOURS * 3_600, COORDINATORS, NODES) for seed in range(1, 100)}
    for seed in sorted(plans, key=lambda seed: -len(plans[seed]))[:WORLDS]:  # those with the most faults
        if what := World(seed, HOURS).run().violation:
            return seed, what
    return None, ""


def main() -> int:
    """Search for all mutants, or those named; return 1 if one is not found."""
    parser = argparse.ArgumentParser(description="Plant defects and look for them.")
    parser.add_argument("names", nargs="*", help="names of mutants; none: all")
    parser.add_argument("--search", choices=("steps", "cluster"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--note", type=Path, metavar="FILE", help="add what was found to what `simulate --json` printed"
    )
    given = parser.parse_args()
    if given.search:
        seed, what = find(given.search)
        print(json.dumps({"seed": seed, "what": what, "cpu_s": time.process_time()}))
        return 0
    cpu_s, missed = 0.0, []
    chosen = [mutant for mutant in MUTANTS if mutant.name in given.names or not given.names]
    for mutant in chosen:
        found = search(mutant)
        cpu_s += found.cpu_s
        missed += [mutant.name] if found.seed is None else []
        seed = "-" if found.seed is None else str(found.seed)
        print(f"{mutant.name:36} {seed:>5} {found.cpu_s:6.1f} s  {found.what[:120] or 'NOT FOUND'}", flush=True)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} found in {cpu_s:.0f} s of CPU; not found: {missed or 'none'}")
    if given.note:
        noted = {"planted": len(chosen), "found": len(chosen) - len(missed), "cpu_s": round(cpu_s, 1)}
        given.note.write_text(json.dumps(json.loads(given.note.read_text()) | {"mutants": noted}) + "\n")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
