"""A policy that acts for many sessions at once: a batch of observations, and one running skill for each session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spirl_ray.errors import SpirlError
from spirl_ray.policy.policy import Policy
from spirl_ray.skills.execution import Array, limited


class TooManySessions(SpirlError):
    """The error that no session can be added, because all are in use."""


@dataclass(frozen=True)
class ActRequest:
    """One observation of one session."""

    session: str
    observation: dict[str, Array]
    """The features of the policy, [*observed_shape] by name."""
    reset: bool = False
    """True at the start of an episode: the session's running skill is forgotten."""
    seed: int | None = None
    """The seed of the session's latents from here on, where they are drawn at random."""


@dataclass(frozen=True)
class Act:
    """The answer to an `ActRequest`."""

    action: Array
    """The primitive action [A] in [-1, 1]."""
    step: int
    """The number of actions that the running skill has had before this one: 0 where a new one has been chosen."""


@dataclass
class _Session:
    generator: torch.Generator
    used: float
    latent: Tensor | None = None
    """The latent [Z] of the running skill; None before the first one."""
    plan: Array | None = None
    """The actions [H, A] of an open-loop skill."""
    step: int = field(default=0)


class PolicySessions:
    """Acts as one `Policy` for each session would, with one pass through the networks for all of them.

    Args:
        policy: a loaded policy; whether latents are the most likely ones or drawn is its ``deterministic``.
        most: the most sessions at the same time.
        idle_s: seconds after which a session that has not been used makes room for a new one.
        clock: a function that returns seconds.
    """

    def __init__(
        self, policy: Policy, *, most: int = 1000, idle_s: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = policy
        self.most, self.idle_s, self._clock = most, idle_s, clock
        self._model = policy.execution.model
        self._sessions: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def end(self, session: str) -> bool:
        """Forgets a session; False where there is none of this name."""
        return self._sessions.pop(session, None) is not None

    def act(self, requests: Sequence[ActRequest]) -> list[Act | SpirlError]:
        """Answers requests in their order; several of one session count as successive observations.

        A request that cannot be answered gets its error in place of an answer, and the others are answered.
        """
        answers: list[Act | SpirlError | None] = [None] * len(requests)
        left = list(range(len(requests)))
        while left:
            now: dict[str, int] = {}
            for number in left:
                now.setdefault(requests[number].session, number)
            ready = []
            for number in now.values():
                try:
                    ready.append((number, self._session(requests[number])))
                except TooManySessions as error:
                    answers[number] = error
            if ready:
                found = self._answer([requests[number] for number, _ in ready], [session for _, session in ready])
                for (number, _), act in zip(ready, found, strict=True):
                    answers[number] = act
            left = [number for number in left if number not in now.values()]
        return [answer for answer in answers if answer is not None]

    def _session(self, request: ActRequest) -> _Session:
        """The session of a request, which is made or begins again if need be."""
        clock, session = self._clock(), self._sessions.get(request.session)
        if session is None:
            if len(self._sessions) >= self.most:
                kept = {name: one for name, one in self._sessions.items() if clock - one.used < self.idle_s}
                self._sessions = kept
            if len(self._sessions) >= self.most:
                raise TooManySessions(f"there are {self.most} sessions already: end one, or ask again later")
            session = self._sessions[request.session] = _Session(torch.Generator(), clock)
            session.generator.seed()  # torch begins every generator with the same seed
        if request.seed is not None:
            session.generator.manual_seed(request.seed)
        if request.reset:
            session.latent, session.plan, session.step = None, None, 0
        session.used = clock
        return session

    @torch.inference_mode()
    def _answer(self, requests: Sequence[ActRequest], sessions: Sequence[_Session]) -> list[Act]:
        horizon = self._model.spec.horizon
        due = [row for row, one in enumerate(sessions) if one.latent is None or one.step >= horizon]
        if due:
            self._choose([requests[row] for row in due], [sessions[row] for row in due])
        if self._model.kind.closed_loop:
            latents = torch.stack([one.latent for one in sessions if one.latent is not None])
            actions = self._model.decode(self._observed(requests), latents)[:, 0].numpy()
        else:
            actions = np.stack([one.plan[one.step] for one in sessions if one.plan is not None])
        acts = [Act(np.clip(action, -1.0, 1.0), one.step) for action, one in zip(actions, sessions, strict=True)]
        for one in sessions:
            one.step += 1
        return acts

    def _choose(self, requests: Sequence[ActRequest], sessions: Sequence[_Session]) -> None:
        """Begins a new skill in each session."""
        chosen: list[Tensor]
        if self.policy.deterministic:
            chosen = list(self.policy.choose(self._stack(requests, self.policy.features)).mode())
        else:  # each session draws from its own generator
            rows = [self._stack([request], self.policy.features) for request in requests]
            pairs = zip(rows, sessions, strict=True)
            chosen = [self.policy.choose(row).sample(one.generator)[0] for row, one in pairs]
        latents = limited(torch.stack(chosen), self.policy.execution.latent_limit)
        plans = None
        if not self._model.kind.closed_loop:
            plans = self._model.decode(self._observed(requests), latents).numpy()
        for row, one in enumerate(sessions):
            one.latent, one.step = latents[row], 0
            one.plan = None if plans is None else plans[row]

    def _observed(self, requests: Sequence[ActRequest]) -> dict[str, Tensor] | None:
        """The observations for the decoder, [B, 1, *observed_shape] by name; None if it gets none."""
        if self._model.kind.observes == "nothing":
            return None
        return {name: value.unsqueeze(1) for name, value in self._stack(requests, self._model.spec.features).items()}

    def _stack(self, requests: Sequence[ActRequest], names: Iterable[str]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.stack([one.observation[name] for one in requests])) for name in names}
