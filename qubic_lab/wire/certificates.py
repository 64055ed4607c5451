"""Certificates of mutual TLS: an authority, hosts' certificates by it, what they say and how long they are good for."""

import ipaddress
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qubic_lab.errors import InputError, check_choice, check_range

AUTHORITY = "authority"
"""What the authority's two files are called, as a host's are by its name."""
AUTHORITY_DAYS = 3_650
HOST_DAYS = 365
MOST_DAYS = 36_500
WARN_DAYS = 30
"""A certificate with fewer days left should be renewed."""

_CLOCKS_DIFFER_BY = timedelta(hours=1)
_LONGEST_COMMON_NAME = 64  # X.509's limit
_LONGEST_NAME = 253  # DNS's limit
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# A name that ends in a number would be a mistyped address.
_HOST_NAME = re.compile(rf"({_LABEL}\.)*(?!\d+\Z){_LABEL}")

ExtensionType = TypeVar("ExtensionType", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Pair:
    """A certificate and the unencrypted key to it, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class CertificateInfo:
    """What a certificate says.

    Attributes:
        names: host names and IP addresses that it is for; where there are none, its common name.
        serial: its number, hexadecimal.
        valid_from_utc: it is good from here on.
        valid_to_utc: its end.
        authority: who signed it: common name, and the first digits of the key's identifier (hexadecimal).
    """

    names: tuple[str, ...]
    serial: str
    valid_from_utc: datetime
    valid_to_utc: datetime
    authority: str

    def days_left(self, now: datetime) -> int:
        """Return the days from `now` to the end, rounded down: negative once it is past."""
        return (self.valid_to_utc - now).days

    def has_expired(self, now: datetime) -> bool:
        """Return whether the end is past."""
        return now > self.valid_to_utc


def describe(pem: bytes) -> CertificateInfo:
    """Return what the first certificate of a PEM text says.

    Raises:
        InputError: there is none, or it is malformed.
    """
    certificate = _load(pem)
    return CertificateInfo(
        names=_names(certificate) or _common_names(certificate.subject),
        serial=f"{certificate.serial_number:x}",
        valid_from_utc=certificate.not_valid_before_utc,
        valid_to_utc=certificate.not_valid_after_utc,
        authority=" ".join((*_common_names(certificate.issuer), *_authority_id(certificate))),
    )


def expiry_warning(info: CertificateInfo, now: datetime) -> str | None:
    """Return a line on a certificate that has expired or has fewer than WARN_DAYS days left; None for any other."""
    what, remedy = f"the certificate of {', '.join(info.names)}", "renew it with `qubic-lab certs renew`"
    if info.has_expired(now):
        return f"{what} expired on {info.valid_to_utc:%Y-%m-%d at %H:%M} UTC: {remedy}"
    left = info.days_left(now)
    if left < WARN_DAYS:
        return f"{what} expires on {info.valid_to_utc:%Y-%m-%d}, {left} whole days from now: {remedy}"
    return None


def check_pair(pair: Pair) -> None:
    """Make sure that a certificate and a key belong together.

    Raises:
        InputError: they do not, or one is malformed, or the key is encrypted.
    """
    if _load(pair.certificate).public_key() != _load_key(pair.key).public_key():
        raise InputError("the key is another certificate's")


def check_name(name: str) -> str:
    """Return a host name as it is, or an IP address in its usual spelling.

    Raises:
        InputError: it is neither.
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if len(name) <= _LONGEST_NAME and _HOST_NAME.fullmatch(name) and name != AUTHORITY:
            return name
    else:
        if "%" not in name:  # an interface, which no certificate can name
            return str(address)
    raise InputError(
        f"{name!r} cannot be in a certificate: give a host name or an IP address, such as vm-1 or 10.0.0.2"
    )


def file_name(name: str) -> str:
    """Return what a host's files are called, without suffix: its name, with `-` for the colons of an IPv6 address.

    scp would take what precedes a colon for a host, docker for the end of a path.
    """
    return name.replace(":", "-")


def new_authority(now: datetime) -> Pair:
    """Return a new authority, good for AUTHORITY_DAYS; it may sign certificates of hosts but of no other authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Qubic Lab authority")])
    return Pair(_sign_authority(name, key, now), _key_pem(key))


def renewed_authority(authority: Pair, now: datetime) -> Pair:
    """Return an authority with the same name and key, again good for AUTHORITY_DAYS: what it has signed stays good.

    Raises:
        InputError: it is none: the key does not belong to the certificate or is not of an elliptic curve.
    """
    certificate, key = _load_authority(authority)
    return replace(authority, certificate=_sign_authority(certificate.subject, key, now))


def new_host(names: Sequence[str], authority: Pair, now: datetime, days: int = HOST_DAYS) -> Pair:
    """Return a new key, and a certificate to serve and to connect with.

    Args:
        names: host names and IP addresses by which others call the host.
        authority: it signs; no certificate is good for longer than its own.
        now: the certificate is good from an hour before, for clocks differ,
        days: until so many days after.

    Raises:
        InputError: a name is none, the authority has expired, `days` is out of range, or as renewed_authority.
    """
    known = [check_name(name) for name in names]
    # For who reads the certificate; TLS goes by the alternative names.
    common = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in known[:1] if len(name) <= _LONGEST_COMMON_NAME]
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in known])
    certificate = _sign_host(x509.Name(common), alternatives, key.public_key(), authority, now, days)
    return Pair(certificate, _key_pem(key))


def renewed_host(certificate: bytes, authority: Pair, now: datetime, days: int = HOST_DAYS) -> bytes:
    """Return a host's certificate with a new end, for the same names and the same key, by the same authority.

    Raises:
        InputError: another authority signed it, or it is for no name, or as new_host.
    """
    old = _load(certificate)
    try:
        old.verify_directly_issued_by(_load(authority.certificate))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InputError("another authority signed it: renew it with that one") from error
    alternatives = _extension(old, x509.SubjectAlternativeName)
    if alternatives is None:
        raise InputError("it is for no host: make a new one")
    return _sign_host(old.subject, alternatives, old.public_key(), authority, now, days)


def make_certificates(
    folder: Path, hosts: Sequence[Sequence[str]], now: datetime, days: int = HOST_DAYS, renew: bool = False
) -> list[Path]:
    """Write a pair for each host, and an authority where the folder has none; return the certificates' paths.

    Args:
        folder: for authority.pem and authority.key, NAME.pem and NAME.key of each host; made where it is missing.
        hosts: names of each host; the files are called by the first.
        now: as in new_host.
        days: as in new_host.
        renew: put new pairs in place of those that are there, else they are an error.

    Raises:
        InputError: as new_host; or a pair is there already; or the folder has half an authority or may be written to
            by other users. Nothing was written.
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
            raise InputError(f"{certificate} or {key} is there already: give --renew to make a new pair in its place")
        pairs[name] = new_host(names, authority, now, days)
    _make_folder(folder)
    if found is None:
        _write_pair(folder, AUTHORITY, authority)
    return [_write_pair(folder, name, pair) for name, pair in pairs.items()]


def renew_certificates(folder: Path, names: Sequence[str], now: datetime, days: int = HOST_DAYS) -> list[Path]:
    """Write certificates with a new end for the same names and keys in place of the old; return their paths.

    Args:
        folder: as of make_certificates; hosts' keys need not be there.
        names: whose; where none is given, all with fewer than WARN_DAYS days left, the authority's among them.
        now: as in new_host.
        days: as in new_host; the authority gets AUTHORITY_DAYS.

    Raises:
        InputError: the folder has no authority, or no certificate by a name, or as renewed_host. Nothing was written.
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
            made[path] = renewed_host(path.read_bytes(), authority, now, days)
    for path, certificate in made.items():
        _write(path, certificate, 0o644)
    return list(made)


def read_certificates(paths: Iterable[Path]) -> list[tuple[Path, CertificateInfo]]:
    """Return what the certificate of each file says; a folder stands for each *.pem in it.

    Raises:
        InputError: a file cannot be read or is no certificate, or a folder has none.
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


def _load(pem: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        # Malformed ones raise no sooner than they are asked for.
        _ = certificate.extensions, certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError("no certificate: PEM is expected") from error
    return certificate


def _load_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, None)
    except TypeError as error:
        raise InputError("the key is encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError("no key: PEM is expected") from error


def _load_authority(authority: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    check_pair(authority)
    certificate, key = _load(authority.certificate), _load_key(authority.key)
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("no authority of `qubic-lab certs make`: use a folder that it wrote")
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
    builder = (
        _builder(subject, key, by.subject, by_key, now)
        .not_valid_after(min(until, by.not_valid_after_utc))
        .add_extension(names, critical=not subject.rdns)  # RFC 5280, 4.2.1.6
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    )
    return builder.sign(by_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    key: CertificatePublicKeyTypes,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.CertificateBuilder:
    """Return what all certificates have; their ends and uses are still to be added."""
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
    """Return the first digits of the signing key's identifier; none where the certificate does not tell it."""
    by = _extension(certificate, x509.AuthorityKeyIdentifier)
    key_id = by.key_identifier if by is not None else None
    if key_id is None and certificate.issuer == certificate.subject:  # may leave it out: it is its own
        own = _extension(certificate, x509.SubjectKeyIdentifier)
        key_id = own.digest if own is not None else None
    return (key_id.hex()[:8],) if key_id is not None else ()


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return where a certificate and its key are."""
    return folder / f"{name}.pem", folder / f"{name}.key"


def _read_authority(folder: Path) -> Pair | None:
    """Return the folder's authority; None where it has none."""
    paths = _paths(folder, AUTHORITY)
    missing = [path for path in paths if not path.exists()]
    if len(missing) == len(paths):
        return None
    if missing:
        raise InputError(
            f"{missing[0]} is missing: certificates are made where the authority's certificate and key are"
        )
    with _told_of(folder / AUTHORITY):
        authority = Pair(*(path.read_bytes() for path in paths))
        _load_authority(authority)
    return authority


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o022:
        raise InputError(
            f"other users may write in {folder}, and so replace the authority: chmod 700 it, or give another"
        )


def _write_pair(folder: Path, name: str, pair: Pair) -> Path:
    certificate, key = _paths(folder, name)
    _write(key, pair.key, 0o600)
    _write(certificate, pair.certificate, 0o644)
    return certificate


def _write(path: Path, content: bytes, mode: int) -> None:
    """Put a file in place at one stroke; from its first byte nobody but the owner reads what only the owner may."""
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
    """Name the file in errors."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a PEM file") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
