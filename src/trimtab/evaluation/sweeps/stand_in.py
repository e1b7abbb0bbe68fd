"""Guides as their folders describe them, for plans that are checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.engine.guides import GuideFolders, name_folders
from trimtab.rewards.manifest import GuideManifest, read_manifest
from trimtab.rewards.margins import CONDITIONED


@dataclass(frozen=True)
class StandIn:
    """What resolving weights needs to know of a guide."""

    name: str
    manifest: GuideManifest

    @property
    def objectives(self) -> Sequence[str]:
        """Names of what it rewards."""
        return self.manifest.objective_names

    @property
    def recommended_weight(self) -> float:
        """The weight it is used with by default."""
        return self.manifest.weight

    @property
    def conditioned(self) -> bool:
        """Whether it follows a preference over its objectives."""
        return self.manifest.adapter in CONDITIONED


def stand_ins(folders: GuideFolders) -> list[StandIn]:
    """Return one stand-in a folder, named as the engine will name it.

    Raises:
        GuideError: a folder is not a guide's.
    """
    return [StandIn(name, read_manifest(folder)) for name, folder in name_folders(folders).items()]
