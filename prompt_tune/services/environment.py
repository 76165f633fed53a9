"""What prompt-tune finds on this machine: versions, processors, CUDA, and what is missing with the command for it."""

import importlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from prompt_tune.errors import ProviderError
from prompt_tune.runtime.providers import cuda_libraries, missing_libraries, prepare, quiet_onnxruntime
from prompt_tune.version import NAME, __version__, install

RUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # either will do, and both overwrite each other's files
PURPOSES = {  # of the extras that people install; the others are for the development of prompt-tune
    "": "detect, val, verify",
    "fit": "fit, export, bake, demo",
    "cuda": "NVIDIA GPUs where torch is not installed",
    "openvino": "--device openvino",
    "hub": "push, hf://",
    "video": "videos, cameras, streams",
    "supervision": "Detections.to_supervision",
    "label": "label",
    "ray": "label on a cluster",
    "serve": "serve",
    "triton": "a client of a Triton server",
    "ray-serve": "a deployment on Ray Serve",
    "track": "detect --track",
    "fiftyone": "Detections.to_fiftyone",
    "cvat": "a bundle's function for CVAT",
    "label-studio": "a bundle's pre-annotation for Label Studio",
    "tensorboard": "fit --log tensorboard",
    "mlflow": "fit --log mlflow",
    "wandb": "fit --log wandb",
    "notebook": "the notebook of the documentation",
}
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
QUERY_SECONDS = 20
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)(?:;(.*))?", re.DOTALL)
_EXTRA = re.compile(r"extra\s*==\s*[\"']([\w-]+)[\"']")


@dataclass(frozen=True)
class Package:
    """A package that prompt-tune or one of its extras needs.

    Attributes:
        name: Its name on PyPI.
        extra: The extra that needs it, or "" for the base install.
        wanted: The versions that are allowed, such as ">=2.0,<3".
        version: The installed version, or None.
        fits: Whether that version is allowed.
    """

    name: str
    extra: str
    wanted: str
    version: str | None
    fits: bool


@dataclass(frozen=True)
class Problem:
    """Something that does not work here.

    Attributes:
        what: A sentence.
        cure: What to do about it.
        broken: Whether it breaks what is installed. Otherwise it is an option that is not there.
    """

    what: str
    cure: str
    broken: bool


@dataclass(frozen=True)
class Environment:
    """What is on this machine. Nothing in it names the user, the machine or a folder.

    Attributes:
        versions: Of prompt-tune and Python.
        system: Operating system and kind of processor.
        cores: Processor cores that this process may use.
        memory_gb: Main memory in GB, or None if the system does not say.
        gpus: Name, driver and memory of each NVIDIA GPU.
        packages: What prompt-tune needs, base install first.
        providers: ONNX Runtime's execution providers.
        onnxruntime_cuda: The CUDA version that ONNX Runtime was built with, or "" for a build without CUDA.
        missing_libraries: CUDA libraries that ONNX Runtime needs and this process cannot load.
        cuda: Whether ONNX Runtime can use CUDA here.
        torch_cuda: The CUDA version of torch and whether it sees a GPU, in words; "" without torch.
        problems: What does not work, and the cure.
    """

    versions: dict[str, str]
    system: str
    cores: int
    memory_gb: float | None
    gpus: tuple[str, ...]
    packages: tuple[Package, ...]
    providers: tuple[str, ...]
    onnxruntime_cuda: str
    missing_libraries: tuple[str, ...]
    cuda: bool
    torch_cuda: str
    problems: tuple[Problem, ...]

    @property
    def broken(self) -> bool:
        """Whether something that is installed does not work."""
        return any(problem.broken for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return asdict(self)


def look_around() -> Environment:
    """Looks at what is installed. Imports onnxruntime and torch if they are there; changes nothing."""
    packages = required_packages()
    gpus = _gpus()
    problems = list(package_problems(packages))
    providers: tuple[str, ...] = ()
    built, works = "", False
    missing: tuple[str, ...] = ()
    onnxruntime = _imported("onnxruntime", quiet_onnxruntime, problems)
    if onnxruntime is not None:
        providers = tuple(onnxruntime.get_available_providers())
        built = str(getattr(onnxruntime, "cuda_version", "") or "")
        try:
            prepare("cuda")
            works = True
        except ProviderError as error:
            missing = tuple(missing_libraries(cuda_libraries(built))) if built else ()
            if gpus:
                problems.append(Problem("ONNX Runtime cannot use the GPU of this machine.", str(error), broken=True))
    torch = _imported("torch", lambda: importlib.import_module("torch"), problems)
    return Environment(
        versions={"prompt-tune": __version__, "Python": platform.python_version()},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=_memory_gb(),
        gpus=gpus,
        packages=packages,
        providers=providers,
        onnxruntime_cuda=built,
        missing_libraries=missing,
        cuda=works,
        torch_cuda="" if torch is None else _torch_cuda(torch),
        problems=tuple(problems),
    )


def required_packages() -> tuple[Package, ...]:
    """The packages of the base install and of each extra in `PURPOSES`; none if prompt-tune itself is not installed."""
    try:
        lines = metadata.requires("prompt-tune") or []
    except metadata.PackageNotFoundError:
        return ()
    found = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line)
        if match is None:
            continue
        name, wanted, marker = match[1], match[2].strip(), match[3] or ""
        extra = _EXTRA.search(marker)
        if (extra[1] if extra else "") in PURPOSES:
            version = _installed(name)
            fits = version is not None and _fits(version, wanted)
            found.append(Package(name, extra[1] if extra else "", wanted, version, fits))
    if any(part.name in RUNTIMES and part.version for part in found):  # the other one is not missing then
        found = [part for part in found if part.version or part.name not in RUNTIMES]
    return tuple(dict.fromkeys(found))


