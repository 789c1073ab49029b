"""Compiled programs kept on disk as executables, so that the next start traces, lowers and compiles nothing.

An entry is a file: a line of JSON (what the program takes, the kernels it was built with, a digest of the rest), then
the executable as JAX serialises it. Its name is a digest of everything that decides the program: the sources of this
package and its kernels, the versions of what compiles, the device and its driver, flags, the model's and the engine's
configuration, the program's key and its arguments. Nothing is ever matched by less. Beside them stands, by engine, what
its programs take, which its memory is planned with.

JAX's serialised executable is a pickle, and reading a pickle can run any code: entries are read only from a directory
that the user owns and nobody else may write to, and only files that the user owns.
"""

import contextlib
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

import pallas_kernels
from jaxllm.runner.compiling import Built, Job, ProgramCost
from pallas_kernels import choose

log = logging.getLogger(__name__)

LIMIT = 16 << 30
"""Bytes kept; those not used for longest go first."""

_MAGIC = b"jaxllm executable 1\n"
_UNFINISHED = ".new-"
_LONGEST_WRITE = 3600.0
"""Seconds behind which a file is not being written any more."""
_ROOMS_WITHOUT_PROGRAMS = ("server", "cli", "bench", "engine", "cache", "demo_model")
_COMPILERS = ("jax", "nvidia-", "triton", "flax", "numpy", "ml-dtypes", "ml_dtypes")


