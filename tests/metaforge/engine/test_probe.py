"""What the loss of one task shows: the fused norm functions that it calls, and whether `vmap` runs it."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from engine_toys import Fused, image_learner, images, maml
from metaforge.authoring.functional import one_task
from metaforge.engine.probe import Probe, fused_norms, probe_loss, reason_not_to_batch
from metaforge_plugins.learners.metric.protonet import ProtoNet
from toys import fresh, keys, learner, task, tasks


def test_fused_norm_functions_are_found_for_learners_that_adapt() -> None:
    built = image_learner(lambda: Fused(nn.BatchNorm2d(4)))
    assert fused_norms(built, fresh(built), one_task(images(3)), keys(1)[0]) == ("layer_norm",)
    assert fused_norms(maml(), fresh(maml()), task(), keys(1)[0]) == ()
    assert probe_loss(built, fresh(built), images(1), keys(1)[0]) == Probe(("layer_norm",))


class Branching(nn.Module):
    """Branches on the value of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


def test_a_loss_that_vmap_cannot_run_is_named_with_its_layer() -> None:
    built = learner(ProtoNet, backbone=lambda: nn.Sequential(nn.Linear(3, 4), Branching()))
    probe = probe_loss(built, fresh(built), tasks(1), keys(1)[0])
    assert probe.fused_norms == ()
    assert "in the layer '1' (Branching) of the network" in probe.not_batched_because
    assert "\n" not in probe.not_batched_because


def test_only_errors_of_torch_are_reasons() -> None:
    def fail() -> None:
        raise ValueError("a mistake")

    assert reason_not_to_batch(lambda: None) == ""
    with pytest.raises(ValueError, match="a mistake"):
        reason_not_to_batch(fail)
