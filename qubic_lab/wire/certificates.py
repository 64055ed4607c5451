"""Certificates for mutual TLS: an authority, the hosts' certificates, and their names and validity."""

import ipaddress
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qubic_lab.errors import InputError, check_choice, check_range

AUTHORITY = "authority"
"""Name of the authority's two files; a host's files have the host's name."""
AUTHORITY_DAYS = 3_650
HOST_DAYS = 365
MOST_DAYS = 36_500
WARN_DAYS = 30
"""Certificates with fewer days left should be renewed."""

Role = Literal["coordinator", "node", "client"]
ROLES: tuple[Role, ...] = ("coordinator", "node", "client")
ROLE_URI = "urn:qubic-lab:role:"
"""Begins the URI among a certificate's alternative names that states a role."""

_CLOCKS_DIFFER_BY = timedelta(hours=1)
_LONGEST_COMMON_NAME = 64  # X.509's limit
_LONGEST_NAME = 253  # DNS's limit
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# A name that ends in a number is a mistyped address.
_HOST_NAME = re.compile(rf"({_LABEL}\.)*(?!\d+\Z){_LABEL}")

ExtensionType = TypeVar("ExtensionType", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Pair:
    """A certificate and its unencrypted key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class CertificateInfo:
    """The content of a certificate: `names` are its host names and IP addresses, or its common name if there are none.

    `serial` is hexadecimal; `authority` is the issuer's common name and the first digits of its key identifier.
    `roles` are those in a cluster; `may_serve` says whether TLS accepts it from a server.
    """

    names: tuple[str, ...]
    serial: str
    valid_from_utc: datetime
    valid_to_utc: datetime
    authority: str
    roles: tuple[str, ...] = ()
    may_serve: bool = True

    def days_left(self, now: datetime) -> int:
        """Return the days from `now` to the end, rounded down; negative after the end."""
        return (self.valid_to_utc - now).days

    def has_expired(self, now: datetime) -> bool:
        """Return whether the certificate has expired."""
        return now > self.valid_to_utc


def describe(pem: bytes) -> CertificateInfo:
    """Parse the first certificate of a PEM text; an InputError if there is no certificate, or it is malformed."""
    certificate = _load(pem)
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    return CertificateInfo(
        names=_names(certificate) or _common_names(certificate.subject),
        serial=f"{certificate.serial_number:x}",
        valid_from_utc=certificate.not_valid_before_utc,
        valid_to_utc=certificate.not_valid_after_utc,
        authority=" ".join((*_common_names(certificate.issuer), *_authority_id(certificate))),
        roles=_roles(_extension(certificate, x509.SubjectAlternativeName)),
        may_serve=usage is None or ExtendedKeyUsageOID.SERVER_AUTH in usage,
    )


def expiry_warning(info: CertificateInfo, now: datetime) -> str | None:
    """Return a warning if a certificate has expired or has fewer than WARN_DAYS days left, else None."""
    what, remedy = f"the certificate of {', '.join(info.names)}", "renew it with `qubic-lab certs renew`"
    if info.has_expired(now):
        return f"{what} expired on {info.valid_to_utc:%Y-%m-%d at %H:%M} UTC: {remedy}"
    left = info.days_left(now)
    if left < WARN_DAYS:
        return f"{what} expires on {info.valid_to_utc:%Y-%m-%d}, {left} whole days from now: {remedy}"
    return None


def check_pair(pair: Pair) -> None:
    """Check that a certificate and a key belong together.

    Raises:
        InputError: they do not, or one is malformed, or the key is encrypted.
    """
    if _load(pair.certificate).public_key() != _load_key(pair.key).public_key():
        raise InputError("the key belongs to another certificate")


def check_name(name: str) -> str:
    """Return a host name unchanged, or an IP address in its canonical form; an InputError if it is neither of them."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if len(name) <= _LONGEST_NAME and _HOST_NAME.fullmatch(name) and name != AUTHORITY:
            return name
    else:
        if "%" not in name:  # a zone id, which certificates cannot have
            return str(address)
    raise InputError(
        f"{name!r} cannot be in a certificate: give a host name or an IP address, such as vm-1 or 10.0.0.2"
    )


def file_name(name: str) -> str:
    """Return the name of a host's files without suffix: its name, with `-` for the colons of an IPv6 address.

    Colons have other meanings in scp and docker.
    """
    return name.replace(":", "-")


def new_authority(now: datetime) -> Pair:
    """Return a new authority, valid for AUTHORITY_DAYS; it may sign hosts' certificates, but not other authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Qubic Lab authority")])
    return Pair(_sign_authority(name, key, now), _key_pem(key))


def renewed_authority(authority: Pair, now: datetime) -> Pair:
    """Return an authority with the same name and key, valid for AUTHORITY_DAYS; its certificates stay valid.

    Raises:
        InputError: the key does not belong to the certificate, or is not an elliptic-curve key.
    """
    certificate, key = _load_authority(authority)
    return replace(authority, certificate=_sign_authority(certificate.subject, key, now))


def new_host(
    names: Sequence[str], authority: Pair, now: datetime, days: int = HOST_DAYS, roles: Sequence[str] = ()
) -> Pair:
    """Return a new key and a certificate for a server and client, or only a client if that is its one role.

    Others call the host by `names`. Without roles it is no member of a cluster.
    No certificate is valid longer than the authority's own; it is valid from an hour
    before `now`, because clocks differ.

    Raises:
        InputError: a name or role is invalid, the authority has expired, `days` is out of range, or as for
            renewed_authority.
    """
    known = [check_name(name) for name in names]
    # For human readers; TLS uses the alternative names.
    common = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in known[:1] if len(name) <= _LONGEST_COMMON_NAME]
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([*map(_general_name, known), *_role_names(roles)])
    certificate = _sign_host(x509.Name(common), alternatives, key.public_key(), authority, now, days)
    return Pair(certificate, _key_pem(key))


def renewed_host(
    certificate: bytes, authority: Pair, now: datetime, days: int = HOST_DAYS, roles: Sequence[str] = ()
) -> bytes:
    """Return a renewed certificate of a host with the same names, key and authority, and these roles or its own.

    Raises:
        InputError: another authority signed it, it has no names, or as for new_host.
    """
    old = _load(certificate)
    if not is_signed_by(certificate, authority.certificate):
        raise InputError("another authority signed it: renew it with that one")
    alternatives = _extension(old, x509.SubjectAlternativeName)
    if alternatives is None:
        raise InputError("it has no host names: make a new one")
    if roles:
        others = [name for name in alternatives if not isinstance(name, x509.UniformResourceIdentifier)]
        alternatives = x509.SubjectAlternativeName([*others, *_role_names(roles)])
    return _sign_host(old.subject, alternatives, old.public_key(), authority, now, days)


def is_signed_by(certificate: bytes, authority: bytes) -> bool:
    """Return whether an authority signed a certificate, both PEM; an InputError if one is malformed."""
    try:
        _load(certificate).verify_directly_issued_by(_load(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def make_certificates(
    folder: Path,
    hosts: Sequence[Sequence[str]],
    now: datetime,
    days: int = HOST_DAYS,
    renew: bool = False,
    roles: Sequence[str] = (),
) -> list[Path]:
    """Write a pair for each host, and an authority if the folder has none; return the certificates' paths.

    The first of a host's names is that of its files NAME.pem and NAME.key. `now`, `days` and `roles` as for new_host;
    `renew` replaces existing pairs, which are an error otherwise. The folder is created if missing.

    Raises:
        InputError: as for new_host; or a pair exists; or the authority is incomplete, or the folder is writable
            for other users. Nothing was written.
    """
    found = _read_authority(folder)
    authority = found or new_authority(now)
    pairs: dict[str, Pair] = {}
    for names in hosts:
        name = file_name(check_name(names[0]))
        certificate, key = _paths(folder, name)
        if name in pairs:
            raise InputError(f"{certificate} would be written twice: name each host once")
        if not renew and (certificate.exists() or key.exists()):
            raise InputError(f"{certificate} or {key} exists already: give --renew to replace it")
        pairs[name] = new_host(names, authority, now, days, roles)
    _make_folder(folder)
    if found is None:
        _write_pair(folder, AUTHORITY, authority)
    return [_write_pair(folder, name, pair) for name, pair in pairs.items()]


def renew_certificates(
    folder: Path, names: Sequence[str], now: datetime, days: int = HOST_DAYS, roles: Sequence[str] = ()
) -> list[Path]:
    """Replace certificates by renewed ones with the same names and keys, and with new roles if any; return their paths.

    `names` are hosts, or the authority; by default all certificates with fewer than WARN_DAYS days left. The hosts'
    keys are not needed. `now` and `days` as for new_host; the authority gets AUTHORITY_DAYS.

    Raises:
        InputError: the folder has no authority or no such certificate, or as for renewed_host. Nothing was written.
    """
    authority = _read_authority(folder)
    if authority is None:
        raise InputError(f"{folder} has no authority.key: give the folder that `qubic-lab certs make` wrote")
    infos = {path.stem: info for path, info in read_certificates([folder])}
    if names:
        due = {check_choice("certificate", file_name(name), infos) for name in names}
    else:
        due = {name for name, info in infos.items() if info.days_left(now) < WARN_DAYS}
    made: dict[Path, bytes] = {}
    if AUTHORITY in due:
        authority = renewed_authority(authority, now)
        made[_paths(folder, AUTHORITY)[0]] = authority.certificate
    for name in sorted(due - {AUTHORITY}):
        path = _paths(folder, name)[0]
        with _told_of(path):
            made[path] = renewed_host(path.read_bytes(), authority, now, days, roles)
    for path, certificate in made.items():
        _write(path, certificate, 0o644)
    return list(made)


def read_certificates(paths: Iterable[Path]) -> list[tuple[Path, CertificateInfo]]:
    """Return the content of the certificates in files; a folder stands for its *.pem files.

    Raises:
        InputError: a file cannot be read or is not a certificate, or a folder has none.
    """
    found = []
    for given in paths:
        files = sorted(given.glob("*.pem")) if given.is_dir() else [given]
        if not files:
            raise InputError(f"{given} has no *.pem: give certificates, or a folder with some")
        for path in files:
            with _told_of(path):
                found.append((path, describe(path.read_bytes())))
    return found


_MALFORMED = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)


def _load(pem: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        # Malformed parts raise only on access.
        _ = certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _MALFORMED as error:
        raise InputError("not a certificate: PEM is expected") from error
    return certificate


def _load_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, None)
    except TypeError as error:
        raise InputError("the key is encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError("not a key: PEM is expected") from error


def _load_authority(authority: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    check_pair(authority)
    certificate, key = _load(authority.certificate), _load_key(authority.key)
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("not an authority of `qubic-lab certs make`: use a folder that it has written")
    return certificate, key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _sign_authority(name: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime) -> bytes:
    builder = (
        _builder(name, key.public_key(), name, key, now)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _sign_host(
    subject: x509.Name,
    names: x509.SubjectAlternativeName,
    key: CertificatePublicKeyTypes,
    authority: Pair,
    now: datetime,
    days: int,
) -> bytes:
    until = now + timedelta(days=check_range("days", days, 1, MOST_DAYS))
    by, by_key = _load_authority(authority)
    if by.not_valid_after_utc <= now:
        raise InputError("the authority has expired: renew it first, with `qubic-lab certs renew FOLDER authority`")
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if _roles(names) != ("client",):
        usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        _builder(subject, key, by.subject, by_key, now)
        .not_valid_after(min(until, by.not_valid_after_utc))
        .add_extension(names, critical=not subject.rdns)  # RFC 5280, 4.2.1.6
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    )
    return builder.sign(by_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    key: CertificatePublicKeyTypes,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.CertificateBuilder:
    """Return a builder with what all certificates have in common."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(key)
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER_BY)
        .add_extension(key_id, critical=False)
        .add_extension(authority_id, critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _role_names(roles: Sequence[str]) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(ROLE_URI + check_choice("role", role, ROLES)) for role in roles]


