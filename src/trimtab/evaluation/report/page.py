"""The report as one page: tables, charts and answers; no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from trimtab.evaluation.report.answers import answers_of
from trimtab.evaluation.report.charts import chart, legend
from trimtab.evaluation.report.figures import front, reward_against
from trimtab.evaluation.report.markup import embedded, esc, number, select
from trimtab.evaluation.report.tables import (
    comparison_table,
    front_table,
    judge_table,
    length_table,
    reward_table,
    scorer_table,
    verdict_table,
)

Metrics = Mapping[str, Any]
MOST_BYTES = 5_000_000


def page(
    metrics: Metrics,
    samples: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, Mapping[str, Any]],
    *,
    judged: Sequence[Mapping[str, Any]] = (),
    shown_prompts: int = 64,
) -> str:
    """Return the report.

    Args:
        metrics: the content of ``metrics.json``.
        samples: the records of ``samples.jsonl``.
        tokens: key → token notes.
        judged: the records of ``verdicts.jsonl``.
        shown_prompts: most prompts whose answers are in it; fewer where the page would grow beyond 5 MB.
    """
    head, foot = _page_parts(metrics)
    room = MOST_BYTES - len((head + foot).encode())
    while True:
        data, notes = answers_of(metrics, samples, tokens, shown_prompts, judged)
        text = embedded(data)
        if len(text.encode()) <= room or shown_prompts == 0:
            break
        shown_prompts = shown_prompts * 3 // 4
    picker = _samples_section(metrics, data, notes)
    return head + picker + foot.replace("{{data}}", text, 1)


def _page_parts(metrics: Metrics) -> tuple[str, str]:
    here = files(__package__ or "")
    style, script, guidance = (
        (here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "how_to_read.html")
    )
    guides = ", ".join(guide["name"] for guide in metrics["guides"]) or "no guide"
    title = f"{metrics['base']['base']} steered by {guides}"
    policy = (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; "
        "form-action 'none'"
    )
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{esc(title)} · trimtab evaluate</title><style>{style}</style></head><body>"
        f'<a class="skip" href="#verdicts">Skip to the verdicts</a>{_header(metrics, title)}<main>'
        f"{guidance}{_notes(metrics)}{_verdicts(metrics)}{_judge(metrics)}{_rewards(metrics)}{_charts(metrics)}{_front(metrics)}"
        f"{_comparisons(metrics)}"
    )
    foot = (
        f"{_length(metrics)}{_scorers(metrics)}{_run(metrics)}</main>"
        f'<script type="application/json" id="data">{{{{data}}}}</script><script>{script}</script></body></html>\n'
    )
    return head, foot


def _source(text: str) -> str:
    """Return what the page's policy allows: this very text and nothing else."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _header(metrics: Metrics, title: str) -> str:
    sampling = metrics["sampling"]
    answers = sum(setting["answers"] for setting in metrics["settings"])
    facts = [
        f"{metrics['prompts']['count']} prompts × {metrics['samples_per_prompt']}",
        f"{len(metrics['settings'])} settings",
        f"{answers} answers",
        f"temperature {sampling['temperature']:g}, at most {sampling['max_tokens']} tokens",
        f"seed {metrics['seed']}",
        str(metrics["created"])[:10],
    ]
    items = "".join(f"<li>{esc(fact)}</li>" for fact in facts)
    return f'<header><p class="brand">trimtab evaluate</p><h1>{esc(title)}</h1><ul class="facts">{items}</ul></header>'


def _notes(metrics: Metrics) -> str:
    notes = list(metrics["notes"])
    judge = metrics["judge"]
    if judge and not judge["finished"]:
        notes.insert(0, f"The judge {judge['model']} had not finished: run the same command again to go on.")
    if judge and judge["dependent"]:
        notes.insert(0, f"FORCED: {judge['dependent']}")
    for scorer in metrics["scorers"]:
        if scorer["dependent"]:
            notes.insert(0, f"FORCED: {scorer['dependent']}")
        notes += [f"{scorer['spec']}: {notice}" for notice in scorer["notices"]]
    if not notes:
        return ""
    items = "".join(f"<li>{esc(note)}</li>" for note in notes)
    return f'<section class="box warn" aria-labelledby="notes"><h2 id="notes">Mind</h2><ul>{items}</ul></section>'


def _verdicts(metrics: Metrics) -> str:
    return (
        '<section><h2 id="verdicts">Verdicts</h2><p>Gain over the base, and whether it stands beside the controls: '
        "better only if the interval of the difference to the base <em>and</em> to every control is above 0.</p>"
        f"{_judged_by(metrics)}{verdict_table(metrics)}</section>"
    )


