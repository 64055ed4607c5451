"""Settings from the environment (QUBIC_LAB_*) and an optional .env file: the one place that reads them."""

import os
from functools import cache
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from qubic_lab.errors import InputError, did_you_mean

PREFIX = "QUBIC_LAB_"
OWN = ("QUBIC_LAB_RUN_DIR", "QUBIC_LAB_RELAY")
"""Variables that our processes set for those that they start."""


class Settings(BaseSettings):
    """Each field can be set as QUBIC_LAB_<FIELD>, in the environment or in .env."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore")

    cache: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("qubic-lab", appauthor=False)))
    """Converted models and logs."""
    runs: Path = Path("runs")
    """Executed notebooks, results and manifests."""
    reports: Path = Path("reports")
    """Pages made by `qubic-lab report`."""
    peers: Path = Path(".peers")
    """Environments of other engines and of harnesses, made by `make peers` and `make harnesses`."""
    models: Path | None = None
    """Folder of models and splits that a coordinator gives to nodes, by `qubic-lab model fetch NAME`."""
    data: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("qubic-lab", appauthor=False)))
    """Collected data that must not be lost, such as the SQLite database."""
    database_url: str | None = None
    """SQL database: sqlite:///FILE or postgresql://…; by default a SQLite file in the data folder."""
    ledger_url: str | None = None
    """SQL database of the ledger of trials, forecasts and warnings; by default `ledger.db` in the cache folder."""
    group_timeout_s: float = 300.0
    """Time after which a waiting rank gives up; longer than the slowest rank takes to load its layers."""
    redis_url: str | None = None
    """Redis of the task queue: redis://, rediss:// or unix://; by default an embedded server is started."""
    api_tokens: Path | None = None
    """File with tokens of HTTP clients (`qubic-lab token add`). Required beyond loopback, unless `serve` has a key."""
    api_token: str | None = None
    """Token that our own commands send to a coordinator."""
    api_key: SecretStr | None = None
    """Key that clients of `qubic-lab serve` must send. Required beyond loopback."""
    browser_origins: str = ""
    """Origins of pages that may call the HTTP interface from a browser: https://chat.example,http://localhost:3000."""
    node_token: SecretStr | None = None
    """Secret that coordinators and nodes share, of 32 characters or more; `qubic-lab token new` prints one."""
    cluster_network: str = ""
    """Networks of the cluster's machines, such as 10.0.0.0/24: nodes tell their health there without a token."""
    coordinator: str = "http://127.0.0.1:5000"
    """Address of the coordinator that our own commands use; several with commas: if one is lost, the next is asked."""
    coingecko_key: SecretStr | None = None
    """CoinGecko's key; without one, prices still come, at lower limits."""
    newsapi_key: SecretStr | None = None
    """NewsAPI's key; without one, that source is not used."""
    alert_webhook: SecretStr | None = None
    """Address to which risk alerts are posted as JSON: https://…, or http:// on this host; they are always logged."""
    alert_secret: SecretStr | None = None
    """Key that signs alerts, so that their receiver can recognise them."""
    announce_webhook: SecretStr | None = None
    """Address to which `qubic-lab report` posts the verdicts of a week and its page's address, as for alerts."""
    announce_secret: SecretStr | None = None
    """Key that signs what is announced."""
    oracle_config: Path | None = None
    """YAML file with settings of the market oracle, for collector and coordinator."""
    sentiment_head: Path | None = None
    """Head of the default sentiment model, as `qubic-lab oracle train-sentiment` writes it; else the packaged one."""
    log_format: Literal["text", "json"] = "text"
    """Form of the log: lines for people, or a JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    """From which level on all processes log, ranks included; by default errors, with --verbose info."""
    tls_certificate: Path | None = None
    """This host's certificate (PEM); with key and authority it turns on mutual TLS, except for unix sockets."""
    tls_key: Path | None = None
    """The certificate's private key (PEM)."""
    tls_authority: Path | None = None
    """Certificate of the authority that signed the certificates of all hosts (PEM)."""

    @property
    def coordinators(self) -> tuple[str, ...]:
        """The addresses in `coordinator`."""
        return tuple(each.strip().rstrip("/") for each in self.coordinator.split(","))


@cache
def settings() -> Settings:
    """Return the settings of this process, read once.

    Raises:
        InputError: a variable is misspelt, or has a value that is none.
    """
    check_variables()
    try:
        return Settings()
    except ValidationError as error:
        found = error.errors()[0]
        name = f"{PREFIX}{str(found['loc'][0]).upper()}"
        raise InputError(f"{name} is {found['input']!r}: {found['msg']}") from None


def check_variables() -> None:
    """Check that the environment and .env have no variable with our prefix that is no setting.

    Raises:
        InputError: there is one; the message has the closest name.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for given in (*os.environ, *DotEnvSettingsSource(Settings).env_vars):
        name = given.upper()
        if name.startswith(PREFIX) and name not in {*known, *OWN}:
            raise InputError(f"unknown variable {name} in the environment or .env: {did_you_mean(name, known)}")


def cache_folder(name: str = "") -> Path:
    """Return the cache folder, or a folder in it; create it if it is missing.

    Raises:
        InputError: it cannot be created.
    """
    folder = settings().cache / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): set QUBIC_LAB_CACHE to another") from error
    return folder
