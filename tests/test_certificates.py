"""Certificates that TLS accepts, whose keys stay secret, and that are renewed in time."""

import json
import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from commands import Run
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from qubic_lab.errors import InputError
from qubic_lab.wire import certificates
from qubic_lab.wire.certificates import (
    AUTHORITY_DAYS,
    CertificateInfo,
    Pair,
    check_name,
    check_pair,
    describe,
    expiry_warning,
    make_certificates,
    new_authority,
    new_host,
    renew_certificates,
    renewed_authority,
    renewed_host,
)

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Pair:
    return new_authority(NOW)


def verify(host: bytes, authority: bytes, name: str, time: datetime = NOW) -> None:
    """Check a certificate by the rules of the web, for serving under a name and for connecting."""
    certificate = x509.load_pem_x509_certificate(host)
    builder = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(authority)])).time(time)
    try:
        subject: Any = x509.IPAddress(ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    builder.build_server_verifier(subject).verify(certificate, [])
    builder.build_client_verifier().verify(certificate, [])


@pytest.mark.parametrize("name", ["10.0.0.2", "fd00::2", "vm-1.lab", "localhost", "x" * 60 + ".lab" * 9])
def test_a_host_is_believed_under_its_names_alone(authority: Pair, name: str) -> None:
    host = new_host([name, "also"], authority, NOW)
    check_pair(host)
    verify(host.certificate, authority.certificate, name)
    verify(host.certificate, authority.certificate, "also")
    for by, other in ((authority, "vm-9"), (new_authority(NOW), name)):
        with pytest.raises(VerificationError):
            verify(host.certificate, by.certificate, other)


def test_a_client_is_no_server_and_roles_stay_or_change_with_a_renewal(authority: Pair) -> None:
    client = new_host(["laptop"], authority, NOW, roles=["client"])
    with pytest.raises(VerificationError):
        verify(client.certificate, authority.certificate, "laptop")
    assert (describe(client.certificate).roles, describe(client.certificate).may_serve) == (("client",), False)
    renewed = renewed_host(client.certificate, authority, NOW)
    assert (describe(renewed).roles, describe(renewed).may_serve) == (("client",), False)
    changed = renewed_host(client.certificate, authority, NOW, roles=["coordinator", "node"])
    verify(changed, authority.certificate, "laptop")
    assert (describe(changed).roles, describe(changed).names) == (("coordinator", "node"), ("laptop",))
    old = describe(renewed_host(new_host(["vm-1"], authority, NOW).certificate, authority, NOW))
    assert (old.roles, old.may_serve) == ((), True)


def test_it_is_good_from_an_hour_before_to_its_last_day_or_its_authoritys(authority: Pair) -> None:
    host = new_host(["vm-1"], authority, NOW, days=7)
    for time in (NOW - timedelta(minutes=59), NOW + 7 * DAY):
        verify(host.certificate, authority.certificate, "vm-1", time)
    for time in (NOW - timedelta(minutes=61), NOW + 7 * DAY + timedelta(seconds=1)):
        with pytest.raises(VerificationError):
            verify(host.certificate, authority.certificate, "vm-1", time)
    near_the_end = NOW + (AUTHORITY_DAYS - 5) * DAY
    assert describe(new_host(["vm-1"], authority, near_the_end).certificate).valid_to_utc == NOW + AUTHORITY_DAYS * DAY
    with pytest.raises(InputError, match="the authority has expired: renew it first"):
        new_host(["vm-1"], authority, NOW + (AUTHORITY_DAYS + 1) * DAY)


def test_a_host_is_no_authority(authority: Pair) -> None:
    host = new_host(["vm-1"], authority, NOW)
    with pytest.raises(InputError, match="not an authority"):
        new_host(["vm-2"], host, NOW)
    extensions = x509.load_pem_x509_certificate(authority.certificate).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_what_a_certificate_says(authority: Pair) -> None:
    by = describe(authority.certificate)
    host = describe(new_host(["fd00:0::2", "vm-1"], authority, NOW).certificate)
    assert by.names == ("Qubic Lab authority",)
    assert host.names == ("fd00::2", "vm-1")
    assert host.authority == by.authority != describe(new_authority(NOW).certificate).authority
    assert (host.valid_from_utc, host.valid_to_utc) == (NOW - timedelta(hours=1), NOW + 365 * DAY)
    assert host.serial != describe(new_host(["vm-1"], authority, NOW).certificate).serial


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (30 * DAY, None),
        (30 * DAY - timedelta(seconds=1), "vm-1, 10.0.0.2 expires on 2030-01-31, 29 whole days"),
        (timedelta(0), "expires on 2030-01-01, 0 whole days"),
        (-timedelta(seconds=1), "vm-1, 10.0.0.2 expired on 2030-01-01 at 11:59 UTC"),
    ],
)
def test_when_a_warning_is_due(left: timedelta, said: str | None) -> None:
    info = CertificateInfo(("vm-1", "10.0.0.2"), "1", NOW - DAY, NOW + left, "someone")
    warning = expiry_warning(info, NOW)
    assert (warning is None) == (said is None)
    assert said is None or (said in str(warning) and "qubic-lab certs renew" in str(warning))


