"""The registry: metadata are read and nothing is imported; whatever is wrong with a plugin ends in a sentence."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaforge.authoring.protocols import Adapter, Backbone, Dataset, Learner, Options, Regularizer
from metaforge.errors import PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.registry.summaries import first_line

Install = Callable[..., Path]


class Doubling(Adapter):
    """Doubles the gradient."""

    class Config(Options):
        pass

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that puts a distribution with one module on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def put(distribution: str, points: str, source: str = "", requires: str = "", module: str = "") -> Path:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        (info / "METADATA").write_text(metadata + (f"Requires-Dist: {requires}\n" if requires else ""), "utf-8")
        (info / "entry_points.txt").write_text(textwrap.dedent(points), "utf-8")
        path = tmp_path / f"{module or distribution.replace('-', '_')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), "utf-8")
        return path

    yield put
    for name in set(sys.modules) - before:
        if name.startswith("mf_"):
            del sys.modules[name]


ADAPTER = '''
    """The module."""
    from metaforge.authoring.protocols import Adapter, Options

    class Mine(Adapter):
        """Mine, all mine.

        More words.
        """
        class Config(Options):
            pass
        def __init__(self, config): ...
        def update(self, meta, grads, state, params, step): ...
'''


def test_metadata_become_entries_and_nothing_is_imported(install: Install) -> None:
    install("mf-one", "[metaforge.adapters]\nmine = mf_one:Mine\n[other]\nx = y:z\n", ADAPTER)
    entry = scan().find("adapter", "mine")
    assert entry == Entry("adapter", "mine", "mf_one:Mine", "mf-one", "1.2", "Mine, all mine.")
    assert "mf_one" not in sys.modules


def test_load_imports_the_class_once(install: Install) -> None:
    install("mf-two", "[metaforge.adapters]\nmine = mf_two:Mine", ADAPTER)
    registry = scan()
    cls = registry.load("adapter", "mine")
    assert cls.__name__ == "Mine"
    assert registry.load("adapter", "mf-two:mine") is cls


def test_the_summary_of_a_module_inside_packages_is_found_without_importing_them(
    install: Install, tmp_path: Path
) -> None:
    points = (
        "[metaforge.adapters]\nmine = mf_deep.inner.mod:Mine\nother = mf_deep.inner.mod:Absent\nlost = mf_deep.no:X"
    )
    install("mf-deep", points, ADAPTER, module="mf_deep/inner/mod")
    for package in ("mf_deep", "mf_deep/inner"):
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    found = {entry.name: entry.summary for entry in scan().entries("adapter") if entry.distribution == "mf-deep"}
    assert found == {"mine": "Mine, all mine.", "other": "The module.", "lost": ""}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""Module."""\nclass A:\n    """Class.\n\n    More."""', "Class."),
        ('"""Module."""\nclass A(B[int], meta={"a": 1}):  # words\n\n    # more\n    """\n    Class."""', "Class."),
        ("class A: 'Class.'", "Class."),
        ('"""Module."""\nclass AB:\n    """Other."""\nclass A:\n    x = "text"', "Module."),
        ('class A:\n    """Class."""\n)))) no Python at all', "Class."),
        ('#!/bin/python\n\n"""Module."""', "Module."),
        ("class A:\n    b'bytes'", ""),
        ('class A:\n    """   """', ""),
        ("x = 1", ""),
        ("", ""),
        (f'class A:\n    """{"long " * 100}"""', ("long " * 40)),
    ],
)
def test_first_line(source: str, found: str) -> None:
    assert first_line(source, "A") == found


