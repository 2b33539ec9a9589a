"""Loading: every exception of a plugin's code becomes one `PluginError`, and stdout stays clean."""

from __future__ import annotations

import sys
import textwrap

import pytest

from distributions import ADAPTER, Install
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.loading import import_class, plugin_errors
from metaforge.registry.scan import scan


@pytest.mark.parametrize(
    ("source", "message"),
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
def test_any_exception_on_import_becomes_one_error_with_the_first_cause(
    install: Install, source: str, message: str
) -> None:
    install("mf-broken", "[metaforge.adapters]\nmine = mf_broken:Mine", source)
    with pytest.raises(PluginError, match=message) as caught:
        scan().load("adapter", "mine")
    assert "adapter 'mine' of mf-broken 1.2" in caught.value.what
    assert caught.value.where == "mf_broken:Mine"
    assert caught.value.remedy


def test_a_keyboard_interrupt_passes(install: Install) -> None:
    install("mf-stop", "[metaforge.adapters]\nmine = mf_stop:Mine", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        scan().load("adapter", "mine")


def test_the_first_cause_of_a_chain_is_named(install: Install) -> None:
    source = "try:\n    raise OSError('no such drum')\nexcept OSError as e:\n    raise ValueError('later') from e"
    install("mf-chain", "[metaforge.adapters]\nmine = mf_chain:Mine", source)
    with pytest.raises(PluginError, match="OSError: no such drum"):
        scan().load("adapter", "mine")


def test_what_a_plugin_prints_on_import_goes_to_stderr(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("mf-loud", "[metaforge.adapters]\nmine = mf_loud:Mine", textwrap.dedent(ADAPTER) + "print('loud')")
    scan().load("adapter", "mine")
    out, err = capsys.readouterr()
    assert out == ""
    assert "loud" in err


def test_a_plugin_cannot_replace_stdout(install: Install, capfd: pytest.CaptureFixture[str]) -> None:
    grab = "import os, sys\nsys.stdout = sys.stderr\nos.write(1, b'loud')\n"
    install("mf-grab", "[metaforge.adapters]\nmine = mf_grab:Mine", grab + textwrap.dedent(ADAPTER))
    scan().load("adapter", "mine")
    sys.stdout.write("quiet\n")
    assert capfd.readouterr() == ("quiet\n", "loud")


ENTRY = Entry("adapter", "mine", "mf_direct:Outer.Mine", "mf-direct", "1.2")


def test_a_class_inside_a_class_is_imported(install: Install) -> None:
    install("mf-direct", "", "class Outer:\n    class Mine: pass")
    assert import_class(ENTRY).__qualname__ == "Outer.Mine"


def test_the_message_says_what_the_plugin_cannot_do() -> None:
    message = r"adapter 'mine' of mf-direct 1\.2 cannot be built: ValueError: no"
    with pytest.raises(PluginError, match=message) as caught, plugin_errors(ENTRY, "cannot be built"):
        raise ValueError("no")
    assert isinstance(caught.value.__cause__, ValueError)
    assert "pip uninstall mf-direct" in caught.value.remedy


def test_errors_of_metaforge_pass_only_on_request() -> None:
    error = ConfigError("wrong")
    with pytest.raises(ConfigError) as caught, plugin_errors(ENTRY, keep_metaforge_errors=True):
        raise error
    assert caught.value is error
    with pytest.raises(PluginError, match="ConfigError: wrong"), plugin_errors(ENTRY):
        raise error


def test_stdout_works_again_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def write_and_raise() -> None:
        sys.stdout.write("inside\n")
        raise ValueError

    with pytest.raises(PluginError), plugin_errors(ENTRY):
        write_and_raise()
    sys.stdout.write("after\n")
    assert capfd.readouterr() == ("after\n", "inside\n")
