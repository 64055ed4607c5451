"""`qubic-lab certs …`: certificates for mutual TLS between hosts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, note, print_json, print_table, split_list
from qubic_lab.core import attributes
from qubic_lab.errors import QubicLabError
from qubic_lab.wire.certificates import (
    AUTHORITY,
    WARN_DAYS,
    CertificateInfo,
    expiry_warning,
    make_certificates,
    read_certificates,
    renew_certificates,
)

Folder = Annotated[Path, Argument(metavar="FOLDER", help="Folder of the authority and the hosts' pairs.")]
Role = Annotated[str, Option(metavar="ROLE,…", help="Role in a cluster: coordinator, node, client, or several.")]
Days = Annotated[int, Option(help="Days that hosts' certificates are valid; an authority's lasts 10 years.")]


def make(
    folder: Folder,
    hosts: Annotated[list[str], Argument(metavar="NAME", help="A host's name or IP address, or several as NAME,NAME.")],
    role: Role = "client",
    days: Days = 365,
    renew: Annotated[bool, Option("--renew", help="Replace existing certificates and keys.")] = False,
) -> None:
    """Make a certificate and a key for each host.

    Makes an authority first if FOLDER has none. A client's certificate cannot serve; the first host of a pipeline that
    others call needs the role node.
    """
    names = [split_list("NAME", host) for host in hosts]
    for path in make_certificates(folder, names, datetime.now(UTC), days, renew, split_list("--role", role)):
        typer.echo(path)
    note(
        "give each host its own pair and authority.pem; authority.key stays here: "
        "whoever has it can make certificates that every host trusts"
    )


def show(
    paths: Annotated[list[Path], Argument(metavar="FOLDER_OR_FILE", help="PEM files, or folders with some.")],
    json: options.Json = False,
) -> None:
    """Show the names and the validity of certificates.

    The exit status is 1 if one has expired.
    """
    now = datetime.now(UTC)
    found = read_certificates(paths)
    if json:
        print_json({"certificates": [_to_dict(path, info, now) for path, info in found]})
    else:
        header = ("file", "names", "roles", "valid from", "valid to", "days left", "authority")
        rows = [
            (
                *(
                    str(path),
                    ", ".join(info.names),
                    ", ".join(info.roles) or "none",
                    f"{info.valid_from_utc:%Y-%m-%d %H:%M}",
                ),
                *(f"{info.valid_to_utc:%Y-%m-%d %H:%M}", str(info.days_left(now)), info.authority),
            )
            for path, info in found
        ]
        print_table(header, rows)
    expired = []
    for path, info in found:
        if (warning := expiry_warning(info, now)) is not None:
            note(f"{path}: {warning}")
        if info.has_expired(now):
            expired.append(path)
    if expired:
        more = f" (and {len(expired) - 1} more)" if len(expired) > 1 else ""
        raise QubicLabError(f"{expired[0]}{more} has expired: renew it with `qubic-lab certs renew`")


def renew(
    folder: Folder,
    names: Annotated[
        list[str] | None,
        Argument(metavar="NAME", help="Hosts by their files, or `authority`.", show_default="under 30 days left"),
    ] = None,
    role: Annotated[str | None, Option(metavar="ROLE,…", help="New roles.", show_default="as before")] = None,
    days: Days = 365,
) -> None:
    """Renew certificates with the same names, keys and authority."""
    roles = split_list("--role", role) if role is not None else ()
    renewed = renew_certificates(folder, names or (), datetime.now(UTC), days, roles)
    for path in renewed:
        typer.echo(path)
    if not renewed:
        note(f"nothing to renew: all certificates have {WARN_DAYS} days left or more")
    elif any(path.stem == AUTHORITY for path in renewed):
        note("give each host the new authority.pem, and its new certificate if it has one; keys are unchanged")
    else:
        note("give each host its own new certificate; keys and authority are unchanged")


def _to_dict(path: Path, info: CertificateInfo, now: datetime) -> dict[str, Any]:
    return {
        "file": str(path),
        **attributes(info, "names", "roles", "serial"),
        "valid_from_utc": info.valid_from_utc.isoformat(),
        "valid_to_utc": info.valid_to_utc.isoformat(),
        "days_left": info.days_left(now),
        "expired": info.has_expired(now),
        "authority": info.authority,
    }


COMMANDS: Commands = {
    "make": (make, "~/qubic-lab-tls 10.0.0.2,vm-1,localhost --role node"),
    "show": (show, "~/qubic-lab-tls"),
    "renew": (renew, "~/qubic-lab-tls"),
}
