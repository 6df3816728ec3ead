"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Short, so that a name as long as the file system allows leaves room for it.
PREFIX = ".tiledattn-"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the `with` ends well.

    After an exception, Ctrl-C included, the temporary file is gone and `path` is as it was. Folders are made. A
    symbolic link stays one: the file that it points to is replaced.

    Raises:
        OSError: a folder, device or pipe is in the file's place, or the file can't be written.
    """
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=PREFIX, suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Finds out whether `whole_file(path)` will work, by a trial that leaves nothing behind.

    Raises:
        OSError: as `whole_file`.
    """
    target = _target(path)
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=PREFIX, suffix=target.suffix):
            pass
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _target(path: str | os.PathLike[str]) -> Path:
    """Where `path` leads, which is a regular file or nothing yet."""
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder is in its place", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "what is in its place is no regular file", os.fspath(path))
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
