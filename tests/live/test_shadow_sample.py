"""The comparisons of several replicas as one."""

import pytest

from serve_app.live.shadow_sample import Agreement, ModelUsage, ShadowSample, merge

SAMPLE = ShadowSample("words", "first", "second")


def test_counts_are_added_and_agreements_weighted_by_texts() -> None:
    one = SAMPLE._replace(
        outcomes={"compared": 10, "full": 2},
        second=ModelUsage(10, 100, 80, 2.0),
        agreement=Agreement(10, 0.5, 0.4, None, 0.9),
    )
    other = SAMPLE._replace(
        outcomes={"compared": 30},
        second=ModelUsage(30, 300, 120, 2.0),
        agreement=Agreement(30, 0.9, 0.8, 0.7, 0.8),
    )
    merged = merge([one, SAMPLE, other])
    assert merged.outcomes == {"compared": 40, "full": 2}
    assert merged.second == ModelUsage(40, 400, 200, 4.0)
    assert merged.second.tokens_per_s == 50
    found = merged.agreement
    assert found is not None
    assert found.texts == 40
    assert found.kept == pytest.approx(0.8)
    assert found.kept_first == pytest.approx(0.7)
    assert found.rank_correlation == pytest.approx(0.7)  # of those that have one
    assert found.cosine == pytest.approx(0.825)


def test_replicas_without_texts_have_no_agreement() -> None:
    assert merge([SAMPLE, SAMPLE]) == SAMPLE
    assert SAMPLE.second.tokens_per_s is None
