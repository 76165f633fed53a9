"""The classes that a checkpoint brings: its names, its text features, and background rows among them."""

from prompt_tune.errors import ModelError
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.wording import counted

MIN_COSINE = 0.999  # of one text's embeddings in a checkpoint and from its own tower; float16 keeps 0.99999
PADDING = " "  # ultralytics' `set_classes` drops this name, and keeps its text feature


def row_texts(world: World, tower: TextTower) -> tuple[str, ...] | None:
    """The text of each row of the text features in a checkpoint.

    ultralytics' `set_classes([..., " "])` leaves one text feature more than names. The row with the tower's embedding
    of a blank text is then the background.

    Args:
        world: A detector with names and text features of its own.
        tower: Its text tower.

    Returns:
        One text per row; a background row has a blank one. None if names and rows differ in number in any other way.
    """
    assert world.names is not None and world.class_embeddings is not None
    names, rows = world.names, world.class_embeddings.cpu().numpy()  # (n, 512)
    if len(names) == len(rows):
        return names
    if len(rows) != len(names) + 1:
        return None
    blank = [row for row, cosine in enumerate(rows @ tower.embed([PADDING], blank=True)[0]) if cosine > MIN_COSINE]
    if len(blank) != 1:
        return None
    return (*names[: blank[0]], PADDING, *names[blank[0] :])


def differing(world: World, tower: TextTower) -> ModelError:
    """The error for a checkpoint whose names and text features cannot be matched."""
    assert world.names is not None and world.class_embeddings is not None
    return ModelError(
        f"'{world.source_name}' has {counted(len(world.names), 'class name')} and "
        f"{counted(len(world.class_embeddings), 'text feature')}; they must be equal in number, or one feature must be "
        f"that of a background row (\" \") by the text tower '{tower.spec}'. Set its classes again in ultralytics, or "
        "name what guides it with --original."
    )
