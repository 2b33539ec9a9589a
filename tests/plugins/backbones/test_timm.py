"""timm: networks by name, without their heads, in trainings by every plan; weights that are fetched once."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import metaforge
from backbone_plans import inputs, size, spec_of
from benchmarks.zoo import import_torchvision
from library_runs import assert_equal_runs, trained
from metaforge.authoring import make_key, seeded
from metaforge.errors import ConfigError
from metaforge_plugins.backbones.timm import Timm, TimmOptions

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def timm() -> Any:
    """Return the package."""
    import_torchvision()
    import timm

    return timm


def network(model: str, *x_shape: int) -> nn.Module:
    with seeded(make_key(0)):
        return Timm(TimmOptions(model=model)).build(spec_of(*x_shape))


def test_the_features_are_what_the_classifier_takes(timm: Any) -> None:
    ours = network("test_resnet", 3, 32, 32).double().eval()
    theirs = timm.create_model("test_resnet").double().eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = inputs(2, 3, 32, 32)
    torch.testing.assert_close(theirs.get_classifier()(ours(x)), theirs(x), rtol=1e-12, atol=1e-12)
    assert size(ours) == size(theirs) - size(theirs.get_classifier())


@pytest.mark.parametrize(
    ("model", "x_shape", "features"),
    [
        ("test_resnet", (1, 28, 28), 96),
        ("test_resnet.r160_in1k", (5, 40, 24), 96),
        # Built for the size of the images: 2 × 3 patches of 16 pixels, and the class token.
        ("test_vit", (1, 32, 48), 64),
        ("resnet10t", (1, 28, 28), 512),
        ("mobilenetv3_small_050", (3, 32, 32), 1024),
    ],
)
def test_any_number_of_channels_and_size(model: str, x_shape: tuple[int, ...], features: int) -> None:
    made = network(model, *x_shape).eval()
    assert made(torch.zeros(2, *x_shape)).shape == (2, features)
    if model == "test_vit":
        assert made.pos_embed.shape[1] == 7


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet10x", "no network 'resnet10x'. Did you mean 'resnet10t"),
        ("test_resnet.nope", "no network 'test_resnet.nope'. Did you mean 'test_resnet"),
        ("hf-hub:timm/resnet18.a1_in1k", "no network"),
        ("local-dir:/tmp", "no network"),
    ],
)
def test_a_name_that_timm_does_not_have_is_refused(model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        network(model, 3, 32, 32)
    assert caught.value.where == "backbone.model"


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="timm cannot be imported") as caught:
        network("test_resnet", 3, 32, 32)
    assert "metaforge[timm]" in caught.value.remedy


def test_a_step_of_training_is_equal_by_every_plan(tmp_path: Path) -> None:
    assert_equal_runs(tmp_path, "timm:test_resnet", "vmap", "fold")


def test_its_networks_are_compared_with_plain_pytorch_as_those_of_the_user_are(tmp_path: Path) -> None:
    trained(tmp_path / "run", "timm:test_resnet", verify="auto")
    found = json.loads((tmp_path / "run" / "env.json").read_text("utf-8"))["verified"]
    assert max(found.values()) < 1e-9


@pytest.fixture
def fetched(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return the files that are asked for: each is a saved `test_resnet` of timm for images of three channels."""
    import huggingface_hub

    found: list[tuple[str, str]] = []
    with seeded(make_key(5)):
        save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "model.safetensors")

    def download(repository: str, name: str) -> str:
        found.append((repository, name))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return found


def test_a_run_begins_with_the_weights_that_it_fetches_once(
    fetched: list[tuple[str, str]], timm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = {"name": "timm", "model": "test_resnet", "pretrained": True}
    run = trained(tmp_path / "run", backbone, steps=0)
    assert fetched == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert "Note: the weights timm/test_resnet.r160_in1k are downloaded" in capsys.readouterr().err
    with seeded(make_key(5)):
        theirs = timm.create_model("test_resnet")
    saved = dict(theirs.named_parameters())
    # The images have one channel: timm adds up the weights of the three.
    first = saved["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(run.values["model.conv1.0.weight"], first.detach().double())
    last = run.values["model.layer4.0.conv1.weight"]
    assert torch.equal(last, saved["layer4.0.conv1.weight"].detach().double())
    facts = json.loads((tmp_path / "run" / "env.json").read_text("utf-8"))["weights"]
    assert facts["pretrained"] == "timm"
    assert len(facts["sha256"]) == 64
    again = metaforge.load(tmp_path / "run")
    assert all(torch.equal(again.values[name], value) for name, value in run.values.items())
    assert len(fetched) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hf_hub_filename": "open_clip_pytorch_model.bin"}, "no weights of 'test_resnet' in the safetensors format"),
        ({"hf_hub_id": None}, "no weights of 'test_resnet' in the safetensors format"),
    ],
)
def test_weights_in_other_formats_are_not_fetched(
    fetched: list[Any], timm: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    facts = replace(timm.get_pretrained_cfg("test_resnet"), **changes)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: facts)
    with pytest.raises(ConfigError, match=said):
        Timm(TimmOptions(model="test_resnet", pretrained=True)).pretrained(spec_of(3, 32, 32))
    assert not fetched


def test_a_download_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(repository: str, name: str) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ConfigError, match=r"test_resnet.* cannot be downloaded: OSError"):
        Timm(TimmOptions(model="test_resnet", pretrained=True)).pretrained(spec_of(3, 32, 32))
