"""XML files of data sets, read without what could harm."""

from pathlib import Path
from xml.etree import ElementTree

from prompt_tune.datasets.places import read_bytes

MAX_XML_BYTES = 2**30  # of one file for all images


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE: its entities could grow without end, or name other files. Labels need none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which labels do not need and which could name other files")


def parsed_xml(file: Path, most: int) -> ElementTree.Element:
    """The root of an XML file, in the encoding that it declares.

    Args:
        file: The file.
        most: The most bytes that it may have.

    Raises:
        DataError: The file cannot be read.
        ValueError: It is not XML, has a DOCTYPE, or is in an encoding that cannot be read.
    """
    try:
        return ElementTree.fromstring(read_bytes(file, most), ElementTree.XMLParser(target=_WithoutDoctype()))
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(str(error)) from error
