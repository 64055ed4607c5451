from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from models import tiny_model

from qubic_lab.errors import ModelError
from qubic_lab.model.resolve import DEEPSEEK, resolve_model


class Missing(RepositoryNotFoundError):
    def __init__(self) -> None:
        Exception.__init__(self, "404")


class Gated(GatedRepoError):
    def __init__(self) -> None:
        Exception.__init__(self, "403")


def test_a_hub_id_is_fetched_without_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options))
        return str(tiny_model(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("someone/model") == tmp_path
    assert resolve_model("deepseek") == tmp_path
    assert [hub_id for hub_id, _ in asked] == ["someone/model", DEEPSEEK]
    assert "*.safetensors" in asked[0][1]["allow_patterns"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Missing(), "neither a local folder nor public on the hub"),
        (Gated(), "gated"),
        (OSError("no route\nto the host"), r"cannot be reached \(no route\): give its folder"),
        (TimeoutError(), r"cannot be reached \(TimeoutError\(\)\)"),
    ],
)
def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def download(hub_id: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=said) as caught:
        resolve_model("someone/model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "unknown model ''"),
        ("deepsek", "did you mean 'deepseek'"),
        ("something", "known: deepseek, smollm2"),
        ("./nothing", "does not exist"),
        ("a/b/c", "does not exist"),
        ("~/nothing/here", "does not exist"),
        ("owner/model.gguf", "does not exist"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        resolve_model(name)


def test_a_folder_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no weights"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"no \.gguf file"):
        resolve_model(str(tmp_path / "config.json"))
    assert resolve_model(str(tiny_model(tmp_path))) == tmp_path
