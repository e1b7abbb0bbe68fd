"""A suite's questions in a comparison: later turns asked, and every setting's answers in the file of the suite's tool.

Scorers and judges read the answers to the first turn: what is asked after it follows an answer of the setting's own, so
two settings' later answers are no longer answers to one prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab.evaluation.suites.answering import NO_ROOM, has_room
from trimtab.evaluation.suites.common import Conversation, Question, Suite
from trimtab.evaluation.sweeps import store
from trimtab.evaluation.sweeps.generation import Job, Planner, Prompt, described, write_answers
from trimtab.evaluation.sweeps.run import Run
from trimtab.evaluation.sweeps.scoring import pick_best
from trimtab.evaluation.sweeps.settings import Setting

if TYPE_CHECKING:
    from trimtab.models import Message

FOLDER = "suites"


@dataclass
class _Chat:
    """A conversation with one setting."""

    setting: Setting
    number: int
    sample: int
    messages: list[Message]
    turns: list[str] = field(default_factory=list[str])
    reasons: list[str] = field(default_factory=list[str])

    def say(self, text: str, reason: str) -> None:
        """Add an answer, as a suite's own programs write it: without the space around it."""
        self.turns.append(text.strip())
        self.reasons.append(reason)
        self.messages = [*self.messages, {"role": "assistant", "content": self.turns[-1]}]


def as_prompts(questions: Sequence[Question]) -> list[Prompt]:
    """Return the first turn of every question as a prompt."""
    return [Prompt(question.id, [{"role": "user", "content": question.turns[0]}]) for question in questions]


def note_suite(run: Run, suite: Suite, questions: Sequence[Question]) -> None:
    """Add to a run's notes what a reader must know who compares its files with a suite's other answers."""
    if any(question.temperature is not None for question in questions):
        run.notes.append(
            f"The answers to {suite.name} are drawn at this run's temperature ({run.config.temperature:g}) and not at "
            "the suite's temperatures by category, because controls of guidance are temperatures themselves."
        )
    if later_turns(questions):
        run.notes.append("Scores and judgements are of the answers to first turns; later turns are in suites/ alone.")


def later_turns(questions: Sequence[Question]) -> int:
    """Return how many turns come after first ones."""
    return sum(len(question.turns) - 1 for question in questions)


def write_suite(
    run: Run,
    folder: store.RunFolder,
    suite: Suite,
    questions: Sequence[Question],
    samples: Sequence[store.Record],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask what follows first turns, and write ``suites/SUITE/SETTING`` for every setting.

    Args:
        run: that was carried out, on :func:`as_prompts` of the questions.
        folder: where answers are kept; those to later turns stay in its cache.
        suite: whose files are written.
        questions: of the run.
        samples: the run's records, setting by setting, prompt by prompt.
        progress: told how far it is.

    Returns:
        ``metrics["suite"]``.

    Raises:
        OutputError: a file cannot be written.
    """
    each = run.config.n
    chats: list[_Chat] = []
    for i, record in enumerate(samples):
        setting = run.settings[i // (each * len(questions))]
        number, sample = divmod(i % (each * len(questions)), each)
        first = run.prompts[number].under(setting.system)
        messages: list[Message] = [{"role": "user", "content": first}] if isinstance(first, str) else list(first)
        chats.append(_Chat(setting, number, sample, messages))
        chats[-1].say(record["response"], record["finish_reason"])
    for turn in range(1, max(len(question.turns) for question in questions)):
        going = [chat for chat in chats if turn < len(questions[chat.number].turns)]
        for chat in going:
            chat.messages = [*chat.messages, {"role": "user", "content": questions[chat.number].turns[turn]}]
        _answer(run, folder, going, f"Answering turn {turn + 1}", progress)
    if later_turns(questions):
        folder.finish(samples)
    names = file_names([setting.name for setting in run.settings])
    files = {setting: f"{FOLDER}/{suite.name}/{name}{suite.suffix}" for setting, name in names.items()}
    folder.clear(f"{FOLDER}/{suite.name}", suite.suffix)
    for setting, file in files.items():
        own = [Conversation(tuple(c.turns), tuple(c.reasons)) for c in chats if c.setting.name == setting]
        answers = [own[i : i + each] for i in range(0, len(own), each)]
        folder.write(file, suite.write(questions, answers, setting))
    reasons = [reason for chat in chats for reason in chat.reasons]
    return {
        "name": suite.name,
        "questions": len(questions),
        "turns": sum(len(question.turns) for question in questions),
        "answers": len(reasons),
        "cut": reasons.count("length"),
        "no_room": reasons.count(NO_ROOM),
        "files": files,
    }


def _answer(
    run: Run,
    folder: store.RunFolder,
    going: Sequence[_Chat],
    what: str,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Have every conversation answered that leaves room for it."""
    planner = Planner(run.engine, run.prompts, run.config.sampling(), run.config.number, run.config.n)
    jobs: dict[int, list[Job]] = {
        i: planner.later_jobs(chat.setting, chat.number, chat.messages, chat.sample)
        for i, chat in enumerate(going)
        if has_room(run.engine, chat.messages, chat.setting.guidance)
    }
    total = len({job.key for own in jobs.values() for job in own})
    run.written += write_answers(
        run.engine,
        [job for own in jobs.values() for job in own],
        folder,
        sampling_of=planner.sampling_of,
        base_temperature=run.config.temperature,
        batch_size=run.config.batch_size,
        progress=lambda done: progress(what, done, total) if progress else None,
    )
    known = folder.known()
    for i, chat in enumerate(going):
        if i not in jobs:
            chat.say("", NO_ROOM)
            continue
        record = _picked(run, chat.setting, [{**known[job.key], **described(job)} for job in jobs[i]])
        chat.say(record["response"], record["finish_reason"])


def _picked(run: Run, setting: Setting, rows: Sequence[store.Record]) -> Mapping[str, Any]:
    if setting.scorer is None:
        return rows[0]
    return pick_best(rows, run.pickers[setting.scorer].scorer, setting.best_of, setting.name)[0]


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Return name → name of a file: letters, digits, dots and hyphens, all different on any disk."""
    found: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"[^\w.]+", "-", name).strip("-.")[:100] or "setting"
        plain, count = stem, 1
        while stem.casefold() in {other.casefold() for other in found.values()}:
            count += 1
            stem = f"{plain}-{count}"
        found[name] = stem
    return found
