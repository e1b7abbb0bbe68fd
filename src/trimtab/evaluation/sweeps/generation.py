"""Writing all answers of all settings through one engine, each measured as soon as it is finished."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trimtab.decoding.config import Sampling
from trimtab.engine.answers import Answer
from trimtab.engine.guidance import resolve
from trimtab.engine.readings import Reading
from trimtab.engine.results import Watch
from trimtab.evaluation.sweeps.measuring import Meter, noted_diagnostics, read_diagnostics, token_notes
from trimtab.evaluation.sweeps.settings import Setting
from trimtab.evaluation.sweeps.store import Record, RunFolder, content_key
from trimtab.models import Text

if TYPE_CHECKING:
    from trimtab.engine import Engine

KEY_VERSION = 1
LADDER_ANSWERS = 16
"""Answers of the plain base whose distributions are looked at for the temperature that brings a KL."""

_WATCH = Watch(top=1, base=True)
_WATCH_ALL = Watch(top=1, base=True, objectives=True)


@dataclass(frozen=True)
class Prompt:
    """A prompt of the run.

    Attributes:
        id: of its row in the file; any JSON value.
        content: plain text or chat turns, without what a setting's system message adds.
    """

    id: Any
    content: Text

    def under(self, system: str | None) -> Text:
        """Return what the model reads: a chat that has no system message gets this one."""
        if system is None or isinstance(self.content, str) or self.content[0]["role"] == "system":
            return self.content
        return [{"role": "system", "content": system}, *self.content]


@dataclass(frozen=True)
class Job:
    """One answer to write.

    Attributes:
        setting: how.
        number: of the prompt.
        prompt: what the model reads.
        sample: number of the answer among its prompt's.
        seed: of its random numbers.
        key: hash of all that its text depends on.
        ladder: whether the base's temperatures are looked at with it.
        notes: whether its tokens are shown.
    """

    setting: Setting
    number: int
    id: Any
    prompt: Text
    sample: int
    seed: int
    key: str
    ladder: bool = False
    notes: bool = False


class Planner:
    """Turns settings into jobs, with keys that say what each answer depends on."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, seed: int, samples: int) -> None:
        """Prepare.

        Args:
            engine: what will write.
            prompts: of the run.
            sampling: how answers are drawn, but for the settings' temperatures.
            seed: of the run.
            samples: answers a prompt.
        """
        self.engine, self.prompts, self.sampling, self.seed, self.samples = engine, prompts, sampling, seed, samples
        self._base = base_identity(engine)

    def jobs(self, setting: Setting, *, ladder: bool = False, notes: int = 0) -> list[Job]:
        """Return the answers of one setting: every prompt, every sample (and every candidate to pick from)."""
        identity = self._identity(setting)
        count = self.samples * setting.best_of
        jobs: list[Job] = []
        for number, prompt in enumerate(self.prompts):
            content = prompt.under(setting.system)
            for sample in range(count):
                seed = sample_seed(self.seed, prompt.content, sample)
                rungs = ladder and len(jobs) < LADDER_ANSWERS
                noted = number < notes and sample == 0 and setting.best_of == 1
                key = _key(identity, content, seed)
                jobs.append(Job(setting, number, prompt.id, content, sample, seed, key, rungs, noted))
        return jobs

    def later_jobs(self, setting: Setting, number: int, conversation: Text, sample: int) -> list[Job]:
        """Return the next answer of one conversation with a setting (or the candidates to pick it from).

        Args:
            setting: how.
            number: of the prompt that began it.
            conversation: all that the model reads.
            sample: number of the conversation among its prompt's.
        """
        identity = self._identity(setting)
        jobs: list[Job] = []
        for candidate in range(sample * setting.best_of, (sample + 1) * setting.best_of):
            seed = sample_seed(self.seed, conversation, candidate)
            key = _key(identity, conversation, seed)
            jobs.append(Job(setting, number, self.prompts[number].id, conversation, candidate, seed, key))
        return jobs

    def _identity(self, setting: Setting) -> Record:
        """Return what every answer of a setting depends on, prompt and seed apart."""
        drawn = self.sampling_of(setting).model_dump(mode="json", exclude={"n", "seed"})
        return {
            "version": KEY_VERSION,
            "engine": self._base,
            "guidance": self._guidance_identity(setting),
            "sampling": drawn,
        }

    def sampling_of(self, setting: Setting) -> Sampling:
        """Return how a setting's answers are drawn."""
        return self.sampling.model_copy(update={"temperature": setting.temperature})

    def _guidance_identity(self, setting: Setting) -> list[Any]:
        guides = list(self.engine.guides.values())
        return [
            [guide_identity(guide), pull.weight, list(pull.alpha) if pull.alpha else None]
            for guide, pull in zip(guides, resolve(setting.guidance, guides), strict=True)
            if pull.weight != 0
        ]


def _key(identity: Record, prompt: Text, seed: int) -> str:
    greedy = identity["sampling"]["temperature"] == 0
    return content_key({**identity, "prompt": prompt, "seed": None if greedy else seed})


