"""Words of messages that several rooms write."""


def counted(count: int, what: str) -> str:
    """A number and its noun, in the singular or plural: "1 learned class", "2 learned classes".

    Args:
        count: How many.
        what: The singular of a regular noun, with any words before it.
    """
    if count == 1:
        return f"1 {what}"
    if what.endswith(("s", "x", "ch", "sh")):
        return f"{count} {what}es"
    if what.endswith("y") and what[-2:-1] not in tuple("aeiou"):
        return f"{count} {what[:-1]}ies"
    return f"{count} {what}s"
