"""`prompt-tune serve`: a bundle behind HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_tune.cli.options import Command, Number, detector_options
from prompt_tune.cli.terminal import echo
from prompt_tune.cli.verbosity import is_quiet
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.runtime.detector import Detector


def _sizes(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, with commas between them."""
    parts = value.split(",")
    if not all(part.strip().isascii() and part.strip().isdecimal() and 0 < int(part) <= 1024 for part in parts):
        raise click.BadParameter(f"must be whole numbers from 1 to 1024, such as 1,4,16. Received: {value}.")
    return tuple(int(part) for part in parts)


@click.command(name="serve", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Others need an API key.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0: a free one."
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with the key that requests need; default: the environment variable PROMPT_TUNE_API_KEY.",
)
@detector_options
@click.option("--allow-upload", is_flag=True, help="Let requests load, replace and unload vocabularies.")
@click.option(
    "--threads", "--workers", default=0, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores."
)
@click.option(
    "--batch-sizes",
    default="1,2,4,8",
    show_default=True,
    callback=_sizes,
    help="Sizes of the batches in which waiting requests go through the network.",
)
@click.option(
    "--max-requests",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Requests in work above which more are refused.",
)
@click.option(
    "--max-mb", default=32, show_default=True, type=click.IntRange(1, 2000), help="Megabytes that a request may have."
)
@click.option(
    "--max-megapixels", default=100, show_default=True, type=click.IntRange(1), help="Megapixels of an image at most."
)
@click.option(
    "--max-slices",
    default=64,
    show_default=True,
    type=click.IntRange(0),
    help="Slices that a request may have its image cut into; 0: none.",
)
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=Number(0.1),
    help="Seconds for a request to come in, and then for its answer.",
)
@click.option(
    "--drain",
    default=1.0,
    show_default=True,
    type=Number(0),
    help="Seconds for which a server that is asked to stop still takes requests.",
)
def command(
    bundle: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    loading: dict[str, Any],
    allow_upload: bool,
    threads: int,
    batch_sizes: tuple[int, ...],
    max_requests: int,
    max_mb: int,
    max_megapixels: int,
    max_slices: int,
    timeout: float,
    drain: float,
) -> None:
    """Answer requests over HTTP with BUNDLE, a folder from `prompt-tune export`.

    POST /detect takes an image file and gives JSON. The KServe protocol, version 2, is spoken too, so that clients of
    Triton work. /docs describes all of it. Ctrl-C or SIGTERM ends the server when every request that it accepted is
    answered.
    """
    from prompt_tune.services.serve import check_installed, serve
    from prompt_tune.services.serve_config import MEGABYTE, ServeConfig, read_api_key

    check_installed()
    config = ServeConfig(
        host=host,
        port=port,
        batch_sizes=batch_sizes,
        max_requests=max_requests,
        max_bytes=max_mb * MEGABYTE,
        max_megapixels=max_megapixels,
        max_slices=max_slices,
        timeout=timeout,
        drain=drain,
        readers=threads,
        allow_upload=allow_upload,
    )
    api_key = read_api_key(api_key_file, host=host)

    def make() -> "Detector":
        from prompt_tune.runtime.detector import Detector

        return Detector(bundle, threads=threads, **loading)

    def say(text: str) -> None:
        if not is_quiet():
            echo(text)

    traffic = serve(
        make, config, api_key=api_key, started=lambda place: say(f"Serving {bundle} on {place} (Ctrl-C stops it).")
    )
    say(f"Stopped: {counted(traffic.accepted, 'request')} accepted, {traffic.answered} answered.")