@pytest.mark.parametrize(
    ("content", "summary"),
    [
        ("# coding: latin-1\nclass Mine:\n    'Grüße.'\n".encode("latin-1"), "Grüße."),
        (b"class Mine:\n    '\xff.'\n", ""),
        (b"\x00\x01\x02", ""),
        (b"class Mine:\n    'Early.'\n" + b"x = 1\n" * 2_000_000, "Early."),
        (b"x = 1\n" * 2_000_000 + b"class Mine:\n    'Late.'\n", ""),
    ],
)
def test_a_source_of_any_size_and_encoding_is_listed(install: Install, content: bytes, summary: str) -> None:
    install("mf-source", "[metaforge.adapters]\nmine = mf_source:Mine").write_bytes(content)
    assert scan().find("adapter", "mine").summary == summary


def test_two_distributions_with_one_name_are_ambiguous_and_the_qualified_form_chooses(install: Install) -> None:
    install("mf-left", "[metaforge.adapters]\nmine = mf_left:Mine", ADAPTER)
    install("mf-right", "[metaforge.adapters]\nmine = mf_right:Mine", ADAPTER)
    registry = scan()
    found = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert [entry.state for entry in found] == ["ambiguous", "ambiguous"]
    assert "'mf-left:mine'" in found[0].reason
    assert "mine" not in registry.names("adapter")
    with pytest.raises(PluginError, match="ambiguous") as caught:
        registry.find("adapter", "mine")
    assert "'mf-left:mine', 'mf-right:mine'" in caught.value.remedy
    assert registry.find("adapter", "mf_right:mine").distribution == "mf-right"
    assert registry.load("adapter", "mf-left:mine") is not registry.load("adapter", "mf-right:mine")


def test_one_distribution_with_two_of_a_name_harms_itself_alone(install: Install) -> None:
    install("mf-twice", "[metaforge.adapters]\nmine = mf_twice:Mine\nmine = mf_twice:Other", ADAPTER)
    registry = scan()
    found = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert [entry.state for entry in found] == ["broken", "broken"]
    assert found[0].reason == "mf-twice has several adapters of this name"
    with pytest.raises(PluginError, match="cannot be used: mf-twice has several"):
        registry.load("adapter", "mf-twice:mine")
    install("mf-once", "[metaforge.adapters]\nmine = mf_once:Mine", ADAPTER)
    assert scan().find("adapter", "mine").distribution == "mf-once"


def test_names_in_an_entry_s_own_defaults_mean_its_own_distribution_s_or_metaforge_s() -> None:
    ours, theirs = Entry("adapter", "x", "a:B", "metaforge"), Entry("adapter", "x", "c:D", "zoo")
    registry = Registry([ours, theirs, Entry("adapter", "y", "a:B", "zoo"), Entry("adapter", "y", "e:F", "circus")])
    assert registry.resolve_default(theirs, "adapter", "x") == "zoo:x"
    assert registry.resolve_default(ours, "adapter", "x") == "metaforge:x"
    assert registry.resolve_default(Entry("learner", "z", "g:H", "circus"), "adapter", "x") == "metaforge:x"
    assert registry.resolve_default(ours, "adapter", "y") == "y"
    assert registry.resolve_default(theirs, "adapter", "unheard-of") == "unheard-of"


@pytest.mark.parametrize(
    ("point", "state"),
    [
        ("mine = mf_point", "broken"),
        ("mine = mf_point:", "broken"),
        ("mine = not a module:Mine", "broken"),
        ("mine = mf_point:Mine [extra, other]", "ready"),
        ("mine = mf_point : Mine", "ready"),
        ("Mine_2 = mf_point:Mine", "ready"),
        ("my own = mf_point:Mine", "broken"),
        ("a.b = mf_point:Mine", "broken"),
        ("a:b = mf_point:Mine", "broken"),
        ("none = mf_point:Mine", "broken"),
        ("m\x1b[31mine = mf_point:Mine", "broken"),
    ],
)
def test_an_entry_point_that_nothing_can_be_done_with_is_broken(install: Install, point: str, state: str) -> None:
    install("mf-point", f"[metaforge.adapters]\n{point}", ADAPTER)
    registry = scan()
    (entry,) = [entry for entry in registry.entries("adapter") if entry.distribution == "mf-point"]
    assert entry.state == state
    assert entry.name.isprintable()
    assert bool(entry.reason) == (state == "broken")
    if state == "ready":
        assert registry.load("adapter", entry.name).__name__ == "Mine"
    elif ":" not in entry.name:
        with pytest.raises(PluginError, match="cannot be used: its ") as caught:
            registry.load("adapter", entry.name)
        assert "pip uninstall mf-point" in caught.value.remedy


