"""The contracts: what a task is, and what a plugin of each kind must offer.

A learner gets one task and is a pure function of (values, task, key). Only the engine and data sets handle batches of
tasks.

**Values.** Everything that a learner learns or carries from task to task is one flat dictionary of tensors with dotted
names. A name that begins with `state.` is a state entry, such as a running mean: it is saved and passed to every call
but never differentiated, and a learner returns what to add to it in `Aux.state`. Every other entry is a parameter,
which the outer optimiser updates. Adapted weights (`Fast`) can replace entries for one task: `values | fast`.

**Keys.** Randomness is an argument: a key is an int64 scalar tensor (see `metaforge.authoring.keys`). `key=None` means
evaluation: no statistics are collected and no noise is drawn. A regularizer whose method needs noise in evaluation
draws it from a key that it documents.
"""

from __future__ import annotations

from metaforge.authoring.protocols.adapter import Adapter, AdapterTags, GradientTransform, InnerStep
from metaforge.authoring.protocols.backbone import (
    Backbone,
    BackboneOptions,
    ContextBackbone,
    PretrainedBackbone,
    PretrainedOptions,
)
from metaforge.authoring.protocols.component import Component, Hook, Options, Preset
from metaforge.authoring.protocols.dataset import Dataset
from metaforge.authoring.protocols.learner import Learner, Parts, Tags
from metaforge.authoring.protocols.optimizer import Optimizer, Schedule
from metaforge.authoring.protocols.regularizer import Regularizer
from metaforge.authoring.protocols.types import (
    SHARE,
    STATE,
    STEP,
    Aux,
    BatchNormPolicy,
    Examples,
    Fast,
    Key,
    Kind,
    NormPolicy,
    Params,
    Pass,
    Task,
    TaskShape,
    TaskSpec,
)

__all__ = [
    "SHARE",
    "STATE",
    "STEP",
    "Adapter",
    "AdapterTags",
    "Aux",
    "Backbone",
    "BackboneOptions",
    "BatchNormPolicy",
    "Component",
    "ContextBackbone",
    "Dataset",
    "Examples",
    "Fast",
    "GradientTransform",
    "Hook",
    "InnerStep",
    "Key",
    "Kind",
    "Learner",
    "NormPolicy",
    "Optimizer",
    "Options",
    "Params",
    "Parts",
    "Pass",
    "Preset",
    "PretrainedBackbone",
    "PretrainedOptions",
    "Regularizer",
    "Schedule",
    "Tags",
    "Task",
    "TaskShape",
    "TaskSpec",
]
