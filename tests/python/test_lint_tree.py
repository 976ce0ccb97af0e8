"""The tree lint refuses what breaks the order of the house, and names the place."""

import pathlib
import subprocess
import sys

import pytest

LINT = pathlib.Path(__file__).resolve().parents[2] / "tools" / "lint_tree"
HEADER = "// Role and invariant.\n#pragma once\n"

REFUSED = {
    "kernels/norm/norm.cpp": '#include "modules/errors.h"',
    "kernels/norm/norm.cu": "#include <trainer/recipe/recipe.h>",
    "modules/models/network/llama.cpp": '#include "trainer/recipe/recipe.h"',
    "modules/io/reader.cpp": '#include "tests/support/files.h"',
    "modules/models/network/llama.h": HEADER + "#include <torch/torch.h>",
    "tests/support/files.h": HEADER + "#  include <torch/torch.h>",
    "modules/models/network/block.h": "// no guard",
    "modules/models/network/attention.h": "#pragma once\n",
    "modules/io/file_utils.h": HEADER,
    "trainer/common/x.cpp": "",
    "tests/helpers.cpp": "",
    # A room includes those before it in the plan; and every room is in the plan.
    "kernels/operator/checks.cpp": '#include "kernels/norm/norm.h"',
    "kernels/norm/norm.h": HEADER + '#include "kernels/rotary/rotary.h"',
    "modules/io/file.cpp": '#include "modules/text/tokenizer.h"',
    "modules/errors.h": HEADER + '#include "modules/io/input_file.h"',
    "trainer/objective/distillation.cpp": '#include "trainer/build/recipe_models.h"',
    "trainer/recipe/settings.cpp": '#include "trainer/registry.h"',
    "modules/attic/old.cpp": "",
    "kernels/flat.h": HEADER,
}
ACCEPTED = {
    "trainer/loop/loop.cpp": '#include <torch/torch.h>\n#include "modules/errors.h"\n#include "kernels/norm/norm.h"',
    "modules/models/network/llama.h": HEADER + '#include <torch/nn/module.h>\n#include "kernels/norm/norm.h"',
    "kernels/rotary/rotary.cpp": '#include "kernels/rotary/rotary.h"\n#include "kernels/norm/norm.h"\n#include "kernels/operator/checks.h"',
    "modules/text/tokenizer.cpp": '#include "modules/text/jinja/lexer.h"\n#include "modules/errors.h"',
    "trainer/registry.cpp": '#include "trainer/recipe/settings.h"',
    "tests/modules/llama_test.cpp": '#include "tests/support/files.h"\n#include "trainer/recipe/recipe.h"',
    "modules/io/utility_function.h": HEADER,
    "build/release/common/utils.h": "",
}


def lint(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return subprocess.run([sys.executable, str(LINT), str(root)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("path", REFUSED)
def test_breach_is_refused_with_its_place(tmp_path, path):
    result = lint(tmp_path, path, REFUSED[path])
    assert result.returncode == 1
    assert result.stdout.startswith(f"{path}:")
    assert result.stdout.endswith("1 files, 1 findings\n")


@pytest.mark.parametrize("path", ACCEPTED)
def test_what_the_house_allows_passes(tmp_path, path):
    result = lint(tmp_path, path, ACCEPTED[path])
    assert result.returncode == 0, result.stdout


def test_the_tree_itself_is_clean():
    result = subprocess.run([sys.executable, str(LINT)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
