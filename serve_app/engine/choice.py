"""Which engine runs the model."""

from serve_app.config import AppConfig
from serve_app.engine.base import Engine
from serve_app.models import ModelSpec


def load_engine(config: AppConfig, spec: ModelSpec, *, device: str, threads: int) -> Engine:
    """The engine that the configuration asks for, its model loaded.

    An engine's libraries are imported only when it is chosen: a replica with a prepared model
    never pays for torch.

    Args:
        config: what is asked for.
        spec: what the application promised of the model.
        device: `cpu` or `cuda`.
        threads: CPU threads for one run of the model.

    Raises:
        ConfigurationError: it can't be loaded, or its vectors are not the model's.
    """
    if config.engine == "openvino":
        from serve_app.engine.openvino_engine import OpenVinoEngine
        from serve_app.engine.prepared import prepared

        folder = prepared(config.model, spec, config.precision).folder
        return OpenVinoEngine(folder, spec, precision=config.precision, threads=threads)
    from serve_app.engine.torch_engine import TorchEngine

    return TorchEngine(config.model, spec, device=device, threads=threads)