def _roles(names: x509.SubjectAlternativeName | None) -> tuple[str, ...]:
    """Return the roles that a certificate's alternative names state."""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    return tuple(uri.removeprefix(ROLE_URI) for uri in uris if uri.startswith(ROLE_URI))


def _extension(certificate: x509.Certificate, kind: type[ExtensionType]) -> ExtensionType | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    alternatives = _extension(certificate, x509.SubjectAlternativeName) or ()
    return tuple(str(name.value) for name in alternatives if isinstance(name, x509.DNSName | x509.IPAddress))


def _common_names(name: x509.Name) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME))


def _authority_id(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the first digits of the issuer's key identifier; none if the certificate does not have it."""
    by = _extension(certificate, x509.AuthorityKeyIdentifier)
    return (by.key_identifier.hex()[:8],) if by is not None and by.key_identifier is not None else ()


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of a certificate and its key."""
    return folder / f"{name}.pem", folder / f"{name}.key"


def _read_authority(folder: Path) -> Pair | None:
    """Return the folder's authority, or None."""
    paths = _paths(folder, AUTHORITY)
    missing = [path for path in paths if not path.exists()]
    if len(missing) == len(paths):
        return None
    if missing:
        raise InputError(f"{missing[0]} is missing: use the folder with the authority's certificate and key")
    with _told_of(folder / AUTHORITY):
        authority = Pair(*(path.read_bytes() for path in paths))
        _load_authority(authority)
    return authority


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o022:
        raise InputError(f"other users may write to {folder} and replace the authority: chmod 700 it, or give another")


def _write_pair(folder: Path, name: str, pair: Pair) -> Path:
    certificate, key = _paths(folder, name)
    _write(key, pair.key, 0o600)
    _write(certificate, pair.certificate, 0o644)
    return certificate


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically, with its final permissions from the start."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            os.fchmod(descriptor, mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Add the file's path to errors."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a PEM file") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
