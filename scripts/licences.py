"""Print a Markdown table of all packages that an installed Qubic Lab needs here, with their licences.

They are those of its dependencies and extras, and of theirs, as far as they are installed. Exit status 1 if a licence
is unknown, or one that this project does not build on.
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

REFUSED = re.compile(r"AGPL|Affero|Commons Clause|SSPL|BUSL|Business Source|non-?commercial", re.IGNORECASE)
READ = {"axe-playwright-python": "MIT", "ta-lib": "BSD-2-Clause"}
"""By name: licences that were read in the source, because the package's metadata say none."""
MADE_WITH = ("bench", "dev")
"""Extras for the work on the project."""


def needed(name: str, without: Iterable[str] = ()) -> list[Distribution]:
    """Return what is installed of a package's requirements and of theirs, by name; the extras in `without` aside."""
    found: dict[str, Distribution] = {}
    root = distribution(name)
    extras = set(root.metadata.get_all("Provides-Extra") or ()) - set(without)
    waiting = [(root, frozenset(extras))]
    seen = set()
    while waiting:
        package, asked = waiting.pop()
        for requirement in map(Requirement, package.requires or ()):
            if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in asked | {""}):
                continue
            key = (requirement.name.lower(), frozenset(requirement.extras))
            if key in seen:
                continue
            seen.add(key)
            try:
                other = distribution(requirement.name)
            except PackageNotFoundError:  # an extra that is not installed
                continue
            found[other.metadata["Name"].lower()] = other
            waiting.append((other, key[1]))
    return [found[name] for name in sorted(found)]


def licence(package: Distribution) -> str:
    """Return a package's licence: its expression, its classifiers, or the first line of its text; "" if none."""
    about = package.metadata
    if expression := about.get_all("License-Expression"):
        return str(expression[0])
    kinds = [line.rsplit(" :: ", 1)[1] for line in about.get_all("Classifier") or () if line.startswith("License :: ")]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    text = "".join(about.get_all("License") or ()).strip().split("\n")[0]
    return ", ".join(kinds) or text or READ.get(about["Name"].lower(), "")


def faults(packages: Iterable[Distribution]) -> list[str]:
    """Return a line for each package whose licence is unknown or refused."""
    named = [(package.metadata["Name"], licence(package)) for package in packages]
    return [f"{name}: {found or 'no licence'}" for name, found in named if not found or REFUSED.search(found)]


def main() -> int:
    """Print the table, and what is wrong on stderr."""
    packages = needed("qubic-lab", MADE_WITH)
    print("| package | version | licence |\n|---|---|---|")
    for package in packages:
        print(f"| {package.metadata['Name']} | {package.version} | {licence(package).replace('|', '/')} |")
    wrong = faults(packages)
    print(*wrong, sep="\n", end="\n" * bool(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
