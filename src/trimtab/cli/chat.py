"""``trimtab chat``: talk with a steered model, and turn the steering while talking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli.console import note, write
from trimtab.cli.options import command_from, config_file, resolve_config
from trimtab.cli.steering import (
    SteeringOptions,
    describe,
    guidance_of,
    load_engine,
    parse_weights,
    sampling_of,
)
from trimtab.decoding.config import Sampling
from trimtab.errors import ConfigError, GuidanceError, PromptTooLongError, TrimtabError, did_you_mean

if TYPE_CHECKING:
    from trimtab.engine import Engine, Guidance

HELP = """\
/strength X      multiply every weight by X (0: the plain base)
/weights N=W,…   set the weights of objectives or guides; those not named are 0
/plain           show what the plain base answers to your last message
/reset           forget the conversation
/help            show this
/quit            leave (so does the end of the input)"""


class ChatOptions(Sampling, SteeringOptions):
    """Options of ``trimtab chat``; the file for --config has the same keys."""


def run(given: dict[str, Any], config: Path | None) -> None:
    """Talk with a base model steered by guides; /help lists what can be changed while talking.

    Reads messages from the terminal, or one a line from a pipe; answers go to stdout as they are written.
    """
    options = resolve_config(ChatOptions, given, config)
    if options.n != 1:
        raise ConfigError(f"A chat writes one answer at a time, but n is {options.n}: use 'trimtab generate'.")
    guidance = guidance_of(options)
    session = ChatSession(load_engine(options), guidance, sampling_of(options), system=options.system)
    note(f"Steering: {session.steering()}. Type /help for commands, /quit to leave.")
    for line in _lines():
        if not session.handle(line):
            break


command = command_from(ChatOptions, run, extra=[config_file()])


class ChatSession:
    """One conversation: its turns so far and the guidance in force."""

    def __init__(
        self,
        engine: Engine,
        guidance: Guidance,
        sampling: Sampling,
        *,
        system: str | None = None,
        show: Callable[[str], None] = write,
        tell: Callable[[str], None] = note,
    ) -> None:
        self._engine = engine
        self._guidance = guidance
        self._sampling = sampling
        self._show, self._tell = show, tell
        self._opening: list[Any] = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[Any] = list(self._opening)
        self.steering()  # unknown names are refused before the first message

    def steering(self) -> str:
        """Return what is in force, strength included, as text.

        Raises:
            GuidanceError: a weight names no guide.
        """
        return f"{describe(self._engine, self._guidance)} (strength {self._guidance.strength:g})"

    def handle(self, line: str) -> bool:
        """Answer a message or obey a command; return whether to go on."""
        line = line.strip()
        if not line:
            return True
        if line in ("/quit", "/exit"):
            return False
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._answer(line)
        except PromptTooLongError as error:
            self._tell(f"Error: {error} /reset forgets the conversation.")
        except TrimtabError as error:
            self._tell(f"Error: {error}")
        return True

    def _command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        commands = {
            "strength": self._set_strength,
            "weights": self._set_weights,
            "plain": self._plain,
            "reset": self._reset,
            "help": self._help,
        }
        if name not in commands:
            near = did_you_mean(name, [*commands, "quit"])
            raise ConfigError(f"There is no command /{name}.{near} /help lists them.")
        commands[name](argument.strip())

    def _help(self, _argument: str) -> None:
        self._tell(HELP)

    def _set_strength(self, argument: str) -> None:
        if argument:
            try:
                strength = float(argument)
            except ValueError:
                raise GuidanceError(f"/strength takes a number, such as /strength 1.5; got {argument!r}.") from None
            self._change({"strength": strength})
        self._tell(f"Steering: {self.steering()}.")

    def _set_weights(self, argument: str) -> None:
        if argument:
            self._change({"weights": parse_weights(argument)})
        self._tell(f"Steering: {self.steering()}.")

    def _change(self, values: dict[str, Any]) -> None:
        from trimtab.engine.guidance import as_guidance

        before = self._guidance
        try:
            self._guidance = as_guidance(before.model_copy(update=values))
            self.steering()
        except GuidanceError:
            self._guidance = before
            raise

    def _plain(self, _argument: str) -> None:
        asked = self.turns[:-1] if self.turns and self.turns[-1]["role"] == "assistant" else []
        if not asked:
            raise ConfigError("/plain compares with an answer, and there is none yet: say something first.")
        self._write(asked, 0.0)

    def _reset(self, _argument: str) -> None:
        self.turns = list(self._opening)
        self._tell("The conversation is forgotten.")

    def _answer(self, message: str) -> None:
        asked = [*self.turns, {"role": "user", "content": message}]
        answer = self._write(asked, self._guidance)
        self.turns = [*asked, {"role": "assistant", "content": answer}]

    def _write(self, turns: list[Any], guidance: Guidance | float) -> str:
        stream = self._engine.stream(turns, guidance=guidance, sampling=self._sampling)
        pieces: list[str] = []
        try:
            for piece in stream:
                pieces.append(piece)
                self._show(piece)
        except KeyboardInterrupt:
            self._tell(" (interrupted)")
        self._show("\n")
        return "".join(pieces)


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
