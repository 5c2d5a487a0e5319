"""The properties of a model that clients rely on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.errors import InvalidRequest, short_repr
from serve_app.tasks import ModelKind, Task
from serve_app.types import Float32


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The properties of a model that clients rely on, identical in every replica."""

    name: str
    aliases: tuple[str, ...]
    dim: int
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt: str | None
    weights_sha256: str | None  #: None: the model has no weights
    space_id: str  #: `<family>-<precision>`; see `ModelFiles.family`
    created_s: int  #: Unix time of the weights file; 0 without weights
    unit_length: bool = False  #: the pipeline normalizes vectors to length 1
    pooling: str | None = None  #: how token vectors become one vector: `mean`, `cls`, …
    is_static: bool = False  #: a table of token vectors without a transformer
    kind: ModelKind = "dense"
    tasks: tuple[Task, ...] = ("embed", "embed_tokens")  #: the main task first
    labels: tuple[str, ...] = ()  #: of a cross-encoder's scores, in the order of its logits
    activation: str = "identity"  #: of a cross-encoder: `sigmoid`, `softmax` or `identity`
    dimensions: tuple[int, ...] = ()  #: to which vectors may be truncated (Matryoshka); (): any
    provider: str | None = None  #: `openai`, …: runs the model; None: this service does
    nano_usd_per_1k_tokens: int = 0  #: price of tokens that are computed; 0: free
    #: Prompts that are empty in the model's files → the equivalent name whose prompt is used.
    prompt_sources: Mapping[str, str] = field(default_factory=dict)
    #: Minimum and maximum of each dimension, shape (2, dim), for scalar quantization to int8. None:
    #: not calibrated. Engine selection fills them in; they aren't part of the model's files.
    quantization_ranges: Float32 | None = field(default=None, compare=False, repr=False)

    @property
    def main_task(self) -> Task:
        """The task that the model was made for."""
        return self.tasks[0]

    @property
    def engine_id(self) -> str:
        """Identifies the engine of this model among those of the same space."""
        return f"{self.space_id}/{self.name}"

    @property
    def is_remote(self) -> bool:
        """Whether a provider runs the model."""
        return self.provider is not None

    def prompt(self, input_type: str | None) -> str:
        """Returns the prompt that precedes each input of this type.

        Raises:
            InvalidRequest: the model has no prompt of this name.
        """
        name = self.default_prompt if input_type is None else input_type
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            raise InvalidRequest(
                f"The model has no input type {short_repr(name)}. Known ones: {known}.",
                "input_type",
            )
        return self.prompts[name]