def _judged_by(metrics: Metrics) -> str:
    if not metrics["judge"]:
        return ""
    return (
        "<p>The judge’s column has win rates, ties half, against the base: better only if the interval is above 50 % "
        "against the base and every control, at equal length too, with a verdict on 90 % of the pairs.</p>"
    )


def _rewards(metrics: Metrics) -> str:
    return (
        '<section><h2 id="rewards">Rewards</h2><p>Higher is better in every scorer’s column. Controls are the rows in '
        f"italics.</p>{reward_table(metrics)}</section>"
    )


def _charts(metrics: Metrics) -> str:
    scorers = [scorer["spec"] for scorer in metrics["scorers"]]
    parts: list[str] = []
    for i, scorer in enumerate(scorers):
        by_kl = reward_against(metrics, scorer, "kl")
        by_length = reward_against(metrics, scorer, "tokens")
        hidden = " hidden" if i else ""
        parts.append(
            f'<div class="charts" data-scorer="{i}"{hidden}><figure>'
            f"{chart(f'{scorer} against KL to the base', by_kl, 'KL to the base, nats a token', scorer)}"
            "<figcaption>What a reward costs: the same reward further left is better. Bands and whiskers are 95 % "
            f"intervals.</figcaption></figure><figure>"
            f"{chart(f'{scorer} against length', by_length, 'tokens an answer', scorer)}"
            f"<figcaption>Whether the reward only follows the length.</figcaption></figure>{legend(by_kl)}</div>"
        )
    return (
        f'<section><h2 id="charts">Reward against KL and length</h2>{select("chart-scorer", "Scorer", scorers)}'
        f"{''.join(parts)}</section>"
    )


def _front(metrics: Metrics) -> str:
    found = front(metrics)
    if found is None:
        return ""
    series, axes, reference = found
    fronts = metrics["fronts"]
    corner = ", ".join(f"{name} {number(value)}" for name, value in fronts["reference"].items())
    third = " The third objective is not drawn." if len(fronts["objectives"]) > 2 else ""
    return (
        '<section><h2 id="front">Pareto front</h2><figure class="wide">'
        f"{chart('Mean rewards of every preference', series, axes[0], axes[1], reference=reference)}"
        f"<figcaption>Numbers beside points are the preference for {esc(fronts['objectives'][0])}.{third}</figcaption>"
        "</figure>"
        f"{legend(series)}<p>Hypervolume above the reference point ({esc(corner)}); MIP is the mean of the preference "
        f"times the rewards it brought.</p>{front_table(metrics)}</section>"
    )


def _comparisons(metrics: Metrics) -> str:
    shown = " open" if len(metrics["comparisons"]) <= 24 else ""
    return (
        f'<section><h2 id="comparisons">Every comparison</h2><details{shown}><summary>Against base and controls, on '
        "each scorer: the mean difference, wins, and both with length taken out</summary>"
        f"{comparison_table(metrics)}</details></section>"
    )


def _judge(metrics: Metrics) -> str:
    """Return what a judge prefers, pair by pair of settings, and what its verdicts are worth."""
    judge = metrics["judge"]
    if not judge:
        return ""
    if not judge["comparisons"]:
        found = "It had not finished when this page was written." if not judge["finished"] else "No setting was judged."
        return f'<section><h2 id="judge">Preferred by {esc(judge["model"])}</h2><p>{found}</p></section>'
    rubric = f"<details><summary>The rubric</summary><pre>{esc(judge['rubric'])}</pre></details>"
    reasons = "".join(
        f"<dt>{esc(v['setting'])}</dt><dd>{esc(v['verdict'])} ({esc(v['why'])})</dd>" for v in judge["verdicts"]
    )
    return (
        f'<section><h2 id="judge">Preferred by {esc(judge["model"])}</h2><p>A language model saw the prompt and both '
        f"answers, in either order, on {judge['prompts']} prompts. The same answer preferred twice is a win; orders "
        "that disagree are a tie, and ties are half a win. Judges have tastes, length among them: a win rate that is "
        "gone at equal length was length, and one of a judge whose orders rarely agree is worth little. "
        "<em>First shown</em> is how often a verdict goes to the answer that stands first; 50 % is no bias.</p>"
        f"{judge_table(metrics)}<dl>{reasons}</dl>{rubric}</section>"
    )


def _suite(suite: Mapping[str, Any]) -> str:
    ended = f"; {suite['cut']} ended at the limit of tokens" if suite["cut"] else ""
    ended += f"; {suite['no_room']} are empty, as the conversation before them fills the context" * bool(
        suite["no_room"]
    )
    return (
        f"{suite['name']}: {suite['questions']} questions with {suite['turns']} turns, {suite['answers']} answers in "
        f"suites/{suite['name']}/, a file a setting, named after it{ended}"
    )


