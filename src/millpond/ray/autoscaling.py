"""`QueuedTokens`: how many replicas a queue of tokens asks for, as a policy of Ray Serve.

The name of this module and of the class can be given in a Serve config file, too:
`policy_function: millpond.ray.autoscaling:QueuedTokens`.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["QUEUED_TOKENS", "QueuedTokens", "replicas_for"]

QUEUED_TOKENS = "queued_tokens"
"""The metric that a replica records: tokens that wait or run in its engine."""


def replicas_for(queued_tokens: float, *, target: float, now: int) -> int:
    """How many replicas leave at most `target` of the tokens to each; at least one.

    Fewer than `now` are asked for only where they would stay below three quarters of the target,
    so that a queue at the target does not go up and down.
    """
    wanted = max(1, math.ceil(queued_tokens / target))
    if wanted >= now:
        return wanted
    return min(now, max(1, math.ceil(queued_tokens / (0.75 * target))))


class QueuedTokens:
    """Called by Serve's controller; its bounds and delays are those of `autoscaling_config`.

    `target_tokens` is what one replica is to have queued.
    """

    def __init__(self, target_tokens: float = 100_000) -> None:
        self._target_tokens = target_tokens

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        by_replica = ctx.aggregated_metrics.get(QUEUED_TOKENS, {})
        queued = sum(by_replica.get(replica, 0) for replica in ctx.running_replicas)
        wanted = replicas_for(queued, target=self._target_tokens, now=ctx.target_num_replicas)
        return wanted, {}
