import inspect
import pickle

import pytest

from serve_app import errors

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.EmbedServeError)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_survives_pickling(cls: type[errors.EmbedServeError]) -> None:
    error = cls("The fault, and its fix.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == "The fault, and its fix."
    assert copy.__dict__ == error.__dict__


def test_param_and_retry_after_survive_pickling() -> None:
    assert pickle.loads(pickle.dumps(errors.InvalidRequest("no", "texts"))).param == "texts"
    assert pickle.loads(pickle.dumps(errors.Overloaded("full", 7))).retry_after_s == 7
    assert pickle.loads(pickle.dumps(errors.Unavailable("down", 7))).retry_after_s == 7


def test_the_module_docstring_lists_every_class() -> None:
    tree = errors.__doc__ or ""
    missing = [cls.__name__ for cls in CLASSES if cls.__name__ not in tree]
    assert missing == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_module_docstring_gives_each_status(cls: type[errors.EmbedServeError]) -> None:
    line = next(
        line for line in (errors.__doc__ or "").splitlines() if f" {cls.__name__} " in f"{line} "
    )
    if any(char.isdigit() for char in line):
        assert str(int(cls.status)) in line
