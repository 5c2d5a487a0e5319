"""A model of the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from serve_app.errors import ModelSourceError
from serve_app.sources.base import Source

#: Weights in the formats of other libraries. Many repositories hold the same weights in each.
_UNUSED_FILES = ["onnx/*", "openvino/*", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot"]
_BIN = "pytorch_model*.bin"  #: read where there are no safetensors


@dataclass(frozen=True, slots=True)
class HubSource(Source):
    """A repository at a pinned commit."""

    description: ClassVar[str] = "`hub:<owner>/<name>` with a pinned `revision`"

    def resolve(self) -> Path:
        """Downloads the files that are read, unless they are in the hub's cache directory.

        Raises:
            ModelSourceError: no commit is pinned, or the files can't be downloaded.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        repo, revision = self.location, self.revision
        if revision is None:
            raise ModelSourceError(
                f"`model.source: hub:{repo}` needs `model.revision`, a full commit hash: a branch "
                "can move, which would change every vector."
            )
        try:
            path = Path(
                snapshot_download(repo, revision=revision, ignore_patterns=[*_UNUSED_FILES, _BIN])
            )
            if not any(path.rglob("*.safetensors")):
                path = Path(
                    snapshot_download(repo, revision=revision, ignore_patterns=_UNUSED_FILES)
                )
            return path
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ModelSourceError(
                f"Could not download {repo} at {revision[:12]} from the hub "
                f"({type(error).__name__}). Check the name and the network, or copy the files here "
                "and use `path:<directory>`."
            ) from error
