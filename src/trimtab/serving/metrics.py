"""What is counted and timed, as Prometheus reads it.

What vLLM counts too has vLLM's names, ``vllm:`` included, so that dashboards made for it show this server; what only
guided decoding has begins with ``trimtab:``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trimtab.serving import logs

if TYPE_CHECKING:
    from trimtab.engine.answers import Answer
    from trimtab.engine.worker import News
    from trimtab.serving.gateway import Gateway, Ticket

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_WEIGHTS = (-5, -2, -1, -0.5, 0, 0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100)
_NATS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_MODEL = ("model_name",)
_REFUSALS = {401: "key", 403: "origin", 408: "slow", 413: "body", 431: "head"}


class Metrics:
    """Counters and times of one server, in a registry of their own."""

    def __init__(self, model_name: str = "") -> None:
        """Begin at zero.

        Args:
            model_name: the label that vLLM's metrics have.
        """
        self.model_name = model_name
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self._count_as_vllm()
        self._count_as_trimtab()
        self._last: dict[Answer, float] = {}  # answers being written → time of the last token

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = _MODEL) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = _MODEL
    ) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)

    def _count_as_vllm(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts.")
        self._generation_tokens = counter("vllm:generation_tokens", "Tokens written.")
        self._cache_queries = counter("vllm:prefix_cache_queries", "Tokens of prompts looked up in the prefix cache.")
        self._cache_hits = counter("vllm:prefix_cache_hits", "Tokens of prompts found in the prefix cache.")
        self._success = counter("vllm:request_success", "Answers, by how they ended.", (*_MODEL, "finished_reason"))
        self._first = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", _FIRST)
        self._next = histogram("vllm:inter_token_latency_seconds", "From one token to the next.", _NEXT)
        self._whole = histogram("vllm:e2e_request_latency_seconds", "From arrival to the end of an answer.", _WHOLE)
        self._request_prompt = histogram("vllm:request_prompt_tokens", "Tokens of an answer's prompt.", _TOKENS)
        self._request_tokens = histogram("vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS)

    def _count_as_trimtab(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._weight = histogram(
            "trimtab:guidance_weight", "Weight of a guide in a request, strength included.", _WEIGHTS, ("guide",)
        )
        self._kl = histogram(
            "trimtab:guidance_kl_nats", "KL(guided || base) of tokens, of requests that ask for it.", _NATS, ()
        )
        self._rejected = counter("trimtab:requests_rejected", "Requests refused before any work.", ("reason",))
        self._answers = counter("trimtab:http_requests", "HTTP requests answered.", ("method", "route", "status"))

    def watch(self, gateway: Gateway, model_name: str) -> None:
        """Read from now on what a gateway and its engine know themselves, whenever somebody asks for it."""
        self.model_name = model_name
        self.registry.register(_Live(gateway, model_name))

    def arrived(self, ticket: Ticket) -> None:
        """A request was admitted: it is counted, and the log line of whoever sent it will tell of it."""
        exchange = logs.current()
        if exchange is not None:
            exchange.tickets.append(ticket)
        for answer in ticket.answers:
            tokens = len(answer.prompts[0])
            self._prompt_tokens.labels(self.model_name).inc(tokens)
            self._request_prompt.labels(self.model_name).observe(tokens)
        first = ticket.answers[0]
        for guide, pull in zip(ticket.gateway.engine.guides.values(), first.pulls, strict=True):
            self._weight.labels(guide.name).observe(pull.weight)

    def wrote(self, ticket: Ticket, news: News) -> None:
        """Tokens of a request were written."""
        answer, now = news.request, time.monotonic()
        count = len(news.token_ids)
        if count:
            self._generation_tokens.labels(self.model_name).inc(count)
            last = self._last.get(answer)  # type: ignore[arg-type]
            if last is None:
                self._first.labels(self.model_name).observe(now - ticket.arrived)
            # Tokens that one step wrote together came at equal distances, as far as their reader's rate goes.
            later, began = (count, last) if last is not None else (count - 1, now)
            for _ in range(later):
                self._next.labels(self.model_name).observe((now - began) / count)
            self._last[answer] = now  # type: ignore[index]
        for scores in news.noted:
            if scores.kl is not None:
                self._kl.observe(scores.kl)

    def ended(self, ticket: Ticket, *, aborted: bool) -> None:
        """A request has ended; ``aborted`` if answers of it were given up."""
        del aborted  # each answer knows
        now = time.monotonic()
        for answer in ticket.answers:
            self._last.pop(answer, None)
            self._success.labels(self.model_name, logs.finish_reason(ticket, answer)).inc()
            self._whole.labels(self.model_name).observe(now - ticket.arrived)
            self._request_tokens.labels(self.model_name).observe(len(answer.tokens))
            self._cache_queries.labels(self.model_name).inc(len(answer.prompts[0]))
            self._cache_hits.labels(self.model_name).inc(answer.cached_tokens or 0)

    def rejected(self, reason: str) -> None:
        """A request was refused: ``queue_full``, ``key``, ``origin``, ``slow``, ``body`` or ``head``."""
        self._rejected.labels(reason).inc()

    def answered(self, method: str, route: str, status: int) -> None:
        """A request was answered; ``route`` is the pattern that it matched, so that there are only so many."""
        self._answers.labels(method, route, str(status)).inc()
        if status in _REFUSALS:
            self.rejected(_REFUSALS[status])

    def expose(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _Live(Collector):
    """What is known at any moment, read when somebody asks."""

    def __init__(self, gateway: Gateway, model_name: str) -> None:
        self._gateway, self._model = gateway, model_name

    def collect(self) -> Iterator[Metric]:
        scheduler = self._gateway.engine.parts[1].scheduler
        statistics = scheduler.statistics
        gauges = {
            "vllm:num_requests_running": ("Answers being written or read.", self._gateway.running),
            "vllm:num_requests_waiting": ("Answers that wait for their turn.", self._gateway.waiting),
            "vllm:kv_cache_usage_perc": ("Share of the pages for keys and values in use.", scheduler.cache_usage),
        }
        counters = {
            "vllm:num_preemptions": ("Answers that gave up their pages to others.", statistics.preemptions),
            "vllm:spec_decode_num_draft_tokens": ("Tokens drafted.", statistics.drafted),
            "vllm:spec_decode_num_accepted_tokens": ("Drafts that became part of an answer.", statistics.kept),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=_MODEL)
            gauge.add_metric([self._model], value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=_MODEL)
            counter.add_metric([self._model], value)
            yield counter
        ours = {
            "trimtab:engine_steps": ("Steps of the engine; their rate is one over a step's time.", statistics.steps),
            "trimtab:engine_tokens_read": ("Tokens that steps read, of base and guides.", statistics.tokens_read),
            "trimtab:engine_failures": ("Steps that failed and ended every running answer.", self._gateway.failures),
        }
        for name, (text, value) in ours.items():
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("trimtab:ready", "Whether new requests are taken.", value=float(self._gateway.ready))
