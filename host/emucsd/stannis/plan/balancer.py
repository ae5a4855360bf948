"""The balancer: from engines and pools to a plan in which every rank takes the same number of steps (Eq. 1).

1. Batches: each engine's own best, or for a given global batch those of the shortest step.
2. Samples: private ones stay, public ones go to whom lacks (``spread``): the fewest steps that reach allows.
3. Where ranks lack samples even so: duplicates or shorter batches (``strategy``), whichever gives the higher image
   rate, as the paper has it. Both rates are in the plan.

Times are predicted from the engines' measured ones: a step takes as long as its slowest rank, then synchronisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from emucsd.stannis.errors import NoRanks, PlanError
from emucsd.stannis.plan import batches as sizes
from emucsd.stannis.plan.plan import Asked, Engine, Plan, Pool
from emucsd.stannis.plan.spread import spread
from emucsd.stannis.plan.strategy import Draft, few

Idle = Literal["drop", "refuse"]


def balance(
    engines: Sequence[Engine],
    pools: Sequence[Pool],
    *,
    global_batch: int | None = None,
    strategy: Asked = "auto",
    seed: int = 0,
    sync_seconds: float = 0.0,
    equal: bool = False,
    idle: Idle = "drop",
    generation: int = 0,
) -> Plan:
    """The plan for these engines and pools. Engines become ranks in their order.

    :param global_batch: samples a step over all ranks; None: the sum of the engines' own best batches
    :param strategy: for ranks that lack samples; ``auto``: whichever has the higher predicted rate
    :param sync_seconds: what synchronisation adds to a step
    :param equal: the same batch on every rank, as plain data parallelism has it: for comparison
    :param idle: an engine without samples is left out (``drop``), or an error (``refuse``)
    :raises PlanError: a pool that no engine reads, a global batch that the memories don't take or that gives a rank
        none, a strategy that does not suffice, or with ``idle="refuse"`` an engine without samples
    :raises NoRanks: no engine, or no samples
    """
    _check(engines, pools)
    draft, dropped = _seat(engines, pools, global_batch, equal, sync_seconds)
    if dropped and idle == "refuse":
        raise PlanError("; ".join(f"{node}: {why}" for node, why in dropped.items()))
    options = draft.options(strategy)
    best = max(options, key=lambda option: option.images_per_second)
    return Plan(
        seed=seed,
        generation=generation,
        steps=best.steps,
        shares=best.shares,
        pools=tuple(pools),
        engines=tuple(engines),
        step_seconds=best.step_seconds,
        sync_seconds=sync_seconds,
        images_per_second=best.images_per_second,
        unique_share=best.unique_per_second / best.images_per_second,
        strategy=best.strategy,
        rates={option.strategy: option.images_per_second for option in options},
        why=draft.why(best, options),
        dropped=dropped,
        asked_batch=global_batch,
        asked_strategy=strategy,
        equal=equal,
    )


def _check(engines: Sequence[Engine], pools: Sequence[Pool]) -> None:
    if not engines:
        raise NoRanks("no engine to train on; start one, or name the nodes that have one")
    if not sum(pool.count for pool in pools):
        raise NoRanks(f"no samples in {few([repr(pool.name) for pool in pools]) or 'no pool'}; nothing to train on")
    nodes = {engine.node for engine in engines}
    if len(nodes) != len(engines):
        raise PlanError(f"{len(engines)} engines on {len(nodes)} nodes; one a node, each under a name of its own")
    for pool in pools:
        if pool.count and not nodes & set(pool.at):
            raise PlanError(
                f"pool {pool.name!r} lies at {few(sorted(pool.at)) or 'no node'}, and none of the engines is there; "
                "bring that node in, or leave the pool out"
            )


def _seat(
    engines: Sequence[Engine], pools: Sequence[Pool], global_batch: int | None, equal: bool, sync_seconds: float
) -> tuple[Draft, dict[str, str]]:
    """Give every engine a rank that gets a sample. :returns: the draft; node -> why it has none"""
    ranks, dropped = list(engines), dict[str, str]()
    readers = {node for pool in pools if pool.count for node in pool.at}
    blind = [rank for rank, engine in enumerate(ranks) if engine.node not in readers]
    _drop(ranks, dropped, blind, "no samples that it can read")
    while True:
        if equal:
            batches = sizes.equal(ranks, global_batch)
        else:
            batches = sizes.tuned(ranks) if global_batch is None else sizes.fastest(ranks, global_batch)
        places = {engine.node: rank for rank, engine in enumerate(ranks)}
        reach = [[places[node] for node in pool.at if node in places] for pool in pools]
        deal = spread([pool.count for pool in pools], reach, batches)
        idle = [rank for rank, quota in enumerate(deal.quotas) if not quota]
        if not idle:
            return Draft(tuple(ranks), tuple(pools), tuple(batches), deal, sync_seconds), dropped
        _drop(ranks, dropped, idle, "fewer samples than ranks: the others have them all")


def _drop(ranks: list[Engine], dropped: dict[str, str], numbers: Sequence[int], why: str) -> None:
    for number in reversed(numbers):
        dropped[ranks.pop(number).node] = why
