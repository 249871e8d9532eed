"""What the server counts of itself, as Prometheus reads it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import fm
from fm.backends.stored import StoreBackend

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds; a request is counted in every bucket that it fits."""


class Counters:
    """Counts since the server started. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._within: Counter[float] = Counter()
        self._seconds = 0.0
        self.followers = 0

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answered request; a stream's seconds are its life and so not counted as an answer's."""
        with self._lock:
            self._requests[(method, route, status)] += 1
            if not route.endswith("/stream"):
                self._seconds += seconds
                self._within.update(bound for bound in (*_BOUNDS, float("inf")) if seconds <= bound)

    def text(self, backend: StoreBackend) -> str:
        """Everything in Prometheus' text format, with what the store knows now."""
        return "\n".join([*self._lines(backend), ""])

    def _lines(self, backend: StoreBackend) -> Iterator[str]:
        yield "# TYPE ftctl_info gauge"
        yield f'ftctl_info{{version="{fm.__version__}"}} 1'
        yield "# TYPE ftctl_runs gauge"
        for status, count in sorted(backend.store.count_by_status().items()):
            yield f'ftctl_runs{{status="{status}"}} {count}'
        yield "# TYPE ftctl_agents gauge"
        yield f"ftctl_agents {len(backend.store.agents())}"
        yield "# TYPE ftctl_followers gauge"
        yield f"ftctl_followers {self.followers}"
        with self._lock:
            requests, within, seconds = sorted(self._requests.items()), dict(self._within), self._seconds
        yield "# TYPE ftctl_requests_total counter"
        for (method, route, status_code), count in requests:
            yield f'ftctl_requests_total{{method="{method}",route="{route}",status="{status_code}"}} {count}'
        yield "# TYPE ftctl_request_seconds histogram"
        for bound in _BOUNDS:
            yield f'ftctl_request_seconds_bucket{{le="{bound:g}"}} {within.get(bound, 0)}'
        total = within.get(float("inf"), 0)
        yield f'ftctl_request_seconds_bucket{{le="+Inf"}} {total}'
        yield f"ftctl_request_seconds_sum {seconds:.6f}"
        yield f"ftctl_request_seconds_count {total}"
