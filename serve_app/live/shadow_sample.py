"""What a replica knows of an alias with a shadow: how two models compare on the same texts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class ModelUsage(NamedTuple):
    """What one of both models took for the texts that were compared."""

    texts: int = 0
    tokens: int = 0  #: of these texts, as the model counts them
    #: Tokens that the engine computed, and the duration of the batches that they were in. Of the
    #: first model these are the tokens of whole requests of which a text was compared.
    computed_tokens: int = 0
    computed_s: float = 0.0

    def plus(self, other: "ModelUsage") -> "ModelUsage":
        """Returns the sum."""
        return ModelUsage(
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.computed_tokens + other.computed_tokens,
            self.computed_s + other.computed_s,
        )

    @property
    def tokens_per_s(self) -> float | None:
        """Computed tokens per second of batches; None: nothing was computed."""
        return self.computed_tokens / self.computed_s if self.computed_s else None


class Agreement(NamedTuple):
    """How two models agree on a sample of texts."""

    texts: int  #: of the sample
    kept: float  #: mean share of a text's 10 nearest neighbours in the sample that both share
    kept_first: float  #: share of the texts whose nearest neighbour is the same
    rank_correlation: float | None  #: Spearman's, of the similarities of pairs; None: all equal
    cosine: float | None = None  #: mean, of the two vectors of a text; None: not asked for


class ShadowSample(NamedTuple):
    """The comparison of two models in one replica, or in several."""

    alias: str
    model: str  #: that answers
    shadow: str  #: the second model
    outcomes: Mapping[str, int] = {}  #: number of texts that were compared, or why they weren't
    primary: ModelUsage = ModelUsage()
    second: ModelUsage = ModelUsage()
    agreement: Agreement | None = None  #: None: too few texts


def merge(samples: Sequence[ShadowSample]) -> ShadowSample:
    """Returns the samples of one alias in several replicas as one; there is at least one.

    Each replica compares its own texts: their agreement is the mean, weighted by texts.
    """
    outcomes = Counter[str]()
    primary, second = ModelUsage(), ModelUsage()
    for sample in samples:
        outcomes.update(sample.outcomes)
        primary, second = primary.plus(sample.primary), second.plus(sample.second)
    known = [sample.agreement for sample in samples if sample.agreement is not None]
    return samples[0]._replace(
        outcomes=dict(outcomes),
        primary=primary,
        second=second,
        agreement=_mean_agreement(known) if known else None,
    )


def _mean_agreement(known: Sequence[Agreement]) -> Agreement:
    texts = sum(agreement.texts for agreement in known)

    def mean(value: Callable[[Agreement], float | None]) -> float | None:
        pairs = [(value(agreement), agreement.texts) for agreement in known]
        weights = sum(count for number, count in pairs if number is not None)
        total = sum(number * count for number, count in pairs if number is not None)
        return total / weights if weights else None

    return Agreement(
        texts,
        mean(lambda a: a.kept) or 0.0,
        mean(lambda a: a.kept_first) or 0.0,
        mean(lambda a: a.rank_correlation),
        mean(lambda a: a.cosine),
    )
