"""The file in a form that was posted as `multipart/form-data` (RFC 7578), as browsers and `curl -F` send it."""

from email.message import Message

from prompt_tune.errors import DataError

MAX_PARTS = 20
MAX_HEAD = 8192  # bytes of the headers of a part
_CURE = "Send one file, as curl -F image=@photo.jpg does."


def boundary_of(content_type: str) -> bytes:
    """The boundary that a content type states.

    Raises:
        DataError: It states none, or one that no boundary can be.
    """
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary("")
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise DataError(f"`multipart/form-data` needs a `boundary` of 1 to 70 characters. {_CURE}")
    return boundary.encode()


def only_file(body: bytes, content_type: str) -> bytes:
    """The content of the only file in a form; other fields are ignored.

    Args:
        body: Of the request.
        content_type: Of the request, with the boundary.

    Raises:
        DataError: The form is cut or damaged, or it has no file, or several.
    """
    mark = b"\r\n--" + boundary_of(content_type)
    parts = (b"\r\n" + body).split(mark, MAX_PARTS + 2)
    if len(parts) > MAX_PARTS + 2:
        raise DataError(f"The form has more than {MAX_PARTS} fields. {_CURE}")
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise DataError(f"The form does not end with its boundary. {_CURE}")
    files = []
    for part in parts[1:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank or len(head) > MAX_HEAD:
            raise DataError(f"A field of the form has no headers, or headers of over {MAX_HEAD} bytes. {_CURE}")
        if _is_file(head):
            files.append(content)
    if len(files) != 1:
        raise DataError(f"The form must have one file. Received: {len(files)}. {_CURE}")
    return files[0]


def _is_file(head: bytes) -> bool:
    """Whether the headers of a part give it a file name."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            message = Message()
            message["Content-Disposition"] = value.decode("latin-1").strip()
            return message.get_filename() is not None
    return False
