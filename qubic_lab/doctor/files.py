"""Checks of files: certificates, and the model by its hashes."""

import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from qubic_lab.doctor.finding import Finding, Verdict, skip
from qubic_lab.doctor.subject import Subject
from qubic_lab.errors import ModelError, QubicLabError
from qubic_lab.model.checkpoint import Checkpoint, model_hash
from qubic_lab.model.folders import MANIFEST, file_hash, problems, rank_folders
from qubic_lab.model.resolve import DEEPSEEK, hub_hashes, local_model, resolve_model
from qubic_lab.model.split import remake_ranks, surviving_manifest
from qubic_lab.settings import settings
from qubic_lab.wire.certificates import (
    AUTHORITY,
    CertificateInfo,
    describe,
    expiry_warning,
    file_name,
    is_signed_by,
    renew_certificates,
)
from qubic_lab.wire.channel import TlsFiles

HASH_S = 7.0
"""Time for hashes; files that take longer are for `qubic-lab verify`."""


def certificates(subject: Subject) -> Iterator[Finding]:
    """This host's certificate and the authority's: whether they match, their ends, the role and the names."""
    paths = settings().tls_certificate, settings().tls_key, settings().tls_authority
    role = subject.role if subject.host else "client"
    if not any(paths):
        if subject.host is None:
            yield skip("certificates", "no TLS files are set: nothing is served beyond this machine")
            return
        remedy = f"qubic-lab certs make ~/qubic-lab-tls {_names(subject)} --role {role}"
        yield Finding("certificates", "none set", "fail", "hosts need TLS among each other", remedy)
        return
    certificate, key, authority = paths
    if certificate is None or key is None or authority is None:
        why = "set QUBIC_LAB_TLS_CERTIFICATE, QUBIC_LAB_TLS_KEY and QUBIC_LAB_TLS_AUTHORITY, all three"
        yield Finding("certificates", "some are not set", "fail", why, "qubic-lab certs show ~/qubic-lab-tls")
        return
    try:
        pair, signer = TlsFiles(certificate, key, authority).read()
        found = {certificate: describe(pair.certificate), authority: describe(signer)}
    except QubicLabError as error:
        folder = shlex.quote(str(certificate.parent))
        remedy = f"qubic-lab certs make {folder} {_names(subject) or certificate.stem} --role {role} --renew"
        yield Finding(str(certificate), "not usable", "fail", str(error), remedy)
        return
    for path, info in found.items():
        yield _expiry(path, info)
    yield _host(subject, certificate, found[certificate], signed=is_signed_by(pair.certificate, signer))


def _names(subject: Subject) -> str:
    host = subject.host
    return ",".join((host.name, host.address, host.domain_name)) if host else ""


def _expiry(path: Path, info: CertificateInfo) -> Finding:
    now = datetime.now(UTC)
    value = f"valid to {info.valid_to_utc:%Y-%m-%d}, {info.days_left(now)} days"
    if info.valid_from_utc > now:
        why = f"valid only from {info.valid_from_utc:%Y-%m-%d %H:%M} UTC: is the clock right?"
        return Finding(str(path), value, "fail", why, "qubic-lab doctor --only clock")
    if (why_ends := expiry_warning(info, now)) is None:
        return Finding(str(path), value)
    verdict: Verdict = "fail" if info.has_expired(now) else "warn"
    folder = path.parent
    if (folder / f"{AUTHORITY}.key").exists() and (folder / f"{AUTHORITY}.pem").exists():
        renew = partial(renew_certificates, folder, [path.stem], now)
        return Finding(str(path), value, verdict, why_ends, fix=lambda: f"renewed {', '.join(map(str, renew()))}")
    name = AUTHORITY if path == settings().tls_authority else file_name(info.names[0])
    remedy = f"qubic-lab certs renew ~/qubic-lab-tls {name}"
    reason = f"{why_ends}, where {AUTHORITY}.key is, and copy {path.name} here"
    return Finding(str(path), value, verdict, reason, remedy)


