"""Settings from the environment (QUBIC_LAB_*) and an optional .env file: the one place that reads them."""

from functools import cache
from pathlib import Path

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Each field can be set as QUBIC_LAB_<FIELD>, in the environment or in .env."""

    model_config = SettingsConfigDict(env_prefix="QUBIC_LAB_", env_file=".env", extra="ignore")

    cache: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("qubic-lab", appauthor=False)))
    """Converted models live here."""
    runs: Path = Path("runs")
    """Executed notebooks, results and manifests."""
    reports: Path = Path("reports")
    """Pages made by `qubic-lab report`."""


@cache
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()