def sample_seed(seed: int, prompt: Text, sample: int) -> int:
    """Return the seed of one answer. It does not depend on the other prompts, on how many samples there are, or on the
    setting: all settings draw with the same random numbers, which makes their differences less noisy.
    """  # noqa: D205
    text = json.dumps([seed, sample, prompt], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def base_identity(engine: Engine) -> dict[str, Any]:
    """Return what every answer depends on, guidance and sampling apart."""
    core, driver = engine.parts
    base, config = core.base, driver.scheduler.config
    return {
        "base": base.id,
        "revision": base.revision,
        "fingerprint": base.fingerprint,
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "quantization": base.quantization,
        "device": base.device.type,
        "acceptance": config.acceptance,
        "speculation": config.speculation if config.acceptance == "rejection" else None,
        "kernels": config.kernels,
    }


def guide_identity(guide: Any) -> str:
    """Return the fingerprint of a guide: its weights and what they mean."""
    manifest = guide.manifest
    return content_key(
        {
            "weights": dict(manifest.weights_sha256),
            "base": manifest.base.fingerprint,
            "template": manifest.chat_template,
            "untrained": guide.slot is None and manifest.adapter != "full",
            **({"kind": manifest.kind} if manifest.kind != "arm" else {}),
        }
    )


def write_answers(
    engine: Engine,
    jobs: Sequence[Job],
    folder: RunFolder,
    *,
    sampling_of: Callable[[Setting], Sampling],
    base_temperature: float,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the answers that the folder does not have; each is appended to it as soon as it is measured.

    Args:
        engine: base and guides.
        jobs: answers to have at the end.
        folder: where they are kept.
        sampling_of: how a setting's answers are drawn.
        base_temperature: of the setting that KL is measured against.
        batch_size: most answers being written at a time.
        progress: called with the number of answers that are there.

    Returns:
        How many were written now; those that were only measured anew do not count.
    """
    known, notes = folder.known(), folder.known_tokens()
    missing: dict[str, Job] = {}
    for job in jobs:
        if not _has(known, notes, job):  # one answer may belong to several settings, and is measured for all of them
            other = missing.get(job.key, job)
            missing[job.key] = replace(job, ladder=job.ladder or other.ladder, notes=job.notes or other.notes)
    queue, going = deque(missing.values()), list[_Going]()
    done = len({job.key for job in jobs}) - len(missing)
    _, driver = engine.parts
    try:
        while queue or going:
            while queue and len(going) < batch_size:
                job = queue.popleft()
                going.append(_begin(engine, job, known.get(job.key), sampling_of(job.setting), base_temperature))
            driver.drive([item.request for item in going], until=any)
            for item in [item for item in going if item.request.finished]:
                if _go_on(engine, item, base_temperature):
                    going.remove(item)
                    _keep(engine, item, folder)
                    done += 1
            if progress:
                progress(done)
    finally:
        for item in going:
            item.request.cancelled = not item.request.finished
    return sum(key not in known for key in missing)


@dataclass
class _Going:
    """An answer on its way: first it is written, then some are read again to be measured."""

    job: Job
    record: Record
    answer: Answer | None = None
    reading: Reading | None = None
    meter: Meter | None = None

    @property
    def request(self) -> Answer | Reading:
        found = self.reading or self.answer
        if found is None:
            raise TypeError("Nothing is on its way.")
        return found


def _has(known: Mapping[str, Record], notes: Mapping[str, Record], job: Job) -> bool:
    record = known.get(job.key)
    if record is None or (job.notes and job.key not in notes):
        return False
    return not job.ladder or "ladder_kl" in record["diagnostics"]


def _at_one(job: Job, base_temperature: float) -> bool:
    """Whether answer and base are drawn at temperature 1 or without any, so that what the engine notes says all."""
    return (job.setting.temperature or 1.0) == 1.0 and (base_temperature or 1.0) == 1.0


def _begin(engine: Engine, job: Job, known: Record | None, sampling: Sampling, base_temperature: float) -> _Going:
    """Begin an answer, or only the measuring of one that is written already."""
    if known is not None:
        item = _Going(job, dict(known))
        _measure(engine, item, base_temperature)
        return item
    options = sampling.model_copy(update={"n": 1, "seed": job.seed})
    watch = _WATCH if _at_one(job, base_temperature) else None
    (answer,) = engine.answers(job.prompt, guidance=job.setting.guidance, sampling=options, watch=watch)
    engine.parts[1].add(answer, tokens=answer.limit)
    return _Going(job, {}, answer)


def _go_on(engine: Engine, item: _Going, base_temperature: float) -> bool:
    """Have a finished answer measured; return whether there is nothing left to do for it."""
    if item.answer is None or item.reading is not None:
        return True
    result = item.answer.result()
    item.record = {
        "key": item.job.key,
        "response": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "tokens": len(result.token_ids),
        "seed": result.seed,
    }
    if _at_one(item.job, base_temperature) and not (item.job.ladder or item.job.notes):
        return True
    _measure(engine, item, base_temperature)
    return False


def _measure(engine: Engine, item: _Going, base_temperature: float) -> None:
    """Read an answer again, all its tokens in one forward."""
    job, ids = item.job, item.record["token_ids"]
    watch = _WATCH_ALL if job.notes else None
    guided = bool(job.setting.weights)
    item.meter = Meter(job.setting.temperature, base_temperature, guided=guided, ladder=job.ladder)
    item.reading = engine.reading(job.prompt, ids, guidance=job.setting.guidance, watch=watch)
    item.reading.observer = item.meter
    engine.parts[1].add(item.reading, tokens=len(ids))


def _keep(engine: Engine, item: _Going, folder: RunFolder) -> None:
    noted, reading = list(item.request.noted), item.reading
    if reading is not None and item.meter is not None:
        found = read_diagnostics(item.meter, reading.base, reading.combined)
    else:
        found = noted_diagnostics(noted)
    if item.job.notes:
        folder.append_tokens({"key": item.job.key, **token_notes(engine.base.tokenizer, noted)})
    record = {**item.record, **described(item.job), "diagnostics": found, "scores": {}}
    folder.append(record)


def described(job: Job) -> Record:
    """Return what a sample's record says of where it belongs."""
    return {"id": job.id, "prompt": job.prompt, "setting": job.setting.name, "sample": job.sample}