@pytest.mark.parametrize(("name", "known"), [("fd00:0::2", "fd00::2"), ("vm_1.lab", "vm_1.lab"), ("9-a", "9-a")])
def test_names(name: str, known: str) -> None:
    assert check_name(name) == known


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "10.0.0.300", "10.0", "-a", "a-", "a..b", "a b", "ä", "*.lab", "fe80::1%eth0",
     "authority", "a" * 64, "a." * 130 + "a", "vm-1\n"],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InputError, match="give a host name or an IP address"):
        check_name(name)


def test_a_renewed_host_keeps_its_names_and_its_key(authority: Pair) -> None:
    host = new_host(["vm-1", "10.0.0.2"], authority, NOW)
    later = NOW + 400 * DAY
    renewed = Pair(renewed_host(host.certificate, authority, later), host.key)
    check_pair(renewed)
    verify(renewed.certificate, authority.certificate, "10.0.0.2", later)
    old, new = describe(host.certificate), describe(renewed.certificate)
    assert (new.names, new.authority) == (old.names, old.authority)
    assert new.serial != old.serial
    with pytest.raises(InputError, match="another authority signed it"):
        renewed_host(host.certificate, new_authority(NOW), later)


def test_a_renewed_authority_stands_for_what_it_signed_before(authority: Pair) -> None:
    host = new_host(["vm-1"], authority, NOW)
    renewed = renewed_authority(authority, NOW + 100 * DAY)
    verify(host.certificate, renewed.certificate, "vm-1", NOW + 100 * DAY)
    later = new_host(["vm-1"], renewed, NOW + 100 * DAY)
    verify(later.certificate, authority.certificate, "vm-1", NOW + 100 * DAY)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_secrets_are_their_owners_and_a_folder_where_others_write_is_refused(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_certificates(tmp_path / "new" / "tls", [["10.0.0.2"], ["fd00::2"]], NOW)
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "tls"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        f"{name}{suffix}": mode
        for name in ("10.0.0.2", "authority", "fd00--2")
        for suffix, mode in ((".key", 0o600), (".pem", 0o644))
    }
    tmp_path.chmod(0o770)
    with pytest.raises(InputError, match="other users may write"):
        make_certificates(tmp_path, [["vm-1"]], NOW)
    assert not list(tmp_path.glob("*.*"))


def test_more_hosts_are_of_the_same_authority_and_nothing_is_written_over_unless_asked(tmp_path: Path) -> None:
    make_certificates(tmp_path, [["vm-1"]], NOW)
    before = content_of(tmp_path)
    assert make_certificates(tmp_path, [["vm-2"]], NOW) == [tmp_path / "vm-2.pem"]
    content = content_of(tmp_path)
    assert before.items() <= content.items()
    verify(content["vm-2.pem"], before["authority.pem"], "vm-2")
    with pytest.raises(InputError, match=r"vm-1\.key exists already: give --renew"):
        make_certificates(tmp_path, [["vm-3"], ["vm-1"]], NOW)
    assert content_of(tmp_path) == content
    make_certificates(tmp_path, [["vm-1"]], NOW, renew=True)
    assert {name for name, new in content_of(tmp_path).items() if new != content[name]} == {"vm-1.pem", "vm-1.key"}
    check_pair(Pair((tmp_path / "vm-1.pem").read_bytes(), (tmp_path / "vm-1.key").read_bytes()))


@pytest.mark.parametrize("hosts", [[["vm-1"], ["vm-1", "a"]], [["vm-1"], ["a b"]], [["fd00::2"], ["fd00:0::2"]]])
def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, hosts: list[list[str]]) -> None:
    with pytest.raises(InputError):
        make_certificates(tmp_path / "tls", hosts, NOW)
    assert not (tmp_path / "tls").exists()