class Store:
    """The entries of one engine: those whose identity is its own, in a directory that many share."""

    def __init__(self, directory: Path, identity: Mapping[str, Any]):
        """identity: everything that decides the programs, beside their own keys and arguments; JSON. Its flags are
        those of the environment as it was then: JAX sets some itself."""
        self.directory = directory
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.flags: dict[str, str] = identity.get("flags", {})
        self._loaded: list[Path] = []

    @classmethod
    def open(cls, directory: Path, identity: Mapping[str, Any]) -> "Store | None":
        """None, with a warning, where the directory is not safe to read programs from."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            reason = _unsafe(directory)
        except OSError as error:
            reason = f"{error.strerror}"
        if reason is not None:
            log.warning(
                "compiled programs are not kept as executables: %s %s; set compilation_cache_dir to a directory of "
                "your own (chmod 700)", directory, reason,
            )  # fmt: skip
            return None
        store = cls(directory, identity)
        if store._unsuited.exists():
            log.info("JAX's compilation cache keeps this engine's programs: they cannot be kept as executables here")
            return None
        choose.load_runtimes()
        return store

    def load[K](self, job: Job[K]) -> Built | None:
        """The program as it was saved, or None. An entry that cannot be read is removed."""
        path = self._path(job)
        try:
            if path.stat().st_uid != os.getuid():
                return None
            data = path.read_bytes()
        except OSError:
            return None
        try:
            built = _decode(data, job)
        except Exception as error:  # whatever is wrong with an entry, compiling mends it
            log.warning("dropped the executable of %s (%s): %s", job.name, path.name, _first_line(error))
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):  # another start has trimmed it meanwhile
            os.utime(path)
        self._loaded.append(path)
        return built

    def save[K](self, job: Job[K], built: Built) -> None:
        """Writes an entry, whole or not at all. Raises what JAX raises for a program that cannot be serialised."""
        self._write(self._path(job), _encode(built))

    def program_bytes(self) -> int | None:
        """What an earlier start found its programs to take, if there was one."""
        try:
            if self._known.stat().st_uid != os.getuid():
                return None
            known = int(self._known.read_text())
            os.utime(self._known)
        except (OSError, ValueError):  # damaged, or trimmed meanwhile: it is reckoned again
            return None
        return known if known >= 0 else None

    def keep_program_bytes(self, program_bytes: int) -> None:
        """Notes it for later starts, which would otherwise trace their largest programs to know."""
        with contextlib.suppress(OSError):  # a full disk costs them that
            self._write(self._known, str(program_bytes).encode())

    def _write(self, path: Path, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix=_UNFINISHED, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise

    def forget_loaded(self) -> None:
        """Removes the entries read since the start: a program of theirs has failed."""
        for path in self._loaded:
            path.unlink(missing_ok=True)

    def give_up(self) -> None:
        """Has `open` return None for this identity from now on: JAX cannot serialise its programs."""
        self._unsuited.touch()

    def trim(self, limit: int = LIMIT) -> None:
        """Removes what was not used for longest until no more than `limit` bytes are left, and what was never
        finished: a process that is killed leaves what it was writing."""
        for path in self.directory.glob(f"{_UNFINISHED}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LONGEST_WRITE:
                    path.unlink()
        entries = []
        for path in (path for kind in ("executable", "bytes") for path in self.directory.glob(f"*.{kind}")):
            try:
                found = path.stat()
            except FileNotFoundError:  # another start trims as well
                continue
            entries.append((found.st_mtime, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    @property
    def _known(self) -> Path:
        return self.directory / f"{self.identity}.bytes"

    @property
    def _unsuited(self) -> Path:
        return self.directory / f"{self.identity}.unsuited"

    def _path[K](self, job: Job[K]) -> Path:
        digest = hashlib.sha256((self.identity + job.signature()).encode()).hexdigest()
        return self.directory / f"{digest}.executable"


def identity(device: jax.Device, **decided: Any) -> dict[str, Any]:
    """What decides programs beside their keys. decided: configurations, as JSON or anything with a whole repr."""
    settings = {name: repr(value) for name, value in jax.config.values.items() if "cache" not in name}
    return {
        "sources": _sources(),
        "versions": _versions(),
        "platform": device.client.platform_version,
        "device": [device.device_kind, str(getattr(device, "compute_capability", "")), jax.device_count()],
        "machine": _machine(device.platform),
        "settings": settings,
        "flags": flags(),
        **{name: json.dumps(value, sort_keys=True, default=repr) for name, value in decided.items()},
    }


def flags() -> dict[str, str]:
    """Of the environment, what decides programs."""
    prefixes = ("XLA_FLAGS", "JAX_", "JAXLLM_KERNELS", "TRITON_", "MOSAIC_", "NVIDIA_", "CUDA_", "TF_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes) and "CACHE" not in name}


def _encode(built: Built) -> bytes:
    body, _, _ = serialize_executable.serialize(built.run)
    head = {
        "digest": hashlib.sha256(body).hexdigest(),
        "name": built.cost.name,
        "temp_bytes": built.cost.temp_bytes,
        "flops": built.cost.flops,
        "choices": [[choice.operation, choice.backend, choice.declined] for choice in choose.choices()],
    }
    return _MAGIC + json.dumps(head).encode() + b"\n" + body


def _decode[K](data: bytes, job: Job[K]) -> Built:
    if not data.startswith(_MAGIC):
        raise ValueError("it is no executable of this version")
    line, _, body = data[len(_MAGIC) :].partition(b"\n")
    head = json.loads(line)
    if hashlib.sha256(body).hexdigest() != head["digest"]:
        raise ValueError("it is damaged")
    run = serialize_executable.deserialize_and_load(
        body, jax.tree.structure((job.arguments, {})), job.out, execution_devices=jax.devices()[:1]
    )
    for operation, backend, declined in head["choices"]:
        choose.record(choose.Choice(operation, backend, tuple((name, reason) for name, reason in declined)))
    return Built(run, ProgramCost(head["name"], head["temp_bytes"], head["flops"]))


def _unsafe(directory: Path) -> str | None:
    """Why entries of a directory must not be read."""
    found = directory.stat()
    if found.st_uid != os.getuid():
        return "belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "may be written to by others"
    return None


@cache
def _sources() -> str:
    """A digest of all code that a program could be made of, and of the kernels' tuning tables."""
    ours, kernels = Path(__file__).parents[1], Path(str(pallas_kernels.__file__)).parent
    files = [path for path in ours.rglob("*.py") if path.relative_to(ours).parts[0] not in _ROOMS_WITHOUT_PROGRAMS]
    return _digest([*files, *kernels.rglob("*.py"), *kernels.rglob("*.json")])


def _digest(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        whole.update(f"{path.parent.name}/{path.name} {len(content)}\n".encode())
        whole.update(content)
    return whole.hexdigest()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for distribution in metadata.distributions():
        name = distribution.name or ""
        if name.startswith(_COMPILERS):
            found[name] = distribution.version
    return found


@cache
def _machine(platform: str) -> str:
    """What a program depends on beside the device: a GPU's driver, or the instructions that a CPU knows."""
    source = Path("/proc/driver/nvidia/version" if platform == "gpu" else "/proc/cpuinfo")
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if platform == "gpu" or line.startswith(("flags", "model name"))}))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
