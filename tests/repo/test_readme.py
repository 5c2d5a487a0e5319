"""README is short, and agrees with the repository."""

import re
import subprocess

import pytest

from tests.repo.source import CONFIG_FILES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = [str(file.relative_to(ROOT)) for file in CONFIG_FILES]


def test_it_has_at_most_180_lines() -> None:
    assert README.count("\n") <= 180


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "docs/benchmarks.md"])
def test_the_make_targets_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = {line.split()[0] for line in shown.stdout.splitlines()}
    mentioned = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert mentioned - targets == set()


def test_it_names_every_configuration_file() -> None:
    assert [config for config in CONFIGS if config not in README] == []


def test_every_code_block_of_shell_commands_is_short() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    assert [block for block in blocks if block.count("\n") > 8] == []