def _asked(judge: Mapping[str, Any] | None) -> str:
    if not judge:
        return "none: no language model judged these answers"
    independent = judge["dependent"] or "by its name nothing speaks against its independence"
    return (
        f"{judge['model']} at {judge['endpoint']}, in both orders, {judge['samples']} answers a prompt; verdicts by "
        f"{judge['verdict']}; {independent}"
    )


def _samples_section(metrics: Metrics, data: Mapping[str, Any], notes: int) -> str:
    if not data["prompts"]:
        return '<section><h2 id="answers">Answers</h2><p>All answers are in <code>samples.jsonl</code>.</p></section>'
    names = [setting["label"] for setting in metrics["settings"]]
    best = next((i for i in range(len(names) - 1, -1, -1) if metrics["settings"][i]["kind"] in ("guided", "method")), 0)
    prompts = [f"{i + 1}. {item['text'][:70]}" for i, item in enumerate(data["prompts"])]
    total = metrics["prompts"]["count"]
    left_out = (
        f" The first {len(prompts)} of {total} prompts are here; all are in samples.jsonl."
        if len(prompts) < total
        else ""
    )
    samples = [str(i + 1) for i in range(metrics["samples_per_prompt"])]
    second = select("sample", "Sample", samples) if len(samples) > 1 else ""
    judged = '<div id="judged" aria-live="polite"></div>' if "judge" in data else ""
    colours = select("colour", "Colour tokens by", ["nothing", *data["colours"]]) if data["colours"] else ""
    return (
        '<section><h2 id="answers">Answers, side by side</h2>'
        "<p>Colour shows where guide and base disagree: log p(guide) − log p(base) of a token, in nats "
        f"(first {notes} prompts). "
        f"Point at a token, or move to it with the arrow keys, for its numbers.{esc(left_out)}</p>"
        f'<div class="picks">{select("prompt", "Prompt", prompts)}<button type="button" id="previous">Previous</button>'
        f'<button type="button" id="next">Next</button>{second}{colours}</div>'
        '<h3 class="label">Prompt</h3><pre id="prompt-text"></pre><div class="sides">'
        f'<article aria-live="polite">{select("left", "Left", names, 0)}<div id="left-answer"></div></article>'
        f'<article aria-live="polite">{select("right", "Right", names, best)}<div id="right-answer"></div></article>'
        "</div>"
        f"{judged}"
        '<p id="token-note" role="status" aria-live="polite">&nbsp;</p>'
        "<noscript><p>The picker needs JavaScript; every answer is in samples.jsonl.</p></noscript></section>"
    )


def _length(metrics: Metrics) -> str:
    return (
        '<section><h2 id="length">Does a scorer follow the length?</h2><p>Spearman’s rank correlation of score and '
        f"tokens. Far from 0: read that scorer’s gains at like length.</p>{length_table(metrics)}</section>"
    )


def _scorers(metrics: Metrics) -> str:
    return f'<section><h2 id="scorers">Scorers</h2>{scorer_table(metrics)}</section>'


def _run(metrics: Metrics) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in metrics["versions"].items())
    base = metrics["base"]
    facts = {
        "Command": metrics["command"] or "from Python",
        "Base": f"{base['base']} (weights {base['fingerprint']}, {base['dtype']}, "
        f"{base['quantization'] or 'not quantised'}, {base['device']})",
        "Guides": "; ".join(
            f"{g['name']}: {', '.join(g['objectives'])}"
            + (
                f", trained on {g['trained_on']['comparisons']} pairs ({g['trained_on']['sha256'][:12]})"
                if g["trained_on"]
                else ""
            )
            for g in metrics["guides"]
        ),
        "Prompts": f"{metrics['prompts']['count']} (hash {metrics['prompts']['sha256'][:12]})",
        "Time": f"{metrics['seconds']['answers']:.0f} s for answers, {metrics['seconds']['scores']:.0f} s for scores; "
        f"{metrics['written']} answers written by this process, the others found in the folder",
        "Versions": versions,
        **({"Suite": _suite(metrics["suite"])} if metrics["suite"] else {}),
        "Judge": _asked(metrics["judge"]),
        "Beside this file": "samples.jsonl, tokens.jsonl, metrics.json, config.yaml, plots/"
        + (", suites/" if metrics["suite"] else "")
        + (", judgements.jsonl, verdicts.jsonl" if metrics["judge"] else ""),
    }
    items = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in facts.items())
    return f'<section><h2 id="run">How it was run</h2><dl class="run">{items}</dl></section>'
