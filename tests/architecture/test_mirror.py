"""The tests mirror the packages: every module has a test file of its name, and every test file belongs to a module.

`metaforge/a/b.py` is tested by `tests/metaforge/a/test_b.py`, and `plugins/metaforge_plugins/a/b.py` by
`tests/plugins/a/test_b.py`. The other folders of `tests` (architecture, attacks, docs, reliability, thirdparty) test
MetaForge as a whole and mirror nothing.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"metaforge": "tests/metaforge", "plugins/metaforge_plugins": "tests/plugins"}

# Modules, or folders of modules (with a slash at the end), without a test file of their own, and why.
EXCEPTIONS: dict[str, str] = {
    "metaforge/testing/checks/": "tests/metaforge/testing/test_faults.py runs every check on plugins that must fail it",
}
# Test files that belong to no single module, and what they test.
TESTS_OF_SEVERAL_MODULES: dict[str, str] = {
    "tests/metaforge/cli/test_end_to_end.py": "the commands one after the other, on one run",
    "tests/metaforge/testing/test_faults.py": "every check of the conformance kit",
    "tests/plugins/test_combinations.py": "every learner with every adapter and regularizer",
    "tests/plugins/test_conformance.py": "the conformance kit on every plugin",
    "tests/plugins/test_every_learner.py": "training and evaluation with every learner",
    "tests/plugins/test_plans_of_every_learner.py": "all plans with every learner",
}


def modules() -> set[str]:
    """Return the paths of all modules that need a test file."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")
    return {path.relative_to(ROOT).as_posix() for path in paths}


def mirroring_files() -> set[str]:
    """Return the paths of all test files in the folders that mirror a package."""
    paths = (path for folder in PACKAGES.values() for path in (ROOT / folder).rglob("test_*.py"))
    return {path.relative_to(ROOT).as_posix() for path in paths}


def mirrored(module: str) -> str:
    """Return the path of the test file of a module."""
    (package,) = (package for package in PACKAGES if module.startswith(f"{package}/"))
    path = Path(PACKAGES[package]) / Path(module).relative_to(package)
    return path.with_name(f"test_{path.stem.strip('_')}.py").as_posix()


def excepted(module: str) -> bool:
    return any(module.startswith(entry) if entry.endswith("/") else module == entry for entry in EXCEPTIONS)


def test_every_module_has_a_test_file_of_its_name() -> None:
    missing = {module: mirrored(module) for module in modules() if not excepted(module)}
    lines = [f"{module}: no {test}" for module, test in sorted(missing.items()) if not (ROOT / test).is_file()]
    assert not lines, "\n".join(["modules without a test file; write it, or add an entry to EXCEPTIONS:", *lines])


def test_every_test_file_belongs_to_a_module() -> None:
    unknown = mirroring_files() - {mirrored(module) for module in modules()} - TESTS_OF_SEVERAL_MODULES.keys()
    assert not unknown, "\n".join(
        ["test files without a module; rename them, or add an entry to TESTS_OF_SEVERAL_MODULES:", *sorted(unknown)]
    )


def test_the_lists_of_exceptions_are_short_and_have_no_unnecessary_entries() -> None:
    assert len(EXCEPTIONS) <= 10
    for entry in EXCEPTIONS:
        matches = [module for module in modules() if module == entry or (entry[-1] == "/" and module.startswith(entry))]
        assert matches, f"{entry} matches no module"
        tested = [module for module in matches if (ROOT / mirrored(module)).is_file()]
        assert not tested, f"{tested} have test files, so {entry} is not needed"
    for test in TESTS_OF_SEVERAL_MODULES:
        assert (ROOT / test).is_file(), f"{test} does not exist"
        assert test not in {mirrored(module) for module in modules()}, f"{test} is the test file of a module"