def _host(subject: Subject, path: Path, info: CertificateInfo, *, signed: bool) -> Finding:
    """Check which authority, roles and names a certificate states."""
    looked_at, value = f"{path}: authority, roles, names", f"{info.authority}; {', '.join((*info.roles, *info.names))}"
    folder = shlex.quote(str(path.parent))
    if not signed:
        roles = ",".join(info.roles) or "client"
        remedy = f"qubic-lab certs make {folder} {_names(subject) or path.stem} --role {roles} --renew"
        return Finding(looked_at, value, "fail", "another authority signed it than the one that is set", remedy)
    if subject.host is None:
        return Finding(looked_at, value)
    if subject.role not in info.roles:
        remedy = f"qubic-lab certs renew {folder} {path.stem} --role {','.join((*info.roles, subject.role))}"
        return Finding(looked_at, value, "fail", f"it lacks the role {subject.role}", remedy)
    lacking = {subject.host.address, subject.host.domain_name} - set(info.names)
    if lacking:
        remedy = f"qubic-lab certs make {folder} {_names(subject)} --role {','.join(info.roles)} --renew"
        return Finding(looked_at, value, "fail", f"others call {', '.join(sorted(lacking))}, which it lacks", remedy)
    return Finding(looked_at, value)


def model(subject: Subject) -> Iterator[Finding]:
    """The model's files by their hashes, as far as they were recorded; nothing is downloaded or converted."""
    folder = local_model(subject.model)
    if folder is None and subject.model == "smollm2":
        yield skip(subject.model, "not converted yet: its first use converts it")
        return
    hub_id = DEEPSEEK if subject.model == "deepseek" else subject.model
    if folder is None:
        yield Finding(subject.model, "not here", "warn", "its first use downloads it", f"hf download {hub_id}")
        return
    places = rank_folders(folder) or ([folder] if (folder / MANIFEST).exists() else [])
    files = {} if places else hub_hashes(folder)
    hash_of = _until(time.monotonic() + HASH_S)
    try:
        wrong = [problem for place in places for problem in problems(place, hash_of)]
        wrong += [f"{file} has changed: its SHA-256 is not the hub's" for file in files if hash_of(file) != files[file]]
        if not places:
            Checkpoint.open(folder)
    except _Late:
        remedy = f"qubic-lab verify {shlex.quote(str(folder))}"
        yield skip(str(folder), f"to hash all of it takes more than {HASH_S:g} s", remedy)
        return
    except ModelError as error:
        wrong = [str(error)]
    if not wrong:
        hashed = "all hashes are right" if places else f"{len(files)} hashes of the hub are right"
        yield Finding(str(folder), hashed if places or files else "no hashes are recorded; its headers fit its config")
        return
    bad = Finding(str(folder), f"{len(wrong)} wrong files", "fail", wrong[0])
    if not rank_folders(folder):
        again = replace(bad, remedy=f"hf download {hub_id} --force-download")
        yield replace(bad, fix=lambda: _convert_again(folder)) if subject.model == "smollm2" else again
    elif (source := _source(subject, folder)) is not None:
        yield replace(
            bad, fix=lambda: f"made {', '.join(rank.name for rank in remake_ranks(folder, source))} again from {source}"
        )
    else:
        ranks = [rank.name.removeprefix("rank-") for rank in rank_folders(folder) if problems(rank)]
        gone = " ".join(shlex.quote(f"{folder}/rank-{rank}") for rank in ranks)
        fetch = f"rm -r {gone} && qubic-lab model fetch {folder.name} {folder} --rank {','.join(ranks)}"
        yield replace(bad, remedy=fetch if subject.host else f"{subject.command('model')} --source MODEL")


def _split_again(folder: Path, source: Path) -> str:
    return f"made {', '.join(path.name for path in remake_ranks(folder, source))} again from {source}"


def _convert_again(folder: Path) -> str:
    shutil.rmtree(folder)
    return f"converted {resolve_model('smollm2')} again"


def _source(subject: Subject, folder: Path) -> Path | None:
    """Return the folder of the model that a split was made of, if it is on this machine."""
    for name in filter(None, (subject.source, "smollm2", "deepseek")):
        with suppress(QubicLabError):
            found = local_model(name)
            if found is not None and model_hash(found) == surviving_manifest(folder).model_hash:
                return found
    return None


class _Late(Exception):
    """Hashes take too long."""


def _until(deadline: float) -> Callable[[Path], str]:
    def hash_of(file: Path) -> str:
        if time.monotonic() > deadline:
            raise _Late
        return file_hash(file)

    return hash_of
