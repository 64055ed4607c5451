"""Checks of files: certificates, those with secrets, and the model by its hashes."""

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from qubic_lab.doctor.finding import Finding, Verdict, skip
from qubic_lab.doctor.subject import Subject
from qubic_lab.errors import ModelError, QubicLabError
from qubic_lab.model.checkpoint import Checkpoint, model_hash
from qubic_lab.model.folders import MANIFEST, file_hash, rank_folders
from qubic_lab.model.resolve import local_model, resolve_model
from qubic_lab.model.split import remake_ranks, surviving_manifest, verify
from qubic_lab.settings import settings
from qubic_lab.wire.certificates import (
    AUTHORITY,
    CertificateInfo,
    describe,
    expiry_warning,
    is_signed_by,
    renew_certificates,
)
from qubic_lab.wire.channel import TlsFiles

HASH_S = 7.0
"""Time for hashes; files that take longer are for `qubic-lab verify`."""
OTHERS = 0o077


def certificates(subject: Subject) -> Iterator[Finding]:
    """This host's certificate and the authority's: whether they match, their ends, the role and the names."""
    paths = settings().tls_certificate, settings().tls_key, settings().tls_authority
    role = subject.role if subject.is_remote else "client"
    if not any(paths):
        if not subject.is_remote:
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
    remedy = f"qubic-lab certs renew {shlex.quote(str(folder))} {path.stem}"
    reason = f"{why_ends}, where {AUTHORITY}.key is, and copy {path.name} here"
    return Finding(str(path), value, verdict, reason, remedy)


def _host(subject: Subject, path: Path, info: CertificateInfo, *, signed: bool) -> Finding:
    """Judge whom a certificate is of."""
    looked_at, value = f"{path}: authority, roles, names", f"{info.authority}; {', '.join((*info.roles, *info.names))}"
    folder = shlex.quote(str(path.parent))
    if not signed:
        remedy = f"qubic-lab certs make {folder} {_names(subject) or path.stem} --role {subject.role} --renew"
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


def secrets(subject: Subject) -> Iterator[Finding]:
    """Files with secrets, which nobody else may read."""
    given = (Path(".env"), settings().api_tokens, settings().tls_key)
    there = [path for path in given if path is not None and path.exists()]
    if not there:
        yield skip("files with secrets", "there are none")
    for path in there:
        mode = path.stat().st_mode & 0o777
        if mode & OTHERS and path.stat().st_uid == os.geteuid():
            why, remedy = "other users may read it", f"chmod 600 {shlex.quote(str(path))}"
            yield Finding(str(path), f"{mode:03o}", "warn", why, remedy, partial(_close, path))
        else:
            yield Finding(str(path), f"{mode:03o}")


def _close(path: Path) -> str:
    path.chmod(0o600)
    return f"{path} is for this user alone"


def model(subject: Subject) -> Iterator[Finding]:
    """The model's files by their hashes, as far as they were recorded; nothing is downloaded or converted."""
    try:
        folder = local_model(subject.model)
    except ModelError as error:
        yield Finding(subject.model, "not usable", "fail", str(error), "qubic-lab generate --model smollm2 --prompt Hi")
        return
    if folder is None:
        if subject.model == "smollm2":
            yield skip(subject.model, "not converted yet: its first use converts it")
            return
        hub_id = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B" if subject.model == "deepseek" else subject.model
        yield Finding(subject.model, "not here", "warn", "its first use downloads it", f"hf download {hub_id}")
        return
    hash_of, hashed = _until(time.monotonic() + HASH_S), str(folder)
    try:
        if rank_folders(folder) or (folder / MANIFEST).exists():
            problems = verify(folder, hash_of)
        else:
            Checkpoint.open(folder)
            problems = hub_problems(folder, hash_of)
            hashed = f"{folder}, {_count(folder)}"
    except _Late:
        remedy = f"qubic-lab verify {shlex.quote(str(folder))}"
        yield skip(str(folder), f"more than what {HASH_S:g} s suffice for", remedy)
        return
    except QubicLabError as error:
        problems = [str(error)]
    if not problems:
        yield Finding(hashed, "as they were written" if "no hashes" not in hashed else "headers match the config")
        return
    yield _mendable(subject, folder, problems)


def _mendable(subject: Subject, folder: Path, problems: list[str]) -> Finding:
    """Return the finding of a damaged model, with a fix where its source is at hand."""
    value = f"{len(problems)} files are not as they were written"
    again = partial(Finding, str(folder), value, "fail", problems[0])
    if not rank_folders(folder):
        if (folder / MANIFEST).exists() and subject.model == "smollm2":
            return again(fix=lambda: _convert_again(folder))
        return again(remedy=f"hf download {subject.model} --force-download")
    source = _source(subject, folder)
    if source is None:
        name = folder.name
        return again(remedy=f"rsync -a --checksum vm-1:{shlex.quote(str(folder.resolve()))}/ {shlex.quote(name)}/")
    return again(fix=lambda: _again(folder, source))


def _again(folder: Path, source: Path) -> str:
    made = remake_ranks(folder, source)
    return f"made {', '.join(path.name for path in made)} again from {source}"


def _convert_again(folder: Path) -> str:
    import shutil

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


def hub_problems(folder: Path, hash_of: Callable[[Path], str]) -> list[str]:
    """Compare a folder of the hub's cache with its hashes, which are the names of the files that it links to."""
    found = []
    for file in sorted(folder.iterdir()):
        name = file.resolve().name
        if file.is_symlink() and len(name) == 64 and hash_of(file) != name:
            found.append(f"{file} has changed: its SHA-256 is not the hub's")
    return found


def _count(folder: Path) -> str:
    known = sum(file.is_symlink() and len(file.resolve().name) == 64 for file in folder.iterdir())
    return f"{known} files with hashes of the hub" if known else "no hashes are recorded"


class _Late(Exception):
    """Hashes take too long."""


def _until(deadline: float) -> Callable[[Path], str]:
    def hash_of(file: Path) -> str:
        if time.monotonic() > deadline:
            raise _Late
        return file_hash(file)

    return hash_of
