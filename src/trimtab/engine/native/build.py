"""Compiles the kernels for this machine's CPU, once: the result is kept in the cache folder.

The file's name holds a hash of the source, the flags, the compiler and the CPU's features, so that a changed kernel
is compiled anew and a cache folder shared by several machines never gives one of them another's instructions.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from trimtab.models.packaged import cache_folder

log = logging.getLogger("trimtab")

_SOURCE = Path(__file__).parent
_MAIN = "kernels.cpp"
# No -ffast-math: the order of sums is what makes a token's result independent of its neighbours.
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast", "-w")
# Tried in turn. AMX is left out because some virtual machines show it and then refuse to run it.
_NATIVE = (
    ("-march=native", "-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
_WHAT_TO_DO = (
    "Generation runs without them, slower. Install a C++ compiler (on Debian and Ubuntu: apt install g++), or name "
    "one in the environment variable CXX."
)


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: ``$CXX``, else g++, else clang++."""
    explicit = os.environ.get("CXX")
    return next(
        (found for name in ([explicit] if explicit else ["g++", "clang++"]) if (found := shutil.which(name))), None
    )


def compile_kernels(folder: Path, *, extra: Sequence[str] = ()) -> Path | None:
    """Return the compiled library for this machine, compiling it if ``folder`` has none yet.

    Args:
        folder: where compiled libraries are kept.
        extra: further flags, after all others.

    Returns:
        ``None`` where there is no compiler or it fails; the log says so.
    """
    compiler = find_compiler()
    if compiler is None:
        wanted = os.environ.get("CXX", "g++ or clang++")
        log.warning("The fast CPU kernels need a C++ compiler, and there is no %s here. %s", wanted, _WHAT_TO_DO)
        return None
    try:
        target = folder / f"kernels-{_fingerprint(compiler, extra)}.so"
        if target.is_file():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():
                _compile(compiler, extra, target)
        return target
    except subprocess.CalledProcessError as error:
        said = str(error.stderr or "").strip().splitlines()
        log.warning("%s cannot compile the fast CPU kernels: %s. %s", compiler, " / ".join(said[:3]), _WHAT_TO_DO)
    except OSError as error:
        log.warning("The fast CPU kernels cannot be built in %s: %s. %s", folder, error, _WHAT_TO_DO)
    return None


def _fingerprint(compiler: str, extra: Sequence[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    digest = hashlib.sha256()
    for file in sorted([*_SOURCE.glob("*.h"), _SOURCE / _MAIN]):
        digest.update(file.read_bytes())
    for part in (*_FLAGS, *extra, version, _cpu()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """Return what tells CPUs apart whose compiled code differs."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    keys = ("model name", "cpu family", "model", "flags", "Features", "CPU part")
    first = {line.split(":")[0].strip(): line for line in reversed(lines) if ":" in line}
    return "\n".join(first[key] for key in keys if key in first)


def _compile(compiler: str, extra: Sequence[str], target: Path) -> None:
    staged = target.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        for attempt, native in enumerate(_NATIVE):
            command = [compiler, *_FLAGS, *native, *extra, "-o", str(staged), str(_SOURCE / _MAIN)]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
                break
            except subprocess.CalledProcessError:
                if attempt == len(_NATIVE) - 1:
                    raise
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


class Library:
    """The compiled kernels with the types of their functions."""

    def __init__(self, path: Path) -> None:
        dll = ctypes.CDLL(str(path))
        pointer = ctypes.c_void_p
        self.workspace = dll.trimtab_workspace
        self.workspace.restype, self.workspace.argtypes = pointer, [pointer, pointer, pointer]
        self.free = dll.trimtab_free
        self.free.restype, self.free.argtypes = None, [pointer]
        self.forward = dll.trimtab_forward
        self.forward.restype, self.forward.argtypes = None, [pointer, pointer, pointer]
        self.sizes = dll.trimtab_sizes
        self.sizes.restype, self.sizes.argtypes = None, [pointer]
        self.product = dll.trimtab_product
        self.product.restype, self.product.argtypes = None, [pointer, pointer, ctypes.c_int64, pointer]
        dll.trimtab_arithmetic.restype = ctypes.c_char_p
        self.arithmetic: str = dll.trimtab_arithmetic().decode()


class _Builder:
    """Builds once in this process, whoever asks, and keeps the result."""

    def __init__(self) -> None:
        self.library: Library | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> threading.Thread:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trimtab-kernels", daemon=True)
                self._thread.start()
            return self._thread

    def _run(self) -> None:
        path = compile_kernels(cache_folder() / "kernels")
        if path is None:
            return
        try:
            self.library = Library(path)
        except OSError as error:
            log.warning("The fast CPU kernels do not load: %s. %s", error, _WHAT_TO_DO)


_builder = _Builder()


def build(*, wait: bool = False) -> bool:
    """Start building the kernels, in the background; return whether they are ready.

    Args:
        wait: come back only when they are built or cannot be.
    """
    thread = _builder.start()
    if wait:
        thread.join()
    return ready()


def ready() -> bool:
    """Return whether the kernels are built and loaded."""
    return _builder.library is not None


def library() -> Library | None:
    """Return the loaded kernels, or ``None`` where they are not ready."""
    return _builder.library
