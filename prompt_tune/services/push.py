"""Upload to the Hugging Face Hub: which files of a bundle and a run go there, and their commit.

No photograph goes there unless it is asked for, and no file that is not listed here: no paths of this machine, no state
of the run, no images, no labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path

from prompt_tune.errors import GraphError, PromptTuneError
from prompt_tune.hub import library, told
from prompt_tune.report.pictures import embedded_photos
from prompt_tune.run import CONFIG_FILE, RunFolder
from prompt_tune.services.model_card import CARD_FILE, About, model_card
from prompt_tune.vocabulary.format import BUNDLE_PARTS, GRAPH_FILE, INPUTS_FILE, KITS, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted

SAMPLE = "web/sample.jpg"  # a photograph
PHOTOS = 12  # of the report that are uploaded, if they are asked for
MESSAGE = "Upload with prompt-tune"
PLOTS = {  # of a run: diagrams, without photographs
    "curves.png": "Loss and average precision by epoch",
    "reliability.png": "How often a detection of a score is right",
}


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub.

    Attributes:
        files: Content by path in the repository, as bytes or as a file; the card is among them.
        left_out: What stays here and one might look for there, each with the reason if it has one.
    """

    files: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]

    @property
    def card(self) -> str:
        """The model card."""
        content = self.files[CARD_FILE]
        assert isinstance(content, bytes)
        return content.decode()

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes in bytes by path in the repository."""
        return {path: _size(content) for path, content in self.files.items()}


def is_run(place: Path) -> bool:
    """Whether a folder is a run of `fit`, and not a bundle.

    Raises:
        GraphError: It is neither.
    """
    if (place / GRAPH_FILE).is_file():
        return False
    if (place / CONFIG_FILE).is_file():
        return True
    raise GraphError(
        f"`{place}` is neither a run of `fit` (no {CONFIG_FILE}) nor a bundle (no {GRAPH_FILE}). Give one of them."
    )


def collect(bundle: Path, about: About, *, run: Path | None = None, photos: bool = False) -> Upload:
    """What goes to the Hub for a bundle. Nothing is sent.

    Args:
        bundle: The folder, complete.
        about: What the card says that no file knows.
        run: The run that the bundle was exported from, whose diagrams go there too.
        photos: Whether photographs go there: those of the run's report, and the bundle's own.

    Raises:
        GraphError: A part of the bundle is missing.
        VocabularyError: A vocabulary is damaged.
        PromptTuneError: huggingface_hub is not installed.
    """
    if missing := [name for name in BUNDLE_PARTS if not (bundle / name).is_file()]:
        raise GraphError(f"`{bundle}` is not a complete bundle: it has no {missing[0]}. Export the run again.")
    original, learned = (Vocabulary.load(bundle / name) for name in (ORIGINAL_FILE, LEARNED_FILE))
    files: dict[str, Path | bytes] = {name: bundle / name for name in BUNDLE_PARTS}
    files |= {INPUTS_FILE: bundle / INPUTS_FILE} if (bundle / INPUTS_FILE).is_file() else {}
    for kit in KITS:
        known = {entry.name for entry in resources("prompt_tune.export").joinpath(kit).iterdir() if entry.is_file()}
        files |= {f"{kit}/{name}": path for name in sorted(known) if (path := bundle / kit / name).is_file()}
    pictures: dict[str, str] = {}
    left_out = sorted(path.name for path in bundle.glob("*.whl"))
    if run is not None:
        pictures |= {name: text for name, text in PLOTS.items() if (run / name).is_file()}
        files |= {name: run / name for name in pictures}
    report = embedded_photos(RunFolder(run).report)[:PHOTOS] if run is not None else []
    if photos:
        for number, (text, content) in enumerate(report, 1):
            pictures[path_in_repo := f"photos/{number:02}.jpg"] = text
            files[path_in_repo] = content
        if (bundle / SAMPLE).is_file():
            files[SAMPLE] = bundle / SAMPLE
    else:
        cure = "(--photos uploads photographs)"
        left_out += [f"{counted(len(report), 'photograph')} of the report {cure}"] * bool(report)
        left_out += [f"{SAMPLE} {cure}"] * (bundle / SAMPLE).is_file()
    sizes = {path: _size(content) for path, content in files.items()}
    files[CARD_FILE] = model_card(about, original, learned, sizes, pictures).encode()
    return Upload(files, tuple(left_out))


def upload(what: Upload, about: About, *, private: bool = True, message: str = MESSAGE) -> str:
    """Send files to the Hub in one commit. A repository that is missing is made; other files in it stay.

    Args:
        what: The files.
        about: Where they go.
        private: Whether only the owner may see a repository that is made. A public one is refused then.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        PromptTuneError: The Hub refuses, or cannot be reached, or the repository is public and `private` is on.
    """
    hub = library()
    api = hub.HfApi(library_name="prompt-tune")
    with told(f"Cannot push to {about.repo}"):
        api.create_repo(about.repo, private=private, exist_ok=True)
        if private and not api.model_info(about.repo).private:
            raise PromptTuneError(
                f"{about.repo} is public, so everybody could see the files. Say --public if they may, or give another "
                "name."
            )
        if about.revision is not None:
            api.create_branch(about.repo, branch=about.revision, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in what.files.items()
        ]
        commit = api.create_commit(about.repo, operations, commit_message=message, revision=about.revision)
    return str(commit.commit_url)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
