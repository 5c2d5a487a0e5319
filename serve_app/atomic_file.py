"""Files that other processes read while they are replaced."""

import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file, and creates its folder. Readers find the old content or the new one.

    Raises:
        OSError: the file can't be written. The old one is left, and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="writing-", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.close()  # what doesn't fit onto the disk may fail only here
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