@pytest.mark.parametrize(
    ("metadata", "facts"),
    [
        ("Name: mf-meta\n", ("mf-meta", "")),
        ("Name: mf-meta\nVersion: 1\x1b[2J\x07\n", ("mf-meta", "1 [2J ")),
        ("Name: mf-meta\nVersion: 1\nVersion: 2\nName: other\n", ("mf-meta", "1")),
        ("Version: 1\n", None),
        ("Name: mf-\x1b[31mmeta\nVersion: 1\n", None),
        ("", None),
    ],
)
def test_metadata_of_any_kind_leave_the_list_whole(
    install: Install, tmp_path: Path, metadata: str, facts: tuple[str, str] | None
) -> None:
    install("mf-meta", "[metaforge.adapters]\nmine = mf_meta:Mine", ADAPTER)
    (tmp_path / "mf_meta-1.2.dist-info" / "METADATA").write_text(metadata, "utf-8")
    registry = scan()
    assert registry.default("hook") is not None
    found = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert [(entry.distribution, entry.version) for entry in found] == ([facts] if facts else [])
    assert len(registry.notes) == (0 if facts else 1)
    assert all(note.isprintable() and str(tmp_path) in note for note in registry.notes)


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        ("metaforge>=99", "incompatible"),
        ("metaforge<0.1", "incompatible"),
        ("metaforge>=0.1,<1", "ready"),
        ("metaforge", "ready"),
        ("metaforge >= 99 ; extra == 'test'", "ready"),
        ("metaforge-extras>=99", "ready"),
        ("metaforge ~~ 3", "incompatible"),
        ("metaforge>=0.1; planet == 'Mars'", "incompatible"),
    ],
)
def test_a_distribution_for_another_metaforge_is_incompatible(install: Install, requires: str, state: str) -> None:
    install("mf-old", "[metaforge.adapters]\nmine = mf_old:Mine", ADAPTER, requires=requires)
    registry = scan()
    (entry,) = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert entry.state == state
    if state == "incompatible":
        with pytest.raises(PluginError, match="cannot be used") as caught:
            registry.load("adapter", "mine")
        assert "mf-old 1.2" in caught.value.what


def test_an_incompatible_claim_does_not_make_a_name_ambiguous(install: Install) -> None:
    install("mf-good", "[metaforge.adapters]\nmine = mf_good:Mine", ADAPTER)
    install("mf-bad", "[metaforge.adapters]\nmine = mf_bad:Mine", ADAPTER, requires="metaforge>=99")
    assert scan().find("adapter", "mine").distribution == "mf-good"


@pytest.mark.parametrize(
    ("allowed", "state"), [("none", "hidden"), ("mf_open, x", "ready"), ("x", "hidden"), ("", "ready")]
)
def test_the_environment_can_hide_third_parties(
    install: Install, monkeypatch: pytest.MonkeyPatch, allowed: str, state: str
) -> None:
    install("mf-open", "[metaforge.adapters]\nmine = mf_open:Mine", ADAPTER)
    monkeypatch.setenv("METAFORGE_PLUGINS", allowed)
    registry = scan()
    (entry,) = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert entry.state == state
    assert all(entry.state == "ready" for entry in registry.entries() if entry.distribution == "metaforge")
    if state == "hidden":
        with pytest.raises(PluginError, match="METAFORGE_PLUGINS"):
            registry.find("adapter", "mine")
    assert [name in note for note in registry.notes for name in ["'x'"]] == [True] * allowed.count("x")


