"""Ranks under torchrun alone, an agent a host, here on loopback: they take their place, serve, refuse, end together."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from clusters import Process, all_gone, family, processes, wait_until

from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError
from qubic_lab.model.split import split_checkpoint
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.rank import _options, _resolve

pytestmark = pytest.mark.dist

LAUNCH = Path(__file__).parents[2] / "launch"
GREEDY = Request(token_ids=(1, 2, 3), sampling=SamplingParams(max_new_tokens=8, ignore_eos=True))


@contextmanager
def two_hosts(folder: Path, address: str, *options: str) -> Iterator[list[Process]]:
    """Run the script of each host in a working folder of its own."""
    [port] = free_ports(1)
    with processes() as start:
        hosts = []
        for rank in range(2):
            (folder / f"host-{rank}").mkdir(exist_ok=True)
            script = (str(LAUNCH / "two-hosts.sh"), str(rank), "127.0.0.1", "lo", f"--listen={address}", *options)
            hosts.append(start(folder / f"host-{rank}", "host", *script, MASTER_PORT=str(port)))
        yield hosts


def assert_serves(host: Process, address: str) -> None:
    wait_until(lambda: f"at {address}" in host.log or host.ended)
    assert not host.ended, host.log


@pytest.fixture(scope="module")
def split(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split") / "tiny"
    split_checkpoint(tiny, folder, (2, 2), "B")
    return folder


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def test_two_hosts_serve_and_end_together(one_rank: Pipeline, tiny: Path, address: str, tmp_path: Path) -> None:
    one_rank.configure(PipelineConfig(model=str(tiny), threads=1))
    expected = one_rank.generate(GREEDY).token_ids
    with two_hosts(tmp_path, address, f"--model={tiny}", "--strategy=B", "--threads=1") as hosts:
        assert_serves(hosts[0], address)
        with Pipeline.connect(address) as pipeline:
            assert len({rank.stage for rank in pipeline.describe()}) == 2
            assert pipeline.generate(GREEDY).token_ids == expected
        ours = family(hosts[0].pid) + family(hosts[1].pid)
        assert len(ours) == 4, "on each host torchrun, which the script becomes, and a rank"
        hosts[1].send(signal.SIGKILL)
        wait_until(lambda: hosts[0].ended and all_gone(ours))


@pytest.mark.slow
def test_hosts_that_hold_their_own_rank_only(split: Path, address: str, tmp_path: Path) -> None:
    """One name, resolved by each host in its own place."""
    for rank in range(2):
        (tmp_path / f"host-{rank}" / "model").mkdir(parents=True)
        (tmp_path / f"host-{rank}" / "model" / f"rank-{rank}").symlink_to(split / f"rank-{rank}")
    with two_hosts(tmp_path, address, "--model=./model", "--threads=1") as hosts:
        assert_serves(hosts[0], address)
        with Pipeline.connect(address) as pipeline:
            assert len(pipeline.generate(GREEDY).token_ids) == 8


def test_a_rank_that_is_not_on_its_host_refuses(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "rank-0").symlink_to(split / "rank-0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr("sys.argv", ["rank", "--listen", "127.0.0.1:0", "--model", "./model"])
    options = _options()
    assert _resolve(options, rank=0, ranks=2).ranks == 2
    with pytest.raises(InputError, match=r"^this host has only rank-0 of the split in \./model: copy rank-1 here"):
        _resolve(options, rank=1, ranks=2)


@pytest.mark.slow
def test_a_host_with_another_ranks_files_refuses(split: Path, address: str, tmp_path: Path) -> None:
    for host in range(2):
        (tmp_path / f"host-{host}" / "model").mkdir(parents=True)
        (tmp_path / f"host-{host}" / "model" / "rank-0").symlink_to(split / "rank-0")
    with two_hosts(tmp_path, address, "--model=./model") as hosts:
        wait_until(lambda: all(host.ended for host in hosts))
        [line] = [line for line in hosts[1].log.splitlines() if line.startswith("qubic-lab:")]
        assert "rank 1: this host has only rank-0 of the split in ./model: copy rank-1 here" in line
        assert "Traceback" not in hosts[1].log.partition("qubic-lab:")[0]


@pytest.mark.slow
def test_a_port_that_is_used_ends_the_group(tiny: Path, tmp_path: Path) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        address = f"127.0.0.1:{used.getsockname()[1]}"
        with two_hosts(tmp_path, address, f"--model={tiny}") as hosts:
            wait_until(lambda: all(host.ended for host in hosts))
            assert f"cannot listen at {address}: another process uses it" in hosts[0].log


@pytest.mark.slow
def test_one_host_by_script(tiny: Path, address: str, tmp_path: Path) -> None:
    script = (str(LAUNCH / "one-host.sh"), "2", f"--listen={address}", f"--model={tiny}", "--threads=1")
    with processes() as start:
        host = start(tmp_path, "host", *script, TMPDIR=str(tmp_path))
        assert_serves(host, address)
        with Pipeline.connect(address) as pipeline:
            assert len(pipeline.generate(GREEDY).token_ids) == 8
        ours = family(host.pid)
        listening = {c.laddr.ip for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        os.killpg(host.pid, signal.SIGINT)  # what Ctrl-C does
        wait_until(lambda: host.ended and all_gone(ours))
        assert [path.name for path in tmp_path.iterdir()] == ["host.log"]
