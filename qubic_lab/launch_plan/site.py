"""The settings of a cluster on Google Cloud: where, how many machines, how they are paid, and who may enter."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qubic_lab.checked_yaml import STRICT
from qubic_lab.errors import InputError, check_range, did_you_mean
from qubic_lab.launch_plan.network import Network

REGION = "asia-east1"
ZONES = ("asia-east1-a", "asia-east1-c")
"""Those of the region that have T4s; asia-east1-b has none."""
IMAGES = {"24.04": "ubuntu-os-cloud/ubuntu-2404-lts-amd64"}
"""Ubuntu's releases with long support that are maintained, and whose Python is 3.11 or newer."""
TOO_OLD = {"20.04": "has had no updates since May 2025", "22.04": "has Python 3.10, and 3.11 is needed"}
DAYS_A_MONTH = 365.25 / 12

Provisioning = Literal["on-demand", "spot", "schedule"]


@dataclass(frozen=True)
class Hours:
    """The hours in which scheduled machines run: from `start` to `stop`, full hours of a day in `time_zone`."""

    __pydantic_config__ = STRICT

    start: int = 9
    stop: int = 19
    days: Literal["weekdays", "daily"] = "weekdays"
    time_zone: str = "Asia/Taipei"

    def __post_init__(self) -> None:
        check_range("start", self.start, 0, 23)
        check_range("stop", self.stop, self.start + 1, 23)

    @property
    def a_month(self) -> float:
        """Hours of a month of average length."""
        return (self.stop - self.start) * DAYS_A_MONTH * (5 / 7 if self.days == "weekdays" else 1)

    def cron(self, hour: int) -> str:
        """Return the times of an hour as cron writes them."""
        return f"0 {hour} * * {'1-5' if self.days == 'weekdays' else '*'}"


@dataclass(frozen=True)
class Site:
    """Each field can be set in a YAML file, or by `--set FIELD=VALUE`.

    Raises:
        InputError: a value cannot be.
    """

    __pydantic_config__ = STRICT

    project: str = "qubic-ai-compute-layer"
    billing_account: str = ""
    """As in 01AB23-4CD567-89EF01; the owner needs it once, for project and budget."""
    operators: tuple[str, ...] = ()
    """Who may run `gcp up` as the deploy account and log in, by their addresses."""
    nodes: int = 3
    coordinators: int = 1
    """Machines with a coordinator, from vm-1 on; with more than one, they reach the database of vm-1."""
    zones: tuple[str, ...] = ZONES[:1]
    """Machines are spread over them in turn; in one zone they are nearest to each other."""
    provisioning: Provisioning = "on-demand"
    hours: Hours = field(default_factory=Hours)
    """Used with `provisioning: schedule`."""
    ssh_from: str = ""
    """The address from which SSH is allowed, or `iap`: any, by Google's proxy, for operators. Empty: nobody."""
    public: bool = False
    """Whether ports 80 and 443 of vm-1 are open to anybody."""
    ubuntu: str = "24.04"
    source: str = ""
    """The git repository from which each machine installs itself, as URL#REVISION; empty: it is brought by hand."""
    budget_usd: int = 700

    def __post_init__(self) -> None:
        check_range("budget_usd", self.budget_usd, 1, 1_000_000)
        if not self.zones:
            raise InputError(f"zones is empty: give one of {', '.join(ZONES)}")
        for zone in self.zones:
            if zone == "asia-east1-b":
                raise InputError(f"zone asia-east1-b has no T4: give {' or '.join(ZONES)}")
            if zone not in ZONES:
                raise InputError(f"unknown zone {zone!r}: {did_you_mean(zone, ZONES)}")
        if self.ubuntu in TOO_OLD:
            raise InputError(f"Ubuntu {self.ubuntu} {TOO_OLD[self.ubuntu]}: set ubuntu to '24.04'")
        if self.ubuntu not in IMAGES:
            raise InputError(f"unknown Ubuntu {self.ubuntu!r}: {did_you_mean(self.ubuntu, IMAGES)}")
        _ = self.network  # checks its own values

    @property
    def network(self) -> Network:
        """The machines and who may reach which port."""
        return Network(self.nodes, self.ssh_from, self.public, self.coordinators)

    @property
    def outside(self) -> bool:
        """Whether vm-1 has an address outside."""
        return self.public or self.ssh_from not in ("", "iap")

    @property
    def deploy_account(self) -> str:
        """The account that makes machines; people act as it, and nobody has a key of it."""
        return f"qubic-ai-deploy@{self.project}.iam.gserviceaccount.com"

    @property
    def node_account(self) -> str:
        """The account that the machines have."""
        return f"qubic-ai-node@{self.project}.iam.gserviceaccount.com"

    def zone(self, number: int) -> str:
        """Return the zone of the machine with a number, from 0 on."""
        return self.zones[number % len(self.zones)]

    def to_dict(self) -> Mapping[str, Any]:
        """Return plain values."""
        return asdict(self)
