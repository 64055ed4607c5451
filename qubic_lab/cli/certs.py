"""`qubic-lab certs …`: certificates of mutual TLS between hosts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, print_table, split_list
from qubic_lab.errors import QubicLabError

if TYPE_CHECKING:
    from qubic_lab.wire.certificates import CertificateInfo

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the authority and the hosts' pairs are.")]
Days = Annotated[int, typer.Option(help="How long hosts' certificates are good for; an authority's is for 10 years.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Make, show and renew the certificates of mutual TLS between hosts.",
        epilog="Example: qubic-lab certs make ~/qubic-lab-tls 10.0.0.2 laptop",
        rich_markup_mode=None,
    )
    group.command(epilog="Example: qubic-lab certs make ~/qubic-lab-tls 10.0.0.2,vm-1,localhost laptop")(make)
    group.command(epilog="Example: qubic-lab certs show ~/qubic-lab-tls")(show)
    group.command(epilog="Example: qubic-lab certs renew ~/qubic-lab-tls")(renew)
    app.add_typer(group, name="certs")


def make(
    folder: Folder,
    hosts: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Host name or IP address that others call a host by; NAME,NAME for a host that has several.",
        ),
    ],
    days: Days = 365,
    renew: Annotated[
        bool, typer.Option("--renew", help="Put new pairs, with new keys, in place of those that are there.")
    ] = False,
) -> None:
    """Make a certificate and a key for each host, and an authority first where FOLDER has none."""
    from qubic_lab.wire.certificates import make_certificates

    names = [split_list("NAME", host) for host in hosts]
    for path in make_certificates(folder, names, datetime.now(UTC), days, renew):
        typer.echo(path)
    note(
        "give each host its own pair and authority.pem; authority.key stays here: "
        "whoever has it can make certificates that every host believes"
    )


def show(
    paths: Annotated[list[Path], typer.Argument(metavar="FOLDER_OR_FILE", help="PEM files, or folders with some.")],
    json: options.Json = False,
) -> None:
    """Show whom certificates are for and until when; ends with status 1 when one has expired."""
    from qubic_lab.wire.certificates import expiry_warning, read_certificates

    now = datetime.now(UTC)
    found = read_certificates(paths)
    if json:
        print_json({"certificates": [_to_dict(path, info, now) for path, info in found]})
    else:
        header = ("file", "names", "valid from", "valid to", "days left", "authority")
        print_table(header, [_row(path, info, now) for path, info in found])
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
        typer.Argument(
            metavar="NAME",
            help="Hosts as their files are called, or `authority`.",
            show_default="all with fewer than 30 days left",
        ),
    ] = None,
    days: Days = 365,
) -> None:
    """Write new certificates for the same names and keys, by the same authority."""
    from qubic_lab.wire.certificates import AUTHORITY, WARN_DAYS, renew_certificates

    renewed = renew_certificates(folder, names or (), datetime.now(UTC), days)
    for path in renewed:
        typer.echo(path)
    if not renewed:
        note(f"nothing to renew: all have {WARN_DAYS} days left or more")
    elif any(path.stem == AUTHORITY for path in renewed):
        note("give each host the new authority.pem, and its own new certificate where it has one; keys are as before")
    else:
        note("give each host its own new certificate; keys and authority are as before")


def _to_dict(path: Path, info: "CertificateInfo", now: datetime) -> dict[str, Any]:
    return {
        "file": str(path),
        "names": info.names,
        "serial": info.serial,
        "valid_from_utc": info.valid_from_utc.isoformat(),
        "valid_to_utc": info.valid_to_utc.isoformat(),
        "days_left": info.days_left(now),
        "expired": info.has_expired(now),
        "authority": info.authority,
    }


def _row(path: Path, info: "CertificateInfo", now: datetime) -> tuple[str, ...]:
    start, end = (f"{time:%Y-%m-%d %H:%M}" for time in (info.valid_from_utc, info.valid_to_utc))
    return str(path), ", ".join(info.names), start, end, str(info.days_left(now)), info.authority
