"""For tests of code that calls `fm`: a fake backend whose trainings do what a `Script` says, and pytest fixtures.

::

    def test_my_script(fm_fake):                  # a fixture: everything in the test goes to the fake
        run = fm.create(model="org/any-model", train_data_path=str(path), register_to="main.support.bot")
        assert run.wait().status == fm.Status.COMPLETED

    def test_what_my_script_says_of_a_failure(fm_fake):
        fm_fake.script = fm.testing.Script(fails_at=3, failure="loss is not finite")

Nothing is trained and torch is not imported; checks of requests and data, the run store, the agent and the registry are
the real ones. Time passes only when somebody asks about a run, so `wait` returns at once.

``with fm.testing.serve() as server`` puts such a fake behind a real server on loopback: ``backend=server.remote``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fm.backends.scripted import Script as Script
    from fm.testing.serving import serve as serve

__all__ = ["Script", "serve"]
_WHERE = {"Script": "fm.backends.scripted", "serve": "fm.testing.serving"}


def __getattr__(name: str) -> Any:
    # The pytest plugin is loaded in every test session, most of which never touch fm.
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
