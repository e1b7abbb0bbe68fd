"""The forward in C++ for CPUs: compiled on the user's machine once, in the background, and used from then on."""

from trimtab.engine.native.build import build, ready
from trimtab.engine.native.forward import NativeForward, unsupported

__all__ = ["NativeForward", "build", "ready", "unsupported"]
