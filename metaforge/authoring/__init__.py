"""What plugins are written with: protocols, pure functions, networks as functions of their values, keys and hooks.

A plugin imports from here and from `metaforge`, `metaforge.data`, `metaforge.testing` and `metaforge.errors`. The
other packages may change without notice.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaforge.authoring.amortised import (
        LatentProcessLearner,
        LatentProcessOptions,
        ProcessLearner,
        ProcessOptions,
        mean_code,
    )
    from metaforge.authoring.descent import Adjoint, Chain, Objective, descend, iterates
    from metaforge.authoring.distributions import coverage, log_mean, log_normal, normal_divergence
    from metaforge.authoring.functional import (
        add_params,
        advance_state,
        detach_params,
        gradient,
        matching,
        one_task,
        prefixed,
        select,
        split_state,
        sum_of,
    )
    from metaforge.authoring.hooks import Outcome, RunInfo, Stateful, hookimpl
    from metaforge.authoring.inner_loop import InnerLoopLearner
    from metaforge.authoring.inner_loop_options import InnerLoopOptions
    from metaforge.authoring.keys import fold_in, make_key, normal, permutation, uniform
    from metaforge.authoring.kinds import (
        CLASSIFICATION,
        INTERACTION,
        KINDS,
        MULTI_LABEL,
        REGRESSION,
        TaskKind,
        criterion,
        nearest_targets,
        score,
        task_kind,
    )
    from metaforge.authoring.losses import (
        accuracy,
        accuracy_by_instance,
        at_least_float32,
        binary_cross_entropy,
        cross_entropy,
        entropy,
        label_accuracy,
        mean_squared_error,
        one_hot,
    )
    from metaforge.authoring.mlp import MLP, initial_linear
    from metaforge.authoring.model import Model
    from metaforge.authoring.model_learner import ModelLearner
    from metaforge.authoring.network import (
        Headed,
        blank_examples,
        draws_noise,
        feature_size,
        input_sizes,
        seeded,
        with_head,
    )
    from metaforge.authoring.optimizers import MomentOptions, fused
    from metaforge.authoring.preprocessing import gradient_features
    from metaforge.authoring.pretraining import PretrainingLearner
    from metaforge.authoring.progress import progress_of, training_progress
    from metaforge.authoring.protocols import (
        SHARE,
        STATE,
        STEP,
        Adapter,
        AdapterTags,
        Aux,
        Backbone,
        BackboneOptions,
        BatchNormPolicy,
        Component,
        ContextBackbone,
        Dataset,
        Examples,
        Fast,
        GradientTransform,
        Hook,
        InnerStep,
        Key,
        Kind,
        Learner,
        NormPolicy,
        Optimizer,
        Options,
        Params,
        Parts,
        Pass,
        Preset,
        PretrainedBackbone,
        PretrainedOptions,
        Regularizer,
        Schedule,
        Tags,
        Task,
        TaskShape,
        TaskSpec,
    )
    from metaforge.authoring.recurrent import LSTMCell
    from metaforge.authoring.scale import Scale
    from metaforge.authoring.streams import StreamLearner
    from metaforge.kernels.implicit import conjugate_gradients
    from metaforge.system.line_files import append_lines, begin_lines
    from metaforge.system.streams import note_stream

__all__ = [
    "CLASSIFICATION",
    "INTERACTION",
    "KINDS",
    "MLP",
    "MULTI_LABEL",
    "REGRESSION",
    "SHARE",
    "STATE",
    "STEP",
    "Adapter",
    "AdapterTags",
    "Adjoint",
    "Aux",
    "Backbone",
    "BackboneOptions",
    "BatchNormPolicy",
    "Chain",
    "Component",
    "ContextBackbone",
    "Dataset",
    "Examples",
    "Fast",
    "GradientTransform",
    "Headed",
    "Hook",
    "InnerLoopLearner",
    "InnerLoopOptions",
    "InnerStep",
    "Key",
    "Kind",
    "LSTMCell",
    "LatentProcessLearner",
    "LatentProcessOptions",
    "Learner",
    "Model",
    "ModelLearner",
    "MomentOptions",
    "NormPolicy",
    "Objective",
    "Optimizer",
    "Options",
    "Outcome",
    "Params",
    "Parts",
    "Pass",
    "Preset",
    "PretrainedBackbone",
    "PretrainedOptions",
    "PretrainingLearner",
    "ProcessLearner",
    "ProcessOptions",
    "Regularizer",
    "RunInfo",
    "Scale",
    "Schedule",
    "Stateful",
    "StreamLearner",
    "Tags",
    "Task",
    "TaskKind",
    "TaskShape",
    "TaskSpec",
    "accuracy",
    "accuracy_by_instance",
    "add_params",
    "advance_state",
    "append_lines",
    "at_least_float32",
    "begin_lines",
    "binary_cross_entropy",
    "blank_examples",
    "conjugate_gradients",
    "coverage",
    "criterion",
    "cross_entropy",
    "descend",
    "detach_params",
    "draws_noise",
    "entropy",
    "feature_size",
    "fold_in",
    "fused",
    "gradient",
    "gradient_features",
    "hookimpl",
    "initial_linear",
    "input_sizes",
    "iterates",
    "label_accuracy",
    "log_mean",
    "log_normal",
    "make_key",
    "matching",
    "mean_code",
    "mean_squared_error",
    "nearest_targets",
    "normal",
    "normal_divergence",
    "note_stream",
    "one_hot",
    "one_task",
    "permutation",
    "prefixed",
    "progress_of",
    "score",
    "seeded",
    "select",
    "split_state",
    "sum_of",
    "task_kind",
    "training_progress",
    "uniform",
    "with_head",
]

# Searched in this order. The first four do not import torch.
_MODULES = (
    "metaforge.authoring.hooks",
    "metaforge.authoring.scale",
    "metaforge.system.line_files",
    "metaforge.system.streams",
    "metaforge.authoring.protocols",
    "metaforge.authoring.keys",
    "metaforge.authoring.functional",
    "metaforge.authoring.progress",
    "metaforge.authoring.losses",
    "metaforge.authoring.kinds",
    "metaforge.authoring.network",
    "metaforge.authoring.model",
    "metaforge.authoring.model_learner",
    "metaforge.authoring.pretraining",
    "metaforge.authoring.streams",
    "metaforge.authoring.recurrent",
    "metaforge.authoring.mlp",
    "metaforge.authoring.preprocessing",
    "metaforge.authoring.descent",
    "metaforge.authoring.inner_loop",
    "metaforge.authoring.distributions",
    "metaforge.authoring.amortised",
    "metaforge.authoring.optimizers",
    "metaforge.kernels.implicit",
)


def __getattr__(name: str) -> Any:
    # Imported on first use, because the command line needs the hook specifications but must not import torch.
    if name in __all__:
        for module in map(import_module, _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'metaforge.authoring' has no attribute {name!r}")
