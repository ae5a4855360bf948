"""Plans that follow one another: a rank is lost, one comes back, batches change; and what is left of the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from emucsd.stannis.errors import NoRanks
from emucsd.stannis.plan import batches as sizes
from emucsd.stannis.plan.balancer import balance
from emucsd.stannis.plan.order import spent
from emucsd.stannis.plan.plan import Engine, Plan, Pool, Rest
from emucsd.stannis.plan.spread import spread


def replan(plan: Plan, engines: Sequence[Engine], pools: Sequence[Pool], *, epoch: int = 0, step: int = 0) -> Plan:
    """The next generation, for these engines and pools: asked for as ``plan`` was, of the same seed.

    What is left of the epoch is dealt anew, so that each of its samples still comes once; a pool that is back after it
    was away goes on where it was. A global batch that was asked for is kept as far as memories take it.

    :param epoch: where the run stands
    :param step: of that epoch under ``plan``: steps that were trained by all ranks
    :raises NoRanks: no engine is left, or no samples
    :raises PlanError: as ``balance``
    """
    room = sizes.most(engines)
    asked = plan.asked_batch if plan.asked_batch is None or room is None else min(plan.asked_batch, room)
    new = balance(
        engines,
        pools,
        global_batch=asked,
        strategy="auto" if plan.asked_strategy == "public" else plan.asked_strategy,  # go on, if not as asked
        seed=plan.seed,
        sync_seconds=plan.sync_seconds,
        equal=plan.equal,
        generation=plan.generation + 1,
    )
    rest = _rest(plan, new, epoch, step)
    return replace(new, asked_batch=plan.asked_batch, asked_strategy=plan.asked_strategy, rest=rest)


def lose(plan: Plan, node: str, *, epoch: int = 0, step: int = 0) -> Plan:
    """Without a node: its private samples leave with it, public ones go to the others.

    :raises NoRanks: it was the last, or the others have no samples
    """
    engines = [engine for engine in plan.engines if engine.node != node]
    if not engines:
        raise NoRanks(f"{node} was the last engine of this run; resume from a checkpoint once it is back")
    nodes = {engine.node for engine in engines}
    left = [pool for pool in plan.pools if nodes & set(pool.at)]
    if not sum(pool.count for pool in left):
        raise NoRanks(f"with {node} all samples are gone; resume from a checkpoint once it is back")
    return replan(plan, engines, left, epoch=epoch, step=step)


def join(plan: Plan, engine: Engine, pools: Sequence[Pool], *, epoch: int = 0, step: int = 0) -> Plan:
    """With a node more, or one that is back.

    :param engine: takes the place of one of the same node
    :param pools: those that it brings or can read; each takes the place of one of the same name
    """
    engines = {one.node: one for one in (*plan.engines, engine)}
    every = {pool.name: pool for pool in (*plan.pools, *pools)}
    return replan(plan, list(engines.values()), list(every.values()), epoch=epoch, step=step)


def _rest(old: Plan, new: Plan, epoch: int, step: int) -> Rest | None:
    """What is left of an epoch, dealt by the new batches. Nothing is repeated in it."""
    trained = spent(old, epoch, step)
    if not trained:
        return None
    places = {node: rank for rank, node in enumerate(new.nodes)}
    left = [max(pool.count - sum(end - first for first, end in trained.get(pool.name, ())), 0) for pool in new.pools]
    deal = spread(left, [[places[node] for node in pool.at if node in places] for pool in new.pools], new.batches)
    quotas = tuple({new.pools[pool].name: count for pool, count in sorted(quota.items())} for quota in deal.quotas)
    return Rest(epoch, deal.steps, old.progress(epoch, step) - epoch, quotas, trained)