def test_only_metaforge_s_own_metadata_name_defaults(install: Install) -> None:
    install("mf-sly", "[metaforge.defaults]\nclassification = mf_sly:Mine\nhook = mf_sly:Mine")
    registry = scan()
    for key in ("classification", "regression", "hook"):
        entry = registry.default(key)
        assert entry is not None
        assert entry.distribution == "metaforge"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise RuntimeError('boom')", r"RuntimeError: boom\n"),
        ("raise RuntimeError('\\n  \\nfirst\\x1b[2J line\\nmore')", r"RuntimeError: first \[2J line\n"),
        ("raise RuntimeError('long' * 1000)", r"RuntimeError: (long){70,75}l?o?n?\n"),
        ("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E", "E: its message cannot be read"),
        ("class Stop(BaseException): pass\nraise Stop('now')", "Stop: now"),
        ("class M(type):\n    def __getattr__(cls, name): 1 / 0\nclass Mine(metaclass=M): pass", "ZeroDivisionError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("import mf_nowhere", "No module named 'mf_nowhere'"),
        ("def (", "SyntaxError"),
        ("", "has no attribute 'Mine'"),
        ("Mine = 3", "not a class but of type int"),
        ("class Mine: pass", "does not keep the contract"),
    ],
)
def test_whatever_goes_wrong_on_import_is_one_error_with_the_first_cause(
    install: Install, source: str, sentence: str
) -> None:
    install("mf-broken", "[metaforge.adapters]\nmine = mf_broken:Mine", source)
    with pytest.raises(PluginError, match=sentence) as caught:
        scan().load("adapter", "mine")
    assert "adapter 'mine' of mf-broken 1.2" in caught.value.what
    assert caught.value.where == "mf_broken:Mine"
    assert caught.value.remedy


