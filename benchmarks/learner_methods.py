"""The methods that are compared: each as a plain loop, and as MetaForge's plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.learner_loops import (
    closed_form,
    generated,
    implicit,
    initialisations,
    learned_rules,
    metric,
    outer_losses,
    processes,
    streams,
)
from benchmarks.learner_loops.plain import Plain
from metaforge.authoring import Key, Task

# The networks on which a method is compared, with how many times as fast as the loop compiled MetaForge is to be. On
# small curves nearly all time of a loop of inner steps is that of Python. Where one batch is all, as in pretraining,
# there is no loop over tasks to save.
BOTH: Mapping[str, float] = {"conv4": 2, "sinusoid": 20}
IMAGES: Mapping[str, float] = {"conv4": 2}
CURVES: Mapping[str, float] = {"sinusoid": 2}
PRETRAINING: Mapping[str, float] = {"conv4": 1}


class Method(NamedTuple):
    """A method as a plain loop, and as MetaForge's plugins.

    Attributes:
        loss: The loss of one task, or the numbers that `combine` needs, as a function of values, task and `Plain`, and
            of what `draws` returns.
        settings: The settings of a run; everything else is as a run of the learner has it.
        networks: The networks on which it is compared, with the goals.
        images: Further settings on Conv-4.
        variant: The variant of Conv-4.
        combine: The outer loss of the numbers of all tasks `[tasks, ...]`; None for the mean of the losses.
        draws: The random numbers of a task, from its key. They are drawn before the loop is timed, because torch draws
            such numbers faster than functions of a key do.
        pretrains: Whether it trains the body with a classifier of all training classes, on one batch.
        streams: Whether it reads a task as a stream, one example after another.
        backbone: Whether its network is a backbone, which the user chooses.
        remark: What the page adds to the names of the plugins.
    """

    loss: Callable[..., Tensor]
    settings: Mapping[str, Any]
    networks: Mapping[str, float] = BOTH
    images: Mapping[str, Any] = {}
    variant: str = "stride"
    combine: Callable[[Tensor, Plain], Tensor] | None = None
    draws: Callable[[Key, Task, Plain], Tensor] | None = None
    pretrains: bool = False
    streams: bool = False
    backbone: bool = True
    remark: str = ""


def _learner(name: str, **options: Any) -> dict[str, Any]:
    return {"learner": {"name": name, **options}}


METHODS: Mapping[str, Method] = {
    "maml": Method(initialisations.maml, _learner("maml")),
    "fomaml": Method(initialisations.fomaml, _learner("fomaml")),
    # A mini-batch of all examples, so that their order does not matter. With a smaller ε the rounding errors of biases
    # before batch norm, whose gradient is zero, would be steps of full length.
    "reptile": Method(
        initialisations.reptile,
        _learner("reptile", batch=1000),
        images={"adapters": {"adam": {"lr": 3e-3, "beta1": 0.0, "eps": 1e-5}}},
    ),
    "mamlpp": Method(initialisations.mamlpp, _learner("mamlpp")),
    "anil": Method(initialisations.anil, _learner("anil")),
    "boil": Method(initialisations.boil, _learner("boil")),
    "imaml": Method(implicit.imaml, _learner("imaml")),
    "cavia": Method(initialisations.cavia, _learner("cavia")),
    "proto-maml": Method(initialisations.proto_maml, _learner("proto-maml"), IMAGES),
    # Its own norm policy has no counterpart in torch. It has 16 filters, as is suggested: its states are large.
    "meta-lstm": Method(
        learned_rules.meta_lstm,
        _learner("meta-lstm", norm="transductive"),
        images={"backbone": {"filters": 16}},
    ),
    "learned-loss": Method(learned_rules.learned_loss, _learner("learned-loss")),
    "meta-sgd": Method(learned_rules.meta_sgd, _learner("maml") | {"adapters": ["meta-sgd"]}),
    "lslr": Method(learned_rules.lslr, _learner("maml") | {"adapters": ["lslr"]}),
    "meta-curvature": Method(learned_rules.meta_curvature, _learner("maml") | {"adapters": ["meta-curvature", "sgd"]}),
    # It has a rate of its own, so that no `sgd` follows it.
    "kfo": Method(learned_rules.kfo, _learner("maml") | {"adapters": ["kfo"]}),
    "taml-entropy": Method(outer_losses.taml_entropy, _learner("maml") | {"regularizers": ["taml-entropy"]}, IMAGES),
    "taml-inequality": Method(
        outer_losses.taml_inequality,
        _learner("maml") | {"regularizers": ["taml-inequality"]},
        combine=outer_losses.theil,
    ),
    "fine-tune": Method(outer_losses.pretraining, _learner("fine-tune"), PRETRAINING, pretrains=True),
    "baseline": Method(outer_losses.pretraining, _learner("baseline"), PRETRAINING, pretrains=True),
    "baseline-plus-plus": Method(
        outer_losses.cosine_pretraining, _learner("baseline-plus-plus"), PRETRAINING, pretrains=True
    ),
    "protonet": Method(metric.protonet, _learner("protonet"), IMAGES),
    "matching": Method(metric.matching, _learner("matching"), IMAGES),
    "matching-full-context": Method(
        metric.matching_full_context,
        _learner("matching", full_context=True),
        IMAGES,
        draws=metric.support_order,
        remark="full context",
    ),
    "siamese": Method(metric.siamese, _learner("siamese"), IMAGES),
    # It compares maps, which the other variants do not have.
    "relation": Method(metric.relation, _learner("relation"), IMAGES, variant="relation"),
    "simpleshot": Method(outer_losses.pretraining, _learner("simpleshot"), PRETRAINING, pretrains=True),
    "r2d2": Method(closed_form.r2d2, _learner("r2d2"), IMAGES),
    "metaopt-svm": Method(closed_form.metaopt_svm, _learner("metaopt-svm"), IMAGES),
    "meta-networks": Method(generated.meta_networks, _learner("meta-networks"), IMAGES, draws=generated.drawn_examples),
    "eb-meta-networks": Method(generated.eb_meta_networks, _learner("eb-meta-networks"), IMAGES),
    "mann": Method(streams.mann, _learner("mann"), IMAGES, draws=streams.stream_order, streams=True),
    "ntm": Method(streams.ntm, _learner("ntm"), IMAGES, draws=streams.stream_order, streams=True),
    "snail": Method(streams.snail, _learner("snail"), IMAGES, draws=metric.support_order),
    "in-context": Method(streams.in_context, _learner("in-context"), IMAGES, draws=streams.stream_order, streams=True),
    # The whole support set is the context: a random part of it would be a mask in the loop too.
    "in-context-curves": Method(streams.in_context_curves, _learner("in-context", vary_context=False), CURVES),
    "cnp": Method(processes.cnp, _learner("cnp", vary_context=False), CURVES, backbone=False),
    "np": Method(
        processes.np,
        _learner("np", vary_context=False),
        CURVES,
        draws=processes.noise_of_latent,
        backbone=False,
    ),
    "anp": Method(
        processes.anp,
        _learner("anp", vary_context=False),
        CURVES,
        draws=processes.noise_of_latent,
        backbone=False,
    ),
}