def package_problems(packages: Iterable[Package]) -> Iterable[Problem]:
    """What is missing, too old or too new among the packages, by extra."""
    packages = tuple(packages)
    if not packages:
        yield Problem("prompt-tune runs from a folder and is not installed.", f"pip install {NAME}", broken=False)
    for extra, purpose in PURPOSES.items():
        parts = [part for part in packages if part.extra == extra]
        cure = install(extra) if extra else f"pip install {NAME}"
        missing = [part.name for part in parts if part.version is None]
        # other packages bring some of an extra's too, so one of them does not mean that the extra was wanted
        wanted = not extra or 2 * len(missing) < len(parts)
        if missing and wanted and len(missing) < len(parts):
            yield Problem(f"Missing for {purpose}: {', '.join(missing)}.", cure, broken=True)
        elif missing:
            yield Problem(f"Not installed, and needed for {purpose}: {', '.join(missing)}.", cure, broken=not extra)
        for part in parts:
            if wanted and part.version is not None and not part.fits:
                what = f"{part.name} {part.version} is not in {part.wanted}, which was tested for {purpose}."
                yield Problem(what, cure, broken=True)
    both = [name for name in RUNTIMES if _installed(name)]
    if len(both) > 1:
        cure = f"pip uninstall -y {' '.join(both)} && pip install {both[0]}"
        yield Problem(
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other.", cure, broken=True
        )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, wanted: str) -> bool:
    """Whether a version is allowed. Without `packaging`, which onnxruntime brings, any is."""
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def _gpus() -> tuple[str, ...]:
    """What NVIDIA's driver says of its GPUs; none if there is no driver."""
    if shutil.which(QUERY[0]) is None:
        return ()
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _imported(name: str, load: Callable[[], ModuleType], problems: list[Problem]) -> Any:
    """A module, or None if it is not installed or cannot be imported; the latter is a problem."""
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        reason = str(error)
    except (ImportError, OSError) as error:  # a shared library that is missing or damaged
        reason = str(error).strip().split("\n")[0]
    cure = f"pip install --force-reinstall --no-deps {name}"
    problems.append(Problem(f"{name} is installed, but cannot be imported: {reason}.", cure, broken=True))
    return None


def _torch_cuda(torch: Any) -> str:
    """The CUDA version of torch and whether it sees a GPU."""
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    seen = torch.cuda.is_available()
    return f"torch was built with CUDA {torch.version.cuda} and {'sees a GPU' if seen else 'sees no GPU'}"
