"""timm: any network of the library timm by its name, without its head, as in `--backbone timm:resnet18`.

Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from metaforge.authoring import Params, PretrainedBackbone, PretrainedOptions, TaskSpec, input_sizes, note_stream
from metaforge.errors import ConfigError, nearest

# The name of a file of weights where timm does not say another one.
FILE = "model.safetensors"


class TimmOptions(PretrainedOptions):
    """Options of networks of timm."""

    after_colon: ClassVar[str] = "model"

    model: str = Field(
        "resnet18", min_length=1, max_length=200, description="name of the network, as timm.list_models() has it"
    )


def library() -> Any:
    """Return the package timm; raise `ConfigError` if it cannot be imported."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        # A RuntimeError comes from torchvision, which timm imports, if it was built for another version of torch.
        raise ConfigError(
            f"The package timm cannot be imported: {error}.",
            where="backbone",
            remedy="pip install 'metaforge[timm]'; torchvision, which it needs, must fit the installed torch",
        ) from error
    return timm


class Timm(PretrainedBackbone):
    """Any network of timm: `--backbone timm:NAME`. The features are what its classifier takes.

    It requires the package timm: `pip install 'metaforge[timm]'`. The network is built with `num_classes=0`, for the
    number of channels of the images, and for their size where its structure depends on it, as that of a vision
    transformer does. Networks that MetaForge cannot compute exactly are refused; see the page on networks.

    Initial weights are timm's for a new network. With `pretrained` they are those that the name stands for on
    huggingface.co, downloaded when a run begins; a file with the ending `.bin` is refused, because it is a pickle file.
    timm changes them where the number of channels or the size of the images differs from that of the training.
    """

    Config = TimmOptions
    reference: ClassVar[str] = "Wightman 2019, https://github.com/huggingface/pytorch-image-models"

    def __init__(self, config: TimmOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, channels, h, w]` to `[n, features]`.

        Raises:
            ConfigError: The inputs are not images, timm is not installed, or it has no network of this name.
        """
        return self._created(spec)

    def _created(self, spec: TaskSpec, **options: Any) -> nn.Module:
        """Return the network for tasks of a spec, with further options of `timm.create_model`."""
        channels, *sides = input_sizes(spec, "channels", "height", "width")
        timm, name = library(), self.config.model
        # Only these: other texts would be read as the address of a network to be downloaded, or as a folder.
        known = [*timm.list_models(), *timm.list_models(pretrained=True)]
        if name not in known:
            raise ConfigError(
                f"timm has no network {name!r}.{nearest(name, known)}",
                where="backbone.model",
                remedy="give one of the names in timm.list_models()",
            )
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            options["img_size"] = tuple(sides)
        network: nn.Module = timm.create_model(name, num_classes=0, in_chans=channels, **options)
        return network

    def pretrained(self, spec: TaskSpec) -> Params:
        """Return the weights that timm has for the name, without those of the classifier; they are downloaded.

        Raises:
            ConfigError: There are none, only a pickle file has them, or the download fails.
        """
        self.build(spec)  # For its errors, before anything is downloaded.
        facts = library().get_pretrained_cfg(self.config.model)
        repository, name = (getattr(facts, entry, None) for entry in ("hf_hub_id", "hf_hub_filename"))
        if not repository or not (name or FILE).endswith(".safetensors"):
            raise ConfigError(
                f"timm has no weights of {self.config.model!r} in the safetensors format.",
                where="backbone.pretrained",
                remedy="choose one of the names in timm.list_models(pretrained=True), or name a file with"
                " backbone.weights",
            )
        print(
            f"Note: the weights {repository} are downloaded from huggingface.co, or read from its local cache"
            " (backbone.pretrained).",
            file=note_stream(),
        )
        weights = self._created(spec, pretrained=True, pretrained_cfg_overlay={"file": _fetched(repository, name)})
        return dict(weights.state_dict())


def _fetched(repository: str, name: str | None) -> str:
    """Return the path of a file of huggingface.co, which is downloaded; raise `ConfigError` if that fails."""
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(repository, name or FILE))
    except Exception as error:
        raise ConfigError(
            f"The weights {repository} cannot be downloaded: {type(error).__name__}.",
            where="backbone.pretrained",
            remedy="check the connection to huggingface.co, or name a file with backbone.weights",
        ) from error
