"""The file of a form is found with every bit, and damaged forms are refused."""

import pytest

from prompt_tune.errors import DataError
from prompt_tune.services.multipart import boundary_of, only_file

KIND = "multipart/form-data; boundary=XyZ"
HEAD = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
FILE = bytes(range(256)) + b"\r\n--Xy\r\n\r\n--\r\n"


def form(*parts: bytes, end: bytes = b"--XyZ--\r\n") -> bytes:
    return b"".join(b"--XyZ\r\n" + part + b"\r\n" for part in parts) + end


def test_file_is_found_with_every_bit() -> None:
    field = b'Content-Disposition: form-data; name="note"\r\n\r\nfilename="no"'
    assert only_file(form(field, HEAD + FILE, field), KIND) == FILE
    assert only_file(b"preamble\r\n" + form(HEAD), 'Multipart/Form-Data; charset=x; boundary="XyZ"') == b""
    assert only_file(form(b"content-disposition:form-data; filename*=UTF-8''x.png\r\n\r\nab"), KIND) == b"ab"


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"", KIND, "does not end with its boundary"),
        (form(HEAD + FILE, end=b""), KIND, "does not end with its boundary"),
        (form(HEAD + FILE)[:60], KIND, "does not end with its boundary"),
        (form(HEAD + FILE), "multipart/form-data; boundary=other", "does not end with its boundary"),
        (form(HEAD + FILE), "multipart/form-data", "needs a `boundary`"),
        (form(HEAD + FILE), f"multipart/form-data; boundary={'x' * 71}", "needs a `boundary`"),
        (form(), KIND, "does not end with its boundary"),
        (form(b'Content-Disposition: form-data; name="a"\r\n\r\nx'), KIND, "must have one file. Received: 0"),
        (form(HEAD, HEAD), KIND, "must have one file. Received: 2"),
        (form(*[HEAD] * 30), KIND, "more than 20 fields"),
        (form(b"no headers"), KIND, "has no headers"),
        (form(b"x" * 9000 + b"\r\n\r\n"), KIND, "has no headers"),
    ],
)
def test_damaged_form_is_refused(body: bytes, kind: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        only_file(body, kind)


def test_boundary_may_be_quoted() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
