"""The scores of a run on validation tasks, computed by all of its processes."""

from __future__ import annotations

from metaforge.authoring.protocols import Params
from metaforge.results.episode_scores import episode_chunks, score_episodes, together
from metaforge.runs.worker import Worker


def validation_scores(worker: Worker, values: Params, tasks: int, step: int) -> list[float]:
    """Return the scores of the first tasks of the validation split, NaN where a prediction is not finite.

    Each process computes a part of the tasks; all processes return the scores of all tasks.

    Args:
        worker: The computation of the run in this process.
        values: The learner's values.
        tasks: The number of tasks.
        step: The number of the outer step, for error messages.
    """
    when, world, parts, engine = f"at outer step {step}", worker.world, worker.parts, worker.settings.engine
    with worker.resolved.running_errors("spec", when, owner=worker.resolved.dataset):
        case = parts.evaluation_case("val")
    chunk = together(case, worker.device, engine.chunk)
    # The same chunks for any number of processes: the last bits of a score depend on which tasks are in its chunk.
    chunks = [*episode_chunks(tasks, chunk)]
    ends = [len(chunks) * rank // world.size for rank in range(world.size + 1)]
    shares = [chunks[ends[rank] : ends[rank + 1]] for rank in range(world.size)]
    scores: list[float] = []
    for episodes in shares[world.rank]:
        with worker.resolved.running_errors("validation", when):
            result = score_episodes(
                case,
                values,
                parts.dataset,
                episodes,
                split="val",
                seed=worker.settings.evaluate.seed,
                device=worker.device,
                dtype=worker.dtype,
                plan=worker.plan,
                chunk=engine.chunk,
            )
            scores += result.scores[0].tolist()
    return world.gather(scores, [sum(map(len, share)) for share in shares])
