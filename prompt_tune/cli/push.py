"""`prompt-tune push`: a run or a bundle, with a model card, to the Hugging Face Hub."""

import tempfile
from pathlib import Path

import click

from prompt_tune.cli.options import Command
from prompt_tune.cli.terminal import echo, note
from prompt_tune.errors import PromptTuneError
from prompt_tune.files import saving


@click.command(cls=Command)
@click.argument("place", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@click.argument("repo", metavar="USER/NAME")
@click.option(
    "--licence",
    "--license",
    "licence",
    required=True,
    metavar="ID",
    help="The licence, as the Hub calls it: agpl-3.0, apache-2.0, other, ... There is no default.",
)
@click.option("--about", "purpose", default="", metavar="TEXT", help="What it was made for: sentences for the card.")
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Who sees the repository. --private refuses to push to one that is public.",
)
@click.option("--revision", default=None, metavar="BRANCH", help="The branch, which is made if it is missing.")
@click.option(
    "--photos",
    is_flag=True,
    help="Also upload photographs: those in the run's report and the bundle's sample. Without it, none is uploaded.",
)
@click.option("--dry-run", is_flag=True, help="List the files and their sizes. Nothing is sent.")
@click.option(
    "--card-only",
    default=None,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the model card to this file, to read it before. Nothing is sent.",
)
def command(
    place: Path,
    repo: str,
    licence: str,
    purpose: str,
    private: bool,
    revision: str | None,
    photos: bool,
    dry_run: bool,
    card_only: Path | None,
) -> None:
    """Upload RUN, a folder of `fit`, or BUNDLE, a folder of `export`, to the repository USER/NAME.

    A run is exported first, so that `Detector("hf://USER/NAME")` works for both. The card, README.md, has the numbers
    of the run. The token is huggingface_hub's own: HF_TOKEN, or that of `hf auth login`. A push that was interrupted
    sends what is missing when it is called again.
    """
    from prompt_tune.hub import checked_repo, library
    from prompt_tune.services.model_card import About, shown_size
    from prompt_tune.services.push import collect, is_run, upload

    library()  # before anything is done, since it may be missing
    about = About(checked_repo(repo), licence.strip(), purpose, revision)
    if not about.licence:
        raise click.UsageError("--licence is empty. Give the licence, such as agpl-3.0.")
    with tempfile.TemporaryDirectory(prefix="prompt-tune-") as folder:
        run = place if is_run(place) else None
        bundle = place
        if run is not None:
            from prompt_tune.deployment.bundle import export_bundle

            bundle = Path(folder) / "bundle"
            export_bundle(run, bundle, photo=photos)
        what = collect(bundle, about, run=run, photos=photos)
        if card_only is not None:
            with saving(card_only, PromptTuneError) as path:
                path.write_text(what.card, encoding="utf-8")
            note(f"Card: {card_only}")
        sizes = what.sizes
        sent = not dry_run and card_only is None
        address = upload(what, about, private=private) if sent else ""
    if not sent:
        echo(*(f"{shown_size(size):>9}  {path_in_repo}" for path_in_repo, size in sizes.items()))
    for left in what.left_out:
        note(f"Not uploaded: {left}")
    if not sent:
        note(f"{len(sizes)} files, {shown_size(sum(sizes.values()))}, for {about.repo}. Nothing was sent.")
        return
    echo(f"Pushed: {address}")
    note(f'Next: prompt-tune detect {about.place} --source IMAGES --out RESULTS, or Detector("{about.place}")')
