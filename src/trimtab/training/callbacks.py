"""What a run writes while it goes on: ``metrics.jsonl`` and a progress bar on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

METRICS_FILE = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Appends each log to ``metrics.jsonl``, one JSON object a line, with its step.

    A resumed run drops the lines after its checkpoint first, so the file reads as that of one uninterrupted run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what an earlier part of this run has logged up to the step it continues from."""
        if not state.is_world_process_zero:
            return
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        kept = [line for line in lines if state.global_step and json.loads(line)["step"] <= state.global_step]
        self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs:
            line = json.dumps({"step": state.global_step, **logs})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


class ProgressBar(TrainerCallback):
    """One bar on stderr with the latest loss and accuracy; rare lines where stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        from tqdm.auto import tqdm

        if state.is_world_process_zero:
            pause = 0.2 if sys.stderr.isatty() else 15.0
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="Training", unit="step", mininterval=pause
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance to the step just done."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the latest numbers."""
        shown = {"loss": "loss", "rewards/accuracies": "accuracy", "eval_rewards/accuracies": "held-out"}
        if self._bar is not None and logs:
            latest = {label: f"{logs[key]:.3f}" for key, label in shown.items() if key in logs}
            self._bar.set_postfix(latest, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
