"""`--config` and `--save-config`: the options of a command in a YAML file."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from prompt_tune.cli.options import Function
from prompt_tune.errors import DataError, RunError
from prompt_tune.files import saving
from prompt_tune.version import __version__
from prompt_tune.wording import shown

APART = {"config", "save-config", "help", "quiet", "verbose"}  # options that no file has


def config_options(function: Function) -> Function:
    """Adds the two options to a command, which then calls `save_config`."""
    path = click.Path(path_type=Path, dir_okay=False)
    saved = click.option(
        "--save-config",
        type=path,
        help="Also write the options of this call to a YAML file, for --config. Defaults stand in it as comments.",
    )
    read = click.option(
        "--config",
        type=path,
        is_eager=True,  # before the other options, whose values it brings
        expose_value=False,
        callback=_read,
        help="Take options from a YAML file, such as `epochs: 20`. Options of the command line override it.",
    )
    return read(saved(function))


def save_config(context: click.Context, path: Path) -> None:
    """Writes the options that were given, in the order of the help; those that were not stand below, as comments.

    Raises:
        RunError: The file cannot be written.
    """
    import yaml

    given, defaults = {}, {}
    for option in _options(context.command):
        name, value = option.opts[0].lstrip("-"), context.params.get(str(option.name))
        if isinstance(value, tuple):
            value = [str(part) if isinstance(part, Path) else part for part in value]
        if context.get_parameter_source(str(option.name)) is ParameterSource.DEFAULT:
            defaults[name] = value
        else:
            given[name] = str(value) if isinstance(value, Path) else value
    settings: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 1000, "default_flow_style": None}
    lines = [f"# Options of prompt-tune {context.info_name}, for --config.", yaml.safe_dump(given, **settings).rstrip()]
    lines += ["", f"# Not given. The defaults of version {__version__}:"]
    lines += [f"# {line}" for line in yaml.safe_dump(defaults, **settings).splitlines()]
    with saving(path, RunError, cure="Give another --save-config.") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Take the values of a file as defaults; anything that is no option of the command is refused."""
    if path is None:
        return
    from prompt_tune.datasets.places import read_yaml

    values: dict[str, Any] = {}
    for key, value in read_yaml(path, "options, such as `epochs: 20`").items():
        option, name = _find(context, path, str(key))
        if value is None:
            continue
        if str(option.name) in values:
            raise DataError(f"`{path}`: `{key}` says what another line says too. Keep one of them.")
        values[str(option.name)] = _checked(context, path, option, name, value)
    context.default_map = {**(context.default_map or {}), **values}


def _find(context: click.Context, path: Path, key: str) -> tuple[click.Option, str]:
    """The option that a key of the file means, by any of its names, and the name in full."""
    name = "--" + key.lstrip("-").replace("_", "-")
    known = {text: option for option in _options(context.command) for text in (*option.opts, *option.secondary_opts)}
    if name in known:
        return known[name], name
    near = difflib.get_close_matches(name[2:], [text[2:] for text in known], n=1)  # dashes are alike everywhere
    hint = f"Did you mean `{near[0]}`?" if near else f"See `prompt-tune {context.info_name} --help`."
    raise DataError(f"`{path}`: `{shown(key)[1:-1]}` is not an option of `prompt-tune {context.info_name}`. {hint}")


def _checked(context: click.Context, path: Path, option: click.Option, name: str, value: Any) -> Any:
    """The value in the form that click takes; what the option cannot be is refused here, where the file is known."""
    whole = isinstance(value, list)
    if option.is_flag:
        if not isinstance(value, bool):
            raise DataError(f"`{path}`: `{name[2:]}` must be true or false. Received: {shown(value)}.")
        return value != (name in option.secondary_opts)
    if whole != (option.multiple or option.nargs > 1):
        if whole or option.nargs > 1:
            wanted = f"a list of {option.nargs}" if option.nargs > 1 else "one value"
            raise DataError(f"`{path}`: `{name[2:]}` must be {wanted}. Received: {shown(value)}.")
        value = [value]
    if any(isinstance(part, (bool, dict, list)) for part in (value if isinstance(value, list) else [value])):
        raise DataError(f"`{path}`: `{name[2:]}` must be text or a number. Received: {shown(value)}.")
    value = [str(part) for part in value] if isinstance(value, list) else str(value)
    try:
        option.type_cast_value(context, value)
    except click.BadParameter as error:
        raise DataError(f"`{path}`: `{name[2:]}`: {error.message}") from error
    return value


def _options(command: click.Command) -> Iterable[click.Option]:
    """The options of a command that a file may have."""
    for part in command.params:
        if isinstance(part, click.Option) and not APART & {text.lstrip("-") for text in part.opts}:
            yield part
