"""The search for code that comes from data finds every known way of running such code, and nothing else."""

from __future__ import annotations

import pytest

from code_from_data import hits

# Each snippet runs code that could come from data, or hides that it does so.
SNIPPETS = (
    *("import pickle", "import _pickle", "import joblib", "import code", "import runpy", "import copyreg"),
    *("import jsonpickle", "import torch.package", "from multiprocessing.connection import Client", "import builtins"),
    *("from torch import load", "import torch\ntorch.load(path)", "import torch as t\nt.load(path)"),
    *("import torch\nread = torch.load", "import torch\nt = torch\nt.load(path)", "import torch\ntorch.jit.load(path)"),
    *("import torch\ngetattr(torch, 'load')", "import torch\ntorch.hub.load(a, b)", "from torch import *"),
    *("import torch\ntorch.serialization.load(path)", "import torch\ntorch.export.load(path)"),
    *("import numpy as np\nnp.load(path)", "import numpy as np\nnp.load(path, allow_pickle=True)"),
    *("import numpy as np\nnp.load(path, allow_pickle=allowed)", "import numpy\nread = numpy.load"),
    *("import numpy as np\nnp.zeros(3).dump(path)", "import pandas\npandas.read_pickle(path)"),
    *(
        "import yaml\nyaml.load(text)",
        "from yaml import safe_load",
        "__import__('pickle')",
        "compile(text, path, 'exec')",
    ),
    *("import importlib\nimportlib.import_module(name)", "from importlib import import_module as load"),
    *("eval(text)", "run = eval\nrun(text)", "import builtins\nbuiltins.eval(text)", "__builtins__['eval'](text)"),
    *("import os\nos.popen(text)", "from os import system", "import os\nos.execv(path, words)"),
    *("import subprocess as s\ns.run(text, shell=1)", "import subprocess\nsubprocess.run(text, **{'shell': True})"),
    *("import subprocess\nsubprocess.getoutput(text)", "import tarfile\ntarfile.open(path).extract(name)"),
    *("archive.extractall(path)", "unpack = archive.extractall", "import shutil\nshutil.unpack_archive(path)"),
    *(
        "import torch.distributed as d\nd.all_gather_object(objects, value)",
        "from torch.distributed import gather_object",
    ),
    "import torch.distributed as d\nd.broadcast_object_list(objects)",
)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_way_of_running_code_from_data_is_found(snippet: str) -> None:
    assert hits(snippet)


def test_harmless_calls_with_similar_names_are_not_found() -> None:
    harmless = "import json, re, numpy as np\nnp.load(path, allow_pickle=False)\nre.compile(text)\njson.dump(a, b)\n"
    assert not hits(harmless + "registry.load(name)\ndef code(compile: str) -> None: ...\n")
