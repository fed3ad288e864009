"""What becomes of a request whose copy of the model dies, without Ray: handles that fail as Ray's do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from pipeline.serving import job
from pipeline.serving.answering import Asked, Found
from pipeline.serving.job import ATTEMPTS, Scale, _ByHandles
from pipeline.serving.limits import Refusal

ASKED = Asked(b"", ("a dog",), 0.0, 1)
FOUND = Found(1, 1, (), 0.1, 1)


class Method:
    """Answers in turn, the last answer again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls = list(answers), 0

    async def remote(self, *arguments: Any) -> Any:
        self.calls += 1
        answer = self.answers[min(self.calls, len(self.answers)) - 1]
        if isinstance(answer, Exception) and not isinstance(answer, Refusal):  # which are returned
            raise answer
        return answer


class Handle:
    def __init__(self, *answers: Any) -> None:
        self.find, self.names = Method(*answers), Method(ActorDiedError(), ("a dog",))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "BETWEEN_ATTEMPTS_S", 0.0)


def find(handle: Any) -> Found:
    return asyncio.run(_ByHandles({"student": handle}).find("student", ASKED))


def test_another_copy_answers_for_one_that_died() -> None:
    handle = Handle(ActorDiedError(), ActorUnavailableError("gone", None), FOUND)
    assert find(handle) == FOUND
    assert handle.find.calls == 3
    assert asyncio.run(_ByHandles({"student": handle}).models()) == {"student": ("a dog",)}


def test_where_every_copy_dies_there_is_an_answer() -> None:
    handle = Handle(ActorDiedError())
    with pytest.raises(Refusal, match="no copy of student") as refused:
        find(handle)
    assert refused.value.status == 503
    assert handle.find.calls == ATTEMPTS


def test_refusals_and_errors_of_the_model_are_not_tried_again() -> None:
    for answer, kind in (
        (Refusal(415, "not_a_picture", "no"), Refusal),
        (RayTaskError("f", "t", KeyError("k")), KeyError),
    ):
        handle = Handle(answer.as_instanceof_cause() if isinstance(answer, RayTaskError) else answer)
        with pytest.raises(kind):
            find(handle)
        assert handle.find.calls == 1


def test_scales_become_options_of_ray_serve() -> None:
    assert Scale(replicas=2).options()["num_replicas"] == 2
    scaling = Scale(replicas=1, most_replicas=4, gpus=0.5, cpus=0, batch=16).options()
    assert scaling["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16}
    assert scaling["ray_actor_options"] == {"num_gpus": 0.5, "num_cpus": 0}
