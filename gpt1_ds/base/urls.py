"""Addresses that files come from: without their secrets in messages, and what else may come."""

import errno
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

# With one slash: a path of an address.
_LOGIN = re.compile(r"(\w:/{1,2})[^\s/?#]*@")
_QUERY = re.compile(r"(\w:/{1,2}[^\s?#'\"]*)[?#][^\s'\"),;]*")
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|script|meta|\?xml|!--)", re.I)
_SNIFFED_BYTES = 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_A_DISK = (errno.EIO, errno.EROFS)


def hide_secrets(text: str) -> str:
    """The text with no password and no query string, such as a signature, in its addresses."""
    return _QUERY.sub(r"\1?***", _LOGIN.sub(r"\1***@", text))


def below(url: str, name: str) -> str:
    """The address of the file `name` in the folder `url`, with the query string of `url`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def is_web_page(path: Path) -> bool:
    """Whether the file begins as HTML: the login page of a network, in place of what was asked."""
    with open(path, "rb") as file:
        return _WEB_PAGE.match(file.read(_SNIFFED_BYTES)) is not None


def is_local_fault(error: BaseException, path: Path) -> bool:
    """Whether the local disk, and not the network, failed while `path` was written.

    The network's own errors are of other classes, or name neither `path` nor a fault of a disk.
    """
    if not isinstance(error, OSError) or type(error).__module__ != "builtins":
        return False
    if error.errno in _FULL:
        return True
    of_path = error.filename is not None and str(error.filename) == str(path)
    return of_path or (error.filename is None and error.errno in _OF_A_DISK)