def test_an_interrupt_is_the_user_s(install: Install) -> None:
    install("mf-stop", "[metaforge.adapters]\nmine = mf_stop:Mine", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        scan().load("adapter", "mine")


def test_a_plugin_cannot_take_stdout_away(install: Install, capfd: pytest.CaptureFixture[str]) -> None:
    grab = "import os, sys\nsys.stdout = sys.stderr\nos.write(1, b'loud')\n"
    install("mf-grab", "[metaforge.adapters]\nmine = mf_grab:Mine", grab + textwrap.dedent(ADAPTER))
    scan().load("adapter", "mine")
    sys.stdout.write("quiet\n")
    assert capfd.readouterr() == ("quiet\n", "loud")


def test_the_first_cause_of_a_chain_is_named(install: Install) -> None:
    source = "try:\n    raise OSError('no such drum')\nexcept OSError as e:\n    raise ValueError('later') from e"
    install("mf-chain", "[metaforge.adapters]\nmine = mf_chain:Mine", source)
    with pytest.raises(PluginError, match="OSError: no such drum"):
        scan().load("adapter", "mine")


def test_what_a_plugin_prints_on_import_stays_out_of_stdout(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("mf-loud", "[metaforge.adapters]\nmine = mf_loud:Mine", textwrap.dedent(ADAPTER) + "print('loud')")
    scan().load("adapter", "mine")
    out, err = capsys.readouterr()
    assert out == ""
    assert "loud" in err


def test_an_unknown_name_gets_the_nearest_one_and_what_to_do() -> None:
    registry = Registry([Entry("learner", "leopard", "a:B", "zoo"), Entry("adapter", "lion", "a:B", "zoo")])
    with pytest.raises(PluginError, match=r"No learner is called 'lepard'\. Did you mean 'leopard'\?") as caught:
        registry.find("learner", "lepard")
    assert sys.executable in caught.value.where
    assert "pip install" in caught.value.remedy
    with pytest.raises(PluginError, match="Another kind has it: adapter"):
        registry.find("learner", "lion")
    with pytest.raises(PluginError, match="'circus:leopard'"):
        registry.find("learner", "circus:leopard")
    anything = registry.unknown_name_error("lin")
    assert str(anything).startswith("No plugin is called 'lin'. Did you mean 'lion'?")
    assert "installed plugins: leopard, lion (interpreter" in anything.where


def test_including_a_class_of_one_s_own_takes_its_name_over() -> None:
    registry = Registry([Entry("adapter", "doubling", "a:B", "zoo")])
    wider = registry.with_plugin("adapter", "doubling", Doubling)
    assert wider.load("adapter", "doubling") is Doubling
    assert wider.find("adapter", "doubling").summary == "Doubles the gradient."
    assert registry.find("adapter", "doubling").distribution == "zoo"


class Empty(Options):
    pass


def broken(base: type[Any], **members: Any) -> type[Any]:
    def __init__(self: Any, config: Any) -> None: ...

    return type("Broken", (base,), {"Config": Empty, "__init__": __init__, **members})


def faulty(kind: str, cls: type[Any]) -> str:
    with pytest.raises(PluginError) as caught:
        Registry([]).with_plugin(kind, "x", cls).load(kind, "x")
    return caught.value.what


def test_missing_members_are_named() -> None:
    assert "'update' is missing" in faulty("adapter", broken(Adapter))
    assert "'build' is missing" in faulty("backbone", broken(Backbone))
    assert "'carry' is missing" in faulty("adapter", broken(object, update=Doubling.update))
    assert "'Config' is not a pydantic model" in faulty("adapter", broken(Doubling, Config=int))


def test_parameters_of_other_names_are_named() -> None:
    def update(self: Any, meta: Any, gradients: Any, state: Any, params: Any, step: Any) -> None: ...

    assert "should begin (self, meta, grads, state, params, step)" in faulty("adapter", broken(Doubling, update=update))

    def more(self: Any, meta: Any, grads: Any, state: Any, params: Any, step: Any, mood: Any) -> None: ...

    assert "update asks for 'mood', which is never given" in faulty("adapter", broken(Doubling, update=more))

    def no_steps(self: Any, values: Any, support: Any, *, key: Any = None) -> None: ...

    def predict(self: Any, values: Any, fast: Any, x: Any, **more: Any) -> None: ...

    def loss(self: Any, *args: Any) -> None: ...

    def init(self: Any, key: Any) -> None: ...

    cls = broken(Learner, adapt=no_steps, predict=predict, loss=loss, init=init)
    said = faulty("learner", cls)
    assert "adapt lacks the keyword 'steps'" in said
    assert "__init__(self, config) should begin (self, config, parts)" in said
    assert "predict" not in said
    assert "loss" not in said


def test_facts_of_the_wrong_type_are_named() -> None:
    said = faulty("learner", broken(Learner, tags={"kinds": "all"}, reference=3, defaults={"classification": "fast"}))
    for part in ("'tags' are not of type", "'reference' is not a text", "'defaults' is not a mapping"):
        assert part in said
    assert "'kind' is not one of classification, regression" in faulty("dataset", broken(Dataset, kind="poetry"))


def test_a_regularizer_needs_nothing_but_its_options() -> None:
    cls = broken(Regularizer)
    assert Registry([]).with_plugin("regularizer", "x", cls).load("regularizer", "x") is cls


def test_an_option_called_name_is_refused_where_it_would_clash() -> None:
    class Named(Options):
        name: str = "x"

    def build(self: Any, spec: Any) -> None: ...

    assert "has an option 'name'" in faulty("backbone", broken(Backbone, build=build, Config=Named))


def test_a_hook_plugin_without_a_hook_is_refused() -> None:
    members = {"reference": "", "defaults": {}}
    assert "none of the hooks" in faulty("hook", broken(object, **members))