@pytest.mark.parametrize("missing", ["authority.pem", "authority.key"])
def test_half_an_authority_is_not_made_whole(tmp_path: Path, missing: str) -> None:
    make_certificates(tmp_path, [["vm-1"]], NOW)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=f"{missing} is missing"):
        make_certificates(tmp_path, [["vm-2"]], NOW)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificates(tmp_path, [["vm-1"]], NOW)
    before = content_of(tmp_path)
    monkeypatch.setattr(certificates.os, "fsync", Mock(side_effect=OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        make_certificates(tmp_path, [["vm-1"]], NOW, renew=True)
    assert content_of(tmp_path) == before


def test_what_soon_ends_is_renewed(tmp_path: Path) -> None:
    make_certificates(tmp_path, [["vm-1"]], NOW, days=100)
    make_certificates(tmp_path, [["vm-2"]], NOW, days=40)
    (tmp_path / "vm-2.key").unlink()  # it is where it is used
    assert renew_certificates(tmp_path, [], NOW) == []
    assert renew_certificates(tmp_path, [], NOW + 11 * DAY) == [tmp_path / "vm-2.pem"]
    assert describe((tmp_path / "vm-2.pem").read_bytes()).valid_to_utc == NOW + 376 * DAY
    assert renew_certificates(tmp_path, ["vm-1"], NOW, days=200) == [tmp_path / "vm-1.pem"]
    assert describe((tmp_path / "vm-1.pem").read_bytes()).valid_to_utc == NOW + 200 * DAY
    assert "vm-2.key" not in content_of(tmp_path)


def test_an_authority_that_soon_ends_is_renewed_before_its_hosts(tmp_path: Path) -> None:
    make_certificates(tmp_path, [["vm-1"]], NOW)
    late = NOW + AUTHORITY_DAYS * DAY
    assert renew_certificates(tmp_path, [], late) == [tmp_path / "authority.pem", tmp_path / "vm-1.pem"]
    host = (tmp_path / "vm-1.pem").read_bytes()
    assert describe(host).valid_to_utc == late + 365 * DAY
    verify(host, (tmp_path / "authority.pem").read_bytes(), "vm-1", late)


@pytest.fixture
def certs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Run) -> Run:
    """Run a command of `certs` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda command: here(f"certs {command}")


def test_make_show_and_renew(certs: Run) -> None:
    made = certs("make tls 10.0.0.2,vm-1 fd00::2 --role coordinator,node")
    assert (made.status, made.out.split()) == (0, ["tls/10.0.0.2.pem", "tls/fd00--2.pem"])
    assert "authority.key stays here" in made.err
    shown = certs("show tls")
    assert (shown.status, shown.err) == (0, "")
    assert all(
        each in shown.out
        for each in ("tls/10.0.0.2.pem", "10.0.0.2, vm-1", "coordinator, node", "Qubic Lab authority", "3649")
    )
    for line in ("renew tls fd00::2 --days 29", "renew tls"):  # then what has fewer than 30 days left
        renewed = certs(line)
        assert (renewed.status, renewed.out.split()) == (0, ["tls/fd00--2.pem"])
    assert certs("renew tls fd00::2 --role node").status == 0
    roles = [each["roles"] for each in certs("show tls --json").json["certificates"]]
    assert roles == [["coordinator", "node"], [], ["node"]]
    again = certs("renew tls")
    assert again.status == 0 and "nothing to renew" in again.err


def test_show_tells_what_expires_and_what_has(certs: Run) -> None:
    now = datetime.now(UTC)
    make_certificates(Path("tls"), [["vm-1"]], now, days=29)
    soon = certs("show tls/vm-1.pem")
    assert soon.status == 0 and "tls/vm-1.pem: the certificate of vm-1 expires on" in soon.err
    make_certificates(Path("tls"), [["vm-2"]], now - 2 * DAY, days=1)
    status, out, err = certs("show --json tls/vm-1.pem tls/vm-2.pem")
    shown = json.loads(out)["certificates"]
    assert status == 1
    assert [(each["file"], each["expired"], each["days_left"]) for each in shown] == [
        ("tls/vm-1.pem", False, 28),
        ("tls/vm-2.pem", True, -2),
    ]
    assert shown[1]["names"] == ["vm-2"]
    assert "error: tls/vm-2.pem has expired: renew it" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("make tls 10.0.0.300", "'10.0.0.300' cannot be in a certificate"),
        ("make tls a,,b", "give values separated by single commas"),
        ("make tls a --role nod", "unknown role 'nod': did you mean 'node'?"),
        ("renew made vm-1 --role nod", "unknown role 'nod': did you mean 'node'?"),
        ("make tls a --days 0", "days is 0: it must be at least 1"),
        ("make made vm-1", "made/vm-1.pem or made/vm-1.key exists already: give --renew"),
        ("renew made vm-2", "unknown certificate 'vm-2': did you mean 'vm-1'?"),
        ("renew tls", "tls has no authority.key"),
        ("show tls", "tls cannot be read (No such file or directory)"),
        ("show empty", "empty has no *.pem"),
        ("show made/vm-1.key", "made/vm-1.key: not a certificate"),
    ],
)
def test_mistakes_are_one_line(certs: Run, line: str, said: str) -> None:
    make_certificates(Path("made"), [["vm-1"]], datetime.now(UTC))
    Path("empty").mkdir()
    assert said in certs(line).failed(2)
    assert not Path("tls").exists()
